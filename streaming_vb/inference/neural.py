"""The frame shared by gradient primitives: score, H minibatch steps from the prior mean, evidence as output.

Every step runs the model with local reparameterization at fixed weight variance, takes one backward pass to the
pre-activations, and reads off the gradient and the diagonal of the per-record squared gradients. What differs between
primitives is one function: how the mean moves.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streaming_vb.buffers import empty_like
from streaming_vb.errors import ConfigError
from streaming_vb.layers.estimators import shares_weights
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.tape import TapeEntry
from streaming_vb.models.neural import Minibatch, NeuralModel, minibatches
from streaming_vb.objectives import AbstractObjective, elbo
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
Accumulate = Callable[[list[TapeEntry], tuple[Tensor, ...], dict[str, Tensor], int], None]
"""Add a minibatch to the moving average of gradients: (tape, gradients U of its pre-activations, views of the average
by name, M)."""


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
        objective: what the steps ascend.
        max_norm: largest norm of the mean gradient of a minibatch; a longer one is shortened to it. inf: as it is.
        num_threads: torch threads of a fit; part of the settings, because it changes float sums.

    Raises:
        ConfigError: the objective needs draws that share their weights, and the model's layers draw them per record.
    """

    model: NeuralModel
    rule: Rule
    batch_size: int
    step_size: float
    pull: float
    objective: AbstractObjective
    max_norm: float
    num_threads: int

    def __post_init__(self) -> None:
        require_bound(self.objective, self.model)
        if not self.max_norm > 0:
            raise ConfigError(f"the largest gradient norm must be above 0, got {self.max_norm:g}")

    def describe(self) -> Mapping[str, object]:
        """Settings that determine a fit."""
        return {
            "primitive": self.rule.name,
            "step_size": self.step_size,
            "pull": self.pull,
            **self.objective.describe(),
            **({"max_norm": self.max_norm} if math.isfinite(self.max_norm) else {}),
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
        vectors = {name: writable(fit_state[name]) for name in self.rule.initial}
        scaled_prior = empty(prior["precision"])
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
                objective=self.objective,
                batch_size=self.batch_size,
                gradient=vectors[kept] if kept else torch.zeros_like(scaled_prior),
                accumulate=partial(add_gradient, decay=self.rule.decay, max_norm=self.max_norm),
                own=(*(vector for name, vector in vectors.items() if name != kept), scaled_prior),
                update=update,
            )
        steps += math.ceil(len(records) / self.batch_size)
        arrays = {name: vector.numpy() for name, vector in vectors.items()}
        return Fit(natural, {**arrays, "steps": np.asarray(steps, np.int64)}, score)

    def cautious(self) -> "GradientPrimitive":
        """A tenth of the step size."""
        return replace(self, step_size=self.step_size / 10)

    def after(self, num_records: int) -> "GradientPrimitive":
        """The objective as it is by then."""
        objective = self.objective.after(num_records)
        return self if objective is self.objective else replace(self, objective=objective)


def fit(
    model: NeuralModel,
    prior: NaturalParameters,
    served: NaturalParameters,
    records: Records,
    seed: int,
    *,
    objective: AbstractObjective,
    batch_size: int,
    gradient: Tensor,
    accumulate: Accumulate,
    own: tuple[Tensor, ...],
    update: Update,
) -> tuple[NaturalParameters, float]:
    """Evidence of the records and their score at the snapshot (nats per record).

    The evidence is d(precision) = F and d(precision mean) = S_t (m_loc - m_t) + F m_loc, with F summed over the steps,
    each at its own weights and noise, and S_t the precision of `prior`: this form has no cancellation.

    Args:
        objective: what the steps ascend; the score is the ELBO in any case.
        batch_size: M, records per step.
        gradient: moving average of gradients [P].
        accumulate: adds a minibatch to it.
        own: the primitive's own vectors [P], which its update reads and writes.
        update: how the mean moves.
    """
    start, variance, mean, shift, squared, evidence = (empty(prior["precision"]) for _ in range(6))
    np.divide(prior["precision_mean"], prior["precision"], out=start.numpy())
    layout = model.layout
    score = score_at_mean(model, layout, start, records, torch_generator(seed, "score"))

    np.divide(np.float32(1), served["precision"], out=variance.numpy())
    mean.copy_(start)
    shift.zero_()
    evidence.zero_()
    weights = Weights(layout.views(mean), layout.views(variance))
    gradient_views, squared_views = layout.views(gradient), layout.views(squared)
    blocks = [Block(*parts) for parts in _blocks(start, shift, mean, gradient, squared, evidence)]
    own_blocks = _blocks(*own) or [()] * len(blocks)
    generator = torch_generator(seed, "noise")
    for number, minibatch in enumerate(minibatches(model, records.fields, batch_size), start=1):
        squared.zero_()  # weights that no layer used have no evidence
        tape, gradients_u, size = _differentiate(model, objective, weights, minibatch, generator)
        with torch.no_grad():
            accumulate(tape, gradients_u, gradient_views, size)
            _square(tape, gradients_u, squared_views, size, objective)
        for block, own_block in zip(blocks, own_blocks, strict=True):
            block.evidence.add_(block.squared, alpha=size)
            update(block, own_block, number)
            torch.add(block.start, block.shift, out=block.mean)

    precision_mean = shift.numpy()
    np.multiply(precision_mean, prior["precision"], out=precision_mean)
    precision_mean += mean.mul_(evidence).numpy()
    return NaturalParameters({"precision_mean": precision_mean, "precision": evidence.numpy()}), score


