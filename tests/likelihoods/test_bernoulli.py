import numpy as np
import pytest
import torch

from streaming_vb.errors import DataError
from streaming_vb.likelihoods.bernoulli import Bernoulli


def test_log_prob_equals_that_of_torch() -> None:
    outputs = torch.tensor([[-3.0, 0.2, 5.0], [1.0, -1.0, 0.0]])
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    expected = torch.distributions.Bernoulli(logits=outputs).log_prob(x).sum(-1)
    torch.testing.assert_close(Bernoulli().log_prob(outputs, x), expected)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, 255.0, np.nan, np.inf])
def test_a_value_that_is_not_binary_is_named_by_record_and_column(value: float) -> None:
    x = np.zeros((5, 4), np.float32)
    x[3, 2] = value
    with pytest.raises(DataError, match=rf"record 3 column 2 holds {value:g}"):
        Bernoulli().validate(x)


def test_a_wrong_value_is_counted_from_the_first_record_of_its_interval() -> None:
    with pytest.raises(DataError, match=r"record 1001 column 0\b"):
        Bernoulli().validate(np.array([[0.0], [0.5]]), 1000)


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(DataError, match="Binarize the source, or use the normal likelihood"):
        Bernoulli().validate(np.full((1, 1), 0.5))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, bool])
def test_zeros_and_ones_of_any_kind_are_accepted(kind: type) -> None:
    Bernoulli().validate(np.array([[0, 1], [1, 0]]).astype(kind))
