"""Against the closed form of a linear-Gaussian VAE, and against all log weights at once."""

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations, fingerprint
from linear_gaussian import example
from torch import Tensor

from streaming_vb.errors import ConfigError
from streaming_vb.evaluation import importance
from streaming_vb.evaluation.importance import ImportanceSampled, ImportanceSampledOverDraws, at_mean, join, over_draws
from streaming_vb.layers.layout import Weights
from streaming_vb.models.vae import VAE

ORACLE = example()
X = ORACLE.sample(150, np.random.default_rng(1))
EXACT = ORACLE.log_density(X)
WRONG = {"shift": 0.2, "spread": 1.4}
"""An encoder that is off in mean and variance."""
FIXED = Weights({})


class GivenWeights:
    """A model whose log weights [K, n] are given; a record x = (i, ...) is their column i."""

    def __init__(self, log_weights: np.ndarray) -> None:
        self.given = torch.from_numpy(log_weights)
        self.served = np.zeros(log_weights.shape[1], dtype=int)
        self.rows: list[int] = []

    def encode(self, weights: Weights, x: Tensor, generator: torch.Generator) -> list[int]:
        return x[:, 0].int().tolist()

    def log_weights(
        self, weights: Weights, x: Tensor, encoding: list[int], num_samples: int, generator: torch.Generator
    ) -> Tensor:
        self.rows.append(len(x) * num_samples)
        (start,) = set(self.served[encoding].tolist())
        self.served[encoding] += num_samples
        return self.given[start : start + num_samples, encoding]

    def x(self) -> np.ndarray:
        return np.arange(len(self.served))[:, None]


def test_with_the_exact_posterior_every_weight_is_equal_and_the_estimate_exact() -> None:
    sampled = at_mean(ORACLE.model, ORACLE.posterior(), X, num_samples=101, seed=0)
    np.testing.assert_allclose(sampled.log_likelihood, EXACT, atol=1e-4)
    np.testing.assert_allclose(sampled.effective_sample_size, 101, rtol=1e-6)


def test_with_a_wrong_encoder_5000_samples_agree_with_the_closed_form() -> None:
    sampled = at_mean(ORACLE.model, ORACLE.posterior(**WRONG), X, num_samples=5000, seed=0)
    assert deviations(sampled.log_likelihood - EXACT, np.asarray(0.0)) < 3
    assert 500 < np.median(sampled.effective_sample_size) < 4500
    elbo = EXACT - ORACLE.kl_of_encoder(X, **WRONG)
    assert deviations(sampled.log_likelihood - elbo, np.asarray(0.0)) > STANDARD_ERRORS


def test_the_error_of_a_record_is_what_its_effective_sample_size_says() -> None:
    sampled = at_mean(ORACLE.model, ORACLE.posterior(**WRONG), X, num_samples=1000, seed=0)
    error = (sampled.log_likelihood - EXACT) / np.sqrt(1 / sampled.effective_sample_size - 1 / 1000)
    assert deviations(np.square(error)[:, None], np.asarray(1.0)) < STANDARD_ERRORS


def test_one_sample_is_the_elbo_in_expectation() -> None:
    record = X[:1].repeat(20_000, axis=0)
    sampled = at_mean(ORACLE.model, ORACLE.posterior(**WRONG), record, num_samples=1, seed=0)
    elbo = EXACT[0] - ORACLE.kl_of_encoder(X[:1], **WRONG)[0]
    assert deviations(sampled.log_likelihood, elbo) < STANDARD_ERRORS
    assert deviations(sampled.log_likelihood, EXACT[0]) > STANDARD_ERRORS
    np.testing.assert_allclose(sampled.effective_sample_size, 1)


@pytest.mark.parametrize("num_samples", [1, 7, 100, 101, 5000])
def test_the_number_of_samples_is_honoured(num_samples: int) -> None:
    generator = np.random.default_rng(num_samples)
    log_weights = generator.normal([-900.0, 3.0, 80.0], [1.0, 5.0, 0.1], (num_samples, 3)).astype(np.float32)
    model = GivenWeights(log_weights)
    sampled = join(importance.stream(model, FIXED, model.x(), num_samples=num_samples, seed=0))
    np.testing.assert_array_equal(model.served, num_samples)
    assert max(model.rows) <= 256
    weights = np.exp(log_weights.astype(np.float64) - log_weights.max(axis=0))
    expected = log_weights.max(axis=0) + np.log(weights.mean(axis=0))
    np.testing.assert_allclose(sampled.log_likelihood, expected, rtol=1e-12)
    np.testing.assert_allclose(sampled.effective_sample_size, weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0))


