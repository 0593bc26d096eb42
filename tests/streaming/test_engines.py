"""One process, a virtual clock, W workers."""

from typing import Any

import numpy as np
import pytest
from checks import fingerprint
from sklearn.datasets import load_digits
from stubs import SMALL_VAE, Broken, CountingModel, binary_source, expected_sums

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.models.vae import VAE
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.prepared import prepare
from streaming_vb.streaming.run import Step, drive, in_process, run
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.snapshot import posterior_sha256

PER_PARTITION = 95
INTEGERS = IntegerSource(records_per_partition=PER_PARTITION, partitions=2)
TENS = {"batch_size": 5, "local_steps": 2, "ramp": 0}
"""Settings for intervals of 10 records, and full parallelism from the start."""

every_mode = pytest.mark.parametrize("mode", ["async", "ordered"])


def steps_of(model: Any, source: Any, workers: int, primitive: Any = None, **settings: Any) -> list[Step]:
    return list(run(model, source, Settings(**{**TENS, **settings}), workers=workers, primitive=primitive))


def sha256(steps: list[Step]) -> str:
    return posterior_sha256(steps[-1].state().posterior)


def elapsed(workers: int, mode: str = "async") -> tuple[float, float]:
    """Busy and elapsed time of a run, in virtual minibatches."""
    prepared = prepare(LedgerModel(), INTEGERS, Settings(**{**TENS, "mode": mode}))
    engine = in_process(prepared, workers)
    list(drive(prepared.scheduler(workers, engine.position()), engine))
    return engine.usage()


@every_mode
@pytest.mark.parametrize("workers", range(1, 9))
def test_every_record_is_counted_exactly_once(mode: str, workers: int) -> None:
    steps = steps_of(LedgerModel(), INTEGERS, workers, mode=mode)
    state = steps[-1].state()
    assert state.posterior["sum"].tolist() == expected_sums(list(INTEGERS.intervals({}, 10)), PER_PARTITION)
    assert state.num_records == state.ledger.num_covered() == sum(step.num_new for step in steps) == 2 * PER_PARTITION
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))


@every_mode
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_is_reproduced_bit_for_bit(mode: str, workers: int) -> None:
    first, again = (
        steps_of(SMALL_VAE, binary_source(), workers, mode=mode, round_size=3, local_steps=4) for _ in range(2)
    )
    assert [step.row() for step in first] == [step.row() for step in again]
    states = [steps[-1].state() for steps in (first, again)]
    assert fingerprint(states[0].posterior, states[0].fit_state) == fingerprint(
        states[1].posterior, states[1].fit_state
    )


def test_another_seed_gives_another_schedule_and_posterior() -> None:
    runs = [steps_of(SMALL_VAE, binary_source(), 3, seed=seed, local_steps=4) for seed in (0, 1)]
    assert sha256(runs[0]) != sha256(runs[1])


def test_fits_of_several_workers_are_really_stale() -> None:
    steps = steps_of(SMALL_VAE, binary_source(), 4, local_steps=4)
    assert max(step.staleness for step in steps) >= 3
    assert all((step.staleness_sd > 0) == (step.staleness > 0) for step in steps)


def test_fits_of_one_worker_are_never_stale() -> None:
    steps = steps_of(SMALL_VAE, binary_source(), 1, local_steps=4)
    assert {(step.staleness, step.staleness_sd) for step in steps} == {(0, 0.0)}


def test_async_merges_arrive_in_another_order_than_they_were_leased() -> None:
    starts = [(step.interval.partition, step.interval.start) for step in steps_of(LedgerModel(), INTEGERS, 4)]
    assert starts != sorted(starts)


@every_mode
def test_workers_save_virtual_time(mode: str) -> None:
    alone, together = elapsed(1, mode), elapsed(4, mode)
    assert alone[0] == pytest.approx(alone[1])
    assert 1.5 < alone[1] / together[1] <= 4
    assert together[0] <= 4 * together[1]


@pytest.mark.parametrize("workers", [2, 4])
def test_ordered_mode_gives_the_same_bits_for_any_number_of_workers(workers: int) -> None:
    source = BinarizedSource(ArraySource({"x": load_digits().data / 16}), seed=0)
    model = VAE(64, hidden=(16,), latent=3)
    settings = {"mode": "ordered", "batch_size": 50, "local_steps": 4, "round_size": 4, "records": 1797, "ramp": 400}
    alone, several = (steps_of(model, source, number, **settings) for number in (1, workers))
    assert sha256(alone) == sha256(several)
    assert fingerprint(alone[-1].state().fit_state) == fingerprint(several[-1].state().fit_state)
    assert [step.row() for step in alone] == [step.row() for step in several]


