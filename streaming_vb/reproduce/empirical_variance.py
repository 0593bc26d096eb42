"""Variance of a stochastic gradient, averaged over weights, with a standard error.

Draws come in groups, and the variance is taken within each: what a group holds fixed (a minibatch, say) adds nothing to
it. The groups are independent, so that their spread gives the standard error.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 10
"""Draws per group: the variance of ten is known to about a half, and ten gradients of a network fit into memory."""


class Variance(NamedTuple):
    """Mean over weights of the variance of one draw, and its standard error."""

    value: float
    standard_error: float

    def times(self, factor: float) -> "Variance":
        """Of a gradient that is sqrt(factor) times as long."""
        return Variance(factor * self.value, factor * self.standard_error)


def within_groups(groups: Iterable[Sequence[tuple[Tensor, ...]]]) -> tuple[Variance, ...]:
    """One variance for each tensor that a draw consists of.

    Args:
        groups: at least two, of at least two draws each; a draw is a tuple of gradients of any shapes.

    >>> groups = [[(torch.tensor([0.0, 1.0]),), (torch.tensor([2.0, 1.0]),)] for _ in range(2)]
    >>> within_groups(groups)
    (Variance(value=1.0, standard_error=0.0),)
    """
    by_group = torch.stack([torch.stack([_variance(parts) for parts in zip(*group, strict=True)]) for group in groups])
    error = by_group.std(0) / math.sqrt(len(by_group))
    return tuple(Variance(float(mean), float(spread)) for mean, spread in zip(by_group.mean(0), error, strict=True))


def _variance(draws: tuple[Tensor, ...]) -> Tensor:
    """Unbiased, averaged over the elements: a float64 scalar."""
    return torch.stack(draws).var(0).mean(dtype=torch.float64)
