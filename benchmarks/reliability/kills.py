"""Figure M1: processes of a run are killed again and again, and every record must be counted once.

A driver streams integers through the ledger model, whose four sums a lost or a doubled record changes, with a server
and workers as processes of their own (`killed_run.py`). It is killed at random moments (of 20 kills, 12 hit a worker, 5
the server, 2 the driver, 1 everything at once), and at each named point of the cycle (`streaming_vb/failpoints.py`).
Where the driver died, the same command goes on with the same run directory. After every kill the sums must be those of
the records in the ledger, every record that was acknowledged must be in it, no version may be acknowledged twice, and
no process of a killed driver may live on.

Read `results.lost` and `results.doubled` against the bar. With no failure in n kills, the rate of failure is below 3/n
with a confidence of 95 % (`bound_per_kill`). Times are from a kill to the next acknowledged merge.

    python benchmarks/reliability/kills.py --kills 1000 --points 20 --seed 0
"""

import ctypes
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from report import at_most, progress, write  # noqa: E402

from streaming_vb.streaming import snapshot  # noqa: E402

SHARES = {"worker": 12, "server": 5, "driver": 2, "everything": 1}
WORKER_POINTS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")
SERVER_POINTS = ("S1", "S2", "S3", "S4", "S5", "S6", "S7a", "S7b", "S7c", "S7d", "S8", "D2")
DRIVER_POINTS = ("D1", "D3", "D4")
POINTS = WORKER_POINTS + SERVER_POINTS + DRIVER_POINTS
KILLS_PER_RUN = 50
RECORDS_PER_PARTITION, PARTITIONS = 200_000, 3
ROUND_SIZE = 4
PATIENCE = 60.0
"""Seconds in which the next merge must be acknowledged, whatever died."""
NOT_INJECTED = [
    "power cuts: what a killed process wrote, the kernel keeps (see crash points and the simulation)",
    "failing or full disks",
    "several machines",
    "kills of the fork server alone (see tests/streaming/test_processes.py)",
]


Part = tuple[str, int, int]
"""Partition, start, stop."""


class Violation(Exception):
    """A promise was broken."""


@dataclass
class Tally:
    """What happened in all runs."""

    kills: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    checks: int = 0
    merges: int = 0
    violations: list[str] = field(default_factory=list)

    def recovered(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)


