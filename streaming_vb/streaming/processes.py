"""The transport of one machine: a server and workers as processes of their own, forked on command.

    driver ---- fork server ---- server          commands and notices: a socket per process, driver <-> process
       |             |------ worker 0            deltas and snapshots: a socket per worker, worker <-> server
       |             `------ worker 1

No port is opened and no file is made: all sockets are pairs that were inherited or handed over. A process that dies
closes its socket, so a death is seen at once; and closing the driver's end ends the process, so none outlives the
driver. A delta never passes through the driver's memory.
"""

import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from streaming_vb.errors import ClusterError, StreamingVBError
from streaming_vb.streaming import control, messages, server_process, wire, worker_process
from streaming_vb.streaming.door import Door
from streaming_vb.streaming.fork_server import ForkServer
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.transport import (
    Answer,
    DeltaLost,
    Failed,
    Fitted,
    Message,
    Notice,
    ServerDown,
    ServerUp,
    SnapshotGone,
    WorkerDown,
    WorkerUp,
)
from streaming_vb.types import Interval, Lease, SetAside

_CLOSE_PATIENCE = 60.0
"""Seconds in which a server saves its last snapshot; after that it is killed, and the journal has everything."""


class Opened(Protocol):
    """What of a prepared run the processes need."""

    @property
    def local_update(self) -> LocalUpdate:
        """What every worker does."""

    @property
    def run_dir(self) -> Path | None:
        """Where the run is kept."""

    def open_server(self, since: int | None) -> Server:
        """A server where the run stands."""


class _Child:
    """A process as the driver sees it; `worker` is the number of a worker, none for the server."""

    def __init__(self, worker: int | None, number: int, sock: socket.socket) -> None:
        self.worker, self.number, self.sock = worker, number, sock
        self.is_up = False
        self.reason = ""
        self.error: StreamingVBError | None = None


