"""Figure M11: ordered mode gives the same bits, whatever dies and however many workers there are.

Each run streams a conjugate model or a small VAE over random bits in ordered mode, on 1 to 8 workers. Workers, the
server, the driver, or everything at once are killed at random moments with SIGKILL; where the driver died, the same
command goes on, with another number of workers. What the posterior file holds in the end (SHA-256 of the posterior and
of the warm start, version, records) must be what the same run holds that nothing befell, in one process with one
worker. Nothing may be set aside.

A worker that dies twice on one interval starts a search for a record that kills; the kills are far enough apart that no
honest record is convicted, which takes two deaths on it alone.

With no failure in n runs, the share of runs that differ is below 3/n with a confidence of 95 %.

    python benchmarks/reliability/ordered.py --runs 300
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kills import adopt_orphans, below, children
from ordered_run import MODELS, without_faults

SHARES = {"worker": 12, "server": 5, "driver": 2, "everything": 1}
MOST_WORKERS = 8
TIMES = {"linear": 5, "vae": 1}
"""Times as many records for the model that is faster, so that its runs last as long."""
PATIENCE = 300.0
"""Seconds that a run may take between two kills, or to its end."""


class Failure(Exception):
    """A run that did not end as it must."""


@dataclass
class Tally:
    """What happened in all runs."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    starts: Counter[int] = field(default_factory=Counter)
    kills_after_the_end: int = 0
    failures: list[str] = field(default_factory=list)


class Driver:
    """The program that runs, started again whenever it was killed."""

    def __init__(self, directory: Path, model: str, seed: int, records: int, chance: random.Random, tally: Tally):
        self._directory, self._command, self._chance, self._tally = directory, [model, seed, records], chance, tally
        directory.mkdir()
        self._errors = open(directory / "errors", "ab")  # noqa: SIM115 - closed with the run
        self._start()

    def kill(self, role: str) -> bool:
        """Kill at a random moment; whether there was still something to kill."""
        if self._said(self._chance.uniform(0.0, 0.3)) != "nothing":
            return False
        processes = below(self._process.pid)
        victims = {
            "worker": [pid for pid, name in processes if name.startswith("svb-worker")],
            "server": [pid for pid, name in processes if name == "svb-server"],
            "driver": [self._process.pid],
            "everything": [self._process.pid, *(pid for pid, _ in processes)],
        }[role]
        if not victims:  # it was dead, and its successor is not there yet
            return self.kill(role)
        if role == "worker":
            victims = [self._chance.choice(victims)]
        for pid in victims:
            kill(pid)
        self._tally.kills[role] += 1
        if role in ("driver", "everything"):
            self._process.wait()
            self._let_go()
            self._start()
        return True

    def result(self) -> dict[str, Any]:
        """What came out, when it is done."""
        if self._closed is None and self._said(PATIENCE) != "closed":
            raise Failure(f"the driver ended with {self._process.poll()} ({self._last_error()})")
        assert self._closed is not None
        return self._closed

    def close(self) -> None:
        """Leave nothing behind, however it went."""
        for pid in (self._process.pid, *(pid for pid, _ in below(self._process.pid))):
            kill(pid)
        self._process.wait()
        self._let_go()
        self._errors.close()
        reap()

    def _start(self) -> None:
        workers = self._chance.randint(1, MOST_WORKERS)
        self._tally.starts[workers] += 1
        arguments = [*self._command, self._directory / "run", workers]
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("ordered_run.py"), *map(str, arguments)],
            bufsize=0,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._closed: dict[str, Any] | None = None
        if self._said(PATIENCE) != "begun":  # kills while it starts are those of `kills.py`
            raise Failure(f"the driver does not start ({self._last_error()})")

    def _said(self, seconds: float) -> str:
        """What the driver says within some seconds: "begun", "closed" or "nothing"; "end" where it has ended."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return "nothing"
        line = self._process.stdout.readline()
        if not line:
            return "end"
        said = json.loads(line)
        self._closed = said.get("closed")
        return next(iter(said))

    def _let_go(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _last_error(self) -> str:
        lines = (self._directory / "errors").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "nothing on stderr"


def main() -> None:
    """Run, kill, compare and print."""
    arguments = parse()
    adopt_orphans()
    tally = Tally()
    directory = Path(tempfile.mkdtemp(prefix="svb-ordered-", dir=arguments.directory))
    for number in range(arguments.runs):
        model = MODELS[number % len(MODELS)]
        one_run(directory / str(number), model, number, arguments, tally)
        killed = sum(tally.kills.values())
        print(f"{number + 1} of {arguments.runs} runs, {killed} kills, {tally.failures}", file=sys.stderr)
    if not tally.failures:
        shutil.rmtree(directory)
    report(arguments, tally)


def one_run(directory: Path, model: str, number: int, arguments: Namespace, tally: Tally) -> None:
    """A run under kills, and its comparison with one that nothing befell."""
    chance = random.Random(f"{arguments.seed} {number}")
    seed = chance.randrange(2**31)
    tally.runs[model] += 1
    records = TIMES[model] * arguments.records
    expected = without_faults(model, seed, records)
    driver = Driver(directory, model, seed, records, chance, tally)
    try:
        roles = chance.choices(list(SHARES), list(SHARES.values()), k=arguments.kills) if arguments.kills else []
        for done, role in enumerate(roles):
            if not driver.kill(role):
                tally.kills_after_the_end += len(roles) - done
                break
        found = driver.result()
        if found != expected:
            raise Failure(f"{found} instead of {expected}")
        shutil.rmtree(directory)
    except Failure as failure:
        tally.failures.append(f"run {number} ({model}): {failure}; kept in {directory}")
    finally:
        driver.close()


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap() -> None:
    """Processes of killed drivers became ours; they end by themselves."""
    deadline = time.monotonic() + 10.0
    while orphans := [pid for pid, name in children(os.getpid()) if name.startswith("svb-")]:
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise SystemExit(f"processes {orphans} outlived their driver")
        time.sleep(0.01)


def report(arguments: Namespace, tally: Tally) -> None:
    """Print the document."""
    from report import at_most, write

    runs = sum(tally.runs.values())
    results = {
        "runs": runs,
        "runs_by_model": dict(tally.runs),
        "kills": sum(tally.kills.values()),
        "kills_by_role": {role: tally.kills[role] for role in SHARES},
        "kills_after_the_end": tally.kills_after_the_end,
        "starts_by_workers": {workers: tally.starts[workers] for workers in sorted(tally.starts)},
        "other_bits": len(tally.failures),
        "failures": tally.failures,
        "bound_on_share_of_runs_95": None if tally.failures else 3 / runs,
    }
    write(vars(arguments), results, [at_most("results.other_bits", len(tally.failures), 0)])


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10, help="in each run, if it lasts so long")
    parser.add_argument("--records", type=int, default=12_000, help="of each run of the VAE")
    parser.add_argument("--seed", type=int, default=0, help="of runs and kills")
    parser.add_argument("--directory", help="where run directories are made, instead of the system's temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
