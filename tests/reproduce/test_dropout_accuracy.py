"""The quick figure: fixed noise hurts narrow networks, learned noise adapts."""

from typing import Any

import pytest
import torch
from reproduced import quickly

from streaming_vb.layers.layout import Weights
from streaming_vb.models.neural import Minibatch
from streaming_vb.reproduce import classifier, training
from streaming_vb.reproduce.classifier import Labelled
from streaming_vb.reproduce.dropout_accuracy import ARMS, PUBLISHED_WIDTHS, BinaryDropout, Size, fit
from streaming_vb.seeding import torch_generator

FIXED = ("binary dropout", "Gaussian dropout A", "Gaussian dropout B")
LEARNED = ("variational dropout A", "variational dropout A2 (KL / 3)", "variational dropout B")
NARROW, WIDE = 20, 60


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quickly("dropout-accuracy", tmp_path_factory.mktemp("dropout-accuracy"))


def point(document: dict[str, Any], name: str, width: int) -> dict[str, Any]:
    (found,) = (point for point in document["results"]["arms"][name] if point["width"] == width)
    return dict(found)


def test_every_arm_has_its_seeds_and_every_width(document: dict[str, Any]) -> None:
    assert document["settings"]["seeds_by_width"] == {str(NARROW): [0, 1], str(WIDE): [0]}
    assert list(document["results"]["arms"]) == list(ARMS)
    for name in ARMS:
        narrow, wide = point(document, name, NARROW), point(document, name, WIDE)
        assert len(narrow["errors"]) == 2
        assert narrow["mean"] == pytest.approx(sum(narrow["errors"]) / 2, abs=1e-3)
        assert narrow["standard_error"] == pytest.approx(abs(narrow["errors"][0] - narrow["errors"][1]) / 2, abs=1e-3)
        assert wide["standard_error"] is None


def test_fixed_noise_hurts_a_narrow_network_and_a_wide_one_less(document: dict[str, Any]) -> None:
    without = point(document, "no dropout", NARROW)["mean"]
    assert without < 10
    for name in FIXED:
        narrow, wide = point(document, name, NARROW)["mean"], point(document, name, WIDE)["mean"]
        assert narrow > 2 * without
        assert wide < narrow


def test_learned_noise_hurts_a_narrow_network_less(document: dict[str, Any]) -> None:
    fixed, learned = (
        sum(point(document, name, NARROW)["mean"] for name in names) / 2 for names in (FIXED[:2], LEARNED[:2])
    )
    assert learned < 0.75 * fixed


def test_alphas_move_where_they_are_learned(document: dict[str, Any]) -> None:
    for name in FIXED[1:]:
        assert point(document, name, NARROW)["mean_alphas"] == pytest.approx([0.25, 1, 1, 1])
    for name in LEARNED:
        assert all(0 < alpha <= 1 for alpha in point(document, name, NARROW)["mean_alphas"])
    for name in LEARNED[:2]:
        assert max(point(document, name, NARROW)["mean_alphas"]) < 0.8  # from 1 in all but the first layer


def test_binary_dropout_drops_the_inputs_of_every_layer_at_its_rate() -> None:
    model = classifier.network(1000, 1000)
    layers = ARMS["binary dropout"].layers(model)
    points = classifier.start(model, 0)
    ones = torch.ones(1, 1000)
    for i, (layer, rate) in enumerate(zip(layers, (0.2, 0.5, 0.5, 0.5), strict=True)):
        assert isinstance(layer, BinaryDropout)
        identity = {f"layer.{i}.weight": torch.eye(1000), f"layer.{i}.bias": torch.zeros(1000)}
        outputs = layer(Weights({**points, **identity}), ones, torch.Generator().manual_seed(i))
        assert float((outputs == 0).float().mean()) == pytest.approx(rate, abs=0.06)
        assert float(outputs.max()) == pytest.approx(1 / (1 - rate))


def test_weights_are_averaged_over_the_last_quarter_of_the_steps() -> None:
    model, generator = classifier.network(5, 4), torch.Generator().manual_seed(0)
    data = Labelled(torch.rand(700, 5, generator=generator), torch.arange(700).remainder(10).float())
    arm, size = ARMS["no dropout"], Size({}, epochs=4, rate=0.01)
    still, _ = fit(arm, model, data, 3, size._replace(rate=0.0))
    start = {name: point.detach() for name, point in classifier.start(model, 3).items()}
    assert all(torch.allclose(still[name], start[name], atol=1e-6) for name in start)

    points, generator = classifier.start(model, 3), torch_generator(3, "dropout accuracy")

    def loss(minibatch: Minibatch) -> torch.Tensor:
        return -classifier.log_likelihood(model, model.layers, Weights(points), minibatch, generator).mean()

    after = []
    for _ in training.adam(points, loss, data.passes(4, 100, generator), 0.01):
        after.append({name: point.detach().clone() for name, point in points.items()})
    means, alphas = fit(arm, model, data, 3, size)
    assert alphas == []
    for name in points:  # 28 steps
        assert torch.allclose(means[name], torch.stack([each[name] for each in after[-7:]]).mean(0), atol=1e-6)


def test_published_errors_have_every_width() -> None:
    assert all(len(arm.published) == len(PUBLISHED_WIDTHS) for arm in ARMS.values())
    assert ARMS["variational dropout A2 (KL / 3)"].kl_weight == pytest.approx(1 / 3)
