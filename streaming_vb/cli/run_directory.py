"""A run directory as the command line sees it: resolved configuration, posterior, metrics, and the objects they
describe."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from streaming_vb.cli import choices, chosen_model
from streaming_vb.errors import ConfigError, IntegrityError
from streaming_vb.streaming import forgetting, snapshot
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.run import METRICS_FILE
from streaming_vb.streaming.snapshot import POSTERIOR_FILE
from streaming_vb.types import Family, NaturalParameters

if TYPE_CHECKING:
    from streaming_vb.cli.chosen_model import VAEModel
    from streaming_vb.sources.datasets import Dataset

CONFIG_FILE = "config.resolved.yaml"


class Run(NamedTuple):
    """A finished or interrupted run."""

    directory: Path
    config: Mapping[str, Any]
    state: ServerState
    settings: Mapping[str, Any]
    model: "VAEModel"
    served: NaturalParameters

    def dataset(self, data_dir: Path | None) -> "Dataset":
        """The data set it was fitted on; `data_dir` overrides where its files were."""
        from streaming_vb.sources import datasets

        data = self.config["data"]
        folder = data_dir or (Path(data["data_dir"]) if data["data_dir"] else None)
        bad_records = self.settings.get("bad_records", "stop")
        return datasets.load(data["name"], folder, self.model.likelihood.name, bad_records=bad_records)


def open_run(directory: Path) -> Run:
    """Read a run directory.

    Raises:
        ConfigError: it is not one, or holds another kind of model.
        IntegrityError: a file in it is corrupt.
    """
    if not (directory / CONFIG_FILE).is_file():
        raise ConfigError(f"{directory}: not a run directory (no {CONFIG_FILE}). Give the --run-dir of a fit or demo")
    try:
        config = yaml.safe_load((directory / CONFIG_FILE).read_text())
        assert isinstance(config, dict)
    except (yaml.YAMLError, UnicodeDecodeError, AssertionError) as error:
        raise IntegrityError(f"{directory / CONFIG_FILE}: not readable YAML. Run the fit again to write it") from error
    state, settings, *_ = snapshot.load(directory / POSTERIOR_FILE)
    return Run(directory, config, state, settings, chosen_model.rebuild(settings), served(state, settings))


def served(state: ServerState, settings: Mapping[str, Any]) -> NaturalParameters:
    """The posterior to sample and score, by the forgetting of the run."""
    rule = forgetting.parse(settings["forgetting"], family(settings))
    return rule.served(state.posterior, state.prior, state.num_records)


def family(settings: Mapping[str, Any]) -> Family:
    """The family of a posterior file."""
    made: Family = choices.pick("family", choices.FAMILIES, settings["family"])()
    return made


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration, with the versions that ran."""
    directory.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({**config, "versions": _versions()}, sort_keys=False)
    (directory / CONFIG_FILE).write_text(text)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, one per merge."""
    return [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]


def next_free(name: str) -> Path:
    """runs/NAME-1, or the first number that is not taken.

    >>> next_free("no-such-data")
    PosixPath('runs/no-such-data-1')
    """
    number = 1
    while (directory := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return directory


def _versions() -> dict[str, str]:
    found = {}
    for package in ("streaming-vb", "torch", "numpy", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
