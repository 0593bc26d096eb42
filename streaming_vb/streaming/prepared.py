"""From a model, a source and settings to everything that an engine needs, whether the run is new or goes on."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from streaming_vb import seeding
from streaming_vb.errors import ConfigError, IntegrityError, ResumeMismatch
from streaming_vb.failpoints import reach
from streaming_vb.streaming import forgetting, snapshot
from streaming_vb.streaming.asynchronous import Asynchronous
from streaming_vb.streaming.audit import Audited
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import Ancestor, MergeRule, ServerState
from streaming_vb.streaming.ordered import Ordered
from streaming_vb.streaming.scheduler import Scheduler
from streaming_vb.streaming.screening import MAX_STEP_KL, Screening
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.server_setup import ServerSetup
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.snapshot import POSTERIOR_FILE, PREVIOUS_FILE
from streaming_vb.streaming.transport import Position
from streaming_vb.types import Interval, Model, Primitive, Source

_BEFORE_THERE_WAS_A_CHOICE = {"bad_records": "stop"}
"""What older run directories do not say."""
_MAY_CHANGE = ("records", "audit", "keep_deltas")
"""Settings that a resumed run may have others of."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A run that has not started: what every engine needs.

    Attributes:
        local_update: what a worker does with a lease.
        server_state: where a new run starts; a run directory that holds a posterior goes on from that.
        rule, screening: how deltas are merged, and which are refused.
        settings: with what was automatic resolved.
        identity: what must be equal for a run directory to be resumed.
        run_dir: where the run is kept; none keeps it in memory.
    """

    local_update: LocalUpdate
    server_state: ServerState
    rule: MergeRule
    screening: Screening
    settings: Settings
    identity: Mapping[str, Any]
    run_dir: Path | None

    def open_server(self, since: int | None = None) -> Server:
        """The parameter server, recovered from the run directory where there is one.

        Args:
            since: leases of this generation and later ones are accepted; none means those given from now on.

        Raises:
            RunInUse: another process writes the run directory.
            IntegrityError: what is there is corrupt.
        """
        return self.server_setup.open(since)

    @property
    def server_setup(self) -> ServerSetup:
        """What of the run the server needs: all but the model and the data."""
        return ServerSetup(self.server_state, self.rule, self.screening, self.settings, self.identity, self.run_dir)

    def scheduler(self, workers: int, position: Position) -> Scheduler:
        """The driver's logic for W workers, from where the server stands."""
        scheduler = self._unaudited(workers, position)
        audit = self.settings.audit
        return Audited(scheduler, audit, self.settings.seed, workers) if audit else scheduler

    def _unaudited(self, workers: int, position: Position) -> Scheduler:
        settings, source = self.settings, self.local_update.source
        share = None if settings.share == "auto" else 1.0
        at = {"ramp": settings.ramp, "version": position.version, "num_records": position.num_records}
        size = settings.batch_size * settings.local_steps
        if settings.mode == "ordered":
            intervals = remaining(source, position.ledger, size, settings.records)
            return Ordered(intervals, round_size=settings.round_size, share=share, merged=position.merged, **at)
        intervals = remaining(source, position.merged, size, settings.records)
        return Asynchronous(intervals, workers=workers, share=share, **at)


def prepare(
    model: Model,
    source: Source,
    settings: Settings,
    *,
    primitive: Primitive | None = None,
    run_dir: Path | str | None = None,
    start_from: Path | str | None = None,
) -> Prepared:
    """Build a run, or the rest of one where the run directory holds a posterior.

    Args:
        model, source, settings, primitive, run_dir: as for `streaming_vb.run`.
        start_from: posterior file that a new run starts from: its evidence and its ledger are kept, and it is named in
            the lineage. Where the run directory holds a posterior already, the run goes on from that.

    Raises:
        ConfigError: a setting is out of range.
        ResumeMismatch: the run directory, or the posterior to start from, was made with other settings.
        IntegrityError: it cannot be read.
    """
    reach("D1")
    chosen = primitive or default_primitive(model, settings.batch_size)
    _require_end_of_warm_up(chosen, settings.records)
    resolved = replace(settings, forgetting=_forgetting(settings, model).describe())
    identity = _identity(model, source, resolved, chosen)
    directory = Path(run_dir) if run_dir is not None else None
    description = None if directory is None else _description(directory)
    run_id = f"{seeding.derive(settings.seed, time.time_ns(), os.getpid()):016x}"
    if directory is not None and description is not None:
        identity = _require_same(directory, description["settings"], identity)
        state = _at_prior(description["run_id"], model, chosen, int(identity.get("prior_seed", settings.seed)))
    elif start_from is not None:
        state, prior_seed = _started_from(Path(start_from), run_id, model, chosen)
        identity = {**identity, "prior_seed": prior_seed}
    else:
        state = _at_prior(run_id, model, chosen, settings.seed)
    forget = _forgetting(resolved, model)
    local_update = LocalUpdate(
        state.run_id,
        model,
        chosen,
        source,
        state.prior.astype(model.family.wire_dtype),
        forget,
        settings.seed,
        sets_bad_records_aside=settings.bad_records == "set-aside",
        is_audited=settings.audit > 0,
    )
    screening = Screening(max_step_kl=MAX_STEP_KL) if hasattr(model, "layout") else Screening()
    return Prepared(local_update, state, MergeRule(model.family, forget), screening, resolved, identity, directory)


