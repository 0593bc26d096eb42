"""Convolutional VAE: a posterior over every kernel of an encoder that halves images and a decoder that doubles them.

Generative and recognition model are those of `models/vae.py`; only the layers differ. Strided and transposed
convolutions take the place of pooling and its inverse (Radford, Metz and Chintala 2016, section 3).
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from streaming_vb.errors import ConfigError
from streaming_vb.layers.convolution import Convolution
from streaming_vb.layers.estimators import Estimator, local
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.tape import Layer
from streaming_vb.layers.transposed_convolution import TransposedConvolution
from streaming_vb.likelihoods.bernoulli import Bernoulli
from streaming_vb.models.vae import AbstractVAE, Likelihood, require_dropout, require_sizes

_KERNEL, _STRIDE, _PADDING = 3, 2, 1
"""H x W becomes ceil(H / 2) x ceil(W / 2)."""


@dataclass(frozen=True, slots=True)
class ConvolutionalVAE(AbstractVAE):
    """Images of C x H x W, convolutions that halve them, a hidden layer, Z latent dimensions; mirrored in the decoder.

    A record is one row of D = C H W columns: channel by channel, line by line. With so many layers between x and z, a
    short stream can end before z is used at all; an objective whose KL rises slowly helps, `Elbo(warm_up=...)`.

    Args:
        height: H.
        width: W.
        in_channels: C, 1 for grey images.
        channels: of each convolution, input side first.
        hidden: width of the layer between the smallest images and z.
        latent: Z.
        likelihood: p(x | outputs).
        estimator: how layers draw pre-activations; `local` is fast, `separate` exact for convolutions too.
        encoder_dropout: variance alpha of Gaussian dropout on the encoder's hidden activations while training.

    Raises:
        ConfigError: a size is below 1, or there are no convolutions.

    >>> model = ConvolutionalVAE(28, 28)
    >>> model.num_columns, model.layout.num_weights
    (784, 420521)
    """

    height: int
    width: int
    in_channels: int = 1
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 128
    latent: int = 20
    likelihood: Likelihood = Bernoulli()
    estimator: Estimator = local
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.channels:
            raise ConfigError("convolutional VAE: channels must name at least one convolution. Use VAE for none")
        require_sizes(
            "convolutional VAE",
            height=(self.height,),
            width=(self.width,),
            in_channels=(self.in_channels,),
            channels=self.channels,
            hidden=(self.hidden,),
            latent=(self.latent,),
        )
        require_dropout(self.encoder_dropout)

    @property
    def num_columns(self) -> int:
        """D = C H W."""
        return self.in_channels * self.height * self.width

    @property
    def encoder(self) -> tuple[Layer, ...]:
        """D -> convolutions -> hidden -> 2 Z (mean and log variance of z)."""
        convolutions = self._convolutions
        return (
            *convolutions,
            self._linear("encoder", len(convolutions), convolutions[-1].num_outputs, self.hidden),
            self._linear("encoder", len(convolutions) + 1, self.hidden, 2 * self.latent),
        )

    @property
    def decoder(self) -> tuple[Layer, ...]:
        """Z -> hidden -> transposed convolutions -> outputs of the likelihood, one channel each per channel of x."""
        convolutions = self._convolutions
        outputs = self.in_channels * self.likelihood.outputs_per_column
        channels = (*reversed(self.channels), outputs)
        images = zip(itertools.pairwise(channels), reversed(convolutions), strict=True)
        return (
            self._linear("decoder", 0, self.latent, self.hidden),
            self._linear("decoder", 1, self.hidden, convolutions[-1].num_outputs),
            *(self._back(number, *pair, there) for number, (pair, there) in enumerate(images, start=2)),
        )

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {
            "model": "convolutional-vae",
            "columns": self.num_columns,
            "height": self.height,
            "width": self.width,
            "in_channels": self.in_channels,
            "channels": list(self.channels),
            "hidden": self.hidden,
            "latent": self.latent,
            "likelihood": self.likelihood.name,
            "estimator": self.estimator.__name__,
            "encoder_dropout": self.encoder_dropout,
        }

    @property
    def _convolutions(self) -> tuple[Convolution, ...]:
        layers: list[Convolution] = []
        height, width = self.height, self.width
        for number, (before, after) in enumerate(itertools.pairwise((self.in_channels, *self.channels))):
            name = f"encoder.{number}"
            layer = Convolution(name, before, after, height, width, _KERNEL, _STRIDE, _PADDING, self.estimator)
            layers.append(layer)
            height, width = layer.out_height, layer.out_width
        return tuple(layers)

    def _back(self, number: int, before: int, after: int, there: Convolution) -> TransposedConvolution:
        """From images of the size that a convolution gives to those that it takes: an even side needs one more line."""
        return TransposedConvolution(
            f"decoder.{number}",
            before,
            after,
            there.out_height,
            there.out_width,
            _KERNEL,
            _STRIDE,
            _PADDING,
            output_padding=(1 - there.height % 2, 1 - there.width % 2),
            estimator=self.estimator,
        )

    def _linear(self, network: str, number: int, before: int, after: int) -> Linear:
        return Linear(f"{network}.{number}", before, after, self.estimator)


def example() -> ConvolutionalVAE:
    """A small model, for docs and laws."""
    return ConvolutionalVAE(5, 4, channels=(2, 3), hidden=5, latent=2)
