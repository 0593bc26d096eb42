"""How long a run stands still after a kill: from SIGKILL to the next durable merge, by an observer's monotonic clock.

The next durable merge is the next step of the driver whose answer arrived after the kill; where the server was killed,
after its successor had opened the run. Two workers, one run directory, random moments:

    worker        of the ledger model (kill and replacement cost next to nothing: what is left is the protocol)
    server        with a posterior of 100 MB and journal entries of 50 MB: its successor reads the snapshot and up to
                  five entries
    vae_worker    of the VAE 784-500-20 with intervals of 1,000 records; beside it, when the replacement itself has
                  finished its first fit (its interval is fitted from the start)
    vae_cold      all processes of that run, driver included; then the same command again: interpreter, import of torch,
                  opening the run directory, one fit

After every row the records of the ledger must be in the posterior once each. Read p99 of `results` against the bars.
Times are on the wall: run it on an idle machine; other programs that want its cores lengthen the server's row most.

    python benchmarks/reliability/recovery.py --kills 100 --cold-kills 30
"""

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
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from kills import below  # noqa: E402
from report import at_most, progress, write  # noqa: E402

BARS = {"worker": 1.0, "server": 2.0, "vae_worker": 1.0, "vae_cold": 5.0}
"""Seconds, 99th percentile."""
PATIENCE = 60.0
"""Seconds in which the next merge must be acknowledged, whatever died."""
RECORDS = 10_000


