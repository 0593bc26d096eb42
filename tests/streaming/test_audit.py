"""Intervals fitted twice: honest workers change nothing, a worker that lies is caught, deaths leave nothing behind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stubs import SMALL_VAE, binary_source

from streaming_vb.streaming.asynchronous import Asynchronous
from streaming_vb.streaming.audit import Audited
from streaming_vb.streaming.ordered import Ordered
from streaming_vb.streaming.run import Step, run
from streaming_vb.streaming.scheduler import (
    Action,
    Answered,
    Drop,
    Event,
    FitDone,
    FitFailed,
    Push,
    PutAside,
    Scheduler,
    StartFit,
    WorkerLost,
    WorkerReady,
)
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Interval, Lease, Receipt


class World:
    """Workers that tell the digest of what they fitted; some lie, some die."""

    def __init__(self, scheduler: Scheduler, workers: int, choose: Callable[[int], int], liars: set[int]) -> None:
        self.scheduler = Audited(scheduler, 1.0, 0, workers)
        self.choose, self.liars = choose, liars
        self.down, self.fitting = set(range(workers)), dict[int, Lease]()
        self.unanswered: list[Push | PutAside] = []
        self.answers: dict[Interval, str] = {}
        self.fits: dict[Lease, int] = {}
        self.deaths = 0

    def run(self) -> None:
        for _ in range(5_000):
            if self.scheduler.finished:
                return
            options: list[Any] = [*self.unanswered, *sorted(self.fitting), *(("up", w) for w in sorted(self.down))]
            assert options, "nothing can happen any more, and the run has not finished"
            self.play(options[self.choose(len(options))])
        raise AssertionError("the run does not end")

    def play(self, option: Any) -> None:
        match option:
            case Push(lease):
                self.unanswered.remove(option)
                self.answer(lease.interval, "merged")
            case PutAside(interval):
                self.unanswered.remove(option)
                self.answer(interval, "set-aside")
            case (_, worker):
                self.down.remove(worker)
                self.tell(WorkerReady(worker))
            case int(worker):
                lease = self.fitting.pop(worker)
                if self.deaths and self.choose(3) == 0:
                    self.deaths -= 1
                    self.down.add(worker)
                    self.tell(WorkerLost(worker))
                    return
                self.fits[lease] = self.fits.get(lease, 0) + 1
                self.tell(FitDone(worker, f"{lease} {worker if worker in self.liars else 'honest'}"))

    def answer(self, interval: Interval, status: str) -> None:
        assert interval not in self.answers
        self.answers[interval] = status
        count = len(self.answers)
        self.tell(Answered(interval, Receipt(status, count, 10, 10 * count, 0, 0.0, 0.0)))

    def tell(self, event: Event) -> None:
        for action in self.scheduler.handle(event):
            self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case StartFit(worker, lease):
                assert worker not in self.fitting
                assert worker not in self.down
                self.fitting[worker] = lease
            case Push() | PutAside():
                self.unanswered.append(action)
            case Drop():
                pass


def machine(mode: str, workers: int) -> Scheduler:
    intervals = iter([Interval("source", "p", 10 * i, 10 * i + 10) for i in range(8)])
    if mode == "ordered":
        return Ordered(intervals, round_size=3, ramp=0, share=None)
    return Asynchronous(intervals, workers=workers, ramp=0, share=None)


every_mode = pytest.mark.parametrize("mode", ["async", "ordered"])


@every_mode
@given(st.integers(1, 4), st.randoms(use_true_random=False), st.integers(0, 3))
def test_every_interval_is_fitted_twice_and_merged_once(mode: str, workers: int, random: Any, deaths: int) -> None:
    world = World(machine(mode, workers), workers, random.randrange, liars=set())
    world.deaths = deaths
    world.run()
    assert sum(len(interval) for interval in world.answers) == 80
    assert set(world.answers.values()) == {"merged"}
    for interval in world.answers:
        assert max(count for lease, count in world.fits.items() if lease.interval == interval) >= 2


@every_mode
@given(st.integers(2, 4), st.randoms(use_true_random=False))
def test_nothing_that_a_liar_fitted_is_merged(mode: str, workers: int, random: Any) -> None:
    world = World(machine(mode, workers), workers, random.randrange, liars={0})
    merged_by: list[str] = []
    tell = world.scheduler._scheduler.handle

    def watched(event: Event) -> list[Action]:
        if isinstance(event, FitDone):
            merged_by.append(event.digest)
        return tell(event)

    world.scheduler._scheduler.handle = watched  # type: ignore[method-assign]
    world.run()
    assert len(world.answers) == 8
    assert all(sha256.endswith("honest") for sha256 in merged_by)


def test_two_fits_that_differ_are_a_failed_fit_of_the_first_worker(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Audited(machine("async", 1), 1.0, 0, 1)
    scheduler.handle(WorkerReady(0))
    (repeat,) = scheduler.handle(FitDone(0, "one"))
    assert isinstance(repeat, StartFit)
    actions = scheduler.handle(FitDone(0, "another"))
    assert isinstance(actions[0], Drop)
    assert isinstance(actions[1], StartFit)
    assert actions[1].lease.attempt == 1
    assert "differ" in caplog.text


def test_a_failed_second_fit_counts_as_a_difference() -> None:
    scheduler = Audited(machine("async", 1), 1.0, 0, 1)
    scheduler.handle(WorkerReady(0))
    scheduler.handle(FitDone(0, "one"))
    actions = scheduler.handle(FitFailed(0, 10, "not finite"))
    assert [type(action) for action in actions] == [Drop, StartFit]


def steps_of(**settings: Any) -> list[Step]:
    return list(run(SMALL_VAE, binary_source(), Settings(batch_size=10, local_steps=2, ramp=0, **settings), workers=3))


def test_an_audited_ordered_run_has_the_bits_of_one_that_is_not() -> None:
    plain, audited = steps_of(mode="ordered"), steps_of(mode="ordered", audit=0.5)
    for name, array in plain[-1].state().posterior.arrays.items():
        np.testing.assert_array_equal(array, audited[-1].state().posterior[name])


def test_the_share_that_is_audited_is_the_share_that_was_asked_for() -> None:
    scheduler = Audited(machine("async", 1), 0.2, 0, 1)
    leases = [Lease(Interval("s", "p", 10 * i, 10 * i + 10), 0, 0, 1.0, 1.0) for i in range(10_000)]
    share = np.mean([scheduler._is_audited(lease) for lease in leases])
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / len(leases))
