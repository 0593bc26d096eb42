"""Bayesian variational auto-encoder: a posterior over every weight of decoder and encoder.

Generative model: z ~ N(0, I), x ~ p(x | decoder(z; w)), w ~ p(w). Recognition model: q(z | x, w) = N(mu, diag exp(lv))
with (mu, lv) = encoder(x; w). (Kingma and Welling 2014, with weights integrated out as in its appendix F.)
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.linear import Linear, TapeEntry
from streaming_vb.likelihoods.bernoulli import Bernoulli
from streaming_vb.models.neural import Terms
from streaming_vb.seeding import numpy_generator
from streaming_vb.types import Array, Moments, NaturalParameters, Records

PRIOR_VARIANCE = 0.1
"""c of p(w) = N(w0, c / fan_in)."""


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


@dataclass(frozen=True, slots=True)
class VAE:
    """D columns, hidden layers of the given widths (mirrored in the decoder), Z latent dimensions.

    Args:
        num_columns: D.
        hidden: widths of the encoder's hidden layers, input side first.
        latent: Z.
        likelihood: p(x | outputs).

    Raises:
        ConfigError: a size is below 1.

    >>> VAE(784, hidden=(500,), latent=20).layout.num_weights
    815824
    """

    num_columns: int
    hidden: tuple[int, ...] = (500,)
    latent: int = 20
    likelihood: Likelihood = Bernoulli()

    def __post_init__(self) -> None:
        sizes = {"columns": (self.num_columns,), "hidden": self.hidden, "latent": (self.latent,)}
        for name, values in sizes.items():
            if not values or min(values) < 1:
                raise ConfigError(f"VAE: {name} must be at least 1, got {','.join(map(str, values)) or 'nothing'}")

    @property
    def family(self) -> MeanFieldNormal:
        """Mean-field normal weights."""
        return MeanFieldNormal()

    @property
    def encoder(self) -> tuple[Linear, ...]:
        """D -> hidden -> 2 Z (mean and log variance of z)."""
        return _chain("encoder", (self.num_columns, *self.hidden, 2 * self.latent))

    @property
    def decoder(self) -> tuple[Linear, ...]:
        """Z -> hidden, mirrored -> outputs of the likelihood."""
        outputs = self.num_columns * self.likelihood.outputs_per_column
        return _chain("decoder", (self.latent, *reversed(self.hidden), outputs))

    @property
    def layout(self) -> Layout:
        """Where each weight lies in the vector [P]."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in (*self.encoder, *self.decoder):
            shapes |= layer.shapes()
        return Layout(shapes)

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {
            "model": "vae",
            "columns": self.num_columns,
            "hidden": list(self.hidden),
            "latent": self.latent,
            "likelihood": self.likelihood.name,
        }

    def prior(self, seed: int) -> NaturalParameters:
        """p(w) = N(w0, c / fan_in), w0 one draw of U(-1/sqrt(fan_in), 1/sqrt(fan_in)); float64.

        The shared random centre breaks the permutation symmetry of hidden units once for everybody, so that local
        posteriors lie in one mode and their deltas can be added.
        """
        generator = numpy_generator(seed, "prior")
        means, variances = [], []
        for layer in (*self.encoder, *self.decoder):
            size = layer.num_outputs * (layer.num_inputs + 1)
            means.append(generator.uniform(-1, 1, size) / np.sqrt(layer.num_inputs))
            variances.append(np.full(size, PRIOR_VARIANCE / layer.num_inputs))
        return self.family.natural(Moments(np.concatenate(means), np.concatenate(variances)))

    def validate(self, records: Records) -> None:
        """Raise DataError unless x is [B, D], finite, and in the likelihood's range."""
        x = records["x"]
        if x.ndim != 2 or x.shape[1] != self.num_columns:
            raise DataError(
                f"{records.interval}: {x.shape[-1]} columns came, the model expects {self.num_columns}. "
                "Use data of the same width, or another run directory"
            )
        if not np.isfinite(x).all():
            row, column = (int(i) for i in divmod(int((~np.isfinite(x)).argmax()), x.shape[1]))
            raise DataError(
                f"{records.interval}: record {records.interval.start + row} column {column} is {x[row, column]}. "
                "Every value must be finite: impute it, or drop the record"
            )
        self.likelihood.validate(x, records.interval.start)

    def terms(
        self,
        weights: Weights,
        x: Tensor,
        generator: torch.Generator,
        num_samples: int = 1,
        tape: list[TapeEntry] | None = None,
    ) -> Terms:
        """Per-record terms of the bound for x [B, D], with S = num_samples draws of z per record.

        Noise of the weights is drawn at every layer for every record (and draw of z) where they have a variance.
        """
        mean, log_variance = self.encode(weights, x, generator, tape)
        noise = torch.randn(num_samples, *mean.shape, generator=generator)
        z = mean + torch.exp(0.5 * log_variance) * noise
        outputs = _forward(self.decoder, weights, z.reshape(-1, self.latent), generator, tape)
        log_likelihood = self.likelihood.log_prob(outputs.view(num_samples, len(x), -1), x)
        kl_latent = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
        return Terms(log_likelihood, kl_latent)

    def encode(
        self,
        weights: Weights,
        x: Tensor,
        generator: torch.Generator,
        tape: list[TapeEntry] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean [B, Z] and log variance [B, Z] of q(z | x)."""
        mean, log_variance = _forward(self.encoder, weights, x, generator, tape).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, weights: Weights, z: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs of the decoder [B, outputs] for z [B, Z]."""
        return _forward(self.decoder, weights, z, generator, None)


def example() -> VAE:
    """A small model, for docs and laws."""
    return VAE(6, hidden=(5,), latent=2)


def _chain(name: str, sizes: tuple[int, ...]) -> tuple[Linear, ...]:
    pairs = itertools.pairwise(sizes)
    return tuple(Linear(f"{name}.{i}", inputs, outputs) for i, (inputs, outputs) in enumerate(pairs))


def _forward(
    layers: tuple[Linear, ...],
    weights: Weights,
    x: Tensor,
    generator: torch.Generator,
    tape: list[TapeEntry] | None,
) -> Tensor:
    for layer in layers[:-1]:
        x = torch.relu(layer(weights, x, generator, tape))
    return layers[-1](weights, x, generator, tape)
