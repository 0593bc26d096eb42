"""Held-out bounds at the posterior mean and over draws of the weights, and scores of single records."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from streaming_vb.errors import ConfigError
from streaming_vb.layers.layout import Weights
from streaming_vb.models.neural import NeuralModel, minibatches
from streaming_vb.objectives import elbo
from streaming_vb.seeding import numpy_generator, torch_generator
from streaming_vb.types import Array, NaturalParameters

_ROWS = 1000
"""Records scored at once: bounds memory."""


class Estimate(NamedTuple):
    """A mean in nats per record, and its standard error."""

    mean: float
    standard_error: float


class Scores(NamedTuple):
    """Scores per record [n]: mean over weight draws, and their standard deviation (the weights' uncertainty), nats."""

    mean: Array
    deviation: Array


def at_mean(model: NeuralModel, posterior: NaturalParameters, records: Mapping[str, Array], seed: int) -> Estimate:
    """ELBO of n records at the mean weights, with one draw of z per record.

    The standard error is over records: sd / sqrt(n).
    """
    scores = _elbo(model, model.family.mean(posterior), records, seed)
    return Estimate(float(scores.mean()), float(scores.std(ddof=1) / math.sqrt(len(scores))))


def over_draws(
    model: NeuralModel, posterior: NaturalParameters, records: Mapping[str, Array], draws: int, seed: int
) -> Estimate:
    """E_q(w)[ELBO(x; w)] of n records, averaged over draws of the weights.

    The standard error adds both sources, records and draws: sqrt(var_records / n + var_draws / K).

    Raises:
        ConfigError: fewer than 2 draws.
    """
    scores = _over_draws(model, posterior, records, draws, seed)
    by_record, by_draw = scores.mean(axis=0), scores.mean(axis=1)
    variance = by_record.var(ddof=1) / len(by_record) + by_draw.var(ddof=1) / draws
    return Estimate(float(scores.mean()), math.sqrt(variance))


def score(
    model: NeuralModel, posterior: NaturalParameters, records: Mapping[str, Array], draws: int, seed: int
) -> Scores:
    """ELBO of every record over draws of the weights; the draw of z is the same for all of them."""
    scores = _over_draws(model, posterior, records, draws, seed)
    return Scores(scores.mean(axis=0), scores.std(axis=0, ddof=1))


def mean_weights(model: NeuralModel, posterior: NaturalParameters) -> Weights:
    """Weights fixed at the posterior mean, for encoding, decoding and sampling."""
    return _fixed(model, model.family.mean(posterior))


def _over_draws(
    model: NeuralModel, posterior: NaturalParameters, records: Mapping[str, Array], draws: int, seed: int
) -> Array:
    """Scores [K, n]."""
    if draws < 2:
        raise ConfigError(f"--draws must be at least 2 for a standard error, got {draws}")
    generator = numpy_generator(seed, "weight draws")
    return np.stack([_elbo(model, model.family.sample(posterior, generator), records, seed) for _ in range(draws)])


def _elbo(model: NeuralModel, flat: Array, records: Mapping[str, Array], seed: int) -> Array:
    weights = _fixed(model, flat)
    generator = torch_generator(seed, "latent draws")
    parts = minibatches(model, records, _ROWS)
    with torch.no_grad():
        return torch.cat([elbo(model.terms(weights, part, generator)) for part in parts]).double().numpy()


def _fixed(model: NeuralModel, flat: Array) -> Weights:
    return Weights(model.layout.views(torch.from_numpy(np.asarray(flat, dtype=np.float32))))
