"""Some intervals are fitted twice, by two workers where there are two, and must agree in every bit.

Randomness is a function of the interval, so honest workers of one kind of machine agree on the same base version. Where
two fits differ neither is merged: the interval is fitted again with smaller steps, and set aside when that fails too. A
worker that lies on a share f of its n intervals is caught with probability 1 - (1 - f a)^n, where a is the share that
is audited.
"""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np

from streaming_vb.seeding import derive
from streaming_vb.streaming.scheduler import (
    Action,
    Drop,
    Event,
    FitDone,
    FitFailed,
    LeaseVoid,
    Scheduler,
    StartFit,
    WorkerLost,
    WorkerReady,
)
from streaming_vb.types import Delta, Interval, Lease

logger = logging.getLogger(__name__)


def digest(delta: Delta) -> str:
    """SHA-256 of everything that a fit computed."""
    sha256 = hashlib.sha256(f"{delta.num_records} {delta.fit.elbo!r} {delta.bad_records}".encode())
    for arrays in (delta.fit.natural.arrays, delta.fit.fit_state):
        for name in sorted(arrays):
            sha256.update(f"{name} {arrays[name].dtype.str}".encode())
            sha256.update(np.ascontiguousarray(arrays[name]).data)
    return sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class _First:
    """A fit that waits for a second one; its worker counts as busy until then."""

    worker: int
    lease: Lease
    digest: str


class Audited:
    """A scheduler that holds some fits back until a second one agrees.

    A second fit is given to any other worker that is free; what the scheduler wants of that worker meanwhile waits.

    Args:
        scheduler: the driver's logic.
        share: of the intervals that are audited.
        seed: of the choice.
        workers: W; with one, it repeats its own fit.
    """

    def __init__(self, scheduler: Scheduler, share: float, seed: int, workers: int) -> None:
        self._scheduler, self._share, self._seed, self._workers = scheduler, share, seed, workers
        self._up: set[int] = set()
        self._fitting: dict[int, Lease] = {}
        self._firsts: dict[Interval, _First] = {}
        self._auditing: dict[int, Lease] = {}
        self._postponed: dict[int, Lease] = {}

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing is left to lease."""
        return self._scheduler.finished

    def handle(self, event: Event) -> list[Action]:
        """Actions to carry out, in order."""
        match event:
            case WorkerReady(worker):
                self._up.add(worker)
            case WorkerLost(worker, was_fitting):
                event = WorkerLost(worker, was_fitting and worker not in self._postponed)
                self._lose(worker)
            case FitDone(worker) | FitFailed(worker) | LeaseVoid(worker) if worker in self._auditing:
                return [*self._compare(worker, event), *self._begin_audits()]
            case FitDone(worker, sha256) if self._is_audited(self._fitting[worker]):
                lease = self._fitting.pop(worker)
                self._firsts[lease.interval] = _First(worker, lease, sha256)
                return self._begin_audits()
            case FitDone(worker) | FitFailed(worker) | LeaseVoid(worker):
                del self._fitting[worker]
        return [*self._pass_on(event), *self._begin_audits()]

    def _is_audited(self, lease: Lease) -> bool:
        """Whether a lease was drawn; parts of an interval that are tried for a record that kills may be, too."""
        interval = lease.interval
        drawn = derive(self._seed, "audit", interval.source, interval.partition, interval.start, interval.stop)
        return drawn < self._share * 2**63

    def _pass_on(self, event: Event) -> list[Action]:
        """The scheduler's actions, but for fits of workers that audit."""
        actions: list[Action] = []
        for action in self._scheduler.handle(event):
            if isinstance(action, StartFit) and action.worker in self._auditing:
                self._postponed[action.worker] = action.lease
                continue
            if isinstance(action, StartFit):
                self._fitting[action.worker] = action.lease
            actions.append(action)
        return actions

    def _begin_audits(self) -> list[Action]:
        actions: list[Action] = []
        for first in self._firsts.values():
            if first.lease in self._auditing.values():
                continue
            free = sorted(self._up - {first.worker} - self._fitting.keys() - self._auditing.keys())
            if self._workers == 1 and not self._auditing:
                free = [first.worker]
            if free:
                self._auditing[free[0]] = first.lease
                actions.append(StartFit(free[0], first.lease))
        return actions

    def _compare(self, auditor: int, event: Event) -> list[Action]:
        """What follows from a second fit; then the auditor turns to what was postponed."""
        lease = self._auditing.pop(auditor)
        interval = lease.interval
        actions: list[Action] = []
        first = self._firsts.get(interval)
        if first is None or first.lease != lease:  # its worker died meanwhile, and the interval was leased again
            actions = [Drop(interval)] if first is None and isinstance(event, FitDone) else []
        elif isinstance(event, LeaseVoid):
            actions = [Drop(interval), *self._release(first, LeaseVoid(first.worker, event.version))]
        elif isinstance(event, FitDone) and event.digest == first.digest:
            actions = self._release(first, FitDone(first.worker, first.digest))
        else:
            reason = f"two fits of it differ, by workers {first.worker} and {auditor}: one of them is faulty"
            logger.warning("audit: %s: %s", interval, reason)
            actions = [Drop(interval), *self._release(first, FitFailed(first.worker, len(interval), reason))]
        if auditor in self._postponed:
            postponed = self._fitting[auditor] = self._postponed.pop(auditor)
            actions.append(StartFit(auditor, postponed))
        return actions

    def _release(self, first: _First, event: Event) -> list[Action]:
        del self._firsts[first.lease.interval]
        return self._pass_on(event)

    def _lose(self, worker: int) -> None:
        """Forget a dead worker: a second fit goes to somebody else, a first one is done again by the scheduler."""
        self._up.discard(worker)
        self._fitting.pop(worker, None)
        self._auditing.pop(worker, None)
        self._postponed.pop(worker, None)
        self._firsts = {interval: first for interval, first in self._firsts.items() if first.worker != worker}
