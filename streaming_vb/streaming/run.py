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


@dataclass(frozen=True, slots=True)
class Settings:
    """What determines a run besides model, source and primitive.

    Args:
        records: records to count; none means the whole source.
        seed: of the prior's centre and of every fit.
        mode: "async" (merge on arrival) or "ordered" (fixed rounds, bit for bit the same for any number of workers).
        batch_size: M, records per local step.
        local_steps: H; an interval holds M H records.
        ramp: records per additional fit in flight; 0 means all from the start.
        share: "auto" (1/W(t)) or "1" (plain SDA-Bayes).
        round_size: K, intervals per round of the ordered mode.
        forgetting: "auto" (a window for neural models, none for conjugate ones), "none" or "window:MIN:KAPPA".

    Raises:
        ConfigError: a setting is out of range.
    """

    records: int | None = None
    seed: int = 0
    mode: str = "async"
    batch_size: int = 100
    local_steps: int = 10
    ramp: int = 30_000
    share: str = "auto"
    round_size: int = 8
    forgetting: str = "auto"

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "local_steps": 1, "ramp": 0, "round_size": 1, "seed": 0, "records": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                flag = "--" + {"round_size": "round"}.get(name, name).replace("_", "-")
                raise ConfigError(f"{flag} must be at least {bound}, got {value}")
        for name, allowed in {"mode": ("async", "ordered"), "share": ("auto", "1")}.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


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


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A run that has not started: what every engine needs.

    Attributes:
        scheduler: built for a number of workers by `scheduler(workers)`.
        identity: what must be equal for a run directory to be resumed.
    """

    local_update: LocalUpdate
    server_state: ServerState
    rule: MergeRule
    settings: Settings
    identity: Mapping[str, Any]
    run_dir: Path | None

    def scheduler(self, workers: int) -> Scheduler:
        """The driver's logic for W workers, starting where the state stands."""
        settings, state = self.settings, self.server_state
        intervals = remaining(
            self.local_update.source, state.ledger, settings.batch_size * settings.local_steps, settings.records
        )
        share = None if settings.share == "auto" else 1.0
        common = {"ramp": settings.ramp, "version": state.version, "num_records": state.num_records}
        if settings.mode == "ordered":
            return Ordered(intervals, round_size=settings.round_size, share=share, **common)
        return Asynchronous(intervals, workers=workers, share=share, **common)


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


def prepare(
    model: Model,
    source: Source,
    settings: Settings,
    *,
    primitive: Primitive | None = None,
    run_dir: Path | str | None = None,
) -> Prepared:
    """Build a run, or the rest of one where the run directory holds a posterior; arguments as for `run`."""
    chosen = primitive or default_primitive(model, settings.batch_size)
    _require_end_of_warm_up(chosen, settings.records)
    family = model.family
    text = settings.forgetting
    if text == "auto":
        text = f"window:{forgetting.MINIMUM}:{forgetting.FRACTION}" if hasattr(model, "layout") else "none"
    forget = forgetting.parse(text, family)
    resolved = replace(settings, forgetting=forget.describe())
    identity = {
        **{name: value for name, value in asdict(resolved).items() if name != "records"},
        **model.describe(),
        "family": family.name,
        **chosen.describe(),
        "source": source.fingerprint,
    }
    directory = Path(run_dir) if run_dir is not None else None
    state = _resumed(directory, identity)
    if state is None:
        prior = model.prior(settings.seed)
        run_id = f"{seeding.derive(settings.seed, time.time_ns(), os.getpid()):016x}"
        state = ServerState(run_id, prior, prior, chosen.initial_state())
    local_update = LocalUpdate(
        state.run_id, model, chosen, source, state.prior.astype(family.wire_dtype), forget, settings.seed
    )
    return Prepared(local_update, state, MergeRule(family, forget), resolved, identity, directory)


def _require_end_of_warm_up(primitive: Primitive, records: int | None) -> None:
    """Raise ConfigError if what is annealed in the primitive would still be so at the end."""
    warm_up = int(str(primitive.describe().get("warm_up", 0)))
    if records is not None and warm_up >= records:
        raise ConfigError(
            f"a KL warm-up of {warm_up:,} records does not end within the {records:,} records of the run: what is "
            "trained would never be the bound. Shorten the warm-up, or raise the records"
        )


def default_primitive(model: Model, batch_size: int) -> Primitive:
    """Natural gradient for models with a layout of weights, closed form for the others."""
    if hasattr(model, "layout"):
        from streaming_vb.inference import natural_gradient

        return natural_gradient.build(model, batch_size=batch_size)  # type: ignore[arg-type]
    from streaming_vb.inference import conjugate

    return conjugate.build(model)  # type: ignore[arg-type]


def remaining(source: Source, ledger: Ledger, max_records: int, records: int | None) -> Iterator[Interval]:
    """Intervals of a source that the ledger does not cover, until `records` positions are covered in all."""
    budget = math.inf if records is None else records - ledger.num_covered
    for interval in source.intervals(ledger.cursor(), max_records):
        for part in ledger.uncovered(interval):
            if budget <= 0:
                return
            stop = int(min(part.stop, part.start + budget))
            budget -= stop - part.start
            yield replace(part, stop=stop)


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
    state, settings, _ = snapshot.load(directory / POSTERIOR_FILE)
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
