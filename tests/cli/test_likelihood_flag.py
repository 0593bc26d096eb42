"""Every likelihood from the command line to the pictures and back; each verb runs in this process."""

import io
import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from streaming_vb.cli import choices, main
from streaming_vb.errors import ConfigError
from streaming_vb.plots import images
from streaming_vb.sources import datasets
from streaming_vb.types import Array

SMALL = ("--hidden", "10", "--latent", "2", "--records", "1700")
EVERY = ("bernoulli", "continuous-bernoulli", "normal", "poisson", "categorical:17")


class Finished(NamedTuple):
    """How a verb ended."""

    code: int
    out: str
    err: str


def call(*words: object) -> Finished:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["streaming-vb", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main.main()
    return Finished(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def last(*words: object) -> dict[str, Any]:
    """The last JSON line of a verb that must succeed."""
    finished = call(*words, "--json")
    assert finished.code == 0, finished.err
    values: dict[str, Any] = json.loads(finished.out.splitlines()[-1])
    return values


class Fitted(NamedTuple):
    """A run on the digits: what was typed, where it is, its last line, and the rows of images of its picture."""

    likelihood: str
    directory: Path
    done: Mapping[str, Any]
    tiles: Mapping[str, Array]


@pytest.fixture(scope="module", params=EVERY)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    directory = tmp_path_factory.mktemp("runs") / "digits"
    tiles: dict[str, Array] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "draw", lambda rows, shape, path: tiles.update(rows))
        done = last("fit", "digits", *SMALL, "--likelihood", request.param, "--run-dir", directory)
    return Fitted(request.param, directory, done, tiles)


def test_a_run_is_scored_again_by_the_likelihood_that_fitted_it(fitted: Fitted) -> None:
    values = last("evaluate", fitted.directory, "--draws", 2)
    assert values["elbo_mean_weights"] == fitted.done["elbo_heldout"]
    assert np.isfinite(values["elbo_over_draws"])
    assert last("inspect", fitted.directory)["settings"]["likelihood"] == fitted.likelihood


def test_records_of_a_picture_lie_between_white_and_black(fitted: Fitted) -> None:
    records = fitted.tiles["held-out records"]
    assert (records.min(), records.max()) == (0, 1)
    assert np.abs(fitted.tiles["reconstructions"]).max() < 2  # as counts they would reach 16


def test_samples_are_values_as_the_likelihood_reads_them(fitted: Fitted) -> None:
    drawn = np.load(last("sample", fitted.directory, "--count", 5)["samples"], allow_pickle=False)
    assert drawn.shape == (5, 64)
    assert (drawn.max() > 2) == fitted.likelihood.startswith(("poisson", "categorical"))


def test_a_file_is_scored_as_the_likelihood_reads_it(fitted: Fitted, tmp_path: Path) -> None:
    held_out = datasets.load("digits", None, fitted.likelihood).test_values()[:20]
    np.save(tmp_path / "new.npy", held_out)
    done = last("score", fitted.directory, tmp_path / "new.npy", "--draws", 2)
    assert done["elbo"] == pytest.approx(fitted.done["elbo_heldout"], rel=0.3)


def test_another_number_of_categories_is_another_run(fitted: Fitted) -> None:
    words = ("fit", "digits", *SMALL, "--likelihood", "categorical:18", "--run-dir", fitted.directory)
    assert call(*words).code == 2
    assert f"was made with likelihood = {fitted.likelihood}, now likelihood = categorical:18" in call(*words).err


@pytest.mark.parametrize("text", EVERY)
def test_the_name_of_a_likelihood_is_what_was_typed(text: str) -> None:
    assert choices.likelihood("--likelihood", text).name == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gauss", "--likelihood gauss: expected one of bernoulli, .*, poisson, categorical:K"),
        ("poisson:3", "--likelihood poisson:3: expected one of"),
        ("categorical", "--likelihood categorical: expected the number of categories.*such as categorical:10"),
        ("categorical:", "--likelihood categorical:: expected the number of categories"),
        ("categorical:1", "--likelihood categorical:1: .*at least 2"),
        ("categorical:K", "--likelihood categorical:K: expected the number"),
        ("categorical:-3", "--likelihood categorical:-3: expected the number"),
        ("categorical:2.5", r"--likelihood categorical:2\.5: expected the number"),
    ],
)
def test_a_likelihood_that_does_not_exist(text: str, says: str) -> None:
    for refuse in (choices.likelihood, choices.require_likelihood):
        with pytest.raises(ConfigError, match=says):
            refuse("--likelihood", text)