class Sums:
    """The oracle: sums over ranges of integers, by prefix sums and by itself, not by the model."""

    def __init__(self, most: int) -> None:
        i = np.arange(most, dtype=np.uint64)
        hashed = ((i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & np.uint64(0xFFFFF)
        values = np.stack([np.ones_like(i), i, (i * i) & np.uint64(0xFFFFF), hashed]).astype(np.int64)
        self._prefix = np.concatenate([np.zeros((4, 1), np.int64), values.cumsum(axis=1)], axis=1)

    def over(self, ranges: list[Part]) -> np.ndarray:
        """The four sums over [start, stop) of partitions."""
        total = np.zeros(4, np.int64)
        for partition, start, stop in ranges:
            first = int(partition.removeprefix("part-")) * RECORDS_PER_PARTITION
            total += self._prefix[:, first + stop] - self._prefix[:, first + start]
        return total


class Run:
    """One run directory, and the driver that works on it now."""

    def __init__(self, directory: Path, mode: str, workers: int, sums: Sums, tally: Tally) -> None:
        self._directory, self._mode, self._workers, self._sums, self._tally = directory, mode, workers, sums, tally
        self._tokens = directory / "tokens"
        self._tokens.mkdir(parents=True)
        self._acknowledged: list[Part] = []
        self._parts: set[Part] = set()
        self._versions: set[int] = set()
        self._errors = open(directory / "errors", "ab")  # noqa: SIM115 - closed with the run
        self.start()

    def start(self) -> None:
        """The command of a run, the same every time."""
        fail = ",".join(f"{point}:kill:1:{self._tokens / point}" for point in POINTS)
        sizes = RECORDS_PER_PARTITION, PARTITIONS, ROUND_SIZE
        arguments = [self._directory / "run", self._mode, self._workers, *sizes]
        self._driver = subprocess.Popen(
            [sys.executable, HERE / "killed_run.py", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "SVB_FAIL": fail, "OMP_NUM_THREADS": "1"},
        )
        self._buffer = b""
        self._lines: deque[dict[str, Any]] = deque()

    def kill(self, role: str, chance: random.Random) -> None:
        """Kill at a random moment, and see it go on."""
        time.sleep(chance.uniform(0.0, 0.1))
        processes = below(self._driver.pid)
        of_role = {
            "worker": [pid for pid, name in processes if name.startswith("svb-worker")],
            "server": [pid for pid, name in processes if name == "svb-server"],
            "driver": [self._driver.pid],
            "everything": [self._driver.pid, *(pid for pid, _ in processes)],
        }[role]
        victims = of_role if role == "everything" else of_role and [chance.choice(of_role)]
        if not victims:  # it was dead, and its successor is not there yet
            return self.kill(role, chance)
        began = time.monotonic()
        end(victims)
        self._after_death(role, began, driver_died=role in ("driver", "everything"))

    def kill_at(self, point: str) -> None:
        """Kill at a named point, and see it go on."""
        token = self._tokens / point
        if point in ("D1", "D2"):
            self.stop()
            token.touch()
            self.start()
        elif point == "D4":
            token.touch()
            self._say("stop")
        else:
            token.touch()
        deadline = time.monotonic() + PATIENCE
        while token.exists():
            self._read(0.002)
            if time.monotonic() > deadline:
                raise Violation(f"{point} was not reached")
        self._after_death(point, time.monotonic(), driver_died=point in DRIVER_POINTS)

    def stop(self) -> None:
        """End the run in order; what it says last and what is in its file must agree."""
        self._say("stop")
        closed = self._next("closed")
        self._driver.wait(PATIENCE)
        self._let_go()
        self._check(closed, "when closed")
        state = snapshot.load(self._directory / "run" / "posterior.safetensors").state
        if state.version != closed["version"] or state.posterior["sum"].tolist() != closed["sums"]:
            raise Violation(f"the file holds version {state.version}, the run ended with {closed['version']}")
        self._require_no_orphans()

    def close(self) -> None:
        """Leave nothing behind, however it went."""
        end([self._driver.pid, *(pid for pid, _ in below(self._driver.pid))])
        self._driver.wait()
        self._let_go()
        self._errors.close()

    def _after_death(self, what: str, began: float, driver_died: bool) -> None:
        self._tally.kills[what] += 1
        if driver_died:
            self._driver.wait(PATIENCE)
            self._take_all()
            self._let_go()
            self.start()
        elif what == "server" or (what in SERVER_POINTS and what != "D2"):  # a run that begins has no server to lose
            while "the server was started again" not in self._next("log"):
                pass
        self._tally.recovered(what, self._next("step", since=began)["at"] - began)
        if driver_died:
            self._check(self._next("opened"), f"opened after {what}")
        self._say("check")
        self._check(self._next("state"), f"after {what}")
        if driver_died:
            self._require_no_orphans()

    def _check(self, state: dict[str, Any], when: str) -> None:
        """The sums are those of the ledger, and what was acknowledged is in it."""
        self._tally.checks += 1
        covered = [(partition, start, stop) for partition, runs in state["runs"].items() for start, stop in runs]
        expected = self._sums.over(covered) - self._sums.over([tuple(part) for part in state["set_aside"]])
        difference = int(state["sums"][0]) - int(expected[0])
        self._tally.lost += max(0, -difference)
        self._tally.doubled += max(0, difference)
        if state["sums"] != expected.tolist() or state["records"] != expected[0]:
            raise Violation(f"{when}: sums {state['sums']}, those of the ledger's records are {expected.tolist()}")
        self._acknowledged = [part for part in self._acknowledged if not is_covered(part, state["runs"])]
        open_round = (
            ROUND_SIZE if self._mode == "ordered" else 0
        )  # its merges are acknowledged, and published at its end
        if len(self._acknowledged) > open_round:
            self._tally.lost += sum(stop - start for _, start, stop in self._acknowledged)
            raise Violation(f"{when}: {self._acknowledged} was acknowledged and is not in the ledger")
        if state["version"] < max(self._versions, default=0) - open_round:
            raise Violation(f"{when}: version {state['version']}, acknowledged was {max(self._versions)}")

    def _require_no_orphans(self) -> None:
        """Processes of a killed driver became ours, as the nearest ancestor that adopts; they must end."""
        deadline = time.monotonic() + 10.0
        while True:
            orphans = [(pid, name) for pid, name in children(os.getpid()) if pid != self._driver.pid]
            for pid, _ in orphans:
                os.waitpid(pid, os.WNOHANG)
            if not orphans:
                return
            if time.monotonic() > deadline:
                raise Violation(f"{orphans} outlived their driver")
            time.sleep(0.002)

    def _next(self, kind: str, since: float = 0.0) -> Any:
        """The next line of a kind, of those said after a time; acknowledged steps on the way are noted."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while self._lines:
                line = self._taken()
                if kind in line and (kind != "step" or line["step"]["at"] > since):
                    return line[kind]
            if not self._read(0.1) and self._driver.poll() is not None and not self._read(0.0):
                raise Violation(f"the driver ended with {self._driver.returncode} ({self._last_error()})")
            if time.monotonic() > deadline:
                raise Violation(f"no {kind} within {PATIENCE:.0f} s ({self._last_error()})")

    def _taken(self) -> dict[str, Any]:
        line = self._lines.popleft()
        if "step" in line:
            self._note(line["step"])
        return line

    def _take_all(self) -> None:
        self._read(0.0)
        while self._lines:
            self._taken()

    def _read(self, seconds: float) -> bool:
        """Wait for the driver to say something; whether it did."""
        assert self._driver.stdout is not None
        found = False
        while select.select([self._driver.stdout], [], [], 0.0 if found else seconds)[0]:
            text = os.read(self._driver.stdout.fileno(), 1 << 16)
            if not text:
                break
            found = True
            *lines, self._buffer = (self._buffer + text).split(b"\n")
            self._lines.extend(map(json.loads, lines))
        return found

    def _note(self, row: dict[str, Any]) -> None:
        if row["status"] == "rejected":
            return
        part = row["partition"], row["start"], row["stop"]
        if part in self._parts:
            self._tally.doubled += row["new"]
            raise Violation(f"{part} was acknowledged twice")
        self._parts.add(part)
        self._acknowledged.append(part)
        if row["status"] == "merged":
            self._tally.merges += 1
            if row["version"] in self._versions:
                raise Violation(f"version {row['version']} was acknowledged twice")
            self._versions.add(row["version"])

    def _say(self, command: str) -> None:
        assert self._driver.stdin is not None
        self._take_all()
        try:
            self._driver.stdin.write(command.encode() + b"\n")
            self._driver.stdin.flush()
        except BrokenPipeError:
            raise Violation(f"the driver ended ({self._last_error()})") from None

    def _let_go(self) -> None:
        for pipe in (self._driver.stdin, self._driver.stdout):
            assert pipe is not None
            pipe.close()

    def _last_error(self) -> str:
        lines = (self._directory / "errors").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "nothing on stderr"


def main() -> None:
    """Kill, count and print."""
    arguments = parse()
    adopt_orphans()
    schedule = planned(arguments)
    directory = Path(tempfile.mkdtemp(prefix="svb-kills-"))
    sums, tally = Sums(RECORDS_PER_PARTITION * PARTITIONS), Tally()
    for number, begin in enumerate(range(0, len(schedule), KILLS_PER_RUN)):
        one_run(directory / str(number), number, schedule[begin : begin + KILLS_PER_RUN], arguments.seed, sums, tally)
        progress(f"{sum(tally.kills.values())} of {len(schedule)} kills, {tally.merges:,} merges, {tally.violations}")
    if not tally.violations:
        shutil.rmtree(directory)
    injected = {
        "kills_by_role": {role: tally.kills[role] for role in SHARES},
        "kills_by_point": {point: tally.kills[point] for point in POINTS},
    }
    conclude(arguments, tally, injected, NOT_INJECTED)


def conclude(arguments: Namespace, tally: Tally, injected: Mapping[str, Any], not_injected: Sequence[str]) -> None:
    """Print what was counted."""
    total = sum(tally.kills.values())
    results = {
        "kills": total,
        **injected,
        "merges": tally.merges,
        "checks": tally.checks,
        "lost": tally.lost,
        "doubled": tally.doubled,
        "violations": tally.violations,
        "bound_per_kill": None if tally.violations or not total else 3 / total,
        "seconds_to_next_merge": {what: percentiles(seconds) for what, seconds in sorted(tally.seconds.items())},
        "not_injected": not_injected,
    }
    bars = [
        at_most("results.lost", tally.lost, 0),
        at_most("results.doubled", tally.doubled, 0),
        at_most("violations", len(tally.violations), 0),
    ]
    write(vars(arguments), results, bars)


def planned(arguments: Namespace) -> list[str]:
    """Roles and points in random order, in exact shares."""
    chance = random.Random(arguments.seed)
    whole = sum(SHARES.values())
    schedule = [role for role, share in SHARES.items() for _ in range(arguments.kills * share // whole)]
    schedule += ["worker"] * (arguments.kills - len(schedule))
    schedule += [point for point in POINTS for _ in range(arguments.points)]
    chance.shuffle(schedule)
    return schedule


def one_run(directory: Path, number: int, schedule: list[str], seed: int, sums: Sums, tally: Tally) -> None:
    """A run directory from its first start to its end in order. Every third run is in ordered mode."""
    chance = random.Random(f"{seed} {number}")
    mode = "ordered" if number % 3 == 2 else "async"
    run = Run(directory, mode, 2 + number % 2, sums, tally)
    try:
        run._next("step")
        for what in schedule:
            if what in POINTS:
                run.kill_at(what)
            else:
                run.kill(what, chance)
        run.stop()
        shutil.rmtree(directory)
    except Violation as violation:
        tally.violations.append(f"run {number} ({mode}): {violation}; kept in {directory}")
    finally:
        run.close()


def adopt_orphans() -> None:
    """Become the parent of processes whose parents die (PR_SET_CHILD_SUBREAPER), to see whether they end."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def is_covered(part: Part, runs: dict[str, list[list[int]]]) -> bool:
    """Whether a ledger has an interval."""
    partition, start, stop = part
    return any(first <= start and stop <= last for first, last in runs.get(partition, []))


def end(processes: Iterable[int]) -> None:
    """SIGKILL."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> Iterator[tuple[int, str]]:
    """Processes whose parent is `pid`, and their names."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(tail.split()[1]) == pid:
            yield int(path.parent.name), head.partition("(")[2]


def below(pid: int) -> list[tuple[int, str]]:
    """Processes that a process started, and those that they started."""
    found = list(children(pid))
    return found + [grandchild for child, _ in found for grandchild in below(child)]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and longest."""
    return {"p50": float(np.median(seconds)), "p99": float(np.quantile(seconds, 0.99)), "max": max(seconds)}


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="at random moments")
    parser.add_argument("--points", type=int, default=20, help="kills at each named point")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
