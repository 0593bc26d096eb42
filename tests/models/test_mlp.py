"""Regression and classification with a posterior over every weight, against closed forms and on real digits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.inference import natural_gradient
from streaming_vb.layers.layout import Weights
from streaming_vb.likelihoods.bernoulli import Bernoulli
from streaming_vb.likelihoods.categorical import Categorical
from streaming_vb.likelihoods.normal import Normal
from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.models.mlp import MLP
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Array, Interval, Model, Moments, Primitive, Records

COEFFICIENTS, INTERCEPT, SCALE = np.array([0.9, -0.6, 0.3]), 0.4, 0.5


def inputs(num_records: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0.3, 1.0, (num_records, 3)).astype(np.float32)


def table(num_records: int, seed: int = 0) -> dict[str, Array]:
    """x, 1 and y = x'w + w_0 + noise."""
    x = inputs(num_records, seed)
    noise = np.random.default_rng([seed, 1]).normal(0, SCALE, num_records)
    return {"x": x, "y": x @ COEFFICIENTS + INTERCEPT + noise}


def streamed(model: Model, fields: Mapping[str, Array], passes: int, step_size: float = 0.5) -> ServerState:
    """Where a run ends."""
    primitive: Primitive | None = None
    if isinstance(model, MLP):
        primitive = natural_gradient.build(model, batch_size=20, step_size=step_size)
    settings = Settings(batch_size=20, local_steps=10)
    *_, last = run(model, ArraySource(fields, passes=passes), settings, primitive=primitive)
    return last.state()


def outputs(model: MLP, state: ServerState, x: Array) -> Tensor:
    """At the posterior mean of the weights."""
    mean = torch.from_numpy(model.family.mean(state.posterior).astype(np.float32))
    return model.outputs(Weights(model.layout.views(mean)), torch.from_numpy(x), torch.Generator())


def with_constant(x: Array) -> Array:
    return np.column_stack([x, np.ones(len(x))])


def predictive_mean_and_scale(model: MLP, state: ServerState, x: Array) -> tuple[Array, Array]:
    """Of the normal likelihood at the posterior mean of the weights."""
    found = outputs(model, state, x)
    log_scale = 5 * torch.tanh(found[:, 1] / 5)
    return model.likelihood.mean(found)[:, 0].numpy(), log_scale.exp().numpy()


def test_without_hidden_layers_it_predicts_as_bayesian_linear_regression() -> None:
    """And learns the noise that linear regression must be told."""
    fields, x = table(1000), inputs(300, seed=9)
    exact = LinearRegression(4, noise_variance=SCALE**2, prior_variance=10.0)
    posterior = streamed(exact, {**fields, "x": with_constant(fields["x"])}, 1).posterior
    expected = with_constant(x) @ exact.family.mean(posterior)
    model = MLP(3, hidden=())
    mean, scale = predictive_mean_and_scale(model, streamed(model, fields, 8), x)
    assert np.sqrt(np.mean((mean - expected) ** 2)) < 0.05
    assert np.median(scale) == pytest.approx(SCALE, rel=0.1)
    assert np.std(expected) > 0.5


def test_without_hidden_layers_and_at_the_truth_its_evidence_is_the_exact_precision() -> None:
    """E[F] = sum_i x_i x_i' / s^2 for the mean's weights, and sum_i 2 (ds/dr)^2 x_i x_i' for those of log s."""
    model, fields, size = MLP(3, hidden=()), table(20_000), 200
    x, log_scale = with_constant(fields["x"]), np.log(SCALE)
    raw, slope = 5 * np.arctanh(log_scale / 5), 1 - (log_scale / 5) ** 2
    truth = np.concatenate([COEFFICIENTS, np.zeros(3), [INTERCEPT, raw]])
    prior = model.family.natural(Moments(truth, np.full(8, 1e-9))).astype(np.float32)
    primitive = natural_gradient.build(model, batch_size=size, step_size=1e-6)

    def evidence(rows: slice) -> Array:
        records = Records(Interval("table", "p", 0, size), {name: array[rows] for name, array in fields.items()})
        return primitive(prior, prior, primitive.initial_state(), records, 1).natural["precision"]

    found = np.stack([evidence(slice(start, start + size)) for start in range(0, len(x), size)])
    exact = size * (x**2).mean(0)
    means, log_scales = exact / SCALE**2, 2 * slope**2 * exact
    expected = np.concatenate([means[:3], log_scales[:3], [means[3], log_scales[3]]])
    assert deviations(found, expected) < STANDARD_ERRORS
    assert deviations(found, 1.2 * expected) > STANDARD_ERRORS


def test_a_bernoulli_target_makes_it_logistic_regression() -> None:
    x, fresh = with_constant(inputs(2000)), inputs(300, seed=9)
    probability = 1 / (1 + np.exp(-x @ np.append(3 * COEFFICIENTS, INTERCEPT)))
    y = (np.random.default_rng(3).random(2000) < probability).astype(float)
    fitted = np.zeros(4)
    for _ in range(30):  # Newton's method, without a prior
        p = 1 / (1 + np.exp(-x @ fitted))
        fitted += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
    model = MLP(3, hidden=(), likelihood=Bernoulli())
    state = streamed(model, {"x": x[:, :3].astype(np.float32), "y": y}, 4)
    found = model.likelihood.mean(outputs(model, state, fresh))[:, 0].numpy()
    assert np.abs(found - 1 / (1 + np.exp(-with_constant(fresh) @ fitted))).max() < 0.1


