"""Conjugate primitive: the evidence in closed form. It does not depend on the prior, so staleness does not matter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from streaming_vb.types import Fit, FitState, Model, NaturalParameters, Records


class ConjugateModel(Model, Protocol):
    """A `Model` whose likelihood has natural parameters of the posterior's own family."""

    def evidence(self, records: Records) -> NaturalParameters: ...
    def log_predictive(self, posterior: NaturalParameters, records: Records) -> float: ...


def build(model: ConjugateModel) -> "Conjugate":
    """The exact primitive of a conjugate model."""
    return Conjugate(model)


@dataclass(frozen=True, slots=True)
class Conjugate:
    """Evidence of a conjugate model, and its log predictive density as score."""

    model: ConjugateModel

    def describe(self) -> Mapping[str, object]:
        """There is nothing to set."""
        return {"primitive": "conjugate"}

    def initial_state(self) -> FitState:
        """Nothing to warm-start."""
        return {}

    def __call__(
        self, prior: NaturalParameters, served: NaturalParameters, fit_state: FitState, records: Records, seed: int
    ) -> Fit:
        """Evidence of the records, scored at the served posterior first."""
        del prior, seed  # exact: independent of both
        return Fit(self.model.evidence(records), fit_state, self.model.log_predictive(served, records))

    def cautious(self) -> "Conjugate":
        """There is no step to shorten."""
        return self

    def after(self, num_records: int) -> "Conjugate":
        """Nothing is annealed."""
        del num_records
        return self
