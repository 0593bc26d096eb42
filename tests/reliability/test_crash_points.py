"""The benchmark over crash points, some of a short run; and that it finds bugs planted on purpose."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))

from counted_disk import CountedDisk
from crash_points import every_point, what_goes_wrong
from ledger_run import LedgerRun

from streaming_vb.streaming import generation
from streaming_vb.streaming.journal import Journal, mark
from streaming_vb.streaming.store import Store

RUN = LedgerRun(33)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Kills are the same on a disk of memory, and faster."""


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_PATIENCE", 0.0)


def test_nothing_told_is_lost_and_nothing_counts_twice_wherever_it_stops() -> None:
    points = list(every_point(RUN, MEMORY))[::23]
    assert [f"{point}: {wrong}" for point in points if (wrong := what_goes_wrong(RUN, point, MEMORY))] == []


def test_the_run_rotates_trims_and_uses_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    begin = Journal.begin
    monkeypatch.setattr(Journal, "begin", lambda *arguments: (begun.append(1), begin(*arguments)))
    disk = CountedDisk()
    store = RUN.store(tmp_path, disk)
    RUN.go_on(store, store.open(RUN.states[0]), RUN.num_entries, lambda count: None)
    assert len(begun) >= len(list((tmp_path / "journal").iterdir())) + 3
    assert 20 < store._saved.num_covered // 10 < RUN.num_entries  # the end is in the journal alone
    store.abandon()


def _remove_journal_first(store: Store, state: Any) -> None:
    store._journal.close(saved=mark(state))
    store._save_last(state)
    store.abandon()


def _tail_moves_on(journal: Journal, entry: Any) -> None:
    try:
        whole_append(journal, entry)
    except OSError:
        journal._own[-1]._num_frames += 1
        raise


whole_append = Journal.append
whole_save = Store._save
PLANTED: dict[str, tuple[tuple[type, str, Callable[..., Any]], str, str]] = {
    "the journal is emptied before the last snapshot": (
        (Store, "close", _remove_journal_first),
        "unlink",
        "kill before",
    ),
    "a header that may be on the disk is not taken back": (
        (Journal, "_discard", lambda journal, own: None),
        "sync",
        "EIO",
    ),
    "a failed append leaves a hole": ((Journal, "append", _tail_moves_on), "write", "ENOSPC"),
    "a snapshot misses the last entry": (
        (
            Store,
            "_save",
            lambda store, state: whole_save(store, RUN.states[max(state.ledger.num_covered() // 10 - 1, 0)]),
        ),
        "write",
        "ENOSPC",
    ),
}
"""What is replaced by what, and the fault that shows it."""


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replacement, operation, fault = PLANTED[bug]
    points = [point for point in every_point(RUN, MEMORY) if (point.operation, point.fault) == (operation, fault)]
    monkeypatch.setattr(*replacement)
    assert any(what_goes_wrong(RUN, point, MEMORY) for point in reversed(points))
