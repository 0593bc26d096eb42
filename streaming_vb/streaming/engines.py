"""Engines carry out a scheduler's actions and report events. Here: everything in this process, under a virtual clock.

With one worker this is the `inline` engine. With more it is `simulated`: W workers with real staleness, reproducible
bit for bit, because a seeded clock decides who finishes when (a fit of n minibatches lasts n U(0.8, 1.2)).
"""

import heapq
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from streaming_vb.errors import NumericalError
from streaming_vb.seeding import numpy_generator
from streaming_vb.streaming import audit
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.patience import until_there_is_space
from streaming_vb.streaming.scheduler import (
    Action,
    Answered,
    Drop,
    Event,
    FitDone,
    FitFailed,
    Push,
    PutAside,
    StartFit,
    WorkerReady,
)
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.transport import Position
from streaming_vb.types import Delta, Interval, Lease, Receipt, Snapshot

logger = logging.getLogger(__name__)


class Usage(NamedTuple):
    """What the workers did so far, in the engine's own time (seconds, or virtual minibatches).

    Attributes:
        busy: time spent in fits, summed over workers.
        elapsed: time since the start.
    """

    busy: float
    elapsed: float


class Engine(Protocol):
    """Runs fits somewhere, and one server."""

    def position(self) -> Position:
        """Where the run stood when the engine opened it."""

    def perform(self, action: Action) -> None:
        """Begin what the scheduler asks for."""

    def next_event(self) -> Event:
        """Wait for something to happen."""

    def score(self, interval: Interval) -> float:
        """Score of an interval at the snapshot it was fitted from, nats per record."""

    def state(self) -> ServerState:
        """The state to save: at the last published version."""

    def usage(self) -> Usage:
        """How busy the workers were."""

    def close(self) -> list[Answered]:
        """Release workers; returns answers that nobody has taken yet. `score`, `state` and `usage` go on working."""


class InProcess:
    """One process, a virtual clock, W workers.

    Args:
        local_update: what every worker does.
        server: the parameter server.
        workers: W.
        seed: of the clock.
        batch_size: records per minibatch, the clock's unit.
    """

    def __init__(self, local_update: LocalUpdate, server: Server, *, workers: int, seed: int, batch_size: int) -> None:
        self._local_update, self._server = local_update, server
        self._batch_size = batch_size
        self._position = server.position()
        self._clock = numpy_generator(seed, "virtual clock", server.published().version)
        self._now = self._busy = 0.0
        self._is_closed = False
        self._running: list[tuple[float, int, Lease, Snapshot]] = []
        self._deltas: dict[Interval, Delta] = {}
        self._scores: dict[Interval, float] = {}
        self._events: deque[Event] = deque(WorkerReady(worker) for worker in range(workers))

    def position(self) -> Position:
        """Where the run stood when the engine opened it."""
        return self._position

    def perform(self, action: Action) -> None:
        """Begin a fit, or push at once."""
        match action:
            case StartFit(worker, lease):
                self._start(worker, replace(lease, generation=self._position.generation))
            case Push(lease, publish, oldest_base):
                delta = self._deltas.pop(lease.interval)
                self._scores[lease.interval] = delta.fit.elbo
                self._send(lease.interval, lambda: self._server.push(delta, oldest_base=oldest_base, publish=publish))
            case PutAside(interval, num_records, reason, publish):
                self._send(interval, lambda: self._server.set_aside(interval, num_records, reason, publish=publish))
            case Drop(interval):
                del self._deltas[interval]

    def next_event(self) -> Event:
        """The next event of the virtual clock; a fit is computed when it ends."""
        if self._events:
            return self._events.popleft()
        self._now, worker, lease, snapshot = heapq.heappop(self._running)
        try:
            delta = self._deltas[lease.interval] = self._local_update(lease, snapshot)
        except NumericalError as error:
            return FitFailed(worker, len(lease.interval), str(error))
        return FitDone(worker, audit.digest(delta) if self._local_update.is_audited else "")

    def score(self, interval: Interval) -> float:
        """Score of an interval at the snapshot it was fitted from, nats per record."""
        return self._scores.pop(interval)

    def state(self) -> ServerState:
        """The state to save: at the last published version."""
        return self._server.published()

    def usage(self) -> Usage:
        """Virtual minibatches."""
        return Usage(self._busy, self._now)

    def close(self) -> list[Answered]:
        """Save the posterior; nothing happens here unasked."""
        if not self._is_closed:
            self._is_closed = True
            self._server.close()
        return []

    def _start(self, worker: int, lease: Lease) -> None:
        steps = np.ceil((lease.interval.stop - lease.interval.start) / self._batch_size)
        duration = steps * self._clock.uniform(0.8, 1.2)
        self._busy += duration
        snapshot = self._server.snapshot(lease.base_version)
        assert snapshot is not None
        heapq.heappush(self._running, (self._now + duration, worker, lease, snapshot))

    def _send(self, interval: Interval, push: Callable[[], Receipt]) -> None:
        """Push, make it durable, and take the answer."""
        receipt = until_there_is_space(push, logger.warning, time.sleep)
        self._server.commit()
        self._events.append(Answered(interval, receipt))
