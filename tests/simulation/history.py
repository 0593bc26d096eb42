"""One history: drivers come and go on one disk until everything is counted, and then the disk is read once more."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import SupportsIndex

from simulation.network import DriverDied, Machine, Network
from simulation.plan import NUM_ORDERED, RUN_DIR, Plan, Task, draw, ordered_task
from simulation.reference_server import Violation
from simulation.world import World
from streaming_vb.errors import ClusterError, RunInUse
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.prepared import Prepared
from streaming_vb.streaming.remote_engine import RemoteEngine
from streaming_vb.streaming.run import drive
from streaming_vb.streaming.store import Store

_LEASE_SECONDS = 4.0


@dataclass(frozen=True)
class History:
    """What came of it.

    Attributes:
        violation: the promise that was broken, "" where none was.
        faults: injected, by kind.
        num_events, num_changes: what happened, and what was journaled.
        state: at the end.
    """

    seed: int
    violation: str
    faults: Counter[str]
    num_events: int
    num_changes: int
    state: ServerState | None

    @property
    def replay(self) -> str:
        """What to type to see it again."""
        return f"python benchmarks/reliability/histories.py --histories 1 --seed {self.seed}"


def play(seed: int) -> History:
    """The history of a seed: the same every time."""
    plan = draw(seed)
    history = run(plan)
    if not history.violation and plan.task.mode == "ordered" and not _is_unlucky(history):
        good_day = _good_day(plan.task)
        if difference := _bits(history.state, good_day.state):
            return replace(history, violation=f"ordered mode: {difference} is not that of the fault-free run")
    return history


def run(plan: Plan) -> History:
    """Play a plan to its end."""
    world = World(plan)
    state, violation = None, ""
    with _clocks_of(world):
        try:
            state = _drive_to_the_end(world)
        except Violation as error:
            violation = (world.broken or [str(error)])[0]
        except Exception as error:
            violation = (world.broken or [f"{type(error).__name__}: {error}"])[0]
    return History(plan.seed, violation, world.faults, world.num_events, len(world.line.changes), state)


def compute_good_days() -> None:
    """What ordered runs are compared with, before a bug is planted that would change it."""
    for number in range(NUM_ORDERED):
        _good_day(ordered_task(number))


def _drive_to_the_end(world: World) -> ServerState:
    machine, prepared = Machine(world), world.plan.task.prepared()
    try:
        while not _is_complete(world):
            network = machine.start_driver(prepared)
            with suppress(DriverDied, RunInUse, ClusterError):
                _drive(world, network, prepared)
            network.is_dead = True
            if world.broken:
                raise Violation(world.broken[0])
            _wait(world)
        world.stop_faults()
        _finish(machine)
    finally:
        machine.end()
    return _read_again(world, prepared)


def _drive(world: World, network: Network, prepared: Prepared) -> None:
    """One driver, until it is done, dies, or its user has had enough."""
    workers = world.random.randint(1, world.plan.workers)
    world.in_flight_limit = max(world.in_flight_limit, 2 * workers + 4 * len(world.plan.task.killers))
    engine = RemoteEngine(network, workers, is_durable=True, lease_seconds=_LEASE_SECONDS)
    try:
        steps = drive(prepared.scheduler(workers, engine.position()), engine)
        for _ in steps:
            if world.fault("process", "loop left by the user", 0.1):
                break
    finally:
        engine.close()


def _wait(world: World) -> None:
    """Nobody drives for a while; what is on the way goes on."""
    until = world.now + world.random.choice((0.0, 0.5, 5.0))
    while (following := world.next_time()) is not None and following <= until:
        world.run_next()
    world.tick()
    world.now = max(world.now, until)


def _finish(machine: Machine) -> None:
    """All processes end; half of the time the power goes as well."""
    if machine.world.random.random() < 0.5:
        machine.cut_power()


def _read_again(world: World, prepared: Prepared) -> ServerState:
    """What a new process finds on the disk."""
    store = Store(
        RUN_DIR,
        prepared.identity,
        rule=prepared.rule,
        keep_fit_state=prepared.settings.mode == "ordered",
        disk=world.disk.process("reader"),
        background=False,
    )
    recovered = store.open(prepared.server_state)
    store.abandon()
    if difference := world.line.difference(recovered.state):
        raise Violation(f"at the end: {difference}")
    if not _is_complete(world):
        raise Violation("the run ended, and records are missing")
    return recovered.state


def _is_complete(world: World) -> bool:
    task = world.plan.task
    is_told = world.num_acknowledged == len(world.line.changes)
    return is_told and len(world.line.covered) == task.records * task.partitions


@lru_cache(maxsize=64)
def _good_day(task: Task) -> History:
    """The same task without a fault."""
    plan = Plan(0, task, 0, 0, 0, 0.0, 0.0, 0.0, workers=1, segment_bytes=10**6, unit=512)
    history = run(plan)
    assert not history.violation, history.violation
    return history


def _is_unlucky(history: History) -> bool:
    """Workers died by chance so often on one interval that a good record was taken for the reason."""
    assert history.state is not None
    good_day = _good_day(draw(history.seed).task).state
    assert good_day is not None
    return {entry.interval for entry in history.state.ledger.set_aside} != {
        entry.interval for entry in good_day.ledger.set_aside
    }


def _bits(state: ServerState | None, other: ServerState | None) -> str:
    """The first array that differs."""
    assert state is not None
    assert other is not None
    for what, ours, theirs in (
        ("posterior", state.posterior.arrays, other.posterior.arrays),
        ("fit state", state.fit_state, other.fit_state),
    ):
        for name in ours:
            if ours[name].tobytes() != theirs[name].tobytes():
                return f"{what}.{name}"
    return ""


@contextmanager
def _clocks_of(world: World) -> Iterator[None]:
    """Every clock is the world's, and so is the number of the process; nobody reads its log."""

    def sleep(seconds: SupportsIndex | float) -> None:
        world.now += float(seconds)

    kept = time.time, time.monotonic, time.sleep, os.getpid
    level = logging.getLogger("streaming_vb").level
    time.time, time.monotonic, time.sleep = world.wall, lambda: world.now, sleep
    os.getpid = lambda: world.process_number
    logging.getLogger("streaming_vb").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        time.time, time.monotonic, time.sleep, os.getpid = kept
        logging.getLogger("streaming_vb").setLevel(level)
