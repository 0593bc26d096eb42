"""All randomness is a function of (seed, interval, step), never of the worker or the clock.

A seed is derived by hashing its names, so no two purposes share a stream and a retried interval draws the same numbers.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from streaming_vb.types import Interval

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the purpose named by `names`.

    >>> derive(0, "prior") == derive(0, "prior"), derive(0, "prior") == derive(1, "prior")
    (True, False)
    """
    text = "\x1f".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def interval_seed(seed: int, interval: Interval, attempt: int) -> int:
    """The seed of one attempt at one interval."""
    return derive(seed, "fit", interval.source, interval.partition, interval.start, interval.stop, attempt)


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for the purpose named by `names`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *names)))


def torch_generator(seed: int, *names: object) -> "torch.Generator":
    """A torch generator on the CPU for the purpose named by `names`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
