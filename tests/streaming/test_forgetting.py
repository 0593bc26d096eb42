"""The window's numbers, worked out by hand: prior precision 1, posterior precision 5, mean 2 (and the same in two
dimensions)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import ConfigError
from streaming_vb.families.full_rank_normal import FullRankNormal
from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.families.unit_normal import UnitNormal
from streaming_vb.streaming.forgetting import Nothing, Window, parse
from streaming_vb.types import NaturalParameters

FAMILY = MeanFieldNormal()
PRIOR = NaturalParameters({"precision_mean": np.array([0.0]), "precision": np.array([1.0])})
POSTERIOR = NaturalParameters({"precision_mean": np.array([10.0]), "precision": np.array([5.0])})


@pytest.mark.parametrize(
    ("num_records", "effective"), [(0, 2000), (20_000, 2000), (20_010, 2001), (1_000_000, 100_000)]
)
def test_effective_records_are_a_tenth_but_at_least_2000(num_records: int, effective: float) -> None:
    assert Window(FAMILY).effective_records(num_records) == pytest.approx(effective)


@pytest.mark.parametrize(
    ("num_new", "num_records", "precision"),
    [
        (1000, 50_000, 4.274923012311927),  # 1 + 4 exp(-1000 / 5000)
        (1000, 0, 3.4261226388505337),  # 1 + 4 exp(-1000 / 2000)
        (500, 50_000, 4.619349672143838),  # 1 + 4 exp(-500 / 5000)
        (0, 50_000, 5.0),
    ],
)
def test_forgetting_decays_the_evidence_in_the_precision(num_new: int, num_records: int, precision: float) -> None:
    remembered = Window(FAMILY).forget(POSTERIOR, PRIOR, num_new, num_records)
    np.testing.assert_allclose(remembered["precision"], [precision], rtol=1e-14)
    np.testing.assert_allclose(FAMILY.mean(remembered), [2.0], rtol=1e-14)


@pytest.mark.parametrize(
    ("num_records", "precision"),
    [(0, 5.0), (2000, 5.0), (3000, 7.0), (10_000, 21.0), (50_000, 41.0), (10**7, 41.0)],
    ids=["start", "window full", "1.5 windows", "5 windows", "10 windows", "always 10 windows"],
)
def test_served_counts_the_evidence_of_all_records(num_records: int, precision: float) -> None:
    """1 + max(1, N / n_eff) 4."""
    served = Window(FAMILY).served(POSTERIOR, PRIOR, num_records)
    np.testing.assert_allclose(served["precision"], [precision], rtol=1e-14)
    np.testing.assert_allclose(FAMILY.mean(served), [2.0], rtol=1e-14)


def test_a_full_rank_window_does_the_same_to_a_matrix() -> None:
    prior = NaturalParameters({"precision_mean": np.zeros(2), "precision": np.eye(2)})
    precision = np.array([[5.0, 2.0], [2.0, 3.0]])
    posterior = NaturalParameters({"precision_mean": precision @ np.array([2.0, -1.0]), "precision": precision})
    remembered = Window(FullRankNormal()).forget(posterior, prior, 1000, 50_000)
    kept = 0.8187307530779818  # exp(-0.2)
    np.testing.assert_allclose(
        remembered["precision"], [[1 + 4 * kept, 2 * kept], [2 * kept, 1 + 2 * kept]], rtol=1e-14
    )
    np.testing.assert_allclose(FullRankNormal().mean(remembered), [2.0, -1.0], rtol=1e-13)


@given(st.integers(0, 10**7), st.integers(1, 10**5))
def test_precision_stays_between_prior_and_posterior(num_records: int, num_new: int) -> None:
    remembered = Window(FAMILY).forget(POSTERIOR, PRIOR, num_new, num_records)
    assert 1.0 <= remembered["precision"][0] <= 5.0


def test_forgetting_nothing_returns_its_input() -> None:
    assert Nothing().forget(POSTERIOR, PRIOR, 1000, 50_000) is POSTERIOR
    assert Nothing().served(POSTERIOR, PRIOR, 50_000) is POSTERIOR


def test_none_is_nothing() -> None:
    assert parse("none", UnitNormal()) == Nothing()


def test_a_window_is_read_from_its_text() -> None:
    assert parse("window:500:0.25", FAMILY) == Window(FAMILY, minimum=500, fraction=0.25)


@given(
    st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
)
def test_a_window_describes_itself_as_it_is_typed(minimum: float, fraction: float) -> None:
    window = Window(FAMILY, minimum, fraction)
    assert parse(window.describe(), FAMILY) == window


@pytest.mark.parametrize(
    "text",
    [
        "",
        "windows:2000:0.1",
        "window",
        "window:2000",
        "window:2000:0.1:3",
        "window:many:0.1",
        "window:0:0.1",
        "window:-5:0.1",
        "window:2000:-0.1",
        "window:2000:1.5",
        "window:inf:0.1",
        "window:nan:0.1",
        "window:2000:nan",
        "None",
    ],
)
def test_a_text_that_means_nothing_says_what_to_type(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Type --forgetting window:2000:0\.1") as raised:
        parse(text, FAMILY)
    assert repr(text) in str(raised.value)


def test_a_family_that_cannot_forget_says_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"unit-normal.*Type --forgetting none"):
        parse("window:2000:0.1", UnitNormal())
