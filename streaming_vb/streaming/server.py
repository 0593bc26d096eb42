"""The parameter server without its process: a `ServerState`, the rule that changes it, the disk that outlives it, and
the snapshots it has published.

Every push is checked, written to the journal and applied; `commit` makes what was pushed durable, and only then may an
answer be told. Synchronous and single-threaded: a reader sees a version before or after a merge, never between.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from streaming_vb.failpoints import reach
from streaming_vb.streaming.journal import Entry, Merged, PutAside
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.screening import Screening
from streaming_vb.streaming.transport import Position
from streaming_vb.types import Array, Delta, Interval, Receipt, SetAside, Snapshot

logger = logging.getLogger(__name__)

MAX_RECEIPTS = 1_024
"""Answers remembered: many times what can be in flight."""


class Durable(Protocol):
    """Where a server writes what it must not forget (`store.Store`)."""

    def append(self, entry: Entry) -> None:
        """Write to the journal; raises OSError with nothing appended."""

    def sync(self) -> None:
        """Make everything appended durable."""

    def published(self, state: ServerState) -> None:
        """A version was published: time for a snapshot, now and then."""

    def take_notes(self) -> list[str]:
        """What people should read, one line each."""

    def close(self, state: ServerState) -> None:
        """Save the state, and let go of the directory."""


class Server:
    """Mutators return a receipt, not the state.

    Args:
        state: where the run stands.
        rule: how a delta is merged.
        screening: what is refused.
        store: the disk; none keeps everything in memory.
        published: the state published last, where the run stands in the middle of a round.
        generation: of this writer.
        since: leases of this generation and later ones are accepted; none means `generation` alone.
        receipts: answers to give again.
        notes: what recovery found.
    """

    def __init__(
        self,
        state: ServerState,
        rule: MergeRule,
        *,
        screening: Screening = Screening(),
        store: Durable | None = None,
        published: ServerState | None = None,
        generation: int = 0,
        since: int | None = None,
        receipts: Mapping[Interval, Receipt] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._state = state
        self._published = published or state
        self._rule, self._screening, self._store = rule, screening, store
        self._generations = range(generation if since is None else since, generation + 1)
        self._receipts = dict(receipts or {})
        self._notes = notes
        self._base_means: dict[int, Array] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._has_news = False
        self._keep_snapshot()

    def push(self, delta: Delta, *, oldest_base: int, publish: bool = False) -> Receipt:
        """Merge a delta; push it again and it is acknowledged and not added.

        Args:
            delta: what a worker sends.
            oldest_base: oldest version that a fit in flight started from; older ones are dropped.
            publish: publish the version that results.

        Raises:
            OSError: the disk refuses; nothing has changed.
        """
        interval = delta.lease.interval
        if interval in self._receipts:
            return self._receipts[interval]
        self._drop_older_than(oldest_base)
        merged, receipt = self._merged(delta)
        if receipt.status == "merged":
            self._apply(Merged(delta, publish), interval, merged, receipt)
        return receipt

    def set_aside(self, interval: Interval, num_records: int, reason: str, *, publish: bool = False) -> Receipt:
        """Record in the ledger that an interval was read but not learned; the posterior does not change.

        Raises:
            OSError: the disk refuses; nothing has changed.
        """
        if interval in self._receipts:
            return self._receipts[interval]
        entry = SetAside(interval, num_records, reason)
        aside, receipt = self._rule.put_aside(self._state, entry)
        if receipt.status == "set-aside":
            self._apply(PutAside(entry, publish), interval, aside, receipt)
        return receipt

    def commit(self) -> None:
        """Make everything pushed durable. Answers may be told after it, and not before.

        Raises:
            OSError: the disk failed; the server must end, and recover from the disk.
            StaleWriter: a newer server took the run directory over; the same.
        """
        if self._store is None:
            return
        self._store.sync()
        if self._has_news:
            self._has_news = False
            self._store.published(self._published)
            for note in self._store.take_notes():
                logger.warning("%s", note)

    def publish(self) -> Snapshot:
        """The current version, in the wire format: the base of the next leases, and what `published` gives."""
        self._published, self._has_news = self._state, True
        return self._keep_snapshot()

    def snapshot(self, version: int) -> Snapshot | None:
        """A published version, none if it is no longer kept."""
        return self._snapshots.get(version)

    def published(self) -> ServerState:
        """State at the last `publish`: what is saved, so that an ordered run resumes at the start of a round."""
        return self._published

    def position(self) -> Position:
        """Where the run stands, for the driver."""
        state = self._published
        generation = self._generations[-1]
        return Position(
            generation, state.run_id, state.version, state.num_records, state.ledger, self._state.ledger, self._notes
        )

    def close(self) -> None:
        """Save the published state, and let go of the run directory."""
        if self._store is not None:
            self._store.close(self._published)

    def _merged(self, delta: Delta) -> tuple[ServerState, Receipt]:
        """The state with a delta added and the receipt, or the state as it is and why it was refused."""
        state, lease = self._state, delta.lease
        base_mean = None if lease.base_version == state.version else self._base_means.get(lease.base_version)
        reason = "" if delta.run_id != state.run_id else self._screening.of_message(delta, self._generations)
        if reason:
            return state, self._refused(delta, reason)
        merged, receipt = self._rule(state, delta, base_mean)
        if receipt.status != "merged":
            return state, receipt
        if reason := self._screening.of_staleness(receipt.staleness):
            return state, replace(self._refused(delta, f"{lease.interval}: {reason}"), is_stale=True)
        if reason := self._screening.of_receipt(receipt):
            return state, self._refused(delta, f"{lease.interval}: {reason}")
        return merged, receipt

    def _refused(self, delta: Delta, reason: str) -> Receipt:
        state = self._state
        staleness = state.version - delta.lease.base_version
        nothing = float("nan")
        return Receipt("rejected", state.version, 0, state.num_records, staleness, nothing, nothing, reason)

    def _apply(self, entry: Entry, interval: Interval, state: ServerState, receipt: Receipt) -> None:
        reach("S2")
        if self._store is not None:
            self._store.append(entry)
        self._state = state
        self._receipts[interval] = receipt
        if len(self._receipts) > MAX_RECEIPTS:
            del self._receipts[next(iter(self._receipts))]
        reach("S5")
        if entry.publish:
            self.publish()

    def _keep_snapshot(self) -> Snapshot:
        state, family = self._published, self._rule.family
        if self._rule.measure:
            self._base_means[state.version] = family.mean(state.posterior)
        kept = Snapshot(state.version, state.num_records, state.posterior.astype(family.wire_dtype), state.fit_state)
        self._snapshots[state.version] = kept
        return kept

    def _drop_older_than(self, oldest_base: int) -> None:
        newest = self._published.version
        self._base_means = {v: mean for v, mean in self._base_means.items() if v >= oldest_base}
        self._snapshots = {v: kept for v, kept in self._snapshots.items() if v >= oldest_base or v == newest}
