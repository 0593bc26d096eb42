"""A process that starts processes: forked once, when everything is loaded, and alone in having one thread.

A worker needs the user's model, and forking is the one way to hand it over that asks nothing of it: no serialization,
no second import, and a start in milliseconds although torch is loaded. But to fork from a program with threads is
unsafe (a lock that another thread holds stays held for ever in the copy), and a driver has threads. So it forks one
process early, which does nothing but fork on command.

Every child has one socket, whose other end the driver alone holds: closing it ends the child at once (`lifeline`), so
that nothing outlives a driver, however it dies. Linux 5.3 or later, where processes can be waited for as files.
"""

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from streaming_vb.streaming import control, wire

Main = Callable[[socket.socket, Mapping[str, Any]], None]
"""What a child runs, with its end of the socket and the arguments of its start."""

_PATIENCE = 1.0
"""Seconds in which the fork server says how a child ended."""

_logger = logging.getLogger(__name__)


class ForkServer:
    """The driver's side of it.

    Args:
        mains: what children may run, by name.
    """

    def __init__(self, mains: Mapping[str, Main]) -> None:
        self._socket, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started = 0
        self._endings: dict[int, str] = {}
        with warnings.catch_warnings():  # Python 3.12 warns of threads: the child calls nothing that another one locks
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            _run("svb-forks", partial(_serve, commands, mains))
        commands.close()

    def fileno(self) -> int:
        """Readable when a child has ended, or the fork server itself: then call `receive`."""
        return self._socket.fileno()

    def start(self, main: str, title: str, arguments: Mapping[str, Any]) -> tuple[int, socket.socket]:
        """Start a child; returns its number, never used again, and the driver's end of its socket.

        Args:
            main: name of what it runs.
            title: what `ps` and `top` call it, 15 letters at most.
            arguments: plain values for its main.
        """
        ours, theirs = socket.socketpair()
        self._started += 1
        command = {"start": main, "title": title, "number": self._started, "arguments": arguments}
        self._send(command, [theirs.fileno()])
        theirs.close()
        return self._started, ours

    def kill(self, number: int) -> None:
        """SIGKILL a child, stopped or not; nothing where it has ended."""
        self._send({"kill": number}, [])

    def receive(self) -> bool:
        """Take one report, if there is one; whether the fork server still runs."""
        try:
            text = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionError:
            text = b""
        if text:
            report = json.loads(text)
            self._endings[report["number"]] = report["ending"]
        return bool(text)

    def ending(self, number: int) -> str:
        """How a child ended that has closed its socket: "killed by SIGKILL", "ended with status 1"."""
        deadline = time.monotonic() + _PATIENCE
        while number not in self._endings:
            ready, _, _ = select.select([self], [], [], max(0.0, deadline - time.monotonic()))
            if not ready or not self.receive():
                return "ended"
        return self._endings.pop(number)

    def close(self) -> None:
        """End the fork server, and all children with SIGKILL."""
        if self._socket.fileno() < 0:
            return
        with suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)  # not only closed: another fork server may have inherited it
        self._socket.close()
        os.waitpid(self._pid, 0)

    def _send(self, command: Mapping[str, Any], descriptors: list[int]) -> None:
        with suppress(ConnectionError):  # it has ended, and its socket says so
            socket.send_fds(self._socket, [json.dumps(command).encode()], descriptors)


def lifeline(sock: socket.socket, deliver: Callable[[wire.Message], None]) -> None:
    """In a child: hand on the messages of the driver from a thread, which ends the process when the driver is gone."""

    def read() -> None:
        try:
            while True:
                deliver(control.hear(sock))
        except control.GONE:
            os._exit(0)
        except BaseException:
            _logger.exception("a message of the driver cannot be used")
            os._exit(1)

    threading.Thread(target=read, name="lifeline", daemon=True).start()


class _Running(NamedTuple):
    number: int
    pid: int


def _serve(commands: socket.socket, mains: Mapping[str, Main]) -> None:
    """Fork, kill and reap until the driver is gone; then nothing is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver closes in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"  # a worker has one core; for a torch that is loaded later
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # and threads of OpenMP do not survive a fork
    children: dict[int, _Running] = {}  # by descriptor of the process
    waiting = select.poll()
    waiting.register(commands, select.POLLIN)
    while True:
        for descriptor, _ in waiting.poll():
            if descriptor in children:
                waiting.unregister(descriptor)
                os.close(descriptor)
                number, pid = children.pop(descriptor)
                _report(commands, number, _ending(os.waitpid(pid, 0)[1]))
                continue
            command, descriptors = _received(commands)
            match command:
                case {"kill": number}:
                    _kill([child for child, running in children.items() if running.number == number])
                case {"start": main, "title": title, "number": number, "arguments": arguments}:
                    sock = socket.socket(fileno=descriptors[0])
                    child = _forked(title, partial(mains[main], sock, arguments), [commands, *children])
                    sock.close()
                    if isinstance(child, str):
                        _report(commands, number, child)
                        continue
                    descriptor = os.pidfd_open(child)
                    children[descriptor] = _Running(number, child)
                    waiting.register(descriptor, select.POLLIN)
                case None:
                    _kill(children)
                    for running in children.values():
                        os.waitpid(running.pid, 0)
                    return


def _received(commands: socket.socket) -> tuple[Any, list[int]]:
    """The next command and the descriptors that come with it; none where the driver is gone."""
    try:
        text, descriptors, _, _ = socket.recv_fds(commands, 65536, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        text, descriptors = b"", []
    return json.loads(text) if text else None, descriptors


def _forked(title: str, life: Callable[[], None], private: list[socket.socket | int]) -> int | str:
    """Pid of a new process, or why there is none. It closes what is private to the fork server."""
    try:
        pid = os.fork()
    except OSError as error:
        return f"could not be started: {error.strerror}"
    if pid == 0:
        for descriptor in private:
            os.close(descriptor if isinstance(descriptor, int) else descriptor.detach())
        _run(title, life)
    return pid


def _kill(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _report(commands: socket.socket, number: int, ending: str) -> None:
    with suppress(ConnectionError):  # the driver is gone, which the next read tells
        commands.send(json.dumps({"number": number, "ending": ending}).encode())


def _ending(status: int) -> str:
    """A wait status in words.

    >>> _ending(9), _ending(256)
    ('killed by SIGKILL', 'ended with status 1')
    """
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def _run(title: str, life: Callable[[], None]) -> NoReturn:
    """Run the whole life of a forked process: it must never return into the program that it is a copy of."""
    status = 1
    try:
        with suppress(OSError):
            Path("/proc/self/comm").write_text(title)
        life()
        status = 0
    except BaseException:
        _logger.exception("a process of streaming_vb ends")
    finally:
        os._exit(status)
