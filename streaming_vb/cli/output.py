"""What a verb shows: a live table on a terminal, plain lines elsewhere, JSON lines where asked for (talk then goes to
stderr)."""

import json
import math
import sys
import time
from collections import deque
from typing import Any, Protocol

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
    """JSON lines or plain lines."""
    return JsonLines() if json_lines else PlainLines()


def choose_live(json_lines: bool) -> Output:
    """JSON lines, a live table on a terminal, or plain lines."""
    if json_lines or not sys.stdout.isatty():
        return choose(json_lines)
    from streaming_vb.cli.live_table import LiveTable  # loads rich, which only a terminal needs

    return LiveTable()


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
