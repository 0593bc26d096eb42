"""The quick figure: more workers need less time, and Adam is drawn at its best rate."""

from typing import Any

import numpy as np
import pytest
from reproduced import quickly

from streaming_vb.reproduce.streaming import QUICK


@pytest.fixture(scope="module")
def tracks(document: dict[str, Any]) -> dict[str, Any]:
    tracks: dict[str, Any] = document["results"]["tracks"]
    return tracks


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quickly("streaming", tmp_path_factory.mktemp("streaming"))


def test_every_run_counts_every_record_and_learns(document: dict[str, Any], tracks: dict[str, Any]) -> None:
    assert document["settings"]["seed"] == 0
    assert list(tracks) == ["1 worker", "4 workers", "synchronous Adam, batch 400"]
    for track in tracks.values():
        assert track["records"][-1] == QUICK.records
        assert len(track["records"]) == len(track["rounds"]) == len(track["elbo"]) == QUICK.records // QUICK.every
        assert (np.diff(track["rounds"]) > 0).all()
        assert track["elbo"][-1] > track["elbo"][0] + 5
        assert track["end"] == pytest.approx(track["elbo"][-1], abs=1e-4)  # all held-out images are measured


def test_more_workers_take_less_time_once_the_ramp_has_let_them_in(tracks: dict[str, Any]) -> None:
    one, four = tracks["1 worker"], tracks["4 workers"]
    assert one["rounds"][0] == four["rounds"][0]  # 1,000 records: the second worker starts at 1,500
    assert one["elbo"][0] == four["elbo"][0]
    assert 0.9 < one["speed_up"] < 1.1
    assert 2 < four["speed_up"] < 4
    assert four["speed_up"] == pytest.approx(QUICK.records / 100 / four["rounds"][-1])


def test_fewer_workers_learn_more_from_a_record(tracks: dict[str, Any]) -> None:
    ends = [track["end"] for track in tracks.values()]
    assert ends[0] == max(ends)
    assert ends[1] > ends[0] - 4


def test_adam_is_drawn_at_its_best_rate_and_waits_for_the_slowest(
    document: dict[str, Any], tracks: dict[str, Any]
) -> None:
    adam = tracks["synchronous Adam, batch 400"]
    assert adam["end"] == max(document["results"]["adam_end_by_rate"].values())
    steps = 45  # in each of nine passes over 1,617 images there are five, the last one short; a part of a tenth
    assert len(document["results"]["adam_end_by_rate"]) == 4
    assert 1.0 < adam["rounds"][-1] / steps < 1.2
