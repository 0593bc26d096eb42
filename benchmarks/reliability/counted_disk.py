"""The disk of this machine, which does harm at the n-th operation: to try every point at which persistence can stop."""

import errno
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streaming_vb.streaming.disk import Buffer, File, RealDisk

FAULTS = ("kill before", "kill after", "ENOSPC", "EIO")
WRITE_FAULTS = (*FAULTS, "kill within", "ENOSPC within", "EIO within", "full from here on")
"""Within: half of the bytes are written."""


def faults(operation: str) -> tuple[str, ...]:
    """What can be done to an operation."""
    return WRITE_FAULTS if operation == "write" else FAULTS


class CountedDisk(RealDisk):
    """Counts every operation that changes or opens something.

    Args:
        at: number of the operation that a fault befalls, from 0.
        fault: one of `faults`; none only counts.

    Attributes:
        operations: name of every operation so far.
    """

    def __init__(self, at: int = -1, fault: str = "") -> None:
        self._at, self._fault = at, fault
        self.operations: list[str] = []

    def create(self, path: Path) -> File:
        return self.do("create", lambda: _CountedFile(self, RealDisk.create(self, path)))

    def open(self, path: Path) -> File:
        return self.do("open", lambda: _CountedFile(self, RealDisk.open(self, path)))

    def replace(self, source: Path, target: Path) -> None:
        self.do("replace", lambda: RealDisk.replace(self, source, target))

    def link(self, source: Path, target: Path) -> None:
        self.do("link", lambda: RealDisk.link(self, source, target))

    def unlink(self, path: Path) -> None:
        self.do("unlink", lambda: RealDisk.unlink(self, path))

    def sync_directory(self, directory: Path) -> None:
        self.do("sync_directory", lambda: RealDisk.sync_directory(self, directory))

    def lock(self, path: Path) -> File:
        return self.do("lock", lambda: RealDisk.lock(self, path))

    def do(self, name: str, operation: Callable[[], Any], half: Callable[[], None] | None = None) -> Any:
        """Carry an operation out, with the fault if it is this one's turn."""
        number = len(self.operations)
        self.operations.append(name)
        is_full = self._fault == "full from here on" and number >= self._at and name in ("write", "create")
        if is_full:
            _refuse(errno.ENOSPC)
        if number != self._at:
            return operation()
        if self._fault.endswith("within") and half is not None:
            half()
        if self._fault.startswith("ENOSPC"):
            _refuse(errno.ENOSPC)
        if self._fault.startswith("EIO"):
            _refuse(errno.EIO)
        if self._fault in ("kill before", "kill within"):
            _kill()
        done = operation()
        if self._fault == "kill after":
            _kill()
        return done


class _CountedFile:
    def __init__(self, disk: CountedDisk, file: File) -> None:
        self._disk, self._file = disk, file

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        content = b"".join(parts)
        half = content[: len(content) // 2]
        self._disk.do("write", lambda: self._file.write(parts, offset), lambda: self._file.write([half], offset))

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def size(self) -> int:
        return self._file.size()

    def sync(self) -> None:
        self._disk.do("sync", self._file.sync)

    def close(self) -> None:
        self._file.close()


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
