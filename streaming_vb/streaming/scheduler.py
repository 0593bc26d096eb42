"""The driver's logic as a pure state machine: events in, actions out. No clock, no torch, no Ray.

An engine carries the actions out and reports events; the same machine therefore runs in one process, under a virtual
clock, and on a cluster. Events that a machine answers:

    WorkerReady  -> StartFit                      FitFailed  -> StartFit again (smaller steps), then SetAside
    FitDone      -> Push                          WorkerLost -> the interval is leased again, same seed, same bits
    Answered     -> StartFit for idle workers
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from streaming_vb.types import Interval, Lease, Receipt

MAX_LOSSES = 3
"""Workers that may die on one interval before it is set aside."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker is up and idle."""

    worker: int


@dataclass(frozen=True, slots=True)
class FitDone:
    """A worker has a delta for its lease."""

    worker: int


@dataclass(frozen=True, slots=True)
class FitFailed:
    """A worker has no delta: the fit was not finite."""

    worker: int
    num_records: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died; what it was fitting is gone."""

    worker: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The server's receipt for a push or for an interval set aside."""

    interval: Interval
    receipt: Receipt


Event = WorkerReady | FitDone | FitFailed | WorkerLost | Answered


@dataclass(frozen=True, slots=True)
class StartFit:
    """Hand a lease to an idle worker, with the snapshot of its base version."""

    worker: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class Push:
    """Send the delta of a lease to the server.

    Attributes:
        publish: publish the version that results.
        oldest_base: oldest version that a fit in flight started from.
    """

    lease: Lease
    publish: bool
    oldest_base: int


@dataclass(frozen=True, slots=True)
class PutAside:
    """Tell the server that an interval is read but not learned."""

    interval: Interval
    num_records: int
    reason: str
    publish: bool


Action = StartFit | Push | PutAside


class Scheduler(Protocol):
    """What an engine drives."""

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing is left to lease."""

    def handle(self, event: Event) -> list[Action]:
        """Actions to carry out, in order."""


@dataclass(frozen=True, slots=True)
class Task:
    """An interval to fit, and what happened to it so far."""

    interval: Interval
    attempt: int = 0
    losses: int = 0


class Asynchronous:
    """Merge on arrival: an idle worker gets the next interval, based on the newest version.

    Parallelism is earned: W(t) = min(workers, 1 + floor(N / ramp)) fits may be in flight, evaluated when an interval is
        leased, and
    each fit borrows the share 1/W(t) of the posterior as its prior.

    Args:
        intervals: what to fit, in order.
        workers: number of workers.
        ramp: records per additional worker; 0 means all workers from the start.
        share: 1/W(t) where none, else a fixed share.
        version, num_records: where the server stands.
    """

    def __init__(
        self,
        intervals: Iterator[Interval],
        *,
        workers: int,
        ramp: int,
        share: float | None,
        version: int = 0,
        num_records: int = 0,
    ) -> None:
        self._tasks = (Task(interval) for interval in intervals)
        self._again: deque[Task] = deque()
        self._workers, self._ramp, self._share = workers, ramp, share
        self._version, self._num_records = version, num_records
        self._idle: list[int] = []
        self._fitting: dict[int, tuple[Task, Lease]] = {}
        self._answering: dict[Interval, tuple[Task, Lease | None, int | None]] = {}
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing is left to lease."""
        return self._exhausted and not (self._fitting or self._answering or self._again)

    def handle(self, event: Event) -> list[Action]:
        """Actions to carry out, in order."""
        match event:
            case WorkerReady(worker):
                self._idle.append(worker)
            case FitDone(worker):
                task, lease = self._fitting.pop(worker)
                self._answering[lease.interval] = (task, lease, worker)
                return [Push(lease, publish=True, oldest_base=self._oldest_base())]
            case FitFailed(worker, num_records, reason):
                task, _ = self._fitting.pop(worker)
                self._idle.append(worker)
                return [*self._retry(task, num_records, reason), *self._lease_out()]
            case WorkerLost(worker):
                if worker in self._idle:
                    self._idle.remove(worker)
                for interval, (task, pushed, owner) in self._answering.items():
                    if owner == worker:  # its push is on the way: nobody is idle after the answer
                        self._answering[interval] = (task, pushed, None)
                if worker in self._fitting:
                    return [*self._lose(self._fitting.pop(worker)[0]), *self._lease_out()]
            case Answered(interval, receipt):
                return self._answer(interval, receipt)
        return self._lease_out()

    def _answer(self, interval: Interval, receipt: Receipt) -> list[Action]:
        task, lease, worker = self._answering.pop(interval)
        self._version, self._num_records = receipt.version, receipt.num_records
        actions: list[Action] = []
        if worker is not None:
            self._idle.append(worker)
        if receipt.status == "rejected" and lease is not None:
            actions += self._retry(task, 0, receipt.reason)
        return [*actions, *self._lease_out()]

    def _retry(self, task: Task, num_records: int, reason: str) -> list[Action]:
        if task.attempt == 0:
            self._again.append(replace(task, attempt=1))
            return []
        return self._put_aside(task, num_records, reason)

    def _lose(self, task: Task) -> list[Action]:
        if task.losses + 1 < MAX_LOSSES:
            self._again.append(replace(task, losses=task.losses + 1))
            return []
        return self._put_aside(task, 0, f"{MAX_LOSSES} workers died while fitting it")

    def _put_aside(self, task: Task, num_records: int, reason: str) -> list[Action]:
        self._answering[task.interval] = (task, None, None)
        return [PutAside(task.interval, num_records, reason, publish=True)]

    def _lease_out(self) -> list[Action]:
        actions: list[Action] = []
        self._idle.sort()
        while self._idle and len(self._fitting) + len(self._answering) < self._parallelism():
            task = self._again.popleft() if self._again else next(self._tasks, None)
            if task is None:
                self._exhausted = True
                break
            worker = self._idle.pop(0)
            weight = 1.0 / self._parallelism()
            share = weight if self._share is None else self._share
            lease = Lease(task.interval, task.attempt, self._version, share, weight)
            self._fitting[worker] = (task, lease)
            actions.append(StartFit(worker, lease))
        return actions

    def _parallelism(self) -> int:
        return earned(self._workers, self._ramp, self._num_records)

    def _oldest_base(self) -> int:
        leases = [lease for _, lease in self._fitting.values()]
        leases += [lease for _, lease, _ in self._answering.values() if lease is not None]
        return min(lease.base_version for lease in leases)


