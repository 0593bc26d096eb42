"""The ledger against a model that keeps every covered position in a set."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import MergeRejected
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.types import Interval, SetAside

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
    assert ledger.num_covered() == sum(map(len, covered.values()))


@given(histories)
def test_the_watermark_is_the_first_position_that_is_missing(history: list[Interval]) -> None:
    ledger, covered = play(history)
    expected = {name: next(i for i in itertools.count() if i not in seen) for name, seen in covered.items()}
    assert {name: ledger.watermark("source", name) for name in expected} == expected
    assert ledger.cursor("source") == {name: expected[name] for name, seen in covered.items() if seen}


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
    assert ledger == Ledger({("source", "a"): ((0, 24),)})


@given(histories, intervals())
def test_adding_does_not_change_the_ledger(history: list[Interval], interval: Interval) -> None:
    ledger, covered = play(history)
    runs = dict(ledger.runs)
    if not positions(interval) & covered[interval.partition]:
        ledger.add(interval)
        ledger.put_aside(SetAside(interval, 3, "why"))
    assert ledger.runs == runs
    assert ledger.set_aside == ()


def test_an_interval_set_aside_is_covered_and_remembered() -> None:
    interval = Interval("source", "a", 0, 10)
    ledger = Ledger().put_aside(SetAside(interval, 7, "not finite")).add(Interval("source", "a", 10, 20))
    assert ledger.covers(interval)
    assert ledger.set_aside == (SetAside(interval, 7, "not finite"),)
    assert ledger.watermark("source", "a") == 20
    assert ledger.num_set_aside == 7


def test_the_same_partition_of_another_source_is_another_one() -> None:
    ledger = Ledger().add(Interval("source", "a", 0, 10))
    assert not ledger.covers(Interval("elsewhere", "a", 0, 10))
    both = ledger.add(Interval("elsewhere", "a", 5, 15))
    assert (both.cursor("source"), both.cursor("elsewhere")) == ({"a": 10}, {"a": 0})
    assert (both.num_covered("source"), both.num_covered()) == (10, 20)
    assert list(both.intervals()) == [Interval("source", "a", 0, 10), Interval("elsewhere", "a", 5, 15)]


def test_bad_records_are_remembered_inside_a_covered_interval() -> None:
    bad = (SetAside(Interval("source", "a", 3, 4), 1, "nan"), SetAside(Interval("source", "a", 7, 8), 1, "nan"))
    ledger = Ledger().add(Interval("source", "a", 0, 10), bad)
    assert ledger.covers(Interval("source", "a", 0, 10))
    assert (ledger.set_aside, ledger.num_set_aside) == (bad, 2)


def test_an_interval_that_was_taken_out_stays_covered_and_replaces_its_bad_records() -> None:
    interval, other = Interval("source", "a", 0, 10), SetAside(Interval("source", "a", 12, 13), 1, "nan")
    ledger = Ledger().add(interval, (SetAside(Interval("source", "a", 3, 4), 1, "nan"),))
    without = ledger.add(Interval("source", "a", 10, 20), (other,)).without(interval, "unlearned", 9)
    assert without.covers(interval)
    assert without.set_aside == (other, SetAside(interval, 9, "unlearned"))


def test_positions_of_any_size_are_exact() -> None:
    start = 2**80
    ledger = Ledger().add(Interval("source", "a", start, start + 1)).add(Interval("source", "a", start + 1, start + 5))
    assert ledger.runs == {("source", "a"): ((start, start + 5),)}
    assert ledger.num_covered() == 5


def test_the_message_of_an_overlap_says_what_is_held() -> None:
    ledger = Ledger().add(Interval("source", "a", 0, 1000)).add(Interval("source", "a", 3000, 4000))
    with pytest.raises(MergeRejected, match=r"a\[500:3,500\] overlaps .* a holds 0:1,000 3,000:4,000"):
        ledger.covers(Interval("source", "a", 500, 3500))
