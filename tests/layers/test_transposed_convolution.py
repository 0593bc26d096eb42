import itertools
from collections.abc import Iterator

import pytest
import torch

from streaming_vb.errors import ConfigError
from streaming_vb.layers.convolution import Convolution
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.transposed_convolution import TransposedConvolution


@pytest.fixture(autouse=True)
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def transpose_of(layer: Convolution) -> TransposedConvolution:
    """From the images that come out back to those that went in."""
    sizes = zip((layer.height, layer.width), (layer.out_height, layer.out_width), strict=True)
    left_out = tuple(size - ((small - 1) * layer.stride - 2 * layer.padding + layer.kernel) for size, small in sizes)
    return TransposedConvolution(
        layer.name,
        layer.out_channels,
        layer.in_channels,
        layer.out_height,
        layer.out_width,
        layer.kernel,
        layer.stride,
        layer.padding,
        output_padding=(left_out[0], left_out[1]),
    )


@pytest.mark.parametrize(
    ("height", "kernel", "stride", "padding"), list(itertools.product((7, 8), (3, 4), (1, 2, 3), (0, 1)))
)
def test_it_is_the_transpose_of_a_convolution_with_the_same_weights(
    height: int, kernel: int, stride: int, padding: int
) -> None:
    """<y, conv(x)> = <transposed(y), x> for all x and y."""
    layer = Convolution("layer", 2, 3, height, 9, kernel, stride, padding)
    transposed, generator = transpose_of(layer), torch.Generator().manual_seed(1)
    weight = torch.randn(3, 2, kernel, kernel, generator=generator)
    x = torch.randn(1, layer.num_inputs, generator=generator)
    y = torch.randn(1, layer.num_outputs, generator=generator)
    there = layer(Weights({"layer.weight": weight, "layer.bias": torch.zeros(3)}), x, generator)
    back = transposed(Weights({"layer.weight": weight, "layer.bias": torch.zeros(2)}), y, generator)
    assert transposed.shapes()["layer.weight"] == weight.shape
    assert (transposed.out_height, transposed.out_width) == (height, 9)
    torch.testing.assert_close((y * there).sum(), (back * x).sum())
    with pytest.raises(AssertionError):
        torch.testing.assert_close((y * there).sum(), (back * x.flip(1)).sum())


def test_the_bias_is_added_once_to_every_pixel_of_its_channel() -> None:
    layer = TransposedConvolution("layer", 1, 2, height=3, width=2, kernel=3, stride=2, padding=1)
    weights = Weights({"layer.weight": torch.zeros(1, 2, 3, 3), "layer.bias": torch.tensor([1.0, -2.0])})
    values = layer(weights, torch.ones(1, 6), torch.Generator())
    torch.testing.assert_close(values, torch.tensor([[1.0] * 15 + [-2.0] * 15]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"padding": 3}, "images of 2 x 3 must give at least one pixel, .* give -1 x 1"),
        ({"output_padding": (0, 2)}, r"output_padding must be at least 0 and below the stride 2, got \(0, 2\)"),
        ({"output_padding": (-1, 0)}, r"output_padding must be at least 0 and below the stride 2, got \(-1, 0\)"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(setting: dict[str, object], message: str) -> None:
    sizes = {"in_channels": 1, "out_channels": 1, "height": 2, "width": 3, "kernel": 3, "stride": 2, **setting}
    with pytest.raises(ConfigError, match=f"^layer: {message}") as caught:
        TransposedConvolution("layer", **sizes)
    assert "\n" not in str(caught.value)
