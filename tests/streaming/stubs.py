"""A source, a model and primitives that misbehave on purpose, for tests of the recursion."""

from dataclasses import dataclass, replace

import numpy as np

from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.models.vae import VAE
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.types import Fit, FitState, Interval, Moments, NaturalParameters, Records

SMALL_VAE = VAE(6, hidden=(5,), latent=2)


def binary_source(num_records: int = 200) -> BinarizedSource:
    """Real bits for `SMALL_VAE`."""
    probabilities = np.random.default_rng(0).uniform(0.1, 0.9, (num_records, 6))
    return BinarizedSource(ArraySource({"x": probabilities}), seed=3)


def expected_sums(intervals: list[Interval], records_per_partition: int) -> list[float]:
    """What the ledger model must hold after intervals of an `IntegerSource`."""
    ids = [
        int(interval.partition.removeprefix("part-")) * records_per_partition + position
        for interval in intervals
        for position in range(interval.start, interval.stop)
    ]
    return LedgerModel().sums(np.array(ids, np.int64)).tolist()


@dataclass(frozen=True)
class CountingModel:
    """One weight whose precision counts records; records are ids."""

    @property
    def family(self) -> MeanFieldNormal:
        return MeanFieldNormal()

    def prior(self, seed: int) -> NaturalParameters:
        return self.family.natural(Moments(np.zeros(1), np.ones(1)))

    def validate(self, records: Records) -> None:
        """Anything goes."""

    def describe(self) -> dict[str, object]:
        return {"model": "counting"}


@dataclass(frozen=True)
class Broken:
    """One unit of precision per record, except for intervals that start at one of `starts`.

    There the evidence is `value`: NaN fails in the worker, -1e9 is refused by the server. With `heals` the second,
    cautious attempt succeeds.
    """

    starts: tuple[int, ...]
    value: float = np.nan
    heals: bool = False
    is_cautious: bool = False

    def describe(self) -> dict[str, object]:
        return {"primitive": "stub"}

    def initial_state(self) -> FitState:
        return {"steps": np.zeros((), np.int64)}

    def __call__(
        self, prior: NaturalParameters, served: NaturalParameters, fit_state: FitState, records: Records, seed: int
    ) -> Fit:
        is_broken = records.interval.start in self.starts and not (self.heals and self.is_cautious)
        precision = self.value if is_broken else float(len(records))
        natural = NaturalParameters({"precision_mean": np.zeros(1), "precision": np.array([precision])})
        return Fit(natural, {"steps": fit_state["steps"] + 1}, -1.0)

    def cautious(self) -> "Broken":
        return replace(self, is_cautious=True)

    def after(self, num_records: int) -> "Broken":
        del num_records
        return self
