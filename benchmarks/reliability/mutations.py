"""Valid input made invalid in every way that we could think of: bytes, plain values and arrays. A seed gives the same
mutation again.
"""

import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Random = np.random.Generator
Fields = dict[str, Any]

_STRANGE = ("", "\0", "é" * 5, "\u202e\u2066", "\U0001f4a5", "\ud800", "\u0661\u0662", "\uff11")
"""Among them direction marks, a lone surrogate, and digits of other scripts."""
UNICODE = (*_STRANGE, " ", "nan", "1e999", "0x10", "1_0", "a,b", '"', "\n")
_HUGE = (1e16, 1e30, 3.4e38, 1e39, 1e150, 1e300, 1.7976931348623157e308)
_ODD_NUMBERS = (-1, 0, 255, 2**24 + 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(2**63) - 1)
_DTYPES = ("U8", "S4", "O", "c8", "M8[s]", "m8[s]", "?", "i1", "u1", "i8", "u8", "f2", ">f8", ">i4", "g", "V8", "i4,f4")


def mutated_bytes(data: bytes, random: Random) -> tuple[str, bytes]:
    """Name of the mutation, and the bytes after it."""
    name = str(random.choice(list(_OF_BYTES)))
    return name, bytes(_OF_BYTES[name](bytearray(data), random))


def _flip_bits(data: bytearray, random: Random) -> bytearray:
    for bit in random.integers(8 * max(len(data), 1), size=int(random.integers(1, 9))):
        if data:
            data[bit // 8] ^= 1 << bit % 8
    return data


def _truncate(data: bytearray, random: Random) -> bytearray:
    return data[: random.integers(len(data) + 1)]


def _extend(data: bytearray, random: Random) -> bytearray:
    return data + random.bytes(int(random.integers(1, 200)))


def _overwrite(data: bytearray, random: Random) -> bytearray:
    start = int(random.integers(len(data) + 1))
    part = random.bytes(int(random.integers(1, 64)))
    data[start : start + len(part)] = part
    return data


def _zeros(data: bytearray, random: Random) -> bytearray:
    start, stop = sorted(random.integers(len(data) + 1, size=2))
    data[start:stop] = bytes(stop - start)
    return data


def _cut_out(data: bytearray, random: Random) -> bytearray:
    start, stop = sorted(random.integers(len(data) + 1, size=2))
    del data[start:stop]
    return data


def _repeat(data: bytearray, random: Random) -> bytearray:
    start, stop = sorted(random.integers(len(data) + 1, size=2))
    return data[:stop] + data[start:]


def _number(data: bytearray, random: Random) -> bytearray:
    """A number of 1 to 8 bytes becomes the largest, the smallest or an odd one."""
    size = int(random.choice([1, 2, 4, 8]))
    value = int(random.choice(np.array([2**64 - 1, 2**63, 2**31, 2**16, 1, 0], np.uint64))) % 2 ** (8 * size)
    start = int(random.integers(min(len(data), 256) + 1))  # where headers are
    data[start : start + size] = value.to_bytes(size, "little" if random.integers(2) else "big")
    return data


def _text(data: bytearray, random: Random) -> bytearray:
    start = int(random.integers(len(data) + 1))
    text = str(random.choice(UNICODE)) * int(random.choice([1, 1, 1, 200_000]))
    data[start:start] = text.encode("utf-8", "surrogatepass")
    return data


def _value(data: bytearray, random: Random) -> bytearray:
    """One of the odd floating-point numbers, where an array may be."""
    start = int(random.integers(len(data) + 1)) // 4 * 4
    part = odd_floats(random, 1).tobytes() if random.integers(2) else struct.pack(">f", random.choice([np.nan, np.inf]))
    data[start : start + len(part)] = part
    return data


_OF_BYTES: Mapping[str, Callable[[bytearray, Random], bytearray]] = {
    "bit flips": _flip_bits,
    "truncated": _truncate,
    "extended": _extend,
    "overwritten": _overwrite,
    "zeros": _zeros,
    "cut out": _cut_out,
    "repeated": _repeat,
    "number": _number,
    "unicode": _text,
    "odd float": _value,
}


def mutated_plain(value: Any, random: Random) -> tuple[str, Any]:
    """Name of the mutation, and a plain JSON value with one part of it changed."""
    value, (parent, key) = _copy_with_place(value, random)
    name = str(random.choice(["missing", "more", "null", "unicode", "number", "float", "type", "nested"]))
    new: Any
    match name:
        case "missing":
            del parent[key]
            return name, value
        case "more":
            if isinstance(parent, list):
                parent.insert(key, parent[key])
            else:
                parent[str(random.choice(UNICODE))] = parent[key]
            return name, value
        case "null":
            new = None
        case "unicode":
            new = str(random.choice(UNICODE))
        case "number":
            new = _ODD_NUMBERS[random.integers(len(_ODD_NUMBERS))]
        case "float":
            new = float(odd_floats(random, 1)[0])
        case "type":
            new = [True, [], {}, 1, "1", 1.0][random.integers(6)]
        case "nested":
            new = parent[key]
            for _ in range(int(random.choice([1, 50, 5000]))):
                new = [new]
    parent[key] = new
    return name, value


def _copy_with_place(value: Any, random: Random) -> tuple[Any, tuple[Any, Any]]:
    """A deep copy of lists and objects, and a place in it: what holds it, and its key."""
    root = {"root": _copied(value)}
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root["root"]]
    while waiting:
        parent = waiting.pop()
        for key in range(len(parent)) if isinstance(parent, list) else list(parent):
            places.append((parent, key))
            if isinstance(parent[key], list | dict):
                waiting.append(parent[key])
    return root["root"], places[random.integers(len(places))] if places else (root, "root")


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list | tuple) else value


