"""Laws of every layer: an estimator's draws equal sampling the weights, and the tape equals autograd."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from discovery import examples
from torch import Tensor

from streaming_vb.layers.estimators import Estimator, flipout, local, mean, separate, shared
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.tape import TapeEntry

every_layer = pytest.mark.parametrize("layer", examples("layers"))


def layers_with(*estimators: Estimator) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "layer",
        [
            pytest.param(replace(example.values[0], estimator=estimator), id=f"{example.id}-{estimator.__name__}")
            for example in examples("layers")
            for estimator in estimators
        ],
    )


every_estimator = layers_with(local, separate, flipout, shared, mean)
every_noisy_estimator = layers_with(local, separate, flipout, shared)
DRAWS = 20_000


@pytest.fixture(autouse=True)
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights_of(layer: Any, seed: int = 0, scale: float = 1.0) -> Weights:
    """Means of both signs and unequal variances."""
    layout = Layout(layer.shapes())
    generator = torch.Generator().manual_seed(seed)
    mean = 0.2 + torch.randn(layout.num_weights, generator=generator)
    variance = scale * (0.05 + torch.rand(layout.num_weights, generator=generator))
    return Weights(layout.views(mean), layout.views(variance))


def inputs_of(layer: Any, num_records: int, seed: int = 1) -> Tensor:
    return 0.5 + torch.randn(num_records, layer.num_inputs, generator=torch.Generator().manual_seed(seed))


def one_input(layer: Any, copies: int) -> Tensor:
    return inputs_of(layer, 1).expand(copies, -1).contiguous()


def with_mean_weights(layer: Any, weights: Weights, inputs: Tensor) -> Tensor:
    return layer(Weights(weights.mean), inputs, torch.Generator())


def standard_deviation(layer: Any, weights: Weights, inputs: Tensor) -> Tensor:
    """sqrt(A^2 V' + v): what the layer's own linear map gives for squared inputs and variances."""
    assert weights.variance is not None
    return layer(Weights(weights.variance), inputs.square(), torch.Generator()).sqrt()


def by_sampling_weights(layer: Any, weights: Weights, inputs: Tensor) -> Tensor:
    """Pre-activations [draws, B, O] with one explicit draw of the weights for the whole batch."""
    assert weights.variance is not None
    generator = torch.Generator().manual_seed(11)
    drawn = []
    for _ in range(DRAWS // 10):
        sampled = {
            name: mean + weights.variance[name].sqrt() * torch.randn(mean.shape, generator=generator)
            for name, mean in weights.mean.items()
        }
        drawn.append(layer(Weights(sampled), inputs, generator))
    return torch.stack(drawn)


def independent_draws(layer: Any, weights: Weights, copies: int) -> Tensor:
    """Pre-activations [draws, copies, O] of one record, so many times in one minibatch."""
    generator, count = torch.Generator().manual_seed(2), DRAWS // 10
    if layer.estimator in (local, separate):  # nothing is shared between the rows of a call
        return layer(weights, one_input(layer, count * copies), generator).view(count, copies, -1)
    return torch.stack([layer(weights, one_input(layer, copies), generator) for _ in range(count)])


def covariance_by_the_weights(layer: Any, weights: Weights) -> np.ndarray:
    """J diag(V) J' [O, O] for the map from weights to pre-activations of one record, which is linear."""
    assert weights.variance is not None
    names, means = list(weights.mean), tuple(weights.mean.values())
    jacobians = torch.autograd.functional.jacobian(
        lambda *values: with_mean_weights(layer, Weights(dict(zip(names, values, strict=True))), one_input(layer, 1)),
        means,
    )
    parts = zip(jacobians, weights.variance.values(), strict=True)
    rows = torch.cat([(jacobian.flatten(2) * v.sqrt().flatten())[0] for jacobian, v in parts], -1)
    return (rows @ rows.T).numpy()


def variance_of(values: Tensor) -> np.ndarray:
    """Squared distances to the sample mean [n, O], whose mean is the variance."""
    return (values - values.mean(0)).square().numpy()


def formulas(layer: Any, weights: Weights, inputs: Tensor, seed: int) -> list[Callable[[Tensor], Tensor]]:
    """Local reparameterization as a function of the inputs, at the noise that the seed gives.

    The noise of the bias is either inside the square root, with that of the weights, or drawn by itself.
    """

    def deviation(variance: dict[str, Tensor]) -> Tensor:
        drawn = layer(Weights(weights.mean, variance), inputs, torch.Generator().manual_seed(seed))
        return (drawn - with_mean_weights(layer, weights, inputs)).detach()

    assert weights.variance is not None
    none = {name: torch.zeros_like(v) for name, v in weights.variance.items()}
    without_bias = {**weights.variance, layer.bias: none[layer.bias]}
    noise = deviation(without_bias) / standard_deviation(layer, Weights(none, without_bias), inputs).detach()
    bias_noise = deviation({**none, layer.bias: weights.variance[layer.bias]}) - deviation(none)

    def inside(a: Tensor) -> Tensor:
        return with_mean_weights(layer, weights, a) + standard_deviation(layer, weights, a) * noise

    def outside(a: Tensor) -> Tensor:
        scale = standard_deviation(layer, Weights(none, without_bias), a)
        return with_mean_weights(layer, weights, a) + scale * noise + bias_noise

    return [inside, outside]


def taped(layer: Any, weights: Weights, inputs: Tensor) -> tuple[TapeEntry, Tensor]:
    """A tape entry, and the gradient U of sum sin(2 b) with respect to its pre-activations."""
    tape: list[TapeEntry] = []
    preactivations = layer(weights, inputs, torch.Generator().manual_seed(5), tape)
    (u,) = torch.autograd.grad(torch.sin(2 * preactivations).sum(), [tape[0].preactivations])
    return tape[0], u


def per_record_gradients(layer: Any, weights: Weights, inputs: Tensor) -> dict[str, Tensor]:
    """Autograd of each record's own loss through b = map(A; M) + deviation, with the deviation that the layer drew."""
    drawn = layer(weights, inputs, torch.Generator().manual_seed(5)).detach()
    deviation = drawn - with_mean_weights(layer, weights, inputs)
    gradients: dict[str, list[Tensor]] = {name: [] for name in weights.mean}
    for record in range(len(inputs)):
        leaves = {name: mean.clone().requires_grad_() for name, mean in weights.mean.items()}
        b = layer(Weights(leaves), inputs[record : record + 1], torch.Generator()) + deviation[record]
        for name, gradient in zip(leaves, torch.autograd.grad(torch.sin(2 * b).sum(), leaves.values()), strict=True):
            gradients[name].append(gradient)
    return {name: torch.stack(parts) for name, parts in gradients.items()}


@every_layer
def test_one_output_sums_over_as_many_inputs_as_the_layer_says(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 1)
    jacobian = torch.autograd.functional.jacobian(lambda a: with_mean_weights(layer, weights, a)[0], inputs)[:, 0]
    assert jacobian.shape == (layer.num_outputs, layer.num_inputs)
    assert int((jacobian != 0).sum(1).max()) == layer.fan_in


@every_estimator
def test_without_variance_the_layer_is_its_mean(layer: Any) -> None:
    weights = Weights(weights_of(layer).mean)
    first, again = (layer(weights, inputs_of(layer, 4), torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(first, again)


@every_layer
def test_the_mean_estimator_is_the_map_at_the_mean(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 4)
    values = replace(layer, estimator=mean)(weights, inputs, torch.Generator().manual_seed(2))
    torch.testing.assert_close(values, with_mean_weights(layer, weights, inputs))


@every_noisy_estimator
def test_draws_have_the_mean_and_covariance_of_weight_draws(layer: Any) -> None:
    """Local reparameterization promises the variances only."""
    weights = weights_of(layer)
    centred = independent_draws(layer, weights, 1)[:, 0] - with_mean_weights(layer, weights, one_input(layer, 1))
    products, covariance = centred[:, :, None] * centred[:, None, :], covariance_by_the_weights(layer, weights)
    if layer.estimator is local:
        products, covariance = products.diagonal(dim1=1, dim2=2), covariance.diagonal()
    assert deviations(centred.numpy(), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(products.numpy(), covariance) < STANDARD_ERRORS
    assert deviations(products.numpy(), 1.5 * covariance) > STANDARD_ERRORS


@every_noisy_estimator
def test_only_shared_weights_correlate_identical_records(layer: Any) -> None:
    weights = weights_of(layer)
    centred = independent_draws(layer, weights, 2) - with_mean_weights(layer, weights, one_input(layer, 1))
    products = (centred[:, 0] * centred[:, 1]).numpy()
    variance = covariance_by_the_weights(layer, weights).diagonal()
    is_shared = layer.estimator is shared
    assert deviations(products, variance if is_shared else np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(products, np.asarray(0.0) if is_shared else variance) > STANDARD_ERRORS
    sizes_differ = ~torch.isclose(centred[:, 0].abs(), centred[:, 1].abs())
    assert (sizes_differ.double().mean() < 0.5) == is_shared


@every_estimator
def test_the_noise_does_not_depend_on_the_means(layer: Any) -> None:
    """So that the gradient by the mean weights is that of the map alone."""
    weights, inputs = weights_of(layer), inputs_of(layer, 4)
    others = Weights(weights_of(layer, seed=3).mean, weights.variance)
    first, second = (
        layer(each, inputs, torch.Generator().manual_seed(7)) - with_mean_weights(layer, each, inputs)
        for each in (weights, others)
    )
    torch.testing.assert_close(first, second)


@every_layer
def test_preactivations_have_the_closed_form_moments(layer: Any) -> None:
    weights, inputs = weights_of(layer), one_input(layer, DRAWS)
    values = layer(weights, inputs, torch.Generator().manual_seed(2))
    mean = with_mean_weights(layer, weights, inputs[:1])[0].numpy()
    variance = standard_deviation(layer, weights, inputs[:1])[0].square().numpy()
    assert deviations(values.numpy(), mean) < STANDARD_ERRORS
    assert deviations(variance_of(values), variance) < STANDARD_ERRORS
    assert deviations(variance_of(values), 1.1 * variance) > STANDARD_ERRORS


@every_layer
def test_preactivations_have_the_moments_of_explicit_weight_draws(layer: Any) -> None:
    weights = weights_of(layer)
    explicit = by_sampling_weights(layer, weights, one_input(layer, 1))[:, 0]
    local = layer(weights, one_input(layer, len(explicit)), torch.Generator().manual_seed(2))
    quieter = layer(weights_of(layer, scale=0.5), one_input(layer, len(explicit)), torch.Generator().manual_seed(2))
    assert deviations((local - explicit).numpy(), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(variance_of(local) - variance_of(explicit), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(variance_of(quieter) - variance_of(explicit), np.asarray(0.0)) > STANDARD_ERRORS


@every_layer
def test_noise_is_independent_between_identical_records(layer: Any) -> None:
    weights = weights_of(layer)
    local = layer(weights, one_input(layer, DRAWS), torch.Generator().manual_seed(2))
    mean = with_mean_weights(layer, weights, one_input(layer, 1))
    products = (local[0::2] - mean) * (local[1::2] - mean)
    assert deviations(products.numpy(), np.asarray(0.0)) < STANDARD_ERRORS
    shared = by_sampling_weights(layer, weights, one_input(layer, 2)) - mean
    assert deviations((shared[:, 0] * shared[:, 1]).numpy(), np.asarray(0.0)) > STANDARD_ERRORS


@every_noisy_estimator
def test_noise_follows_the_generator(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 4)
    first, again = (layer(weights, inputs, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, layer(weights, inputs, torch.Generator().manual_seed(8)))


@every_estimator
def test_gradient_equals_autograd(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 6)
    out = {name: torch.full_like(mean, torch.nan) for name, mean in weights.mean.items()}
    layer.gradient(*taped(layer, weights, inputs), out)
    for name, gradients in per_record_gradients(layer, weights, inputs).items():
        torch.testing.assert_close(out[name], gradients.sum(0))


@every_estimator
def test_squared_gradient_equals_the_sum_of_squared_per_record_gradients(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 6)
    out = {name: torch.full_like(mean, torch.nan) for name, mean in weights.mean.items()}
    layer.squared_gradient(*taped(layer, weights, inputs), out)
    for name, gradients in per_record_gradients(layer, weights, inputs).items():
        torch.testing.assert_close(out[name], gradients.square().sum(0))


@every_estimator
def test_gradients_are_added_to_a_moving_average_and_weighted(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 6)
    entry, u = taped(layer, weights, inputs)
    plain, average, squared, weighted = ({n: m.clone() for n, m in weights.mean.items()} for _ in range(4))
    layer.gradient(entry, u, plain)
    layer.gradient(entry, u, average, decay=0.7, weight=0.2)
    layer.squared_gradient(entry, u, squared)
    layer.squared_gradient(entry, u, weighted, weight=0.2)
    for name, before in weights.mean.items():
        torch.testing.assert_close(average[name], 0.7 * before + 0.2 * plain[name])
        torch.testing.assert_close(weighted[name], 0.2 * squared[name])


@every_layer
def test_backward_to_the_inputs_equals_autograd_of_the_formula(layer: Any) -> None:
    weights = weights_of(layer)
    inputs = inputs_of(layer, 5).requires_grad_()
    drawn = layer(weights, inputs, torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(torch.sin(2 * drawn).sum(), inputs)

    again = inputs.detach().clone().requires_grad_()
    values = [formula(again) for formula in formulas(layer, weights, inputs, seed=5)]
    (value,) = [value for value in values if torch.allclose(value, drawn)]
    (expected,) = torch.autograd.grad(torch.sin(2 * value).sum(), again)
    torch.testing.assert_close(gradient, expected)


@every_estimator
def test_backward_to_the_inputs_equals_finite_differences(layer: Any) -> None:
    weights = weights_of(layer)
    inputs = inputs_of(layer, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: layer(weights, a, torch.Generator().manual_seed(5)), [inputs])


@every_estimator
def test_recording_a_tape_does_not_change_the_values(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 4)
    plain = layer(weights, inputs, torch.Generator().manual_seed(7))
    recorded = layer(weights, inputs, torch.Generator().manual_seed(7), [])
    assert torch.equal(plain, recorded.detach())


@every_estimator
def test_a_record_of_zeros_without_any_variance_stays_finite(layer: Any) -> None:
    weights = weights_of(layer)
    assert weights.variance is not None
    without_bias = {name: v if v.ndim > 1 else torch.zeros_like(v) for name, v in weights.variance.items()}
    inputs = inputs_of(layer, 3)
    inputs[1] = 0.0
    inputs.requires_grad_()
    values = layer(Weights(weights.mean, without_bias), inputs, torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(values.square().sum(), inputs)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


@every_estimator
def test_a_layer_touches_neither_weights_nor_inputs(layer: Any) -> None:
    weights, inputs = weights_of(layer), inputs_of(layer, 4)
    assert weights.variance is not None
    tensors = [inputs, *weights.mean.values(), *weights.variance.values()]
    before = [tensor.clone() for tensor in tensors]
    entry, u = taped(layer, weights, inputs)
    out = {name: torch.empty_like(mean) for name, mean in weights.mean.items()}
    layer.gradient(entry, u, out)
    layer.squared_gradient(entry, u, out)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))
