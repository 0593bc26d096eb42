"""A worker as an actor: a plain class around `streaming_vb.streaming.local_update.LocalUpdate`. It is handed everything
and owns nothing."""

from typing import NamedTuple

from streaming_vb.errors import NumericalError
from streaming_vb.failpoints import reach
from streaming_vb.streaming import audit
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.types import Delta, Lease, Snapshot


class Report(NamedTuple):
    """What the driver needs to know of a fit; the delta itself goes to the server without passing it.

    Attributes:
        elbo: score of the interval at the snapshot, nats per record.
        num_records: records read.
        failure: why there is no delta, else "".
        digest: SHA-256 of the delta, where fits are audited.
    """

    elbo: float
    num_records: int
    failure: str = ""
    digest: str = ""


class EncoderWorker:
    """Fits the intervals that it is handed."""

    def __init__(self, local_update: LocalUpdate) -> None:
        self._local_update = local_update

    def ready(self) -> bool:
        """Answers once the worker is up; its libraries came with the model."""
        return True

    def process(self, lease: Lease, snapshot: Snapshot | None) -> tuple[Report | None, Delta | None]:
        """The delta of a lease, or why there is none; no report where the server no longer had the snapshot."""
        reach("W1")
        if snapshot is None:
            return None, None
        reach("W4")
        try:
            delta = self._local_update(lease, snapshot)
        except NumericalError as error:
            return Report(float("nan"), len(lease.interval), str(error)), None
        reach("W5")
        num_read = delta.num_records + sum(entry.num_records for entry in delta.bad_records)
        sha256 = audit.digest(delta) if self._local_update.is_audited else ""
        return Report(float(delta.fit.elbo), num_read, digest=sha256), delta
