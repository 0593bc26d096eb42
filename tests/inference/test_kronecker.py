"""Fits against the update formulas, written naively in float64: full Kronecker products and explicit inverses."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import fingerprint, relative_error
from sklearn.datasets import load_digits

from streaming_vb.errors import ConfigError, NumericalError
from streaming_vb.inference import kronecker
from streaming_vb.layers.estimators import mean
from streaming_vb.likelihoods.normal import Normal
from streaming_vb.models import convolutional_vae
from streaming_vb.models.mlp import MLP
from streaming_vb.models.vae import VAE
from streaming_vb.objectives import Elbo, ImportanceWeighted
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.forgetting import Window
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.run import Step, run
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Array, Fit, FitState, Interval, Lease, Moments, Records, Snapshot

MODEL = MLP(2, hidden=(3,), estimator=mean)
"""Two linear layers, and no noise: gradients are known for every step."""
BATCH, STEP, SHARE = 2, 0.7, 0.25
NUM_RECORDS = 25
"""Twelve full minibatches and a short one: the Cholesky factors are computed twice."""
LAYERS = ("layer.0", "layer.1")


@dataclass(frozen=True)
class Constants:
    """Those of the module, unless they are replaced."""

    momentum: float = kronecker.MOMENTUM
    factor_window: float = kronecker.FACTOR_WINDOW
    damping: float = kronecker.DAMPING
    trust_region: float = kronecker.TRUST_REGION
    factorization_period: int = kronecker.FACTORIZATION_PERIOD
    step_size: float = STEP


DEFAULT = Constants()
ACTIVE = Constants(factor_window=10, damping=0.05, trust_region=1e-4)
INACTIVE = Constants(factor_window=10, damping=20, trust_region=1e4)


@dataclass
class State:
    """Fit state in float64: momentum [P], weighted sums of a a' and u u' of each layer, and the sum of weights."""

    momentum: Array
    inputs: dict[str, Array]
    gradients: dict[str, Array]
    mass: float


def start() -> State:
    sizes = {"layer.0": (3, 3), "layer.1": (4, 2)}
    return State(
        np.zeros(MODEL.layout.num_weights),
        {name: np.zeros((inputs, inputs)) for name, (inputs, _) in sizes.items()},
        {name: np.zeros((outputs, outputs)) for name, (_, outputs) in sizes.items()},
        0.0,
    )


def table(seed: int = 0, scale: float = 1.0) -> Records:
    """x [n, 2] and y [n]; the scale is that of the gradients."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0.5, 1.0, (NUM_RECORDS, 2)).astype(np.float32)
    y = (scale * (x @ [1.5, -0.5] + generator.normal(0, 0.5, NUM_RECORDS))).astype(np.float32)
    return Records(Interval("table", "pass-0", 0, NUM_RECORDS), {"x": x, "y": y})


def prior_moments() -> Moments:
    """Weights of both signs and unequal precisions."""
    generator = np.random.default_rng(5)
    size = MODEL.layout.num_weights
    return Moments(generator.normal(0, 0.7, size), 1 / generator.uniform(5, 50, size))


def backward(m: Array, x: Array, y: Array) -> dict[str, tuple[Array, Array]]:
    """(a, 1) [M, I + 1] and u [M, O] of each layer, by hand."""
    weights = {name: view.numpy() for name, view in MODEL.layout.views(torch.from_numpy(m)).items()}
    below = np.column_stack([x, np.ones(len(x))])
    b = x @ weights["layer.0.weight"].T + weights["layer.0.bias"]
    above = np.column_stack([np.maximum(b, 0), np.ones(len(x))])
    outputs = torch.from_numpy(above[:, :-1] @ weights["layer.1.weight"].T + weights["layer.1.bias"])
    loss = -Normal().log_prob(outputs.requires_grad_(), torch.from_numpy(y)[:, None]).sum()
    u = torch.autograd.grad(loss, outputs)[0].numpy()
    return {"layer.0": (below, (u @ weights["layer.1.weight"]) * (b > 0)), "layer.1": (above, u)}


def flat(matrices: dict[str, Array]) -> Array:
    """[P] from matrices [O, I + 1] whose last column is the bias."""
    return np.concatenate([part.ravel() for matrix in matrices.values() for part in (matrix[:, :-1], matrix[:, -1])])


