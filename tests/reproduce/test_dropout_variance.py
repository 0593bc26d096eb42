"""The quick figure, and that small minibatches of records with their own draws give the variance of large ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS
from reproduced import quickly

from streaming_vb.layers import estimators
from streaming_vb.layers.estimators import Estimator
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.variational_dropout import TypeB
from streaming_vb.reproduce import classifier
from streaming_vb.reproduce.classifier import Labelled
from streaming_vb.reproduce.dropout_variance import ARMS, gradients
from streaming_vb.reproduce.empirical_variance import Variance, within_groups


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quickly("dropout-variance", tmp_path_factory.mktemp("dropout-variance"))


@pytest.mark.parametrize("layer", ["top", "bottom"])
@pytest.mark.parametrize("stage", ["early", "late"])
def test_no_noise_is_below_local_below_separate_below_one_sample(
    document: dict[str, Any], stage: str, layer: str
) -> None:
    cells = document["results"][stage][layer]
    assert list(cells) == list(ARMS)
    totals, noises = ([cell[name] for cell in cells.values()] for name in ("variance", "noise_variance"))
    assert (np.diff(totals) > 0).all()
    assert (np.diff(noises) > 0).all()
    assert noises[0] == 0
    assert all(noise < total * 1.3 for noise, total in zip(noises, totals, strict=True))
    assert cells["one weight sample"]["ratio_to_local"] > 4
    assert 1.2 < cells["separate weight samples"]["ratio_to_local"] < 3.5


def test_settings_and_published_values_stand_beside_ours(document: dict[str, Any]) -> None:
    assert document["settings"]["seed"] == 0
    assert min(document["settings"]["draws"].values()) >= 80
    early, late = (document["results"][stage] for stage in ("early", "late"))
    assert early["top"]["one weight sample"]["published_ratio_to_local"] == pytest.approx(6.28, abs=0.01)
    assert late["bottom"]["no dropout noise"]["published"] == 9.0
    assert early["epochs"] < late["epochs"]
    assert late["test_error"] < early["test_error"] < 60
    assert all(0 < alpha <= 1 for stage in (early, late) for alpha in stage["mean_alphas"])


def measure(estimator: Estimator, records: int, seed: int, num_records: int = 300) -> tuple[Variance, ...]:
    """Variances at the top and bottom layer for minibatches out of `num_records`, scaled to minibatches of 50."""
    generator = torch.Generator().manual_seed(0)
    data = Labelled(torch.rand(num_records, 6, generator=generator), torch.arange(num_records).remainder(10).float())
    model = classifier.network(6, 8)
    layers = [replace(layer, estimator=estimator) for layer in classifier.variational_layers(model, TypeB)]
    weights = Weights({**classifier.start(model, 0), **classifier.log_alphas(layers)})
    groups = gradients(model, layers, weights, data, records, 40, False, generator.manual_seed(seed))
    return tuple(variance.times(records / 50) for variance in within_groups(groups))


def apart(one: Variance, other: Variance) -> float:
    """In standard errors."""
    return abs(one.value - other.value) / float(np.hypot(one.standard_error, other.standard_error))


@pytest.mark.parametrize("estimator", [estimators.mean, estimators.local, estimators.separate])
def test_independent_records_give_one_variance_for_minibatches_of_every_size(estimator: Estimator) -> None:
    large, small = measure(estimator, 50, seed=1), measure(estimator, 5, seed=2)
    assert max(apart(*pair) for pair in zip(large, small, strict=True)) < STANDARD_ERRORS


def test_records_with_one_weight_sample_do_not_where_they_are_alike() -> None:
    large, small = (measure(estimators.shared, records, seed=1, num_records=1) for records in (50, 5))
    assert max(apart(*pair) for pair in zip(large, small, strict=True)) > STANDARD_ERRORS
    assert large[0].value == pytest.approx(10 * small[0].value, rel=0.2)


def test_the_gradient_is_that_of_the_sum_over_all_records() -> None:
    """Without noise and in expectation over minibatches: the gradient of the full data."""
    generator = torch.Generator().manual_seed(0)
    data = Labelled(torch.rand(20, 6, generator=generator), torch.arange(20).remainder(10).float())
    model = classifier.network(6, 8)
    layers = [replace(layer, estimator=estimators.mean) for layer in classifier.variational_layers(model, TypeB)]
    weights = Weights({**classifier.start(model, 0), **classifier.log_alphas(layers)})
    total = classifier.log_likelihood(model, layers, weights, data.minibatch(torch.arange(20)), generator).sum()
    exact = torch.autograd.grad(total, [weights.mean["layer.3.weight"], weights.mean["layer.0.weight"]])
    drawn = [draw for group in gradients(model, layers, weights, data, 10, 200, False, generator) for draw in group]
    for i, expected in enumerate(exact):
        values = torch.stack([draw[i] for draw in drawn]).double()
        error = values.std(0) / len(drawn) ** 0.5
        used = error > 0
        assert float(((values.mean(0) - expected).abs() / error)[used].max()) < STANDARD_ERRORS
        assert float(((values.mean(0) - expected / 10).abs() / error)[used].max()) > STANDARD_ERRORS
