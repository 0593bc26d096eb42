"""What a neural model offers to inference: a layout of its weights, and the per-record terms of its bound."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.layers.estimators import Estimator
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.tape import Layer, TapeEntry
from streaming_vb.seeding import numpy_generator
from streaming_vb.types import Array, Model, Moments, NaturalParameters

PRIOR_VARIANCE = 0.1
"""c of p(w) = N(w0, c / fan_in)."""

Minibatch = Mapping[str, Tensor]
"""Fields of some records, by name, each with one row per record."""


class Draw(NamedTuple):
    """Draws of one latent variable, and the two normal densities they lie between.

    Attributes:
        z: [S, B, Z].
        mean, log_variance: of q(z | ...), [B, Z] or [S, B, Z].
        prior_mean, prior_log_variance: of p(z | ...), [S, B, Z], or zeros.
    """

    z: Tensor
    mean: Tensor
    log_variance: Tensor
    prior_mean: Tensor | float = 0.0
    prior_log_variance: Tensor | float = 0.0

    def log_q(self) -> Tensor:
        """log q(z | ...) [S, B]."""
        return log_normal(self.z, self.mean, self.log_variance)

    def log_prior(self) -> Tensor:
        """log p(z | ...) [S, B]."""
        return log_normal(self.z, self.prior_mean, self.prior_log_variance)


class Terms(NamedTuple):
    """Terms of the bound, nats per record.

    Attributes:
        log_likelihood: log p(x | z, w) [S, B].
        kl_latent: KL(q(z | x, w) || p(z)) [B]; for several stochastic layers its estimate with the S draws.
        draws: of the latent variables; none in a model without them.
    """

    log_likelihood: Tensor
    kl_latent: Tensor
    draws: tuple[Draw, ...] = ()

    def log_joint(self) -> Tensor:
        """log p(x, z | w) [S, B]."""
        total = self.log_likelihood
        for draw in self.draws:
            total = total + draw.log_prior()
        return total

    def log_weights(self) -> Tensor:
        """log p(x, z_s | w) - log q(z_s | x, w) [S, B], the log importance weights."""
        total = self.log_joint()
        for draw in self.draws:
            total = total - draw.log_q()
        return total


class NeuralModel(Model, Protocol):
    """A `Model` over one flat vector of normal weights, whose layers record a tape."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order of the vector."""

    @property
    def layout(self) -> Layout: ...
    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the records that `terms` reads."""

    @property
    def estimator(self) -> Estimator:
        """How its layers draw pre-activations."""

    def terms(
        self,
        weights: Weights,
        records: Minibatch,
        generator: torch.Generator,
        num_samples: int = 1,
        tape: list[TapeEntry] | None = None,
        attached: bool = True,
    ) -> Terms:
        """Terms of the bound with S = num_samples draws of z per record.

        `attached` says whether gradients of q's parameters flow through the draws (reparameterization); where they do
        not, an objective takes them from the score log q.
        """


class AbstractNeuralModel(ABC):
    """What follows from a model's layers: family, layout and prior."""

    __slots__ = ()

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order of the vector."""

    @property
    def family(self) -> MeanFieldNormal:
        """Mean-field normal weights."""
        return MeanFieldNormal()

    @property
    def layout(self) -> Layout:
        """Where each weight lies in the vector [P]."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            shapes |= layer.shapes()
        return Layout(shapes)

    def prior(self, seed: int) -> NaturalParameters:
        """p(w) = N(w0, c / fan_in), w0 one draw of U(-1/sqrt(fan_in), 1/sqrt(fan_in)); float64.

        The shared random centre breaks the permutation symmetry of hidden units once for everybody, so that local
        posteriors lie in one mode and their deltas can be added.
        """
        generator = numpy_generator(seed, "prior")
        means, variances = [], []
        for layer in self.layers:
            size = Layout(layer.shapes()).num_weights
            means.append(generator.uniform(-1, 1, size) / np.sqrt(layer.fan_in))
            variances.append(np.full(size, PRIOR_VARIANCE / layer.fan_in))
        return self.family.natural(Moments(np.concatenate(means), np.concatenate(variances)))


def log_normal(z: Tensor, mean: Tensor | float, log_variance: Tensor | float) -> Tensor:
    """sum_j log N(z_j; mean_j, exp(log_variance_j)) over the last dimension; nats."""
    log_variance = torch.as_tensor(log_variance, dtype=z.dtype)
    density = (z - mean).square() * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi)
    return -0.5 * density.sum(-1)


def minibatches(model: NeuralModel, records: Mapping[str, Array], size: int) -> list[Minibatch]:
    """The fields that a model reads as float32 tensors, in parts of `size` records."""
    fields = {name: torch.from_numpy(np.require(records[name], np.float32, "W")).split(size) for name in model.fields}
    return [dict(zip(fields, parts, strict=True)) for parts in zip(*fields.values(), strict=True)]
