import numpy as np
import pytest
from checks import fingerprint

from streaming_vb.families.full_rank_normal import FullRankNormal
from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.types import Array, Moments, NaturalParameters

FAMILY = MeanFieldNormal()
MANY = 70_001
"""Weights: more than two blocks, and not a multiple of one."""


def random_member(size: int, seed: int) -> NaturalParameters:
    generator = np.random.default_rng(seed)
    return FAMILY.natural(Moments(generator.normal(1.0, 2.0, size), generator.uniform(0.1, 3.0, size)))


def as_full_rank(natural: NaturalParameters) -> NaturalParameters:
    return NaturalParameters({"precision_mean": natural["precision_mean"], "precision": np.diag(natural["precision"])})


def moments(natural: NaturalParameters) -> tuple[Array, Array]:
    return natural["precision_mean"] / natural["precision"], 1 / natural["precision"]


def test_it_is_the_full_rank_normal_with_a_diagonal_precision() -> None:
    a, b, full = random_member(4, 1), random_member(4, 2), FullRankNormal()
    assert FAMILY.kl(a, b) == pytest.approx(full.kl(as_full_rank(a), as_full_rank(b)), rel=1e-12)
    assert FAMILY.log_normalizer(a) == pytest.approx(full.log_normalizer(as_full_rank(a)), rel=1e-12)
    mean = FAMILY.mean(b)
    assert FAMILY.distance_sd(a, mean) == pytest.approx(full.distance_sd(as_full_rank(a), mean), rel=1e-12)


def test_natural_parameters_are_precision_times_mean_and_precision() -> None:
    natural = FAMILY.natural(Moments(np.array([3.0, -1.0]), np.array([0.5, 4.0])))
    np.testing.assert_array_equal(natural["precision_mean"], [6.0, -0.25])
    np.testing.assert_array_equal(natural["precision"], [2.0, 0.25])


def test_kl_over_several_blocks_is_the_textbook_formula() -> None:
    a, b = random_member(MANY, 1), random_member(MANY, 2)
    (mean_a, variance_a), (mean_b, variance_b) = moments(a), moments(b)
    terms = variance_a / variance_b - 1 - np.log(variance_a / variance_b) + (mean_a - mean_b) ** 2 / variance_b
    assert FAMILY.kl(a, b) == pytest.approx(0.5 * terms.sum(), rel=1e-12)


def test_distance_over_several_blocks_is_the_textbook_formula() -> None:
    a, mean = random_member(MANY, 1), np.linspace(-1, 1, MANY)
    expected = np.sqrt(np.sum(a["precision"] * (FAMILY.mean(a) - mean) ** 2))
    assert FAMILY.distance_sd(a, mean) == pytest.approx(expected, rel=1e-12)


def test_scaling_over_several_blocks_is_the_formula() -> None:
    posterior, prior = random_member(MANY, 1), random_member(MANY, 2)
    scaled = FAMILY.scale_evidence(posterior, prior, 0.25)
    precision = prior["precision"] + 0.25 * (posterior["precision"] - prior["precision"])
    np.testing.assert_allclose(scaled["precision"], precision, rtol=1e-14)
    np.testing.assert_allclose(scaled["precision_mean"], precision * FAMILY.mean(posterior), rtol=1e-14)


def test_kl_of_close_members_keeps_its_digits() -> None:
    """1/4 e^2 per weight for S_b = (1 + e) S_a; r - log r loses all digits at e = 1e-9."""
    a = random_member(1000, 1)
    epsilon = 2.0**-30
    closer = NaturalParameters({name: array * (1 + epsilon) for name, array in a.arrays.items()})
    assert FAMILY.kl(a, closer) == pytest.approx(1000 * epsilon**2 / 4, rel=1e-6)


def test_float32_members_scale_in_float32() -> None:
    posterior, prior = (random_member(10, seed).astype(np.float32) for seed in (1, 2))
    scaled = FAMILY.scale_evidence(posterior, prior, 0.3)
    assert {array.dtype for array in scaled.arrays.values()} == {np.dtype(np.float32)}


def test_large_results_are_not_overwritten_by_later_ones() -> None:
    a, b = random_member(200_000, 1), random_member(200_000, 2)
    kept = FAMILY.add(a, b)
    before = fingerprint(kept)
    for _ in range(30):
        FAMILY.add(b, b)
        FAMILY.mean(a)
        FAMILY.scale_evidence(a, b, 0.5)
    assert fingerprint(kept) == before
