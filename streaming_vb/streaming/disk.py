"""The few things that persistence asks of a disk, so that a simulated one can stand in for it and lose what was not
synced.

Everything that the journal, the snapshots and the generation write goes through here. A write is durable once its file
was synced; a name (created, replaced, linked, removed) once its directory was.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from streaming_vb.types import Array

Buffer = bytes | bytearray | memoryview | Array
_MOST_PARTS = 512
"""Buffers per system call; the limit is 1,024 on Linux."""
_LARGE = 2**20
"""Bytes of a write that take the medium longer than the call that says so."""


class File(Protocol):
    """An open file. Offsets and sizes are bytes."""

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write the parts one after the other from an offset on; where it raises OSError, a part may be written."""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), fewer where the file ends."""

    def size(self) -> int:
        """Bytes in the file."""

    def sync(self) -> None:
        """Make what was written durable."""

    def close(self) -> None:
        """Release the file, and its lock."""


class Disk(Protocol):
    """Files by path."""

    def make_directory(self, directory: Path) -> None:
        """A directory and its parents; no error where it exists."""

    def names(self, directory: Path) -> list[str]:
        """Names in a directory, sorted; empty where there is none."""

    def create(self, path: Path) -> File:
        """A new file, open for reading and writing. Raises FileExistsError."""

    def open(self, path: Path) -> File:
        """An existing file, open for reading. Raises FileNotFoundError."""

    def replace(self, source: Path, target: Path) -> None:
        """Rename, over what is there."""

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file. Raises FileExistsError."""

    def unlink(self, path: Path) -> None:
        """Remove a name; no error where there is none."""

    def sync_directory(self, directory: Path) -> None:
        """Make the names in a directory durable."""

    def lock(self, path: Path) -> File:
        """A file that no other process holds; created where it is missing. Raises BlockingIOError."""


class RealDisk:
    """The disk of this machine.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     file = RealDisk().create(Path(name) / "a")
    ...     file.write([b"two ", b"parts"], 0)
    ...     file.read(4, 100)
    b'parts'
    """

    def make_directory(self, directory: Path) -> None:
        if directory.is_dir():
            return
        directory.mkdir(parents=True, exist_ok=True)
        self.sync_directory(directory.parent)

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory)) if directory.is_dir() else []

    def create(self, path: Path) -> File:
        return _RealFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))

    def open(self, path: Path) -> File:
        return _RealFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: Path) -> File:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return _RealFile(descriptor)


class _RealFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        begin = offset
        waiting = [view for view in map(_bytes, parts) if view.nbytes]
        while waiting:
            written = os.pwritev(self._descriptor, waiting[:_MOST_PARTS], offset)
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset += written
            while waiting and written >= waiting[0].nbytes:
                written -= waiting.pop(0).nbytes
            if written:
                waiting[0] = waiting[0][written:]
        if offset - begin >= _LARGE:  # the kernel begins to write at once, so that a sync a little later waits for less
            os.posix_fadvise(self._descriptor, begin, offset - begin, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, size: int) -> bytes:
        found = os.pread(self._descriptor, size, offset)  # whole, in one call, but for files over 2 GB
        while len(found) < size:
            part = os.pread(self._descriptor, size - len(found), offset + len(found))
            if not part:
                break
            found += part
        return found

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()  # a run that was opened and never iterated lets go of its lock


def _bytes(part: Buffer) -> memoryview:
    """A buffer as a flat view of its bytes."""
    if isinstance(part, np.ndarray):
        return part.reshape(-1).view(np.uint8).data  # memoryview.cast refuses arrays without values
    return memoryview(part).cast("B")