def damped(a: Array, g: Array, damping: float) -> Array:
    """(G + sqrt(d) / pi I) (x) (A + pi sqrt(d) I)."""
    pi = math.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    a = a + pi * math.sqrt(damping) * np.eye(len(a))
    g = g + math.sqrt(damping) / pi * np.eye(len(g))
    return np.kron(g, a)


def naive(c: Constants, state: State, records: Records) -> tuple[Array, State, Array, list[float]]:
    """m_loc, the fit state, F and nu of every step, line by line."""
    x, y = records["x"].astype(float), records["y"].astype(float)
    m, v, mass = prior_moments().mean.copy(), state.momentum, state.mass
    inputs, gradients, evidence, shortenings = dict(state.inputs), dict(state.gradients), np.zeros(len(v)), []
    inverse: dict[str, Array] = {}
    for step, first in enumerate(range(0, len(x), BATCH)):
        rows = backward(m, x[first : first + BATCH], y[first : first + BATCH])
        size = len(x[first : first + BATCH])
        decay = math.exp(-size / c.factor_window)
        mass = decay * mass + 1 - decay
        gradient, natural = {}, {}
        for name, (a, u) in rows.items():
            inputs[name] = decay * inputs[name] + (1 - decay) * sum(np.outer(row, row) for row in a) / size
            gradients[name] = decay * gradients[name] + (1 - decay) * sum(np.outer(row, row) for row in u) / size
            if step % c.factorization_period == 0:
                inverse[name] = np.linalg.inv(damped(inputs[name] / mass, gradients[name] / mass, c.damping / size))
            gradient[name] = u.T @ a / size
            natural[name] = (inverse[name] @ gradient[name].ravel()).reshape(gradient[name].shape)
        inner = flat(natural) @ flat(gradient)
        shortenings.append(min(1.0, math.sqrt(c.trust_region * size / inner)))
        v = c.momentum * v + shortenings[-1] * flat(natural)
        m = m - c.step_size * v
        evidence = evidence + flat({name: (u**2).T @ a**2 for name, (a, u) in rows.items()})
    return m, State(v, inputs, gradients, mass), evidence, shortenings


