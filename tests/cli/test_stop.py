"""`stop` ends a run as Ctrl-C would, and ends nothing else."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typing_verbs import answer, fitted, rows, running, typed

from streaming_vb.cli import stop
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import snapshot


def test_a_run_saves_and_ends(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        told = answer("stop", tmp_path)
        assert process.wait(timeout=30) == 0
    saved = snapshot.load(tmp_path / "posterior.safetensors").state
    assert (told["event"], told["version"], told["records"]) == ("stopped", saved.version, saved.num_records)
    assert saved.num_records == 10 * saved.version > 0
    assert rows(tmp_path) == saved.version
    assert "whole" not in typed("verify", tmp_path)
    assert not (tmp_path / "driver.json").exists()


def test_where_nothing_runs_it_says_so(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(20))
    assert typed("stop", tmp_path) == f"nothing is running in {tmp_path}\n"
    assert answer("stop", tmp_path)["event"] == "nothing-running"


def test_a_driver_that_was_killed_is_not_asked(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.kill()
        process.wait()
    assert (tmp_path / "driver.json").exists()
    assert "nothing is running" in typed("stop", tmp_path)


def test_a_process_that_only_has_the_number_of_the_driver_is_left_alone(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(20))
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "driver.json").write_text(json.dumps({"pid": bystander.pid, "started": "an earlier boot 17"}))
        assert "nothing is running" in typed("stop", tmp_path)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_lock_without_a_driver_is_told(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(20))
    descriptor = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert f"no driver to ask, and process {os.getpid()} holds lock" in typed("stop", tmp_path, code=2)
    finally:
        os.close(descriptor)


def test_a_run_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "WAIT", 0.3)
    fitted(tmp_path, IntegerSource(20))
    script = (
        "import signal, sys, time; from pathlib import Path; from streaming_vb.streaming import driver_file\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); driver_file.write(Path(sys.argv[1])); print(flush=True)\n"
        "time.sleep(60)"
    )
    deaf = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        assert f"process {deaf.pid} was asked to stop" in typed("stop", tmp_path, code=2)
    finally:
        deaf.kill()
        deaf.communicate()


def test_another_directory_is_refused(tmp_path: Path) -> None:
    assert "not a run directory" in typed("stop", tmp_path, code=2)
    assert "not a run directory" in typed("stop", tmp_path / "nowhere", code=2)
