import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from streaming_vb.errors import ConfigError
from streaming_vb.inference import natural_gradient
from streaming_vb.layers.estimators import local, separate
from streaming_vb.layers.layout import Weights
from streaming_vb.likelihoods.bernoulli import Bernoulli
from streaming_vb.likelihoods.normal import Normal
from streaming_vb.models.convolutional_vae import ConvolutionalVAE
from streaming_vb.objectives import Elbo
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings

SIZES = [(8, 8), (28, 28), (7, 9), (5, 6), (1, 1)]


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at_zero(model: ConvolutionalVAE) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in model.layout.shapes.items()}


def digits(passes: int) -> BinarizedSource:
    return BinarizedSource(ArraySource({"x": load_digits().data.astype(np.uint8)}, passes, scale=1 / 16), seed=0)


def independent_pixels() -> float:
    """Nats per digit of one Bernoulli variable per pixel, each with the best probability in hindsight."""
    grey = load_digits().data / 16
    p = grey.mean(0).clip(1e-6, 1 - 1e-6)
    return float((p * np.log(p) + (1 - p) * np.log1p(-p)).sum())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_of_every_size_come_back_as_large_as_they_were(height: int, width: int) -> None:
    model = ConvolutionalVAE(height, width, in_channels=2, channels=(3, 4), hidden=5, latent=2)
    weights = Weights(model.layout.views(torch.randn(model.layout.num_weights, generator=generator())))
    x = torch.rand(6, model.num_columns, generator=generator())
    mean, log_variance = model.encode(weights, x, generator())
    assert mean.shape == log_variance.shape == (6, 2)
    assert model.decode(weights, mean, generator()).shape == (6, 2 * height * width)
    for before, after in (*itertools.pairwise(model.encoder), *itertools.pairwise(model.decoder)):
        assert before.num_outputs == after.num_inputs


def test_the_encoder_halves_and_the_decoder_mirrors_it() -> None:
    model = ConvolutionalVAE(28, 27, in_channels=3)
    encoder = [3 * 28 * 27, 16 * 14 * 14, 32 * 7 * 7, 128, 40]
    assert [model.encoder[0].num_inputs, *(layer.num_outputs for layer in model.encoder)] == encoder
    decoder = [20, *reversed(encoder[:-1])]
    assert [model.decoder[0].num_inputs, *(layer.num_outputs for layer in model.decoder)] == decoder


def test_no_two_layers_share_a_name() -> None:
    model = ConvolutionalVAE(8, 8)
    layers = (*model.encoder, *model.decoder)
    assert len({layer.name for layer in layers}) == len(layers) == 8


def test_the_estimator_is_that_of_every_layer() -> None:
    model: Any = ConvolutionalVAE(8, 8, estimator=separate)
    assert {layer.estimator for layer in (*model.encoder, *model.decoder)} == {separate}


def test_outputs_of_a_likelihood_lie_one_after_the_other_as_it_reads_them() -> None:
    """Outputs are [outputs per column, D], with D channel by channel; seen through the bias of each channel."""
    model = ConvolutionalVAE(4, 3, in_channels=2, channels=(2,), hidden=2, latent=1, likelihood=Normal())
    weights = at_zero(model)
    weights[f"{model.decoder[-1].name}.bias"] = torch.tensor([1.0, 2.0, -1.0, -2.0])
    outputs = model.decode(Weights(weights), torch.zeros(1, 1), generator())
    by_parameter = outputs.view(2, 2, 4 * 3)
    assert torch.equal(by_parameter, torch.tensor([[1.0, 2.0], [-1.0, -2.0]])[..., None].expand(2, 2, 12))
    assert torch.equal(model.likelihood.mean(outputs), torch.tensor([[1.0] * 12 + [2.0] * 12]))


def test_a_pixel_of_the_input_reaches_its_neighbourhood_only() -> None:
    model = ConvolutionalVAE(8, 8, channels=(1,))
    layer = model.encoder[0]
    weights = Weights({f"{layer.name}.weight": torch.ones(1, 1, 3, 3), f"{layer.name}.bias": torch.zeros(1)})
    x = torch.zeros(1, 8, 8)
    x[0, 3, 6] = 1.0
    reached = layer(weights, x.view(1, 64), generator()).view(4, 4)
    assert {(int(row), int(column)) for row, column in reached.nonzero()} == {(1, 3), (2, 3)}


def test_the_description_rebuilds_the_model() -> None:
    model = ConvolutionalVAE(7, 9, 3, (4, 5, 6), 11, 2, Normal(), separate, 0.25)
    description = json.loads(json.dumps(model.describe()))
    assert description == {
        "model": "convolutional-vae",
        "columns": 189,
        "height": 7,
        "width": 9,
        "in_channels": 3,
        "channels": [4, 5, 6],
        "hidden": 11,
        "latent": 2,
        "likelihood": "normal",
        "estimator": "separate",
        "encoder_dropout": 0.25,
    }
    numbers = ("height", "width", "in_channels", "hidden", "latent", "encoder_dropout")
    sizes = {name: description[name] for name in numbers}
    chosen = {"likelihood": {"normal": Normal(), "bernoulli": Bernoulli()}, "estimator": {"separate": separate}}
    parts = {name: choices[description[name]] for name, choices in chosen.items()}
    assert ConvolutionalVAE(**sizes, channels=tuple(description["channels"]), **parts) == model


@pytest.mark.parametrize("size", ["height", "width", "in_channels", "hidden", "latent"])
def test_a_size_below_one_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match=f"convolutional VAE: {size} must be at least 1, got 0"):
        ConvolutionalVAE(**{"height": 4, "width": 4, size: 0})


@pytest.mark.parametrize(("channels", "message"), [((), "at least one convolution"), ((4, 0), "at least 1, got 4,0")])
def test_channels_that_make_no_image_are_refused(channels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=f"convolutional VAE: channels must .*{message}"):
        ConvolutionalVAE(4, 4, channels=channels)


def test_the_elbo_improves_along_a_stream_of_digits() -> None:
    model = ConvolutionalVAE(8, 8, channels=(8, 16), hidden=32, latent=8, estimator=local)
    scores = [step.elbo for step in run(model, digits(2), Settings(records=3_000, local_steps=5))]
    assert scores[-1] > scores[0] + 3


def test_it_learns_more_about_digits_than_independent_pixels_can_tell() -> None:
    """Each interval is scored before it is learned."""
    model = ConvolutionalVAE(8, 8, channels=(16,), hidden=64, latent=4)
    primitive = natural_gradient.build(model, batch_size=25, step_size=0.1, objective=Elbo(warm_up=9_000))
    settings = Settings(records=12_000, batch_size=25, local_steps=10)
    scores = [step.elbo for step in run(model, digits(7), settings, primitive=primitive)]
    assert np.mean(scores[: len(scores) // 4]) < independent_pixels() - 1
    assert np.mean(scores[-len(scores) // 8 :]) > independent_pixels() + 1
