import numpy as np

from streaming_vb.families.unit_normal import UnitNormal
from streaming_vb.types import NaturalParameters

FAMILY = UnitNormal()


def test_integers_add_up_without_rounding_below_2_to_the_53() -> None:
    total = NaturalParameters({"sum": np.array([2.0**53 - 1001.0])})
    one = NaturalParameters({"sum": np.array([1.0])})
    for _ in range(1000):
        total = FAMILY.add(total, one)
    assert int(total["sum"][0]) == 2**53 - 1


def test_kl_is_half_the_squared_distance() -> None:
    a, b = (NaturalParameters({"sum": np.array(values)}) for values in ([3.0, 0.0], [0.0, 4.0]))
    assert FAMILY.kl(a, b) == 12.5
    assert FAMILY.distance_sd(a, b["sum"]) == 5.0
