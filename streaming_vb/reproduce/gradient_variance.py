"""Noise of the gradient of an auto-encoder's bound, for every estimator of `objectives.py`, at fixed weights.

Two bounds: the ELBO by reparameterization (Kingma and Welling 2014) and by the score function with and without a
baseline (Mnih and Gregor 2014); the importance-weighted bound by its plain gradient (Burda et al. 2016), doubly
reparameterized (Tucker et al. 2019) and by VIMCO (Mnih and Rezende 2016). The gradient is that of the minibatch's mean
bound by the weights of the encoder; the weights are points, so that nothing but z is drawn.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from streaming_vb.layers.layout import Weights
from streaming_vb.models.neural import Minibatch
from streaming_vb.models.vae import VAE
from streaming_vb.objectives import AbstractObjective, Elbo, ImportanceWeighted, ScoreFunction, Vimco
from streaming_vb.reproduce import fitting, training
from streaming_vb.reproduce.empirical_variance import Variance, within_groups
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Outcome, Progress
from streaming_vb.seeding import torch_generator

SEED = 0
DRAWS = (1, 2, 5, 10, 20, 50)
BATCH_SIZES = (10, 20, 50, 100, 200)
BATCH_SIZE = 100
"""Where the number of draws varies."""
FEW_DRAWS = 5
"""Draws of z where the batch size varies."""


class Size(NamedTuple):
    """What `quick` shrinks."""

    records: int
    hidden: int
    latent: int
    minibatches: int
    repeats: int


FULL = Size(60_000, 200, 20, 10, 20)
QUICK = Size(3_000, 20, 5, 4, 8)


class Line(NamedTuple):
    """One line of the picture: an objective by its number of draws, the least such number, and how it is drawn."""

    objective: Callable[[int], AbstractObjective]
    least_draws: int
    colour: str
    style: str


ESTIMATORS: Mapping[str, Line] = {
    "ELBO, score function": Line(partial(ScoreFunction, leave_one_out=False), 1, "#D55E00", "s-"),
    "ELBO, score function with baseline": Line(ScoreFunction, 2, "#E69F00", "^-"),
    "ELBO, reparameterization": Line(Elbo, 1, "#0072B2", "o-"),
    "importance-weighted, VIMCO": Line(Vimco, 2, "#CC79A7", "v--"),
    "importance-weighted, reparameterization": Line(partial(ImportanceWeighted, doubly=False), 2, "#56B4E9", "P--"),
    "importance-weighted, doubly reparameterized": Line(ImportanceWeighted, 2, "#009E73", "D--"),
}
Curves = dict[str, dict[int, Variance]]
"""Estimator -> number of draws, or batch size -> variance."""


def run(images: Images, quick: bool, progress: Progress) -> Outcome:
    """Stream a model for a short while, then measure at its mean weights."""
    size = QUICK if quick else FULL
    model = VAE(images.train.shape[1], hidden=(size.hidden,), latent=size.latent)
    weights = fitting.weights(model, images, size.records, SEED, progress)

    def at(name: str, num_draws: int, batch_size: int) -> Variance:
        progress(f"{name}, {num_draws} draws, {batch_size} records")
        objective = ESTIMATORS[name].objective(num_draws)
        source = images.stream(size.minibatches * batch_size, SEED)
        rows = training.minibatches(source, size.minibatches * batch_size, batch_size)
        return variance(model, weights, objective, rows, size.repeats)

    by_draws: Curves = {
        name: {draws: at(name, draws, BATCH_SIZE) for draws in DRAWS if draws >= line.least_draws}
        for name, line in ESTIMATORS.items()
    }
    by_batch_size: Curves = {name: {rows: at(name, FEW_DRAWS, rows) for rows in BATCH_SIZES} for name in ESTIMATORS}
    settings = {
        "model": dict(model.describe()),
        "weights": f"mean weights after {size.records:,} streamed records, without noise",
        "seed": SEED,
        "gradient": "of the mean bound of a minibatch (nats per record), by weights and biases of the encoder",
        "minibatches": size.minibatches,
        "gradients_per_minibatch": size.repeats,
        "by_draws_at_batch_size": BATCH_SIZE,
        "by_batch_size_at_draws": FEW_DRAWS,
    }
    results = {"by_draws": as_rows(by_draws, "draws"), "by_batch_size": as_rows(by_batch_size, "records")}
    return Outcome("Gradient variance", caption(by_draws, size), draw(by_draws, by_batch_size), settings, results)


def variance(
    model: VAE, weights: Weights, objective: AbstractObjective, minibatches: Iterator[Minibatch], repeats: int
) -> Variance:
    """Variance of the gradient within a minibatch, averaged over the encoder's weights and the minibatches."""
    generator = torch_generator(SEED, "gradient variance", objective.name)
    groups = ([(gradient(model, weights, objective, rows, generator),) for _ in range(repeats)] for rows in minibatches)
    (result,) = within_groups(groups)
    return result


def gradient(
    model: VAE, weights: Weights, objective: AbstractObjective, minibatch: Minibatch, generator: torch.Generator
) -> Tensor:
    """One draw of the gradient of the minibatch's mean bound by the encoder's weights, as a vector."""
    names = [name for layer in model.encoder for name in layer.shapes()]
    leaves = {name: weights.mean[name].detach().requires_grad_() for name in names}
    point = Weights({**weights.mean, **leaves})
    terms = model.terms(point, minibatch, generator, objective.num_samples, attached=objective.attached)
    parts = torch.autograd.grad(objective.surrogate(terms).mean(), list(leaves.values()))
    return torch.cat([part.flatten() for part in parts])


def as_rows(curves: Curves, count: str) -> dict[str, list[dict[str, float]]]:
    """Estimator -> its points as plain values."""
    return {
        name: [{count: number, **variance._asdict()} for number, variance in curve.items()]
        for name, curve in curves.items()
    }


def draw(by_draws: Curves, by_batch_size: Curves) -> Figure:
    """Two panels with the same axis of variance, and bars of two standard errors."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_lines(left, by_draws)
    left.set(
        xlabel=f"draws of z per record (batches of {BATCH_SIZE} records)",
        ylabel="variance of the gradient, mean over the encoder's weights\n(nats$^2$ per squared unit of weight)",
    )
    _draw_lines(right, by_batch_size)
    right.set(xlabel=f"records per batch ({FEW_DRAWS} draws of z each)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def caption(by_draws: Curves, size: Size) -> str:
    """What came out, in numbers at the common number of draws."""
    plain, baseline, through = (by_draws[name][FEW_DRAWS].value for name in list(ESTIMATORS)[:3])
    return (
        f"Variance of the gradient with respect to the encoder's weights over draws of z, at fixed weights and "
        f"minibatch; mean over weights and {size.minibatches} minibatches, bars are two standard errors. With "
        f"{FEW_DRAWS} draws the score function has {plain / through:,.0f} times the variance of reparameterization, "
        f"and {baseline / through:,.1f} times with a leave-one-out baseline. The importance-weighted bound is another "
        f"one for every number of draws, and the encoder's part of its gradient shrinks as they grow: compare its "
        f"three estimators with each other, at the same number of draws."
    )


def _draw_lines(axes: Axes, curves: Curves) -> None:
    for name, curve in curves.items():
        axes.errorbar(
            list(curve),
            [variance.value for variance in curve.values()],
            [2 * variance.standard_error for variance in curve.values()],
            fmt=ESTIMATORS[name].style,
            color=ESTIMATORS[name].colour,
            label=name,
            linewidth=1.4,
            markersize=5,
            capsize=2,
        )
    ticks = sorted({number for curve in curves.values() for number in curve})
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
