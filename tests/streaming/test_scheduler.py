"""The driver's logic under every order of events that workers and a server can produce."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_vb.streaming.asynchronous import Asynchronous
from streaming_vb.streaming.ordered import Ordered
from streaming_vb.streaming.scheduler import (
    MAX_LOSSES,
    MAX_SEARCHES,
    Action,
    Answered,
    DeltaLost,
    Drop,
    FitDone,
    FitFailed,
    LeaseVoid,
    Push,
    PutAside,
    Scheduler,
    StartFit,
    WorkerLost,
    WorkerReady,
    earned,
)
from streaming_vb.types import Interval, Lease, Receipt

RECORDS = 10
"""Records of every interval."""
RAMP = 30
"""Records per additional fit in flight."""


def intervals(count: int) -> list[Interval]:
    return [Interval("source", "pass-0", RECORDS * i, RECORDS * (i + 1)) for i in range(count)]


class Mishap(Enum):
    """What may go wrong with a fit, or with its push."""

    FINE = "fine"
    FAILED = "the fit is not finite"
    LOST = "the worker dies"
    REJECTED = "the server refuses the delta"
    STALE = "the delta comes too late"
    GONE = "the delta is lost on its way"
    VOID = "the version that the lease starts from is gone"


FINE, FAILED, LOST, REJECTED, STALE, GONE, VOID = Mishap


class World:
    """Workers and a server that only count; it checks every action and plays the events that it is told to.

    Args:
        scheduler: the machine under test.
        workers: how many can come up.
        choose: picks one of the n events that can happen next.
        unlucky: what goes wrong with the next fit or push.
        poison: positions of records that kill every worker that reads them.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        workers: int,
        choose: Callable[[int], int],
        unlucky: Callable[[], Mishap] = lambda: Mishap.FINE,
        poison: frozenset[int] = frozenset(),
    ) -> None:
        self.scheduler, self.choose, self.unlucky, self.poison = scheduler, choose, unlucky, poison
        self.version = self.num_records = self.published = 0
        self.down = set(range(workers))
        self.idle: set[int] = set()
        self.fitting: dict[int, Lease] = {}
        self.unanswered: list[Push | PutAside] = []
        self.started: list[Lease] = []
        self.answers: list[tuple[Interval, str]] = []
        self.failures: Counter[Interval] = Counter()
        self.losses: Counter[Interval] = Counter()
        self.deaths = 0
        self.held: set[Interval] = set()
        self.in_flight: list[tuple[int, int, Lease]] = []

    def run(self) -> None:
        for _ in range(10_000):
            if self.scheduler.finished:
                assert not self.fitting
                assert not self.unanswered
                return
            options = [*self.unanswered, *sorted(self.fitting), *(("up", worker) for worker in sorted(self.down))]
            assert options, "nothing can happen any more, and the run has not finished"
            self.play(options[self.choose(len(options))])
        raise AssertionError("the run does not end")

    def play(self, option: Push | PutAside | int | tuple[str, int]) -> None:
        match option:
            case Push() | PutAside():
                self.unanswered.remove(option)
                self.answer(option)
            case (_, worker):
                self.down.remove(worker)
                self.idle.add(worker)
                self.perform(self.scheduler.handle(WorkerReady(worker)))
            case int(worker):
                self.end_fit(worker)

    def end_fit(self, worker: int) -> None:
        lease = self.fitting.pop(worker)
        mishap = self.unlucky()
        if self.poison & set(range(lease.interval.start, lease.interval.stop)):
            mishap = LOST
        match mishap:
            case Mishap.FAILED:
                self.failures[lease.interval] += 1
                self.idle.add(worker)
                self.perform(self.scheduler.handle(FitFailed(worker, RECORDS, "not finite")))
            case Mishap.LOST:
                self.losses[lease.interval] += 1
                self.deaths += 1
                self.down.add(worker)
                self.perform(self.scheduler.handle(WorkerLost(worker)))
            case Mishap.VOID:
                self.idle.add(worker)
                self.perform(self.scheduler.handle(LeaseVoid(worker, self.published)))
            case _:
                self.idle.add(worker)
                self.held.add(lease.interval)
                self.perform(self.scheduler.handle(FitDone(worker)))

    def answer(self, action: Push | PutAside) -> None:
        interval = action.lease.interval if isinstance(action, Push) else action.interval
        status = "merged" if isinstance(action, Push) else "set-aside"
        mishap = self.unlucky() if isinstance(action, Push) else FINE
        self.held.discard(interval)
        if mishap is GONE:
            self.perform(self.scheduler.handle(DeltaLost(interval)))
            return
        is_stale = mishap is STALE and isinstance(self.scheduler, Asynchronous)
        if mishap is REJECTED or is_stale:
            status = "rejected"
            self.failures[interval] += not is_stale
        else:
            self.answers.append((interval, status))
        num_new = len(interval) if status == "merged" else 0
        self.version += num_new > 0
        self.num_records += num_new
        if action.publish and status != "rejected":
            self.published = self.version
        reason = "why" if status != "merged" else ""
        receipt = Receipt(status, self.version, num_new, self.num_records, 0, 0.0, 0.0, reason, is_stale)
        self.perform(self.scheduler.handle(Answered(interval, receipt)))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartFit(worker, lease):
                    assert worker in self.idle, "a fit is given to a worker that is not there, or busy"
                    assert lease.base_version == self.published, "the worker is handed another snapshot than it is told"
                    self.idle.remove(worker)
                    self.fitting[worker] = lease
                    self.started.append(lease)
                    self.in_flight.append((len(self.fitting) + len(self.unanswered), self.num_records, lease))
                case Push(lease, _, oldest_base):
                    assert oldest_base <= min(fit.base_version for fit in (lease, *self.fitting.values()))
                    self.unanswered.append(action)
                case PutAside():
                    self.unanswered.append(action)
                case Drop(interval):
                    self.held.remove(interval)


