"""What the processes of one machine promise, whichever of them is killed, and when."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from streaming_vb.errors import ClusterError, DataError, NumericalError, RunInUse, SourceError
from streaming_vb.inference import conjugate
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import transport, wire
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.processes import ProcessTransport
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.transport import (
    Answer,
    DeltaLost,
    Failed,
    Fitted,
    Notice,
    ServerDown,
    ServerUp,
    SnapshotGone,
    WorkerDown,
    WorkerUp,
)
from streaming_vb.types import Interval, Lease, Records

MODEL = LedgerModel()
SOURCE = IntegerSource(records_per_partition=1000)
PATIENCE = 60.0
"""Seconds after which something that must happen did not."""


@dataclass(frozen=True)
class Source(IntegerSource):
    """Integers, whose reading does something first."""

    before: Callable[[Interval], None] = lambda interval: None

    def read(self, interval: Interval) -> Records:
        self.before(interval)
        return super().read(interval)


@dataclass(frozen=True)
class Run:
    """A run of the ledger model that is kept in memory: a new server starts from nothing."""

    source: IntegerSource = SOURCE
    server: type[Server] = Server
    run_dir: Path | None = None
    is_audited: bool = False

    @property
    def local_update(self) -> LocalUpdate:
        update = LocalUpdate("run", MODEL, conjugate.build(MODEL), self.source, MODEL.prior(0), Nothing(), 0)
        return replace(update, is_audited=self.is_audited)

    def open_server(self, since: int | None) -> Server:
        state = ServerState("run", MODEL.prior(0), MODEL.prior(0), {})
        return self.server(state, MergeRule(MODEL.family, Nothing()), generation=1, since=since)


class Processes:
    """A transport driven by hand."""

    def __init__(self, run: Run, workers: int = 2) -> None:
        self.transport = ProcessTransport(run)
        self._waiting: list[Notice] = []
        self.transport.start_server(None)
        self.next(ServerUp)
        for worker in range(workers):
            self.transport.start_worker(worker)
            self.next(WorkerUp)

    def next(self, kind: type, timeout: float = PATIENCE) -> Notice:
        """The next notice of a kind; others are kept."""
        deadline = time.monotonic() + timeout
        while True:
            for position, notice in enumerate(self._waiting):
                if isinstance(notice, kind):
                    return self._waiting.pop(position)
            assert time.monotonic() < deadline, f"no {kind.__name__} came, but {self._waiting}"
            self._waiting += self.transport.wait(0.1)

    def fit(self, worker: int, lease: Lease) -> None:
        self.transport.fit(worker, lease)
        fitted = self.next(Fitted)
        assert isinstance(fitted, Fitted)
        assert (fitted.worker, fitted.lease, fitted.failure) == (worker, lease, "")

    def push(self, lease: Lease) -> str:
        self.transport.push(lease, True, 0)
        return self.answer(lease.interval)

    def answer(self, interval: Interval) -> str:
        answer = self.next(Answer)
        assert isinstance(answer, Answer)
        assert answer.interval == interval
        return answer.receipt.status

    def pid(self, title: str) -> int:
        """Process id of the child with a title."""
        (pid,) = (pid for pid in below(os.getpid()) if name_of(pid) == title)
        return pid

    def kill(self, title: str, with_signal: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid(title), with_signal)


def lease_of(start: int, stop: int, base_version: int = 0) -> Lease:
    return Lease(Interval(SOURCE.fingerprint, "part-0", start, stop), 0, base_version, 1.0, 1.0, 1)


def below(pid: int) -> Iterator[int]:
    """Processes that a process started, and those that they started; not zombies."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            child = int(path.parent.name)
            yield child
            yield from below(child)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.fixture
def start() -> Iterator[Callable[..., Processes]]:
    started: list[Processes] = []

    def start(*arguments: object, **settings: object) -> Processes:
        started.append(Processes(*arguments, **settings))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for processes in started:
        processes.transport.close()
    assert not [pid for pid in below(os.getpid()) if name_of(pid).startswith("svb-")]


