"""Estimators on a linear map, where moments and expected gradients are closed forms."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from streaming_vb.layers.estimators import Affine, Estimator, flipout, local, mean, separate, shared, shares_weights
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.types import Array

NOISY = (local, separate, flipout, shared)
every_estimator = pytest.mark.parametrize("estimator", [*NOISY, mean], ids=lambda each: each.__name__)
every_noisy_estimator = pytest.mark.parametrize("estimator", NOISY, ids=lambda each: each.__name__)


@pytest.fixture(autouse=True)
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Setting(NamedTuple):
    """Two different records of three inputs, and two outputs; means of both signs, unequal variances."""

    inputs: Tensor
    means: Affine
    variances: Affine


def setting(with_bias: bool = True) -> Setting:
    inputs = torch.tensor([[0.9, -0.4, 1.3], [0.2, 1.1, 0.6]])
    weight, variance = (
        torch.tensor([[0.4, -0.7, 0.2], [0.1, 0.5, -0.3]]),
        torch.tensor([[0.3, 0.1, 0.2], [0.05, 0.4, 0.1]]),
    )
    bias, bias_variance = (torch.tensor([0.3, -0.2]), torch.tensor([0.2, 0.1])) if with_bias else (None, None)
    return Setting(inputs, Affine(weight, bias), Affine(variance, bias_variance))


def repeated(estimator: Estimator, at: Setting, times: int, seed: int = 1) -> Tensor:
    """Pre-activations [times, B, O] of as many calls; in one call where nothing is shared between records."""
    noise = generator(seed)
    if estimator in (local, separate):
        return estimator(linear, at.inputs.repeat(times, 1), at.means, at.variances, noise).view(
            times, *at.inputs.shape[:1], -1
        )
    return torch.stack([estimator(linear, at.inputs, at.means, at.variances, noise) for _ in range(times)])


def exact_moments(at: Setting) -> tuple[Tensor, Tensor]:
    """Mean and variance of every pre-activation [B, O]."""
    return linear(at.inputs, *at.means), linear(at.inputs.square(), *at.variances)


@every_noisy_estimator
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_mean_and_variance_of_every_preactivation_are_exact(estimator: Estimator, with_bias: bool) -> None:
    at = setting(with_bias)
    drawn, (expected, variance) = repeated(estimator, at, 2000), exact_moments(at)
    squares = (drawn - expected).square().numpy()
    assert deviations(drawn.numpy(), expected.numpy()) < STANDARD_ERRORS
    assert deviations(squares, variance.numpy()) < STANDARD_ERRORS
    assert deviations(squares, 1.2 * variance.numpy()) > STANDARD_ERRORS
    assert deviations(drawn.numpy(), expected.numpy()[::-1]) > STANDARD_ERRORS


@every_noisy_estimator
def test_a_bias_without_variance_is_added_as_it_is(estimator: Estimator) -> None:
    at = setting()
    known = at._replace(variances=Affine(at.variances.weight, None))
    drawn, (expected, _) = repeated(estimator, known, 2000), exact_moments(at)
    squares = (drawn - expected).square().numpy()
    assert deviations(drawn.numpy(), expected.numpy()) < STANDARD_ERRORS
    assert deviations(squares, linear(at.inputs.square(), at.variances.weight).numpy()) < STANDARD_ERRORS


@every_noisy_estimator
def test_only_shared_weights_make_records_covary(estimator: Estimator) -> None:
    """sum_j a_1j a_2j v_oj + v_o for one draw of the weights, and zero for draws of their own."""
    at = setting()
    centred = repeated(estimator, at, 2000) - exact_moments(at)[0]
    products = (centred[:, 0] * centred[:, 1]).numpy()
    covariance = linear((at.inputs[0] * at.inputs[1])[None], *at.variances)[0].numpy()
    expected, other = (covariance, 0 * covariance) if estimator is shared else (0 * covariance, covariance)
    assert deviations(products, expected) < STANDARD_ERRORS
    assert deviations(products, other) > STANDARD_ERRORS


def test_flipout_turns_the_signs_of_inputs_and_outputs() -> None:
    """One draw of the deviation gives a record of three inputs 2^3 deviations; with output signs alone, two."""
    at = setting(with_bias=False)
    centred = repeated(flipout, at._replace(inputs=at.inputs[:1].expand(200, 3)), 1)[0] - exact_moments(at)[0][0]
    for output in centred.T.round(decimals=9):
        assert len(output.unique()) == 8
        assert len(output.abs().unique()) == 4


def gradients(estimator: Estimator, at: Setting, times: int) -> Array:
    """Of sum sin(b) by means and variances of weight and bias [times, 2 (O I + O)], each the mean over copies."""
    copies = 20
    inputs = at.inputs.repeat(copies, 1)
    leaves = [tensor.clone().requires_grad_() for affine in (at.means, at.variances) for tensor in affine]
    noise, found = generator(), []
    for _ in range(times):
        drawn = estimator(linear, inputs, Affine(*leaves[:2]), Affine(*leaves[2:]), noise)
        parts = torch.autograd.grad(torch.sin(drawn).sum() / copies, leaves, materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found).numpy()


def exact_gradient(at: Setting) -> Array:
    """Of E[sum sin(b)] = sum sin(mu) exp(-v / 2)."""
    leaves = [tensor.clone().requires_grad_() for affine in (at.means, at.variances) for tensor in affine]
    mu, v = linear(at.inputs, *leaves[:2]), linear(at.inputs.square(), *leaves[2:])
    parts = torch.autograd.grad((torch.sin(mu) * torch.exp(-v / 2)).sum(), leaves)
    return torch.cat([part.flatten() for part in parts]).numpy()


@every_noisy_estimator
def test_the_gradient_of_a_nonlinear_loss_is_unbiased(estimator: Estimator) -> None:
    """By means and by variances; so all estimators have one expectation."""
    at = setting()
    found, expected = gradients(estimator, at, 500), exact_gradient(at)
    assert deviations(found, expected) < STANDARD_ERRORS
    size = len(expected) // 2
    assert deviations(found[:, :size], 1.3 * expected[:size]) > STANDARD_ERRORS
    assert deviations(found[:, size:], -expected[size:]) > STANDARD_ERRORS


def test_without_noise_the_gradient_is_that_at_the_mean() -> None:
    at = setting()
    none = at._replace(variances=Affine(0 * at.variances.weight, torch.zeros(2)))
    (found,), expected = gradients(mean, at, 1), exact_gradient(none)
    size = len(expected) // 2
    np.testing.assert_allclose(found[:size], expected[:size])
    np.testing.assert_array_equal(found[size:], 0.0)


def test_local_draws_have_far_less_variance_in_the_gradient_by_the_variances() -> None:
    """One softmax layer, D = 50, O = 10, B = 100, v = 0.05: at least 5 times less than every other estimator."""
    noise = generator(3)
    inputs, labels = torch.randn(100, 50, generator=noise), torch.randint(10, (100,), generator=noise)
    means = Affine(0.1 * torch.randn(10, 50, generator=noise), None)
    spread: dict[Estimator, tuple[float, float]] = {}
    for estimator in NOISY:
        leaves = means.weight.clone().requires_grad_(), torch.full((10, 50), 0.05).requires_grad_()
        found = []
        for _ in range(100):
            drawn = estimator(linear, inputs, Affine(leaves[0], None), Affine(leaves[1], None), noise)
            found.append(torch.autograd.grad(cross_entropy(drawn, labels, reduction="sum"), leaves))
        by_mean, by_variance = (torch.stack(parts).var(0).mean().item() for parts in zip(*found, strict=True))
        spread[estimator] = by_mean, by_variance
    for estimator in (separate, flipout, shared):
        assert 5 * spread[local][1] < spread[estimator][1]
    assert 1.2 * max(spread[each][0] for each in (local, separate, flipout)) < spread[shared][0]


@every_estimator
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_a_record_of_zeros_has_finite_values_and_gradients(estimator: Estimator, with_bias: bool) -> None:
    """Its variance is zero without a bias, and the square root has no gradient there."""
    torch.set_default_dtype(torch.float32)
    at = setting(with_bias)
    inputs = torch.stack([torch.zeros(3), at.inputs[0].float()]).requires_grad_()
    leaves = [t.float().requires_grad_() for affine in (at.means, at.variances) for t in affine if t is not None]
    parts = leaves if with_bias else [leaves[0], None, leaves[1], None]
    drawn = estimator(linear, inputs, Affine(*parts[:2]), Affine(*parts[2:]), generator())
    found = torch.autograd.grad(drawn.square().sum(), [inputs, *leaves], materialize_grads=True)
    assert all(torch.isfinite(tensor).all() for tensor in (drawn, *found))
    if not with_bias:
        torch.testing.assert_close(drawn[0], torch.zeros(2), atol=1e-5, rtol=0)


def test_more_records_than_fit_at_once_have_draws_of_their_own() -> None:
    at = setting()
    drawn = separate(linear, at.inputs[:1].expand(5050, 3), at.means, at.variances, generator())
    assert drawn.shape == (5050, 2)
    assert len(torch.unique(drawn)) == 2 * 5050
    expected, variance = (moment[:1] for moment in exact_moments(at))
    assert deviations((drawn - expected).square().numpy(), variance[0].numpy()) < STANDARD_ERRORS


def of_layer(layer: Linear, at: Setting, inputs: Tensor, seed: int = 1) -> Tensor:
    """What the layer gives for the same moments."""
    weights = Weights(
        dict(zip((layer.weight, layer.bias), at.means, strict=True)),
        dict(zip((layer.weight, layer.bias), at.variances, strict=True)),
    )
    return layer(weights, inputs, generator(seed))


def test_the_fused_layer_draws_as_the_formula_where_the_bias_has_no_variance() -> None:
    """The same noise gives the same values and the same gradient by the inputs."""
    at, layer = setting(), Linear("layer", 3, 2)
    at = at._replace(variances=Affine(at.variances.weight, torch.zeros(2)))
    inputs = at.inputs.clone().requires_grad_()
    fused = of_layer(layer, at, inputs)
    plain = local(linear, inputs, at.means, Affine(at.variances.weight, None), generator())
    torch.testing.assert_close(fused, plain)
    found = [torch.autograd.grad(torch.sin(drawn).sum(), inputs)[0] for drawn in (fused, plain)]
    torch.testing.assert_close(*found)


def test_the_fused_layer_has_the_distribution_of_the_formula() -> None:
    at, times = setting(), 20_000
    fused = of_layer(Linear("layer", 3, 2), at, at.inputs.repeat(times, 1), seed=2).view(times, 2, 2)
    plain, expected = repeated(local, at, times), exact_moments(at)[0]
    assert deviations((fused - plain).numpy(), np.asarray(0.0)) < STANDARD_ERRORS
    difference = (fused - expected).square() - (plain - expected).square()
    assert deviations(difference.numpy(), np.asarray(0.0)) < STANDARD_ERRORS


@every_estimator
def test_a_layer_is_its_estimator(estimator: Estimator) -> None:
    """Draw by draw, and without noise bit for bit the linear map."""
    at = setting()
    layer = Linear("layer", 3, 2, estimator)
    if estimator is not local:
        drawn = estimator(linear, at.inputs, at.means, at.variances, generator())
        assert torch.equal(of_layer(layer, at, at.inputs), drawn)
    if estimator is mean:
        assert torch.equal(of_layer(layer, at, at.inputs), linear(at.inputs, *at.means))
    without = Weights(dict(zip((layer.weight, layer.bias), at.means, strict=True)))
    assert torch.equal(layer(without, at.inputs, generator()), linear(at.inputs, *at.means))


def test_only_shared_and_mean_weights_are_the_same_for_all_rows_of_a_call() -> None:
    assert [each for each in (*NOISY, mean) if shares_weights(each)] == [shared, mean]
    at = setting()
    for estimator in (*NOISY, mean):
        drawn = estimator(linear, at.inputs[:1].expand(4, 3), at.means, at.variances, generator())
        assert bool((drawn == drawn[0]).all()) == shares_weights(estimator)
