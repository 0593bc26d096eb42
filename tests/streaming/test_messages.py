"""Objects as plain values: they come back equal to the bit through real frames, and nothing malformed becomes one."""

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from checks import fingerprint
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.streaming import messages
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import Ancestor, ServerState
from streaming_vb.streaming.transport import Position
from streaming_vb.streaming.wire import Message, WireError, decode, encode
from streaming_vb.types import Delta, Fit, Interval, Lease, NaturalParameters, Receipt, SetAside, Snapshot

INTERVAL = Interval("0123abcd", "pass-1/größe", 10, 2**62)
LEASE = Lease(INTERVAL, 2, 41, 1 / 3, 0.1, 7)
RECEIPT = Receipt("rejected", 42, 1, 1000, -3, 0.1, math.nan, 'it said "no"\n', True)
ASIDE = SetAside(INTERVAL, 5, "row 3: x is nan\n")
LEDGER = Ledger(
    {("a", "pass-0"): ((0, 10), (20, 30)), ("b", "pass-0"): ((5, 2**60),), ("b", "größe"): ()},
    (ASIDE, SetAside(Interval("b", "pass-0", 6, 7), 1, "")),
)
POSITION = Position(3, "run", 40, 999, LEDGER, LEDGER.add(Interval("a", "pass-0", 50, 60)), ("one", "two"))
POINT = NaturalParameters({"precision": np.array([1.0, np.nan, -0.0]), "a.b": np.eye(2, dtype=np.float32)})
FIT_STATE = {"momentum": np.arange(3, dtype=np.float32), "steps": np.array(7), "empty": np.zeros((0, 2))}
DELTA = Delta("run", LEASE, Fit(POINT, FIT_STATE, -math.inf), 990, LEDGER.set_aside)
SNAPSHOT = Snapshot(9, 12, POINT, FIT_STATE)
STATE = ServerState(
    "run", NaturalParameters({"p": np.ones(1)}), POINT, FIT_STATE, 9, 12, LEDGER, (Ancestor("older", 3, "ab" * 32),)
)

PLAIN: dict[str, Any] = {
    "interval": INTERVAL,
    "lease": LEASE,
    "receipt": RECEIPT,
    "set_aside": ASIDE,
    "ledger": LEDGER,
    "position": POSITION,
}
WITH_ARRAYS: dict[str, Any] = {"delta": DELTA, "snapshot": SNAPSHOT, "server_state": STATE}
ALL = PLAIN | WITH_ARRAYS


def pack(name: str, value: Any) -> Message:
    packed = getattr(messages, f"pack_{name}")(value)
    return packed if name in WITH_ARRAYS else Message(packed, {})


def unpack(name: str, message: Message) -> Any:
    function = getattr(messages, f"unpack_{name}")
    return function(*message) if name in WITH_ARRAYS else function(message.header)


