"""The benchmark of recovery times: runs do recover from each kind of kill, and count exactly after it."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))

import recovery
from journal import WithoutJournal, interval, store_is

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.streaming import server_setup, snapshot
from streaming_vb.streaming.store import Store

CHANCE = random.Random(0)


def test_a_run_goes_on_and_counts_exactly_after_every_kind_of_kill(tmp_path: Path) -> None:
    run = recovery.Run("ledger", tmp_path / "run")
    run.next("step")
    _, killed_at = run.kill("svb-worker", CHANCE)
    assert run.next("step", killed_at) > killed_at
    _, killed_at = run.kill("svb-server", CHANCE)
    assert run.next("step", run.next("restarted", killed_at)) > killed_at
    killed_at = run.kill_all()
    run.start()
    assert run.next("step", killed_at) > killed_at
    recovery.require_exact(run)
    state = snapshot.load(tmp_path / "run" / "posterior.safetensors").state
    ids = [np.arange(part.start, part.stop) for part in state.ledger.intervals()]
    assert state.posterior["sum"].tolist() == LedgerModel().sums(np.concatenate(ids)).tolist()
    assert state.num_records > 0


def test_a_record_too_many_is_seen() -> None:
    class Doubled(recovery.Run):
        def __init__(self) -> None:
            """No process."""

        def stop(self) -> tuple[float, float]:
            return 100, 101

    with pytest.raises(SystemExit, match="100 records in the ledger, 101 in the posterior"):
        recovery.require_exact(Doubled())


def test_percentiles_are_those_of_the_kills() -> None:
    assert recovery.summary([3.0, 1.0, 2.0]) == {"kills": 3, "p50": 2.0, "p99": 2.98, "max": 3.0}


def test_the_journal_is_left_out_in_the_benchmark_alone() -> None:
    with store_is(WithoutJournal):
        assert server_setup.Store is WithoutJournal
    assert server_setup.Store is Store


def test_the_interval_of_a_ratio_is_that_of_student() -> None:
    found = interval([0.9, 1.0, 1.1])
    assert found["mean"] == pytest.approx(1.0)
    assert found["upper"] - found["mean"] == pytest.approx(4.303 * 0.1 / np.sqrt(3))
