"""Laws of every likelihood."""

from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations
from discovery import examples
from torch import Tensor

from streaming_vb.errors import DataError

Example = tuple[Any, int]
every_likelihood = pytest.mark.parametrize("example", examples("likelihoods"))


def outputs_of(likelihood: Any, num_columns: int, *batch: int) -> Tensor:
    """Outputs of a decoder that are not symmetric around 0."""
    generator = torch.Generator().manual_seed(3)
    return 0.3 + 0.7 * torch.randn(*batch, num_columns * likelihood.outputs_per_column, generator=generator)


def accepts(likelihood: Any, value: float) -> bool:
    try:
        likelihood.validate(np.array([[value]]))
    except DataError:
        return False
    return True


def support(likelihood: Any) -> tuple[Tensor, float]:
    """Points x [n, 1] that cover what a column can hold, by what `validate` accepts, and their spacing."""
    whole = [float(value) for value in range(-500, 501) if accepts(likelihood, value)]
    if not accepts(likelihood, 0.5):
        return torch.tensor(whole, dtype=torch.float64)[:, None], 1.0
    spacing = (whole[-1] - whole[0]) / 100_000
    return whole[0] + spacing * (torch.arange(100_000, dtype=torch.float64)[:, None] + 0.5), spacing


def probabilities(likelihood: Any, outputs: Tensor) -> Tensor:
    """Of the points of the support of one column [n], for outputs [O]."""
    points, spacing = support(likelihood)
    return likelihood.log_prob(outputs.expand(len(points), -1), points).exp() * spacing


def scores(likelihood: Any, outputs: Tensor, x: Tensor) -> Tensor:
    """d log p(x_i) / d outputs [n, O] for outputs [O] and x [n, D]."""
    each = outputs.expand(len(x), -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(likelihood.log_prob(each, x).sum(), each)
    return gradient


@every_likelihood
def test_log_prob_has_one_value_per_draw_and_record(example: Example) -> None:
    likelihood, num_columns = example
    x = likelihood.sample(outputs_of(likelihood, num_columns, 5), torch.Generator().manual_seed(0))
    assert likelihood.log_prob(outputs_of(likelihood, num_columns, 4, 5), x).shape == (4, 5)


@every_likelihood
def test_probabilities_of_one_column_add_up_to_one(example: Example) -> None:
    likelihood, _ = example
    total = probabilities(likelihood, outputs_of(likelihood, 1).double()).sum()
    assert float(total) == pytest.approx(1.0, abs=1e-6)


@every_likelihood
def test_the_mean_is_that_of_the_probabilities(example: Example) -> None:
    likelihood, _ = example
    outputs = outputs_of(likelihood, 1).double()
    expected = probabilities(likelihood, outputs) @ support(likelihood)[0]
    torch.testing.assert_close(likelihood.mean(outputs), expected, rtol=1e-6, atol=0)


@every_likelihood
def test_the_fisher_information_of_one_column_is_that_of_the_probabilities(example: Example) -> None:
    likelihood, _ = example
    outputs = outputs_of(likelihood, 1).double()
    score = scores(likelihood, outputs, support(likelihood)[0])
    expected = score.mT @ (probabilities(likelihood, outputs)[:, None] * score)
    torch.testing.assert_close(likelihood.fisher(outputs), expected, rtol=1e-6, atol=1e-8)


@every_likelihood
def test_the_fisher_information_is_the_covariance_of_the_score(example: Example) -> None:
    likelihood, num_columns = example
    outputs = outputs_of(likelihood, num_columns).double()
    x = likelihood.sample(outputs.expand(20_000, -1), torch.Generator().manual_seed(4))
    score = scores(likelihood, outputs, x).numpy()
    products = score[:, :, None] * score[:, None, :]
    fisher = likelihood.fisher(outputs).numpy()
    assert deviations(products, fisher) < STANDARD_ERRORS
    assert deviations(products, 1.3 * fisher) > STANDARD_ERRORS
    assert deviations(products, fisher + 0.1) > STANDARD_ERRORS


@every_likelihood
def test_the_fisher_information_of_a_batch_is_that_of_each_record(example: Example) -> None:
    likelihood, num_columns = example
    outputs = outputs_of(likelihood, num_columns, 2, 3)
    size = num_columns * likelihood.outputs_per_column
    fisher = likelihood.fisher(outputs)
    assert fisher.shape == (2, 3, size, size)
    torch.testing.assert_close(fisher[1, 2], likelihood.fisher(outputs[1, 2]))


@every_likelihood
def test_columns_are_independent(example: Example) -> None:
    likelihood, num_columns = example
    outputs = outputs_of(likelihood, num_columns, 5)
    x = likelihood.sample(outputs, torch.Generator().manual_seed(0))
    by_column = outputs.view(5, likelihood.outputs_per_column, num_columns)
    parts = [likelihood.log_prob(by_column[:, :, d], x[:, d : d + 1]) for d in range(num_columns)]
    torch.testing.assert_close(torch.stack(parts).sum(0), likelihood.log_prob(outputs, x))


@every_likelihood
def test_samples_have_the_mean(example: Example) -> None:
    likelihood, num_columns = example
    outputs = outputs_of(likelihood, num_columns)
    x = likelihood.sample(outputs.expand(4000, -1), torch.Generator().manual_seed(2)).double().numpy()
    mean = likelihood.mean(outputs).double().numpy()
    assert deviations(x, mean) < STANDARD_ERRORS
    assert deviations(x, mean + 0.2) > STANDARD_ERRORS


@every_likelihood
def test_samples_follow_the_generator(example: Example) -> None:
    likelihood, num_columns = example
    outputs = outputs_of(likelihood, num_columns, 30)
    first, again = (likelihood.sample(outputs, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, likelihood.sample(outputs, torch.Generator().manual_seed(8)))


@every_likelihood
def test_samples_are_valid_data(example: Example) -> None:
    likelihood, num_columns = example
    likelihood.validate(likelihood.sample(outputs_of(likelihood, num_columns, 20), torch.Generator()).numpy())


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
@every_likelihood
def test_log_prob_and_its_gradient_are_finite_at_extreme_outputs(example: Example, extreme: float) -> None:
    likelihood, num_columns = example
    outputs = torch.full((2, num_columns * likelihood.outputs_per_column), extreme, requires_grad=True)
    x = torch.tensor([[0.0], [1.0]]).expand(2, num_columns)
    value = likelihood.log_prob(outputs, x)
    (gradient,) = torch.autograd.grad(value.sum(), outputs)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(likelihood.mean(outputs)).all()
    assert torch.isfinite(likelihood.fisher(outputs)).all()
