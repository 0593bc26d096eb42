from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from torch import Tensor

from streaming_vb.errors import ConfigError
from streaming_vb.layers import convolution
from streaming_vb.layers.convolution import Convolution
from streaming_vb.layers.estimators import Estimator, local, separate
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.tape import TapeEntry

LAYER = Convolution("layer", 3, 4, height=16, width=16, kernel=3, padding=1)
"""The setting in which the error of `local` is documented."""
DRAWS = 4_000


@pytest.fixture(autouse=True)
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights_of(layer: Convolution, weight_variance: float = 0.3, bias_variance: float = 0.0) -> Weights:
    """Means of both signs, and unequal variances around the given ones."""
    generator = torch.Generator().manual_seed(0)
    mean = {name: 0.2 + torch.randn(shape, generator=generator) for name, shape in layer.shapes().items()}
    scale = {layer.weight: weight_variance, layer.bias: bias_variance}
    variance = {
        name: scale[name] * (0.5 + torch.rand(shape, generator=generator)) for name, shape in layer.shapes().items()
    }
    return Weights(mean, variance)


def uniform_image() -> Tensor:
    return torch.rand(1, LAYER.num_inputs, generator=torch.Generator().manual_seed(1))


def zero_mean_image() -> Tensor:
    return torch.randn(1, LAYER.num_inputs, generator=torch.Generator().manual_seed(1))


def spatial_mean(layer: Convolution, outputs: Tensor) -> Tensor:
    """[B, O]: mean over the positions of each channel."""
    return outputs.view(len(outputs), layer.out_channels, -1).mean(-1)


def variance_by_one_kernel(layer: Convolution, weights: Weights, image: Tensor) -> Tensor:
    """sum_w V_w (d spatial mean / d w)^2 [O]: the mean is linear in the weights."""
    assert weights.variance is not None

    def of(weight: Tensor) -> Tensor:
        outputs = layer(Weights({**weights.mean, layer.weight: weight}), image, torch.Generator())
        return spatial_mean(layer, outputs)[0]

    jacobian = torch.autograd.functional.jacobian(of, weights.mean[layer.weight])
    return (jacobian.square() * weights.variance[layer.weight]).sum((1, 2, 3, 4))


def variance_by_independent_positions(layer: Convolution, weights: Weights, image: Tensor) -> Tensor:
    """1 / L^2 sum of the variances of the L pre-activations of a channel [O]."""
    assert weights.variance is not None
    variances = layer(Weights(weights.variance), image.square(), torch.Generator())
    return spatial_mean(layer, variances)[0] / (layer.out_height * layer.out_width)


def squared_errors_of_spatial_means(estimator: Estimator, weights: Weights, image: Tensor) -> np.ndarray:
    """[DRAWS, O]; their mean is the variance."""
    layer = replace(LAYER, estimator=estimator)
    draws = layer(weights, image.expand(DRAWS, -1), torch.Generator().manual_seed(2))
    exact = spatial_mean(layer, layer(Weights(weights.mean), image, torch.Generator()))
    return (spatial_mean(layer, draws) - exact).square().numpy()


def test_one_pre_activation_is_the_sum_over_its_window() -> None:
    layer = Convolution("layer", 2, 3, height=7, width=6, kernel=3, stride=2, padding=1)
    weights, rows = weights_of(layer), torch.randn(4, 84, generator=torch.Generator().manual_seed(3))
    values = layer(Weights(weights.mean), rows, torch.Generator()).view(4, 3, layer.out_height, layer.out_width)
    images, kernel = rows.view(4, 2, 7, 6), weights.mean["layer.weight"]
    inner = (images[:, :, 1:4, 3:6] * kernel[2]).sum((1, 2, 3)) + weights.mean["layer.bias"][2]
    corner = (images[:, :, 0:2, 0:2] * kernel[2, :, 1:, 1:]).sum((1, 2, 3)) + weights.mean["layer.bias"][2]
    torch.testing.assert_close(values[:, 2, 1, 2], inner)
    torch.testing.assert_close(values[:, 2, 0, 0], corner)


