"""Active units: latent dimensions that depend on the data (Burda, Grosse and Salakhutdinov 2016, section 5.2).

    A_d = Var_x( E_q(z | x)[z_d] );   dimension d is active if A_d > 0.01

A dimension that the model does not use has q(z_d | x) = p(z_d) for every x, and A_d = 0 (posterior collapse).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from streaming_vb.errors import ConfigError
from streaming_vb.evaluation.held_out import mean_weights
from streaming_vb.evaluation.importance import EncodingModel
from streaming_vb.evaluation.weight_draws import weight_draws
from streaming_vb.layers.layout import Weights
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Array, NaturalParameters

THRESHOLD = 0.01
"""Of Burda et al.; dimensions are far to one side of it or the other."""
_ROWS = 1000
"""Records encoded at once: bounds memory."""


class ActiveUnits(NamedTuple):
    """At one setting of the weights: A_d = Var_x(E[z_d | x]) [Z].

    >>> ActiveUnits(np.array([0.9, 0.002, 0.4])).num_active
    2
    """

    variance: Array

    @property
    def num_active(self) -> int:
        """Dimensions above the threshold."""
        return int((self.variance > THRESHOLD).sum())


class ActiveUnitsOverDraws(NamedTuple):
    """Over draws of the weights.

    Attributes:
        variance: A_d [Z], mean over draws.
        deviation: of A_d over draws [Z].
        num_active: mean over draws of the number of active dimensions.
        num_active_deviation: standard deviation of that number over draws.
    """

    variance: Array
    deviation: Array
    num_active: float
    num_active_deviation: float


def at_mean(model: EncodingModel, posterior: NaturalParameters, x: Array) -> ActiveUnits:
    """Active units at the mean weights, over the records of x [n, D].

    Raises:
        ConfigError: fewer than 2 records.
    """
    return _active_units(model, mean_weights(model, posterior), x)


def over_draws(
    model: EncodingModel, posterior: NaturalParameters, x: Array, *, draws: int, seed: int
) -> ActiveUnitsOverDraws:
    """Active units under draws of the weights, and their spread.

    Raises:
        ConfigError: fewer than 2 records, or fewer than 2 draws.
    """
    return _spread([_active_units(model, weights, x) for weights in weight_draws(model, posterior, draws, seed)])


def _active_units(model: EncodingModel, weights: Weights, x: Array) -> ActiveUnits:
    if len(x) < 2:
        raise ConfigError(f"active units are a variance over records: at least 2 are needed, got {len(x)}")
    generator = torch_generator(0, "unused: fixed weights draw nothing")
    rows = torch.from_numpy(np.array(x, dtype=np.float32)).split(_ROWS)
    with torch.no_grad():
        means = torch.cat([model.encode(weights, part, generator)[0] for part in rows])
    return ActiveUnits(means.double().numpy().var(axis=0, ddof=1))


def _spread(draws: Sequence[ActiveUnits]) -> ActiveUnitsOverDraws:
    variances = np.stack([draw.variance for draw in draws])
    counts = np.array([draw.num_active for draw in draws])
    return ActiveUnitsOverDraws(
        variances.mean(axis=0), variances.std(axis=0, ddof=1), float(counts.mean()), float(counts.std(ddof=1))
    )
