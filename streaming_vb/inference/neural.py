"""The frame shared by gradient primitives: score, H minibatch steps from the prior mean, evidence as output.

Every step runs the model with local reparameterization at fixed weight variance, takes one backward pass to the
pre-activations, and reads off the gradient and the diagonal of the per-record squared gradients. What differs between
primitives is one function: how the mean moves.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streaming_vb.buffers import empty_like
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.linear import TapeEntry
from streaming_vb.models.neural import NeuralModel
from streaming_vb.objectives import elbo
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Array, Fit, FitState, NaturalParameters, Records

_SCORE_ROWS = 1000
"""Records scored at once: bounds memory for large intervals."""
_BLOCK = 131_072
"""Weights per block of an update: its vectors stay near the core from one line to the next, and calls stay few."""


class Block(NamedTuple):
    """Views of one block of the vectors [P] of a fit.

    Attributes:
        start: m_t, the prior mean.
        shift: m - m_t, what an update moves.
        mean: m; rewritten after every update, which may use it as room.
        gradient: moving average of the mean gradient over minibatches.
        squared: mean over the minibatch of the squared per-record gradients; an update may use it as room.
        evidence: F, sum of the squared gradients so far.
    """

    start: Tensor
    shift: Tensor
    mean: Tensor
    gradient: Tensor
    squared: Tensor
    evidence: Tensor


Update = Callable[[Block, tuple[Tensor, ...], int], None]
"""Move `shift` in place: given a block, that of the primitive's own vectors, and the step's number (from 1)."""


class Rule(NamedTuple):
    """What differs between gradient primitives: how the mean moves.

    Attributes:
        name: as a user types it.
        initial: vectors of the fit state by name, and their value at the very start. One of them is the momentum.
        decay: of the momentum where the frame keeps it, as `Block.gradient`; 0 where the rule does, which then sees the
            gradient there.
        move: (block, own vectors and a p S_t / |C|, step size, steps of the whole run) moves `block.shift` in place.
    """

    name: str
    initial: Mapping[str, float]
    decay: float
    move: Callable[[Block, tuple[Tensor, ...], float, int], None]


@dataclass(frozen=True, slots=True)
class GradientPrimitive:
    """A local fit by gradient steps; settings are bound by the `build` of a rule's module.

    Attributes:
        model: what to fit.
        rule: how the mean moves.
        batch_size: M, records per local step.
        step_size: a.
        pull: p, strength of the proximal pull to the prior mean.
        num_threads: torch threads of a fit; part of the settings, because it changes float sums.
    """

    model: NeuralModel
    rule: Rule
    batch_size: int
    step_size: float
    pull: float
    num_threads: int

    def describe(self) -> Mapping[str, object]:
        """Settings that determine a fit."""
        return {
            "primitive": self.rule.name,
            "step_size": self.step_size,
            "pull": self.pull,
            "torch_threads": self.num_threads,
        }

    def initial_state(self) -> FitState:
        """The rule's vectors, and no steps taken."""
        size = self.model.layout.num_weights
        vectors = {name: np.full(size, value, np.float32) for name, value in self.rule.initial.items()}
        return {**vectors, "steps": np.zeros((), np.int64)}

    def __call__(
        self, prior: NaturalParameters, served: NaturalParameters, fit_state: FitState, records: Records, seed: int
    ) -> Fit:
        """H = ceil(|C| / M) steps from the prior mean."""
        steps = int(fit_state["steps"])
        vectors = {name: _writable(fit_state[name]) for name in self.rule.initial}
        scaled_prior = _empty(prior["precision"])
        factor = np.float32(self.step_size * self.pull / len(records))
        np.multiply(prior["precision"], factor, out=scaled_prior.numpy())
        kept = "momentum" if self.rule.decay else None  # by the frame

        def update(block: Block, own: tuple[Tensor, ...], number: int) -> None:
            self.rule.move(block, own, self.step_size, steps + number)

        with torch_threads(self.num_threads):
            natural, score = fit(
                self.model,
                prior,
                served,
                records,
                seed,
                batch_size=self.batch_size,
                gradient=vectors[kept] if kept else torch.zeros_like(scaled_prior),
                decay=self.rule.decay,
                own=(*(vector for name, vector in vectors.items() if name != kept), scaled_prior),
                update=update,
            )
        steps += math.ceil(len(records) / self.batch_size)
        arrays = {name: vector.numpy() for name, vector in vectors.items()}
        return Fit(natural, {**arrays, "steps": np.asarray(steps, np.int64)}, score)

    def cautious(self) -> "GradientPrimitive":
        """A tenth of the step size."""
        return replace(self, step_size=self.step_size / 10)