def score_at_mean(
    model: NeuralModel, layout: Layout, mean: Tensor, records: Records, generator: torch.Generator
) -> float:
    """Mean ELBO of the records at the weights `mean` [P], nats per record."""
    weights = Weights(layout.views(mean))
    with torch.no_grad():
        parts = [
            elbo(model.terms(weights, rows, generator)) for rows in minibatches(model, records.fields, _SCORE_ROWS)
        ]
    return float(torch.cat(parts).double().mean())


def add_gradient(
    tape: list[TapeEntry],
    gradients_u: tuple[Tensor, ...],
    average: dict[str, Tensor],
    size: int,
    *,
    decay: float,
    max_norm: float,
) -> None:
    """average <- decay average + (1 - decay) (mean gradient of the minibatch, shortened to max_norm)."""
    factor = 1.0 if math.isinf(max_norm) else _shortening(tape, gradients_u, average, size, max_norm)
    for entry, u in zip(tape, gradients_u, strict=True):
        entry.layer.gradient(entry, u, average, decay=decay, weight=factor * (1 - decay) / size)


def require_bound(objective: AbstractObjective, model: NeuralModel) -> None:
    """Raise ConfigError if the objective needs draws that share their weights, and the layers draw them per record."""
    if objective.shares_weights and not shares_weights(model.estimator):
        raise ConfigError(
            f"{objective.name}: with weight noise per importance sample it is not a bound, and the layers draw by "
            f"{model.estimator.__name__}. Type --estimator shared or --estimator mean (estimator=... of the model)"
        )


def _differentiate(
    model: NeuralModel,
    objective: AbstractObjective,
    weights: Weights,
    minibatch: Minibatch,
    generator: torch.Generator,
) -> tuple[list[TapeEntry], tuple[Tensor, ...], int]:
    """The tape of a forward pass, the gradients of the loss by its pre-activations, and the number of records M."""
    tape: list[TapeEntry] = []
    terms = model.terms(weights, minibatch, generator, objective.num_samples, tape, objective.attached)
    surrogate = objective.surrogate(terms)
    gradients_u = torch.autograd.grad(-surrogate.sum(), [entry.preactivations for entry in tape])
    return tape, gradients_u, len(surrogate)


def _square(
    tape: list[TapeEntry],
    gradients_u: tuple[Tensor, ...],
    squared: dict[str, Tensor],
    size: int,
    objective: AbstractObjective,
) -> None:
    """Write the mean of squared per-record gradients.

    A record drawn S times is S rows of a layer below z. A row's gradient is 1/S of that draw's, so the mean of the
    draws' squares is S times the sum of the rows'. An importance-weighted row carries its own weight, and its square is
    taken as it is: evidence of the layers below z that is too small, by up to S.
    """
    for entry, u in zip(tape, gradients_u, strict=True):
        draws = len(u) // size if objective.averages else 1
        entry.layer.squared_gradient(entry, u, squared, weight=draws / size)


def _shortening(
    tape: list[TapeEntry], gradients_u: tuple[Tensor, ...], like: dict[str, Tensor], size: int, max_norm: float
) -> float:
    """min(1, max_norm / norm of the mean gradient)."""
    mean = {name: torch.empty_like(view) for name, view in like.items()}
    for entry, u in zip(tape, gradients_u, strict=True):
        entry.layer.gradient(entry, u, mean, weight=1 / size)
    norm = math.sqrt(sum(float(mean[name].square().sum()) for entry in tape for name in entry.layer.shapes()))
    return min(1.0, max_norm / norm) if norm else 1.0


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


def writable(array: Array) -> Tensor:
    """A copy of an array of the fit state; the snapshot's own array is shared and read-only."""
    tensor = empty(array)
    np.copyto(tensor.numpy(), array)
    return tensor


def empty(like: Array) -> Tensor:
    """An uninitialised float32 tensor; its memory was in use before, so it costs no page faults."""
    return torch.from_numpy(empty_like(like, np.float32))
