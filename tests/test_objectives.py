"""Gradient estimators against exact gradients, on a model of one latent variable where quadrature gives every bound.

x = w z + b + s e in two columns, z ~ N(0, 1), and q(z | x) = N(m, exp(l)) away from the posterior. A batch holds copies
of one record, each with parameters of its own: one backward pass gives as many independent estimates.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from streaming_vb.errors import ConfigError
from streaming_vb.models.neural import Draw, Terms
from streaming_vb.models.vae import draw_normal
from streaming_vb.objectives import (
    AbstractObjective,
    Elbo,
    ImportanceWeighted,
    ScoreFunction,
    Vimco,
    elbo,
    importance_weighted,
)
from streaming_vb.types import Array

X = torch.tensor([1.2, -0.4], dtype=torch.float64)
NOISE = 0.8
COPIES = 100_000
NUM_SAMPLES = 3


@pytest.fixture(autouse=True)
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Parameters(NamedTuple):
    """Of one record, or with one row per copy of it.

    Attributes:
        mean, log_variance: m and l [..., 1].
        loading, offset: w and b [..., 2].
    """

    mean: Tensor
    log_variance: Tensor
    loading: Tensor
    offset: Tensor


def parameters(*copies: int, encoder_is_exact: bool = False) -> Parameters:
    """Leaves; nothing about them is symmetric."""
    loading, offset = torch.tensor([0.9, 0.5]), torch.tensor([0.3, -0.2])
    mean, variance = torch.tensor([1.1]), torch.tensor([0.3])
    if encoder_is_exact:
        variance = 1 / (1 + loading.square().sum(0, keepdim=True) / NOISE**2)
        mean = variance * (loading * (X - offset)).sum(0, keepdim=True) / NOISE**2
    values = (mean, variance.log(), loading, offset)
    return Parameters(*(value.expand(*copies, -1).clone().requires_grad_() for value in values))


def terms(at: Parameters, num_samples: int, attached: bool = True) -> Terms:
    """What a model would give for the copies."""
    z = draw_normal(at.mean, at.log_variance, num_samples, torch.Generator().manual_seed(1), attached)
    log_likelihood = Normal(z * at.loading + at.offset, NOISE).log_prob(X).sum(-1)
    kl_latent = 0.5 * (at.log_variance.exp() + at.mean.square() - 1 - at.log_variance).sum(-1)
    return Terms(log_likelihood, kl_latent, (Draw(z, at.mean, at.log_variance),))


def without_latents() -> Terms:
    return Terms(torch.zeros(2, 5), torch.zeros(5))


def two_layers() -> Terms:
    one = terms(parameters(5), 2)
    return one._replace(draws=one.draws * 2)


def log_likelihood() -> float:
    """log p(x)."""
    at = parameters()
    covariance = at.loading[:, None] * at.loading + NOISE**2 * torch.eye(2)
    return MultivariateNormal(at.offset, covariance).log_prob(X).item()


def exact_bound(at: Parameters, num_samples: int, nodes: int = 30) -> Tensor:
    """E log 1/S sum_s p(x, z_s) / q(z_s) by Gauss-Hermite quadrature over all z_s; the ELBO for S = 1."""
    points, masses = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(nodes))
    q = Normal(at.mean, torch.exp(0.5 * at.log_variance))
    z = q.loc + q.scale * points
    log_joint = Normal(z[:, None] * at.loading + at.offset, NOISE).log_prob(X).sum(-1) + Normal(0.0, 1.0).log_prob(z)
    log_weight = log_joint - q.log_prob(z)
    total, mass = torch.tensor(-math.inf), torch.ones(())
    for _ in range(num_samples):
        total, mass = torch.logaddexp(total[..., None], log_weight), mass[..., None] * masses / masses.sum()
    return (mass * total).sum() - math.log(num_samples)


def exact_gradient(num_samples: int) -> Array:
    """Of the bound by m, l, w and b [6]."""
    at = parameters()
    return torch.cat(torch.autograd.grad(exact_bound(at, num_samples), at)).numpy()


def estimates(objective: AbstractObjective, copies: int = COPIES) -> Array:
    """Independent estimates of the gradient by m, l, w and b [copies, 6]."""
    at = parameters(copies)
    surrogate = objective.surrogate(terms(at, objective.num_samples, objective.attached))
    assert surrogate.shape == (copies,)
    return torch.cat(torch.autograd.grad(surrogate.sum(), at), -1).numpy()


def variance(objective: AbstractObjective) -> Array:
    """Of one estimate of the gradient by m and l [2]."""
    return estimates(objective, 20_000)[:, :2].var(axis=0)


ELBO = (Elbo(), Elbo(4), ScoreFunction(), ScoreFunction(4), ScoreFunction(3, leave_one_out=False))
BOUND = (ImportanceWeighted(NUM_SAMPLES, doubly=False), ImportanceWeighted(NUM_SAMPLES), Vimco(NUM_SAMPLES))
every_objective = pytest.mark.parametrize("objective", [*ELBO, *BOUND], ids=lambda objective: objective.name)


def test_quadrature_gives_the_elbo_in_closed_form_and_needs_no_more_nodes() -> None:
    at = parameters()
    q = Normal(at.mean, torch.exp(0.5 * at.log_variance))
    likelihood = Normal(q.loc * at.loading + at.offset, NOISE).log_prob(X).sum()
    spread = at.loading.square().sum() * q.variance / (2 * NOISE**2)
    expected = likelihood - spread - kl_divergence(q, Normal(0.0, 1.0))
    torch.testing.assert_close(exact_bound(at, 1), expected.squeeze())
    torch.testing.assert_close(exact_bound(at, 3), exact_bound(at, 3, nodes=40))


@every_objective
def test_the_gradient_is_that_of_its_bound_in_the_mean(objective: AbstractObjective) -> None:
    """By q's parameters and by the decoder's."""
    bounds = (1, NUM_SAMPLES) if objective in ELBO else (NUM_SAMPLES, 1)
    found, (own, other) = estimates(objective), (exact_gradient(num_samples) for num_samples in bounds)
    assert deviations(found, own) < STANDARD_ERRORS
    for coordinate in range(len(own)):
        wrong = own.copy()
        wrong[coordinate] = other[coordinate]
        assert deviations(found, wrong) > STANDARD_ERRORS


def test_a_baseline_and_reparameterization_reduce_the_variance() -> None:
    reparameterized, leave_one_out, plain = map(variance, (Elbo(2), ScoreFunction(2), ScoreFunction(2, False)))
    assert np.all(3 * reparameterized < leave_one_out)
    assert np.all(1.5 * leave_one_out < plain)


def test_with_many_draws_the_doubly_reparameterized_gradient_has_less_variance() -> None:
    plain, doubly = variance(ImportanceWeighted(64, doubly=False)), variance(ImportanceWeighted(64))
    assert np.all(3 * doubly < plain)


def test_vimco_is_its_formula_line_by_line() -> None:
    """Any baseline that a draw does not enter keeps the mean right; which one it is shows in every single estimate."""
    at = parameters()
    found = terms(at, 4, attached=False)
    (draw,), log_w = found.draws, found.log_weights()
    w, expected = log_w.exp().tolist(), torch.zeros(())
    for i in range(4):
        others = [j for j in range(4) if j != i]
        geometric = math.prod(w[j] for j in others) ** (1 / 3)
        signal = math.log(sum(w) / 4) - math.log((sum(w[j] for j in others) + geometric) / 4)
        expected = expected + signal * draw.log_q()[i] + w[i] / sum(w) * log_w[i]
    gradients = [
        torch.cat(torch.autograd.grad(f, at, retain_graph=True)) for f in (Vimco(4).surrogate(found), expected)
    ]
    torch.testing.assert_close(*gradients)


def test_the_importance_weighted_bound_rises_with_the_draws_from_the_elbo_to_the_log_likelihood() -> None:
    at, bounds = parameters(COPIES), []
    for num_samples in (1, 2, 3):
        values = importance_weighted(terms(at, num_samples)).detach().numpy()
        bounds.append(exact_bound(parameters(), num_samples).item())
        assert deviations(values, np.asarray(bounds[-1])) < STANDARD_ERRORS
    values = importance_weighted(terms(parameters(2_000), 500)).detach().numpy()
    assert deviations(elbo(terms(at, 1)).detach().numpy(), np.asarray(bounds[0])) < STANDARD_ERRORS
    assert bounds[0] + 0.05 < bounds[1] < bounds[2] < values.mean() < log_likelihood() < values.mean() + 0.02


def test_with_the_exact_encoder_every_draw_gives_the_log_likelihood() -> None:
    for num_samples in (1, 4):
        at = parameters(10, encoder_is_exact=True)
        found = terms(at, num_samples)
        np.testing.assert_allclose(found.log_weights().detach(), log_likelihood(), rtol=1e-12)
        np.testing.assert_allclose(importance_weighted(found).detach(), log_likelihood(), rtol=1e-12)


@pytest.mark.parametrize("objective", [ScoreFunction(), ImportanceWeighted()], ids=lambda objective: objective.name)
def test_with_the_exact_encoder_its_gradient_has_no_noise(objective: AbstractObjective) -> None:
    """The signal is a difference of equal values, or the path derivative of a constant (Roeder et al. 2017)."""
    at = parameters(20, encoder_is_exact=True)
    surrogate = objective.surrogate(terms(at, objective.num_samples, objective.attached))
    for gradient in torch.autograd.grad(surrogate.sum(), at[:2]):
        np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def test_elbo_is_the_mean_over_draws_minus_the_kl_of_the_latents() -> None:
    two = Terms(torch.tensor([[-1.0, -2.0], [-3.0, -8.0]]), torch.tensor([0.5, 1.0]))
    assert elbo(two).tolist() == [-2.5, -6.0]


def test_the_weight_of_the_kl_scales_its_gradient_alone() -> None:
    """dKL/dm = m and dKL/dl = (exp(l) - 1) / 2."""
    at = parameters()
    kl = np.array([at.mean.item(), torch.expm1(at.log_variance).item() / 2, 0, 0, 0, 0])
    plain, half, none = (estimates(Elbo(2, kl_weight=weight), 10) for weight in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(half - plain, np.tile(0.5 * kl, (10, 1)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(none - plain, np.tile(kl, (10, 1)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("num_records", "weight"), [(0, 0.0), (250, 0.5), (1000, 2.0), (1001, 2.0), (10**9, 2.0)])
def test_a_warm_up_raises_the_weight_linearly_and_then_ends(num_records: int, weight: float) -> None:
    assert Elbo(3, kl_weight=2.0, warm_up=1000).after(num_records) == Elbo(3, kl_weight=weight)


def test_only_a_warm_up_changes_an_objective_with_the_records() -> None:
    for objective in (*ELBO, *BOUND, Elbo(kl_weight=0.5)):
        assert objective.after(123) is objective


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (Elbo(), "elbo"),
        (Elbo(4), "elbo, 4 draws"),
        (Elbo(kl_weight=2.0), "elbo with 2.0 x KL (not the ELBO)"),
        (Elbo(kl_weight=0.0), "elbo with 0.0 x KL (not the ELBO)"),
        (Elbo(4, 0.5), "elbo with 0.5 x KL, 4 draws (not the ELBO)"),
        (Elbo(warm_up=1000), "elbo with 1.0 x KL, rising over 1,000 records (not the ELBO)"),
        (Elbo(warm_up=1000).after(500), "elbo with 0.5 x KL (not the ELBO)"),
        (Elbo(warm_up=1000).after(1000), "elbo"),
    ],
    ids=str,
)
def test_the_name_says_what_is_not_the_elbo(objective: Elbo, name: str) -> None:
    assert objective.name == name


def test_names_and_descriptions_tell_objectives_apart() -> None:
    several = [*ELBO, *BOUND, Elbo(kl_weight=0.5), Elbo(warm_up=5), Elbo(warm_up=6), Vimco(4), ImportanceWeighted(4)]
    assert len({objective.name for objective in several}) == len(several)
    assert len({str(objective.describe()) for objective in several}) == len(several)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Elbo(0),
        lambda: ScoreFunction(1),
        lambda: ScoreFunction(0, leave_one_out=False),
        lambda: ImportanceWeighted(1),
        lambda: Vimco(1),
        lambda: Elbo(kl_weight=-0.1),
        lambda: Elbo(kl_weight=math.nan),
        lambda: Elbo(kl_weight=math.inf),
        lambda: Elbo(warm_up=-1),
        lambda: ScoreFunction(2).surrogate(without_latents()),
        lambda: Vimco(2).surrogate(without_latents()),
        lambda: ImportanceWeighted(2).surrogate(two_layers()),
    ],
)
def test_a_mistake_is_one_line(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError) as raised:
        wrong()
    assert "\n" not in str(raised.value)
