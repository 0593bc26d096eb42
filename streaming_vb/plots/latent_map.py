"""Latent map: where held-out records lie in latent space; two principal components where it has more than two
dimensions."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from streaming_vb.types import Array


def draw(latent: Array, labels: Array | None, path: Path) -> None:
    """Write a scatter plot.

    Args:
        latent: means of q(z | x) [n, Z].
        labels: small integers [n] that colour the points, or none.
        path: of the PNG file.
    """
    points, names = project(latent)
    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.subplots()
    area = 24 if len(points) < 1000 else 7
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=area, linewidths=0, alpha=0.6, color="#0072B2")
    else:
        drawn = axes.scatter(
            points[:, 0], points[:, 1], c=labels, s=area, linewidths=0, alpha=0.7, cmap="tab10", vmin=-0.5, vmax=9.5
        )
        figure.colorbar(drawn, ticks=range(10), label="label (not used in training)")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def project(latent: Array) -> tuple[Array, tuple[str, str]]:
    """Two coordinates per record [n, 2] and their names; principal components for more than two dimensions.

    >>> project(np.eye(2))[1]
    ('z1', 'z2')
    """
    if latent.shape[1] == 1:
        return np.column_stack([latent[:, 0], np.zeros(len(latent))]), ("z1", "")
    if latent.shape[1] == 2:
        return latent, ("z1", "z2")
    centred = latent - latent.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    shares = spread**2 / np.sum(spread**2)
    names = [f"principal component {i + 1} of z ({shares[i]:.0%} of the variance)" for i in range(2)]
    return centred @ directions[:2].T, (names[0], names[1])
