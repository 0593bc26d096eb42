"""A disk that behaves as badly as a disk may: what was not synced is lost, kept or torn when the power goes, names that
were not synced with their directory come and go one by one, and a sync that failed says "clean" the next time.

One `SimulatedDisk` is the medium; every process has its own view of it (`process`), which is its `Disk`. A process that
dies loses its locks and nothing else; its handles are of no use to anybody. A process that is paused keeps its handles
and writes on when it wakes.
"""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from streaming_vb.streaming.disk import Buffer, File

CHANGES = ("write", "sync", "create", "replace", "link", "unlink", "sync_directory")
"""Operations that change something: where a fault is worth the most."""


class ProcessDied(BaseException):
    """The process that runs this code is dead. No handler of the code under test may catch it."""


class _Node:
    """The content of a file: as its readers see it, and as the medium holds it."""

    def __init__(self) -> None:
        self.volatile = bytearray()
        self.durable = bytearray()
        self.unsynced: set[int] = set()


class _Directory:
    """Names, as processes see them and as the medium holds them, with what happened in between, by name in order."""

    def __init__(self) -> None:
        self.volatile: dict[str, _Node] = {}
        self.durable: dict[str, _Node] = {}
        self.unsynced: dict[str, list[_Node | None]] = {}

    def set(self, name: str, node: _Node | None) -> None:
        if node is None:
            self.volatile.pop(name, None)
        else:
            self.volatile[name] = node
        self.unsynced.setdefault(name, []).append(node)


Interrupt = Callable[[str, str, Path], str]
"""(process, operation, path) -> "" to go on, "full" (ENOSPC), "error" (EIO), or "kill"; a pause happens inside it."""


class SimulatedDisk:
    """The medium.

    Args:
        random: decides what survives.
        unit: bytes that are written whole or not at all.
        lies: a sync that failed drops pages, and the next one does not know; else the pages stay to be written.

    >>> disk = SimulatedDisk(Random(0))
    >>> here = disk.process("a")
    >>> here.make_directory(Path("run"))
    >>> file = here.create(Path("run/x"))
    >>> file.write([b"text"], 0)
    >>> file.sync()
    >>> disk.cut_power()  # the name was not synced
    >>> disk.process("b").names(Path("run")) in ([], ["x"])
    True
    """

    def __init__(self, random: Random, unit: int = 512, lies: bool = True) -> None:
        self.random, self.unit, self.lies = random, unit, lies
        self.directories: dict[Path, _Directory] = {}
        self.locks: dict[_Node, str] = {}
        self.dead: set[str] = set()
        self.interrupt: Interrupt = lambda process, operation, path: ""

    def process(self, name: str) -> "ProcessDisk":
        """The disk as a new process sees it."""
        return ProcessDisk(self, name)

    def kill(self, process: str) -> None:
        """A process dies; the system keeps what it wrote."""
        self.dead.add(process)
        self.steal_locks(process)

    def steal_locks(self, process: str) -> None:
        """A process loses its locks and does not know (a lock server that gave it up)."""
        self.locks = {node: owner for node, owner in self.locks.items() if owner != process}

    def cut_power(self) -> None:
        """Everything that was not synced is kept or lost, unit by unit and name by name. Kill the processes as well."""
        self.locks = {}
        for directory in self.directories.values():
            for name, states in directory.unsynced.items():
                kept = self.random.randint(0, len(states))
                node = states[kept - 1] if kept else directory.durable.get(name)
                if node is None:
                    directory.durable.pop(name, None)
                else:
                    directory.durable[name] = node
            directory.unsynced = {}
            directory.volatile = dict(directory.durable)
            for node in dict.fromkeys(directory.durable.values()):
                self._write_back(node, share=self.random.choice((0.0, 0.5, 0.5, 1.0)))
                node.unsynced = set()
                node.volatile = bytearray(node.durable)

    def _write_back(self, node: _Node, share: float) -> None:
        """Some of the units not synced reach the medium."""
        for unit in sorted(node.unsynced):
            if share == 1.0 or self.random.random() < share:
                start, stop = unit * self.unit, min((unit + 1) * self.unit, len(node.volatile))
                if len(node.durable) < stop:
                    node.durable.extend(bytes(stop - len(node.durable)))
                node.durable[start:stop] = node.volatile[start:stop]


