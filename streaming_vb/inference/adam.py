"""Adam local fits (Kingma and Ba 2015) with a proximal pull to the prior mean; the evidence is that of every neural
fit.

v <- b2 v + (1 - b2) g^2,  m <- m - a g^ / (sqrt(v^) + e),  m <- (m + k m_t) / (1 + k),  k = a p S_t / (|C| (sqrt(v^) +
e))
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

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
        scaled_prior = torch.from_numpy(prior["precision"] * np.float32(self.step_size * self.pull / len(records)))

        def step(buffers: neural.Buffers, num_records: int) -> None:
            nonlocal steps
            steps += 1
            gradient = buffers.gradient.div_(num_records)
            momentum.lerp_(gradient, 1 - MOMENTUM)
            squared.mul_(SQUARED_DECAY).addcmul_(gradient, gradient, value=1 - SQUARED_DECAY)
            denominator = (squared / (1 - SQUARED_DECAY**steps)).sqrt_().add_(EPSILON)
            buffers.shift.addcdiv_(momentum, denominator, value=-self.step_size / (1 - MOMENTUM**steps))
            buffers.shift.mul_(denominator).div_(denominator + scaled_prior)

        with neural.torch_threads(self.num_threads):
            natural, score = neural.fit(self.model, prior, served, records, seed, self.batch_size, step)
        state = {
            "momentum": momentum.numpy(),
            "squared": squared.numpy(),
            "steps": np.asarray(steps, np.int64),
        }
        return Fit(natural, state, score)

    def cautious(self) -> "Adam":
        """A tenth of the step size."""
        return replace(self, step_size=self.step_size / 10)
