"""What every benchmark prints: one JSON document on stdout, progress on stderr."""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

_STARTED = time.monotonic()


def progress(text: str) -> None:
    """A line on stderr, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:7.1f} s] {text}", file=sys.stderr, flush=True)


def at_least(figure: str, measured: float, bar: float | None) -> dict[str, Any]:
    """A bar that is met by a figure of at least that size; no bar where these settings have none."""
    met = None if bar is None else bool(measured >= bar)
    return {"figure": figure, "measured": measured, "bar": bar, "rule": ">=", "met": met}


def at_most(figure: str, measured: float, bar: float | None) -> dict[str, Any]:
    """A bar that is met by a figure of at most that size; no bar where these settings have none."""
    met = None if bar is None else bool(measured <= bar)
    return {"figure": figure, "measured": measured, "bar": bar, "rule": "<=", "met": met}


def write(settings: Mapping[str, Any], results: Any, bars: Sequence[Mapping[str, Any]]) -> None:
    """Print the document: settings, results, bars, machine, seconds. What is not finite becomes null."""
    document = {
        "benchmark": os.path.basename(sys.argv[0]),
        "settings": settings,
        "results": results,
        "bars": bars,
        "machine": machine(),
        "seconds": round(time.monotonic() - _STARTED, 1),
    }
    print(json.dumps(_plain(document), indent=2))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """The same document with floats of 6 digits, and None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
