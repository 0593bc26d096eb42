"""The frame of a gradient fit: where it starts, what it is scored at, and which noise it draws."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations, example_records, fingerprint
from linear_model import LinearLoss, records_of

from streaming_vb.inference import natural_gradient, neural
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.models import vae
from streaming_vb.models.neural import NeuralModel
from streaming_vb.objectives import Elbo, elbo
from streaming_vb.types import Fit, Moments, NaturalParameters, Records

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
