"""The benchmark of recovery times: runs do recover from each kind of kill, and count exactly after it."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))

import recovery
from journal import WithoutJournal, interval

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.journal import PutAside
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.store import Store
from streaming_vb.types import Interval, SetAside

CHANCE = random.Random(0)
RULE = MergeRule(LedgerModel().family, Nothing(), measure=False)


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


def test_what_the_journal_is_compared_with_has_none(tmp_path: Path) -> None:
    model = LedgerModel()
    state = ServerState("run", model.prior(0), model.prior(0), {})
    entry = PutAside(SetAside(Interval("source", "part-0", 0, 10), 10, "not finite"), True)
    recovered = []
    for kind in (Store, WithoutJournal):
        writing, reading = (kind(tmp_path / kind.__name__, {}, rule=RULE, keep_fit_state=True) for _ in range(2))
        writing.open(state)
        writing.append(entry)
        writing.sync()
        writing.abandon()
        recovered.append(reading.open(state).state.ledger.num_covered())
        reading.abandon()
    assert recovered == [10, 0]


def test_the_interval_of_a_ratio_is_that_of_student() -> None:
    found = interval([0.9, 1.0, 1.1])
    assert found["mean"] == pytest.approx(1.0)
    assert found["upper"] - found["mean"] == pytest.approx(4.303 * 0.1 / np.sqrt(3))
