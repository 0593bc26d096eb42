"""What a neural model offers to inference: a layout of its weights, and the per-record terms of its bound."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.linear import TapeEntry
from streaming_vb.types import Model


class Terms(NamedTuple):
    """Terms of the bound: log p(x | z, w) [S, B] and KL(q(z | x, w) || p(z)) [B], nats."""

    log_likelihood: Tensor
    kl_latent: Tensor


class NeuralModel(Model, Protocol):
    """A `Model` over one flat vector of normal weights, whose layers record a tape."""

    @property
    def layout(self) -> Layout: ...
    def terms(
        self,
        weights: Weights,
        x: Tensor,
        generator: torch.Generator,
        num_samples: int = 1,
        tape: list[TapeEntry] | None = None,
    ) -> Terms: ...
