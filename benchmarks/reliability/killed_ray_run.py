"""The program that `ray_kills.py` kills: the run of `killed_run.py` with its server and workers as actors of a cluster.

It says the same on stdout, and answers the same lines on stdin. It is held up a little after every merge, so that the
source lasts.
"""

import logging
import os
import select
import sys
import time

from killed_run import Saying, plain, say

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.settings import Settings
from workers import asynchronous

PAUSE = 0.02


def main(directory: str, mode: str, workers: str, records_per_partition: str, partitions: str, address: str) -> None:
    """Run until told to stop."""
    sys.stdout = os.fdopen(os.dup(1), "w")  # Ray's own library, too, writes to descriptor 1
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, handlers=[logging.StreamHandler(), Saying()], format="%(message)s")
    source = IntegerSource(int(records_per_partition), int(partitions))
    settings = Settings(mode=mode, batch_size=5, local_steps=2, ramp=0, round_size=4)
    steps = asynchronous.run(LedgerModel(), source, settings, workers=int(workers), run_dir=directory, address=address)
    is_first = True
    for step in steps:
        say({"step": {**step.row(), "at": time.monotonic()}})
        if is_first:
            say({"opened": plain(step.state())})
            is_first = False
        time.sleep(PAUSE)
        while select.select([sys.stdin], [], [], 0)[0]:
            if sys.stdin.readline().strip() != "check":
                steps.close()  # type: ignore[attr-defined]
                say({"closed": plain(step.state())})
                return
            say({"state": plain(step.state())})
    raise SystemExit("the source is too short for this many kills")


if __name__ == "__main__":
    main(*sys.argv[1:])
