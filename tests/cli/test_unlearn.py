"""`unlearn` takes exactly one interval out, for good, or says why not."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typing_verbs import MODEL, SETTINGS, answer, fitted, running, sums, typed

from streaming_vb.cli.unlearn import parse
from streaming_vb.errors import ConfigError
from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.run import run
from streaming_vb.types import Array, Interval, NaturalParameters, SetAside

KEEP = replace(SETTINGS, keep_deltas=True)
SOURCE = IntegerSource(95, 2)
REST = [("part-0", 0, 20), ("part-0", 30, 95), ("part-1", 0, 95)]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return fitted(tmp_path / "run", SOURCE, KEEP, workers=3)


def saved(directory: Path, name: str = "posterior.safetensors") -> Array:
    return snapshot.load(directory / name).state.posterior["sum"]


def test_it_equals_a_run_without_the_interval(kept: Path) -> None:
    told = answer("unlearn", kept, "part-0[20:30]")
    np.testing.assert_array_equal(saved(kept), sums(SOURCE, *REST))
    assert (told["records"], told["version"], told["exact"]) == (180, 21, True)
    state = snapshot.load(kept / "posterior.safetensors").state
    assert state.ledger.set_aside == (SetAside(Interval(SOURCE.fingerprint, "part-0", 20, 30), 10, "unlearned"),)
    typed("verify", kept)


def test_a_resume_does_not_learn_it_again(kept: Path) -> None:
    typed("unlearn", kept, "part-0:20-30")
    assert not list(run(MODEL, SOURCE, KEEP, run_dir=kept))
    np.testing.assert_array_equal(saved(kept), sums(SOURCE, *REST))
    typed("verify", kept)


def test_a_run_that_is_not_over_goes_on_without_it(tmp_path: Path) -> None:
    fitted(tmp_path, SOURCE, replace(KEEP, records=50))
    typed("unlearn", tmp_path, "part-0[20:30]")
    fitted(tmp_path, SOURCE, KEEP)
    np.testing.assert_array_equal(saved(tmp_path), sums(SOURCE, *REST))
    typed("unlearn", tmp_path, "part-1[0:10]")
    np.testing.assert_array_equal(saved(tmp_path), sums(SOURCE, *REST[:2], ("part-1", 10, 95)))
    typed("verify", tmp_path)


def test_the_snapshot_before_it_does_not_bring_it_back(kept: Path) -> None:
    typed("unlearn", kept, "part-0[20:30]")
    (kept / "posterior.safetensors").write_bytes(b"broken")
    assert not list(run(MODEL, SOURCE, KEEP, run_dir=kept))
    np.testing.assert_array_equal(saved(kept), sums(SOURCE, *REST))


def test_what_a_killed_run_left_in_the_journal_is_kept(tmp_path: Path) -> None:
    with running(tmp_path, keep_deltas=True) as process:
        process.kill()
        process.wait()
    before = answer("status", tmp_path)["records"]
    told = answer("unlearn", tmp_path, "part-0[10:20]")
    assert told["records"] == before - 10
    typed("verify", tmp_path)


def test_a_regression_equals_the_run_without_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(200, 3)), generator.normal(size=200)
    model = LinearRegression(3)
    source = ArraySource({"x": x, "y": y})
    for _ in run(model, source, KEEP, run_dir=tmp_path, workers=4):
        pass
    typed("unlearn", tmp_path, "pass-0[50:60]")
    parts = [source.read(Interval(source.fingerprint, "pass-0", *ends)) for ends in ((0, 50), (60, 200))]
    x, y = (np.concatenate([part[name] for part in parts]) for name in ("x", "y"))
    posterior = snapshot.load(tmp_path / "posterior.safetensors").state.posterior
    precision = np.eye(3) + x.T @ x
    np.testing.assert_allclose(posterior["precision"], precision, rtol=0, atol=1e-10 * precision.max())
    mean = np.linalg.solve(precision, x.T @ y)
    np.testing.assert_allclose(model.family.mean(posterior), mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ("part-0[95:96]", "not in the ledger"),
        ("part-0[90:100]", "not in the ledger"),
        ("part-7[0:10]", "not in the ledger.*part-0, part-1"),
        ("part-0[20:40]", r"Unlearn .*part-0\[20:30\]"),
        ("part-0[22:24]", r"Unlearn part-0\[20:30\]"),
        ("part-0", "expected PARTITION"),
        ("part-0[30:20]", "holds no record"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_changes(kept: Path, interval: str, says: str) -> None:
    before = saved(kept)
    assert re.search(says, typed("unlearn", kept, interval, code=2))
    np.testing.assert_array_equal(saved(kept), before)
    typed("verify", kept)


def test_it_is_taken_out_once(kept: Path) -> None:
    typed("unlearn", kept, "part-0[20:30]")
    assert "unlearned before" in typed("unlearn", kept, "part-0[20:30]", code=2)
    np.testing.assert_array_equal(saved(kept), sums(SOURCE, *REST))


def test_without_kept_deltas_it_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path, SOURCE)
    assert re.search("its delta was not kept.*--keep-deltas", typed("unlearn", tmp_path, "part-0[20:30]", code=2))
    fitted(tmp_path, SOURCE)


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    with running(tmp_path, keep_deltas=True) as process:
        assert "writes this run directory" in typed("unlearn", tmp_path, "part-0[0:10]", code=2)
        assert process.poll() is None


def test_a_run_that_forgot_needs_to_be_told(tmp_path: Path) -> None:
    source = ArraySource({"x": np.ones((30, 1)), "y": np.ones(30)})
    settings = replace(KEEP, forgetting="window:1000:0.1")
    for _ in run(LinearRegression(1), source, settings, run_dir=tmp_path):
        pass
    assert "got forgetting window:1000:0.1" in typed("unlearn", tmp_path, "pass-0[0:10]", code=2)
    assert not answer("unlearn", tmp_path, "pass-0[0:10]", "--approximate")["exact"]


def test_of_a_run_that_forgot_only_what_it_still_holds_is_taken_out(tmp_path: Path) -> None:
    source = ArraySource({"x": np.full((40, 1), 10.0), "y": np.ones(40)})
    for _ in run(LinearRegression(1), source, replace(KEEP, forgetting="window:1:0"), run_dir=tmp_path):
        pass
    before = snapshot.load(tmp_path / "posterior.safetensors").state.posterior
    typed("unlearn", tmp_path, "pass-0[0:10]", "--approximate")
    after = snapshot.load(tmp_path / "posterior.safetensors").state.posterior
    np.testing.assert_allclose(after["precision"], before["precision"], rtol=1e-3)


def test_what_leaves_no_distribution_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    source = ArraySource({"x": np.ones((40, 1)), "y": np.ones(40)})
    for _ in run(LinearRegression(1), source, KEEP, run_dir=tmp_path):
        pass
    path = tmp_path / "posterior.safetensors"
    state, settings, _, generation = snapshot.load(path)
    weaker = {**state.posterior.arrays, "precision": np.full((1, 1), 5.0)}
    snapshot.save(path, replace(state, posterior=NaturalParameters(weaker)), settings, generation=generation)
    before = path.read_bytes()
    assert "without pass-0[0:10] a precision is not positive" in typed("unlearn", tmp_path, "pass-0[0:10]", code=2)
    assert path.read_bytes() == before


def test_of_several_sources_one_has_to_be_named(tmp_path: Path) -> None:
    fitted(tmp_path / "base", IntegerSource(30))
    fitted(tmp_path / "run", IntegerSource(40), KEEP, start_from=tmp_path / "base")
    text = typed("unlearn", tmp_path / "run", "part-0[0:10]", code=2)
    assert "part-0 is in several sources. Type --source with one of integers-1x30, integers-1x40" in text
    typed("unlearn", tmp_path / "run", "part-0[0:10]", "--source", "integers-1x40")
    rest = sums(IntegerSource(30), ("part-0", 0, 30)) + sums(IntegerSource(40), ("part-0", 10, 40))
    np.testing.assert_array_equal(saved(tmp_path / "run"), rest)
    assert "its delta was not kept" in typed(
        "unlearn", tmp_path / "run", "part-0[0:10]", "--source", "integers-1x30", code=2
    )


@pytest.mark.parametrize("text", ["a:b[1,000:2,000]", "a:b:1000-2000", "a:b:1_000-2_000"])
def test_both_ways_to_type_an_interval(text: str) -> None:
    wanted = Interval("sha", "a:b", 1000, 2000)
    assert parse(text, Ledger().add(wanted), None) == wanted


@pytest.mark.parametrize("text", ["", "a", "a[1]", "a[1:]", "[1:2]", "a:1:2", "a[-1:2]", "a[1:2]x", "a[,:,]", "a[1:x]"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(ConfigError, match="INTERVAL"):
        parse(text, Ledger().add(Interval("sha", "a", 0, 10)), None)
