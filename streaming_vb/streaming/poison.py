"""Which record of an interval kills its worker: a native crash, a huge allocation, endless recursion.

Halves are fitted and the fits thrown away, so that what is merged in the end depends on the record alone and not on who
died when. With n records, a search costs at most log2(n) + 1 deaths, after the two that began it.
"""

from dataclasses import dataclass, replace

from streaming_vb.types import Interval


@dataclass(frozen=True, slots=True)
class Search:
    """A search under way.

    Attributes:
        suspect: holds the record that kills, if there is one.
        is_found: the suspect is one record, and it killed alone.

    >>> search = Search(Interval("s", "p", 0, 4))
    >>> search.trial
    Interval(source='s', partition='p', start=0, stop=2)
    >>> search.survived().died().died().suspect
    Interval(source='s', partition='p', start=2, stop=3)
    """

    suspect: Interval
    is_found: bool = False

    @property
    def trial(self) -> Interval:
        """What to fit next: the first half of the suspect, or the one record that is left."""
        half = (len(self.suspect) + 1) // 2
        return replace(self.suspect, stop=self.suspect.start + half)

    def died(self) -> "Search":
        """After a worker died on the trial."""
        return Search(self.trial, is_found=len(self.suspect) == 1)

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
