"""Dropout and its Gaussian form: mean 1, variance alpha, one draw per activation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from torch import Tensor

from streaming_vb.errors import ConfigError
from streaming_vb.layers.noise import binary_dropout, gaussian_dropout

DRAWS = 20_000
RATE = 0.2
ALPHA = RATE / (1 - RATE)
INPUTS = torch.tensor([1.0, -2.0, 0.5])

Noise = Callable[[Tensor, torch.Generator], Tensor]
every_noise = pytest.mark.parametrize(
    "noise",
    [
        pytest.param(lambda inputs, generator: gaussian_dropout(inputs, ALPHA, generator), id="gaussian"),
        pytest.param(lambda inputs, generator: binary_dropout(inputs, RATE, generator), id="binary"),
    ],
)


def factors(noise: Noise, seed: int = 0) -> np.ndarray:
    """Draws [DRAWS, 3] of what the activations are multiplied by."""
    inputs = INPUTS.expand(DRAWS, -1)
    return (noise(inputs, torch.Generator().manual_seed(seed)) / inputs).double().numpy()


@every_noise
def test_the_factor_has_mean_one_and_variance_alpha(noise: Noise) -> None:
    drawn = factors(noise)
    assert deviations(drawn, np.asarray(1.0)) < STANDARD_ERRORS
    squared = (drawn - 1) ** 2
    assert deviations(squared, np.asarray(ALPHA)) < STANDARD_ERRORS
    assert deviations(squared, np.asarray(RATE)) > STANDARD_ERRORS


@every_noise
def test_the_factors_of_units_and_records_are_independent(noise: Noise) -> None:
    deviation = factors(noise) - 1
    assert deviations(deviation * np.roll(deviation, 1, axis=1), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(deviation[::2] * deviation[1::2], np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(deviation * deviation, np.asarray(0.0)) > STANDARD_ERRORS


@every_noise
def test_the_noise_follows_the_generator_and_leaves_the_inputs(noise: Noise) -> None:
    before = INPUTS.clone()
    assert np.array_equal(factors(noise, seed=3), factors(noise, seed=3))
    assert not np.array_equal(factors(noise, seed=3), factors(noise, seed=4))
    assert torch.equal(INPUTS, before)


def test_binary_dropout_keeps_a_unit_at_one_minus_the_rate() -> None:
    drawn = factors(lambda inputs, generator: binary_dropout(inputs, RATE, generator))
    np.testing.assert_allclose(np.unique(drawn), [0, 1 / (1 - RATE)], rtol=1e-6)
    assert deviations((drawn > 0).astype(float), np.asarray(1 - RATE)) < STANDARD_ERRORS
    assert deviations((drawn > 0).astype(float), np.asarray(RATE)) > STANDARD_ERRORS


def test_without_noise_the_inputs_pass() -> None:
    assert torch.equal(gaussian_dropout(INPUTS, 0.0, torch.Generator()), INPUTS)
    assert torch.equal(binary_dropout(INPUTS, 0.0, torch.Generator()), INPUTS)


def test_alpha_of_each_unit_gets_its_gradient() -> None:
    alpha = torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64, requires_grad=True)
    inputs = INPUTS.double().expand(2, -1)
    assert torch.autograd.gradcheck(lambda a: gaussian_dropout(inputs, a, torch.Generator().manual_seed(0)), [alpha])


def test_alpha_of_zero_has_a_finite_gradient() -> None:
    alpha = torch.zeros(3, requires_grad=True)
    noisy = gaussian_dropout(INPUTS, alpha, torch.Generator())
    (gradient,) = torch.autograd.grad(noisy.sum(), alpha)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_below_one_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=rf"at least 0 and below 1, got {rate:g}"):
        binary_dropout(INPUTS, rate, torch.Generator())


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha must be at least 0, got -0\.5"):
        gaussian_dropout(INPUTS, torch.tensor([0.1, -0.5, 1.0]), torch.Generator())