class ProcessDisk:
    """The disk as one process sees it: a `Disk`."""

    def __init__(self, medium: SimulatedDisk, process: str) -> None:
        self._medium, self.process = medium, process

    def make_directory(self, directory: Path) -> None:
        """Directories are durable at once (`RealDisk` syncs the parent)."""
        self.begin("make_directory", directory)
        self._medium.directories.setdefault(directory, _Directory())

    def names(self, directory: Path) -> list[str]:
        self.begin("names", directory)
        found = self._medium.directories.get(directory)
        return sorted(found.volatile) if found else []

    def create(self, path: Path) -> File:
        self.begin("create", path)
        directory = self._directory(path)
        if path.name in directory.volatile:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        node = _Node()
        directory.set(path.name, node)
        return _File(self, self._medium, node, path)

    def open(self, path: Path) -> File:
        self.begin("open", path)
        return _File(self, self._medium, self._node(path), path)

    def replace(self, source: Path, target: Path) -> None:
        self.begin("replace", target)
        node = self._node(source)
        self._directory(target).set(target.name, node)
        self._directory(source).set(source.name, None)

    def link(self, source: Path, target: Path) -> None:
        self.begin("link", target)
        node = self._node(source)
        if target.name in self._directory(target).volatile:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        self._directory(target).set(target.name, node)

    def unlink(self, path: Path) -> None:
        self.begin("unlink", path)
        directory = self._directory(path)
        if path.name in directory.volatile:
            directory.set(path.name, None)

    def sync_directory(self, directory: Path) -> None:
        self.begin("sync_directory", directory)
        found = self._medium.directories[directory]
        found.durable, found.unsynced = dict(found.volatile), {}

    def lock(self, path: Path) -> File:
        self.begin("lock", path)
        directory = self._directory(path)
        if path.name not in directory.volatile:
            directory.set(path.name, _Node())
        node = directory.volatile[path.name]
        if node in self._medium.locks:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
        self._medium.locks[node] = self.process
        return _File(self, self._medium, node, path, is_lock=True)

    def begin(self, operation: str, path: Path) -> bool:
        """Let the world interfere before an operation; whether the process dies in the middle of it."""
        if self.process in self._medium.dead:
            raise ProcessDied(self.process)
        fault = self._medium.interrupt(self.process, operation, path)
        if fault == "kill" and operation == "write":
            return True
        if fault == "kill" or self.process in self._medium.dead:
            self._medium.kill(self.process)
            raise ProcessDied(self.process)
        if fault:
            number = {"full": errno.ENOSPC, "error": errno.EIO}[fault]
            raise OSError(number, os.strerror(number), str(path))
        return False

    def _directory(self, path: Path) -> _Directory:
        directory = self._medium.directories.get(path.parent)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
        return directory

    def _node(self, path: Path) -> _Node:
        directory = self._medium.directories.get(path.parent)
        if directory is None or path.name not in directory.volatile:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return directory.volatile[path.name]


class _File:
    def __init__(
        self, disk: ProcessDisk, medium: SimulatedDisk, node: _Node, path: Path, *, is_lock: bool = False
    ) -> None:
        self._disk, self._medium, self._node, self._path, self._is_lock = disk, medium, node, path, is_lock

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """All of it; a failing disk and a dying process write a part."""
        text = b"".join(bytes(part) for part in parts)
        try:
            dies = self._disk.begin("write", self._path)
        except OSError:
            self._put(text[: self._medium.random.randint(0, len(text))], offset)
            raise
        if dies:
            self._put(text[: self._medium.random.randint(0, len(text))], offset)
            self._medium.kill(self._disk.process)
            raise ProcessDied(self._disk.process)
        self._put(text, offset)

    def read(self, offset: int, size: int) -> bytes:
        self._disk.begin("read", self._path)
        return bytes(self._node.volatile[offset : offset + size])

    def size(self) -> int:
        return len(self._node.volatile)

    def sync(self) -> None:
        node = self._node
        try:
            self._disk.begin("sync", self._path)
        except OSError:
            if self._medium.lies:  # as Linux does: what could not be written is dropped, and clean from now on
                self._medium._write_back(node, share=0.5)
                node.unsynced = set()
            raise
        unit = self._medium.unit
        for number in node.unsynced:
            start, stop = number * unit, min((number + 1) * unit, len(node.volatile))
            if len(node.durable) < stop:
                node.durable.extend(bytes(stop - len(node.durable)))
            node.durable[start:stop] = node.volatile[start:stop]
        node.unsynced = set()

    def close(self) -> None:
        if self._is_lock and self._medium.locks.get(self._node) == self._disk.process:
            del self._medium.locks[self._node]

    def _put(self, text: bytes, offset: int) -> None:
        if not text:
            return
        volatile = self._node.volatile
        first = min(offset, len(volatile))
        if offset > len(volatile):
            volatile.extend(bytes(offset - len(volatile)))
        volatile[offset : offset + len(text)] = text
        unit = self._medium.unit
        self._node.unsynced.update(range(first // unit, (offset + len(text) - 1) // unit + 1))
