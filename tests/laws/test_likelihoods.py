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


def is_continuous(likelihood: Any) -> bool:
    try:
        likelihood.validate(np.array([[0.5]]))
    except DataError:
        return False
    return True


@every_likelihood
def test_log_prob_has_one_value_per_draw_and_record(example: Example) -> None:
    likelihood, num_columns = example
    x = likelihood.sample(outputs_of(likelihood, num_columns, 5), torch.Generator().manual_seed(0))
    assert likelihood.log_prob(outputs_of(likelihood, num_columns, 4, 5), x).shape == (4, 5)


@every_likelihood
def test_probabilities_of_one_column_add_up_to_one(example: Example) -> None:
    likelihood, _ = example
    outputs = outputs_of(likelihood, 1, 1).double()
    spacing = 0.01 if is_continuous(likelihood) else 1.0
    support = torch.arange(-500, 500, spacing, dtype=torch.float64) if spacing < 1 else torch.arange(2.0).double()
    total = likelihood.log_prob(outputs.expand(len(support), -1), support[:, None]).exp().sum() * spacing
    assert float(total) == pytest.approx(1.0, abs=1e-6)


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
