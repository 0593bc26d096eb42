"""The disk of this machine keeps the contract that persistence, and the simulated disk, rely on."""

import os
from pathlib import Path

import numpy as np
import pytest

from streaming_vb.streaming.disk import RealDisk


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    file = RealDisk().create(tmp_path / "a")
    parts = [b"", b"ab", bytearray(b"c"), memoryview(b"de"), np.arange(3, dtype=np.int16), np.array(7.0), np.zeros(0)]
    file.write(parts, 4)
    assert file.read(0, 100) == b"\0\0\0\0abcde" + np.arange(3, dtype=np.int16).tobytes() + np.array(7.0).tobytes()
    assert file.size() == 4 + 5 + 6 + 8


def test_more_parts_than_a_system_call_takes(tmp_path: Path) -> None:
    file = RealDisk().create(tmp_path / "a")
    parts = [bytes([n % 256]) * (n % 5) for n in range(3000)]
    file.write(parts, 0)
    assert file.read(0, 10**6) == b"".join(parts)


def test_a_write_that_the_system_cuts_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, offset: whole(fd, [b"".join(parts)[:7]], offset))
    file = RealDisk().create(tmp_path / "a")
    file.write([b"0123456", b"789", b"x" * 30], 0)
    assert file.read(0, 100) == b"0123456789" + b"x" * 30


def test_a_read_that_the_system_cuts_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RealDisk().create(tmp_path / "a")
    file.write([b"0123456789"], 0)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, min(size, 3), offset))
    assert file.read(1, 8) == b"12345678"
    assert file.read(5, 80) == b"56789"


def test_names(tmp_path: Path) -> None:
    disk = RealDisk()
    assert disk.names(tmp_path / "none") == []
    disk.make_directory(tmp_path / "a" / "b")
    disk.make_directory(tmp_path / "a" / "b")
    disk.create(tmp_path / "a" / "y").close()
    disk.link(tmp_path / "a" / "y", tmp_path / "a" / "x")
    assert disk.names(tmp_path / "a") == ["b", "x", "y"]
    disk.replace(tmp_path / "a" / "y", tmp_path / "a" / "z")
    disk.unlink(tmp_path / "a" / "x")
    disk.unlink(tmp_path / "a" / "x")
    disk.sync_directory(tmp_path / "a")
    assert disk.names(tmp_path / "a") == ["b", "z"]


def test_create_and_link_overwrite_nothing_and_open_creates_nothing(tmp_path: Path) -> None:
    disk = RealDisk()
    disk.create(tmp_path / "a").close()
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "a")
    with pytest.raises(FileExistsError):
        disk.link(tmp_path / "a", tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        disk.open(tmp_path / "b")


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    disk = RealDisk()
    lock = disk.lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        disk.lock(tmp_path / "lock")
    lock.close()
    lock.close()
    disk.lock(tmp_path / "lock").close()


def test_what_others_may_read_is_up_to_the_group(tmp_path: Path) -> None:
    RealDisk().create(tmp_path / "a").close()
    assert (tmp_path / "a").stat().st_mode & 0o007 == 0
