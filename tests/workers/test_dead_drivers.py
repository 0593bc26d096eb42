"""A driver that is killed takes its local cluster along, and the same command goes on; messages are lost; a disk is
full. In processes of their own, which read at their start what is to go wrong."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.streaming.snapshot import load

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

RECORDS = 40_000
SCRIPT = f"""
import json, logging, sys
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.settings import Settings
from workers import asynchronous

logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
for step in asynchronous.run(LedgerModel(), IntegerSource({RECORDS}), Settings(ramp=0), run_dir=sys.argv[1]):
    if step.status == "merged":
        print(json.dumps({{"version": step.version, "start": step.interval.start}}), flush=True)
"""


def run(
    run_dir: Path, environment: Mapping[str, str], kill_after: int | None = None
) -> tuple[list[dict[str, Any]], str]:
    """The steps of a driver, which is killed after so many of them, and what it said on stderr."""
    command = [sys.executable, "-c", SCRIPT, str(run_dir)]
    errors = run_dir.with_name("errors")
    with (
        open(errors, "w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment}
        ) as driver,
    ):
        assert driver.stdout is not None
        steps = []
        for line in driver.stdout:
            if line.startswith("{"):
                steps.append(json.loads(line))
            if len(steps) == kill_after:
                driver.send_signal(signal.SIGKILL)
    assert driver.returncode == (0 if kill_after is None else -signal.SIGKILL)
    return steps, errors.read_text()


def test_a_killed_driver_lost_messages_and_a_full_disk_lose_and_double_nothing(tmp_path: Path) -> None:
    losses = {"num_failures": 4, "req_failure_prob": 5, "resp_failure_prob": 5, "in_flight_failure_prob": 5}
    lossy = {"RAY_testing_rpc_failure": json.dumps({"CoreWorkerService.grpc_client.PushTask": losses})}
    run_dir = tmp_path / "run"
    before, _ = run(run_dir, lossy, kill_after=12)
    after, said = run(run_dir, {"SVB_FAIL": "S2:full:3"})
    assert said.count("the disk of the server is full") == said.count("there is space again") == 1, said
    versions = [step["version"] for step in (*before, *after)]
    assert len(set(versions)) == len(versions)  # a lost answer may come late, and none twice
    assert not {step["start"] for step in before} & {step["start"] for step in after}
    state = load(run_dir / "posterior.safetensors").state
    assert state.num_records == RECORDS
    np.testing.assert_array_equal(state.posterior["sum"], LedgerModel().sums(np.arange(RECORDS)))
