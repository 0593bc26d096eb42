"""The recursion as a generator: one `Step` per merge. The caller prints, plots and stops; there is no trainer and no
callback.

`prepare` (in `prepared.py`) builds what every engine needs from a model, a source and settings; `drive` runs a
scheduler on an engine; `record` keeps the metrics of a run directory, whose posterior the server keeps. `run` is all of
it in one process; `run_processes` and `workers.asynchronous.run` are the same on several.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from streaming_vb.errors import ConfigError
from streaming_vb.failpoints import reach
from streaming_vb.streaming import driver_file
from streaming_vb.streaming.engines import Engine, InProcess
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.patience import until_there_is_space
from streaming_vb.streaming.prepared import Prepared, prepare
from streaming_vb.streaming.processes import ProcessTransport
from streaming_vb.streaming.remote_engine import RemoteEngine
from streaming_vb.streaming.scheduler import Answered, Scheduler, StartFit
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Interval, Model, Primitive, Source

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


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
    start_from: Path | str | None = None,
) -> Iterator[Step]:
    """Stream a source through a model in this process; yields one `Step` per merge.

    Args:
        model: what has a posterior.
        source: where records come from.
        settings: see `Settings`.
        workers: 1 is the inline engine; more are simulated under a virtual clock, with real staleness.
        primitive: the local fit; by default natural gradient for neural models, closed form for conjugate ones.
        run_dir: posterior, journal and metrics are kept there: a merge that was yielded is on the disk, and the same
            call on the same directory goes on, whatever ended the one before. None keeps the run in memory.
        start_from: posterior file, or run directory, that a new run starts from.

    Raises:
        ConfigError: a setting is out of range.
        ResumeMismatch: the run directory was made with other settings.
        RunInUse: another process writes the run directory.
        IntegrityError: what is in the run directory is corrupt.
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
    _require_workers(workers)
    prepared = prepare(model, source, settings, primitive=primitive, run_dir=run_dir, start_from=start_from)
    return stream(prepared, in_process(prepared, workers), workers)


def run_processes(
    model: Model,
    source: Source,
    settings: Settings = Settings(),
    *,
    workers: int = 2,
    primitive: Primitive | None = None,
    run_dir: Path | str | None = None,
    start_from: Path | str | None = None,
) -> Iterator[Step]:
    """As `run`, with the server and each worker in a process of its own, on this machine. They are up when this
    returns, and a process that dies is replaced.

    Raises:
        ClusterError: the processes do not start, or the server died and there is no run directory.
        StreamingVBError: as for `run`.
    """
    _require_workers(workers)
    prepared = prepare(model, source, settings, primitive=primitive, run_dir=run_dir, start_from=start_from)
    return stream(prepared, in_processes(prepared, workers), workers)


def in_process(prepared: Prepared, workers: int) -> InProcess:
    """The engine of one process."""
    return InProcess(
        prepared.local_update,
        prepared.open_server(),
        workers=workers,
        seed=prepared.settings.seed,
        batch_size=prepared.settings.batch_size,
    )


def in_processes(prepared: Prepared, workers: int) -> RemoteEngine:
    """The engine of several processes on this machine."""
    transport = ProcessTransport(prepared)
    return RemoteEngine(transport, workers, is_durable=prepared.run_dir is not None)


def stream(prepared: Prepared, engine: Engine, workers: int) -> Iterator[Step]:
    """Run to the end on an engine that has opened the run, and keep the run directory."""
    scheduler = prepared.scheduler(workers, engine.position())
    return record(drive(scheduler, engine), engine, prepared)


def drive(scheduler: Scheduler, engine: Engine) -> Iterator[Step]:
    """Run a scheduler on an engine to its end; yields one `Step` per answer of the server."""
    while not scheduler.finished:
        event = engine.next_event()
        actions = scheduler.handle(event)
        # Fits go out before the caller looks at the step, so that workers do not wait for it; pushes go out after it,
        # so that the state is never ahead of the step.
        for action in actions:
            if isinstance(action, StartFit):
                engine.perform(action)
        if isinstance(event, Answered) and event.receipt.status != "duplicate":
            yield _step(event, engine)
        for action in actions:
            if not isinstance(action, StartFit):
                engine.perform(action)


def record(steps: Iterator[Step], engine: Engine, prepared: Prepared) -> Iterator[Step]:
    """Pass steps on, write a row of metrics for each, and close the engine when the caller stops for any reason."""
    directory = prepared.run_dir
    if directory is None:
        try:
            yield from steps
        finally:
            engine.close()
        return
    metrics = directory / METRICS_FILE
    try:
        driver_file.write(directory)
        _drop_lost_rows(metrics, prepared.local_update.source.fingerprint, engine.position().merged)
    except BaseException:
        engine.close()
        raise
    with open(metrics, "ab", buffering=0) as file:
        try:
            for step in steps:
                _append(file, step)
                reach("D3")
                yield step
        finally:
            reach("D4")
            for event in engine.close():  # merged, and not yet seen when the caller stopped
                if event.receipt.status in ("merged", "set-aside"):
                    _append(file, _step(event, engine))
            driver_file.remove(directory)


def _require_workers(workers: int) -> None:
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")


def _step(event: Answered, engine: Engine) -> Step:
    receipt = event.receipt
    elbo = engine.score(event.interval) if receipt.status == "merged" else math.nan
    return Step(
        receipt.status,
        event.interval,
        receipt.num_new,
        receipt.version,
        receipt.num_records,
        elbo,
        receipt.step_kl,
        receipt.staleness,
        receipt.staleness_sd,
        receipt.reason,
        engine.state,
    )


def _append(file: FileIO, step: Step) -> None:
    """Write a row, with the time of day for people, however long the disk is full."""
    rest = json.dumps({**step.row(), "time": round(time.time(), 3)}).encode() + b"\n"
    while rest:
        rest = rest[until_there_is_space(lambda: file.write(rest), logger.warning, time.sleep) :]  # noqa: B023


def _drop_lost_rows(metrics: Path, source: str, ledger: Ledger) -> None:
    """Rows of a process that was killed: the last one may be half a line, and after a power cut rows may be there whose
    merge is not; their intervals are leased again, and would stand there twice."""
    if not metrics.exists():
        return
    before = metrics.read_text()
    kept = []
    for line in before.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed process
            continue
        if not any(ledger.uncovered(Interval(source, row["partition"], row["start"], row["stop"]))):
            kept.append(line + "\n")
    after = "".join(kept)
    if after != before:
        temporary = metrics.with_name(f".{metrics.name}.tmp")
        temporary.write_text(after)
        os.replace(temporary, metrics)
