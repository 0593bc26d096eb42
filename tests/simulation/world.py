"""The world of one history: a virtual clock, the events to come, the budget of faults, and what must always hold.

The world knows every change that every server wrote, in order, as reference servers; and which of them were
acknowledged. It does not know what the code under test does, only what it promises.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from simulation.plan import Plan
from simulation.reference_server import Change, Position, ReferenceServer, Violation
from simulation.simulated_disk import CHANGES, SimulatedDisk
from streaming_vb.streaming.merge import ServerState
from streaming_vb.types import Interval

_DAY = 86_400.0
_LONGEST = 10_000.0
"""Seconds within which a run must be done when nothing goes wrong any more: some pauses double with every loss."""


class World:
    """Time, events, faults and the record of what was done.

    Attributes:
        now: monotonic seconds. `wall` is what a clock on the wall says: it jumps.
        line: reference of the server that opened the run last; `num_acknowledged` of its changes were told.
        faults: what was injected, by kind.
        broken: promises, in order.
        deaths: worker deaths by position of a record that they were fitting; `idle_deaths` those without one.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.random = plan, Random(f"world {plan.seed}")
        self.now = 0.0
        self.num_events = self.last_fault = 0
        self.last_fault_at = 0.0
        self.line = ReferenceServer(plan.task.records)
        self.num_acknowledged = self.generation = 0
        self.faults: Counter[str] = Counter()
        self.broken: list[str] = []
        self.deaths: Counter[tuple[str, int]] = Counter()
        self.idle_deaths = 0
        self.disk = SimulatedDisk(self.random, plan.unit)
        self.disk.interrupt = self._interrupt
        self.processes: dict[str, DiskUser] = {}
        self.power_is_going = False
        self.process_number = 1
        self.in_flight_limit = 0
        self._wall_offset = 1.7e9
        self._budget = {"network": plan.network, "process": plan.processes, "disk": plan.disk}
        self._rates = {"network": plan.network_rate, "process": plan.process_rate, "disk": plan.disk_rate}
        self._full_for = 0
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def at(self, delay: float, event: Callable[[], object]) -> None:
        """Something that will happen."""
        heapq.heappush(self._heap, (self.now + delay, next(self._numbers), event))

    def next_time(self) -> float | None:
        """When something happens next."""
        return self._heap[0][0] if self._heap else None

    def run_next(self) -> None:
        """Let it happen."""
        self.tick()
        moment, _, event = heapq.heappop(self._heap)
        self.now = max(self.now, moment)
        try:
            event()
        except Violation as error:
            self.broken.append(str(error))  # whatever else it leads to
            raise

    def tick(self) -> None:
        """Count an event, and see that the run gets somewhere."""
        self.num_events += 1
        if self.num_events - self.last_fault > self.patience:
            raise Violation(f"no end {self.patience} events after the last fault: the run does not get on")
        if self.now - self.last_fault_at > _LONGEST:
            raise Violation(f"no end {_LONGEST:,.0f} s after the last fault: the run does not get on")

    @property
    def patience(self) -> int:
        """Events within which a run must be done when nothing goes wrong any more."""
        task = self.plan.task
        return 2_000 + 80 * (task.records * task.partitions // task.size) * (1 + len(task.killers))

    def wall(self) -> float:
        """What time.time() says."""
        return self.now + self._wall_offset

    def jump(self) -> None:
        """Somebody sets the clock."""
        self._wall_offset += self.random.choice((-_DAY, _DAY, -3600.0, 3600.0, 30.0, -30.0))

    def fault(self, group: str, kind: str, share: float = 1.0) -> bool:
        """Whether something goes wrong now; it is counted."""
        if self._budget[group] <= 0 or self.random.random() >= self._rates[group] * share:
            return False
        self._budget[group] -= 1
        self.count(kind)
        return True

    def count(self, kind: str) -> None:
        """Something went wrong."""
        self.faults[kind] += 1
        self.last_fault, self.last_fault_at = self.num_events, self.now

    def stop_faults(self) -> None:
        """From now on nothing goes wrong."""
        self._budget = dict.fromkeys(self._budget, 0)
        self._full_for = 0

    def forget_events(self) -> None:
        """Nothing that was on the way arrives: the power went."""
        self._heap.clear()

    # What servers did

    def opened(self, state: ServerState, generation: int) -> ReferenceServer:
        """A server recovered this state: it must be that after some changes, all acknowledged ones among them.

        The last change may be one whose writing failed or was cut short: its bytes may have been complete. A server
        that was overtaken while it opened may have seen less.
        """
        if generation <= self.generation:
            if generation == self.generation:
                raise Violation(f"two servers of generation {generation}")
            return self._overtaken(state)
        self.generation = generation
        candidates = [self.line.prefix(n) for n in range(len(self.line.changes), self.num_acknowledged - 1, -1)]
        if self.line.attempt is not None:
            candidates.insert(0, self.line.with_attempt())
        differences = []
        for candidate in candidates:
            difference = candidate.difference(state)
            if not difference:
                self.line = candidate
                self.num_acknowledged = len(candidate.changes)  # the driver is told where the run stands
                return candidate
            differences.append(difference)
        raise Violation(
            f"recovered a state that was never there with all {self.num_acknowledged} acknowledged changes; "
            f"nearest: {differences[-1]}"
        )

    def _overtaken(self, state: ServerState) -> ReferenceServer:
        for number in range(len(self.line.changes), -1, -1):
            if not self.line.prefix(number).difference(state):
                return self.line.prefix(number)
        return ReferenceServer(self.plan.task.records)

    def acknowledged(self, line: ReferenceServer, number: int) -> None:
        """A server is about to answer for the first changes of its line."""
        if line is not self.line and line.changes[:number] != self.line.changes[:number]:
            raise Violation(f"an overtaken server acknowledged {line.changes[number - 1].interval}")
        self.num_acknowledged = max(self.num_acknowledged, number)

    def check_state(self, line: ReferenceServer, state: ServerState, *, is_newest: bool) -> None:
        """The state of a server after its changes so far, all of them committed."""
        if difference := line.difference(state):
            raise Violation(f"state after {len(line.changes)} changes: {difference}")
        if is_newest:
            self._check_size(state)

    def _check_size(self, state: ServerState) -> None:
        num_runs = sum(len(runs) for runs in state.ledger.runs.values())
        bound = self.plan.task.partitions + self.in_flight_limit
        if num_runs > bound:
            raise Violation(f"the ledger holds {num_runs} runs, at most {bound} are partitions or in flight")

    def died_fitting(self, interval: Interval) -> None:
        """A worker died, or was given up, with a fit."""
        for at in range(interval.start, interval.stop):
            self.deaths[interval.partition, at] += 1

    def check_bad(self, change: Change) -> None:
        """Exactly the bad records of an interval are left out of its evidence."""
        task = self.plan.task
        bad = {position for position in change.positions() if self._record(position) in task.bad}
        if bad != change.bad:
            raise Violation(f"{change.interval}: {sorted(change.bad)} were left out, {sorted(bad)} are bad")

    def check_set_aside(self, change: Change) -> None:
        """Records are set aside for a reason only: they are poison, or workers died on them twice."""
        task = self.plan.task
        poison = task.killers | task.nan_always
        positions = change.positions()
        numbers = {self._record(position) for position in positions}
        if numbers & poison or numbers <= task.bad or self.faults["corrupt delta"]:
            return
        if not any(self.deaths[position] + self.idle_deaths >= 2 for position in positions):
            raise Violation(f"{change.interval} was set aside, and nothing is wrong with it")

    def _record(self, position: Position) -> int:
        return int(position[0].removeprefix("part-")) * self.plan.task.records + position[1]

    # What goes wrong with disks

    def _interrupt(self, name: str, operation: str, path: Path) -> str:
        process = self.processes.get(name)
        if process is None:
            return ""
        process.reached_operation()
        if operation not in CHANGES:
            return ""
        if self._full_for and operation in ("write", "create"):
            self._full_for -= 1
            return "full"
        if self.fault("disk", f"server killed at {operation}", 0.4):
            return "kill"
        if self.fault("disk", f"power cut at {operation}", 0.3):
            self.power_is_going = True
            return "kill"
        if operation in ("write", "create") and self.fault("disk", "disk full", 0.3):
            self._full_for = self.random.randint(0, 8)
            return "full"
        if operation in ("write", "sync", "sync_directory") and self.fault("disk", f"{operation} error", 0.3):
            return "error"
        return ""


class DiskUser:
    """A process that uses the disk and may be stopped at any operation."""

    def reached_operation(self) -> None:
        """Called before every operation."""
