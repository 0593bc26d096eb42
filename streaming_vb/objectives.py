"""Bounds on the log likelihood from a model's per-record terms, and gradient estimators of them. Nats per record.

An objective gives, per record, a *surrogate*: a number whose gradient is the estimator. Its value is of no use; figures
are always the ELBO (`elbo`) or the importance-weighted bound (`importance_weighted`).

==================  ===============================================================  ==========================
objective           gradient of q's parameters                                       source
==================  ===============================================================  ==========================
Elbo                through the draw, z = mu + sigma e; KL in closed form            Kingma and Welling 2014
ScoreFunction       (f - b) grad log q, b the mean of the other draws or 0           Mnih and Gregor 2014
ImportanceWeighted  through the draw, weighted by w / sum w; squared if doubly       Burda et al. 2016;
                    reparameterized                                                  Tucker et al. 2019
Vimco               leave-one-out signal of the importance-weighted bound            Mnih and Rezende 2016
==================  ===============================================================  ==========================

The KL of the weights is in none of them: it is paid once per interval, through the proximal pull of the local fit.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from streaming_vb.errors import ConfigError
from streaming_vb.models.neural import Terms


def elbo(terms: Terms) -> Tensor:
    """E_q(z|x)[log p(x | z, w)] - KL(q(z | x, w) || p(z)) per record [B], estimated with the S draws of `terms`.

    (Kingma and Welling 2014, equation 7.)
    """
    return terms.log_likelihood.mean(0) - terms.kl_latent


def importance_weighted(terms: Terms) -> Tensor:
    """log 1/S sum_s p(x, z_s) / q(z_s | x) per record [B]: a bound that rises with S (Burda et al. 2016, equation 8).

    It is a bound only if all draws of a record see the same weights.
    """
    return torch.logsumexp(terms.log_weights(), 0) - math.log(len(terms.log_likelihood))


class AbstractObjective(ABC):
    """What a local fit ascends.

    Attributes:
        num_samples: S, draws of z per record.
        attached: whether gradients flow through the draws.
        shares_weights: whether the draws of a record must see the same weights.
        averages: whether the gradient is the plain mean of the draws' gradients, as it is for the ELBO.
    """

    __slots__ = ()
    num_samples: int
    attached: ClassVar[bool] = True
    shares_weights: ClassVar[bool] = False
    averages: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """For files and people; says so where it is not the ELBO."""

    @abstractmethod
    def surrogate(self, terms: Terms) -> Tensor:
        """Per record [B]; its gradient is the estimator."""

    def describe(self) -> Mapping[str, object]:
        """Settings that determine it, for files."""
        return {"objective": self.name}

    def after(self, num_records: int) -> "AbstractObjective":
        """The objective once `num_records` are counted."""
        del num_records
        return self


@dataclass(frozen=True, slots=True)
class Elbo(AbstractObjective):
    """The ELBO by reparameterization, with S draws per record.

    Args:
        num_samples: S.
        kl_weight: scales KL(q(z | x) || p(z)). Other than 1, what is ascended is not the ELBO.
        warm_up: records over which the weight rises from 0 to `kl_weight`.

    Raises:
        ConfigError: S below 1, or a negative weight or warm-up.

    >>> Elbo(kl_weight=2.0).name
    'elbo with 2.0 x KL (not the ELBO)'
    """

    num_samples: int = 1
    kl_weight: float = 1.0
    warm_up: int = 0

    def __post_init__(self) -> None:
        _require_samples(self.num_samples, 1)
        if not (self.kl_weight >= 0 and math.isfinite(self.kl_weight)) or self.warm_up < 0:
            raise ConfigError(
                f"KL weight and warm-up must be at least 0, got {self.kl_weight:g} and {self.warm_up:,} records"
            )

    @property
    def name(self) -> str:
        """With the weight of KL, where it is not 1."""
        draws = f", {self.num_samples} draws" if self.num_samples > 1 else ""
        if self.kl_weight == 1.0 and not self.warm_up:
            return f"elbo{draws}"
        rising = f", rising over {self.warm_up:,} records" if self.warm_up else ""
        return f"elbo with {self.kl_weight} x KL{rising}{draws} (not the ELBO)"

    def surrogate(self, terms: Terms) -> Tensor:
        """log p(x | z) - weight KL."""
        return terms.log_likelihood.mean(0) - self.kl_weight * terms.kl_latent

    def describe(self) -> Mapping[str, object]:
        """With the records of the warm-up, which must end before the run does."""
        return {"objective": self.name, **({"warm_up": self.warm_up} if self.warm_up else {})}

    def after(self, num_records: int) -> "Elbo":
        """The weight of KL as far as it has risen."""
        if not self.warm_up:
            return self
        return replace(self, kl_weight=self.kl_weight * min(1.0, num_records / self.warm_up), warm_up=0)


@dataclass(frozen=True, slots=True)
class ScoreFunction(AbstractObjective):
    """The ELBO by the score function: unbiased, and far noisier; for comparison.

    grad = 1/S sum_s [ (f_s - b_s) grad log q(z_s) + grad f_s ],  f = log p(x, z) - log q(z | x)

    Args:
        num_samples: S.
        leave_one_out: b_s is the mean of f over the other draws, instead of 0.
    """

    num_samples: int = 2
    leave_one_out: bool = True
    attached: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_samples(self.num_samples, 2 if self.leave_one_out else 1)

    @property
    def name(self) -> str:
        """With its baseline."""
        baseline = "leave-one-out baseline" if self.leave_one_out else "no baseline"
        return f"elbo by score function, {self.num_samples} draws, {baseline}"

    def surrogate(self, terms: Terms) -> Tensor:
        """(f - b) log q + log p(x, z), f and b held fixed; E[grad log q] = 0 needs no term."""
        log_q, log_joint = _log_q(terms), terms.log_joint()
        signal = (log_joint - log_q).detach()
        if self.leave_one_out:
            signal = signal - (signal.sum(0) - signal) / (self.num_samples - 1)
        return (signal * log_q + log_joint).mean(0)


@dataclass(frozen=True, slots=True)
class ImportanceWeighted(AbstractObjective):
    """The importance-weighted bound with S draws per record.

    Args:
        num_samples: S.
        doubly: doubly reparameterized gradient of the encoder (Tucker et al. 2019, equation 8): its signal does not
            vanish with S. Otherwise the plain one.
    """

    num_samples: int = 5
    doubly: bool = True
    shares_weights: ClassVar[bool] = True
    averages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_samples(self.num_samples, 2)

    @property
    def name(self) -> str:
        """With the number of draws, which the bound depends on."""
        return f"importance-weighted bound, {self.num_samples} draws{', doubly reparameterized' if self.doubly else ''}"

    def surrogate(self, terms: Terms) -> Tensor:
        """sum_s w_s log w_s with normalized weights w held fixed."""
        if not self.doubly:
            return importance_weighted(terms)
        if len(terms.draws) > 1:
            raise ConfigError(
                f"the doubly reparameterized gradient needs one stochastic layer, got {len(terms.draws)}. "
                "Use ImportanceWeighted(doubly=False)"
            )
        _require_draws(terms)
        (draw,) = terms.draws
        fixed = draw._replace(mean=draw.mean.detach(), log_variance=draw.log_variance.detach())
        log_weight = terms.log_joint() - fixed.log_q()
        weight = torch.softmax(log_weight.detach(), 0)
        # what reaches the encoder comes through z alone, and is weighted once more
        draw.z.register_hook(lambda gradient: gradient * weight[..., None])
        return (weight * log_weight).sum(0)


@dataclass(frozen=True, slots=True)
class Vimco(AbstractObjective):
    """The importance-weighted bound by the score function, each draw with the others as its baseline.

    signal_s = L - log 1/S [ sum_{j != s} w_j + exp(mean_{j != s} log w_j) ]

    Args:
        num_samples: S.
    """

    num_samples: int = 5
    attached: ClassVar[bool] = False
    shares_weights: ClassVar[bool] = True
    averages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_samples(self.num_samples, 2)

    @property
    def name(self) -> str:
        """With the number of draws, which the bound depends on."""
        return f"importance-weighted bound by score function (VIMCO), {self.num_samples} draws"

    def surrogate(self, terms: Terms) -> Tensor:
        """sum_s signal_s log q(z_s) + sum_s w_s log w_s, signal and w held fixed."""
        log_q = _log_q(terms)
        log_weight = terms.log_joint() - log_q
        fixed = log_weight.detach()
        others = (fixed.sum(0) - fixed) / (self.num_samples - 1)
        replaced = fixed.expand(self.num_samples, *fixed.shape).clone()  # [s, j, B]: w_s replaced by the mean of others
        index = torch.arange(self.num_samples)
        replaced[index, index] = others
        signal = torch.logsumexp(fixed, 0) - torch.logsumexp(replaced, 1)
        return (signal * log_q).sum(0) + (torch.softmax(fixed, 0) * log_weight).sum(0)


def _log_q(terms: Terms) -> Tensor:
    """log q(z | x) [S, B]."""
    _require_draws(terms)
    return torch.stack([draw.log_q() for draw in terms.draws]).sum(0)


def _require_draws(terms: Terms) -> None:
    if not terms.draws:
        raise ConfigError("this objective needs a model with latent variables; use Elbo() for one without")


def _require_samples(num_samples: int, least: int) -> None:
    if num_samples < least:
        raise ConfigError(f"the objective needs at least {least} draws per record, got {num_samples}")
