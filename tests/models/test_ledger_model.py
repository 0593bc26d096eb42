import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import DataError
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.types import Interval, Records

MODEL = LedgerModel()


def by_hand(ids: list[int]) -> list[int]:
    hashed = [((i * 0x9E3779B97F4A7C15 % 2**64) >> 32) % 2**20 for i in ids]
    return [len(ids), sum(ids), sum(i * i % 2**20 for i in ids), sum(hashed)]


@given(st.lists(st.integers(0, 2**31), max_size=20))
def test_sums_are_those_of_python_integers(ids: list[int]) -> None:
    assert MODEL.sums(np.array(ids, np.int64)).tolist() == by_hand(ids)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20, unique=True), st.data())
def test_a_lost_or_doubled_record_shows(ids: list[int], data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(ids))
    whole = MODEL.sums(np.array(ids)).tolist()
    assert MODEL.sums(np.array([i for i in ids if i != one])).tolist() != whole
    assert MODEL.sums(np.array([*ids, one])).tolist() != whole


def test_swapping_one_record_for_another_shows() -> None:
    assert MODEL.sums(np.array([1, 2, 6])).tolist() != MODEL.sums(np.array([1, 3, 5])).tolist()


def test_ids_that_are_not_integers_are_refused() -> None:
    with pytest.raises(DataError, match="integers"):
        MODEL.validate(Records(Interval("s", "p", 0, 2), {"id": np.array([0.5, 1.0])}))
