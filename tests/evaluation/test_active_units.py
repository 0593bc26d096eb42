"""Against the closed form of a linear-Gaussian VAE: E[z_d | x] has variance 1 - Var(z_d | x) over x."""

import numpy as np
import pytest
from checks import STANDARD_ERRORS, fingerprint
from linear_gaussian import LinearGaussian

from streaming_vb.errors import ConfigError
from streaming_vb.evaluation.active_units import ActiveUnits, at_mean, over_draws
from streaming_vb.types import Moments

ORACLE = LinearGaussian(np.eye(6)[:, :4] * [2.0, 0.05, 0.6, 0.0], np.linspace(-2, 3, 6), 0.7)
"""Dimensions 1 and 3 say next to nothing about x."""
X = ORACLE.sample(2500, np.random.default_rng(0))


def test_the_variance_of_the_encoded_means_is_the_closed_form() -> None:
    units = at_mean(ORACLE.model, ORACLE.posterior(), X)
    exact = 1 - ORACLE.latent_variance
    tolerance = STANDARD_ERRORS * exact * np.sqrt(2 / (len(X) - 1))
    assert np.all(np.abs(units.variance - exact) <= tolerance)
    assert units.variance[0] == pytest.approx(ORACLE.latent_mean(X)[:, 0].var(ddof=1), rel=1e-5)
    assert units.num_active == 2


def test_the_threshold_is_a_hundredth() -> None:
    assert ActiveUnits(np.array([0.0099, 0.0101, 0.0, 5.0])).num_active == 2


def test_a_mean_far_from_zero_is_no_activity() -> None:
    """Every record is encoded at 1 in dimension 1, and at 0 in dimension 3."""
    posterior = ORACLE.posterior(shift=0.999)
    assert at_mean(ORACLE.model, posterior, X).num_active == 0


def test_draws_of_a_sharp_posterior_have_no_spread() -> None:
    drawn, mean = (
        over_draws(ORACLE.model, ORACLE.posterior(), X, draws=4, seed=0),
        at_mean(ORACLE.model, ORACLE.posterior(), X),
    )
    np.testing.assert_allclose(drawn.variance, mean.variance, atol=1e-5)
    assert drawn.deviation.max() < 1e-5
    assert (drawn.num_active, drawn.num_active_deviation) == (2, 0)


def test_draws_of_uncertain_weights_average_to_the_closed_form() -> None:
    """Weight noise of variance v in the encoder adds v tr Cov(x) to the variance of the encoded mean."""
    variance = 1e-3
    moments = ORACLE.model.family.moments(ORACLE.posterior())
    posterior = ORACLE.model.family.natural(Moments(moments.mean, moments.variance + variance))
    drawn = over_draws(ORACLE.model, posterior, X, draws=200, seed=0)
    expected = ORACLE.latent_mean(X).var(axis=0, ddof=1) + variance * np.trace(np.cov(X.T))
    np.testing.assert_array_less(np.abs(drawn.variance - expected), STANDARD_ERRORS * drawn.deviation / np.sqrt(200))
    assert 2 < drawn.num_active < 4
    assert drawn.num_active_deviation > 0


def test_inputs_are_left_alone() -> None:
    posterior = ORACLE.posterior()
    before = fingerprint(posterior, X)
    over_draws(ORACLE.model, posterior, X, draws=2, seed=0)
    assert fingerprint(posterior, X) == before


def test_one_record_or_one_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 are needed, got 1"):
        at_mean(ORACLE.model, ORACLE.posterior(), X[:1])
    with pytest.raises(ConfigError, match="--draws must be at least 2"):
        over_draws(ORACLE.model, ORACLE.posterior(), X, draws=1, seed=0)
