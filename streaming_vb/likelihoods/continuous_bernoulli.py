"""Continuous Bernoulli likelihood of data in [0, 1]: grey levels as they are, not binarized.

A Bernoulli log probability of grey levels has no normalising constant. With it (Loaiza-Ganem and Cunningham 2019), in
terms of the logit l of their lambda, p(x) = exp(l x) l / (exp(l) - 1) for x in [0, 1]. Exchanging x and 1 - x turns l
into -l, so everything is computed at a = |l|, where nothing overflows, for y = x (l <= 0) or 1 - x (l > 0):

    log p = -a y + log(a / (1 - exp(-a)))
    E[y] = 1/a - t
    Var[y] = 1/a^2 - t (1 + t)                                    t = 1 / (exp(a) - 1)

At a = 0 each of these is 0/0 or a difference of infinities; below a = 1/2 their Taylor series take over.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from streaming_vb.errors import DataError
from streaming_vb.types import Array

_SMALL = 0.5
"""The series are used below; what they leave out is then under 1e-11."""
_LOG_SERIES = (1 / 24, -1 / 2880, 1 / 181_440, -1 / 9_676_800, 1 / 479_001_600)
_MEAN_SERIES = (1 / 12, -1 / 720, 1 / 30_240, -1 / 1_209_600, 1 / 47_900_160)
_VARIANCE_SERIES = (1 / 12, -1 / 240, 1 / 6048, -1 / 172_800, 1 / 5_322_240)
"""B_2n / (2n (2n)!), B_2n / (2n)! and (2n - 1) B_2n / (2n)! for n = 1, 2, ..., with Bernoulli numbers B."""


@dataclass(frozen=True, slots=True)
class ContinuousBernoulli:
    """Values in [0, 1]; one output, the logit, per column. At logit 0 the density is uniform.

    >>> ContinuousBernoulli().log_prob(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.3, 1.0]])).round(decimals=4)
    tensor([0.8386])
    """

    name: str = "continuous-bernoulli"
    outputs_per_column: int = 1

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """sum_d [ l_d x_d + log(l_d / (exp(l_d) - 1)) ] for logits l [..., B, D] and x [B, D]; nats per record
        [..., B]."""
        positive, a = _fold(outputs)
        return (_log_normalizer(a) - a * torch.where(positive, 1 - x, x)).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """E[x] = 1 / (1 - exp(-l)) - 1/l [..., D]."""
        positive, a = _fold(outputs)
        small, large = a.clamp(max=_SMALL), a.clamp(min=_SMALL)
        mean = torch.where(a < _SMALL, 0.5 - small * _even(small, _MEAN_SERIES), 1 / large - _tail(large))
        return torch.where(positive, 1 - mean, mean)

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x [..., D], by the inverse of the distribution function."""
        positive, a = _fold(outputs)
        rate = a.clamp(min=1e-20)  # the formula's limit at 0 is the uniform draw itself
        uniform = torch.rand(outputs.shape, generator=generator, dtype=outputs.dtype)
        drawn = (-torch.log1p(uniform * torch.expm1(-rate)) / rate).clamp(0, 1)
        return torch.where(positive, 1 - drawn, drawn)

    def fisher(self, outputs: Tensor) -> Tensor:
        """Fisher information of x in the outputs, nats [..., D, D]: diag(Var[x])."""
        _, a = _fold(outputs)
        small, large = a.clamp(max=_SMALL), a.clamp(min=_SMALL)
        tail = _tail(large)
        variance = 1 / large.square() - tail * (1 + tail)
        return torch.diag_embed(torch.where(a < _SMALL, _even(small, _VARIANCE_SERIES), variance))

    def validate(self, x: Array, first_record: int = 0) -> None:
        """Raise DataError unless every value lies in [0, 1]; row 0 is called `first_record`."""
        good = (x >= 0) & (x <= 1)
        if not good.all():
            row, column = divmod(int(good.argmin()), x.shape[1])
            raise DataError(
                f"continuous-bernoulli likelihood needs values in [0, 1]; record {first_record + row} column {column} "
                f"holds {x[row, column]:g}. Rescale the source, or use the normal likelihood (--likelihood normal)"
            )


def example() -> tuple[ContinuousBernoulli, int]:
    """The likelihood and a number of columns, for docs and laws."""
    return ContinuousBernoulli(), 3


def _fold(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Where the logit is positive, and a = |l|; its slope at 0 is -1, that of the side where y = x, and not 0."""
    positive = outputs > 0
    return positive, torch.where(positive, outputs, -outputs)


def _log_normalizer(a: Tensor) -> Tensor:
    """log(a / (1 - exp(-a))) for a >= 0.

    Each branch sees only values that it can take: an infinity in the branch not taken would make the gradient NaN.
    """
    small, large = a.clamp(max=_SMALL), a.clamp(min=_SMALL)
    series = 0.5 * small - small.square() * _even(small, _LOG_SERIES)
    return torch.where(a < _SMALL, series, torch.log(-large / torch.expm1(-large)))


def _tail(a: Tensor) -> Tensor:
    """t = 1 / (exp(a) - 1), without overflow."""
    return -torch.exp(-a) / torch.expm1(-a)


def _even(a: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """c_0 + c_1 a^2 + c_2 a^4 + ..."""
    square, total = a.square(), torch.zeros_like(a)
    for coefficient in reversed(coefficients):
        total = total * square + coefficient
    return total
