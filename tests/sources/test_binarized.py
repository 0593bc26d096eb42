import numpy as np
import pytest
from checks import STANDARD_ERRORS, deviations

from streaming_vb.errors import DataError
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource, binarize
from streaming_vb.types import Interval


def source_of(probabilities: list[float], num_records: int = 5000, seed: int = 0, passes: int = 1) -> BinarizedSource:
    return BinarizedSource(ArraySource({"x": np.tile(probabilities, (num_records, 1))}, passes=passes), seed)


def whole(source: BinarizedSource, partition: str = "pass-0") -> np.ndarray:
    return source.read(Interval(source.fingerprint, partition, 0, source.newest()[partition]))["x"]


def test_values_are_drawn_with_their_probability() -> None:
    probabilities = [0.1, 0.5, 0.97]
    x = whole(source_of(probabilities)).astype(np.float64)
    assert deviations(x, np.array(probabilities)) < STANDARD_ERRORS
    assert deviations(x, np.array([0.13, 0.5, 0.97])) > STANDARD_ERRORS


def test_draws_are_zero_or_one_in_float32() -> None:
    x = whole(source_of([0.3, 0.7], 50))
    assert x.dtype == np.float32
    assert set(np.unique(x)) == {0.0, 1.0}


def test_zero_and_one_are_exact() -> None:
    np.testing.assert_array_equal(whole(source_of([0.0, 1.0])), np.tile([0.0, 1.0], (5000, 1)))


def test_columns_and_rows_are_independent() -> None:
    x = whole(source_of([0.5] * 40, 2000)).astype(np.float64) - 0.5
    neighbours = np.stack([x[:, :-1] * x[:, 1:], x[:, :-1] * np.roll(x, 1, axis=0)[:, :-1]])
    assert deviations(neighbours.reshape(-1, 1), np.asarray(0.0)) < STANDARD_ERRORS


@pytest.mark.parametrize("width", [1, 15, 16, 17, 64])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_row_has_the_same_noise_in_any_part(width: int, cut: int) -> None:
    probabilities = np.full((7, width), 0.5)
    rows = binarize(probabilities, key=9, first_row=0)
    np.testing.assert_array_equal(binarize(probabilities[cut:], key=9, first_row=cut), rows[cut:])


def test_noise_is_fresh_in_every_pass_and_for_every_seed() -> None:
    source = source_of([0.5] * 20, 50, passes=2)
    assert not np.array_equal(whole(source), whole(source, "pass-1"))
    assert not np.array_equal(whole(source), whole(source_of([0.5] * 20, 50, seed=1)))


def test_other_fields_pass_through() -> None:
    source = BinarizedSource(ArraySource({"x": np.full((3, 2), 0.5), "y": np.arange(3)}, seed=None), 0)
    np.testing.assert_array_equal(source.read(next(source.intervals({}, 3)))["y"], [0, 1, 2])


def test_what_is_no_probability_stays_as_it_is() -> None:
    """Drawn, it would be counted as 0 or 1; as it is, a model refuses it."""
    x = whole(source_of([0.5, np.nan, -0.25, 1.5, np.inf, 1.0], 20))
    assert set(np.unique(x[:, 0])) == {0.0, 1.0}
    np.testing.assert_array_equal(x[:, 1:], np.tile([np.nan, -0.25, 1.5, np.inf, 1.0], (20, 1)))


def test_values_beside_bad_ones_keep_their_noise() -> None:
    probabilities = np.full((9, 5), 0.5)
    expected = binarize(probabilities, key=9, first_row=0)
    probabilities[4, 2] = expected[4, 2] = np.nan
    np.testing.assert_array_equal(binarize(probabilities, key=9, first_row=0), expected)


def test_records_that_are_not_flat_are_refused() -> None:
    source = BinarizedSource(ArraySource({"x": np.full((3, 2, 2), 0.5)}), 0)
    with pytest.raises(DataError, match=r"\[n, D\], got the shape \(3, 2, 2\)"):
        whole(source)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i8", "f2", ">f4"])
def test_bits_of_any_format_are_exact(dtype: str) -> None:
    bits = np.eye(4).astype(dtype)
    np.testing.assert_array_equal(binarize(bits, key=9, first_row=0), np.eye(4))
