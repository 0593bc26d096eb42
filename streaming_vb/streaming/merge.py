"""The merge: lambda <- lambda + Delta (SDA-Bayes; Broderick et al. 2013, equation 7), with three additions.

Stale curvature is forgotten first (`forgetting.py`); the fit state is averaged with the lease's weight; and a delta
whose interval the ledger covers is acknowledged and not added. Pure: `(state, delta) -> (state, receipt)`; no argument
is changed, and it knows nothing of neural networks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from streaming_vb.buffers import empty_like
from streaming_vb.errors import MergeRejected
from streaming_vb.streaming.forgetting import Forgetting
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.types import Array, Delta, Family, FitState, NaturalParameters, Receipt, SetAside

_BLOCK = 65_536
"""Numbers of the fit state averaged and checked at a time, so that they stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A posterior that another one started from.

    Attributes:
        run_id, version: where it was made.
        sha256: of its natural parameters.
    """

    run_id: str
    version: int
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """Everything that the posterior of a run consists of.

    Attributes:
        run_id: identity of the run; deltas of another run are refused.
        prior, posterior: natural parameters, float64; `posterior` is the raw one.
        fit_state: warm start of the next fits.
        version: number of merges.
        num_records: N, records counted.
        ledger: which records these are.
        lineage: the posteriors of other runs that this one started from, oldest first.
    """

    run_id: str
    prior: NaturalParameters
    posterior: NaturalParameters
    fit_state: FitState
    version: int = 0
    num_records: int = 0
    ledger: Ledger = Ledger()
    lineage: tuple[Ancestor, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeRule:
    """Bound settings of `merge`.

    Args:
        family: of the posterior.
        forgetting: what a merge forgets first.
        measure: compute step KL and staleness in standard deviations on every merge (else NaN; the merge is faster).
    """

    family: Family
    forgetting: Forgetting
    measure: bool = True

    def __call__(self, state: ServerState, delta: Delta, base_mean: Array | None = None) -> tuple[ServerState, Receipt]:
        """The state with a delta added, and the receipt.

        Args:
            state: the state so far.
            delta: what a worker sends.
            base_mean: mean [P] of the version that the fit started from; none if that version is the current one.

        Returns:
            The new state, or the same object where the receipt says "duplicate" or "rejected".
        """
        interval = delta.lease.interval
        try:
            if delta.run_id != state.run_id:
                raise MergeRejected(f"delta of run {delta.run_id}, this is run {state.run_id}")
            if state.ledger.covers(interval):
                return state, self._receipt("duplicate", state, delta)
            self._screen(state, delta)
            fit_state = average(state.fit_state, delta.fit.fit_state, delta.lease.state_weight)
        except MergeRejected as error:
            return state, replace(self._receipt("rejected", state, delta), reason=str(error))

        merged = replace(
            state,
            posterior=NaturalParameters({name: empty_like(array) for name, array in state.posterior.arrays.items()}),
            fit_state=fit_state,
            version=state.version + 1,
            num_records=state.num_records + delta.num_records,
            ledger=state.ledger.add(interval, delta.bad_records),
        )
        step_kl = squared_distance = 0.0
        for shard in self.family.shards(state.posterior):
            figures = self._merge_shard(shard, state, delta, base_mean, merged)
            if figures is None:
                return state, replace(self._receipt("rejected", state, delta), reason=_why_improper(delta))
            step_kl += figures[0]
            squared_distance += figures[1]
        receipt = self._receipt("merged", merged, delta)
        return merged, replace(receipt, staleness_sd=math.sqrt(squared_distance), step_kl=step_kl)

    def put_aside(self, state: ServerState, entry: SetAside) -> tuple[ServerState, Receipt]:
        """The state with an interval that was read and is not learned; the posterior does not change."""
        if state.ledger.covers(entry.interval):
            return state, Receipt("duplicate", state.version, 0, state.num_records, 0, 0.0, 0.0)
        aside = replace(state, ledger=state.ledger.put_aside(entry))
        return aside, Receipt("set-aside", aside.version, 0, aside.num_records, 0, 0.0, 0.0, entry.reason)

    def _merge_shard(
        self, shard: slice, state: ServerState, delta: Delta, base_mean: Array | None, merged: ServerState
    ) -> tuple[float, float] | None:
        """Write a range of the merged posterior; its step KL and squared distance, or none where it is improper."""
        before, prior = state.posterior.part(shard), state.prior.part(shard)
        remembered = self.forgetting.forget(before, prior, delta.num_records, state.num_records)
        after = self.family.add(remembered, delta.fit.natural.part(shard), out=merged.posterior.part(shard))
        if not self.family.is_normalizable(after):
            return None
        if not self.measure:
            return math.nan, math.nan
        served_factor = self.forgetting.served_factor
        factors = served_factor(state.num_records), served_factor(merged.num_records)
        base = None if base_mean is None else base_mean[shard]
        step_kl, squared_distance = self.family.movement(before, after, prior, factors, base)
        is_known = base is not None or delta.lease.base_version == state.version
        return step_kl, squared_distance if is_known else math.nan

    def served(self, state: ServerState) -> NaturalParameters:
        """The posterior to sample, score and serve."""
        return self.forgetting.served(state.posterior, state.prior, state.num_records)

    def _screen(self, state: ServerState, delta: Delta) -> None:
        for what, expected, got in (
            ("natural parameters", state.posterior.arrays, delta.fit.natural.arrays),
            ("fit state", state.fit_state, delta.fit.fit_state),
        ):
            if _form(got) != _form(expected):
                raise MergeRejected(f"{delta.lease.interval}: {what} {_form(got)}, expected {_form(expected)}")

    def _receipt(self, status: str, state: ServerState, delta: Delta) -> Receipt:
        merges_before = state.version - 1 if status == "merged" else state.version
        staleness = merges_before - delta.lease.base_version
        num_new = delta.num_records if status == "merged" else 0
        return Receipt(status, state.version, num_new, state.num_records, staleness, math.nan, math.nan)


def average(state: FitState, local: FitState, weight: float) -> Mapping[str, Array]:
    """state + weight (local - state) for real arrays, the larger for counts.

    Raises:
        MergeRejected: a value is not finite.

    >>> average({"g": np.array([0.0]), "n": np.array(3)}, {"g": np.array([1.0]), "n": np.array(5)}, 0.5)
    {'g': array([0.5]), 'n': array(5)}
    """
    merged: dict[str, Array] = {}
    for name, old in state.items():
        new = local[name]
        if old.dtype.kind in "iu":
            merged[name] = np.asarray(np.maximum(old, new))
            continue
        merged[name] = new if weight == 1.0 else empty_like(old)
        for block in (slice(start, start + _BLOCK) for start in range(0, old.size, _BLOCK)):
            part = merged[name].reshape(-1)[block]
            if weight != 1.0:
                np.subtract(new.reshape(-1)[block], old.reshape(-1)[block], out=part)
                part *= old.dtype.type(weight)
                part += old.reshape(-1)[block]
            if not is_finite(part):
                raise MergeRejected(f"fit state: {name} is not finite")
    return merged


def is_finite(array: Array) -> bool:
    """Whether every value is finite (min and max carry NaN along, and need no temporary)."""
    return array.size == 0 or bool(-np.inf < array.min() and array.max() < np.inf)


def _form(arrays: Mapping[str, Array]) -> dict[str, str]:
    return {name: f"{array.dtype.kind}{array.shape}" for name, array in sorted(arrays.items())}


def _why_improper(delta: Delta) -> str:
    broken = [name for name, array in delta.fit.natural.arrays.items() if not is_finite(array)]
    if broken:
        return f"{delta.lease.interval}: {', '.join(broken)} is not finite"
    return f"merging {delta.lease.interval} would make a precision non-positive or not finite"