Start = Callable[..., Processes]


def test_a_delta_goes_from_a_worker_to_the_server_and_is_answered(start: Start) -> None:
    processes = start(Run())
    processes.fit(1, lease_of(0, 10))
    assert processes.push(lease_of(0, 10)) == "merged"
    state = processes.transport.state()
    assert state.posterior["sum"].tolist() == MODEL.sums(np.arange(10)).tolist()
    assert (state.version, state.num_records) == (1, 10)


def test_a_push_sent_again_is_answered_again_and_counted_once(start: Start) -> None:
    processes = start(Run())
    processes.fit(0, lease_of(0, 10))
    assert [processes.push(lease_of(0, 10)) for _ in range(3)] == ["merged"] * 3
    assert processes.transport.state().num_records == 10


def test_a_worker_fits_the_next_lease_while_a_delta_waits(start: Start) -> None:
    processes = start(Run(), workers=1)
    processes.fit(0, lease_of(0, 10))
    processes.fit(0, lease_of(10, 20))
    assert processes.push(lease_of(10, 20)) == "merged"
    assert processes.push(lease_of(0, 10)) == "merged"


def test_a_delta_is_kept_until_it_is_dropped(start: Start) -> None:
    processes = start(Run())
    processes.fit(0, lease_of(0, 10))
    processes.transport.drop(lease_of(0, 10).interval)
    processes.transport.push(lease_of(0, 10), True, 0)
    assert processes.next(DeltaLost) == DeltaLost(lease_of(0, 10).interval)


def test_two_workers_compute_the_same_bits_from_one_lease(start: Start) -> None:
    processes = start(Run(is_audited=True))
    digests = []
    for worker, lease in [(0, lease_of(0, 10)), (1, lease_of(0, 10)), (0, lease_of(10, 20))]:
        processes.transport.fit(worker, lease)
        digests.append(processes.next(Fitted).digest)  # type: ignore[union-attr]
    assert digests[0] == digests[1] != digests[2]


def test_a_lease_that_two_workers_fitted_is_pushed_by_either_and_dropped_by_both(start: Start) -> None:
    processes = start(Run())
    processes.fit(0, lease_of(0, 10))
    processes.fit(1, lease_of(0, 10))
    processes.kill("svb-worker-1")
    processes.next(WorkerDown)
    assert processes.push(lease_of(0, 10)) == "merged"
    processes.transport.drop(lease_of(0, 10).interval)
    processes.transport.push(lease_of(0, 10), True, 0)
    processes.next(DeltaLost)


def test_a_worker_that_stops_in_the_middle_of_a_message_holds_up_nobody(start: Start) -> None:
    processes = start(Run())
    with processes.transport._door.connect() as stopped:
        head, *_ = wire.encode({"kind": "push"}, {"natural.sum": np.zeros(1000)})
        stopped.send(bytes(head)[:40])
        processes.fit(0, lease_of(0, 10))
        assert processes.push(lease_of(0, 10)) == "merged"


def test_a_message_that_is_none_is_not_merged_and_harms_nobody(start: Start) -> None:
    processes = start(Run())
    with processes.transport._door.connect() as stranger:
        stranger.send(b"GET / HTTP/1.1\r\n\r\n\r\n\r\n\r\n")
        assert stranger.recv(1) == b""  # the server has hung up
    processes.fit(0, lease_of(0, 10))
    assert processes.push(lease_of(0, 10)) == "merged"
    assert processes.transport.state().num_records == 10


def test_an_interval_can_be_set_aside(start: Start) -> None:
    processes = start(Run())
    processes.transport.put_aside(lease_of(0, 10).interval, 10, "unreadable", True)
    assert processes.answer(lease_of(0, 10).interval) == "set-aside"
    (entry,) = processes.transport.state().ledger.set_aside
    assert (entry.interval, entry.num_records, entry.reason) == (lease_of(0, 10).interval, 10, "unreadable")


