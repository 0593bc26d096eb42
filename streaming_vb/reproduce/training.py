"""Training by autograd with Adam (Kingma and Ba 2015): for the peers of the library's own fits, and for layers whose
prior no stream can start from."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from streaming_vb.models.neural import Minibatch, NeuralModel
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.prepared import remaining
from streaming_vb.types import Source


def adam(
    parameters: Mapping[str, Tensor],
    loss: Callable[[Minibatch], Tensor],
    minibatches: Iterable[Minibatch],
    rate: float,
) -> Iterator[int]:
    """One step of Adam per minibatch; yields the number of steps taken, after each.

    Args:
        parameters: tensors that ask for gradients, by name; the steps move them in place.
        loss: of a minibatch, a scalar.
        minibatches: read one at a time.
        rate: step size.

    >>> weights = {"w": torch.zeros(1, requires_grad=True)}
    >>> for step in adam(weights, lambda rows: (rows["x"] - weights["w"]).square().mean(), [{"x": torch.ones(3)}], 0.5):
    ...     print(step, round(weights["w"].item(), 4))
    1 0.5
    """
    optimizer = torch.optim.Adam(parameters.values(), lr=rate, fused=True)
    for number, minibatch in enumerate(minibatches, start=1):
        optimizer.zero_grad()
        loss(minibatch).backward()
        optimizer.step()
        yield number


def prior_centre(model: NeuralModel, seed: int) -> dict[str, Tensor]:
    """Point weights that ask for gradients, by name, where a streamed fit with this seed starts: the prior's mean."""
    flat = torch.from_numpy(model.family.mean(model.prior(seed)).astype(np.float32))
    return {name: view.clone().requires_grad_() for name, view in model.layout.views(flat).items()}


def minibatches(source: Source, records: int, batch_size: int) -> Iterator[Minibatch]:
    """The field x of a source [B, D], float32: the records that a run of the library reads, in the same order."""
    for interval in remaining(source, Ledger(), batch_size, records):
        yield {"x": torch.from_numpy(np.require(source.read(interval)["x"], np.float32, "W"))}
