"""KL divergence of variational dropout: one weight w ~ N(theta, alpha theta^2) against the log-uniform prior p(|w|)
proportional to 1 / |w| (Kingma, Salimans and Welling 2015, section 3.3).

It depends on alpha alone. The prior is improper, so the KL is known up to a constant; here it tends to 0 as alpha grows
without bound. With u = 1 / (2 alpha), J ~ Poisson(u) and D the Dawson integral,

    KL                 = E log|alpha^(-1/2) + e| - E log|e| = (E psi(1/2 + J) - psi(1/2)) / 2,     e ~ N(0, 1),
    d KL / d log alpha = -sqrt(u) D(sqrt u) = -(u / 2) E 1 / (J + 1/2).

`exact` is this function. `kingma` and `molchanov` are the two published fits, to reproduce what was published. A plain
function of log alpha is a `Divergence`, so a layer takes any of them.

>>> log_alpha = torch.tensor([-4.0, 0.0])
>>> exact(log_alpha), kingma(log_alpha), molchanov(log_alpha)
(tensor([2.6258, 0.4267]), tensor([2.6144, 0.3895]), tensor([2.6342, 0.4312]))
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from streaming_vb.errors import ConfigError

Divergence = Callable[[Tensor], Tensor]
"""log alpha, of any shape -> KL of each, in nats per weight."""

_SMALL_ALPHA_CONSTANT = 0.5 * (np.euler_gamma + math.log(2))
"""KL + (log alpha) / 2 as alpha -> 0: minus the mean of log|e|."""
_KINGMA = (1.161451241083230, -1.502041176441722, 0.586299206427007)
"""c1, c2, c3: Kingma et al. 2015, section 3.3."""
_MOLCHANOV = (0.63576, 1.87320, 1.48695)
"""k1, k2, k3: Molchanov et al. 2017, section 4.2."""

_LEAST, _GREATEST = -24.0, 32.0
"""Log alpha of the first and the last node. Outside, the KL is a line or 0, to 2e-11 and 1e-14 nats."""
_NODES_PER_NAT = 128
"""Of log alpha. An expansion of order 4 about the nearest is then right to 1e-13, and its slope to 2e-11."""
_ASYMPTOTIC_FROM = 36.0
"""u from which the series in alpha is right to 1e-14 with this many terms."""
_ASYMPTOTIC_TERMS = 20
_POISSON_TERMS = 160
"""P(J >= 160) < 1e-40 for every u up to `_ASYMPTOTIC_FROM`."""
_BLOCK = 16_384
"""Elements at once: the float64 vectors of a block stay near the core, which makes it four times as fast."""


def exact(log_alpha: Tensor) -> Tensor:
    """KL for every alpha, right to 1e-10 in float64: Taylor expansion about the nearest of 7169 nodes.

    The arithmetic is float64 whatever the type of the input, which the result has.
    """
    result: Tensor = _Exact.apply(log_alpha)  # type: ignore[no-untyped-call]
    return result


def kingma(log_alpha: Tensor) -> Tensor:
    """The cubic of Kingma et al. 2015, for alpha <= 1 only: too small by up to 0.0403 nats.

    Raises:
        ConfigError: an alpha is above 1; at alpha = 2 the cubic is wrong by 0.95 nats.
    """
    if log_alpha.numel() and (greatest := float(log_alpha.detach().max())) > 0:
        raise ConfigError(
            f"Kingma's polynomial holds for alpha <= 1, log alpha <= 0; the largest log alpha is {greatest:.6g}. "
            "Give the layer greatest_alpha=1.0, or divergence=exact"
        )
    alpha = log_alpha.exp()
    first, second, third = _KINGMA
    return _SMALL_ALPHA_CONSTANT - 0.5 * log_alpha - alpha * (first + alpha * (second + alpha * third))


def molchanov(log_alpha: Tensor) -> Tensor:
    """The sigmoid fit of Molchanov et al. 2017, for every alpha: wrong by at most 0.0094 nats."""
    height, shift, slope = _MOLCHANOV
    return height * torch.sigmoid(-shift - slope * log_alpha) + 0.5 * functional.softplus(-log_alpha)


class _Exact(torch.autograd.Function):
    """Value and slope of the expansion, block by block; the backward pass is one product."""

    @staticmethod
    def forward(ctx: Any, log_alpha: Tensor) -> Tensor:
        flat = log_alpha.reshape(-1)
        value, slope = torch.empty_like(flat), torch.empty_like(flat)
        for start in range(0, len(flat), _BLOCK):
            part = slice(start, start + _BLOCK)
            value[part], slope[part] = _expand(flat[part])
        ctx.save_for_backward(slope.view(log_alpha.shape))
        return value.view(log_alpha.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        result: Tensor = gradients[0] * slope
        return result


def _expand(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """KL and its slope [n] in float64, by Horner's rule about the nearest node."""
    highest, *lower = reversed(_coefficients())
    position = log_alpha.double().clamp(-1e300, 1e300)  # infinity times the zeros of an end node would be NaN
    position.sub_(_LEAST).mul_(_NODES_PER_NAT)
    node = position.round().clamp_(0, len(highest) - 1)
    index = node.int().clamp_min_(0)  # NaN stays NaN through the distance, but it is no index
    distance = position.sub_(node)
    slope = highest.index_select(0, index)
    value = torch.addcmul(lower[0].index_select(0, index), slope, distance)
    for coefficients in lower[1:]:
        slope = torch.addcmul(value, slope, distance)
        value = torch.addcmul(coefficients.index_select(0, index), value, distance)
    return value, slope.mul_(_NODES_PER_NAT)


