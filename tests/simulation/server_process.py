"""A server of the simulated world: the real `Server` on the real `Store`, in a process that dies, stops in the
middle of anything, and wakes when another server has taken over.

What it does with its messages is what `server_process.py` does: merge all that is there, commit once, answer. What is
checked here is checked at every commit.
"""

import errno
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from simulation.plan import RUN_DIR
from simulation.reference_server import Change, ReferenceServer, Violation
from simulation.simulated_disk import ProcessDied
from simulation.strand import Strand
from simulation.world import DiskUser, World
from streaming_vb.errors import RunInUse, StaleWriter
from streaming_vb.streaming.journal import Entry, Merged
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.prepared import Prepared
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.store import Store
from streaming_vb.streaming.transport import Answer, Notice, ServerDown, ServerUp
from streaming_vb.types import Delta, Interval, Receipt, Snapshot

FOREIGN = "another run"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Push(NamedTuple):
    """A delta on its way to a server."""

    delta: Delta
    publish: bool
    oldest_base: int


class PutAside(NamedTuple):
    """An interval to set aside, on its way to a server."""

    interval: Interval
    num_records: int
    reason: str
    publish: bool


class Owner(Protocol):
    """What a server needs of the network."""

    prepared: Prepared

    def tell(self, sender: str, notice: Notice, *, only_from: "ServerProcess | None" = None) -> None: ...
    def deliver(self, answer: Answer) -> None: ...
    def power_went(self) -> None: ...


def change_of(entry: Entry) -> Change:
    """What an entry of the journal changes."""
    if isinstance(entry, Merged):
        bad = (Change(part.interval, learned=False).positions() for part in entry.delta.bad_records)
        return Change(entry.delta.lease.interval, learned=True, bad=frozenset().union(*bad))
    return Change(entry.set_aside.interval, learned=False)


class RecordingStore:
    """A store that tells the world what was journaled."""

    def __init__(self, store: Store, process: "ServerProcess") -> None:
        self._store, self._process = store, process

    def append(self, entry: Entry) -> None:
        self._process.line.attempt = change_of(entry)
        self._store.append(entry)
        self._process.journaled(entry)

    def sync(self) -> None:
        self._store.sync()

    def published(self, state: ServerState) -> None:
        self._store.published(state)

    def take_notes(self) -> list[str]:
        return self._store.take_notes()

    def close(self, state: ServerState) -> None:
        self._store.close(state)


