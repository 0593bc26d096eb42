"""Merges per second of the parameter server, in process, one thread, at the 815,824 weights of the VAE 784-500-20.

The server is `streaming_vb.streaming.server.Server`, which the Ray engine puts into an actor; no message is in these
figures. Deltas are those of natural-gradient fits of 1,000 records (evidence, momentum, curvature, step count), pushed
as eight workers would: every fit is based on a version seven merges old. Three arms, each with what the one before it
does:

    merge      finiteness of the delta, ledger, forgetting, addition, fit-state average, finiteness of the result
    measured   and step KL and staleness in standard deviations, on every merge
    published  and a snapshot of every version, as the wire format has it

The arms take turns in blocks; a figure is 1 / (median processor time of a merge), read against its bar; on an idle
machine the wall gives the same.

    python benchmarks/server.py
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

from argparse import ArgumentParser, Namespace
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mnist import MODEL
from report import at_least, progress, write
from stopwatch import Seconds, clock, quartiles

from streaming_vb.inference import natural_gradient
from streaming_vb.streaming.forgetting import Window
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.server import Server
from streaming_vb.types import Delta, Fit, Interval, Lease, NaturalParameters, Snapshot

BARS = {"merge": 80.0, "measured": 30.0, "published": None}
"""Merges per second."""
WORKERS = 8
RECORDS = 1000
BLOCK = 20
"""Merges of one arm before the next has its turn."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    deltas = [delta(seed) for seed in range(WORKERS)]
    arms = {name: Arm(deltas, measure=name != "merge", publish=name == "published") for name in BARS}
    for arm in arms.values():
        arm.run(BLOCK)  # warm up: versions to be stale against, and memory
        arm.seconds.clear()
    for turn in range(arguments.turns):
        for arm in arms.values():
            arm.run(BLOCK)
        progress(f"turn {turn + 1} of {arguments.turns}")
    results = {name: arm.figures() for name, arm in arms.items()}
    bars = [
        at_least(f"results.{name}.merges_per_second", results[name]["merges_per_second"], bar)
        for name, bar in BARS.items()
    ]
    settings = {
        "weights": MODEL.layout.num_weights,
        "family": MODEL.family.name,
        "workers": WORKERS,
        "records_per_delta": RECORDS,
        "merges": arguments.turns * BLOCK,
    }
    write(settings, results, bars)


class Arm:
    """One server, and how long its merges took."""

    def __init__(self, deltas: list[Delta], *, measure: bool, publish: bool) -> None:
        prior = MODEL.prior(0)
        state = ServerState("benchmark", prior, prior, natural_gradient.build(MODEL).initial_state())
        self._server = Server(state, MergeRule(MODEL.family, Window(MODEL.family), measure))
        self._deltas, self._measure, self._publish = deltas, measure, publish
        self._in_flight: deque[Snapshot] = deque([self._server.publish()], maxlen=WORKERS)
        self._version = 0
        self.seconds: list[Seconds] = []

    def run(self, merges: int) -> None:
        """Push so many deltas; only what the arm is about is timed."""
        for _ in range(merges):
            seconds = [clock(self._push)]
            if self._publish:
                seconds.append(clock(self._snapshot))
            elif self._measure:
                self._snapshot()  # a distance needs the published mean; publishing is the next arm's business
            self.seconds.append(Seconds(*(sum(parts) for parts in zip(*seconds, strict=True))))

    def figures(self) -> dict[str, Any]:
        """Merges per second, and quartiles of a merge's time."""
        wall, processor = (quartiles([1e3 * value for value in values]) for values in zip(*self.seconds, strict=True))
        return {
            "merges_per_second": 1e3 / processor["median"],
            "merges_per_second_on_the_wall": 1e3 / wall["median"],
            "processor_ms": processor,
            "wall_ms": wall,
        }

    def _push(self) -> None:
        start = self._version * RECORDS
        base = self._in_flight[0].version if self._measure else self._version
        lease = Lease(Interval("s", "p", start, start + RECORDS), 0, base, 1 / WORKERS, 1 / WORKERS)
        receipt = self._server.push(replace(self._deltas[self._version % WORKERS], lease=lease), oldest_base=base)
        assert receipt.status == "merged", receipt
        if self._measure:
            assert np.isfinite([receipt.step_kl, receipt.staleness_sd]).all(), receipt
        self._version = receipt.version

    def _snapshot(self) -> None:
        self._in_flight.append(self._server.publish())


def delta(seed: int) -> Delta:
    """What a worker sends: evidence around a mean near the prior's, in the wire format, and a fit state."""
    generator = np.random.default_rng(seed)
    size = MODEL.layout.num_weights
    mean = MODEL.family.mean(MODEL.prior(0)) + 0.01 * generator.standard_normal(size)
    precision = 10.0 * generator.random(size)
    natural = NaturalParameters({"precision_mean": precision * mean, "precision": precision})
    fit_state = {
        "momentum": generator.standard_normal(size, np.float32),
        "curvature": generator.random(size, np.float32),
        "steps": np.asarray(10, np.int64),
    }
    lease = Lease(Interval("s", "p", 0, RECORDS), 0, 0, 1 / WORKERS, 1 / WORKERS)
    return Delta("benchmark", lease, Fit(natural.astype(MODEL.family.wire_dtype), fit_state, -100.0), RECORDS)


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10, help=f"blocks of {BLOCK} merges per arm")
    return parser.parse_args()


if __name__ == "__main__":
    main()
