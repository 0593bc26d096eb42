"""What a delta must pass before state is touched, cheap to dear; the rule of the merge then checks the rest (run,
ledger, shapes, finiteness, precision).

It protects against faulty workers, not against an intruder: whoever can reach a cluster can run code on it. Refused
deltas are computed again on the current version, and a second refusal sets the interval aside.
"""

import math
from dataclasses import dataclass

from streaming_vb.types import Delta, Receipt

MAX_STALENESS = 1_000
"""Versions. A fit on an older posterior is computed again; with one fit in flight per worker only a worker that slept
gets there."""
MAX_STEP_KL = 2_000.0
"""Nats per record. The first interval of a VAE on MNIST teaches 80, later ones less; no honest record teaches
thousands."""


@dataclass(frozen=True, slots=True)
class Screening:
    """Limits of what is merged.

    Args:
        max_staleness: versions between the fit's snapshot and the merge.
        max_step_kl: KL(after || before) per record, nats; infinite where the family has no scale (the ledger model).
    """

    max_staleness: int = MAX_STALENESS
    max_step_kl: float = math.inf

    def of_message(self, delta: Delta, generations: range) -> str:
        """Why a message must not be merged whatever the state, else "".

        >>> from streaming_vb.types import Fit, Interval, Lease, NaturalParameters
        >>> lease = Lease(Interval("s", "p", 0, 10), 0, 0, 1.0, 1.0, generation=3)
        >>> Screening().of_message(Delta("run", lease, Fit(NaturalParameters({}), {}, 0.0), 10), range(4, 5))
        'p[0:10]: leased in generation 3, this run is in 4; an earlier driver handed it out'
        """
        lease, size = delta.lease, len(delta.lease.interval)
        if generations and lease.generation not in generations:
            return (
                f"{lease.interval}: leased in generation {lease.generation}, this run is in {generations[-1]}; "
                "an earlier driver handed it out"
            )
        num_bad = sum(entry.num_records for entry in delta.bad_records)
        if not (delta.num_records > 0 and delta.num_records + num_bad <= size):
            return f"{lease.interval}: {delta.num_records:,} records learned and {num_bad:,} bad of {size:,} positions"
        if any(entry.interval not in lease.interval for entry in delta.bad_records):
            return f"{lease.interval}: bad records outside of it"
        return ""

    def of_staleness(self, staleness: int) -> str:
        """Why a fit is too old, else ""."""
        if 0 <= staleness <= self.max_staleness:
            return ""
        return f"the fit is {staleness:,} versions old, at most {self.max_staleness:,} are merged"

    def of_receipt(self, receipt: Receipt) -> str:
        """Why a merge that was computed must not be applied, else ""."""
        if receipt.step_kl <= self.max_step_kl * receipt.num_new or math.isnan(receipt.step_kl):
            return ""
        return (
            f"the step would be {receipt.step_kl / receipt.num_new:,.0f} nats per record, at most "
            f"{self.max_step_kl:,.0f} are merged"
        )