def use(constants: Constants, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put constants into the module."""
    for name in ("momentum", "factor_window", "damping", "trust_region", "factorization_period"):
        monkeypatch.setattr(kronecker, name.upper(), getattr(constants, name))


def fit(state: FitState | None = None, records: Records | None = None, objective: Elbo = Elbo()) -> Fit:
    primitive = kronecker.build(MODEL, batch_size=BATCH, step_size=STEP, objective=objective)
    posterior = MODEL.family.natural(prior_moments())
    served, state = posterior.astype(np.float32), state or primitive.initial_state()
    return primitive(posterior.scale(SHARE).astype(np.float32), served, state, records or table(), seed=1)


def local_mean(result: Fit) -> Array:
    """Mean of prior + delta."""
    moments = prior_moments()
    precision = SHARE / moments.variance
    total = precision * moments.mean + result.natural["precision_mean"]
    return total / (precision + result.natural["precision"])


def error_of_move(result: Fit, expected: Array) -> float:
    begin = prior_moments().mean
    return relative_error(local_mean(result) - begin, expected - begin)


def assert_same_state(actual: FitState, expected: State) -> None:
    assert relative_error(actual["momentum"], expected.momentum) < 1e-3
    assert float(actual["mass"]) == pytest.approx(expected.mass, rel=1e-5)
    for name in LAYERS:
        assert relative_error(actual[f"{name}.inputs"], expected.inputs[name]) < 1e-4
        assert relative_error(actual[f"{name}.gradients"], expected.gradients[name]) < 1e-3


@pytest.mark.parametrize(
    "constants", [DEFAULT, ACTIVE, INACTIVE], ids=["as they are", "active trust region", "inactive trust region"]
)
def test_two_fits_are_the_formulas_line_by_line(constants: Constants, monkeypatch: pytest.MonkeyPatch) -> None:
    use(constants, monkeypatch)
    expected, result = start(), None
    for records in (table(0), table(1, scale=2.0)):
        mean, expected, evidence, _ = naive(constants, expected, records)
        result = fit(result and result.fit_state, records)
        assert error_of_move(result, mean) < 1e-4
        assert_same_state(result.fit_state, expected)
        assert relative_error(result.natural["precision"], evidence) < 1e-4


def test_the_cases_cover_the_trust_region_on_both_sides() -> None:
    for constants, is_active in ((ACTIVE, True), (INACTIVE, False)):
        *_, shortenings = naive(constants, start(), table())
        assert len(shortenings) == 13 > constants.factorization_period
        assert all((shortening < 1) == is_active for shortening in shortenings)


@pytest.mark.parametrize(
    "changed",
    [
        {"momentum": 0.89},
        {"factor_window": 20},
        {"damping": 24},
        {"trust_region": 1.2e-4},
        {"factorization_period": 11},
        {"step_size": 0.75},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_constant_would_show(changed: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for constants in (ACTIVE, INACTIVE):
        use(constants, monkeypatch)
        mean, *_ = naive(replace(constants, **changed), start(), table())
        errors.append(error_of_move(fit(), mean))
    assert max(errors) > 4e-3


def test_the_delta_is_computed_from_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """d(precision mean) = share S_t (m_loc - m_t) + F m_loc."""
    use(ACTIVE, monkeypatch)
    result, (mean, _, evidence, _), moments = fit(), naive(ACTIVE, start(), table()), prior_moments()
    expected = SHARE / moments.variance * (mean - moments.mean) + evidence * mean
    assert relative_error(result.natural["precision_mean"], expected) < 1e-4


@pytest.mark.parametrize("constants", [ACTIVE, INACTIVE], ids=["active", "inactive"])
def test_identical_draws_count_as_one(constants: Constants, monkeypatch: pytest.MonkeyPatch) -> None:
    use(constants, monkeypatch)
    once, thrice = fit(), fit(objective=Elbo(3))
    for name, array in once.natural.arrays.items():
        assert relative_error(thrice.natural[name], array) < 1e-4, name
    for name, array in once.fit_state.items():
        assert relative_error(thrice.fit_state[name], array) < 1e-3, name


def test_a_run_starts_without_momentum_and_with_factors_of_no_mass() -> None:
    state = kronecker.build(MODEL).initial_state()
    assert {name: array.shape for name, array in state.items()} == {
        "momentum": (17,),
        "layer.0.inputs": (3, 3),
        "layer.0.gradients": (3, 3),
        "layer.1.inputs": (4, 4),
        "layer.1.gradients": (2, 2),
        "mass": (),
    }
    assert not any(array.any() for array in state.values())


def outputs_after_a_fit(change: Array, monkeypatch: pytest.MonkeyPatch) -> Array:
    """Outputs of a linear model for its records, when inputs are x T' and the weights start at W T^-1."""
    use(replace(INACTIVE, damping=1e-6), monkeypatch)
    model = MLP(2, hidden=(), estimator=mean)
    records = table()
    x = (records["x"] @ change.T).astype(np.float32)
    begin = np.array([[0.3, -0.2], [0.1, 0.4]]) @ np.linalg.inv(change)
    prior = model.family.natural(Moments(np.append(begin, [0.1, 0.2]), np.full(6, 0.1))).astype(np.float32)
    primitive = kronecker.build(model, batch_size=25, step_size=0.5)
    state: FitState = primitive.initial_state()
    for seed in range(3):
        found = primitive(prior, prior, state, Records(records.interval, {**records.fields, "x": x}), seed)
        prior, state = model.family.add(prior.astype(np.float64), found.natural).astype(np.float32), found.fit_state
    weights = model.family.mean(prior.astype(np.float64))
    return x @ weights[:4].reshape(2, 2).T + weights[4:]


def test_a_step_does_not_depend_on_the_coordinates_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to damping."""
    plain = outputs_after_a_fit(np.eye(2), monkeypatch)
    assert relative_error(outputs_after_a_fit(np.array([[3.0, 1.0], [-0.5, 0.2]]), monkeypatch), plain) < 0.01


def test_a_cautious_fit_moves_less_even_where_the_trust_region_shortens_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(replace(ACTIVE, momentum=0.0), monkeypatch)
    model, records = MLP(2, hidden=(), estimator=mean), table()
    prior = model.prior(0).astype(np.float32)
    primitive = kronecker.build(model, batch_size=NUM_RECORDS)
    plain, cautious = (
        each(prior, prior, each.initial_state(), records, 1) for each in (primitive, primitive.cautious())
    )
    begin = model.family.mean(prior.astype(np.float64))
    moves = [
        model.family.mean(model.family.add(prior.astype(np.float64), found.natural)) - begin
        for found in (plain, cautious)
    ]
    assert relative_error(10 * moves[1], moves[0]) < 1e-3


def test_the_objective_changes_with_the_records() -> None:
    primitive = kronecker.build(MODEL, objective=Elbo(warm_up=100))
    assert primitive.after(25).objective == Elbo(kl_weight=0.25)
    assert kronecker.build(MODEL).after(25).objective == Elbo()


def test_layers_that_are_not_linear_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.0, .*natural-gradient") as raised:
        kronecker.build(convolutional_vae.example())
    assert "\n" not in str(raised.value)


def test_a_bound_over_draws_with_weights_of_their_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a bound"):
        kronecker.build(VAE(3), objective=ImportanceWeighted())


def broken(state: FitState, records: Records) -> str:
    """What a worker reports of a fit from a fit state."""
    source = ArraySource(records.fields, seed=None)
    (interval,) = list(source.intervals({}, NUM_RECORDS))
    prior = MODEL.prior(0).astype(np.float32)
    update = LocalUpdate("run", MODEL, kronecker.build(MODEL), source, prior, Window(MODEL.family), 0)
    with pytest.raises(NumericalError, match="not finite") as raised:
        update(Lease(interval, 0, 0, 1.0, 1.0), Snapshot(0, 0, prior, state))
    return str(raised.value)


@pytest.mark.parametrize("name", ["layer.0.inputs", "layer.1.gradients"])
@pytest.mark.parametrize("value", [math.nan, -1e6], ids=["NaN", "negative"])
def test_a_factor_without_a_root_is_a_fit_that_is_not_finite(name: str, value: float) -> None:
    """Not an exception of LAPACK, and not a step in some direction."""
    state = dict(fit().fit_state)
    assert np.isfinite(state[name]).all()
    state[name] = value * np.eye(len(state[name]), dtype=np.float32)
    assert "momentum" in broken(state, table())


def test_targets_too_large_for_the_format_are_a_fit_that_is_not_finite() -> None:
    fields = table().fields
    records = Records(table().interval, {**fields, "y": np.full_like(fields["y"], 1e30)})
    assert "precision" in broken(kronecker.build(MODEL).initial_state(), records)


DIGITS = VAE(64, hidden=(24,), latent=4)


def stream(workers: int, directory: Path | None = None, **changed: Any) -> Iterator[Step]:
    """Two passes over binarized digits."""
    source = BinarizedSource(ArraySource({"x": load_digits().data / 16}, passes=2), seed=0)
    settings = Settings(**{"batch_size": 50, "local_steps": 4, "ramp": 400, **changed})
    primitive = kronecker.build(DIGITS, batch_size=50)
    return run(DIGITS, source, settings, workers=workers, primitive=primitive, run_dir=directory)


@pytest.mark.parametrize("workers", [1, 3])
def test_it_learns_digits(workers: int) -> None:
    steps = list(stream(workers))
    assert {step.status for step in steps} == {"merged"}
    scores = [step.elbo for step in steps]
    assert np.mean(scores[-4:]) > np.mean(scores[:2]) + 10


def test_the_fit_state_survives_a_file_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    *_, whole = stream(1, mode="ordered", round_size=3)
    stopped = stream(1, tmp_path, mode="ordered", round_size=3)
    last = [next(stopped) for _ in range(5)][-1]
    stopped.close()
    loaded = snapshot.load(tmp_path / "posterior.safetensors").state
    assert fingerprint(loaded.fit_state) == fingerprint(last.state().fit_state)
    *_, resumed = stream(3, tmp_path, mode="ordered", round_size=3)
    for found in (resumed.state(), snapshot.load(tmp_path / "posterior.safetensors").state):
        assert fingerprint(found.posterior, found.fit_state) == fingerprint(
            whole.state().posterior, whole.state().fit_state
        )
