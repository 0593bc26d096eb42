"""The frame of a gradient fit: where it starts, what it is scored at, and which noise it draws."""

import math
from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations, example_records, fingerprint, relative_error
from linear_model import LinearLoss, minibatches, records_of

from streaming_vb.errors import ConfigError
from streaming_vb.inference import adam, kronecker, natural_gradient, neural
from streaming_vb.layers import estimators
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.models import mlp, two_layer_vae, vae
from streaming_vb.models.neural import NeuralModel
from streaming_vb.objectives import AbstractObjective, Elbo, ImportanceWeighted, ScoreFunction, Vimco, elbo
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Array, Fit, Moments, NaturalParameters, Records

MODEL = vae.example()
RECORDS = example_records(MODEL, 24)
PRIOR = MODEL.prior(0).astype(np.float32)


class WithUnusedWeights(LinearLoss):
    """Two weights at the end of the vector that nothing depends on."""

    @property
    def layout(self) -> Layout:
        return Layout({**super().layout.shapes, "unused": (2,)})

    def prior(self, seed: int) -> NaturalParameters:
        return self.family.natural(Moments(np.zeros(5), np.ones(5)))


def stay(block: neural.Block, own: tuple[torch.Tensor, ...], number: int) -> None:
    """An update that does not move."""


def fit(
    prior: NaturalParameters,
    served: NaturalParameters,
    seed: int = 1,
    batch_size: int = 10,
    update: neural.Update = stay,
    records: Records = RECORDS,
) -> tuple[NaturalParameters, float]:
    """A fit whose primitive keeps nothing of its own."""
    gradient = torch.zeros(MODEL.layout.num_weights)
    frame = {
        "objective": Elbo(),
        "batch_size": batch_size,
        "gradient": gradient,
        "accumulate": partial(neural.add_gradient, decay=0.0, max_norm=math.inf),
        "own": (gradient,),
        "update": update,
    }
    return neural.fit(MODEL, prior, served, records, seed, **frame)


def first_gradient(served: NaturalParameters, seed: int) -> np.ndarray:
    """Gradient, summed over all records, that the first step of a fit gets."""
    seen: list[np.ndarray] = []

    def update(block: neural.Block, own: tuple[torch.Tensor, ...], number: int) -> None:
        seen.append(block.gradient.numpy() * len(RECORDS))

    fit(PRIOR, served, seed, len(RECORDS), update)
    return seen[0]


def sharpened(natural: NaturalParameters, factor: float) -> NaturalParameters:
    """The same mean, `factor` times the precision."""
    return natural.scale(factor)


def test_a_fit_takes_one_step_per_minibatch() -> None:
    numbers: list[int] = []
    fit(PRIOR, PRIOR, update=lambda block, own, number: numbers.append(number))
    assert len(RECORDS) == 24
    assert numbers == [1, 2, 3]


def test_evidence_is_the_squared_gradient_summed_over_the_steps() -> None:
    total = np.zeros(MODEL.layout.num_weights, np.float32)

    def update(block: neural.Block, own: tuple[torch.Tensor, ...], number: int) -> None:
        nonlocal total
        total = total + block.squared.numpy() * (10, 10, 4)[number - 1]

    natural, _ = fit(PRIOR, PRIOR, update=update)
    np.testing.assert_allclose(natural["precision"], total, rtol=1e-6)


def test_a_fit_that_does_not_move_confirms_the_prior_mean() -> None:
    natural, _ = fit(PRIOR, PRIOR)
    np.testing.assert_allclose(natural["precision_mean"], natural["precision"] * MODEL.family.mean(PRIOR), rtol=1e-5)


def test_the_share_of_the_prior_does_not_change_where_a_fit_starts() -> None:
    noise = sharpened(PRIOR, 1e6)
    whole, _ = fit(PRIOR, noise)
    part, _ = fit(PRIOR.scale(0.25), noise)
    np.testing.assert_allclose(part["precision"], whole["precision"], rtol=1e-3)


