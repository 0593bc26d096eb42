"""How long something takes, on the wall and in processor time.

What is measured here is one thread that waits for nothing: on an idle machine the two agree. Where other programs take
the core, the wall counts them in and processor time does not, so bars are read on processor time, and the wall time
stands beside it.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Seconds(NamedTuple):
    """Time of one action: on the wall, and of this process on a processor."""

    wall: float
    processor: float


def clock(action: Callable[[], object]) -> Seconds:
    """Do something once."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Lower quartile, median, upper quartile."""
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
    return {"lower": float(lower), "median": float(median), "upper": float(upper)}
