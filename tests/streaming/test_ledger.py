"""The ledger against a model that keeps every covered position in a set."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import MergeRejected
from streaming_vb.streaming.ledger import Ledger, SetAside
from streaming_vb.types import Interval

POSITIONS = 30


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    start = draw(st.integers(0, POSITIONS - 1))
    stop = draw(st.integers(start + 1, min(start + 8, POSITIONS)))
    return Interval("source", draw(st.sampled_from(["a", "b"])), start, stop)


def positions(interval: Interval) -> set[int]:
    return set(range(interval.start, interval.stop))


def play(history: list[Interval]) -> tuple[Ledger, dict[str, set[int]]]:
    """Add every interval that is free, and check what the ledger says about the others."""
    ledger, covered = Ledger(), {"a": set[int](), "b": set[int]()}
    for interval in history:
        known = positions(interval) & covered[interval.partition]
        if not known:
            assert not ledger.covers(interval)
            ledger = ledger.add(interval)
            covered[interval.partition] |= positions(interval)
        elif known == positions(interval):
            assert ledger.covers(interval)
        else:
            with pytest.raises(MergeRejected, match="overlaps"):
                ledger.covers(interval)
    return ledger, covered


histories = st.lists(intervals(), max_size=25)


@given(histories)
def test_it_counts_every_position_once(history: list[Interval]) -> None:
    ledger, covered = play(history)
    assert ledger.num_covered == sum(map(len, covered.values()))


@given(histories)
def test_the_watermark_is_the_first_position_that_is_missing(history: list[Interval]) -> None:
    ledger, covered = play(history)
    expected = {name: next(i for i in itertools.count() if i not in seen) for name, seen in covered.items()}
    assert {name: ledger.watermark(name) for name in expected} == expected
    assert ledger.cursor() == {name: expected[name] for name, seen in covered.items() if seen}


@given(histories, intervals())
def test_uncovered_parts_are_what_is_missing_in_order(history: list[Interval], interval: Interval) -> None:
    ledger, covered = play(history)
    parts = list(ledger.uncovered(interval))
    listed = [position for part in parts for position in range(part.start, part.stop)]
    assert listed == sorted(positions(interval) - covered[interval.partition])
    assert all(a.stop < b.start for a, b in itertools.pairwise(parts))


@given(histories)
def test_runs_are_sorted_disjoint_and_as_few_as_possible(history: list[Interval]) -> None:
    for runs in play(history)[0].runs.values():
        assert all(start < stop for start, stop in runs)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


@given(st.permutations([Interval("source", "a", i, i + 3) for i in range(0, 24, 3)]))
def test_the_order_of_additions_leaves_no_trace(history: list[Interval]) -> None:
    ledger, _ = play(history)
    assert ledger == Ledger("source", {"a": ((0, 24),)})


@given(histories, intervals())
def test_adding_does_not_change_the_ledger(history: list[Interval], interval: Interval) -> None:
    ledger, covered = play(history)
    runs = dict(ledger.runs)
    if not positions(interval) & covered[interval.partition]:
        ledger.add(interval)
        ledger.put_aside(interval, 3, "why")
    assert ledger.runs == runs
    assert ledger.set_aside == ()


def test_an_interval_set_aside_is_covered_and_remembered() -> None:
    interval = Interval("source", "a", 0, 10)
    ledger = Ledger().put_aside(interval, 7, "not finite").add(Interval("source", "a", 10, 20))
    assert ledger.covers(interval)
    assert ledger.set_aside == (SetAside(interval, 7, "not finite"),)
    assert ledger.watermark("a") == 20


def test_an_interval_of_another_source_is_refused() -> None:
    ledger = Ledger().add(Interval("source", "a", 0, 10))
    with pytest.raises(MergeRejected, match="elsewhere"):
        ledger.covers(Interval("elsewhere", "a", 10, 20))


def test_positions_of_any_size_are_exact() -> None:
    start = 2**80
    ledger = Ledger().add(Interval("source", "a", start, start + 1)).add(Interval("source", "a", start + 1, start + 5))
    assert ledger.runs == {"a": ((start, start + 5),)}
    assert ledger.num_covered == 5


def test_the_message_of_an_overlap_says_what_is_held() -> None:
    ledger = Ledger().add(Interval("source", "a", 0, 1000)).add(Interval("source", "a", 3000, 4000))
    with pytest.raises(MergeRejected, match=r"a\[500:3,500\] overlaps .* a holds 0:1,000 3,000:4,000"):
        ledger.covers(Interval("source", "a", 500, 3500))
