"""Entries of a journal in a file that is written over and over: each says which use of the file it belongs to.

A frame starts at a multiple of 64 bytes and has a head of 64: the number of the segment (one use of a file; never used
twice in a run), its position in the segment, the length of its payload, how many frames of the segment were synced when
it was written, the CRC-32 of the payload and that of the head. Bytes left over from an older use carry an older number.
A frame that is broken although a later one says that it was synced was durable once: then the disk is corrupt. Any
other broken frame is where a crash cut the tail.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from streaming_vb.streaming.disk import Buffer, File
from streaming_vb.streaming.wire import size

_HEAD = struct.Struct("<8sQQQQI16xI")
_MAGIC = b"SVBJRNL1"
_CHUNK = 2**20


class Head(NamedTuple):
    """The head of a frame; `num_synced` frames of the segment were durable when it was written."""

    segment: int
    position: int
    length: int
    num_synced: int
    checksum: int


class Frame(NamedTuple):
    """A frame that was read; `stop` is the offset of the next one, `num_synced` as in its head."""

    segment: int
    payload: bytes
    stop: int
    num_synced: int


def frame(segment: int, position: int, num_synced: int, parts: Sequence[Buffer]) -> list[Buffer]:
    """The buffers of a frame around those of its payload, which are not copied."""
    checksum, length = 0, size(parts)
    for part in parts:
        checksum = zlib.crc32(part.data if isinstance(part, np.ndarray) else part, checksum)
    head = _HEAD.pack(_MAGIC, segment, position, length, num_synced, checksum, 0)
    head = head[:-4] + zlib.crc32(head[:-4]).to_bytes(4, "little")
    return [head, *parts, bytes(-length % _HEAD.size)]


def read(file: File, offset: int, segment: int | None, position: int) -> Frame | None:
    """The frame at an offset, none unless it is whole and of that segment (any, where none is given) and position."""
    head = head_at(file, offset)
    if head is None or head.position != position or (segment is not None and head.segment != segment):
        return None
    start = offset + _HEAD.size
    if start + head.length > file.size():
        return None
    payload = file.read(start, head.length)
    if len(payload) != head.length or zlib.crc32(payload) != head.checksum:
        return None
    return Frame(head.segment, payload, start + head.length + -head.length % _HEAD.size, head.num_synced)


def head_at(file: File, offset: int) -> Head | None:
    """The head at an offset, none where there is not a valid one."""
    return _parsed(file.read(offset, _HEAD.size))


def heads(file: File, offset: int, segment: int | None = None) -> Iterator[Head]:
    """Every valid head from an offset on, whatever lies between them; of one segment where it is given."""
    wanted = _MAGIC if segment is None else _MAGIC + segment.to_bytes(8, "little")
    for start in range(offset, file.size(), _CHUNK):
        chunk = file.read(start, _CHUNK)
        at = chunk.find(wanted)
        while at >= 0:
            head = _parsed(chunk[at : at + _HEAD.size]) if at % _HEAD.size == 0 else None
            if head is not None:
                yield head
            at = chunk.find(wanted, at + 1)


def _parsed(data: bytes) -> Head | None:
    if len(data) != _HEAD.size or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    magic, *fields, _ = _HEAD.unpack(data)
    return Head(*fields) if magic == _MAGIC else None
