"""Digit, density of q(z | x), reconstruction (figure 3 of the paper).

A latent space of two dimensions is drawn as it is. Of one with more dimensions the paper only announces a picture; here
it is the density of the projection of z on the first two principal components of the encodings. For directions U
[Z, 2] with orthonormal columns, and q(z | x) = N(mu, diag v), that marginal is exactly N(U' mu, U' diag(v) U).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.axes3d import Axes3D  # type: ignore[import-untyped]

from streaming_vb.layers.layout import Weights
from streaming_vb.models.vae import VAE
from streaming_vb.reproduce import fitting
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Outcome, Progress
from streaming_vb.types import Array

SEED = 0
LATENT = (2, 10)
LABELS = (0, 3, 4, 7)
"""The first held-out image of each of these classes is drawn."""
REACH = 3.5
"""Standard deviations shown to each side of the mean; the widest density of a column sets the window of all."""
GRID = 61


class Encoded(NamedTuple):
    """What one model makes of k images.

    Attributes:
        mean, deviation: of q(z | x) [k, Z].
        centre, covariance: of its projection on two directions [k, 2], [k, 2, 2].
        names: of the two directions.
        reconstruction: mean image of the decoder at the mean of q(z | x) [k, D].
        log_likelihood: log p(x | z) there, of the binarized image [k], nats.
    """

    mean: Array
    deviation: Array
    centre: Array
    covariance: Array
    names: tuple[str, str]
    reconstruction: Array
    log_likelihood: Array


def run(images: Images, quick: bool, progress: Progress) -> Outcome:
    """Fit a model per latent dimension, encode the same held-out digits with each."""
    records, hidden = (10_000, 100) if quick else (300_000, 500)
    chosen = [int(np.flatnonzero(images.test_labels == label)[0]) for label in LABELS]
    held_out = images.held_out()
    encoded = {}
    for latent in LATENT:
        model = VAE(images.train.shape[1], hidden=(hidden,), latent=latent)
        weights = fitting.weights(model, images, records, SEED, progress)
        encoded[latent] = encode(model, weights, held_out, chosen)
    settings = {
        "records": records,
        "seed": SEED,
        "hidden": [hidden],
        "latent": list(LATENT),
        "held_out_images": chosen,
        "labels": list(LABELS),
    }
    caption = (
        "Held-out digits, drawn once as 0 and 1; the density of q(z | x) over a window around its mean, equally wide "
        "in all rows; and the mean image that the decoder makes of that mean. Two latent dimensions are drawn as they "
        "are; of ten, which the paper only announces, the exact marginal along the first two principal components of "
        f"all held-out encodings. Mean weights after {records:,} records."
    )
    figure = draw(held_out[chosen], encoded, images.shape)
    return Outcome("Figure 3", caption, figure, settings, {str(latent): values(of) for latent, of in encoded.items()})


def encode(model: VAE, weights: Weights, x: Array, chosen: Sequence[int]) -> Encoded:
    """Encode all of x [n, D] for the principal components, and look at the chosen rows."""
    generator = torch.Generator()  # fixed weights draw nothing
    rows = list(chosen)
    with torch.no_grad():
        mean, log_variance = model.encode(weights, torch.from_numpy(x), generator)
        outputs = model.decode(weights, mean[rows], generator)
        log_likelihood = model.likelihood.log_prob(outputs, torch.from_numpy(x[rows]))
    variance = log_variance[rows].double().exp().numpy()
    directions, names = plane(mean.double().numpy())
    return Encoded(
        mean=mean[rows].double().numpy(),
        deviation=np.sqrt(variance),
        centre=mean[rows].double().numpy() @ directions,
        covariance=np.einsum("da,kd,db->kab", directions, variance, directions),
        names=names,
        reconstruction=model.likelihood.mean(outputs).numpy(),
        log_likelihood=log_likelihood.double().numpy(),
    )


def plane(latent: Array) -> tuple[Array, tuple[str, str]]:
    """Orthonormal directions [Z, 2] of encodings [n, Z], and their names: the axes if there are two, else principal
    components.

    >>> directions, names = plane(np.array([[0.0, 0.0, 0.0], [2.0, 3.0, 6.0]]))
    >>> (7 * directions[:, 0]).round(6), names
    (array([2., 3., 6.]), ('component 1', 'component 2'))
    """
    if latent.shape[1] == 2:
        return np.eye(2), ("z1", "z2")
    _, _, directions = np.linalg.svd(latent - latent.mean(axis=0), full_matrices=False)
    signs = np.sign(directions[np.arange(2), np.abs(directions[:2]).argmax(axis=1)])
    return directions[:2].T * signs, ("component 1", "component 2")


def density(centre: Array, covariance: Array, first: Array, second: Array) -> Array:
    """Normal density with mean [2] and covariance [2, 2] at a grid of both coordinates, of one shape."""
    distance = np.stack([first - centre[0], second - centre[1]], axis=-1)
    exponent = np.einsum("...a,ab,...b->...", distance, np.linalg.inv(covariance), distance)
    result: Array = np.exp(-0.5 * exponent) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    return result


def values(encoded: Encoded) -> dict[str, object]:
    """The figures behind one model's columns."""
    arrays = {
        "mean": encoded.mean,
        "standard_deviation": encoded.deviation,
        "mean_in_the_plane": encoded.centre,
        "covariance_in_the_plane": encoded.covariance,
        "reconstruction_log_likelihood": encoded.log_likelihood,
    }
    return {name: array.round(5).tolist() for name, array in arrays.items()}


