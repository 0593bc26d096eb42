import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import fingerprint
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import DataError, NumericalError, ResumeMismatch
from streaming_vb.families.unit_normal import UnitNormal
from streaming_vb.inference import conjugate
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.quarantine import bad_records, without
from streaming_vb.streaming.run import Step, run, run_processes
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Interval, Lease, NaturalParameters, Records, Snapshot

LEDGER = LedgerModel()
SOURCE = IntegerSource(records_per_partition=60, partitions=2)
BAD = frozenset({0, 7, 8, 59, 60, *range(80, 90), 119})
"""The first and the last record of a partition, neighbours, and a whole interval."""
ASIDE = Settings(batch_size=5, local_steps=2, ramp=0, round_size=3, bad_records="set-aside")


@dataclass(frozen=True)
class Picky:
    """The ledger model, but some ids cannot be scored; it remembers what it was shown."""

    bad: frozenset[int]
    looks: list[int] = field(default_factory=list)

    @property
    def family(self) -> UnitNormal:
        return LEDGER.family

    def describe(self) -> Mapping[str, object]:
        return {"model": "picky"}

    def prior(self, seed: int) -> NaturalParameters:
        return LEDGER.prior(seed)

    def validate(self, records: Records) -> None:
        self.looks.append(len(records))
        for number in records["id"].tolist():
            if number in self.bad:
                raise DataError(f"record {number}\n  cannot be scored")

    def evidence(self, records: Records) -> NaturalParameters:
        return LEDGER.evidence(records)

    def log_predictive(self, posterior: NaturalParameters, records: Records) -> float:
        return 0.0


def records_of(start: int, stop: int) -> Records:
    """Records whose ids are their positions."""
    return Records(Interval("s", "p", start, stop), {"id": np.arange(start, stop), "x": np.arange(start, stop) / 2})


parts = st.integers(0, 50).flatmap(
    lambda start: st.integers(1, 40).flatmap(
        lambda size: st.tuples(st.just(start), st.just(start + size), st.frozensets(st.integers(start, start + size)))
    )
)


@given(parts)
def test_exactly_the_records_that_the_model_refuses_are_found_in_order(case: tuple[int, int, frozenset[int]]) -> None:
    start, stop, bad = case
    found = bad_records(Picky(bad), records_of(start, stop))
    assert [entry.interval for entry in found] == [
        Interval("s", "p", number, number + 1) for number in sorted(bad) if number < stop
    ]
    assert all(entry.num_records == 1 for entry in found)


@given(parts)
def test_what_is_left_passes_and_stands_under_the_same_interval(case: tuple[int, int, frozenset[int]]) -> None:
    start, stop, bad = case
    model, records = Picky(bad), records_of(start, stop)
    left = without(records, bad_records(model, records))
    model.validate(left)
    assert left.interval == records.interval
    assert left["id"].tolist() == [number for number in range(start, stop) if number not in bad]
    np.testing.assert_array_equal(left["x"], left["id"] / 2)


@given(parts)
def test_looks_are_few(case: tuple[int, int, frozenset[int]]) -> None:
    start, stop, bad = case
    model = Picky(frozenset(number for number in bad if number < stop))
    bad_records(model, records_of(start, stop))
    assert len(model.looks) <= 1 + 2 * len(model.bad) * math.ceil(math.log2(stop - start))


def test_good_records_are_looked_at_once() -> None:
    model = Picky(frozenset())
    assert bad_records(model, records_of(0, 100)) == ()
    assert model.looks == [100]


def test_a_reason_is_the_models_message_in_one_line() -> None:
    (entry,) = bad_records(Picky(frozenset({3})), records_of(0, 5))
    assert entry.reason == "record 3 cannot be scored"


def update(bad: frozenset[int], start: int, stop: int, *, aside: bool = True) -> Any:
    model: Any = Picky(bad)
    prior = LEDGER.prior(0)
    local_update = LocalUpdate("run", model, conjugate.build(model), SOURCE, prior, Nothing(), 0, aside)
    lease = Lease(Interval(SOURCE.fingerprint, "part-0", start, stop), 0, 0, 1.0, 1.0)
    return local_update(lease, Snapshot(0, 0, prior, {}))


def test_a_delta_has_the_evidence_of_the_records_that_are_left_and_names_the_others() -> None:
    delta = update(BAD, 0, 10)
    assert delta.num_records == 7
    assert [str(entry.interval) for entry in delta.bad_records] == ["part-0[0:1]", "part-0[7:8]", "part-0[8:9]"]
    assert delta.fit.natural["sum"].tolist() == LEDGER.sums(np.array([1, 2, 3, 4, 5, 6, 9])).tolist()


def test_good_records_give_the_same_delta_under_both_settings() -> None:
    one, other = (update(BAD, 10, 20, aside=aside) for aside in (True, False))
    assert (one.num_records, one.bad_records) == (other.num_records, other.bad_records) == (10, ())
    assert fingerprint(one.fit.natural) == fingerprint(other.fit.natural)


