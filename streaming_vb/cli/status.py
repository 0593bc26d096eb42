"""`streaming-vb status RUN`: what a run directory is doing now, from its files alone. Loads no torch, disturbs nothing.

The newest merges stand in metrics.jsonl; the posterior file may be half a minute old.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from streaming_vb.cli import output, run_files
from streaming_vb.streaming import messages, snapshot
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.run import METRICS_FILE
from streaming_vb.streaming.snapshot import POSTERIOR_FILE

WATCH_EVERY = 1.0
"""Seconds between two looks on a terminal."""
_RATE_OVER = 60.0
"""Seconds that records/s are taken over."""
_TAIL = 1 << 20
"""Bytes of metrics.jsonl that are read: more than a minute of merges."""


@dataclass(frozen=True, slots=True)
class Status:
    """A look at a run directory.

    Attributes:
        running: whether a process writes it.
        pid: of that process; none where no one runs.
        generation: how often the run was opened for writing.
        version, records: of the newest merge.
        set_aside: records read and not learned.
        records_per_second: over the last minute; none where too little is known.
        last_merge_age, snapshot_age: seconds; none where there is none.
        snapshot_version: version of the posterior file.
        staleness: of the newest merge, in versions.
        journal_bytes: size of the journal on disk.
    """

    run_dir: str
    running: bool
    pid: int | None
    generation: int
    version: int
    records: int
    set_aside: int
    records_per_second: float | None
    last_merge_age: float | None
    staleness: int | None
    snapshot_age: float | None
    snapshot_version: int | None
    journal_bytes: int

    def figures(self) -> dict[str, str]:
        """Name -> text, in the order in which they are shown."""
        rate = self.records_per_second
        snapshot = "none" if self.snapshot_version is None else f"version {self.snapshot_version:,}"
        return {
            "state": f"running (process {self.pid or '?'})" if self.running else "not running",
            "version": f"{self.version:,}",
            "records": f"{self.records:,}",
            "records/s": "-" if rate is None else f"{rate:,.0f}",
            "last merge": _ago(self.last_merge_age),
            "set aside": f"{self.set_aside:,}",
            "staleness": "-" if self.staleness is None else f"{self.staleness}",
            "snapshot": f"{snapshot}, {_ago(self.snapshot_age)}",
            "journal": f"{self.journal_bytes / 1e6:,.1f} MB",
            "generation": f"{self.generation}",
        }

    def text(self) -> str:
        """One figure per line."""
        return "\n".join(f"{name:<11}{value}" for name, value in self.figures().items())


def status(
    run: Annotated[Path, Argument(help="Run directory")],
    watch: Annotated[bool, Option("--watch", help="Look again every second until the run ends, or Ctrl-C")] = False,
    json: Annotated[bool, Option("--json", help="JSON on stdout, one object per look")] = False,
) -> None:
    """What a run is doing now: version, records, speed, age of the last merge and of the snapshot, journal."""
    run_files.require_run(run)
    if watch:
        _watch(run, json)
        return
    seen = look(run)
    output.choose(json).result({"event": "status", **asdict(seen)}, seen.text())


def look(directory: Path) -> Status:
    """The state of a run directory now.

    Raises:
        IntegrityError: the posterior file is corrupt, and no older one is there.
    """
    pid = run_files.writer(directory)
    rows = list(_tail(directory / METRICS_FILE))
    merged = [row for row in rows if row.get("status") == "merged"]
    saved = _Saved.read(directory)
    newest = merged[-1] if merged and merged[-1]["version"] >= saved.version else None
    return Status(
        run_dir=str(directory),
        running=pid is not None,
        pid=pid or None,
        generation=run_files.generation(directory),
        version=newest["version"] if newest else saved.version,
        records=newest["records"] if newest else saved.records,
        set_aside=saved.ledger.num_set_aside + sum(_aside(row) for row in rows if saved.lacks(row)),
        records_per_second=_rate(merged),
        last_merge_age=_age(_moment(merged[-1], directory)) if merged else None,
        staleness=merged[-1]["staleness"] if merged else None,
        snapshot_age=saved.age,
        snapshot_version=saved.version if saved.age is not None else None,
        journal_bytes=run_files.journal_bytes(directory),
    )


@dataclass(frozen=True, slots=True)
class _Saved:
    """What the posterior file says of the run."""

    source: str = ""
    version: int = 0
    records: int = 0
    ledger: Ledger = Ledger()
    age: float | None = None

    @classmethod
    def read(cls, directory: Path) -> "_Saved":
        path = directory / POSTERIOR_FILE
        if not path.exists():
            return cls()
        found = snapshot.read_description(path)
        age = _age(path.stat().st_mtime)
        ledger = messages.unpack_ledger(found["ledger"])
        return cls(str(found["settings"].get("source", "")), found["version"], found["num_records"], ledger, age)

    def lacks(self, row: Mapping[str, Any]) -> bool:
        if row.get("status") not in ("merged", "set-aside"):
            return False
        return any(self.ledger.uncovered(run_files.interval_of(row, self.source)))


def _aside(row: Mapping[str, Any]) -> int:
    """Records of an interval that were not learned."""
    return int(row["stop"] - row["start"] - row["new"])


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """The newest rows of a file that is written at the same time: whole lines only."""
    try:
        with open(path, "rb") as file:
            start = max(file.seek(0, os.SEEK_END) - _TAIL, 0)
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines[1 if start else 0 : -1]:
        try:
            row = json.loads(line)
        except ValueError:  # the end of a killed process, with the next one's row behind it
            continue
        if isinstance(row, dict):
            yield row


def _rate(merged: list[dict[str, Any]]) -> float | None:
    """Records per second over the last minute of a stream of rows with times."""
    timed = [row for row in merged if row.get("time") is not None]
    if not timed:
        return None
    now = time.time()
    recent = [row for row in timed if now - row["time"] <= _RATE_OVER]
    if not recent:
        return 0.0
    earlier = len(timed) > len(recent)
    seconds = _RATE_OVER if earlier else now - recent[0]["time"]
    counted = sum(row["new"] for row in (recent if earlier else recent[1:]))
    return counted / seconds if seconds > 0.0 else None


def _watch(directory: Path, json_lines: bool) -> None:
    """Look again and again until nothing runs; on a terminal in place."""
    if json_lines or not sys.stdout.isatty():
        show = output.choose(json_lines)
        for seen in _looks(directory, WATCH_EVERY if json_lines else output.PLAIN_EVERY):
            line = "  ".join(f"{name} {value}" for name, value in seen.figures().items())
            show.result({"event": "status", **asdict(seen)}, line)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=4) as live:
        for seen in _looks(directory, WATCH_EVERY):
            live.update(Text(f"{directory}\n{seen.text()}"), refresh=True)


def _looks(directory: Path, every: float) -> Iterator[Status]:
    """One look at once, then one per interval; the last one is of a run that has ended."""
    try:
        while True:
            seen = look(directory)
            yield seen
            if not seen.running:
                return
            until = time.monotonic() + every
            while time.monotonic() < until and run_files.writer(directory) is not None:
                time.sleep(min(WATCH_EVERY, every))
    except KeyboardInterrupt:  # the watcher leaves; the run goes on
        return


def _moment(row: Mapping[str, Any], directory: Path) -> float:
    """When a row was written, seconds since 1970; where it does not say, when anything was written last."""
    return float(row.get("time") or (directory / METRICS_FILE).stat().st_mtime)


def _age(moment: float) -> float:
    return max(time.time() - moment, 0.0)


def _ago(seconds: float | None) -> str:
    """A duration for people.

    >>> _ago(None), _ago(3.21), _ago(7200)
    ('-', '3.2 s ago', '2.0 h ago')
    """
    if seconds is None:
        return "-"
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit} ago"
    return f"{seconds:,.1f} s ago"
