import math

import numpy as np
import pytest
import torch

from streaming_vb.errors import DataError
from streaming_vb.likelihoods.poisson import Poisson


def bounded(raw: torch.Tensor) -> torch.Tensor:
    return 16 * torch.tanh(raw / 16)


def test_log_prob_equals_that_of_torch() -> None:
    outputs = torch.tensor([[-3.0, 0.2, 5.0], [1.0, -1.0, 0.0]])
    x = torch.tensor([[0.0, 1.0, 120.0], [1.0, 2.0, 0.0]])
    expected = torch.distributions.Poisson(torch.exp(bounded(outputs))).log_prob(x).sum(-1)
    torch.testing.assert_close(Poisson().log_prob(outputs, x), expected)


def test_log_prob_by_hand() -> None:
    log_rate = float(bounded(torch.tensor(0.5, dtype=torch.float64)))
    expected = 3 * log_rate - math.exp(log_rate) - math.log(6)
    outputs, x = torch.tensor([[0.5], [3.0]], dtype=torch.float64).split(1)
    assert float(Poisson().log_prob(outputs, x)) == pytest.approx(expected, rel=1e-12)


def test_small_log_rates_are_hardly_bounded() -> None:
    assert float(Poisson().mean(torch.tensor([0.5]))) == pytest.approx(math.exp(0.5), rel=1e-3)


def test_a_column_of_zeros_cannot_drive_the_rate_out_of_bounds() -> None:
    outputs = torch.tensor([-1e6, 1e6])
    torch.testing.assert_close(Poisson().mean(outputs), torch.exp(torch.tensor([-16.0, 16.0])))


def test_the_greatest_samples_are_valid_data() -> None:
    drawn = Poisson().sample(torch.full((1000, 1), 1e4), torch.Generator().manual_seed(0))
    Poisson().validate(drawn.numpy())
    assert float(drawn.mean()) == pytest.approx(math.exp(16), rel=1e-3)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0**24, np.nan, np.inf])
def test_a_value_that_is_no_count_is_named_by_record_and_column(value: float) -> None:
    x = np.zeros((5, 4), np.float32)
    x[3, 2] = value
    with pytest.raises(DataError, match=r"record 1003 column 2 holds " + f"{value:g}".replace("+", r"\+")):
        Poisson().validate(x, 1000)


def test_the_message_says_what_to_type() -> None:
    with pytest.raises(DataError, match=r"needs whole numbers 0 to 16,777,215.*--likelihood normal"):
        Poisson().validate(np.full((1, 1), 0.5))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_counts_of_any_kind_are_accepted(kind: type) -> None:
    Poisson().validate(np.array([[0, 1], [200, 3]]).astype(kind))
