"""A thousand histories of crashes, lost messages and bad disks: nothing is lost, nothing is counted twice.

A history that fails prints how to play it again; its seed then goes into `seeds.py`.
"""

from collections import Counter

import pytest

from simulation.history import History, compute_good_days, play, run
from simulation.plan import draw, takeover
from simulation.planted_bugs import PLANTED
from simulation.seeds import KEPT, TAKEOVERS

HISTORIES = 1_000
_CHUNK = 50
_ENOUGH = 2_000
"""Histories within which a planted bug must be found."""


def assert_kept_all_promises(history: History) -> None:
    assert not history.violation, f"{history.violation}\nplay it again: {history.replay}"


@pytest.mark.parametrize("first", range(0, HISTORIES, _CHUNK))
def test_every_promise_is_kept(first: int) -> None:
    for seed in range(first, first + _CHUNK):
        assert_kept_all_promises(play(seed))


@pytest.mark.parametrize("seed", sorted(KEPT))
def test_what_failed_once_does_not_fail_again(seed: int) -> None:
    assert_kept_all_promises(play(seed))


def test_no_byte_of_an_overtaken_server_counts() -> None:
    faults: Counter[str] = Counter()
    for seed in range(100):
        history = run(takeover(seed))
        assert not history.violation, f"takeover {seed}: {history.violation}"
        faults += history.faults
    assert faults["overtaken server stopped"] > 10


@pytest.mark.parametrize("seed", sorted(TAKEOVERS))
def test_a_takeover_that_failed_once_does_not_fail_again(seed: int) -> None:
    history = run(takeover(seed))
    assert not history.violation, history.violation


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    compute_good_days()
    with PLANTED[name]():
        found = next((seed for seed in range(_ENOUGH) if play(seed).violation), None)
    assert found is not None
    assert_kept_all_promises(play(found))  # it was the bug, and nothing else


def test_a_history_is_a_function_of_its_seed() -> None:
    for seed in range(5):
        first, second = play(seed), play(seed)
        assert (first.faults, first.num_events) == (second.faults, second.num_events)
        assert first.state is not None
        assert second.state is not None
        assert first.state.posterior["trace"].tobytes() == second.state.posterior["trace"].tobytes()


def test_everything_that_can_go_wrong_does() -> None:
    faults: Counter[str] = Counter()
    for seed in range(300, 420):
        faults += play(seed).faults
    for operation in ("write", "sync", "create", "replace", "unlink", "sync_directory"):
        assert faults[f"server killed at {operation}"], operation
        assert faults[f"power cut at {operation}"], operation
    for kind in ("disk full", "write error", "sync error", "sync_directory error"):
        assert faults[kind], kind
    for message in ("push order", "message", "answer"):
        for what in ("lost", "doubled", "late"):
            assert faults[f"{message} {what}"], (message, what)
    for kind in (
        "worker killed",
        "worker paused",
        "lease lost",
        "snapshot lost",
        "driver killed",
        "server killed",
        "server killed before it answers",
        "server paused",
        "overtaken server stopped",
        "old server lives on",
        "corrupt delta",
        "foreign delta",
        "clock set",
        "loop left by the user",
    ):
        assert faults[kind], kind


def test_a_good_day_has_no_faults() -> None:
    history = run(draw(1).without_faults())
    assert_kept_all_promises(history)
    assert not history.faults
