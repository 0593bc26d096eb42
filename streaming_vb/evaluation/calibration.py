"""Calibration: whether a predictive distribution means what it says (Gneiting, Balabdaoui and Raftery 2007).

If observations come from the predictive, their probability integral transform F(x) is uniform on [0, 1]: a heap at both
ends means an overconfident predictive, a heap in the middle one that is too wide. A classifier is calibrated if, of all
predictions made with confidence c, the fraction c is right (Guo et al. 2017).

Draws may come from any model; with the uncertainty of the weights in them, every draw has weights of its own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streaming_vb.errors import ConfigError, DataError
from streaming_vb.types import Array

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Central intervals that people ask for."""
NUM_BINS = 15
"""Of Guo et al."""


class Coverage(NamedTuple):
    """How often central intervals hold the observation.

    Attributes:
        level: nominal coverage [L].
        covered: part of the observations inside [L].
        standard_error: of `covered` for a calibrated predictive, sqrt(level (1 - level) / n) [L].
    """

    level: Array
    covered: Array
    standard_error: Array


class Uniformity(NamedTuple):
    """Distance of probability integral transforms from uniform.

    Attributes:
        distance: Kolmogorov's, sup_u |F_n(u) - u|.
        p_value: probability of a larger one for n independent uniform values, in the limit of large n.
    """

    distance: float
    p_value: float


class Reliability(NamedTuple):
    """Confidence against accuracy, in bins of equal width.

    Attributes:
        predictions: how many per bin [bins].
        confidence: mean confidence per bin [bins]; NaN where it is empty.
        accuracy: part that was right per bin [bins]; NaN where it is empty.
        standard_error: of `accuracy` for a calibrated classifier [bins].
        expected_calibration_error: sum over bins of predictions / n |accuracy - confidence|. It is above 0 even for a
            calibrated classifier, by about the standard errors.
    """

    predictions: Array
    confidence: Array
    accuracy: Array
    standard_error: Array
    expected_calibration_error: float


def probability_integral_transform(draws: Array, x: Array, generator: np.random.Generator) -> Array:
    """F(x) [n, ...] under draws [S, n, ...] of the predictive of each observation x [n, ...], randomized at ties.

    u = (#{draws < x} + v (#{draws = x} + 1)) / (S + 1),  v ~ U(0, 1)

    is exactly uniform where x and its S draws are exchangeable, for every S, and for discrete data too (Dunn and Smyth
    1996, section 2, with the observation as one of S + 1 exchangeable values).

    Raises:
        DataError: shapes do not fit, or a value is NaN.

    >>> draws = np.zeros((99, 1))
    >>> probability_integral_transform(draws, np.array([2.0]), np.random.default_rng(0)) > 0.99
    array([ True])
    """
    if draws.ndim != x.ndim + 1 or draws.shape[1:] != x.shape or not len(draws):
        raise DataError(
            f"draws must be [S, ...] over observations [...], got {list(draws.shape)} and {list(x.shape)}. "
            "Give at least one draw of every observation, the draws along the first axis"
        )
    if np.isnan(draws).any() or np.isnan(x).any():
        raise DataError("calibration needs numbers, got NaN in draws or observations. Impute or drop these records")
    below, equal = (draws < x).sum(axis=0), (draws == x).sum(axis=0)
    transform: Array = (below + generator.random(x.shape) * (equal + 1)) / (len(draws) + 1)
    return transform


def coverage(transform: Array, levels: Sequence[float] = LEVELS) -> Coverage:
    """Coverage of the predictive's central intervals: F(x) lies in [(1 - level) / 2, (1 + level) / 2].

    Args:
        transform: F(x), of any shape; the standard error takes its values as independent.
        levels: between 0 and 1.

    Raises:
        ConfigError: a level outside (0, 1).
        DataError: no observation.

    >>> coverage(np.linspace(0.005, 0.995, 100), levels=(0.5, 0.9)).covered
    array([0.5, 0.9])
    """
    level = np.asarray(levels, dtype=np.float64)
    if not ((level > 0) & (level < 1)).all():
        raise ConfigError(f"levels must lie between 0 and 1, got {', '.join(map(str, levels))}. Type 0.9 for 90%")
    values = _flat(transform)
    covered = (2 * np.abs(values - 0.5)[:, None] <= level).mean(axis=0)
    return Coverage(level, covered, np.sqrt(level * (1 - level) / len(values)))


def uniformity(transform: Array) -> Uniformity:
    """Kolmogorov distance of F(x) from uniform; its values are taken as independent.

    Raises:
        DataError: no observation.

    >>> uniformity(np.array([0.125, 0.375, 0.625, 0.875])).distance
    0.125
    """
    values = np.sort(_flat(transform))
    ranks = np.arange(len(values) + 1) / len(values)
    distance = float(max(np.max(ranks[1:] - values), np.max(values - ranks[:-1])))
    return Uniformity(distance, _kolmogorov_tail(math.sqrt(len(values)) * distance))


def reliability(probabilities: Array, labels: Array, num_bins: int = NUM_BINS) -> Reliability:
    """Reliability of the most probable class.

    Args:
        probabilities: predictive [n, C], averaged over draws of the weights where there are some.
        labels: true classes [n], 0 to C - 1.
        num_bins: of equal width, over confidences from 0 to 1.

    Raises:
        DataError: shapes do not fit, or a row is not a distribution.
        ConfigError: no bin.

    >>> reliability(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), num_bins=2).accuracy
    array([nan, 0.5])
    """
    if num_bins < 1:
        raise ConfigError(f"reliability needs at least 1 bin, got {num_bins}")
    _require_distributions(probabilities, labels)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    held = np.where(count > 0, count, np.nan)
    mean_confidence = np.bincount(bins, confidence, num_bins) / held
    accuracy = np.bincount(bins, right, num_bins) / held
    spread = np.bincount(bins, confidence * (1 - confidence), num_bins)
    gap = np.nan_to_num(np.abs(accuracy - mean_confidence))
    return Reliability(
        count, mean_confidence, accuracy, np.sqrt(np.maximum(spread, 0)) / held, float(gap @ count / count.sum())
    )


def _flat(transform: Array) -> Array:
    if not transform.size:
        raise DataError("calibration needs at least one observation, got none")
    return transform.reshape(-1)


def _kolmogorov_tail(scaled: float) -> float:
    """P(sqrt(n) distance > t) = 2 sum_k (-1)^(k - 1) exp(-2 k^2 t^2)  (Kolmogorov 1933)."""
    if scaled < 0.2:  # it is 1 there, to 11 digits, and the series is slow
        return 1.0
    k = np.arange(1, 101)
    return float(np.clip(2 * np.sum((-1.0) ** (k - 1) * np.exp(-2 * (k * scaled) ** 2)), 0, 1))


def _require_distributions(probabilities: Array, labels: Array) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise DataError(
            f"reliability needs probabilities [n, C] and labels [n], got {list(probabilities.shape)} and "
            f"{list(labels.shape)}"
        )
    wrong = ~(np.isclose(probabilities.sum(axis=1), 1, atol=1e-4) & (probabilities >= 0).all(axis=1))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"probabilities must be at least 0 and add up to 1; row {row} adds up to {probabilities[row].sum():g}. "
            "Give probabilities, not logits"
        )
    wrong = (labels < 0) | (labels >= probabilities.shape[1])
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"labels must be 0 to {probabilities.shape[1] - 1}; label {row} is {labels[row]}")