def fit(
    model: NeuralModel,
    prior: NaturalParameters,
    served: NaturalParameters,
    records: Records,
    seed: int,
    *,
    batch_size: int,
    gradient: Tensor,
    decay: float,
    own: tuple[Tensor, ...],
    update: Update,
) -> tuple[NaturalParameters, float]:
    """Evidence of the records and their score at the snapshot (nats per record).

    The evidence is d(precision) = F and d(precision mean) = S_t (m_loc - m_t) + F m_loc, with F summed over the steps,
    each at its own weights and noise, and S_t the precision of `prior`: this form has no cancellation.

    Args:
        batch_size: M, records per step.
        gradient: [P]; a step makes it decay gradient + (1 - decay) (mean gradient of the minibatch).
        decay: of that moving average; 0 for the gradient alone.
        own: the primitive's own vectors [P], which its update reads and writes.
        update: how the mean moves.
    """
    x = torch.from_numpy(np.require(records["x"], np.float32, "W"))
    start, variance, mean, shift, squared, evidence = (_empty(prior["precision"]) for _ in range(6))
    np.divide(prior["precision_mean"], prior["precision"], out=start.numpy())
    layout = model.layout
    score = score_at_mean(model, layout, start, x, torch_generator(seed, "score"))

    np.divide(np.float32(1), served["precision"], out=variance.numpy())
    mean.copy_(start)
    shift.zero_()
    evidence.zero_()
    weights = Weights(layout.views(mean), layout.views(variance))
    views = layout.views(gradient), layout.views(squared)
    blocks = [Block(*parts) for parts in _blocks(start, shift, mean, gradient, squared, evidence)]
    own_blocks = _blocks(*own)
    generator = torch_generator(seed, "noise")
    for number, minibatch in enumerate(x.split(batch_size), start=1):
        squared.zero_()  # weights that no layer used have no evidence
        _differentiate(model, weights, minibatch, generator, *views, decay)
        for block, own_block in zip(blocks, own_blocks, strict=True):
            block.evidence.add_(block.squared, alpha=len(minibatch))
            update(block, own_block, number)
            torch.add(block.start, block.shift, out=block.mean)

    precision_mean = shift.numpy()
    np.multiply(precision_mean, prior["precision"], out=precision_mean)
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
    decay: float,
) -> None:
    """Add the mean gradient of -ELBO to its moving average, and write the mean of squared per-record gradients."""
    tape: list[TapeEntry] = []
    loss = -elbo(model.terms(weights, x, generator, tape=tape)).sum()
    gradients_u = torch.autograd.grad(loss, [entry.preactivations for entry in tape])
    with torch.no_grad():
        for entry, u in zip(tape, gradients_u, strict=True):
            entry.layer.gradient(entry, u, gradient, decay=decay, weight=(1 - decay) / len(x))
            entry.layer.squared_gradient(entry, u, squared, weight=1 / len(x))


def _blocks(*vectors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(vector.split(_BLOCK) for vector in vectors), strict=True))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads: the number changes the order of float sums, and with it the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _writable(array: Array) -> Tensor:
    """A copy of an array of the fit state; the snapshot's own array is shared and read-only."""
    tensor = _empty(array)
    np.copyto(tensor.numpy(), array)
    return tensor


def _empty(like: Array) -> Tensor:
    """An uninitialised float32 tensor; its memory was in use before, so it costs no page faults."""
    return torch.from_numpy(empty_like(like, np.float32))
