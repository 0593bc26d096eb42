"""The classifier of the dropout figures: its start, its data, what it descends and how it is tested."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from streaming_vb.layers.layout import Weights
from streaming_vb.layers.variational_dropout import TypeA, TypeB
from streaming_vb.reproduce import classifier
from streaming_vb.reproduce.classifier import Labelled
from streaming_vb.reproduce.images import Images

MODEL = classifier.network(6, 4)


def rows(number: int = 7) -> Labelled:
    generator = torch.Generator().manual_seed(0)
    return Labelled(torch.rand(number, 6, generator=generator), torch.arange(number).float())


def test_three_hidden_layers_and_ten_classes() -> None:
    assert [layer.num_outputs for layer in MODEL.layers] == [4, 4, 4, 10]


def test_weights_start_uniform_and_biases_at_zero_by_the_seed_alone() -> None:
    wide = classifier.network(100, 50)
    points = classifier.start(wide, 0)
    assert list(points) == list(wide.layout.shapes)
    first = points["layer.0.weight"].detach()
    assert 0.09 < float(first.abs().max()) <= 0.1
    assert abs(float(first.mean())) < 5 * 0.1 / (3 * first.numel()) ** 0.5
    assert all(not point.any() for name, point in points.items() if name.endswith("bias"))
    assert torch.equal(first, classifier.start(wide, 0)["layer.0.weight"])
    assert not torch.equal(first, classifier.start(wide, 1)["layer.0.weight"])


@pytest.mark.parametrize("kind", [TypeA, TypeB])
def test_noise_starts_at_the_published_dropout_rates(kind: type[TypeA] | type[TypeB]) -> None:
    starts = list(classifier.log_alphas(classifier.variational_layers(MODEL, kind)).values())
    assert [start.exp().unique().tolist() for start in starts] == [[0.25], [1.0], [1.0], [1.0]]


def test_a_pass_shows_every_record_once_with_its_class() -> None:
    data = rows()
    passes = list(data.passes(2, 3, torch.Generator().manual_seed(0)))
    assert [len(minibatch["y"]) for minibatch in passes] == [3, 3, 1, 3, 3, 1]
    first, second = (torch.cat([minibatch["y"] for minibatch in part]) for part in (passes[:3], passes[3:]))
    assert sorted(first.tolist()) == sorted(second.tolist()) == data.y.tolist()
    assert first.tolist() != second.tolist()
    assert all((minibatch["x"] == data.x[minibatch["y"].long()]).all() for minibatch in passes)


def test_images_are_grey_values_in_the_unit_interval() -> None:
    stored = np.array([[0, 8, 16]], dtype=np.uint8)
    train, test = classifier.train_and_test(
        Images("grey", stored, np.array([3]), stored[:, ::-1], np.array([5]), 1 / 16, (1, 3))
    )
    assert train.x.tolist() == [[0.0, 0.5, 1.0]]
    assert test.x.tolist() == [[1.0, 0.5, 0.0]]
    assert (train.y.item(), test.y.item()) == (3, 5)


def test_log_likelihood_without_noise_is_minus_the_cross_entropy_of_a_rectified_network() -> None:
    points, data = classifier.start(MODEL, 0), rows()
    outputs = data.x
    for i in range(4):
        outputs = functional.linear(outputs, points[f"layer.{i}.weight"], points[f"layer.{i}.bias"])
        outputs = torch.relu(outputs) if i < 3 else outputs
    expected = -functional.cross_entropy(outputs, data.y.long(), reduction="none")
    minibatch = data.minibatch(torch.arange(7))
    ours = classifier.log_likelihood(MODEL, MODEL.layers, Weights(points), minibatch, torch.Generator())
    assert torch.allclose(ours, expected, atol=1e-6)
    right = float((outputs.argmax(1) == data.y).double().mean())
    assert classifier.error(MODEL, points, data) == pytest.approx(100 * (1 - right))


def test_kl_is_the_sum_over_layers() -> None:
    layers = classifier.variational_layers(MODEL, TypeB)
    weights = Weights({**classifier.start(MODEL, 0), **classifier.log_alphas(layers)})
    per_weight = {0.25: 1.1226, 1.0: 0.3895}  # c - log(alpha) / 2 minus the cubic
    sizes = [math.prod(layer.shapes()[layer.weight]) for layer in layers]
    expected = sizes[0] * per_weight[0.25] + sum(sizes[1:]) * per_weight[1.0]
    assert float(classifier.kl(layers, weights)) == pytest.approx(expected, rel=2e-4)


def test_alphas_move_where_they_ask_for_it_and_never_pass_one() -> None:
    points = {"w": torch.zeros(1, requires_grad=True)}
    alphas = {"rising": torch.tensor([-0.2], requires_grad=True), "fixed": torch.tensor([-0.2])}

    def loss(minibatch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (points["w"] - 1).square().sum() - alphas["rising"].sum() - alphas["fixed"].sum()

    steps = list(classifier.train(points, alphas, loss, iter([{}] * 5), 0.1))
    assert steps == [1, 2, 3, 4, 5]
    assert alphas["rising"].item() == 0.0
    assert alphas["fixed"].item() == pytest.approx(-0.2)
    assert points["w"].item() > 0.3
