"""`streaming-vb unlearn RUN INTERVAL`: takes the evidence of one interval out of a run whose deltas were kept. Loads no
torch."""

import re
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from streaming_vb.cli import output, run_directory, run_files
from streaming_vb.errors import ConfigError, MergeRefused, RunInUse
from streaming_vb.streaming import forgetting, posterior_algebra, snapshot
from streaming_vb.streaming.disk import RealDisk
from streaming_vb.streaming.journal import Merged, Segments
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.store import JOURNAL_DIRECTORY, Store
from streaming_vb.types import Delta, Interval

_NUMBER = r"\d+(?:[,_]\d+)*"
_BRACKETS = re.compile(rf"(?P<partition>.+)\[(?P<start>{_NUMBER}):(?P<stop>{_NUMBER})\]")
_DASH = re.compile(rf"(?P<partition>.+):(?P<start>{_NUMBER})-(?P<stop>{_NUMBER})")


def unlearn(
    run: Annotated[Path, Argument(help="Run directory of a fit with --keep-deltas")],
    interval: Annotated[str, Argument(metavar="INTERVAL", help="PARTITION[START:STOP], or PARTITION:START-STOP")],
    source: Annotated[
        str | None, Option(help="Fingerprint of the source, or its first letters, where several were streamed")
    ] = None,
    approximate: Annotated[
        bool,
        Option("--approximate", help="Also where the run forgot old curvature, so that the difference is not exact"),
    ] = False,
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Subtract what one interval taught. The ledger keeps it as set aside, so that no resume learns it again. Exact for
    conjugate models. Older files and the journal still hold the evidence."""
    run_files.require_run(run)
    if (pid := run_files.writer(run)) is not None:
        raise RunInUse(
            f"{run}: process {pid or '?'} writes this run directory. Wait until it is done, or type streaming-vb stop "
            f"{run}"
        )
    settings = snapshot.newest(run)[0].settings
    posterior_algebra.require_memory(settings, approximate)
    family = run_directory.family(settings)
    forget = forgetting.parse(settings["forgetting"], family)
    rule = MergeRule(family, forget, measure=False)
    store = Store(
        run, settings, rule=rule, keep_fit_state=settings["mode"] == "ordered", keep_deltas=True, background=False
    )
    recovered = store.open(snapshot.newest(run)[0].state)
    try:
        wanted = parse(interval, recovered.state.ledger, source)
        delta, later = _kept(run, recovered.state, wanted)
        state = posterior_algebra.unlearn(family, recovered.state, delta, forget, later)
    except BaseException:
        store.abandon()
        raise
    # Twice, because the file before it is what recovery falls back to: in neither of them is the interval any more.
    snapshot.save(snapshot.posterior_path(run), state, settings, generation=recovered.generation)
    store.close(state)
    values = {
        "event": "unlearned",
        "interval": str(wanted),
        "source": wanted.source,
        "version": state.version,
        "records": state.num_records,
        "exact": posterior_algebra.is_exact(settings),
        "posterior_sha256": snapshot.posterior_sha256(state.posterior),
    }
    text = (
        f"unlearned  {wanted}: {recovered.state.num_records:,} -> {state.num_records:,} records, version "
        f"{state.version:,}\n"
        f"quality    {posterior_algebra.quality(settings)}\n"
        f"kept       {run}/{JOURNAL_DIRECTORY} still holds its delta, and copies and descendants hold its evidence"
    )
    output.choose(json).result(values, text)


def parse(text: str, ledger: Ledger, source: str | None) -> Interval:
    """The interval that a user typed, of a source in the ledger.

    Raises:
        ConfigError: it is no interval, or does not say of which source.

    >>> str(parse("pass-0:1,000-2,000", Ledger().add(Interval("sha", "pass-0", 0, 5000)), None))
    'pass-0[1,000:2,000]'
    """
    match = _BRACKETS.fullmatch(text) or _DASH.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"INTERVAL {text}: expected PARTITION[START:STOP] or PARTITION:START-STOP, such as 'pass-0[1000:2000]'"
        )
    partition, start, stop = (
        match["partition"],
        int(match["start"].replace(",", "")),
        int(match["stop"].replace(",", "")),
    )
    if start >= stop:
        raise ConfigError(f"INTERVAL {text}: it holds no record, {start:,} is not below {stop:,}")
    named = sorted({name for name, _ in ledger.runs if name.startswith(source or "")})
    found = [name for name in named if (name, partition) in ledger.runs]
    if len(found) > 1:
        raise ConfigError(
            f"INTERVAL {text}: {partition} is in several sources. Type --source with one of {', '.join(found)}"
        )
    if not found:
        partitions = sorted({name for key, name in ledger.runs if key in named})
        raise MergeRefused(
            f"{text}: not in the ledger, so there is nothing to unlearn. Partitions of source {source or 'any'} in it: "
            f"{', '.join(partitions[:5]) or 'none'}"
        )
    return Interval(found[0], partition, start, stop)


def _kept(directory: Path, state: ServerState, wanted: Interval) -> tuple[Delta, list[int]]:
    """The delta that the journal holds for exactly this interval, and the records of each merge after it."""
    if any(state.ledger.uncovered(wanted)):
        raise MergeRefused(f"{wanted}: not in the ledger, so there is nothing to unlearn")
    found: Delta | None = None
    later: list[int] = []
    near = []
    for entry in Segments(RealDisk(), directory / JOURNAL_DIRECTORY).after(None):
        if not isinstance(entry, Merged):
            continue
        interval = entry.delta.lease.interval
        if interval == wanted:
            found, later = entry.delta, []
            continue
        later.append(entry.delta.num_records)
        if interval in wanted or wanted in interval:
            near.append(interval)
    if found is not None:
        return found, later
    if any(wanted in entry.interval for entry in state.ledger.set_aside):
        raise MergeRefused(f"{wanted}: set aside, so the posterior holds nothing of it")
    if near:
        raise MergeRefused(
            f"{wanted}: evidence is kept by the intervals that were leased. Unlearn {posterior_algebra.listed(near)}"
        )
    raise MergeRefused(
        f"{wanted}: its delta was not kept, so it cannot be taken out. Runs of streaming-vb fit --keep-deltas keep them"
    )
