"""The transport of Ray: one server actor, W worker actors, and a driver that owns everything they make.

    driver -- process(lease, snapshot) --> worker      returns (report, delta)
           -- push(delta) ---------------> server      returns (receipt, snapshot)

The driver moves references: a delta travels from worker to server without passing its memory. What a call returns
belongs to the driver, so a delta outlives its worker and can be pushed again, and a snapshot outlives its server. Where
a message of a call was lost it is made again (`calls.py`): that is not the death of a worker, for which the record that
it read could be blamed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)

from streaming_vb.errors import ClusterError, StreamingVBError
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.prepared import Prepared
from streaming_vb.streaming.remote_engine import RemoteEngine
from streaming_vb.streaming.snapshot import POSTERIOR_FILE
from streaming_vb.streaming.transport import (
    Answer,
    DeltaLost,
    Failed,
    Fitted,
    Message,
    Notice,
    Position,
    ServerDown,
    ServerUp,
    SnapshotGone,
    WorkerDown,
    WorkerUp,
)
from streaming_vb.types import Interval, Lease, Receipt
from workers import cluster
from workers.calls import Call, Calls, ask, is_caused_by, one_line
from workers.encoder_worker import EncoderWorker, Report
from workers.parameter_server import LOCK_SECONDS, ParameterServer

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 60.0
"""How long a server may take to save its last snapshot; after that it is killed, and the journal has everything."""
_FULL = "the disk of the server is full: nothing is merged until there is space. Free some; the run then goes on"
_SPACE = "there is space again: the run goes on"


def engine(prepared: Prepared, workers: int, address: str | None = None) -> RemoteEngine:
    """The engine of a run on Ray; the server and the workers are up when this returns.

    Args:
        prepared: the run.
        workers: W.
        address: of an existing cluster; none starts a local one that ends with the run.

    Raises:
        ClusterError: the cluster cannot be reached, is too small, or its actors do not start.
        StreamingVBError: the run directory cannot be opened.
    """
    transport = RayTransport(prepared, workers, address)
    return RemoteEngine(transport, workers, is_durable=prepared.run_dir is not None)


class RayTransport:
    """Implements `streaming_vb.streaming.transport.Transport`.

    Args:
        prepared: the run.
        workers: how many there will be, one CPU each.
        address: of an existing cluster; none starts a local one.
        lock_seconds: how long another process may hold the run directory when the server opens it.

    Raises:
        ClusterError: the cluster cannot be reached, or is too small.
    """

    def __init__(
        self, prepared: Prepared, workers: int, address: str | None = None, lock_seconds: float = LOCK_SECONDS
    ) -> None:
        self._run_dir = None if prepared.run_dir is None else prepared.run_dir.absolute()  # actors start elsewhere
        self._lock_seconds = lock_seconds
        self._owns_cluster = cluster.connect(address, num_cpus=workers)
        try:
            cluster.require_cpus(workers)
            self._place = cluster.place_of_server()
            self._setup = ray.put(replace(prepared.server_setup, run_dir=self._run_dir))
            self._local_update = ray.put(prepared.local_update)
        except BaseException:
            self._disconnect()
            raise
        self._notices: list[Notice] = []
        self._server: Any = None
        self._workers: dict[int, Any] = {}
        self._server_calls, self._worker_calls = Calls(), Calls()
        self._deltas: dict[Interval, Any] = {}
        self._snapshots: dict[int, Any] = {}
        self._is_up = self._lost_server = self._disk_is_full = self._is_closed = False
        self._state: ServerState | None = None

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def start_server(self, since: int | None) -> None:
        """Start a server, ending one that is there; `ServerUp` or `ServerDown` follows."""
        self._end_server()
        self._lost_server = False
        actor = ray.remote(ParameterServer).options(num_cpus=0, max_restarts=0, max_task_retries=0, **self._place)
        server = self._server = actor.remote(self._setup, since, self._lock_seconds)
        self._call_server(
            lambda: server.open.options(num_returns=2).remote(),
            lambda position, snapshot: self._opened(server, position, snapshot),
        )

    def start_worker(self, worker: int) -> None:
        """Start a worker under a number, ending one that is there; `WorkerUp` or `WorkerDown` follows."""
        self.stop_worker(worker)
        actor = ray.remote(EncoderWorker).options(
            num_cpus=1, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        started = self._workers[worker] = actor.remote(self._local_update)
        self._worker_calls.make(
            Call(
                lambda: (started.ready.remote(), None),
                lambda *_: self._notices.append(WorkerUp(worker)),
                lambda error: self._worker_down(worker, started, error),
            ),
        )

    def stop_worker(self, worker: int) -> None:
        """Kill a worker; `WorkerDown` follows where it had something to do."""
        if worker in self._workers:
            ray.kill(self._workers[worker])

    def fit(self, worker: int, lease: Lease) -> None:
        """Hand a lease and the snapshot that it names to an idle worker."""
        actor, snapshot = self._workers[worker], self._snapshot(lease.base_version)
        self._worker_calls.make(
            Call(
                lambda: actor.process.options(num_returns=2).remote(lease, snapshot),
                lambda report, delta: self._fitted(worker, lease, report, delta),
                lambda error: self._not_fitted(worker, actor, lease, error),
            ),
        )

    def push(self, lease: Lease, publish: bool, oldest_base: int) -> None:
        """Hand the delta of a lease to the server."""
        interval, server, delta = lease.interval, self._server, self._deltas.get(lease.interval)
        self._forget_snapshots(oldest_base)
        if delta is None:
            self._notices.append(DeltaLost(interval))
        elif server is not None:
            self._call_server(
                lambda: server.push.options(num_returns=2).remote(delta, publish, oldest_base),
                lambda receipt, snapshot: self._answered(
                    interval, publish, receipt, snapshot, lambda: self.push(lease, publish, oldest_base)
                ),
                delta_of=interval,
            )

    def put_aside(self, interval: Interval, num_records: int, reason: str, publish: bool) -> None:
        """Tell the server that an interval is read but not learned."""
        server = self._server
        if server is not None:
            self._call_server(
                lambda: server.set_aside.options(num_returns=2).remote(interval, num_records, reason, publish),
                lambda receipt, snapshot: self._answered(
                    interval, publish, receipt, snapshot, lambda: self.put_aside(interval, num_records, reason, publish)
                ),
            )

    def drop(self, interval: Interval) -> None:
        """Forget the delta of an interval."""
        self._deltas.pop(interval, None)

    def wait(self, timeout: float | None) -> Sequence[Notice]:
        """What happened, in order; waits for something to happen, at most `timeout` seconds."""
        deadline = None if timeout is None else self.now() + timeout
        while not self._notices and not self._is_closed:
            remaining = None if deadline is None else max(deadline - self.now(), 0.0)
            # The server answers in the order of the calls, so the oldest is awaited: versions are seen in order.
            refs = [*self._server_calls.refs()[:1], *self._worker_calls.refs()]
            if not refs:
                time.sleep(remaining or 0.0)
                break
            done, _ = ray.wait(refs, num_returns=1, timeout=remaining, fetch_local=False)
            if not done:
                break
            calls = self._server_calls if done[0] in self._server_calls else self._worker_calls
            calls.take(done[0])
        notices, self._notices = self._notices, []
        return notices

    def state(self) -> ServerState:
        """The state published last.

        Raises:
            ConnectionError: the server died; a notice says so.
            ClusterError: it died before it was closed.
        """
        if self._is_closed:
            if self._state is None:
                raise ClusterError("the server died before it could give its state")
            return self._state
        server = self._server
        if server is None:
            raise ConnectionError("the server is down")
        try:
            state: ServerState = ask(server.state.remote)
        except RayError as error:
            self._server_down(error)
            raise ConnectionError("the server died before it could give its state") from error
        return state

    def close(self) -> None:
        """Save a snapshot, end server and workers, and leave the cluster."""
        if self._is_closed:
            return
        try:
            for actor in self._workers.values():
                ray.kill(actor)
            self._save()
            self._end_server()
        finally:
            self._is_closed = True
            self._disconnect()

    def _save(self) -> None:
        """Have the server save, a new one where it died: that finds everything in the journal."""
        starts_again = self._lost_server and self._run_dir is not None
        if starts_again:
            self.start_server(None)
        server = self._server
        if server is None or not (self._is_up or starts_again):
            return
        try:
            ask(lambda: server.open.options(num_returns=2).remote()[0], _CLOSE_SECONDS)
            self._state = ask(server.close.remote, _CLOSE_SECONDS)
        except (RayError, StreamingVBError, OSError) as error:
            logger.warning("the last snapshot is not saved (%s); the journal has everything", one_line(error))

    def _call_server(
        self,
        make: Callable[[], tuple[Any, Any]],
        take: Callable[[Any, Any], None],
        delta_of: Interval | None = None,
    ) -> None:
        server = self._server

        def fail(error: RayError) -> None:
            if delta_of is not None and is_caused_by(error, ObjectLostError):
                self._deltas.pop(delta_of, None)
                self._notices.append(DeltaLost(delta_of))
            elif server is self._server:
                self._server_down(error)

        self._server_calls.make(Call(make, take, fail))

    def _opened(self, server: Any, position: Position, snapshot: Any) -> None:
        if server is not self._server:
            return
        if self._run_dir is not None and not (self._run_dir / POSTERIOR_FILE).exists():
            error = ClusterError(
                f"the server wrote {self._run_dir} on another machine, and this one does not see it. Give a "
                "--run-dir on a disk that both share, or offer the resource parameter_server on this machine alone"
            )
            self._server_down(error, error)
            return
        self._snapshots[position.version] = snapshot
        self._is_up = True
        self._notices.append(ServerUp(position))

    def _answered(
        self, interval: Interval, publish: bool, receipt: Receipt | None, snapshot: Any, again: Callable[[], None]
    ) -> None:
        if (receipt is None) != self._disk_is_full:
            self._disk_is_full = receipt is None
            self._notices.append(Message(_FULL if self._disk_is_full else _SPACE))
        if receipt is None:
            again()
            return
        if publish and receipt.status in ("merged", "set-aside"):
            self._snapshots.setdefault(receipt.version, snapshot)  # the first one, where the server kept it
        self._notices.append(Answer(interval, receipt))

    def _fitted(self, worker: int, lease: Lease, report: Report | None, delta: Any) -> None:
        if report is None:
            self._snapshot_gone(worker, lease)
            return
        if not report.failure:
            self._deltas[lease.interval] = delta
        self._notices.append(Fitted(worker, lease, report.elbo, report.num_records, report.failure, report.digest))

    def _not_fitted(self, worker: int, actor: Any, lease: Lease, error: RayError) -> None:
        if isinstance(error, RayTaskError) and isinstance(error.cause, StreamingVBError):
            self._notices.append(Failed(error.cause))
        elif is_caused_by(error, ObjectLostError, RayActorError):  # the snapshot is lost, not the worker
            self._snapshot_gone(worker, lease)
        else:
            self._worker_down(worker, actor, error)

    def _snapshot(self, version: int) -> Any:
        """A reference to a version; where none is kept here the server is asked, and none is there without it."""
        if version not in self._snapshots and self._server is not None:
            self._snapshots[version] = self._server.snapshot.remote(version)
        return self._snapshots.get(version)

    def _snapshot_gone(self, worker: int, lease: Lease) -> None:
        self._snapshots.pop(lease.base_version, None)
        self._notices.append(SnapshotGone(worker, lease))

    def _forget_snapshots(self, oldest_base: int) -> None:
        newest = max(self._snapshots, default=0)
        self._snapshots = {v: ref for v, ref in self._snapshots.items() if v >= oldest_base or v == newest}

    def _worker_down(self, worker: int, actor: Any, error: RayError) -> None:
        if self._workers.get(worker) is actor:
            ray.kill(actor)  # it may live: only an answer of it was lost
            del self._workers[worker]
            could_not_start = isinstance(error, RayActorError) and error.actor_init_failed
            hint = ". Every node needs the same Python, Ray and streaming-vb" if could_not_start else ""
            self._notices.append(WorkerDown(worker, one_line(error) + hint))

    def _server_down(self, reason: Exception, error: StreamingVBError | None = None) -> None:
        if isinstance(reason, RayTaskError) and isinstance(reason.cause, StreamingVBError):
            error = reason.cause
        self._lost_server = self._is_up and error is None
        self._end_server()
        self._notices.append(ServerDown(one_line(reason), error))

    def _end_server(self) -> None:
        """Kill the server, so that never two live at the same time, and take the answers that it gave before."""
        if self._server is None:
            return
        ray.kill(self._server)
        self._server, self._is_up = None, False
        self._server_calls.abandon()

    def _disconnect(self) -> None:
        if self._owns_cluster:
            ray.shutdown()