@pytest.mark.parametrize(
    ("likelihood", "dtype", "scale"),
    [
        ("bernoulli", np.uint8, 1 / 255),
        ("continuous-bernoulli", np.uint8, 1 / 255),
        ("normal", np.uint8, 1 / 255),
        ("poisson", np.uint8, 1.0),
        ("categorical:256", np.uint8, 1.0),
        ("normal", np.float64, 1.0),
        ("poisson", np.float64, 1.0),
        ("categorical:256", np.int32, 1.0),
    ],
)
def test_bytes_are_scaled_unless_the_likelihood_takes_whole_numbers(
    likelihood: str, dtype: type, scale: float, tmp_path: Path
) -> None:
    x = (np.arange(120) % 256).reshape(30, 4)
    np.save(tmp_path / "x.npy", x.astype(dtype))
    dataset = datasets.load(str(tmp_path / "x.npy"), None, likelihood)
    read = datasets.read_for(4, tmp_path / "x.npy", likelihood)
    np.testing.assert_allclose(read, x * scale, rtol=1e-6)
    assert dataset.test_values().max() in read
    assert (dataset.scale or 1.0) == scale


HALVES = np.full((30, 4), 0.5)
COUNTS = np.arange(120).reshape(30, 4) % 6.0
SIGNED = COUNTS - 2


@pytest.mark.parametrize(
    ("likelihood", "table", "says"),
    [
        ("bernoulli", COUNTS, r"record 0 column 2 is 2; .*needs values in \[0, 1\].*poisson or categorical:6"),
        ("bernoulli", SIGNED, r"record 0 column 0 is -2; .*in \[0, 1\], the table holds -2 to 3.*--likelihood normal"),
        ("continuous-bernoulli", COUNTS, r"record 0 column 2 is 2; .*in \[0, 1\].*--likelihood poisson"),
        ("continuous-bernoulli", SIGNED, r"record 0 column 0 is -2; .*--likelihood normal"),
        ("poisson", HALVES, r"record 0 column 0 is 0\.5; .*whole numbers.*--likelihood continuous-bernoulli"),
        ("poisson", COUNTS + 0.5, r"record 0 column 0 is 0\.5; .*--likelihood normal"),
        ("poisson", SIGNED, r"record 0 column 0 is -2; .*--likelihood normal"),
        ("poisson", COUNTS * 2**23, r"record 0 column 2 is 1\.67772e\+07; .*whole numbers 0 to 16,777,215"),
        ("categorical:5", COUNTS, r"record 1 column 1 is 5; .*whole numbers 0 to 4.*categorical:6"),
        ("categorical:5", COUNTS.astype(np.uint8), r"record 1 column 1 is 5; .*whole numbers 0 to 4.*categorical:6"),
        ("categorical:5", HALVES, r"record 0 column 0 is 0\.5; .*whole numbers 0 to 4"),
        ("categorical:5", SIGNED, r"record 0 column 0 is -2; .*whole numbers 0 to 4"),
        ("bernoulli", (COUNTS > 3).astype(np.uint8), r"record 1 column 0 is 1; .*divided by 255.*astype\('float32'\)"),
    ],
)  # fmt: skip
def test_values_that_a_likelihood_cannot_score_are_refused_before_training(
    likelihood: str, table: Array, says: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", table)
    words = ("fit", tmp_path / "x.npy", *SMALL, "--likelihood", likelihood, "--run-dir", tmp_path / "run")
    finished = call(*words)
    assert finished.code == 3
    assert len(finished.err.splitlines()) == 1
    assert re.search(says, finished.err), finished.err
    assert not (tmp_path / "run").exists()


def test_too_few_categories_for_the_digits(tmp_path: Path) -> None:
    finished = call("fit", "digits", *SMALL, "--likelihood", "categorical:16", "--run-dir", tmp_path / "run")
    assert finished.code == 3
    assert re.search("digits: record .* is 16; .*whole numbers 0 to 15.*categorical:17", finished.err)


def test_shades_of_values_outside_the_unit_interval_span_the_range_of_the_reference() -> None:
    reference = np.array([-1.0, 3.0])
    assert images.shades(reference, reference).tolist() == [0, 1]
    assert images.shades(np.array([0.0, 5.0]), reference).tolist() == [0.25, 1.5]
    assert images.shades(np.array([0.2]), np.array([0.1, 0.9])).tolist() == [0.2]
    assert images.shades(np.array([7.0]), np.array([7.0, 7.0])).tolist() == [0]
