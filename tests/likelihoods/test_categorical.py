import numpy as np
import pytest
import torch

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.likelihoods.categorical import Categorical

LOGITS = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 0.0], [-4.0, 1.5, 1.0], [1.0, 1.0, -2.0]])
"""[K, D]: the law of the layout, one line per category."""


def test_log_prob_equals_that_of_torch() -> None:
    x = torch.tensor([[0.0, 3.0, 2.0], [1.0, 1.0, 0.0]])
    expected = torch.distributions.Categorical(logits=LOGITS.T).log_prob(x).sum(-1)
    torch.testing.assert_close(Categorical(4).log_prob(LOGITS.view(1, -1).expand(2, -1), x), expected)


def test_the_mean_is_the_expected_category() -> None:
    expected = torch.arange(4.0) @ LOGITS.softmax(0)
    torch.testing.assert_close(Categorical(4).mean(LOGITS.view(-1)), expected)


def test_two_categories_are_a_bernoulli_variable() -> None:
    outputs = torch.tensor([0.7, 2.0])
    logit = outputs[1] - outputs[0]
    assert float(Categorical(2).mean(outputs)) == pytest.approx(float(torch.sigmoid(logit)))


def test_samples_have_the_probabilities() -> None:
    x = Categorical(4).sample(LOGITS.view(-1).expand(10_000, -1), torch.Generator().manual_seed(0))
    p = LOGITS.softmax(0)
    shares = torch.stack([(x == k).double().mean(0) for k in range(4)])
    assert torch.all((shares - p).abs() < 5 * torch.sqrt(p * (1 - p) / 10_000))
    assert not torch.all((shares - p.flip(0)).abs() < 5 * torch.sqrt(p * (1 - p) / 10_000))


def test_fisher_is_diag_p_minus_p_p_within_a_column_and_0_between_columns() -> None:
    fisher = Categorical(4).fisher(LOGITS.view(-1)).view(4, 3, 4, 3)
    p = LOGITS.softmax(0)
    for column in range(3):
        block = torch.diag(p[:, column]) - torch.outer(p[:, column], p[:, column])
        torch.testing.assert_close(fisher[:, column, :, column], block)
    assert torch.all(fisher[:, 0, :, 1] == 0)


@pytest.mark.parametrize("num_categories", [1, 0, -3])
def test_fewer_than_two_categories_are_refused(num_categories: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected at least 2 categories, got {num_categories}"):
        Categorical(num_categories)


@pytest.mark.parametrize("value", [0.5, -1.0, 4.0, 255.0, np.nan, np.inf])
def test_a_value_that_is_no_category_is_named_by_record_and_column(value: float) -> None:
    x = np.zeros((5, 4), np.float32)
    x[3, 2] = value
    with pytest.raises(DataError, match=rf"whole numbers 0 to 3; record 1003 column 2 holds {value:g}"):
        Categorical(4).validate(x, 1000)


def test_the_message_says_what_to_type() -> None:
    with pytest.raises(DataError, match=r"--likelihood categorical:K.*--likelihood normal"):
        Categorical(4).validate(np.full((1, 1), 4.0))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_categories_of_any_kind_are_accepted(kind: type) -> None:
    Categorical(4).validate(np.array([[0, 1], [2, 3]]).astype(kind))
