"""Linear layer with normal weights, by local reparameterization (Kingma, Salimans and Welling 2015, section 2.2).

Weights W ~ N(M, V) make the pre-activations of one record normal, with mean A M' and variance A^2 V'. Drawing *them*,
fresh for every record, costs one more matrix product instead of a weight matrix per record, and makes the covariance
between the records of a minibatch zero.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from streaming_vb.layers.estimators import LEAST_VARIANCE, Affine, Estimator, local, mean
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.tape import TapeEntry, record


@dataclass(frozen=True, slots=True)
class Linear:
    """I inputs to O outputs; weights `name.weight` [O, I] and `name.bias` [O].

    Attributes:
        estimator: how pre-activations are drawn (`layers/estimators.py`).
    """

    name: str
    num_inputs: int
    num_outputs: int
    estimator: Estimator = local

    @property
    def fan_in(self) -> int:
        """I."""
        return self.num_inputs

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""
        return {self.weight: (self.num_outputs, self.num_inputs), self.bias: (self.num_outputs,)}

    def __call__(
        self,
        weights: Weights,
        inputs: Tensor,
        generator: torch.Generator,
        tape: list[TapeEntry] | None = None,
    ) -> Tensor:
        """Pre-activations [B, O] of inputs [B, I]: drawn by the estimator, or their mean where the weights have no
        variance."""
        means = Affine(weights.mean[self.weight], weights.mean[self.bias])
        if weights.variance is None and tape is None:
            return functional.linear(inputs, *means)
        squared_inputs = inputs.detach().square()
        if weights.variance is None or self.estimator is mean:
            return record(tape, self, inputs, squared_inputs, functional.linear(inputs, *means))
        variances = Affine(weights.variance[self.weight], weights.variance[self.bias])
        if self.estimator is local:
            noise = torch.randn(inputs.shape[0], self.num_outputs, generator=generator)
            preactivations: Tensor = _LocalReparameterization.apply(  # type: ignore[no-untyped-call]
                inputs, squared_inputs, *means, *variances, noise
            )
        else:
            preactivations = self.estimator(functional.linear, inputs, means, variances, generator)
        return record(tape, self, inputs, squared_inputs, preactivations)

    def gradient(
        self, entry: TapeEntry, u: Tensor, out: dict[str, Tensor], *, decay: float = 0.0, weight: float = 1.0
    ) -> None:
        """out <- decay out + weight sum_i u_i a_i' (and sum_i u_i), for gradients u [B, O] of the pre-activations.

        A moving average of gradients thus costs no pass over the weights: the matrix product adds to it.
        """
        out[self.weight].addmm_(u.T, entry.inputs, beta=decay, alpha=weight)
        out[self.bias].addmv_(u.T, u.new_ones(len(u)), beta=decay, alpha=weight)

    def squared_gradient(self, entry: TapeEntry, u: Tensor, out: dict[str, Tensor], *, weight: float = 1.0) -> None:
        """out <- weight times the diagonal of sum_i g_i g_i': (U * U)' (A * A), one product and no second pass."""
        squared = u.square()
        out[self.weight].addmm_(squared.T, entry.squared_inputs, beta=0.0, alpha=weight)
        torch.mul(squared.sum(0), weight, out=out[self.bias])


class _LocalReparameterization(torch.autograd.Function):
    """B = A M' + sqrt(A^2 V') e, with a backward pass to the inputs alone: dA = U M + 2 A * (R V), R = U e / (2 sqrt
    d). The same draw as `estimators.local` in a third of its time: one square root, and no graph over the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        squared_inputs: Tensor,
        mean_weight: Tensor,
        mean_bias: Tensor,
        variance_weight: Tensor,
        variance_bias: Tensor,
        noise: Tensor,
    ) -> Tensor:
        scale = torch.addmm(variance_bias, squared_inputs, variance_weight.T)
        scale = scale.clamp_min_(LEAST_VARIANCE).sqrt_()
        preactivations = torch.addmm(mean_bias, inputs, mean_weight.T).addcmul_(scale, noise)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(inputs, mean_weight, variance_weight, noise.div_(scale))
        return preactivations

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = gradients
        inputs, mean_weight, variance_weight, noise_over_scale = ctx.saved_tensors
        through_scale = torch.mm(u * noise_over_scale, variance_weight)
        return (torch.addcmul(u @ mean_weight, inputs, through_scale), None, None, None, None, None, None)


def example() -> Linear:
    """A small layer, for docs and laws."""
    return Linear("layer", 3, 2)
