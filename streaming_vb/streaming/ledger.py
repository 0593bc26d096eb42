"""The ledger: which records are in the posterior. Adding natural parameters makes a duplicate silent and permanent, so
every merge is checked against it, and the interval is the whole key.

Per partition it holds disjoint runs of covered positions: a contiguous one from 0 up to the watermark, and a bounded
number above it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from streaming_vb.errors import MergeRejected
from streaming_vb.types import Interval

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SetAside:
    """An interval that was read but not learned, and why."""

    interval: Interval
    num_records: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """Covered runs by partition, and the intervals among them that were set aside. Immutable: `add` returns a new one.

    >>> ledger = Ledger().add(Interval("s", "p", 0, 10)).add(Interval("s", "p", 20, 30))
    >>> ledger.watermark("p"), ledger.covers(Interval("s", "p", 20, 30))
    (10, True)
    """

    source: str = ""
    runs: Mapping[str, Runs] = field(default_factory=dict)
    set_aside: tuple[SetAside, ...] = ()

    def covers(self, interval: Interval) -> bool:
        """Whether every position of the interval is covered.

        Raises:
            MergeRejected: the interval is of another source, or only a part of it is covered.
        """
        if self.source and interval.source != self.source:
            raise MergeRejected(
                f"{interval} is of source {interval.source[:12]}, the ledger is of source {self.source[:12]}"
            )
        uncovered = list(self.uncovered(interval))
        if uncovered == [interval]:
            return False
        if uncovered:
            raise MergeRejected(f"{interval} overlaps records that were counted before: {self._describe(interval)}")
        return True

    def add(self, interval: Interval) -> "Ledger":
        """The ledger with an interval that it does not cover."""
        return Ledger(interval.source, self._with(interval), self.set_aside)

    def put_aside(self, interval: Interval, num_records: int, reason: str) -> "Ledger":
        """The ledger with an interval that was read but not learned."""
        entry = SetAside(interval, num_records, reason)
        return Ledger(interval.source, self._with(interval), (*self.set_aside, entry))

    def watermark(self, partition: str) -> int:
        """Every position below it is covered."""
        runs = self.runs.get(partition, ())
        return runs[0][1] if runs and runs[0][0] == 0 else 0

    def cursor(self) -> dict[str, int]:
        """Watermark of every partition: where a source goes on."""
        return {partition: self.watermark(partition) for partition in self.runs}

    @property
    def num_covered(self) -> int:
        """Positions covered, in all partitions."""
        return sum(stop - start for runs in self.runs.values() for start, stop in runs)

    def uncovered(self, interval: Interval) -> Iterator[Interval]:
        """The parts of an interval that are not covered, in order."""
        position = interval.start
        for start, stop in self.runs.get(interval.partition, ()):
            if stop <= position:
                continue
            if start >= interval.stop:
                break
            if start > position:
                yield Interval(interval.source, interval.partition, position, start)
            position = stop
        if position < interval.stop:
            yield Interval(interval.source, interval.partition, position, interval.stop)

    def _with(self, interval: Interval) -> dict[str, Runs]:
        runs = list(self.runs.get(interval.partition, ()))
        at = bisect_right(runs, (interval.start, interval.stop))
        runs.insert(at, (interval.start, interval.stop))
        if at + 1 < len(runs) and runs[at][1] == runs[at + 1][0]:
            runs[at : at + 2] = [(runs[at][0], runs[at + 1][1])]
        if at > 0 and runs[at - 1][1] == runs[at][0]:
            runs[at - 1 : at + 1] = [(runs[at - 1][0], runs[at][1])]
        return {**self.runs, interval.partition: tuple(runs)}

    def _describe(self, interval: Interval) -> str:
        parts = (f"{start:,}:{stop:,}" for start, stop in self.runs[interval.partition])
        return f"{interval.partition} holds {' '.join(parts)}"
