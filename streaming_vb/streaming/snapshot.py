"""Posterior files: one safetensors file holds everything needed to go on, score, serve or fork. No pickle, no torch.

safetensors neither syncs nor notices a flipped bit, so this module reads and writes that layout itself (8 bytes length
of the header, JSON header, tensors one after the other; any safetensors reader can open the files) and adds both: a
SHA-256 per tensor and one for the description; a temporary file, synced, renamed, and the directory synced after it.

A run directory keeps two of them. The older one is replaced last, after the new one is durable, so that at every moment
one file is whole even where the other was found damaged.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from streaming_vb.errors import FormatTooNew, IntegrityError
from streaming_vb.failpoints import reach
from streaming_vb.streaming.disk import Disk, File, RealDisk
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.messages import pack_server_state, unpack_server_state
from streaming_vb.streaming.wire import WireError, storable
from streaming_vb.types import Array, NaturalParameters

FORMAT_VERSION = 2
POSTERIOR_FILE = "posterior.safetensors"
PREVIOUS_FILE = "previous.safetensors"

_KEY = "streaming_vb"
_DTYPES = {"BOOL": "|b1", "U8": "|u1", "I8": "|i1"} | {
    f"{letter}{8 * size}": f"<{letter.lower()}{size}" for letter in "UIF" for size in (2, 4, 8)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_HEADER = 16 * 2**20
_MOST_DIMENSIONS = 32
_BLOCK = 2**20
"""Bytes read and hashed at a time, so that they stay in a core's cache."""

A = TypeVar("A")
B = TypeVar("B")


class PosteriorFile(NamedTuple):
    """What a posterior file holds.

    Attributes:
        state: posterior, prior, fit state, ledger, lineage, counts.
        settings: what determined the run (model, source, seed, ...): plain values.
        digests: SHA-256 per tensor.
        generation: of the server that wrote it; 0 outside a run directory.
    """

    state: ServerState
    settings: Mapping[str, Any]
    digests: Mapping[str, str]
    generation: int = 0


