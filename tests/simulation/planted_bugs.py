"""Bugs that the simulator must find, or it proves nothing: each a context in which the real code has that bug.

They are planted by replacing a function of the real code, which has no switches for them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from simulation.simulated_disk import ProcessDisk
from simulation.traced_model import Groups
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.disk import File
from streaming_vb.streaming.generation import Generation
from streaming_vb.streaming.journal import End, Entry, Merged, Segment, Segments, mark
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.remote_engine import RemoteEngine
from streaming_vb.streaming.screening import Screening
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.store import Store
from streaming_vb.types import Delta, Interval, Lease, NaturalParameters, Receipt, SetAside, Snapshot

_Plant = Callable[[], AbstractContextManager[object]]


def acknowledged_before_it_is_synced() -> AbstractContextManager[object]:
    """The journal is written and not synced when a merge is answered."""
    return patch.object(Store, "sync", lambda store: store._generation.check())


def directory_not_synced() -> AbstractContextManager[object]:
    """Names of new files, and renames, are not made durable."""
    return _on_disks(_NoDirectorySync)


def snapshot_renamed_before_it_is_synced() -> AbstractContextManager[object]:
    """A name that is durable, of content that is not."""
    return _on_disks(_NoSyncOfTemporaryFiles)


def ledger_end_inclusive() -> AbstractContextManager[object]:
    """An interval covers the record behind it as well."""
    add = Ledger.add

    def broken(ledger: Ledger, interval: Interval, bad_records: tuple[SetAside, ...] = ()) -> Ledger:
        return add(ledger, replace(interval, stop=interval.stop + 1), bad_records)

    return patch.object(Ledger, "add", broken)


def key_without_partition() -> AbstractContextManager[object]:
    """Answers are remembered by position, whatever the partition."""
    initialize = Server.__init__

    def broken(server: Server, *arguments: Any, **keywords: Any) -> None:
        initialize(server, *arguments, **keywords)
        server._receipts = _ByPosition(server._receipts)

    return patch.object(Server, "__init__", broken)


def ledger_lost_at_snapshot() -> AbstractContextManager[object]:
    """What was counted before a snapshot is not known after it."""
    save = snapshot.save

    def broken(path: Path, state: ServerState, *arguments: Any) -> None:
        save(path, replace(state, ledger=Ledger()), *arguments)

    return patch.object(snapshot, "save", broken)


def journal_trimmed_before_rename() -> AbstractContextManager[object]:
    """Entries go before the snapshot that has them is there."""
    save = Store._save

    def broken(store: Store, state: ServerState) -> None:
        if hasattr(store, "_journal"):
            store._journal.trim(mark(state))
        save(store, state)

    return patch.object(Store, "_save", broken)


def snapshot_of_live_tensors() -> AbstractContextManager[object]:
    """Merges write into the arrays of the version before, which a thread may be saving."""
    apply = Server._apply

    def broken(server: Server, entry: Entry, interval: Interval, state: ServerState, receipt: Receipt) -> None:
        before = server._state
        apply(server, entry, interval, state, receipt)
        if before.version > 0:
            for name, array in before.posterior.arrays.items():
                np.copyto(array, state.posterior[name])

    return patch.object(Server, "_apply", broken)


@contextmanager
def retry_with_a_fresh_interval() -> Iterator[None]:
    """The delta of a repeated fit has a key of its own."""
    fit = LocalUpdate.__call__
    seen: set[Interval] = set()

    def broken(local_update: LocalUpdate, lease: Lease, served: Snapshot) -> Delta:
        delta = fit(local_update, lease, served)
        if lease.interval.start == 0:
            seen.clear()  # another history
        is_new = lease.interval not in seen
        seen.add(lease.interval)
        fresh = replace(lease.interval, source=f"{lease.interval.source} again")
        return delta if is_new else replace(delta, lease=replace(lease, interval=fresh))

    with patch.object(LocalUpdate, "__call__", broken):
        yield


def generation_not_checked() -> AbstractContextManager[object]:
    """A writer that was overtaken goes on."""
    return patch.object(Generation, "check", lambda generation: None)


def watermark_past_a_hole() -> AbstractContextManager[object]:
    """Everything below the last run is taken for covered."""

    def broken(ledger: Ledger, source: str, partition: str) -> int:
        runs = ledger.runs.get((source, partition), ())
        return runs[-1][1] if runs else 0

    return patch.object(Ledger, "watermark", broken)


def lease_timeout_by_wall_clock() -> AbstractContextManager[object]:
    """Deadlines are on a clock that people set."""
    initialize = RemoteEngine.__init__

    def broken(engine: RemoteEngine, transport: Any, *arguments: Any, **keywords: Any) -> None:
        initialize(engine, _WithWallClock(transport), *arguments, **keywords)

    return patch.object(RemoteEngine, "__init__", broken)


def not_finite_checked_after_the_merge() -> AbstractContextManager[object]:
    """The state has the NaN before anybody looks."""
    merge = MergeRule.__call__

    def broken(rule: MergeRule, *arguments: Any) -> tuple[ServerState, Receipt]:
        return merge(replace(rule, family=_Anything()), *arguments)

    return patch.object(MergeRule, "__call__", broken)


def stale_delta_accepted() -> AbstractContextManager[object]:
    """However old."""
    return patch.object(Screening, "of_staleness", lambda screening, staleness: "")


def recovery_ignores_the_last_entry() -> AbstractContextManager[object]:
    """Off by one."""
    after = Segments.after

    def broken(segments: Segments, start: Any) -> Iterator[Entry]:
        entries = list(after(segments, start))
        return iter(entries[:-1])

    return patch.object(Segments, "after", broken)


def recovery_applies_an_entry_twice() -> AbstractContextManager[object]:
    """The evidence of the journal is added whether or not the snapshot has it."""
    again = Store._again

    def broken(store: Store, state: ServerState, entry: Entry) -> tuple[ServerState, Receipt, Interval]:
        before = state
        state, receipt, interval = again(store, state, entry)
        if receipt.status == "duplicate" and isinstance(entry, Merged):
            natural = Groups().add(before.posterior, entry.delta.fit.natural)
            state = replace(state, posterior=natural, num_records=state.num_records + entry.delta.num_records)
        return state, receipt, interval

    return patch.object(Store, "_again", broken)


def what_was_read_is_taken_for_durable() -> AbstractContextManager[object]:
    """A new generation counts entries of the old one that nobody synced, and does not write them again."""
    ends = Segments._ends

    def broken(segments: Segments, segment: Segment, num_synced: int, carried: list[bytes]) -> None:
        if num_synced:
            segments.end = End(segment.generation, segment.number, num_synced + len(carried))
        else:
            ends(segments, segment, num_synced, carried)

    return patch.object(Segments, "_ends", broken)


PLANTED: dict[str, _Plant] = {
    plant.__name__: plant
    for plant in (
        acknowledged_before_it_is_synced,
        directory_not_synced,
        snapshot_renamed_before_it_is_synced,
        ledger_end_inclusive,
        key_without_partition,
        ledger_lost_at_snapshot,
        journal_trimmed_before_rename,
        snapshot_of_live_tensors,
        retry_with_a_fresh_interval,
        generation_not_checked,
        watermark_past_a_hole,
        lease_timeout_by_wall_clock,
        not_finite_checked_after_the_merge,
        stale_delta_accepted,
        recovery_ignores_the_last_entry,
        recovery_applies_an_entry_twice,
        what_was_read_is_taken_for_durable,
    )
}


def _on_disks(kind: type[ProcessDisk]) -> AbstractContextManager[object]:
    """Every store gets a disk that leaves something out."""
    initialize = Store.__init__

    def broken(store: Store, *arguments: Any, disk: ProcessDisk, **keywords: Any) -> None:
        initialize(store, *arguments, disk=kind(disk._medium, disk.process), **keywords)

    return patch.object(Store, "__init__", broken)


class _NoDirectorySync(ProcessDisk):
    def sync_directory(self, directory: Path) -> None:
        """Does nothing."""


class _NoSyncOfTemporaryFiles(ProcessDisk):
    def create(self, path: Path) -> File:
        file = super().create(path)
        if path.name.startswith(".posterior"):
            file.sync = lambda: None  # type: ignore[method-assign]
        return file


class _ByPosition(dict[Any, Receipt]):
    def __init__(self, items: dict[Interval, Receipt]) -> None:
        super().__init__({_position(key): value for key, value in items.items()})

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_position(key))

    def __getitem__(self, key: object) -> Receipt:
        return super().__getitem__(_position(key))

    def __setitem__(self, key: object, value: Receipt) -> None:
        super().__setitem__(_position(key), value)


def _position(key: object) -> object:
    return (key.start, key.stop) if isinstance(key, Interval) else key


class _WithWallClock:
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def now(self) -> float:
        return time.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@dataclass(frozen=True, slots=True)
class _Anything(Groups):
    def is_normalizable(self, natural: NaturalParameters) -> bool:
        return True
