"""Held-out ELBO on MNIST with many asynchronous workers, against one worker and against synchronous Adam.

Workers are simulated: one process, a seeded virtual clock, real staleness (`streaming_vb.streaming.engines.InProcess`).
Arms, all on the same stream and scored alike (`mnist.py`):

    1              one worker, the library's defaults
    8              eight workers, ramp 30,000
    16             sixteen workers, ramp 15,000
    8-share-1      eight workers, every fit borrowing the whole posterior: SDA-Bayes as published
    data-parallel  the plain VAE, synchronous Adam with a global minibatch of 800 (eight times 100), best rate

Read `results.table`: ELBO in nats per test image (higher is better), and the virtual speed-up, which is the time spent
in fits, summed over workers, divided by the makespan on the virtual clock. It contains the ramp, during which few
workers work. An arm that diverges is a result: its outcome says so, and how many merges were rejected and how many
intervals were set aside.

    python benchmarks/asynchronous_workers.py --data-dir MNIST --records 300000
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

import math
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from typing import Any, NamedTuple

import mnist
import numpy as np
import plain_vae
import torch
from report import at_least, progress, write

from streaming_vb import Progressive, Settings
from streaming_vb.streaming.prepared import prepare
from streaming_vb.streaming.run import drive, in_process


class Arm(NamedTuple):
    """Workers and what they are told; everything else is a default."""

    workers: int
    ramp: int = 30_000
    share: str = "auto"


ARMS = {"1": Arm(1), "8": Arm(8), "16": Arm(16, ramp=15_000), "8-share-1": Arm(8, share="1")}
DATA_PARALLEL = "data-parallel"
GLOBAL_BATCH = 800
BATCH_SIZE = 100
BAR_RECORDS = 300_000
"""Records that the bars are for."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    images = mnist.load(arguments.data_dir)
    nothing_learned = mnist.independent_pixels(images)
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.only:
        if name == DATA_PARALLEL:
            runs |= {
                f"{name}, rate {rate:g}": [data_parallel(images, arguments.records, rate, s) for s in arguments.seeds]
                for rate in arguments.adam_rates
            }
        else:
            runs[name] = [simulate(name, images, arguments.records, seed) for seed in arguments.seeds]
    table = [row(name, arm_runs, nothing_learned) for name, arm_runs in runs.items()]
    for line in table:
        progress(
            "  ".join(
                f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}" for name, value in line.items()
            )
        )
    settings = {
        "records": arguments.records,
        "seeds": arguments.seeds,
        "adam_rates": arguments.adam_rates,
        "batch_size": BATCH_SIZE,
        "global_batch": GLOBAL_BATCH,
        "model": mnist.MODEL.describe(),
    }
    results = {"table": table, "independent_pixels": nothing_learned, "runs": runs}
    write(settings, results, bars(table) if arguments.records == BAR_RECORDS else [])


def simulate(name: str, images: mnist.Images, records: int, seed: int) -> dict[str, Any]:
    """One run of asynchronous workers under the virtual clock."""
    arm = ARMS[name]
    started = time.perf_counter()
    settings = Settings(records=records, seed=seed, batch_size=BATCH_SIZE, ramp=arm.ramp, share=arm.share)
    prepared = prepare(mnist.MODEL, mnist.stream(images, records, seed), settings)
    engine = in_process(prepared, arm.workers)
    statuses: Counter[str] = Counter()
    staleness: list[int] = []
    progressive = Progressive()
    for step in drive(prepared.scheduler(arm.workers, engine.position()), engine):
        statuses[step.status] += 1
        if step.status == "merged":
            staleness.append(step.staleness)
            progressive.update(step.elbo, num_records=step.num_new)
        if sum(statuses.values()) % 50 == 0:
            progress(f"{name}, seed {seed}: {step.records:,} records, progressive {progressive.mean:.2f}")
    usage = engine.usage()
    estimate = mnist.test_elbo(engine.state().posterior, images)
    progress(f"{name}, seed {seed}: test ELBO {estimate.mean:.2f}")
    return {
        "seed": seed,
        "elbo": estimate.mean,
        "standard_error": estimate.standard_error,
        "progressive": progressive.mean,
        "speed_up": usage.busy / usage.elapsed,
        "records": engine.state().num_records,
        "merged": statuses["merged"],
        "rejected": statuses["rejected"],
        "set_aside": statuses["set-aside"],
        "mean_staleness": float(np.mean(staleness)) if staleness else None,
        "seconds": time.perf_counter() - started,
    }


def data_parallel(images: mnist.Images, records: int, rate: float, seed: int) -> dict[str, Any]:
    """One run of synchronous Adam: the gradients of eight workers, averaged, are one gradient of 800 records."""
    started = time.perf_counter()
    source = mnist.stream(images, records, seed)
    model = plain_vae.train(source, records=records, batch_size=GLOBAL_BATCH, rate=rate, seed=seed)
    estimate = mnist.test_elbo(model.as_posterior(), images)
    progress(f"{DATA_PARALLEL}, rate {rate:g}, seed {seed}: test ELBO {estimate.mean:.2f}")
    return {
        "seed": seed,
        "elbo": estimate.mean,
        "standard_error": estimate.standard_error,
        "records": records,
        "seconds": time.perf_counter() - started,
    }


def row(name: str, runs: list[dict[str, Any]], nothing_learned: float) -> dict[str, Any]:
    """A line of the table: means over seeds, sums of what went wrong."""
    arm = ARMS.get(name)
    elbo = float(np.mean([run["elbo"] for run in runs]))
    return {
        "arm": name,
        "workers": arm.workers if arm else GLOBAL_BATCH // BATCH_SIZE,
        "ramp": arm.ramp if arm else None,
        "share": arm.share if arm else None,
        "elbo": elbo,
        "speed_up": float(np.mean([run["speed_up"] for run in runs])) if arm else None,
        "outcome": outcome(elbo, nothing_learned),
        "rejected": sum(run.get("rejected", 0) for run in runs),
        "set_aside": sum(run.get("set_aside", 0) for run in runs),
    }


def outcome(elbo: float, nothing_learned: float) -> str:
    """Whether something was learned."""
    if not math.isfinite(elbo):
        return "not finite"
    return "learned" if elbo > nothing_learned else "worse than independent pixels"


def bars(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars of the arms that were run."""
    rows = {line["arm"]: line for line in table}
    peers = [line["elbo"] for name, line in rows.items() if name.startswith(DATA_PARALLEL)]
    found = []
    if "8" in rows:
        found += [
            at_least("ELBO of 8 workers", rows["8"]["elbo"], -104.5),
            at_least("virtual speed-up of 8 workers", rows["8"]["speed_up"], 3.3),
        ]
    if "8" in rows and peers:
        best = float(np.max(np.nan_to_num(peers, nan=-np.inf)))
        found.append(at_least("ELBO of 8 workers minus that of data-parallel Adam", rows["8"]["elbo"] - best, 0.0))
    if "16" in rows:
        found.append(at_least("ELBO of 16 workers", rows["16"]["elbo"], -107.5))
    return found


def parse() -> Namespace:
    """Flags."""
    names = [*ARMS, DATA_PARALLEL]
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    mnist.add_data_dir(parser)
    parser.add_argument("--records", type=int, default=BAR_RECORDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--adam-rates", type=float, nargs="+", default=[1e-3, 2e-3, 3e-3])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ARM", help=", ".join(names))
    return parser.parse_args()


if __name__ == "__main__":
    main()
