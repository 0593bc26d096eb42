"""Adam local fits (Kingma and Ba 2015) with a proximal pull to the prior mean; the evidence is that of every fit.

v <- b2 v + (1 - b2) g^2,  m <- m - a g^ / d,  m <- (m + k m_t) / (1 + k)
d = sqrt(v^) + e,  k = a p S_t / (|C| d)
"""

import math

import torch
from torch import Tensor

from streaming_vb.inference.neural import Block, GradientPrimitive, Rule
from streaming_vb.models.neural import NeuralModel
from streaming_vb.objectives import AbstractObjective, Elbo

MOMENTUM = 0.9
SQUARED_DECAY = 0.999
EPSILON = 1e-8


def build(
    model: NeuralModel,
    *,
    batch_size: int = 100,
    step_size: float = 0.005,
    pull: float = 0.3,
    objective: AbstractObjective = Elbo(),
    max_norm: float = math.inf,
    num_threads: int = 1,
) -> GradientPrimitive:
    """The Adam primitive of a model; arguments as in `natural_gradient.build`."""
    return GradientPrimitive(model, RULE, batch_size, step_size, pull, objective, max_norm, num_threads)


def _move(block: Block, own: tuple[Tensor, ...], step_size: float, steps: int) -> None:
    """The updates of the module's docstring on one block, in place; `block.gradient` is the gradient."""
    momentum, squared, scaled_prior = own
    momentum.lerp_(block.gradient, 1 - MOMENTUM)
    squared.mul_(SQUARED_DECAY).addcmul_(block.gradient, block.gradient, value=1 - SQUARED_DECAY)
    denominator = torch.div(squared, 1 - SQUARED_DECAY**steps, out=block.squared).sqrt_().add_(EPSILON)
    block.shift.addcdiv_(momentum, denominator, value=-step_size / (1 - MOMENTUM**steps))
    block.shift.mul_(denominator).div_(denominator.add_(scaled_prior))


RULE = Rule("adam", {"momentum": 0.0, "squared": 0.0}, 0.0, _move)
