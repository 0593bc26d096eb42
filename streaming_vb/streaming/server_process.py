"""The life of the server's process: workers push and pull over a connection each, and the driver gets the answers.

One thread owns the server; a thread per connection moves bytes, so that a worker which stops in the middle of a message
holds up nobody. All pushes that are there are merged, made durable together, and only then answered. Where the disk is
full nothing is answered: the server waits for space.
"""

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from streaming_vb.errors import StreamingVBError
from streaming_vb.failpoints import reach
from streaming_vb.streaming import control, messages, wire
from streaming_vb.streaming.door import Door
from streaming_vb.streaming.fork_server import lifeline
from streaming_vb.streaming.patience import until_there_is_space
from streaming_vb.streaming.server import Server
from streaming_vb.types import Delta, Receipt, SetAside, Snapshot


class _Closing(Exception):
    """The driver closes while the disk is full."""


@dataclass(frozen=True, slots=True, eq=False)
class _Push:
    delta: Delta
    publish: bool
    oldest_base: int
    handled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _PutAside:
    entry: SetAside
    publish: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Pull:
    version: int
    reply: "SimpleQueue[Snapshot | None]" = field(default_factory=SimpleQueue)


@dataclass(frozen=True, slots=True)
class _GiveState:
    pass


@dataclass(frozen=True, slots=True)
class _Close:
    pass


_Request = _Push | _PutAside | _Pull | _GiveState | _Close


def live(
    open_server: Callable[[int | None], Server], door: Door, driver: socket.socket, arguments: Mapping[str, Any]
) -> None:
    """Open the run and serve it until the driver says close, or is gone."""
    process = _ServerProcess(driver)
    lifeline(driver, process.instruct)
    try:
        server = open_server(arguments["since"])
        control.tell(driver, "up", position=messages.pack_position(server.position()))
        threading.Thread(target=process.accept, args=(door,), daemon=True).start()
        process.serve(server)
    except Exception as error:
        packed = control.pack_error(error) if isinstance(error, StreamingVBError) else None
        reason = str(error) if packed else f"{type(error).__name__}: {error}"
        control.tell(driver, "down", reason=reason, error=packed)
        if packed is None:
            raise


class _ServerProcess:
    def __init__(self, driver: socket.socket) -> None:
        self._driver = driver
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._closing = threading.Event()
        self._unanswered: list[tuple[_Push | _PutAside, Receipt]] = []

    def instruct(self, message: wire.Message) -> None:
        """Take a message of the driver."""
        match message.header:
            case {"kind": "put_aside", "set_aside": entry, "publish": publish}:
                self._requests.put(_PutAside(messages.unpack_set_aside(entry), publish))
            case {"kind": "state"}:
                self._requests.put(_GiveState())
            case {"kind": "close"}:
                self._closing.set()
                self._requests.put(_Close())

    def accept(self, door: Door) -> None:
        """A thread for every worker that connects."""
        while True:
            threading.Thread(target=self._converse, args=(door.accept(),), daemon=True).start()

    def serve(self, server: Server) -> None:
        """Handle all requests that are there, commit once, answer them; again until the driver says close."""
        while True:
            later: list[_GiveState | _Close] = []
            for request in self._ready():
                match request:
                    case _Pull(version, reply):
                        reply.put(server.snapshot(version))
                    case _Push() | _PutAside():
                        self._merge(server, request)
                    case _GiveState() | _Close():
                        later.append(request)
            self._answer(server)
            for request in later:
                if isinstance(request, _Close) and (problem := _close(server)):
                    control.tell(self._driver, "message", text=problem)
                header, arrays = messages.pack_server_state(server.published())
                control.tell(self._driver, "state", arrays, state=header)
                if isinstance(request, _Close):
                    return

    def _converse(self, worker: socket.socket) -> None:
        """Read the messages of a worker until it is gone; the next one only when the last was handled, so that what
        waits in memory is bounded."""
        try:
            while True:
                header, arrays = control.hear(worker)
                match header:
                    case {"kind": "pull", "version": version}:
                        pull = _Pull(version)
                        self._requests.put(pull)
                        _send_snapshot(worker, pull.reply.get())
                    case {"kind": "push", "delta": delta, "publish": publish, "oldest_base": oldest_base}:
                        push = _Push(messages.unpack_delta(delta, arrays), publish, oldest_base)
                        self._requests.put(push)
                        push.handled.wait()
        except control.GONE:
            pass  # it connects again, if it lives
        finally:
            worker.close()

    def _ready(self) -> list[_Request]:
        """Everything that waits, at least one."""
        requests = [self._requests.get()]
        try:
            while True:
                requests.append(self._requests.get_nowait())
        except Empty:
            return requests

    def _merge(self, server: Server, request: _Push | _PutAside) -> None:
        """Push as soon as the disk has space for it."""
        reach("S1")

        def tell(text: str) -> None:
            self._answer(server)  # what came before it need not wait
            control.tell(self._driver, "message", text=text)

        def pause(seconds: float) -> None:
            if self._closing.wait(seconds):
                raise _Closing

        try:
            receipt = until_there_is_space(partial(_pushed, server, request), tell, pause)
        except _Closing:
            return  # not answered, so not counted
        self._unanswered.append((request, receipt))

    def _answer(self, server: Server) -> None:
        """Make what was pushed durable, and say so."""
        if not self._unanswered:
            return
        server.commit()
        for request, receipt in self._unanswered:
            interval = request.entry.interval if isinstance(request, _PutAside) else request.delta.lease.interval
            control.tell(
                self._driver,
                "answer",
                interval=messages.pack_interval(interval),
                receipt=messages.pack_receipt(receipt),
            )
            reach("S6")
            if isinstance(request, _Push):
                request.handled.set()
        self._unanswered.clear()


def _pushed(server: Server, request: _Push | _PutAside) -> Receipt:
    match request:
        case _Push(delta, publish, oldest_base):
            return server.push(delta, publish=publish, oldest_base=oldest_base)
        case _PutAside(entry, publish):
            return server.set_aside(entry.interval, entry.num_records, entry.reason, publish=publish)


def _send_snapshot(worker: socket.socket, snapshot: Snapshot | None) -> None:
    if snapshot is None:
        control.tell(worker, "snapshot", snapshot=None)
    else:
        header, arrays = messages.pack_snapshot(snapshot)
        control.tell(worker, "snapshot", arrays, snapshot=header)


def _close(server: Server) -> str:
    """Close a server; what prevented its last snapshot, or nothing. The journal holds what the snapshot does not."""
    try:
        server.close()
    except OSError as error:
        return f"the last snapshot could not be saved ({error.strerror}); the journal has everything"
    return ""
