"""The engine on Ray: carries out a scheduler's actions with one server actor and W worker actors.

The driver owns every delta and every snapshot as a reference, and moves references: a delta travels from worker to
server without passing its memory, and survives the death of either. Arrays on the wire are NumPy. In flight is bounded
by the scheduler, one fit per worker, and answers are taken as they come with `ray.wait`.
"""

import logging
import time
from collections import deque
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayError, RayTaskError

from streaming_vb.errors import ClusterError, StreamingVBError
from streaming_vb.streaming.engines import Usage
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.run import Prepared
from streaming_vb.streaming.scheduler import (
    Action,
    Answered,
    Event,
    FitDone,
    FitFailed,
    Push,
    PutAside,
    StartFit,
    WorkerLost,
    WorkerReady,
)
from streaming_vb.types import Interval, Lease
from workers import cluster
from workers.encoder_worker import EncoderWorker, Report
from workers.parameter_server import ParameterServer

logger = logging.getLogger(__name__)

_START_SECONDS = 120.0
"""How long a worker may take to load torch before the cluster is called unusable."""


class _Fit(NamedTuple):
    """A fit in flight."""

    worker: int
    lease: Lease
    delta: Any
    started: float


class _Call(NamedTuple):
    """A call to the server in flight."""

    interval: Interval
    snapshot: Any
    publish: bool


class RayEngine:
    """Server and workers as actors.

    Args:
        prepared: the run.
        workers: W.
        address: of an existing cluster; none starts a local one.

    Raises:
        ClusterError: the cluster cannot be reached, is too small, or its workers do not start.
    """

    def __init__(self, prepared: Prepared, workers: int, address: str | None = None) -> None:
        self._owns_cluster = cluster.connect(address, num_cpus=workers)
        try:
            cluster.require_cpus(workers)
            self._local_update = ray.put(prepared.local_update)
            server = ray.remote(ParameterServer).options(
                num_cpus=0, max_restarts=0, max_task_retries=0, resources=cluster.server_resources()
            )
            self._server = server.remote(prepared.server_state, prepared.rule)
            self._workers = {worker: self._start_worker() for worker in range(workers)}
            ray.get([actor.ready.remote() for actor in self._workers.values()], timeout=_START_SECONDS)
            self._snapshot = self._server.read.remote()
            ray.wait([self._snapshot], timeout=_START_SECONDS)
        except RayError as error:
            self._disconnect()
            raise ClusterError(
                f"the actors of the run did not start ({_one_line(error)}). Every node needs the same Python, Ray and "
                "streaming-vb: pip install streaming-vb there"
            ) from error
        except BaseException:
            self._disconnect()
            raise
        self._fits: dict[Any, _Fit] = {}
        self._calls: dict[Any, _Call] = {}
        self._deltas: dict[Interval, Any] = {}
        self._scores: dict[Interval, float] = {}
        self._events: deque[Event] = deque(WorkerReady(worker) for worker in self._workers)
        self._final_state: ServerState | None = None
        self._lost: ClusterError | None = None
        self._busy, self._started = 0.0, time.monotonic()
        self._elapsed: float | None = None

    def perform(self, action: Action) -> None:
        """Submit a call; nothing here waits."""
        match action:
            case StartFit(worker, lease):
                process = self._workers[worker].process.options(num_returns=2)
                report, delta = process.remote(lease, self._snapshot)
                self._fits[report] = _Fit(worker, lease, delta, time.monotonic())
            case Push(lease, publish, oldest_base):
                push = self._server.push.options(num_returns=2)
                receipt, snapshot = push.remote(self._deltas[lease.interval], publish, oldest_base)
                self._calls[receipt] = _Call(lease.interval, snapshot, publish)
            case PutAside(interval, num_records, reason, publish):
                set_aside = self._server.set_aside.options(num_returns=2)
                receipt, snapshot = set_aside.remote(interval, num_records, reason, publish)
                self._calls[receipt] = _Call(interval, snapshot, publish)

    def next_event(self) -> Event:
        """Wait for the first fit or answer to come back."""
        if self._events:
            return self._events.popleft()
        # The server answers in the order of the calls, so the oldest is awaited: versions are seen in order.
        oldest_call = list(self._calls)[:1]
        (done,), _ = ray.wait([*oldest_call, *self._fits], num_returns=1, fetch_local=False)
        return self._answered(done) if done in self._calls else self._fitted(done)

    def score(self, interval: Interval) -> float:
        """Score of an interval at the snapshot it was fitted from, nats per record."""
        return self._scores.pop(interval)

    def state(self) -> ServerState:
        """The state to save: at the last published version.

        Raises:
            ClusterError: the server is gone.
        """
        if self._final_state is not None:
            return self._final_state
        if self._lost is not None:
            raise self._lost
        try:
            state: ServerState = ray.get(self._server.state.remote())
        except RayError as error:
            raise self._server_lost(error) from error
        return state

    def usage(self) -> Usage:
        """Seconds."""
        elapsed = time.monotonic() - self._started if self._elapsed is None else self._elapsed
        return Usage(self._busy, elapsed)

    def close(self) -> list[Answered]:
        """Take the answers that are on the way, fetch the last state, end the actors, and leave the cluster."""
        if self._elapsed is not None:
            return []
        self._elapsed = time.monotonic() - self._started
        try:
            late = [self._answered(receipt) for receipt in list(self._calls)]
            self._final_state = self.state()
        finally:
            for actor in (*self._workers.values(), self._server):
                ray.kill(actor)
            self._disconnect()
        return [event for event in late if event.receipt.status != "duplicate"]

    def _fitted(self, report_ref: Any) -> Event:
        fit = self._fits.pop(report_ref)
        self._busy += time.monotonic() - fit.started
        try:
            report: Report = ray.get(report_ref)
        except RayTaskError as error:
            if isinstance(error.cause, StreamingVBError):
                raise error.cause from None
            raise
        except (ActorDiedError, ActorUnavailableError, ObjectLostError):
            return self._replace(fit)
        if report.failure:
            return FitFailed(fit.worker, report.num_records, report.failure)
        self._deltas[fit.lease.interval] = fit.delta
        self._scores[fit.lease.interval] = report.elbo
        return FitDone(fit.worker)

    def _replace(self, fit: _Fit) -> Event:
        """A dead worker's interval goes back to the scheduler, and a new worker takes its place."""
        logger.warning("worker %d died fitting %s; a new one takes its place", fit.worker, fit.lease.interval)
        ray.kill(self._workers[fit.worker])
        self._workers[fit.worker] = self._start_worker()
        self._events.append(WorkerReady(fit.worker))
        return WorkerLost(fit.worker)

    def _answered(self, receipt_ref: Any) -> Answered:
        call = self._calls.pop(receipt_ref)
        try:
            receipt = ray.get(receipt_ref)
        except RayError as error:
            raise self._server_lost(error) from error
        if call.publish and receipt.status != "rejected":
            self._snapshot = call.snapshot
        self._deltas.pop(call.interval, None)
        return Answered(call.interval, receipt)

    def _start_worker(self) -> Any:
        worker = ray.remote(EncoderWorker).options(
            num_cpus=1, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        return worker.remote(self._local_update)

    def _server_lost(self, error: RayError) -> ClusterError:
        self._lost = ClusterError(
            f"the parameter server died ({_one_line(error)}). The run directory holds the posterior of the last save; "
            "the same command goes on from there"
        )
        return self._lost

    def _disconnect(self) -> None:
        if self._owns_cluster:
            ray.shutdown()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
