"""Damaged tables; what a user sees of whole ones is tested through the command line."""

import io
from pathlib import Path

import numpy as np
import pytest

from streaming_vb.errors import SourceError, StreamingVBError
from streaming_vb.sources.files import read_table, require_scorable

TABLE = np.arange(12.0).reshape(4, 3)


def npy(array: np.ndarray = TABLE) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def in_directory(archive: bytes, offset: int, value: int) -> bytes:
    """An archive with one byte of its directory's entry changed."""
    at = archive.rindex(b"PK\1\2") + offset
    return archive[:at] + bytes([value]) + archive[at + 1 :]


DAMAGED = {
    "header.npy": npy().replace(b"), }", b"    "),
    "archive.npy": npz(x=TABLE),
    "huge.npy": npy().replace(b"(4, 3)", b"(4,9**9)"),
    "objects.npy": npy(np.array([[{}]])),
    "cut-out.npz": npz(x=TABLE)[300:],
    "encrypted.npz": in_directory(npz(x=TABLE), 8, 1),
    "method.npz": in_directory(npz(x=TABLE), 10, 99),
    "field.csv": b"a,b\n1," + b"1" * 200_000,
    "many-dimensions.idx": b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\7",
    "no-values.idx": b"\0\0\x08\x02" + b"\0\0\0\0" + b"\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(SourceError, match=name) as raised:
        read_table(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("names", ["a,b", '"a\nb",c'])
def test_a_value_beyond_float32_is_refused_in_one_line(names: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"{names}\n1e300,2\n")
    with pytest.raises(StreamingVBError, match=r"record 0 column a.* is inf") as raised:
        require_scorable(read_table(path), "normal")
    assert "\n" not in str(raised.value)
