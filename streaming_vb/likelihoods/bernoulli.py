"""Bernoulli likelihood of binary data: x_d ~ Bernoulli(sigmoid(outputs_d))."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from streaming_vb.errors import DataError
from streaming_vb.types import Array


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Binary data; one output, the logit, per column.

    >>> Bernoulli().log_prob(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).round(decimals=4)
    tensor([-1.3863])
    """

    name: str = "bernoulli"
    outputs_per_column: int = 1

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """sum_d [ x_d l_d - log(1 + exp l_d) ] for logits l [..., B, D] and x [B, D]; nats per record [..., B]."""
        target = x.expand_as(outputs)
        return -functional.binary_cross_entropy_with_logits(outputs, target, reduction="none").sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """E[x] = sigmoid(outputs) [..., D]."""
        return torch.sigmoid(outputs)

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x [..., D]."""
        return torch.bernoulli(torch.sigmoid(outputs), generator=generator)

    def fisher(self, outputs: Tensor) -> Tensor:
        """Fisher information of x in the outputs, nats [..., D, D]: diag(p (1 - p))."""
        return torch.diag_embed(torch.sigmoid(outputs) * torch.sigmoid(-outputs))

    def validate(self, x: Array, first_record: int = 0) -> None:
        """Raise DataError unless every value is 0 or 1; row 0 is called `first_record`."""
        wrong = (x != 0) & (x != 1)
        if wrong.any():
            row, column = divmod(int(wrong.argmax()), x.shape[1])
            raise DataError(
                f"bernoulli likelihood needs values 0 or 1; record {first_record + row} column {column} holds "
                f"{x[row, column]:g}. Binarize the source, or use the normal likelihood (--likelihood normal)"
            )


def example() -> tuple[Bernoulli, int]:
    """The likelihood and a number of columns, for docs and laws."""
    return Bernoulli(), 3