def test_local_loses_two_orders_of_magnitude_of_the_variance_of_a_spatial_mean() -> None:
    """The factor that the layer's docstring names, by two closed forms."""
    windows = torch.nn.functional.unfold(uniform_image().view(1, 3, 16, 16), 3, padding=1)[0]
    factor = windows.shape[1] * windows.mean(1).square().sum() / windows.square().mean(1).sum()
    even = Weights(weights_of(LAYER).mean, {LAYER.weight: torch.full((4, 3, 3, 3), 0.3), LAYER.bias: torch.zeros(4)})
    one_kernel = variance_by_one_kernel(LAYER, even, uniform_image())
    independent = variance_by_independent_positions(LAYER, even, uniform_image())
    torch.testing.assert_close(one_kernel / independent, factor.expand(4))
    assert 170 < float(factor) < 185


def test_for_images_with_a_mean_of_zero_local_loses_little() -> None:
    weights = weights_of(LAYER)
    one_kernel = variance_by_one_kernel(LAYER, weights, zero_mean_image())
    ratio = one_kernel / variance_by_independent_positions(LAYER, weights, zero_mean_image())
    assert 0.2 < float(ratio.min()) <= float(ratio.max()) < 5


def test_separate_has_the_variance_of_one_kernel() -> None:
    weights = weights_of(LAYER)
    values = squared_errors_of_spatial_means(separate, weights, uniform_image())
    assert deviations(values, variance_by_one_kernel(LAYER, weights, uniform_image()).numpy()) < STANDARD_ERRORS
    wrong = variance_by_independent_positions(LAYER, weights, uniform_image())
    assert deviations(values, wrong.numpy()) > STANDARD_ERRORS


def test_local_has_the_variance_of_independent_positions() -> None:
    weights = weights_of(LAYER)
    values = squared_errors_of_spatial_means(local, weights, uniform_image())
    expected = variance_by_independent_positions(LAYER, weights, uniform_image())
    assert deviations(values, expected.numpy()) < STANDARD_ERRORS
    right = variance_by_one_kernel(LAYER, weights, uniform_image())
    assert deviations(values, right.numpy()) > STANDARD_ERRORS


@pytest.mark.parametrize("estimator", [local, separate])
def test_the_noise_of_the_bias_is_the_same_at_all_positions(estimator: Estimator) -> None:
    weights = weights_of(LAYER, weight_variance=0.0, bias_variance=0.3)
    assert weights.variance is not None
    values = squared_errors_of_spatial_means(estimator, weights, uniform_image())
    expected = weights.variance[LAYER.bias].numpy()
    assert deviations(values, expected) < STANDARD_ERRORS
    assert deviations(values, expected / 256) > STANDARD_ERRORS


def test_squared_gradients_do_not_depend_on_how_many_records_are_unfolded_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = weights_of(LAYER)
    inputs = torch.rand(7, LAYER.num_inputs, generator=torch.Generator().manual_seed(4))
    tape: list[TapeEntry] = []
    values = LAYER(weights, inputs, torch.Generator().manual_seed(5), tape)
    found = []
    for numbers in (10**9, 30_000, 1):  # all records, some with a rest, one by one
        monkeypatch.setattr(convolution, "_NUMBERS_AT_ONCE", numbers)
        out = {name: torch.full_like(mean, torch.nan) for name, mean in weights.mean.items()}
        LAYER.squared_gradient(tape[0], values.detach(), out)
        found.append(out[LAYER.weight])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_a_kernel_as_large_as_the_padded_image_gives_one_pixel() -> None:
    layer = Convolution("layer", 1, 1, height=3, width=5, kernel=7, padding=2)
    assert (layer.out_height, layer.out_width) == (1, 3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kernel": 8, "padding": 1}, "images of 5 x 9 must give at least one pixel, .* give 0 x 4"),
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"padding": -1}, "padding must be at least 0, got -1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"height": 0}, "height must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(setting: dict[str, int], message: str) -> None:
    sizes = {"in_channels": 1, "out_channels": 1, "height": 5, "width": 9, "kernel": 3, **setting}
    with pytest.raises(ConfigError, match=f"^layer: {message}") as caught:
        Convolution("layer", **sizes)
    assert "\n" not in str(caught.value)
