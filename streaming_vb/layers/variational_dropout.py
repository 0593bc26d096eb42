"""Linear layers with variational dropout: normal weights whose variance is alpha times the squared mean.

=========  ==================================================  ==================  ===========================
layer      weights                                             trained             source
=========  ==================================================  ==================  ===========================
TypeA      w_oi = theta_oi xi_i, xi_i ~ N(1, alpha)            theta, log alpha    Kingma et al. 2015, 3.2
TypeB      w_oi ~ N(theta_oi, alpha theta_oi^2), independent   theta, log alpha    Kingma et al. 2015, 3.1
Additive   type B with alpha = sigma^2 / theta^2               theta, log sigma^2  Molchanov et al. 2017, 4.1
=========  ==================================================  ==================  ===========================

The prior is log-uniform, and the KL a function of alpha alone (`layers/dropout_divergence.py`). The loss of a minibatch
is N times the mean negative log-likelihood of its records, plus the `kl` of every layer.

That prior is improper, and so may be the posterior (Hron et al. 2018): read the loss as a regularizer with a Bayesian
derivation. It has no natural parameters either, so a stream cannot start from it. These layers are therefore trained by
autograd, on tensors that ask for gradients, and take no tape; a streamed posterior is that of `layers/linear.py`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional

from streaming_vb.errors import ConfigError
from streaming_vb.layers.dropout_divergence import Divergence, exact
from streaming_vb.layers.estimators import Affine, Estimator, local, mean
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.noise import gaussian_dropout
from streaming_vb.layers.tape import TapeEntry


class Grouping(Enum):
    """Which weights have an alpha in common."""

    LAYER = "layer"
    UNIT = "unit"
    """Those of an input unit for type A, of an output unit for type B."""
    WEIGHT = "weight"
    """None: every weight has its own."""


@dataclass(frozen=True, slots=True)
class AbstractVariationalDropout(ABC):
    """I inputs to O outputs; means theta `name.weight` [O, I], and `name.bias` [O] without noise.

    Attributes:
        estimator: how pre-activations are drawn (`layers/estimators.py`).
        divergence: KL of one weight as a function of log alpha (`layers/dropout_divergence.py`).
        greatest_alpha: larger alphas act as this one, in noise and KL. Kingma et al. 2015 use 1, which their polynomial
            needs; the exact form needs none. Beyond it alpha has no gradient: clamp log alpha itself after every step
            too, or it cannot come back.

    Raises:
        ConfigError: `greatest_alpha` is not positive.
    """

    name: str
    num_inputs: int
    num_outputs: int
    estimator: Estimator = local
    divergence: Divergence = exact
    greatest_alpha: float | None = None

    def __post_init__(self) -> None:
        if self.greatest_alpha is not None and not self.greatest_alpha > 0:
            raise ConfigError(f"{self.name}: greatest_alpha must be above 0, got {self.greatest_alpha}; try 1.0")

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trained tensors, by name."""

    @abstractmethod
    def initial(self, generator: torch.Generator, alpha: float = 0.25) -> dict[str, Tensor]:
        """Tensors to start from, by name: theta uniform in +-1 / sqrt(I), bias 0, and the same alpha everywhere.

        Raises:
            ConfigError: alpha is not positive, or above the greatest.
        """

    def __call__(
        self,
        weights: Weights,
        inputs: Tensor,
        generator: torch.Generator,
        tape: list[TapeEntry] | None = None,
    ) -> Tensor:
        """Pre-activations [B, O] of inputs [B, I], drawn by the estimator.

        Args:
            weights: the tensors of `shapes()` as `weights.mean`; no variance, which follows from them.
            tape: none; it is there so that the layer can be called as any other.

        Raises:
            ConfigError: there is a tape.
        """
        if tape is not None:
            raise ConfigError(
                f"{self.name}: variational dropout has no tape, since its improper prior cannot start a stream. "
                "Use layers.linear.Linear in a streamed model, or leave out the tape and train this layer by autograd"
            )
        return self._preactivations(weights, inputs, generator)

    def kl(self, weights: Weights) -> Tensor:
        """KL of the posterior from the log-uniform prior, up to its constant: a scalar in nats, the sum over all
        noise variables."""
        return self._num_noises * self.divergence(self._log_alpha(weights)).mean()

    @property
    @abstractmethod
    def _num_noises(self) -> int:
        """Independent noise variables of the posterior, each of which pays its KL."""

    @abstractmethod
    def _log_alpha(self, weights: Weights) -> Tensor:
        """Log alpha that acts, in a shape that broadcasts with theta [O, I]; groups are of equal size."""

    @abstractmethod
    def _preactivations(self, weights: Weights, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Pre-activations [B, O], as the posterior has them."""

    def _affine(self, weights: Weights) -> Affine:
        return Affine(weights.mean[self.weight], weights.mean[self.bias])

    def _at_most_greatest(self, log_alpha: Tensor) -> Tensor:
        return log_alpha if self.greatest_alpha is None else log_alpha.clamp_max(math.log(self.greatest_alpha))

    def _initial_affine(self, generator: torch.Generator) -> dict[str, Tensor]:
        bound = 1 / math.sqrt(self.num_inputs)
        theta = torch.empty(self.num_outputs, self.num_inputs).uniform_(-bound, bound, generator=generator)
        return {self.weight: theta, self.bias: torch.zeros(self.num_outputs)}

    def _log_of_initial(self, alpha: float) -> float:
        greatest = math.inf if self.greatest_alpha is None else self.greatest_alpha
        if not 0 < alpha <= greatest:
            raise ConfigError(f"{self.name}: alpha must start above 0 and at most at {greatest}, got {alpha}; try 0.25")
        return math.log(alpha)


@dataclass(frozen=True, slots=True)
class TypeA(AbstractVariationalDropout):
    """Gaussian dropout on the inputs, with a learned alpha: B = (A * xi) theta' + b, xi ~ N(1, alpha) of record and
    input.

    All weights of an input share one draw, so the posterior is singular (Hron et al. 2018) and its KL from the
    log-uniform prior infinite; as published, every *input* pays the KL of one weight.

    Attributes:
        grouping: one alpha for the layer, or one per input.

    Raises:
        ConfigError: alpha per weight, or an estimator other than `local` and `mean`: the noise is that of inputs.

    >>> layer = TypeA("layer", 3, 2)
    >>> weights = Weights(layer.initial(torch.Generator().manual_seed(0), alpha=1.0))
    >>> layer(weights, torch.ones(4, 3), torch.Generator().manual_seed(0)).shape, layer.kl(weights)
    (torch.Size([4, 2]), tensor(1.2801))
    """

    grouping: Grouping = Grouping.UNIT

    def __post_init__(self) -> None:
        AbstractVariationalDropout.__post_init__(self)
        if self.grouping is Grouping.WEIGHT:
            raise ConfigError(f"{self.name}: type A has noise per input, not per weight. Use Grouping.UNIT, or TypeB")
        if self.estimator not in (local, mean):
            raise ConfigError(
                f"{self.name}: type A draws noise on its inputs, so its estimator is local or mean. "
                "Use TypeB for other estimators"
            )

    @property
    def log_alpha(self) -> str:
        return f"{self.name}.log_alpha"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        groups = () if self.grouping is Grouping.LAYER else (self.num_inputs,)
        return {
            self.weight: (self.num_outputs, self.num_inputs),
            self.bias: (self.num_outputs,),
            self.log_alpha: groups,
        }

    def initial(self, generator: torch.Generator, alpha: float = 0.25) -> dict[str, Tensor]:
        log_alpha = torch.full(self.shapes()[self.log_alpha], self._log_of_initial(alpha))
        return {**self._initial_affine(generator), self.log_alpha: log_alpha}

    @property
    def _num_noises(self) -> int:
        return self.num_inputs

    def _log_alpha(self, weights: Weights) -> Tensor:
        return self._at_most_greatest(weights.mean[self.log_alpha])

    def _preactivations(self, weights: Weights, inputs: Tensor, generator: torch.Generator) -> Tensor:
        if self.estimator is not mean:
            inputs = gaussian_dropout(inputs, self._log_alpha(weights).exp(), generator)
        return functional.linear(inputs, *self._affine(weights))


@dataclass(frozen=True, slots=True)
class TypeB(AbstractVariationalDropout):
    """Independent weights w ~ N(theta, alpha theta^2) with a learned alpha; every weight pays its KL.

    Attributes:
        grouping: one alpha for the layer, one per output, or one per weight.

    >>> layer = TypeB("layer", 3, 2, grouping=Grouping.WEIGHT)
    >>> weights = Weights(layer.initial(torch.Generator().manual_seed(0), alpha=1.0))
    >>> layer(weights, torch.ones(4, 3), torch.Generator().manual_seed(0)).shape, layer.kl(weights)
    (torch.Size([4, 2]), tensor(2.5601))
    """

    grouping: Grouping = Grouping.UNIT

    @property
    def log_alpha(self) -> str:
        return f"{self.name}.log_alpha"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        theta = (self.num_outputs, self.num_inputs)
        groups = {Grouping.LAYER: (), Grouping.UNIT: (self.num_outputs,), Grouping.WEIGHT: theta}
        return {self.weight: theta, self.bias: (self.num_outputs,), self.log_alpha: groups[self.grouping]}

    def initial(self, generator: torch.Generator, alpha: float = 0.25) -> dict[str, Tensor]:
        log_alpha = torch.full(self.shapes()[self.log_alpha], self._log_of_initial(alpha))
        return {**self._initial_affine(generator), self.log_alpha: log_alpha}

    @property
    def _num_noises(self) -> int:
        return self.num_outputs * self.num_inputs

    def _log_alpha(self, weights: Weights) -> Tensor:
        log_alpha = self._at_most_greatest(weights.mean[self.log_alpha])
        return log_alpha[:, None] if self.grouping is Grouping.UNIT else log_alpha

    def _preactivations(self, weights: Weights, inputs: Tensor, generator: torch.Generator) -> Tensor:
        means = self._affine(weights)
        variance = _positive(self._log_alpha(weights).exp() * means.weight.square())
        return self.estimator(functional.linear, inputs, means, Affine(variance, None), generator)


@dataclass(frozen=True, slots=True)
class Additive(AbstractVariationalDropout):
    """Type B with the variance sigma^2 of every weight as its parameter, so that alpha = sigma^2 / theta^2.

    The posterior is the same, but the gradient of theta no longer carries the noise of its weight. A weight with
    theta = 0 has infinite alpha, KL 0 and variance sigma^2.

    >>> layer = Additive("layer", 3, 2)
    >>> weights = Weights(layer.initial(torch.Generator().manual_seed(0), alpha=1.0))
    >>> layer(weights, torch.ones(4, 3), torch.Generator().manual_seed(0)).shape, layer.kl(weights)
    (torch.Size([4, 2]), tensor(2.5601))
    """

    @property
    def log_variance(self) -> str:
        return f"{self.name}.log_variance"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        theta = (self.num_outputs, self.num_inputs)
        return {self.weight: theta, self.bias: (self.num_outputs,), self.log_variance: theta}

    def initial(self, generator: torch.Generator, alpha: float = 0.25) -> dict[str, Tensor]:
        log_alpha = self._log_of_initial(alpha)
        start = self._initial_affine(generator)
        return {**start, self.log_variance: log_alpha + _log_square(start[self.weight])}

    @property
    def _num_noises(self) -> int:
        return self.num_outputs * self.num_inputs

    def _log_alpha(self, weights: Weights) -> Tensor:
        log_square = _log_square(weights.mean[self.weight])
        return self._at_most_greatest(weights.mean[self.log_variance] - log_square)

    def _preactivations(self, weights: Weights, inputs: Tensor, generator: torch.Generator) -> Tensor:
        means = self._affine(weights)
        log_variance = weights.mean[self.log_variance]
        if self.greatest_alpha is not None:
            log_variance = torch.minimum(log_variance, math.log(self.greatest_alpha) + _log_square(means.weight))
        variance = _positive(log_variance.exp())
        return self.estimator(functional.linear, inputs, means, Affine(variance, None), generator)


def _log_square(theta: Tensor) -> Tensor:
    """log theta^2; at 0 a very negative number without a gradient, where the true slope is infinite."""
    return 2 * theta.abs().clamp_min(torch.finfo(theta.dtype).tiny).log()


def _positive(variance: Tensor) -> Tensor:
    """A variance of 0 has a square root with an infinite gradient, and infinity times 0 would be NaN."""
    return variance.clamp_min(torch.finfo(variance.dtype).tiny)
