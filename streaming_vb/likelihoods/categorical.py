"""Categorical likelihood of data with K categories: x_d ~ Categorical(softmax(outputs_:d)).

No order of the categories is assumed: any distribution of a few grey levels or small counts can be fitted."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.types import Array


@dataclass(frozen=True, slots=True)
class Categorical:
    """Whole numbers 0 to K-1, as floats; K outputs per column, the logits: category 0 [D], then category 1 [D], ...

    Args:
        num_categories: K.

    Raises:
        ConfigError: fewer than 2 categories.

    >>> Categorical(4).log_prob(torch.zeros(1, 8), torch.tensor([[3.0, 0.0]])).round(decimals=4)
    tensor([-2.7726])
    """

    num_categories: int

    def __post_init__(self) -> None:
        if self.num_categories < 2:
            raise ConfigError(f"Categorical: expected at least 2 categories, got {self.num_categories}")

    @property
    def name(self) -> str:
        """As a user types it."""
        return f"categorical:{self.num_categories}"

    @property
    def outputs_per_column(self) -> int:
        """K."""
        return self.num_categories

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """sum_d log softmax(l)_{x_d, d} for logits l [..., B, K D] and x [B, D]; nats per record [..., B]."""
        log_probabilities = self._by_category(outputs).log_softmax(-2)
        category = x.long().unsqueeze(-2).expand(*outputs.shape[:-1], 1, x.shape[-1])
        return log_probabilities.gather(-2, category).squeeze(-2).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """E[x] = sum_k k p_k [..., D]."""
        categories = torch.arange(self.num_categories, dtype=outputs.dtype)
        return (categories[:, None] * self._by_category(outputs).softmax(-2)).sum(-2)

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x [..., D]."""
        probabilities = self._by_category(outputs).softmax(-2).transpose(-2, -1)
        rows = probabilities.reshape(-1, self.num_categories)
        drawn = torch.multinomial(rows, 1, generator=generator)
        return drawn.view(probabilities.shape[:-1]).to(outputs.dtype)

    def fisher(self, outputs: Tensor) -> Tensor:
        """Fisher information of x in the outputs, nats [..., K D, K D]: diag(p) - p p' for each column."""
        p = self._by_category(outputs).softmax(-2)
        num_columns = p.shape[-1]
        identity = torch.eye(self.num_categories, dtype=p.dtype)[:, :, None]
        of_columns = identity * p.unsqueeze(-2) - p.unsqueeze(-2) * p.unsqueeze(-3)  # [..., K, K, D]
        blocks = torch.diag_embed(of_columns).transpose(-3, -2)  # [..., K, D, K, D]
        size = self.num_categories * num_columns
        return blocks.reshape(*outputs.shape[:-1], size, size)

    def validate(self, x: Array, first_record: int = 0) -> None:
        """Raise DataError unless every value is one of 0, 1, ..., K-1; row 0 is called `first_record`."""
        good = (x >= 0) & (x < self.num_categories) & (x == np.rint(x))
        if not good.all():
            row, column = divmod(int(good.argmin()), x.shape[1])
            raise DataError(
                f"{self.name} likelihood needs whole numbers 0 to {self.num_categories - 1}; record "
                f"{first_record + row} column {column} holds {x[row, column]:g}. Use more categories (--likelihood "
                "categorical:K) for greater whole numbers, or the normal likelihood (--likelihood normal)"
            )

    def _by_category(self, outputs: Tensor) -> Tensor:
        """Logits [..., K, D]."""
        return outputs.reshape(*outputs.shape[:-1], self.num_categories, -1)


def example() -> tuple[Categorical, int]:
    """The likelihood and a number of columns, for docs and laws."""
    return Categorical(4), 3
