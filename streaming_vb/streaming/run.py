"""The recursion as a generator: one `Step` per merge. The caller prints, plots and stops; there is no trainer and no
callback.

`prepare` builds what every engine needs from a model, a source and settings; `drive` runs a scheduler on an engine;
`record` keeps a run directory. `run` is the three together in one process; `workers.asynchronous.run` is the same on
Ray.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from streaming_vb import seeding
from streaming_vb.errors import ConfigError, ResumeMismatch
from streaming_vb.streaming import forgetting, snapshot
from streaming_vb.streaming.engines import Engine, InProcess
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.scheduler import Answered, Asynchronous, Ordered, Scheduler, StartFit
from streaming_vb.streaming.server import Server
from streaming_vb.types import Interval, Model, Primitive, Source

POSTERIOR_FILE = "posterior.safetensors"
METRICS_FILE = "metrics.jsonl"
SAVE_EVERY = 30.0
"""Seconds between saves of the posterior while a run goes on."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One answer of the server, as people look at it.

    Attributes:
        status: "merged", "set-aside", or "rejected" (the interval is leased again).
        interval: the data.
        num_new: records counted by it.
        version, records: where the posterior stands after it.
        elbo: score of the interval at the snapshot, before it was learned; nats per record (NaN where there is none).
        step_kl: KL(after || before), nats.
        staleness, staleness_sd: age of the fit's snapshot, in versions and in posterior standard deviations.
        reason: why an interval was rejected or set aside.
        state: gives the state published last.
    """

    status: str
    interval: Interval
    num_new: int
    version: int
    records: int
    elbo: float
    step_kl: float
    staleness: int
    staleness_sd: float
    reason: str
    state: Callable[[], ServerState]

    def row(self) -> dict[str, Any]:
        """The step as plain values, for metrics and JSON; NaN becomes None."""
        numbers = {"elbo": self.elbo, "step_kl": self.step_kl, "staleness_sd": self.staleness_sd}
        return {
            "status": self.status,
            "partition": self.interval.partition,
            "start": self.interval.start,
            "stop": self.interval.stop,
            "new": self.num_new,
            "version": self.version,
            "records": self.records,
            "staleness": self.staleness,
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            **({"reason": self.reason} if self.reason else {}),
        }


def run(
    model: Model,
    source: Source,
    settings: Settings = Settings(),
    *,
    workers: int = 1,
    primitive: Primitive | None = None,
    run_dir: Path | str | None = None,
) -> Iterator[Step]:
    """Stream a source through a model in this process; yields one `Step` per merge.

    Args:
        model: what has a posterior.
        source: where records come from.
        settings: see `Settings`.
        workers: 1 is the inline engine; more are simulated under a virtual clock, with real staleness.
        primitive: the local fit; by default natural gradient for neural models, closed form for conjugate ones.
        run_dir: posterior and metrics are kept there; the same call on the same directory resumes.

    Raises:
        ConfigError: a setting is out of range.
        ResumeMismatch: the run directory was made with other settings.
        SourceError: the data cannot be read or scored.

    >>> import numpy as np
    >>> from streaming_vb.models.linear_regression import LinearRegression
    >>> from streaming_vb.sources.arrays import ArraySource
    >>> source = ArraySource({"x": np.ones((2500, 1)), "y": np.full(2500, 3.0)})
    >>> for step in run(LinearRegression(1), source):
    ...     print(step.version, step.records)
    1 1000
    2 2000
    3 2500
    >>> step.state().posterior["precision_mean"].round(6)
    array([7500.])
    """
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    prepared = prepare(model, source, settings, primitive=primitive, run_dir=run_dir)
    engine = in_process(prepared, workers)
    return record(drive(prepared.scheduler(workers), engine), engine, prepared)


def in_process(prepared: Prepared, workers: int) -> InProcess:
    """The engine of one process."""
    return InProcess(
        prepared.local_update,
        Server(prepared.server_state, prepared.rule),
        workers=workers,
        seed=prepared.settings.seed,
        batch_size=prepared.settings.batch_size,
    )


def drive(scheduler: Scheduler, engine: Engine) -> Iterator[Step]:
    """Run a scheduler on an engine to its end; yields one `Step` per answer of the server."""
    records = engine.state().num_records
    while not scheduler.finished:
        event = engine.next_event()
        actions = scheduler.handle(event)
        # Fits go out before the caller looks at the step, so that workers do not wait for it; pushes go out after it,
        # so that the state is never ahead of the step.
        for action in actions:
            if isinstance(action, StartFit):
                engine.perform(action)
        if isinstance(event, Answered) and event.receipt.status != "duplicate":
            yield _step(event, records, engine)
            records = event.receipt.num_records
        for action in actions:
            if not isinstance(action, StartFit):
                engine.perform(action)


def record(steps: Iterator[Step], engine: Engine, prepared: Prepared) -> Iterator[Step]:
    """Pass steps on, and close the engine when the caller stops for any reason.

    Where the run has a directory, posterior and metrics are kept there: every 30 s, and at the end.
    """
    directory = prepared.run_dir
    if directory is None:
        try:
            yield from steps
        finally:
            engine.close()
        return
    directory.mkdir(parents=True, exist_ok=True)
    metrics = directory / METRICS_FILE
    _drop_lost_rows(metrics, prepared.server_state.ledger)
    saved, records = time.monotonic(), prepared.server_state.num_records
    with open(metrics, "a", buffering=1) as file:
        try:
            for step in steps:
                file.write(json.dumps(step.row()) + "\n")
                records = step.records
                if time.monotonic() - saved > SAVE_EVERY:
                    snapshot.save(directory / POSTERIOR_FILE, engine.state(), prepared.identity)
                    saved = time.monotonic()
                yield step
        finally:
            for event in engine.close():  # merged, and not yet seen when the caller stopped
                file.write(json.dumps(_step(event, records, engine).row()) + "\n")
                records = event.receipt.num_records
            snapshot.save(directory / POSTERIOR_FILE, engine.state(), prepared.identity)


def _step(event: Answered, records_before: int, engine: Engine) -> Step:
    receipt = event.receipt
    elbo = engine.score(event.interval) if receipt.status == "merged" else math.nan
    return Step(
        receipt.status,
        event.interval,
        receipt.num_records - records_before,
        receipt.version,
        receipt.num_records,
        elbo,
        receipt.step_kl,
        receipt.staleness,
        receipt.staleness_sd,
        receipt.reason,
        engine.state,
    )


def _resumed(directory: Path | None, identity: Mapping[str, Any]) -> ServerState | None:
    if directory is None or not (directory / POSTERIOR_FILE).exists():
        return None
    state, settings, *_ = snapshot.load(directory / POSTERIOR_FILE)
    plain = json.loads(json.dumps(identity))
    for name in sorted(settings.keys() | plain.keys()):
        if settings.get(name) != plain.get(name):
            raise ResumeMismatch(
                f"{directory} was made with {name} = {settings.get(name)}, now {name} = {plain.get(name)}. "
                "Use the settings of that run, or another --run-dir"
            )
    return state


def _drop_lost_rows(metrics: Path, ledger: Ledger) -> None:
    """Intervals whose merge was lost with a killed process are leased again; their rows would stand there twice."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed process
            continue
        interval = Interval(ledger.source, row["partition"], row["start"], row["stop"])
        if not any(ledger.uncovered(interval)):
            kept.append(line + "\n")
    metrics.write_text("".join(kept))
