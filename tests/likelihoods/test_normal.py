import math

import torch

from streaming_vb.likelihoods.normal import Normal


def test_log_prob_equals_that_of_torch() -> None:
    mean, raw = torch.tensor([[0.5, -2.0]]), torch.tensor([[-1.0, 0.7]])
    x = torch.tensor([[1.0, 0.0]])
    expected = torch.distributions.Normal(mean, torch.exp(5 * torch.tanh(raw / 5))).log_prob(x).sum(-1)
    torch.testing.assert_close(Normal().log_prob(torch.cat([mean, raw], dim=-1), x), expected)


def test_a_constant_column_cannot_drive_the_density_to_infinity() -> None:
    outputs = torch.tensor([[0.0, -1e6]])
    at_the_mean = float(Normal().log_prob(outputs, torch.zeros(1, 1)))
    assert math.isclose(at_the_mean, 5 - 0.5 * math.log(2 * math.pi), rel_tol=1e-6)


def test_the_mean_is_the_first_half_of_the_outputs() -> None:
    assert torch.equal(Normal().mean(torch.tensor([[1.0, 2.0, 3.0, 4.0]])), torch.tensor([[1.0, 2.0]]))
