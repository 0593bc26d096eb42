"""The engine of everything that sends messages: it turns what a transport reports into events of the scheduler, and
makes sure that every push is answered.

Workers that die or are late are replaced; a server that dies is started again from its disk; what was not answered is
sent again, because it is harmless twice. All waiting is in the transport, all time on its clock, so the same engine
runs processes, Ray, and a simulated network.
"""

import logging
from collections import deque
from dataclasses import dataclass, replace

from streaming_vb.errors import ClusterError
from streaming_vb.streaming.engines import Usage
from streaming_vb.streaming.leases import LEAST_SECONDS, Leases
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.scheduler import (
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
    WorkerLost,
    WorkerReady,
)
from streaming_vb.streaming.transport import (
    Answer,
    Failed,
    Fitted,
    Message,
    Notice,
    Position,
    ServerDown,
    ServerUp,
    SnapshotGone,
    Transport,
    WorkerDown,
    WorkerUp,
)
from streaming_vb.streaming.transport import DeltaLost as DeltaGone
from streaming_vb.types import Interval, Lease

logger = logging.getLogger(__name__)

RESEND_SECONDS = 10.0
"""Seconds without an answer after which a push is sent again, doubled each time."""
MAX_RESTARTS = 5
"""Starts of a server, or of a worker, that may fail in a row."""
_START_SECONDS = 120.0
"""How long a server and the workers may take to come up."""
_DRAIN_SECONDS = 30.0
"""How long answers on the way are waited for when a run is stopped."""


@dataclass(slots=True)
class _Sent:
    """A push or an interval set aside that is not answered."""

    action: Push | PutAside
    due: float
    pause: float


