"""A run directory: snapshots, the journal since the older of them, and the right to write. Recovery is to load the
newest snapshot that is whole and to merge what the journal has beyond it, with the rule that merged it the first time.

    posterior.safetensors, previous.safetensors     the two newest snapshots
    journal/GENERATION-SLOT.journal                 entries since the older one
    generation, lock                                who writes
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streaming_vb.errors import IntegrityError, MergeRejected
from streaming_vb.failpoints import reach
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.disk import Disk, RealDisk
from streaming_vb.streaming.generation import Generation
from streaming_vb.streaming.journal import (
    Entry,
    Journal,
    JournalBroken,
    Mark,
    Merged,
    Segments,
    mark,
    newest_generation,
)
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.snapshot import POSTERIOR_FILE, PREVIOUS_FILE, PosteriorFile
from streaming_vb.types import Interval, Receipt

JOURNAL_DIRECTORY = "journal"
SEGMENT_BYTES = 128 * 2**20
"""A snapshot is due when a segment is larger: bounds what recovery reads, and the files that are new and slow to write
before the first of them can be used again."""
_SAVE_SECONDS = 30.0
_RETRY_SECONDS = 5.0
"""Pause after a snapshot that failed, so that a full disk is not written full over and over."""


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """Where a run directory stands.

    Attributes:
        generation: of this writer.
        state: with every entry of the journal.
        published: the state published last; another than `state` in the middle of a round.
        receipts: answers to what was merged since the snapshot.
        notes: what was found, one line each.
    """

    generation: int
    state: ServerState
    published: ServerState
    receipts: Mapping[Interval, Receipt]
    notes: tuple[str, ...]


class Store:
    """The disk of one server.

    Args:
        directory: the run directory.
        settings: what determined the run; written into every snapshot.
        rule: how a delta is merged; without figures recovery is faster.
        keep_fit_state: the journal has the warm starts as well: recovery is exact to the bit.
        keep_deltas: nothing of the journal is ever removed.
        disk: where to write.
        segment_bytes: a snapshot is due when a segment of the journal is larger.
        background: snapshots are saved by a second thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        directory: Path | str,
        settings: Mapping[str, Any],
        *,
        rule: MergeRule,
        keep_fit_state: bool,
        keep_deltas: bool = False,
        disk: Disk = RealDisk(),
        segment_bytes: int = SEGMENT_BYTES,
        background: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._settings, self._rule, self._disk = Path(directory), settings, rule, disk
        self._keep_fit_state, self._keep_deltas = keep_fit_state, keep_deltas
        self._segment_bytes, self._clock = segment_bytes, clock
        self._executor = ThreadPoolExecutor(1, "snapshot") if background else None
        self._saving: tuple[Mark, Future[None]] | None = None
        self._saved = Mark(0, 0)
        self._due_at = self._not_before = 0.0
        self._ends_published = True
        self._fails = False
        self._notes: list[str] = []

    def open(self, initial: ServerState) -> Recovered:
        """Take the run directory over and recover what is in it; `initial` where nothing is.

        Raises:
            RunInUse: another process writes it.
            IntegrityError: what is there is corrupt.
            OSError: the disk refuses.
        """
        journal_directory = self._directory / JOURNAL_DIRECTORY
        self._disk.make_directory(self._directory)
        self._disk.make_directory(journal_directory)
        above = newest_generation(self._disk, journal_directory)
        self._generation = Generation.take(self._disk, self._directory, above=above)
        try:
            self._remove_temporary_files()
            segments = Segments(self._disk, journal_directory)
            found, notes = self._snapshot(segments, initial)
            try:
                recovered = self._replayed(found.state, segments, notes)
            except IntegrityError as error:  # the older snapshot may be too old for what is left of the journal
                raise IntegrityError("; ".join([*notes, str(error)])) from error
            self._saved = Mark(-1, -1) if notes else mark(found.state)  # a damaged one is replaced at the next chance
            self._journal = Journal(
                self._disk,
                journal_directory,
                self._generation.number,
                keep_fit_state=self._keep_fit_state,
                after=segments,
            )
            self._journal.begin(mark(recovered.state))
        except BaseException:
            self._generation.release()
            raise
        self._due_at = self._clock() + _SAVE_SECONDS
        self._ends_published = recovered.state is recovered.published
        return recovered

    def append(self, entry: Entry) -> None:
        """Write an entry to the journal; durable after `sync`.

        Raises:
            OSError: the disk refuses; nothing was appended, and a later call may succeed.
            JournalBroken: the disk failed before; nothing can be written any more.
        """
        self._journal.append(entry)
        self._ends_published = entry.publish

    def sync(self) -> None:
        """Make every entry appended durable; what they say may be told after it.

        Raises:
            JournalBroken: the disk failed; nothing can be written any more.
            StaleWriter: a newer process took the run directory over.
        """
        self._journal.sync()
        self._generation.check()
        reach("S4")

    def published(self, state: ServerState) -> None:
        """Say that a version was published: now and then it is saved, and the journal before it let go of.

        Args:
            state: that version, synced; it is not changed any more.

        Raises:
            JournalBroken, StaleWriter: as for `sync`. A snapshot that cannot be saved only makes a note.
        """
        self._collect()
        now = self._clock()
        is_due = now >= self._due_at or self._journal.num_bytes > self._segment_bytes
        if not is_due or now < self._not_before or self._saving is not None or not self._ends_published:
            return
        self._due_at = now + _SAVE_SECONDS
        try:
            self._journal.begin(mark(state))
        except JournalBroken:
            raise
        except OSError as error:
            self._failed("starting a segment of the journal", error)
            return
        self._saving = mark(state), self._start_saving(state)
        if self._executor is None:
            self._collect()

    def close(self, state: ServerState) -> None:
        """Save a state, empty the journal if it holds nothing more (and deltas are not kept), and let go of the
        directory.

        Raises:
            JournalBroken, StaleWriter: as for `sync`; the directory is let go of all the same.
        """
        try:
            self.sync()
            self._collect(wait=True)
            is_saved = self._save_last(state)
            if is_saved and self._ends_published and not self._keep_deltas:
                self._journal.close(saved=mark(state))
        except JournalBroken:
            raise
        except OSError as error:
            self._failed("emptying the journal", error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the directory and save nothing: what was synced is recovered by the next to open it."""
        if self._executor is not None:
            self._executor.shutdown()
        self._journal.close()
        self._generation.release()

    def take_notes(self) -> list[str]:
        """What happened since the last call and people should read, one line each."""
        notes, self._notes = self._notes, []
        return notes

    def _remove_temporary_files(self) -> None:
        for name in self._disk.names(self._directory):
            if name.startswith(".") and name.endswith(".tmp"):
                self._disk.unlink(self._directory / name)

    def _snapshot(self, segments: Segments, initial: ServerState) -> tuple[PosteriorFile, list[str]]:
        """The newest snapshot that can be used; a new one of `initial` where there is nothing yet."""
        if not {POSTERIOR_FILE, PREVIOUS_FILE} & set(self._disk.names(self._directory)):
            if segments.paths:
                raise IntegrityError(
                    f"{self._directory}: a journal but no {POSTERIOR_FILE} to which it belongs. Restore a copy of "
                    "the run directory, or choose another --run-dir"
                )
            self._save(initial)
            return PosteriorFile(initial, self._settings, {}, self._generation.number), []
        found, notes = snapshot.newest(self._directory, self._disk)
        if notes:  # a disk that could not be read for a moment must not send the run back: look again
            with suppress(IntegrityError):
                found, notes = snapshot.load(self._directory / POSTERIOR_FILE, self._disk), []
        is_overtaken = 0 < found.generation < self._previous_generation()  # it woke late, and renamed over a newer one
        if not (is_overtaken or segments.disowns(found.generation, mark(found.state))):
            return found, notes
        older = snapshot.load(self._directory / PREVIOUS_FILE, self._disk)
        if segments.disowns(older.generation, mark(older.state)):
            raise IntegrityError(
                f"{self._directory}: both snapshots are of writers that had been overtaken. Restore a copy of the "
                "run directory"
            )
        return older, [*notes, f"used {PREVIOUS_FILE}: {POSTERIOR_FILE} is of a writer that had been overtaken"]

    def _previous_generation(self) -> int:
        try:
            return int(snapshot.read_description(self._directory / PREVIOUS_FILE, self._disk)["generation"])
        except IntegrityError:
            return 0

    def _replayed(self, state: ServerState, segments: Segments, notes: list[str]) -> Recovered:
        saved = published = state
        receipts: dict[Interval, Receipt] = {}
        num_entries = 0
        for entry in self._read_ahead(segments.after(mark(state))):
            state, receipt, interval = self._again(state, entry)
            if receipt.status == "duplicate":  # the snapshot has it: the first segment begins before that
                continue
            num_entries += 1
            receipts[interval] = receipt
            if entry.publish:
                published = state
        notes = [*notes, *segments.notes]
        if num_entries:
            what = f"{num_entries} " + ("entry" if num_entries == 1 else "entries")
            notes.append(
                f"recovered version {state.version} from the snapshot ({saved.version}) and {what} of the journal"
            )
        return Recovered(self._generation.number, state, published, receipts, tuple(notes))

    def _read_ahead(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """The same entries; the next one is read and checked by the second thread while one is merged."""
        if self._executor is None:
            yield from entries
            return
        coming = self._executor.submit(next, entries, None)
        while (entry := coming.result()) is not None:
            coming = self._executor.submit(next, entries, None)
            yield entry

    def _again(self, state: ServerState, entry: Entry) -> tuple[ServerState, Receipt, Interval]:
        """Merge an entry as it was merged before."""
        try:
            if isinstance(entry, Merged):
                delta, interval = entry.delta, entry.delta.lease.interval
                if not delta.fit.fit_state:  # not stored: the warm start stays as it is
                    lease = replace(delta.lease, state_weight=1.0)  # spares the average of a thing with itself
                    delta = replace(delta, lease=lease, fit=replace(delta.fit, fit_state=state.fit_state))
                state, receipt = self._rule(state, delta)
            else:
                interval = entry.set_aside.interval
                state, receipt = self._rule.put_aside(state, entry.set_aside)
            if receipt.status == "rejected":
                raise MergeRejected(receipt.reason)
        except MergeRejected as error:
            raise IntegrityError(
                f"{self._directory}: the journal does not belong to the snapshot ({error}). Restore a copy of the run "
                "directory, or fit again into a new --run-dir"
            ) from error
        return state, receipt, interval

    def _start_saving(self, state: ServerState) -> "Future[None]":
        if self._executor is not None:
            return self._executor.submit(self._save, state)
        future: Future[None] = Future()
        try:
            self._save(state)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future

    def _save(self, state: ServerState) -> None:
        self._generation.check()
        path = self._directory / POSTERIOR_FILE
        snapshot.save(
            path, state, self._settings, self._disk, self._generation.number, may_go_on=self._generation.check
        )

    def _collect(self, *, wait: bool = False) -> None:
        """See how the snapshot in the background went; when it is on the disk, trim the journal to the one before."""
        if self._saving is None or not (wait or self._saving[1].done()):
            return
        (at, future), self._saving = self._saving, None
        try:
            future.result()
            older, self._saved = self._saved, at
            if not self._keep_deltas:
                self._journal.trim(older)
        except OSError as error:
            self._failed("saving a snapshot", error)
            return
        if self._fails:
            self._fails = False
            self._notes.append(f"saved a snapshot again (version {at.version})")

    def _save_last(self, state: ServerState) -> bool:
        if mark(state) == self._saved:
            return True
        try:
            self._save(state)
        except OSError as error:
            self._failed("saving a snapshot", error)
            return False
        return True

    def _failed(self, what: str, error: OSError) -> None:
        self._not_before = self._clock() + _RETRY_SECONDS
        if not self._fails:
            self._fails = True
            self._notes.append(f"{error.strerror or error} while {what}; nothing is lost, the journal goes on")
