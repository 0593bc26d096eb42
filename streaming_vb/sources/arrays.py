"""A table in memory as a stream of passes, each in an order of its own.

Each pass is a partition, "pass-0", "pass-1", ...: the posterior takes the records of a further pass for new records.
Every pass is shuffled, the first too, because tables are often sorted; a table whose order is time is left as it is.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from streaming_vb.errors import ConfigError, SourceError
from streaming_vb.seeding import numpy_generator
from streaming_vb.types import Array, Interval, Records


@dataclass(frozen=True, slots=True, eq=False)
class ArraySource:
    """Passes over arrays with one row per record.

    Args:
        fields: arrays by field name, all of the same length n.
        passes: how many times the table is streamed.
        seed: of the orders; none leaves every pass in the table's own order.
        scale: x is read as float32 times this (1/255 for bytes); 0 leaves it as it is.

    Raises:
        ConfigError: no rows, lengths that differ, values that are not numbers, no x to scale, or passes below 1.

    >>> source = ArraySource({"x": np.eye(3)}, passes=2)
    >>> [str(interval) for interval in source.intervals({"pass-0": 2}, max_records=2)]
    ['pass-0[2:3]', 'pass-1[0:2]', 'pass-1[2:3]']
    """

    fields: Mapping[str, Array]
    passes: int = 1
    seed: int | None = 0
    scale: float = 0.0
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        for name, array in self.fields.items():
            if array.dtype.kind not in "biuf" or array.ndim == 0:
                raise ConfigError(
                    f"a source needs arrays of numbers with one row per record, got {array.dtype} of shape "
                    f"{array.shape} for {name!r}. Encode it as numbers, or leave it out"
                )
        lengths = {name: len(array) for name, array in self.fields.items()}
        if not lengths or min(lengths.values()) != max(lengths.values()) or max(lengths.values()) == 0:
            raise ConfigError(f"a source needs arrays of one length above 0, got {lengths or 'none'}")
        if self.scale and "x" not in self.fields:
            raise ConfigError(f"a source with a scale needs the field x, got {', '.join(self.fields)}")
        if self.passes < 1:
            raise ConfigError(f"a source needs at least 1 pass, got {self.passes}")
        identity = f"{fingerprint(self.fields)} seed {self.seed} scale {self.scale}"
        object.__setattr__(self, "fingerprint", hashlib.sha256(identity.encode()).hexdigest())

    @property
    def num_records(self) -> int:
        """n, records of one pass."""
        return len(next(iter(self.fields.values())))

    def intervals(self, cursor: Mapping[str, int], max_records: int) -> Iterator[Interval]:
        """Consecutive intervals that tile each pass from its cursor on."""
        for number in range(self.passes):
            partition = f"pass-{number}"
            for start in range(cursor.get(partition, 0), self.num_records, max_records):
                stop = min(start + max_records, self.num_records)
                yield Interval(self.fingerprint, partition, start, stop)

    def read(self, interval: Interval) -> Records:
        """The rows of an interval, in the order of its pass."""
        if interval.source != self.fingerprint:
            raise SourceError(
                f"{interval}: the data here has fingerprint {self.fingerprint[:12]}, the run was started on "
                f"{interval.source[:12]}. Put the same data in place on every machine"
            )
        order = _order(self.num_records, int(interval.partition.removeprefix("pass-")), self.seed)
        rows = order[interval.start : interval.stop]
        fields = {name: array[rows] for name, array in self.fields.items()}
        if self.scale:
            fields["x"] = fields["x"] * np.float32(self.scale)
        return Records(interval, fields)

    def newest(self) -> Mapping[str, int]:
        """End of each pass."""
        return {f"pass-{number}": self.num_records for number in range(self.passes)}

    def close(self) -> None:
        """Nothing to release."""


def example() -> ArraySource:
    """A small source, for docs and laws."""
    return ArraySource({"x": np.arange(14.0).reshape(7, 2)}, passes=3)


def fingerprint(fields: Mapping[str, Array]) -> str:
    """SHA-256 of names, formats, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(fields):
        array = np.ascontiguousarray(fields[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode(errors="surrogatepass"))
        digest.update(array.data)
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _order(num_records: int, number: int, seed: int | None) -> Array:
    if seed is None:
        return np.arange(num_records)
    return numpy_generator(seed, "order", number).permutation(num_records)
