"""cluster.yaml is valid for Ray's launcher, checked offline with the launcher's own functions."""

from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

FILE = Path(__file__).parents[2] / "cluster.yaml"


def validated(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_the_launcher_accepts_the_file() -> None:
    types = validated(yaml.safe_load(FILE.read_text()))["available_node_types"]
    assert types.keys() == {"head", "worker"}
    assert types["head"]["resources"]["parameter_server"] == 1  # beside the driver: both see the run directory
    assert types["head"]["resources"]["CPU"] == 0


def test_the_launcher_refuses_a_misspelt_key() -> None:
    config = yaml.safe_load(FILE.read_text())
    config["head_node_typ"] = config.pop("head_node_type")
    with pytest.raises(Exception, match="head_node_typ"):
        validated(config)


def test_every_node_starts_with_a_token() -> None:
    config = yaml.safe_load(FILE.read_text())
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert "ray start" not in command or command.startswith("RAY_AUTH_MODE=token")
