"""Kronecker-factored natural gradient (K-FAC: Martens and Grosse 2015), with local reparameterization.

The Fisher matrix of a linear layer is approximated by A (x) G, with A = E[a a'] over its inputs (with a constant 1 for
the bias) and G = E[u u'] over the gradients of its pre-activations. Per minibatch of M records:

    A, G <- moving averages, decay exp(-M / 7600)
    D = (G + d1 I)^-1 (gradient / M) (A + d2 I)^-1        the two dampings share one constant (their section 6.3)
    v <- 0.9 v + nu D,  nu = min(1, sqrt(K M / <D, gradient / M>))      trust region: K M nats for a = 1
    m <- m - a v

There is no pull to the prior mean, which would bend the direction of every step: the trust region bounds how far a fit
goes, and the merge weighs it against its prior by precision.

D is formed as (U G^-1)' (A A^-1): two solves with M right-hand sides instead of two products with the weights' shape.
The Cholesky factors are computed once per fit, and every ten steps of a long one. The posterior and the evidence stay
diagonal, as with every primitive: the factors are fit state, which the server averages, and shape the step alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import ConfigError
from streaming_vb.inference.neural import Block, fit, require_bound, torch_threads, writable
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.tape import TapeEntry
from streaming_vb.models.neural import NeuralModel
from streaming_vb.objectives import AbstractObjective, Elbo
from streaming_vb.types import Array, Fit, FitState, NaturalParameters, Records

MOMENTUM = 0.9
FACTOR_WINDOW = 7_600
"""Records in the averages of A and G."""
DAMPING = 2_400
"""d, in records: the gradient of a small minibatch is noisier, and is trusted less. On MNIST in one pass, test ELBO in
nats per image: d / M = 3 / 10 with 75 minibatches of 800 -125.7 / -127.6; d / M = 3 / 10 / 30 with 600 of 100
-126.8 / -119.1 / -116.7."""
TRUST_REGION = 1 / 80
"""K, nats per record of the minibatch."""
FACTORIZATION_PERIOD = 10
"""Steps that the Cholesky factors serve."""


def build(
    model: NeuralModel,
    *,
    batch_size: int = 100,
    step_size: float = 1.0,
    objective: AbstractObjective = Elbo(),
    num_threads: int = 1,
) -> "Kronecker":
    """The Kronecker-factored primitive of a model; arguments as in `natural_gradient.build`.

    Raises:
        ConfigError: a layer of the model is not linear.
    """
    return Kronecker(model, batch_size, step_size, objective, num_threads)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """A local fit by Kronecker-factored natural-gradient steps; settings are bound by `build`."""

    model: NeuralModel
    batch_size: int
    step_size: float
    objective: AbstractObjective
    num_threads: int

    def __post_init__(self) -> None:
        require_bound(self.objective, self.model)
        others = [layer.name for layer in self.model.layers if not isinstance(layer, Linear)]
        if others:
            raise ConfigError(
                f"kronecker needs linear layers, and {', '.join(others)} are not. Type --primitive natural-gradient"
            )

    def describe(self) -> Mapping[str, object]:
        """Settings that determine a fit."""
        return {
            "primitive": "kronecker",
            "step_size": self.step_size,
            **self.objective.describe(),
            "torch_threads": self.num_threads,
        }

    def initial_state(self) -> FitState:
        """No momentum, and factors without any weight in their averages."""
        state: dict[str, Array] = {"momentum": np.zeros(self.model.layout.num_weights, np.float32)}
        for layer in self.model.layers:
            for name, size in (
                (_inputs(layer.name), layer.num_inputs + 1),
                (_gradients(layer.name), layer.num_outputs),
            ):
                state[name] = np.zeros((size, size), np.float32)
        return {**state, "mass": np.zeros((), np.float32)}

    def __call__(
        self, prior: NaturalParameters, served: NaturalParameters, fit_state: FitState, records: Records, seed: int
    ) -> Fit:
        """H = ceil(|C| / M) steps from the prior mean."""
        state = {name: writable(array) for name, array in fit_state.items()}
        curvature = _Curvature(state, self.objective.averages)

        def update(block: Block, own: tuple[Tensor, ...], number: int) -> None:
            del own, number
            block.shift.sub_(block.gradient, alpha=self.step_size)

        with torch_threads(self.num_threads):
            natural, score = fit(
                self.model,
                prior,
                served,
                records,
                seed,
                objective=self.objective,
                batch_size=self.batch_size,
                gradient=state["momentum"],
                accumulate=curvature.accumulate,
                own=(),
                update=update,
            )
        return Fit(natural, {name: tensor.numpy() for name, tensor in state.items()}, score)

    def cautious(self) -> "Kronecker":
        """A tenth of the step size."""
        return replace(self, step_size=self.step_size / 10)

    def after(self, num_records: int) -> "Kronecker":
        """The objective as it is by then."""
        objective = self.objective.after(num_records)
        return self if objective is self.objective else replace(self, objective=objective)


class _Curvature:
    """The factors during one fit, and their Cholesky factors.

    Args:
        state: fit state; the factors and the mass of their averages are updated in place.
        averages: whether the objective averages its draws (`AbstractObjective`).
    """

    def __init__(self, state: Mapping[str, Tensor], averages: bool) -> None:
        self.state, self.averages = state, averages
        self.cholesky: dict[str, Tensor] = {}
        self.steps = 0

    def accumulate(
        self, tape: list[TapeEntry], gradients_u: tuple[Tensor, ...], average: dict[str, Tensor], size: int
    ) -> None:
        """Update the factors, and v, with one minibatch."""
        rows = [(entry.layer.name, u, _with_constant(entry.inputs)) for entry, u in zip(tape, gradients_u, strict=True)]
        self._average(rows, size)
        if self.steps % FACTORIZATION_PERIOD == 0:
            for name, _, _ in rows:
                self._factorize(name, DAMPING / size)
        self.steps += 1
        solved = [(self._solve(_gradients(name), u), self._solve(_inputs(name), a)) for name, u, a in rows]
        weight = self._shortening(rows, solved, size) / size
        for (name, _, _), (u, a) in zip(rows, solved, strict=True):
            average[f"{name}.weight"].addmm_(u.T, a[:, :-1], beta=MOMENTUM, alpha=weight)
            average[f"{name}.bias"].addmv_(u.T, a[:, -1], beta=MOMENTUM, alpha=weight)

    def _average(self, rows: list[tuple[str, Tensor, Tensor]], size: int) -> None:
        """A and G; where draws are averaged, a row of a record drawn S times carries 1/S of its gradient."""
        decay = math.exp(-size / FACTOR_WINDOW)
        self.state["mass"].lerp_(torch.ones(()), 1 - decay)
        for name, u, a in rows:
            draws = len(u) / size if self.averages else 1.0
            self.state[_inputs(name)].addmm_(a.T, a, beta=decay, alpha=(1 - decay) / len(a))
            self.state[_gradients(name)].addmm_(u.T, u, beta=decay, alpha=(1 - decay) * draws / size)

    def _factorize(self, name: str, damping: float) -> None:
        """Cholesky factors of A + pi sqrt(d) I and G + sqrt(d) / pi I, pi^2 = mean eigenvalue of A / that of G."""
        inputs, gradients = (self.state[key] / self.state["mass"] for key in (_inputs(name), _gradients(name)))
        balance = torch.sqrt(inputs.diagonal().mean() / gradients.diagonal().mean().clamp_min(1e-12))
        inputs.diagonal().add_(balance * math.sqrt(damping))
        gradients.diagonal().add_(math.sqrt(damping) / balance)
        self.cholesky[_inputs(name)] = _cholesky(inputs)
        self.cholesky[_gradients(name)] = _cholesky(gradients)

    def _solve(self, factor: str, rows: Tensor) -> Tensor:
        """rows times the inverse of a damped factor."""
        return torch.cholesky_solve(rows.T, self.cholesky[factor]).T

    def _shortening(
        self, rows: list[tuple[str, Tensor, Tensor]], solved: list[tuple[Tensor, Tensor]], size: int
    ) -> float:
        """nu. <D, g> = sum over pairs of records of (u'_i u_j) (a'_i a_j) needs neither matrix."""
        pairs = zip(rows, solved, strict=True)
        inner = sum(float(((u_ @ u.T) * (a_ @ a.T)).sum()) for (_, u, a), (u_, a_) in pairs)
        return min(1.0, math.sqrt(TRUST_REGION * size / (inner / size**2))) if inner > 0 else 1.0


def _cholesky(factor: Tensor) -> Tensor:
    """Its Cholesky factor. One that fails leaves numbers without meaning: NaN instead has the fit tried again."""
    found = torch.linalg.cholesky_ex(factor)
    cholesky: Tensor = found.L
    return cholesky.masked_fill_(found.info != 0, math.nan)


def _inputs(name: str) -> str:
    """Name of A in the fit state."""
    return f"{name}.inputs"


def _gradients(name: str) -> str:
    """Name of G in the fit state."""
    return f"{name}.gradients"


def _with_constant(inputs: Tensor) -> Tensor:
    """The inputs and the bias's 1 [B, I + 1]."""
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
