"""The program that `ordered.py` kills: a run in ordered mode on the processes of this machine. Killed, the same command
goes on. It says on stdout that it has begun, and at its end what came out: `{"sha256": ..., "records": ...}`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.run import run, run_processes
from streaming_vb.streaming.settings import Settings

MODELS = ("linear", "vae")


def arguments_of(name: str, seed: int, records: int) -> tuple[Any, Any, Settings]:
    """Model, source and settings: functions of these three alone."""
    random = np.random.default_rng(seed)
    settings = Settings(mode="ordered", seed=seed, batch_size=10, local_steps=4, ramp=200, round_size=6)
    if name == "linear":
        from streaming_vb.models.linear_regression import LinearRegression

        x = random.normal(size=(records, 8))
        return LinearRegression(8), ArraySource({"x": x, "y": x @ np.ones(8) + random.normal(size=records)}), settings
    from streaming_vb.models.vae import VAE

    probabilities = random.uniform(0.05, 0.95, (records, 64))
    source = BinarizedSource(ArraySource({"x": probabilities}), seed)
    return VAE(64, hidden=(20,), latent=4), source, settings


def without_faults(name: str, seed: int, records: int) -> dict[str, Any]:
    """What must come out: one process, one worker, nothing on the disk."""
    *_, last = run(*arguments_of(name, seed, records))
    return outcome(last.state())


def outcome(state: ServerState) -> dict[str, Any]:
    """What is compared."""
    return {
        "sha256": snapshot.posterior_sha256(state.posterior),
        "fit_state": {name: snapshot.posterior_sha256(_one(name, array)) for name, array in state.fit_state.items()},
        "version": state.version,
        "records": state.num_records,
        "set_aside": [f"{entry.interval}: {entry.reason}" for entry in state.ledger.set_aside],
    }


def _one(name: str, array: Any) -> Any:
    from streaming_vb.types import NaturalParameters

    return NaturalParameters({name: array})


def main(name: str, seed: str, records: str, directory: str, workers: str) -> None:
    """Run to the end, or until killed."""
    logging.basicConfig(level=logging.WARNING)
    steps = run_processes(*arguments_of(name, int(seed), int(records)), workers=int(workers), run_dir=Path(directory))
    print(json.dumps({"begun": int(workers)}), flush=True)
    for _ in steps:
        pass
    state = snapshot.load(Path(directory) / snapshot.POSTERIOR_FILE).state
    print(json.dumps({"closed": outcome(state)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
