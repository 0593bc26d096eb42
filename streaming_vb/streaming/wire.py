"""Messages as bytes: a JSON header and named NumPy arrays in one frame, without pickle and without copying the arrays.

The same frame goes through sockets and into the journal. What reads it trusts nothing: a flipped or missing byte, or a
stranger on the socket, gives a `WireError`, and no allocation is larger than the bytes that are there.

A frame, little endian; offsets count from its start::

    magic, length of the header, length of the payload      24 bytes
    header: {"header": ..., "arrays": [[name, dtype, shape], ...]} as JSON, then spaces up to a multiple of 64
    payload: the arrays in that order, row major, each followed by zeros up to a multiple of 64
"""

import json
import math
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from streaming_vb.errors import IntegrityError
from streaming_vb.streaming.disk import Buffer
from streaming_vb.types import Array

_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"SVBWIRE1"
_ALIGNMENT = 64
_DTYPES = frozenset(["|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"])
_MOST_HEADER = 16 * 2**20
_MOST_PAYLOAD = 16 * 2**30
_MOST_DIMENSIONS = 32
_MOST_PARTS = 512
"""Buffers per system call; the limit is 1,024 on Linux."""


class WireError(IntegrityError):
    """Bytes that are not a message, or a message that lacks something."""


class Message(NamedTuple):
    """What a frame holds: plain JSON values, and arrays by name."""

    header: dict[str, Any]
    arrays: Mapping[str, Array]


