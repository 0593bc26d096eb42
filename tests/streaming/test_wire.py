"""Frames: what is decoded is what was encoded, to the bit, or a `WireError` says why not; nothing else comes out."""

import json
import math
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from streaming_vb.streaming.wire import Message, WireError, decode, encode, read_frame, size, write_frame

KINDS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f8", ">i4", ">u2"]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
ARRAYS = st.dictionaries(
    st.text(max_size=10),
    st.sampled_from(KINDS).flatmap(
        lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)
EXAMPLE = encode(
    {"version": 3, "elbo": math.nan}, {"g": np.arange(3, dtype=np.float32), "n": np.array(7), "b": np.array([True])}
)


def frame(header: Any, payload: bytes = b"", magic: bytes = b"SVBWIRE1") -> bytes:
    """A frame as a stranger would build it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<8sQQ", magic, len(text), len(payload)) + text + payload


def described(*table: Any, payload: bytes = b"") -> bytes:
    return frame({"header": {}, "arrays": list(table)}, payload)


def assert_same(found: Message, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    assert json.dumps(found.header) == json.dumps(header)
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        other = found.arrays[name]
        assert (other.shape, other.dtype) == (array.shape, array.dtype.newbyteorder("<"))
        assert other.tobytes() == array.astype(other.dtype).tobytes()


@given(st.dictionaries(st.text(), PLAIN, max_size=4), ARRAYS)
def test_what_is_decoded_is_what_was_encoded(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    parts = encode(header, arrays)
    content = b"".join(parts)
    assert len(content) == size(parts)
    assert_same(decode(content), header, arrays)


@pytest.mark.parametrize("value", [0.1, math.pi, 5e-324, -0.0, math.inf, -math.inf, math.nan, 1.7976931348623157e308])
def test_floats_of_the_header_keep_their_bits(value: float) -> None:
    found = decode(b"".join(encode({"x": value}, {}))).header["x"]
    assert struct.pack("<d", found) == struct.pack("<d", value)


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: a.T.copy().T])
def test_memory_layout_leaves_no_trace(layout: Any) -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(decode(b"".join(encode({}, {"m": layout(matrix)}))).arrays["m"], matrix)


def test_arrays_are_copied_neither_way() -> None:
    array = np.arange(1000.0)
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), array) for part in encode({}, {"a": array}) if len(part))
    content = bytearray(b"".join(encode({}, {"a": array})))
    assert np.shares_memory(decode(content).arrays["a"], np.frombuffer(content, np.uint8))


def test_arrays_are_aligned_and_cannot_be_written() -> None:
    content = np.frombuffer(b"".join(encode({"x": 1}, {"a": np.zeros(3, np.int8), "b": np.zeros(5)})), np.uint8)
    for array in decode(content).arrays.values():
        assert (array.ctypes.data - content.ctypes.data) % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.array(["x"]), np.zeros(2, np.complex64), np.zeros(2, "M8[s]")]
)
def test_other_kinds_of_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(WireError, match="'odd' is of type"):
        encode({}, {"odd": array})


def test_a_header_that_could_not_be_read_is_not_written() -> None:
    with pytest.raises(WireError, match="a header of"):
        encode({"x": "a" * 2**24}, {})


def test_a_flipped_bit_gives_another_message_or_a_wire_error() -> None:
    content = b"".join(EXAMPLE)
    refused = 0
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            decode(changed)
        except WireError:
            refused += 1
    assert refused > 8 * 24  # every bit of magic and lengths, at the least


def test_a_truncated_or_longer_frame_is_refused() -> None:
    content = b"".join(EXAMPLE)
    for length in range(len(content)):
        with pytest.raises(WireError):
            decode(content[:length])
    with pytest.raises(WireError, match="bytes expected"):
        decode(content + b"\0")


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_garbage_is_refused(content: bytes, as_header: bool, as_table: bool) -> None:
    if as_header:
        content = frame(content)
    if as_table:
        content = described([content.decode("latin-1"), "<f8", [1]])
    with pytest.raises(WireError):
        decode(content)


@given(PLAIN, PLAIN, PLAIN)
def test_a_header_of_any_other_form_is_refused(name: Any, dtype: Any, shape: Any) -> None:
    with pytest.raises(WireError):
        decode(described([name, dtype, shape], payload=bytes(7)))
    with pytest.raises(WireError):
        decode(frame({"header": name if not isinstance(name, dict) else None, "arrays": []}))


HOSTILE = {
    "empty": b"",
    "other magic": frame({"header": {}, "arrays": []}, magic=b"SVBWIRE2"),
    "lengths without end": struct.pack("<8sQQ", b"SVBWIRE1", 2**64 - 1, 2**64 - 1),
    "header over the limit": struct.pack("<8sQQ", b"SVBWIRE1", 2**24 + 1, 0),
    "nested without end": frame(b"[" * 100_000),
    "nested in the table": frame(b'{"header": {}, "arrays": [' + b"[" * 900 + b"]" * 900 + b"]}"),
    "not UTF-8": frame(b"\xff\xfe\xfd"),
    "integer without end": frame(b'{"header": {"a": ' + b"9" * 10_000 + b'}, "arrays": []}'),
    "something more": frame({"header": {}, "arrays": [], "more": 1}),
    "no arrays": frame({"header": {}}),
    "objects": described(["a", "|O", [1]], payload=bytes(64)),
    "text": described(["a", "<U4", [1]], payload=bytes(64)),
    "big endian": described(["a", ">f8", [1]], payload=bytes(64)),
    "structured": described(["a", [["x", "<f8"]], [1]], payload=bytes(64)),
    "negative length": described(["a", "<f8", [-1]], payload=bytes(64)),
    "two negative lengths": described(["a", "<f8", [-1, -1]], payload=bytes(64)),
    "length is a float": described(["a", "<f8", [1.0]], payload=bytes(64)),
    "length is a bool": described(["a", "<f8", [True]], payload=bytes(64)),
    "past the end": described(["a", "<f8", [9]], payload=bytes(64)),
    "product wraps around": described(["a", "<f8", [2**33, 2**33]], payload=bytes(64)),
    "too many dimensions": described(["a", "<f8", [1] * 65], payload=bytes(64)),
    "nothing, and far too wide": described(["a", "<f8", [0, 2**33, 2**33]]),
    "bytes that belong to nothing": described(["a", "<f8", [1]], payload=bytes(128)),
    "cut padding": described(["a", "<f8", [1]], payload=bytes(8)),
    "one name twice": described(["a", "<f8", [1]], ["a", "<f8", [1]], payload=bytes(128)),
    "a bool of 2": described(["a", "|b1", [1]], payload=b"\2" + bytes(63)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_a_stranger_sends_is_refused_without_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(content)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content) + 100_000
    finally:
        tracemalloc.stop()


def test_the_strangers_frames_are_refused_for_one_thing_only() -> None:
    assert decode(described(["a", "<f8", [1]], payload=bytes(64))).arrays["a"].tolist() == [0.0]
    assert decode(frame(b'{"header": {"a": 9}, "arrays": []}')).header == {"a": 9}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a stream."""
    a, b = socket.socketpair()
    with a, b:
        yield a, b


def test_frames_cross_a_socket_whole_and_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    messages = [
        ({"n": 0}, {"g": np.arange(1_000_000.0)}),  # larger than any buffer of the socket
        ({"n": 1}, {}),
        ({"n": 2}, {f"{k}": np.full(k % 5, k) for k in range(1500)}),  # more parts than a system call takes
    ]

    pair[0].settimeout(60)  # with a time limit the system also sends a part

    def send() -> None:
        for header, arrays in messages:
            write_frame(pair[0], encode(header, arrays))
        pair[0].close()

    thread = threading.Thread(target=send)
    thread.start()
    for header, arrays in messages:
        assert_same(decode(read_frame(pair[1])), header, arrays)
    with pytest.raises(EOFError):
        read_frame(pair[1])
    thread.join()


@pytest.mark.parametrize("length", [1, 23, 24, 25, -1])
def test_a_connection_that_ends_within_a_frame_is_told_from_one_that_ends(
    length: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    pair[0].sendall(b"".join(EXAMPLE)[:length])
    pair[0].close()
    with pytest.raises(WireError):
        read_frame(pair[1])


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": b"\xff" * 64,
    "header over the limit": HOSTILE["header over the limit"],
    "lengths without end": HOSTILE["lengths without end"],
}


@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_on_the_socket_is_refused_at_once(content: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(content)
    pair[1].settimeout(10)
    with pytest.raises(WireError):
        read_frame(pair[1])


def test_a_time_limit_of_the_socket_passes_through(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(b"".join(EXAMPLE)[:30])
    pair[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        read_frame(pair[1])
