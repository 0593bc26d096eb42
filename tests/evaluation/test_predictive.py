"""Against the closed form of a linear-Gaussian VAE whose offset is uncertain: x ~ N(m, C + v I)."""

import numpy as np
import pytest
from checks import STANDARD_ERRORS
from linear_gaussian import example

from streaming_vb.errors import ConfigError
from streaming_vb.evaluation import importance
from streaming_vb.evaluation.predictive import over_draws, predictive

ORACLE = example(num_columns=4, latent=2)
VARIANCE = 0.1
POSTERIOR = ORACLE.posterior(offset_variance=VARIANCE)
X = ORACLE.sample(40, np.random.default_rng(3))
EXACT = ORACLE.log_density(X, VARIANCE * np.eye(4))


def test_the_score_agrees_with_the_closed_form() -> None:
    sampled = importance.over_draws(ORACLE.model, POSTERIOR, X, draws=100, num_samples=30, seed=0)
    scored = predictive(sampled.log_likelihood)
    assert abs(scored.log_predictive.mean() - EXACT.mean()) < STANDARD_ERRORS * scored.weight_standard_error
    np.testing.assert_allclose(scored.log_predictive, EXACT, atol=1.0)
    assert sampled.estimate().mean < EXACT.mean() - STANDARD_ERRORS * scored.weight_standard_error


def test_a_model_is_scored_by_the_likelihoods_of_its_draws() -> None:
    settings = {"draws": 3, "num_samples": 5, "seed": 0}
    scored = over_draws(ORACLE.model, POSTERIOR, X, **settings)
    sampled = importance.over_draws(ORACLE.model, POSTERIOR, X, **settings)
    np.testing.assert_array_equal(scored.log_predictive, predictive(sampled.log_likelihood).log_predictive)


def test_the_standard_error_of_the_weights_is_the_spread_between_posterior_samples() -> None:
    """Of records that all want the offset moved the same way; as if independent, it would be far too small."""
    x = ORACLE.offset + np.linspace(0.5, 1.5, 30)[:, None]
    generator = np.random.default_rng(0)
    repeats = [predictive(log_densities(x, 40, generator)) for _ in range(200)]
    spread = np.std([repeat.log_predictive.mean() for repeat in repeats], ddof=1)
    claimed = np.sqrt(np.mean([repeat.weight_standard_error**2 for repeat in repeats]))
    assert 0.8 < spread / claimed < 1.2
    if_independent = np.mean([repeat.deviation.mean() for repeat in repeats]) / np.sqrt(40 * len(x))
    assert spread > 2 * if_independent


def log_densities(x: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """log N(x; b_j, C) [J, n], in closed form."""
    offsets = ORACLE.offset + np.sqrt(VARIANCE) * generator.standard_normal((draws, 4))
    return np.stack([ORACLE._replace(offset=offset).log_density(x) for offset in offsets])


def test_the_score_of_records_is_a_mean_of_likelihoods_and_not_of_their_logarithms() -> None:
    log_likelihood = np.array([[-800.0, -1.0], [-801.0, -3.0], [-900.0, -2.0]])
    scored = predictive(log_likelihood)
    expected = [-800 + np.log((1 + np.exp(-1)) / 3), np.log(np.exp([-1, -3, -2]).mean())]
    np.testing.assert_allclose(scored.log_predictive, expected)
    np.testing.assert_allclose(scored.deviation, log_likelihood.std(axis=0, ddof=1))
    estimate = scored.estimate()
    records = np.std(expected, ddof=1) / np.sqrt(2)
    assert estimate.mean == pytest.approx(np.mean(expected))
    assert estimate.standard_error == pytest.approx(np.hypot(records, scored.weight_standard_error))


def test_draws_that_agree_have_no_uncertainty() -> None:
    scored = predictive(np.tile([-3.0, -2.0], (4, 1)))
    np.testing.assert_allclose(scored.log_predictive, [-3, -2])
    assert scored.weight_standard_error == pytest.approx(0)
    np.testing.assert_allclose(scored.deviation, 0)


def test_the_predictive_at_one_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 draws of the weights, got 1"):
        predictive(np.zeros((1, 3)))
