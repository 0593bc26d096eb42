"""A head and a second node as processes of their own; the fit runs across both, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

SCRIPT = """
import subprocess, sys
from ray.cluster_utils import Cluster

node = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **node})
cluster.add_node(num_cpus=1, resources={"parameter_server": 1}, object_store_memory=200 * 2**20)
try:
    command = [sys.executable, "-m", "streaming_vb.cli.main", "fit", "digits", "--engine", "ray", "--workers", "2",
               "--address", cluster.address, "--ramp", "0", "--records", "4000", "--hidden", "20", "--latent", "3",
               "--run-dir", sys.argv[1], "--json"]
    sys.exit(subprocess.run(command).returncode)
finally:
    cluster.shutdown()
"""


def test_a_fit_across_two_nodes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run")], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    done = json.loads(finished.stdout.splitlines()[-1])
    assert done["event"] == "done"
    assert done["records"] == 4000
    assert done["parallelism"] > 1
