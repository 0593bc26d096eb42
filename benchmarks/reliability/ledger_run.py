"""A run without workers, for what breaks disks and processes: the ledger model's deltas through a real store.

Entry k covers ten records; every fourth sets its interval aside, every third publishes, as in rounds of three. What the
state must be after any number of entries is known beforehand, to the bit: `states`, by the rule alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.streaming.disk import Disk, RealDisk
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.journal import Entry, Merged, PutAside
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.store import Recovered, Store
from streaming_vb.types import Delta, Fit, Interval, Lease, NaturalParameters, SetAside

RECORDS = 10
ROUND = 3
_MODEL = LedgerModel()
_RULE = MergeRule(_MODEL.family, Nothing(), measure=False)


@dataclass(frozen=True)
class LedgerRun:
    """A run of so many entries.

    Attributes:
        num_entries: in all; whole rounds.
        segment_bytes: of the journal; small, so that files are rotated, trimmed and used again.
    """

    num_entries: int
    segment_bytes: int = 3_000

    @cached_property
    def entries(self) -> list[Entry]:
        """What is appended."""
        return [_entry(number) for number in range(self.num_entries)]

    @cached_property
    def states(self) -> list[ServerState]:
        """What the state must be after 0, 1, 2, ... entries."""
        prior = _MODEL.prior(0)
        states = [ServerState("run", prior, prior, {"momentum": np.zeros(2, np.float32)})]
        for entry in self.entries:
            states.append(applied(states[-1], entry))
        return states

    def store(self, directory: Path, disk: Disk = RealDisk()) -> Store:
        """Its store; always the same operations in the same order."""
        return Store(
            directory,
            {"model": "ledger"},
            rule=_RULE,
            keep_fit_state=True,
            disk=disk,
            segment_bytes=self.segment_bytes,
            background=False,
            clock=_no_time,
        )

    def go_on(self, store: Store, recovered: Recovered, until: int, told: Callable[[int], None]) -> ServerState:
        """Append, sync and tell every entry from where a store was recovered up to `until`; the state at the end.

        An entry for which there is no space is tried once more, as by a worker that was not answered.
        """
        state, published = recovered.state, recovered.published
        for number in range(num_entries(state), until):
            entry = self.entries[number]
            try:
                store.append(entry)
            except OSError:
                store.append(entry)
            state = applied(state, entry)
            store.sync()
            told(number + 1)
            if entry.publish:
                published = state
                store.published(state)
        return published

    def what_is_wrong(self, recovered: Recovered, told: int) -> str:
        """Why what was recovered is not the state after some number of entries, all those told among them; else ""."""
        count = num_entries(recovered.state)
        if count < told:
            return f"{told} entries were told, {count} are recovered"
        for name, state, number in (
            ("state", recovered.state, count),
            ("published state", recovered.published, count - count % ROUND),
        ):
            if bits(state) != bits(self.states[number]):
                return f"the {name} is not that after {number} entries"
        if not sums_are_right(recovered.state):
            return f"the sums after {count} entries are not those of the ledger"
        return ""


def applied(state: ServerState, entry: Entry) -> ServerState:
    """The state after one more entry."""
    if isinstance(entry, Merged):
        state, receipt = _RULE(state, entry.delta)
    else:
        state, receipt = _RULE.put_aside(state, entry.set_aside)
    assert receipt.status in ("merged", "set-aside"), receipt
    return state


def num_entries(state: ServerState) -> int:
    """How many entries a state has."""
    return state.ledger.num_covered() // RECORDS


def bits(state: ServerState) -> tuple[object, ...]:
    """Everything in a state, comparable."""
    groups = (state.prior.arrays, state.posterior.arrays, state.fit_state)
    arrays = [
        (name, array.dtype.str, array.shape, array.tobytes()) for group in groups for name, array in group.items()
    ]
    return arrays, state.run_id, state.version, state.num_records, state.ledger, state.lineage


def sums_are_right(state: ServerState) -> bool:
    """Whether the sums are those over the ledger's intervals, less the records set aside."""
    aside = [entry.interval for entry in state.ledger.set_aside]
    sums = sum(map(_sums, state.ledger.intervals()), np.zeros(4)) - sum(map(_sums, aside), np.zeros(4))
    return np.array_equal(sums, state.posterior["sum"])


def _entry(number: int) -> Entry:
    interval = Interval("source", "part", RECORDS * number, RECORDS * (number + 1))
    publish = number % ROUND == ROUND - 1
    if number % 4 == 3:
        return PutAside(SetAside(interval, RECORDS, "not finite"), publish)
    lease = Lease(interval, 0, number - number % ROUND, 1.0, 0.5, 1)
    evidence = NaturalParameters({"sum": _sums(interval)})
    fit = Fit(evidence, {"momentum": np.array([number, 1 / (number + 1)], np.float32)}, 0.0)
    return Merged(Delta("run", lease, fit, RECORDS), publish)


def _sums(interval: Interval) -> np.ndarray:
    return _MODEL.sums(np.arange(interval.start, interval.stop))


def _no_time() -> float:
    return 0.0