def test_an_interval_of_bad_records_alone_has_no_delta() -> None:
    with pytest.raises(NumericalError, match=r"part-0\[7:9\]: no record of it can be scored; the first: record 7 can"):
        update(BAD, 7, 9)


def test_without_the_setting_a_bad_record_is_an_error() -> None:
    with pytest.raises(DataError, match="record 7"):
        update(BAD, 5, 10, aside=False)


def assert_accounted_for(state: ServerState, bad: frozenset[int] = BAD, source: IntegerSource = SOURCE) -> None:
    """Every record is counted or set aside, each once, and the sums are those of the records counted."""
    total = source.partitions * source.records_per_partition
    positions = [
        (entry.interval.partition, position)
        for entry in state.ledger.set_aside
        for position in range(entry.interval.start, entry.interval.stop)
    ]
    ids = [int(name.removeprefix("part-")) * source.records_per_partition + at for name, at in positions]
    assert sorted(ids) == sorted(bad)
    assert state.ledger.num_covered() == total
    assert state.num_records + state.ledger.num_set_aside == total
    assert state.posterior["sum"].tolist() == LEDGER.sums(np.array(sorted(set(range(total)) - bad))).tolist()


@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_counts_every_record_or_names_it(mode: str, workers: int) -> None:
    steps = list(run(Picky(BAD), SOURCE, replace(ASIDE, mode=mode), workers=workers))
    assert_accounted_for(steps[-1].state())
    assert sum(step.num_new for step in steps) == 120 - len(BAD)
    (aside,) = (step for step in steps if step.status == "set-aside")
    assert (str(aside.interval), aside.num_new) == ("part-1[20:30]", 0)
    assert "no record of it can be scored" in aside.reason


def test_processes_set_the_same_records_aside(tmp_path: Path) -> None:
    *_, last = run_processes(Picky(BAD), SOURCE, ASIDE, workers=2, run_dir=tmp_path)
    assert_accounted_for(last.state())


@given(st.frozensets(st.integers(0, 119)), st.sampled_from(["async", "ordered"]), st.integers(1, 4))
def test_any_records_may_be_bad(bad: frozenset[int], mode: str, workers: int) -> None:
    *_, last = run(Picky(bad), SOURCE, replace(ASIDE, mode=mode), workers=workers)
    assert_accounted_for(last.state(), bad)


def test_all_records_may_be_bad() -> None:
    steps = list(run(Picky(frozenset(range(120))), SOURCE, ASIDE))
    assert {step.status for step in steps} == {"set-aside"}
    assert_accounted_for(steps[-1].state(), frozenset(range(120)))


def test_bad_records_are_positions_of_the_records_asked_for() -> None:
    *_, last = run(Picky(BAD), SOURCE, replace(ASIDE, records=50))
    assert last.state().ledger.num_covered() == 50
    assert last.records == 47


@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("stopped_after", [1, 2, 5, 9, 11])
def test_a_run_that_was_closed_goes_on(mode: str, stopped_after: int, tmp_path: Path) -> None:
    go_on(tmp_path, replace(ASIDE, mode=mode), stopped_after).close()  # type: ignore[attr-defined]
    *_, last = run(Picky(BAD), SOURCE, replace(ASIDE, mode=mode), run_dir=tmp_path)
    assert_accounted_for(last.state())


@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("stopped_after", [1, 2, 5, 9, 11])
def test_a_run_that_was_killed_finds_its_bad_records_in_the_journal(
    mode: str, stopped_after: int, tmp_path: Path
) -> None:
    steps = go_on(tmp_path / "run", replace(ASIDE, mode=mode), stopped_after)
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    steps.close()  # type: ignore[attr-defined]
    *_, last = run(Picky(BAD), SOURCE, replace(ASIDE, mode=mode), run_dir=tmp_path / "killed")
    assert_accounted_for(last.state())


def go_on(directory: Path, settings: Settings, steps: int) -> Any:
    """A run after some steps."""
    running = run(Picky(BAD), SOURCE, settings, run_dir=directory)
    for _ in range(steps):
        next(running)
    return running


def test_a_run_that_sets_aside_is_another_one_than_a_run_that_stops(tmp_path: Path) -> None:
    list(run(Picky(frozenset()), SOURCE, replace(ASIDE, records=20), run_dir=tmp_path))
    with pytest.raises(ResumeMismatch, match="bad_records = set-aside, now bad_records = stop"):
        run(Picky(frozenset()), SOURCE, replace(ASIDE, bad_records="stop"), run_dir=tmp_path)


def test_a_run_that_stops_has_counted_what_came_before(tmp_path: Path) -> None:
    settings = replace(ASIDE, bad_records="stop")
    steps: list[Step] = []
    with pytest.raises(DataError, match="record 25"):
        steps.extend(run(Picky(frozenset({25})), SOURCE, settings, run_dir=tmp_path))
    *_, last = run(Picky(frozenset()), SOURCE, settings, run_dir=tmp_path)  # the record was mended
    assert_accounted_for(last.state(), frozenset())
    assert (last.version, last.records) == (12, 120)
