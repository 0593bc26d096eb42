"""The reference: what a parameter server must hold after a list of pushes, in sixty lines that share no code with it.

Positions are counted one by one in a set, sums in Python integers. It knows no files, no messages and no faults: the
simulator feeds it what the real server wrote to its journal, and compares.
"""

from dataclasses import dataclass, field

from streaming_vb.streaming.merge import ServerState
from streaming_vb.types import Interval

Position = tuple[str, int]
Sums = tuple[int, int, int, int]


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class Change:
    """One thing that a server did: an interval merged but for some bad records, or set aside (`learned` is false)."""

    interval: Interval
    learned: bool
    bad: frozenset[Position] = frozenset()

    def positions(self) -> set[Position]:
        return {(self.interval.partition, at) for at in range(self.interval.start, self.interval.stop)}


@dataclass
class ReferenceServer:
    """Applies changes; `difference` compares with a state of the real server.

    Attributes:
        changes: applied, in order; `sums` and `versions` are those after each.
        covered: positions.
        attempt: a change that was being written, and may be on the disk.
    """

    records_per_partition: int
    changes: list[Change] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=lambda: [(0, 0, 0, 0)])
    versions: list[int] = field(default_factory=lambda: [0])
    covered: set[Position] = field(default_factory=set)
    attempt: Change | None = None

    def apply(self, change: Change) -> None:
        self.attempt = None
        positions = change.positions()
        if again := positions & self.covered:
            raise Violation(f"{change.interval} was counted twice, at {sorted(again)[:3]}")
        self.covered |= positions
        total = self.sums[-1]
        for position in positions - change.bad if change.learned else ():
            total = tuple(a + b for a, b in zip(total, self._evidence(position), strict=True))  # type: ignore[assignment]
        self.sums.append(total)
        self.versions.append(self.versions[-1] + change.learned)
        self.changes.append(change)

    def prefix(self, number: int) -> "ReferenceServer":
        """The reference after its first changes."""
        copy = ReferenceServer(self.records_per_partition)
        copy.changes, copy.sums = self.changes[:number], self.sums[: number + 1]
        copy.versions = self.versions[: number + 1]
        copy.covered = set().union(*(change.positions() for change in copy.changes))
        return copy

    def with_attempt(self) -> "ReferenceServer":
        """The reference if the attempt is on the disk."""
        copy = self.prefix(len(self.changes))
        assert self.attempt is not None
        copy.apply(self.attempt)
        return copy

    def difference(self, state: ServerState) -> str:
        """How a state differs from this one, "" where it does not."""
        sums = self.sums[-1]
        held = {(key[1], at) for key, runs in state.ledger.runs.items() for a, b in runs for at in range(a, b)}
        checks = {
            "version": (state.version, self.versions[-1]),
            "records": (state.num_records, sums[0]),
            "sums": (tuple(state.posterior["sum"].tolist()), sums),
            "twin": (tuple(state.posterior["twin"].tolist()), tuple(3 * value for value in sums)),
            "ledger": (sorted(held), sorted(self.covered)) if held != self.covered else ((), ()),
        }
        return "; ".join(f"{what}: {a} is not {b}" for what, (a, b) in checks.items() if a != b)

    def _evidence(self, position: Position) -> Sums:
        i = int(position[0].removeprefix("part-")) * self.records_per_partition + position[1]
        mixed = (i * 0x9E3779B97F4A7C15) % 2**64
        return 1, i, i * i % 2**20, (mixed >> 32) % 2**20