def test_samples_of_weight_zero_do_not_count() -> None:
    log_weights = np.full((300, 2), -np.inf, dtype=np.float32)
    log_weights[:30, 1] = 2.0
    model = GivenWeights(log_weights)
    sampled = join(importance.stream(model, FIXED, model.x(), num_samples=300, seed=0))
    np.testing.assert_allclose(sampled.log_likelihood, [-np.inf, 2 + np.log(0.1)])
    np.testing.assert_allclose(sampled.effective_sample_size, [0, 30])


def test_every_record_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = VAE.encode

    def count(self: VAE, weights: Weights, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        encoded.append(len(x))
        return encode(self, weights, x, generator)

    monkeypatch.setattr(VAE, "encode", count)
    for num_samples in (1, 50, 1000):
        encoded.clear()
        at_mean(ORACLE.model, ORACLE.posterior(), X[:20], num_samples=num_samples, seed=0)
        assert sum(encoded) == 20


def test_the_same_seed_gives_the_same_estimate_and_inputs_are_left_alone() -> None:
    posterior = ORACLE.posterior(**WRONG)
    before = fingerprint(posterior, X)
    first, again, other = (at_mean(ORACLE.model, posterior, X[:9], num_samples=20, seed=seed) for seed in (1, 1, 2))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    assert fingerprint(posterior, X) == before


def test_draws_of_the_weights_score_as_the_closed_form_averages() -> None:
    """E_b[log N(x; b, C)] = log N(x; m, C) - tr(C^-1) v / 2 for b ~ N(m, v I)."""
    variance = 0.05
    sampled = over_draws(
        ORACLE.model, ORACLE.posterior(offset_variance=variance), X[:40], draws=60, num_samples=50, seed=0
    )
    assert sampled.log_likelihood.shape == sampled.effective_sample_size.shape == (60, 40)
    expected = EXACT[:40].mean() - 0.5 * variance * np.trace(np.linalg.inv(ORACLE.covariance))
    assert deviations(sampled.log_likelihood.mean(axis=1), np.asarray(expected)) < STANDARD_ERRORS
    assert deviations(sampled.log_likelihood.mean(axis=1), EXACT[:40].mean()) > STANDARD_ERRORS


def test_the_noise_of_z_is_no_part_of_the_spread_over_draws() -> None:
    """A sharp posterior has none, even with few samples and a wrong encoder."""
    sampled = over_draws(ORACLE.model, ORACLE.posterior(**WRONG), X[:20], draws=3, num_samples=2, seed=0)
    assert sampled.scores().deviation.max() < 1e-3
    loose = ORACLE.posterior(**WRONG, offset_variance=0.05)
    wide = over_draws(ORACLE.model, loose, X[:20], draws=3, num_samples=2, seed=0)
    assert wide.scores().deviation.min() > 1e-2


def test_the_estimate_has_the_standard_error_of_records_and_draws() -> None:
    sampled = ImportanceSampled(np.array([-1.0, -3.0, -5.0]), np.ones(3))
    assert sampled.estimate() == pytest.approx((-3.0, 2 / np.sqrt(3)))
    drawn = ImportanceSampledOverDraws(np.array([[-1.0, -3.0, -5.0], [-2.0, -4.0, -6.0]]), np.ones((2, 3)))
    assert drawn.estimate() == pytest.approx((-3.5, np.sqrt(4 / 3 + 0.25)))
    np.testing.assert_allclose(drawn.scores().mean, [-1.5, -3.5, -5.5])
    np.testing.assert_allclose(drawn.scores().deviation, np.sqrt(0.5))


def test_noise_of_the_weights_in_every_sample_is_refused() -> None:
    weights = Weights({}, {})
    with pytest.raises(ConfigError, match=r"fixed weights.*no bound on log p\(x \| w\)\. Pass the posterior mean"):
        importance.stream(ORACLE.model, weights, X, seed=0)


def test_too_few_samples_draws_or_records_are_refused() -> None:
    with pytest.raises(ConfigError, match="importance samples must be at least 1 per record, got 0"):
        at_mean(ORACLE.model, ORACLE.posterior(), X, num_samples=0, seed=0)
    with pytest.raises(ConfigError, match="--draws must be at least 2"):
        over_draws(ORACLE.model, ORACLE.posterior(), X, draws=1, seed=0)
    with pytest.raises(ConfigError, match="at least 2 scores, got 1"):
        ImportanceSampled(np.zeros(1), np.ones(1)).estimate()
