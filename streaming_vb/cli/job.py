"""The main job, from what a user asked for to a finished run directory. `fit` and `demo` both end here."""

import math
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from streaming_vb.cli import choices, run_directory
from streaming_vb.cli.chosen_fit import ChosenFit
from streaming_vb.cli.chosen_model import ChosenModel
from streaming_vb.cli.output import Output
from streaming_vb.errors import ConfigError, MissingExtra
from streaming_vb.evaluation.progressive import Progressive
from streaming_vb.streaming import run as streaming
from streaming_vb.streaming.engines import Engine
from streaming_vb.streaming.prepared import Prepared, prepare
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.snapshot import POSTERIOR_FILE, posterior_sha256
from streaming_vb.types import Array, Source

if TYPE_CHECKING:
    from streaming_vb.cli.chosen_model import VAEModel
    from streaming_vb.sources.datasets import Dataset

STOPPED = 75
"""Exit code of a run that was stopped and can be resumed (EX_TEMPFAIL)."""
EVALUATION_SEED = 20_131
"""Seed of the held-out binarization and of its draws of z: the same for every run, independent of the run's own."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a user asked for; the defaults stand on the flags of `fit`."""

    data: str
    data_dir: Path | None
    run_dir: Path | None
    start_from: Path | None
    engine: str
    workers: int
    address: str | None
    model: ChosenModel
    fit: ChosenFit
    settings: Settings


def execute(job: Job, output: Output) -> None:
    """Stream, evaluate, draw, and say where things are.

    Raises:
        StreamingVBError: a mistake of the user; nothing is half-merged.
        typer.Exit: stopped by Ctrl-C or SIGTERM; the posterior is saved.
    """
    _check(job)
    from streaming_vb.sources import datasets

    dataset = datasets.load(job.data, job.data_dir, job.model.likelihood, bad_records=job.settings.bad_records)
    prepared = _prepare(job, dataset, output)
    assert prepared.run_dir is not None
    run_directory.write_config(prepared.run_dir, _config(job, prepared))
    engine = _engine(job, prepared, output)
    _greet(prepared, engine, output)
    seconds = _stream(job, prepared, engine, output)
    values, text = _conclude(job, prepared, engine, dataset, seconds)
    output.result(values, text)


def _check(job: Job) -> None:
    """Everything that can be refused before torch is loaded."""
    choices.require("--engine", choices.ENGINES, job.engine)
    job.model.check()
    job.fit.check()
    if job.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {job.workers}")
    if job.engine == "inline" and job.workers > 1:
        raise ConfigError(
            f"--engine inline means one worker, got --workers {job.workers}. "
            "Type --engine processes (on this machine), --engine ray (on a cluster) or --engine simulated (a virtual "
            "clock in this process)"
        )
    if job.address is not None and job.engine != "ray":
        raise ConfigError(f"--address {job.address} needs a cluster. Type --engine ray with it")


def _prepare(job: Job, dataset: "Dataset", output: Output) -> Prepared:
    from streaming_vb.sources.arrays import ArraySource
    from streaming_vb.sources.binarized import BinarizedSource

    size = len(dataset.train)
    settings = replace(job.settings, records=job.settings.records or size)
    assert settings.records is not None
    passes = math.ceil(settings.records / size)
    if passes > 1:
        output.say(
            f"{settings.records:,} records of {size:,}: {passes} passes, each in a new order; "
            "the posterior takes the records of a further pass for new records"
        )
    table = ArraySource({"x": dataset.train}, passes=passes, seed=settings.seed, scale=dataset.scale)
    source: Source = BinarizedSource(table, settings.seed) if job.model.likelihood == "bernoulli" else table
    model = job.model.build(dataset.train.shape[1], dataset.shape)
    primitive = job.fit.build(model, settings.batch_size)
    directory = job.run_dir or run_directory.next_free(Path(job.data).name.split(".")[0])
    prepared = prepare(model, source, settings, primitive=primitive, run_dir=directory, start_from=job.start_from)
    objective = str(prepared.identity["objective"])
    if "not the ELBO" in objective:
        output.say(f"what is trained is {objective}; every figure shown is the ELBO all the same")
    return prepared


def _greet(prepared: Prepared, engine: Engine, output: Output) -> None:
    """Say where a run goes on, and what recovery found."""
    position = engine.position()
    for note in position.notes:
        output.say(note)
    if position.version:
        output.say(f"resumed at version {position.version:,}, {position.num_records:,} records")
    covered = position.merged.num_covered(prepared.local_update.source.fingerprint)
    if prepared.settings.records is not None and covered >= prepared.settings.records:
        output.say(f"nothing left to stream: --records is {prepared.settings.records:,}. Raise it to go on")


def _config(job: Job, prepared: Prepared) -> dict[str, Any]:
    return {
        "data": {"name": job.data, "data_dir": str(job.data_dir) if job.data_dir else None},
        "engine": {"name": job.engine, "workers": job.workers},
        "settings": asdict(prepared.settings),
        "determined_by": dict(prepared.identity),
    }


