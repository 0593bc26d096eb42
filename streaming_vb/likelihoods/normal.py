"""Normal likelihood of real data: x_d ~ N(mu_d, exp(2 s_d)), mean and log standard deviation from the decoder."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import DataError
from streaming_vb.types import Array

_LEAST_LOG_SCALE, _GREATEST_LOG_SCALE = -5.0, 5.0
"""Smooth bounds on s: a column that is constant in the data would otherwise drive the density to infinity."""


@dataclass(frozen=True, slots=True)
class Normal:
    """Real data; two outputs per column: the means [D], then the raw log standard deviations [D].

    >>> round(float(Normal().log_prob(torch.zeros(1, 2), torch.zeros(1, 1))), 4)
    -0.9189
    """

    name: str = "normal"
    outputs_per_column: int = 2

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """sum_d log N(x_d; mu_d, exp(2 s_d)) for outputs [..., B, 2 D] and x [B, D]; nats per record [..., B]."""
        mean, log_scale = self._parameters(outputs)
        standardized = (x - mean) * torch.exp(-log_scale)
        return -(0.5 * standardized.square() + log_scale + 0.5 * math.log(2 * math.pi)).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """E[x] = mu [..., D]."""
        return self._parameters(outputs)[0]

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x [..., D]."""
        mean, log_scale = self._parameters(outputs)
        return mean + torch.exp(log_scale) * torch.randn(mean.shape, generator=generator)

    def fisher(self, outputs: Tensor) -> Tensor:
        """Fisher information of x in the outputs, nats [..., 2 D, 2 D]: diag(exp(-2 s), 2 (ds/dr)^2), r the raw s."""
        _, log_scale = self._parameters(outputs)
        half = (_GREATEST_LOG_SCALE - _LEAST_LOG_SCALE) / 2
        raw = outputs.chunk(2, dim=-1)[1]
        slope = 1 - torch.tanh(raw / half).square()
        return torch.diag_embed(torch.cat([torch.exp(-2 * log_scale), 2 * slope.square()], dim=-1))

    def validate(self, x: Array, first_record: int = 0) -> None:
        """Raise DataError unless every value is finite; row 0 is called `first_record`."""
        wrong = ~np.isfinite(x)
        if wrong.any():
            row, column = divmod(int(wrong.argmax()), x.shape[1])
            raise DataError(
                f"normal likelihood needs finite values; record {first_record + row} column {column} holds "
                f"{x[row, column]}. Impute it, or drop the record"
            )

    def _parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = outputs.chunk(2, dim=-1)
        half = (_GREATEST_LOG_SCALE - _LEAST_LOG_SCALE) / 2
        return mean, half * torch.tanh(raw / half) + (_GREATEST_LOG_SCALE + _LEAST_LOG_SCALE) / 2


def example() -> tuple[Normal, int]:
    """The likelihood and a number of columns, for docs and laws."""
    return Normal(), 3
