"""MNIST as every benchmark sees it: one stream of training records, and one evaluation.

Stream: the 60,000 training images, pass after pass, each in an order of its own, pixels binarized anew each time a
record is drawn; order and noise are functions of the run's seed. Evaluation: the 10,000 test images, binarized once
with a seed that no run uses, scored at the mean weights with one draw of z per image. Both are those of
`streaming-vb fit mnist`, whose `elbo_heldout` is the same figure. Whatever is compared, ours or a peer, reads the same
records in the same order and is scored by the same function.
"""

from argparse import ArgumentParser
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streaming_vb.cli.job import EVALUATION_SEED, held_out_records
from streaming_vb.evaluation import held_out
from streaming_vb.models.vae import VAE
from streaming_vb.sources import datasets
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.types import Array, NaturalParameters

NUM_COLUMNS = 784
MODEL = VAE(NUM_COLUMNS, hidden=(500,), latent=20)


class Images(NamedTuple):
    """Training images as bytes [60000, 784]; test images as 0 or 1 [10000, 784]."""

    train: Array
    test: Array


def add_data_dir(parser: ArgumentParser) -> None:
    """The flag that says where the original files lie."""
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the four IDX .gz files of MNIST")


def load(data_dir: Path) -> Images:
    """Training images, and the test images binarized once."""
    dataset = datasets.load("mnist", data_dir, "bernoulli")
    return Images(dataset.train, held_out_records(dataset, MODEL.likelihood.name))


def stream(images: Images, records: int, seed: int) -> BinarizedSource:
    """As many passes over the training images as `records` needs."""
    passes = -(-records // len(images.train))
    return BinarizedSource(ArraySource({"x": images.train}, passes=passes, seed=seed, scale=1 / 255), seed)


def test_elbo(posterior: NaturalParameters, images: Images) -> held_out.Estimate:
    """ELBO of the test images at the mean weights, one draw of z per image; nats per image."""
    return held_out.at_mean(MODEL, posterior, {"x": images.test}, EVALUATION_SEED)


def independent_pixels(images: Images) -> float:
    """Log likelihood of the test images if pixels were independent: a model below it has learned nothing."""
    rates = np.clip(images.train.mean(axis=0) / 255, 1e-4, 1 - 1e-4)
    log_likelihood = images.test @ np.log(rates) + (1 - images.test) @ np.log1p(-rates)
    return float(log_likelihood.mean())
