"""The benchmark of kills on Ray, one of each kind, with lost messages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

FILE = Path(__file__).parents[2] / "benchmarks" / "reliability" / "ray_kills.py"


def test_nothing_is_lost_or_doubled_whatever_dies_on_a_cluster() -> None:
    command = [sys.executable, str(FILE), "--kills", "4", "--seed", "0"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    results = json.loads(finished.stdout)["results"]
    assert results["violations"] == []
    assert results["kills_by_role"] == {"worker": 1, "server": 1, "driver": 1, "node": 1}
    assert (results["lost"], results["doubled"]) == (0, 0)
    assert results["checks"] >= 4
