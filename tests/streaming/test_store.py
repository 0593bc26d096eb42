"""A run directory: whatever happens to the process or the disk, what was synced is recovered, once."""

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import delta_of, fingerprint
from faulty_disk import FaultyDisk
from stubs import expected_sums

from streaming_vb.errors import IntegrityError, RunInUse, StaleWriter
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.streaming import generation, snapshot
from streaming_vb.streaming.disk import RealDisk
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.journal import JournalBroken, Merged, PutAside, Segments
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.store import Recovered, Store
from streaming_vb.types import Delta, Interval, SetAside

MODEL = LedgerModel()
PER_PARTITION = 1_000
ZEROS = {"momentum": np.zeros(2, np.float32)}


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_PATIENCE", 0.0)


class Run:
    """A store with the state that a server would have beside it."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.now = 0.0
        settings = {"keep_fit_state": True, "background": False, "segment_bytes": 4_000, **settings}
        rule = MergeRule(MODEL.family, Nothing(), measure=False)
        self.rule = rule
        self.store = Store(directory, {"model": "ledger"}, rule=rule, clock=lambda: self.now, **settings)
        prior = MODEL.prior(0)
        self.recovered: Recovered = self.store.open(ServerState("run", prior, prior, ZEROS))
        self.state, self.published = self.recovered.state, self.recovered.published
        self.position = self.state.ledger.num_covered()

    def push(self, publish: bool = True, run_id: str = "run") -> None:
        """Ten more records, durable; every fourth time they are set aside."""
        start, stop = self.position, self.position + 10
        interval = Interval("example", "part-0", start, stop)
        if start % 40 == 30:
            entry: Merged | PutAside = PutAside(SetAside(interval, 10, "bad"), publish)
            self.store.append(entry)
            self.state, _ = self.rule.put_aside(self.state, entry.set_aside)
        else:
            sums = MODEL.sums(np.arange(start, stop))
            fit_state = {"momentum": np.full(2, start, np.float32)}
            delta = delta_of({"sum": sums}, start, stop, fit_state=fit_state, run_id=run_id, source="example")
            delta = _of_partition(delta, interval)
            self.store.append(Merged(delta, publish))
            self.state, receipt = self.rule(self.state, delta)
            assert receipt.status == "merged" or run_id != "run"
        self.position = stop
        self.store.sync()
        if publish:
            self.published = self.state
            self.store.published(self.state)

    def pushes(self, count: int) -> "Run":
        for _ in range(count):
            self.push()
        return self


def _of_partition(delta: Delta, interval: Interval) -> Delta:
    return replace(delta, lease=replace(delta.lease, interval=interval))


def bits(state: ServerState) -> tuple[object, ...]:
    arrays = fingerprint(state.prior, state.posterior, state.fit_state)
    return arrays, state.run_id, state.version, state.num_records, state.ledger, state.lineage


def sums_are_right(state: ServerState) -> bool:
    """The ledger model's promise: the sums are those of the ledger's intervals, less what was set aside."""
    sums = np.array(expected_sums(list(state.ledger.intervals()), PER_PARTITION))
    aside = np.array(expected_sums([entry.interval for entry in state.ledger.set_aside], PER_PARTITION))
    return np.array_equal(state.posterior["sum"], sums - aside)


def test_a_new_directory_holds_the_initial_state(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "run")
    assert run.recovered.generation == 1
    assert run.recovered.notes == ()
    assert bits(snapshot.load(tmp_path / "a" / "run" / "posterior.safetensors").state) == bits(run.state)
    run.store.abandon()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("num_pushes", [0, 1, 3, 7, 60])
def test_what_was_synced_is_recovered_to_the_bit(num_pushes: int, background: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, background=background).pushes(num_pushes)
    run.store.abandon()
    again = Run(tmp_path)
    assert bits(again.state) == bits(run.state)
    assert again.recovered.published is again.recovered.state
    assert again.recovered.generation == 2
    assert sums_are_right(again.state)
    again.pushes(5).store.abandon()
    assert sums_are_right(Run(tmp_path).state)


def test_recovery_says_what_it_found(tmp_path: Path) -> None:
    Run(tmp_path).pushes(3).store.abandon()
    assert Run(tmp_path).recovered.notes == ("recovered version 3 from the snapshot (0) and 3 entries of the journal",)


def test_answers_to_what_was_merged_since_the_snapshot_are_remembered(tmp_path: Path) -> None:
    Run(tmp_path).pushes(4).store.abandon()
    receipts = Run(tmp_path).recovered.receipts
    assert [(interval.start, receipt.status) for interval, receipt in receipts.items()] == [
        (0, "merged"),
        (10, "merged"),
        (20, "merged"),
        (30, "set-aside"),
    ]


def test_after_close_the_posterior_file_holds_everything_and_the_journal_is_empty(tmp_path: Path) -> None:
    run = Run(tmp_path).pushes(9)
    run.store.close(run.state)
    assert list(Segments(RealDisk(), tmp_path / "journal").after(None)) == []
    assert sum(path.stat().st_size for path in (tmp_path / "journal").iterdir()) < 1_000
    assert bits(snapshot.load(tmp_path / "posterior.safetensors").state) == bits(run.state)
    again = Run(tmp_path)
    assert bits(again.state) == bits(run.state)
    assert again.recovered.notes == ()


def test_kept_deltas_survive_snapshots_and_close(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_deltas=True).pushes(60)
    run.store.close(run.state)
    run = Run(tmp_path, keep_deltas=True).pushes(5)
    run.store.close(run.state)
    entries = list(Segments(RealDisk(), tmp_path / "journal").after(None))
    assert len(entries) == 65
    assert bits(Run(tmp_path).state) == bits(run.state)


def test_the_journal_is_trimmed_to_the_older_snapshot_and_its_files_are_used_again(tmp_path: Path) -> None:
    run = Run(tmp_path).pushes(200)
    files = list((tmp_path / "journal").iterdir())
    assert len(files) == 3
    assert snapshot.load(tmp_path / "posterior.safetensors").state.version > 100
    assert run.store.take_notes() == []


def test_a_snapshot_is_saved_at_least_every_half_minute(tmp_path: Path) -> None:
    run = Run(tmp_path, segment_bytes=10**9).pushes(3)
    assert snapshot.load(tmp_path / "posterior.safetensors").state.version == 0
    run.now = 31.0
    run.push()
    assert snapshot.load(tmp_path / "posterior.safetensors").state.ledger.num_covered() == 40


def test_in_the_middle_of_a_round_the_state_is_ahead_of_what_was_published(tmp_path: Path) -> None:
    run = Run(tmp_path).pushes(3)
    published = run.state
    run.push(publish=False)
    run.push(publish=False)
    run.store.abandon()
    again = Run(tmp_path)
    assert bits(again.published) == bits(published)
    assert bits(again.state) == bits(run.state)
    again.push()
    again.store.abandon()
    last = Run(tmp_path)
    assert bits(last.state) == bits(last.published) == bits(again.state)


def test_closed_in_the_middle_of_a_round_nothing_that_was_told_is_lost(tmp_path: Path) -> None:
    run = Run(tmp_path).pushes(3)
    run.push(publish=False)
    run.store.close(run.published)
    again = Run(tmp_path)
    assert bits(again.published) == bits(run.published)
    assert bits(again.state) == bits(run.state)


def test_no_segment_begins_in_the_middle_of_a_round(tmp_path: Path) -> None:
    """Else recovery would start behind what the snapshot lacks."""
    run = Run(tmp_path, segment_bytes=1)
    for number in range(20):
        run.push(publish=False)
        run.store.published(run.published)
        if number % 3 == 0:
            run.store.abandon()
            again = Run(tmp_path, segment_bytes=1)
            assert bits(again.state) == bits(run.state)
            run = again


def test_without_warm_starts_in_the_journal_the_posterior_is_exact_and_the_warm_start_older(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_fit_state=False, segment_bytes=10**9).pushes(6)
    run.store.abandon()
    again = Run(tmp_path, keep_fit_state=False)
    assert fingerprint(again.state.posterior) == fingerprint(run.state.posterior)
    assert again.state.ledger == run.state.ledger
    np.testing.assert_array_equal(again.state.fit_state["momentum"], ZEROS["momentum"])


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path).pushes(2)
    with pytest.raises(RunInUse):
        Run(tmp_path)
    run.pushes(1).store.abandon()
    assert bits(Run(tmp_path).state) == bits(run.state)


def take_over(directory: Path) -> Run:
    (directory / "lock").unlink()  # as on a network disk that has forgotten it
    return Run(directory)


def test_an_overtaken_writer_is_told_before_it_can_tell_anybody(tmp_path: Path) -> None:
    first = Run(tmp_path).pushes(2)
    second = take_over(tmp_path)
    with pytest.raises(StaleWriter):
        first.push()
    second.pushes(2)
    first.now = 100.0
    with pytest.raises(StaleWriter):
        first.store.close(first.state)
    second.store.abandon()
    assert bits(Run(tmp_path).state) == bits(second.state)


def test_a_snapshot_that_an_overtaken_writer_was_just_saving_is_not_used(tmp_path: Path) -> None:
    first = Run(tmp_path).pushes(2)
    second = take_over(tmp_path)
    with pytest.raises(StaleWriter):
        first.push()  # its state has a merge that is in nobody's journal
    second.now = 100.0
    second.pushes(3)
    snapshot.save(tmp_path / "posterior.safetensors", first.state, {}, generation=1)
    second.store.abandon()
    third = Run(tmp_path)
    assert bits(third.state) == bits(second.state)
    assert "of a writer that had been overtaken" in third.recovered.notes[0]


def test_temporary_files_of_a_crash_are_removed(tmp_path: Path) -> None:
    Run(tmp_path).pushes(1).store.abandon()
    for name in (".posterior.safetensors.1.2.tmp", ".generation.tmp"):
        (tmp_path / name).write_bytes(b"half")
    Run(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_where_the_snapshot_is_damaged_the_one_before_and_the_journal_give_the_same_state(tmp_path: Path) -> None:
    run = Run(tmp_path).pushes(90)
    run.store.abandon()
    path = tmp_path / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    again = Run(tmp_path)
    assert bits(again.state) == bits(run.state)
    assert "used previous.safetensors" in again.recovered.notes[0]
    again.store.close(again.state)  # and the damaged one is replaced
    assert bits(snapshot.load(path).state) == bits(run.state)


def test_a_snapshot_that_could_not_be_read_for_a_moment_is_read_again(tmp_path: Path) -> None:
    run = Run(tmp_path).pushes(90)
    run.store.close(run.state)  # what the one before lacks is nowhere but in the newest
    disk = FaultyDisk()
    disk.fail("open", "posterior", errno.EIO)
    again = Run(tmp_path, disk=disk)
    assert bits(again.state) == bits(run.state)
    assert again.recovered.notes == ()


def test_after_close_the_snapshot_before_is_too_old_to_stand_in_for_a_damaged_one(tmp_path: Path) -> None:
    """What it lacks was told and is nowhere else: people must know."""
    run = Run(tmp_path).pushes(91)
    run.store.close(run.state)
    path = tmp_path / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"used previous.safetensors .* the journal goes on from") as caught:
        Run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_journal_without_its_snapshot_is_an_error(tmp_path: Path) -> None:
    Run(tmp_path).pushes(90).store.abandon()
    (tmp_path / "posterior.safetensors").unlink()
    shutil.copy(tmp_path / "previous.safetensors", tmp_path / "kept")
    (tmp_path / "previous.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"a journal but no posterior.safetensors"):
        Run(tmp_path)


def test_the_journal_of_another_run_is_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.push(run_id="another")
    run.store.abandon()
    with pytest.raises(IntegrityError, match="the journal does not belong to the snapshot") as caught:
        Run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_that_could_not_be_opened_is_let_go_of(tmp_path: Path) -> None:
    Run(tmp_path).pushes(1).store.abandon()
    content = (tmp_path / "posterior.safetensors").read_bytes()
    (tmp_path / "posterior.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError):
        Run(tmp_path)
    (tmp_path / "posterior.safetensors").write_bytes(content)
    assert Run(tmp_path).state.num_records == 10


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", ["posterior", "journal"])
def test_a_disk_too_full_for_a_snapshot_makes_one_note_and_loses_nothing(
    name: str, background: bool, tmp_path: Path
) -> None:
    disk = FaultyDisk()
    run = Run(tmp_path, disk=disk, segment_bytes=10**9, background=background)
    disk.fail("create", name, times=10**6)
    for _ in range(4):
        run.now += 31.0
        run.pushes(2)
    disk.fail("create", times=0)
    assert [note.partition(";")[0].partition(" while")[0] for note in run.store.take_notes()] == [
        "No space left on device"
    ]
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert bits(Run(tmp_path / "copy").state) == bits(run.state)
    for _ in range(3):
        run.now += 31.0
        run.pushes(1)
        _settle(run)
    assert ["saved a snapshot again" in note for note in run.store.take_notes()] == [True]
    run.store.abandon()
    assert bits(Run(tmp_path).state) == bits(run.state)


def _settle(run: Run) -> None:
    """Wait for the snapshot in the background."""
    saving = run.store._saving
    if saving is not None:
        saving[1].exception()
        run.store.published(run.published)


def test_a_full_disk_at_close_keeps_the_journal(tmp_path: Path) -> None:
    disk = FaultyDisk()
    run = Run(tmp_path, disk=disk).pushes(3)
    disk.fail("write", "posterior")
    run.store.close(run.state)
    assert "No space left on device" in run.store.take_notes()[0]
    assert bits(Run(tmp_path).state) == bits(run.state)


def test_an_entry_that_does_not_fit_can_be_appended_later(tmp_path: Path) -> None:
    disk = FaultyDisk()
    run = Run(tmp_path, disk=disk).pushes(2)
    disk.fail("write", "journal")
    with pytest.raises(OSError, match="No space"):
        run.push()
    run.pushes(2).store.abandon()
    assert bits(Run(tmp_path).state) == bits(run.state)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_after_a_sync_that_failed_every_call_fails_and_the_disk_has_what_was_synced(
    number: int, tmp_path: Path
) -> None:
    disk = FaultyDisk()
    run = Run(tmp_path, disk=disk).pushes(2)
    synced = run.state
    disk.fail("sync", "journal", number)
    calls: list[Callable[[], Any]] = [run.push, run.push, run.store.sync, lambda: run.store.close(run.state)]
    for call in calls:
        with pytest.raises(JournalBroken):
            call()
    recovered = Run(tmp_path).state
    assert recovered.ledger.num_covered() in (synced.ledger.num_covered(), synced.ledger.num_covered() + 10)
    assert sums_are_right(recovered)
