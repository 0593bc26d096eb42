"""The exact divergence against quadrature of its definition, and the published fits against their documented errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from streaming_vb.errors import ConfigError
from streaming_vb.layers.dropout_divergence import Divergence, exact, kingma, molchanov
from streaming_vb.types import Array

LOG_ALPHAS = np.linspace(-20, 20, 403)  # at every distance from a node
MEAN_LOG_NORMAL = -0.5 * (np.euler_gamma + math.log(2))  # E log|e|
every_divergence = pytest.mark.parametrize("divergence", [exact, kingma, molchanov])


def integral(function: Any, start: float, stop: float, **settings: Any) -> float:
    return float(quad(function, start, stop, epsabs=1e-13, epsrel=1e-12, limit=400, **settings)[0])


def density(e: float) -> float:
    return math.exp(-e * e / 2) / math.sqrt(2 * math.pi)


def kl_by_quadrature(log_alpha: float) -> float:
    """E log|alpha^(-1/2) + e| - E log|e|; the logarithm is a weight of the quadrature where it is singular."""
    ratio = math.exp(-log_alpha / 2)
    if ratio > 12:
        far = integral(lambda e: math.log1p(e / ratio) * density(e), -11.9, 11.9)
        return far + math.log(ratio) - MEAN_LOG_NORMAL
    below = integral(density, -40, -ratio, weight="alg-logb", wvar=(0, 0)) if ratio < 12 else 0.0
    above = integral(density, -ratio, 12, weight="alg-loga", wvar=(0, 0))
    return below + above - MEAN_LOG_NORMAL


def slope_by_quadrature(log_alpha: float) -> float:
    """-x D(x) with x^2 = 1 / (2 alpha) and D(x) the integral of exp(s^2 - x^2) from 0 to x."""
    x = math.exp(-log_alpha / 2) / math.sqrt(2)
    return -x * integral(lambda r: math.exp(-r * (2 * x - r)), 0, min(x, 40 / x))


def of(divergence: Divergence, log_alphas: Array) -> Array:
    return divergence(torch.tensor(log_alphas, dtype=torch.float64)).numpy()


def slope_of(divergence: Divergence, log_alphas: Array) -> Array:
    leaves = torch.tensor(log_alphas, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence(leaves).sum(), leaves)
    return slope.numpy()


def test_exact_equals_quadrature_of_the_definition() -> None:
    expected = [kl_by_quadrature(log_alpha) for log_alpha in LOG_ALPHAS]
    np.testing.assert_allclose(of(exact, LOG_ALPHAS), expected, rtol=0, atol=1e-12)


def test_exact_slope_equals_quadrature_of_the_dawson_integral() -> None:
    expected = [slope_by_quadrature(log_alpha) for log_alpha in LOG_ALPHAS]
    np.testing.assert_allclose(slope_of(exact, LOG_ALPHAS), expected, rtol=0, atol=3e-11)


def test_exact_slope_has_the_published_values() -> None:
    slope = slope_of(exact, np.array([-4.0, -2.0, 0.0, 1.0, 2.0, 4.0]))
    np.testing.assert_allclose(slope, [-0.509714, -0.611234, -0.362389, -0.162960, -0.064696, -0.009102], atol=6e-7)


def test_exact_slope_is_that_of_the_value() -> None:
    log_alpha = torch.linspace(-30, 30, 101, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(exact, [log_alpha], eps=1e-5, atol=1e-8)


def test_exact_in_single_precision_is_right_to_1e_6() -> None:
    log_alphas = LOG_ALPHAS.astype(np.float32)
    leaves = torch.tensor(log_alphas, requires_grad=True)
    values = exact(leaves)
    (slope,) = torch.autograd.grad(values.sum(), leaves)
    assert values.dtype == slope.dtype == torch.float32
    np.testing.assert_allclose(values.detach().numpy(), of(exact, log_alphas.astype(np.float64)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(slope.numpy(), slope_of(exact, log_alphas.astype(np.float64)), rtol=0, atol=1e-6)


def test_exact_between_and_beyond_the_nodes_is_smooth() -> None:
    """Second differences of a fine grid show every kink and every jump."""
    log_alphas = np.linspace(-26, 34, 600_001)
    np.testing.assert_allclose(np.diff(of(exact, log_alphas), 2), 0, atol=1e-8)
    np.testing.assert_allclose(np.diff(slope_of(exact, log_alphas), 2), 0, atol=1e-8)


def test_exact_far_outside_is_a_line_or_zero() -> None:
    np.testing.assert_allclose(of(exact, np.array([-1e4, -1e30])), [5e3 - MEAN_LOG_NORMAL, 5e29], rtol=1e-14)
    np.testing.assert_allclose(slope_of(exact, np.array([-1e4, -1e30])), -0.5)
    assert not of(exact, np.array([100.0, 1e30, math.inf])).any()
    assert not slope_of(exact, np.array([100.0, 1e30, math.inf])).any()


def test_exact_of_nan_is_nan() -> None:
    assert np.isnan(of(exact, np.array([math.nan, 0.0]))).tolist() == [True, False]


def test_exact_is_positive_and_falls_with_alpha() -> None:
    values = of(exact, np.linspace(-40, 30, 10_001))
    assert (values > 0).all()
    assert (np.diff(values) < 0).all()


def test_exact_of_many_elements_is_that_of_each() -> None:
    log_alpha = torch.randn(7, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    before = log_alpha.clone()
    expected = torch.stack([exact(column) for column in log_alpha.unbind(1)], 1)
    assert torch.equal(exact(log_alpha), expected)
    assert torch.equal(exact(log_alpha.T), expected.T)
    assert torch.equal(log_alpha, before)


@every_divergence
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_divergence_keeps_the_shape(divergence: Divergence, shape: tuple[int, ...]) -> None:
    log_alpha = torch.full(shape, -1.0, requires_grad=True)
    values = divergence(log_alpha)
    (slope,) = torch.autograd.grad(values.sum(), log_alpha)
    assert values.shape == slope.shape == shape


@every_divergence
def test_every_divergence_has_the_same_constant(divergence: Divergence) -> None:
    np.testing.assert_allclose(of(divergence, np.array([-20.0])), 10 - MEAN_LOG_NORMAL, atol=6e-4)


def test_the_sigmoid_fit_tends_to_zero() -> None:
    assert 0 < of(molchanov, np.array([20.0]))[0] < 1e-8


def test_the_polynomial_has_its_documented_errors() -> None:
    log_alphas = np.linspace(-8, 0, 4001)
    errors = of(exact, log_alphas) - of(kingma, log_alphas)
    np.testing.assert_allclose([errors.min(), errors.max()], [0.0002, 0.0403], atol=5e-5)
    slope_errors = np.abs(slope_of(exact, log_alphas) - slope_of(kingma, log_alphas))
    np.testing.assert_allclose([slope_errors.max(), slope_errors[-1]], 0.054, atol=5e-4)


def test_the_sigmoid_fit_has_its_documented_errors() -> None:
    log_alphas = np.linspace(-8, 8, 8001)
    errors = np.abs(of(exact, log_alphas) - of(molchanov, log_alphas))
    np.testing.assert_allclose(errors.max(), 0.0094, atol=5e-5)
    assert abs(log_alphas[errors.argmax()] + 3.52) < 0.05
    slope_errors = np.abs(slope_of(exact, log_alphas) - slope_of(molchanov, log_alphas))
    np.testing.assert_allclose(slope_errors.max(), 0.0137, atol=5e-5)


def test_the_polynomial_refuses_alpha_above_one() -> None:
    with pytest.raises(
        ConfigError, match=r"the largest log alpha is 0\.7\. Give the layer greatest_alpha=1\.0"
    ) as error:
        kingma(torch.tensor([-3.0, 0.7, 0.1]))
    assert "\n" not in str(error.value)
    accepted: Tensor = kingma(torch.zeros(2))
    assert torch.isfinite(accepted).all()
