"""One table that is drawn over, for a terminal."""

from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from streaming_vb.cli.output import Meter
from streaming_vb.streaming.run import Step


class LiveTable:
    """The output of a long verb on a terminal."""

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
