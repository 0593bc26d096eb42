"""The ledger model, made sensitive: besides its exact sums it carries floating-point numbers that depend on everything
that a fit may depend on (base version, share, seed, fit state, order of merges), so that ordered runs can be compared
to the bit; and a second group of parameters, so that a torn state shows.

Some records misbehave: they cannot be scored, or make the fit NaN once or always. Records that kill a worker are the
world's affair.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from streaming_vb.errors import DataError
from streaming_vb.families.unit_normal import UnitNormal
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.types import Array, Fit, FitState, NaturalParameters, Records

TWIN = 3.0
"""The second group holds this many times the sums."""


@dataclass(frozen=True, slots=True)
class Groups(UnitNormal):
    """`UnitNormal` with three groups of parameters: the sums, their twin, and the trace of what happened."""

    def add(
        self, natural: NaturalParameters, delta: NaturalParameters, out: NaturalParameters | None = None
    ) -> NaturalParameters:
        """Sum, group by group."""
        into = {} if out is None else out.arrays
        return NaturalParameters(
            {name: np.add(array, delta[name], out=into.get(name)) for name, array in natural.arrays.items()}
        )

    def shards(self, natural: NaturalParameters) -> Iterator[slice]:
        """All at once."""
        yield slice(None)

    def is_normalizable(self, natural: NaturalParameters) -> bool:
        """All finite."""
        return all(bool(np.isfinite(array).all()) for array in natural.arrays.values())


@dataclass(frozen=True, slots=True)
class TracedModel(LedgerModel):
    """The ledger model with a twin and a trace.

    Attributes:
        bad: ids that it refuses.
    """

    bad: frozenset[int] = frozenset()

    @property
    def family(self) -> Groups:
        """Sums of every group."""
        return Groups()

    def prior(self, seed: int) -> NaturalParameters:
        """Nothing counted."""
        return NaturalParameters({"sum": np.zeros(4), "twin": np.zeros(4), "trace": np.full(2, 0.1)})

    def validate(self, records: Records) -> None:
        """Raise DataError if a record cannot be scored."""
        for number in records["id"].tolist():
            if number in self.bad:
                raise DataError(f"record {number} cannot be scored")

    def evidence(self, records: Records) -> NaturalParameters:
        """The sums, twice."""
        sums = self.sums(records["id"])
        return NaturalParameters({"sum": sums, "twin": TWIN * sums})


@dataclass(frozen=True, slots=True)
class Traced:
    """A primitive: the exact evidence, and a trace of everything that the fit saw.

    Attributes:
        nan_once, nan_always: ids that make the first fit, or every fit, of their interval NaN.
    """

    model: TracedModel = TracedModel()
    nan_once: frozenset[int] = frozenset()
    nan_always: frozenset[int] = frozenset()
    is_cautious: bool = False

    def describe(self) -> dict[str, object]:
        """Its name."""
        return {"primitive": "traced"}

    def initial_state(self) -> FitState:
        """A number to average, and a count."""
        return {"pace": np.full(2, 0.3), "steps": np.zeros((), np.int64)}

    def __call__(
        self, prior: NaturalParameters, served: NaturalParameters, fit_state: FitState, records: Records, seed: int
    ) -> Fit:
        """Evidence of the records."""
        evidence = self.model.evidence(records)
        noise = np.array([seed % 1_000_003, seed % 999_983]) / 1e6
        trace: Array = np.sin(3.0 * prior["trace"] + served["trace"]) * fit_state["pace"] + noise
        ids = {int(number) for number in records["id"]}
        if ids & self.nan_always or (ids & self.nan_once and not self.is_cautious):
            trace = np.full(2, np.nan)
        state = {"pace": 0.5 * fit_state["pace"] + 0.1 * noise, "steps": np.asarray(fit_state["steps"] + 1)}
        return Fit(NaturalParameters({**evidence.arrays, "trace": trace}), state, -1.0)

    def cautious(self) -> "Traced":
        """The second attempt."""
        return replace(self, is_cautious=True)

    def after(self, num_records: int) -> "Traced":
        """Nothing is annealed."""
        del num_records
        return self
