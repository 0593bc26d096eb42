"""`streaming-vb verify RUN`: whether everything in a run directory is whole and agrees. Only reads; loads no torch.

Metrics are read before the journal: what a row tells is durable by then, so the journal of a run that goes on must hold
it as well.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from typer import Argument, Option

from streaming_vb.cli import output, run_directory, run_files
from streaming_vb.errors import IntegrityError, MergeRejected
from streaming_vb.streaming import forgetting, posterior_algebra, snapshot
from streaming_vb.streaming.disk import RealDisk
from streaming_vb.streaming.journal import Entry, Merged, Segments, mark
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.run import METRICS_FILE
from streaming_vb.streaming.snapshot import POSTERIOR_FILE, PREVIOUS_FILE, PosteriorFile
from streaming_vb.streaming.store import JOURNAL_DIRECTORY
from streaming_vb.types import Receipt

_MORE_TRIES = 2


class Check(NamedTuple):
    """What was looked at, whether it is whole, and what was found."""

    name: str
    whole: bool
    found: str


def verify(
    posterior: Annotated[Path, Argument(metavar="RUN|POSTERIOR", help="Run directory, or a posterior file")],
    json: Annotated[bool, Option("--json", help="JSON lines on stdout, one per check")] = False,
) -> None:
    """Check every digest and checksum, and that posterior, journal, ledger, counts and metrics agree. Exit code 5 if
    they do not. Works while a run goes on."""
    show = output.choose(json)
    broken = []
    for check in checks(posterior):
        show.result(check._asdict(), f"{'ok  ' if check.whole else 'FAIL'}  {check.name:<10}{check.found}")
        if not check.whole:
            broken.append(check.name)
    if broken:
        raise IntegrityError(
            f"{posterior}: not whole: {', '.join(broken)}. Nothing was changed. Keep a copy of the directory; if the "
            "posterior itself is whole, fit --start-from goes on from it in a new one"
        )


def checks(path: Path) -> list[Check]:
    """Every check of a run directory or of a posterior file, in order.

    Raises:
        ConfigError: it is no run directory.
    """
    if not path.is_dir():
        return list(_of_file(path))
    run_files.require_run(path)
    found = list(_of_run(path))
    for _ in range(_MORE_TRIES):
        if all(check.whole for check in found) or run_files.writer(path) is None:
            break
        found = list(_of_run(path))  # a file may have been written over between two looks at it
    return found


def _of_run(directory: Path) -> Iterator[Check]:
    rows = _read_rows(directory / METRICS_FILE)
    files = []
    for name in (POSTERIOR_FILE, PREVIOUS_FILE):
        if name == POSTERIOR_FILE or (directory / name).exists():
            check, file = _load(directory / name)
            yield check
            files += [] if file is None else [file]
    if not files:
        return
    state, settings = files[0].state, files[0].settings
    for check, state in _replay(directory, files):  # noqa: B007 (the state after the last of them)
        yield check
    yield from _of_state(state, settings)
    yield _gaps(state.ledger, run_files.writer(directory) is None and _is_finished(directory, state.ledger))
    yield rows.check(state.ledger, str(settings.get("source", "")))


def _of_file(path: Path) -> Iterator[Check]:
    check, file = _load(path)
    yield check
    if file is not None:
        yield from _of_state(file.state, file.settings)
        yield _gaps(file.state.ledger, False)


def _load(path: Path) -> tuple[Check, PosteriorFile | None]:
    try:
        file = snapshot.load(path)
    except IntegrityError as error:
        return Check("posterior", False, str(error)), None
    found = f"{path.name}: version {file.state.version:,}, {len(file.digests)} digests match"
    return Check("posterior", True, found), file


def _replay(directory: Path, files: list[PosteriorFile]) -> Iterator[tuple[Check, ServerState]]:
    """The journal, and the state after it, as recovery finds them; nothing where there is no journal."""
    state = files[0].state
    try:
        segments = Segments(RealDisk(), directory / JOURNAL_DIRECTORY)
        if not segments.paths:
            return
        usable = [file.state for file in files if not segments.disowns(file.generation, mark(file.state))]
        if not usable:
            yield Check("journal", False, "every posterior file is of a writer that had been overtaken"), state
            return
        state = usable[0]
        entries = list(segments.after(mark(state)))
    except IntegrityError as error:
        yield Check("journal", False, str(error)), state
        return
    notes = "".join(f"; {note}" for note in segments.notes)
    yield Check("journal", True, f"{len(segments.chain):,} segments, {len(entries):,} entries{notes}"), state
    family = run_directory.family(files[0].settings)
    rule = MergeRule(family, forgetting.parse(files[0].settings["forgetting"], family), measure=False)
    num_new = 0
    for number, entry in enumerate(entries):
        state, receipt = _again(rule, state, entry)
        if receipt.status == "rejected":
            yield Check("replay", False, receipt.reason), state
            return
        if receipt.status == "duplicate" and num_new:  # a posterior file holds the first entries, and no others
            why = f"the posterior file holds entry {number} and lacks one before it"
            yield Check("replay", False, why), state
            return
        num_new += receipt.status != "duplicate"
    found = (
        f"{num_new:,} entries beyond the posterior file give version {state.version:,}, {state.num_records:,} records"
    )
    yield Check("replay", True, found), state


def _again(rule: MergeRule, state: ServerState, entry: Entry) -> tuple[ServerState, Receipt]:
    """Merge an entry as it was merged before; the warm start does not matter here."""
    if isinstance(entry, Merged):
        fit = replace(entry.delta.fit, fit_state=state.fit_state)
        return rule(state, replace(entry.delta, fit=fit))
    try:
        return rule.put_aside(state, entry.set_aside)
    except MergeRejected as error:
        return state, Receipt("rejected", state.version, 0, state.num_records, 0, 0.0, 0.0, str(error))


def _of_state(state: ServerState, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Ledger, counts and precision."""
    overlaps = list(_overlaps(state.ledger))
    num_runs = sum(map(len, state.ledger.runs.values()))
    yield Check(
        "ledger", not overlaps, f"overlaps: {' '.join(overlaps)}" if overlaps else f"{num_runs:,} runs, disjoint"
    )
    covered, aside = state.ledger.num_covered(), state.ledger.num_set_aside
    counts = f"{state.num_records:,} records + {aside:,} set aside, {covered:,} positions in the ledger"
    outside = [entry for entry in state.ledger.set_aside if any(state.ledger.uncovered(entry.interval))]
    if outside:
        counts += f"; set aside and not in the ledger: {posterior_algebra.listed(e.interval for e in outside)}"
    yield Check("counts", state.num_records + aside == covered and not outside, counts)
    family = run_directory.family(settings)
    broken = [name for name in ("prior", "posterior") if not family.is_normalizable(getattr(state, name))]
    found = f"of the {' and the '.join(broken)}: not positive, or not finite" if broken else "positive and finite"
    yield Check("precision", not broken, found)


