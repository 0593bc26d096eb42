"""What durability costs: throughput of a run that writes its journal against the same run that does not.

The VAE 784-500-20 on random bits with intervals of 1,000 records; a delta is 6.5 MB. Both arms have a run directory and
save a snapshot every 30 seconds. One writes every delta to the journal and syncs it before the merge is acknowledged,
and saves a snapshot where a segment of the journal is full (128 MB: 20 merges). In the other the journal is left out,
here and nowhere else: that is no setting of a run.

An arm is one run from beginning to end of the benchmark. In its first merges the journal's files are new, and to write
them costs more than later to write them over: `results.*.first_merges.ratio` is that of the first 80, one turn of each
arm. Then the arms take turns of 40 merges, in pairs, each first in every other pair. While one has its turn, the other
stands still; the first merges of a turn are not timed. Read `results.*.ratio.mean` (time without / time with the
journal) against the bar; the interval is the mean's, 95 %, from the pairs.

    python benchmarks/reliability/journal.py --pairs 5
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

import logging
import math
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from report import at_least, progress, write  # noqa: E402

from streaming_vb.models.vae import VAE  # noqa: E402
from streaming_vb.sources.arrays import ArraySource  # noqa: E402
from streaming_vb.streaming import run, server_setup  # noqa: E402
from streaming_vb.streaming.journal import Entry  # noqa: E402
from streaming_vb.streaming.settings import Settings  # noqa: E402
from streaming_vb.streaming.store import Store  # noqa: E402

BAR = 0.95
RECORDS = 10_000
WORKERS = {"inline": 1, "processes": 2}
FIRST = 80
"""Merges until the files of the journal are used again: up to four of them hold 20 each."""
NOT_TIMED = 4
"""Merges at the start of a turn: what was in flight when the other arm had its turn."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5th percentile of Student's t, by the number of pairs."""


class WithoutJournal(Store):
    """A run directory whose merges are lost with the process."""

    def append(self, entry: Entry) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


class Arm:
    """One run, with a store of its own kind.

    Args:
        engine: "inline" or "processes".
        directory: of the run.
        kind: what keeps it.
    """

    def __init__(self, engine: str, directory: Path, kind: type[Store]) -> None:
        model = VAE(784, hidden=(500,), latent=20)
        bits = np.random.default_rng(0).integers(0, 2, (RECORDS, model.num_columns), np.uint8)
        source = ArraySource({"x": bits}, passes=1_000, scale=1.0)
        settings = Settings(ramp=0)
        with patch.object(server_setup, "Store", kind):  # in the processes forked here as well
            if engine == "inline":
                self._steps = run.run(model, source, settings, run_dir=directory)
            else:
                self._steps = run.run_processes(model, source, settings, workers=WORKERS[engine], run_dir=directory)
            self._merge(1)  # the server was opened

    def seconds_per_merge(self, merges: int) -> float:
        """Wall seconds per merge over one turn."""
        self._merge(NOT_TIMED)
        began = time.perf_counter()
        self._merge(merges)
        return (time.perf_counter() - began) / merges

    def close(self) -> None:
        """End the run."""
        self._steps.close()  # type: ignore[attr-defined]

    def _merge(self, merges: int) -> None:
        for _ in range(merges):
            step = next(self._steps)
            assert step.status == "merged", step


def main() -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.WARNING)
    arguments = parse()
    torch.set_num_threads(1)
    results = {engine: compared(engine, arguments.pairs, arguments.merges) for engine in arguments.engines}
    bars = [at_least(f"results.{name}.ratio.mean", figures["ratio"]["mean"], BAR) for name, figures in results.items()]
    write({**vars(arguments), "weights": 815_824, "records_per_merge": 1_000}, results, bars)


def compared(engine: str, pairs: int, merges: int) -> dict[str, Any]:
    """Both arms in turns."""
    here = Path(tempfile.mkdtemp(prefix="svb-journal-"))
    arms = {"on": Arm(engine, here / "on", Store), "off": Arm(engine, here / "off", WithoutJournal)}
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    first = {name: arms[name].seconds_per_merge(FIRST) for name in ("off", "on")}
    progress(f"{engine}, first {FIRST} merges: on {first['on']:.4f} s, off {first['off']:.4f} s")
    for pair in range(pairs):
        for name in ("on", "off") if pair % 2 else ("off", "on"):
            seconds[name].append(arms[name].seconds_per_merge(merges))
        progress(f"{engine}, pair {pair + 1} of {pairs}: on {seconds['on'][-1]:.4f} s, off {seconds['off'][-1]:.4f} s")
    for arm in arms.values():
        arm.close()
    shutil.rmtree(here)
    ratios = [off / on for on, off in zip(seconds["on"], seconds["off"], strict=True)]
    merges_per_second = {name: 1 / float(np.median(values)) for name, values in seconds.items()}
    return {
        "merges_per_second": merges_per_second,
        "seconds_per_merge": seconds,
        "ratio": interval(ratios),
        "first_merges": {"seconds_per_merge": first, "ratio": first["off"] / first["on"]},
    }


def interval(ratios: Sequence[float]) -> dict[str, Any]:
    """Mean of the pairs' ratios, with a confidence interval of 95 %."""
    mean = float(np.mean(ratios))
    half = (
        STUDENT[len(ratios)] * float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    )
    return {"pairs": ratios, "mean": mean, "lower": mean - half, "upper": mean + half}


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, choices=range(2, 11), metavar="2..10")
    parser.add_argument("--merges", type=int, default=40, help="timed per turn")
    parser.add_argument("--engines", nargs="+", choices=list(WORKERS), default=list(WORKERS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