@cache
def _coefficients() -> tuple[Tensor, ...]:
    """Taylor coefficients of order 0 to 4, a vector of all nodes each; distances count nodes. Built once, in 0.1 s."""
    count = round((_GREATEST - _LEAST) * _NODES_PER_NAT) + 1
    nodes = torch.linspace(_LEAST, _GREATEST, count, dtype=torch.float64)
    small = nodes < -math.log(2 * _ASYMPTOTIC_FROM)
    derivatives = torch.cat([_asymptotic(nodes[small]), _poisson(nodes[~small])], dim=1)
    derivatives[1, 0], derivatives[2:, 0] = -0.5, 0.0  # below the first node the KL is a line
    derivatives[:, -1] = 0.0  # beyond the last it is 0
    scales = [math.factorial(order) * _NODES_PER_NAT**order for order in range(len(derivatives))]
    return tuple(derivative / scale for derivative, scale in zip(derivatives, scales, strict=True))


def _poisson(log_alpha: Tensor) -> Tensor:
    """KL and four derivatives [5, n] from the Poisson sums: positive terms, so nothing cancels.

    The slope -k, with k = sqrt(u) D(sqrt u), obeys dk = -(k + u (1 - 2 k)) / 2 by D' = 1 - 2 x D; du = -u.
    """
    u = 0.5 * torch.exp(-log_alpha)
    j = torch.arange(_POISSON_TERMS, dtype=torch.float64)
    probability = torch.exp(torch.xlogy(j, u[:, None]) - u[:, None] - torch.lgamma(j + 1))
    reciprocal = 1 / (j + 0.5)
    kl = 0.5 * probability @ (reciprocal.cumsum(0) - reciprocal)  # psi(1/2 + j) - psi(1/2)
    k = 0.5 * u * (probability @ reciprocal)
    first = -0.5 * (k + u - 2 * u * k)
    second = -0.5 * (first - u + 2 * u * k - 2 * u * first)
    third = -0.5 * (second + u - 2 * u * k + 4 * u * first - 2 * u * second)
    return torch.stack([kl, -k, -first, -second, -third])


def _asymptotic(log_alpha: Tensor) -> Tensor:
    """KL and four derivatives [5, n] for small alpha: d KL = -(1 + alpha + 3 alpha^2 + 15 alpha^3 + ...) / 2."""
    derivatives = torch.zeros(5, len(log_alpha), dtype=torch.float64)
    derivatives[0] = _SMALL_ALPHA_CONSTANT - 0.5 * log_alpha
    derivatives[1] = -0.5
    term = torch.full_like(log_alpha, -0.5)
    for power in range(1, _ASYMPTOTIC_TERMS + 1):
        term = term * (2 * power - 1) * log_alpha.exp()
        for order in range(5):
            derivatives[order] += term * float(power) ** (order - 1)
    return derivatives
