"""The real disk, with one fault at a time: for tests of what persistence does when the disk refuses."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from streaming_vb.streaming.disk import Buffer, File, RealDisk


class FaultyDisk(RealDisk):
    """Fails operations on files whose name contains a text, as often as asked; a write that fails writes a half."""

    def __init__(self) -> None:
        self._operation, self._name, self._errno, self._times = "", "", 0, 0

    def fail(self, operation: str, name: str = "", number: int = errno.ENOSPC, times: int = 1) -> None:
        """Let the next operations of a kind fail."""
        self._operation, self._name, self._errno, self._times = operation, name, number, times

    def is_due(self, operation: str, path: Path) -> bool:
        if self._times == 0 or operation != self._operation or self._name not in path.name:
            return False
        self._times -= 1
        return True

    def check(self, operation: str, path: Path) -> None:
        if self.is_due(operation, path):
            self.refuse()

    def refuse(self) -> None:
        raise OSError(self._errno, os.strerror(self._errno))

    def create(self, path: Path) -> File:
        self.check("create", path)
        return _FaultyFile(self, path, super().create(path))

    def open(self, path: Path) -> File:
        self.check("open", path)
        return super().open(path)

    def replace(self, source: Path, target: Path) -> None:
        self.check("replace", target)
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self.check("unlink", path)
        super().unlink(path)

    def sync_directory(self, directory: Path) -> None:
        self.check("sync_directory", directory)
        super().sync_directory(directory)


class _FaultyFile:
    def __init__(self, disk: FaultyDisk, path: Path, file: File) -> None:
        self._disk, self._path, self._file = disk, path, file

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        if not self._disk.is_due("write", self._path):
            self._file.write(parts, offset)
            return
        content = b"".join(memoryview(part).cast("B") for part in parts)
        self._file.write([content[: len(content) // 2]], offset)
        self._disk.refuse()

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def size(self) -> int:
        return self._file.size()

    def sync(self) -> None:
        self._disk.check("sync", self._path)
        self._file.sync()

    def close(self) -> None:
        self._file.close()