class Job(Future[None]):
    """A snapshot being saved by a thread of a server."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self._strand = Strand(self._save)
        self._function = function
        self.has_started = False

    def run(self) -> None:
        """As far as it gets; ProcessDied goes through."""
        self.has_started = True
        self._strand.resume()

    def pause(self) -> None:
        """Called by the function."""
        self._strand.pause()

    def finish(self) -> None:
        """To its end."""
        while not self.done():
            self.run()

    def result(self, timeout: float | None = None) -> None:
        """Waits for it."""
        self.finish()
        return super().result(0)

    def _save(self) -> None:
        try:
            self._function()
        except Exception as error:
            self.set_exception(error)
        except BaseException:
            self.set_exception(OSError("died"))
            raise
        else:
            self.set_result(None)


class ServerProcess(DiskUser):
    """A server: opens the run, takes messages, dies."""

    def __init__(self, world: World, owner: Owner, since: int | None) -> None:
        self.world, self.owner, self.since = world, owner, since
        world.process_number += 1
        self.number = world.process_number
        self.name = f"server-{self.number}"
        world.processes[self.name] = self
        self.disk = world.disk.process(self.name)
        self.server: Server | None = None
        self.line = ReferenceServer(world.plan.task.records)
        self.is_dead = self.is_busy = False
        self._inbox: deque[Push | PutAside] = deque()
        self._strand: Strand | None = None
        self._pause_in: int | None = None
        self.saves_in_background = world.random.random() < 0.5
        self._job: Job | None = None
        self._in_job = False

    @property
    def is_paused(self) -> bool:
        return self._strand is not None

    @property
    def is_up(self) -> bool:
        return self.server is not None and not (self.is_dead or self.is_paused)

    def open(self) -> None:
        """Recover the run."""
        self._run(self._open)

    def receive(self, message: Push | PutAside) -> None:
        """A message arrives."""
        if self.is_dead or self.server is None:
            return
        self._inbox.append(message)
        if not self.is_busy:
            self.is_busy = True
            self.world.at(self.world.random.uniform(0, 0.02), self._serve)

    def snapshot(self, version: int) -> Snapshot | None:
        assert self.server is not None
        return self.server.snapshot(version)

    def close(self) -> None:
        """Save, and end."""
        server = self.server
        if self.is_up and server is not None:
            self._run(lambda: self._close(server))
        self.kill()

    def kill(self) -> None:
        """The process is no more, whatever it was doing."""
        self.is_dead = True
        self.world.disk.kill(self.name)
        strand, self._strand = self._strand, None
        self.world.process_number = self.number
        if strand is not None:
            with suppress(ProcessDied, OSError, StaleWriter):
                strand.resume()  # its next operation finds it dead
        if self._job is not None and self._job.has_started and not self._job.done():
            with suppress(ProcessDied):
                self._job.run()

    def reached_operation(self) -> None:
        if self._pause_in is None:
            return
        self._pause_in -= 1
        if self._pause_in < 0:
            self._pause_in = None
            if self._in_job:
                assert self._job is not None
                self._job.pause()
                return
            assert self._strand is not None
            self.world.count("server paused")
            self._strand.pause()

    def journaled(self, entry: Entry) -> None:
        """An entry was appended."""
        change = change_of(entry)
        self.line.apply(change)
        if isinstance(entry, Merged):
            self._check_merge(entry.delta)
            self.world.check_bad(change)
        else:
            self.world.check_set_aside(change)

    # The second thread of the store

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Read an entry at once; save a snapshot a little later, while the server goes on."""
        if self.server is None:
            future: Future[Any] = Future()
            future.set_result(function(*arguments))
            return future
        job = self._job = Job(lambda: function(*arguments))
        self.world.at(self.world.random.random(), lambda: self._save_on(job))
        return job

    def shutdown(self) -> None:
        """Wait for the job."""
        if self._job is not None:
            self._job.finish()

    def _save_on(self, job: "Job") -> None:
        """The job runs as far as it gets; a part of it at a time."""
        if self.is_dead or job.done():
            return
        if not self.is_paused:
            self._pause_in = self.world.random.randrange(20)
            self._in_job = True
            self._guard(job.run)
            self._in_job, self._pause_in = False, None
        if not job.done():
            self.world.at(self.world.random.random() * 0.5, lambda: self._save_on(job))

    # Below: what runs on the process

    def _open(self) -> None:
        prepared = self.owner.prepared
        plan = self.world.plan
        store = Store(
            RUN_DIR,
            prepared.identity,
            rule=replace(prepared.rule, measure=False),
            keep_fit_state=prepared.settings.mode == "ordered",
            disk=self.disk,
            segment_bytes=plan.segment_bytes,
            background=False,
            clock=lambda: self.world.now,
        )
        if self.saves_in_background:
            store._executor = self  # type: ignore[assignment]
        recovered = store.open(prepared.server_state)
        self._live()
        self.line = self.world.opened(recovered.state, recovered.generation)
        self.server = Server(
            recovered.state,
            prepared.rule,
            screening=prepared.screening,
            store=RecordingStore(store, self),
            published=recovered.published,
            generation=recovered.generation,
            since=self.since,
            receipts=recovered.receipts,
            notes=tuple(recovered.notes),
        )
        self.owner.tell("server", ServerUp(self.server.position()), only_from=self)

    def _live(self) -> None:
        """After what may have been a pause: it may have been killed meanwhile."""
        if self.is_dead:
            raise ProcessDied(self.name)

    def _serve(self) -> None:
        self.is_busy = False
        if not self.is_dead and not self.is_paused:
            self._run(self._handle_all)

    def _handle_all(self) -> None:
        """As the real process does: merge what is there, commit once, answer."""
        assert self.server is not None
        server, answers = self.server, []
        while self._inbox:
            message = self._inbox.popleft()
            interval = message.delta.lease.interval if isinstance(message, Push) else message.interval
            receipt = self._merge(server, message)
            if not (isinstance(message, Push) and message.delta.run_id == FOREIGN):  # its driver is another one
                answers.append((interval, receipt))
        server.commit()
        self._live()
        self.world.acknowledged(self.line, len(self.line.changes))
        self.world.check_state(self.line, server._state, is_newest=self.line is self.world.line)
        if self.world.fault("process", "server killed before it answers", 0.3):
            self.world.disk.kill(self.name)
            raise ProcessDied(self.name)
        for interval, receipt in answers:
            self._check_receipt(interval, receipt)
            self.owner.deliver(Answer(interval, receipt))

    def _merge(self, server: Server, message: Push | PutAside) -> Receipt:
        while True:
            try:
                if isinstance(message, Push):
                    delta, publish, oldest_base = message
                    return server.push(delta, oldest_base=oldest_base, publish=publish)
                interval, num_records, reason, publish = message
                return server.set_aside(interval, num_records, reason, publish=publish)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self.world.tick()

    def _close(self, server: Server) -> None:
        with suppress(OSError):  # the journal has everything
            server.close()

    def _check_merge(self, delta: Delta) -> None:
        staleness = self.line.versions[-1] - 1 - delta.lease.base_version
        if not 0 <= staleness <= self.world.plan.task.max_staleness:
            raise Violation(f"{delta.lease.interval} was merged {staleness} versions late")
        if delta.run_id != "run":
            raise Violation(f"{delta.lease.interval} of run {delta.run_id} was merged")
        if not all(np.isfinite(array).all() for array in delta.fit.natural.arrays.values()):
            raise Violation(f"{delta.lease.interval} was merged and is not finite")

    def _check_receipt(self, interval: Interval, receipt: Receipt) -> None:
        if receipt.status == "rejected":
            return
        positions = Change(interval, True).positions()
        if not positions <= self.line.covered:
            raise Violation(f"{interval} was answered {receipt.status!r}, and is not covered")

    def _run(self, function: Callable[[], None]) -> None:
        """Run as this process; it may pause, and goes on later; it may die."""
        world = self.world
        if world.fault("process", "pause planned"):
            self._pause_in = world.random.randrange(12)
            self._strand = Strand(function)
            self._guard(self._resume)
        else:
            self._guard(function)

    def _resume(self) -> None:
        strand = self._strand
        if strand is None:
            return
        if strand.resume():
            self._strand = self._pause_in = None
            if self._inbox:
                self.is_busy = True
                self.world.at(0.0, self._serve)
        else:
            world = self.world
            world.at(world.random.choice((0.05, 1.0, 5.0, 20.0)) * world.random.random(), self._wake)
            self.owner.tell("server", ServerDown("it does not answer"), only_from=self)

    def _wake(self) -> None:
        if self._strand is not None:
            self._guard(self._resume)

    def _guard(self, function: Callable[[], None]) -> None:
        world = self.world
        world.process_number = self.number
        try:
            function()
            return
        except ProcessDied:
            reason, error = "killed", None
        except OSError as problem:
            reason, error = str(problem), None
        except StaleWriter as problem:
            reason, error = str(problem), None
            world.faults["overtaken server stopped"] += 1
        except RunInUse as problem:
            reason, error = str(problem), problem
        self.is_dead, self._strand = True, None
        world.disk.kill(self.name)
        self.owner.tell("server", ServerDown(reason, error), only_from=self)
        if world.power_is_going:
            self.owner.power_went()
