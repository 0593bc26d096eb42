"""VAE with two stochastic layers (Rezende et al. 2014; Burda et al. 2016, section 5).

Generative model: z2 ~ N(0, I), z1 ~ N(prior network(z2)), x ~ p(x | decoder(z1)). Recognition model:
q(z1 | x) = N(encoder(x)), q(z2 | z1) = N(upper encoder(z1)). All four networks have a posterior over every weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming_vb.layers.estimators import Estimator, local
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.tape import TapeEntry
from streaming_vb.likelihoods.bernoulli import Bernoulli
from streaming_vb.models.neural import AbstractNeuralModel, Draw, Minibatch, Terms
from streaming_vb.models.vae import Likelihood, chain, draw_normal, forward, require_sizes, validate_columns
from streaming_vb.types import Records


@dataclass(frozen=True, slots=True)
class TwoLayerVAE(AbstractNeuralModel):
    """D columns; z1 with Z1 dimensions between hidden layers, z2 with Z2 dimensions above upper hidden layers.

    Args:
        num_columns: D.
        hidden: widths between x and z1, input side first (mirrored in the decoder).
        latent: Z1.
        upper_hidden: widths between z1 and z2 (mirrored in the prior network).
        upper_latent: Z2.
        likelihood: p(x | outputs).
        estimator: how layers draw pre-activations.

    Raises:
        ConfigError: a size is below 1.

    >>> TwoLayerVAE(784, hidden=(200, 200), latent=100, upper_hidden=(100, 100), upper_latent=50).describe()["model"]
    'two-layer-vae'
    """

    num_columns: int
    hidden: tuple[int, ...] = (200, 200)
    latent: int = 100
    upper_hidden: tuple[int, ...] = (100, 100)
    upper_latent: int = 50
    likelihood: Likelihood = Bernoulli()
    estimator: Estimator = local

    def __post_init__(self) -> None:
        require_sizes(
            "two-layer VAE",
            columns=(self.num_columns,),
            hidden=self.hidden,
            latent=(self.latent,),
            upper_hidden=self.upper_hidden,
            upper_latent=(self.upper_latent,),
        )

    @property
    def encoder(self) -> tuple[Linear, ...]:
        """D -> hidden -> 2 Z1."""
        return chain("encoder", (self.num_columns, *self.hidden, 2 * self.latent), self.estimator)

    @property
    def upper_encoder(self) -> tuple[Linear, ...]:
        """Z1 -> upper hidden -> 2 Z2."""
        return chain("upper_encoder", (self.latent, *self.upper_hidden, 2 * self.upper_latent), self.estimator)

    @property
    def prior_network(self) -> tuple[Linear, ...]:
        """Z2 -> upper hidden, mirrored -> 2 Z1."""
        sizes = (self.upper_latent, *reversed(self.upper_hidden), 2 * self.latent)
        return chain("prior_network", sizes, self.estimator)

    @property
    def decoder(self) -> tuple[Linear, ...]:
        """Z1 -> hidden, mirrored -> outputs of the likelihood."""
        outputs = self.num_columns * self.likelihood.outputs_per_column
        return chain("decoder", (self.latent, *reversed(self.hidden), outputs), self.estimator)

    @property
    def layers(self) -> tuple[Linear, ...]:
        """In the order in which they are used."""
        return (*self.encoder, *self.upper_encoder, *self.prior_network, *self.decoder)

    @property
    def fields(self) -> tuple[str, ...]:
        """x [B, D]."""
        return ("x",)

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {
            "model": "two-layer-vae",
            "columns": self.num_columns,
            "hidden": list(self.hidden),
            "latent": self.latent,
            "upper_hidden": list(self.upper_hidden),
            "upper_latent": self.upper_latent,
            "likelihood": self.likelihood.name,
            "estimator": self.estimator.__name__,
        }

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
        """Per-record terms of the bound for x [B, D], with S = num_samples draws of (z1, z2) per record.

        Given z1, KL(q(z2 | z1) || p(z2)) is in closed form. log q(z1 | x) - log p(z1 | z2) is sampled: with the entropy
        in closed form the gradient would be the same, and the value noisier where the two densities are alike.
        """
        x = records["x"]
        encoding = self.encode(weights, x, generator, tape)
        lower, upper = self._draw(weights, encoding, num_samples, generator, tape, attached)
        outputs = forward(self.decoder, weights, lower.z.flatten(0, 1), generator, tape)
        log_likelihood = self.likelihood.log_prob(outputs.view(num_samples, len(x), -1), x)
        kl_upper = 0.5 * (upper.log_variance.exp() + upper.mean.square() - 1 - upper.log_variance).sum(-1)
        kl_lower = lower.log_q() - lower.log_prior()
        return Terms(log_likelihood, (kl_upper + kl_lower).mean(0), (lower, upper))

    def encode(
        self, weights: Weights, x: Tensor, generator: torch.Generator, tape: list[TapeEntry] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean [B, Z1] and log variance [B, Z1] of q(z1 | x)."""
        mean, log_variance = forward(self.encoder, weights, x, generator, tape).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, weights: Weights, z: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs of the decoder [B, outputs] for z1 [B, Z1]."""
        return forward(self.decoder, weights, z, generator, None)

    def log_weights(
        self, weights: Weights, x: Tensor, encoding: tuple[Tensor, Tensor], num_samples: int, generator: torch.Generator
    ) -> Tensor:
        """log p(x, z1, z2) - log q(z1, z2 | x) [S, B] for S fresh draws per record, from what `encode` returned."""
        lower, upper = self._draw(weights, encoding, num_samples, generator, None, attached=True)
        outputs = self.decode(weights, lower.z.flatten(0, 1), generator).view(num_samples, len(x), -1)
        log_likelihood = self.likelihood.log_prob(outputs, x)
        return Terms(log_likelihood, torch.zeros(len(x)), (lower, upper)).log_weights()

    def sample_latent(self, weights: Weights, num_samples: int, generator: torch.Generator) -> Tensor:
        """z1 ~ p(z1 | z2), z2 ~ N(0, I) [num_samples, Z1]."""
        z2 = torch.randn(num_samples, self.upper_latent, generator=generator)
        mean, log_variance = forward(self.prior_network, weights, z2, generator, None).chunk(2, dim=-1)
        return draw_normal(mean, log_variance, 1, generator, attached=True)[0]

    def _draw(
        self,
        weights: Weights,
        encoding: tuple[Tensor, Tensor],
        num_samples: int,
        generator: torch.Generator,
        tape: list[TapeEntry] | None,
        attached: bool,
    ) -> tuple[Draw, Draw]:
        """z1 and z2 with the densities of q and of the prior."""
        z1 = draw_normal(*encoding, num_samples, generator, attached)
        rows = z1.flatten(0, 1)
        above = forward(self.upper_encoder, weights, rows, generator, tape).view(num_samples, -1, 2 * self.upper_latent)
        mean, log_variance = above.chunk(2, dim=-1)
        z2 = draw_normal(mean, log_variance, 1, generator, attached)[0]
        below = forward(self.prior_network, weights, z2.flatten(0, 1), generator, tape)
        prior_mean, prior_log_variance = below.view(num_samples, -1, 2 * self.latent).chunk(2, dim=-1)
        return Draw(z1, *encoding, prior_mean, prior_log_variance), Draw(z2, mean, log_variance)


def example() -> TwoLayerVAE:
    """A small model, for docs and laws."""
    return TwoLayerVAE(6, hidden=(5,), latent=3, upper_hidden=(4,), upper_latent=2)
