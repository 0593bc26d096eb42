"""A neural model whose loss is linear in its pre-activation, so that gradients do not depend on weights or noise.

Record i is (a_i, c_i): two inputs and a slope. Loss sum_i c_i b_i with b = a'w + bias has the gradient
sum_i c_i (a_i, 1) and the squared per-record gradients sum_i c_i^2 (a_i^2, 1): both are known by hand for every step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.layers.estimators import Estimator, local
from streaming_vb.layers.layout import Layout, Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.layers.tape import TapeEntry
from streaming_vb.models.neural import Minibatch, Terms
from streaming_vb.types import Array, Interval, Moments, NaturalParameters, Records

LAYER = Linear("layer", 2, 1)
PRIOR_MEAN = np.array([0.5, -0.25, 1.0])
PRIOR_PRECISION = np.array([40.0, 8.0, 2.0])


@dataclass(frozen=True)
class LinearLoss:
    """Two weights and a bias."""

    @property
    def family(self) -> MeanFieldNormal:
        return MeanFieldNormal()

    @property
    def layout(self) -> Layout:
        return Layout(LAYER.shapes())

    def prior(self, seed: int) -> NaturalParameters:
        return self.family.natural(Moments(PRIOR_MEAN, 1 / PRIOR_PRECISION))

    def validate(self, records: Records) -> None:
        """Anything goes."""

    def describe(self) -> dict[str, object]:
        return {"model": "linear loss"}

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x",)

    @property
    def estimator(self) -> Estimator:
        return local

    def terms(
        self,
        weights: Weights,
        records: Minibatch,
        generator: torch.Generator,
        num_samples: int = 1,
        tape: list[TapeEntry] | None = None,
        attached: bool = True,
    ) -> Terms:
        x = records["x"]
        b = LAYER(weights, x[:, :2], generator, tape)[:, 0]
        return Terms(-(x[:, 2] * b)[None], torch.zeros(len(x)))


def table(num_records: int, scale: float) -> Array:
    x = np.random.default_rng(4).normal(0.5, 1.0, (num_records, 3)).astype(np.float32)
    x[:, 2] *= np.float32(scale)
    return x


def records_of(num_records: int, scale: float = 1.0) -> Records:
    return Records(Interval("table", "pass-0", 0, num_records), {"x": table(num_records, scale)})


def minibatches(num_records: int, batch_size: int, scale: float = 1.0) -> Iterator[tuple[Array, Array, int]]:
    """Gradient, sum of squared per-record gradients, and size of each minibatch, in float64."""
    x = table(num_records, scale).astype(np.float64)
    for start in range(0, num_records, batch_size):
        part = x[start : start + batch_size]
        inputs = np.column_stack([part[:, :2], np.ones(len(part))])
        each = part[:, 2:] * inputs
        yield each.sum(0), (each**2).sum(0), len(part)