def test_noise_is_drawn_from_the_served_posterior_and_not_from_the_prior() -> None:
    quiet = [first_gradient(sharpened(PRIOR, 1e10), seed) for seed in range(30)]
    noisy = [first_gradient(sharpened(PRIOR, 0.1), seed) for seed in range(30)]
    assert np.std(noisy, axis=0).mean() > 1.5 * np.std(quiet, axis=0).mean()


def test_the_gradient_is_that_of_the_bound_under_sampled_weights() -> None:
    """Local reparameterization against autograd through explicit weight draws, one draw per record and repetition."""
    local = np.stack([first_gradient(PRIOR, seed) for seed in range(400)])
    moments = MODEL.family.moments(PRIOR)
    mean, variance = torch.from_numpy(moments.mean), torch.from_numpy(moments.variance)
    generator, x = torch.Generator().manual_seed(3), torch.from_numpy(RECORDS["x"])
    explicit = []
    for _ in range(400):
        leaf = mean.clone().requires_grad_()
        flat = leaf + variance.sqrt() * torch.randn(mean.shape, generator=generator)
        loss = -elbo(MODEL.terms(Weights(MODEL.layout.views(flat)), {"x": x}, generator)).sum()
        explicit.append(torch.autograd.grad(loss, leaf)[0].numpy())
    difference = local - np.stack(explicit)
    assert deviations(difference.astype(np.float64), np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(local.astype(np.float64), np.asarray(0.0)) > STANDARD_ERRORS


def test_the_score_is_the_elbo_at_the_mean_of_the_snapshot() -> None:
    mean = torch.from_numpy(MODEL.family.mean(PRIOR))
    x = torch.from_numpy(RECORDS["x"])
    terms = MODEL.terms(Weights(MODEL.layout.views(mean)), {"x": x}, torch.Generator().manual_seed(0), num_samples=2000)
    expected = float(elbo(terms).mean())
    scores = np.array([fit(PRIOR, PRIOR, seed)[1] for seed in range(200)])
    assert deviations(scores, np.asarray(expected)) < STANDARD_ERRORS


def test_long_intervals_are_scored_in_parts() -> None:
    records = example_records(MODEL, 2500)
    _, score = fit(PRIOR, PRIOR, batch_size=2500, records=records)
    assert np.isfinite(score)


def test_threads_are_those_asked_for_during_a_fit_and_restored_after_it() -> None:
    before = torch.get_num_threads()
    with neural.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_repeated_fits_on_the_same_records_raise_the_elbo() -> None:
    primitive = natural_gradient.build(MODEL, batch_size=8)
    posterior, state, scores = MODEL.prior(0), primitive.initial_state(), []
    for seed in range(40):
        wire = posterior.astype(np.float32)
        fit = primitive(wire, wire, state, RECORDS, seed)
        posterior, state = MODEL.family.add(posterior, fit.natural), fit.fit_state
        scores.append(fit.elbo)
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.3


def fits_on_clean_and_dirty_memory(model: NeuralModel, records: Records, monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """Two fits: on fresh memory, and on memory in which somebody left NaN."""
    primitive, prior = natural_gradient.build(model, batch_size=8), model.prior(0).astype(np.float32)
    fits = []
    for filling in (0.0, np.nan):
        fill = partial(np.full_like, fill_value=filling, subok=False)
        monkeypatch.setattr(neural, "empty_like", lambda array, dtype=None, fill=fill: fill(array, dtype=dtype))
        fits.append(primitive(prior, prior, primitive.initial_state(), records, 1))
    return fits


def test_a_fit_does_not_read_memory_that_it_has_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, dirty = fits_on_clean_and_dirty_memory(MODEL, RECORDS, monkeypatch)
    assert fingerprint(clean.natural, clean.fit_state) == fingerprint(dirty.natural, dirty.fit_state)


def test_weights_that_no_layer_uses_get_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    for fit in fits_on_clean_and_dirty_memory(WithUnusedWeights(), records_of(24), monkeypatch):
        np.testing.assert_array_equal(fit.natural["precision"][3:], [0.0, 0.0])
        assert np.all(fit.natural["precision"][:3] > 0)


every_rule = pytest.mark.parametrize("module", [natural_gradient, adam], ids=["natural gradient", "adam"])


def one_fit(
    model: NeuralModel,
    records: Records,
    module: ModuleType = natural_gradient,
    objective: AbstractObjective = Elbo(),
    batch_size: int | None = None,
    max_norm: float = math.inf,
    prior: NaturalParameters | None = None,
) -> Fit:
    """A fit from the prior, in one step unless there is a batch size."""
    primitive = module.build(
        model, batch_size=batch_size or len(records), objective=objective, max_norm=max_norm, pull=0.0
    )
    prior = (prior or model.prior(0)).astype(np.float32)
    return primitive(prior, prior, primitive.initial_state(), records, 1)


def mean_gradient(result: Fit, module: ModuleType = natural_gradient) -> Array:
    """Of the only minibatch of a fit, shortened if it was: from the momentum, which was zero before."""
    return result.fit_state["momentum"] / (1 - module.MOMENTUM)


@every_rule
def test_a_mean_gradient_longer_than_the_largest_norm_is_shortened_to_it(module: ModuleType) -> None:
    ((gradient, _, size),) = minibatches(24, 24)
    expected, norm = gradient / size, float(np.linalg.norm(gradient / size))
    for max_norm in (0.001, 0.5 * norm, 0.99 * norm):
        shortened = mean_gradient(one_fit(LinearLoss(), records_of(24), module, max_norm=max_norm), module)
        assert np.linalg.norm(shortened) == pytest.approx(max_norm, rel=1e-5)
        assert relative_error(shortened, max_norm / norm * expected) < 1e-5


@every_rule
def test_a_shorter_mean_gradient_is_not_touched(module: ModuleType) -> None:
    ((gradient, _, size),) = minibatches(24, 24)
    max_norm = 1.01 * float(np.linalg.norm(gradient / size))
    limited, free = (one_fit(LinearLoss(), records_of(24), module, max_norm=norm) for norm in (max_norm, math.inf))
    assert fingerprint(limited.natural, limited.fit_state) == fingerprint(free.natural, free.fit_state)


def test_the_norm_is_that_of_all_layers_together() -> None:
    shortened = mean_gradient(one_fit(MODEL, RECORDS, max_norm=0.05))
    assert np.linalg.norm(shortened) == pytest.approx(0.05, rel=1e-5)
    assert np.linalg.norm(mean_gradient(one_fit(MODEL, RECORDS))) > 0.1


def test_every_minibatch_is_shortened_by_itself() -> None:
    """Momentum 0.9 of gradients, all of which are longer."""
    expected = np.zeros(3)
    for gradient, _, _ in minibatches(10, 4):
        expected = 0.9 * expected + 0.1 * 0.01 * gradient / np.linalg.norm(gradient)
    found = one_fit(LinearLoss(), records_of(10), batch_size=4, max_norm=0.01).fit_state["momentum"]
    assert relative_error(found, expected) < 1e-5


def test_a_shortened_gradient_changes_neither_evidence_nor_curvature() -> None:
    limited, free = (one_fit(LinearLoss(), records_of(24), batch_size=10, max_norm=norm) for norm in (1e-3, math.inf))
    assert not np.array_equal(limited.fit_state["momentum"], free.fit_state["momentum"])
    assert fingerprint(limited.fit_state["curvature"]) == fingerprint(free.fit_state["curvature"])
    assert fingerprint(limited.natural["precision"]) == fingerprint(free.natural["precision"])


def test_a_gradient_of_zero_and_weights_that_nothing_uses_can_be_shortened() -> None:
    for model, scale in ((LinearLoss(), 0.0), (WithUnusedWeights(), 1.0)):
        result = one_fit(model, records_of(24, scale), max_norm=1e-3)
        assert all(np.isfinite(array).all() for array in (*result.natural.arrays.values(), *result.fit_state.values()))


@every_rule
@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_largest_norm_that_is_not_above_zero_is_refused(module: ModuleType, max_norm: float) -> None:
    with pytest.raises(ConfigError, match="norm must be above 0"):
        module.build(MODEL, max_norm=max_norm)


def test_the_largest_norm_is_part_of_the_settings_where_there_is_one() -> None:
    assert natural_gradient.build(MODEL, max_norm=5.0).describe()["max_norm"] == 5.0
    assert "max_norm" not in natural_gradient.build(MODEL).describe()


POINT = replace(MODEL, estimator=estimators.mean)
"""Weights without noise: what is random is z alone."""


def prior_without_latent_variance() -> NaturalParameters:
    """Encoders with log variance -60, so that all draws of z are the same."""
    moments = POINT.family.moments(POINT.prior(0))
    views = POINT.layout.views(torch.from_numpy(mean := moments.mean.copy()))
    last = POINT.encoder[-1]
    views[last.weight][POINT.latent :] = 0.0
    views[last.bias][POINT.latent :] = -60.0
    return POINT.family.natural(Moments(mean, moments.variance))


@pytest.mark.parametrize("num_samples", [2, 5])
@every_rule
def test_identical_draws_of_a_record_count_as_one(module: ModuleType, num_samples: int) -> None:
    """A record is S rows of the decoder, and one of the encoder; gradient and evidence are per record."""
    prior = prior_without_latent_variance()
    one, several = (
        one_fit(POINT, RECORDS, module, Elbo(number), batch_size=10, prior=prior) for number in (1, num_samples)
    )
    for name in one.natural.arrays:
        np.testing.assert_allclose(several.natural[name], one.natural[name], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(several.fit_state["momentum"], one.fit_state["momentum"], rtol=1e-3, atol=1e-6)


OBJECTIVES = (Elbo(3), Elbo(kl_weight=0.5), ScoreFunction(3), ImportanceWeighted(3, doubly=False), Vimco(3))


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        *((POINT, objective) for objective in (*OBJECTIVES, ImportanceWeighted(3))),
        *((replace(two_layer_vae.example(), estimator=estimators.mean), objective) for objective in OBJECTIVES),
        (replace(mlp.example(), estimator=estimators.mean), Elbo(3)),
    ],
    ids=lambda value: value.name if isinstance(value, AbstractObjective) else value.describe()["model"],
)
def test_the_tape_gives_the_gradient_of_every_objective(model: NeuralModel, objective: AbstractObjective) -> None:
    """Against autograd through the weights, with the same draws of z."""
    records = example_records(model, 24)
    leaf = torch.from_numpy(model.family.mean(model.prior(0).astype(np.float32)).astype(np.float32)).requires_grad_()
    fields = {name: torch.from_numpy(records[name].astype(np.float32)) for name in model.fields}
    noise = torch_generator(1, "noise")
    terms = model.terms(
        Weights(model.layout.views(leaf)), fields, noise, objective.num_samples, attached=objective.attached
    )
    (expected,) = torch.autograd.grad(-objective.surrogate(terms).mean(), leaf)
    assert relative_error(mean_gradient(one_fit(model, records, objective=objective)), expected.numpy()) < 1e-4


@pytest.mark.parametrize("module", [natural_gradient, adam, kronecker], ids=lambda module: module.__name__[-9:])
def test_a_bound_over_draws_needs_layers_that_share_their_weights(module: ModuleType) -> None:
    for bound in (ImportanceWeighted(), Vimco()):
        for estimator in (estimators.shared, estimators.mean):
            module.build(replace(MODEL, estimator=estimator), objective=bound)
        for estimator in (estimators.local, estimators.separate, estimators.flipout):
            with pytest.raises(ConfigError, match=f"not a bound.*{estimator.__name__}") as raised:
                module.build(replace(MODEL, estimator=estimator), objective=bound)
            assert "\n" not in str(raised.value)
    for objective in (Elbo(5), ScoreFunction(5)):
        module.build(MODEL, objective=objective)
