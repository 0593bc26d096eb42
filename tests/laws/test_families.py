"""Laws of every exponential family."""

from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, all_of, assert_close, deviations, fingerprint
from discovery import examples
from torch.distributions import MultivariateNormal, kl_divergence

from streaming_vb.streaming.forgetting import ScalableFamily
from streaming_vb.types import Array, NaturalParameters

Example = tuple[Any, NaturalParameters, NaturalParameters]
every_family = pytest.mark.parametrize("example", examples("families"))


def covariance(family: Any, natural: NaturalParameters) -> Array:
    """[P, P], whether the family keeps variances or a covariance."""
    variance = family.moments(natural).variance
    return np.diag(variance) if variance.ndim == 1 else variance


def as_torch(family: Any, natural: NaturalParameters) -> MultivariateNormal:
    return MultivariateNormal(
        torch.from_numpy(family.mean(natural)), covariance_matrix=torch.from_numpy(covariance(family, natural))
    )


def draws(family: Any, natural: NaturalParameters, count: int = 4000) -> Array:
    generator = np.random.default_rng(1)
    return np.stack([family.sample(natural, generator) for _ in range(count)])


@every_family
def test_natural_and_moments_are_inverse(example: Example) -> None:
    family, a, b = example
    for natural in (a, b):
        assert_close(family.natural(family.moments(natural)), natural)


@every_family
def test_mean_is_the_first_moment(example: Example) -> None:
    family, a, _ = example
    np.testing.assert_array_equal(family.mean(a), family.moments(a).mean)


@every_family
def test_adding_nothing_changes_no_bit(example: Example) -> None:
    family, a, _ = example
    assert fingerprint(family.add(a, a.scale(0.0))) == fingerprint(a)


@every_family
def test_addition_commutes(example: Example) -> None:
    family, a, b = example
    assert fingerprint(family.add(a, b)) == fingerprint(family.add(b, a))


@every_family
def test_addition_associates(example: Example) -> None:
    family, a, b = example
    c = b.scale(0.37)
    assert_close(family.add(family.add(a, b), c), family.add(a, family.add(b, c)))


@every_family
def test_a_sum_with_a_delta_from_the_wire_stays_float64(example: Example) -> None:
    family, a, b = example
    total = family.add(a, b.astype(family.wire_dtype))
    assert {array.dtype for array in total.arrays.values()} == {np.dtype(np.float64)}


@every_family
def test_no_operation_touches_its_inputs(example: Example) -> None:
    family, a, b = example
    before = fingerprint(a, b)
    family.add(a, b)
    family.kl(a, b)
    family.mean(a)
    family.moments(a)
    family.natural(family.moments(a))
    family.log_normalizer(a)
    family.is_normalizable(a)
    family.distance_sd(a, family.mean(b))
    family.sample(a, np.random.default_rng(0))
    if isinstance(family, ScalableFamily):
        family.scale_evidence(a, b, 0.5)
    assert fingerprint(a, b) == before


@every_family
def test_results_do_not_share_memory_with_inputs_that_an_addition_got(example: Example) -> None:
    family, a, b = example
    total = family.add(a, b)
    for name, array in total.arrays.items():
        assert not np.shares_memory(array, a[name])
        assert not np.shares_memory(array, b[name])


@every_family
def test_kl_of_a_distribution_to_itself_is_zero(example: Example) -> None:
    family, a, b = example
    assert family.kl(a, a) == pytest.approx(0.0, abs=1e-12)
    assert family.kl(b, b) == pytest.approx(0.0, abs=1e-12)


@every_family
def test_kl_between_different_distributions_is_positive(example: Example) -> None:
    family, a, b = example
    assert family.kl(a, b) > 0.01
    assert family.kl(b, a) > 0.01


@every_family
def test_kl_equals_that_of_torch_in_its_direction(example: Example) -> None:
    family, a, b = example
    forward, backward = family.kl(a, b), family.kl(b, a)
    assert forward == pytest.approx(float(kl_divergence(as_torch(family, a), as_torch(family, b))), rel=1e-10)
    assert backward == pytest.approx(float(kl_divergence(as_torch(family, b), as_torch(family, a))), rel=1e-10)
    has_one_covariance = np.allclose(covariance(family, a), covariance(family, b))
    assert has_one_covariance or abs(forward - backward) > 0.01


@every_family
def test_kl_equals_its_monte_carlo_estimate(example: Example) -> None:
    family, a, b = example
    w = torch.from_numpy(draws(family, a))
    ratio = (as_torch(family, a).log_prob(w) - as_torch(family, b).log_prob(w)).numpy()
    assert deviations(ratio, np.asarray(family.kl(a, b))) < STANDARD_ERRORS
    assert deviations(ratio, np.asarray(2 * family.kl(a, b))) > STANDARD_ERRORS


@every_family
def test_samples_have_the_moments(example: Example) -> None:
    family, a, _ = example
    w, mean = draws(family, a), family.mean(a)
    products = (w - mean)[:, :, None] * (w - mean)[:, None, :]
    assert deviations(w, mean) < STANDARD_ERRORS
    assert deviations(products, covariance(family, a)) < STANDARD_ERRORS


