"""The step against the exact posterior of linear regression, with gradients taken by autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import assert_close, fingerprint, relative_error
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import ConfigError, NumericalError
from streaming_vb.families.full_rank_normal import FullRankNormal
from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.inference.natural_step import step
from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.types import Array, Interval, Moments, NaturalParameters, Records

MODEL = LinearRegression(3, noise_variance=0.5, prior_variance=4.0)
FULL, FACTORED = FullRankNormal(), MeanFieldNormal()
Normal = FullRankNormal | MeanFieldNormal
seeds = st.integers(0, 2**32 - 1)
every_family = pytest.mark.parametrize("family", [FULL, FACTORED], ids=lambda family: family.name)


def records_of(family: Normal) -> Records:
    """40 records; for a mean-field q of a diagonal design, in which every record reads one column only."""
    generator = np.random.default_rng(2)
    x = generator.normal(1.0, 1.0, (40, 3))
    if family is FACTORED:
        x *= np.eye(3)[np.arange(40) % 3]
    y = x @ np.array([1.0, -2.0, 0.5]) + generator.normal(0, np.sqrt(0.5), 40)
    return Records(Interval("table", "pass-0", 0, 40), {"x": x, "y": y})


def in_family(family: Normal, natural: NaturalParameters) -> NaturalParameters:
    """A full-rank point of diagonal precision, in the family's own arrays."""
    if family is FULL:
        return natural
    diagonal = np.diag(natural["precision"])
    np.testing.assert_array_equal(natural["precision"], np.diag(diagonal))
    return NaturalParameters({"precision_mean": natural["precision_mean"], "precision": diagonal})


def prior_of(family: Normal) -> NaturalParameters:
    """A prior whose mean is not 0."""
    precision = MODEL.prior(0)["precision"]
    natural = NaturalParameters({"precision_mean": precision @ np.array([0.5, 1.0, -1.0]), "precision": precision})
    return in_family(family, natural)


def exact(family: Normal) -> NaturalParameters:
    return family.add(prior_of(family), in_family(family, MODEL.evidence(records_of(family))))


def any_member(family: Normal, seed: int = 3) -> NaturalParameters:
    """A random q."""
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(3, 3))
    covariance = 0.1 * np.eye(3) + root @ root.T
    mean = generator.normal(0.0, 3.0, 3)
    return family.natural(Moments(mean, covariance if family is FULL else np.diag(covariance)))


def gradients(family: Normal, q: NaturalParameters, records: Records) -> tuple[Array, Array]:
    """dL/dm and dL/dV of L = -(|y - X m|^2 + sum_i x_i' V x_i) / (2 s^2), by autograd."""
    moments = family.moments(q)
    mean, variance = (torch.tensor(array, requires_grad=True) for array in (moments.mean, moments.variance))
    x, y = torch.from_numpy(records["x"]), torch.from_numpy(records["y"])
    covariance = variance if family is FULL else torch.diag(variance)
    spread = torch.einsum("np,pq,nq->", x, covariance, x)
    expected = -((y - x @ mean).square().sum() + spread) / (2 * MODEL.noise_variance)
    d_mean, d_variance = torch.autograd.grad(expected, (mean, variance))
    return d_mean.numpy(), d_variance.numpy()


def natural_step(family: Normal, q: NaturalParameters, rho: float) -> NaturalParameters:
    return step(family, q, prior_of(family), *gradients(family, q, records_of(family)), rho=rho)


def plain_step(family: Normal, q: NaturalParameters, rho: float) -> NaturalParameters:
    """The same step along the plain gradient of the bound with respect to (m, V)."""
    d_mean, d_variance = gradients(family, q, records_of(family))
    prior, moments = prior_of(family), family.moments(q)
    shift = moments.mean - family.mean(prior)
    pull = prior["precision"] @ shift if family is FULL else prior["precision"] * shift
    mean = moments.mean + rho * (d_mean - pull)
    return family.natural(
        Moments(mean, moments.variance + rho * (d_variance + 0.5 * (q["precision"] - prior["precision"])))
    )


@every_family
@given(seed=seeds)
def test_one_full_step_from_any_q_is_the_exact_posterior(family: Normal, seed: int) -> None:
    assert_close(natural_step(family, any_member(family, seed), 1.0), exact(family), 1e-12)


@pytest.mark.parametrize("rho", [1.0, 0.1, 0.01, 0.001])
@every_family
def test_one_plain_gradient_step_is_not(family: Normal, rho: float) -> None:
    stepped = plain_step(family, any_member(family), rho)
    assert relative_error(stepped["precision_mean"], exact(family)["precision_mean"]) > 0.05


Step = Callable[[Normal, NaturalParameters, float], NaturalParameters]


