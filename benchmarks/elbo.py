"""Held-out ELBO on MNIST: one worker with the library's defaults, beside a plain VAE with Adam.

Both see the same records in the same order, in minibatches of 100, and are scored alike (`mnist.py`). Read
`results.ours.mean`, nats per test image, higher is better, against the bar; and `results.adam.best` beside it: a point
estimate with the best of the given rates, chosen on the test images in its favour. `over_seeds` is the standard
deviation over seeds; the standard error of one evaluation is about 0.25.

    python benchmarks/elbo.py --data-dir MNIST --records 60000 --seeds 0 1 2
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

import time
from argparse import ArgumentParser, Namespace
from typing import Any

import mnist
import numpy as np
import plain_vae
import torch
from report import at_least, progress, write

from streaming_vb import Progressive, Settings, run

BARS = {60_000: -113.8, 300_000: -103.0}
"""Nats per test image, by the number of records."""
BATCH_SIZE = 100


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    images = mnist.load(arguments.data_dir)
    ours = summary([fit(images, arguments.records, seed) for seed in arguments.seeds])
    results: dict[str, Any] = {"ours": ours, "independent_pixels": mnist.independent_pixels(images)}
    if not arguments.skip_adam:
        results["adam"] = adam(images, arguments.records, arguments.seeds, arguments.adam_rates)
    bar = at_least("results.ours.mean", ours["mean"], BARS.get(arguments.records))
    settings = {
        "records": arguments.records,
        "seeds": arguments.seeds,
        "adam_rates": [] if arguments.skip_adam else arguments.adam_rates,
        "batch_size": BATCH_SIZE,
        "model": mnist.MODEL.describe(),
    }
    write(settings, results, [bar])


def fit(images: mnist.Images, records: int, seed: int) -> dict[str, Any]:
    """One run of the library: one worker, default settings."""
    started = time.perf_counter()
    progressive = Progressive()
    source = mnist.stream(images, records, seed)
    for step in run(mnist.MODEL, source, Settings(records=records, seed=seed, batch_size=BATCH_SIZE)):
        progressive.update(step.elbo, num_records=step.num_new)
        if step.version % 50 == 0:
            progress(f"ours, seed {seed}: {step.records:,} records, progressive {progressive.mean:.2f}")
    seconds = time.perf_counter() - started
    estimate = mnist.test_elbo(step.state().posterior, images)
    progress(f"ours, seed {seed}: test ELBO {estimate.mean:.2f} after {seconds:.0f} s")
    return {
        "seed": seed,
        "elbo": estimate.mean,
        "standard_error": estimate.standard_error,
        "progressive": progressive.mean,
        "merges": step.version,
        "training_seconds": seconds,
    }


def adam(images: mnist.Images, records: int, seeds: list[int], rates: list[float]) -> dict[str, Any]:
    """The plain VAE at every rate, and the rate that came out best."""
    by_rate = {rate: summary([fit_plain(images, records, rate, seed) for seed in seeds]) for rate in rates}
    best = max(rates, key=lambda rate: np.nan_to_num(by_rate[rate]["mean"], nan=-np.inf))
    return {"best": {"rate": best, "mean": by_rate[best]["mean"]}, "by_rate": by_rate}


def fit_plain(images: mnist.Images, records: int, rate: float, seed: int) -> dict[str, Any]:
    """One run of the plain VAE."""
    started = time.perf_counter()
    source = mnist.stream(images, records, seed)
    model = plain_vae.train(source, records=records, batch_size=BATCH_SIZE, rate=rate, seed=seed)
    seconds = time.perf_counter() - started
    estimate = mnist.test_elbo(model.as_posterior(), images)
    progress(f"adam {rate:g}, seed {seed}: test ELBO {estimate.mean:.2f} after {seconds:.0f} s")
    return {
        "seed": seed,
        "elbo": estimate.mean,
        "standard_error": estimate.standard_error,
        "training_seconds": seconds,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the runs."""
    elbos = [run["elbo"] for run in runs]
    over_seeds = float(np.std(elbos, ddof=1)) if len(elbos) > 1 else None
    return {"mean": float(np.mean(elbos)), "over_seeds": over_seeds, "runs": runs}


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    mnist.add_data_dir(parser)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adam-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--skip-adam", action="store_true", help="measure our arm only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
