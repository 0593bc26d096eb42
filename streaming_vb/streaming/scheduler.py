"""The driver's logic as a pure state machine: events in, actions out. No clock, no torch, no Ray.

An engine carries the actions out and reports events; the same machine therefore runs in one process, under a virtual
clock, and on a cluster. There are two, `asynchronous.py` and `ordered.py`. Events that a machine answers:

    WorkerReady  -> StartFit                      FitFailed  -> StartFit again (smaller steps), then PutAside
    FitDone      -> Push                          WorkerLost -> the interval is leased again, same seed, same bits;
    Answered     -> StartFit for idle workers                   after two deaths the record that kills is looked for
    DeltaLost, LeaseVoid -> the interval is leased again
"""

from dataclasses import dataclass, replace
from typing import Protocol

from streaming_vb.streaming.poison import Search
from streaming_vb.types import Interval, Lease, Receipt

MAX_LOSSES = 2
"""Workers that may die on one interval before the record that kills them is looked for."""
MAX_SEARCHES = 3
"""Searches without a result before the whole interval is set aside."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker is up and idle."""

    worker: int


@dataclass(frozen=True, slots=True)
class FitDone:
    """A worker has a delta for its lease.

    Attributes:
        digest: SHA-256 of the delta, where the run is audited.
    """

    worker: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class FitFailed:
    """A worker has no delta: the fit was not finite."""

    worker: int
    num_records: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died; what it was fitting is gone.

    Attributes:
        was_fitting: it had begun with its lease, so that the interval may be to blame.
    """

    worker: int
    was_fitting: bool = True


@dataclass(frozen=True, slots=True)
class LeaseVoid:
    """A worker is idle: the version that its lease starts from is no longer kept.

    Attributes:
        version: one that is; a server that was started again may be ahead of the answers that came from it.
    """

    worker: int
    version: int


@dataclass(frozen=True, slots=True)
class DeltaLost:
    """The delta of an interval was lost on its way to the server."""

    interval: Interval


@dataclass(frozen=True, slots=True)
class Answered:
    """The server's receipt for a push or for an interval set aside."""

    interval: Interval
    receipt: Receipt


Event = WorkerReady | FitDone | FitFailed | WorkerLost | LeaseVoid | DeltaLost | Answered


@dataclass(frozen=True, slots=True)
class StartFit:
    """Hand a lease to an idle worker, with the snapshot of its base version."""

    worker: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class Push:
    """Send the delta of a lease to the server.

    Attributes:
        publish: publish the version that results.
        oldest_base: oldest version that a fit in flight started from.
    """

    lease: Lease
    publish: bool
    oldest_base: int


@dataclass(frozen=True, slots=True)
class PutAside:
    """Tell the server that an interval is read but not learned."""

    interval: Interval
    num_records: int
    reason: str
    publish: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """The delta of an interval is not wanted."""

    interval: Interval


Action = StartFit | Push | PutAside | Drop


class Scheduler(Protocol):
    """What an engine drives."""

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing is left to lease."""

    def handle(self, event: Event) -> list[Action]:
        """Actions to carry out, in order."""


@dataclass(frozen=True, slots=True)
class Task:
    """An interval to fit, and what happened to it so far.

    Attributes:
        attempt: 1 after a fit that was not finite or a delta that was refused.
        losses: workers that died on it since the last search.
        searches: searches for a record that kills, without a result.
        search: the one under way: parts are fitted and thrown away.
        refusals: times its delta came too late.
    """

    interval: Interval
    attempt: int = 0
    losses: int = 0
    searches: int = 0
    search: Search | None = None
    refusals: int = 0

    @property
    def to_fit(self) -> Interval:
        """What the next fit reads."""
        return self.interval if self.search is None else self.search.trial

    def lost(self) -> "Task":
        """After its worker died."""
        if self.search is not None:
            return replace(self, search=self.search.died())
        if self.losses + 1 < MAX_LOSSES:
            return replace(self, losses=self.losses + 1)
        return replace(
            self, losses=0, search=Search(self.interval, deaths=MAX_LOSSES if len(self.interval) == 1 else 0)
        )

    def survived(self) -> "Task":
        """After a part was fitted during a search."""
        assert self.search is not None
        rest = self.search.survived()
        return replace(self, search=rest, searches=self.searches + (rest is None))


def earned(most: int, ramp: int, num_records: int) -> int:
    """min(most, 1 + floor(N / ramp)): how many fits may share one base.

    >>> earned(8, 30_000, 0), earned(8, 30_000, 60_000), earned(8, 0, 0)
    (1, 3, 8)
    """
    return most if ramp == 0 else min(most, 1 + num_records // ramp)
