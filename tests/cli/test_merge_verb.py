"""`merge` joins two runs that started from one posterior, each record once, or says why not."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from checks import relative_error
from typing_verbs import SETTINGS, answer, fitted, sums, typed

from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings

BASE, ONE, TWO = IntegerSource(55), IntegerSource(40, 2), IntegerSource(33, 3)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """base, and a and b that started from it on other records."""
    fitted(tmp_path / "base", BASE)
    fitted(tmp_path / "a", ONE, start_from=tmp_path / "base")
    fitted(tmp_path / "b", TWO, start_from=tmp_path / "base", workers=2)
    return tmp_path


def words(runs: Path, a: str = "a", b: str = "b", base: str = "base", to: str = "d") -> tuple[object, ...]:
    return "merge", runs / a, runs / b, "--base", runs / base, "-o", runs / to


def expected() -> np.ndarray:
    whole = [(f"part-{i}", 0, 40) for i in range(2)], [(f"part-{i}", 0, 33) for i in range(3)]
    return sums(BASE, ("part-0", 0, 55)) + sums(ONE, *whole[0]) + sums(TWO, *whole[1])


def test_integers_are_counted_once_to_the_bit(runs: Path) -> None:
    told = answer(*words(runs))
    merged = snapshot.load(runs / "d" / "posterior.safetensors").state
    np.testing.assert_array_equal(merged.posterior["sum"], expected())
    assert (told["records"], told["exact"], merged.num_records) == (55 + 80 + 99, True, 234)
    assert [ancestor.run_id for ancestor in merged.lineage] == [
        snapshot.load(runs / name / "posterior.safetensors").state.run_id for name in ("base", "a", "b")
    ]
    typed("verify", runs / "d")
    assert answer("inspect", runs / "d")["records"] == 234


def test_it_says_what_it_did(runs: Path) -> None:
    text = typed(*words(runs))
    assert "135 + 154 - 55 = 234 records, each counted once" in text
    assert "exact: equal to the posterior of these records in one batch" in text


def test_a_run_goes_on_from_a_merge(runs: Path) -> None:
    typed(*words(runs))
    fitted(runs / "e", IntegerSource(12), start_from=runs / "d")
    state = snapshot.load(runs / "e" / "posterior.safetensors").state
    np.testing.assert_array_equal(state.posterior["sum"], expected() + sums(IntegerSource(12), ("part-0", 0, 12)))
    assert len(state.lineage) == 4
    assert "B started from A" in typed("diff", runs / "d", runs / "e")
    typed("verify", runs / "e")


def test_two_runs_of_a_regression_are_the_batch_posterior(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(700, 4))
    y = x @ np.array([1.0, -1.0, 2.0, 0.5]) + generator.normal(size=700)
    model = LinearRegression(4, noise_variance=0.7, prior_variance=3.0)
    parts = {"base": slice(0, 150), "a": slice(150, 400), "b": slice(400, 700)}
    for name, rows in parts.items():
        start_from = None if name == "base" else tmp_path / "base"
        source = ArraySource({"x": x[rows], "y": y[rows]})
        for _ in run(model, source, SETTINGS, run_dir=tmp_path / name, start_from=start_from, workers=3):
            pass
    typed(*words(tmp_path))
    merged = snapshot.load(tmp_path / "d" / "posterior.safetensors").state
    precision = np.eye(4) / 3.0 + x.T @ x / 0.7
    assert relative_error(merged.posterior["precision"], precision) <= 1e-10
    assert relative_error(model.family.mean(merged.posterior), np.linalg.solve(precision, x.T @ y / 0.7)) <= 1e-10


def test_posterior_files_will_do_and_the_data_set_is_remembered(runs: Path) -> None:
    (runs / "a" / "config.resolved.yaml").write_text(yaml.safe_dump({"data": {"name": "digits", "data_dir": None}}))
    file = "posterior.safetensors"
    typed(*words(runs, f"a/{file}", f"b/{file}", f"base/{file}"))
    config = yaml.safe_load((runs / "d" / "config.resolved.yaml").read_text())
    assert config["data"]["name"] == "digits"
    assert config["merged_from"]["base"] == str(runs / "base" / file)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"base": "b"}, "A did not start from --base"),
        ({"b": "stranger"}, "B did not start from --base"),
        ({"b": "again"}, r"A and B both learned part-0\[0:40\]"),
        ({"b": "regression"}, "A has .*, B has .*: natural parameters of different models do not add up"),
    ],
    ids=["no ancestor", "stranger", "overlap", "other model"],
)
def test_what_cannot_be_right_is_refused_and_nothing_is_written(runs: Path, given: dict[str, str], says: str) -> None:
    fitted(runs / "stranger", TWO)
    fitted(runs / "again", ONE, start_from=runs / "base")
    for _ in run(
        LinearRegression(1), ArraySource({"x": np.ones((20, 1)), "y": np.ones(20)}), run_dir=runs / "regression"
    ):
        pass
    assert re.search(says, typed(*words(runs, **given), code=2))
    assert not (runs / "d").exists()


def test_a_run_that_forgot_needs_to_be_told(tmp_path: Path) -> None:
    model = LinearRegression(1)
    forgetful = Settings(batch_size=10, local_steps=1, forgetting="window:20:0.1")
    for name, value in (("base", 1.0), ("a", 2.0), ("b", 3.0)):
        source = ArraySource({"x": np.ones((30, 1)), "y": np.full(30, value)})
        start_from = None if name == "base" else tmp_path / "base"
        for _ in run(model, source, forgetful, run_dir=tmp_path / name, start_from=start_from):
            pass
    assert "got forgetting window:20:0.1" in typed(*words(tmp_path), code=2)
    told = answer(*words(tmp_path), "--approximate")
    assert not told["exact"]
    assert "approximate:" in typed(*words(tmp_path, to="again"), "--approximate")


def test_nothing_is_written_over(runs: Path) -> None:
    assert "expected a new directory" in typed(*words(runs, to="a"), code=2)
    assert "expected a new directory" in typed(*words(runs, to="a/metrics.jsonl"), code=2)
