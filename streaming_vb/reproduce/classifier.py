"""The classifier of Kingma, Salimans and Welling 2015, section 5: three hidden layers of rectified linear units, noise
on the weights or inputs of every layer, trained by Adam."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from streaming_vb.layers.dropout_divergence import kingma
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.variational_dropout import TypeA, TypeB
from streaming_vb.likelihoods.categorical import Categorical
from streaming_vb.models.mlp import MLP
from streaming_vb.models.neural import Minibatch
from streaming_vb.reproduce import training
from streaming_vb.reproduce.images import Images
from streaming_vb.seeding import torch_generator

HIDDEN_LAYERS = 3
NUM_CLASSES = 10
INPUT_RATE, HIDDEN_RATE = 0.2, 0.5
"""Dropout rates p of the images and of hidden units, as published; the noise has variance alpha = p / (1 - p)."""
GREATEST_ALPHA = 1.0
"""As published: the KL polynomial holds up to there."""


class NoisyLayer(Protocol):
    """A layer as the network calls it; its weights are `name.weight` and `name.bias`."""

    def __call__(self, weights: Weights, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Pre-activations [B, O] of inputs [B, I]."""


class Labelled(NamedTuple):
    """Images x [n, D], grey in [0, 1], and classes y [n]."""

    x: Tensor
    y: Tensor

    def minibatch(self, rows: Tensor) -> Minibatch:
        """The given rows."""
        return {"x": self.x[rows], "y": self.y[rows]}

    def passes(self, count: int, batch_size: int, generator: torch.Generator) -> Iterator[Minibatch]:
        """Minibatches of `count` passes, each shuffled afresh."""
        for _ in range(count):
            for rows in torch.randperm(len(self.y), generator=generator).split(batch_size):
                yield self.minibatch(rows)


def train_and_test(images: Images) -> tuple[Labelled, Labelled]:
    """The two parts of the data set."""
    parts = ((images.train, images.train_labels), (images.test, images.test_labels))
    train, test = (
        Labelled(torch.from_numpy(images.grey(x)), torch.from_numpy(labels.astype(np.float32))) for x, labels in parts
    )
    return train, test


def network(num_columns: int, width: int) -> MLP:
    """Shapes and names of the layers; without noise, it classifies at test time."""
    return MLP(num_columns, hidden=(width,) * HIDDEN_LAYERS, likelihood=Categorical(NUM_CLASSES))


def rate(layer: int) -> float:
    """Dropout rate p of the inputs of a layer, the first being 0."""
    return HIDDEN_RATE if layer else INPUT_RATE


def variational_layers(model: MLP, kind: type[TypeA] | type[TypeB]) -> tuple[TypeA | TypeB, ...]:
    """Layers with variational dropout as published: KL by the polynomial, alpha at most 1, one per unit."""
    return tuple(
        kind(layer.name, layer.num_inputs, layer.num_outputs, divergence=kingma, greatest_alpha=GREATEST_ALPHA)
        for layer in model.layers
    )


def start(model: MLP, seed: int) -> dict[str, Tensor]:
    """Weights uniform in +-1 / sqrt(inputs) and biases 0, by name, asking for gradients."""
    generator = torch_generator(seed, "classifier")
    tensors: dict[str, Tensor] = {}
    for layer in variational_layers(model, TypeB):
        tensors |= layer.initial(generator)
    return {name: tensors[name].requires_grad_() for name in model.layout.shapes}


def log_alphas(layers: Sequence[TypeA | TypeB]) -> dict[str, Tensor]:
    """Where the noise starts, by name: at the published dropout rates."""
    return {
        layer.log_alpha: torch.full(layer.shapes()[layer.log_alpha], math.log(rate(i) / (1 - rate(i))))
        for i, layer in enumerate(layers)
    }


def log_likelihood(
    model: MLP, layers: Sequence[NoisyLayer], weights: Weights, minibatch: Minibatch, generator: torch.Generator
) -> Tensor:
    """log p(y | x, w) of every record [B] with one draw of the noise, nats."""
    outputs = minibatch["x"]
    *hidden, top = layers
    for layer in hidden:
        outputs = torch.relu(layer(weights, outputs, generator))
    return model.likelihood.log_prob(top(weights, outputs, generator), minibatch["y"][:, None])


def kl(layers: Sequence[TypeA | TypeB], weights: Weights) -> Tensor:
    """KL of all layers from their priors, nats."""
    return torch.stack([layer.kl(weights) for layer in layers]).sum()


def train(
    parameters: Mapping[str, Tensor],
    log_alphas: Mapping[str, Tensor],
    loss: Callable[[Minibatch], Tensor],
    minibatches: Iterator[Minibatch],
    rate: float,
) -> Iterator[int]:
    """Steps of Adam as `training.adam`; those log alphas that ask for gradients are trained, and kept within bounds."""
    trained = {name: tensor for name, tensor in log_alphas.items() if tensor.requires_grad}
    for step in training.adam({**parameters, **trained}, loss, minibatches, rate):
        for log_alpha in trained.values():
            log_alpha.detach().clamp_max_(math.log(GREATEST_ALPHA))
        yield step


def error(model: MLP, means: Mapping[str, Tensor], rows: Labelled) -> float:
    """Images in the wrong class at the mean weights, without noise, per cent."""
    with torch.no_grad():
        outputs = model.outputs(Weights(means), rows.x, torch.Generator())
    return 100 * float((outputs.argmax(1) != rows.y).double().mean())
