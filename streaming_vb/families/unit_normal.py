"""Normal distribution with known unit precision: q(w) = prod_j N(w_j; s_j, 1).

Its only natural parameter is the sum s [P], so integer statistics add up without rounding (float64 is exact below
2^53): the family of the ledger model, in which one lost or doubled record shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streaming_vb.types import Array, Moments, NaturalParameters


@dataclass(frozen=True, slots=True)
class UnitNormal:
    """Independent normal weights of unit variance.

    >>> q = UnitNormal()
    >>> total = q.add(NaturalParameters({"sum": np.array([1.0])}), NaturalParameters({"sum": np.array([2.0])}))
    >>> total["sum"]
    array([3.])
    """

    wire_dtype: type = np.float64
    name: str = "unit-normal"

    def natural(self, moments: Moments) -> NaturalParameters:
        """s = m; the variance is known."""
        return NaturalParameters({"sum": np.asarray(moments.mean, np.float64)})

    def moments(self, natural: NaturalParameters) -> Moments:
        """Mean s [P] and unit variance [P]."""
        return Moments(natural["sum"], np.ones_like(natural["sum"]))

    def mean(self, natural: NaturalParameters) -> Array:
        """m = s [P]."""
        return natural["sum"]

    def shards(self, natural: NaturalParameters) -> Iterator[slice]:
        """All coordinates at once."""
        yield slice(None)

    def add(
        self, natural: NaturalParameters, delta: NaturalParameters, out: NaturalParameters | None = None
    ) -> NaturalParameters:
        """s + ds."""
        total = np.add(natural["sum"], delta["sum"], out=None if out is None else out["sum"])
        return NaturalParameters({"sum": total})

    def kl(self, a: NaturalParameters, b: NaturalParameters) -> float:
        """KL(a || b) = 1/2 |s_a - s_b|^2, nats."""
        return 0.5 * float(np.sum((a["sum"] - b["sum"]) ** 2))

    def distance_sd(self, natural: NaturalParameters, mean: Array) -> float:
        """|s - mean|."""
        return float(np.linalg.norm(natural["sum"] - mean))

    def movement(
        self,
        before: NaturalParameters,
        after: NaturalParameters,
        prior: NaturalParameters,
        factors: tuple[float, float],
        mean: Array | None,
    ) -> tuple[float, float]:
        """KL(after || before) and squared distance of `mean` from before; the known precision cannot be scaled."""
        return self.kl(after, before), 0.0 if mean is None else self.distance_sd(before, mean) ** 2

    def sample(self, natural: NaturalParameters, generator: np.random.Generator) -> Array:
        """s + e [P]."""
        return np.asarray(natural["sum"] + generator.standard_normal(natural["sum"].size))

    def log_normalizer(self, natural: NaturalParameters) -> float:
        """1/2 |s|^2 + P/2 log(2 pi)."""
        total = natural["sum"]
        return float(0.5 * (total @ total + total.size * np.log(2 * np.pi)))

    def is_normalizable(self, natural: NaturalParameters) -> bool:
        """All finite."""
        return bool(np.isfinite(natural["sum"]).all())


def example() -> tuple[UnitNormal, NaturalParameters, NaturalParameters]:
    """A family with two of its members, for docs and laws."""
    family = UnitNormal()
    return (
        family,
        NaturalParameters({"sum": np.array([3.0, -1.0])}),
        NaturalParameters({"sum": np.array([0.0, 2.0])}),
    )