def test_a_worker_says_so_when_the_version_of_its_lease_is_no_longer_kept(start: Start) -> None:
    processes = start(Run())
    processes.transport.fit(0, lease_of(0, 10, base_version=7))
    assert processes.next(SnapshotGone) == SnapshotGone(0, lease_of(0, 10, base_version=7))
    processes.fit(0, lease_of(0, 10))


def test_a_killed_worker_is_seen_at_once_and_replaced_under_its_number(start: Start) -> None:
    processes = start(Run())
    began = time.monotonic()
    processes.kill("svb-worker-1")
    down = processes.next(WorkerDown)
    assert down == WorkerDown(1, "worker 1: killed by SIGKILL")
    assert time.monotonic() - began < 5
    processes.transport.start_worker(1)
    assert processes.next(WorkerUp) == WorkerUp(1)
    processes.fit(1, lease_of(0, 10))


def test_the_delta_of_a_killed_worker_is_reported_lost(start: Start) -> None:
    processes = start(Run())
    processes.fit(0, lease_of(0, 10))
    processes.kill("svb-worker-0")
    processes.next(WorkerDown)
    processes.transport.push(lease_of(0, 10), True, 0)
    assert processes.next(DeltaLost) == DeltaLost(lease_of(0, 10).interval)


def test_a_worker_that_is_paused_can_be_stopped_or_replaced(start: Start) -> None:
    processes = start(Run())
    processes.kill("svb-worker-0", signal.SIGSTOP)
    processes.transport.stop_worker(0)
    assert processes.next(WorkerDown) == WorkerDown(0, "worker 0: killed by SIGKILL")
    processes.kill("svb-worker-1", signal.SIGSTOP)
    paused = processes.pid("svb-worker-1")
    processes.transport.start_worker(1)
    processes.next(WorkerUp)
    wait_until(lambda: not is_running(paused), "the paused worker is still there")
    processes.fit(1, lease_of(0, 10))


def test_a_delta_reaches_the_server_that_follows_a_killed_one(start: Start) -> None:
    processes = start(Run())
    processes.fit(0, lease_of(0, 10))
    assert processes.push(lease_of(0, 10)) == "merged"
    processes.kill("svb-server")
    down = processes.next(ServerDown)
    assert down == ServerDown("server: killed by SIGKILL")
    processes.transport.push(lease_of(0, 10), True, 0)  # while there is none
    processes.transport.start_server(1)
    assert processes.answer(lease_of(0, 10).interval) == "merged"  # the new one began with nothing


def test_a_worker_waits_for_a_snapshot_while_there_is_no_server(start: Start) -> None:
    processes = start(Run())
    processes.kill("svb-server")
    processes.next(ServerDown)
    processes.transport.fit(0, lease_of(0, 10))
    assert not processes.transport.wait(0.05)
    processes.transport.start_server(1)
    processes.next(Fitted)


def test_a_paused_server_is_replaced(start: Start) -> None:
    processes = start(Run())
    processes.kill("svb-server", signal.SIGSTOP)
    paused = processes.pid("svb-server")
    processes.transport.start_server(1)
    processes.next(ServerUp)
    wait_until(lambda: not is_running(paused), "the paused server is still there")
    processes.fit(0, lease_of(0, 10))
    assert processes.push(lease_of(0, 10)) == "merged"


def test_asking_a_dead_server_for_its_state_is_a_lost_connection(start: Start) -> None:
    processes = start(Run())
    processes.kill("svb-server")
    with pytest.raises(ConnectionError):
        processes.transport.state()
    processes.next(ServerDown)


def test_everything_can_be_started_again_after_the_fork_server_was_killed(start: Start) -> None:
    processes = start(Run())
    old = list(below(os.getpid()))
    processes.kill("svb-forks")
    assert isinstance(processes.next(ServerDown), ServerDown)
    assert {processes.next(WorkerDown).worker for _ in range(2)} == {0, 1}  # type: ignore[union-attr]
    processes.transport.start_server(1)
    processes.transport.start_worker(0)
    processes.next(ServerUp)
    processes.next(WorkerUp)
    processes.fit(0, lease_of(0, 10))
    assert processes.push(lease_of(0, 10)) == "merged"
    wait_until(lambda: not any(map(is_running, old)), "processes of before are still there")


