"""A worker as an actor: a plain class around `streaming_vb.streaming.local_update.LocalUpdate`. It is handed everything
and owns nothing."""

from typing import NamedTuple

from streaming_vb.errors import NumericalError
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.types import Delta, Lease, Snapshot


class Report(NamedTuple):
    """What the driver needs to know of a fit; the delta itself goes to the server without passing it.

    Attributes:
        elbo: score of the interval at the snapshot, nats per record.
        failure: why there is no delta, else "".
        num_records: records read.
    """

    elbo: float
    failure: str
    num_records: int


class EncoderWorker:
    """Fits the intervals that it is handed."""

    def __init__(self, local_update: LocalUpdate) -> None:
        self._local_update = local_update

    def ready(self) -> bool:
        """Answers once the worker is up; its libraries came with the model."""
        return True

    def process(self, lease: Lease, snapshot: Snapshot) -> tuple[Report, Delta | None]:
        """The delta of a lease, or why there is none."""
        try:
            delta = self._local_update(lease, snapshot)
        except NumericalError as error:
            return Report(float("nan"), str(error), lease.interval.stop - lease.interval.start), None
        return Report(delta.fit.elbo, "", delta.num_records), delta
