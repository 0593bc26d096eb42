"""Tables from files: IDX (as MNIST ships it), .npy, .npz and .csv with a header, each plain or .gz.

A table is one row per record; images are flattened. Nothing here unpickles: an .npy file of Python objects is refused.
"""

import csv
import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streaming_vb.errors import DataError, SourceError
from streaming_vb.types import Array

_IDX_FORMATS = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
"""Third byte of an IDX file, by LeCun's description of the format."""
_GREATEST_COUNT = 2**24 - 1
"""Up to here float32, in which records travel to a model, holds every whole number."""


class Table(NamedTuple):
    """Records of a file.

    Attributes:
        x: [n, D], bytes (0 to 255) or floating point.
        columns: D names.
        shape: of one record before it was flattened.
        where: the file, for messages.
    """

    x: Array
    columns: tuple[str, ...]
    shape: tuple[int, ...]
    where: str


def read_table(path: Path) -> Table:
    """The table in a file, by its name's ending.

    Raises:
        SourceError: the file is missing, truncated, or of another kind.
        DataError: a value that is not a number.
    """
    readers: dict[str, Callable[[Path], Table]] = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}
    name = path.name.removesuffix(".gz")
    if not path.is_file():
        raise SourceError(
            f"{path}: no such file. Expected digits, mnist, fashion-mnist, or a path to an IDX, .npy, .npz or .csv file"
        )
    return readers.get(Path(name).suffix, _read_idx_table)(path)


