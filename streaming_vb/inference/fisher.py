"""Fisher information matrix of the weights of a small network, for study: five forms behind one interface.

With p(y | x, w) = likelihood(y | outputs(x, w)) and the score s_i = d log p(y | x_i, w) / dw [P], the matrix is

    F(w) = mean_i E[s_i s_i'],    y ~ p(y | x_i, w)                nats per record, [P, P]

By the chain rule s_i = J_i' u_i, with the Jacobian J_i = d outputs_i / dw [O, P] and u_i = d log p / d outputs_i [O]:
the first three forms are mean_i J_i' F_i J_i and differ in F_i [O, O].

=============  ==================================================================================================
form           what it is
=============  ==================================================================================================
`exact`        F_i = E[u u'] in closed form, from the likelihood
`monte_carlo`  F_i = mean of u u' over targets drawn from the model; unbiased
`empirical`    F_i = u u' for the observed targets: a Fisher matrix only where the model generated them
`diagonal`     the diagonal of any form
`kronecker`    per layer A (x) G, as if inputs and backpropagated gradients of the layer were independent over records
=============  ==================================================================================================

Every form is a `Fisher`: (network, weights, x) -> matrix; settings are keywords, bound with `functools.partial`.
They hold [B, O, P] numbers: for networks of some hundreds of weights.

Martens 2020 (New insights and perspectives on the natural gradient method); Martens and Grosse 2015 (K-FAC); Kunstner,
Balles and Hennig 2019 for what the empirical form is not.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.tape import TapeEntry

_NO_NOISE = torch.Generator()
"""Never drawn from: weights without variance are used as they are."""


class Likelihood(Protocol):
    """p(y | outputs), as the forms see it."""

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor: ...
    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor: ...
    def fisher(self, outputs: Tensor) -> Tensor:
        """E[u u'] [B, O, O] of the scores u of the outputs [B, O]."""


@dataclass(frozen=True, slots=True)
class Network:
    """Linear layers with an activation in between; its weights are one vector [P] in the order of `layout`.

    Args:
        layers: input side first; each takes as many inputs as the one before has outputs.
        likelihood: p(y | outputs).
        activation: between two layers, not after the last; `torch.nn.Identity()` makes a deep linear network.

    Raises:
        ConfigError: no layer, layers that do not fit, or two of one name.
    """

    layers: tuple[Linear, ...]
    likelihood: Likelihood
    activation: Callable[[Tensor], Tensor] = torch.relu

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("network: expected at least one layer, got none; pass layers=(Linear(...),)")
        for below, above in itertools.pairwise(self.layers):
            if above.num_inputs != below.num_outputs:
                raise ConfigError(
                    f"network: layer {above.name} takes {above.num_inputs} inputs, but {below.name} below it has "
                    f"{below.num_outputs} outputs; make them equal"
                )
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            raise ConfigError(f"network: two layers have one name, got {', '.join(names)}; name each differently")

    @property
    def layout(self) -> Layout:
        """Where each weight lies in the vector [P]."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            shapes |= layer.shapes()
        return Layout(shapes)

    def outputs(self, weights: Tensor, x: Tensor, tape: list[TapeEntry] | None = None) -> Tensor:
        """Outputs [B, O] for weights [P] and x [B, D], of one dtype."""
        means = Weights(self.layout.views(weights))
        hidden = x
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(means, hidden, _NO_NOISE, tape))
        return self.layers[-1](means, hidden, _NO_NOISE, tape)


Fisher = Callable[[Network, Tensor, Tensor], Tensor]
"""(network, weights [P], x [B, D]) -> matrix [P, P], nats per record: a mean over the B records, not a sum."""


def exact(network: Network, weights: Tensor, x: Tensor) -> Tensor:
    """mean_i J_i' E[u_i u_i'] J_i, the Fisher information matrix.

    The expectation over targets is the likelihood's closed form. Where the outputs are natural parameters (a canonical
    likelihood: logits), it is also the generalized Gauss-Newton matrix, and for one layer the Hessian.

    One record x = 2 of a logistic regression with weight and bias 0: p (1 - p) a a' with p = 1/2, a = (2, 1).

    >>> from streaming_vb.likelihoods.bernoulli import Bernoulli
    >>> network = Network((Linear("layer", 1, 1),), Bernoulli())
    >>> exact(network, torch.zeros(2), torch.tensor([[2.0]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 0.2500]])
    """
    return _mean_pulled_back(network, weights, x, network.likelihood.fisher(network.outputs(weights, x)))


def monte_carlo(
    network: Network, weights: Tensor, x: Tensor, *, num_samples: int, generator: torch.Generator
) -> Tensor:
    """`exact` with the mean of u u' over targets drawn from the model; its error falls with 1 / sqrt(num_samples).

    Args:
        network, weights, x: as for every form.
        num_samples: targets per record.
        generator: of the targets.

    Raises:
        ConfigError: num_samples is below 1.
    """
    if num_samples < 1:
        raise ConfigError(f"monte_carlo: num_samples must be at least 1, got {num_samples}")
    outputs = network.outputs(weights, x)
    repeated = outputs.repeat(num_samples, 1)
    u = _scores(network.likelihood, repeated, network.likelihood.sample(repeated, generator))
    u = u.view(num_samples, *outputs.shape)
    return _mean_pulled_back(network, weights, x, torch.einsum("sbo,sbq->boq", u, u) / num_samples)


def empirical(network: Network, weights: Tensor, x: Tensor, *, y: Tensor) -> Tensor:
    """mean_i s_i s_i' for the observed targets y [B, D]: the uncentred second moment of the per-record gradients.

    It has the expectation of `exact` only if y was drawn from the model with these very weights (Kunstner et al. 2019).

    Raises:
        DataError: y has not one row per record.
    """
    _check_targets(x, y)
    u = _scores(network.likelihood, network.outputs(weights, x), y)
    return _mean_pulled_back(network, weights, x, torch.einsum("bo,bq->boq", u, u))


def diagonal(network: Network, weights: Tensor, x: Tensor, *, form: Fisher) -> Tensor:
    """The diagonal of another form, as a diagonal matrix."""
    return form(network, weights, x).diagonal().diag()


def empirical_diagonal(network: Network, weights: Tensor, x: Tensor, *, y: Tensor) -> Tensor:
    """`diagonal` of `empirical` without a gradient per record: (U * U)' (A * A) / B for every layer.

    One backward pass to the pre-activations gives U [B, O]; with the inputs A [B, I] the gradient of record i is u_i
    a_i', so that its square is the product of the squares. This is the curvature that fits networks.

    Raises:
        DataError: y has not one row per record.
    """
    _check_targets(x, y)
    tape: list[TapeEntry] = []
    log_prob = network.likelihood.log_prob(network.outputs(weights, x, tape), y)
    gradients = torch.autograd.grad(log_prob.sum(), [entry.preactivations for entry in tape])
    squared = torch.empty_like(weights)
    for entry, u in zip(tape, gradients, strict=True):
        entry.layer.squared_gradient(entry, u, network.layout.views(squared), weight=1 / len(x))
    return squared.diag()


def kronecker(network: Network, weights: Tensor, x: Tensor) -> Tensor:
    """Block-diagonal over layers, each block the Kronecker product of A = mean_i a_i a_i' and G = mean_i K_i' F_i K_i.

    a_i [I + 1] are the layer's inputs, with the constant input 1 of the bias; K_i [O, layer's outputs] is the Jacobian
    of the outputs with respect to its pre-activations. The block of `exact` is mean_i (a_i a_i') (x) (K_i' F_i K_i);
    this form puts the product of the means for the mean of the products. (Martens and Grosse 2015, section 3; G is the
    expectation over targets itself, not a sample of it.) It is exact where K_i' F_i K_i is the same for all records: in
    a deep linear network with squared error.

    The paper stacks columns of the weights. Ours lie by rows, weight [O, I], and so A (x) G is computed as G (x) A.
    """
    tape: list[TapeEntry] = []
    outputs = network.outputs(weights, x, tape)
    output_fisher = network.likelihood.fisher(outputs.detach())
    one_hot = torch.eye(outputs.shape[1], dtype=outputs.dtype)[:, None].expand(-1, len(x), -1)
    preactivations = [entry.preactivations for entry in tape]
    jacobians = torch.autograd.grad(outputs, preactivations, one_hot, is_grads_batched=True)
    places = network.layout.views(torch.arange(len(weights)))
    matrix = weights.new_zeros(len(weights), len(weights))
    for layer, entry, jacobian in zip(network.layers, tape, jacobians, strict=True):
        inputs = torch.cat([entry.inputs, entry.inputs.new_ones(len(x), 1)], 1)
        second_moment = inputs.T @ inputs / len(x)
        gradient_moment = _mean_quadratic(jacobian.movedim(0, 1), output_fisher)
        place = torch.cat([places[layer.weight], places[layer.bias][:, None]], 1).flatten()
        matrix[place[:, None], place] = torch.kron(gradient_moment, second_moment)
    return matrix


def _mean_pulled_back(network: Network, weights: Tensor, x: Tensor, output_fisher: Tensor) -> Tensor:
    """mean_i J_i' F_i J_i [P, P] for F [B, O, O] in the space of the outputs."""

    def outputs_of(weights: Tensor, record: Tensor) -> Tensor:
        return network.outputs(weights, record[None])[0]

    jacobian = vmap(jacrev(outputs_of), in_dims=(None, 0))(weights, x)
    return _mean_quadratic(jacobian, output_fisher)


def _mean_quadratic(jacobian: Tensor, output_fisher: Tensor) -> Tensor:
    """mean_i J_i' F_i J_i [P, P] for J [B, O, P] and F [B, O, O]."""
    return torch.einsum("bop,bor->pr", jacobian, output_fisher @ jacobian) / len(jacobian)


def _scores(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Tensor:
    """u = d log p(y | outputs) / d outputs [B, O]."""
    outputs = outputs.detach().requires_grad_()
    (scores,) = torch.autograd.grad(likelihood.log_prob(outputs, y).sum(), outputs)
    return scores


def _check_targets(x: Tensor, y: Tensor) -> None:
    """A single row of targets would be broadcast over all records."""
    if y.ndim != 2 or len(y) != len(x):
        raise DataError(
            f"empirical Fisher: expected targets y [{len(x)}, columns], one row per record of x, got "
            f"{tuple(y.shape)}. Pass the targets of these records"
        )