class Run:
    """A run as its observer sees it.

    Args:
        arguments: of `recovering_run.py`.
    """

    def __init__(self, *arguments: str | Path) -> None:
        self._command = [sys.executable, str(HERE / "recovering_run.py"), *map(str, arguments)]
        self.start()

    def start(self) -> None:
        """The same command every time."""
        self._driver = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._buffer = b""
        self._lines: deque[dict[str, Any]] = deque()

    def kill(self, name: str, chance: random.Random) -> tuple[int, float]:
        """SIGKILL one of the processes whose name begins so; its pid, and when it was killed."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            victims = [pid for pid, title in below(self._driver.pid) if title.startswith(name)]
            if victims:
                victim = chance.choice(victims)
                killed_at = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                return victim, killed_at
        raise SystemExit(f"no process {name} to kill")

    def kill_all(self) -> float:
        """SIGKILL the driver and all that it started, in that order; when."""
        processes = [self._driver.pid, *(pid for pid, _ in below(self._driver.pid))]
        killed_at = time.monotonic()
        for pid in processes:
            with suppress(ProcessLookupError):  # it ended with its driver
                os.kill(pid, signal.SIGKILL)
        self._driver.wait()
        self._let_go()
        return killed_at

    def next(self, kind: str, since: float = 0.0, other_than: frozenset[int] = frozenset()) -> float:
        """When the next line of a kind was said, of those after a time."""
        line = self._next(kind, since, other_than)
        return float(line["at"])

    def workers(self) -> frozenset[int]:
        """Pids of the workers."""
        return frozenset(pid for pid, title in below(self._driver.pid) if title.startswith("svb-worker"))

    def stop(self) -> tuple[float, float]:
        """End the run in order; records by its ledger, and by its posterior."""
        assert self._driver.stdin is not None
        self._driver.stdin.write(b"stop\n")
        self._driver.stdin.flush()
        last = self._next("records", 0.0, frozenset())
        self._driver.wait(PATIENCE)
        self._let_go()
        return last["records"], last["counted"]

    def _next(self, kind: str, since: float, other_than: frozenset[int]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            while self._lines:
                line = self._lines.popleft()
                if kind in line and line["at"] > since and line[kind] not in other_than:
                    return line
            self._read()
        raise SystemExit(f"no {kind} within {PATIENCE:.0f} s; type {' '.join(self._command)} to see why")

    def _read(self) -> None:
        assert self._driver.stdout is not None
        if not select.select([self._driver.stdout], [], [], 0.1)[0]:
            return
        text = os.read(self._driver.stdout.fileno(), 1 << 16)
        if not text:
            raise SystemExit(f"the driver ended; type {' '.join(self._command)} to see why")
        *lines, self._buffer = (self._buffer + text).split(b"\n")
        self._lines.extend(map(json.loads, lines))

    def _let_go(self) -> None:
        for pipe in (self._driver.stdin, self._driver.stdout):
            assert pipe is not None
            pipe.close()


def main() -> None:
    """Kill, measure and print."""
    arguments = parse()
    chance = random.Random(arguments.seed)
    seconds: dict[str, list[float]] = {}
    with directory() as here:
        data = arguments.data_dir or bits(here)
        if "worker" in arguments.rows:
            seconds["worker"] = after_worker_kills(Run("ledger", here / "ledger"), arguments.kills, chance)
        if "server" in arguments.rows:
            seconds["server"] = after_server_kills(Run("wide", here / "wide"), arguments.kills, chance)
        if "vae_worker" in arguments.rows:
            run = Run("vae", here / "vae", data)
            seconds["vae_worker"], seconds["vae_replacement"] = after_vae_worker_kills(run, arguments.kills, chance)
        if "vae_cold" in arguments.rows:
            run = Run("vae", here / "cold", data)
            seconds["vae_cold"] = after_killing_everything(run, arguments.cold_kills, chance)
    results = {name: summary(values) for name, values in seconds.items()}
    bars = [at_most(f"results.{name}.p99", results[name]["p99"], bar) for name, bar in BARS.items() if name in results]
    write(vars(arguments), results, bars)


def after_worker_kills(run: Run, kills: int, chance: random.Random) -> list[float]:
    """Seconds from the death of a worker to the next durable merge."""
    seconds = []
    run.next("step")
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 0.1))
        _, killed_at = run.kill("svb-worker", chance)
        seconds.append(run.next("step", killed_at) - killed_at)
    require_exact(run)
    report("worker", seconds)
    return seconds


def after_server_kills(run: Run, kills: int, chance: random.Random) -> list[float]:
    """Seconds from the death of the server to the next durable merge: the first after its successor has opened the run.
    The kills fall anywhere between two snapshots."""
    seconds = []
    run.next("step")
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 3.0))
        _, killed_at = run.kill("svb-server", chance)
        restarted_at = run.next("restarted", killed_at)
        seconds.append(run.next("step", restarted_at) - killed_at)
    require_exact(run)
    report("server", seconds)
    return seconds


def after_vae_worker_kills(run: Run, kills: int, chance: random.Random) -> tuple[list[float], list[float]]:
    """Seconds from the death of a worker to the next durable merge, and to the first fit of its replacement."""
    merges, fits = [], []
    run.next("step")
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 1.0))
        known = run.workers()
        _, killed_at = run.kill("svb-worker", chance)
        merges.append(run.next("step", killed_at) - killed_at)
        fits.append(run.next("fitted", killed_at, known) - killed_at)
    require_exact(run)
    report("vae_worker", merges)
    report("vae_replacement", fits)
    return merges, fits


def after_killing_everything(run: Run, kills: int, chance: random.Random) -> list[float]:
    """Seconds from the death of all processes to the first durable merge of the same command."""
    seconds = []
    run.next("step")
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 1.0))
        killed_at = run.kill_all()
        run.start()
        seconds.append(run.next("step", killed_at) - killed_at)
    require_exact(run)
    report("vae_cold", seconds)
    return seconds


def require_exact(run: Run) -> None:
    """End a run; every record of its ledger must be in its posterior once."""
    records, counted = run.stop()
    if records != counted:
        raise SystemExit(f"{records} records in the ledger, {counted} in the posterior")


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and longest."""
    return {
        "kills": len(seconds),
        "p50": float(np.median(seconds)),
        "p99": float(np.quantile(seconds, 0.99)),
        "max": max(seconds),
    }


def report(name: str, seconds: list[float]) -> None:
    """A line on stderr."""
    progress(f"{name}: {', '.join(f'{key} {value:.3f}' for key, value in summary(seconds).items())}")


@contextmanager
def directory() -> Iterator[Path]:
    """A directory that is removed where all went well."""
    path = Path(tempfile.mkdtemp(prefix="svb-recovery-"))
    yield path
    shutil.rmtree(path)


def bits(here: Path) -> Path:
    """A file of random bits; how long recovery takes does not depend on what is learned."""
    path = here / "bits.npy"
    np.save(path, np.random.default_rng(0).integers(0, 2, (RECORDS, 784), np.uint8))
    return path


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="per row")
    parser.add_argument("--cold-kills", type=int, default=30, help="of everything at once")
    parser.add_argument("--rows", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--data-dir", type=Path, help="folder with the four IDX .gz files of MNIST; none: random bits")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
