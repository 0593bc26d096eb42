import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, deviations, example_records
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.layers.layout import Weights
from streaming_vb.likelihoods.normal import Normal
from streaming_vb.models import vae
from streaming_vb.models.vae import VAE
from streaming_vb.types import Records

MODEL = vae.example()


def weights_of(model: VAE, with_variance: bool = False, scale: float = 1.0) -> Weights:
    """Those of the prior, or further from 0, where q(z | x) is further from p(z)."""
    moments = model.family.moments(model.prior(0))
    mean, variance = (torch.from_numpy(array.astype(np.float32)) for array in (scale * moments.mean, moments.variance))
    return Weights(model.layout.views(mean), model.layout.views(variance) if with_variance else None)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_decoder_mirrors_the_encoder() -> None:
    model = VAE(10, hidden=(7, 5), latent=3)
    assert [(layer.num_inputs, layer.num_outputs) for layer in model.encoder] == [(10, 7), (7, 5), (5, 6)]
    assert [(layer.num_inputs, layer.num_outputs) for layer in model.decoder] == [(3, 5), (5, 7), (7, 10)]


def test_a_normal_likelihood_doubles_the_outputs() -> None:
    assert VAE(10, hidden=(5,), likelihood=Normal()).decoder[-1].num_outputs == 20


def test_prior_variance_is_a_tenth_over_the_number_of_inputs() -> None:
    moments = MODEL.family.moments(MODEL.prior(0))
    variance = MODEL.layout.views(torch.from_numpy(moments.variance))
    for layer in (*MODEL.encoder, *MODEL.decoder):
        for name in (layer.weight, layer.bias):
            np.testing.assert_allclose(variance[name], 0.1 / layer.num_inputs)


def test_the_centre_of_the_prior_is_uniform_within_one_over_the_root_of_the_inputs() -> None:
    model = VAE(50, hidden=(400,), latent=2)
    mean = model.layout.views(torch.from_numpy(model.family.mean(model.prior(0))))
    scaled = (mean["encoder.0.weight"] * np.sqrt(50)).numpy().reshape(-1, 1)
    assert np.abs(scaled).max() <= 1
    assert deviations(scaled, np.asarray(0.0)) < STANDARD_ERRORS
    assert deviations(scaled**2, np.asarray(1 / 3)) < STANDARD_ERRORS


def test_terms_have_one_value_per_draw_and_record() -> None:
    x = torch.from_numpy(example_records(MODEL, 4)["x"])
    terms = MODEL.terms(weights_of(MODEL, with_variance=True), {"x": x}, generator(), num_samples=3)
    assert terms.log_likelihood.shape == (3, 4)
    assert terms.kl_latent.shape == (4,)


def test_kl_of_the_latents_equals_that_of_torch() -> None:
    weights, x = weights_of(MODEL, scale=3.0), torch.from_numpy(example_records(MODEL, 4)["x"])
    mean, log_variance = MODEL.encode(weights, x, generator())
    q = TorchNormal(mean, torch.exp(0.5 * log_variance))
    expected = kl_divergence(q, TorchNormal(torch.zeros(()), torch.ones(()))).sum(-1)
    torch.testing.assert_close(MODEL.terms(weights, {"x": x}, generator()).kl_latent, expected)


def test_draws_of_z_come_from_the_encoder() -> None:
    """Against decoding explicit draws of N(mu, exp(lv)), record by record."""
    weights, x = weights_of(MODEL, scale=3.0), torch.from_numpy(example_records(MODEL, 3)["x"])
    terms = MODEL.terms(weights, {"x": x}, generator(), num_samples=4000)
    mean, log_variance = MODEL.encode(weights, x, generator())
    z = TorchNormal(mean, torch.exp(0.5 * log_variance)).expand((3, MODEL.latent))
    torch.manual_seed(5)
    explicit = torch.stack(
        [MODEL.likelihood.log_prob(MODEL.decode(weights, z.sample(), generator()), x) for _ in range(1000)]
    )
    difference = terms.log_likelihood[:1000] - explicit
    assert deviations(difference.double().numpy(), np.asarray(0.0)) < STANDARD_ERRORS
    assert (
        deviations(terms.log_likelihood.double().numpy(), terms.log_likelihood.numpy().mean(0)[::-1]) > STANDARD_ERRORS
    )


def test_the_bound_is_below_the_log_likelihood() -> None:
    """log p(x) = log E_p(z) p(x | z), by brute force."""
    weights, x = weights_of(MODEL), torch.from_numpy(example_records(MODEL, 5)["x"])
    z = torch.randn(20_000, 1, MODEL.latent, generator=generator())
    outputs = MODEL.decode(weights, z.reshape(-1, MODEL.latent), generator()).view(20_000, 1, -1)
    log_likelihood = torch.logsumexp(MODEL.likelihood.log_prob(outputs.expand(-1, 5, -1), x), 0) - np.log(20_000)
    terms = MODEL.terms(weights, {"x": x}, generator(), num_samples=2000)
    assert torch.all(terms.log_likelihood.mean(0) - terms.kl_latent < log_likelihood + 0.02)


@pytest.mark.parametrize("sizes", [{"num_columns": 0}, {"hidden": (5, 0)}, {"latent": 0}])
def test_a_size_below_one_is_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        VAE(**{"num_columns": 3, "hidden": (2,), "latent": 1, **sizes})


def test_a_value_out_of_range_is_named_by_its_place_in_the_stream() -> None:
    records = example_records(MODEL, 5, start=1000)
    x = records["x"].copy()
    x[3, 1] = 0.5
    with pytest.raises(DataError, match=r"record 1003 column 1\b"):
        MODEL.validate(Records(records.interval, {"x": x}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_real_data_must_be_finite_too(value: float) -> None:
    model = VAE(6, hidden=(5,), latent=2, likelihood=Normal())
    records = example_records(model, 5, start=1000)
    x = records["x"] - 0.37
    model.validate(Records(records.interval, {"x": x}))
    x[3, 1] = value
    with pytest.raises(DataError, match=r"record 1003 column 1\b"):
        model.validate(Records(records.interval, {"x": x}))
