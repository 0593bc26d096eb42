"""Variance of the gradient of a classifier under variational dropout, for four estimators (Kingma, Salimans and Welling
2015, table 1).

The paper states the network (three hidden layers of rectified linear units), the type of noise (B, independent
weights), the minibatch of 1000 records, the epochs (10 and 100), and the layers (top and bottom). The table leaves open
what is chosen here, each by one reason:

===============  ======================================================================================================
width            as wide as the time allows
training         Adam at its usual rate, on minibatches of the 1000 records that the gradients are taken over
alpha            from the published dropout rates, learned, at most 1; one per output unit
variance         of the gradient of the whole objective, N / M times the sum over a minibatch: the scale on which bound
                 and KL are defined; averaged over the weights of a layer
===============  ======================================================================================================

At the top layer the ratio of one weight sample to local reparameterization is 6.5 after 10 epochs of MNIST (published:
6.3) and 3.7 after 60 (published: 3.6 after 100). The early one depends on what is chosen: over five starts it is 6.2 to
7.7 at width 250, over two 5.6 and 6.2 at width 350, and 4.6 at width 500. At width 250, from the start with 6.2, it is
6.5 with an alpha per layer, 6.0 with one per weight, and 5.5 when trained on minibatches of 100 records.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from streaming_vb.layers import estimators
from streaming_vb.layers.estimators import Estimator
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.variational_dropout import TypeA, TypeB
from streaming_vb.models.mlp import MLP
from streaming_vb.models.neural import Minibatch
from streaming_vb.reproduce import classifier
from streaming_vb.reproduce.classifier import Labelled
from streaming_vb.reproduce.empirical_variance import GROUP, Variance, within_groups
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Outcome, Progress
from streaming_vb.seeding import torch_generator

SEED = 0
RATE = 1e-3
LAYERS = ("top", "bottom")


class Size(NamedTuple):
    """What `quick` shrinks."""

    width: int
    batch_size: int
    early: int
    late: int
    groups: int


FULL = Size(width=300, batch_size=1000, early=10, late=60, groups=30)
QUICK = Size(width=50, batch_size=200, early=10, late=30, groups=8)


class Arm(NamedTuple):
    """One row of the table.

    Attributes:
        records: of the minibatches that are drawn, instead of the full number. Where records share no draw, the
            variance is that of one record over their number, so that small minibatches give the same figure; a weight
            matrix per record makes large ones slow.
        draws: number of gradients, over that of the others.
        published: variances at the top layer early and late, then at the bottom layer.
    """

    estimator: Estimator
    records: int | None
    draws: int
    published: tuple[float, float, float, float]


ARMS: Mapping[str, Arm] = {
    "no dropout noise": Arm(estimators.mean, None, 1, (2.8e3, 5.9e1, 1.3e2, 9.0e0)),
    "local reparameterization": Arm(estimators.local, None, 1, (7.8e3, 1.2e3, 1.9e2, 1.1e2)),
    "separate weight samples": Arm(estimators.separate, 10, 2, (1.4e4, 2.6e3, 4.3e2, 2.5e2)),
    "one weight sample": Arm(estimators.shared, None, 1, (4.9e4, 4.3e3, 8.5e2, 3.3e2)),
}
REFERENCE = "local reparameterization"
COLOURS = {"measured": "#0072B2", "measured, noise alone": "#56B4E9", "published": "#E69F00"}


class Cell(NamedTuple):
    """Variance of one estimator at one layer and time: over minibatches and noise, and over noise alone."""

    total: Variance
    noise: Variance
    published: float


class Stage(NamedTuple):
    """A moment of the training.

    Attributes:
        cells: layer -> estimator -> variances.
    """

    name: str
    epochs: int
    test_error: float
    mean_alphas: list[float]
    cells: Mapping[str, Mapping[str, Cell]]


def run(images: Images, quick: bool, progress: Progress) -> Outcome:
    """Train, and measure at two moments."""
    size = QUICK if quick else FULL
    train, test = classifier.train_and_test(images)
    model = classifier.network(images.train.shape[1], size.width)
    layers = classifier.variational_layers(model, TypeB)
    log_alphas = {name: start.requires_grad_() for name, start in classifier.log_alphas(layers).items()}
    points = classifier.start(model, SEED)
    weights = Weights({**points, **log_alphas})
    generator = torch_generator(SEED, "dropout variance, training")

    def loss(minibatch: Minibatch) -> Tensor:
        kl = classifier.kl(layers, weights)
        return kl / len(train.y) - classifier.log_likelihood(model, layers, weights, minibatch, generator).mean()

    stages = []
    steps_per_epoch = -(-len(train.y) // size.batch_size)
    passes = train.passes(size.late, size.batch_size, generator)
    for step in classifier.train(points, log_alphas, loss, passes, RATE):
        epochs, rest = divmod(step, steps_per_epoch)
        progress(f"{epochs} of {size.late} epochs")
        if rest == 0 and epochs in (size.early, size.late):
            name = "early" if epochs == size.early else "late"
            alphas = [float(log_alpha.detach().exp().mean()) for log_alpha in log_alphas.values()]
            cells = measure(model, layers, weights, train, size, name, progress)
            stages.append(Stage(name, epochs, classifier.error(model, points, test), alphas, cells))
    return outcome(stages, size, model)


def measure(
    model: MLP,
    layers: Sequence[TypeA | TypeB],
    weights: Weights,
    train: Labelled,
    size: Size,
    name: str,
    progress: Progress,
) -> dict[str, dict[str, Cell]]:
    """Both variances of every estimator at these weights: layer -> estimator -> cell."""
    cells: dict[str, dict[str, Cell]] = {layer: {} for layer in LAYERS}
    for arm_name, arm in ARMS.items():
        progress(f"{name}: {arm_name}")
        drawn = [replace(layer, estimator=arm.estimator) for layer in layers]
        records = arm.records or size.batch_size
        variances = []
        for fixed in (False, True):
            generator = torch_generator(SEED, "dropout variance", arm_name, fixed)
            groups = gradients(model, drawn, weights, train, records, size.groups * arm.draws, fixed, generator)
            variances.append([variance.times(records / size.batch_size) for variance in within_groups(groups)])
        for i, layer in enumerate(LAYERS):
            published = arm.published[2 * i + (name == "late")]
            cells[layer][arm_name] = Cell(variances[0][i], variances[1][i], published)
    return cells


def gradients(
    model: MLP,
    layers: Sequence[TypeA | TypeB],
    weights: Weights,
    train: Labelled,
    records: int,
    num_groups: int,
    fixed: bool,
    generator: torch.Generator,
) -> Iterator[list[tuple[Tensor, ...]]]:
    """Groups of draws of the gradient of N / M sum_i log p(y_i | x_i, w) by the means of the top and bottom layer.

    Every draw has its own minibatch, or every group where it is `fixed`; records are drawn with replacement, so that
    they are independent. The KL adds nothing: it depends on alpha alone, not on the means.
    """
    ends = [weights.mean[layers[-1].weight], weights.mean[layers[0].weight]]

    def minibatch() -> Minibatch:
        return train.minibatch(torch.randint(len(train.y), (records,), generator=generator))

    def gradient(rows: Minibatch) -> tuple[Tensor, ...]:
        total = len(train.y) * classifier.log_likelihood(model, layers, weights, rows, generator).mean()
        return torch.autograd.grad(total, ends)

    for _ in range(num_groups):
        rows = minibatch()
        yield [gradient(rows if fixed else minibatch()) for _ in range(GROUP)]


def outcome(stages: Sequence[Stage], size: Size, model: MLP) -> Outcome:
    """Settings, the table, its ratios, and the picture."""
    settings = {
        "model": dict(model.describe()),
        "noise": "variational dropout of type B, alpha per output unit",
        "alpha_at_start": [classifier.rate(i) / (1 - classifier.rate(i)) for i in range(len(model.layers))],
        "greatest_alpha": classifier.GREATEST_ALPHA,
        "divergence": "polynomial of Kingma et al. 2015",
        "optimizer": f"Adam, rate {RATE:g}, minibatches of {size.batch_size}",
        "seed": SEED,
        "gradient": f"of N / M sum log p over minibatches of {size.batch_size}, mean over the weights of a layer",
        "draws": {name: size.groups * arm.draws * GROUP for name, arm in ARMS.items()},
        "records_per_drawn_minibatch": {name: arm.records or size.batch_size for name, arm in ARMS.items()},
        "published": "Kingma, Salimans and Welling 2015, table 1; width and optimizer are chosen here",
    }
    results = {stage.name: as_row(stage) for stage in stages}
    title = "Variance of the gradient under variational dropout"
    return Outcome(title, caption(stages, size), draw(stages, size), settings, results)


def as_row(stage: Stage) -> dict[str, object]:
    """A stage as plain values, with the ratios to local reparameterization."""
    table = {
        layer: {
            name: {
                "variance": cell.total.value,
                "standard_error": cell.total.standard_error,
                "noise_variance": cell.noise.value,
                "noise_standard_error": cell.noise.standard_error,
                "published": cell.published,
                "ratio_to_local": cell.total.value / cells[REFERENCE].total.value,
                "published_ratio_to_local": cell.published / cells[REFERENCE].published,
            }
            for name, cell in cells.items()
        }
        for layer, cells in stage.cells.items()
    }
    return {"epochs": stage.epochs, "test_error": stage.test_error, "mean_alphas": stage.mean_alphas, **table}


def caption(stages: Sequence[Stage], size: Size) -> str:
    """The ratio that the paper's argument is about, and where ours deviates."""
    ratios = [stage.cells["top"]["one weight sample"] for stage in stages]
    local = [stage.cells["top"][REFERENCE] for stage in stages]
    ours = " and ".join(f"{one.total.value / base.total.value:.1f}" for one, base in zip(ratios, local, strict=True))
    theirs = " and ".join(f"{one.published / base.published:.1f}" for one, base in zip(ratios, local, strict=True))
    return (
        f"Variance of the gradient of the whole objective over minibatches of {size.batch_size:,} records and noise, "
        f"mean over the weights of a layer; the paler bar is the part of the noise alone, at a fixed minibatch. Above "
        f"the bars: the ratio to local reparameterization. One weight sample has {ours} times the variance at the top "
        f"layer, early and late (published: {theirs}). Deviations from the paper: {stages[-1].epochs} epochs instead "
        f"of 100 in the late column. Chosen here, since the table does not say: width {size.width}, and Adam."
    )


