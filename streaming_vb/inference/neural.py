"""The frame shared by gradient primitives: score, H minibatch steps from the prior mean, evidence as output.

Every step runs the model with local reparameterization at fixed weight variance, takes one backward pass to the
pre-activations, and reads off the gradient and the diagonal of the per-record squared gradients. What differs between
primitives is one function: how the mean moves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streaming_vb.buffers import empty_like
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.linear import TapeEntry
from streaming_vb.models.neural import NeuralModel
from streaming_vb.objectives import elbo
from streaming_vb.seeding import torch_generator
from streaming_vb.types import FitState, NaturalParameters, Records

_SCORE_ROWS = 1000
"""Records scored at once: bounds memory for large intervals."""


@dataclass(slots=True, eq=False)
class Buffers:
    """Vectors [P] that a step reads and writes; `shift` is m - m_t, the move away from the prior mean."""

    shift: Tensor
    gradient: Tensor
    squared: Tensor


Step = Callable[[Buffers, int], None]
"""Move `shift`, given gradient and squared gradient (sums over the minibatch) and the minibatch size M."""


def fit(
    model: NeuralModel,
    prior: NaturalParameters,
    served: NaturalParameters,
    records: Records,
    seed: int,
    batch_size: int,
    step: Step,
) -> tuple[NaturalParameters, float]:
    """Evidence of the records and their score at the snapshot (nats per record).

    The evidence is d(precision) = F and d(precision mean) = S_t (m_loc - m_t) + F m_loc, with F summed over the steps,
    each at its own weights and noise, and S_t the precision of `prior`: this form has no cancellation.
    """
    x = torch.from_numpy(np.array(records["x"], dtype=np.float32))
    vectors = [torch.from_numpy(empty_like(prior["precision"], np.float32)) for _ in range(7)]
    mean_start, variance, mean, evidence, shift, gradient, squared = vectors
    np.divide(prior["precision_mean"], prior["precision"], out=mean_start.numpy())
    np.divide(np.float32(1), served["precision"], out=variance.numpy())
    layout = model.layout
    score = score_at_mean(model, layout, mean_start, x, torch_generator(seed, "score"))

    mean.copy_(mean_start)
    evidence.zero_()
    weights = Weights(layout.views(mean), layout.views(variance))
    buffers = Buffers(shift.zero_(), gradient, squared)
    views = layout.views(gradient), layout.views(squared)
    generator = torch_generator(seed, "noise")
    for minibatch in x.split(batch_size):
        _differentiate(model, weights, minibatch, generator, *views)
        evidence += squared
        step(buffers, len(minibatch))
        torch.add(mean_start, shift, out=mean)

    precision_mean = np.multiply(prior["precision"], shift.numpy(), out=shift.numpy())
    precision_mean += mean.mul_(evidence).numpy()
    return NaturalParameters({"precision_mean": precision_mean, "precision": evidence.numpy()}), score


def score_at_mean(model: NeuralModel, layout: Layout, mean: Tensor, x: Tensor, generator: torch.Generator) -> float:
    """Mean ELBO of x [n, D] at the weights `mean` [P], nats per record."""
    weights = Weights(layout.views(mean))
    with torch.no_grad():
        parts = [elbo(model.terms(weights, rows, generator)) for rows in x.split(_SCORE_ROWS)]
    return float(torch.cat(parts).double().mean())


def _differentiate(
    model: NeuralModel,
    weights: Weights,
    x: Tensor,
    generator: torch.Generator,
    gradient: dict[str, Tensor],
    squared: dict[str, Tensor],
) -> None:
    """Write the gradient of -sum ELBO, and the sum of squared per-record gradients, to the views."""
    tape: list[TapeEntry] = []
    loss = -elbo(model.terms(weights, x, generator, tape=tape)).sum()
    gradients_u = torch.autograd.grad(loss, [entry.preactivations for entry in tape])
    with torch.no_grad():
        for entry, u in zip(tape, gradients_u, strict=True):
            entry.layer.gradient(entry, u, gradient)
            entry.layer.squared_gradient(entry, u, squared)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads: the number changes the order of float sums, and with it the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_tensor(state: FitState, name: str) -> Tensor:
    """A writable copy of an array of the fit state; the snapshot's own array is shared and read-only."""
    copy = empty_like(state[name], np.float32)
    np.copyto(copy, state[name])
    return torch.from_numpy(copy)
