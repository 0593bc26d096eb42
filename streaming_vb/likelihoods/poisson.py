"""Poisson likelihood of counts: x_d ~ Poisson(exp(s_d)), the log rate from the decoder."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import DataError
from streaming_vb.types import Array

_GREATEST_LOG_RATE = 16.0
"""Smooth bound on |s|: rates from 1e-7 to 9e6. A column that is always 0 would otherwise drive its log rate to minus
infinity, and one large step of a fit would make the rate overflow."""
_GREATEST_COUNT = 2**24 - 1
"""Up to here float32 holds every whole number; far above the greatest rate, so that samples are valid data."""


@dataclass(frozen=True, slots=True)
class Poisson:
    """Counts 0, 1, 2, ...; one output per column, the raw log rate l, bounded smoothly: s = 16 tanh(l / 16).

    >>> Poisson().log_prob(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]])).round(decimals=4)
    tensor([-2.6931])
    """

    name: str = "poisson"
    outputs_per_column: int = 1

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """sum_d [ x_d s_d - exp(s_d) - log x_d! ] for raw log rates [..., B, D] and x [B, D]; nats per record
        [..., B]."""
        log_rate = _bound(outputs)
        return (x * log_rate - torch.exp(log_rate) - torch.lgamma(x + 1)).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """E[x] = exp(s) [..., D]."""
        return torch.exp(_bound(outputs))

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x [..., D]."""
        return torch.poisson(self.mean(outputs), generator=generator)

    def fisher(self, outputs: Tensor) -> Tensor:
        """Fisher information of x in the outputs, nats [..., D, D]: diag(exp(s) (ds/dl)^2)."""
        log_rate = _bound(outputs)
        slope = 1 - (log_rate / _GREATEST_LOG_RATE).square()
        return torch.diag_embed(torch.exp(log_rate) * slope.square())

    def validate(self, x: Array, first_record: int = 0) -> None:
        """Raise DataError unless every value is a whole number from 0 to 2^24 - 1; row 0 is called `first_record`."""
        good = (x >= 0) & (x <= _GREATEST_COUNT) & (x == np.rint(x))
        if not good.all():
            row, column = divmod(int(good.argmin()), x.shape[1])
            raise DataError(
                f"poisson likelihood needs whole numbers 0 to {_GREATEST_COUNT:,}; record {first_record + row} column "
                f"{column} holds {x[row, column]:g}. Give counts, or use the normal likelihood (--likelihood normal)"
            )


def example() -> tuple[Poisson, int]:
    """The likelihood and a number of columns, for docs and laws."""
    return Poisson(), 3


def _bound(raw: Tensor) -> Tensor:
    return _GREATEST_LOG_RATE * torch.tanh(raw / _GREATEST_LOG_RATE)
