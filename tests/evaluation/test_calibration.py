"""A calibrated predictive has uniform transforms and nominal coverage, and an overconfident one has neither."""

import numpy as np
import pytest
from checks import STANDARD_ERRORS

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.evaluation.calibration import (
    coverage,
    probability_integral_transform,
    reliability,
    uniformity,
)
from streaming_vb.types import Array

NUM_RECORDS, NUM_DRAWS = 4000, 39
CASES = ("gamma", "poisson", "binary")


def predictive(case: str, sharpness: float = 1.0) -> tuple[Array, Array]:
    """Observations [n] and draws [S, n] of what is predicted, which may be sharper than the truth."""
    generator = np.random.default_rng(5)
    rate = generator.uniform(0.5, 8.0, NUM_RECORDS)
    shape = (NUM_DRAWS, NUM_RECORDS)
    if case == "gamma":
        return generator.gamma(2.0, rate), generator.gamma(2.0 * sharpness, rate / sharpness, shape)
    if case == "poisson":
        mixed = generator.poisson(generator.gamma(2.0, rate))
        return mixed, generator.poisson(generator.gamma(2.0 * sharpness, rate / sharpness, shape))
    chance = generator.beta(2.0, 5.0, NUM_RECORDS)
    sharper = chance**sharpness / (chance**sharpness + (1 - chance) ** sharpness)
    return generator.binomial(1, chance), generator.binomial(1, sharper, shape)


def transform_of(case: str, sharpness: float = 1.0) -> Array:
    x, draws = predictive(case, sharpness)
    return probability_integral_transform(draws, x, np.random.default_rng(6))


@pytest.mark.parametrize("case", CASES)
def test_transforms_of_a_calibrated_predictive_are_uniform(case: str) -> None:
    transform = transform_of(case)
    count, _ = np.histogram(transform, bins=20, range=(0, 1))
    error = np.sqrt(NUM_RECORDS * 0.05 * 0.95)
    assert np.all(np.abs(count - NUM_RECORDS / 20) < STANDARD_ERRORS * error)
    assert uniformity(transform).p_value > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_coverage_of_a_calibrated_predictive_is_nominal(case: str) -> None:
    covered = coverage(transform_of(case), levels=(0.1, 0.5, 0.8, 0.95))
    np.testing.assert_array_less(np.abs(covered.covered - covered.level), STANDARD_ERRORS * covered.standard_error)


@pytest.mark.parametrize("case", CASES)
def test_an_overconfident_predictive_is_found_out(case: str) -> None:
    transform = transform_of(case, sharpness=4.0)
    assert uniformity(transform).p_value < 1e-6
    if case != "binary":  # an interval of a binary predictive is half of the two values at any sharpness
        covered = coverage(transform)
        np.testing.assert_array_less(covered.covered, covered.level - STANDARD_ERRORS * covered.standard_error)


def test_a_predictive_that_is_too_low_has_transforms_that_are_too_high() -> None:
    x, draws = predictive("gamma")
    assert probability_integral_transform(draws / 2, x, np.random.default_rng(0)).mean() > 0.6


@pytest.mark.parametrize("num_draws", [1, 2, 9])
def test_few_draws_are_exact_too(num_draws: int) -> None:
    x, draws = predictive("gamma")
    transform = probability_integral_transform(draws[:num_draws], x, np.random.default_rng(6))
    assert uniformity(transform).p_value > 1e-3


def test_transforms_count_the_draws_below_and_split_ties() -> None:
    draws = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]])
    transform = [
        probability_integral_transform(draws, np.array([2.5, 2.0]), np.random.default_rng(seed)) for seed in range(400)
    ]
    low, high = np.min(transform, axis=0), np.max(transform, axis=0)
    np.testing.assert_allclose(low, [0.5, 0.0], atol=0.02)
    np.testing.assert_allclose(high, [0.75, 1.0], atol=0.02)


def test_columns_have_transforms_of_their_own() -> None:
    transform = probability_integral_transform(np.zeros((9, 5, 3)), np.full((5, 3), 1.0), np.random.default_rng(0))
    assert transform.shape == (5, 3)
    assert transform.min() >= 0.9


def test_the_kolmogorov_distance_and_its_tail() -> None:
    assert uniformity(np.array([0.2, 0.4])).distance == pytest.approx(0.6)
    assert uniformity(np.array([0.6, 0.8])).distance == pytest.approx(0.6)
    grid = (np.arange(10_000) + 0.5) / 10_000
    assert uniformity(grid) == pytest.approx((0.5e-4, 1.0))
    shifted = uniformity(np.clip(grid + 0.0136, 0, 1))
    assert shifted.distance == pytest.approx(0.01365)
    assert shifted.p_value == pytest.approx(0.0483, abs=1e-3)  # 1.358 is the 5% point of Kolmogorov's distribution


