"""Importance-sampled log likelihood of held-out records at given weights (Burda, Grosse and Salakhutdinov 2016).

    log p(x | w)  ~  log 1/K sum_k p(x, z_k | w) / q(z_k | x, w),   z_k ~ q(z | x, w)

In expectation this is a lower bound for every K (equation 8): the ELBO at K = 1, rising to log p(x | w). How far it has
come is read off the effective sample size (sum_k w_k)^2 / sum_k w_k^2, between 1 and K: the estimated likelihood of a
record has a relative error of about sqrt(1 / effective sample size - 1 / K).

All samples of a record see the same weights: the posterior mean, or one draw. Noise of the weights in every sample
would estimate log E_q(w)[p(x | w)] instead, which can lie above log p(x): no bound. That is a predictive score, and
has a name of its own (`predictive.py`).

Every record is encoded once. Its samples are streamed in chunks that stay in a processor's cache; nothing grows with K.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import ConfigError
from streaming_vb.evaluation.held_out import Estimate, Scores, mean_weights
from streaming_vb.evaluation.weight_draws import over_records, over_records_and_draws, weight_draws
from streaming_vb.layers.layout import Weights
from streaming_vb.models.neural import NeuralModel
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Array, NaturalParameters

NUM_SAMPLES = 5000
"""K in the literature's tables."""
_ROWS = 256
"""Records times samples decoded at once: bounds memory. Fewer pay for calls, more leave a processor's cache."""
_KEPT_BYTES = 2**24
"""Allocated and freed before the first chunk: glibc then keeps freed memory up to twice this size. A fresh process
would give back what a chunk frees and fault it in again for the next one, which doubles the time."""


class EncodingModel(NeuralModel, Protocol):
    """A model with latent variables and a recognition model q(z | x, w)."""

    def encode(self, weights: Weights, x: Tensor, generator: torch.Generator) -> Any:
        """q(z | x) of x [B, D], as `log_weights` takes it."""

    def log_weights(
        self, weights: Weights, x: Tensor, encoding: Any, num_samples: int, generator: torch.Generator
    ) -> Tensor:
        """log p(x, z_s | w) - log q(z_s | x, w) [S, B] for fresh draws of z."""


class ImportanceSampled(NamedTuple):
    """Per record, at one setting of the weights.

    Attributes:
        log_likelihood: log p(x | w) [n], nats, a lower bound in expectation.
        effective_sample_size: [n], between 1 and K; 0 where no sample explains the record.
    """

    log_likelihood: Array
    effective_sample_size: Array

    def estimate(self) -> Estimate:
        """Mean log likelihood and its standard error over records."""
        return over_records(self.log_likelihood)


class ImportanceSampledOverDraws(NamedTuple):
    """Per draw of the weights and record.

    Attributes:
        log_likelihood: log p(x | w) [J, n], nats.
        effective_sample_size: [J, n].
    """

    log_likelihood: Array
    effective_sample_size: Array

    def estimate(self) -> Estimate:
        """E_q(w)[log p(x | w)]; the standard error adds both sources, records and draws of the weights."""
        return over_records_and_draws(self.log_likelihood)

    def scores(self) -> Scores:
        """Per record [n]: mean over draws of the weights, and their standard deviation."""
        return Scores(self.log_likelihood.mean(axis=0), self.log_likelihood.std(axis=0, ddof=1))


def at_mean(
    model: EncodingModel, posterior: NaturalParameters, x: Array, *, num_samples: int = NUM_SAMPLES, seed: int
) -> ImportanceSampled:
    """log p(x | w) of every record of x [n, D] at the mean weights, with K = `num_samples` draws of z per record.

    Raises:
        ConfigError: K below 1.
    """
    return join(stream(model, mean_weights(model, posterior), x, num_samples=num_samples, seed=seed))


def over_draws(
    model: EncodingModel,
    posterior: NaturalParameters,
    x: Array,
    *,
    draws: int,
    num_samples: int = NUM_SAMPLES,
    seed: int,
) -> ImportanceSampledOverDraws:
    """log p(x | w) of every record under draws of the weights, each shared by all records and samples.

    The noise of z is the same for every draw of the weights, so that the spread over draws is the weights' own.

    Raises:
        ConfigError: fewer than 2 draws, or K below 1.
    """
    parts = [
        join(stream(model, weights, x, num_samples=num_samples, seed=seed))
        for weights in weight_draws(model, posterior, draws, seed)
    ]
    return ImportanceSampledOverDraws(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def stream(
    model: EncodingModel, weights: Weights, x: Array, *, num_samples: int = NUM_SAMPLES, seed: int
) -> Iterator[ImportanceSampled]:
    """The same for given weights, a few records of x [n, D] at a time, for whoever shows progress; `join` them.

    Raises:
        ConfigError: the weights have a variance, or K below 1.
    """
    if weights.variance is not None:
        raise ConfigError(
            "importance sampling needs fixed weights, got weights with a variance: fresh noise of the weights in every "
            "sample gives no bound on log p(x | w). Pass the posterior mean, or one draw for all samples"
        )
    if num_samples < 1:
        raise ConfigError(f"importance samples must be at least 1 per record, got {num_samples}")
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)
    generator = torch_generator(seed, "importance samples")
    rows = torch.from_numpy(np.array(x, dtype=np.float32)).split(max(1, _ROWS // num_samples))  # one if K is large
    return (_sample(model, weights, part, num_samples, generator) for part in rows)


def join(parts: Iterable[ImportanceSampled]) -> ImportanceSampled:
    """One result for all records, in their order."""
    return ImportanceSampled(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _sample(
    model: EncodingModel, weights: Weights, x: Tensor, num_samples: int, generator: torch.Generator
) -> ImportanceSampled:
    """Running logarithms of sum_k w_k and sum_k w_k^2, in float64, over chunks of samples."""
    log_sums = torch.full((2, len(x)), -math.inf, dtype=torch.float64)
    powers = torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        encoding = model.encode(weights, x, generator)
        for size in _chunks(num_samples, _ROWS):
            log_weights = model.log_weights(weights, x, encoding, size, generator)
            log_sums = torch.logaddexp(log_sums, torch.logsumexp(powers * log_weights, 1))
    log_sum, log_sum_of_squares = log_sums.numpy()
    with np.errstate(invalid="ignore"):  # every weight 0
        effective = np.exp(2 * log_sum - log_sum_of_squares)
    return ImportanceSampled(log_sum - math.log(num_samples), np.where(log_sum == -math.inf, 0.0, effective))


def _chunks(total: int, most: int) -> list[int]:
    """Sizes that add up to `total`, none above `most`.

    >>> _chunks(7, 3)
    [3, 3, 1]
    """
    full, rest = divmod(total, most)
    return [most] * full + [rest] * (rest > 0)
