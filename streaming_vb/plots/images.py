"""Tiles of images: records, their reconstructions, and fresh samples."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from streaming_vb.types import Array


def shades(values: Array, reference: Array) -> Array:
    """Values as shades of grey: as they are where the reference lies in [0, 1], else on the scale of its range.

    >>> shades(np.array([0.0, 8.0]), np.array([0.0, 16.0])).tolist()
    [0.0, 0.5]
    """
    low, high = float(reference.min()), float(reference.max())
    if low >= 0 and high <= 1:
        return values
    scaled: Array = (values - low) / ((high - low) or 1.0)
    return scaled


def draw(rows: Mapping[str, Array], shape: tuple[int, ...], path: Path) -> None:
    """Write one row of tiles per entry.

    Args:
        rows: title -> images [k, D] with values in [0, 1], the same k in every row.
        shape: height and width of an image; records that are not images are drawn as one line of pixels.
        path: of the PNG file.
    """
    count = min(len(images) for images in rows.values())
    height, width = shape if len(shape) == 2 else (1, int(np.prod(shape)))
    figure = Figure(figsize=(max(4.0, 0.85 * count), 1.15 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=9)
        for tile, image in zip(line, images, strict=False):
            tile.imshow(np.asarray(image).reshape(height, width), cmap="gray_r", vmin=0, vmax=1, aspect="auto")
            tile.set(xticks=[], yticks=[])
            for side in tile.spines.values():
                side.set_linewidth(0.4)
    figure.savefig(path, dpi=130)
