import numpy as np

from streaming_vb.types import Interval, NaturalParameters, Records

POINT = NaturalParameters({"precision": np.array([2.0, 4.0]), "precision_mean": np.array([1.0, -1.0])})


def test_the_whole_share_is_the_point_itself() -> None:
    assert POINT.scale(1.0) is POINT


def test_a_share_scales_every_array_and_keeps_its_format() -> None:
    part = POINT.astype(np.float32).scale(0.25)
    assert part["precision"].tolist() == [0.5, 1.0]
    assert part["precision_mean"].tolist() == [0.25, -0.25]
    assert part["precision"].dtype == np.float32


def test_a_point_in_its_own_format_is_not_copied() -> None:
    assert POINT.astype(np.float64)["precision"] is POINT["precision"]


def test_records_are_counted_by_rows_not_by_positions() -> None:
    assert len(Records(Interval("s", "p", 0, 100), {"x": np.zeros((7, 2))})) == 7


def test_an_interval_reads_as_partition_and_positions() -> None:
    assert str(Interval("sha", "pass-0", 1000, 2000)) == "pass-0[1,000:2,000]"
