"""`status` tells what a run does now, from its files, and disturbs nothing."""

import fcntl
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typing_verbs import answer, fitted, rows, running, typed

from streaming_vb.cli import status
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import snapshot


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        seen = answer("status", tmp_path)
        again = answer("status", tmp_path)
        assert process.poll() is None
    assert (seen["running"], seen["pid"], seen["generation"]) == (True, process.pid, 1)
    assert seen["version"] >= 3
    assert seen["records"] == 10 * seen["version"]
    assert again["version"] >= seen["version"]
    assert seen["snapshot_version"] == 0  # the first snapshot: newer than that is only in metrics and journal
    assert seen["journal_bytes"] > 0
    assert 0.0 <= seen["last_merge_age"] < 30.0
    assert seen["staleness"] == 0


def test_a_run_that_is_over(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(95))
    seen = answer("status", tmp_path)
    assert (seen["running"], seen["pid"]) == (False, None)
    assert (seen["version"], seen["records"], seen["snapshot_version"]) == (10, 95, 10)
    assert seen["journal_bytes"] < 1_000  # a header that says where the run stands
    text = typed("status", tmp_path)
    assert "state      not running" in text
    assert "records    95" in text


def test_a_run_that_was_killed_tells_what_was_merged(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.kill()
        process.wait()
    seen = answer("status", tmp_path)
    assert not seen["running"]
    assert seen["version"] == rows(tmp_path) > 0 == seen["snapshot_version"]


def test_looking_keeps_no_run_from_starting(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(95))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    watcher = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from streaming_vb.cli import run_files\n"
         "print(flush=True)\nwhile True: run_files.is_locked(Path(sys.argv[1]))", str(tmp_path)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for _ in range(3):
            fitted(tmp_path, IntegerSource(95))
    finally:
        watcher.kill()
        watcher.communicate()


def test_two_who_look_do_not_take_each_other_for_a_run(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(20))
    descriptor = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert not answer("status", tmp_path)["running"]
    os.close(descriptor)


def test_records_set_aside_are_counted_before_the_next_snapshot_too(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(95))
    state, settings, *_ = snapshot.load(tmp_path / "posterior.safetensors")
    source = IntegerSource(95)
    *intervals, last = source.intervals({}, 10)
    ledger = state.ledger.without(intervals[0], "broken", 10)
    shorter = type(ledger)({(source.fingerprint, "part-0"): ((0, last.start),)}, ledger.set_aside)
    changed = type(state)(state.run_id, state.prior, state.posterior, {}, 9, 80, shorter)
    snapshot.save(tmp_path / "posterior.safetensors", changed, settings)
    row = {"status": "set-aside", "partition": "part-0", "start": last.start, "stop": last.stop, "new": 0}
    with open(tmp_path / "metrics.jsonl", "r+") as file:
        lines = file.readlines()[:-1]
        file.seek(0)
        file.truncate()
        file.writelines([*lines, json.dumps({**row, "version": 9, "records": 80}) + "\n"])
    assert answer("status", tmp_path)["set_aside"] == 10 + len(range(last.start, last.stop))


def test_a_directory_that_is_just_being_started(tmp_path: Path) -> None:
    (tmp_path / "generation").write_text("1 0\n")
    seen = answer("status", tmp_path)
    assert (seen["version"], seen["records"], seen["snapshot_age"], seen["last_merge_age"]) == (0, 0, None, None)


def test_unfinished_lines_are_passed_over(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(95))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"status": "mer')
    assert answer("status", tmp_path)["version"] == 10


def test_the_rate_is_that_of_the_last_minute() -> None:
    now = time.time()
    merged = [{"time": now - age, "new": 600} for age in (500, 200, 50, 40, 30, 20, 10)]
    assert status._rate(merged) == pytest.approx(5 * 600 / 60, rel=0.01)
    assert status._rate(merged[2:]) == pytest.approx(4 * 600 / 50, rel=0.01)
    assert status._rate(merged[:2]) == 0.0
    assert status._rate([{"new": 600}]) is None


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streaming_vb.cli.main", "status", str(tmp_path), "--watch", "--json"]
    with running(tmp_path) as process, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert json.loads(watcher.stdout.readline())["running"]
        process.terminate()
        process.wait()
        rest = [json.loads(line) for line in watcher.stdout]
    assert watcher.returncode == 0
    assert not rest[-1]["running"]
    assert rest[-1]["records"] == snapshot.load(tmp_path / "posterior.safetensors").state.num_records


def test_on_a_terminal_it_is_watched_in_place(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "streaming_vb.cli.main", "status", str(tmp_path), "--watch"]
    with running(tmp_path) as process:
        environment = {**os.environ, "TERM": "xterm"}
        watcher = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        shown = os.read(master, 65_536)
        process.terminate()
        process.wait()
        while True:
            try:
                part = os.read(master, 65_536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
        assert watcher.wait(timeout=30) == 0
    os.close(master)
    assert b"running (process" in shown
    assert b"not running" in shown
    assert b"\x1b[" in shown


def test_another_directory_is_refused(tmp_path: Path) -> None:
    assert "not a run directory" in typed("status", tmp_path, code=2)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    fitted(tmp_path, IntegerSource(20))
    script = (
        "import sys; from streaming_vb.cli import main; sys.argv = ['streaming-vb', *sys.argv[1:]]\n"
        "try: main.main()\n"
        "finally: assert not {'torch', 'ray'} & sys.modules.keys(), 'torch or ray was loaded'"
    )
    posterior = tmp_path / "posterior.safetensors"
    for words in (["status", tmp_path], ["verify", tmp_path], ["diff", tmp_path, posterior], ["stop", tmp_path]):
        finished = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