class Ordered:
    """Fixed rounds of K intervals, all based on the round's first version with share 1/K, merged in interval order.

    K = min(round_size, 1 + floor(N / ramp)) never depends on the number of workers, so the posterior does not either,
    to the bit. The fit state after a round is the mean over its fits (weight 1/i for the i-th).

    Args:
        intervals: what to fit, in order.
        round_size: K at most.
        ramp: records per additional interval in a round; 0 means full rounds from the start.
        share: 1/K where none, else a fixed share.
        version, num_records: where the server stands.
    """

    def __init__(
        self,
        intervals: Iterator[Interval],
        *,
        round_size: int,
        ramp: int,
        share: float | None,
        version: int = 0,
        num_records: int = 0,
    ) -> None:
        self._intervals = intervals
        self._round_size, self._ramp, self._share = round_size, ramp, share
        self._version, self._num_records = version, num_records
        self._idle: list[int] = []
        self._waiting: deque[tuple[Task, Lease]] = deque()
        self._fitting: dict[int, tuple[Task, Lease]] = {}
        self._outcomes: dict[Interval, tuple[Task, Lease | None, int, str]] = {}
        self._round: deque[Interval] = deque()
        self._is_answering = False
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing is left to lease."""
        return self._exhausted and not self._round

    def handle(self, event: Event) -> list[Action]:
        """Actions to carry out, in order."""
        match event:
            case WorkerReady(worker):
                self._idle.append(worker)
            case FitDone(worker):
                task, lease = self._fitting.pop(worker)
                self._outcomes[lease.interval] = (task, lease, 0, "")
                self._idle.append(worker)
            case FitFailed(worker, num_records, reason):
                task, lease = self._fitting.pop(worker)
                self._idle.append(worker)
                self._retry(task, lease, num_records, reason)
            case WorkerLost(worker):
                if worker in self._idle:
                    self._idle.remove(worker)
                if worker in self._fitting:
                    self._lose(*self._fitting.pop(worker))
            case Answered(interval, receipt):
                self._answer(interval, receipt)
        return [*self._lease_out(), *self._next_answer()]

    def _answer(self, interval: Interval, receipt: Receipt) -> None:
        task, lease, _, _ = self._outcomes.pop(interval)
        self._is_answering = False
        if receipt.status == "rejected" and lease is not None:
            self._retry(task, lease, 0, receipt.reason)
            return
        self._round.popleft()
        self._num_records = receipt.num_records
        if not self._round:
            self._version = receipt.version

    def _retry(self, task: Task, lease: Lease, num_records: int, reason: str) -> None:
        if task.attempt == 0:
            self._waiting.appendleft((replace(task, attempt=1), replace(lease, attempt=1)))
        else:
            self._outcomes[task.interval] = (task, None, num_records, reason)

    def _lose(self, task: Task, lease: Lease) -> None:
        if task.losses + 1 < MAX_LOSSES:
            self._waiting.appendleft((replace(task, losses=task.losses + 1), lease))
        else:
            reason = f"{MAX_LOSSES} workers died while fitting it"
            self._outcomes[task.interval] = (task, None, 0, reason)

    def _lease_out(self) -> list[Action]:
        if not self._round and not self._exhausted:
            self._plan_round()
        actions: list[Action] = []
        self._idle.sort()
        while self._idle and self._waiting:
            worker, (task, lease) = self._idle.pop(0), self._waiting.popleft()
            self._fitting[worker] = (task, lease)
            actions.append(StartFit(worker, lease))
        return actions

    def _plan_round(self) -> None:
        size = earned(self._round_size, self._ramp, self._num_records)
        planned = [interval for _, interval in zip(range(size), self._intervals, strict=False)]
        self._exhausted = len(planned) < size
        self._round.extend(planned)
        for i, interval in enumerate(planned, start=1):
            share = 1.0 / len(planned) if self._share is None else self._share
            self._waiting.append((Task(interval), Lease(interval, 0, self._version, share, 1.0 / i)))

    def _next_answer(self) -> list[Action]:
        if self._is_answering or not self._round or self._round[0] not in self._outcomes:
            return []
        self._is_answering = True
        interval = self._round[0]
        _, lease, num_records, reason = self._outcomes[interval]
        publish = len(self._round) == 1
        if lease is None:
            return [PutAside(interval, num_records, reason, publish)]
        return [Push(lease, publish, oldest_base=self._version)]


def earned(most: int, ramp: int, num_records: int) -> int:
    """min(most, 1 + floor(N / ramp)): how many fits may share one base.

    >>> earned(8, 30_000, 0), earned(8, 30_000, 60_000), earned(8, 0, 0)
    (1, 3, 8)
    """
    return most if ramp == 0 else min(most, 1 + num_records // ramp)
