"""The quick figure; and the density in the plane, against draws and against torch's own."""

from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from reproduced import quickly

from streaming_vb.layers.layout import Weights
from streaming_vb.models.vae import VAE
from streaming_vb.reproduce import training
from streaming_vb.reproduce.figure_3 import Encoded, density, encode, plane

MODEL = VAE(8, hidden=(6,), latent=5)
X = (np.random.default_rng(0).random((40, 8)) < np.linspace(0.1, 0.9, 8)).astype(np.float32)
CHOSEN = (3, 17)


def weights() -> Weights:
    """Of a model whose posteriors have unequal deviations."""
    start = training.prior_centre(MODEL, 0)
    means = {name: 3 * tensor.detach() for name, tensor in start.items()}
    means["encoder.1.bias"][5:] = torch.linspace(-3.0, 0.0, 5)
    return Weights(means)


def encoded() -> tuple[Encoded, np.ndarray]:
    """Two rows, and the plane of all encodings."""
    with torch.no_grad():
        all_means, _ = MODEL.encode(weights(), torch.from_numpy(X), torch.Generator())
    return encode(MODEL, weights(), X, CHOSEN), plane(all_means.double().numpy())[0]


def test_the_density_in_the_plane_is_that_of_projected_draws() -> None:
    shown, directions = encoded()
    assert np.allclose(directions.T @ directions, np.eye(2))
    generator = np.random.default_rng(1)
    for i in range(len(CHOSEN)):
        draws = (shown.mean[i] + shown.deviation[i] * generator.normal(size=(40_000, 5))) @ directions
        assert deviations(draws, shown.centre[i]) < STANDARD_ERRORS
        products = (draws - shown.centre[i])[:, :, None] * (draws - shown.centre[i])[:, None, :]
        assert deviations(products, shown.covariance[i]) < STANDARD_ERRORS
        assert deviations(products, np.diag(np.diag(shown.covariance[i]))) > STANDARD_ERRORS  # it is tilted


def test_the_plane_holds_as_much_variance_as_any() -> None:
    latent = np.random.default_rng(2).normal(size=(200, 4)) @ np.diag([0.5, 3.0, 0.1, 2.0])
    directions, names = plane(latent)
    largest = np.sort(np.linalg.eigvalsh(np.cov(latent.T)))[-2:]
    assert np.allclose(np.sort(np.var(latent @ directions, axis=0, ddof=1)), largest)
    assert names == ("component 1", "component 2")
    assert np.array_equal(plane(latent[:, :2])[0], np.eye(2))


def test_density() -> None:
    centre, covariance = np.array([0.5, -1.0]), np.array([[0.5, 0.2], [0.2, 0.3]])
    first, second = np.meshgrid(np.linspace(-3, 4, 141), np.linspace(-4, 2, 121))
    heights = density(centre, covariance, first, second)
    normal = torch.distributions.MultivariateNormal(torch.tensor(centre), torch.tensor(covariance))
    grid = torch.from_numpy(np.stack([first, second], axis=-1))
    assert np.allclose(heights, normal.log_prob(grid).exp().numpy())
    assert heights.sum() * 0.05 * 0.05 == pytest.approx(1.0, abs=1e-3)


def test_the_reconstruction_is_decoded_from_the_mean() -> None:
    shown, _ = encoded()
    with torch.no_grad():
        logits = MODEL.decode(weights(), torch.from_numpy(shown.mean).float(), torch.Generator())
    assert np.allclose(shown.reconstruction, torch.sigmoid(logits).numpy(), atol=1e-6)
    probabilities = torch.from_numpy(shown.reconstruction).double()
    expected = torch.distributions.Bernoulli(probabilities).log_prob(torch.from_numpy(X[list(CHOSEN)]).double()).sum(-1)
    assert np.allclose(shown.log_likelihood, expected.numpy(), rtol=1e-5)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quickly("figure-3", tmp_path_factory.mktemp("figure-3"))


def test_quick(document: dict[str, Any]) -> None:
    assert document["settings"]["seed"] == 0
    assert document["settings"]["labels"] == [0, 3, 4, 7]
    two, ten = (document["results"][latent] for latent in ("2", "10"))
    assert np.array_equal(two["mean"], two["mean_in_the_plane"])
    deviation = np.array(two["standard_deviation"])
    assert np.allclose(two["covariance_in_the_plane"], [np.diag(row**2) for row in deviation], atol=1e-4)
    assert np.shape(ten["mean"]) == (4, 10)
    assert (np.linalg.eigvalsh(ten["covariance_in_the_plane"]) > 0).all()
    for of in (two, ten):
        assert -30 < np.mean(of["reconstruction_log_likelihood"]) < 0  # 64 log 2 = 44.4 for equal odds
    distances = np.linalg.norm(np.diff(two["mean"], axis=0), axis=1)
    assert distances.max() > deviation.max()  # digits of different classes lie apart
