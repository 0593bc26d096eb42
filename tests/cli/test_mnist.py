"""The main job on MNIST, where its files lie beside the checkout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files are not beside the checkout")
def test_six_thousand_records_teach_more_than_independent_pixels(tmp_path: Path) -> None:
    words = ("fit", "mnist", "--data-dir", MNIST, "--records", 6000, "--run-dir", tmp_path, "--json")
    command = [sys.executable, "-m", "streaming_vb.cli.main", *map(str, words)]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert done["records"] == 6000
    assert done["elbo_heldout"] > -190  # independent pixels: -206.8 nats per image
    assert 0 < done["elbo_heldout_se"] < 1
