"""What the driver and its children say to each other through the socket of a child: one small message each.

`tell` and `hear` are both sides. A header holds a `kind` beside what `messages` packs.
"""

import socket
from collections.abc import Mapping
from typing import Any

from streaming_vb import errors
from streaming_vb.errors import StreamingVBError
from streaming_vb.streaming import wire
from streaming_vb.types import Array

GONE = (EOFError, OSError, wire.WireError)
"""What a read or a write raises when the other process has died."""


def tell(sock: socket.socket, kind: str, arrays: Mapping[str, Array] | None = None, /, **header: Any) -> None:
    """Send a message; raises OSError where the other side is gone."""
    wire.write_frame(sock, wire.encode({"kind": kind, **header}, arrays or {}))


def hear(sock: socket.socket) -> wire.Message:
    """The next message; raises one of `GONE` where the other side is gone."""
    return wire.decode(wire.read_frame(sock))


def pack_error(error: StreamingVBError) -> list[str]:
    """Name of the nearest class of `errors`, and the text: a user's own class need not be known here."""
    known = next(parent for parent in type(error).__mro__ if parent.__module__ == errors.__name__)
    return [known.__name__, str(error)]


def unpack_error(packed: list[str]) -> StreamingVBError:
    """The error again.

    >>> unpack_error(pack_error(errors.DataError("record 3: x is missing")))
    DataError('record 3: x is missing')
    """
    name, text = packed
    error: StreamingVBError = getattr(errors, name)(text)
    return error
