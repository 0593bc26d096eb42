"""A short version of `benchmarks/reliability/kills.py`, and its oracle."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streaming_vb.models.ledger_model import LedgerModel

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "reliability" / "kills.py"


@pytest.mark.parametrize(
    ("kills", "points", "expected"),
    [(20, 0, {"worker": 12, "server": 5, "driver": 2, "everything": 1}), (0, 1, dict.fromkeys(("W6", "S4", "D2"), 1))],
    ids=["at random moments", "at every named point"],
)
def test_every_record_is_counted_once_whatever_is_killed(kills: int, points: int, expected: dict[str, int]) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--points", str(points), "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert results["violations"] == []
    assert (results["lost"], results["doubled"]) == (0, 0)
    assert results["kills"] == kills + 22 * points
    counted = {**results["kills_by_role"], **results["kills_by_point"]}
    assert {what: counted[what] for what in expected} == expected
    assert results["checks"] > results["kills"]


def test_the_oracle_agrees_with_the_model_and_sees_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import kills

    sums = kills.Sums(2 * kills.RECORDS_PER_PARTITION)
    first = kills.RECORDS_PER_PARTITION
    ids = np.concatenate([np.arange(10, 20), np.arange(first + 5, first + 1000)])
    over = sums.over([("part-0", 10, 20), ("part-1", 5, 1000)])
    assert over.tolist() == LedgerModel().sums(ids).tolist()
    assert over.tolist() != LedgerModel().sums(ids[1:]).tolist()
