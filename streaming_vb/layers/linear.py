"""Linear layer with normal weights, by local reparameterization (Kingma, Salimans and Welling 2015, section 2.2).

Weights W ~ N(M, V) make the pre-activations of one record normal, with mean A M' and variance A^2 V'. Drawing *them*,
fresh for every record, costs one more matrix product instead of a weight matrix per record, and makes the covariance
between the records of a minibatch zero.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streaming_vb.layers.layout import Weights

_LEAST_VARIANCE = 1e-12
"""An all-zero record without bias has variance 0, and 0 / 0 in the backward pass would be NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class TapeEntry:
    """What one layer did in a forward pass; with the gradient U of its pre-activations it gives every weight gradient.

    Attributes:
        inputs: A [B, I].
        squared_inputs: A * A [B, I].
        preactivations: [B, O].
    """

    layer: "Linear"
    inputs: Tensor
    squared_inputs: Tensor
    preactivations: Tensor


@dataclass(frozen=True, slots=True)
class Linear:
    """I inputs to O outputs; weights `name.weight` [O, I] and `name.bias` [O]."""

    name: str
    num_inputs: int
    num_outputs: int

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
        """Pre-activations [B, O] of inputs [B, I]: one draw per record, or their mean where the weights have no
        variance."""
        mean_weight, mean_bias = weights.mean[self.weight], weights.mean[self.bias]
        if weights.variance is None:
            return torch.addmm(mean_bias, inputs, mean_weight.T)
        squared_inputs = inputs.detach().square()
        noise = torch.randn(inputs.shape[0], self.num_outputs, generator=generator)
        preactivations: Tensor = _LocalReparameterization.apply(  # type: ignore[no-untyped-call]
            inputs,
            squared_inputs,
            mean_weight,
            mean_bias,
            weights.variance[self.weight],
            weights.variance[self.bias],
            noise,
        )
        if tape is not None:
            if not preactivations.requires_grad:  # first layer: nothing below it asks for a gradient
                preactivations.requires_grad_()
            tape.append(TapeEntry(self, inputs.detach(), squared_inputs, preactivations))
        return preactivations

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
    d)."""

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
        scale = scale.clamp_min_(_LEAST_VARIANCE).sqrt_()
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