class Case(NamedTuple):
    """A world, and what it was made of."""

    world: World
    intervals: list[Interval]
    workers: int
    ramp: int


@st.composite
def cases(draw: st.DrawFn, mode: str, mishaps: bool, poison: bool = False) -> Case:
    """A run of up to 15 intervals on up to 5 workers, with any order of events."""
    workers, count = draw(st.integers(1, 5)), draw(st.integers(0, 15))
    killers = draw(st.frozensets(st.integers(0, 15 * RECORDS - 1), max_size=4)) if poison else frozenset[int]()
    ramp = draw(st.sampled_from([0, RAMP]))
    random = draw(st.randoms(use_true_random=False))
    if mode == "async":
        scheduler: Scheduler = Asynchronous(iter(intervals(count)), workers=workers, ramp=ramp, share=None)
    else:
        scheduler = Ordered(iter(intervals(count)), round_size=draw(st.integers(1, 5)), ramp=ramp, share=None)
    mishap = draw(st.sampled_from([0.1, 0.5, 0.9])) if mishaps else 0.0
    kinds = draw(
        st.sampled_from(
            [[FAILED], [LOST], [REJECTED], [STALE], [GONE], [VOID], [kind for kind in Mishap if kind is not FINE]]
        )
    )
    unlucky = lambda: random.choice(kinds) if random.random() < mishap else FINE  # noqa: E731
    return Case(World(scheduler, workers, random.randrange, unlucky, killers), intervals(count), workers, ramp)


def positions(intervals: list[Interval]) -> list[int]:
    return [position for interval in intervals for position in range(interval.start, interval.stop)]


every_mode = pytest.mark.parametrize("mode", ["async", "ordered"])


@every_mode
@given(st.data())
@settings(max_examples=150)
def test_every_interval_is_answered_exactly_once(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode, mishaps=True))
    case.world.run()
    assert sorted(positions([interval for interval, _ in case.world.answers])) == positions(case.intervals)
    assert not case.world.held, "deltas are kept that nobody asks for"


@every_mode
@given(st.data())
@settings(max_examples=150)
def test_records_that_kill_are_set_aside_alone_and_all_others_are_merged(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode, mishaps=False, poison=True))
    case.world.run()
    aside = [interval for interval, status in case.world.answers if status == "set-aside"]
    killers = case.world.poison & set(positions(case.intervals))
    assert sorted(positions(aside)) == sorted(killers)
    assert all(len(interval) == 1 for interval in aside)
    assert sorted(positions([interval for interval, _ in case.world.answers])) == positions(case.intervals)
    assert case.world.deaths <= len(killers) * (2 * math.log2(RECORDS) + 2)


