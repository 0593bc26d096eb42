"""What a verb shows: a live table on a terminal, plain lines elsewhere, JSON lines where asked for (talk then goes to
stderr)."""

import json
import math
import sys
import time
from collections import deque
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from streaming_vb.streaming.run import Step

PLAIN_EVERY = 10.0
"""Seconds between lines where nobody watches."""
_RECENT = 20
"""Intervals in the moving figures."""


class Output(Protocol):
    """Where a verb's words go."""

    def say(self, text: str) -> None:
        """One line of talk."""

    def begin(self, target: int, counted: int) -> None:
        """A stream starts: records to reach, and records counted before."""

    def step(self, step: Step) -> None:
        """One answer of the server."""

    def end(self) -> None:
        """The stream is over, or was interrupted."""

    def result(self, values: dict[str, Any], text: str) -> None:
        """A result: values where JSON was asked for, else text."""


def choose(json_lines: bool) -> Output:
    """JSON lines, a live table on a terminal, or plain lines."""
    if json_lines:
        return JsonLines()
    return LiveTable() if sys.stdout.isatty() else PlainLines()


class JsonLines:
    """stdout is data."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self, target: int, counted: int) -> None:
        """Nothing: every step is a line."""

    def step(self, step: Step) -> None:
        event = "merge" if step.status == "merged" else step.status
        print(json.dumps({"event": event, **step.row()}), flush=True)

    def end(self) -> None:
        """Nothing to close."""

    def result(self, values: dict[str, Any], text: str) -> None:
        del text
        print(json.dumps(values), flush=True)


class Meter:
    """Moving figures of a stream."""

    def __init__(self, target: int, counted: int) -> None:
        self.target, self.counted_before = target, counted
        self.started = time.monotonic()
        self.recent: deque[Step] = deque(maxlen=_RECENT)
        self.aside = 0

    def update(self, step: Step) -> None:
        """Take a step in."""
        self.aside += step.status == "set-aside"
        if step.status == "merged":
            self.recent.append(step)

    def figures(self) -> dict[str, str]:
        """Name -> text, in the order of the columns."""
        last = self.recent[-1]
        rate = (last.records - self.counted_before) / max(time.monotonic() - self.started, 1e-9)
        left = max(self.target - last.records, 0) / rate if rate else math.nan
        elbo = sum(step.elbo for step in self.recent) / len(self.recent)
        return {
            "version": f"{last.version:,}",
            "records": f"{last.records:,} of {self.target:,}",
            "ELBO": f"{elbo:.2f}",
            "step KL": f"{last.step_kl / max(last.num_new, 1):.2f}",
            "staleness": f"{last.staleness}",
            "records/s": f"{rate:,.0f}",
            "left": f"{left:,.0f} s",
            **({"set aside": f"{self.aside}"} if self.aside else {}),
        }


class PlainLines:
    """One line at most every ten seconds, no control characters."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, target: int, counted: int) -> None:
        self._meter = Meter(target, counted)
        self._shown = self._meter.started

    def step(self, step: Step) -> None:
        self._meter.update(step)
        if step.status != "merged":
            self.say(f"{step.status} {step.interval}: {step.reason}")
        elif time.monotonic() - self._shown >= PLAIN_EVERY:
            self._shown = time.monotonic()
            self.say("  ".join(f"{name} {value}" for name, value in self._meter.figures().items()))

    def end(self) -> None:
        """Nothing to close."""

    def result(self, values: dict[str, Any], text: str) -> None:
        del values
        print(text, flush=True)


class LiveTable:
    """One table that is drawn over, for a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live: Live | None = None

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)

    def begin(self, target: int, counted: int) -> None:
        self._meter = Meter(target, counted)
        self._live = Live(console=self._console, refresh_per_second=4)
        self._live.start()

    def step(self, step: Step) -> None:
        self._meter.update(step)
        if step.status != "merged":
            self.say(f"{step.status} {step.interval}: {step.reason}")
        if self._live is not None and self._meter.recent:
            self._live.update(self._table())

    def end(self) -> None:
        """Leave the last table standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def result(self, values: dict[str, Any], text: str) -> None:
        del values
        self.say(text)

    def _table(self) -> Table:
        figures = self._meter.figures()
        table = Table(
            *figures,
            caption=f"ELBO in nats per record, mean of the last {len(self._meter.recent)} intervals, "
            "each scored before it is learned; step KL in nats per record",
            caption_justify="left",
        )
        table.add_row(*figures.values())
        return table
