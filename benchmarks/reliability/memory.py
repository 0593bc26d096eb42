"""Figure M8: the server's memory over millions of records must not grow with them.

Integers are streamed through the ledger model with the server and two workers as processes of their own and a run
directory, so that everything is in use that a long run uses: journal, snapshots, receipts, the ledger. Meanwhile the
resident and the proportional memory of every process, its open files and its threads are sampled; the proportional
one without files (`Pss_Anon` of `/proc/PID/smaps_rollup`), whose share changes with every stranger that loads the same
library. The slope, in bytes per record, is that of a least-squares line after a warm-up; its 95 % interval is a moving
block bootstrap of the residuals, because samples of memory that follow each other are alike. Memory grows by pages of
4 KB, so a short run cannot tell 0.02 byte per record from noise.

Read the bars: the interval of the slope holds 0 (a negative slope does too), or its upper end is below 0.02 byte per
record, which is 1 MB in 50 million. They are for the server; the other processes are reported, and all of them
together. Of its open files and threads, the fewest in the last tenth must be no more than in the first one: a snapshot
opens two for a moment.

    python benchmarks/reliability/memory.py --records 5000000
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import server_setup
from streaming_vb.streaming.run import run_processes
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.store import Store

PROCESSES = ("driver", "svb-forks", "svb-server", "svb-worker-0", "svb-worker-1")
FIGURES = ("records", "resident", "proportional", "open_files", "threads")
WORKERS = 2
PARTITIONS = 8
BAR = 0.02
"""Bytes per record."""
HURRY = 20.0
"""Snapshots are due so many times as often as usual, every 1.5 seconds, so that there are many after the warm-up."""
REPLICATES = 2_000


class Line(NamedTuple):
    """A fitted slope, bytes per record, and its 95 % interval."""

    slope: float
    lower: float
    upper: float

    @property
    def is_flat(self) -> bool:
        """Nothing says that it grows, or it grows by less than the bar."""
        return self.lower <= 0 or self.upper < BAR


def main() -> None:
    """Stream, look, fit and print."""
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="svb-memory-", dir=arguments.directory) as name:
        samples, pids, seconds = stream(arguments, Path(name) / "run")
    report(arguments, samples, pids, seconds)


def stream(arguments: Namespace, run_dir: Path) -> tuple[Any, list[set[int]], float]:
    """Samples [n, processes, figures], the numbers that each process had, and the seconds that it took."""
    server_setup.Store = partial(Store, clock=lambda: HURRY * time.monotonic())  # type: ignore[misc, assignment]
    source = IntegerSource(-(-arguments.records // PARTITIONS), PARTITIONS)
    settings = Settings(records=arguments.records, batch_size=arguments.interval, local_steps=1, ramp=0)
    samples = np.full((arguments.samples + 1, len(PROCESSES), len(FIGURES)), -1)  # so that the driver does not grow
    pids: list[set[int]] = [set() for _ in PROCESSES]
    every, count = arguments.records / arguments.samples, 0
    began = time.monotonic()
    for step in run_processes(LedgerModel(), source, settings, workers=WORKERS, run_dir=run_dir):
        if step.records < count * every:
            continue
        for process, (seen, pid) in enumerate(zip(pids, processes(), strict=True)):
            seen.add(pid)
            samples[count, process] = step.records, *look(pid)
        count += 1
        if count % 50 == 0:
            print(f"{step.records:,} records, server {samples[count - 1, 2, 1] / 2**20:.2f} MB", file=sys.stderr)
    state = step.state()
    if state.posterior["sum"][0] != arguments.records or state.num_records != arguments.records:
        raise SystemExit(f"{state.num_records} records counted, {arguments.records} streamed")
    return samples[:count], pids, time.monotonic() - began


def processes() -> list[int]:
    """This process and those below it, in the order of `PROCESSES`, by the names that they give themselves."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            head, _, tail = path.read_text().rpartition(")")
            pid = int(path.parent.name)
            parents[pid], names[pid] = int(tail.split()[1]), head.partition("(")[2]
    ours = {
        name: pid for pid, name in names.items() if os.getpid() in (parents[pid], parents.get(parents[pid]))
    }  # between the driver and the others is the fork server
    return [os.getpid(), *(ours[name] for name in PROCESSES[1:])]