def draw(stages: Sequence[Stage], size: Size) -> Figure:
    """A panel for every layer and stage, with the estimators side by side."""
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    panels = figure.subplots(len(LAYERS), len(stages), sharey="row", squeeze=False)
    for row, layer in zip(panels, LAYERS, strict=True):
        for axes, stage in zip(row, stages, strict=True):
            _draw_bars(axes, stage.cells[layer])
            published = 10 if stage.name == "early" else 100
            axes.set_title(f"{layer} layer, {stage.epochs} epochs (published: {published})", fontsize=11)
        row[0].set_ylabel("variance of the gradient, mean over weights\n(nats$^2$ per squared unit of weight)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel(f"3 hidden layers of {size.width} units; minibatches of {size.batch_size:,} records", fontsize=10)
    return figure


def _draw_bars(axes: Axes, cells: Mapping[str, Cell]) -> None:
    """Three bars for every estimator, with two standard errors; above them, ratios to local reparameterization."""
    columns = {
        "measured": [cell.total for cell in cells.values()],
        "measured, noise alone": [cell.noise for cell in cells.values()],
        "published": [Variance(cell.published, 0.0) for cell in cells.values()],
    }
    reference = list(cells).index(REFERENCE)
    for number, (label, column) in enumerate(columns.items()):
        places = np.arange(len(column)) + 0.28 * (number - 1)
        heights = np.array([variance.value or np.nan for variance in column])  # no noise: no bar on a log axis
        errors = [2 * variance.standard_error for variance in column]
        bars = axes.bar(places, heights, 0.26, color=COLOURS[label], label=label, yerr=errors, ecolor="#333333")
        if label != "measured, noise alone":
            ratios = heights / heights[reference]
            axes.bar_label(bars, [f"{ratio:.2g}" for ratio in ratios], fontsize=8, padding=2)
    axes.set(yscale="log")
    axes.margins(y=0.12)
    axes.set_xticks(range(len(cells)), labels=[name.replace(" ", "\n", 1) for name in cells], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
