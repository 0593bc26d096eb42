"""Mean-field normal distribution over P weights: q(w) = prod_j N(w_j; m_j, 1/S_j).

Natural parameters: `precision_mean` h = S m [P] and `precision` S [P]. A merge adds h and S, never means and
variances: the sum is then delay-compensated to second order by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streaming_vb.buffers import empty_like
from streaming_vb.types import Array, Moments, NaturalParameters

_BLOCK = 16_384
"""Weights per shard: a dozen float64 temporaries of this size stay in a core's cache; a merge takes half the time."""


@dataclass(frozen=True, slots=True)
class MeanFieldNormal:
    """Independent normal weights; float32 on the wire, because its evidence comes from float32 networks.

    >>> q = MeanFieldNormal()
    >>> a = q.natural(Moments(np.array([1.0]), np.array([0.5])))
    >>> round(q.kl(a, q.natural(Moments(np.array([0.0]), np.array([1.0])))), 6)
    0.596574
    """

    wire_dtype: type = np.float32
    name: str = "mean-field-normal"

    def natural(self, moments: Moments) -> NaturalParameters:
        """h = m / v, S = 1 / v for mean m [P] and variance v [P]."""
        precision = 1.0 / np.asarray(moments.variance, np.float64)
        return NaturalParameters({"precision_mean": moments.mean * precision, "precision": precision})

    def moments(self, natural: NaturalParameters) -> Moments:
        """Mean [P] and variance [P]."""
        return Moments(self.mean(natural), 1.0 / natural["precision"])

    def mean(self, natural: NaturalParameters) -> Array:
        """m = h / S [P]."""
        return np.divide(natural["precision_mean"], natural["precision"], out=empty_like(natural["precision"]))

    def shards(self, natural: NaturalParameters) -> Iterator[slice]:
        """Coordinates are independent: blocks that stay in a core's cache while a merge works on them."""
        return (slice(start, start + _BLOCK) for start in range(0, natural["precision"].size, _BLOCK))

    def add(
        self, natural: NaturalParameters, delta: NaturalParameters, out: NaturalParameters | None = None
    ) -> NaturalParameters:
        """h + dh, S + dS."""
        names = ("precision_mean", "precision")
        return NaturalParameters({n: np.add(natural[n], delta[n], out=None if out is None else out[n]) for n in names})

    def scale_evidence(self, natural: NaturalParameters, prior: NaturalParameters, factor: float) -> NaturalParameters:
        """Precision S0 + factor (S - S0) around the same mean.

        factor < 1 forgets curvature; shrinking toward the prior mean as well would pull the weights back to their
        random start.
        """
        old = natural["precision"]
        precision = np.subtract(old, prior["precision"], out=empty_like(old))
        precision *= old.dtype.type(factor)
        precision += prior["precision"]
        precision_mean = np.divide(precision, old, out=empty_like(old))
        precision_mean *= natural["precision_mean"]
        return NaturalParameters({"precision_mean": precision_mean, "precision": precision})

    def kl(self, a: NaturalParameters, b: NaturalParameters) -> float:
        """KL(a || b) = 1/2 sum_j [ r_j - 1 - log r_j + S_b (m_a - m_b)^2 ], r = S_b / S_a; nats.

        Rounding leaves about 1e-16 nats per weight; log1p would leave less, and take most of the time of a merge.
        """
        return _kl(a["precision"], b["precision"], self.mean(a) - self.mean(b))

    def distance_sd(self, natural: NaturalParameters, mean: Array) -> float:
        """sqrt(sum_j S_j (m_j - mean_j)^2): staleness in posterior standard deviations."""
        shift = self.mean(natural) - mean
        return float(np.sqrt(_dot(shift * natural["precision"], shift)))

    def movement(
        self,
        before: NaturalParameters,
        after: NaturalParameters,
        prior: NaturalParameters,
        factors: tuple[float, float],
        mean: Array | None,
    ) -> tuple[float, float]:
        """KL(after || before) and squared distance of `mean` from before, with scaled evidence.

        Scaling keeps the means, so this is `scale_evidence`, `kl` and `distance_sd` with half of their divisions: the
        hot path of a server that measures every merge.
        """
        floor = prior["precision"]
        served_before, served_after = (
            (natural["precision"] - floor) * factor + floor
            for natural, factor in zip((before, after), factors, strict=True)
        )
        mean_before = before["precision_mean"] / before["precision"]
        shift = after["precision_mean"] / after["precision"]
        shift -= mean_before
        step_kl = _kl(served_after, served_before, shift)
        if mean is None:
            return step_kl, 0.0
        mean_before -= mean
        served_before *= mean_before
        return step_kl, _dot(served_before, mean_before)

    def sample(self, natural: NaturalParameters, generator: np.random.Generator) -> Array:
        """m + S^(-1/2) e, e ~ N(0, 1) [P]."""
        precision = natural["precision"]
        noise = generator.standard_normal(precision.size)
        return np.asarray(self.mean(natural) + noise / np.sqrt(precision))

    def log_normalizer(self, natural: NaturalParameters) -> float:
        """sum_j [ h_j^2 / (2 S_j) - log(S_j) / 2 + log(2 pi) / 2 ]."""
        h, precision = natural["precision_mean"], natural["precision"]
        return float(0.5 * np.sum(h * h / precision - np.log(precision) + np.log(2 * np.pi)))

    def is_normalizable(self, natural: NaturalParameters) -> bool:
        """All finite and every precision positive (the sums carry NaN and infinity along, and need no temporary)."""
        h, precision = natural["precision_mean"], natural["precision"]
        return bool(precision.min() > 0.0 and np.isfinite(precision.sum()) and np.isfinite(h.sum()))


def example() -> tuple[MeanFieldNormal, NaturalParameters, NaturalParameters]:
    """A family with two of its members, for docs and laws."""
    family = MeanFieldNormal()
    a = family.natural(Moments(np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])))
    b = family.natural(Moments(np.array([0.0, -1.0, 3.0]), np.array([1.0, 0.25, 4.0])))
    return family, a, b


def _kl(precision_a: Array, precision_b: Array, shift: Array) -> float:
    """KL of two mean-field normals whose means differ by `shift`."""
    ratio = precision_b / precision_a
    divergence = _dot(shift * precision_b, shift)
    divergence += ratio.sum() - ratio.size
    divergence -= np.log(ratio, out=ratio).sum()
    return max(0.0, 0.5 * float(divergence))


def _dot(a: Array, b: Array) -> float:
    """sum_j a_j b_j in this thread: BLAS would start others, and wait for them where workers have the cores."""
    return float(np.einsum("i,i", a, b))
