"""How pre-activations are drawn when the weights are normal: five estimators of one expectation, a switch on a layer.

=========  ============================================================  ================  =======================
estimator  weights that record i sees                                    noise per record  source
=========  ============================================================  ================  =======================
local      own draw, integrated out: only B_i is drawn                   O numbers         Kingma et al. 2015, 2.2
separate   own draw W_i                                                  O I numbers       Kingma et al. 2015, 2.1
flipout    W = M + D * (s_i r_i'), one D, random signs r_i, s_i          O + I signs       Wen et al. 2018
shared     one draw W for all records                                    none              Blundell et al. 2015
mean       M: no noise, a point estimate (auto-encoding VB, MAP weights) none              Kingma and Welling 2014
=========  ============================================================  ================  =======================

The gradient of a minibatch of M records has variance N^2 (Var / M + (M - 1) / M Cov): independent draws per record make
the covariance zero, a shared draw does not. All of them are written for any map that is linear in inputs and weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-12
"""An all-zero record has variance 0, and 0 / 0 in the backward pass through the square root would be NaN."""
_RECORDS_AT_ONCE = 100
"""Records whose weight matrices exist at the same time: bounds the memory of separate draws."""

LinearMap = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(inputs [B, I, ...], weight, bias [O] or none) -> outputs [B, O, ...], as torch.nn.functional.linear and conv2d."""


class Affine(NamedTuple):
    """Means of weight and bias, or their variances; a bias of none is left out (of the noise, for variances)."""

    weight: Tensor
    bias: Tensor | None


Estimator = Callable[[LinearMap, Tensor, Affine, Affine, torch.Generator], Tensor]
"""(map, inputs, means, variances, generator) -> pre-activations [B, O, ...]."""


def local(apply: LinearMap, inputs: Tensor, means: Affine, variances: Affine, generator: torch.Generator) -> Tensor:
    """B = map(A; M) + sqrt(map(A^2; V)) e, fresh for every record: the local reparameterization trick.

    The noise of the bias is drawn once per record and output channel. For a linear layer the draw is exact. For a
    convolution the noise is independent between positions, so that every single pre-activation has the right
    distribution and their covariance within a record is lost: `separate` keeps it.
    """
    scale = apply(inputs.square(), variances.weight, None).clamp_min(LEAST_VARIANCE).sqrt()
    outputs = apply(inputs, *means) + scale * torch.randn(scale.shape, generator=generator)
    if variances.bias is None:
        return outputs
    bias_noise = torch.randn(len(inputs), len(variances.bias), generator=generator)
    return outputs + _broadcast(variances.bias.sqrt() * bias_noise, outputs)


def separate(apply: LinearMap, inputs: Tensor, means: Affine, variances: Affine, generator: torch.Generator) -> Tensor:
    """B_i = map(A_i; W_i) with a draw W_i per record: exact for every map, and a weight tensor per record."""
    one = torch.vmap(
        lambda row, weight, bias: apply(row[None], weight, bias)[0], (0, 0, None if means.bias is None else 0)
    )
    parts = inputs.split(_RECORDS_AT_ONCE)
    return torch.cat([one(rows, *_draw(means, variances, generator, len(rows))) for rows in parts])


def flipout(apply: LinearMap, inputs: Tensor, means: Affine, variances: Affine, generator: torch.Generator) -> Tensor:
    """B_i = map(A_i; M) + s_i * map(r_i * A_i; D) with one draw D of the deviation and random signs per channel."""
    deviation = _draw(Affine(torch.zeros_like(means.weight), None), Affine(variances.weight, None), generator)
    signs_in = _broadcast(_signs(len(inputs), inputs.shape[1], generator), inputs)
    outputs = apply(inputs, *means)
    perturbation = apply(inputs * signs_in, deviation.weight, None)
    if variances.bias is not None:
        noise = torch.randn(len(variances.bias), generator=generator)
        perturbation = perturbation + _broadcast((variances.bias.sqrt() * noise)[None], outputs)
    return outputs + _broadcast(_signs(len(outputs), outputs.shape[1], generator), outputs) * perturbation


def shared(apply: LinearMap, inputs: Tensor, means: Affine, variances: Affine, generator: torch.Generator) -> Tensor:
    """B_i = map(A_i; W) with one draw W for all records."""
    return apply(inputs, *_draw(means, variances, generator))


def mean(apply: LinearMap, inputs: Tensor, means: Affine, variances: Affine, generator: torch.Generator) -> Tensor:
    """B_i = map(A_i; M): no noise."""
    del variances, generator
    return apply(inputs, *means)


def shares_weights(estimator: Estimator) -> bool:
    """Whether all rows of one call see the same weights: several draws of z of a record are then importance samples."""
    return estimator in (shared, mean)


def _draw(means: Affine, variances: Affine, generator: torch.Generator, *records: int) -> Affine:
    """M + sqrt(V) e, one for all or one per record."""
    weight = means.weight + variances.weight.sqrt() * torch.randn(*records, *means.weight.shape, generator=generator)
    if means.bias is None or variances.bias is None:
        return Affine(weight, means.bias if means.bias is None else means.bias.expand(*records, -1))
    noise = torch.randn(*records, *means.bias.shape, generator=generator)
    return Affine(weight, means.bias + variances.bias.sqrt() * noise)


def _signs(rows: int, channels: int, generator: torch.Generator) -> Tensor:
    return torch.empty(rows, channels).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Values [B, O] to the shape [B, O, 1, ...] of outputs with positions."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - 2))