def draw(digits: Array, encoded: dict[int, Encoded], shape: tuple[int, int]) -> Figure:
    """A row per digit: the digit, then density and reconstruction of every model."""
    figure = Figure(figsize=(12, 2.7 * len(digits)))
    grid = figure.add_gridspec(
        len(digits), 1 + 2 * len(encoded), width_ratios=[1.0, *[2.0, 1.0] * len(encoded)],
        left=0.01, right=0.98, top=0.97, bottom=0.03, wspace=0.16, hspace=0.02,
    )  # fmt: skip
    for i, digit in enumerate(digits):
        tile(figure.add_subplot(grid[i, 0]), digit, shape, "held-out digit" if i == 0 else "")
        for j, (latent, of) in enumerate(encoded.items()):
            surface(figure.add_subplot(grid[i, 1 + 2 * j], projection="3d"), of, i, latent)
            text = "reconstruction" if i == 0 else ""
            tile(figure.add_subplot(grid[i, 2 + 2 * j]), of.reconstruction[i], shape, text)
    return figure


def tile(axes: Axes, image: Array, shape: tuple[int, int], title: str) -> None:
    """One image, grey values between 0 (white) and 1."""
    axes.imshow(image.reshape(shape), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def surface(axes: Axes3D, encoded: Encoded, row: int, latent: int) -> None:
    """The density of one image over the plane."""
    widest = np.sqrt(np.max(np.diagonal(encoded.covariance, axis1=1, axis2=2)))
    offsets = np.linspace(-REACH * widest, REACH * widest, GRID)
    first, second = np.meshgrid(encoded.centre[row, 0] + offsets, encoded.centre[row, 1] + offsets)
    heights = density(encoded.centre[row], encoded.covariance[row], first, second)
    axes.plot_surface(first, second, heights, cmap="viridis", linewidth=0, rcount=GRID, ccount=GRID, rasterized=True)
    axes.view_init(elev=28, azim=-60)
    axes.set_box_aspect((1, 1, 0.7), zoom=1.05)
    for axis, dropped in ((axes.xaxis, "upper"), (axes.yaxis, "lower"), (axes.zaxis, None)):
        axis.set_major_locator(MaxNLocator(3, prune=dropped))  # x and y meet in a corner
    axes.tick_params(labelsize=7, pad=-2)
    axes.set_xlabel(encoded.names[0], fontsize=8, labelpad=-6)
    axes.set_ylabel(encoded.names[1], fontsize=8, labelpad=-6)
    axes.set_zlabel("density", fontsize=8, labelpad=-6)
    if row == 0:
        axes.set_title(f"q(z | x), {latent} latent dimensions", fontsize=10, y=0.97)
