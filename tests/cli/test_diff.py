"""`diff` tells how far apart two posteriors are, and what either has learned alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from typing_verbs import answer, fitted, typed

from streaming_vb.cli import diff
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.settings import Settings


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    fitted(tmp_path / "base", IntegerSource(30))
    fitted(tmp_path / "a", IntegerSource(20, 2), start_from=tmp_path / "base")
    fitted(tmp_path / "b", IntegerSource(10, 3), start_from=tmp_path / "base")
    return tmp_path


def test_what_only_one_has(runs: Path) -> None:
    told = answer("diff", runs / "a", runs / "b")
    assert told["relation"].startswith("A and B started from version 3 of run")
    only_a = [(part["source"], part["partition"], part["records"]) for part in told["only_in_a"]]
    assert only_a == [("integers-2x20", "part-0", 20), ("integers-2x20", "part-1", 20)]
    assert sum(part["records"] for part in told["only_in_b"]) == 30
    text = typed("diff", runs / "base", runs / "a")
    assert "only in A  nothing" in text
    assert "only in B  40 records: part-0[0:20] part-1[0:20]  (source integers-2x2" in text
    assert "B started from A" in text


def test_figures_are_those_of_the_posteriors(runs: Path) -> None:
    a, b = (snapshot.load(runs / name / "posterior.safetensors").state.posterior["sum"] for name in ("a", "b"))
    told = answer("diff", runs / "a", runs / "b")
    assert told["kl_a_b"] == told["kl_b_a"] == pytest.approx(0.5 * float((a - b) @ (a - b)))
    assert told["largest_movement"] == max(b - a, key=abs)
    assert told["movement_quantiles"]["max"] == abs(told["largest_movement"])
    assert told["movement_rms"] == pytest.approx(float(((a - b) ** 2).mean() ** 0.5))


def test_a_posterior_does_not_differ_from_itself(runs: Path) -> None:
    told = answer("diff", runs / "a", runs / "a" / "posterior.safetensors")
    assert told["relation"] == "A and B are the same posterior"
    assert told["kl_a_b"] == told["movement_rms"] == 0.0
    assert told["only_in_a"] == told["only_in_b"] == []


def test_strangers_can_be_compared(runs: Path) -> None:
    fitted(runs / "c", IntegerSource(5))
    assert "no common ancestor" in typed("diff", runs / "a", runs / "c")


def test_other_models_and_files_are_refused(runs: Path) -> None:
    state, settings, *_ = snapshot.load(runs / "a" / "posterior.safetensors")
    snapshot.save(runs / "other", state, {**settings, "model": "linear-regression"})
    assert "A has model ledger, B has model linear-regression" in typed("diff", runs / "a", runs / "other", code=2)
    assert "no posterior file there" in typed("diff", runs / "a", runs / "nowhere", code=5)


def test_schedules_may_differ(runs: Path) -> None:
    fitted(runs / "c", IntegerSource(5), Settings(seed=3, mode="ordered", batch_size=2))
    typed("diff", runs / "a", runs / "c")


def test_weights_of_a_network_have_names(tmp_path: Path) -> None:
    words = ("fit", "digits", "--hidden", 8, "--latent", 2, "--batch-size", 50, "--local-steps", 2)
    for records in (200, 400):
        finished = subprocess.run(
            [sys.executable, "-m", "streaming_vb.cli.main", *map(str, words), "--records", str(records), "--run-dir",
             str(tmp_path / str(records))], capture_output=True, text=True,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
    told = answer("diff", tmp_path / "200", tmp_path / "400")
    settings = snapshot.load(tmp_path / "200" / "posterior.safetensors").settings
    layers = diff._layout(settings)
    assert told["layers"].keys() == layers.keys()
    assert told["largest_weight"].partition("[")[0] in layers
    assert diff._name_of(0, settings) == f"{next(iter(layers))}{[0] * len(next(iter(layers.values())))}"
    assert all(value > 0 for value in told["layers"].values())
