import numpy as np
import pytest

from streaming_vb.errors import ConfigError, SourceError
from streaming_vb.sources.arrays import ArraySource, fingerprint
from streaming_vb.types import Interval

TABLE = np.arange(20.0).reshape(10, 2)


def read_pass(source: ArraySource, number: int) -> np.ndarray:
    return source.read(Interval(source.fingerprint, f"pass-{number}", 0, source.num_records))["x"]


def test_without_a_seed_every_pass_is_in_the_order_of_the_table() -> None:
    source = ArraySource({"x": TABLE}, passes=2, seed=None)
    np.testing.assert_array_equal(read_pass(source, 0), TABLE)
    np.testing.assert_array_equal(read_pass(source, 1), TABLE)


def test_every_pass_is_another_permutation() -> None:
    source = ArraySource({"x": TABLE}, passes=3)
    passes = [read_pass(source, number) for number in range(3)]
    assert len({order.tobytes() for order in (TABLE, *passes)}) == 4
    for shuffled in passes:
        np.testing.assert_array_equal(shuffled[np.argsort(shuffled[:, 0])], TABLE)


def test_fields_stay_aligned_in_every_pass() -> None:
    source = ArraySource({"x": TABLE, "y": TABLE[:, 0]}, passes=2)
    records = source.read(Interval(source.fingerprint, "pass-1", 0, 10))
    np.testing.assert_array_equal(records["x"][:, 0], records["y"])


@pytest.mark.parametrize("number", [0, 1])
def test_the_order_of_a_pass_follows_the_seed(number: int) -> None:
    passes = [read_pass(ArraySource({"x": TABLE}, passes=2, seed=seed), number) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[0], passes[2])


def test_an_interval_names_the_same_records_for_ever() -> None:
    """Otherwise a run that is resumed with another order counts some records twice, and others never."""
    first, other = (ArraySource({"x": TABLE}, seed=seed) for seed in (0, 1))
    assert first.fingerprint != other.fingerprint


def test_scale_turns_bytes_into_float32() -> None:
    source = ArraySource({"x": np.array([[0, 255], [51, 102]], np.uint8)}, seed=None, scale=1 / 255)
    x = read_pass(source, 0)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, [[0, 1], [0.2, 0.4]], rtol=1e-6)


def test_an_interval_of_other_data_is_refused() -> None:
    source, other = ArraySource({"x": TABLE}), ArraySource({"x": TABLE + 1})
    with pytest.raises(SourceError, match="same data"):
        source.read(next(other.intervals({}, 5)))


@pytest.mark.parametrize(
    ("fields", "passes"),
    [({}, 1), ({"x": TABLE, "y": TABLE[:3]}, 1), ({"x": TABLE[:0]}, 1), ({"x": TABLE}, 0)],
    ids=["no field", "lengths differ", "no row", "no pass"],
)
def test_what_cannot_be_streamed_is_refused(fields: dict[str, np.ndarray], passes: int) -> None:
    with pytest.raises(ConfigError):
        ArraySource(fields, passes=passes)


def test_the_fingerprint_sees_names_values_shapes_and_formats() -> None:
    variants = [
        {"x": TABLE},
        {"y": TABLE},
        {"x": TABLE + 1},
        {"x": TABLE.reshape(5, 4)},
        {"x": TABLE.astype(np.float32)},
        {"x": TABLE, "y": TABLE},
    ]
    assert len({fingerprint(fields) for fields in variants}) == len(variants)


def test_the_fingerprint_does_not_see_memory_layout_or_order_of_fields() -> None:
    fields = {"x": TABLE, "y": TABLE[:, 0]}
    rearranged = {"y": TABLE[:, 0].copy(), "x": np.asfortranarray(TABLE)}
    assert fingerprint(fields) == fingerprint(rearranged)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "b"]),
        np.array([1.0, None]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, np.complex128),
        np.zeros(2, "V4"),
        np.float64(1.0) * np.ones(()),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_is_no_number_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"arrays of numbers with one row per record, got .* for 'y'"):
        ArraySource({"x": np.ones((2, 3)), "y": array})


def test_a_scale_needs_an_x() -> None:
    with pytest.raises(ConfigError, match="needs the field x, got id"):
        ArraySource({"id": np.arange(3)}, scale=1 / 255)
