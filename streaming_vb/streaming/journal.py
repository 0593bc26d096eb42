"""The journal: what was merged since a snapshot, on disk before anybody is told. A ring of segment files.

Why a ring: to overwrite and sync a file that exists costs a third of growing one. So a segment is one use of a file,
with a number that no other use in the run has (`frames.py`). Its first frame is its header: the state it begins from,
and how many frames of the segment before it count. Files of an older generation are never written to: a writer that was
overtaken may still hold them open, and what it adds stands behind what its successor's header counts.

That entries can be read after a crash does not mean that they are on the medium: they may never have been synced, or a
sync of them may have failed, and the next one would not say so. So the header of the first segment of a generation also
carries the entries that it found and that no frame says to be synced.
"""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streaming_vb.errors import IntegrityError
from streaming_vb.failpoints import reach
from streaming_vb.streaming import frames
from streaming_vb.streaming.disk import Buffer, Disk, File
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.messages import pack_delta, pack_set_aside, unpack_delta, unpack_set_aside
from streaming_vb.streaming.wire import WireError, decode, encode, size
from streaming_vb.types import Delta, SetAside

_NAME = re.compile(r"(\d+)-(\d+)\.journal")


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A delta that was merged; `publish` where the version that results was published."""

    delta: Delta
    publish: bool


@dataclass(frozen=True, slots=True, eq=False)
class PutAside:
    """An interval that was read and not learned."""

    set_aside: SetAside
    publish: bool


Entry = Merged | PutAside


class JournalBroken(OSError):
    """What was written could not be made durable: what the disk holds is known only after reading it again."""


class Mark(NamedTuple):
    """How far a state is. Every entry covers positions, so of two states of a run the later one has the larger mark."""

    num_covered: int
    version: int


def mark(state: ServerState) -> Mark:
    """How far a state is."""
    return Mark(state.ledger.num_covered(), state.version)


class End(NamedTuple):
    """What counts of a segment: its first `num_frames` frames, the header among them."""

    generation: int
    segment: int
    num_frames: int


class Segment(NamedTuple):
    """A segment by its header: it begins from a state at `base`, behind the end of another segment."""

    path: Path
    generation: int
    number: int
    base: Mark
    follows: End | None
    start: int


class Segments:
    """The segments in a directory, for reading.

    Attributes:
        paths: every file of the journal.
        chain: segments read, oldest first.
        end: what is known to be durable; known once `after` is exhausted.
        carried: payloads of the entries behind `end`, which may not be durable; the same.
        notes: what was cut off, one line each; the same.

    Raises:
        IntegrityError: a header that was durable is corrupt.
    """

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk, self._directory = disk, directory
        self.paths = _paths(disk, directory)
        self.chain: list[Segment] = []
        self.end: End | None = None
        self.carried: list[bytes] = []
        self.notes: list[str] = []
        self._by_key: dict[tuple[int, int], Segment] = {}
        without_header = [path for path in self.paths if not self._index(path)]
        self._newest = max(self._by_key, default=(0, 0))
        for path in without_header:
            self._check_unused(path)

    @property
    def newest_number(self) -> int:
        """The largest number that a segment has."""
        return max((number for _, number in self._by_key), default=0)

    def disowns(self, generation: int, at: Mark) -> bool:
        """Whether a snapshot at this mark was saved by a generation after a newer one had begun before that mark.

        Generation 0 is none of a server: an older format, or a file that somebody put there.
        """
        base = None
        if generation == 0:
            return False
        for segment in self._backwards():
            if segment.generation <= generation:
                break
            base = segment.base
        return base is not None and base < at

    def after(self, start: Mark | None) -> Iterator[Entry]:
        """The entries that a state at `start` may lack, in order; those of the first segment it may have. All entries
        that there are without a start. Arrays are read-only views.

        Raises:
            IntegrityError: an entry that was durable is corrupt or missing.
        """
        self.chain = self._needed(start)
        for segment, end in zip_longest(self.chain, [later.follows for later in self.chain[1:]]):
            with closing(self._disk.open(segment.path)) as file:
                yield from self._entries(segment, file, end.num_frames if end else None)

    def _index(self, path: Path) -> bool:
        with closing(self._disk.open(path)) as file:
            found = frames.read(file, 0, None, 0)
        if found is None:
            return False
        segment = _segment(path, found)
        key = segment.generation, segment.number
        if segment.generation != _generation(path) or key in self._by_key:
            raise _corrupt(path, f"it holds segment {segment.number} of generation {segment.generation}, not its own")
        self._by_key[key] = segment
        return True

    def _check_unused(self, path: Path) -> None:
        """A header may be torn by a crash, but then nothing of its segment stands behind it."""
        with closing(self._disk.open(path)) as file:
            for head in frames.heads(file, 0):
                if head.position > 0 and (_generation(path), head.segment) > self._newest:
                    raise _corrupt(path, f"the header of segment {head.segment} does not match its checksum")

    def _backwards(self) -> Iterator[Segment]:
        segment = self._by_key.get(self._newest)
        while segment is not None:
            yield segment
            follows = segment.follows
            segment = self._by_key.get((follows.generation, follows.segment)) if follows else None

    def _needed(self, start: Mark | None) -> list[Segment]:
        chain: list[Segment] = []
        for segment in self._backwards():
            chain.insert(0, segment)
            if start is not None and segment.base <= start:
                return chain
        if start is not None and chain:
            missing = chain[0].follows
            raise IntegrityError(
                f"{self._directory}: the snapshot holds version {start.version}, the journal goes on from "
                f"{chain[0].base.version}: segment {missing.segment if missing else 'before it'} is missing or its "
                "header is corrupt. Restore a copy of the run directory"
            )
        return chain

    def _entries(self, segment: Segment, file: File, num_frames: int | None) -> Iterator[Entry]:
        header = frames.read(file, 0, segment.number, 0)
        assert header is not None
        unsynced = [(0, bytes(part)) for part in decode(header.payload).arrays.values()]
        for _, payload in unsynced:
            yield _entry(segment.path, 0, payload)
        position, offset, num_synced = 1, segment.start, 0
        while num_frames is None or position < num_frames:
            found = frames.read(file, offset, segment.number, position)
            if found is None:
                self._check_tail(segment, file, offset, position, num_frames)
                break
            yield _entry(segment.path, position, found.payload)
            num_synced = found.num_synced
            unsynced = [(at, payload) for at, payload in unsynced if at >= num_synced]
            unsynced.append((position, found.payload))
            position, offset = position + 1, found.stop
        if num_frames is None:
            self._ends(segment, num_synced, [payload for _, payload in unsynced])

    def _ends(self, segment: Segment, num_synced: int, carried: list[bytes]) -> None:
        """The newest segment was read; where nothing says that its header is durable, it does not count."""
        self.carried = carried
        if num_synced:
            self.end = End(segment.generation, segment.number, num_synced)
        else:
            self.end = segment.follows
            self.chain.remove(segment)

    def _check_tail(self, segment: Segment, file: File, offset: int, position: int, num_frames: int | None) -> None:
        """No frame at an offset: the end, or a tail that a crash has cut, or corruption."""
        was_synced = num_frames is not None or any(
            head.position > position and head.num_synced > position
            for head in frames.heads(file, offset, segment.number)
        )
        if was_synced:
            raise _corrupt(segment.path, f"entry {position} of segment {segment.number} does not match its checksum")
        torn = frames.head_at(file, offset)
        if torn is not None and (torn.segment, torn.position) == (segment.number, position):
            self.notes.append(
                f"journal: {torn.length:,} bytes after entry {position - 1} of {segment.path.name} do not match their "
                "checksum, cut there (a crash while they were written; nobody was told)"
            )


class Journal:
    """The journal, for writing. Not for two threads.

    Args:
        directory: where the segment files are.
        generation: of this writer.
        keep_fit_state: store the warm starts of deltas as well.
        after: what was there, read to its end.
    """

    def __init__(self, disk: Disk, directory: Path, generation: int, *, keep_fit_state: bool, after: Segments) -> None:
        self._disk, self._directory, self._generation = disk, directory, generation
        self._keep_fit_state = keep_fit_state
        self._next_number = after.newest_number + 1
        self._next_slot = 0
        self._end, self._carried = after.end, after.carried
        self._before = list(after.chain)
        self._strays = [path for path in after.paths if path not in {segment.path for segment in after.chain}]
        self._own: list[_OwnSegment] = []
        self._free: list[_OwnSegment] = []
        self._is_broken = False

    @property
    def num_bytes(self) -> int:
        """Bytes in the current segment."""
        return self._own[-1].stop

    def begin(self, base: Mark) -> None:
        """Start a segment from a state that has every entry so far; durable.

        Raises:
            OSError: the disk refuses; entries go on into the segment before.
        """
        self.sync()
        number, self._next_number = self._next_number, self._next_number + 1
        is_new = not self._free
        own = self._created() if is_new else self._free.pop()
        try:
            arrays = {f"{i:06d}": np.frombuffer(payload, np.uint8) for i, payload in enumerate(self._carried)}
            own.begin(number, base, encode(_header(self._generation, number, base, self._end), arrays))
            if is_new:
                self._disk.sync_directory(self._directory)
        except OSError:
            self._discard(own)
            raise
        self._carried = []
        self._own.append(own)
        self._end = own.end(self._generation)

    def append(self, entry: Entry) -> None:
        """Write an entry behind the others; durable after `sync`.

        Raises:
            OSError: the disk refuses; nothing was appended, and the next entry takes its place.
        """
        self._require_whole()
        self._own[-1].append(_parts(entry, self._keep_fit_state))
        self._end = self._own[-1].end(self._generation)
        reach("S3")

    def sync(self) -> None:
        """Make every entry appended durable.

        Raises:
            JournalBroken: the disk failed; nothing can be written any more.
        """
        self._require_whole()
        try:
            if self._own:
                self._own[-1].sync()
        except OSError as error:
            self._is_broken = True
            raise JournalBroken(error.errno, f"journal: cannot be made durable ({error.strerror})") from error

    def trim(self, to: Mark) -> None:
        """Let go of segments all of whose entries are in a state at this mark: own files are used again, those of
        older generations removed."""
        for path in self._strays:
            self._disk.unlink(path)
        self._strays = []
        while self._before and (self._before[1].base if len(self._before) > 1 else self._own[0].base) <= to:
            self._disk.unlink(self._before[0].path)
            del self._before[0]
        while not self._before and len(self._own) > 1 and self._own[1].base <= to:
            self._free.append(self._own.pop(0))
        reach("S8")

    def close(self, *, saved: Mark | None = None) -> None:
        """Close the files.

        Args:
            saved: a snapshot at this mark holds everything: one segment is left that says so, and an older snapshot is
                then never taken for the newest. None leaves the journal as it is.
        """
        if saved is not None:
            self._free, spare = [], self._free
            self.begin(saved)
            outdated = [*(own.path for own in (*spare, *self._own[:-1])), *self._strays]
            for path in [*outdated, *(part.path for part in self._before)]:
                self._disk.unlink(path)
            self._disk.sync_directory(self._directory)
            for own in spare:
                own.file.close()
        for own in (*self._free, *self._own):
            own.file.close()
        self._own, self._free = [], []

    def _created(self) -> "_OwnSegment":
        path = self._directory / f"{self._generation:06d}-{self._next_slot:06d}.journal"
        self._next_slot += 1
        return _OwnSegment(path, self._disk.create(path))

    def _discard(self, own: "_OwnSegment") -> None:
        """Remove a file whose header may or may not be on the disk: what it says of the segment before gets old."""
        own.file.close()
        try:
            self._disk.unlink(own.path)
            self._disk.sync_directory(self._directory)
        except OSError:
            self._is_broken = True
            raise

    def _require_whole(self) -> None:
        if self._is_broken:
            raise JournalBroken("journal: the disk failed before; start again, to recover from what it holds")


class _OwnSegment:
    """A segment that this process writes, and after it another one in the same file."""

    def __init__(self, path: Path, file: File) -> None:
        self.path, self.file = path, file
        self.base = Mark(0, 0)
        self.stop = 0
        self._number = self._num_frames = self._num_synced = 0

    def begin(self, number: int, base: Mark, header: list[Buffer]) -> None:
        self._number, self.base = number, base
        self.stop = self._num_frames = self._num_synced = 0
        self.append(header)
        self.sync()

    def append(self, payload: list[Buffer]) -> None:
        parts = frames.frame(self._number, self._num_frames, self._num_synced, payload)
        self.file.write(parts, self.stop)
        self.stop += size(parts)
        self._num_frames += 1

    def sync(self) -> None:
        if self._num_synced < self._num_frames:
            self.file.sync()
            self._num_synced = self._num_frames

    def end(self, generation: int) -> End:
        return End(generation, self._number, self._num_frames)


def _header(generation: int, number: int, base: Mark, follows: End | None) -> dict[str, Any]:
    return {
        "generation": generation,
        "segment": number,
        "base_version": base.version,
        "base_covered": base.num_covered,
        "follows": follows,
    }


def _segment(path: Path, found: frames.Frame) -> Segment:
    try:
        match decode(found.payload).header:
            case {
                "generation": int(generation),
                "segment": int(number),
                "base_version": int(version),
                "base_covered": int(covered),
                "follows": None | [int(), int(), int()] as follows,
            } if number == found.segment:
                end = None if follows is None else End(*follows)
                return Segment(path, generation, number, Mark(covered, version), end, found.stop)
    except WireError as error:
        raise _corrupt(path, f"its header cannot be read ({error})") from error
    raise _corrupt(path, "its header is not that of a segment")


def _parts(entry: Entry, keep_fit_state: bool) -> list[Buffer]:
    if isinstance(entry, Merged):
        header, arrays = pack_delta(entry.delta, keep_fit_state)
        return encode({"merged": header, "publish": entry.publish}, arrays)
    return encode({"put_aside": pack_set_aside(entry.set_aside), "publish": entry.publish}, {})


def _entry(path: Path, position: int, payload: bytes) -> Entry:
    try:
        header, arrays = decode(payload)
        match header:
            case {"merged": dict(packed), "publish": bool(publish)}:
                return Merged(unpack_delta(packed, arrays), publish)
            case {"put_aside": dict(packed), "publish": bool(publish)}:
                return PutAside(unpack_set_aside(packed), publish)
    except WireError as error:
        raise _corrupt(path, f"entry {position} cannot be read ({error})") from error
    raise _corrupt(path, f"entry {position} is none that this version knows")


def newest_generation(disk: Disk, directory: Path) -> int:
    """The largest generation that a file of the journal has, 0 where there is none."""
    return max(map(_generation, _paths(disk, directory)), default=0)


def _paths(disk: Disk, directory: Path) -> list[Path]:
    return [directory / name for name in disk.names(directory) if _NAME.fullmatch(name)]


def _generation(path: Path) -> int:
    return int(path.name.split("-")[0])


def _corrupt(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: {what}. Restore a copy of the run directory, or fit again into a new --run-dir")
