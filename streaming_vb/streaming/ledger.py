"""The ledger: which records are in the posterior. Adding natural parameters makes a duplicate silent and permanent, so
every merge is checked against it, and the interval is the whole key.

Per partition of a source it holds disjoint runs of covered positions: a contiguous one from 0 up to the watermark, and
a number above it that the fits in flight bound.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from streaming_vb.errors import MergeRejected
from streaming_vb.types import Interval, SetAside

Runs = tuple[tuple[int, int], ...]
Partition = tuple[str, str]
"""Fingerprint of a source, and a partition of it."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Covered runs by source and partition, and what among them was set aside. Immutable: `add` returns a new one.

    >>> ledger = Ledger().add(Interval("s", "p", 0, 10)).add(Interval("s", "p", 20, 30))
    >>> ledger.watermark("s", "p"), ledger.covers(Interval("s", "p", 20, 30))
    (10, True)
    """

    runs: Mapping[Partition, Runs] = field(default_factory=dict)
    set_aside: tuple[SetAside, ...] = ()

    def covers(self, interval: Interval) -> bool:
        """Whether every position of the interval is covered.

        Raises:
            MergeRejected: only a part of it is covered.
        """
        uncovered = list(self.uncovered(interval))
        if uncovered == [interval]:
            return False
        if uncovered:
            raise MergeRejected(f"{interval} overlaps records that were counted before: {self._describe(interval)}")
        return True

    def add(self, interval: Interval, bad_records: tuple[SetAside, ...] = ()) -> "Ledger":
        """The ledger with an interval that it does not cover, some of whose records could not be scored."""
        return Ledger(self._with(interval), (*self.set_aside, *bad_records))

    def put_aside(self, entry: SetAside) -> "Ledger":
        """The ledger with an interval that was read but not learned."""
        return self.add(entry.interval, (entry,))

    def without(self, interval: Interval, reason: str, num_records: int) -> "Ledger":
        """The ledger after the evidence of an interval that it covers was taken out: set aside, so still covered."""
        kept = tuple(entry for entry in self.set_aside if entry.interval not in interval)
        return replace(self, set_aside=(*kept, SetAside(interval, num_records, reason)))

    def watermark(self, source: str, partition: str) -> int:
        """Every position below it is covered."""
        runs = self.runs.get((source, partition), ())
        return runs[0][1] if runs and runs[0][0] == 0 else 0

    def cursor(self, source: str) -> dict[str, int]:
        """Watermark of every partition: where a source goes on."""
        return {partition: self.watermark(name, partition) for name, partition in self.runs if name == source}

    def num_covered(self, source: str | None = None) -> int:
        """Positions covered, of one source or in all."""
        return sum(
            stop - start
            for (name, _), runs in self.runs.items()
            if source is None or name == source
            for start, stop in runs
        )

    @property
    def num_set_aside(self) -> int:
        """Records read and not learned."""
        return sum(entry.num_records for entry in self.set_aside)

    def uncovered(self, interval: Interval) -> Iterator[Interval]:
        """The parts of an interval that are not covered, in order."""
        position = interval.start
        runs = self.runs.get((interval.source, interval.partition), ())
        first = max(bisect_right(runs, (position, position)) - 1, 0)
        for start, stop in runs[first:]:
            if stop <= position:
                continue
            if start >= interval.stop:
                break
            if start > position:
                yield replace(interval, start=position, stop=start)
            position = stop
        if position < interval.stop:
            yield replace(interval, start=position)

    def intervals(self) -> Iterator[Interval]:
        """Every run, as an interval."""
        for (source, partition), runs in self.runs.items():
            for start, stop in runs:
                yield Interval(source, partition, start, stop)

    def _with(self, interval: Interval) -> dict[Partition, Runs]:
        key = interval.source, interval.partition
        runs = list(self.runs.get(key, ()))
        at = bisect_left(runs, (interval.start, interval.stop))
        start, stop = interval.start, interval.stop
        if at < len(runs) and runs[at][0] == stop:
            stop = runs.pop(at)[1]
        if at > 0 and runs[at - 1][1] == start:
            start = runs.pop(at - 1)[0]
            at -= 1
        runs.insert(at, (start, stop))
        return {**self.runs, key: tuple(runs)}

    def _describe(self, interval: Interval) -> str:
        runs = self.runs[interval.source, interval.partition]
        return f"{interval.partition} holds {' '.join(f'{start:,}:{stop:,}' for start, stop in runs)}"
