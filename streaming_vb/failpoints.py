"""Named points at which a process can be made to die, stop or fail, to test what happens then. Free where none is set.

`SVB_FAIL=S4:kill:3` in the environment, before the import, kills this process when it reaches S4 for the third time.
Several are separated by commas. With a path after the count the point acts only if that file could be removed, so it
acts once however many processes read the same environment.

====  ============================  ====  =======================  ====  ==================
W1    lease received                S1    push received            S7a   snapshot written
W2    records read                  S2    checked                  S7b   synced
W3    snapshot pulled               S3    written to the journal   S7c   renamed
W4    fitting                       S4    synced                   S7d   directory synced
W5    delta ready                   S5    applied                  S8    journal trimmed
W6    sent, without reply           S6    acknowledged             D1    driver starting
W7    acknowledged                  D2    generation raised        D3    driver running
D4    driver stopping
====  ============================  ====  =======================  ====  ==================
"""

import errno
import os
import signal
from typing import NamedTuple


class _Point(NamedTuple):
    action: str
    times: int
    token: str


def _parse(text: str) -> dict[str, _Point]:
    """The points of a setting.

    >>> _parse("S4:kill:3,W1:stop:1:/tmp/token")
    {'S4': _Point(action='kill', times=3, token=''), 'W1': _Point(action='stop', times=1, token='/tmp/token')}
    """
    points = {}
    for part in filter(None, text.split(",")):
        name, action, count, *token = part.split(":", 3)
        points[name] = _Point(action, int(count), token[0] if token else "")
    return points


_POINTS = _parse(os.environ.get("SVB_FAIL", ""))
_reached: dict[str, int] = {}


def reach(name: str) -> None:
    """Say that this point of the program was reached."""
    if _POINTS:
        _act(name)


def _act(name: str) -> None:
    point = _POINTS.get(name)
    if point is None:
        return
    _reached[name] = _reached.get(name, 0) + 1
    if _reached[name] < point.times or (not point.token and _reached[name] > point.times):
        return
    if point.token:
        try:
            os.unlink(point.token)
        except FileNotFoundError:
            return
    if point.action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[point.action])
