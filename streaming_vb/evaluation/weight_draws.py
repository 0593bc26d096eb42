"""Draws of the weights from the posterior, and what a score over draws comes to: the weights' uncertainty on it."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from streaming_vb.errors import ConfigError
from streaming_vb.evaluation.held_out import Estimate
from streaming_vb.layers.layout import Weights
from streaming_vb.models.neural import NeuralModel
from streaming_vb.seeding import numpy_generator
from streaming_vb.types import Array, NaturalParameters


def weight_draws(model: NeuralModel, posterior: NaturalParameters, draws: int, seed: int) -> Iterator[Weights]:
    """Weights fixed at each of so many draws; the draws are those of `held_out.over_draws` with the same seed.

    Raises:
        ConfigError: fewer than 2 draws.
    """
    if draws < 2:
        raise ConfigError(f"--draws must be at least 2 for a standard error, got {draws}")
    generator = numpy_generator(seed, "weight draws")
    flat = (model.family.sample(posterior, generator).astype(np.float32) for _ in range(draws))
    return (Weights(model.layout.views(torch.from_numpy(weights))) for weights in flat)


def over_records(scores: Array) -> Estimate:
    """Mean of scores [n] of records, and its standard error sd / sqrt(n).

    Raises:
        ConfigError: fewer than 2 scores.

    >>> over_records(np.array([-1.0, -3.0]))
    Estimate(mean=-2.0, standard_error=1.0)
    """
    if len(scores) < 2:
        raise ConfigError(f"a standard error needs at least 2 scores, got {len(scores)}")
    return Estimate(float(scores.mean()), float(scores.std(ddof=1) / math.sqrt(len(scores))))


def over_records_and_draws(scores: Array) -> Estimate:
    """Mean of scores [K, n] of records under draws of the weights; its standard error adds both sources.

    >>> over_records_and_draws(np.array([[-1.0, -3.0], [-2.0, -4.0]]))
    Estimate(mean=-2.5, standard_error=1.118033988749895)
    """
    records, weights = over_records(scores.mean(axis=0)), over_records(scores.mean(axis=1))
    return Estimate(records.mean, math.hypot(records.standard_error, weights.standard_error))
