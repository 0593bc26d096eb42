"""A full disk is waited for; anything else is an error at once."""

import errno
from collections.abc import Callable

import pytest

from streaming_vb.streaming.patience import until_there_is_space


def failing(times: int, number: int = errno.ENOSPC) -> Callable[[], str]:
    left = [times]

    def action() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(number, "no")
        return "done"

    return action


def test_what_works_at_once_is_neither_told_nor_waited_for() -> None:
    def never(value: object) -> None:
        raise AssertionError(value)

    assert until_there_is_space(failing(0), never, never) == "done"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_once_and_waited_for_with_growing_pauses(number: int) -> None:
    told: list[str] = []
    pauses: list[float] = []
    assert until_there_is_space(failing(8, number), told.append, pauses.append) == "done"
    assert len(told) == 2
    assert "full" in told[0]
    assert "again" in told[1]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.05, 1.0)


def test_another_error_is_not_waited_for() -> None:
    with pytest.raises(OSError, match="no"):
        until_there_is_space(failing(1, errno.EIO), lambda text: None, lambda seconds: None)
