"""What the tests of verbs share: a verb typed in this process, and small runs of exact models."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from streaming_vb.cli import main
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Array, Interval

SETTINGS = Settings(batch_size=10, local_steps=1)
MODEL = LedgerModel()


def typed(*words: object, code: int = 0) -> str:
    """What a verb prints: stdout where it works, its one line of stderr where it must not."""
    out, err = io.StringIO(), io.StringIO()
    stop: SystemExit | None = None
    with (
        mock.patch.object(sys, "argv", ["streaming-vb", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main.main()
        except SystemExit as error:
            stop = error
    assert stop is not None
    assert (stop.code or 0) == code, (stop.code, out.getvalue(), err.getvalue())
    if code:
        assert err.getvalue().count("\n") == 1, err.getvalue()
        assert err.getvalue().startswith("streaming-vb: ")
    return err.getvalue() if code else out.getvalue()


def answer(*words: object) -> dict[str, Any]:
    """The last JSON object that a verb prints."""
    values: dict[str, Any] = json.loads(typed(*words, "--json").splitlines()[-1])
    return values


def fitted(directory: Path, source: IntegerSource, settings: Settings = SETTINGS, **more: Any) -> Path:
    """A run directory in which a source was streamed to the end."""
    for _ in run(MODEL, source, settings, run_dir=directory, **more):
        pass
    return directory


def sums(source: IntegerSource, *intervals: tuple[str, int, int]) -> Array:
    """The four sums over some intervals of a source."""
    return sum(
        (MODEL.sums(source.read(Interval(source.fingerprint, *interval))["id"]) for interval in intervals),
        start=MODEL.prior(0)["sum"],
    )


@contextlib.contextmanager
def running(directory: Path, keep_deltas: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A process that streams, slowly, and saves when it is asked to stop; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(directory), *(["keep-deltas"] if keep_deltas else [])], text=True
    )
    try:
        until(lambda: process.poll() is None and (directory / "driver.json").exists() and rows(directory) >= 3)
        yield process
    finally:
        process.kill()
        process.wait()


def rows(directory: Path) -> int:
    """Lines of metrics so far."""
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def until(happens: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _stream(directory: Path, keep_deltas: bool) -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    settings = replace(SETTINGS, keep_deltas=keep_deltas)
    steps = run(MODEL, IntegerSource(1_000_000), settings, run_dir=directory)
    try:
        for _ in steps:
            time.sleep(0.02)
    except KeyboardInterrupt:
        steps.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    _stream(Path(sys.argv[1]), sys.argv[2:] == ["keep-deltas"])