def mutated_fields(fields: Mapping[str, Any], random: Random) -> tuple[str, Fields]:
    """Name of the mutation, and the fields of some records after it."""
    name = str(random.choice(list(_OF_ARRAYS)))
    fields = {field: array.copy() for field, array in fields.items()}
    field = str(random.choice(list(fields)))
    if name == "field":
        array = fields.pop(field)
        if random.integers(2):
            fields[str(random.choice(UNICODE))] = array
        return name, fields
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a cast loses is what it is for
        fields[field] = _OF_ARRAYS[name](fields[field], random)
    return name, fields


def mutated_values(array: Any, random: Random) -> tuple[str, Any]:
    """Name of the mutation, and an array of numbers of the same shape after it."""
    name = str(random.choice(["NaN payloads", "infinities", "huge", "odd values"]))
    return name, _OF_ARRAYS[name](np.array(array), random)


def odd_floats(random: Random, size: int) -> np.ndarray:
    """NaNs, infinities, huge and tiny numbers, and random bit patterns [size]."""
    patterns = random.integers(2**63, size=size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e-310, 0.5, -1.0, 2.0, 17.0, *_HUGE])
    return np.where(random.integers(3, size=size) == 0, patterns.view(np.float64), random.choice(special, size))


def _put(array: Any, values: Any, random: Random) -> Any:
    """The values at random places, in the array's own format where it takes them."""
    if array.dtype.kind not in "f":
        array = array.astype(np.float64)
    places = random.integers(max(array.size, 1), size=len(values))
    if array.size:
        array.reshape(-1)[places] = values
    return array


def _nan_payloads(array: Any, random: Random) -> Any:
    """NaNs of every payload, signalling ones too."""
    size = int(random.integers(1, 4))
    exponent = np.uint64(0x7FF0000000000000)
    payload = random.integers(1, 2**52, size=size, dtype=np.uint64)
    sign = random.integers(2, size=size, dtype=np.uint64) << np.uint64(63)
    return _put(array.astype(np.float64), (exponent | payload | sign).view(np.float64), random)


def _infinities(array: Any, random: Random) -> Any:
    return _put(array, random.choice([np.inf, -np.inf], int(random.integers(1, 4))), random)


def _huge(array: Any, random: Random) -> Any:
    return _put(array, random.choice(_HUGE, int(random.integers(1, 4))) * random.choice([-1, 1]), random)


def _odd_values(array: Any, random: Random) -> Any:
    return _put(array, odd_floats(random, int(random.integers(1, 4))), random)


def _dtype(array: Any, random: Random) -> Any:
    kind = str(random.choice(_DTYPES))
    if kind == "i4,f4":
        return np.zeros(array.shape, kind)
    if kind == "O":
        objects = array.astype(object)
        if objects.size:
            objects.reshape(-1)[0] = [None, "x", [1], {}, 10**400, float("nan")][random.integers(6)]
        return objects
    try:
        return array.astype(kind)
    except (TypeError, ValueError):
        return np.zeros(array.shape, kind)


def _unicode(array: Any, random: Random) -> Any:
    texts = array.astype("U12")
    if texts.size:
        texts.reshape(-1)[random.integers(texts.size)] = str(random.choice(UNICODE))
    return texts


def _shape(array: Any, random: Random) -> Any:
    shapes = [
        lambda: array[..., None],
        lambda: array[None],
        lambda: array.reshape(-1),
        lambda: array.T,
        lambda: array.reshape(len(array), -1)[:, :0],
        lambda: array.reshape(len(array), -1)[:, ::-1],
        lambda: np.concatenate([array.reshape(len(array), -1)] * 2, axis=1),
        lambda: array.reshape(-1)[0],
    ]
    return shapes[random.integers(len(shapes))]()


def _size(array: Any, random: Random) -> Any:
    return array[: random.integers(len(array))] if random.integers(2) else np.concatenate([array, array[:1]])


_OF_ARRAYS: Mapping[str, Callable[[Any, Random], Any]] = {
    "NaN payloads": _nan_payloads,
    "infinities": _infinities,
    "huge": _huge,
    "odd values": _odd_values,
    "dtype": _dtype,
    "unicode": _unicode,
    "shape": _shape,
    "size": _size,
    "field": lambda array, random: array,
}
