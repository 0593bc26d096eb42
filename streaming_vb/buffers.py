"""Large arrays whose memory was in use before.

A fresh array of a million weights costs several milliseconds of page faults, more than the arithmetic of a merge. The
pool hands out an array again once nobody else refers to it (views and tensors keep a reference), so results stay
immutable for whoever holds them.
"""

import sys
import threading
from typing import Any

import numpy as np

from streaming_vb.types import Array

_SMALLEST = 2**20
"""Bytes below which a fresh array is as fast."""
_MOST = 24
"""Arrays kept per shape and format; beyond it memory goes back to the system."""
(_UNUSED,) = [sys.getrefcount(candidate) for candidate in [object()]]
"""References to a pooled array that nobody uses, counted as in `empty_like`: it differs between versions of Python."""

_pool: dict[tuple[tuple[int, ...], str], list[Array]] = {}
_lock = threading.Lock()


def empty_like(array: Array, dtype: Any = None) -> Array:
    """An uninitialised array of the same shape.

    >>> empty_like(np.zeros(3)).shape
    (3,)
    """
    kind = np.dtype(array.dtype if dtype is None else dtype)
    if array.size * kind.itemsize < _SMALLEST:
        return np.empty(array.shape, kind)
    with _lock:
        kept = _pool.setdefault((array.shape, kind.str), [])
        for candidate in kept:
            if sys.getrefcount(candidate) == _UNUSED:
                return candidate
        fresh = np.empty(array.shape, kind)
        if len(kept) < _MOST:
            kept.append(fresh)
        return fresh
