"""An array is handed out again only when nobody can see it any more."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb import buffers
from streaming_vb.buffers import empty_like

SMALL, LARGE = np.zeros(3), np.zeros(2**17)


@pytest.fixture(autouse=True)
def _empty_pool() -> Iterator[None]:
    buffers._pool.clear()
    yield
    buffers._pool.clear()


@pytest.mark.parametrize("like", [SMALL, LARGE], ids=["small", "large"])
def test_shape_and_format_are_those_of_the_array(like: np.ndarray) -> None:
    assert (empty_like(like).shape, empty_like(like).dtype) == (like.shape, like.dtype)
    assert empty_like(like, np.float32).dtype == np.float32


def test_memory_is_used_again_once_nobody_refers_to_it() -> None:
    first = empty_like(LARGE)
    address = first.ctypes.data
    del first
    assert empty_like(LARGE).ctypes.data == address


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[:1],
        lambda array: array[5:][::2].reshape(-1, 1),
        lambda array: array.T,
        lambda array: array.view(np.int64),
        lambda array: memoryview(array),
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array)[3:7],
        lambda array: {"nested": [array]},
    ],
    ids=[
        "array",
        "slice",
        "view of view",
        "transpose",
        "other format",
        "memory",
        "tensor",
        "tensor slice",
        "container",
    ],
)
def test_memory_that_somebody_can_see_is_never_handed_out(hold: Callable[[np.ndarray], object]) -> None:
    array = empty_like(LARGE)
    address = array.ctypes.data
    kept = hold(array)
    del array
    others = [empty_like(LARGE) for _ in range(40)]
    assert address not in {other.ctypes.data for other in others}
    del kept, others
    assert address in {empty_like(LARGE).ctypes.data}


def test_shapes_and_formats_do_not_share_memory() -> None:
    held = [empty_like(LARGE), empty_like(LARGE.reshape(-1, 2)), empty_like(LARGE, np.int64)]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(held) for b in held[:i])


def test_the_pool_does_not_grow_without_bound() -> None:
    held = [empty_like(LARGE) for _ in range(60)]
    assert sum(map(len, buffers._pool.values())) < len(held)


@given(st.lists(st.integers(0, 7), max_size=60))
def test_no_two_holders_ever_share_memory(choices: list[int]) -> None:
    """Slots take a new array or drop theirs; what a slot wrote is still there whenever one looks."""
    slots: dict[int, np.ndarray] = {}
    for stamp, slot in enumerate(choices):
        if slot in slots:
            del slots[slot]
        else:
            slots[slot] = empty_like(LARGE)[slot:]
            slots[slot][:] = stamp
        values = [array[0] for array in slots.values()]
        assert len(set(values)) == len(values)
        assert all(array[0] == array[-1] for array in slots.values())


def test_threads_do_not_share_memory() -> None:
    def work(stamp: int) -> bool:
        for i in range(100):
            array = empty_like(LARGE)
            array[:100] = stamp * 1000 + i
            if not np.all(array[:100] == stamp * 1000 + i):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
