import numpy as np
import pytest

from streaming_vb.families.full_rank_normal import FullRankNormal
from streaming_vb.types import Moments, NaturalParameters

FAMILY = FullRankNormal()


def random_member(seed: int, size: int = 5) -> NaturalParameters:
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(size, 2 * size))
    return FAMILY.natural(Moments(generator.normal(size=size), root @ root.T))


def test_precision_is_exactly_symmetric() -> None:
    precision = random_member(1)["precision"]
    np.testing.assert_array_equal(precision, precision.T)


def test_a_matrix_that_is_not_symmetric_is_not_normalizable() -> None:
    a = random_member(1)
    precision = a["precision"].copy()
    precision[0, 1] += 1.0
    assert not FAMILY.is_normalizable(NaturalParameters({**a.arrays, "precision": precision}))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1e4, 1e8, 1e10, 1e30, 1e100])
def test_what_is_normalizable_has_a_mean_and_a_cholesky_factor(size: float, seed: int) -> None:
    """One huge record: the prior is lost in the rounding of its x x', which eigenvalues alone may not show."""
    x = size * np.random.default_rng(seed).normal(size=6)
    member = NaturalParameters({"precision_mean": x, "precision": np.eye(6) + np.outer(x, x)})
    if FAMILY.is_normalizable(member):
        assert np.isfinite(FAMILY.kl(member, member))
    assert FAMILY.is_normalizable(member) == (size < 1e5)


def test_a_matrix_with_one_negative_direction_is_not_normalizable() -> None:
    a = random_member(1)
    values, vectors = np.linalg.eigh(a["precision"])
    values[0] = -1e-3
    indefinite = (vectors * values) @ vectors.T
    assert np.all(np.diag(indefinite) > 0)
    assert not FAMILY.is_normalizable(NaturalParameters({**a.arrays, "precision": (indefinite + indefinite.T) / 2}))


def test_kl_of_close_members_keeps_its_digits() -> None:
    a = random_member(1)
    epsilon = 2.0**-30
    closer = NaturalParameters({name: array * (1 + epsilon) for name, array in a.arrays.items()})
    assert FAMILY.kl(a, closer) == pytest.approx(5 * epsilon**2 / 4, rel=1e-6)


def test_forgetting_everything_leaves_the_prior_precision_at_the_posterior_mean() -> None:
    posterior, prior = random_member(1), random_member(2)
    forgotten = FAMILY.scale_evidence(posterior, prior, 0.0)
    np.testing.assert_array_equal(forgotten["precision"], prior["precision"])
    np.testing.assert_allclose(FAMILY.mean(forgotten), FAMILY.mean(posterior), rtol=1e-10)