def _overlaps(ledger: Ledger) -> Iterator[str]:
    for (_, partition), runs in ledger.runs.items():
        end = -1
        for start, stop in runs:
            if not max(end, 0) <= start < stop:
                yield f"{partition}[{start:,}:{stop:,}]"
            end = stop


def _gaps(ledger: Ledger, is_finished: bool) -> Check:
    gaps = [
        f"{partition} ({' '.join(f'{start:,}:{stop:,}' for start, stop in runs)})"
        for (_, partition), runs in ledger.runs.items()
        if len(runs) > 1 or runs[0][0] > 0
    ]
    if not gaps:
        return Check("gaps", True, "none")
    text = "the run is finished, and nothing fills them" if is_finished else "filled when the run goes on"
    return Check("gaps", not is_finished, f"{', '.join(gaps)}; {text}")


def _is_finished(directory: Path, ledger: Ledger) -> bool:
    """Whether all records that the run was asked for are in the ledger."""
    try:
        config = yaml.safe_load((directory / run_directory.CONFIG_FILE).read_text())
        records = config["settings"]["records"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return False
    return isinstance(records, int) and ledger.num_covered() >= records


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of metrics.jsonl that tell of merges and of intervals set aside."""

    rows: list[dict[str, Any]]
    num_broken: int

    def check(self, ledger: Ledger, source: str) -> Check:
        """Whether each is in the ledger, and none of them twice."""
        told = Ledger()
        for row in self.rows:
            interval = run_files.interval_of(row, source)
            if any(ledger.uncovered(interval)):
                return Check("metrics", False, f"a row says {row['status']} {interval}, the ledger does not hold it")
            try:
                if told.covers(interval):
                    return Check("metrics", False, f"two rows say {interval} was {row['status']}")
            except MergeRejected as error:
                return Check("metrics", False, f"rows overlap: {error}")
            told = told.add(interval)
        broken = f"; {self.num_broken} unfinished lines of killed processes" if self.num_broken else ""
        return Check("metrics", True, f"{len(self.rows):,} rows, each in the ledger, once{broken}")


def _read_rows(path: Path) -> _Rows:
    rows, num_broken = [], 0
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            num_broken += 1
            continue
        if row.get("status") in ("merged", "set-aside"):
            rows.append(row)
    return _Rows(rows, num_broken)
