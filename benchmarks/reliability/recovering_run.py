"""The program that `recovery.py` kills: a run with two workers on this machine, of one of three models. On stdout it
says what it was told, one JSON document per line, each with the monotonic clock `at`.

    {"step": VERSION}      a merge was acknowledged, so it is durable
    {"restarted": TEXT}    a server was started again
    {"fitted": PID}        a worker is done with a fit (of the VAE)
    {"records": N, "counted": N}    the last line, after a line on stdin: records by the ledger, and by the posterior

    ledger   four integer sums; neither torch nor arithmetic to speak of
    wide     6.25 million weights with two natural parameters each, 100 MB in float64; a delta is 50 MB; no torch
    vae      784-500-20, intervals of 1,000 records
"""

import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.run import run_processes
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Fit, FitState, Model, NaturalParameters, Primitive, Records, Source

WORKERS = 2
WEIGHTS = 6_250_000
COLUMNS = 784
_MANY = 10**9
"""More records than any run here comes to."""


class Task(NamedTuple):
    """What is streamed; a primitive of none is the model's own."""

    model: Model
    source: Source
    settings: Settings
    primitive: Primitive | None = None


def main(name: str, directory: str, bits: str = "") -> None:
    """Run until there is a line on stdin.

    Args:
        name: "ledger", "wide" or "vae".
        directory: of the run.
        bits: file with the records of the VAE, or the folder of MNIST.
    """
    logging.basicConfig(level=logging.WARNING, handlers=[logging.StreamHandler(), Restarts()], format="%(message)s")
    task = vae(Path(bits)) if name == "vae" else {"ledger": ledger, "wide": wide}[name]()
    steps = run_processes(
        task.model, task.source, task.settings, workers=WORKERS, primitive=task.primitive, run_dir=directory
    )
    for step in steps:
        say({"step": step.version})
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    steps.close()  # type: ignore[attr-defined]
    state = step.state()
    say({"records": state.num_records, "counted": counted(state)})


def ledger() -> Task:
    """Integers."""
    return Task(LedgerModel(), IntegerSource(_MANY), Settings(batch_size=5, local_steps=4, ramp=0))


def wide() -> Task:
    """As many weights as fill 100 MB; the precision of each is 1 and the number of records."""
    return Task(WideModel(), IntegerSource(_MANY), Settings(batch_size=5, local_steps=4, ramp=0))


def vae(data: Path) -> Task:
    """The VAE 784-500-20 over bits in a file, or over MNIST in a folder."""
    from streaming_vb.inference import natural_gradient
    from streaming_vb.models.vae import VAE
    from streaming_vb.sources.arrays import ArraySource
    from streaming_vb.sources.binarized import BinarizedSource

    model = VAE(COLUMNS, hidden=(500,), latent=20)
    source: Source
    if data.is_dir():
        from streaming_vb.sources import datasets

        images = datasets.load("mnist", data, "bernoulli").train
        source = BinarizedSource(ArraySource({"x": images}, passes=1000, seed=0, scale=1 / 255), seed=0)
    else:
        source = ArraySource({"x": np.load(data)}, passes=1000, scale=1.0)
    return Task(model, source, Settings(ramp=0), Telling(natural_gradient.build(model)))


@dataclass(frozen=True, slots=True)
class WideModel:
    """A conjugate model that costs nothing but its size: every record adds 1 to every natural parameter."""

    @property
    def family(self) -> MeanFieldNormal:
        """With float32 on the wire."""
        return MeanFieldNormal()

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model."""
        return {"model": "wide"}

    def prior(self, seed: int) -> NaturalParameters:
        """Mean 0 and precision 1."""
        return NaturalParameters({"precision_mean": np.zeros(WEIGHTS), "precision": np.ones(WEIGHTS)})

    def validate(self, records: Records) -> None:
        """Every record will do."""

    def evidence(self, records: Records) -> NaturalParameters:
        """As the model says."""
        counts = {name: np.full(WEIGHTS, len(records), np.float32) for name in ("precision_mean", "precision")}
        return NaturalParameters(counts)

    def log_predictive(self, posterior: NaturalParameters, records: Records) -> float:
        """The model predicts nothing: 0 nats."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Telling:
    """A primitive that says when it is done."""

    primitive: Primitive

    def describe(self) -> Mapping[str, object]:
        """That of the primitive."""
        return self.primitive.describe()

    def initial_state(self) -> FitState:
        """That of the primitive."""
        return self.primitive.initial_state()

    def __call__(
        self, prior: NaturalParameters, served: NaturalParameters, fit_state: FitState, records: Records, seed: int
    ) -> Fit:
        """The fit of the primitive."""
        fit = self.primitive(prior, served, fit_state, records, seed)
        say({"fitted": os.getpid()})
        return fit

    def cautious(self) -> "Telling":
        """With smaller steps."""
        return Telling(self.primitive.cautious())

    def after(self, num_records: int) -> "Telling":
        """As it is after so many records."""
        return Telling(self.primitive.after(num_records))


class Restarts(logging.Handler):
    """Says what the driver logs of a server that was started again."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "the server was started again" in text:
            say({"restarted": text})


def counted(state: ServerState) -> float:
    """Records by the posterior, for the models that count them."""
    arrays = state.posterior.arrays
    if "sum" in arrays:
        return float(arrays["sum"][0])
    if arrays["precision"].size == WEIGHTS:
        low, high = arrays["precision"].min() - 1, arrays["precision"].max() - 1
        return float(low) if low == high else float("nan")
    return float(state.num_records)


def say(document: Mapping[str, Any]) -> None:
    """One line in one write, so that those of several processes do not mix and a killed one leaves none in half."""
    os.write(sys.stdout.fileno(), json.dumps({**document, "at": time.monotonic()}).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