@given(st.data())
def test_ordered_merges_around_a_record_that_kills_are_those_of_any_number_of_workers(data: st.DataObject) -> None:
    killers = data.draw(st.frozensets(st.integers(0, 59), max_size=3))
    answers = []
    for workers in (1, 4):
        random = data.draw(st.randoms(use_true_random=False))
        scheduler = Ordered(iter(intervals(6)), round_size=3, ramp=0, share=None)
        world = World(scheduler, workers, random.randrange, poison=killers)
        world.run()
        merged = [lease for lease in world.started if (lease.interval, "merged") in world.answers]
        answers.append((world.answers, sorted(set(merged), key=lambda lease: lease.interval)))
    assert answers[0] == answers[1]


@every_mode
@given(st.data())
def test_without_mishaps_every_interval_is_merged_after_one_fit(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode, mishaps=False))
    case.world.run()
    assert {status for _, status in case.world.answers} <= {"merged"}
    assert [lease.interval for lease in case.world.started] == case.intervals


@given(st.data())
def test_no_more_fits_are_in_flight_than_were_earned(data: st.DataObject) -> None:
    case = data.draw(cases("async", mishaps=True))
    case.world.run()
    for count, num_records, lease in case.world.in_flight:
        allowed = earned(case.workers, case.ramp, num_records)
        assert count <= allowed
        assert lease.share * allowed == pytest.approx(1.0) or (count, lease.share) == (1, 1.0)  # came too late before
        assert lease.state_weight == lease.share


@given(st.data())
def test_ordered_merges_come_in_interval_order(data: st.DataObject) -> None:
    case = data.draw(cases("ordered", mishaps=True))
    case.world.run()
    assert positions([interval for interval, _ in case.world.answers]) == positions(case.intervals)


@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from([0, RAMP]),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_ordered_leases_do_not_depend_on_the_number_of_workers(
    count: int, round_size: int, ramp: int, workers: tuple[int, int]
) -> None:
    leases = []
    for number in workers:
        order = itertools.cycle(range(number))
        scheduler = Ordered(iter(intervals(count)), round_size=round_size, ramp=ramp, share=None)
        world = World(scheduler, number, lambda n, order=order: next(order) % n)
        world.run()
        leases.append(sorted(world.started, key=lambda lease: lease.interval))
    assert leases[0] == leases[1]


@given(st.data())
def test_a_lost_fit_is_repeated_with_the_same_lease_in_ordered_mode(data: st.DataObject) -> None:
    world = data.draw(cases("ordered", mishaps=True)).world
    world.run()
    by_attempt: dict[tuple[Interval, int], set[Lease]] = {}
    for lease in world.started:
        by_attempt.setdefault((lease.interval, lease.attempt), set()).add(lease)
    assert all(len(leases) == 1 for leases in by_attempt.values())


@every_mode
@given(st.data())
def test_an_interval_is_set_aside_after_two_failures_or_many_losses_and_never_before(
    mode: str, data: st.DataObject
) -> None:
    world = data.draw(cases(mode, mishaps=True)).world
    world.run()
    for interval, status in world.answers:
        losses = sum(count for lost, count in world.losses.items() if lost in interval or interval in lost)
        if status == "set-aside":
            assert world.failures[interval] >= 2 or losses > MAX_LOSSES
        assert world.failures[interval] <= 2
        assert losses <= (MAX_SEARCHES + 1) * (MAX_LOSSES + math.log2(RECORDS) + 2) * 2


def test_an_interval_on_which_workers_die_for_no_record_in_particular_is_set_aside_in_the_end() -> None:
    (whole,) = intervals(1)
    world = World(asynchronous(1, workers=1), 1, lambda n: 0)
    world.unlucky = lambda: LOST if world.started[-1].interval == whole else FINE
    world.run()
    assert world.answers == [(whole, "set-aside")]
    assert world.deaths == MAX_SEARCHES * MAX_LOSSES


