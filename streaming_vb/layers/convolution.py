"""Two-dimensional convolution with normal weights, on rows of flat images, and what it shares with its transpose.

Every single pre-activation is distributed as that of a linear layer: mean conv(A; M) + m, variance conv(A * A; V) + v
(Kingma, Salimans and Welling 2015, section 2.2). But one kernel serves all positions, so that the pre-activations of a
record are correlated. The estimator `local` draws independent noise per position and loses that correlation, except for
the bias, whose noise is drawn once per record and channel; `separate`, `flipout` and `shared` keep all of it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from streaming_vb.errors import ConfigError
from streaming_vb.layers.estimators import Affine, Estimator, local
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.tape import TapeEntry, record

_NUMBERS_AT_ONCE = 4_194_304
"""Numbers in the windows and per-record gradients that exist at the same time: 16 MB in float32."""


class AbstractConvolution(ABC):
    """Rows of images [B, C H W] to rows of images [B, O H' W'].

    The map connects a fine image with a coarse one, which has a pixel for every place of the kernel on the fine one.
    Weights are `name.weight` [coarse channels, fine channels, K, K] and `name.bias` [O].

    Fields of a concrete class:
        in_channels: C.
        out_channels: O.
        height: H, of the inputs.
        width: W, of the inputs.
        kernel: K, height and width of the kernel.
        stride: fine pixels from one place of the kernel to the next.
        padding: rows and columns of zeros on every side of the fine image.
        estimator: how pre-activations are drawn (`layers/estimators.py`).
    """

    __slots__ = ()
    name: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    stride: int
    padding: int
    estimator: Estimator

    @property
    @abstractmethod
    def out_height(self) -> int:
        """H'."""

    @property
    @abstractmethod
    def out_width(self) -> int:
        """W'."""

    @property
    @abstractmethod
    def fan_in(self) -> int:
        """Inputs that one output sums over, away from the border."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""

    @abstractmethod
    def _apply(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map, from images [B, C, H, W] to images [B, O, H', W']."""

    @abstractmethod
    def _coarse_and_fine(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The same images, the coarse ones first."""

    @property
    def num_inputs(self) -> int:
        """C H W."""
        return self.in_channels * self.height * self.width

    @property
    def num_outputs(self) -> int:
        """O H' W'."""
        return self.out_channels * self.out_height * self.out_width

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"

    def __call__(
        self,
        weights: Weights,
        inputs: Tensor,
        generator: torch.Generator,
        tape: list[TapeEntry] | None = None,
    ) -> Tensor:
        """Pre-activations [B, O H' W'] of inputs [B, C H W]: drawn by the estimator, or their mean where the weights
        have no variance."""
        images = self._input_images(inputs)
        means = Affine(weights.mean[self.weight], weights.mean[self.bias])
        if weights.variance is None:
            outputs = self._apply(images, *means)
        else:
            variances = Affine(weights.variance[self.weight], weights.variance[self.bias])
            outputs = self.estimator(self._apply, images, means, variances, generator)
        return record(tape, self, inputs, inputs.detach().square(), outputs.flatten(1))

    def gradient(
        self, entry: TapeEntry, u: Tensor, out: dict[str, Tensor], *, decay: float = 0.0, weight: float = 1.0
    ) -> None:
        """out <- decay out + weight sum_i g_i, for gradients u [B, O H' W'] of the pre-activations."""
        images_u = self._output_images(u)
        coarse, fine = self._coarse_and_fine(self._input_images(entry.inputs), images_u)
        total = out[self.weight]
        gradient = conv2d_weight(fine, total.shape, coarse, self.stride, self.padding)
        _add(gradient, total, decay, weight)
        _add(images_u.sum((0, 2, 3)), out[self.bias], decay, weight)

    def squared_gradient(self, entry: TapeEntry, u: Tensor, out: dict[str, Tensor], *, weight: float = 1.0) -> None:
        """out <- weight sum_i g_i * g_i, with g_i summed over positions before it is squared."""
        images_u = self._output_images(u)
        coarse, fine = self._coarse_and_fine(self._input_images(entry.inputs), images_u)
        total = out[self.weight].view(coarse.shape[1], -1)
        total.zero_()
        numbers_per_record = total.shape[1] * (coarse[0, 0].numel() + len(total))
        num_records = max(1, _NUMBERS_AT_ONCE // numbers_per_record)
        for some_coarse, some_fine in zip(coarse.split(num_records), fine.split(num_records), strict=True):
            gradients = torch.bmm(some_coarse.flatten(2), self._windows(some_fine).mT)
            total.add_(gradients.square_().sum(0), alpha=weight)
        torch.mul(images_u.sum((2, 3)).square().sum(0), weight, out=out[self.bias])

    def _require_pixels(self) -> None:
        """Raise ConfigError unless every size can be used and a pixel comes out."""
        for field in ("in_channels", "out_channels", "height", "width", "kernel", "stride", "padding"):
            least, value = int(field != "padding"), getattr(self, field)
            if value < least:
                raise ConfigError(f"{self.name}: {field} must be at least {least}, got {value}")
        if min(self.out_height, self.out_width) < 1:
            raise ConfigError(
                f"{self.name}: images of {self.height} x {self.width} must give at least one pixel, but kernel "
                f"{self.kernel}, stride {self.stride}, padding {self.padding} give {self.out_height} x "
                f"{self.out_width}. Change the kernel or the padding"
            )

    def _input_images(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, self.in_channels, self.height, self.width)

    def _output_images(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, self.out_channels, self.out_height, self.out_width)

    def _windows(self, fine: Tensor) -> Tensor:
        """What the kernel sees at each of its L places [B, fine channels K K, L]; `functional.unfold`, but faster."""
        padded = functional.pad(fine, (self.padding,) * 4)
        windows = padded.unfold(2, self.kernel, self.stride).unfold(3, self.kernel, self.stride)
        return windows.permute(0, 1, 4, 5, 2, 3).flatten(1, 3).flatten(2)


@dataclass(frozen=True, slots=True)
class Convolution(AbstractConvolution):
    """C channels to O channels; the inputs are the fine image, and weights are [O, C, K, K].

    `local` is cheap, and wrong about sums over positions. With equal variances V, and A_j what weight j sees, the mean
    over all L positions of an output has the variance V sum_j (mean of A_j)^2; under `local` it has
    V sum_j (mean of A_j^2) / L. For images of 3 channels, 16 x 16, uniform in [0, 1], and kernel 3 with padding 1, that
    is too small by a factor of 177; for images with a mean of zero the factor is near 1. Use `separate` or `flipout`
    where it matters.

    Raises:
        ConfigError: a size is too small, or no pixel would come out.

    >>> layer = Convolution("layer", 1, 8, height=28, width=28, kernel=3, stride=2, padding=1)
    >>> layer.out_height, layer.out_width, layer.num_outputs
    (14, 14, 1568)
    """

    name: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0
    estimator: Estimator = local

    def __post_init__(self) -> None:
        self._require_pixels()

    @property
    def out_height(self) -> int:
        """floor((H + 2 padding - K) / stride) + 1."""
        return (self.height + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def out_width(self) -> int:
        """floor((W + 2 padding - K) / stride) + 1."""
        return (self.width + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def fan_in(self) -> int:
        """C K K."""
        return self.in_channels * self.kernel**2

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""
        weight = (self.out_channels, self.in_channels, self.kernel, self.kernel)
        return {self.weight: weight, self.bias: (self.out_channels,)}

    def _apply(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(images, weight, bias, self.stride, self.padding)

    def _coarse_and_fine(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return outputs, inputs


def _add(gradient: Tensor, out: Tensor, decay: float, weight: float) -> None:
    """out <- decay out + weight gradient; what `out` held is not read where decay is 0."""
    (out.mul_(decay) if decay else out.zero_()).add_(gradient, alpha=weight)


def example() -> Convolution:
    """A small layer, for docs and laws."""
    return Convolution("layer", 2, 3, height=5, width=4, kernel=3, stride=2, padding=1)
