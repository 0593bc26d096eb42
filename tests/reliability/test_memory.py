"""The benchmark over memory: its slope on made-up figures, and a leak that is put into the server."""

import mmap
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))

from memory import BAR, PROCESSES, look, slope, stream, summary

from streaming_vb.streaming.server import Server
from streaming_vb.streaming.store import Store

RECORDS = np.linspace(1e6, 5e6, 400)
INTERVAL = 50


def waves(size: float, seed: int) -> Any:
    """Noise that is alike for some samples, as memory is [400]."""
    return size * np.repeat(np.random.default_rng(seed).normal(size=40), 10)


@pytest.mark.parametrize("per_record", [0.05, 1.0, 20.0])
def test_a_growth_is_measured_and_is_not_flat(per_record: float) -> None:
    line = slope(RECORDS, 3e7 + per_record * RECORDS + waves(2e4, 1), np.random.default_rng(0))
    assert line.lower < per_record < line.upper
    assert not line.is_flat


def test_the_interval_covers_no_growth_as_often_as_it_says() -> None:
    """Of 200 flat histories some 10 are expected to be missed; block bootstraps of short histories miss some more."""
    lines = [slope(RECORDS, waves(2e4, seed), np.random.default_rng(seed), replicates=200) for seed in range(200)]
    assert sum(not line.lower <= 0 <= line.upper for line in lines) <= 30


def test_memory_that_never_moves_or_shrinks_is_flat() -> None:
    line = slope(RECORDS, np.full(400, 3e7), np.random.default_rng(0))
    assert line.is_flat
    assert np.abs(line).max() < 1e-9
    assert slope(RECORDS, 3e7 - RECORDS, np.random.default_rng(0)).is_flat


def test_a_growth_below_the_bar_is_flat() -> None:
    line = slope(RECORDS, BAR / 2 * RECORDS, np.random.default_rng(0))
    assert line.lower > 0
    assert line.is_flat


def test_a_look_at_a_process_is_what_the_kernel_says() -> None:
    files = len(os.listdir("/proc/self/fd"))
    resident, proportional, open_files, threads = look(os.getpid())
    assert 1e6 < proportional <= resident
    assert open_files == files
    assert threads >= 1


def test_the_warm_up_does_not_count() -> None:
    samples = np.array([(n, 10**7 + min(n, 30) * 10**6, 10**7, 9 + n // 90, 2) for n in range(101)])
    assert summary(samples, 0.3)["resident"]["is_flat"]
    assert not summary(samples, 0.1)["resident"]["is_flat"]
    assert summary(samples, 0.3)["open_files"] == {"first": 9, "last": 10, "most": 10}


def server_slope(directory: Path) -> float:
    """Bytes per record of a short run."""
    samples, pids, _ = stream(Namespace(records=10_000, interval=INTERVAL, samples=50), directory)
    assert samples.min() > 0
    assert all(len(numbers) == 1 for numbers in pids)
    assert len(set.union(*pids)) == len(PROCESSES)
    server = summary(samples[:, PROCESSES.index("svb-server")], 0.2)
    return float(server["resident"]["bytes_per_record"]["slope"])


@pytest.fixture(autouse=True)
def usual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark hurries snapshots by a default of the store; put back after each test."""
    from streaming_vb.streaming import server_setup

    monkeypatch.setattr(server_setup, "Store", Store)


def test_a_server_that_keeps_something_of_every_merge_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run remembers its receipts, less than 1 KB per merge; 200 KB more show."""
    kept: list[mmap.mmap] = []  # of the system: the memory that this process has freed would hide it
    push = Server.push

    def leaky(server: Server, *arguments: Any, **named: Any) -> Any:
        kept.append(mmap.mmap(-1, 200_000))
        kept[-1].write(os.urandom(200_000))
        return push(server, *arguments, **named)

    assert server_slope(tmp_path / "whole") < 5_000 / INTERVAL
    monkeypatch.setattr(Server, "push", leaky)
    assert server_slope(tmp_path / "leaky") > 150_000 / INTERVAL
