"""A stream of integers: several partitions whose records are their own ids. Feeds the ledger model, and load tests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from streaming_vb.types import Interval, Records


@dataclass(frozen=True, slots=True)
class IntegerSource:
    """Partition p holds the ids p n, ..., p n + n - 1 for n = records_per_partition.

    >>> source = IntegerSource(records_per_partition=4, partitions=2)
    >>> source.read(Interval(source.fingerprint, "part-1", 1, 3))["id"].tolist()
    [5, 6]
    """

    records_per_partition: int
    partitions: int = 1

    @property
    def fingerprint(self) -> str:
        """Identity of the content."""
        return f"integers-{self.partitions}x{self.records_per_partition}"

    def intervals(self, cursor: Mapping[str, int], max_records: int) -> Iterator[Interval]:
        """Consecutive intervals of one partition after the other."""
        for number in range(self.partitions):
            partition = f"part-{number}"
            for start in range(cursor.get(partition, 0), self.records_per_partition, max_records):
                stop = min(start + max_records, self.records_per_partition)
                yield Interval(self.fingerprint, partition, start, stop)

    def read(self, interval: Interval) -> Records:
        """The ids of an interval."""
        first = int(interval.partition.removeprefix("part-")) * self.records_per_partition
        return Records(interval, {"id": np.arange(first + interval.start, first + interval.stop)})

    def newest(self) -> Mapping[str, int]:
        """End of each partition."""
        return {f"part-{number}": self.records_per_partition for number in range(self.partitions)}

    def close(self) -> None:
        """Nothing to release."""


def example() -> IntegerSource:
    """A small source, for docs and laws."""
    return IntegerSource(records_per_partition=7, partitions=3)
