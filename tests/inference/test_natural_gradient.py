"""One fit against the update formulas, written naively in float64."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from checks import relative_error
from linear_model import PRIOR_MEAN, PRIOR_PRECISION, LinearLoss, minibatches, records_of

from streaming_vb.inference import natural_gradient
from streaming_vb.types import Array, Fit, NaturalParameters

BATCH, STEP, PULL, SHARE = 4, 0.05, 0.3, 0.25
NUM_RECORDS = 10
"""Two full minibatches and a short one."""


@dataclass(frozen=True)
class Constants:
    curvature_decay: float = 0.99
    momentum_decay: float = 0.9
    damping: float = 1e-3
    trust_region: float = 0.05
    step_size: float = STEP
    pull: float = PULL


def start(scale: float = 1.0) -> dict[str, Array]:
    return {
        "momentum": np.array([0.3, -0.1, 0.02], np.float32) * np.float32(scale),
        "curvature": np.array([0.5, 2.0, 0.1], np.float32),
        "steps": np.array(3),
    }


def naive(constants: Constants, scale: float = 1.0) -> tuple[Array, dict[str, Array], Array]:
    """m_loc, the fit state and F, line by line."""
    c = constants
    precision = SHARE * PRIOR_PRECISION
    m, g, h = PRIOR_MEAN.copy(), start(scale)["momentum"].astype(float), start()["curvature"].astype(float)
    steps, evidence = 3, np.zeros(3)
    for gradient, squared, size in minibatches(NUM_RECORDS, BATCH, scale):
        steps += 1
        h = c.curvature_decay * h + (1 - c.curvature_decay) * squared / size
        g = c.momentum_decay * g + (1 - c.momentum_decay) * gradient / size
        corrected = g / (1 - c.momentum_decay**steps)
        m = m - c.step_size * np.clip(corrected / (h + c.damping), -c.trust_region, c.trust_region)
        k = c.step_size * c.pull * precision / (NUM_RECORDS * (h + c.damping))
        m = (m + k * PRIOR_MEAN) / (1 + k)
        evidence += squared
    return m, {"momentum": g, "curvature": h, "steps": np.array(steps)}, evidence


def fit(scale: float = 1.0) -> Fit:
    primitive = natural_gradient.build(LinearLoss(), batch_size=BATCH, step_size=STEP, pull=PULL)
    posterior = NaturalParameters({"precision_mean": PRIOR_PRECISION * PRIOR_MEAN, "precision": PRIOR_PRECISION})
    prior = posterior.scale(SHARE).astype(np.float32)
    return primitive(prior, posterior.astype(np.float32), start(scale), records_of(NUM_RECORDS, scale), seed=1)


def local_mean(result: Fit) -> Array:
    """Mean of prior + delta."""
    precision = SHARE * PRIOR_PRECISION
    total = precision * PRIOR_MEAN + result.natural["precision_mean"]
    return total / (precision + result.natural["precision"])


@pytest.mark.parametrize("scale", [0.003, 0.1, 1.0], ids=["inside the trust region", "at its edge", "outside"])
def test_a_fit_is_the_formulas_line_by_line(scale: float) -> None:
    result = fit(scale)
    mean, state, evidence = naive(Constants(), scale)
    move = mean - PRIOR_MEAN
    assert relative_error(local_mean(result) - PRIOR_MEAN, move) < 2e-4
    assert relative_error(result.fit_state["momentum"], state["momentum"]) < 1e-5
    assert relative_error(result.fit_state["curvature"], state["curvature"]) < 1e-5
    assert result.fit_state["steps"] == state["steps"] == 6
    assert relative_error(result.natural["precision"], evidence) < 1e-5


def test_the_delta_is_computed_from_evidence() -> None:
    """d(precision mean) = share S_t (m_loc - m_t) + F m_loc."""
    result, (mean, _, evidence) = fit(), naive(Constants())
    expected = SHARE * PRIOR_PRECISION * (mean - PRIOR_MEAN) + evidence * mean
    assert relative_error(result.natural["precision_mean"], expected) < 1e-5


@pytest.mark.parametrize(
    "changed",
    [
        {"curvature_decay": 0.98},
        {"momentum_decay": 0.89},
        {"damping": 5e-3},
        {"trust_region": 0.06},
        {"step_size": 0.06},
        {"pull": 0.4},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_constant_would_show(changed: dict[str, float]) -> None:
    """The comparison can tell every constant from its neighbour, at one scale of the gradient at least."""
    errors = []
    for scale in (0.003, 0.1, 1.0):
        mean, _, _ = naive(replace(Constants(), **changed), scale)
        errors.append(relative_error(local_mean(fit(scale)) - PRIOR_MEAN, mean - PRIOR_MEAN))
    assert max(errors) > 2e-3


def test_a_run_starts_with_curvature_a_tenth_and_no_momentum() -> None:
    state = natural_gradient.build(LinearLoss()).initial_state()
    assert state["curvature"].tolist() == pytest.approx([0.1] * 3)
    assert state["momentum"].tolist() == [0.0] * 3
    assert state["steps"] == 0


def test_defaults_are_those_of_the_algorithm() -> None:
    primitive = natural_gradient.build(LinearLoss())
    assert (primitive.batch_size, primitive.step_size, primitive.num_threads) == (100, 0.05, 1)


def test_no_coordinate_moves_further_than_the_trust_region_allows() -> None:
    assert np.all(np.abs(local_mean(fit(100.0)) - PRIOR_MEAN) <= 3 * STEP * 0.05 * (1 + 1e-4))