class ProcessTransport:
    """Implements `transport.Transport`. Make it early: what the program holds now is what workers see.

    Args:
        prepared: the run.
    """

    def __init__(self, prepared: Opened) -> None:
        self._prepared = prepared
        self._door = Door()
        self._notices: list[Notice] = []
        self._selector = selectors.DefaultSelector()
        self._server: _Child | None = None
        self._workers: dict[int, _Child] = {}
        self._holders: dict[Interval, list[int]] = {}  # several where a fit is audited
        self._state: ServerState | None = None
        self._is_closed = self._lost_server = False
        self._fork_server = self._new_fork_server()

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def start_server(self, since: int | None) -> None:
        """Start a server, ending one that is there; `ServerUp` or `ServerDown` follows."""
        if self._server is not None:
            self._release(self._server)
        self._lost_server = False
        self._server = self._start("server", "svb-server", None, {"since": since})

    def start_worker(self, worker: int) -> None:
        """Start a worker under a number, ending one that is there; `WorkerUp` or `WorkerDown` follows."""
        if worker in self._workers:
            self._release(self._workers.pop(worker))
            self._forget(worker)
        self._workers[worker] = self._start("worker", f"svb-worker-{worker}", worker, {})

    def stop_worker(self, worker: int) -> None:
        """SIGKILL a worker; `WorkerDown` follows."""
        if worker in self._workers:
            self._fork_server.kill(self._workers[worker].number)

    def fit(self, worker: int, lease: Lease) -> None:
        """Hand a lease to an idle worker."""
        self._tell(self._workers.get(worker), "fit", lease=messages.pack_lease(lease))

    def push(self, lease: Lease, publish: bool, oldest_base: int) -> None:
        """Have the worker that holds the delta of a lease deliver it."""
        holders = self._holders.get(lease.interval)
        if not holders:
            self._notices.append(DeltaLost(lease.interval))
            return
        interval = messages.pack_interval(lease.interval)
        self._tell(self._workers.get(holders[-1]), "push", interval=interval, publish=publish, oldest_base=oldest_base)

    def put_aside(self, interval: Interval, num_records: int, reason: str, publish: bool) -> None:
        """Tell the server that an interval is read but not learned."""
        entry = messages.pack_set_aside(SetAside(interval, num_records, reason))
        self._tell(self._server, "put_aside", set_aside=entry, publish=publish)

    def drop(self, interval: Interval) -> None:
        """Have the workers that hold the delta of an interval forget it."""
        for holder in self._holders.pop(interval, []):
            self._tell(self._workers.get(holder), "drop", interval=messages.pack_interval(interval))

    def wait(self, timeout: float | None) -> Sequence[Notice]:
        """What happened, in order; waits for something to happen, at most `timeout` seconds."""
        deadline = None if timeout is None else self.now() + timeout
        while not self._is_closed:
            remaining = 0.0 if self._notices else None if deadline is None else max(0.0, deadline - self.now())
            ready = self._selector.select(remaining)
            for key, _ in ready:
                key.data()
            if self._notices or (deadline is not None and self.now() >= deadline):
                break
        notices, self._notices = self._notices, []
        return notices

    def state(self) -> ServerState:
        """The state published last.

        Raises:
            ConnectionError: the server died; a notice says so.
            ClusterError: it died before it was closed.
        """
        if not self._is_closed:
            self._ask(self._server, "state")
        if self._state is None:
            kind = ClusterError if self._is_closed else ConnectionError
            raise kind("the server died before it could give its state")
        return self._state

    def close(self) -> None:
        """Save a snapshot, end server and workers. What was answered meanwhile waits for `wait`."""
        if self._is_closed:
            return
        for child in self._workers.values():
            self._release(child)
        self._workers = {}
        if self._lost_server and self._prepared.run_dir is not None:
            self.start_server(None)  # it finds everything in the journal, and saves it
        if server := self._server:
            server.sock.settimeout(_CLOSE_PATIENCE)
            self._ask(server, "close")
        if self._server:  # saved, and idle
            self._release(self._server)
        self._is_closed = True
        self._fork_server.close()
        self._door.close()
        self._selector.close()

    def _start(self, main: str, title: str, worker: int | None, arguments: Mapping[str, Any]) -> _Child:
        child = _Child(worker, *self._fork_server.start(main, title, arguments))
        self._selector.register(child.sock, selectors.EVENT_READ, partial(self._hear, child))
        return child

    def _new_fork_server(self) -> ForkServer:
        prepared, door = self._prepared, self._door
        fork_server = ForkServer(
            {
                "server": partial(server_process.live, prepared.open_server, door),
                "worker": partial(worker_process.live, prepared.local_update, door),
            }
        )
        self._selector.register(fork_server, selectors.EVENT_READ, self._hear_fork_server)
        return fork_server

    def _tell(self, child: _Child | None, kind: str, **header: Any) -> None:
        """Send a command; where the process is dead, its socket says so later."""
        if child is None:
            return
        try:
            control.tell(child.sock, kind, **header)
        except OSError:
            pass
        except BaseException:  # Ctrl-C in the middle of a message
            self._bury(child)
            raise

    def _ask(self, server: _Child | None, question: str) -> None:
        """Wait until the server has given its state, or is dead; what else it says becomes notices."""
        self._state = None
        self._tell(server, question)
        while server is not None and self._state is None and server.sock.fileno() >= 0:
            self._hear(server)

    def _hear(self, child: _Child) -> None:
        """Take one message of a process, or its end."""
        if child.sock.fileno() < 0:
            return
        try:
            message = control.hear(child.sock)
        except BaseException as error:  # also Ctrl-C in the middle of a message: what follows cannot be read
            self._bury(child)
            if isinstance(error, control.GONE):
                return
            raise
        if child.worker is None:
            self._take_from_server(child, message)
        else:
            self._take_from_worker(child, child.worker, message)

    def _take_from_server(self, server: _Child, message: wire.Message) -> None:
        header, arrays = message
        match header:
            case {"kind": "up", "position": position}:
                server.is_up = True
                self._notices.append(ServerUp(messages.unpack_position(position)))
            case {"kind": "answer", "interval": interval, "receipt": receipt}:
                self._notices.append(Answer(messages.unpack_interval(interval), messages.unpack_receipt(receipt)))
            case {"kind": "message", "text": text}:
                self._notices.append(Message(text))
            case {"kind": "state", "state": state}:
                self._state = messages.unpack_server_state(state, arrays)
            case {"kind": "down", "reason": reason, "error": error}:
                server.reason, server.error = reason, error and control.unpack_error(error)

    def _take_from_worker(self, child: _Child, worker: int, message: wire.Message) -> None:
        match message.header:
            case {"kind": "up"}:
                self._notices.append(WorkerUp(worker))
            case {
                "kind": "fitted",
                "lease": packed,
                "elbo": elbo,
                "num_records": num,
                "failure": why,
                "digest": digest,
            }:
                lease = messages.unpack_lease(packed)
                if not why:
                    self._holders.setdefault(lease.interval, []).append(worker)
                self._notices.append(Fitted(worker, lease, elbo, num, why, digest))
            case {"kind": "gone", "lease": lease}:
                self._notices.append(SnapshotGone(worker, messages.unpack_lease(lease)))
            case {"kind": "lost", "interval": interval}:
                self._notices.append(DeltaLost(messages.unpack_interval(interval)))
            case {"kind": "failed", "error": error}:
                self._notices.append(Failed(control.unpack_error(error)))
            case {"kind": "down", "reason": reason}:
                child.reason = reason

    def _hear_fork_server(self) -> None:
        """Take how a process ended; where it is the fork server itself, all that it started end too."""
        if self._fork_server.receive():
            return
        for child in [*self._workers.values(), *([self._server] if self._server else [])]:
            self._bury(child)
        self._selector.unregister(self._fork_server)
        self._fork_server.close()
        self._fork_server = self._new_fork_server()

    def _bury(self, child: _Child) -> None:
        """Say that a process is dead."""
        self._release(child)
        reason = child.reason or self._fork_server.ending(child.number)
        if child.worker is None:
            self._server = None
            self._lost_server = child.is_up and child.error is None
            self._notices.append(ServerDown(f"server: {reason}", child.error))
            return
        del self._workers[child.worker]
        self._forget(child.worker)
        self._notices.append(WorkerDown(child.worker, f"worker {child.worker}: {reason}"))

    def _forget(self, worker: int) -> None:
        """The deltas that a worker held are gone."""
        for holders in self._holders.values():
            if worker in holders:
                holders.remove(worker)

    def _release(self, child: _Child) -> None:
        """End a process, and listen to it no longer."""
        self._selector.unregister(child.sock)
        child.sock.close()
        self._fork_server.kill(child.number)