def counted(steps: list[Step]) -> tuple[float, int, list[str]]:
    """Precision above the prior, records counted, and what happened to each interval in the end."""
    state = steps[-1].state()
    return state.posterior["precision"][0] - 1, state.num_records, [step.status for step in steps]


def run_broken(mode: str, workers: int, primitive: Broken, **settings: Any) -> list[Step]:
    source = IntegerSource(records_per_partition=50)
    return steps_of(CountingModel(), source, workers, primitive, mode=mode, round_size=2, **settings)


@every_mode
@pytest.mark.parametrize("workers", [1, 3])
def test_a_fit_that_is_not_finite_is_tried_again_with_smaller_steps(mode: str, workers: int) -> None:
    precision, num_records, statuses = counted(run_broken(mode, workers, Broken(starts=(20,), heals=True)))
    assert (precision, num_records, statuses) == (50, 50, ["merged"] * 5)


@every_mode
@pytest.mark.parametrize("workers", [1, 3])
def test_a_fit_that_is_never_finite_is_set_aside_and_the_rest_is_learned(mode: str, workers: int) -> None:
    steps = run_broken(mode, workers, Broken(starts=(20,)))
    precision, num_records, statuses = counted(steps)
    assert (precision, num_records) == (40, 40)
    assert sorted(statuses) == ["merged"] * 4 + ["set-aside"]
    (aside,) = steps[-1].state().ledger.set_aside
    assert (aside.interval.start, aside.num_records) == (20, 10)
    assert "not finite" in aside.reason
    assert steps[-1].state().ledger.num_covered() == 50


@every_mode
@pytest.mark.parametrize("workers", [1, 3])
def test_a_delta_that_the_server_refuses_is_fitted_again(mode: str, workers: int) -> None:
    steps = run_broken(mode, workers, Broken(starts=(20,), value=-1e9, heals=True))
    precision, num_records, statuses = counted(steps)
    assert (precision, num_records) == (50, 50)
    assert sorted(statuses) == ["merged"] * 5 + ["rejected"]


@every_mode
@pytest.mark.parametrize("workers", [1, 3])
def test_a_delta_that_the_server_refuses_twice_is_set_aside(mode: str, workers: int) -> None:
    steps = run_broken(mode, workers, Broken(starts=(20,), value=-1e9))
    precision, num_records, statuses = counted(steps)
    assert (precision, num_records) == (40, 40)
    assert sorted(statuses) == ["merged"] * 4 + ["rejected"] * 2 + ["set-aside"]
    assert steps[-1].state().ledger.num_set_aside == 10


def test_a_step_that_is_set_aside_counts_nothing_and_has_no_score() -> None:
    steps = run_broken("async", 1, Broken(starts=(20,)))
    (aside,) = (step for step in steps if step.status == "set-aside")
    assert aside.num_new == 0
    assert aside.row()["elbo"] is None
    assert "not finite" in aside.row()["reason"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_ordered_run_publishes_whole_rounds_even_where_a_delta_is_refused(workers: int) -> None:
    """Rounds are 0:10 10:20, 20:30 30:40 and 40:50; the last interval of the first one is refused and fitted again."""
    settings = Settings(**{**TENS, "mode": "ordered", "round_size": 2})
    primitive: Any = Broken(starts=(10,), value=-1e9, heals=True)
    steps = run(CountingModel(), IntegerSource(50), settings, workers=workers, primitive=primitive)
    assert {step.state().version for step in steps} <= {0, 2, 4, 5}


def test_more_workers_than_intervals_are_harmless() -> None:
    assert steps_of(LedgerModel(), IntegerSource(records_per_partition=15), 8)[-1].records == 15


def test_the_score_of_a_step_is_that_of_its_fit() -> None:
    steps = steps_of(SMALL_VAE, binary_source(), 3, local_steps=4)
    scores = np.array([step.elbo for step in steps])
    assert np.all(np.isfinite(scores))
    assert len(set(scores)) == len(scores)
