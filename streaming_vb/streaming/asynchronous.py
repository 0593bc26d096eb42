"""Merge on arrival: an idle worker gets the next interval, based on the newest version."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from streaming_vb.streaming.poison import around
from streaming_vb.streaming.scheduler import (
    MAX_SEARCHES,
    Action,
    Answered,
    DeltaLost,
    Drop,
    Event,
    FitDone,
    FitFailed,
    LeaseVoid,
    Push,
    PutAside,
    StartFit,
    Task,
    WorkerLost,
    WorkerReady,
    earned,
)
from streaming_vb.types import Interval, Lease, Receipt

_MAX_REFUSALS = 2
"""Times a delta may come too late before its interval is fitted with nothing else in flight."""


class Asynchronous:
    """Parallelism is earned: W(t) = min(workers, 1 + floor(N / ramp)) fits may be in flight, evaluated when an interval
    is leased, and each fit borrows the share 1/W(t) of the posterior as its prior.

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
        actions: list[Action] = []
        match event:
            case WorkerReady(worker):
                self._idle.append(worker)
            case FitDone(worker):
                task, lease = self._fitting.pop(worker)
                if task.search is None:
                    self._answering[lease.interval] = (task, lease, worker)
                    return [Push(lease, publish=True, oldest_base=self._oldest_base())]
                self._idle.append(worker)
                actions = [Drop(lease.interval), *self._after_search(task.survived())]
            case FitFailed(worker, num_records, reason):
                task, _ = self._fitting.pop(worker)
                self._idle.append(worker)
                is_trial = task.search is not None
                actions = self._after_search(task.survived()) if is_trial else self._retry(task, num_records, reason)
            case LeaseVoid(worker, version):
                self._version = max(self._version, version)
                self._again.appendleft(self._fitting.pop(worker)[0])
                self._idle.append(worker)
            case WorkerLost(worker, was_fitting):
                actions = self._lose(worker, was_fitting)
            case DeltaLost(interval):
                task, _, worker_or_none = self._answering.pop(interval)
                self._again.appendleft(task)
                if worker_or_none is not None:
                    self._idle.append(worker_or_none)
            case Answered(interval, receipt):
                actions = self._answer(interval, receipt)
        return [*actions, *self._lease_out()]

    def _answer(self, interval: Interval, receipt: Receipt) -> list[Action]:
        task, lease, worker = self._answering.pop(interval)
        self._version = max(self._version, receipt.version)
        self._num_records = max(self._num_records, receipt.num_records)
        if worker is not None:
            self._idle.append(worker)
        if receipt.is_stale:
            self._again.append(replace(task, refusals=task.refusals + 1))
        elif receipt.status == "rejected" and lease is not None:
            return self._retry(task, len(interval), receipt.reason)
        return []

    def _retry(self, task: Task, num_records: int, reason: str) -> list[Action]:
        if task.attempt == 0:
            self._again.append(replace(task, attempt=1))
            return []
        return self._put_aside(task, num_records, reason)

    def _lose(self, worker: int, was_fitting: bool) -> list[Action]:
        if worker in self._idle:
            self._idle.remove(worker)
        for interval, (task, pushed, owner) in self._answering.items():
            if owner == worker:  # its push is on the way: nobody is idle after the answer
                self._answering[interval] = (task, pushed, None)
        if worker not in self._fitting:
            return []
        task, _ = self._fitting.pop(worker)
        if was_fitting:
            return self._after_search(task.lost())
        self._again.appendleft(task)
        return []

    def _after_search(self, task: Task) -> list[Action]:
        """Go on with a task whose worker died, or whose trial was fitted."""
        if task.search is not None and task.search.is_found:
            record = task.search.suspect
            self._again.extendleft(Task(part) for part in reversed(around(task.interval, record)))
            return self._put_aside(Task(record), len(record), "workers died on this record")
        if task.searches == MAX_SEARCHES:
            reason = "workers died on it again and again, on no record in particular"
            return self._put_aside(task, len(task.interval), reason)
        self._again.append(task)
        return []

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
            lease = Lease(task.to_fit, task.attempt, self._version, share, weight)
            self._fitting[worker] = (task, lease)
            actions.append(StartFit(worker, lease))
        return actions

    def _parallelism(self) -> int:
        tasks = (*self._again, *(task for task, _ in self._fitting.values()))
        if any(task.refusals >= _MAX_REFUSALS for task in tasks):
            return 1
        return earned(self._workers, self._ramp, self._num_records)

    def _oldest_base(self) -> int:
        leases = [lease for _, lease in self._fitting.values()]
        leases += [lease for _, lease, _ in self._answering.values() if lease is not None]
        return min(lease.base_version for lease in leases)
