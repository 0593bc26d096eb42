"""The engine of messages against a transport that says and loses what a test tells it to."""

import logging
from collections import deque
from typing import Any

import pytest

from streaming_vb.errors import ClusterError, RunInUse, SourceError
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.remote_engine import MAX_RESTARTS, RESEND_SECONDS, RemoteEngine
from streaming_vb.streaming.scheduler import (
    Answered,
    DeltaLost,
    Drop,
    FitDone,
    FitFailed,
    LeaseVoid,
    Push,
    PutAside,
    StartFit,
    WorkerLost,
    WorkerReady,
)
from streaming_vb.streaming.transport import (
    Answer,
    Failed,
    Fitted,
    Message,
    Notice,
    Position,
    ServerDown,
    ServerUp,
    SnapshotGone,
    WorkerDown,
    WorkerUp,
)
from streaming_vb.streaming.transport import DeltaLost as DeltaGone
from streaming_vb.types import Interval, Lease, Receipt

INTERVAL = Interval("source", "p", 0, 10)
LEASE = Lease(INTERVAL, 0, 0, 1.0, 1.0)
PUSH = Push(LEASE, publish=True, oldest_base=0)
MERGED = Receipt("merged", 1, 10, 10, 0, 0.0, 0.0)


def position(generation: int) -> Position:
    return Position(generation, "run", 0, 0, Ledger(), Ledger())


class Scripted:
    """A transport that reports what it is given, and remembers what it is asked for."""

    def __init__(self, notices: list[Notice]) -> None:
        self.notices = deque(notices)
        self.calls: list[tuple[Any, ...]] = []
        self.clock = 0.0
        self.waits: list[float | None] = []
        self.state_errors = 0

    def now(self) -> float:
        return self.clock

    def wait(self, timeout: float | None) -> list[Notice]:
        self.waits.append(timeout)
        if self.notices:
            return [self.notices.popleft()]
        assert timeout is not None
        self.clock += timeout
        return []

    def start_server(self, since: int | None) -> None:
        self.calls.append(("start server", since))

    def start_worker(self, worker: int) -> None:
        self.calls.append(("start worker", worker))

    def stop_worker(self, worker: int) -> None:
        self.calls.append(("stop worker", worker))
        self.notices.append(WorkerDown(worker, "stopped"))

    def fit(self, worker: int, lease: Lease) -> None:
        self.calls.append(("fit", worker, lease))

    def push(self, lease: Lease, publish: bool, oldest_base: int) -> None:
        self.calls.append(("push", lease.interval))

    def put_aside(self, interval: Interval, num_records: int, reason: str, publish: bool) -> None:
        self.calls.append(("put aside", interval))

    def drop(self, interval: Interval) -> None:
        self.calls.append(("drop", interval))

    def state(self) -> Any:
        if self.state_errors:
            self.state_errors -= 1
            raise ConnectionError
        return "state"

    def close(self) -> None:
        self.calls.append(("close",))


def started(workers: int = 1, *, is_durable: bool = True, lease_seconds: float = 60.0) -> tuple[RemoteEngine, Scripted]:
    ups: list[Notice] = [ServerUp(position(3)), *(WorkerUp(worker) for worker in range(workers))]
    transport = Scripted(ups)
    engine = RemoteEngine(transport, workers, is_durable=is_durable, lease_seconds=lease_seconds)
    for _ in range(workers):
        assert isinstance(engine.next_event(), WorkerReady)
    transport.calls.clear()
    return engine, transport


def fitting() -> tuple[RemoteEngine, Scripted, Lease]:
    engine, transport = started()
    engine.perform(StartFit(0, LEASE))
    ((_, _, lease),) = transport.calls
    transport.calls.clear()
    return engine, transport, lease


def pushed() -> tuple[RemoteEngine, Scripted]:
    engine, transport, lease = fitting()
    transport.notices.append(Fitted(0, lease, -1.0, 10))
    assert isinstance(engine.next_event(), FitDone)
    engine.perform(PUSH)
    assert transport.calls == [("push", INTERVAL)]
    transport.calls.clear()
    return engine, transport


def test_a_lease_carries_the_generation_of_the_server() -> None:
    assert fitting()[2].generation == 3


def test_a_push_is_answered_once_and_its_delta_dropped() -> None:
    engine, transport = pushed()
    transport.notices.extend([Answer(INTERVAL, MERGED), Answer(INTERVAL, MERGED), WorkerUp(5)])
    assert engine.next_event() == Answered(INTERVAL, MERGED)
    assert engine.next_event() == WorkerReady(5)
    assert transport.calls == [("drop", INTERVAL)]
    assert engine.score(INTERVAL) == -1.0


def test_a_push_without_an_answer_is_sent_again_after_growing_pauses() -> None:
    engine, transport = pushed()
    transport.notices.clear()
    for _ in range(6):
        engine._step()
    assert transport.calls == [("push", INTERVAL)] * len(transport.calls)
    assert len(transport.calls) >= 3
    assert transport.clock >= RESEND_SECONDS * (1 + 2 + 4)


def test_an_interval_set_aside_is_sent_again_as_well() -> None:
    engine, transport = started()
    engine.perform(PutAside(INTERVAL, 10, "why", publish=True))
    transport.notices.append(ServerUp(position(4)))
    engine._step()
    assert transport.calls == [("put aside", INTERVAL)] * 2


def test_after_a_restart_of_the_server_everything_unanswered_is_sent_again() -> None:
    engine, transport = pushed()
    transport.notices.extend([ServerDown("killed"), ServerUp(position(4)), Answer(INTERVAL, MERGED)])
    assert engine.next_event() == Answered(INTERVAL, MERGED)
    assert transport.calls == [("start server", 3), ("push", INTERVAL), ("drop", INTERVAL)]


