"""Forgetting stale curvature: pure functions of a posterior, its prior and the records counted.

Early curvature of a neural model was measured at bad weights. The window says *where* curvature is measured; it does
not say that the older records taught nothing. So the *raw* posterior forgets, and what is sampled, scored and served is
the *served* posterior:

    n_eff = max(minimum, fraction N),   raw:  S <- S0 + exp(-n / n_eff) (S - S0),   served:  S0 + max(1, N / n_eff) (S -
    S0)

Both keep the mean. N counts all records.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from streaming_vb.errors import ConfigError
from streaming_vb.types import Family, NaturalParameters

MINIMUM = 2000
FRACTION = 0.1


class Forgetting(Protocol):
    """What a merge forgets first, and what is served after it."""

    def describe(self) -> str:
        """The setting as a user types it."""

    def forget(
        self, posterior: NaturalParameters, prior: NaturalParameters, num_new: int, num_records: int
    ) -> NaturalParameters:
        """The raw posterior before evidence of `num_new` records is added to `num_records`."""

    def served_factor(self, num_records: int) -> float:
        """What `served` scales the evidence by."""

    def served(self, posterior: NaturalParameters, prior: NaturalParameters, num_records: int) -> NaturalParameters:
        """The posterior to sample, score and serve."""


@runtime_checkable
class ScalableFamily(Family, Protocol):
    """A family whose evidence can be scaled around its mean."""

    def scale_evidence(
        self, natural: NaturalParameters, prior: NaturalParameters, factor: float
    ) -> NaturalParameters: ...


@dataclass(frozen=True, slots=True)
class Nothing:
    """Forget nothing: right for exact conjugate models."""

    def describe(self) -> str:
        return "none"

    def forget(
        self, posterior: NaturalParameters, prior: NaturalParameters, num_new: int, num_records: int
    ) -> NaturalParameters:
        return posterior

    def served_factor(self, num_records: int) -> float:
        return 1.0

    def served(self, posterior: NaturalParameters, prior: NaturalParameters, num_records: int) -> NaturalParameters:
        return posterior


@dataclass(frozen=True, slots=True)
class Window:
    """Curvature of the newest max(minimum, fraction N) records, evidence of all.

    >>> from streaming_vb.families.mean_field_normal import MeanFieldNormal
    >>> Window(MeanFieldNormal()).effective_records(num_records=50_000)
    5000.0
    """

    family: ScalableFamily
    minimum: float = MINIMUM
    fraction: float = FRACTION

    def describe(self) -> str:
        return ":".join(["window", *(repr(value).removesuffix(".0") for value in (self.minimum, self.fraction))])

    def effective_records(self, num_records: int) -> float:
        """n_eff."""
        return max(float(self.minimum), self.fraction * num_records)

    def forget(
        self, posterior: NaturalParameters, prior: NaturalParameters, num_new: int, num_records: int
    ) -> NaturalParameters:
        factor = math.exp(-num_new / self.effective_records(num_records))
        return self.family.scale_evidence(posterior, prior, factor)

    def served_factor(self, num_records: int) -> float:
        return max(1.0, num_records / self.effective_records(num_records))

    def served(self, posterior: NaturalParameters, prior: NaturalParameters, num_records: int) -> NaturalParameters:
        return self.family.scale_evidence(posterior, prior, self.served_factor(num_records))


def parse(text: str, family: Family) -> Forgetting:
    """The forgetting named by a user: "none" or "window:MIN:KAPPA".

    Raises:
        ConfigError: the text is neither, or the family has no evidence to scale.

    >>> from streaming_vb.families.mean_field_normal import MeanFieldNormal
    >>> parse("window:2000:0.1", MeanFieldNormal()).describe()
    'window:2000:0.1'
    """
    if text == "none":
        return Nothing()
    kind, *numbers = text.split(":")
    try:
        minimum, fraction = (float(number) for number in numbers)
    except ValueError:
        minimum = fraction = math.nan
    if kind != "window" or not (0 < minimum < math.inf and 0 <= fraction <= 1):
        raise ConfigError(
            f"--forgetting: expected none or window:MIN:KAPPA with MIN > 0 records and 0 <= KAPPA <= 1, got {text!r}. "
            "Type --forgetting window:2000:0.1"
        )
    if not isinstance(family, ScalableFamily):
        raise ConfigError(f"--forgetting {text}: family {family.name} forgets nothing. Type --forgetting none")
    return Window(family, minimum, fraction)
