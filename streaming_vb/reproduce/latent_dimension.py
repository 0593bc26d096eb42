"""Held-out predictive log likelihood against the number of latent dimensions; in the paper it is flat beyond ten.

One fit per dimension, log E_q(w)[p(x | w)] by importance sampling (`evaluation/predictive.py`), and beside it the ELBO
at the mean weights and the number of dimensions in use (`evaluation/active_units.py`).
"""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from streaming_vb.evaluation import active_units, held_out, importance, predictive
from streaming_vb.models.vae import VAE
from streaming_vb.reproduce import fitting
from streaming_vb.reproduce.images import HELD_OUT_SEED, Images
from streaming_vb.reproduce.outcome import Outcome, Progress
from streaming_vb.types import Array, NaturalParameters

SEED = 0
MORE, CHECKED = 10, 250
"""Times the samples, and images, by which the error of importance sampling is measured: the effective sample size
promises too much where it is small."""


class Size(NamedTuple):
    """What `quick` shrinks."""

    dimensions: tuple[int, ...]
    records: int
    hidden: int
    images: int
    samples: int
    draws: int


FULL = Size((2, 3, 5, 10, 20, 50), 120_000, 500, 5_000, 500, 3)
QUICK = Size((2, 5, 10), 20_000, 100, 150, 100, 3)


class Score(NamedTuple):
    """Of one dimension; nats per image.

    Attributes:
        predictive, standard_error: log E_q(w)[p(x | w)], mean over images, and its error from images and draws.
        weight_spread: standard deviation of log p(x | w) of an image over draws of the weights, mean over images.
        effective_sample_size: of the samples of z, median over images and draws.
        more_samples_add: what `MORE` times the samples add to log p(x | w) at the mean weights, on `CHECKED` images.
        elbo: at the mean weights.
        active_units: latent dimensions that depend on the image.
    """

    predictive: float
    standard_error: float
    weight_spread: float
    effective_sample_size: float
    more_samples_add: float
    elbo: float
    active_units: int


def run(images: Images, quick: bool, progress: Progress) -> Outcome:
    """Fit and score every dimension."""
    size = QUICK if quick else FULL
    x = images.held_out()[: size.images]
    scores = {}
    for dimension in size.dimensions:
        model = VAE(images.train.shape[1], hidden=(size.hidden,), latent=dimension)
        posterior = fitting.stream(model, images, size.records, SEED, progress)
        progress(f"{dimension} dimensions: {size.samples * size.draws:,} samples for each of {len(x):,} images")
        scores[dimension] = score(model, posterior, x, size)
    settings = {**size._asdict(), "images": len(x), "seed": SEED, "workers": 1, "batch_size": 100}
    results = {str(dimension): of._asdict() for dimension, of in scores.items()}
    return Outcome("Latent dimension", caption(size, scores), draw(scores), settings, results)


def score(model: VAE, posterior: NaturalParameters, x: Array, size: Size) -> Score:
    """All figures of one fit on images x [n, D]."""
    sampled = importance.over_draws(model, posterior, x, draws=size.draws, num_samples=size.samples, seed=HELD_OUT_SEED)
    score = predictive.predictive(sampled.log_likelihood)
    estimate = score.estimate()
    few, many = (
        importance.at_mean(model, posterior, x[:: max(1, len(x) // CHECKED)], num_samples=samples, seed=HELD_OUT_SEED)
        for samples in (size.samples, MORE * size.samples)
    )
    return Score(
        predictive=estimate.mean,
        standard_error=estimate.standard_error,
        weight_spread=float(score.deviation.mean()),
        effective_sample_size=float(np.median(sampled.effective_sample_size)),
        more_samples_add=many.estimate().mean - few.estimate().mean,
        elbo=held_out.at_mean(model, posterior, {"x": x}, HELD_OUT_SEED).mean,
        active_units=active_units.at_mean(model, posterior, x).num_active,
    )


def caption(size: Size, scores: dict[int, Score]) -> str:
    """What is seen, and where it deviates from the paper."""
    most = max(of.more_samples_add for of in scores.values())
    ours = ", ".join(f"{of.predictive:.1f} ({dimension})" for dimension, of in scores.items())
    return (
        f"Predictive log likelihood log E_q(w)[p(x | w)] of {size.images:,} held-out images after {size.records:,} "
        f"records by one worker, against latent dimensions: {size.draws} draws of the weights, {size.samples:,} "
        f"importance samples of z for each ({MORE} times as many add {most:.2f} nats at most). Bars: how far the log "
        f"likelihood of an image spreads over draws of the weights (standard deviation). In the paper the curve is "
        f"flat beyond 10 dimensions; ours: {ours}. Right: dimensions that depend on the image."
    )


def draw(scores: dict[int, Score]) -> Figure:
    """Scores on the left, active units on the right."""
    dimensions = list(scores)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.errorbar(
        dimensions,
        [of.predictive for of in scores.values()],
        yerr=[of.weight_spread for of in scores.values()],
        color="#0072B2", marker="o", markersize=4, linewidth=1.4, capsize=3, label="log E[p(x | w)]",
    )  # fmt: skip
    elbos = [of.elbo for of in scores.values()]
    left.plot(dimensions, elbos, color="#D55E00", marker="s", markersize=4, linestyle="--", label="ELBO, mean weights")
    left.set_xscale("log")
    left.set_xticks(dimensions, [str(dimension) for dimension in dimensions])
    left.minorticks_off()
    left.set(xlabel="latent dimensions", ylabel="nats per held-out image")
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    left.grid(alpha=0.25)
    bars = right.bar([str(of) for of in dimensions], [of.active_units for of in scores.values()], color="#009E73")
    right.bar_label(bars)
    right.set(xlabel="latent dimensions", ylabel="active latent dimensions")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
