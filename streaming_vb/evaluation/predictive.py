"""Predictive log likelihood log E_q(w)[p(x | w)]: how well the posterior, and not one setting of the weights, predicts.

    log E_q(w)[p(x | w)]  ~  log 1/J sum_j p(x | w_j),   w_j ~ q(w)

with p(x | w_j) importance-sampled (`importance.py`). This is a predictive score per record, not a bound on the log
evidence, and not the mean of log p(x | w) over draws: by Jensen's inequality it lies above that mean. In expectation
it rises with J, so that two posteriors are compared at the same J.
"""

import math
from typing import NamedTuple

import numpy as np

from streaming_vb.errors import ConfigError
from streaming_vb.evaluation import importance
from streaming_vb.evaluation.held_out import Estimate
from streaming_vb.evaluation.importance import NUM_SAMPLES, EncodingModel
from streaming_vb.evaluation.weight_draws import over_records
from streaming_vb.types import Array, NaturalParameters


class Predictive(NamedTuple):
    """Per record [n], with the uncertainty of the weights.

    Attributes:
        log_predictive: log E_q(w)[p(x | w)], nats.
        deviation: standard deviation of log p(x | w) over draws of the weights, nats.
        weight_standard_error: of the mean of `log_predictive` over records, for the number of draws of the weights
            (jackknife: all records share the draws).
    """

    log_predictive: Array
    deviation: Array
    weight_standard_error: float

    def estimate(self) -> Estimate:
        """Mean predictive log likelihood; its standard error adds both sources, records and draws of the weights."""
        records = over_records(self.log_predictive)
        return Estimate(records.mean, math.hypot(records.standard_error, self.weight_standard_error))


def over_draws(
    model: EncodingModel,
    posterior: NaturalParameters,
    x: Array,
    *,
    draws: int,
    num_samples: int = NUM_SAMPLES,
    seed: int,
) -> Predictive:
    """Predictive log likelihood of every record of x [n, D], with J = `draws` of the weights and K samples of z each.

    Raises:
        ConfigError: fewer than 2 draws, or K below 1.
    """
    sampled = importance.over_draws(model, posterior, x, draws=draws, num_samples=num_samples, seed=seed)
    return predictive(sampled.log_likelihood)


def predictive(log_likelihood: Array) -> Predictive:
    """The predictive score from log p(x | w_j) [J, n], nats; for any model whose likelihood is known.

    Raises:
        ConfigError: fewer than 2 draws.

    >>> predictive(np.log([[0.1, 0.5], [0.3, 0.5]])).log_predictive.round(4)
    array([-1.6094, -0.6931])
    """
    draws = len(log_likelihood)
    if draws < 2:
        raise ConfigError(f"a predictive score needs at least 2 draws of the weights, got {draws}")
    without = [_log_mean_exp(np.delete(log_likelihood, j, axis=0)).mean() for j in range(draws)]
    return Predictive(
        _log_mean_exp(log_likelihood),
        log_likelihood.std(axis=0, ddof=1),
        math.sqrt((draws - 1) * np.var(without)),
    )


def _log_mean_exp(log_likelihood: Array) -> Array:
    """log 1/J sum_j exp [n] of [J, n]."""
    total: Array = np.logaddexp.reduce(log_likelihood.astype(np.float64), axis=0)
    return total - math.log(len(log_likelihood))
