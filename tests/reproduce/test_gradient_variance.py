"""The quick figure, and that the estimators of one bound estimate one gradient."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS
from reproduced import quickly

from streaming_vb.evaluation.held_out import mean_weights
from streaming_vb.models.vae import VAE
from streaming_vb.objectives import AbstractObjective, Elbo, ImportanceWeighted, ScoreFunction, Vimco
from streaming_vb.reproduce.gradient_variance import BATCH_SIZES, DRAWS, ESTIMATORS, gradient
from streaming_vb.types import Array

SCORE, BASELINE, THROUGH, VIMCO, PLAIN, DOUBLY = ESTIMATORS
MODEL = VAE(6, hidden=(5,), latent=2)
COPIES = 500
"""Of every record in a minibatch: one gradient is a mean over as many draws of z."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quickly("gradient-variance", tmp_path_factory.mktemp("gradient-variance"))


def curve(document: dict[str, Any], panel: str, name: str) -> dict[int, float]:
    (count,) = {"draws", "records"} & document["results"][panel][name][0].keys()
    return {point[count]: point["value"] for point in document["results"][panel][name]}


def test_reparameterization_is_below_the_score_function_with_baseline_and_that_below_without(
    document: dict[str, Any],
) -> None:
    assert document["settings"]["seed"] == 0
    for panel, counts in (("by_draws", DRAWS[1:]), ("by_batch_size", BATCH_SIZES)):
        score, baseline, through = (curve(document, panel, name) for name in (SCORE, BASELINE, THROUGH))
        for count in counts:
            assert 2 * through[count] < baseline[count] < score[count] / 10


def test_of_the_importance_weighted_bound_the_doubly_reparameterized_gradient_is_the_quietest(
    document: dict[str, Any],
) -> None:
    plain, vimco, doubly = (curve(document, "by_draws", name) for name in (PLAIN, VIMCO, DOUBLY))
    for count in DRAWS[1:]:
        assert 2 * doubly[count] < min(plain[count], vimco[count])


def test_the_variance_falls_as_one_over_draws_and_records(document: dict[str, Any]) -> None:
    for name in (SCORE, THROUGH):
        by_draws, by_records = (curve(document, panel, name) for panel in ("by_draws", "by_batch_size"))
        assert by_draws[1] / by_draws[50] == pytest.approx(50, rel=0.3)
        assert by_records[10] / by_records[200] == pytest.approx(20, rel=0.4)


def gradients(objective: AbstractObjective, repeats: int = 60) -> Array:
    """Draws of the gradient at one minibatch [repeats, weights]."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(3, 6, generator=generator) < 0.5).float().repeat(COPIES, 1)
    weights = mean_weights(MODEL, MODEL.prior(0))
    drawn = [gradient(MODEL, weights, objective, {"x": x}, generator) for _ in range(repeats)]
    return torch.stack(drawn).double().numpy()


def apart(one: AbstractObjective, other: AbstractObjective) -> float:
    """Largest difference of the mean gradients, in standard errors."""
    a, b = gradients(one), gradients(other)
    error = np.sqrt((a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / len(a))
    used = error > 0  # a pixel or a hidden unit may be off in all records
    assert used.mean() > 0.3
    return float((np.abs(a.mean(axis=0) - b.mean(axis=0))[used] / error[used]).max())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Elbo(2), ScoreFunction(2, leave_one_out=False)),
        (Elbo(2), ScoreFunction(2)),
        (ImportanceWeighted(5, doubly=False), ImportanceWeighted(5)),
        (ImportanceWeighted(5, doubly=False), Vimco(5)),
    ],
    ids=["score function", "baseline", "doubly reparameterized", "VIMCO"],
)
def test_estimators_of_one_bound_agree_in_the_mean(one: AbstractObjective, other: AbstractObjective) -> None:
    assert apart(one, other) < STANDARD_ERRORS


@pytest.mark.parametrize(
    ("one", "other"),
    [(Elbo(2), Elbo(2, kl_weight=0.5)), (Elbo(2), ImportanceWeighted(5)), (Vimco(2), Vimco(5))],
    ids=["another weight of KL", "another bound", "another number of draws"],
)
def test_estimators_of_different_bounds_do_not(one: AbstractObjective, other: AbstractObjective) -> None:
    assert apart(one, other) > STANDARD_ERRORS


def test_the_gradient_is_that_of_the_mean_over_records() -> None:
    """Against finite differences of the ELBO, with the same draws of z."""
    x = torch.tensor([[1.0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 1, 1]])
    weights = mean_weights(MODEL, MODEL.prior(0))
    name = MODEL.encoder[-1].weight

    def elbo(step: float) -> float:
        moved = weights.mean[name].clone()
        moved[3, 2] += step
        terms = MODEL.terms(type(weights)({**weights.mean, name: moved}), {"x": x}, torch.Generator().manual_seed(7))
        return float(Elbo().surrogate(terms).mean())

    sizes = [math.prod(shape) for layer in MODEL.encoder for shape in layer.shapes().values()]
    drawn = gradient(MODEL, weights, Elbo(), {"x": x}, torch.Generator().manual_seed(7)).split(sizes)
    assert float(drawn[2].view(4, 5)[3, 2]) == pytest.approx((elbo(0.01) - elbo(-0.01)) / 0.02, abs=5e-5)
