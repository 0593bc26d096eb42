"""Fixed rounds of K intervals, all based on the round's first version with share 1/K, merged in interval order."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from streaming_vb.streaming.ledger import Ledger
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


class Ordered:
    """K = min(round_size, 1 + floor(N / ramp)) never depends on the number of workers, so neither does the posterior,
    to the bit. The fit state after a round is the mean over its fits (weight 1/i for the i-th).

    Args:
        intervals: what to fit, in order, from the start of a round on.
        round_size: K at most.
        ramp: records per additional interval in a round; 0 means full rounds from the start.
        share: 1/K where none, else a fixed share.
        version, num_records: where the server stood at the start of the round.
        merged: what is in the posterior by now, where the round was interrupted.
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
        merged: Ledger = Ledger(),
    ) -> None:
        self._intervals = intervals
        self._round_size, self._ramp, self._share = round_size, ramp, share
        self._version, self._num_records = version, num_records
        self._merged = merged
        self._idle: list[int] = []
        self._waiting: deque[tuple[Task, Lease]] = deque()
        self._fitting: dict[int, tuple[Task, Lease]] = {}
        self._outcomes: dict[Interval, tuple[Task, Lease | PutAside]] = {}
        self._round: deque[Interval] = deque()
        self._is_answering = False
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing is left to lease."""
        return self._exhausted and not self._round

    def handle(self, event: Event) -> list[Action]:
        """Actions to carry out, in order."""
        actions: list[Action] = []
        match event:
            case WorkerReady(worker):
                self._idle.append(worker)
            case FitDone(worker):
                task, lease = self._fitting.pop(worker)
                self._idle.append(worker)
                if task.search is None:
                    self._outcomes[lease.interval] = (task, lease)
                else:
                    actions.append(Drop(lease.interval))
                    self._after_search(task.survived(), lease)
            case FitFailed(worker, num_records, reason):
                task, lease = self._fitting.pop(worker)
                self._idle.append(worker)
                if task.search is None:
                    self._retry(task, lease, num_records, reason)
                else:
                    self._after_search(task.survived(), lease)
            case LeaseVoid(worker, version):  # the round was merged, and its last answer lost: any fit brings it again
                task, lease = self._fitting.pop(worker)
                self._waiting.appendleft((task, replace(lease, base_version=max(lease.base_version, version))))
                self._idle.append(worker)
            case WorkerLost(worker, was_fitting):
                if worker in self._idle:
                    self._idle.remove(worker)
                if worker in self._fitting and not was_fitting:
                    self._waiting.appendleft(self._fitting.pop(worker))
                elif worker in self._fitting:
                    task, lease = self._fitting.pop(worker)
                    self._after_search(task.lost(), lease)
            case DeltaLost(interval):
                self._lose_delta(interval)
            case Answered(interval, receipt):
                self._answer(interval, receipt)
        return [*actions, *self._lease_out(), *self._next_answer()]

    def _answer(self, interval: Interval, receipt: Receipt) -> None:
        task, outcome = self._outcomes.pop(interval)
        self._is_answering = False
        if receipt.status == "rejected" and isinstance(outcome, Lease):
            self._retry(task, outcome, len(interval), receipt.reason)
            return
        self._round.popleft()
        self._num_records = receipt.num_records
        if not self._round:
            self._version = receipt.version

    def _retry(self, task: Task, lease: Lease, num_records: int, reason: str) -> None:
        if task.attempt == 0:
            self._waiting.appendleft((replace(task, attempt=1), replace(lease, attempt=1)))
        else:
            self._put_aside(task, num_records, reason)

    def _lose_delta(self, interval: Interval) -> None:
        task, outcome = self._outcomes[interval]
        if isinstance(outcome, Lease):
            del self._outcomes[interval]
            self._is_answering = self._is_answering and interval != self._round[0]
            self._waiting.appendleft((task, outcome))

    def _after_search(self, task: Task, lease: Lease) -> None:
        """Go on with a task whose worker died, or whose trial was fitted."""
        if task.search is not None and task.search.is_found:
            self._put_record_aside(task, lease, task.search.suspect)
        elif task.searches == MAX_SEARCHES:
            reason = "workers died on it again and again, on no record in particular"
            self._put_aside(task, len(task.interval), reason)
        else:
            self._waiting.appendleft((task, replace(lease, interval=task.to_fit)))

    def _put_record_aside(self, task: Task, lease: Lease, record: Interval) -> None:
        """The parts around the record take the place of the interval in its round."""
        parts = around(task.interval, record)
        at = self._round.index(task.interval)
        self._round.remove(task.interval)
        for part in sorted([*parts, record], reverse=True):
            self._round.insert(at, part)
        for part in reversed(parts):
            self._waiting.appendleft((Task(part), replace(lease, interval=part)))
        self._put_aside(Task(record), len(record), "workers died on this record")

    def _put_aside(self, task: Task, num_records: int, reason: str) -> None:
        self._outcomes[task.interval] = (task, PutAside(task.interval, num_records, reason, publish=False))

    def _lease_out(self) -> list[Action]:
        while not self._round and not self._exhausted:
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
        for i, interval in enumerate(planned, start=1):
            share = 1.0 / len(planned) if self._share is None else self._share
            for part in self._merged.uncovered(interval):
                self._round.append(part)
                self._waiting.append((Task(part), Lease(part, 0, self._version, share, 1.0 / i)))

    def _next_answer(self) -> list[Action]:
        if self._is_answering or not self._round or self._round[0] not in self._outcomes:
            return []
        self._is_answering = True
        _, outcome = self._outcomes[self._round[0]]
        publish = len(self._round) == 1
        if isinstance(outcome, PutAside):
            return [replace(outcome, publish=publish)]
        return [Push(outcome, publish, oldest_base=self._version)]