def test_ctrl_c_in_the_terminal_is_the_drivers_alone(start: Start) -> None:
    processes = start(Run())
    for title in ("svb-worker-0", "svb-worker-1", "svb-server", "svb-forks"):
        processes.kill(title, signal.SIGINT)
    processes.fit(0, lease_of(0, 10))
    assert processes.push(lease_of(0, 10)) == "merged"


def test_data_that_cannot_be_read_is_an_error_of_its_own_class(start: Start) -> None:
    class Mine(DataError):
        """Known to the user alone."""

    def refuse(interval: Interval) -> None:
        raise Mine(f"{interval}: no")

    processes = start(Run(Source(1000, before=refuse)), workers=1)
    processes.transport.fit(0, lease_of(0, 10))
    failed = processes.next(Failed)
    assert isinstance(failed, Failed)
    assert type(failed.error) is DataError
    assert str(failed.error) == "part-0[0:10]: no"
    assert isinstance(failed.error, SourceError)


def test_a_fit_that_is_not_finite_is_a_failure_and_the_worker_lives(start: Start) -> None:
    def fail(interval: Interval) -> None:
        if interval.start == 0:
            raise NumericalError("not finite")

    processes = start(Run(Source(1000, before=fail)), workers=1)
    processes.transport.fit(0, lease_of(0, 10))
    fitted = processes.next(Fitted)
    assert isinstance(fitted, Fitted)
    assert (fitted.failure, fitted.num_records) == ("not finite", 10)
    processes.fit(0, lease_of(10, 20))


def test_a_bug_in_a_worker_ends_it_with_its_reason(start: Start) -> None:
    def fail(interval: Interval) -> None:
        raise KeyError("colour")

    processes = start(Run(Source(1000, before=fail)), workers=1)
    processes.transport.fit(0, lease_of(0, 10))
    assert processes.next(WorkerDown) == WorkerDown(0, "worker 0: KeyError: 'colour'")


def test_a_run_directory_that_cannot_be_opened_is_the_error_to_raise() -> None:
    class Taken(Run):
        def open_server(self, since: int | None) -> Server:
            raise RunInUse("taken by process 7")

    opened = ProcessTransport(Taken())
    opened.start_server(None)
    down = next_of(opened, ServerDown)
    assert isinstance(down, ServerDown)
    assert type(down.error) is RunInUse
    assert "taken by process 7" in down.reason
    opened.close()
    with pytest.raises(ClusterError):
        opened.state()


def test_a_server_whose_disk_fails_ends_with_the_reason_and_tells_no_answer(start: Start) -> None:
    class Failing(Server):
        def commit(self) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    processes = start(Run(server=Failing))
    processes.fit(0, lease_of(0, 10))
    processes.transport.push(lease_of(0, 10), True, 0)
    down = processes.next(ServerDown)
    assert isinstance(down, ServerDown)
    assert "Input/output error" in down.reason
    assert down.error is None
    assert not [notice for notice in processes.transport.wait(0) if isinstance(notice, Answer)]


class FullUntilThereIsAFile(Server):
    """A server whose disk is full as long as a file exists."""

    file: Path

    def push(self, *arguments: object, **settings: object) -> object:  # type: ignore[override]
        if self.file.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().push(*arguments, **settings)  # type: ignore[arg-type]


def test_a_full_disk_is_waited_for_and_said_once(start: Start, tmp_path: Path) -> None:
    FullUntilThereIsAFile.file = tmp_path / "full"
    FullUntilThereIsAFile.file.touch()
    processes = start(Run(server=FullUntilThereIsAFile))
    processes.fit(0, lease_of(0, 10))
    processes.transport.push(lease_of(0, 10), True, 0)
    assert "full" in processes.next(transport.Message).text  # type: ignore[union-attr]
    assert not processes.transport.wait(0.3)
    FullUntilThereIsAFile.file.unlink()
    assert processes.answer(lease_of(0, 10).interval) == "merged"
    assert "space" in processes.next(transport.Message).text  # type: ignore[union-attr]


