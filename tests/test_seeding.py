import numpy as np
import pytest
import torch

from streaming_vb.seeding import derive, interval_seed, numpy_generator, torch_generator
from streaming_vb.types import Interval

INTERVAL = Interval("sha", "pass-0", 0, 100)


def test_a_seed_is_the_same_in_every_process() -> None:
    assert derive(0, "prior") == 1873798181951564499


def test_a_seed_has_63_bits() -> None:
    seeds = [derive(0, i) for i in range(1000)]
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


def test_purposes_do_not_share_a_seed() -> None:
    names = [(seed, *purpose) for seed in (0, 1) for purpose in (["a"], ["b"], ["a", "b"], ["ab"], [1], [11], [1, 1])]
    assert len({derive(*name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "other",
    [
        (1, INTERVAL, 0),
        (0, INTERVAL, 1),
        (0, Interval("other", "pass-0", 0, 100), 0),
        (0, Interval("sha", "pass-1", 0, 100), 0),
        (0, Interval("sha", "pass-0", 1, 100), 0),
        (0, Interval("sha", "pass-0", 0, 101), 0),
    ],
    ids=["seed", "attempt", "source", "partition", "start", "stop"],
)
def test_the_seed_of_a_fit_depends_on_every_part_of_its_name(other: tuple[int, Interval, int]) -> None:
    assert interval_seed(*other) != interval_seed(0, INTERVAL, 0) == interval_seed(0, INTERVAL, 0)


def test_numpy_generators_of_one_name_draw_the_same() -> None:
    first, again, other = (numpy_generator(0, name).standard_normal(5) for name in ("a", "a", "b"))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_torch_generators_of_one_name_draw_the_same() -> None:
    first, again, other = (torch.randn(5, generator=torch_generator(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_generators_leave_the_global_ones_alone() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    torch_generator(0, "a")
    numpy_generator(0, "a").standard_normal(3)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
