"""Which workers are late. Deadlines are on the monotonic clock of the one process that gives leases, so a step of a
wall clock, here or on a worker, changes nothing.

A worker that does not answer in time is ended and replaced, and its interval leased again; should its delta still
arrive, the ledger knows the interval or takes the delta: the first one counts.
"""

LEAST_SECONDS = 60.0
"""No lease is shorter."""
FACTOR = 10.0
"""A lease lasts this many times the longest fit so far."""


class Leases:
    """Deadlines of fits in flight.

    Args:
        least: seconds that a lease lasts at least.

    >>> leases = Leases(least=60.0)
    >>> leases.grant(worker=0, now=100.0)
    >>> leases.expired(now=159.0), leases.expired(now=160.0)
    ([], [0])
    """

    def __init__(self, least: float = LEAST_SECONDS) -> None:
        self._least = least
        self._longest = 0.0
        self._granted: dict[int, float] = {}

    def grant(self, worker: int, now: float) -> None:
        """A worker begins a fit."""
        self._granted[worker] = now

    def end(self, worker: int, now: float) -> float:
        """A worker is done with its fit; returns the seconds it took, 0 where it had none."""
        seconds = now - self._granted.pop(worker, now)
        self._longest = max(self._longest, seconds)
        return seconds

    def revoke(self, worker: int) -> None:
        """A worker was ended; how long it took says nothing."""
        self._granted.pop(worker, None)

    def expired(self, now: float) -> list[int]:
        """Workers that are late."""
        return [worker for worker, granted in self._granted.items() if now >= granted + self._duration]

    def next_deadline(self) -> float | None:
        """When the first one will be late."""
        return min(self._granted.values()) + self._duration if self._granted else None

    @property
    def _duration(self) -> float:
        return max(self._least, FACTOR * self._longest)
