"""What moves messages between the driver, the workers and the server, and starts them: a transport. And its notices,
which say what happened.

`RemoteEngine` decides; a transport only carries out. It may lose a push or its answer, deliver either twice, late or in
another order: the engine sends again what was not answered, and the server counts an interval once. Transports: Unix
sockets between processes (`processes.py`), Ray (`workers/ray_transport.py`), and a simulated network in the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState
from streaming_vb.types import Interval, Lease, Receipt


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """Where a server stands when it opens a run.

    Attributes:
        generation: number of the writer; rises with every start of a server on a run directory.
        run_id: identity of the run.
        version, num_records, ledger: of the published state: the base of new leases. In ordered mode that is the
            start of a round.
        merged: the ledger with what was merged after that, in the round that was interrupted.
        notes: what recovery found, one line each, for people.
    """

    generation: int
    run_id: str
    version: int
    num_records: int
    ledger: Ledger
    merged: Ledger
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker that was started waits for a lease."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerDown:
    """A worker died, with its fit and with the deltas it held that were not delivered."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class DeltaLost:
    """The delta of an interval was lost before it was delivered: with its worker, or with its node."""

    interval: Interval


@dataclass(frozen=True, slots=True)
class Fitted:
    """A worker is done with a lease, and idle. Where `failure` is empty its delta waits to be pushed.

    Attributes:
        elbo: score of the interval at the snapshot, nats per record.
        num_records: records read.
        failure: why there is no delta.
        digest: SHA-256 of the delta.
    """

    worker: int
    lease: Lease
    elbo: float
    num_records: int
    failure: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotGone:
    """A worker is idle and could not fit: the version its lease names is no longer kept."""

    worker: int
    lease: Lease


@dataclass(frozen=True, slots=True, eq=False)
class ServerUp:
    """A server has opened the run."""

    position: Position


@dataclass(frozen=True, slots=True)
class ServerDown:
    """The server died or cannot be reached, or could not open the run.

    Attributes:
        error: where it is a mistake of the user (a foreign run directory, another writer), the error to raise.
    """

    reason: str
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's receipt for a push or for an interval set aside; what it tells is durable."""

    interval: Interval
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker met a mistake of the user that ends the run: data that cannot be read or scored."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Message:
    """Something people should read, one line: the disk is full, space is back."""

    text: str


Notice = WorkerUp | WorkerDown | DeltaLost | Fitted | SnapshotGone | ServerUp | ServerDown | Answer | Failed | Message


class Transport(Protocol):
    """Carries out what the engine decides; nothing here waits but `wait`, `state` and `close`."""

    def now(self) -> float:
        """Monotonic seconds of the driver, never a wall clock."""

    def start_server(self, since: int | None) -> None:
        """Start a server, ending one that is there; `ServerUp` or `ServerDown` follows.

        Args:
            since: leases of this generation and later ones are accepted; none means those of the new server alone.
        """

    def start_worker(self, worker: int) -> None:
        """Start a worker under a number, ending one that is there; `WorkerUp` or `WorkerDown` follows."""

    def stop_worker(self, worker: int) -> None:
        """Kill a worker that does not answer; `WorkerDown` follows."""

    def fit(self, worker: int, lease: Lease) -> None:
        """Hand a lease to an idle worker; `Fitted`, `SnapshotGone`, `Failed` or `WorkerDown` follows."""

    def push(self, lease: Lease, publish: bool, oldest_base: int) -> None:
        """Deliver the delta of a lease to the server, again where it was delivered before; `Answer` or `DeltaLost`
        follows, or nothing."""

    def put_aside(self, interval: Interval, num_records: int, reason: str, publish: bool) -> None:
        """Tell the server that an interval is read but not learned; `Answer` follows, or nothing."""

    def drop(self, interval: Interval) -> None:
        """The delta of an interval is no longer needed."""

    def wait(self, timeout: float | None) -> Sequence[Notice]:
        """What happened, in order; waits for something to happen, at most `timeout` seconds."""

    def state(self) -> ServerState:
        """The state published last."""

    def close(self) -> None:
        """Save a snapshot, end server and workers."""
