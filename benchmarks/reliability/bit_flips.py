"""Single bits flipped in a run directory: in the snapshot, the one before, the journal and the generation. Recovery
must find it or not be touched by it, and never give another posterior.

A ledger run with rotations, snapshots and a recovery is left behind as a crash leaves it. Bits are drawn evenly over
its files, with a seed: first a file, then a bit of it, so that small files are tried as often as large ones. Each time
recovery must do one of these:

    refused     a typed error, one line
    same        the true state: the bit was slack, or the other copy was used
    earlier     the true state after fewer entries: the last entry of the journal was cut off, with a note where there
                was anything to see. Its interval is not in the ledger, so it is leased again
    noted       the true state after fewer entries, with a note that says so

Anything else is a violation. With none in n flips at most 3/n of such flips are bad, at 95 %.

    python benchmarks/reliability/bit_flips.py
"""

import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from ledger_run import LedgerRun, num_entries

from streaming_vb.errors import StreamingVBError

Counts = dict[str, Counter[str]]
"""How often each class came out, by kind of file."""


def main() -> None:
    """Flip and print."""
    arguments = parse()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        run = LedgerRun(arguments.entries)
        left = leave_behind(run, Path(name) / "left")
        counts, violations = flip_many(run, left, Path(name) / "tried", arguments.flips, arguments.seed)
    report(arguments, counts, violations, time.monotonic() - started)


def leave_behind(run: LedgerRun, run_dir: Path) -> Path:
    """A run directory as a crash leaves it, after a recovery in the middle."""
    for until in (run.num_entries // 2 + 1, run.num_entries):
        store = run.store(run_dir)
        run.go_on(store, store.open(run.states[0]), until, lambda count: None)
        store.abandon()
    return run_dir


def flip_many(run: LedgerRun, left: Path, tried: Path, flips: int, seed: int) -> tuple[Counts, list[str]]:
    """Classes by kind of file, and what was not as promised.

    Args:
        left: the directory to take a copy of, every time.
        tried: where the copy is.
    """
    random = np.random.default_rng(seed)
    files = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file() and path.name != "lock")
    counts: Counts = defaultdict(Counter)
    violations = []
    for count in range(1, flips + 1):
        file = files[random.integers(len(files))]
        bit = int(random.integers(8 * (left / file).stat().st_size))
        outcome = flip(run, left, tried, file, bit)
        kind = "journal" if file.suffix == ".journal" else file.name
        counts[kind][outcome.partition(":")[0]] += 1
        if outcome.startswith("violation"):
            violations.append(f"{file}, bit {bit}: {outcome}")
        if count % 1000 == 0:
            print(f"{count} of {flips} bits, {len(violations)} violations", file=sys.stderr)
    return counts, violations


def flip(run: LedgerRun, left: Path, tried: Path, file: Path, bit: int) -> str:
    """What recovery makes of a directory with one bit flipped."""
    shutil.copytree(left, tried)
    try:
        content = bytearray((tried / file).read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        (tried / file).write_bytes(content)
        store = run.store(tried)
        try:
            recovered = store.open(run.states[0])
        except StreamingVBError as error:
            return "refused" if "\n" not in str(error) else f"violation: an error of several lines: {error!r}"
        except Exception as error:
            return f"violation: {type(error).__name__}: {error}"
        store.abandon()
        count = num_entries(recovered.state)
        if wrong := run.what_is_wrong(recovered, told=0):
            return f"violation: {wrong}"
        if count == run.num_entries:
            return "same"
        if any("cut there" not in note and "recovered version" not in note for note in recovered.notes):
            return "noted"
        is_tail = file.suffix == ".journal" and count == run.num_entries - 1
        return "earlier" if is_tail else f"violation: silently back at {count} of {run.num_entries} entries"
    finally:
        shutil.rmtree(tried)


def report(arguments: Namespace, counts: Counts, violations: list[str], seconds: float) -> None:
    """Print the document."""
    from report import at_most, write

    settings: dict[str, Any] = {"flips": arguments.flips, "entries": arguments.entries, "seed": arguments.seed}
    results = {
        "violations": len(violations),
        "seconds": seconds,
        "bound_on_share_of_bad_flips_95": 3 / arguments.flips,
        "outcomes_by_file": {kind: dict(counts[kind]) for kind in sorted(counts)},
        "outcomes": dict(sum(counts.values(), Counter[str]())),
        "examples": violations[:20],
    }
    write(settings, results, [at_most("results.violations", len(violations), 0)])


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=10_000, help="bits to flip, one at a time")
    parser.add_argument("--entries", type=int, default=45, help="entries of the run, whole rounds of three")
    parser.add_argument("--seed", type=int, default=0, help="of the bits drawn")
    parser.add_argument("--directory", help="where run directories are made, instead of the system's temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
