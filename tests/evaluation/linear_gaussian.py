"""A VAE whose likelihood is known: x = W z + b + s e with z, e ~ N(0, I), so that x ~ N(b, W W' + s^2 I).

The columns of W are orthogonal, so that the posterior of z given x is a diagonal normal: a linear encoder is exact.
"""

from typing import NamedTuple

import numpy as np
import torch

from streaming_vb.likelihoods.normal import Normal
from streaming_vb.models.vae import VAE
from streaming_vb.types import Array, Moments, NaturalParameters

BOUND = 5.0
"""Of the normal likelihood's log standard deviation: s = bound tanh(raw / bound)."""


class LinearGaussian(NamedTuple):
    """Attributes:
    loading: W [D, Z] with orthogonal columns.
    offset: b [D].
    noise: s, standard deviation of x given z.
    """

    loading: Array
    offset: Array
    noise: float

    @property
    def model(self) -> VAE:
        num_columns, latent = self.loading.shape
        return VAE(num_columns, hidden=(), latent=latent, likelihood=Normal())

    @property
    def covariance(self) -> Array:
        """Of x [D, D]."""
        return self.loading @ self.loading.T + self.noise**2 * np.eye(len(self.offset))

    @property
    def latent_variance(self) -> Array:
        """Of z given x [Z]."""
        return 1 / (1 + np.square(self.loading).sum(axis=0) / self.noise**2)

    def latent_mean(self, x: Array) -> Array:
        """Of z given x [n, Z]."""
        return (x - self.offset) @ self.loading / self.noise**2 * self.latent_variance

    def sample(self, num_records: int, generator: np.random.Generator) -> Array:
        """x [n, D]."""
        z = generator.standard_normal((num_records, self.loading.shape[1]))
        noise = generator.standard_normal((num_records, len(self.offset)))
        return z @ self.loading.T + self.offset + self.noise * noise

    def log_density(self, x: Array, extra_covariance: float | Array = 0.0) -> Array:
        """log p(x) [n], or under a wider covariance; nats."""
        covariance = self.covariance + extra_covariance
        residual = x - self.offset
        squared = np.einsum("nd,nd->n", residual, np.linalg.solve(covariance, residual.T).T)
        return -0.5 * (squared + np.linalg.slogdet(2 * np.pi * covariance).logabsdet)

    def kl_of_encoder(self, x: Array, shift: float, spread: float) -> Array:
        """KL(q(z | x) || p(z | x)) [n] of the encoder of `weights` with the same arguments, nats."""
        difference = shift * (1 - self.latent_mean(x))
        mahalanobis = np.square(difference) / self.latent_variance
        return 0.5 * (spread + mahalanobis - 1 - np.log(spread)).sum(axis=1)

    def weights(self, shift: float = 0.0, spread: float = 1.0) -> Array:
        """Mean weights [P]; the encoder's mean is moved by `shift` of the way to 1, its variance is `spread`-fold."""
        num_columns, latent = self.loading.shape
        views = self.model.layout.views(flat := torch.zeros(self.model.layout.num_weights, dtype=torch.float64))
        projection = (1 - shift) * (self.loading / self.noise**2 * self.latent_variance).T
        views["encoder.0.weight"][:latent] = torch.from_numpy(projection)
        views["encoder.0.bias"][:latent] = torch.from_numpy(shift - projection @ self.offset)
        views["encoder.0.bias"][latent:] = torch.from_numpy(np.log(spread * self.latent_variance))
        views["decoder.0.weight"][:num_columns] = torch.from_numpy(self.loading)
        views["decoder.0.bias"][:num_columns] = torch.from_numpy(self.offset)
        views["decoder.0.bias"][num_columns:] = BOUND * np.arctanh(np.log(self.noise) / BOUND)
        return flat.numpy()

    def posterior(self, shift: float = 0.0, spread: float = 1.0, offset_variance: float = 0.0) -> NaturalParameters:
        """A posterior around these weights: sharp, except for the offset b."""
        flat = torch.full((self.model.layout.num_weights,), 1e-16, dtype=torch.float64)
        self.model.layout.views(flat)["decoder.0.bias"][: len(self.offset)] += offset_variance
        return self.model.family.natural(Moments(self.weights(shift, spread), flat.numpy()))


def example(num_columns: int = 9, latent: int = 3, noise: float = 0.7) -> LinearGaussian:
    """Columns of different length, an offset, and nothing symmetric."""
    generator = np.random.default_rng(7)
    directions = np.linalg.qr(generator.standard_normal((num_columns, latent))).Q
    return LinearGaussian(directions * np.linspace(2.0, 0.6, latent), generator.normal(1.0, 2.0, num_columns), noise)
