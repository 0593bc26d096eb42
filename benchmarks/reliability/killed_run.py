"""The program that `kills.py` kills: it streams integers through the ledger model, on the processes of this machine,
and says on stdout what it was told, one JSON document per line.

    {"opened": STATE}    the first merge after a start was acknowledged
    {"step": ROW}        a merge was acknowledged; with the monotonic clock `at`
    {"log": TEXT}        what people would see: a server was started again
    {"state": STATE}     the answer to a line "check" on stdin; a line "stop" ends the run in order
    {"closed": STATE}    the last line

It never loads torch, and starts in a third of a second. Snapshots are due a hundred times as often as usual.
"""

import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.run import run_processes
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.store import Store

HURRY = 100.0


def main(directory: str, mode: str, workers: str, records_per_partition: str, partitions: str, round_size: str) -> None:
    """Run until told to stop."""
    logging.basicConfig(level=logging.WARNING, handlers=[logging.StreamHandler(), Saying()], format="%(message)s")
    Store.__init__.__kwdefaults__["clock"] = lambda: HURRY * time.monotonic()  # type: ignore[index]
    source = IntegerSource(int(records_per_partition), int(partitions))
    settings = Settings(mode=mode, batch_size=5, local_steps=4, ramp=0, round_size=int(round_size))
    steps = run_processes(LedgerModel(), source, settings, workers=int(workers), run_dir=directory)
    is_first = True
    for step in steps:
        say({"step": {**step.row(), "at": time.monotonic()}})
        if is_first:
            say({"opened": plain(step.state())})
            is_first = False
        while select.select([sys.stdin], [], [], 0)[0]:
            if sys.stdin.readline().strip() != "check":
                steps.close()  # type: ignore[attr-defined]
                say({"closed": plain(step.state())})
                return
            say({"state": plain(step.state())})
    raise SystemExit("the source is too short for this many kills")


class Saying(logging.Handler):
    """Warnings of the driver among what it says."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() == self._pid:  # not those of its processes, which would write between the lines
            say({"log": self.format(record)})


def say(document: Mapping[str, Any]) -> None:
    """One line in one write, so that a killed process leaves none in half."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def plain(state: ServerState) -> dict[str, Any]:
    """What must agree: the sums, and the records of which they are."""
    return {
        "version": state.version,
        "records": state.num_records,
        "runs": {partition: list(runs) for (_, partition), runs in state.ledger.runs.items()},
        "set_aside": [
            (entry.interval.partition, entry.interval.start, entry.interval.stop) for entry in state.ledger.set_aside
        ],
        "sums": state.posterior["sum"].tolist(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