def test_a_regressor_learns_a_curve_and_where_it_is_noisy() -> None:
    generator = np.random.default_rng(0)
    x = generator.uniform(-2, 2, (1500, 1)).astype(np.float32)
    y = np.abs(x[:, 0]) + np.where(x[:, 0] < 0, 0.1, 0.5) * generator.standard_normal(1500)
    model, grid = MLP(1, hidden=(16,)), np.linspace(-1.8, 1.8, 50, dtype=np.float32)[:, None]
    mean, scale = predictive_mean_and_scale(model, streamed(model, {"x": x, "y": y}, 6), grid)
    assert np.sqrt(np.mean((mean - np.abs(grid[:, 0])) ** 2)) < 0.15
    quiet, noisy = scale[grid[:, 0] < -0.3], scale[grid[:, 0] > 0.3]
    assert np.median(quiet) == pytest.approx(0.1, rel=0.5)
    assert np.median(noisy) == pytest.approx(0.5, rel=0.2)


def test_a_classifier_learns_digits() -> None:
    digits, order = load_digits(), np.random.default_rng(0).permutation(1797)
    x, y = (digits.data / 16).astype(np.float32)[order], digits.target.astype(float)[order]
    model = MLP(64, hidden=(32,), likelihood=Categorical(10))
    state = streamed(model, {"x": x[:1500], "y": y[:1500]}, 6)
    assert np.mean(outputs(model, state, x[1500:]).argmax(1).numpy() == y[1500:]) > 0.9


def weights_of(model: MLP, variance: float | None = None) -> Weights:
    """Means of the prior."""
    mean = torch.from_numpy(model.family.mean(model.prior(0)).astype(np.float32))
    spread = None if variance is None else model.layout.views(torch.full_like(mean, variance))
    return Weights(model.layout.views(mean), spread)


@pytest.mark.parametrize(
    ("model", "y", "explicit"),
    [
        (MLP(3, (4, 5), Bernoulli()), [1.0, 0.0, 1.0], lambda o, y: TorchBernoulli(logits=o[:, 0]).log_prob(y)),
        (MLP(3, (4,), Categorical(3)), [2.0, 0.0, 1.0], lambda o, y: TorchCategorical(logits=o).log_prob(y)),
        (MLP(3, (), Normal()), [0.3, -2.0, 1.0], lambda o, y: Normal().log_prob(o, y[:, None])),
    ],
    ids=["bernoulli", "categorical", "normal"],
)
def test_terms_are_the_log_likelihood_of_the_targets(model: MLP, y: list[float], explicit: Any) -> None:
    weights, x, targets = weights_of(model), torch.from_numpy(inputs(3)), torch.tensor(y)
    terms = model.terms(weights, {"x": x, "y": targets}, torch.Generator(), num_samples=2)
    for number, layer in enumerate(model.layers):
        x = x @ weights.mean[layer.weight].T + weights.mean[layer.bias]
        x = torch.relu(x) if number < len(model.layers) - 1 else x
    torch.testing.assert_close(terms.log_likelihood, explicit(x, targets).expand(2, -1))
    assert terms.kl_latent.tolist() == [0.0] * 3
    assert terms.draws == ()


def test_draws_of_a_record_see_noise_of_their_own() -> None:
    model = MLP(3, (4,), Bernoulli())
    records = {"x": torch.from_numpy(inputs(2)), "y": torch.tensor([0.0, 1.0])}
    terms = model.terms(weights_of(model, 0.1), records, torch.Generator().manual_seed(1), num_samples=4000)
    first, second = terms.log_likelihood[::2].numpy(), terms.log_likelihood[1::2].numpy()
    products = (first - first.mean(0)) * (second - second.mean(0))
    assert deviations(products, np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(np.square(first - first.mean(0)), np.asarray(0.0)) > STANDARD_ERRORS


def records_with(y: Array) -> Records:
    return Records(Interval("table", "pass-0", 1000, 1003), {"x": inputs(3), "y": y})


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (MLP(3), np.array([0.0, np.nan, 1.0]), r"record 1001 .*target nan"),
        (MLP(3), np.array([0.0, 1.0, np.inf]), r"record 1002 .*target inf"),
        (MLP(3), np.zeros((3, 1)), r"one target per record.*\(3, 1\)"),
        (MLP(3), np.zeros(2), r"one target per record.*\(2,\)"),
        (MLP(3), np.array(["a", "b", "c"]), "numbers, got <U1"),
        (MLP(3, likelihood=Bernoulli()), np.array([0.0, 1.0, 0.5]), r"record 1002 "),
        (MLP(3, likelihood=Categorical(3)), np.array([0.0, 3.0, 1.0]), r"record 1001 "),
        (MLP(3, likelihood=Categorical(3)), np.array([-1.0, 2.0, 1.0]), r"record 1000 "),
    ],
)
def test_a_wrong_target_is_refused_with_its_record(model: MLP, y: Array, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        model.validate(records_with(y))
    assert "\n" not in str(raised.value)


def test_a_field_that_is_missing_is_named() -> None:
    records = Records(Interval("table", "pass-0", 0, 3), {"x": inputs(3)})
    with pytest.raises(DataError, match="reads the field 'y', the records have x"):
        MLP(3).validate(records)


def test_whole_numbers_of_any_format_are_targets() -> None:
    for dtype in (np.int64, np.uint8, np.float32):
        MLP(3, likelihood=Categorical(3)).validate(records_with(np.array([0, 2, 1], dtype)))


@pytest.mark.parametrize("sizes", [{"num_columns": 0}, {"hidden": (5, 0)}])
def test_a_size_below_one_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        MLP(**{"num_columns": 3, "hidden": (2,), **sizes})
