"""The variance of a stochastic gradient against a known one, and what a group holds fixed."""

import math
from collections.abc import Iterator

import pytest
import torch
from checks import STANDARD_ERRORS
from torch import Tensor

from streaming_vb.reproduce.empirical_variance import within_groups

SCALES = torch.tensor([0.5, 1.0, 3.0])


def groups(number: int, size: int, shift: float) -> Iterator[list[tuple[Tensor, ...]]]:
    """Draws of two tensors with standard deviations SCALES and 2, around a mean of the group."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        centre = shift * torch.randn(3, generator=generator)
        yield [
            (centre + SCALES * torch.randn(3, generator=generator), 2 * torch.randn(2, 4, generator=generator))
            for _ in range(size)
        ]


@pytest.mark.parametrize("shift", [0.0, 100.0], ids=["one mean", "a mean per group"])
def test_the_mean_of_the_variances_of_the_elements_whatever_a_group_has_in_common(shift: float) -> None:
    narrow, wide = within_groups(groups(400, 5, shift))
    expected = float(SCALES.square().mean())
    assert abs(narrow.value - expected) < STANDARD_ERRORS * narrow.standard_error
    assert abs(wide.value - 4) < STANDARD_ERRORS * wide.standard_error
    assert abs(wide.value - 3) > STANDARD_ERRORS * wide.standard_error


def test_the_standard_error_is_that_of_normal_draws() -> None:
    _, wide = within_groups(groups(400, 5, 1.0))
    exact = 4 * math.sqrt(2 / (400 * 4 * 8))  # 400 groups, 4 degrees of freedom, 8 elements
    assert wide.standard_error == pytest.approx(exact, rel=0.2)


def test_times_scales_both() -> None:
    (variance, _) = within_groups(groups(3, 2, 0.0))
    assert variance.times(4.0) == (4 * variance.value, 4 * variance.standard_error)
