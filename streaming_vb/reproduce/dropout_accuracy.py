"""Test error of a classifier against its width, for seven ways to regularize it (Kingma, Salimans and Welling 2015,
figure 1).

The paper states three hidden layers of rectified linear units, and dropout rates of 0.2 on the images and 0.5 on hidden
units: for binary dropout, for Gaussian dropout of type A (on the inputs of a layer, Srivastava et al. 2014) and type B
(on its pre-activations, Wang and Manning 2013), and as the start of variational dropout, whose alpha is learned and at
most 1. Its networks were stopped by a validation set. Here every network is trained for the same few passes, and tested
at the mean of its weights over the last quarter of the steps, which does what a falling step size would do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from streaming_vb.layers.layout import Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.noise import binary_dropout
from streaming_vb.layers.variational_dropout import TypeA, TypeB
from streaming_vb.models.mlp import MLP
from streaming_vb.models.neural import Minibatch
from streaming_vb.reproduce import classifier
from streaming_vb.reproduce.classifier import Labelled, NoisyLayer
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Outcome, Progress
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Array

BATCH_SIZE = 100
AVERAGED = 0.25
"""Part of the steps, at the end, over which weights are averaged."""


class Size(NamedTuple):
    """What `quick` shrinks; every width has its seeds."""

    seeds: Mapping[int, tuple[int, ...]]
    epochs: int
    rate: float


FULL = Size({100: (0, 1), 250: (0, 1), 500: (0,)}, epochs=10, rate=1e-3)
QUICK = Size({20: (0, 1), 60: (0,)}, epochs=10, rate=1e-2)


@dataclass(frozen=True, slots=True)
class BinaryDropout:
    """Inputs dropped at a rate, then a layer with point weights."""

    layer: Linear
    rate: float

    def __call__(self, weights: Weights, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return self.layer(weights, binary_dropout(inputs, self.rate, generator), generator)


def _binary(model: MLP) -> tuple[BinaryDropout, ...]:
    return tuple(BinaryDropout(layer, classifier.rate(i)) for i, layer in enumerate(model.layers))


class Arm(NamedTuple):
    """One way to regularize.

    Attributes:
        layers: of a network of the model's shape.
        kl_weight: of the KL of the layers; 0 leaves alpha as it starts.
        published: errors in per cent at the widths of `PUBLISHED_WIDTHS`, read off the figure.
    """

    layers: Callable[[MLP], Sequence[NoisyLayer]]
    kl_weight: float
    published: tuple[float, ...]


_TYPE_A = partial(classifier.variational_layers, kind=TypeA)
_TYPE_B = partial(classifier.variational_layers, kind=TypeB)
ARMS: Mapping[str, Arm] = {
    "no dropout": Arm(lambda model: model.layers, 0, (1.43, 1.30, 1.21, 1.18, 1.18, 1.18)),
    "binary dropout": Arm(_binary, 0, (2.16, 1.39, 1.22, 1.10, 1.02, 1.06)),
    "Gaussian dropout A": Arm(_TYPE_A, 0, (2.40, 1.42, 1.18, 1.10, 1.03, 0.99)),
    "Gaussian dropout B": Arm(_TYPE_B, 0, (2.01, 1.46, 1.27, 1.26, 1.19, 1.27)),
    "variational dropout A": Arm(_TYPE_A, 1, (1.42, 1.26, 1.12, 1.06, 1.02, 1.00)),
    "variational dropout A2 (KL / 3)": Arm(_TYPE_A, 1 / 3, (1.51, 1.21, 1.07, 0.95, 0.95, 0.93)),
    "variational dropout B": Arm(_TYPE_B, 1, (1.58, 1.37, 1.29, 1.22, 1.16, 1.21)),
}
PUBLISHED_WIDTHS = (100, 250, 500, 750, 1000, 1250)
NO_DROPOUT = "no dropout"
COLOUR, PUBLISHED_COLOUR, REFERENCE_COLOUR = "#0072B2", "#E69F00", "#999999"


class Result(NamedTuple):
    """Test errors in per cent [seeds], and the mean alpha of every layer at the end of the last seed."""

    errors: Array
    mean_alphas: list[float]

    def mean(self) -> float:
        """Over seeds."""
        return float(self.errors.mean())

    def standard_error(self) -> float:
        """Of the mean over seeds; NaN for a single one."""
        return float(self.errors.std(ddof=1) / math.sqrt(len(self.errors))) if len(self.errors) > 1 else math.nan


Results = dict[str, dict[int, Result]]
"""Arm -> width -> result."""


def run(images: Images, quick: bool, progress: Progress) -> Outcome:
    """Train and test every arm at every width from every seed."""
    size = QUICK if quick else FULL
    train, test = classifier.train_and_test(images)
    results: Results = {name: {} for name in ARMS}
    for width, seeds in size.seeds.items():
        model = classifier.network(images.train.shape[1], width)
        for name, arm in ARMS.items():
            errors = []
            for seed in seeds:
                progress(f"{name}, width {width}, seed {seed}")
                means, alphas = fit(arm, model, train, seed, size)
                errors.append(classifier.error(model, means, test))
            results[name][width] = Result(np.array(errors), alphas)
    settings = {
        "hidden_layers": classifier.HIDDEN_LAYERS,
        "seeds_by_width": {str(width): list(seeds) for width, seeds in size.seeds.items()},
        "epochs": size.epochs,
        "optimizer": f"Adam, rate {size.rate:g}, minibatches of {BATCH_SIZE}",
        "tested_weights": f"mean over the last {AVERAGED:.0%} of the steps",
        "dropout_rates": {"images": classifier.INPUT_RATE, "hidden units": classifier.HIDDEN_RATE},
        "greatest_alpha": classifier.GREATEST_ALPHA,
        "alpha_per": "input unit for type A, output unit for type B",
        "divergence": "polynomial of Kingma et al. 2015",
        "train_images": len(train.y),
        "test_images": len(test.y),
        "published": "Kingma, Salimans and Welling 2015, figure 1, read off; means of 5 runs",
    }
    title = "Test error under dropout"
    return Outcome(title, caption(results, size), draw(results, size), settings, {"arms": as_rows(results)})


def fit(arm: Arm, model: MLP, train: Labelled, seed: int, size: Size) -> tuple[dict[str, Tensor], list[float]]:
    """Averaged weights by name, and the mean alpha of every layer at the end. The start depends on the seed alone."""
    layers = arm.layers(model)
    variational = [layer for layer in layers if isinstance(layer, TypeA | TypeB)]
    points, log_alphas = classifier.start(model, seed), classifier.log_alphas(variational)
    for log_alpha in log_alphas.values():
        log_alpha.requires_grad_(arm.kl_weight > 0)
    weights = Weights({**points, **log_alphas})
    generator = torch_generator(seed, "dropout accuracy")

    def loss(minibatch: Minibatch) -> Tensor:
        fit = -classifier.log_likelihood(model, layers, weights, minibatch, generator).mean()
        if not arm.kl_weight:
            return fit
        return fit + arm.kl_weight / len(train.y) * classifier.kl(variational, weights)

    num_steps = size.epochs * math.ceil(len(train.y) / BATCH_SIZE)
    num_averaged = math.ceil(AVERAGED * num_steps)
    means = {name: torch.zeros_like(point) for name, point in points.items()}
    passes = train.passes(size.epochs, BATCH_SIZE, generator)
    for step in classifier.train(points, log_alphas, loss, passes, size.rate):
        if step > num_steps - num_averaged:
            for name, point in points.items():
                means[name].add_(point.detach(), alpha=1 / num_averaged)
    return means, [float(log_alpha.detach().exp().mean()) for log_alpha in log_alphas.values()]


def as_rows(results: Results) -> dict[str, list[dict[str, object]]]:
    """Arm -> its points as plain values; a published value where the paper has this width."""
    return {
        name: [
            {
                "width": width,
                "errors": result.errors.round(4).tolist(),
                "mean": result.mean(),
                "standard_error": result.standard_error() if len(result.errors) > 1 else None,
                "mean_alphas": result.mean_alphas,
                "published": _published(name).get(width),
            }
            for width, result in by_width.items()
        ]
        for name, by_width in results.items()
    }


def caption(results: Results, size: Size) -> str:
    """What learning the noise changes, at the smallest and largest width, and where ours deviates."""
    compared = (NO_DROPOUT, "Gaussian dropout A", "variational dropout A")
    ends = []
    for width in (min(size.seeds), max(size.seeds)):
        without, fixed, learned = (results[name][width].mean() for name in compared)
        ends.append(
            f"at width {width} {fixed:.2f} % with fixed noise, {learned:.2f} % learned, {without:.2f} % without"
        )
    return (
        f"Test error against the width of three hidden layers; bars are two standard errors over seeds. The paper's "
        f"finding is that learned noise adapts to a narrow network, which fixed noise hurts. Here, for type A: "
        f"{'; '.join(ends)}. Deviations from the paper: {_conditions(size)}, and tested at averaged weights, instead "
        f"of early stopping on a validation set and 5 runs; fewer and smaller widths. Noise slows learning, so that "
        f"after few passes its benefit for wide networks is not yet there to see."
    )


def draw(results: Results, size: Size) -> Figure:
    """A panel for every arm: ours, the paper's, and ours without dropout to compare with."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True).ravel()
    for axes, (name, by_width) in zip(panels, results.items(), strict=False):
        _draw_arm(axes, name, by_width, results[NO_DROPOUT])
    panels[3].tick_params(labelbottom=True)  # there is no panel below it
    spare = panels[-1]
    spare.set_axis_off()
    spare.legend(*panels[1].get_legend_handles_labels(), loc="center", frameon=False)
    runs = ", ".join(str(len(seeds)) for seeds in size.seeds.values())
    note = f"ours: {size.epochs} passes, no early stopping,\nruns per width: {runs}\npublished: early stopping, 5 runs"
    spare.text(0.5, 0.0, note, ha="center", fontsize=9, transform=spare.transAxes).set_in_layout(False)
    figure.supxlabel("units in each of the three hidden layers")
    figure.supylabel("test error (per cent)")
    return figure


def _draw_arm(axes: Axes, name: str, by_width: Mapping[int, Result], reference: Mapping[int, Result]) -> None:
    widths = list(by_width)
    if published := {width: error for width, error in _published(name).items() if width in widths}:
        axes.plot(
            list(published), list(published.values()), "s--", color=PUBLISHED_COLOUR, alpha=0.7, label="published"
        )
    if name != NO_DROPOUT:
        means = [result.mean() for result in reference.values()]
        axes.plot(widths, means, "-", color=REFERENCE_COLOUR, linewidth=1.2, label="ours, no dropout")
    means = [result.mean() for result in by_width.values()]
    errors = [2 * result.standard_error() for result in by_width.values()]
    axes.errorbar(widths, means, errors, fmt="o-", color=COLOUR, capsize=3, label="ours (2 standard errors)")
    axes.set_title(name, fontsize=11)
    axes.set_xticks(widths)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _conditions(size: Size) -> str:
    runs = ", ".join(f"{len(seeds)} at width {width}" for width, seeds in size.seeds.items())
    return f"{size.epochs} passes; runs: {runs}"


def _published(name: str) -> dict[int, float]:
    return dict(zip(PUBLISHED_WIDTHS, ARMS[name].published, strict=True))