@every_family
def test_samples_do_not_have_the_moments_of_another_member(example: Example) -> None:
    family, a, b = example
    w, mean = draws(family, a), family.mean(a)
    products = (w - mean)[:, :, None] * (w - mean)[:, None, :]
    assert deviations(w, family.mean(b)) > STANDARD_ERRORS
    assert deviations(products, 1.2 * covariance(family, a)) > STANDARD_ERRORS


@every_family
def test_samples_follow_the_generator(example: Example) -> None:
    family, a, _ = example
    first, again = (family.sample(a, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, family.sample(a, np.random.default_rng(8)))


def symmetric_directions(array: Array) -> list[Array]:
    """A basis in which to differentiate: unit vectors, or symmetric unit matrices."""
    directions = []
    for index in np.ndindex(array.shape):
        direction = np.zeros_like(array)
        direction[index] = direction[index[::-1]] = 1.0
        directions.append(direction)
    return directions


@every_family
def test_gradient_of_the_log_normalizer_is_the_mean_parameters(example: Example) -> None:
    family, a, _ = example
    mean = family.mean(a)
    second = covariance(family, a) + np.outer(mean, mean)
    step = 1e-5
    for name, array in a.arrays.items():
        statistic = {"precision_mean": mean, "sum": mean, "precision": -0.5 * second}[name]
        if array.ndim == 1 and statistic.ndim == 2:
            statistic = np.diag(statistic)
        for direction in symmetric_directions(array):
            up, down = (NaturalParameters({**a.arrays, name: array + s * direction}) for s in (step, -step))
            slope = (family.log_normalizer(up) - family.log_normalizer(down)) / (2 * step)
            assert slope == pytest.approx(float(np.sum(direction * statistic)), rel=1e-6, abs=1e-8)


@every_family
def test_members_are_normalizable(example: Example) -> None:
    family, a, b = example
    assert family.is_normalizable(a)
    assert family.is_normalizable(b)
    assert family.is_normalizable(family.add(a, b))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_family
def test_a_value_that_is_not_finite_is_not_normalizable(example: Example, value: float) -> None:
    family, a, _ = example
    for name, spoiled in zip(a.arrays, all_of(a.arrays.values(), value), strict=True):
        assert not family.is_normalizable(NaturalParameters({**a.arrays, name: spoiled})), name


@pytest.mark.parametrize("factor", [0.0, -1.0])
@every_family
def test_a_precision_that_is_not_positive_is_not_normalizable(example: Example, factor: float) -> None:
    family, a, _ = example
    if "precision" in a.arrays:
        assert not family.is_normalizable(NaturalParameters({**a.arrays, "precision": factor * a["precision"]}))
        one_wrong = all_of([a["precision"]], factor)[0]
        assert not family.is_normalizable(NaturalParameters({**a.arrays, "precision": one_wrong}))


@every_family
def test_distance_is_measured_in_standard_deviations(example: Example) -> None:
    family, a, b = example
    shift = family.mean(a) - family.mean(b)
    expected = np.sqrt(shift @ np.linalg.inv(covariance(family, a)) @ shift)
    assert family.distance_sd(a, family.mean(a)) == pytest.approx(0.0, abs=1e-12)
    assert family.distance_sd(a, family.mean(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 7.0])
@every_family
def test_scaling_evidence_keeps_the_mean(example: Example, factor: float) -> None:
    family, prior, evidence = example
    if isinstance(family, ScalableFamily):
        posterior = family.add(prior, evidence)
        scaled = family.scale_evidence(posterior, prior, factor)
        np.testing.assert_allclose(family.mean(scaled), family.mean(posterior), rtol=1e-12)
        expected = prior["precision"] + factor * evidence["precision"]
        np.testing.assert_allclose(scaled["precision"], expected, rtol=1e-12)


@every_family
def test_scaling_evidence_by_one_is_the_identity(example: Example) -> None:
    family, prior, evidence = example
    if isinstance(family, ScalableFamily):
        posterior = family.add(prior, evidence)
        assert_close(family.scale_evidence(posterior, prior, 1.0), posterior, 1e-14)


@every_family
def test_the_wire_format_keeps_the_distribution(example: Example) -> None:
    family, a, _ = example
    travelled = a.astype(family.wire_dtype)
    assert {array.dtype for array in travelled.arrays.values()} == {np.dtype(family.wire_dtype)}
    assert_close(travelled, a, 4 * np.finfo(family.wire_dtype).eps)


@every_family
def test_movement_is_kl_and_distance_of_the_scaled_posteriors(example: Example) -> None:
    family, prior, after = example
    posterior = family.add(prior, after)
    moved = family.add(posterior, after)
    scale = getattr(family, "scale_evidence", lambda natural, prior, factor: natural)
    factors, mean = (2.0, 3.0), family.mean(after)
    served = scale(posterior, prior, factors[0])
    step_kl, squared_distance = family.movement(posterior, moved, prior, factors, mean)
    assert step_kl == pytest.approx(family.kl(scale(moved, prior, factors[1]), served), rel=1e-9)
    assert squared_distance == pytest.approx(family.distance_sd(served, mean) ** 2, rel=1e-9)
    assert family.movement(posterior, posterior, prior, (2.0, 2.0), None) == (pytest.approx(0, abs=1e-12), 0.0)
