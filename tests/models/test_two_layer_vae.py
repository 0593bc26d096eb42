"""Terms against log densities of torch.distributions, with every network written out."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations, example_records
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.layers import estimators
from streaming_vb.layers.layout import Weights
from streaming_vb.models import two_layer_vae
from streaming_vb.models.neural import Terms
from streaming_vb.models.two_layer_vae import TwoLayerVAE
from streaming_vb.objectives import elbo, importance_weighted
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Records

MODEL = two_layer_vae.example()
X = torch.from_numpy(example_records(MODEL, 5)["x"])


def weights_of() -> Weights:
    """Means of the prior, without noise."""
    mean = torch.from_numpy(MODEL.family.mean(MODEL.prior(0)).astype(np.float32))
    return Weights(MODEL.layout.views(mean))


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def terms(num_samples: int, seed: int = 1, attached: bool = True) -> Terms:
    return MODEL.terms(weights_of(), {"x": X}, generator(seed), num_samples, attached=attached)


def network(name: str, inputs: Tensor) -> Tensor:
    """Two layers with rectified linear units in between, by hand."""
    w = weights_of().mean
    hidden = torch.relu(inputs @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"])
    return hidden @ w[f"{name}.1.weight"].T + w[f"{name}.1.bias"]


def normal(moments: Tensor) -> Normal:
    """From means and log variances, side by side."""
    mean, log_variance = moments.chunk(2, dim=-1)
    return Normal(mean, torch.exp(0.5 * log_variance))


def explicit(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """Log densities [S, B] of a draw."""
    return {
        "likelihood": Bernoulli(logits=network("decoder", z1)).log_prob(X.expand(len(z1), -1, -1)).sum(-1),
        "prior 1": normal(network("prior_network", z2)).log_prob(z1).sum(-1),
        "prior 2": Normal(0.0, 1.0).log_prob(z2).sum(-1),
        "q 1": normal(network("encoder", X)).log_prob(z1).sum(-1),
        "q 2": normal(network("upper_encoder", z1)).log_prob(z2).sum(-1),
    }


def test_the_networks_mirror_each_other() -> None:
    model = TwoLayerVAE(10, hidden=(7, 6), latent=4, upper_hidden=(3,), upper_latent=2)
    sizes = {
        name: [layer.num_inputs for layer in layers] + [layers[-1].num_outputs]
        for name, layers in (
            ("encoder", model.encoder),
            ("upper encoder", model.upper_encoder),
            ("prior network", model.prior_network),
            ("decoder", model.decoder),
        )
    }
    assert sizes == {
        "encoder": [10, 7, 6, 8],
        "upper encoder": [4, 3, 4],
        "prior network": [2, 3, 8],
        "decoder": [4, 6, 7, 10],
    }
    assert all(before.num_outputs == after.num_inputs for before, after in pairwise(model.encoder))


def test_densities_of_the_draws_are_those_of_the_networks() -> None:
    found = terms(4)
    lower, upper = found.draws
    assert lower.z.shape == (4, 5, 3)
    assert upper.z.shape == (4, 5, 2)
    expected = explicit(lower.z, upper.z)
    torch.testing.assert_close(found.log_likelihood, expected["likelihood"])
    torch.testing.assert_close(lower.log_prior(), expected["prior 1"])
    torch.testing.assert_close(upper.log_prior(), expected["prior 2"])
    torch.testing.assert_close(lower.log_q(), expected["q 1"])
    torch.testing.assert_close(upper.log_q(), expected["q 2"])
    log_joint = expected["likelihood"] + expected["prior 1"] + expected["prior 2"]
    torch.testing.assert_close(found.log_joint(), log_joint)
    torch.testing.assert_close(found.log_weights(), log_joint - expected["q 1"] - expected["q 2"])


def test_draws_are_those_of_the_encoders() -> None:
    """Both standardized draws are standard normal, independent, and every row has its own."""
    lower, upper = terms(4000).draws
    noise = torch.cat([(draw.z - draw.mean) * torch.exp(-0.5 * draw.log_variance) for draw in (lower, upper)], -1)
    rows = noise.flatten(1).double().numpy()
    assert deviations(rows, np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(rows[:, :, None] * rows[:, None, :], np.eye(25)) < STANDARD_ERRORS


def test_kl_of_the_latents_is_the_mean_of_its_sampled_value() -> None:
    """-(log p(z) - log q(z))."""
    closed, sampled = [], []
    for seed in range(600):
        found = terms(1, seed)
        closed.append(found.kl_latent)
        sampled.append((found.log_likelihood - found.log_weights())[0])
    kl, draws = torch.stack(closed).double().numpy(), torch.stack(sampled).double().numpy()
    assert deviations(kl - draws, np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(kl + draws, np.asarray(0.0)) > STANDARD_ERRORS


def test_kl_of_the_latents_averages_over_the_draws() -> None:
    """KL(q(z2 | z1) || p(z2)) in closed form, log q(z1 | x) - log p(z1 | z2) sampled."""
    found = terms(3)
    lower, upper = found.draws
    kl = kl_divergence(normal(network("upper_encoder", lower.z)), Normal(0.0, 1.0)).sum(-1)
    densities = explicit(lower.z, upper.z)
    expected = (kl + densities["q 1"] - densities["prior 1"]).mean(0)
    torch.testing.assert_close(found.kl_latent, expected)


def test_log_weights_of_fresh_draws_are_those_of_the_terms() -> None:
    weights, noise = weights_of(), generator(7)
    encoding = MODEL.encode(weights, X, noise)
    torch.testing.assert_close(MODEL.log_weights(weights, X, encoding, 6, noise), terms(6, seed=7).log_weights())


def test_detached_draws_carry_no_gradient_and_have_the_same_values() -> None:
    w = weights_of()
    leaves = Weights({name: value.clone().requires_grad_() for name, value in w.mean.items()})
    for attached in (True, False):
        found = MODEL.terms(leaves, {"x": X}, generator(), 2, attached=attached)
        assert [draw.z.requires_grad for draw in found.draws] == [attached] * 2
        for draw, expected in zip(found.draws, terms(2).draws, strict=True):
            torch.testing.assert_close(draw.z, expected.z)


def test_the_importance_weighted_bound_is_above_the_elbo_and_below_the_log_likelihood() -> None:
    """log p(x) = log E_p(z) p(x | z), by brute force."""
    z1 = MODEL.sample_latent(weights_of(), 200_000, generator())
    log_probability = Bernoulli(logits=network("decoder", z1)[:, None]).log_prob(X).sum(-1)
    log_likelihood = torch.logsumexp(log_probability, 0) - np.log(len(z1))
    bounds = [
        torch.stack([bound(terms(10, seed)) for seed in range(300)]).mean(0) for bound in (elbo, importance_weighted)
    ]
    assert torch.all(bounds[0] + 0.2 < bounds[1])
    assert torch.all(bounds[1] < log_likelihood)
    torch.testing.assert_close(importance_weighted(terms(100_000)), log_likelihood, atol=0.1, rtol=0)


def test_latents_are_sampled_from_the_prior_network() -> None:
    z1 = MODEL.sample_latent(weights_of(), 40_000, generator()).double()
    z2 = torch.randn(40_000, 2, generator=generator(2))
    explicit_draws = normal(network("prior_network", z2)).sample().double()
    for power in (1, 2):
        assert deviations((z1**power - explicit_draws**power).numpy(), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(z1.numpy(), np.asarray(0.0)) > STANDARD_ERRORS


def test_it_learns_digits() -> None:
    source = BinarizedSource(ArraySource({"x": load_digits().data / 16}, passes=3), seed=0)
    model = TwoLayerVAE(64, hidden=(32,), latent=8, upper_hidden=(16,), upper_latent=3)
    steps = list(run(model, source, Settings(batch_size=20, local_steps=10)))
    assert {step.status for step in steps} == {"merged"}
    scores = [step.elbo for step in steps]
    assert np.mean(scores[-4:]) > np.mean(scores[:2]) + 15


def test_the_estimator_reaches_every_layer_and_the_settings() -> None:
    model = replace(MODEL, estimator=estimators.shared)
    assert {layer.estimator for layer in model.layers} == {estimators.shared}
    assert model.describe()["estimator"] == "shared"


@pytest.mark.parametrize(
    "sizes", [{"num_columns": 0}, {"hidden": (5, 0)}, {"latent": 0}, {"upper_hidden": (0,)}, {"upper_latent": 0}]
)
def test_a_size_below_one_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        TwoLayerVAE(**{"num_columns": 3, "hidden": (2,), "latent": 1, **sizes})


def test_a_value_out_of_range_is_named_by_its_place_in_the_stream() -> None:
    records = example_records(MODEL, 5, start=1000)
    x = records["x"].copy()
    x[3, 1] = 0.5
    with pytest.raises(DataError, match=r"record 1003 column 1\b"):
        MODEL.validate(Records(records.interval, {"x": x}))
