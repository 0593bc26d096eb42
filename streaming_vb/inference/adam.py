"""Adam local fits (Kingma and Ba 2015) with a proximal pull to the prior mean; the evidence is that of every neural
fit.

v <- b2 v + (1 - b2) g^2,  m <- m - a g^ / (sqrt(v^) + e),  m <- (m + k m_t) / (1 + k),  k = a p S_t / (|C| (sqrt(v^) +
e))
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streaming_vb.inference import neural
from streaming_vb.models.neural import NeuralModel
from streaming_vb.types import Fit, FitState, NaturalParameters, Records

MOMENTUM = 0.9
SQUARED_DECAY = 0.999
EPSILON = 1e-8


def build(
    model: NeuralModel,
    *,
    batch_size: int = 100,
    step_size: float = 0.005,
    pull: float = 0.3,
    num_threads: int = 1,
) -> "Adam":
    """The Adam primitive of a model; arguments as in `natural_gradient.build`."""
    return Adam(model, batch_size, step_size, pull, num_threads)


@dataclass(frozen=True, slots=True)
class Adam:
    """Bound settings; see `build`."""

    model: NeuralModel
    batch_size: int
    step_size: float
    pull: float
    num_threads: int

    def describe(self) -> Mapping[str, object]:
        """Settings that determine a fit."""
        return {
            "primitive": "adam",
            "step_size": self.step_size,
            "pull": self.pull,
            "torch_threads": self.num_threads,
        }

    def initial_state(self) -> FitState:
        """Both moments 0, no steps taken."""
        size = self.model.layout.num_weights
        return {
            "momentum": np.zeros(size, np.float32),
            "squared": np.zeros(size, np.float32),
            "steps": np.zeros((), np.int64),
        }

    def __call__(
        self, prior: NaturalParameters, served: NaturalParameters, fit_state: FitState, records: Records, seed: int
    ) -> Fit:
        """H = ceil(|C| / M) steps from the prior mean."""
        momentum, squared = neural.as_tensor(fit_state, "momentum"), neural.as_tensor(fit_state, "squared")
        steps = int(fit_state["steps"])
        scaled_prior = neural.empty(prior["precision"])
        factor = np.float32(self.step_size * self.pull / len(records))
        np.multiply(prior["precision"], factor, out=scaled_prior.numpy())
        gradient = torch.zeros_like(momentum)

        def update(block: neural.Block, own: tuple[Tensor, ...], number: int) -> None:
            _update(block, own, self.step_size, steps + number)

        with neural.torch_threads(self.num_threads):
            natural, score = neural.fit(
                self.model,
                prior,
                served,
                records,
                seed,
                batch_size=self.batch_size,
                gradient=gradient,
                decay=0.0,
                own=(momentum, squared, scaled_prior),
                update=update,
            )
        steps += math.ceil(len(records) / self.batch_size)
        state = {
            "momentum": momentum.numpy(),
            "squared": squared.numpy(),
            "steps": np.asarray(steps, np.int64),
        }
        return Fit(natural, state, score)

    def cautious(self) -> "Adam":
        """A tenth of the step size."""
        return replace(self, step_size=self.step_size / 10)


def _update(block: neural.Block, own: tuple[Tensor, ...], step_size: float, steps: int) -> None:
    """The four updates of the module's docstring on one block, in place."""
    momentum, squared, scaled_prior = own
    momentum.lerp_(block.gradient, 1 - MOMENTUM)
    squared.mul_(SQUARED_DECAY).addcmul_(block.gradient, block.gradient, value=1 - SQUARED_DECAY)
    denominator = torch.div(squared, 1 - SQUARED_DECAY**steps, out=block.squared).sqrt_().add_(EPSILON)
    block.shift.addcdiv_(momentum, denominator, value=-step_size / (1 - MOMENTUM**steps))
    block.shift.mul_(denominator).div_(denominator.add_(scaled_prior))