def read_idx(path: Path) -> Array:
    """The array in an IDX file, of any number of dimensions.

    Raises:
        SourceError: not an IDX file, or its length is not the one that its header states.
    """
    data = _read_bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_FORMATS:
        raise SourceError(
            f"{path}: not an IDX file (it starts with {data[:4].hex() or 'nothing'}), nor .npy, .npz or .csv"
        )
    kind, dimensions = np.dtype(_IDX_FORMATS[data[2]]), data[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    expected = start + math.prod(shape) * kind.itemsize
    if len(data) != expected:
        raise SourceError(
            f"{path}: truncated or damaged: the header states shape {shape}, which takes {expected:,} bytes; "
            f"the file holds {len(data):,}. Get the file again"
        )
    try:
        flat: Array = np.frombuffer(data, kind, offset=start)
        return flat.reshape(shape)
    except ValueError as error:
        raise SourceError(f"{path}: damaged: no array has the shape {shape} that its header states") from error


def require_scorable(table: Table, likelihood: str) -> None:
    """Check every value before training.

    Raises:
        DataError: a value is not finite, or out of the likelihood's range; the record and the column are named.
    """
    if table.x.dtype == np.uint8 and not takes_whole_numbers(likelihood):
        _require_more_than_ones(table)
        return
    _require(table, np.isfinite(table.x), "every value must be finite: impute it, or drop the record")
    good, needs = _scorable(table.x, likelihood)
    if not good.all():
        span = f"the table holds {table.x.min():g} to {table.x.max():g}"
        what_to_do = f"Type --likelihood {_suited(table.x)}, or change the values"
        _require(table, good, f"the {likelihood} likelihood needs {needs}, {span}. {what_to_do}")


def scorable_rows(table: Table, likelihood: str) -> Array:
    """Which records [n] of a table can be scored."""
    if table.x.dtype == np.uint8 and not takes_whole_numbers(likelihood):
        return np.ones(len(table.x), bool)
    good = np.isfinite(table.x) & _scorable(table.x, likelihood)[0]
    return np.asarray(good.all(axis=1))


def takes_whole_numbers(likelihood: str) -> bool:
    """Whether a likelihood scores whole numbers as they are stored; for the others bytes are divided by 255.

    >>> takes_whole_numbers("categorical:17"), takes_whole_numbers("normal")
    (True, False)
    """
    return likelihood.partition(":")[0] in ("poisson", "categorical")


def _require_more_than_ones(table: Table) -> None:
    """Zeros and ones that were stored as bytes would be read as 0 and 1/255."""
    if table.x.max() == 1:
        what_to_do = "Save zeros and ones as floating point: x.astype('float32')"
        _require(table, table.x == 0, f"bytes are divided by 255, and none here is above 1. {what_to_do}")


def _scorable(x: Array, likelihood: str) -> tuple[Array, str]:
    """Where finite values [n, D] can be scored, and what they should be, in words."""
    name, _, num_categories = likelihood.partition(":")
    if name == "poisson":
        return _is_whole(x), f"whole numbers 0 to {_GREATEST_COUNT:,}"
    if name == "categorical":
        greatest = int(num_categories) - 1
        return _is_whole(x) & (x <= greatest), f"whole numbers 0 to {greatest}"
    if name in ("bernoulli", "continuous-bernoulli"):
        return (x >= 0) & (x <= 1), "values in [0, 1]"
    return np.ones(x.shape, bool), "finite values"


def _is_whole(x: Array) -> Array:
    """Where x [n, D] holds 0, 1, 2, ... and float32 holds the same."""
    whole: Array = (x >= 0) & (x <= _GREATEST_COUNT) & (x == np.rint(x))
    return whole


def _suited(x: Array) -> str:
    """What to type for finite values [n, D]."""
    if _is_whole(x).all():
        return f"poisson or categorical:{int(x.max()) + 1}"
    return "continuous-bernoulli" if x.min() >= 0 and x.max() <= 1 else "normal"


def _require(table: Table, good: Array, what_to_do: str) -> None:
    if not good.all():
        row, column = divmod(int(good.argmin()), table.x.shape[1])
        raise DataError(
            f"{table.where}: record {row} column {table.columns[column]} is {table.x[row, column]:g}; {what_to_do}"
        )


def _read_idx_table(path: Path) -> Table:
    return _table(read_idx(path), path)


def _read_npy(path: Path) -> Table:
    return _table(_numpy_array(path, _read_bytes(path)), path)


def _read_npz(path: Path) -> Table:
    try:
        with zipfile.ZipFile(io.BytesIO(_read_bytes(path))) as archive:
            members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    except Exception as error:  # damaged archives raise what each of the parsers involved makes of them
        raise SourceError(
            f"{path}: not a readable .npz file ({_one_line(error)}). Write it again with numpy.savez"
        ) from error
    if len(members) != 1 and "x" not in members:
        raise SourceError(
            f"{path}: expected one array, or one named x; it holds {', '.join(sorted(members)) or 'none'}"
        )
    return _table(_numpy_array(path, members["x"] if "x" in members else next(iter(members.values()))), path)


def _numpy_array(path: Path, data: bytes) -> Array:
    try:
        array: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # its header is Python's syntax, and raises what the tokenizer makes of it
        raise SourceError(
            f"{path}: not a readable array of numbers ({_one_line(error)}). Write it again with numpy.save"
        ) from error
    return array


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_csv(path: Path) -> Table:
    try:
        text = _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text at byte {error.start}. Save the table as UTF-8") from error
    lines = _lines(path, text)
    _, names = next(lines, (1, []))
    columns = tuple(" ".join(name.split()) for name in names)  # a message has one line
    if not columns:
        raise SourceError(f"{path}: empty. Expected a header line and one record per line")
    if all(_is_number(name) for name in columns):
        raise SourceError(f"{path}: line 1 holds numbers, expected a header. Put a line of column names first")
    rows = [_parse_line(path, number, columns, cells) for number, cells in lines if cells]
    return _table(np.array(rows, dtype=np.float64).reshape(len(rows), len(columns)), path, columns)


def _lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line."""
    lines = csv.reader(io.StringIO(text))
    try:
        for cells in lines:
            yield lines.line_num, cells
    except csv.Error as error:
        raise SourceError(f"{path}:{lines.line_num}: not a line of a table ({error}). Mend the line") from error


def _parse_line(path: Path, line: int, columns: tuple[str, ...], cells: list[str]) -> list[float]:
    if len(cells) != len(columns):
        raise DataError(f"{path}:{line}: {len(cells)} values, the header names {len(columns)} columns. Mend the line")
    numbers = []
    for name, cell in zip(columns, cells, strict=True):
        try:
            numbers.append(float(cell))
        except ValueError:
            raise DataError(
                f"{path}:{line}: column {name} holds {cell!r}, expected a number. Encode or drop the column"
            ) from None
    return numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _table(array: Array, path: Path, columns: tuple[str, ...] | None = None) -> Table:
    if array.dtype.kind not in "buif" or array.ndim < 2:
        raise SourceError(
            f"{path}: expected numbers with one row per record, got {array.dtype} of shape {array.shape}. "
            "Save an array of shape [records, columns]"
        )
    if array.size == 0:
        raise SourceError(f"{path}: no records (shape {array.shape})")
    flat = array.reshape(len(array), -1)
    if flat.dtype != np.uint8:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            flat = flat.astype(np.float32)
    names = columns or tuple(str(i) for i in range(flat.shape[1]))
    return Table(np.ascontiguousarray(flat), names, array.shape[1:], str(path))


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read ({error}): truncated or damaged. Get the file again") from error
