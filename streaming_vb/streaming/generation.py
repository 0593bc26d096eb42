"""One writer per run directory: a lock that dies with its process, and a number that rises with every start.

The lock keeps a second process out while the first lives. Where locks cannot be trusted (network disks), or were taken
away, the number decides: a writer looks at it after it has synced and before it acknowledges, so what an overtaken one
still writes is never told to anybody.
"""

import os
import re
import time
import zlib
from contextlib import closing, suppress
from pathlib import Path

from streaming_vb.errors import IntegrityError, RunInUse, StaleWriter
from streaming_vb.failpoints import reach
from streaming_vb.streaming.disk import Disk, File

_PATIENCE = 2.0
"""Seconds to wait for the lock: a killed writer may take a moment to be gone."""
_CLAIM = re.compile(r"\.generation-\d+\.tmp")


class Generation:
    """The right to write a run directory, until a newer generation takes it.

    >>> import tempfile
    >>> from streaming_vb.streaming.disk import RealDisk
    >>> with tempfile.TemporaryDirectory() as name:
    ...     first = Generation.take(RealDisk(), Path(name))
    ...     first.release()
    ...     Generation.take(RealDisk(), Path(name)).number
    2
    """

    def __init__(self, disk: Disk, directory: Path, lock: File, number: int) -> None:
        self._disk, self._directory, self._lock = disk, directory, lock
        self.number = number

    @classmethod
    def take(cls, disk: Disk, directory: Path, *, above: int = 0) -> "Generation":
        """Lock a directory that exists and raise its number, durably.

        Args:
            above: a number that was used; the new one is larger, whatever the file says.

        Raises:
            RunInUse: another process holds the lock.
            IntegrityError: the file with the number is corrupt.
            StaleWriter: another process took the directory at the same moment.
        """
        lock = _locked(disk, directory)
        try:
            number = _claimed(disk, directory, above)
            taken = cls(disk, directory, lock, number)
            disk.replace(_claim(directory, number), directory / "generation")
            disk.sync_directory(directory)
            for name in disk.names(directory):  # of processes that died here, or sleep and must not rename any more
                if _CLAIM.fullmatch(name):
                    disk.unlink(directory / name)
            taken.check()
        except BaseException:
            lock.close()
            raise
        reach("D2")
        return taken

    def check(self) -> None:
        """Raise StaleWriter unless this is still the newest generation."""
        found = _read(self._disk, self._directory)
        if found != self.number:
            raise StaleWriter(
                f"{self._directory}: generation {found or 'unknown'} writes here now, this process is generation "
                f"{self.number}. Nothing that it writes counts any more; let the newer process go on"
            )

    def release(self) -> None:
        """Let the next process in."""
        self._lock.close()


def _locked(disk: Disk, directory: Path) -> File:
    path = directory / "lock"
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            lock = disk.lock(path)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            raise RunInUse(
                f"{directory}: process {_holder(disk, path)} writes this run directory. "
                "Wait until it is done, stop it, or choose another --run-dir"
            ) from None
    with suppress(OSError):  # for people: a full disk must not keep a run from resuming
        lock.write([f"{os.getpid():<20}\n".encode()], 0)
    return lock


def _holder(disk: Disk, path: Path) -> str:
    file = disk.open(path)
    try:
        return file.read(0, 20).decode(errors="replace").strip() or "unknown"
    finally:
        file.close()


def _read(disk: Disk, directory: Path) -> int | None:
    path = directory / "generation"
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        content = file.read(0, 64)
    finally:
        file.close()
    number = content.split(b" ")[0]
    if not number.isdigit() or content != _line(int(number)):
        raise IntegrityError(
            f"{path}: it does not hold a number with its checksum. Make sure that no process writes {directory}, "
            "then remove the file"
        )
    return int(number)


def _claimed(disk: Disk, directory: Path, above: int) -> int:
    """A number for this process alone, written to a file that only waits for its name.

    Locks may be lost, so another process may do the same now. To create a file under the number is to claim it; who
    claimed a number that was given meanwhile tries the next one.
    """
    number = max(_read(disk, directory) or 0, above) + 1
    while True:
        claim = _claim(directory, number)
        try:
            file = disk.create(claim)
        except FileExistsError:
            number += 1
            continue
        with closing(file):
            given = _read(disk, directory) or 0
            if given < number:
                file.write([_line(number)], 0)
                file.sync()
                return number
        disk.unlink(claim)
        number = given + 1


def _claim(directory: Path, number: int) -> Path:
    return directory / f".generation-{number}.tmp"


def _line(number: int) -> bytes:
    return b"%d %08x\n" % (number, zlib.crc32(b"%d" % number))