def test_leases_given_after_a_restart_carry_the_new_generation() -> None:
    engine, transport = pushed()
    transport.notices.extend([ServerDown("killed"), ServerUp(position(4)), Answer(INTERVAL, MERGED)])
    engine.next_event()
    engine.perform(StartFit(0, LEASE))
    assert transport.calls[-1][2].generation == 4


def test_a_server_that_dies_again_and_again_is_one_error_after_growing_pauses() -> None:
    engine, transport = started()
    transport.notices.extend([ServerDown("killed")] * (MAX_RESTARTS + 1))
    with pytest.raises(ClusterError, match=r"6 times in a row \(killed\)"):
        engine.next_event()


def test_a_server_without_a_disk_cannot_be_started_again() -> None:
    engine, transport = started(is_durable=False)
    transport.notices.append(ServerDown("killed"))
    with pytest.raises(ClusterError, match="--run-dir"):
        engine.next_event()


@pytest.mark.parametrize("error", [RunInUse("somebody else"), SourceError("no such file")])
def test_a_mistake_of_the_user_is_raised(error: Exception) -> None:
    notice = ServerDown("refused", error) if isinstance(error, RunInUse) else Failed(error)
    transport = Scripted([notice])
    with pytest.raises(type(error), match=str(error)):
        RemoteEngine(transport, 1, is_durable=True)
    assert transport.calls[-1] == ("close",)


def test_a_dead_worker_is_replaced_and_its_lease_given_back() -> None:
    engine, transport, _ = fitting()
    transport.notices.extend([WorkerDown(0, "killed"), WorkerUp(0)])
    assert engine.next_event() == WorkerLost(0)
    assert engine.next_event() == WorkerReady(0)
    assert transport.calls == [("start worker", 0)]


def test_what_a_dead_worker_says_late_is_ignored() -> None:
    engine, transport, lease = fitting()
    transport.notices.extend([WorkerDown(0, "killed"), Fitted(0, lease, -1.0, 10), WorkerUp(0)])
    assert [engine.next_event(), engine.next_event()] == [WorkerLost(0), WorkerReady(0)]


def test_a_worker_that_is_down_is_handed_nothing() -> None:
    engine, transport = started(workers=2)
    transport.notices.append(WorkerDown(0, "killed"))
    engine._step()
    transport.calls.clear()
    engine.perform(StartFit(0, LEASE))  # its death is an event that the scheduler has not seen
    assert transport.calls == []
    assert engine.next_event() == WorkerLost(0, was_fitting=False)


def test_when_a_worker_dies_pushes_on_the_way_are_sent_again() -> None:
    engine, transport = pushed()
    transport.notices.extend([WorkerDown(0, "killed"), DeltaGone(INTERVAL)])
    assert [engine.next_event(), engine.next_event()] == [WorkerLost(0, was_fitting=False), DeltaLost(INTERVAL)]
    assert ("push", INTERVAL) in transport.calls
    transport.notices.extend([Answer(INTERVAL, MERGED), WorkerUp(0)])  # it had arrived after all: the ledger knows
    assert engine.next_event() == WorkerReady(0)


def test_a_worker_that_is_late_is_ended_and_replaced() -> None:
    engine, transport, _ = fitting()
    assert engine.next_event() == WorkerLost(0)
    assert transport.clock >= 60.0
    assert transport.calls == [("stop worker", 0), ("start worker", 0)]


def test_a_worker_that_does_not_start_is_one_error() -> None:
    engine, transport = started()
    transport.notices.extend([WorkerDown(0, "no memory")] * (MAX_RESTARTS + 1))
    with pytest.raises(ClusterError, match="worker 0 does not start"):
        list(iter(engine.next_event, None))


def test_a_failed_fit_and_a_version_that_is_gone_are_told() -> None:
    engine, transport, lease = fitting()
    transport.notices.append(Fitted(0, lease, float("nan"), 10, "not finite"))
    assert engine.next_event() == FitFailed(0, 10, "not finite")
    engine.perform(StartFit(0, lease))
    transport.notices.append(SnapshotGone(0, transport.calls[-1][2]))
    assert engine.next_event() == LeaseVoid(0, version=0)


def test_a_delta_that_is_not_wanted_is_dropped() -> None:
    engine, transport = started()
    engine.perform(Drop(INTERVAL))
    assert transport.calls == [("drop", INTERVAL)]


def test_messages_of_the_server_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine, transport = started()
    transport.notices.extend([Message("the disk is full"), WorkerUp(3)])
    with caplog.at_level(logging.WARNING):
        engine.next_event()
    assert "the disk is full" in caplog.text


def test_the_state_is_asked_for_again_after_a_restart() -> None:
    engine, transport = started()
    transport.state_errors = 1
    transport.notices.extend([ServerDown("killed"), ServerUp(position(4))])
    assert engine.state() == "state"


def test_close_takes_the_answers_on_the_way_and_keeps_the_last_state() -> None:
    engine, transport = pushed()
    transport.notices.append(Answer(INTERVAL, MERGED))
    assert engine.close() == [Answered(INTERVAL, MERGED)]
    assert transport.calls[-1] == ("close",)
    assert engine.state() == "state"
    assert engine.close() == []


def test_processes_that_never_come_up_are_one_error() -> None:
    transport = Scripted([ServerUp(position(1))])
    with pytest.raises(ClusterError, match="were not up"):
        RemoteEngine(transport, 2, is_durable=True)
    assert transport.calls[-1] == ("close",)
