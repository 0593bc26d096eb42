"""The quick figure, and where one curve stays above another."""

from typing import Any

import numpy as np
import pytest
from reproduced import quickly

from streaming_vb.reproduce.figure_4 import above_from


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quickly("figure-4", tmp_path_factory.mktemp("figure-4"))


def test_natural_gradient_is_above_plain_from_minibatch_100_on(document: dict[str, Any]) -> None:
    results = document["results"]
    assert 0 < results["natural_gradient_above_plain_from"] <= 100
    ours, plain = (np.array(results["arms"][name]["elbo"]["mean"]) for name in ("natural gradient", "plain"))
    later = np.array(results["minibatches"]) >= results["natural_gradient_above_plain_from"]
    assert (ours[later] > plain[later]).all()
    ends = results["elbo_at_the_end"]
    assert ends["natural gradient"]["mean"] == pytest.approx(ours[-1], abs=1e-3)


def test_every_arm_learns_and_the_elbo_is_the_difference_of_its_terms(document: dict[str, Any]) -> None:
    assert document["settings"]["seeds"] == [0, 1]
    assert set(document["results"]["arms"]) == {"plain", "natural gradient", "variational dropout"}
    for arm in document["results"]["arms"].values():
        mean = {term: np.array(curves["mean"]) for term, curves in arm.items()}
        assert np.allclose(mean["elbo"], mean["reconstruction"] - mean["kl"], atol=3e-3)
        assert mean["elbo"][-1] > mean["elbo"][0] + 10
        assert (mean["kl"] > 0).all()
        for curves in arm.values():
            assert (np.array(curves["least"]) <= np.array(curves["mean"])).all()
            assert (np.array(curves["greatest"]) >= np.array(curves["mean"])).all()


def test_arms_start_from_the_same_weights(document: dict[str, Any]) -> None:
    first = [arm["elbo"]["mean"][0] for arm in document["results"]["arms"].values()]
    assert np.ptp(first) < 0.5  # one step on
    assert -48 < np.mean(first) < -42  # 64 log 2 = 44.4 is what equal odds give


def test_cost_is_relative_to_plain(document: dict[str, Any]) -> None:
    cost = document["results"]["cost"]
    assert cost["plain"]["ratio_to_plain"] == 1.0
    assert len(cost) == 4
    assert all(arm["milliseconds"] > 0 for arm in cost.values())
    assert cost["natural gradient"]["ratio_to_plain"] > 1


@pytest.mark.parametrize(
    ("first", "expected"),
    [([1, 1, 1, 1], 1), ([0, 1, 1, 1], 3), ([1, 0, 1, 0], None), ([1, -1, 1, 1], 5), ([0, 0, 0, 1], 9)],
    ids=["always", "equal-at-first", "not-at-the-end", "crosses-twice", "last-point"],
)
def test_above_from(first: list[float], expected: int | None) -> None:
    assert above_from([1, 3, 5, 9], np.array(first), np.zeros(4)) == expected
