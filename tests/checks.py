"""What several tests look at: fingerprints, deviations in standard errors, and records that every model reads."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from streaming_vb.types import Array, Delta, Fit, FitState, Interval, Lease, Model, NaturalParameters, Records

STANDARD_ERRORS = 5.0
"""Tolerance of every statistical test; with a fixed seed it never flickers."""


def fingerprint(*values: Any) -> str:
    """SHA-256 of every array in nested mappings, sequences and objects with `arrays` or `fields`."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Mapping):
            for name in sorted(value):
                digest.update(f"{name}:{fingerprint(value[name])}".encode())
        elif hasattr(value, "arrays") or hasattr(value, "fields"):
            digest.update(fingerprint(getattr(value, "arrays", None) or value.fields).encode())
        elif isinstance(value, list | tuple):
            digest.update(fingerprint(*value).encode())
        else:
            array = np.asarray(value)
            digest.update(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def deviations(values: Array, expected: Array) -> float:
    """Largest |mean of values [n, ...] - expected| in standard errors."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return float(np.max(np.abs(values.mean(axis=0) - expected) / np.maximum(error, 1e-300)))


def relative_error(actual: Array, expected: Array) -> float:
    """Largest |actual - expected| relative to the largest |expected|."""
    return float(np.max(np.abs(actual - expected)) / max(float(np.max(np.abs(expected))), 1e-300))


def assert_close(actual: NaturalParameters, expected: NaturalParameters, tolerance: float = 1e-12) -> None:
    """Equal up to a relative error, array by array."""
    assert actual.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert relative_error(actual[name], array) <= tolerance, name


def example_records(model: Model, num_records: int, start: int = 0, seed: int = 0) -> Records:
    """Records with every field that a model may read: x [n, D] of 0 and 1, y [n] and id [n]."""
    generator = np.random.default_rng([seed, start])
    columns = int(str(model.describe().get("columns", 1)))
    fields = {
        "x": (generator.random((num_records, columns)) < np.linspace(0.2, 0.8, columns)).astype(np.float32),
        "y": generator.normal(1.0, 2.0, num_records),
        "id": np.arange(start, start + num_records),
    }
    return Records(Interval("example", "pass-0", start, start + num_records), fields)


def delta_of(
    evidence: Mapping[str, Array],
    start: int = 0,
    stop: int = 10,
    *,
    fit_state: FitState | None = None,
    run_id: str = "run",
    source: str = "example",
    base_version: int = 0,
    share: float = 1.0,
    state_weight: float = 1.0,
) -> Delta:
    """A delta with the given evidence, as a worker would send it for [start, stop)."""
    lease = Lease(Interval(source, "pass-0", start, stop), 0, base_version, share, state_weight)
    return Delta(run_id, lease, Fit(NaturalParameters(evidence), fit_state or {}, -1.0), stop - start)


def all_of(arrays: Iterable[Array], value: float) -> list[Array]:
    """Copies of the arrays with one entry replaced."""
    spoiled = []
    for array in arrays:
        copy = array.copy()
        copy.flat[0] = value
        spoiled.append(copy)
    return spoiled
