"""Time of one step of each primitive on the same Bayesian VAE, one thread: natural gradient and Kronecker against Adam.

All on the VAE 784-500-20 with a posterior over every weight, minibatches of 100. A primitive's time is that of a whole
local fit of 10 steps, from arrays to evidence and fit state, minus the scoring of its records, divided by 10. Beside
them stands what a user of PyTorch would write: autograd through the same local reparameterization to means and log
variances, and torch.optim.Adam(fused=True) on both. Every turn gives one ratio of processor times: read
`results.natural_gradient.over_adam.median` and `results.kronecker.over_adam.median` against the bars.

    python benchmarks/primitive_steps.py
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import numpy as np
import torch
from mnist import MODEL, NUM_COLUMNS
from report import at_most, progress, write
from stopwatch import clock, quartiles
from torch import Tensor
from torch.nn import functional

from streaming_vb.inference import adam, kronecker, natural_gradient, neural
from streaming_vb.layers import estimators
from streaming_vb.layers.layout import Weights
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Interval, Primitive, Records

BARS = {"natural_gradient": 1.3, "kronecker": 2.0}
"""Most that a step may cost, in steps of the Adam primitive."""
BATCH_SIZE = 100
NUM_STEPS = 10
_ON = 0.13
"""Share of pixels that are 1, as in MNIST."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    x = (np.random.default_rng(0).random((BATCH_SIZE * NUM_STEPS, NUM_COLUMNS)) < _ON).astype(np.float32)
    arms = {
        "natural_gradient": fitting(natural_gradient.build(MODEL, batch_size=BATCH_SIZE), x),
        "kronecker": fitting(kronecker.build(MODEL, batch_size=BATCH_SIZE), x),
        "adam": fitting(adam.build(MODEL, batch_size=BATCH_SIZE), x),
        "autograd_and_fused_adam": by_autograd(x),
        "score": scoring(x),
    }
    for action in list(arms.values()) * 3:
        action()
    turns = []
    for turn in range(arguments.turns):
        turns.append({name: clock(action).processor for name, action in arms.items()})
        if (turn + 1) % 20 == 0:
            progress(f"{turn + 1} of {arguments.turns} turns")
    times = {name: np.array([turn[name] for turn in turns]) for name in arms}
    score = times.pop("score")
    for name in ("natural_gradient", "kronecker", "adam"):
        times[name] = times[name] - score
    results = {
        name: {"ms": quartiles(1e3 / NUM_STEPS * seconds), "over_adam": quartiles(seconds / times["adam"])}
        for name, seconds in times.items()
    }
    bars = [at_most(f"results.{n}.over_adam.median", results[n]["over_adam"]["median"], bar) for n, bar in BARS.items()]
    settings = {"turns": arguments.turns, "batch_size": BATCH_SIZE, "steps": NUM_STEPS, "model": MODEL.describe()}
    write(settings, results, bars)


def fitting(primitive: Primitive, x: np.ndarray) -> Callable[[], object]:
    """A local fit of x from the prior, with a fit state that has seen x; it includes the scoring."""
    prior = MODEL.prior(0).astype(MODEL.family.wire_dtype)
    records = Records(Interval("random", "pass-0", 0, len(x)), {"x": x})
    fit_state = primitive(prior, prior, primitive.initial_state(), records, seed=1).fit_state
    return lambda: primitive(prior, prior, fit_state, records, seed=1)


def scoring(x: np.ndarray) -> Callable[[], object]:
    """The scoring that a fit begins with."""
    mean = torch.from_numpy(MODEL.family.mean(MODEL.prior(0)).astype(np.float32))
    records, generator = Records(Interval("random", "pass-0", 0, len(x)), {"x": x}), torch_generator(1, "score")
    return lambda: neural.score_at_mean(MODEL, MODEL.layout, mean, records, generator)


def by_autograd(x: np.ndarray) -> Callable[[], object]:
    """Means and log variances as two parameter vectors, everything else left to PyTorch."""
    moments = MODEL.family.moments(MODEL.prior(0))
    mean = torch.from_numpy(moments.mean.astype(np.float32)).requires_grad_()
    log_variance = torch.from_numpy(np.log(moments.variance).astype(np.float32)).requires_grad_()
    optimizer = torch.optim.Adam([mean, log_variance], lr=1e-3, fused=True)
    generator = torch_generator(1, "noise")

    def step(minibatch: Tensor) -> None:
        optimizer.zero_grad()
        weights = Weights(MODEL.layout.views(mean), MODEL.layout.views(log_variance.exp()))
        (-_elbo(weights, minibatch, generator).sum() / len(minibatch)).backward()
        optimizer.step()

    return lambda: [step(minibatch) for minibatch in torch.from_numpy(x).split(BATCH_SIZE)]


def _elbo(weights: Weights, x: Tensor, generator: torch.Generator) -> Tensor:
    """The bound of the library's VAE, through the estimator that autograd differentiates by means and variances."""

    def forward(layers: tuple, rows: Tensor) -> Tensor:
        for layer in layers:
            means, variances = (estimators.Affine(part[layer.weight], part[layer.bias]) for part in weights_of)
            rows = estimators.local(functional.linear, rows, means, variances, generator)
            rows = rows if layer is layers[-1] else torch.relu(rows)
        return rows

    weights_of = (weights.mean, weights.variance)
    mean, log_variance = forward(MODEL.encoder, x).chunk(2, dim=-1)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
    kl_latent = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
    return MODEL.likelihood.log_prob(forward(MODEL.decoder, z), x) - kl_latent


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=60, help="blocks of each arm")
    return parser.parse_args()


if __name__ == "__main__":
    main()
