"""Three ways to train one auto-encoder on the same minibatches from the same weights, for figures that follow them.

===================  ===========================================================  =================================
course               weights                                                      what a step descends
===================  ===========================================================  =================================
plain                points (Kingma and Welling 2014)                             minus the ELBO, by Adam
natural_gradient     a normal each; every minibatch is one interval of a stream   the library's default local fit
variational_dropout  points, and the variance alpha of the noise on every hidden  minus the ELBO plus KL / N of the
                     unit of the encoder (Kingma et al. 2015, type A)             noise, by Adam
===================  ===========================================================  =================================
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from streaming_vb.evaluation.held_out import mean_weights
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.variational_dropout import TypeA
from streaming_vb.models.neural import Minibatch
from streaming_vb.models.vae import VAE, draw_normal, forward
from streaming_vb.objectives import elbo
from streaming_vb.reproduce import training
from streaming_vb.reproduce.images import HELD_OUT_SEED, Images
from streaming_vb.seeding import torch_generator
from streaming_vb.streaming.run import Step, run
from streaming_vb.streaming.settings import Settings

Course = Iterator[Callable[[], Weights]]
"""One item per minibatch learned; called before the next, it gives the mean weights of that moment."""

ALPHA = 0.25
"""Of the dropout noise at the start, that of dropout with rate 0.2."""


class Bound(NamedTuple):
    """Means over images, nats per image: the ELBO, KL(q(z | x) || p(z)), and E[log p(x | z)]."""

    elbo: float
    kl: float
    reconstruction: float


def measure(model: VAE, weights: Weights, x: Tensor) -> Bound:
    """The bound on x [n, D], with the same draw of z whatever the weights are."""
    with torch.no_grad():
        terms = model.terms(weights, {"x": x}, torch_generator(HELD_OUT_SEED, "latent draws"))
    return Bound(float(elbo(terms).mean()), float(terms.kl_latent.mean()), float(terms.log_likelihood.mean()))


def plain(model: VAE, images: Images, records: int, seed: int, *, batch_size: int, rate: float) -> Course:
    """Auto-encoding variational Bayes with point weights."""
    parameters = training.prior_centre(model, seed)
    generator = torch_generator(seed, "plain")

    def loss(minibatch: Minibatch) -> Tensor:
        return -elbo(model.terms(Weights(parameters), minibatch, generator)).mean()

    return _by_adam(parameters, loss, images, records, seed, batch_size=batch_size, rate=rate)


def natural_gradient(
    model: VAE, images: Images, records: int, seed: int, *, batch_size: int, local_steps: int = 1
) -> Course:
    """The recursion with the library's defaults, but one minibatch per interval; one item per interval."""
    settings = Settings(records=records, seed=seed, batch_size=batch_size, local_steps=local_steps)
    for step in run(model, images.stream(records, seed), settings):
        yield partial(served_mean, model, step)


def variational_dropout(
    model: VAE, images: Images, records: int, seed: int, *, batch_size: int, rate: float, alpha: float = ALPHA
) -> Course:
    """Gaussian dropout on the last hidden activations of the encoder, its alpha learned; N of KL / N is `records`."""
    *inner, last = model.encoder
    noisy = TypeA(last.name, last.num_inputs, last.num_outputs)
    log_alpha = torch.full((last.num_inputs,), math.log(alpha), requires_grad=True)
    parameters = training.prior_centre(model, seed) | {noisy.log_alpha: log_alpha}
    generator = torch_generator(seed, "variational dropout")

    def loss(minibatch: Minibatch) -> Tensor:
        weights, x = Weights(parameters), minibatch["x"]
        hidden = torch.relu(forward(tuple(inner), weights, x, generator, None))
        mean, log_variance = noisy(weights, hidden, generator).chunk(2, dim=-1)
        (z,) = draw_normal(mean, log_variance, 1, generator, attached=True)
        reconstruction = model.likelihood.log_prob(model.decode(weights, z, generator), x)
        kl_latent = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
        return noisy.kl(weights) / records + (kl_latent - reconstruction).mean()

    return _by_adam(parameters, loss, images, records, seed, batch_size=batch_size, rate=rate)


def served_mean(model: VAE, step: Step) -> Weights:
    """Mean weights of a stream after a step; to be called before the next."""
    return mean_weights(model, step.state().posterior)


def _by_adam(
    parameters: Mapping[str, Tensor],
    loss: Callable[[Minibatch], Tensor],
    images: Images,
    records: int,
    seed: int,
    *,
    batch_size: int,
    rate: float,
) -> Course:
    minibatches = training.minibatches(images.stream(records, seed), records, batch_size)
    for _ in training.adam(parameters, loss, minibatches, rate):
        yield partial(_detached, parameters)


def _detached(parameters: Mapping[str, Tensor]) -> Weights:
    return Weights({name: tensor.detach() for name, tensor in parameters.items()})
