"""Run directories: stop anywhere, go on, and nothing is lost or counted twice."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import fingerprint
from hypothesis import given
from hypothesis import strategies as st
from stubs import SMALL_VAE, Broken, CountingModel, binary_source, expected_sums

from streaming_vb.errors import ConfigError, DataError, ResumeMismatch
from streaming_vb.inference import adam
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.models.vae import VAE
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import snapshot, store
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.prepared import remaining
from streaming_vb.streaming.run import METRICS_FILE, Step, run
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.snapshot import POSTERIOR_FILE
from streaming_vb.types import Interval

PER_PARTITION = 95
INTEGERS = IntegerSource(records_per_partition=PER_PARTITION, partitions=2)
NUM_INTERVALS = 20
TENS = Settings(batch_size=5, local_steps=2, ramp=0)
ORDERED = Settings(mode="ordered", batch_size=5, local_steps=4, ramp=40, round_size=3)


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]


def saved(directory: Path) -> ServerState:
    return snapshot.load(directory / POSTERIOR_FILE).state


def bits(state: ServerState) -> str:
    return fingerprint(state.prior, state.posterior, state.fit_state)


def stop_after(steps: Iterator[Step], count: int) -> None:
    """Take `count` steps, then close the generator as a caller that has seen enough."""
    for _ in range(count):
        if next(steps, None) is None:
            return
    steps.close()


def run_vae(directory: Path | None, workers: int = 2, settings: Settings = ORDERED) -> Iterator[Step]:
    return run(SMALL_VAE, binary_source(190), settings, workers=workers, run_dir=directory)


@pytest.fixture(scope="module")
def uninterrupted() -> ServerState:
    *_, last = run_vae(None)
    return last.state()


@pytest.mark.parametrize("stop", range(11))
def test_an_ordered_run_resumes_bit_for_bit_from_any_point(
    stop: int, tmp_path: Path, uninterrupted: ServerState
) -> None:
    stop_after(run_vae(tmp_path), stop)
    list(run_vae(tmp_path, workers=3))
    resumed = saved(tmp_path)
    assert bits(resumed) == bits(uninterrupted)
    assert (resumed.version, resumed.num_records) == (uninterrupted.version, uninterrupted.num_records)
    assert resumed.ledger == uninterrupted.ledger


def test_an_ordered_run_resumes_bit_for_bit_after_many_stops(tmp_path: Path, uninterrupted: ServerState) -> None:
    for _ in range(12):
        stop_after(run_vae(tmp_path), 3)
    assert bits(saved(tmp_path)) == bits(uninterrupted)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=4), st.integers(1, 6))
def test_an_async_run_counts_every_record_once_over_any_stops(
    tmp_path_factory: pytest.TempPathFactory, stops: list[tuple[int, int]], last_workers: int
) -> None:
    directory = tmp_path_factory.mktemp("run")
    for count, workers in stops:
        stop_after(run(LedgerModel(), INTEGERS, TENS, workers=workers, run_dir=directory), count)
    list(run(LedgerModel(), INTEGERS, TENS, workers=last_workers, run_dir=directory))
    state = saved(directory)
    assert state.posterior["sum"].tolist() == expected_sums(list(INTEGERS.intervals({}, 10)), PER_PARTITION)
    assert state.num_records == state.ledger.num_covered() == 2 * PER_PARTITION
    assert state.ledger.cursor(INTEGERS.fingerprint) == INTEGERS.newest()


@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("stop", range(1, 9))
def test_metrics_have_one_row_per_merge_after_a_stop_and_a_resume(mode: str, stop: int, tmp_path: Path) -> None:
    settings = replace(TENS, mode=mode, round_size=3)
    stop_after(run(LedgerModel(), INTEGERS, settings, workers=3, run_dir=tmp_path), stop)
    list(run(LedgerModel(), INTEGERS, settings, workers=3, run_dir=tmp_path))
    assert [row["version"] for row in rows(tmp_path)] == list(range(1, NUM_INTERVALS + 1))
    assert sum(row["new"] for row in rows(tmp_path)) == 2 * PER_PARTITION


@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("killed_at", [2, 5, 9])
def test_nothing_that_was_yielded_is_lost_by_a_kill(mode: str, killed_at: int, tmp_path: Path) -> None:
    """A copy of the directory in the middle of a run is what a killed process leaves, with half a line of metrics."""
    settings, killed = replace(TENS, mode=mode, round_size=3), tmp_path / "killed"
    steps = run(LedgerModel(), INTEGERS, settings, workers=3, run_dir=tmp_path / "run")
    for _ in range(killed_at):
        next(steps)
    shutil.copytree(tmp_path / "run", killed)
    steps.close()
    with open(killed / METRICS_FILE, "a") as file:
        file.write('{"status": "mer')
    rest = list(run(LedgerModel(), INTEGERS, settings, workers=3, run_dir=killed))
    assert [step.version for step in rest] == list(range(killed_at + 1, NUM_INTERVALS + 1))
    assert [row["version"] for row in rows(killed)] == list(range(1, NUM_INTERVALS + 1))
    assert saved(killed).posterior["sum"].tolist() == expected_sums(list(INTEGERS.intervals({}, 10)), PER_PARTITION)


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_intervals_set_aside_have_one_row_after_a_stop_and_a_resume(mode: str, tmp_path: Path) -> None:
    settings, source = replace(TENS, mode=mode, round_size=3), IntegerSource(records_per_partition=60)
    for stop in (1, 2, 100):
        primitive: Any = Broken(starts=(0, 10))
        stop_after(run(CountingModel(), source, settings, primitive=primitive, run_dir=tmp_path), stop)
    statuses = [row["status"] for row in rows(tmp_path)]
    assert sorted(statuses) == ["merged"] * 4 + ["set-aside"] * 2


def test_the_posterior_is_never_ahead_of_the_steps_that_were_yielded(tmp_path: Path) -> None:
    for mode in ("async", "ordered"):
        settings = replace(TENS, mode=mode, round_size=2)
        for step in run(LedgerModel(), INTEGERS, settings, workers=3):
            assert step.state().version <= step.version, mode


def test_a_finished_run_does_nothing_when_it_is_called_again(tmp_path: Path) -> None:
    list(run(LedgerModel(), INTEGERS, TENS, run_dir=tmp_path))
    before = (tmp_path / METRICS_FILE).read_bytes(), bits(saved(tmp_path))
    assert list(run(LedgerModel(), INTEGERS, TENS, run_dir=tmp_path)) == []
    assert ((tmp_path / METRICS_FILE).read_bytes(), bits(saved(tmp_path))) == before


def test_an_exception_of_the_caller_saves_what_was_learned(tmp_path: Path) -> None:
    def watch() -> None:
        for step in run(LedgerModel(), INTEGERS, TENS, workers=3, run_dir=tmp_path):
            if step.version == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch()
    assert saved(tmp_path).version == len(rows(tmp_path)) == 4


def test_an_interrupt_inside_the_run_saves_what_was_learned(tmp_path: Path) -> None:
    steps = run(LedgerModel(), INTEGERS, TENS, workers=3, run_dir=tmp_path)
    for _ in range(4):
        next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert saved(tmp_path).version == len(rows(tmp_path)) == 4


def test_data_that_cannot_be_scored_stops_the_run_and_saves_what_was_learned(tmp_path: Path) -> None:
    x = np.zeros((100, 6), np.float32)
    x[57, 2] = np.nan
    with pytest.raises(DataError, match="record 57 column 2"):
        list(run(SMALL_VAE, ArraySource({"x": x}, seed=None), TENS, run_dir=tmp_path))
    assert saved(tmp_path).num_records == 50


@pytest.mark.parametrize(
    ("records", "expected"), [(1, [1]), (10, [10]), (25, [10, 10, 5]), (30, [10, 10, 10]), (97, [10] * 9 + [5, 2])]
)
@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_a_limit_cuts_the_last_interval(mode: str, records: int, expected: list[int]) -> None:
    steps = list(run(LedgerModel(), INTEGERS, replace(TENS, mode=mode, records=records)))
    assert [step.num_new for step in steps] == expected
    assert steps[-1].records == records


def test_a_limit_beyond_the_source_is_the_whole_source() -> None:
    *_, last = run(LedgerModel(), INTEGERS, replace(TENS, records=10**6))
    assert last.records == 2 * PER_PARTITION


@pytest.mark.parametrize("workers", [1, 4])
def test_a_limit_can_be_raised_later(workers: int, tmp_path: Path) -> None:
    for records in (25, 26, 100, 190):
        list(run(LedgerModel(), INTEGERS, replace(TENS, records=records), workers=workers, run_dir=tmp_path))
        assert saved(tmp_path).num_records == records
    assert saved(tmp_path).posterior["sum"].tolist() == expected_sums(list(INTEGERS.intervals({}, 10)), PER_PARTITION)


@given(st.sets(st.integers(0, 29)), st.integers(1, 7), st.none() | st.integers(1, 100))
def test_remaining_intervals_are_what_the_ledger_does_not_cover(
    covered: set[int], size: int, limit: int | None
) -> None:
    source = IntegerSource(records_per_partition=15, partitions=2)
    ledger = Ledger()
    for position in covered:
        number, start = divmod(position, 15)
        ledger = ledger.add(Interval(source.fingerprint, f"part-{number}", start, start + 1))
    intervals = list(remaining(source, ledger, size, limit))
    positions = [
        15 * int(interval.partition[-1]) + i for interval in intervals for i in range(interval.start, interval.stop)
    ]
    missing = sorted(set(range(30)) - covered)
    assert positions == (missing if limit is None else missing[: max(0, limit - len(covered))])
    assert all(0 < interval.stop - interval.start <= size for interval in intervals)


MISMATCHES = {
    "seed": replace(ORDERED, seed=1),
    "mode": replace(ORDERED, mode="async"),
    "batch_size": replace(ORDERED, batch_size=6),
    "local_steps": replace(ORDERED, local_steps=5),
    "ramp": replace(ORDERED, ramp=41),
    "share": replace(ORDERED, share="1"),
    "round_size": replace(ORDERED, round_size=4),
    "forgetting": replace(ORDERED, forgetting="none"),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("started")
    stop_after(run_vae(directory), 4)
    return directory


@pytest.mark.parametrize("name", MISMATCHES)
def test_another_setting_is_named_when_a_run_is_resumed(name: str, started: Path) -> None:
    before = (started / POSTERIOR_FILE).read_bytes()
    with pytest.raises(ResumeMismatch, match=rf"made with {name} = .*, now {name} = .*--run-dir"):
        run_vae(started, settings=MISMATCHES[name])
    assert (started / POSTERIOR_FILE).read_bytes() == before


def test_another_model_source_or_primitive_is_named_when_a_run_is_resumed(started: Path) -> None:
    with pytest.raises(ResumeMismatch, match="latent = 2, now latent = 3"):
        run(VAE(6, hidden=(5,), latent=3), binary_source(190), ORDERED, run_dir=started)
    with pytest.raises(ResumeMismatch, match="now source ="):
        run(SMALL_VAE, binary_source(180), ORDERED, run_dir=started)
    with pytest.raises(ResumeMismatch, match="primitive = natural-gradient, now primitive = adam"):
        run(SMALL_VAE, binary_source(190), ORDERED, primitive=adam.build(SMALL_VAE), run_dir=started)


def test_another_order_of_the_same_table_is_refused_when_a_run_is_resumed(tmp_path: Path) -> None:
    first, other = (ArraySource({"id": np.arange(100)}, seed=seed) for seed in (0, 1))
    list(run(LedgerModel(), first, replace(TENS, records=50), run_dir=tmp_path))
    with pytest.raises(ResumeMismatch):
        run(LedgerModel(), other, TENS, run_dir=tmp_path)


def test_the_number_of_workers_and_records_may_change_when_a_run_is_resumed(started: Path) -> None:
    steps = run_vae(started, workers=5, settings=replace(ORDERED, records=100))
    assert next(steps).status == "merged"


def test_the_same_settings_said_in_other_words_resume(tmp_path: Path) -> None:
    for text in ("auto", "window:2000:0.1", "window:2e3:.1"):
        stop_after(run_vae(tmp_path, settings=replace(ORDERED, forgetting=text)), 2)


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"batch_size": 0}, "--batch-size"),
        ({"local_steps": 0}, "--local-steps"),
        ({"ramp": -1}, "--ramp"),
        ({"round_size": 0}, "--round"),
        ({"seed": -1}, "--seed"),
        ({"records": 0}, "--records"),
        ({"mode": "sync"}, "--mode"),
        ({"share": "2"}, "--share"),
    ],
)
def test_a_setting_out_of_range_is_named_by_its_flag(setting: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"^{flag} must be"):
        Settings(**setting)


def test_a_run_without_workers_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match="--workers must be at least 1"):
        run(LedgerModel(), INTEGERS, workers=0)


def test_forgetting_is_a_window_for_neural_models_and_nothing_for_conjugate_ones(tmp_path: Path) -> None:
    x, y = np.ones((10, 2)), np.ones(10)
    list(run(LinearRegression(2), ArraySource({"x": x, "y": y}), TENS, run_dir=tmp_path / "regression"))
    stop_after(run_vae(tmp_path / "vae"), 1)
    texts = [snapshot.load(tmp_path / name / POSTERIOR_FILE).settings["forgetting"] for name in ("regression", "vae")]
    assert texts == ["none", "window:2000:0.1"]


def test_metrics_are_plain_json_with_nothing_for_what_is_not_a_number(tmp_path: Path) -> None:
    primitive: Any = Broken(starts=(10,))
    list(run(CountingModel(), IntegerSource(30), TENS, primitive=primitive, run_dir=tmp_path))
    assert [row["status"] for row in rows(tmp_path)] == ["merged", "set-aside", "merged"]
    assert rows(tmp_path)[1]["elbo"] is None
    assert "NaN" not in (tmp_path / METRICS_FILE).read_text()


def test_the_posterior_is_saved_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SAVE_SECONDS", 0.0)
    steps = run(LedgerModel(), INTEGERS, TENS, run_dir=tmp_path)
    for _ in range(8):
        next(steps)
    deadline = time.monotonic() + 60
    while saved(tmp_path).version == 0 and time.monotonic() < deadline:  # a second thread saves
        time.sleep(0.01)
    assert 0 < saved(tmp_path).version <= 8
    steps.close()
