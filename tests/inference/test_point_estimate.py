"""Weights without noise: the classic auto-encoder with MAP weights, through every primitive."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from checks import example_records, fingerprint
from sklearn.datasets import load_digits

from streaming_vb.inference import adam, kronecker, natural_gradient
from streaming_vb.layers import estimators
from streaming_vb.models.vae import VAE
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Fit

every_primitive = pytest.mark.parametrize(
    "module", [natural_gradient, adam, kronecker], ids=["natural-gradient", "adam", "kronecker"]
)
POINT = VAE(6, hidden=(5,), latent=2, estimator=estimators.mean)


def fit(module: ModuleType, model: VAE, served_precision: float = 1.0, seed: int = 1) -> Fit:
    """From the prior, with weights served at some times its precision."""
    primitive, prior = module.build(model, batch_size=8), model.prior(0).astype(np.float32)
    records = example_records(model, 20)
    return primitive(prior, prior.scale(served_precision), primitive.initial_state(), records, seed)


def bits(result: Fit) -> str:
    return fingerprint(result.natural, result.fit_state, result.elbo)


@every_primitive
def test_the_fit_does_not_depend_on_the_served_precision(module: ModuleType) -> None:
    assert bits(fit(module, POINT, 0.01)) == bits(fit(module, POINT)) == bits(fit(module, POINT, 1e6))
    noisy = replace(POINT, estimator=estimators.local)
    assert bits(fit(module, noisy, 0.01)) != bits(fit(module, noisy))


@every_primitive
def test_latents_are_still_drawn(module: ModuleType) -> None:
    assert bits(fit(module, POINT, seed=1)) != bits(fit(module, POINT, seed=2))


@every_primitive
def test_it_learns_digits(module: ModuleType) -> None:
    source = BinarizedSource(ArraySource({"x": load_digits().data / 16}, passes=2), seed=0)
    model = VAE(64, hidden=(24,), latent=4, estimator=estimators.mean)
    settings = Settings(batch_size=25, local_steps=8)
    steps = list(run(model, source, settings, primitive=module.build(model, batch_size=25)))
    assert {step.status for step in steps} == {"merged"}
    scores = [step.elbo for step in steps]
    assert np.mean(scores[-4:]) > np.mean(scores[:2]) + 12
    assert steps[-1].state().posterior["precision"].min() > 0
