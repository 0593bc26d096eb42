"""What a server does when its disk is full: it merges nothing and answers nothing, says so once, and goes on when there
is space again."""

import errno
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


def until_there_is_space(action: Callable[[], T], tell: Callable[[str], None], pause: Callable[[float], None]) -> T:
    """The result of an action that changes nothing where the disk is full; it is tried until it works.

    Args:
        action: raises OSError where the disk refuses.
        tell: one line for people, when the waiting begins and when it ends.
        pause: sleeps for some seconds.

    Raises:
        OSError: the disk refuses for another reason.

    >>> until_there_is_space(lambda: 3, tell=print, pause=print)
    3
    """
    seconds = 0.0
    while True:
        try:
            result = action()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if not seconds:
                tell("the disk is full: nothing is merged until there is space. Free some; the run then goes on")
            seconds = min(max(2 * seconds, _FIRST_PAUSE), _LONGEST_PAUSE)
            pause(seconds)
            continue
        if seconds:
            tell("there is space again: the run goes on")
        return result
