"""What a forward pass leaves behind, so that one backward pass to the pre-activations gives every weight gradient."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from streaming_vb.layers.layout import Weights


class Layer(Protocol):
    """A layer with normal weights: rows of features in, rows of features out."""

    @property
    def name(self) -> str: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def fan_in(self) -> int:
        """Inputs that one output is a sum over; the prior's variance is scaled by it."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""

    def __call__(
        self, weights: Weights, inputs: Tensor, generator: torch.Generator, tape: "list[TapeEntry] | None" = None
    ) -> Tensor:
        """Pre-activations [B, num_outputs] of inputs [B, num_inputs]."""

    def gradient(
        self, entry: "TapeEntry", u: Tensor, out: dict[str, Tensor], *, decay: float = 0.0, weight: float = 1.0
    ) -> None:
        """out <- decay out + weight sum_i g_i, with g_i the gradient of record i by the mean weights."""

    def squared_gradient(self, entry: "TapeEntry", u: Tensor, out: dict[str, Tensor], *, weight: float = 1.0) -> None:
        """out <- weight sum_i g_i * g_i."""


@dataclass(frozen=True, slots=True, eq=False)
class TapeEntry:
    """What one layer did in a forward pass; with the gradient U of its pre-activations it gives every weight gradient.

    Attributes:
        inputs: A [B, I].
        squared_inputs: A * A [B, I].
        preactivations: [B, O].
    """

    layer: Layer
    inputs: Tensor
    squared_inputs: Tensor
    preactivations: Tensor


def record(
    tape: list[TapeEntry] | None, layer: Layer, inputs: Tensor, squared_inputs: Tensor, preactivations: Tensor
) -> Tensor:
    """Put a layer on the tape, if there is one; returns the pre-activations."""
    if tape is not None:
        if not preactivations.requires_grad:  # first layer: nothing below it asks for a gradient
            preactivations.requires_grad_()
        tape.append(TapeEntry(layer, inputs.detach(), squared_inputs, preactivations))
    return preactivations