def test_p_values_of_uniform_samples_are_uniform() -> None:
    generator = np.random.default_rng(0)
    p_values = [uniformity(generator.random(500)).p_value for _ in range(400)]
    assert uniformity(np.array(p_values)).p_value > 1e-3
    assert uniformity(np.array(p_values)[:200] / 2).p_value < 1e-6


def classifier(temperature: float) -> tuple[Array, Array]:
    """Labels [n] from probabilities [n, C], and what is reported: the same, made sharper below temperature 1."""
    generator = np.random.default_rng(2)
    logits = generator.normal([0.5, 0.0, -1.0], 1.5, (20_000, 3))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (generator.random((20_000, 1)) > chance.cumsum(axis=1)).sum(axis=1)
    reported = chance ** (1 / temperature)
    return reported / reported.sum(axis=1, keepdims=True), labels


def test_a_calibrated_classifier_is_as_right_as_it_says() -> None:
    found = reliability(*classifier(1.0))
    filled = found.predictions > 0
    gap = np.abs(found.accuracy - found.confidence)[filled]
    np.testing.assert_array_less(gap, STANDARD_ERRORS * found.standard_error[filled])
    assert found.expected_calibration_error < 0.02
    assert found.predictions.sum() == 20_000


@pytest.mark.parametrize(("temperature", "sign"), [(0.4, -1), (2.5, 1)], ids=["overconfident", "underconfident"])
def test_a_miscalibrated_classifier_is_found_out(temperature: float, sign: int) -> None:
    found = reliability(*classifier(temperature))
    assert found.expected_calibration_error > 0.1
    clear = (found.predictions > 200) & (found.confidence > 0.55)
    gap = sign * (found.accuracy - found.confidence)[clear]
    np.testing.assert_array_less(STANDARD_ERRORS * found.standard_error[clear], gap)


def test_the_calibration_error_is_weighted_by_predictions() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.7, 0.3], [1.0, 0.0]])
    found = reliability(probabilities, np.array([0, 0, 0, 0]), num_bins=10)
    np.testing.assert_array_equal(found.predictions, [0, 0, 0, 0, 0, 0, 0, 1, 0, 3][:10])
    assert found.expected_calibration_error == pytest.approx((1 * 0.3 + 3 * abs(2 / 3 - 2.8 / 3)) / 4)
    assert np.isnan(found.accuracy[0])


@pytest.mark.parametrize(
    ("draws", "says"),
    [
        (np.zeros(3), r"got \[3\] and \[3\]"),
        (np.zeros((5, 2)), r"got \[5, 2\] and \[3\]"),
        (np.zeros((0, 3)), "at least one draw of every observation"),
        (np.full((2, 3), np.nan), "got NaN"),
    ],
    ids=["one axis", "other records", "no draws", "nan"],
)
def test_draws_that_do_not_fit_are_refused(draws: Array, says: str) -> None:
    with pytest.raises(DataError, match=says):
        probability_integral_transform(draws, np.zeros(3), np.random.default_rng(0))


def test_levels_outside_0_and_1_and_no_observations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"levels must lie between 0 and 1, got 0\.9, 90\.0"):
        coverage(np.zeros(3), levels=(0.9, 90.0))
    for summary in (coverage, uniformity):
        with pytest.raises(DataError, match="at least one observation, got none"):
            summary(np.zeros(0))


@pytest.mark.parametrize(
    ("probabilities", "labels", "says"),
    [
        ([[0.5, 0.5], [2.0, -1.0]], [0, 0], "row 1 adds up to 1"),
        ([[0.5, 0.5], [3.0, 1.0]], [0, 0], "row 1 adds up to 4.*not logits"),
        ([[0.5, 0.5]], [2], "labels must be 0 to 1; label 0 is 2"),
        ([[0.5, 0.5]], [-1], "labels must be 0 to 1; label 0 is -1"),
        ([0.5, 0.5], [0, 0], r"probabilities \[n, C\] and labels \[n\], got \[2\] and \[2\]"),
        ([[0.5, 0.5]], [0, 0], r"got \[1, 2\] and \[2\]"),
    ],
)
def test_what_is_no_distribution_or_label_is_refused(probabilities: list, labels: list, says: str) -> None:
    with pytest.raises(DataError, match=says):
        reliability(np.array(probabilities), np.array(labels))


def test_no_bin_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 bin, got 0"):
        reliability(np.array([[0.5, 0.5]]), np.zeros(1, int), num_bins=0)
