"""`streaming-vb stop RUN`: asks the driver of a run to save and end, and waits until it has. Loads no torch."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from streaming_vb.cli import output, run_files
from streaming_vb.errors import RunInUse
from streaming_vb.streaming import driver_file, snapshot

WAIT = 60.0
"""Seconds that a run may take to save."""
_LOOK_EVERY = 0.1


def stop(
    run: Annotated[Path, Argument(help="Run directory")],
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Ask the run in RUN to save and end, as Ctrl-C would; waits until it has. The command that started it resumes."""
    run_files.require_run(run)
    show = output.choose(json)
    driver = driver_file.read(run)
    if driver is None or not driver.alive():
        if (pid := run_files.writer(run)) is not None:
            raise RunInUse(
                f"{run}: no driver to ask, and process {pid or '?'} holds {run_files.LOCK_FILE}: a server whose driver "
                "died ends by itself within seconds, on another machine stop it there. Then type the same again"
            )
        show.result({"event": "nothing-running", "run_dir": str(run)}, f"nothing is running in {run}")
        return
    started = time.monotonic()
    os.kill(driver.pid, signal.SIGTERM)
    while driver.alive() or run_files.is_locked(run):
        if time.monotonic() - started > WAIT:
            raise RunInUse(
                f"{run}: process {driver.pid} was asked to stop {WAIT:.0f} s ago and has not ended. Type the same "
                f"again to go on waiting, or kill -9 {driver.pid}: what was merged is on the disk"
            )
        time.sleep(_LOOK_EVERY)
    found = snapshot.read_description(snapshot.posterior_path(run))
    values = {"event": "stopped", "version": found["version"], "records": found["num_records"], "run_dir": str(run)}
    show.result(values, f"stopped at version {found['version']:,}, {found['num_records']:,} records; saved {run}")
