"""Files of a run directory as they are read while another process may write them. Loads no torch."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streaming_vb.errors import ConfigError
from streaming_vb.streaming import driver_file, snapshot
from streaming_vb.streaming.run import METRICS_FILE
from streaming_vb.streaming.snapshot import POSTERIOR_FILE, PosteriorFile
from streaming_vb.streaming.store import JOURNAL_DIRECTORY
from streaming_vb.types import Interval

LOCK_FILE = "lock"
GENERATION_FILE = "generation"


def require_run(directory: Path) -> None:
    """Raise ConfigError unless it is a run directory, perhaps of a run that is only just starting."""
    if not directory.is_dir() or not any(
        (directory / name).exists() for name in (POSTERIOR_FILE, METRICS_FILE, GENERATION_FILE, LOCK_FILE)
    ):
        raise ConfigError(
            f"{directory}: not a run directory (no {POSTERIOR_FILE}). Give the --run-dir of a fit or demo"
        )


def open_posterior(path: Path) -> PosteriorFile:
    """The posterior that a user named by its file or by its run directory, every digest checked.

    Raises:
        IntegrityError: there is none, or it is corrupt.
    """
    return snapshot.load(snapshot.posterior_path(path))


def writer(directory: Path) -> int | None:
    """Number of the process that writes a run directory: its driver, or who holds the lock (0 where it names itself
    not). None where nobody does."""
    driver = driver_file.read(directory)
    if driver is not None and driver.alive():
        return driver.pid
    return _number(directory / LOCK_FILE) if is_locked(directory) else None


def is_locked(directory: Path) -> bool:
    """Whether a process holds the lock; it is not disturbed, and two who look do not disturb each other."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def generation(directory: Path) -> int:
    """How often the directory was opened for writing; 0 where it never was."""
    return _number(directory / GENERATION_FILE)


def journal_bytes(directory: Path) -> int:
    """Size of the journal on disk; its files may come and go meanwhile."""
    total = 0
    for path in (directory / JOURNAL_DIRECTORY).glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def interval_of(row: Mapping[str, Any], source: str) -> Interval:
    """The data of a row of metrics.jsonl; `source` is that of the run, where the row does not say."""
    return Interval(str(row.get("source", source)), row["partition"], row["start"], row["stop"])


def _number(path: Path) -> int:
    """The first number in a small file; 0 where there is none."""
    try:
        words = path.read_text().split()
        return int(words[0])
    except (OSError, ValueError, IndexError):
        return 0