def bits(value: Any) -> Any:
    """A value as something that compares equal where every bit is: NaN and arrays too."""
    if is_dataclass(value):
        return type(value).__name__, {field.name: bits(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: bits(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value).__name__, [bits(inner) for inner in value]
    return fingerprint(value) if isinstance(value, np.ndarray) else (type(value).__name__, repr(value))


@pytest.mark.parametrize("name", ALL)
def test_an_object_comes_back_from_a_frame_to_the_bit(name: str) -> None:
    found = unpack(name, decode(b"".join(encode(*pack(name, ALL[name])))))
    assert bits(found) == bits(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_the_example_leaves_no_field_at_its_default(name: str) -> None:
    """So that a field that is added, and not packed, is noticed above."""
    for field in fields(ALL[name]):
        assert bits(getattr(ALL[name], field.name)) != bits(field.default)


def test_numbers_of_numpy_are_packed_as_plain_ones() -> None:
    receipt = Receipt("merged", np.int64(3), np.int32(1), np.int64(4), np.int64(0), np.float64(0.5), np.float32(2))
    found = messages.unpack_receipt(json.loads(json.dumps(messages.pack_receipt(receipt))))
    assert found == Receipt("merged", 3, 1, 4, 0, 0.5, 2.0)


def test_a_delta_travels_without_its_fit_state_where_that_is_not_wanted() -> None:
    message = messages.pack_delta(DELTA, with_fit_state=False)
    assert all(name.startswith("natural.") for name in message.arrays)
    found = messages.unpack_delta(*message)
    assert found.fit.fit_state == {}
    assert bits(found.fit.natural) == bits(POINT)


def test_a_header_may_hold_more_than_is_asked_for() -> None:
    header = {"kind": "push", **messages.pack_lease(LEASE)}
    assert messages.unpack_lease(header) == LEASE


CUTS = st.integers(0, 1000), st.integers(0, 1000)


@given(st.lists(st.tuples(*CUTS).map(sorted), max_size=12))
def test_every_ledger_that_merging_builds_comes_back(pairs: list[list[int]]) -> None:
    ledger = Ledger()
    for start, stop in pairs:
        for part in list(ledger.uncovered(Interval("s", "p", start, stop))):
            ledger = ledger.add(part)
    assert messages.unpack_ledger(json.loads(json.dumps(messages.pack_ledger(ledger)))) == ledger


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside nested plain values."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        *([path] if path else []),
        *(place for key, child in children for place in places(child, (*path, key))),
    ]


def replaced(header: Any, path: tuple[Any, ...], other: Any) -> tuple[Any, Any]:
    """A header with another value (or none, for ...) in one place, and what stood there."""
    copy = json.loads(json.dumps(header))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    was = parent.pop(path[-1]) if other is ... else parent[path[-1]]
    if other is not ...:
        parent[path[-1]] = other
    return copy, was


def is_refused(name: str, message: Message) -> bool:
    try:
        unpack(name, message)
    except WireError:
        return True
    return False


OTHERS = [None, True, 3, 1.5, "x", [], [[]], {}, {"x": 1}, -(2**70)]


def same_type(a: Any, b: Any) -> bool:
    return type(a) is type(b) and b != -(2**70)


@pytest.mark.parametrize("name", ALL)
def test_a_value_of_another_type_is_refused_wherever_it_stands(name: str) -> None:
    message = pack(name, ALL[name])
    accepted = []
    for path in places(json.loads(json.dumps(message.header))):
        for other in OTHERS:
            header, was = replaced(message.header, path, other)
            if not same_type(was, other) and not is_refused(name, Message(header, message.arrays)):
                accepted.append((path, other))
    assert accepted == []


@pytest.mark.parametrize("name", ALL)
def test_a_value_that_is_missing_is_refused_wherever_it_stood(name: str) -> None:
    message = pack(name, ALL[name])
    named = [path for path in places(json.loads(json.dumps(message.header))) if isinstance(path[-1], str)]
    assert named
    for path in named:
        header, _ = replaced(message.header, path, ...)
        with pytest.raises(WireError, match=rf"^message: {path[-1]} is missing"):
            unpack(name, Message(header, message.arrays))


@pytest.mark.parametrize("bounds", [(-1, 5), (6, 5), (0, 2**63)], ids=str)
def test_an_interval_that_cannot_be_is_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(WireError, match="message: "):
        messages.unpack_interval({"source": "s", "partition": "p", "start": bounds[0], "stop": bounds[1]})


RUNS: dict[str, Any] = {
    "overlap": [[0, 5], [4, 9]],
    "out of order": [[5, 9], [0, 4]],
    "backwards": [[5, 4]],
    "empty": [[5, 5]],
    "negative": [[-2, 5]],
    "three numbers": [[0, 5, 9]],
    "a bool": [[False, 5]],
    "a float": [[0, 5.0]],
    "not pairs": [0, 5],
    "too far": [[0, 2**63]],
}


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_a_ledger_whose_runs_are_not_disjoint_and_in_order_is_refused(runs: Any) -> None:
    with pytest.raises(WireError, match="message: "):
        messages.unpack_ledger({"runs": [["s", "p", runs]], "set_aside": []})


def test_a_partition_that_stands_twice_in_a_ledger_is_refused() -> None:
    with pytest.raises(WireError, match="entry of a ledger"):
        messages.unpack_ledger({"runs": [["s", "p", [[0, 1]]], ["s", "p", [[5, 6]]]], "set_aside": []})


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_an_array_that_belongs_to_no_part_is_refused(name: str) -> None:
    header, arrays = pack(name, ALL[name])
    with pytest.raises(WireError, match="'stranger' is none of"):
        unpack(name, Message(header, {**arrays, "stranger": np.zeros(1)}))
