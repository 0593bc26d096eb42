"""The verbs as a user types them, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

SMALL = ("--hidden", "20", "--latent", "3")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "streaming_vb.cli.main", *map(str, words)]


def call(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(command(*words), capture_output=True, text=True)
    assert finished.returncode == code, finished.stderr
    return finished


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "digits"
    call("fit", "digits", *SMALL, "--records", 5000, "--run-dir", directory)
    return directory


def test_fit_leaves_a_run_directory(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= {"posterior.safetensors", "metrics.jsonl", "config.resolved.yaml"}
    assert {path.name for path in (run / "plots").iterdir()} == {"learning_curve.png", "images.png", "latent_map.png"}
    config = yaml.safe_load((run / "config.resolved.yaml").read_text())
    assert config["settings"]["records"] == 5000
    assert config["determined_by"]["latent"] == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == list(range(1, len(rows) + 1))


def test_json_lines_end_with_done(tmp_path: Path) -> None:
    words = ("fit", "digits", *SMALL, "--records", 4000, "--run-dir", tmp_path, "--json")
    lines = call(*words, "--engine", "simulated", "--workers", 3, "--ramp", 0).stdout.splitlines()
    *merges, done = map(json.loads, lines)
    assert all(merge["event"] == "merge" for merge in merges)
    assert merges[0].keys() >= {"version", "records", "elbo", "step_kl", "staleness", "staleness_sd"}
    assert done.keys() >= {
        "event", "engine", "workers", "records", "version", "elbo_progressive", "elbo_heldout", "elbo_heldout_se",
        "seconds", "records_per_second", "parallelism", "virtual_speedup", "posterior_sha256", "run_dir",
    }  # fmt: skip
    assert done["records"] == 4000
    assert 1 < done["virtual_speedup"] <= 3
    assert -60 < done["elbo_heldout"] < -20


def test_ordered_mode_gives_one_posterior_for_any_number_of_workers(tmp_path: Path) -> None:
    words = ("fit", "digits", *SMALL, "--records", 4000, "--mode", "ordered", "--ramp", 1000, "--json")
    shas = set()
    for workers in (1, 2, 4):
        engine = ("--engine", "simulated", "--workers", workers)
        out = call(*words, *engine, "--run-dir", tmp_path / str(workers)).stdout
        shas.add(json.loads(out.splitlines()[-1])["posterior_sha256"])
    assert len(shas) == 1


def test_records_that_cannot_be_scored_are_set_aside_by_name_where_that_is_asked_for(tmp_path: Path) -> None:
    table = np.random.default_rng(0).random((400, 6)).astype(np.float32)
    table[::40, 3] = np.nan
    table[7, 0] = 2.0
    np.save(tmp_path / "table.npy", table)
    words = ("fit", tmp_path / "table.npy", *SMALL, "--bad-records", "set-aside", "--run-dir", tmp_path / "run")
    assert "set aside" in call(*words).stdout
    values = json.loads(call("inspect", tmp_path / "run", "--json").stdout)
    assert values["records"] + len(values["set_aside"]) == 360
    assert 0 < len(values["set_aside"]) <= 11
    assert sum("is nan" not in entry for entry in values["set_aside"]) <= 1
    assert "ELBO" in call("evaluate", tmp_path / "run").stdout


def test_a_new_run_starts_from_the_posterior_of_another_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("monday", "tuesday"):
        np.save(tmp_path / f"{name}.npy", generator.random((100, 6)).astype(np.float32))
    call("fit", tmp_path / "monday.npy", *SMALL, "--run-dir", tmp_path / "a")
    words = ("fit", tmp_path / "tuesday.npy", *SMALL, "--start-from", tmp_path / "a", "--run-dir", tmp_path / "b")
    call(*words)
    assert json.loads(call("inspect", tmp_path / "b", "--json").stdout)["records"] == 180
    assert "nothing left to stream" in call(*words).stdout  # the same command goes on


def test_ctrl_c_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    words = ("fit", "digits", *SMALL, "--records", 400_000, "--run-dir", tmp_path, "--json")
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are started to ignore it
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    stopped = json.loads(out.splitlines()[-1])
    assert stopped["event"] == "stopped"
    assert stopped["records"] > 0
    assert f"--run-dir {tmp_path}" in stopped["resume"]
    resumed = call(*(stopped["records"] + 2000 if word == 400_000 else word for word in words))
    assert f"resumed at version {stopped['version']:,}" in resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["records"] == stopped["records"] + 2000


def test_sigterm_is_a_stop_too(tmp_path: Path) -> None:
    words = ("fit", "digits", *SMALL, "--records", 400_000, "--run-dir", tmp_path, "--json")
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_evaluate(run: Path) -> None:
    values = json.loads(call("evaluate", run, "--json").stdout)
    assert values["elbo_mean_weights"] == pytest.approx(values["elbo_over_draws"], abs=3)
    assert values["elbo_mean_weights_se"] > 0
    assert values["elbo_over_draws_se"] > 0
    assert "over draws ELBO" in call("evaluate", run).stdout
    refused = call("evaluate", run, "--draws", 1, code=2)
    assert "--draws must be at least 2 for a standard error, got 1" in refused.stderr


def test_score_has_a_spread_for_every_record(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text(",".join(f"pixel{i}" for i in range(64)) + "\n" + (",".join(["0.5"] * 64) + "\n") * 3)
    *rows, done = map(json.loads, call("score", run, file, "--json").stdout.splitlines())
    assert [row["record"] for row in rows] == [0, 1, 2]
    assert all(row["sd"] > 0 for row in rows)
    assert done["num_records"] == 3


def test_sample(run: Path) -> None:
    import numpy as np

    values = json.loads(call("sample", run, "--count", 5, "--json").stdout)
    drawn = np.load(values["samples"], allow_pickle=False)
    assert drawn.shape == (5, 64)
    assert Path(values["picture"]).stat().st_size > 1000


def test_inspect_needs_no_torch(run: Path) -> None:
    script = (
        "import sys; from streaming_vb.cli import main; sys.argv = ['streaming-vb', 'inspect', sys.argv[1], '--json']\n"
        "try: main.main()\n"
        "finally: assert not {'torch', 'ray'} & sys.modules.keys(), 'torch or ray was loaded'"
    )
    finished = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    values = json.loads(finished.stdout)
    assert values["records"] == 5000
    assert values["digests_checked"] == 7


@pytest.mark.parametrize("words", [("--help",), ("fit", "--help"), ("score", "--help")], ids=lambda words: words[0])
def test_help_loads_neither_torch_nor_ray(words: tuple[str, ...]) -> None:
    script = (
        f"import sys; from streaming_vb.cli import main; sys.argv = ['streaming-vb', *{words}]\n"
        "try: main.main()\n"
        "finally: assert not {'torch', 'ray', 'matplotlib', 'sklearn'} & sys.modules.keys()"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "Usage" in finished.stdout


def test_output_without_a_terminal_is_plain_and_sparse(tmp_path: Path) -> None:
    started = time.monotonic()
    words = ("fit", "digits", *SMALL, "--records", 10_000, "--run-dir", tmp_path)
    finished = call(*words)
    assert "\x1b" not in finished.stdout
    progress = [line for line in finished.stdout.splitlines() if line.startswith("version")]
    assert len(progress) <= (time.monotonic() - started) / 10


def test_on_a_terminal_there_is_a_live_table(tmp_path: Path) -> None:
    import pty

    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    words = ("fit", "digits", *SMALL, "--records", 5000, "--run-dir", tmp_path)
    process = subprocess.Popen(command(*words), stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait() == 0
    assert b"records/s" in shown
    assert b"held out" in shown