def look(pid: int) -> tuple[int, ...]:
    """Figures of a process now, without records; sizes in bytes."""
    rollup = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    status = Path(f"/proc/{pid}/status").read_text()
    threads = int(status.split("Threads:")[1].split()[0])
    resident, proportional = (1024 * int(rollup[name].split()[0]) for name in ("Rss", "Pss_Anon"))
    return resident, proportional, len(os.listdir(f"/proc/{pid}/fd")), threads


def slope(records: Any, values: Any, random: np.random.Generator, replicates: int = REPLICATES) -> Line:
    """Slope of a line through values [n] over records [n], with a moving block bootstrap of its residuals."""
    x, y = np.asarray(records, np.float64), np.asarray(values, np.float64)
    x = x - x.mean()
    fitted = y.mean() + (best := x @ y / (x @ x)) * x
    residuals = y - fitted
    length = max(2, round(2 * len(x) ** 0.5))
    starts = random.integers(len(x) - length + 1, size=(replicates, -(-len(x) // length)))
    rows = (starts[:, :, None] + np.arange(length)).reshape(replicates, -1)[:, : len(x)]
    drawn = residuals[rows]
    slopes = best + (drawn - drawn.mean(axis=1, keepdims=True)) @ x / (x @ x)
    lower, upper = np.quantile(slopes, [0.025, 0.975])
    return Line(float(best), float(lower), float(upper))


def summary(samples: Any, warm_up: float) -> dict[str, Any]:
    """What a process did after the warm-up, from its samples [n, figures]."""
    records, *columns = samples[samples[:, 0] >= warm_up * samples[-1, 0]].T
    figures = dict(zip(FIGURES[1:], columns, strict=True))
    random = np.random.default_rng(0)
    result: dict[str, Any] = {"samples": len(records)}
    for name in ("resident", "proportional"):
        line = slope(records, figures[name], random)
        result[name] = {
            "bytes_per_record": line._asdict(),
            "is_flat": line.is_flat,
            "mb_by_tenths": [part.max() / 2**20 for part in np.array_split(figures[name], 10)],
        }
    for name in ("open_files", "threads"):
        tenths = np.array_split(figures[name], 10)
        result[name] = {"first": int(tenths[0].min()), "last": int(tenths[-1].min()), "most": int(figures[name].max())}
    return result


def report(arguments: Namespace, samples: Any, pids: list[set[int]], seconds: float) -> None:
    """Print the document."""
    from report import at_most, write  # it loads torch, which the processes measured must not share

    by_process = {name: summary(samples[:, i], arguments.warm_up) for i, name in enumerate(PROCESSES)}
    together = samples.sum(axis=1)
    together[:, 0] = samples[:, 0, 0]
    all_processes, server = summary(together, arguments.warm_up), by_process["svb-server"]
    replaced = sum(len(numbers) - 1 for numbers in pids)
    results = {
        "records": arguments.records,
        "merges": -(-arguments.records // arguments.interval),
        "seconds": seconds,
        "processes_replaced": replaced,
        "by_process": by_process,
        "all_processes": all_processes,
    }
    bars = [
        _is_flat("server, resident bytes per record", server["resident"]),
        _is_flat("server, proportional bytes per record", server["proportional"]),
        *(at_most(f"server, more {name}", server[name]["last"] - server[name]["first"], 0) for name in FIGURES[3:]),
        at_most("results.processes_replaced", replaced, 0),
    ]
    write(vars(arguments), results, bars)


def _is_flat(figure: str, found: dict[str, Any]) -> dict[str, Any]:
    measured = [found["bytes_per_record"][end] for end in ("lower", "upper")]
    return {"figure": figure, "measured": measured, "bar": BAR, "rule": "holds 0, or below", "met": found["is_flat"]}


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--interval", type=int, default=200, help="records of one merge")
    parser.add_argument("--samples", type=int, default=500, help="looks at the processes, evenly over the records")
    parser.add_argument("--warm-up", type=float, default=0.3, help="share of the records before the slope counts")
    parser.add_argument("--directory", help="where the run directory is made, instead of the system's temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
