"""The ledger model: a conjugate model whose evidence is integers, so that counting is checked without a tolerance.

The record with id i has the evidence (1, i, i^2 mod 2^20, h(i) mod 2^20). Sums of integers below 2^53 are exact in
float64: after any run the four sums must equal those over the ledger's intervals, and a lost or doubled record changes
them. (Sums, not exclusive-or, under which a doubled pair would cancel.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streaming_vb.errors import DataError
from streaming_vb.families.unit_normal import UnitNormal
from streaming_vb.types import Array, NaturalParameters, Records

_MODULUS = 2**20


@dataclass(frozen=True, slots=True)
class LedgerModel:
    """Four integer sums over the ids of the records; records have the field id [n].

    >>> LedgerModel().sums(np.array([0, 1, 2])).tolist()[:3]
    [3.0, 3.0, 5.0]
    """

    @property
    def family(self) -> UnitNormal:
        """Exact sums."""
        return UnitNormal()

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {"model": "ledger"}

    def prior(self, seed: int) -> NaturalParameters:
        """Zero sums, whatever the seed."""
        return NaturalParameters({"sum": np.zeros(4)})

    def validate(self, records: Records) -> None:
        """Raise DataError unless ids are integers [n]."""
        ids = records["id"]
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise DataError(f"{records.interval}: ids must be integers [n], got {ids.dtype} of shape {ids.shape}")

    def evidence(self, records: Records) -> NaturalParameters:
        """The four sums of the records."""
        return NaturalParameters({"sum": self.sums(records["id"])})

    def log_predictive(self, posterior: NaturalParameters, records: Records) -> float:
        """The model predicts nothing: 0 nats."""
        return 0.0

    def sums(self, ids: Array) -> Array:
        """(n, sum i, sum i^2 mod 2^20, sum h(i) mod 2^20) [4]."""
        i = ids.astype(np.uint64)
        mixed = i * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth, volume 3, section 6.4), modulo 2^64
        hashed = (mixed >> np.uint64(32)) % np.uint64(_MODULUS)
        squares = (i * i) % np.uint64(_MODULUS)
        return np.array([len(i), i.sum(), squares.sum(), hashed.sum()], np.float64)


def example() -> LedgerModel:
    """A small model, for docs and laws."""
    return LedgerModel()