def test_a_run_whose_disk_is_full_can_be_closed(start: Start, tmp_path: Path) -> None:
    FullUntilThereIsAFile.file = tmp_path / "full"
    processes = start(Run(server=FullUntilThereIsAFile))
    processes.fit(0, lease_of(0, 10))
    assert processes.push(lease_of(0, 10)) == "merged"
    FullUntilThereIsAFile.file.touch()
    processes.fit(0, lease_of(10, 20))
    processes.transport.push(lease_of(10, 20), True, 0)
    processes.next(transport.Message)
    processes.transport.close()
    assert processes.transport.state().num_records == 10


def test_pushes_that_wait_together_are_made_durable_together(start: Start, tmp_path: Path) -> None:
    class Counting(Server):
        def commit(self) -> None:
            with open(tmp_path / "commits", "a") as file:
                file.write(".")
            time.sleep(0.2)

    processes = start(Run(server=Counting), workers=8)
    leases = [lease_of(10 * number, 10 * number + 10) for number in range(8)]
    for worker, lease in enumerate(leases):
        processes.fit(worker, lease)
    for lease in leases:
        processes.transport.push(lease, True, 0)
    answered = {processes.next(Answer).interval for _ in leases}  # type: ignore[union-attr]
    assert answered == {lease.interval for lease in leases}
    assert len((tmp_path / "commits").read_text()) < len(leases)


def test_closing_ends_all_processes_releases_all_files_and_keeps_the_state(start: Start) -> None:
    before = set(os.listdir("/proc/self/fd"))
    processes = start(Run())
    processes.fit(0, lease_of(0, 10))
    processes.push(lease_of(0, 10))
    processes.kill("svb-worker-1", signal.SIGSTOP)
    pids = list(below(os.getpid()))
    processes.transport.close()
    processes.transport.close()
    assert not any(map(is_running, pids))
    assert set(os.listdir("/proc/self/fd")) == before
    assert processes.transport.state().num_records == 10
    assert processes.transport.wait(None) == []


def test_two_transports_in_one_program_do_not_keep_each_other_alive(start: Start) -> None:
    first = start(Run(), workers=1)
    of_first = list(below(os.getpid()))
    second = start(Run(), workers=1)
    first.transport.close()
    assert not any(map(is_running, of_first))
    second.fit(0, lease_of(0, 10))
    assert second.push(lease_of(0, 10)) == "merged"


def test_wait_returns_after_its_time(start: Start) -> None:
    processes = start(Run())
    began = time.monotonic()
    assert processes.transport.wait(0.05) == []
    assert time.monotonic() - began >= 0.05


DRIVER = """
import os, sys, time
sys.path.insert(0, {here!r})
from test_processes import Processes, Run, Source, below, lease_of
processes = Processes(Run({source}), workers=2)
processes.transport.fit(0, lease_of(0, 10))
print(*below(os.getpid()), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("others", ["busy", "a worker paused", "fork server killed first"])
def test_nothing_outlives_a_killed_driver(others: str) -> None:
    source = "Source(1000, before=lambda interval: time.sleep(60))"
    script = textwrap.dedent(DRIVER).format(here=str(Path(__file__).parent), source=source)
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pids = [int(word) for word in driver.stdout.readline().split()]
    assert sorted(map(name_of, pids)) == ["svb-forks", "svb-server", "svb-worker-0", "svb-worker-1"]
    by_name = {name_of(pid): pid for pid in pids}
    if others == "a worker paused":
        os.kill(by_name["svb-worker-1"], signal.SIGSTOP)
    if others == "fork server killed first":
        os.kill(by_name["svb-forks"], signal.SIGKILL)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_until(lambda: not any(map(is_running, pids)), "a process outlived its driver")


def next_of(opened: ProcessTransport, kind: type) -> Notice:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for notice in opened.wait(0.1):
            if isinstance(notice, kind):
                return notice
    raise AssertionError(f"no {kind.__name__} came")