def _engine(job: Job, prepared: Prepared, output: Output) -> Engine:
    if job.engine == "processes":
        return streaming.in_processes(prepared, job.workers)
    if job.engine != "ray":
        return streaming.in_process(prepared, job.workers)
    try:
        from workers import ray_transport
    except ImportError:
        raise MissingExtra("--engine ray needs Ray. Type pip install 'streaming-vb[ray]'") from None
    where = f"the cluster at {job.address}" if job.address else "a local Ray"
    output.say(f"starting {job.workers} worker{'s' * (job.workers > 1)} on {where}")
    return ray_transport.engine(prepared, job.workers, job.address)


def _stream(job: Job, prepared: Prepared, engine: Engine, output: Output) -> float:
    """Run to the end; returns the seconds since the workers were up."""
    steps = streaming.stream(prepared, engine, job.workers)
    assert prepared.settings.records is not None
    output.begin(prepared.settings.records, engine.position().num_records)
    before = signal.signal(signal.SIGTERM, _interrupt)
    started = time.perf_counter()
    try:
        for step in steps:
            output.step(step)
    except KeyboardInterrupt:
        steps.close()  # type: ignore[attr-defined]
        output.end()
        raise _stopped(prepared, engine, output) from None
    finally:
        output.end()
        signal.signal(signal.SIGTERM, before)
    return time.perf_counter() - started


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stopped(prepared: Prepared, engine: Engine, output: Output) -> typer.Exit:
    state, directory = engine.state(), prepared.run_dir
    words = sys.argv[1:] if "--run-dir" in sys.argv else [*sys.argv[1:], "--run-dir", str(directory)]
    command = shlex.join(["streaming-vb", *words])
    values = {"event": "stopped", "version": state.version, "records": state.num_records, "run_dir": str(directory)}
    output.result(
        {**values, "resume": command},
        f"stopped at version {state.version:,}, {state.num_records:,} records; saved {directory}/{POSTERIOR_FILE}\n"
        f"go on    {command}",
    )
    return typer.Exit(STOPPED)


def _conclude(
    job: Job, prepared: Prepared, engine: Engine, dataset: "Dataset", seconds: float
) -> tuple[dict[str, Any], str]:
    from streaming_vb.cli import pictures
    from streaming_vb.evaluation import held_out

    model: VAEModel = prepared.local_update.model  # type: ignore[assignment]
    state, directory = engine.state(), prepared.run_dir
    assert directory is not None
    served = prepared.rule.served(state)
    x = held_out_records(dataset, job.model.likelihood)
    estimate = held_out.at_mean(model, served, {"x": x}, EVALUATION_SEED)
    rows = run_directory.read_metrics(directory)
    drawn = pictures.draw(directory, model, served, dataset, x, rows, estimate.mean)
    usage = engine.usage()
    num_new = state.num_records - engine.position().num_records
    parallelism = usage.busy / usage.elapsed if usage.elapsed else 0.0
    values = {
        "event": "done",
        "engine": job.engine,
        "objective": prepared.identity["objective"],
        "workers": job.workers,
        "records": state.num_records,
        "version": state.version,
        "set_aside": state.ledger.num_set_aside,
        "elbo_progressive": _progressive(rows),
        "elbo_heldout": estimate.mean,
        "elbo_heldout_se": estimate.standard_error,
        "seconds": seconds,
        "records_per_second": num_new / seconds,
        "parallelism": parallelism,
        **({"virtual_speedup": parallelism} if job.engine == "simulated" else {}),
        "posterior_sha256": posterior_sha256(state.posterior),
        "run_dir": str(directory),
    }
    return values, _summary(values, len(x), drawn)


def held_out_records(dataset: "Dataset", likelihood: str) -> Array:
    """The held-out records as the model sees them, binarized once with a fixed seed [m, D]."""
    x = dataset.test_values()
    if likelihood != "bernoulli":
        return x
    from streaming_vb.sources.binarized import binarize

    return binarize(x, EVALUATION_SEED, 0)


def _progressive(rows: list[dict[str, Any]]) -> float | None:
    score = Progressive()
    for row in rows:
        if row["elbo"] is not None:
            score.update(row["elbo"], num_records=row["new"])
    return score.mean if score.num_records else None


def _summary(values: Mapping[str, Any], num_held_out: int, drawn: str) -> str:
    directory = values["run_dir"]
    aside = f", {values['set_aside']:,} set aside" if values["set_aside"] else ""
    speed = f"{values['version']:,} merges, {values['seconds']:.3g} s, {values['records_per_second']:,.0f} records/s"
    return "\n".join(
        [
            f"done       {values['records']:,} records, each counted once{aside}; {speed}",
            f"held out   ELBO {values['elbo_heldout']:.2f} +- {values['elbo_heldout_se']:.2f} nats per record "
            f"({num_held_out:,} records, at the posterior mean)",
            f"posterior  {directory}/{POSTERIOR_FILE}",
            drawn,
            f"next       streaming-vb evaluate {directory}    streaming-vb sample {directory}",
            "           streaming-vb fit --help",
        ]
    )
