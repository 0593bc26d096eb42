"""Dynamic binarization: x_d ~ Bernoulli(value_d), fresh each time a record is drawn, as a wrapper around a source.

The noise of a row is a function of (seed, partition, row): whoever reads the interval, whole or in parts, gets the same
bits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from streaming_vb.errors import DataError
from streaming_vb.seeding import derive
from streaming_vb.types import Array, Interval, Records, Source

_DRAWS_PER_COUNT = 16
"""16-bit draws in one block of the Philox counter (4 words of 64 bits)."""


@dataclass(frozen=True, slots=True)
class BinarizedSource:
    """Field x of a source, whose values lie in [0, 1], drawn as 0 or 1.

    Args:
        source: real values in [0, 1].
        seed: of the noise.
    """

    source: Source
    seed: int

    @property
    def fingerprint(self) -> str:
        """That of the source and of the noise."""
        return f"{self.source.fingerprint}-binarized-{self.seed}"

    def intervals(self, cursor: Mapping[str, int], max_records: int) -> Iterator[Interval]:
        """The source's intervals, under this name."""
        for interval in self.source.intervals(cursor, max_records):
            yield replace(interval, source=self.fingerprint)

    def read(self, interval: Interval) -> Records:
        """The source's records with x drawn; what is no probability stays as it is, for the model to refuse."""
        inner = interval.source.removesuffix(f"-binarized-{self.seed}")
        records = self.source.read(replace(interval, source=inner))
        key = derive(self.seed, "binarize", interval.source, interval.partition)
        x = records["x"]
        if x.ndim != 2:
            raise DataError(f"{interval}: expected x [n, D], got the shape {x.shape}. Flatten each record")
        return Records(interval, {**records.fields, "x": binarize(x, key, interval.start)})

    def newest(self) -> Mapping[str, int]:
        """The source's ends."""
        return self.source.newest()

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def binarize(probabilities: Array, key: int, first_row: int) -> Array:
    """Draws of Bernoulli(p) for p [n, D] in [0, 1]; float32 0 or 1. Row i uses the noise of row first_row + i of the
    key. Values outside, and NaN, stay.

    Noise has 16 bits: p is rounded to the nearest of 65,536 values, and 0 and 1 are exact.

    >>> binarize(np.array([[0.0, 1.0]]), key=7, first_row=0).tolist()
    [[0.0, 1.0]]
    """
    if probabilities.dtype not in (np.float32, np.float64):
        probabilities = probabilities.astype(np.float64)
    num_rows, width = probabilities.shape
    counts_per_row = -(-width // _DRAWS_PER_COUNT)
    bits = np.random.Philox(key=key)
    bits.advance(first_row * counts_per_row)
    words = bits.random_raw(num_rows * counts_per_row * 4)
    noise = words.view(np.uint16).reshape(num_rows, -1)[:, :width]
    drawn: Array = (noise < np.rint(probabilities * 65_536)).astype(np.float32)
    if probabilities.min(initial=0) >= 0 and probabilities.max(initial=1) <= 1:
        return drawn
    good = (probabilities >= 0) & (probabilities <= 1)
    return np.where(good, drawn, probabilities).astype(np.float32)


def example() -> BinarizedSource:
    """A small source, for docs and laws."""
    from streaming_vb.sources.arrays import ArraySource

    return BinarizedSource(ArraySource({"x": np.linspace(0, 1, 14).reshape(7, 2)}, passes=3), seed=1)