class _Tensor(NamedTuple):
    """Where a tensor stands in a file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Header(NamedTuple):
    description: dict[str, Any]
    tensors: list[_Tensor]


def save(
    path: Path | str,
    state: ServerState,
    settings: Mapping[str, Any],
    disk: Disk = RealDisk(),
    generation: int = 0,
    may_go_on: Callable[[], None] = lambda: None,
) -> None:
    """Write a posterior file; on any failure the file that was there stays.

    Where the name is that of a run directory's posterior, the file that was there is kept as `previous.safetensors`.

    Args:
        path, state, settings: what is written, and where.
        disk: on which disk.
        generation: of the server that writes it; 0 outside a run directory.
        may_go_on: asked before each file takes its place; raises where a newer writer has the directory by now.

    Raises:
        OSError: the disk refuses.
        IntegrityError: the description is over 16 MB, or a tensor is neither boolean, integer nor float.
    """
    path = Path(path)
    temporary, older = (_temporary(path.with_name(name)) for name in (path.name, PREVIOUS_FILE))
    try:
        disk.unlink(temporary)
        with closing(disk.create(temporary)) as file:
            file.write(_parts(path, state, settings, generation), 0)
            reach("S7a")
            file.sync()
        reach("S7b")
        keeps_older = path.name == POSTERIOR_FILE and path.name in disk.names(path.parent)
        if keeps_older:
            disk.unlink(older)
            disk.link(path, older)
        may_go_on()
        disk.replace(temporary, path)
        reach("S7c")
        disk.sync_directory(path.parent)
        if keeps_older:
            may_go_on()
            disk.replace(older, path.with_name(PREVIOUS_FILE))
            disk.sync_directory(path.parent)
        reach("S7d")
    finally:
        disk.unlink(temporary)
        disk.unlink(older)


def load(path: Path | str, disk: Disk = RealDisk()) -> PosteriorFile:
    """Read a posterior file and check every digest.

    Raises:
        IntegrityError: the file is missing, truncated, altered, or not a posterior.
        FormatTooNew: it was written by a newer version.
    """
    path = Path(path)
    with _opened(path, disk) as file:
        description, tensors = _header(path, file)
        read = _in_two_threads(lambda tensor: _read(path, file, tensor), tensors, file.size())
    arrays = {tensor.name: array for tensor, (array, _) in zip(tensors, read, strict=True)}
    digests = {tensor.name: digest for tensor, (_, digest) in zip(tensors, read, strict=True)}
    expected, settings, generation = (description.get(name) for name in ("digests", "settings", "generation"))
    if type(expected) is not dict or type(settings) is not dict or type(generation) is not int:
        raise _incomplete(path, "digests, settings or generation")
    for name in sorted(digests.keys() | expected.keys()):
        if digests.get(name) != expected.get(name):
            raise IntegrityError(f"{path}: tensor {name!r} does not match its SHA-256; restore a copy of the file")
    try:
        state = unpack_server_state(description, arrays)
    except WireError as error:
        raise _incomplete(path, str(error)) from error
    return PosteriorFile(state, settings, digests, generation)


def read_description(path: Path | str, disk: Disk = RealDisk()) -> dict[str, Any]:
    """Everything in a posterior file but the tensors, checked by its own SHA-256: run_id, generation, version,
    num_records, ledger, lineage, settings, digests, and for people counters and cursors (watermarks by source and
    partition). Cheap however large the posterior is.

    Raises:
        IntegrityError, FormatTooNew: as for `load`.
    """
    with _opened(Path(path), disk) as file:
        return _header(Path(path), file).description


def newest(directory: Path | str, disk: Disk = RealDisk()) -> tuple[PosteriorFile, list[str]]:
    """The posterior of a run directory, or the one before where that one is damaged; and a note that says so.

    Raises:
        IntegrityError: neither can be used.
        FormatTooNew: the posterior was written by a newer version.
    """
    path = Path(directory) / POSTERIOR_FILE
    try:
        return load(path, disk), []
    except FormatTooNew:
        raise
    except IntegrityError as error:
        try:
            older = load(path.with_name(PREVIOUS_FILE), disk)
        except IntegrityError:
            raise error from None
        return older, [f"used {PREVIOUS_FILE} (version {older.state.version}) instead: {error}"]


def posterior_path(path: Path) -> Path:
    """The posterior file of a run directory, or the file itself."""
    return path / POSTERIOR_FILE if path.is_dir() else path


def posterior_sha256(natural: NaturalParameters) -> str:
    """SHA-256 of the natural parameters: equal exactly where two posteriors are equal to the bit.

    >>> posterior_sha256(NaturalParameters({"sum": np.zeros(2)}))[:12]
    'bdd01f81e11f'
    """
    digest = hashlib.sha256()
    for name in sorted(natural.arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(natural[name]).data)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


def _parts(path: Path, state: ServerState, settings: Mapping[str, Any], generation: int) -> list[bytes | Array]:
    """The bytes of a file, the tensors not copied."""
    header, arrays = pack_server_state(state)
    stored = {name: storable(name, array) for name, array in arrays.items()}
    tensors = sorted(stored, key=lambda name: (-stored[name].itemsize, name))  # aligned without gaps
    num_bytes = sum(array.nbytes for array in stored.values())
    digests = _in_two_threads(lambda name: _digest(stored[name]), tensors, num_bytes)
    content = {
        "format_version": FORMAT_VERSION,
        "generation": generation,
        **header,
        "counters": {"covered": state.ledger.num_covered(), "set_aside": state.ledger.num_set_aside},
        "cursors": _cursors(state.ledger),
        "settings": settings,
        "digests": dict(zip(tensors, digests, strict=True)),
    }
    text = json.dumps(content)
    metadata = {_KEY: text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    table: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name in tensors:
        array = stored[name]
        offsets = [start, start + array.nbytes]
        table[name] = {"dtype": _NAMES[array.dtype.str], "shape": array.shape, "data_offsets": offsets}
        start = offsets[1]
    encoded = json.dumps(table, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _MOST_HEADER:
        raise IntegrityError(
            f"{path}: its description has {len(encoded):,} bytes, at most {_MOST_HEADER:,} can be read"
        )
    data = [stored[name].reshape(-1).view(np.uint8) for name in tensors]
    return [len(encoded).to_bytes(8, "little") + encoded, *data]


def _cursors(ledger: Ledger) -> dict[str, dict[str, int]]:
    return {source: ledger.cursor(source) for source in sorted({source for source, _ in ledger.runs})}


def _digest(array: Array) -> str:
    digest = _new_digest(array.dtype, array.shape)
    digest.update(array.data)
    return digest.hexdigest()


def _new_digest(dtype: np.dtype[Any], shape: tuple[int, ...]) -> "hashlib._Hash":
    return hashlib.sha256(f"{dtype.str} {shape}\n".encode())


def _in_two_threads(function: Callable[[A], B], items: Iterable[A], num_bytes: int) -> list[B]:
    """`function` of every item; hashing releases the interpreter lock, so large ones take half the time."""
    items = list(items)
    if num_bytes >= 4 * _BLOCK:
        try:
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(function, items))
        except RuntimeError:  # no thread can be started while the interpreter ends; a last save must still be made
            pass
    return list(map(function, items))


@contextmanager
def _opened(path: Path, disk: Disk) -> Iterator[File]:
    try:
        with closing(disk.open(path)) as file:
            yield file
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise IntegrityError(
            f"{path}: no posterior file there. Expected the {POSTERIOR_FILE} of a run directory"
        ) from error
    except OSError as error:
        raise _unreadable(path, str(error)) from error


def _header(path: Path, file: File) -> _Header:
    """Description and table of tensors, checked."""
    length = int.from_bytes(file.read(0, 8), "little")
    if not 2 <= length <= min(_MOST_HEADER, file.size() - 8):
        raise _unreadable(path, f"a header of {length:,} bytes in a file of {file.size():,}")
    try:
        table = json.loads(file.read(8, length))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"its header is not JSON: {type(error).__name__}") from error
    if type(table) is not dict:
        raise _unreadable(path, "its header is JSON of another form")
    description = _description(path, table.pop("__metadata__", None))
    data = position = 8 + length
    tensors = []
    for name, entry in sorted(table.items(), key=_begin):
        tensor = _tensor(name, entry, data)
        if tensor is None or tensor.offset != position:
            raise _unreadable(path, f"its header does not say where tensor {name!r} is")
        tensors.append(tensor)
        position += tensor.num_bytes
    if position != file.size():
        raise _unreadable(path, f"{position:,} bytes expected, it has {file.size():,}")
    return _Header(description, tensors)


def _begin(item: tuple[str, Any]) -> tuple[int, int]:
    """Where a tensor stands, for sorting; what is malformed comes first, and is refused."""
    match item:
        case _, {"data_offsets": [int(start), int(stop)]}:
            return start, stop
    return -1, -1


def _tensor(name: str, entry: object, data: int) -> _Tensor | None:
    """The tensor that an entry of the header describes, if it describes one; tensors begin at byte `data`."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)], **rest} if (
            not rest
            and dtype in _DTYPES
            and len(shape) <= _MOST_DIMENSIONS
            and all(type(length) is int and 0 <= length < 2**63 for length in shape)
        ):
            tensor = _Tensor(name, np.dtype(_DTYPES[dtype]), tuple(shape), data + start)
            return tensor if tensor.num_bytes == stop - start else None
    return None