def encode(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> list[Buffer]:
    """The frame of a message as buffers to be written one after the other.

    Args:
        header: plain JSON values; floats keep their bits, NaN and infinities too.
        arrays: booleans, integers or floats of any shape. Those that are row major are not copied: they must not change
            before the buffers are written.

    Raises:
        WireError: an array is of another kind, or the header is over 16 MB.

    >>> message = decode(b"".join(encode({"n": 3}, {"g": np.arange(3.0)})))
    >>> message.header, message.arrays["g"]
    ({'n': 3}, array([0., 1., 2.]))
    """
    stored = {name: storable(name, array) for name, array in arrays.items()}
    table = [[name, array.dtype.str, array.shape] for name, array in stored.items()]
    text = json.dumps({"header": header, "arrays": table}, separators=(",", ":")).encode()
    text += b" " * (-(_HEAD.size + len(text)) % _ALIGNMENT)
    if len(text) > _MOST_HEADER:
        raise WireError(f"message: a header of {len(text):,} bytes; at most {_MOST_HEADER:,} can be sent or stored")
    payload: list[Buffer] = []
    for array in stored.values():
        payload += [_bytes(array), bytes(-array.nbytes % _ALIGNMENT)]
    return [_HEAD.pack(_MAGIC, len(text), size(payload)) + text, *payload]


def size(parts: Sequence[Buffer]) -> int:
    """Bytes in buffers.

    >>> size([b"two", np.zeros(3)])
    27
    """
    return sum(part.nbytes if isinstance(part, np.ndarray) else memoryview(part).nbytes for part in parts)


def decode(buffer: Buffer) -> Message:
    """The message in one whole frame; its arrays are read-only views of the buffer.

    Raises:
        WireError: the bytes are not exactly one frame.
    """
    view = _bytes(buffer).toreadonly()
    header_bytes, payload_bytes = _lengths(view[: _HEAD.size])
    at = _HEAD.size + header_bytes
    if view.nbytes != at + payload_bytes:
        raise WireError(f"message: {at + payload_bytes:,} bytes expected, {view.nbytes:,} came")
    header, table = _parsed(view[_HEAD.size : at])
    arrays: dict[str, Array] = {}
    for name, dtype, shape in table:
        if name in arrays:
            raise WireError(f"message: two arrays are named {name!r}")
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > view.nbytes - at:
            raise WireError(f"message: array {name!r} of {num_bytes:,} bytes, {view.nbytes - at:,} are left")
        arrays[name] = _array(name, view[at : at + num_bytes], dtype, shape)
        at += num_bytes + -num_bytes % _ALIGNMENT
    if at != view.nbytes:
        raise WireError(f"message: its arrays end at byte {at:,} of {view.nbytes:,}")
    return Message(header, arrays)


def storable(name: str, array: Array) -> Array:
    """The array row major and little endian, as it travels and is stored; not copied where it is so already.

    Raises:
        WireError: it does not hold booleans, integers or floats.
    """
    stored = np.asarray(array, order="C")
    stored = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    if stored.dtype.str not in _DTYPES:
        raise WireError(f"array {name!r} is of type {stored.dtype}; only booleans, integers and floats travel")
    return stored


def write_frame(sock: socket.socket, parts: Sequence[Buffer]) -> None:
    """Send the buffers of a frame on a blocking stream socket.

    Raises:
        OSError: the other side is gone, or a time limit of the socket has passed.
    """
    waiting = [view for view in map(_bytes, parts) if view.nbytes]
    while waiting:
        sent = sock.sendmsg(waiting[:_MOST_PARTS])
        while waiting and sent >= waiting[0].nbytes:
            sent -= waiting.pop(0).nbytes
        if sent:
            waiting[0] = waiting[0][sent:]


def read_frame(sock: socket.socket) -> memoryview:
    """The next frame of a blocking stream socket, for `decode`.

    Raises:
        EOFError: the other side has closed, between two frames.
        WireError: it closed within a frame, or does not send frames.
        OSError: the connection broke, or a time limit of the socket has passed.
    """
    head = bytearray(_HEAD.size)
    received = _receive(sock, memoryview(head))
    if received == 0:
        raise EOFError("the other side has closed the connection")
    total = _HEAD.size + sum(_lengths(head[:received]))
    try:
        frame = np.empty(total, np.uint8).data  # pages that no byte reaches are never allocated
    except MemoryError as error:
        raise WireError(f"message: no memory for {total:,} bytes") from error
    frame[: _HEAD.size] = head
    received += _receive(sock, frame[_HEAD.size :])
    if received < total:
        raise WireError(f"message: {total:,} bytes expected, the connection closed after {received:,}")
    return frame


def _bytes(part: Buffer) -> memoryview:
    """A buffer as a flat view of its bytes."""
    if isinstance(part, np.ndarray):
        return part.reshape(-1).view(np.uint8).data  # memoryview.cast refuses arrays without values
    return memoryview(part).cast("B")


def _lengths(head: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Lengths of header and payload."""
    if len(head) < _HEAD.size:
        raise WireError(f"message: {_HEAD.size} bytes expected at least, {len(head)} came")
    magic, header_bytes, payload_bytes = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise WireError(f"message: it starts with {magic!r}, expected {_MAGIC!r}")
    if header_bytes > _MOST_HEADER or payload_bytes > _MOST_PAYLOAD:
        raise WireError(f"message: lengths {header_bytes:,} and {payload_bytes:,} bytes, which no message has")
    return header_bytes, payload_bytes


def _parsed(text: memoryview) -> tuple[dict[str, Any], list[tuple[str, np.dtype[Any], tuple[int, ...]]]]:
    try:
        content = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise WireError(f"message: the header is not JSON ({type(error).__name__})") from error
    match content:
        case {"header": dict(header), "arrays": list(table), **rest} if not rest:
            return header, [_row(row) for row in table]
    raise WireError("message: the header is JSON of another form")


def _row(row: object) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    match row:
        case [str(name), str(dtype), list(shape)] if (
            dtype in _DTYPES
            and len(shape) <= _MOST_DIMENSIONS
            and all(type(length) is int and 0 <= length <= _MOST_PAYLOAD for length in shape)
        ):
            return name, np.dtype(dtype), tuple(shape)
    raise WireError("message: an entry of the header does not describe an array")


def _array(name: str, part: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    values = np.frombuffer(part, np.uint8) if part.nbytes else np.zeros(0, np.uint8)
    if dtype.kind == "b" and values.size and values.max() > 1:
        raise WireError(f"message: array {name!r} holds bytes that are no booleans")
    try:
        return values.view(dtype).reshape(shape)
    except ValueError as error:  # no values, and dimensions whose product is too large for NumPy
        raise WireError(f"message: array {name!r} has shape {shape}") from error


def _receive(sock: socket.socket, target: memoryview) -> int:
    """Fill the target; returns the bytes received, fewer where the other side closed."""
    received = 0
    while received < target.nbytes:
        count = sock.recv_into(target[received:])
        if count == 0:
            break
        received += count
    return received
