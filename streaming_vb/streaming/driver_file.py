"""`driver.json`: which process drives a run, so that another one can ask it to stop.

A process number alone is not an identity: numbers are used again, and a shared disk is seen by several machines. So the
file also holds when that process started, in ticks since the boot it belongs to.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

DRIVER_FILE = "driver.json"


@dataclass(frozen=True, slots=True)
class Driver:
    """A process.

    Attributes:
        pid: its number.
        started: the boot of its machine, and the tick at which it started.
    """

    pid: int
    started: str

    def alive(self) -> bool:
        """Whether this very process still runs, on this machine."""
        return bool(self.started) and _started(self.pid) == self.started


def write(directory: Path) -> Driver:
    """Name this process as the driver of a run directory."""
    driver = Driver(os.getpid(), _started(os.getpid()))
    temporary = directory / f".{DRIVER_FILE}.{driver.pid}.tmp"
    temporary.write_text(json.dumps(asdict(driver)) + "\n")
    os.replace(temporary, directory / DRIVER_FILE)
    return driver


def read(directory: Path) -> Driver | None:
    """The driver named last, dead or alive; none where no file can be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     before, _, after = read(Path(name)), write(Path(name)), read(Path(name))
    >>> before, after.alive()
    (None, True)
    """
    try:
        content = json.loads((directory / DRIVER_FILE).read_text())
        return Driver(int(content["pid"]), str(content["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(directory: Path) -> None:
    """Take the name of this process away; that of another one stays."""
    driver = read(directory)
    if driver is not None and driver.pid == os.getpid():
        (directory / DRIVER_FILE).unlink(missing_ok=True)


def _started(pid: int) -> str:
    """Boot and tick at which a process started; empty where there is none, or only its exit code is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    state, *fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and parentheses
    return "" if state in "ZX" else f"{boot} {fields[18]}"
