"""Transposed two-dimensional convolution with normal weights: the decoder's way back from small images to large ones.

(Dumoulin and Visin 2016, chapter 4. Draws and gradients as in `layers/convolution.py`.)
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from streaming_vb.errors import ConfigError
from streaming_vb.layers.convolution import AbstractConvolution
from streaming_vb.layers.estimators import Estimator, local


@dataclass(frozen=True, slots=True)
class TransposedConvolution(AbstractConvolution):
    """C channels to O channels; the outputs are the fine image, and weights are [C, O, K, K].

    `local` is as wrong about sums over positions as it is for `Convolution`.

    Attributes:
        output_padding: rows below and columns to the right, at most stride - 1, that a convolution of the same kernel,
            stride and padding would have left out.

    Raises:
        ConfigError: a size is too small, no pixel would come out, or the output padding is not below the stride.

    >>> layer = TransposedConvolution("layer", 8, 1, 14, 14, kernel=3, stride=2, padding=1, output_padding=(1, 1))
    >>> layer.out_height, layer.out_width, layer.num_outputs
    (28, 28, 784)
    """

    name: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0
    output_padding: tuple[int, int] = (0, 0)
    estimator: Estimator = local

    def __post_init__(self) -> None:
        self._require_pixels()
        if not 0 <= min(self.output_padding) <= max(self.output_padding) < self.stride:
            raise ConfigError(
                f"{self.name}: output_padding must be at least 0 and below the stride {self.stride}, "
                f"got {self.output_padding}"
            )

    @property
    def out_height(self) -> int:
        """(H - 1) stride - 2 padding + K + output padding."""
        return (self.height - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding[0]

    @property
    def out_width(self) -> int:
        """(W - 1) stride - 2 padding + K + output padding."""
        return (self.width - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding[1]

    @property
    def fan_in(self) -> int:
        """C ceil(K / stride)^2: so many places of the kernel reach one pixel, or fewer."""
        return int(self.in_channels * (-(-self.kernel // self.stride)) ** 2)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""
        weight = (self.in_channels, self.out_channels, self.kernel, self.kernel)
        return {self.weight: weight, self.bias: (self.out_channels,)}

    def _apply(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv_transpose2d(images, weight, bias, self.stride, self.padding, self.output_padding)

    def _coarse_and_fine(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, outputs


def example() -> TransposedConvolution:
    """A small layer, for docs and laws."""
    return TransposedConvolution("layer", 3, 2, 3, 2, kernel=3, stride=2, padding=1, output_padding=(0, 1))
