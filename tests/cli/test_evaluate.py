"""`streaming-vb evaluate`: the scores beyond the ELBO, as a user types them, called in this process."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from streaming_vb.cli import evaluate, run_directory
from streaming_vb.cli.job import EVALUATION_SEED, held_out_records
from streaming_vb.cli.main import app
from streaming_vb.errors import ConfigError
from streaming_vb.evaluation import active_units, importance

LATENT = 3


def call(*words: object) -> Result:
    finished = CliRunner().invoke(app, [*map(str, words)])
    assert finished.exit_code == 0, finished.output
    return finished


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "digits"
    call("fit", "digits", "--hidden", 20, "--latent", LATENT, "--records", 3000, "--run-dir", directory)
    return directory


def test_active_units_come_always_and_importance_samples_when_asked(run: Path) -> None:
    values = json.loads(call("evaluate", run, "--json").stdout)
    assert values["latent"] == LATENT
    assert 0 <= values["active_units"] <= LATENT
    assert 0 <= values["active_units_over_draws"] <= LATENT
    assert values["active_units_over_draws_sd"] >= 0
    assert not [name for name in values if "importance" in name or "log_likelihood" in name]


def test_the_values_are_those_of_the_library(run: Path) -> None:
    words = ("--importance-samples", 200, "--records", 40, "--json")
    values = json.loads(call("evaluate", run, *words).stdout)
    opened = run_directory.open_run(run)
    x = held_out_records(opened.dataset(None), opened.model.likelihood.name)
    sampled = importance.at_mean(opened.model, opened.served, x[:40], num_samples=200, seed=EVALUATION_SEED)
    assert values["importance_records"] == 40
    assert values["importance_samples"] == 200
    assert values["log_likelihood_mean_weights"] == sampled.estimate().mean
    assert values["log_likelihood_mean_weights_se"] == sampled.estimate().standard_error
    assert values["effective_sample_size_median"] == np.median(sampled.effective_sample_size)
    assert values["active_units"] == active_units.at_mean(opened.model, opened.served, x).num_active


def test_a_thousand_records_are_the_default_and_the_log_likelihood_lies_above_the_elbo(run: Path) -> None:
    values = json.loads(call("evaluate", run, "--importance-samples", 100, "--json").stdout)
    assert values["importance_records"] == min(1000, values["num_heldout"])
    assert values["log_likelihood_mean_weights"] > values["elbo_mean_weights"]
    assert 1 < values["effective_sample_size_median"] < 100


def test_the_text_names_every_score(run: Path) -> None:
    shown = call("evaluate", run, "--importance-samples", 10, "--records", 20)
    names = ("held out ", "at mean ", "over draws ", "active ", "importance ")
    lines = shown.stdout.splitlines()
    assert all(line.startswith(name) for line, name in zip(lines, names, strict=True))
    assert f" of {LATENT} latent dimensions" in lines[3]
    assert "(20 records, 10 samples each, median effective sample size" in lines[4]
    assert shown.stderr == ""


def test_long_work_says_how_far_it_is_on_stderr(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.output, "PLAIN_EVERY", 0.0)
    shown = call("evaluate", run, "--draws", 2, "--importance-samples", 300, "--records", 5, "--json")
    assert shown.stderr.splitlines() == [f"importance {done} of 5 records" for done in range(1, 6)]
    assert json.loads(shown.stdout)["importance_records"] == 5


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (("--importance-samples", -1), "--importance-samples must be at least 1 per record, or 0 to leave them out"),
        (("--records", 1), "--records must be at least 2 for a standard error, got 1"),
        (("--draws", 1), "--draws must be at least 2 for a standard error, got 1"),
    ],
)
def test_numbers_that_are_too_small_are_refused(run: Path, flag: tuple[str, int], says: str) -> None:
    error = CliRunner().invoke(app, ["evaluate", str(run), *map(str, flag)]).exception
    assert isinstance(error, ConfigError)
    assert says in str(error)
