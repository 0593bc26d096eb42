"""Five forms of one matrix, against each other and against sums over all targets, record by record."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations, fingerprint
from torch import Tensor

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.inference.fisher import (
    Fisher,
    Likelihood,
    Network,
    diagonal,
    empirical,
    empirical_diagonal,
    exact,
    kronecker,
    monte_carlo,
)
from streaming_vb.layers.linear import Linear
from streaming_vb.likelihoods.bernoulli import Bernoulli
from streaming_vb.likelihoods.categorical import Categorical
from streaming_vb.likelihoods.normal import Normal
from streaming_vb.types import Array

NUM_RECORDS = 6
IDENTITY = torch.nn.Identity()


@dataclass(frozen=True)
class SquaredError:
    """y ~ N(outputs, I): constants are left out of the density."""

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        return -0.5 * (x - outputs).square().sum(-1)

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        return outputs + torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)

    def fisher(self, outputs: Tensor) -> Tensor:
        return torch.eye(outputs.shape[-1], dtype=outputs.dtype).expand(len(outputs), -1, -1)


def network_of(likelihood: Likelihood, *sizes: int, activation: Callable[[Tensor], Tensor] = torch.relu) -> Network:
    layers = [Linear(f"layer{i}", *pair) for i, pair in enumerate(itertools.pairwise(sizes))]
    return Network(tuple(layers), likelihood, activation)


LOGITS = network_of(Bernoulli(), 3, 4, 2)
HETEROSCEDASTIC = network_of(Normal(), 3, 4, 2)
CLASSES = network_of(Categorical(3), 3, 4, 3)
every_network = pytest.mark.parametrize(
    "network", [LOGITS, HETEROSCEDASTIC, CLASSES], ids=["bernoulli", "normal", "categorical"]
)


def weights_of(network: Network, seed: int = 1) -> Tensor:
    """Weights that are not symmetric around 0; half of the hidden units of a record are switched off by a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.7 * torch.randn(network.layout.num_weights, generator=generator, dtype=torch.float64)


def inputs_of(network: Network, num_records: int = NUM_RECORDS) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.4 + torch.randn(num_records, network.layers[0].num_inputs, generator=generator, dtype=torch.float64)


def targets_of(network: Network, x: Tensor, seed: int = 3) -> Tensor:
    """Drawn from the model."""
    generator = torch.Generator().manual_seed(seed)
    return network.likelihood.sample(network.outputs(weights_of(network), x), generator)


def forms_of(network: Network) -> dict[str, Fisher]:
    """Every form, with its settings bound."""
    y = targets_of(network, inputs_of(network))
    return {
        "exact": exact,
        "monte carlo": partial(monte_carlo, num_samples=3, generator=torch.Generator().manual_seed(5)),
        "empirical": partial(empirical, y=y),
        "diagonal": partial(diagonal, form=exact),
        "empirical diagonal": partial(empirical_diagonal, y=y),
        "kronecker": kronecker,
    }


every_form = pytest.mark.parametrize("name", forms_of(LOGITS))


