"""A worker of the simulated world: the real `LocalUpdate`, in a process that dies, sleeps, and keeps its deltas until
it is told to drop them.
"""

from typing import Protocol

from simulation.server_process import Push, ServerProcess
from simulation.world import World
from streaming_vb.errors import NumericalError
from streaming_vb.streaming.prepared import Prepared
from streaming_vb.streaming.transport import DeltaLost, Fitted, Notice, SnapshotGone
from streaming_vb.types import Delta, Interval, Lease, Snapshot


class Owner(Protocol):
    """What a worker needs of the network."""

    world: World
    prepared: Prepared
    server: ServerProcess | None

    def tell(self, sender: str, notice: Notice, *, only_from: ServerProcess | None = None) -> None: ...
    def send_delta(self, push: Push) -> None: ...
    def lose_worker(self, process: "WorkerProcess", reason: str = "killed") -> None: ...


class WorkerProcess:
    """A worker: fits, keeps deltas, dies."""

    def __init__(self, owner: Owner, worker: int) -> None:
        self.owner, self.worker, self.world = owner, worker, owner.world
        self.is_dead = False
        self.lease: Lease | None = None
        self.deltas: dict[Interval, Delta] = {}

    def kill(self) -> None:
        """With its fit and its deltas."""
        if not self.is_dead and self.lease is None:
            self.world.idle_deaths += 1
        elif not self.is_dead and self.lease is not None:
            self.world.died_fitting(self.lease.interval)
        self.is_dead = True

    def fit(self, lease: Lease) -> None:
        """A lease arrives."""
        if self.is_dead:
            return
        self.lease = lease
        self._pull(lease)

    def push(self, lease: Lease, publish: bool, oldest_base: int) -> None:
        """The driver wants a delta delivered."""
        if self.is_dead:
            return
        delta = self.deltas.get(lease.interval)
        if delta is None:
            self.owner.tell(f"worker {self.worker}", DeltaLost(lease.interval))
        else:
            self.owner.send_delta(Push(delta, publish, oldest_base))

    def _pull(self, lease: Lease) -> None:
        if self.is_dead:
            return
        server = self.owner.server
        if server is None or not server.is_up or self.world.fault("network", "snapshot lost", 0.3):
            self.world.at(0.2, lambda: self._pull(lease))
            return
        snapshot = server.snapshot(lease.base_version)
        slow = 30.0 if self.world.fault("process", "worker paused", 0.5) else 1.0
        duration = self.world.random.uniform(0.1, 0.5) * slow
        self.world.at(duration, lambda: self._fitted(lease, snapshot))

    def _fitted(self, lease: Lease, snapshot: Snapshot | None) -> None:
        if self.is_dead:
            return
        if snapshot is None:
            self.lease = None
            self.owner.tell(f"worker {self.worker}", SnapshotGone(self.worker, lease))
            return
        task = self.world.plan.task
        first = int(lease.interval.partition.removeprefix("part-")) * task.records
        ids = range(first + lease.interval.start, first + lease.interval.stop)
        is_poison = any(number in task.killers for number in ids)
        if is_poison or self.world.fault("process", "worker killed"):
            self.owner.lose_worker(self)
            return
        self.lease = None
        try:
            delta = self.owner.prepared.local_update(lease, snapshot)
        except NumericalError as error:
            notice = Fitted(self.worker, lease, float("nan"), len(lease.interval), failure=str(error))
        else:
            self.deltas[lease.interval] = delta
            notice = Fitted(self.worker, lease, delta.fit.elbo, len(lease.interval))
        self.owner.tell(f"worker {self.worker}", notice)
        if self.world.fault("process", "worker killed when done", 0.5):
            self.owner.lose_worker(self)
