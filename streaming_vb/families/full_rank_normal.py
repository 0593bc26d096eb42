"""Full-rank normal distribution over P weights: q(w) = N(m, Lambda^-1).

Natural parameters: `precision_mean` h = Lambda m [P] and `precision` Lambda [P, P]. The exact posterior of a
linear-Gaussian model is of this form, so streaming it in any order and with any staleness gives the batch posterior.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streaming_vb.types import Array, Moments, NaturalParameters

_LEAST_RATIO = 1e-13
"""Of the smallest eigenvalue of Lambda to the largest; below it, the small ones are rounding errors of the large, and
neither a mean nor a Cholesky factor can be computed."""


@dataclass(frozen=True, slots=True)
class FullRankNormal:
    """Normal weights with any covariance; float64 on the wire, because it serves conjugate models.

    >>> q = FullRankNormal()
    >>> a = q.natural(Moments(np.array([1.0, 0.0]), np.array([[1.0, 0.5], [0.5, 1.0]])))
    >>> q.mean(a).round(12).tolist()
    [1.0, 0.0]
    """

    wire_dtype: type = np.float64
    name: str = "full-rank-normal"

    def natural(self, moments: Moments) -> NaturalParameters:
        """h = C^-1 m, Lambda = C^-1 for mean m [P] and covariance C [P, P]."""
        precision = np.linalg.inv(moments.variance)
        precision = (precision + precision.T) / 2
        return NaturalParameters({"precision_mean": precision @ moments.mean, "precision": precision})

    def moments(self, natural: NaturalParameters) -> Moments:
        """Mean [P] and covariance [P, P]."""
        return Moments(self.mean(natural), np.linalg.inv(natural["precision"]))

    def mean(self, natural: NaturalParameters) -> Array:
        """m = Lambda^-1 h [P]."""
        return np.linalg.solve(natural["precision"], natural["precision_mean"])

    def shards(self, natural: NaturalParameters) -> Iterator[slice]:
        """All coordinates at once."""
        yield slice(None)

    def add(
        self, natural: NaturalParameters, delta: NaturalParameters, out: NaturalParameters | None = None
    ) -> NaturalParameters:
        """h + dh, Lambda + dLambda."""
        names = ("precision_mean", "precision")
        return NaturalParameters({n: np.add(natural[n], delta[n], out=None if out is None else out[n]) for n in names})

    def scale_evidence(self, natural: NaturalParameters, prior: NaturalParameters, factor: float) -> NaturalParameters:
        """Precision Lambda0 + factor (Lambda - Lambda0) around the same mean."""
        precision = prior["precision"] + factor * (natural["precision"] - prior["precision"])
        return NaturalParameters({"precision_mean": precision @ self.mean(natural), "precision": precision})

    def kl(self, a: NaturalParameters, b: NaturalParameters) -> float:
        """KL(a || b) = 1/2 [ tr(R) - P - log|R| + (m_a - m_b)' Lambda_b (m_a - m_b) ], R = Lambda_b Lambda_a^-1; nats.

        tr(R) - P - log|R| = sum_j (r_j - log(1 + r_j)), where r_j are the eigenvalues of L^-1 (Lambda_b - Lambda_a)
        L^-T and Lambda_a = L L': no cancellation when a and b are close.
        """
        root = np.linalg.cholesky(a["precision"])
        half = np.linalg.solve(root, b["precision"] - a["precision"])
        ratio = np.linalg.eigvalsh(np.linalg.solve(root, half.T))
        shift = self.mean(a) - self.mean(b)
        return float(0.5 * (np.sum(ratio - np.log1p(ratio)) + shift @ b["precision"] @ shift))

    def distance_sd(self, natural: NaturalParameters, mean: Array) -> float:
        """sqrt((m - mean)' Lambda (m - mean)): staleness in posterior standard deviations."""
        shift = self.mean(natural) - mean
        return float(np.sqrt(shift @ natural["precision"] @ shift))

    def movement(
        self,
        before: NaturalParameters,
        after: NaturalParameters,
        prior: NaturalParameters,
        factors: tuple[float, float],
        mean: Array | None,
    ) -> tuple[float, float]:
        """KL(after || before) and squared distance of `mean` from before, with scaled evidence."""
        served = self.scale_evidence(before, prior, factors[0])
        step_kl = self.kl(self.scale_evidence(after, prior, factors[1]), served)
        return step_kl, 0.0 if mean is None else self.distance_sd(served, mean) ** 2

    def sample(self, natural: NaturalParameters, generator: np.random.Generator) -> Array:
        """m + L^-T e with Lambda = L L' [P]."""
        root = np.linalg.cholesky(natural["precision"])
        noise = generator.standard_normal(len(root))
        return np.asarray(self.mean(natural) + np.linalg.solve(root.T, noise))

    def log_normalizer(self, natural: NaturalParameters) -> float:
        """1/2 [ h' Lambda^-1 h - log|Lambda| + P log(2 pi) ]."""
        h, precision = natural["precision_mean"], natural["precision"]
        log_determinant = np.linalg.slogdet(precision)[1]
        return float(0.5 * (h @ np.linalg.solve(precision, h) - log_determinant + h.size * np.log(2 * np.pi)))

    def is_normalizable(self, natural: NaturalParameters) -> bool:
        """All finite, Lambda symmetric and positive definite by more than rounding."""
        h, precision = natural["precision_mean"], natural["precision"]
        if not (np.isfinite(h).all() and np.isfinite(precision).all() and np.allclose(precision, precision.T)):
            return False
        eigenvalues = np.linalg.eigvalsh(precision)
        return bool(eigenvalues[0] > _LEAST_RATIO * eigenvalues[-1])


def example() -> tuple[FullRankNormal, NaturalParameters, NaturalParameters]:
    """A family with two of its members, for docs and laws."""
    family = FullRankNormal()
    a = family.natural(Moments(np.array([1.0, -2.0]), np.array([[0.5, 0.2], [0.2, 2.0]])))
    b = family.natural(Moments(np.array([0.0, -1.0]), np.array([[1.0, -0.3], [-0.3, 0.25]])))
    return family, a, b
