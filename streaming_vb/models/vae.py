"""Bayesian variational auto-encoder: a posterior over every weight of decoder and encoder.

Generative model: z ~ N(0, I), x ~ p(x | decoder(z; w)), w ~ p(w). Recognition model: q(z | x, w) = N(mu, diag exp(lv))
with (mu, lv) = encoder(x; w). (Kingma and Welling 2014, with weights integrated out as in its appendix F.)
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.layers.estimators import Estimator, local
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.noise import gaussian_dropout
from streaming_vb.layers.tape import Layer, TapeEntry
from streaming_vb.likelihoods.bernoulli import Bernoulli
from streaming_vb.models.neural import AbstractNeuralModel, Draw, Minibatch, Terms
from streaming_vb.types import Array, Records


class Likelihood(Protocol):
    """p(x | outputs)."""

    @property
    def name(self) -> str: ...
    @property
    def outputs_per_column(self) -> int: ...
    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor: ...
    def mean(self, outputs: Tensor) -> Tensor: ...
    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor: ...
    def validate(self, x: Array, first_record: int = 0) -> None: ...


class AbstractVAE(AbstractNeuralModel):
    """A VAE with one latent variable; a concrete one says which layers encode and decode.

    Fields of a concrete class: `latent` (Z), `likelihood`, `estimator`, `encoder_dropout`.
    """

    __slots__ = ()
    latent: int
    likelihood: Likelihood
    estimator: Estimator
    encoder_dropout: float

    @property
    @abstractmethod
    def num_columns(self) -> int:
        """D."""

    @property
    @abstractmethod
    def encoder(self) -> tuple[Layer, ...]:
        """D -> ... -> 2 Z (mean and log variance of z)."""

    @property
    @abstractmethod
    def decoder(self) -> tuple[Layer, ...]:
        """Z -> ... -> outputs of the likelihood."""

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""

    @property
    def fields(self) -> tuple[str, ...]:
        """x [B, D]."""
        return ("x",)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Encoder, then decoder."""
        return (*self.encoder, *self.decoder)

    def validate(self, records: Records) -> None:
        """Raise DataError unless x is [B, D], finite, and in the likelihood's range."""
        validate_columns(records, self.num_columns)
        self.likelihood.validate(records["x"], records.interval.start)

    def terms(
        self,
        weights: Weights,
        records: Minibatch,
        generator: torch.Generator,
        num_samples: int = 1,
        tape: list[TapeEntry] | None = None,
        attached: bool = True,
    ) -> Terms:
        """Per-record terms of the bound for x [B, D], with S = num_samples draws of z per record.

        Noise of the weights is drawn at every layer for every record (and draw of z) where they have a variance.
        """
        x = records["x"]
        mean, log_variance = self.encode(weights, x, generator, tape)
        z = draw_normal(mean, log_variance, num_samples, generator, attached)
        outputs = forward(self.decoder, weights, z.view(-1, self.latent), generator, tape)
        log_likelihood = self.likelihood.log_prob(outputs.view(num_samples, len(x), -1), x)
        kl_latent = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
        return Terms(log_likelihood, kl_latent, (Draw(z, mean, log_variance),))

    def encode(
        self,
        weights: Weights,
        x: Tensor,
        generator: torch.Generator,
        tape: list[TapeEntry] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean [B, Z] and log variance [B, Z] of q(z | x); dropout acts where a tape is recorded, in training."""
        alpha = 0.0 if tape is None else self.encoder_dropout
        mean, log_variance = forward(self.encoder, weights, x, generator, tape, alpha).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, weights: Weights, z: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs of the decoder [B, outputs] for z [B, Z]."""
        return forward(self.decoder, weights, z, generator, None)

    def sample_latent(self, weights: Weights, num_samples: int, generator: torch.Generator) -> Tensor:
        """z ~ N(0, I) [num_samples, Z]."""
        del weights
        return torch.randn(num_samples, self.latent, generator=generator)

    def log_weights(
        self, weights: Weights, x: Tensor, encoding: tuple[Tensor, Tensor], num_samples: int, generator: torch.Generator
    ) -> Tensor:
        """log p(x, z_s) - log q(z_s | x) [S, B] for S fresh draws of z per record, from what `encode` returned."""
        mean, log_variance = encoding
        noise = torch.randn(num_samples, *mean.shape, generator=generator)
        z = mean + torch.exp(0.5 * log_variance) * noise
        outputs = self.decode(weights, z.view(-1, self.latent), generator).view(num_samples, len(x), -1)
        log_ratio = 0.5 * (noise.square() - z.square()).sum(-1) + 0.5 * log_variance.sum(-1)
        return self.likelihood.log_prob(outputs, x) + log_ratio


@dataclass(frozen=True, slots=True)
class VAE(AbstractVAE):
    """D columns, hidden layers of the given widths (mirrored in the decoder), Z latent dimensions.

    Args:
        num_columns: D.
        hidden: widths of the encoder's hidden layers, input side first; none makes encoder and decoder linear.
        latent: Z.
        likelihood: p(x | outputs).
        estimator: how layers draw pre-activations; `estimators.mean` is the classic auto-encoder with MAP weights.
        encoder_dropout: variance alpha of Gaussian dropout on the encoder's hidden activations while training.

    Raises:
        ConfigError: a size is below 1.

    >>> VAE(784, hidden=(500,), latent=20).layout.num_weights
    815824
    """

    num_columns: int
    hidden: tuple[int, ...] = (500,)
    latent: int = 20
    likelihood: Likelihood = Bernoulli()
    estimator: Estimator = local
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        require_sizes("VAE", columns=(self.num_columns,), hidden=self.hidden, latent=(self.latent,))
        require_dropout(self.encoder_dropout)

    @property
    def encoder(self) -> tuple[Linear, ...]:
        """D -> hidden -> 2 Z (mean and log variance of z)."""
        return chain("encoder", (self.num_columns, *self.hidden, 2 * self.latent), self.estimator)

    @property
    def decoder(self) -> tuple[Linear, ...]:
        """Z -> hidden, mirrored -> outputs of the likelihood."""
        outputs = self.num_columns * self.likelihood.outputs_per_column
        return chain("decoder", (self.latent, *reversed(self.hidden), outputs), self.estimator)

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {
            "model": "vae",
            "columns": self.num_columns,
            "hidden": list(self.hidden),
            "latent": self.latent,
            "likelihood": self.likelihood.name,
            "estimator": self.estimator.__name__,
            "encoder_dropout": self.encoder_dropout,
        }


def example() -> VAE:
    """A small model, for docs and laws."""
    return VAE(6, hidden=(5,), latent=2)


def require_sizes(model: str, **sizes: tuple[int, ...]) -> None:
    """Raise ConfigError unless every size is at least 1."""
    for name, values in sizes.items():
        if values and min(values) < 1:
            raise ConfigError(f"{model}: {name} must be at least 1, got {','.join(map(str, values))}")


def require_dropout(alpha: float) -> None:
    """Raise ConfigError unless the variance of Gaussian dropout is a number from 0 on."""
    if not 0 <= alpha < math.inf:
        raise ConfigError(f"the variance of encoder dropout must be at least 0, got {alpha:g}")


def validate_columns(records: Records, num_columns: int) -> None:
    """Raise DataError unless x is [B, num_columns], and finite as float32."""
    x = records["x"]
    if x.dtype.kind not in "biuf" or x.ndim != 2 or x.shape[1] != num_columns:
        raise DataError(
            f"{records.interval}: {x.dtype} of shape {x.shape} came, the model expects numbers [n, {num_columns}]. "
            "Use data of the same width, or another run directory"
        )
    good = np.isfinite(as_float32(x))
    if not good.all():
        row, column = (int(i) for i in divmod(int(good.argmin()), x.shape[1]))
        raise DataError(
            f"{records.interval}: record {records.interval.start + row} column {column} is {x[row, column]}. "
            "Every value must be finite in float32: impute it, rescale the column, or drop the record"
        )


def as_float32(x: Array) -> Array:
    """The array as a fit sees it; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def chain(name: str, sizes: tuple[int, ...], estimator: Estimator) -> tuple[Linear, ...]:
    """Linear layers from each size to the next."""
    pairs = itertools.pairwise(sizes)
    return tuple(Linear(f"{name}.{i}", inputs, outputs, estimator) for i, (inputs, outputs) in enumerate(pairs))


def forward(
    layers: tuple[Layer, ...],
    weights: Weights,
    x: Tensor,
    generator: torch.Generator,
    tape: list[TapeEntry] | None,
    alpha: float = 0.0,
) -> Tensor:
    """Outputs of layers with rectified linear units, and Gaussian dropout of variance alpha, in between."""
    for layer in layers[:-1]:
        x = torch.relu(layer(weights, x, generator, tape))
        if alpha:
            x = gaussian_dropout(x, alpha, generator)
    return layers[-1](weights, x, generator, tape)


def draw_normal(
    mean: Tensor, log_variance: Tensor, num_samples: int, generator: torch.Generator, attached: bool
) -> Tensor:
    """z = mu + exp(lv / 2) e [S, B, Z] for mu, lv [B, Z]; without its gradient unless attached."""
    z = mean + torch.exp(0.5 * log_variance) * torch.randn(num_samples, *mean.shape, generator=generator)
    return z if attached else z.detach()
