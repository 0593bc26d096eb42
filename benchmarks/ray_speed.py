"""Two Ray workers against one on two cores: does the work go faster, and does it come out the same.

Speed: `streaming-vb fit mnist --engine ray --ramp 0` as a process of its own, one worker and two in turn, several
pairs. A figure is records per second from the moment the workers are up; every pair gives a ratio. Read
`results.speed.ratio.median` against the bar. With ramp 0 both workers work from the first record, which is how speed is
measured and not how a model is trained: the ELBO of these runs is not looked at.

ELBO (`--elbo`): the same command with the default ramp, on Ray and on the simulated engine, two workers and the same
records each, one run per seed. Read the absolute difference of the means of `elbo_heldout` against the bar, in nats per
test image. Arrival order on Ray is not reproducible, so it is a difference of two draws; one evaluation has a standard
error of about 0.25, on the same test images.

Nothing else should run on the machine: both cores are needed.

    python benchmarks/ray_speed.py --data-dir MNIST --records 30000 --pairs 5 --elbo --elbo-records 60000
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # the workers' too: they inherit it

import json
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import at_least, at_most, progress, write
from stopwatch import quartiles

SPEED_BAR = 1.5
ELBO_BAR = 1.0
"""Nats per test image."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    bars = []
    if arguments.pairs:
        results["speed"] = speed(arguments.data_dir, arguments.records, arguments.pairs)
        bars.append(at_least("results.speed.ratio.median", results["speed"]["ratio"]["median"], SPEED_BAR))
    if arguments.elbo:
        results["elbo"] = elbo(arguments.data_dir, arguments.elbo_records, arguments.seeds)
        bars.append(at_most("results.elbo.difference", results["elbo"]["difference"], ELBO_BAR))
    settings = {
        "records": arguments.records,
        "pairs": arguments.pairs,
        "elbo_records": arguments.elbo_records if arguments.elbo else None,
        "seeds": arguments.seeds,
    }
    write(settings, results, bars)


def speed(data_dir: Path, records: int, pairs: int) -> dict[str, Any]:
    """Pairs of runs with one worker and two."""
    ratios, runs = [], []
    for pair in range(pairs):
        one, two = (
            fit(data_dir, records, engine="ray", workers=workers, seed=pair, more=["--ramp", "0"]) for workers in (1, 2)
        )
        ratios.append(two["records_per_second"] / one["records_per_second"])
        runs += [one, two]
        progress(
            f"pair {pair + 1} of {pairs}: {one['records_per_second']:.0f} and {two['records_per_second']:.0f} "
            f"records/s, ratio {ratios[-1]:.2f}"
        )
    return {"ratio": quartiles(ratios), "ratios": ratios, "runs": runs}


def elbo(data_dir: Path, records: int, seeds: list[int]) -> dict[str, Any]:
    """Runs on Ray and on the simulated engine."""
    runs = []
    for seed in seeds:
        for engine in ("ray", "simulated"):
            runs.append(fit(data_dir, records, engine=engine, workers=2, seed=seed, more=[]))
            progress(f"{engine}, seed {seed}: ELBO {runs[-1]['elbo_heldout']:.2f}")
    means = {
        engine: float(np.mean([run["elbo_heldout"] for run in runs if run["engine"] == engine]))
        for engine in ("ray", "simulated")
    }
    return {**means, "difference": abs(means["ray"] - means["simulated"]), "runs": runs}


def fit(data_dir: Path, records: int, *, engine: str, workers: int, seed: int, more: list[str]) -> dict[str, Any]:
    """The `done` event of one run in a process and a run directory of its own."""
    with tempfile.TemporaryDirectory(prefix="ray-speed-") as directory:
        command = [
            *program(), "fit", "mnist", "--engine", engine, "--workers", str(workers), "--records", str(records),
            "--seed", str(seed), "--data-dir", str(data_dir), "--run-dir", f"{directory}/run", "--json", *more,
        ]  # fmt: skip
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = finished.stdout.splitlines()
    last = json.loads(lines[-1]) if lines else {}
    if finished.returncode != 0 or last.get("event") != "done":
        sys.exit(f"{' '.join(command)}\nended with code {finished.returncode}; its last line: {lines[-1:]}")
    del last["run_dir"]
    return {"seed": seed, **last}


def program() -> list[str]:
    """The command line that belongs to this interpreter."""
    beside = Path(sys.executable).with_name("streaming-vb")
    path = str(beside) if beside.exists() else shutil.which("streaming-vb")
    if path is None:
        sys.exit("no command streaming-vb. Type pip install -e '.[ray]'")
    return [path]


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the four IDX .gz files of MNIST")
    parser.add_argument("--records", type=int, default=30_000, help="of a speed run")
    parser.add_argument("--pairs", type=int, default=5, help="speed runs with one worker and two; 0 leaves them out")
    parser.add_argument("--elbo", action="store_true", help="also compare the ELBO on Ray and simulated")
    parser.add_argument("--elbo-records", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the ELBO runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