def ratios(move: Step, family: Normal, rho: float) -> Array:
    """error after / error before of every natural parameter, over 8 steps [8, parameters]."""
    points = [any_member(family)]
    for _ in range(8):
        points.append(move(family, points[-1], rho))
    errors = np.array([np.concatenate([np.ravel(q[name] - exact(family)[name]) for name in q.arrays]) for q in points])
    return errors[1:] / errors[:-1]


@pytest.mark.parametrize("rho", [0.5, 0.1, 0.003])
@every_family
def test_shorter_steps_converge_geometrically(family: Normal, rho: float) -> None:
    """Every natural parameter's error shrinks by 1 - rho, in every step."""
    np.testing.assert_allclose(ratios(natural_step, family, rho), 1.0 - rho, rtol=1e-9)


@every_family
def test_shorter_plain_steps_do_not(family: Normal) -> None:
    assert np.max(np.abs(ratios(plain_step, family, 0.003) - (1.0 - 0.003))) > 0.01


def test_a_mean_field_q_of_correlated_columns_has_the_exact_mean_as_fixed_point() -> None:
    """(A^-1 b, diag A) for the exact precision A and precision mean b."""
    records, prior = records_of(FULL), prior_of(FACTORED)
    posterior = FULL.add(prior_of(FULL), MODEL.evidence(records))
    q = any_member(FACTORED)
    for _ in range(300):
        q = step(FACTORED, q, prior, *gradients(FACTORED, q, records), rho=0.4)
    assert relative_error(FACTORED.mean(q), FULL.mean(posterior)) < 1e-12
    assert relative_error(q["precision"], np.diag(posterior["precision"])) < 1e-12
    assert relative_error(q["precision_mean"], posterior["precision_mean"]) > 0.1


def test_a_gradient_in_one_triangle_is_that_of_both() -> None:
    """A function that reads the upper triangle of V only has a gradient in the upper triangle only."""
    q, prior = any_member(FULL), prior_of(FULL)
    d_mean, d_covariance = gradients(FULL, q, records_of(FULL))
    upper = np.triu(d_covariance) + np.triu(d_covariance, 1)
    assert_close(step(FULL, q, prior, d_mean, upper, rho=0.7), natural_step(FULL, q, 0.7), 1e-14)


@every_family
def test_no_argument_is_changed_or_shared(family: Normal) -> None:
    q, prior = any_member(family), prior_of(family)
    both = gradients(family, q, records_of(family))
    before = fingerprint(q, prior, both)
    stepped = step(family, q, prior, *both, rho=1.0)
    assert fingerprint(q, prior, both) == before
    for name, array in stepped.arrays.items():
        assert array.dtype == np.float64
        assert not any(np.shares_memory(array, given_array) for given_array in (q[name], prior[name], *both))


@pytest.mark.parametrize("rho", [0.0, -0.1, 1.1, np.nan, np.inf])
def test_a_step_size_outside_of_its_range_is_refused(rho: float) -> None:
    with pytest.raises(ConfigError, match="rho must be above 0 and at most 1, got"):
        natural_step(FULL, any_member(FULL), rho)


@every_family
def test_a_gradient_of_the_other_family_is_refused(family: Normal) -> None:
    d_mean, _ = gradients(family, any_member(family), records_of(family))
    other = np.ones(3) if family is FULL else np.eye(3)
    with pytest.raises(ConfigError, match="gradient_covariance has shape"):
        step(family, any_member(family), prior_of(family), d_mean, other, rho=0.5)
    with pytest.raises(ConfigError, match=r"gradient_mean has shape \(3, 1\)"):
        step(family, any_member(family), prior_of(family), d_mean[:, None], other, rho=0.5)


@every_family
def test_a_step_out_of_the_distributions_says_to_take_a_smaller_one(family: Normal) -> None:
    """A likelihood that curves upwards in one direction."""
    unit = Moments(np.zeros(3), np.eye(3) if family is FULL else np.ones(3))
    q = prior = family.natural(unit)
    upwards = np.diag([0.0, 2.0, 0.0]) if family is FULL else np.array([0.0, 2.0, 0.0])
    with pytest.raises(NumericalError, match=r"rho=0\.5 gives a precision that is not positive.*smaller rho") as caught:
        step(family, q, prior, np.zeros(3), upwards, rho=0.5)
    assert "\n" not in str(caught.value)
    smaller = step(family, q, prior, np.zeros(3), upwards, rho=0.2)
    np.testing.assert_allclose(smaller["precision"] @ np.ones(3), 2.2 if family is FACTORED else [1.0, 0.2, 1.0])


@every_family
def test_a_gradient_that_is_not_finite_is_refused(family: Normal) -> None:
    d_mean, d_covariance = gradients(family, any_member(family), records_of(family))
    with pytest.raises(NumericalError, match="check that both gradients are finite"):
        step(family, any_member(family), prior_of(family), d_mean * np.nan, d_covariance, rho=0.5)
