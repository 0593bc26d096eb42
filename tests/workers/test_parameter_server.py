"""The actors' classes are plain: they are tested without Ray."""

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.prepared import prepare
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Interval, Lease
from workers import parameter_server
from workers.encoder_worker import EncoderWorker
from workers.parameter_server import ParameterServer

SOURCE = IntegerSource(records_per_partition=100)
LEASE = Lease(Interval(SOURCE.fingerprint, "part-0", 0, 60), 0, 0, 1.0, 1.0)


def opened(run_dir: Path | None = None) -> tuple[ParameterServer, EncoderWorker]:
    prepared = prepare(LedgerModel(), SOURCE, Settings(), run_dir=run_dir)
    return ParameterServer(prepared.server_setup, lock_seconds=0), EncoderWorker(prepared.local_update)


def test_a_push_that_is_sent_twice_gets_the_same_answer_and_is_not_added() -> None:
    server, worker = opened()
    _, snapshot = server.open()
    report, delta = worker.process(LEASE, snapshot)
    assert report is not None
    assert report.num_records == 60
    assert report.digest == ""  # this run is not audited
    assert delta is not None
    first, published = server.push(delta, publish=True, oldest_base=0)
    second, published_again = server.push(delta, publish=True, oldest_base=0)
    assert first is not None
    assert first.status == "merged"
    assert second == first
    assert published is not None
    assert published_again is published
    np.testing.assert_array_equal(published.posterior["sum"], LedgerModel().sums(np.arange(60)))
    assert server.state().num_records == 60


def test_what_was_answered_is_there_when_the_server_is_not(tmp_path: Path) -> None:
    server, worker = opened(tmp_path)
    position, snapshot = server.open()
    _, delta = worker.process(replace(LEASE, generation=position.generation), snapshot)
    assert delta is not None
    answer = server.push(delta, publish=True, oldest_base=0)
    server._server._store._generation.release()  # as when its process dies

    follower, _ = opened(tmp_path)
    follower._since = position.generation
    position, snapshot = follower.open()
    assert (position.version, position.num_records) == (1, 60)
    assert snapshot.version == 1
    receipt, _ = follower.push(delta, publish=True, oldest_base=0)
    assert (receipt.status, receipt.version, receipt.num_records) == ("merged", 1, 60)
    assert answer[0].version == 1
    assert follower.close().num_records == follower.close().num_records == 60


def test_a_full_disk_is_answered_without_a_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    server, worker = opened()
    _, snapshot = server.open()
    _, delta = worker.process(LEASE, snapshot)
    monkeypatch.setattr(parameter_server, "_PAUSE", 0.0)

    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(server._server, "push", full)
        assert server.push(delta, publish=True, oldest_base=0) == (None, None)
    receipt, _ = server.push(delta, publish=True, oldest_base=0)
    assert receipt.status == "merged"


def test_a_worker_without_the_snapshot_gives_no_report() -> None:
    _, worker = opened()
    assert worker.process(LEASE, None) == (None, None)


def test_a_server_loads_no_torch() -> None:
    script = "import sys, workers.parameter_server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
