import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.evaluation.progressive import Progressive

intervals = st.lists(st.tuples(st.floats(-500, 500), st.integers(1, 1000)), max_size=10)


def total(scores: list[tuple[float, int]]) -> Progressive:
    progressive = Progressive()
    for elbo, num_records in scores:
        progressive.update(elbo, num_records=num_records)
    return progressive


@given(intervals)
def test_the_mean_is_weighted_by_records(scores: list[tuple[float, int]]) -> None:
    records = sum(count for _, count in scores)
    expected = sum(elbo * count for elbo, count in scores) / records if records else math.nan
    assert total(scores).mean == pytest.approx(expected, nan_ok=True, abs=1e-9)


@given(intervals, intervals)
def test_two_totals_add_up(first: list[tuple[float, int]], second: list[tuple[float, int]]) -> None:
    both = total(first) + total(second)
    assert both.num_records == total(first + second).num_records
    assert both.mean == pytest.approx(total(first + second).mean, nan_ok=True, abs=1e-9)


def test_adding_touches_neither_total() -> None:
    a, b = total([(-1.0, 10)]), total([(-2.0, 10)])
    assert (a + b).mean == -1.5
    assert (a, b) == (total([(-1.0, 10)]), total([(-2.0, 10)]))


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_an_interval_without_a_score_is_left_out(missing: float) -> None:
    assert total([(-1.0, 10), (missing, 1000)]) == total([(-1.0, 10)])


def test_before_the_first_score_there_is_no_mean() -> None:
    assert math.isnan(Progressive().mean)
