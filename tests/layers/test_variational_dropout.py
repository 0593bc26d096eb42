"""Types A and B and the additive form against explicit draws of their weights, and the KL against a count of it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from torch import Tensor
from torch.nn import functional

from streaming_vb.errors import ConfigError
from streaming_vb.layers.dropout_divergence import exact, kingma, molchanov
from streaming_vb.layers.estimators import flipout, local, mean, separate, shared
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.variational_dropout import (
    AbstractVariationalDropout,
    Additive,
    Grouping,
    TypeA,
    TypeB,
)
from streaming_vb.types import Array

DRAWS = 20_000
ESTIMATORS = [local, separate, flipout, shared, mean]
LAYERS = [
    *(TypeA("layer", 3, 2, grouping=grouping) for grouping in (Grouping.LAYER, Grouping.UNIT)),
    *(TypeB("layer", 3, 2, grouping=grouping) for grouping in Grouping),
    Additive("layer", 3, 2),
]


def name_of(layer: AbstractVariationalDropout) -> str:
    grouping = f"-{layer.grouping.value}" if isinstance(layer, TypeA | TypeB) else ""
    return f"{type(layer).__name__}{grouping}-{layer.estimator.__name__}"


every_layer = pytest.mark.parametrize("layer", LAYERS, ids=name_of)
every_layer_and_estimator = pytest.mark.parametrize(
    "layer",
    [
        replace(layer, estimator=estimator)
        for layer in LAYERS
        for estimator in ([local, mean] if isinstance(layer, TypeA) else ESTIMATORS)
    ],
    ids=name_of,
)
every_estimator_of_weights = pytest.mark.parametrize(
    "layer",
    [
        replace(layer, estimator=estimator)
        for layer in (TypeB("layer", 3, 2), Additive("layer", 3, 2))
        for estimator in ESTIMATORS
    ],
    ids=name_of,
)


@pytest.fixture(autouse=True)
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights_of(layer: AbstractVariationalDropout, seed: int = 0) -> Weights:
    """Means of both signs, a bias, and an alpha from 0.1 to 0.9 that differs between groups."""
    tensors = layer.initial(generator(seed))
    draw = generator(seed + 100)
    for name, tensor in tensors.items():
        if name.endswith("weight") or name.endswith("bias"):
            tensors[name] = 0.3 + torch.randn(tensor.shape, generator=draw)
    alpha = 0.1 + 0.8 * torch.rand(tuple(layer.shapes().values())[-1], generator=draw)
    if isinstance(layer, Additive):
        tensors[layer.log_variance] = (alpha * tensors[layer.weight].square()).log()
    elif isinstance(layer, TypeA | TypeB):
        tensors[layer.log_alpha] = alpha.log()
    return Weights(tensors)


def leaves_of(layer: AbstractVariationalDropout) -> Weights:
    return Weights({name: tensor.requires_grad_() for name, tensor in weights_of(layer).mean.items()})


def one_input(copies: int) -> Tensor:
    return torch.tensor([1.0, -0.5, 2.0]).expand(copies, -1)


def explicit(layer: Any, weights: Weights, inputs: Tensor, seed: int = 11) -> Tensor:
    """Pre-activations [B, O] with an explicit draw of the weights [O, I] per record."""
    theta, bias = weights.mean["layer.weight"], weights.mean["layer.bias"]
    draw = generator(seed)
    if isinstance(layer, TypeA):
        alpha = weights.mean["layer.log_alpha"].exp()
        factor = 1 + alpha.sqrt() * torch.randn(len(inputs), 1, layer.num_inputs, generator=draw)
        drawn = theta * factor
    else:
        noise = torch.randn(len(inputs), *theta.shape, generator=draw)
        drawn = theta + standard_deviation(layer, weights) * noise
    return torch.einsum("boi,bi->bo", drawn, inputs) + bias


def standard_deviation(layer: Any, weights: Weights) -> Tensor:
    """Of each weight [O, I] of type B or the additive form."""
    if isinstance(layer, Additive):
        return (weights.mean["layer.log_variance"] / 2).exp()
    log_alpha = weights.mean["layer.log_alpha"]
    per_weight = log_alpha[:, None] if layer.grouping is Grouping.UNIT else log_alpha
    return (per_weight / 2).exp() * weights.mean["layer.weight"].abs()


def second_moments(values: Tensor) -> Array:
    """Products of deviations [n, O, O] from the sample mean, whose mean is the covariance of the outputs."""
    deviation = values - values.mean(0)
    return (deviation[:, :, None] * deviation[:, None, :]).numpy()


def curved(b: Tensor) -> Tensor:
    """A loss whose first and second derivatives are positive everywhere, so that no expected gradient is 0."""
    return functional.softplus(b @ torch.tensor([1.0, 2.0])).mean()


def gradients(layer: Any, draw: Any, num_batches: int, size: int) -> dict[str, Array]:
    """Gradients [n, ...] of the loss of a batch of equal records, by the name of the leaf."""
    weights = leaves_of(layer)
    rows: dict[str, list[Tensor]] = {name: [] for name in weights.mean}
    for batch in range(num_batches):
        b = draw(weights, one_input(size), batch)
        loss = curved(b)
        for name, gradient in zip(rows, torch.autograd.grad(loss, list(weights.mean.values())), strict=True):
            rows[name].append(gradient)
    return {name: torch.stack(parts).numpy() for name, parts in rows.items()}


@every_layer
def test_preactivations_have_the_moments_of_explicit_weight_draws(layer: Any) -> None:
    weights = weights_of(layer)
    values = layer(weights, one_input(DRAWS), generator(1))
    drawn = explicit(layer, weights, one_input(DRAWS))
    assert deviations((values - drawn).numpy(), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(second_moments(values) - second_moments(drawn), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(second_moments(values) - 1.2 * second_moments(drawn), np.asarray(0.0)) > STANDARD_ERRORS


@every_layer
def test_preactivations_have_the_closed_form_moments(layer: Any) -> None:
    weights, a = weights_of(layer), one_input(1)[0]
    theta, bias = weights.mean["layer.weight"], weights.mean["layer.bias"]
    values = layer(weights, one_input(DRAWS), generator(2))
    assert deviations(values.numpy(), (theta @ a + bias).numpy()) < STANDARD_ERRORS
    if isinstance(layer, TypeA):
        scaled = theta * a * (weights.mean["layer.log_alpha"] / 2).exp()
        covariance = scaled @ scaled.T
    else:
        covariance = torch.diag(standard_deviation(layer, weights).square() @ a.square())
    assert deviations(second_moments(values), covariance.numpy()) < STANDARD_ERRORS
    assert deviations(second_moments(values), 1.2 * covariance.numpy()) > STANDARD_ERRORS


def test_outputs_of_a_record_share_the_noise_of_type_a_and_not_that_of_type_b() -> None:
    correlated, independent = (
        second_moments(layer(weights_of(layer), one_input(DRAWS), generator(3)))[:, 0, 1]
        for layer in (TypeA("layer", 3, 2), TypeB("layer", 3, 2))
    )
    assert deviations(correlated, np.asarray(0.0)) > STANDARD_ERRORS
    assert deviations(independent, np.asarray(0.0)) < STANDARD_ERRORS


@every_layer
def test_noise_is_independent_between_identical_records(layer: Any) -> None:
    values = layer(weights_of(layer), one_input(DRAWS), generator(4))
    deviation = (values - values.mean(0)).numpy()
    assert deviations(deviation[::2] * deviation[1::2], np.asarray(0.0)) < STANDARD_ERRORS


@every_estimator_of_weights
def test_every_estimator_has_the_same_mean(layer: Any) -> None:
    weights, draw = weights_of(layer), generator(5)
    expected = functional.linear(one_input(1), weights.mean["layer.weight"], weights.mean["layer.bias"])[0].numpy()
    drawn = torch.cat([layer(weights, one_input(1), draw) for _ in range(1000)]).numpy()
    if layer.estimator is mean:
        np.testing.assert_allclose(drawn, np.broadcast_to(expected, drawn.shape))
        return
    assert deviations(drawn, expected) < STANDARD_ERRORS
    assert deviations(drawn, 1.5 * expected) > STANDARD_ERRORS
    variance = (standard_deviation(layer, weights).square() @ one_input(1)[0].square()).numpy()
    assert deviations((drawn - expected) ** 2, variance) < STANDARD_ERRORS


@pytest.mark.parametrize("grouping", [Grouping.LAYER, Grouping.UNIT])
def test_type_a_without_noise_is_its_mean(grouping: Grouping) -> None:
    layer = TypeA("layer", 3, 2, estimator=mean, grouping=grouping)
    weights = weights_of(layer)
    expected = functional.linear(one_input(4), weights.mean["layer.weight"], weights.mean["layer.bias"])
    assert torch.equal(layer(weights, one_input(4), generator(0)), expected)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.__name__)
def test_type_b_is_the_additive_form_at_the_same_variance(estimator: Any) -> None:
    type_b = TypeB("layer", 3, 2, estimator, grouping=Grouping.WEIGHT)
    additive = Additive("layer", 3, 2, estimator)
    weights = dict(weights_of(type_b).mean)
    log_variance = weights["layer.log_alpha"] + 2 * weights["layer.weight"].abs().log()
    same = Weights({**weights, "layer.log_variance": log_variance})
    inputs = one_input(4)
    torch.testing.assert_close(
        type_b(Weights(weights), inputs, generator(0)), additive(same, inputs, generator(0)), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(type_b.kl(Weights(weights)), additive.kl(same), rtol=1e-12, atol=0)


@every_layer
def test_gradients_equal_those_of_explicit_weight_draws_in_expectation(layer: Any) -> None:
    by_layer = gradients(layer, lambda weights, inputs, seed: layer(weights, inputs, generator(seed)), 100, 300)
    by_draws = gradients(layer, lambda weights, inputs, seed: explicit(layer, weights, inputs, seed), 100, 300)
    noiseless = replace(layer, estimator=mean)
    for name, gradient in by_layer.items():
        assert deviations(gradient - by_draws[name], np.asarray(0.0)) < STANDARD_ERRORS, name
    plain = weights_of(layer)
    theta = plain.mean["layer.weight"].requires_grad_()
    b = noiseless(plain, one_input(1), generator(0))
    (biased,) = torch.autograd.grad(curved(b), theta)
    assert deviations(by_layer["layer.weight"], biased.numpy()) > STANDARD_ERRORS


@pytest.mark.parametrize("layer", LAYERS[2:], ids=name_of)
def test_local_and_separate_draws_have_the_same_expected_gradient(layer: Any) -> None:
    apart = replace(layer, estimator=separate)
    by_local = gradients(layer, lambda weights, inputs, seed: layer(weights, inputs, generator(seed)), 100, 300)
    by_separate = gradients(apart, lambda weights, inputs, seed: apart(weights, inputs, generator(seed)), 100, 300)
    for name, gradient in by_local.items():
        assert deviations(gradient - by_separate[name], np.asarray(0.0)) < STANDARD_ERRORS, name
        assert deviations(gradient - 2 * by_separate[name], np.asarray(0.0)) > STANDARD_ERRORS, name


def test_the_minibatch_gradient_is_noisier_by_separate_and_noisiest_by_shared_draws() -> None:
    """The order of table 1 of Kingma et al. 2015, for the noise at a fixed minibatch of a softmax layer."""
    inputs = torch.randn(50, 20, generator=generator(1))
    labels = torch.randint(5, (50,), generator=generator(2))
    variances = []
    for estimator in (local, separate, shared):
        layer = TypeB("layer", 20, 5, estimator)
        weights = {name: tensor.requires_grad_() for name, tensor in layer.initial(generator(0), alpha=1.0).items()}
        leaves, draw, drawn = [weights["layer.weight"], weights["layer.log_alpha"]], generator(3), []
        for _ in range(200):
            loss = functional.cross_entropy(layer(Weights(weights), inputs, draw), labels)
            drawn.append(torch.autograd.grad(loss, leaves))
        variances.append([float(torch.stack(parts).var(0).sum()) for parts in zip(*drawn, strict=True)])
    by_local, by_separate, by_shared = np.array(variances)
    assert (1.1 * by_local < by_separate).all()
    assert (1.1 * by_separate < by_shared).all()


@every_layer_and_estimator
def test_every_gradient_equals_finite_differences(layer: Any) -> None:
    tensors = weights_of(layer).mean
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]

    def both(inputs: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        weights = Weights(dict(zip(tensors, values, strict=True)))
        return layer(weights, inputs, generator(5)), layer.kl(weights)

    assert torch.autograd.gradcheck(both, [one_input(3).clone().requires_grad_(), *leaves])


@every_layer
def test_the_kl_counts_inputs_for_type_a_and_weights_for_the_others(layer: Any) -> None:
    weights = weights_of(layer)
    if isinstance(layer, TypeA):
        log_alphas = weights.mean["layer.log_alpha"].expand(3)
    else:
        log_alphas = (standard_deviation(layer, weights) / weights.mean["layer.weight"].abs()).log() * 2
    torch.testing.assert_close(layer.kl(weights), exact(log_alphas).sum(), rtol=1e-12, atol=0)
    fitted = replace(layer, divergence=molchanov)
    torch.testing.assert_close(fitted.kl(weights), molchanov(log_alphas).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("layer", "factors"),
    [(TypeA("layer", 3, 2), (1, 2)), (TypeB("layer", 3, 2), (2, 2)), (Additive("layer", 3, 2), (2, 2))],
    ids=["TypeA", "TypeB", "Additive"],
)
def test_the_kl_grows_with_the_width(layer: Any, factors: tuple[int, int]) -> None:
    for wider, factor in zip((replace(layer, num_outputs=4), replace(layer, num_inputs=6)), factors, strict=True):
        before, after = (each.kl(Weights(each.initial(generator(0), alpha=0.5))) for each in (layer, wider))
        torch.testing.assert_close(after, factor * before)


@every_layer_and_estimator
@pytest.mark.parametrize("divergence", [exact, molchanov])
@pytest.mark.parametrize("greatest_alpha", [None, 1.0])
def test_zeros_give_finite_values_and_gradients(layer: Any, divergence: Any, greatest_alpha: float | None) -> None:
    """A record of zeros, a weight of zero, and an output whose weights are all zero."""
    torch.set_default_dtype(torch.float32)
    layer = replace(layer, divergence=divergence, greatest_alpha=greatest_alpha)
    weights = weights_of(layer)
    with torch.no_grad():
        weights.mean["layer.weight"][0] = 0.0
        weights.mean["layer.weight"][1, 1] = 0.0
    leaves = [tensor.requires_grad_() for tensor in weights.mean.values()]
    inputs = one_input(3).clone()
    inputs[1] = 0.0
    inputs.requires_grad_()
    values, kl = layer(weights, inputs, generator(0)), layer.kl(weights)
    found = torch.autograd.grad(values.square().sum() + kl, [inputs, *leaves], allow_unused=True)
    assert torch.isfinite(values).all()
    assert torch.isfinite(kl)
    assert all(torch.isfinite(gradient).all() for gradient in found if gradient is not None)


def test_an_additive_weight_of_zero_has_no_kl_and_keeps_its_noise() -> None:
    layer = Additive("layer", 1, 1)
    weights = Weights(
        {"layer.weight": torch.zeros(1, 1), "layer.bias": torch.zeros(1), "layer.log_variance": torch.zeros(1, 1)}
    )
    assert layer.kl(weights) == 0
    values = layer(weights, torch.full((DRAWS, 1), 2.0), generator(0)).square().numpy()
    assert deviations(values, np.asarray(4.0)) < STANDARD_ERRORS
    assert deviations(values, np.asarray(3.0)) > STANDARD_ERRORS


@every_layer
def test_an_alpha_above_the_greatest_acts_as_the_greatest(layer: Any) -> None:
    clamped = replace(layer, greatest_alpha=0.7, divergence=kingma)
    weights = layer.initial(generator(0), alpha=5.0)
    at_greatest = layer.initial(generator(0), alpha=0.7)
    inputs = one_input(4)
    expected = layer(Weights(at_greatest), inputs, generator(1))
    torch.testing.assert_close(clamped(Weights(weights), inputs, generator(1)), expected)
    torch.testing.assert_close(clamped.kl(Weights(weights)), clamped.kl(Weights(at_greatest)))
    assert not torch.allclose(layer(Weights(weights), inputs, generator(1)), expected)
    with pytest.raises(ConfigError, match="greatest_alpha"):
        replace(layer, divergence=kingma).kl(Weights(weights))


@every_layer
def test_an_alpha_below_the_greatest_is_left_alone(layer: Any) -> None:
    clamped = replace(layer, greatest_alpha=1.0)
    before, after = leaves_of(layer), leaves_of(clamped)
    for each, weights in ((layer, before), (clamped, after)):
        (each(weights, one_input(4), generator(1)).square().sum() + each.kl(weights)).backward()
    for name, tensor in before.mean.items():
        torch.testing.assert_close(after.mean[name].grad, tensor.grad, msg=name)


@every_layer
def test_a_start_has_the_shapes_of_the_layer_and_one_alpha(layer: Any) -> None:
    start = layer.initial(generator(0), alpha=0.3)
    assert {name: tuple(tensor.shape) for name, tensor in start.items()} == layer.shapes()
    bound = 1 / math.sqrt(3)
    assert start["layer.weight"].abs().max() <= bound
    assert start["layer.weight"].min() < 0 < start["layer.weight"].max()
    assert not start["layer.bias"].any()
    count = 3 if isinstance(layer, TypeA) else 6
    torch.testing.assert_close(layer.kl(Weights(start)), count * exact(torch.tensor(math.log(0.3))))
    assert torch.equal(layer.initial(generator(0))["layer.weight"], start["layer.weight"])
    assert not torch.equal(layer.initial(generator(1))["layer.weight"], start["layer.weight"])


@every_layer
def test_noise_follows_the_generator_and_nothing_is_modified(layer: Any) -> None:
    weights, inputs = weights_of(layer), one_input(4).clone()
    before = [tensor.clone() for tensor in (inputs, *weights.mean.values())]
    first, again = (layer(weights, inputs, generator(7)) for _ in range(2))
    layer.kl(weights)
    assert torch.equal(first, again)
    assert not torch.equal(first, layer(weights, inputs, generator(8)))
    assert all(torch.equal(now, then) for now, then in zip((inputs, *weights.mean.values()), before, strict=True))


@every_layer
def test_a_tape_is_refused(layer: Any) -> None:
    with pytest.raises(ConfigError, match="layer: variational dropout has no tape") as error:
        layer(weights_of(layer), one_input(1), generator(0), [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("estimator", [separate, flipout, shared], ids=lambda estimator: estimator.__name__)
def test_type_a_refuses_estimators_that_draw_weights(estimator: Any) -> None:
    with pytest.raises(ConfigError, match=r"its estimator is local or mean\. Use TypeB"):
        TypeA("layer", 3, 2, estimator)


def test_type_a_refuses_an_alpha_per_weight() -> None:
    with pytest.raises(ConfigError, match=r"Use Grouping\.UNIT, or TypeB"):
        TypeA("layer", 3, 2, grouping=Grouping.WEIGHT)


@every_layer
@pytest.mark.parametrize("greatest_alpha", [0.0, -1.0, math.nan])
def test_a_greatest_alpha_that_is_not_positive_is_refused(layer: Any, greatest_alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"greatest_alpha must be above 0, got"):
        replace(layer, greatest_alpha=greatest_alpha)


@every_layer
@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, math.nan])
def test_a_start_outside_the_range_of_alpha_is_refused(layer: Any, alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha must start above 0 and at most at 1\.0, got"):
        replace(layer, greatest_alpha=1.0).initial(generator(0), alpha=alpha)