def _description(path: Path, metadata: object) -> dict[str, Any]:
    match metadata:
        case {"streaming_vb": str(text), "sha256": str(digest)}:
            pass
        case _:
            raise IntegrityError(
                f"{path}: a safetensors file, but not a streaming_vb posterior (no {_KEY} description)"
            )
    if hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() != digest:
        raise IntegrityError(f"{path}: the description does not match its SHA-256; restore a copy of the file")
    try:
        content = json.loads(text)
        version = content["format_version"]
        if version > FORMAT_VERSION:
            raise FormatTooNew(
                f"{path}: written in format {version}, this version reads up to {FORMAT_VERSION}. "
                "Type pip install -U streaming-vb"
            )
        return _from_format_1(content) if version == 1 else dict(content)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise _incomplete(path, f"{type(error).__name__}: {error}") from error


def _from_format_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1 knew one source per ledger, and neither lineage nor generation."""
    plain = content["ledger"]
    source = plain["source"]
    aside = [
        {
            "interval": {"source": source, **{name: entry[name] for name in ("partition", "start", "stop")}},
            "num_records": entry["num_records"],
            "reason": entry["reason"],
        }
        for entry in plain["set_aside"]
    ]
    runs = [[source, partition, pairs] for partition, pairs in plain["runs"].items()]
    return {**content, "generation": 0, "lineage": [], "ledger": {"runs": runs, "set_aside": aside}}


def _read(path: Path, file: File, tensor: _Tensor) -> tuple[Array, str]:
    """A tensor and its digest; each block is hashed while it is in the cache."""
    values = np.empty(tensor.num_bytes, np.uint8)
    digest = _new_digest(tensor.dtype, tensor.shape)
    for start in range(0, tensor.num_bytes, _BLOCK):
        size = min(_BLOCK, tensor.num_bytes - start)
        block = file.read(tensor.offset + start, size)
        if len(block) < size:
            raise _unreadable(path, f"it ends within tensor {tensor.name!r}")
        digest.update(block)
        values[start : start + size] = np.frombuffer(block, np.uint8)
    try:
        return values.view(tensor.dtype).reshape(tensor.shape), digest.hexdigest()
    except ValueError as error:  # no values, and dimensions whose product is too large for NumPy
        raise _unreadable(path, f"tensor {tensor.name!r} has shape {tensor.shape}") from error


def _unreadable(path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: not a readable safetensors file ({why}). It is truncated or of another kind; restore a copy, or fit "
        "again into a new --run-dir"
    )


def _incomplete(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: the description lacks something or is of another form ({what}); restore a copy of the file"
    )
