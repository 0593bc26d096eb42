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
    mean_start = torch.from_numpy(prior["precision_mean"] / prior["precision"])
    variance = torch.from_numpy(1.0 / served["precision"])
    layout = model.layout
    score = score_at_mean(model, layout, mean_start, x, torch_generator(seed, "score"))

    mean = mean_start.clone()
    weights = Weights(layout.views(mean), layout.views(variance))
    size = mean.numel()
    buffers = Buffers(torch.zeros(size), torch.zeros(size), torch.zeros(size))
    views = layout.views(buffers.gradient), layout.views(buffers.squared)
    evidence = torch.zeros(size)
    generator = torch_generator(seed, "noise")
    for minibatch in x.split(batch_size):
        _differentiate(model, weights, minibatch, generator, *views)
        evidence += buffers.squared
        step(buffers, len(minibatch))
        torch.add(mean_start, buffers.shift, out=mean)

    precision_mean = prior["precision"] * buffers.shift.numpy() + (evidence * mean).numpy()
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
    return torch.from_numpy(np.array(state[name], dtype=np.float32))
