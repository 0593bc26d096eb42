"""Records that cannot be scored are found one by one, left out of the fit, and named in the ledger."""

from collections.abc import Iterator
from dataclasses import replace

from streaming_vb.errors import DataError
from streaming_vb.types import Model, Records, SetAside


def bad_records(model: Model, records: Records) -> tuple[SetAside, ...]:
    """The records that the model refuses, each with its reason; by halving, so that good data cost one look."""
    return tuple(_refused(model, records))


def without(records: Records, bad: tuple[SetAside, ...]) -> Records:
    """The records that are left, under the same interval."""
    first = records.interval.start
    rows = {entry.interval.start - first for entry in bad}
    kept = [row for row in range(len(records)) if row not in rows]
    return Records(records.interval, {name: array[kept] for name, array in records.fields.items()})


def _refused(model: Model, records: Records) -> Iterator[SetAside]:
    try:
        model.validate(records)
    except DataError as error:
        if len(records) == 1:
            yield SetAside(records.interval, 1, " ".join(str(error).split()))
            return
        half = len(records) // 2
        for rows in (slice(0, half), slice(half, len(records))):
            yield from _refused(model, part(records, rows))


def part(records: Records, rows: slice) -> Records:
    """Some rows, under the interval they stand in.

    >>> import numpy as np
    >>> from streaming_vb.types import Interval
    >>> str(part(Records(Interval("s", "p", 10, 14), {"x": np.zeros(4)}), slice(1, 3)).interval)
    'p[11:13]'
    """
    start, stop, _ = rows.indices(len(records))
    first = records.interval.start
    interval = replace(records.interval, start=first + start, stop=first + stop)
    return Records(interval, {name: array[rows] for name, array in records.fields.items()})