def default_primitive(model: Model, batch_size: int) -> Primitive:
    """Natural gradient for models with a layout of weights, closed form for the others."""
    if hasattr(model, "layout"):
        from streaming_vb.inference import natural_gradient

        return natural_gradient.build(model, batch_size=batch_size)  # type: ignore[arg-type]
    from streaming_vb.inference import conjugate

    return conjugate.build(model)  # type: ignore[arg-type]


def remaining(source: Source, ledger: Ledger, max_records: int, records: int | None) -> Iterator[Interval]:
    """Intervals of a source that the ledger does not cover, until `records` positions of it are covered in all."""
    fingerprint = source.fingerprint
    budget = math.inf if records is None else records - ledger.num_covered(fingerprint)
    for interval in source.intervals(ledger.cursor(fingerprint), max_records):
        for part in ledger.uncovered(interval):
            if budget <= 0:
                return
            stop = int(min(part.stop, part.start + budget))
            budget -= stop - part.start
            yield replace(part, stop=stop)


def _forgetting(settings: Settings, model: Model) -> forgetting.Forgetting:
    text = settings.forgetting
    if text == "auto":
        text = f"window:{forgetting.MINIMUM}:{forgetting.FRACTION}" if hasattr(model, "layout") else "none"
    return forgetting.parse(text, model.family)


def _require_end_of_warm_up(primitive: Primitive, records: int | None) -> None:
    """Raise ConfigError if what is annealed in the primitive would still be so at the end."""
    warm_up = int(str(primitive.describe().get("warm_up", 0)))
    if records is not None and warm_up >= records:
        raise ConfigError(
            f"a KL warm-up of {warm_up:,} records does not end within the {records:,} records of the run: what is "
            "trained would never be the bound. Shorten the warm-up, or raise the records"
        )


def _identity(model: Model, source: Source, settings: Settings, primitive: Primitive) -> dict[str, Any]:
    chosen = {name: value for name, value in asdict(settings).items() if name not in _MAY_CHANGE}
    return {
        **chosen,
        **model.describe(),
        "family": model.family.name,
        **primitive.describe(),
        "source": source.fingerprint,
    }


def _description(directory: Path) -> dict[str, Any] | None:
    """What the posterior file in a run directory says of itself; none where there is none."""
    if not (directory / POSTERIOR_FILE).exists():
        return None
    try:
        return snapshot.read_description(directory / POSTERIOR_FILE)
    except IntegrityError:
        if not (directory / PREVIOUS_FILE).exists():
            raise
        return snapshot.read_description(directory / PREVIOUS_FILE)


def _require_same(directory: Path, settings: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run that goes on; raises ResumeMismatch if it was made with other settings."""
    plain = json.loads(json.dumps(identity))
    settings = {**_BEFORE_THERE_WAS_A_CHOICE, **settings}
    if "prior_seed" in settings:
        plain["prior_seed"] = settings["prior_seed"]
    for name in sorted(settings.keys() | plain.keys()):
        if settings.get(name) != plain.get(name):
            raise ResumeMismatch(
                f"{directory} was made with {name} = {settings.get(name)}, now {name} = {plain.get(name)}. "
                "Use the settings of that run, or another --run-dir"
            )
    return dict(plain)


def _at_prior(run_id: str, model: Model, primitive: Primitive, seed: int) -> ServerState:
    """A run that has seen nothing."""
    prior = model.prior(seed)
    return ServerState(run_id, prior, prior, primitive.initial_state())


def _started_from(start_from: Path, run_id: str, model: Model, primitive: Primitive) -> tuple[ServerState, int]:
    """A run that starts at the posterior of another one, and the seed of its prior's centre."""
    state, made_with, *_ = snapshot.load(snapshot.posterior_path(start_from))
    plain = json.loads(json.dumps({**model.describe(), "family": model.family.name, **primitive.describe()}))
    for name, value in plain.items():
        if made_with.get(name) != value:
            raise ResumeMismatch(
                f"--start-from {start_from} was made with {name} = {made_with.get(name)}, now {name} = {value}. "
                "Use the model and the primitive of that posterior"
            )
    ancestor = Ancestor(state.run_id, state.version, snapshot.posterior_sha256(state.posterior))
    started = replace(state, run_id=run_id, lineage=(*state.lineage, ancestor))
    return started, int(made_with.get("prior_seed", made_with["seed"]))
