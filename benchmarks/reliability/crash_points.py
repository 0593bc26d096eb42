"""Every point at which writing a run directory can stop: killed before, after and within the n-th operation on the
disk, or refused by it (no space, input/output error), for all n.

A child process appends, syncs and tells entries of a ledger run to this one, with rotations of the journal, snapshots,
trims and files used again, lets go in the middle, recovers, goes on, and closes. At operation n of its disk the fault
befalls it. Then the directory is recovered without faults. Violations:

    an entry that was told is missing, or the state is not to the bit that after some number of entries
    it does not go on to the right end, or what is recovered after that differs
    the child ends with anything but its death or the error of the disk

Kills and refusals are real, a loss of power is not among them (what was not synced survives): that is what the
simulated disk is for. With no violation in n points at most 3/n of such points are bad, at 95 %.

    python benchmarks/reliability/crash_points.py
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from counted_disk import CountedDisk, faults
from ledger_run import LedgerRun, num_entries

from streaming_vb.errors import StreamingVBError

GAVE_UP = 3
"""Exit code of a child that the disk refused."""
BROKEN = 4
"""Exit code of a child with an error that is none of the disk."""


@dataclass(frozen=True)
class Point:
    """The n-th operation, and what befalls it."""

    number: int
    operation: str
    fault: str


def main() -> None:
    """Try every point and print."""
    arguments = parse()
    run = LedgerRun(arguments.entries)
    points = list(every_point(run, arguments.directory))[:: arguments.every]
    violations, classes, started = [], Counter[str](), time.monotonic()
    for count, point in enumerate(points, 1):
        wrong = what_goes_wrong(run, point, arguments.directory)
        classes[f"{point.operation}: {point.fault}"] += 1
        if wrong:
            violations.append(f"operation {point.number} ({point.operation}), {point.fault}: {wrong}")
        if count % 100 == 0:
            rate = count / (time.monotonic() - started)
            print(f"{count} of {len(points)} points, {len(violations)} violations, {rate:.0f}/s", file=sys.stderr)
    report(run, arguments, points, classes, violations, time.monotonic() - started)


def every_point(run: LedgerRun, directory: str | None) -> Iterator[Point]:
    """Every operation of the run, with everything that can befall it."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        disk = CountedDisk()
        _live(run, Path(name), disk, lambda _: None)
        for number, operation in enumerate(disk.operations):
            for fault in faults(operation):
                yield Point(number, operation, fault)


def what_goes_wrong(run: LedgerRun, point: Point, directory: str | None = None) -> str:
    """Let a child meet a point, recover, and say what is not as promised; "" where all is."""
    run_dir = Path(tempfile.mkdtemp(dir=directory))
    try:
        status, told = _in_child(run, run_dir, CountedDisk(point.number, point.fault))
        if os.WIFSIGNALED(status):
            is_promised = os.WTERMSIG(status) == signal.SIGKILL and point.fault.startswith("kill")
        else:
            is_promised = os.WEXITSTATUS(status) in (0, GAVE_UP)
        if not is_promised:
            return f"the child ended with status {status}"
        return _recovery(run, run_dir, told)
    finally:
        shutil.rmtree(run_dir)


def _in_child(run: LedgerRun, run_dir: Path, disk: CountedDisk) -> tuple[int, int]:
    """The wait status of a child that lives through the run, and how many entries it has told."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            _live(run, run_dir, disk, lambda count: os.write(mouth, b"."))
            code = 0
        except (OSError, StreamingVBError):
            code = GAVE_UP
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(mouth)
    told = 0
    while heard := os.read(ear, 65_536):
        told += len(heard)
    os.close(ear)
    return os.waitpid(child, 0)[1], told


def _live(run: LedgerRun, run_dir: Path, disk: CountedDisk, told: Any) -> None:
    """Half of the run, a recovery, the other half, and an orderly end."""
    for until in (run.num_entries // 2 + 1, run.num_entries):
        store = run.store(run_dir, disk)
        state = run.go_on(store, store.open(run.states[0]), until, told)
        if until == run.num_entries:
            store.close(state)
        else:
            store.abandon()


def _recovery(run: LedgerRun, run_dir: Path, told: int) -> str:
    """Recover, go on to the end, and recover that."""
    for purpose, until in (("", run.num_entries), ("after going on: ", run.num_entries)):
        store = run.store(run_dir)
        try:
            recovered = store.open(run.states[0])
        except StreamingVBError as error:
            return f"{purpose}recovery refused: {error}"
        wrong = run.what_is_wrong(recovered, told)
        if not wrong:
            run.go_on(store, recovered, until, lambda count: None)
            told = until
        store.abandon()
        if wrong:
            return f"{purpose}{wrong} ({num_entries(recovered.state)} recovered)"
    return ""


def report(
    run: LedgerRun,
    arguments: Namespace,
    points: list[Point],
    classes: Counter[str],
    violations: list[str],
    seconds: float,
) -> None:
    """Print the document; torch is loaded only now, so that children were light."""
    from report import at_most, write

    settings = {
        "entries": run.num_entries,
        "segment_bytes": run.segment_bytes,
        "every": arguments.every,
        "model": "ledger",
        "not_injected": "loss of power, two faults in one life",
    }
    results = {
        "operations": len({point.number for point in points}),
        "points": len(points),
        "violations": len(violations),
        "seconds": seconds,
        "bound_on_share_of_bad_points_95": 3 / len(points),
        "points_by_class": dict(sorted(classes.items())),
        "examples": violations[:20],
    }
    write(settings, results, [at_most("results.violations", len(violations), 0)])


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=45, help="entries of the run, whole rounds of three")
    parser.add_argument("--every", type=int, default=1, help="try only every n-th point")
    parser.add_argument("--directory", help="where run directories are made, instead of the system's temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
