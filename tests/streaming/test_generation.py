"""One writer per run directory, and an overtaken one notices."""

import errno
import os
import signal
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk

from streaming_vb.errors import IntegrityError, RunInUse, StaleWriter
from streaming_vb.streaming import generation
from streaming_vb.streaming.disk import RealDisk
from streaming_vb.streaming.generation import Generation


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_PATIENCE", 0.0)


def take(directory: Path, above: int = 0) -> Generation:
    return Generation.take(RealDisk(), directory, above=above)


def take_over(directory: Path) -> Generation:
    """Take a directory whose lock is still held, as on a network disk that has forgotten it."""
    (directory / "lock").unlink()
    return take(directory)


def test_every_start_raises_the_number(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        taken = take(tmp_path)
        assert taken.number == number
        taken.check()
        taken.release()
    assert take(tmp_path, above=10).number == 11


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    held = take(tmp_path)
    with pytest.raises(RunInUse, match=f"process {os.getpid()} writes this run directory"):
        take(tmp_path)
    held.check()
    held.release()
    assert take(tmp_path).number == 2  # the refused one raised nothing


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        held = take(tmp_path)
        os.write(told, b"x")
        signal.pause()
        os._exit(held.number)
    os.read(ready, 1)
    with pytest.raises(RunInUse, match=f"process {child} "):
        take(tmp_path)
    monkeypatch.setattr(generation, "_PATIENCE", 10.0)
    os.kill(child, signal.SIGKILL)
    assert Generation.take(RealDisk(), tmp_path).number == 2  # waits for it to be gone
    os.waitpid(child, 0)
    os.close(ready)
    os.close(told)


def test_an_overtaken_writer_notices(tmp_path: Path) -> None:
    first = take(tmp_path)
    second = take_over(tmp_path)
    with pytest.raises(StaleWriter, match="generation 2 writes here now, this process is generation 1"):
        first.check()
    second.check()


def test_a_writer_whose_directory_is_gone_notices(tmp_path: Path) -> None:
    taken = take(tmp_path)
    (tmp_path / "generation").unlink()
    with pytest.raises(StaleWriter):
        taken.check()


def test_no_flipped_bit_gives_another_number(tmp_path: Path) -> None:
    take(tmp_path, above=41).release()
    whole = (tmp_path / "generation").read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "generation").write_bytes(flipped)
        with pytest.raises(IntegrityError, match="does not hold a number with its checksum"):
            take(tmp_path)
    (tmp_path / "generation").write_bytes(whole)
    assert take(tmp_path).number == 43


@pytest.mark.parametrize("operation", ["create", "write", "sync", "replace", "sync_directory"])
def test_where_the_disk_refuses_nothing_is_taken(operation: str, tmp_path: Path) -> None:
    take(tmp_path).release()
    disk = FaultyDisk()
    disk.fail(operation, number=errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        Generation.take(disk, tmp_path)
    assert take(tmp_path).number in (2, 3)  # the number may have been raised; the lock is free


def test_a_full_disk_keeps_nobody_from_being_told_who_writes(tmp_path: Path) -> None:
    held = take(tmp_path)
    (tmp_path / "lock").write_bytes(b"")
    with pytest.raises(RunInUse, match="process unknown"):
        take(tmp_path)
    held.release()


def test_of_two_that_open_at_once_one_gets_the_directory(tmp_path: Path) -> None:
    """The lock is lost while a process is about to rename its number; another takes the directory meanwhile."""
    winners: list[Generation] = []

    class Sleeps(RealDisk):
        def replace(self, source: Path, target: Path) -> None:
            winners.append(take_over(tmp_path))
            super().replace(source, target)

    with pytest.raises(FileNotFoundError):
        Generation.take(Sleeps(), tmp_path)
    winners[0].check()
    assert winners[0].number == 2
    winners[0].release()
    assert take(tmp_path).number == 3
