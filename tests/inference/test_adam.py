"""One fit against the update formulas, written naively in float64."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from checks import relative_error
from linear_model import PRIOR_MEAN, PRIOR_PRECISION, LinearLoss, minibatches, records_of

from streaming_vb.inference import adam
from streaming_vb.types import Array, Fit, NaturalParameters

BATCH, STEP, PULL, SHARE = 4, 0.005, 0.3, 0.25
NUM_RECORDS = 10
"""Two full minibatches and a short one."""


@dataclass(frozen=True)
class Constants:
    momentum_decay: float = 0.9
    squared_decay: float = 0.999
    epsilon: float = 1e-8
    step_size: float = STEP
    pull: float = PULL


def start() -> dict[str, Array]:
    return {
        "momentum": np.array([0.3, -0.1, 0.02], np.float32),
        "squared": np.array([0.05, 0.2, 0.01], np.float32),
        "steps": np.array(3),
    }


def naive(constants: Constants, scale: float = 1.0) -> tuple[Array, dict[str, Array], Array]:
    """m_loc, the fit state and F, line by line."""
    c = constants
    precision = SHARE * PRIOR_PRECISION
    m, g, v = PRIOR_MEAN.copy(), start()["momentum"].astype(float) * scale, start()["squared"].astype(float) * scale**2
    steps, evidence = 3, np.zeros(3)
    for gradient, squared, size in minibatches(NUM_RECORDS, BATCH, scale):
        steps += 1
        g = c.momentum_decay * g + (1 - c.momentum_decay) * gradient / size
        v = c.squared_decay * v + (1 - c.squared_decay) * (gradient / size) ** 2
        denominator = np.sqrt(v / (1 - c.squared_decay**steps)) + c.epsilon
        m = m - c.step_size * g / (1 - c.momentum_decay**steps) / denominator
        k = c.step_size * c.pull * precision / (NUM_RECORDS * denominator)
        m = (m + k * PRIOR_MEAN) / (1 + k)
        evidence += squared
    return m, {"momentum": g, "squared": v, "steps": np.array(steps)}, evidence


def fit(scale: float = 1.0, pull: float = PULL) -> Fit:
    primitive = adam.build(LinearLoss(), batch_size=BATCH, step_size=STEP, pull=pull)
    posterior = NaturalParameters({"precision_mean": PRIOR_PRECISION * PRIOR_MEAN, "precision": PRIOR_PRECISION})
    state = {
        "momentum": start()["momentum"] * np.float32(scale),
        "squared": start()["squared"] * np.float32(scale**2),
        "steps": np.array(3),
    }
    prior = posterior.scale(SHARE).astype(np.float32)
    return primitive(prior, posterior.astype(np.float32), state, records_of(NUM_RECORDS, scale), seed=1)


def local_mean(result: Fit) -> Array:
    """Mean of prior + delta."""
    precision = SHARE * PRIOR_PRECISION
    total = precision * PRIOR_MEAN + result.natural["precision_mean"]
    return total / (precision + result.natural["precision"])


@pytest.mark.parametrize(
    ("scale", "pull"), [(1e-7, 0.0), (0.1, PULL), (1.0, PULL)], ids=["near epsilon", "small", "large"]
)
def test_a_fit_is_the_formulas_line_by_line(scale: float, pull: float) -> None:
    result = fit(scale, pull)
    mean, state, evidence = naive(Constants(pull=pull), scale)
    assert relative_error(local_mean(result) - PRIOR_MEAN, mean - PRIOR_MEAN) < 1e-3
    assert relative_error(result.fit_state["momentum"], state["momentum"]) < 1e-5
    assert relative_error(result.fit_state["squared"], state["squared"]) < 1e-5
    assert result.fit_state["steps"] == state["steps"] == 6
    assert relative_error(result.natural["precision"], evidence) < 1e-5


def test_the_delta_is_computed_from_evidence() -> None:
    """d(precision mean) = share S_t (m_loc - m_t) + F m_loc."""
    result, (mean, _, evidence) = fit(), naive(Constants())
    expected = SHARE * PRIOR_PRECISION * (mean - PRIOR_MEAN) + evidence * mean
    assert relative_error(result.natural["precision_mean"], expected) < 1e-5


@pytest.mark.parametrize(
    "changed",
    [{"momentum_decay": 0.89}, {"squared_decay": 0.99}, {"epsilon": 1e-7}, {"step_size": 0.006}, {"pull": 0.4}],
    ids=lambda changed: next(iter(changed)),
)
def test_another_constant_would_show(changed: dict[str, float]) -> None:
    """The comparison can tell every constant from its neighbour, at one scale of the gradient at least."""
    errors = []
    for scale, pull in ((1e-7, 0.0), (0.1, PULL), (1.0, PULL)):
        mean, _, _ = naive(replace(Constants(pull=pull), **changed), scale)
        errors.append(relative_error(local_mean(fit(scale, pull)) - PRIOR_MEAN, mean - PRIOR_MEAN))
    assert max(errors) > 4e-3


def test_a_run_starts_without_moments() -> None:
    state = adam.build(LinearLoss()).initial_state()
    assert {name: array.tolist() for name, array in state.items()} == {
        "momentum": [0.0] * 3,
        "squared": [0.0] * 3,
        "steps": 0,
    }


def test_defaults_are_those_of_the_algorithm() -> None:
    primitive = adam.build(LinearLoss())
    assert (primitive.batch_size, primitive.step_size, primitive.pull, primitive.num_threads) == (100, 0.005, 0.3, 1)
