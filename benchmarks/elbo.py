"""Held-out ELBO on MNIST: one worker with the library's defaults, beside a plain VAE with Adam.

Both see the same records in the same order, in minibatches of 100, and are scored alike (`mnist.py`). Read
`results.ours.mean`, nats per test image, higher is better, against the bar; and `results.adam.best` beside it: a point
estimate with the best of the given rates, chosen on the test images in its favour. `over_seeds` is the standard
deviation over seeds; the standard error of one evaluation is about 0.25.

    python benchmarks/elbo.py --data-dir MNIST --records 60000 --seeds 0 1 2
    python benchmarks/elbo.py --data-dir MNIST --primitive kronecker --batch-size 800 --local-steps 1

The second is one pass in 75 minibatches of 800: few and large steps, where the shape of the curvature counts.
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
from streaming_vb.cli import choices

BARS = {
    ("natural-gradient", 100, 60_000): -112.5,
    ("natural-gradient", 100, 300_000): -103.0,
    ("kronecker", 800, 60_000): -138.0,
}
"""Nats per test image, by primitive, minibatch and number of records."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    images = mnist.load(arguments.data_dir)
    ours = summary([fit(images, arguments, seed) for seed in arguments.seeds])
    results: dict[str, Any] = {"ours": ours, "independent_pixels": mnist.independent_pixels(images)}
    if not arguments.skip_adam:
        results["adam"] = adam(images, arguments)
    bar = at_least(
        "results.ours.mean", ours["mean"], BARS.get((arguments.primitive, arguments.batch_size, arguments.records))
    )
    settings = {
        "records": arguments.records,
        "seeds": arguments.seeds,
        "adam_rates": [] if arguments.skip_adam else arguments.adam_rates,
        "primitive": arguments.primitive,
        "batch_size": arguments.batch_size,
        "local_steps": arguments.local_steps,
        "model": mnist.MODEL.describe(),
    }
    write(settings, results, [bar])


def fit(images: mnist.Images, arguments: Namespace, seed: int) -> dict[str, Any]:
    """One run of the library: one worker, default settings but for those on the flags."""
    started = time.perf_counter()
    progressive = Progressive()
    batch_size, records = arguments.batch_size, arguments.records
    settings = Settings(records=records, seed=seed, batch_size=batch_size, local_steps=arguments.local_steps)
    build = choices.pick("--primitive", choices.PRIMITIVES, arguments.primitive)
    primitive = build(mnist.MODEL, batch_size=batch_size)
    for step in run(mnist.MODEL, mnist.stream(images, records, seed), settings, primitive=primitive):
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


def adam(images: mnist.Images, arguments: Namespace) -> dict[str, Any]:
    """The plain VAE at every rate, and the rate that came out best."""
    rates, seeds = arguments.adam_rates, arguments.seeds
    by_rate = {rate: summary([fit_plain(images, arguments, rate, seed) for seed in seeds]) for rate in rates}
    best = max(rates, key=lambda rate: np.nan_to_num(by_rate[rate]["mean"], nan=-np.inf))
    return {"best": {"rate": best, "mean": by_rate[best]["mean"]}, "by_rate": by_rate}


def fit_plain(images: mnist.Images, arguments: Namespace, rate: float, seed: int) -> dict[str, Any]:
    """One run of the plain VAE."""
    started = time.perf_counter()
    records, batch_size = arguments.records, arguments.batch_size
    source = mnist.stream(images, records, seed)
    model = plain_vae.train(source, records=records, batch_size=batch_size, rate=rate, seed=seed)
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
    parser.add_argument("--primitive", choices=tuple(choices.PRIMITIVES), default="natural-gradient")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adam-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--skip-adam", action="store_true", help="measure our arm only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
