"""Progressive evaluation: every interval is scored at the snapshot before it is learned, so the whole stream is
held-out data once."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Progressive:
    """Running mean of interval scores, weighted by records; two of them add up.

    >>> total = Progressive()
    >>> total.update(-2.0, num_records=100)
    >>> total.update(-1.0, num_records=300)
    >>> total.mean
    -1.25
    """

    num_records: int = 0
    total: float = 0.0

    def update(self, elbo: float, *, num_records: int) -> None:
        """Count an interval with mean score `elbo` (nats per record); intervals without a score are left out."""
        if math.isfinite(elbo):
            self.num_records += num_records
            self.total += elbo * num_records

    def __add__(self, other: "Progressive") -> "Progressive":
        return Progressive(self.num_records + other.num_records, self.total + other.total)

    @property
    def mean(self) -> float:
        """Nats per record; NaN before the first score."""
        return self.total / self.num_records if self.num_records else math.nan
