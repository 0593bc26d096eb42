"""Bayesian linear regression with known noise: y = x'w + e, e ~ N(0, s^2), w ~ N(0, v I).

The conjugate linear-Gaussian model: the evidence of records is X'X / s^2 and X'y / s^2 whatever the prior, so the
streamed posterior equals the batch posterior in any order and with any staleness. (Bishop 2006, equations 3.50 and
3.51.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streaming_vb.errors import DataError
from streaming_vb.families.full_rank_normal import FullRankNormal
from streaming_vb.types import NaturalParameters, Records


@dataclass(frozen=True, slots=True)
class LinearRegression:
    """Regression on D columns; records have fields x [n, D] and y [n].

    >>> model = LinearRegression(2)
    >>> model.prior(seed=0)["precision"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    num_columns: int
    noise_variance: float = 1.0
    prior_variance: float = 1.0

    @property
    def family(self) -> FullRankNormal:
        """Full-rank normal weights."""
        return FullRankNormal()

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {
            "model": "linear-regression",
            "columns": self.num_columns,
            "noise_variance": self.noise_variance,
            "prior_variance": self.prior_variance,
        }

    def prior(self, seed: int) -> NaturalParameters:
        """N(0, v I), whatever the seed."""
        precision = np.eye(self.num_columns) / self.prior_variance
        return NaturalParameters({"precision_mean": np.zeros(self.num_columns), "precision": precision})

    def validate(self, records: Records) -> None:
        """Raise DataError unless x is [n, D], y is [n], and both are finite."""
        x, y = records["x"], records["y"]
        if x.ndim != 2 or x.shape[1] != self.num_columns or y.shape != (len(x),):
            raise DataError(
                f"{records.interval}: expected x [n, {self.num_columns}] and y [n], got {x.shape} and {y.shape}"
            )
        if not {x.dtype.kind, y.dtype.kind} <= set("biuf"):
            raise DataError(f"{records.interval}: x and y must hold numbers, got {x.dtype} and {y.dtype}")
        both = np.column_stack([x, y])
        if not np.isfinite(both).all():
            row, column = divmod(int((~np.isfinite(both)).argmax()), self.num_columns + 1)
            name = f"column {column}" if column < self.num_columns else "target y"
            raise DataError(
                f"{records.interval}: record {records.interval.start + row} {name} is {both[row, column]}. "
                "Every value must be finite: impute it, or drop the record"
            )

    def evidence(self, records: Records) -> NaturalParameters:
        """Natural parameters of the likelihood of the records: X'y / s^2 and X'X / s^2."""
        x, y = records["x"].astype(np.float64), records["y"].astype(np.float64)
        return NaturalParameters(
            {"precision_mean": x.T @ y / self.noise_variance, "precision": x.T @ x / self.noise_variance}
        )

    def log_predictive(self, posterior: NaturalParameters, records: Records) -> float:
        """Mean of log p(y | x) under the posterior predictive N(x'm, s^2 + x'Cx); nats per record."""
        x, y = records["x"], records["y"]
        moments = self.family.moments(posterior)
        variance = self.noise_variance + np.sum((x @ moments.variance) * x, axis=1)
        error = y - x @ moments.mean
        return float(np.mean(-0.5 * (error**2 / variance + np.log(2 * np.pi * variance))))


def example() -> LinearRegression:
    """A small model, for docs and laws."""
    return LinearRegression(3)
