"""The quick figure; and the missing part of an importance-sampled likelihood, against quadrature."""

from typing import Any

import numpy as np
import pytest
import torch
from reproduced import quickly
from torch.nn import functional

from streaming_vb.models.vae import VAE
from streaming_vb.reproduce.latent_dimension import QUICK, score
from streaming_vb.types import Moments


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quickly("latent-dimension", tmp_path_factory.mktemp("latent-dimension"))


def test_more_than_two_dimensions_are_better(document: dict[str, Any]) -> None:
    assert document["settings"]["seed"] == 0
    results = document["results"]
    assert list(results) == ["2", "5", "10"]
    assert results["5"]["predictive"] > results["2"]["predictive"] + 0.3
    assert results["10"]["predictive"] > results["2"]["predictive"]
    assert results["5"]["active_units"] > 2


def test_every_score_is_consistent(document: dict[str, Any]) -> None:
    for dimension, of in document["results"].items():
        assert -30 < of["elbo"] < of["predictive"] < -15
        assert 0 < of["standard_error"] < 1
        assert 0 < of["weight_spread"] < 3
        assert -0.02 < of["more_samples_add"] < 0.1
        assert 10 < of["effective_sample_size"] < QUICK.samples
        assert 1 <= of["active_units"] <= int(dimension)


def test_a_score_is_the_likelihood_less_what_more_samples_add() -> None:
    """A linear decoder of two latent dimensions, and an encoder that says N(0, I): by quadrature over the prior."""
    model = VAE(8, hidden=(), latent=2)
    mean = np.zeros(model.layout.num_weights)
    weight = model.layout.views(torch.from_numpy(mean))["decoder.0.weight"]
    weight[:] = torch.linspace(-2.0, 2.4, 16, dtype=torch.float64).view(8, 2)
    posterior = model.family.natural(Moments(mean, np.full_like(mean, 1e-8)))
    x = (np.random.default_rng(0).random((8_000, 8)) < 0.4).astype(np.float32)

    nodes, odds = np.polynomial.hermite_e.hermegauss(40)
    z = torch.tensor([[a, b] for a in nodes for b in nodes])
    log_odds = torch.tensor(np.log(np.outer(odds, odds).ravel() / odds.sum() ** 2))
    logits = z @ weight.T
    exact = torch.logsumexp(torch.from_numpy(x).double() @ logits.T - functional.softplus(logits).sum(-1) + log_odds, 1)

    few = score(model, posterior, x, QUICK._replace(samples=2))
    assert float(exact.mean()) - few.predictive > 0.2
    assert few.more_samples_add == pytest.approx(float(exact.mean()) - few.predictive, rel=0.25)
    assert few.active_units == 0
    many = score(model, posterior, x[:500], QUICK._replace(samples=200))
    assert many.predictive == pytest.approx(float(exact[:500].mean()), abs=0.02)
    assert abs(many.more_samples_add) < 0.02
