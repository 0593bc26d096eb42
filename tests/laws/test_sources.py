"""Laws of every source."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
from checks import fingerprint
from discovery import examples

from streaming_vb.types import Interval, Records, Source

every_source = pytest.mark.parametrize("source", examples("sources"))
MAX_RECORDS = 3


def planned(source: Source, cursor: dict[str, int] | None = None, max_records: int = MAX_RECORDS) -> list[Interval]:
    """Intervals until the source has nothing new."""
    return list(itertools.takewhile(lambda found: found is not None, source.intervals(cursor or {}, max_records)))


def by_partition(intervals: list[Interval]) -> dict[str, list[Interval]]:
    grouped: dict[str, list[Interval]] = {}
    for interval in intervals:
        grouped.setdefault(interval.partition, []).append(interval)
    return grouped


def joined(parts: list[Records]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0].fields}


@every_source
def test_intervals_tile_every_partition_up_to_the_newest_record(source: Source) -> None:
    for partition, intervals in by_partition(planned(source)).items():
        assert intervals[0].start == 0
        assert all(interval.start < interval.stop for interval in intervals)
        assert all(a.stop == b.start for a, b in itertools.pairwise(intervals))
        assert intervals[-1].stop == source.newest()[partition]


@every_source
def test_newest_names_every_partition(source: Source) -> None:
    assert by_partition(planned(source)).keys() == source.newest().keys()


@every_source
def test_intervals_carry_the_fingerprint(source: Source) -> None:
    assert {interval.source for interval in planned(source)} == {source.fingerprint}


@every_source
def test_planning_twice_gives_the_same_intervals(source: Source) -> None:
    assert planned(source) == planned(source)


@pytest.mark.parametrize("max_records", [1, 2, 100])
@every_source
def test_an_interval_holds_no_more_records_than_asked(source: Source, max_records: int) -> None:
    for interval in planned(source, max_records=max_records):
        assert 0 < len(source.read(interval)) <= max_records


@every_source
def test_a_cursor_resumes_where_it_stands(source: Source) -> None:
    intervals = planned(source)
    for done in range(len(intervals) + 1):
        cursor: dict[str, int] = {}
        for interval in intervals[:done]:
            cursor[interval.partition] = interval.stop
        assert planned(source, cursor) == intervals[done:]


@every_source
def test_a_cursor_inside_an_interval_is_kept(source: Source) -> None:
    first = planned(source)[0]
    resumed = planned(source, {first.partition: first.start + 1})[0]
    assert (resumed.partition, resumed.start) == (first.partition, first.start + 1)


@every_source
def test_a_cursor_at_the_newest_record_leaves_nothing(source: Source) -> None:
    assert planned(source, dict(source.newest())) == []


@every_source
def test_reading_twice_gives_the_same_records(source: Source) -> None:
    for interval in planned(source):
        assert fingerprint(source.read(interval)) == fingerprint(source.read(interval))


@every_source
def test_reading_in_any_order_gives_the_same_records(source: Source) -> None:
    intervals = planned(source)
    forward = [fingerprint(source.read(interval)) for interval in intervals]
    backward = [fingerprint(source.read(interval)) for interval in reversed(intervals)]
    assert forward == backward[::-1]


@every_source
def test_reading_in_parts_equals_reading_at_once(source: Source) -> None:
    for partition, intervals in by_partition(planned(source)).items():
        whole = replace(intervals[0], stop=intervals[-1].stop)
        parts = [source.read(interval) for interval in intervals]
        assert fingerprint(joined(parts)) == fingerprint(source.read(whole).fields), partition


@every_source
def test_a_reader_may_write_into_what_it_got(source: Source) -> None:
    interval = planned(source)[0]
    before = fingerprint(source.read(interval))
    for array in source.read(interval).fields.values():
        array[...] = 0
    assert fingerprint(source.read(interval)) == before


@every_source
def test_a_source_that_travelled_reads_the_same(source: Source) -> None:
    there = pickle.loads(pickle.dumps(source))
    assert there.fingerprint == source.fingerprint
    assert planned(there) == planned(source)
    for interval in planned(source):
        assert fingerprint(there.read(interval)) == fingerprint(source.read(interval))


@every_source
def test_different_intervals_hold_different_records(source: Source) -> None:
    contents = [fingerprint(source.read(interval)) for interval in planned(source, max_records=7)]
    assert len(set(contents)) == len(contents)


@every_source
def test_closing_twice_is_harmless(source: Source) -> None:
    interval = planned(source)[0]
    before = fingerprint(source.read(interval))
    source.close()
    source.close()
    assert fingerprint(source.read(interval)) == before
