"""Multiplicative noise on activations: dropout, and its Gaussian form (Srivastava et al. 2014, section 10).

Both multiply every activation, of every record, by an own draw of mean 1 and variance alpha. For dropout with rate p
the draw is 0 with probability p and 1 / (1 - p) otherwise, so that alpha = p / (1 - p): rate 0.2 is alpha 0.25, and
rate 0.5 is alpha 1. Neither says anything about weights; `variational_dropout.TypeA` reads the Gaussian form as a
posterior over them, and learns alpha.
"""

import torch
from torch import Tensor

from streaming_vb.errors import ConfigError


def gaussian_dropout(inputs: Tensor, alpha: float | Tensor, generator: torch.Generator) -> Tensor:
    """inputs * xi with xi ~ N(1, alpha); alpha broadcasts with the inputs [B, ...], and may ask for a gradient.

    Raises:
        ConfigError: an alpha is negative.

    >>> gaussian_dropout(torch.ones(2, 3), 0.0, torch.Generator())
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    variance = torch.as_tensor(alpha, dtype=inputs.dtype)
    if (variance < 0).any():
        raise ConfigError(f"gaussian dropout: alpha must be at least 0, got {float(variance.min()):g}; try 0.25")
    least = torch.finfo(variance.dtype).tiny  # at 0 the square root has an infinite gradient
    noise = torch.randn(inputs.shape, generator=generator)
    return inputs * (1 + variance.clamp_min(least).sqrt() * noise)


def binary_dropout(inputs: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """inputs * xi [B, ...] with xi = 0 at probability `rate` and 1 / (1 - rate) otherwise.

    Raises:
        ConfigError: the rate is negative, or 1 or more.

    >>> binary_dropout(torch.ones(2, 4), 0.5, torch.Generator().manual_seed(0)).unique()
    tensor([0., 2.])
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"dropout: the rate must be at least 0 and below 1, got {rate:g}; try 0.5")
    kept = torch.empty_like(inputs).bernoulli_(1 - rate, generator=generator)
    return inputs * kept / (1 - rate)
