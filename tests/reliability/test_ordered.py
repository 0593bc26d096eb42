"""The benchmark of ordered mode under kills, one short run; and that it finds other bits."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))

import ordered
from ordered import Tally, one_run
from ordered_run import MODELS, arguments_of, outcome, without_faults

from streaming_vb.streaming.run import run

RECORDS = 400


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workers", [2, 8])
def test_the_number_of_workers_does_not_matter(model: str, workers: int) -> None:
    *_, last = run(*arguments_of(model, 3, RECORDS), workers=workers)
    assert outcome(last.state()) == without_faults(model, 3, RECORDS)
    assert last.records == RECORDS


@pytest.mark.parametrize("model", MODELS)
def test_another_seed_gives_other_bits(model: str) -> None:
    assert without_faults(model, 3, RECORDS)["sha256"] != without_faults(model, 4, RECORDS)["sha256"]


def killed(directory: Path, kills: int, roles: list[str], monkeypatch: pytest.MonkeyPatch) -> Tally:
    """A run of the conjugate model in which processes of these roles are killed."""
    monkeypatch.setattr(ordered, "SHARES", dict.fromkeys(roles, 1))
    tally = Tally()
    one_run(directory / "0", "linear", 0, Namespace(kills=kills, records=2_000, seed=0), tally)
    return tally


@pytest.mark.parametrize("roles", [["worker", "server"], ["everything"]])
def test_kills_do_not_matter(roles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = killed(tmp_path, 2, roles, monkeypatch)
    assert tally.failures == []
    assert sum(tally.kills.values()) + tally.kills_after_the_end == 2
    assert not list(tmp_path.iterdir())


def test_other_bits_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ordered, "without_faults", lambda model, seed, records: without_faults(model, seed + 1, records)
    )
    (failure,) = killed(tmp_path, 0, [], monkeypatch).failures
    assert "instead of" in failure
