"""The images that every figure is drawn from: MNIST, or scikit-learn's 8 x 8 digits where it must be quick."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from streaming_vb.sources import datasets
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource, binarize
from streaming_vb.types import Array

HELD_OUT_SEED = 20_131
"""Of the binarization of held-out images: no run uses it."""


class Images(NamedTuple):
    """Grey values as stored, labels, and what turns one into the other.

    Attributes:
        name: "mnist" or "digits".
        train: [n, D].
        train_labels: [n], integers.
        test: [m, D].
        test_labels: [m].
        scale: stored value times scale lies in [0, 1].
        shape: height and width.
    """

    name: str
    train: Array
    train_labels: Array
    test: Array
    test_labels: Array
    scale: float
    shape: tuple[int, int]

    def stream(self, records: int, seed: int) -> BinarizedSource:
        """As many passes over the training images as `records` needs, each shuffled and binarized afresh."""
        passes = -(-records // len(self.train))
        return BinarizedSource(ArraySource({"x": self.train}, passes=passes, seed=seed, scale=self.scale), seed)

    def held_out(self) -> Array:
        """Test images binarized once [m, D], float32."""
        return binarize(self.test.astype(np.float32) * np.float32(self.scale), HELD_OUT_SEED, 0)

    def grey(self, images: Array) -> Array:
        """Values in [0, 1], float32, of stored images [k, D]."""
        return images.astype(np.float32) * np.float32(self.scale)


def load(data_dir: Path | None, quick: bool) -> Images:
    """MNIST (from a folder, or downloaded), or the embedded digits.

    Raises:
        SourceError: a file is missing or damaged.
        MissingExtra: scikit-learn or the downloader is not installed.
    """
    name = "digits" if quick else "mnist"
    dataset, labels = datasets.load(name, data_dir, "bernoulli"), datasets.train_labels(name, data_dir)
    assert dataset.test_labels is not None
    height, width = dataset.shape
    return Images(name, dataset.train, labels, dataset.test, dataset.test_labels, dataset.scale, (height, width))
