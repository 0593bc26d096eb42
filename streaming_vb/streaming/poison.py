"""Which record of an interval kills its worker: a native crash, a huge allocation, endless recursion.

Halves are fitted and the fits thrown away, so that what is merged in the end depends on the record alone and not on who
died when. A record is convicted when two workers died on it alone: workers also die for other reasons. With n records a
search costs at most log2(n) + 2 deaths, after the two that began it.
"""

from dataclasses import dataclass, replace

from streaming_vb.types import Interval


@dataclass(frozen=True, slots=True)
class Search:
    """A search under way.

    Attributes:
        suspect: holds the record that kills, if there is one.
        deaths: on the suspect, once it is one record.

    >>> search = Search(Interval("s", "p", 0, 4))
    >>> search.trial
    Interval(source='s', partition='p', start=0, stop=2)
    >>> search = search.survived().died().died().died()
    >>> search.suspect, search.is_found
    (Interval(source='s', partition='p', start=2, stop=3), True)
    """

    suspect: Interval
    deaths: int = 0

    @property
    def is_found(self) -> bool:
        """Two workers died on this one record."""
        return self.deaths == 2

    @property
    def trial(self) -> Interval:
        """What to fit next: the first half of the suspect, or the one record that is left."""
        half = (len(self.suspect) + 1) // 2
        return replace(self.suspect, stop=self.suspect.start + half)

    def died(self) -> "Search":
        """After a worker died on the trial."""
        return Search(self.trial, self.deaths + 1 if len(self.suspect) == 1 else 0)

    def survived(self) -> "Search | None":
        """After the trial was fitted; none where nothing is left to suspect."""
        return None if len(self.suspect) == 1 else Search(replace(self.suspect, start=self.trial.stop))


def around(interval: Interval, record: Interval) -> list[Interval]:
    """The parts of an interval before and after a record.

    >>> [str(part) for part in around(Interval("s", "p", 0, 4), Interval("s", "p", 0, 1))]
    ['p[1:4]']
    """
    parts = [replace(interval, stop=record.start), replace(interval, start=record.stop)]
    return [part for part in parts if len(part) > 0]