class LateWorld(World):
    """The first interval comes too late a number of times; after the second, nothing else may be in flight with it."""

    refusals = 0
    most = 2

    def answer(self, action: Push | PutAside) -> None:
        is_late = isinstance(action, Push) and action.lease.interval.start == 0 and self.refusals < self.most
        if is_late and self.refusals >= 2:
            assert not self.fitting
        self.refusals += is_late
        self.unlucky = lambda: STALE if is_late else FINE
        super().answer(action)
        self.unlucky = lambda: FINE


@pytest.mark.parametrize("refusals", [2, 3, 7])
def test_a_fit_that_keeps_coming_too_late_is_in_the_end_the_only_one_in_flight(refusals: int) -> None:
    order = itertools.cycle([0, 1, 2])
    world = LateWorld(asynchronous(30, workers=3), 3, lambda n: next(order) % n)
    world.most = refusals
    world.run()
    assert world.refusals == refusals
    assert sorted(interval for interval, _ in world.answers) == intervals(30)


def ordered(count: int, round_size: int, **settings: int) -> Ordered:
    return Ordered(iter(intervals(count)), round_size=round_size, **{"ramp": 0, "share": None, **settings})


def asynchronous(count: int, workers: int, **settings: int) -> Asynchronous:
    return Asynchronous(iter(intervals(count)), workers=workers, **{"ramp": 0, "share": None, **settings})


def test_a_failed_fit_is_tried_again_as_attempt_1() -> None:
    scheduler = asynchronous(1, workers=1)
    scheduler.handle(WorkerReady(0))
    (again,) = scheduler.handle(FitFailed(0, RECORDS, "not finite"))
    assert isinstance(again, StartFit)
    assert again.lease.attempt == 1
    (aside,) = scheduler.handle(FitFailed(0, RECORDS, "still not finite"))
    assert aside == PutAside(intervals(1)[0], RECORDS, "still not finite", publish=True)


def test_a_lost_fit_keeps_its_attempt_and_so_its_seed() -> None:
    scheduler = asynchronous(1, workers=2)
    scheduler.handle(WorkerReady(0))
    scheduler.handle(WorkerReady(1))
    (again,) = scheduler.handle(WorkerLost(0))
    assert isinstance(again, StartFit)
    assert (again.worker, again.lease.attempt) == (1, 0)


@every_mode
def test_a_lease_whose_version_is_gone_is_given_again_from_one_that_is_there(mode: str) -> None:
    """A server that was started again is ahead of the driver, if the answer to its last merge was lost."""
    scheduler: Scheduler = asynchronous(1, workers=1) if mode == "async" else ordered(1, round_size=1)
    scheduler.handle(WorkerReady(0))
    (again,) = scheduler.handle(LeaseVoid(0, version=9))
    assert isinstance(again, StartFit)
    assert (again.lease.interval, again.lease.base_version) == (intervals(1)[0], 9)


@every_mode
def test_a_death_before_the_fit_began_says_nothing_about_the_interval(mode: str) -> None:
    scheduler: Scheduler = asynchronous(1, workers=1) if mode == "async" else ordered(1, round_size=1)
    for _ in range(20):
        (start,) = scheduler.handle(WorkerReady(0))
        assert isinstance(start, StartFit)
        assert start.lease.interval == intervals(1)[0]
        assert scheduler.handle(WorkerLost(0, was_fitting=False)) == []


def test_a_rejected_delta_is_fitted_again_on_the_current_version() -> None:
    scheduler = asynchronous(1, workers=1, version=3)
    scheduler.handle(WorkerReady(0))
    scheduler.handle(FitDone(0))
    (again,) = scheduler.handle(Answered(intervals(1)[0], Receipt("rejected", 5, 0, 50, 0, 0.0, 0.0, "why")))
    assert isinstance(again, StartFit)
    assert (again.lease.base_version, again.lease.attempt) == (5, 1)


def test_an_idle_worker_that_died_gets_no_lease() -> None:
    scheduler = asynchronous(2, workers=2, ramp=100)
    scheduler.handle(WorkerReady(0))
    scheduler.handle(WorkerReady(1))
    scheduler.handle(WorkerLost(1))
    scheduler.handle(FitDone(0))
    started = scheduler.handle(Answered(intervals(1)[0], Receipt("merged", 1, 10, 100, 0, 0.0, 0.0)))
    assert [action.worker for action in started if isinstance(action, StartFit)] == [0]


