"""The network between driver, workers and servers of the simulated world: a `Transport` on which messages get lost,
doubled, late and out of order, and processes die.

The driver is the real `RemoteEngine` with the real scheduler. Here is only what a transport is.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from simulation.server_process import FOREIGN, Push, PutAside, ServerProcess
from simulation.worker_process import WorkerProcess
from simulation.world import World
from streaming_vb.streaming import messages, wire
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.prepared import Prepared
from streaming_vb.streaming.transport import Answer, DeltaLost, Notice, ServerDown, WorkerDown, WorkerUp
from streaming_vb.types import Delta, Interval, Lease


class DriverDied(BaseException):
    """The driver's process is dead. No handler of the code under test may catch it."""


class Machine:
    """All processes of a history: those of the driver that runs, and those that earlier drivers left behind."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.networks: list[Network] = []

    def start_driver(self, prepared: Prepared) -> "Network":
        """A new driver; what an earlier one left behind dies soon, or not."""
        for network in self.networks:
            network.is_dead = True
        network = Network(self, prepared)
        self.networks.append(network)
        return network

    def make_way(self) -> None:
        """Before a server opens the run: those that are there die, or lose their lock and do not know."""
        world = self.world
        for process in list(world.processes.values()):
            assert isinstance(process, ServerProcess)
            if process.is_dead:
                continue
            if process.is_paused or world.fault("process", "old server lives on", 10.0):
                world.disk.steal_locks(process.name)
            elif not world.fault("process", "old server holds the lock", 2.0):
                process.kill()

    def end(self) -> None:
        """Everything dies; the disk stays."""
        for process in self.world.processes.values():
            assert isinstance(process, ServerProcess)
            process.kill()
        for network in self.networks:
            network.is_dead = True

    def cut_power(self) -> None:
        """Everything dies, and what was not synced may be lost."""
        world = self.world
        world.power_is_going = False
        for process in world.processes.values():
            assert isinstance(process, ServerProcess)
            process.kill()
        for network in self.networks:
            network.is_dead = True
            for worker in network.workers.values():
                worker.kill()
        world.forget_events()
        world.disk.cut_power()


class Network:
    """The transport of one driver: implements `transport.Transport`."""

    def __init__(self, machine: Machine, prepared: Prepared) -> None:
        self.machine, self.world, self.prepared = machine, machine.world, prepared
        self.is_dead = False
        self.server: ServerProcess | None = None
        self.workers: dict[int, WorkerProcess] = {}
        self._notices: deque[Notice] = deque()
        self._holders: dict[Interval, WorkerProcess] = {}
        self._last: dict[str, float] = {}

    # The protocol

    def now(self) -> float:
        self._live()
        return self.world.now

    def start_server(self, since: int | None) -> None:
        self._live()
        process = ServerProcess(self.world, self, since)
        previous, self.server = self.server, process

        def begin() -> None:
            if process.is_dead or self.is_dead:
                process.kill()
                return
            del self.world.processes[process.name]
            self.machine.make_way()
            self.world.processes[process.name] = process
            process.open()

        if previous is not None and not previous.is_paused:
            previous.kill()
        self.world.at(self.world.random.uniform(0.01, 0.5), begin)

    def start_worker(self, worker: int) -> None:
        self._live()
        if worker in self.workers:
            self.workers[worker].kill()
        process = self.workers[worker] = WorkerProcess(self, worker)
        self.world.at(self.world.random.uniform(0.01, 0.3), lambda: self._worker_is_up(process))

    def stop_worker(self, worker: int) -> None:
        self._live()
        self.lose_worker(self.workers[worker], reason="stopped")

    def fit(self, worker: int, lease: Lease) -> None:
        self._live()
        process = self.workers[worker]
        if not self.world.fault("network", "lease lost", 0.2):
            self.world.at(self.world.random.uniform(0.001, 0.05), lambda: process.fit(lease))

    def push(self, lease: Lease, publish: bool, oldest_base: int) -> None:
        self._live()
        holder = self._holder(lease.interval)
        if holder is None:
            self.tell("deltas", DeltaLost(lease.interval))
        else:
            self._send("push order", lambda: holder.push(lease, publish, oldest_base))

    def put_aside(self, interval: Interval, num_records: int, reason: str, publish: bool) -> None:
        self._live()
        self.to_server(PutAside(interval, num_records, reason, publish))

    def drop(self, interval: Interval) -> None:
        self._live()
        for worker in self.workers.values():
            worker.deltas.pop(interval, None)

    def wait(self, timeout: float | None) -> Sequence[Notice]:
        self._live()
        world = self.world
        deadline = world.now + (3_600.0 if timeout is None else timeout)
        while not self._notices:
            following = world.next_time()
            if following is None or following > deadline:
                world.tick()
                world.now = deadline
                break
            world.run_next()
            if not self.is_dead and world.fault("process", "driver killed", 0.02):
                self.is_dead = True
            if world.fault("process", "server killed", 0.1) and self.server is not None and self.server.is_up:
                self.server.kill()
                self.tell("server", ServerDown("killed"), only_from=self.server)
            if world.fault("process", "clock set", 0.1):
                world.jump()
            self._live()
        notices, self._notices = list(self._notices), deque()
        return notices

    def state(self) -> ServerState:
        self._live()
        if self.server is None or not self.server.is_up:
            raise ConnectionError("no server")
        assert self.server.server is not None
        return self.server.server.published()

    def close(self) -> None:
        self._live()
        if self.server is not None:
            self.server.close()
        for worker in self.workers.values():
            worker.kill()
        self._live()

    # What the processes use

    def tell(self, sender: str, notice: Notice, *, only_from: ServerProcess | None = None) -> None:
        """A notice for the driver, on a connection that keeps the order."""
        moment = max(self._last.get(sender, 0.0), self.world.now + self.world.random.uniform(0.001, 0.02))
        self._last[sender] = moment

        def arrive() -> None:
            if not self.is_dead and (only_from is None or self.server is only_from):
                self._notices.append(notice)

        self.world.at(moment - self.world.now, arrive)

    def power_went(self) -> None:
        """The machine is dark."""
        self.machine.cut_power()

    def deliver(self, answer: Answer) -> None:
        """An answer, over the network."""
        self._send("answer", lambda: None if self.is_dead else self._notices.append(answer))

    def send_delta(self, push: Push) -> None:
        """A delta, over the network, in bytes."""
        world = self.world
        if world.random.random() < 0.1:
            push = push._replace(delta=_through_the_wire(push.delta))
        if self.prepared.settings.mode == "async" and world.fault("network", "corrupt delta", 0.3):
            push = push._replace(delta=_broken(push.delta))
        if world.fault("network", "foreign delta", 0.2):
            foreign = replace(push.delta, run_id=FOREIGN)
            self._send("foreign", lambda: self._drop_off(push._replace(delta=foreign), None))
        self.to_server(push)

    def to_server(self, message: Push | PutAside) -> None:
        """To the server there is when it arrives, or to the one there was when it left."""
        pinned = self.server if self.world.random.random() < 0.3 else None
        self._send("message", lambda: self._drop_off(message, pinned))

    def lose_worker(self, process: WorkerProcess, reason: str = "killed") -> None:
        """A worker dies and the driver hears of it; or it is cut off, and what it sent is still on the way."""
        if self.workers.get(process.worker) is not process or process.is_dead:
            return
        process.kill()
        self.tell(f"worker {process.worker}", WorkerDown(process.worker, reason))

    def _drop_off(self, message: Push | PutAside, pinned: ServerProcess | None) -> None:
        server = pinned or self.server
        if server is not None:
            server.receive(message)

    def _send(self, what: str, arrive: Callable[[], object]) -> None:
        world = self.world
        if world.fault("network", f"{what} lost", 0.5):
            return
        for _ in range(world.random.randint(2, 3) if world.fault("network", f"{what} doubled") else 1):
            slow = world.random.choice((1.0, 30.0)) if world.fault("network", f"{what} late") else 0.05
            world.at(world.random.random() * slow, arrive)

    def _worker_is_up(self, process: WorkerProcess) -> None:
        if not process.is_dead:
            self.tell(f"worker {process.worker}", WorkerUp(process.worker))

    def _holder(self, interval: Interval) -> WorkerProcess | None:
        for worker in self.workers.values():
            if interval in worker.deltas and not worker.is_dead:
                return worker
        return None

    def _live(self) -> None:
        if self.is_dead:
            raise DriverDied


def _through_the_wire(delta: Delta) -> Delta:
    header, arrays = messages.pack_delta(delta)
    message = wire.decode(b"".join(bytes(part) for part in wire.encode(header, arrays)))
    return messages.unpack_delta(message.header, message.arrays)


def _broken(delta: Delta) -> Delta:
    """A delta with a number that is none."""
    arrays = {name: array.copy() for name, array in delta.fit.natural.arrays.items()}
    arrays["sum"][0] = np.nan
    return replace(delta, fit=replace(delta.fit, natural=replace(delta.fit.natural, arrays=arrays)))
