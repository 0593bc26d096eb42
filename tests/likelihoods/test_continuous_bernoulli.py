import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from streaming_vb.errors import DataError
from streaming_vb.likelihoods.continuous_bernoulli import ContinuousBernoulli

CB = ContinuousBernoulli()
SMALL = [0.0, 1e-300, 1e-12, 1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.4999999, 0.5, 0.5000001, 0.7]
LARGE = [1.0, 3.0, 20.0, 100.0, 700.0, 1e4]
LOGITS = [sign * logit for sign in (-1, 1) for logit in SMALL + LARGE]
every_logit = pytest.mark.parametrize("logit", LOGITS)


class Moments(NamedTuple):
    log_normalizer: float
    mean: float
    variance: float


def quadrature(logit: float) -> Moments:
    """log of the integral of exp(l x - max) over [0, 1], mean and variance, by Gauss-Legendre on a graded mesh."""
    edges = np.concatenate([[0.0], np.geomspace(1e-8, 0.5, 60)])
    edges = np.concatenate([edges, 1 - edges[-2::-1]])
    nodes, weights = leggauss(20)
    width = np.diff(edges)[:, None] / 2
    inside = (nodes + 1) * width  # distance from the left edge of a cell
    x, weight = (edges[:-1, None] + inside).ravel(), (width * weights).ravel()
    height = weight * np.exp(logit * x - max(logit, 0.0))
    total = height.sum()
    mean = height @ x / total
    return Moments(math.log(total) + max(logit, 0.0), mean, height @ (x - mean) ** 2 / total)


def outputs(logit: float) -> Tensor:
    return torch.tensor([logit], dtype=torch.float64)


@every_logit
def test_value_mean_and_variance_equal_quadrature(logit: float) -> None:
    expected = quadrature(logit)
    at_zero = float(CB.log_prob(outputs(logit), torch.zeros(1, dtype=torch.float64)))
    assert at_zero == pytest.approx(-expected.log_normalizer, rel=1e-9, abs=1e-13)
    assert float(CB.mean(outputs(logit))) == pytest.approx(expected.mean, rel=1e-9)
    assert float(CB.fisher(outputs(logit))) == pytest.approx(expected.variance, rel=1e-9)


@every_logit
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_gradient_is_x_minus_the_mean(logit: float, value: float) -> None:
    leaf = outputs(logit).requires_grad_()
    (gradient,) = torch.autograd.grad(CB.log_prob(leaf, torch.tensor([value], dtype=torch.float64)), leaf)
    assert float(gradient) == pytest.approx(value - quadrature(logit).mean, rel=1e-9, abs=1e-12)


def test_small_distances_from_an_edge_are_kept_where_the_density_is_there() -> None:
    assert float(CB.mean(outputs(-1e4))) == pytest.approx(1e-4, rel=1e-12)
    assert 1 - float(CB.mean(outputs(1e4))) == pytest.approx(1e-4, rel=1e-10)
    assert float(CB.log_prob(torch.tensor([1e4]), torch.tensor([1.0]))) == pytest.approx(math.log(1e4), rel=1e-6)


@pytest.mark.parametrize("logit", [-3e38, -1e4, -0.5, -1e-20, 0.0, 1e-20, 0.5, 1e4, 3e38])
def test_no_logit_in_single_precision_gives_nan(logit: float) -> None:
    leaf = torch.tensor([logit], requires_grad=True)
    value = CB.log_prob(leaf, torch.tensor([0.25]))
    (gradient,) = torch.autograd.grad(value, leaf)
    sample = CB.sample(leaf.detach().expand(100, 1), torch.Generator().manual_seed(0))
    for tensor in (value, gradient, CB.mean(leaf), CB.fisher(leaf), sample):
        assert torch.isfinite(tensor).all()


def test_at_lambda_one_half_the_density_is_uniform() -> None:
    x = torch.tensor([[0.0, 0.2, 1.0]])
    assert torch.equal(CB.log_prob(torch.zeros(1, 3), x), torch.zeros(1))
    assert torch.equal(CB.mean(torch.zeros(3)), torch.full((3,), 0.5))


def test_log_prob_equals_that_of_torch_away_from_one_half() -> None:
    logits, x = torch.tensor([[-3.0, 2.0, 5.0]]), torch.tensor([[0.1, 0.9, 0.4]])
    expected = torch.distributions.ContinuousBernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(CB.log_prob(logits, x), expected)


def test_it_is_the_bernoulli_form_with_a_constant() -> None:
    """C(lambda) = 2 artanh(1 - 2 lambda) / (1 - 2 lambda), the constant of the paper."""
    share = 0.8
    constant = 2 * math.atanh(1 - 2 * share) / (1 - 2 * share)
    expected = math.log(constant) + 0.3 * math.log(share) + 0.7 * math.log(1 - share)
    logit = math.log(share / (1 - share))
    assert float(CB.log_prob(outputs(logit), outputs(0.3))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("logit", [-1e4, -2.0, 0.0, 1e-9, 0.3, 4.0, 50.0])
def test_samples_have_the_distribution_function(logit: float) -> None:
    num_samples = 10_000
    x = CB.sample(outputs(logit).expand(num_samples, 1), torch.Generator().manual_seed(1)).numpy()[:, 0]
    uniform = np.sort(distribution_function(logit, x))
    steps = (np.arange(num_samples) + 0.5) / num_samples
    kolmogorov = 2.5 / math.sqrt(num_samples)  # 5 standard errors of a share near 1/2
    assert np.abs(uniform - steps).max() < kolmogorov
    assert np.abs(uniform**1.2 - steps).max() > kolmogorov


def distribution_function(logit: float, x: np.ndarray) -> np.ndarray:
    if logit == 0:
        return x
    if logit > 0:
        return 1 - distribution_function(-logit, 1 - x)
    return np.expm1(logit * x) / np.expm1(logit)


@pytest.mark.parametrize("value", [-0.1, 1.001, 255.0, np.nan, np.inf])
def test_a_value_outside_the_unit_interval_is_named_by_record_and_column(value: float) -> None:
    x = np.full((5, 4), 0.5, np.float32)
    x[3, 2] = value
    with pytest.raises(DataError, match=rf"values in \[0, 1\]; record 1003 column 2 holds {value:g}"):
        CB.validate(x, 1000)


def test_the_message_says_what_to_type() -> None:
    with pytest.raises(DataError, match=r"Rescale the source.*--likelihood normal"):
        CB.validate(np.full((1, 1), 2.0))


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_values_of_any_kind_are_accepted(kind: type) -> None:
    CB.validate(np.array([[0, 1], [0.5, 0.25]]).astype(kind))