def test_a_worker_that_died_while_its_push_was_answered_gets_no_lease() -> None:
    scheduler = asynchronous(2, workers=1)
    scheduler.handle(WorkerReady(0))
    scheduler.handle(FitDone(0))
    scheduler.handle(WorkerLost(0))
    assert scheduler.handle(Answered(intervals(1)[0], Receipt("merged", 1, 10, 10, 0, 0.0, 0.0))) == []
    assert scheduler.handle(WorkerReady(0)) == [StartFit(0, Lease(intervals(2)[1], 0, 1, 1.0, 1.0))]


def test_a_push_names_the_oldest_base_in_flight() -> None:
    scheduler = asynchronous(4, workers=2)
    scheduler.handle(WorkerReady(0))
    scheduler.handle(WorkerReady(1))
    scheduler.handle(FitDone(0))
    scheduler.handle(Answered(intervals(1)[0], Receipt("merged", 1, 10, 10, 0, 0.0, 0.0)))
    (push,) = scheduler.handle(FitDone(0))
    assert isinstance(push, Push)
    assert (push.lease.base_version, push.oldest_base) == (1, 0)


def test_a_fixed_share_does_not_change_the_weight_of_the_fit_state() -> None:
    scheduler = Asynchronous(iter(intervals(3)), workers=2, ramp=0, share=1.0)
    (action,) = scheduler.handle(WorkerReady(0))
    assert isinstance(action, StartFit)
    assert (action.lease.share, action.lease.state_weight) == (1.0, 0.5)


def test_fit_states_of_a_round_are_weighted_one_over_their_place() -> None:
    scheduler = ordered(3, round_size=3)
    leases = [
        action.lease
        for worker in range(3)
        for action in scheduler.handle(WorkerReady(worker))
        if isinstance(action, StartFit)
    ]
    assert [lease.share for lease in leases] == [1 / 3] * 3
    assert [lease.state_weight for lease in leases] == [1, 1 / 2, 1 / 3]


def test_only_the_last_merge_of_a_round_is_published() -> None:
    scheduler = ordered(2, round_size=2)
    scheduler.handle(WorkerReady(0))
    (push, start) = sorted(scheduler.handle(FitDone(0)), key=lambda action: isinstance(action, StartFit))
    assert isinstance(start, StartFit)
    assert isinstance(push, Push)
    assert not push.publish
    scheduler.handle(FitDone(0))
    (last,) = scheduler.handle(Answered(intervals(1)[0], Receipt("merged", 1, 10, 10, 0, 0.0, 0.0)))
    assert isinstance(last, Push)
    assert last.publish


def test_a_short_last_round_shares_among_its_own_intervals() -> None:
    scheduler = ordered(1, round_size=4)
    (action,) = scheduler.handle(WorkerReady(0))
    assert isinstance(action, StartFit)
    assert action.lease.share == 1.0


@pytest.mark.parametrize(("num_records", "size"), [(0, 1), (29, 1), (30, 2), (60, 3), (1000, 4)])
def test_rounds_grow_with_the_records(num_records: int, size: int) -> None:
    scheduler = ordered(20, round_size=4, ramp=RAMP, num_records=num_records)
    started = [action for worker in range(6) for action in scheduler.handle(WorkerReady(worker))]
    assert len(started) == size


@every_mode
def test_an_empty_source_ends_with_the_first_worker(mode: str) -> None:
    scheduler: Scheduler = asynchronous(0, workers=2) if mode == "async" else ordered(0, round_size=2)
    assert not scheduler.finished
    assert scheduler.handle(WorkerReady(0)) == []
    assert scheduler.finished


@pytest.mark.parametrize(("num_records", "expected"), [(0, 1), (29_999, 1), (30_000, 2), (209_999, 7), (10**9, 8)])
def test_parallelism_is_earned_by_records(num_records: int, expected: int) -> None:
    assert earned(8, 30_000, num_records) == expected
