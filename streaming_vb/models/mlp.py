"""Bayesian multilayer perceptron: y given x, with a posterior over every weight, by local reparameterization.

y ~ p(y | network(x; w)), w ~ p(w). With the normal likelihood it is a regressor, with the Bernoulli or categorical
likelihood a classifier; without hidden layers, Bayesian linear or logistic regression. (Blundell et al. 2015; Kingma,
Salimans and Welling 2015.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streaming_vb.errors import DataError
from streaming_vb.layers.estimators import Estimator, local
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.tape import TapeEntry
from streaming_vb.likelihoods.normal import Normal
from streaming_vb.models.neural import AbstractNeuralModel, Minibatch, Terms
from streaming_vb.models.vae import Likelihood, as_float32, chain, forward, require_sizes, validate_columns
from streaming_vb.types import Records


@dataclass(frozen=True, slots=True)
class MLP(AbstractNeuralModel):
    """D columns x, hidden layers of the given widths, one target y.

    Args:
        num_columns: D.
        hidden: widths of the hidden layers, input side first; none makes it a (generalized) linear model.
        likelihood: p(y | outputs).
        estimator: how layers draw pre-activations.

    Raises:
        ConfigError: a size is below 1.

    >>> MLP(784, hidden=(100,), likelihood=Normal()).layout.num_weights
    78702
    """

    num_columns: int
    hidden: tuple[int, ...] = (100,)
    likelihood: Likelihood = Normal()
    estimator: Estimator = local

    def __post_init__(self) -> None:
        require_sizes("MLP", columns=(self.num_columns,), hidden=self.hidden)

    @property
    def layers(self) -> tuple[Linear, ...]:
        """D -> hidden -> outputs of the likelihood."""
        return chain("layer", (self.num_columns, *self.hidden, self.likelihood.outputs_per_column), self.estimator)

    @property
    def fields(self) -> tuple[str, ...]:
        """x [B, D] and y [B]."""
        return ("x", "y")

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {
            "model": "mlp",
            "columns": self.num_columns,
            "hidden": list(self.hidden),
            "likelihood": self.likelihood.name,
            "estimator": self.estimator.__name__,
        }

    def validate(self, records: Records) -> None:
        """Raise DataError unless x is [B, D] and finite, and y [B] in the likelihood's range."""
        validate_columns(records, self.num_columns)
        y = records["y"]
        if y.shape != (len(records["x"]),):
            raise DataError(f"{records.interval}: y must hold one target per record, got the shape {y.shape}")
        if y.dtype.kind not in "biuf":
            raise DataError(f"{records.interval}: y must hold numbers, got {y.dtype}. Give classes as 0, 1, 2, ...")
        good = np.isfinite(as_float32(y))
        if not good.all():
            row = int(good.argmin())
            raise DataError(
                f"{records.interval}: record {records.interval.start + row} has the target {y[row]}. Drop it"
            )
        self.likelihood.validate(y[:, None], records.interval.start)

    def terms(
        self,
        weights: Weights,
        records: Minibatch,
        generator: torch.Generator,
        num_samples: int = 1,
        tape: list[TapeEntry] | None = None,
        attached: bool = True,
    ) -> Terms:
        """log p(y | x, w) [S, B], with S draws of the layers' noise; there is no latent variable."""
        del attached
        x, y = records["x"], records["y"][:, None]
        outputs = forward(self.layers, weights, x.repeat(num_samples, 1), generator, tape)
        log_likelihood = self.likelihood.log_prob(outputs.view(num_samples, len(x), -1), y)
        return Terms(log_likelihood, torch.zeros(len(x)))

    def outputs(self, weights: Weights, x: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs of the network [B, O] for x [B, D]: parameters of p(y | x, w)."""
        return forward(self.layers, weights, x, generator, None)


def example() -> MLP:
    """A small model, for docs and laws."""
    return MLP(3, hidden=(4,))
