import numpy as np
import pytest
from checks import STANDARD_ERRORS, deviations

from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.types import Array, Interval, Records

MODEL = LinearRegression(3, noise_variance=0.5, prior_variance=4.0)


def table(num_records: int, kind: type = np.float64) -> tuple[Array, Array]:
    generator = np.random.default_rng(2)
    x = generator.normal(1.0, 1.0, (num_records, 3)).astype(kind)
    return x, (x @ np.array([1.0, -2.0, 0.5]) + generator.normal(0, np.sqrt(0.5), num_records)).astype(kind)


def records_of(x: Array, y: Array) -> Records:
    return Records(Interval("table", "pass-0", 0, len(x)), {"x": x, "y": y})


def test_the_posterior_is_that_of_the_textbook() -> None:
    x, y = table(40)
    posterior = MODEL.family.moments(MODEL.family.add(MODEL.prior(0), MODEL.evidence(records_of(x, y))))
    covariance = np.linalg.inv(np.eye(3) / 4.0 + x.T @ x / 0.5)
    np.testing.assert_allclose(posterior.variance, covariance, rtol=1e-10)
    np.testing.assert_allclose(posterior.mean, covariance @ x.T @ y / 0.5, rtol=1e-10)


def test_evidence_of_float32_data_is_added_up_in_float64() -> None:
    x, y = table(5000, np.float32)
    evidence = MODEL.evidence(records_of(x, y))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(evidence["precision"], exact.T @ exact / 0.5, rtol=1e-12)
    np.testing.assert_allclose(evidence["precision_mean"], exact.T @ y.astype(np.float64) / 0.5, rtol=1e-12)


def test_the_score_is_the_log_predictive_density() -> None:
    """Against log E_w N(y; x'w, s^2) over draws of the weights."""
    x, y = table(4)
    posterior = MODEL.family.add(MODEL.prior(0), MODEL.evidence(records_of(*table(3))))
    generator = np.random.default_rng(1)
    w = np.stack([MODEL.family.sample(posterior, generator) for _ in range(20_000)])
    density = np.exp(-((y - w @ x.T) ** 2) / (2 * 0.5)) / np.sqrt(2 * np.pi * 0.5)
    each = [MODEL.log_predictive(posterior, records_of(x[i : i + 1], y[i : i + 1])) for i in range(4)]
    assert deviations(density, np.exp(each)) < STANDARD_ERRORS
    assert deviations(density, 1.2 * np.exp(each)) > STANDARD_ERRORS
    assert MODEL.log_predictive(posterior, records_of(x, y)) == pytest.approx(np.mean(each))