class RemoteEngine:
    """Implements `engines.Engine` on a transport. When it is built, the server and all workers are up.

    Args:
        transport: starts and reaches the server and the workers.
        workers: W.
        is_durable: a server that died can be started again from its disk.
        lease_seconds: that a lease lasts at least.

    Raises:
        StreamingVBError: the run directory cannot be opened, or the workers do not start.
    """

    def __init__(
        self, transport: Transport, workers: int, *, is_durable: bool, lease_seconds: float = LEAST_SECONDS
    ) -> None:
        self._transport, self._is_durable = transport, is_durable
        self._leases = Leases(lease_seconds)
        self._events: deque[Event] = deque()
        self._up: set[int] = set()
        self._fits: dict[int, Lease] = {}
        self._outbox: dict[Interval, _Sent] = {}
        self._scores: dict[Interval, float] = {}
        self._position: Position | None = None
        self._generation = self._opened_at = 0
        self._failed_starts: dict[int | None, int] = {}
        self._server_is_up = False
        self._restart_at: float | None = None
        self._final_state: ServerState | None = None
        self._busy, self._started = 0.0, transport.now()
        self._elapsed: float | None = None
        try:
            self._start(workers)
        except BaseException:
            transport.close()
            raise
        self._started = transport.now()  # usage is of the time since everything is up

    def position(self) -> Position:
        """Where the run stood when it was opened."""
        assert self._position is not None
        return self._position

    def perform(self, action: Action) -> None:
        """Begin what the scheduler asks for; nothing here waits."""
        match action:
            case StartFit(worker, lease):
                if worker in self._up:  # else its death is an event on the way
                    lease = replace(lease, generation=self._generation)
                    self._fits[worker] = lease
                    self._leases.grant(worker, self._transport.now())
                    self._transport.fit(worker, lease)
            case Push() | PutAside():
                interval = action.lease.interval if isinstance(action, Push) else action.interval
                self._outbox[interval] = _Sent(action, self._transport.now() + RESEND_SECONDS, RESEND_SECONDS)
                self._send(action)
            case Drop(interval):
                self._transport.drop(interval)

    def next_event(self) -> Event:
        """Wait for something that the scheduler must know."""
        while not self._events:
            self._step()
        event = self._events.popleft()
        if isinstance(event, WorkerReady):
            self._up.add(event.worker)
        return event

    def score(self, interval: Interval) -> float:
        """Score of an interval at the snapshot it was fitted from, nats per record."""
        return self._scores.pop(interval, float("nan"))

    def state(self) -> ServerState:
        """The state published last."""
        while self._final_state is None:
            try:
                return self._transport.state()
            except ConnectionError:
                self._step()
        return self._final_state

    def usage(self) -> Usage:
        """Seconds."""
        elapsed = self._transport.now() - self._started if self._elapsed is None else self._elapsed
        return Usage(self._busy, elapsed)

    def close(self) -> list[Answered]:
        """Take the answers that are on the way, fetch the last state, end the processes."""
        if self._elapsed is not None:
            return []
        self._elapsed = self._transport.now() - self._started
        try:
            late = self._drain()
            self._final_state = self._last_state()
        finally:
            self._transport.close()
        return late

    def _start(self, workers: int) -> None:
        deadline = self._transport.now() + _START_SECONDS
        self._transport.start_server(None)
        for worker in range(workers):
            self._transport.start_worker(worker)
        while self._position is None or sum(isinstance(event, WorkerReady) for event in self._events) < workers:
            if self._transport.now() > deadline:
                raise ClusterError(
                    f"the server and {workers} workers were not up after {_START_SECONDS:.0f} s. Is the machine "
                    "busy with other work? Type --workers with a smaller number"
                )
            self._step()

    def _drain(self) -> list[Answered]:
        """Answers to pushes on the way, at most some seconds of them."""
        deadline = self._transport.now() + _DRAIN_SECONDS
        while self._outbox and self._server_is_up and self._transport.now() < deadline:
            self._step()
        return [event for event in self._events if isinstance(event, Answered)]

    def _last_state(self) -> ServerState | None:
        """The state published last; none where the server died and does not come back in time."""
        deadline = self._transport.now() + _DRAIN_SECONDS
        while self._transport.now() < deadline and (self._server_is_up or self._is_durable):
            try:
                return self._transport.state()
            except ConnectionError:
                self._step()
        return None

    def _step(self) -> None:
        """Take what happened, and do what is due."""
        for notice in self._transport.wait(self._patience()):
            self._take(notice)
        now = self._transport.now()
        if self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            self._transport.start_server(self.position().generation)
        for worker in self._leases.expired(now):
            logger.warning("worker %d did not finish %s in time; a new one takes its place", worker, self._fits[worker])
            self._leases.revoke(worker)
            self._transport.stop_worker(worker)
        for sent in self._outbox.values():
            if self._server_is_up and now >= sent.due:
                sent.pause *= 2
                sent.due = now + sent.pause
                self._send(sent.action)

    def _patience(self) -> float | None:
        """Seconds until something is due."""
        dues = [sent.due for sent in self._outbox.values()] if self._server_is_up else []
        dues += [due for due in (self._leases.next_deadline(), self._restart_at) if due is not None]
        return max(min(dues) - self._transport.now(), 0.0) if dues else _START_SECONDS

    def _send(self, action: Push | PutAside) -> None:
        if isinstance(action, Push):
            self._transport.push(action.lease, action.publish, action.oldest_base)
        else:
            self._transport.put_aside(action.interval, action.num_records, action.reason, action.publish)

    def _send_again(self) -> None:
        for sent in self._outbox.values():
            self._send(sent.action)

    def _take(self, notice: Notice) -> None:
        match notice:
            case WorkerUp(worker):
                self._failed_starts.pop(worker, None)
                self._events.append(WorkerReady(worker))
            case WorkerDown(worker, reason):
                self._replace_worker(worker, reason)
            case Fitted() | SnapshotGone() if self._fits.get(notice.worker) == notice.lease:
                self._fitted(notice)
            case DeltaGone(interval):
                if interval in self._outbox and isinstance(self._outbox[interval].action, Push):
                    del self._outbox[interval]
                    self._events.append(DeltaLost(interval))
            case Answer(interval, receipt):
                if self._outbox.pop(interval, None) is not None:
                    self._failed_starts.pop(None, None)
                    self._transport.drop(interval)
                    self._events.append(Answered(interval, receipt))
            case ServerUp(position):
                self._server_came_up(position)
            case ServerDown(reason, error):
                self._server_went_down(reason, error)
            case Failed(error):
                raise error
            case Message(text):
                logger.warning("%s", text)

    def _fitted(self, notice: Fitted | SnapshotGone) -> None:
        worker = notice.worker
        del self._fits[worker]
        self._busy += self._leases.end(worker, self._transport.now())
        if isinstance(notice, SnapshotGone):
            self._events.append(LeaseVoid(worker, self._opened_at))
        elif notice.failure:
            self._events.append(FitFailed(worker, notice.num_records, notice.failure))
        else:
            self._scores[notice.lease.interval] = notice.elbo
            self._events.append(FitDone(worker, notice.digest))

    def _replace_worker(self, worker: int, reason: str) -> None:
        """A dead worker's interval goes back to the scheduler, and a new worker takes its place."""
        self._count_failure(worker, f"worker {worker} does not start", reason)
        self._leases.revoke(worker)
        lease = self._fits.pop(worker, None)
        if lease is not None:
            logger.warning("worker %d died fitting %s (%s); a new one takes its place", worker, lease.interval, reason)
        self._up.discard(worker)
        self._events = deque(event for event in self._events if event != WorkerReady(worker))
        self._events.append(WorkerLost(worker, was_fitting=lease is not None))
        self._transport.start_worker(worker)
        self._send_again()  # a delta that the worker held is either at the server, or reported as lost

    def _server_came_up(self, position: Position) -> None:
        self._generation, self._opened_at, self._server_is_up = position.generation, position.version, True
        if self._position is None:
            self._position = position
            return
        logger.warning("the server was started again at version %d", position.version)
        self._send_again()

    def _server_went_down(self, reason: str, error: Exception | None) -> None:
        self._server_is_up = False
        if error is not None:
            raise error
        if not self._is_durable:
            raise ClusterError(
                f"the parameter server died ({reason}), and without a run directory its posterior is gone. "
                "Give the run a directory (run_dir, --run-dir)"
            )
        failures = self._count_failure(None, "the parameter server does not start, or dies before it merges", reason)
        if self._position is None:
            self._transport.start_server(None)
        else:
            self._restart_at = self._transport.now() + (0.0 if failures == 1 else 0.1 * 2**failures)
            logger.warning("the parameter server died (%s); it is started again from the run directory", reason)

    def _count_failure(self, who: int | None, what: str, reason: str) -> int:
        failures = self._failed_starts[who] = self._failed_starts.get(who, 0) + 1
        if failures > MAX_RESTARTS:
            raise ClusterError(f"{what}, {failures} times in a row ({reason}). What was merged is in the run directory")
        return failures
