"""Histories of the deterministic simulator: crashes, power cuts, lost and doubled messages, stale writers, bad disks.

    python benchmarks/reliability/histories.py --histories 10000 --seed 0

A history is a function of its seed: the real scheduler, engine, server, store, journal and snapshots on a simulated
network and disk (`tests/simulation`). In every one, at every acknowledgement and after every recovery: no record is
lost or counted twice, what was acknowledged is there, the state is that of a reference server, nothing of an overtaken
writer counts; ordered runs end with the bits of a run without faults.

`bound` is the upper end of a 95 % interval for the share of histories that violate a promise, 3/n where none did: of
histories drawn like these, not of those that users will have. `--planted` plants each known bug in turn and reports
after how many histories it was found.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

from report import at_most, progress, write  # noqa: E402
from simulation.history import History, compute_good_days, play  # noqa: E402
from simulation.planted_bugs import PLANTED  # noqa: E402

NOT_MODELLED = (
    "Byzantine workers: a delta that is wrong and finite is merged",
    "bits that rot on the disk, and disks that report a sync that they did not do",
    "directories whose creation is lost, file systems that reorder names within one rename",
    "threads of one process interleaved between two disk operations",
    "sockets, Ray, fork, signals, real time: other tests kill real processes",
    "audits, kept deltas",
    "models whose fits take weights: the model is a ledger of integers with a trace",
)
_CHUNK = 100
_ENOUGH = 2_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, print, and return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--planted", action="store_true", help="plant every bug, and see when it is found")
    settings = parser.parse_args(arguments)
    if settings.planted:
        return _find_planted(settings.seed)

    seeds = range(settings.seed, settings.seed + settings.histories)
    chunks = [seeds[at : at + _CHUNK] for at in range(0, len(seeds), _CHUNK)]
    faults: Counter[str] = Counter()
    violations: list[dict[str, Any]] = []
    num_events = num_changes = num_done = 0
    with ProcessPoolExecutor(settings.processes) as pool:
        for histories in pool.map(_play_all, chunks):
            for history in histories:
                faults += history.faults
                num_events += history.num_events
                num_changes += history.num_changes
                if history.violation:
                    violations.append({"seed": history.seed, "violation": history.violation, "replay": history.replay})
            num_done += len(histories)
            progress(f"{num_done:,} histories, {len(violations)} violations")
    results = {
        "histories": len(seeds),
        "violations": len(violations),
        "bound": 3 / len(seeds) if not violations else None,
        "failed": violations,
        "events": num_events,
        "changes_journaled": num_changes,
        "faults_injected": sum(faults.values()),
        "faults": dict(faults.most_common()),
        "not_modelled": NOT_MODELLED,
    }
    write(vars(settings), results, [at_most("violations", len(violations), 0)])
    return 1 if violations else 0


def _play_all(seeds: range) -> list[History]:
    return [replace(play(seed), state=None) for seed in seeds]


def _find_planted(first: int) -> int:
    compute_good_days()
    found: dict[str, int | None] = {}
    for name, plant in PLANTED.items():
        with plant():
            numbers = (number for number in range(1, _ENOUGH + 1) if play(first + number - 1).violation)
            found[name] = next(numbers, None)
        progress(f"{name}: {found[name]}")
    missed = sum(number is None for number in found.values())
    write({"seed": first, "at_most": _ENOUGH}, {"found_at_history": found}, [at_most("bugs not found", missed, 0)])
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
