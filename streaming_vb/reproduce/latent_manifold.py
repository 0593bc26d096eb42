"""Decoder over a grid of a two-dimensional latent space (Kingma and Welling 2014, figure 4).

The grid lies at the quantiles of N(0, 1) in each direction, so that every tile stands for the same prior probability.
"""

from statistics import NormalDist

import numpy as np
import torch
from matplotlib.figure import Figure

from streaming_vb.models.vae import VAE
from streaming_vb.reproduce import fitting
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Outcome, Progress
from streaming_vb.types import Array

SEED = 0


def run(images: Images, quick: bool, progress: Progress) -> Outcome:
    """Fit with two latent dimensions, decode the grid."""
    records, side, hidden = (20_000, 12, 100) if quick else (300_000, 20, 500)
    model = VAE(images.train.shape[1], hidden=(hidden,), latent=2)
    weights = fitting.weights(model, images, records, SEED, progress)
    positions = [NormalDist().inv_cdf((i + 0.5) / side) for i in range(side)]
    grid = torch.tensor([[x, y] for y in reversed(positions) for x in positions])
    with torch.no_grad():
        tiles = model.likelihood.mean(model.decode(weights, grid, torch.Generator())).numpy()
    settings = {"records": records, "seed": SEED, "model": dict(model.describe()), "grid": [side, side]}
    caption = (
        f"Mean images of the decoder at the mean weights, over a {side} x {side} grid at the quantiles of the prior of "
        f"z, after {records:,} records. Neighbours change smoothly into each other, and every class has a place."
    )
    results = {"positions": positions, "mean_pixel": tiles.mean(axis=1).round(4).tolist()}
    return Outcome("Latent manifold", caption, draw(tiles, side, images.shape), settings, results)


def draw(tiles: Array, side: int, shape: tuple[int, int]) -> Figure:
    """One picture of side x side tiles, tiles [side * side, D] row by row."""
    height, width = shape[0] + 1, shape[1] + 1  # a white line between tiles
    spaced = np.pad(tiles.reshape(side, side, *shape), ((0, 0), (0, 0), (0, 1), (0, 1)))
    mosaic = spaced.transpose(0, 2, 1, 3).reshape(side * height, side * width)
    figure = Figure(figsize=(7, 7 * height / width), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlabel="z1", ylabel="z2")
    return figure
