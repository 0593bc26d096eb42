import pytest
import torch

from streaming_vb.layers.layout import Layout

LAYOUT = Layout({"a.weight": (2, 3), "a.bias": (2,), "scale": ()})


def test_every_weight_lies_in_its_place() -> None:
    views = LAYOUT.views(torch.arange(9.0))
    assert views["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert views["a.bias"].tolist() == [6, 7]
    assert views["scale"].item() == 8
    assert LAYOUT.num_weights == 9


def test_views_share_the_memory_of_the_vector() -> None:
    flat = torch.zeros(9)
    LAYOUT.views(flat)["a.bias"][1] = 5.0
    assert flat[7] == 5


@pytest.mark.parametrize("size", [8, 10])
def test_a_vector_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(RuntimeError):
        LAYOUT.views(torch.zeros(size))