def score_of(network: Network, weights: Tensor, record: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """log p(y | record) and its gradient [P], by one backward pass over the weights."""
    leaf = weights.clone().requires_grad_()
    log_prob = network.likelihood.log_prob(network.outputs(leaf, record[None]), y[None]).sum()
    return log_prob.detach(), torch.autograd.grad(log_prob, leaf)[0]


def sum_over_targets(network: Network, weights: Tensor, x: Tensor, support: Tensor) -> Tensor:
    """mean_i sum_y p(y | x_i) s s', every target [n, D] of the support in turn."""
    total = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for record, y in itertools.product(x, support):
        log_prob, score = score_of(network, weights, record, y)
        total += log_prob.exp() * torch.outer(score, score)
    return total / len(x)


def layer_blocks(network: Network, matrix: Tensor) -> Iterator[Tensor]:
    """The diagonal block of each layer."""
    stop = 0
    for layer in network.layers:
        start, stop = stop, stop + layer.num_outputs * (layer.num_inputs + 1)
        yield matrix[start:stop, start:stop]


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def test_outputs_are_those_of_the_written_out_network() -> None:
    """Weight [O, I], then bias [O], layer by layer."""
    w, x = weights_of(LOGITS), inputs_of(LOGITS)
    hidden = torch.relu(x @ w[:12].view(4, 3).T + w[12:16])
    expected = hidden @ w[16:24].view(2, 4).T + w[24:]
    torch.testing.assert_close(LOGITS.outputs(w, x), expected)
    assert 0.2 < float((hidden == 0).double().mean()) < 0.8


@pytest.mark.parametrize(
    ("network", "support"),
    [
        pytest.param(network_of(Bernoulli(), 3, 5, 5), list(itertools.product([0.0, 1.0], repeat=5)), id="bernoulli"),
        pytest.param(network_of(Categorical(3), 3, 5, 3), [[0.0], [1.0], [2.0]], id="one column of categories"),
        pytest.param(
            network_of(Categorical(3), 3, 4, 6), list(itertools.product([0.0, 1.0, 2.0], repeat=2)), id="two columns"
        ),
    ],
)
def test_exact_and_its_diagonal_are_the_sum_over_all_targets(network: Network, support: list[list[float]]) -> None:
    w, x = weights_of(network), inputs_of(network, 4)
    expected = sum_over_targets(network, w, x, torch.tensor(support, dtype=torch.float64))
    assert relative_difference(exact(network, w, x), expected) < 1e-12
    of_diagonal = diagonal(network, w, x, form=exact)
    assert relative_difference(of_diagonal.diagonal(), expected.diagonal()) < 1e-12
    assert torch.equal(of_diagonal, of_diagonal.diagonal().diag())


@every_network
def test_empirical_is_the_mean_over_records_of_outer_products_of_scores(network: Network) -> None:
    w, x = weights_of(network), inputs_of(network)
    y = targets_of(network, x)
    scores = torch.stack([score_of(network, w, *pair)[1] for pair in zip(x, y, strict=True)])
    assert relative_difference(empirical(network, w, x, y=y), scores.T @ scores / len(x)) < 1e-12


@every_network
def test_the_fast_diagonal_is_that_of_the_empirical_form(network: Network) -> None:
    w, x = weights_of(network), inputs_of(network)
    y = targets_of(network, x)
    expected = diagonal(network, w, x, form=partial(empirical, y=y))
    assert relative_difference(empirical_diagonal(network, w, x, y=y), expected) < 1e-12
    assert relative_difference(expected, diagonal(network, w, x, form=exact)) > 0.1


def draws(network: Network, num_samples: int, repeats: int) -> Array:
    """Monte Carlo estimates [repeats, P, P]."""
    w, x, generator = weights_of(network), inputs_of(network), torch.Generator().manual_seed(7)
    estimates = [monte_carlo(network, w, x, num_samples=num_samples, generator=generator) for _ in range(repeats)]
    return torch.stack(estimates).numpy()


@every_network
def test_monte_carlo_has_the_expectation_of_exact(network: Network) -> None:
    truth = exact(network, weights_of(network), inputs_of(network)).numpy()
    estimates = draws(network, 8, 200)
    assert deviations(estimates, truth) < STANDARD_ERRORS
    assert deviations(estimates, 1.2 * truth) > STANDARD_ERRORS


def squared_errors(estimates: Array, truth: Array) -> Array:
    """Squared Frobenius norms [n] of estimates [n, P, P] - truth."""
    return np.sum((estimates - truth) ** 2, axis=(1, 2))


def ratio_and_error(numerator: Array, denominator: Array) -> tuple[float, float]:
    """Ratio of two means, and its standard error to first order."""
    ratio = float(numerator.mean() / denominator.mean())
    relative = [values.std(ddof=1) / values.mean() / np.sqrt(len(values)) for values in (numerator, denominator)]
    return ratio, ratio * float(np.hypot(*relative))


@every_network
def test_sixteen_times_the_samples_leave_a_quarter_of_the_error(network: Network) -> None:
    truth = exact(network, weights_of(network), inputs_of(network)).numpy()
    few, many = (squared_errors(draws(network, n, 150), truth) for n in (32, 512))
    ratio, error = ratio_and_error(few, many)
    assert abs(ratio - 4.0**2) < STANDARD_ERRORS * error
    assert abs(ratio - 1.0) > STANDARD_ERRORS * error


def empirical_errors(network: Network, copies: int, shift: float, repeats: int = 60) -> tuple[Array, float]:
    """Squared errors of the empirical form, and its deviation from exact in standard errors.

    Every record comes `copies` times; targets are drawn from outputs that are off by `shift`.
    """
    w, x, generator = weights_of(network), inputs_of(network), torch.Generator().manual_seed(8)
    truth, many = exact(network, w, x).numpy(), x.repeat(copies, 1)
    outputs = network.outputs(w, many) + shift
    estimates = torch.stack(
        [empirical(network, w, many, y=network.likelihood.sample(outputs, generator)) for _ in range(repeats)]
    ).numpy()
    return squared_errors(estimates, truth), deviations(estimates, truth)


def test_empirical_converges_to_exact_for_targets_of_the_model() -> None:
    few, deviation = empirical_errors(LOGITS, 4, shift=0.0)
    many, deviation_of_many = empirical_errors(LOGITS, 64, shift=0.0)
    ratio, error = ratio_and_error(few, many)
    assert max(deviation, deviation_of_many) < STANDARD_ERRORS
    assert abs(ratio - 4.0**2) < STANDARD_ERRORS * error


def test_empirical_does_not_converge_for_other_targets() -> None:
    few, _ = empirical_errors(LOGITS, 16, shift=1.5)
    many, deviation = empirical_errors(LOGITS, 256, shift=1.5)
    assert deviation > 5 * STANDARD_ERRORS
    assert ratio_and_error(few, many)[0] < 2.0


@every_form
@every_network
def test_every_form_is_symmetric_and_positive_semi_definite(network: Network, name: str) -> None:
    w, x = weights_of(network), inputs_of(network)
    matrix = forms_of(network)[name](network, w, x)
    assert matrix.shape == (len(w), len(w))
    assert matrix.dtype == torch.float64
    assert relative_difference(matrix, matrix.T) < 1e-14
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > -1e-13 * eigenvalues[-1]
    assert eigenvalues[-1] > 0.05


@every_form
def test_no_argument_is_changed(name: str) -> None:
    w, x = weights_of(LOGITS), inputs_of(LOGITS)
    before = fingerprint(w.numpy(), x.numpy())
    forms_of(LOGITS)[name](LOGITS, w, x)
    assert fingerprint(w.numpy(), x.numpy()) == before
    assert not w.requires_grad
    assert not x.requires_grad


@every_form
def test_weights_of_a_fit_that_want_a_gradient_give_the_same_numbers(name: str) -> None:
    w, x = weights_of(LOGITS), inputs_of(LOGITS)
    expected = forms_of(LOGITS)[name](LOGITS, w, x)
    torch.testing.assert_close(forms_of(LOGITS)[name](LOGITS, w.requires_grad_(), x).detach(), expected)


@pytest.mark.parametrize(
    "form", [exact, kronecker, partial(diagonal, form=exact)], ids=["exact", "kronecker", "diagonal"]
)
def test_a_matrix_is_a_mean_over_records(form: Fisher) -> None:
    """The same records three times over carry the same information each."""
    w, x = weights_of(LOGITS), inputs_of(LOGITS)
    assert relative_difference(form(LOGITS, w, x.repeat(3, 1)), form(LOGITS, w, x)) < 1e-12


def hessian_of(network: Network, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Second derivatives of the mean negative log likelihood (torch.func.hessian in reverse mode twice: forward mode
    warns)."""

    def loss(flat: Tensor) -> Tensor:
        return -network.likelihood.log_prob(network.outputs(flat, x), y).mean()

    hessian: Tensor = torch.func.jacrev(torch.func.jacrev(loss))(weights)
    return hessian


@pytest.mark.parametrize(
    "network",
    [network_of(Bernoulli(), 3, 2), network_of(Categorical(3), 3, 3), network_of(SquaredError(), 3, 2)],
    ids=["logistic", "softmax", "linear"],
)
def test_exact_is_the_hessian_of_a_regression_with_a_canonical_likelihood(network: Network) -> None:
    """Whatever the targets: they drop out of the second derivative."""
    w, x = weights_of(network), inputs_of(network)
    y = targets_of(network, x.flip(0))
    assert relative_difference(exact(network, w, x), hessian_of(network, w, x, y)) < 1e-10


@pytest.mark.parametrize("network", [LOGITS, network_of(Normal(), 3, 2)], ids=["hidden layer", "not canonical"])
def test_exact_is_not_the_hessian_elsewhere(network: Network) -> None:
    w, x = weights_of(network), inputs_of(network)
    assert relative_difference(exact(network, w, x), hessian_of(network, w, x, targets_of(network, x.flip(0)))) > 0.01


def kronecker_differences(network: Network, num_records: int = NUM_RECORDS) -> list[float]:
    """Of each layer's block of `kronecker` from that of `exact`."""
    w, x = weights_of(network), inputs_of(network, num_records)
    pairs = zip(
        layer_blocks(network, kronecker(network, w, x)), layer_blocks(network, exact(network, w, x)), strict=True
    )
    return [relative_difference(*pair) for pair in pairs]


def test_kronecker_is_exact_in_the_blocks_of_a_deep_linear_network_with_squared_error() -> None:
    network = network_of(SquaredError(), 3, 4, 5, 2, activation=IDENTITY)
    assert max(kronecker_differences(network)) < 1e-10


def test_kronecker_is_not_exact_with_relu() -> None:
    """But in the last layer, where no activation stands between pre-activations and outputs."""
    first, second, last = kronecker_differences(network_of(SquaredError(), 3, 4, 5, 2))
    assert min(first, second) > 0.01
    assert last < 1e-10


def test_kronecker_is_not_exact_where_the_curvature_depends_on_the_outputs() -> None:
    assert min(kronecker_differences(network_of(Bernoulli(), 3, 4, 5, 2, activation=IDENTITY))) > 1e-3


@every_network
def test_kronecker_is_exact_in_the_blocks_of_a_single_record(network: Network) -> None:
    """A mean over one record is no mean, whatever activation and likelihood."""
    assert max(kronecker_differences(network, 1)) < 1e-12


def test_kronecker_is_zero_between_layers_where_exact_is_not() -> None:
    w, x = weights_of(LOGITS), inputs_of(LOGITS)
    assert torch.all(kronecker(LOGITS, w, x)[:16, 16:] == 0)
    assert exact(LOGITS, w, x)[:16, 16:].abs().max() > 0.01


def test_targets_follow_the_generator() -> None:
    w, x = weights_of(LOGITS), inputs_of(LOGITS)
    first, again, other = (
        monte_carlo(LOGITS, w, x, num_samples=2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fewer_than_one_sample_is_refused() -> None:
    w, x = weights_of(LOGITS), inputs_of(LOGITS)
    with pytest.raises(ConfigError, match="num_samples must be at least 1, got 0"):
        monte_carlo(LOGITS, w, x, num_samples=0, generator=torch.Generator())


@pytest.mark.parametrize("form", [empirical, empirical_diagonal])
@pytest.mark.parametrize("shape", [(1, 2), (NUM_RECORDS,), (NUM_RECORDS + 1, 2)], ids=str)
def test_targets_of_other_records_are_refused(form: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected targets y \[6, columns\], one row per record of x, got \("):
        form(LOGITS, weights_of(LOGITS), inputs_of(LOGITS), y=torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "expected at least one layer, got none"),
        ((Linear("a", 3, 4), Linear("b", 5, 2)), "layer b takes 5 inputs, but a below it has 4 outputs"),
        ((Linear("a", 3, 4), Linear("a", 4, 2)), "two layers have one name, got a, a"),
    ],
    ids=["none", "sizes", "names"],
)
def test_layers_that_make_no_network_are_refused(layers: tuple[Linear, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Network(layers, Bernoulli())
