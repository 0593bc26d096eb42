"""The same as `kills.py` on Ray: actors, drivers and a node of a cluster are killed, and messages are lost.

A cluster of two nodes on this machine: the head, with the server and one worker, and a second node with two workers. Of
20 kills, 9 hit a worker's process, 6 the server's, 3 the driver (the same command then goes on with the same run
directory) and 2 the second node with all that is on it (SIGKILL of its raylet; a new node joins). Every driver loses
some calls before they arrive, some answers, and some while they are carried out (`RAY_testing_rpc_failure`). Every
object goes through the store of a node, as large ones do, so that deltas and snapshots are lost with their node.
Checked after every kill, as in `kills.py`: the sums are those of the records in the ledger, every record that was
acknowledged is in it, and no version is acknowledged twice.

Read `results.lost` and `results.doubled` against the bar. Times are from a kill to the next acknowledged merge; after a
driver they include the start of a Python, the way into the cluster and the start of new actors.

    python benchmarks/reliability/ray_kills.py --kills 100 --seed 0
"""

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import deque
from pathlib import Path
from typing import Any

from kills import (
    PARTITIONS,
    PATIENCE,
    RECORDS_PER_PARTITION,
    Run,
    Sums,
    Tally,
    Violation,
    conclude,
)
from report import progress

SHARES = {"worker": 9, "server": 6, "driver": 3, "node": 2}
ACTORS = {"worker": "EncoderWorker", "server": "ParameterServer"}
WORKERS = 3
KILLS_PER_RUN = 25
LOST_MESSAGES = 8
"""Messages that a driver loses at most; each costs some seconds, in which Ray looks whether the actor is dead."""
NOT_INJECTED = [
    "loss of the head, with Ray's control store: the run ends, and goes on with the same command on a new cluster",
    "networks between machines",
    "power cuts (see crash points and the simulation)",
]
_MARK = "SVB_RAY_KILLS"
_STORE_BYTES = 150 * 2**20


class TwoNodes:
    """A cluster on this machine whose second node is replaced when it is killed."""

    def __init__(self) -> None:
        set_environment()
        from ray.cluster_utils import Cluster

        detection = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "resources": {"parameter_server": 1},
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
                "_system_config": detection,
            },
        )
        self._second = self._add()

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return str(self._cluster.address)

    def kill_second(self) -> None:
        """SIGKILL of the raylet, with which its actors end; another node joins."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._add()

    def actors(self, *kinds: str) -> list[int]:
        """Processes of actors of some classes."""
        found = []
        titles = tuple(f"ray::{kind}".encode() for kind in kinds)
        mark = f"{_MARK}={os.environ[_MARK]}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                name = (path / "cmdline").read_bytes()
                if name.startswith(titles) and mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def shutdown(self) -> None:
        """End both nodes."""
        self._cluster.shutdown()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=_STORE_BYTES)


class RayRun(Run):
    """A run directory whose driver, actors and second node are killed."""

    def __init__(self, cluster: TwoNodes, directory: Path, mode: str, sums: Sums, tally: Tally) -> None:
        self._cluster = cluster
        self._of_dead_drivers: set[int] = set()
        super().__init__(directory, mode, WORKERS, sums, tally)

    def start(self) -> None:
        """The command of a run, the same every time."""
        arguments = [self._directory / "run", self._mode, WORKERS, RECORDS_PER_PARTITION, PARTITIONS]
        losses = {"req_failure_prob": 1, "resp_failure_prob": 1, "in_flight_failure_prob": 1}  # percent
        method = {"CoreWorkerService.grpc_client.PushTask": {"num_failures": LOST_MESSAGES, **losses}}
        self._driver = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("killed_ray_run.py"),
                *map(str, arguments),
                self._cluster.address,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "RAY_testing_rpc_failure": json.dumps(method)},
        )
        self._buffer = b""
        self._lines = deque()

    def kill(self, role: str, chance: random.Random) -> None:
        """Kill at a random moment, and see it go on."""
        time.sleep(chance.uniform(0.0, 1.0))
        if role == "node":
            began = time.monotonic()
            self._cluster.kill_second()
            self._after_death(role, began, driver_died=False)
            return
        if role == "driver":
            victim = self._driver.pid
            self._of_dead_drivers.update(self._cluster.actors(*ACTORS.values()))
        else:
            victims = self._cluster.actors(ACTORS[role])
            if not victims:  # it was dead, and its successor is not there yet
                return self.kill(role, chance)
            victim = chance.choice(victims)
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        self._after_death(role, began, driver_died=role == "driver")

    def _require_no_orphans(self) -> None:
        """Actors of a killed driver must end."""
        deadline = time.monotonic() + PATIENCE
        while left := self._of_dead_drivers & set(self._cluster.actors(*ACTORS.values())):
            if time.monotonic() > deadline:
                raise Violation(f"processes {sorted(left)} outlived their driver")
            time.sleep(0.1)
        self._of_dead_drivers.clear()


def main() -> None:
    """Kill, count and print."""
    arguments = parse()
    schedule = planned(arguments.kills, arguments.seed)
    directory = Path(tempfile.mkdtemp(prefix="svb-ray-kills-"))
    tally = Tally()
    cluster = TwoNodes()
    try:
        for number, begin in enumerate(range(0, len(schedule), KILLS_PER_RUN)):
            part = schedule[begin : begin + KILLS_PER_RUN]
            one_run(cluster, directory / str(number), number, part, arguments.seed, tally)
            progress(f"{sum(tally.kills.values())} of {len(schedule)} kills, {tally.merges:,} merges")
    finally:
        cluster.shutdown()
    if not tally.violations:
        shutil.rmtree(directory)
    injected = {
        "kills_by_role": {role: tally.kills[role] for role in SHARES},
        "lost_messages_at_most": LOST_MESSAGES * (tally.kills["driver"] + len(schedule[::KILLS_PER_RUN])),
    }
    conclude(arguments, tally, injected, NOT_INJECTED)


def set_environment() -> None:
    """What all processes of the cluster inherit."""
    os.environ[_MARK] = secrets.token_hex(8)  # so that nothing else is ever killed
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_max_direct_call_object_size"] = "0"  # noqa: SIM112 - so Ray spells it
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("RAY_ADDRESS", None)


def planned(kills: int, seed: int) -> list[str]:
    """Roles in random order, in their shares, at least one of each."""
    whole = sum(SHARES.values())
    schedule = [role for role, share in SHARES.items() for _ in range(max(kills * share // whole, 1))]
    schedule += ["worker"] * (kills - len(schedule))
    random.Random(seed).shuffle(schedule)
    return schedule


def one_run(cluster: TwoNodes, directory: Path, number: int, schedule: list[str], seed: int, tally: Tally) -> None:
    """A run directory from its first start to its end in order. Every third run is in ordered mode."""
    chance = random.Random(f"{seed} {number}")
    mode = "ordered" if number % 3 == 2 else "async"
    run = RayRun(cluster, directory, mode, Sums(RECORDS_PER_PARTITION * PARTITIONS), tally)
    try:
        run._next("step")
        for role in schedule:
            run.kill(role, chance)
            progress(f"{mode}: {role}, {tally.seconds[role][-1]:.2f} s to the next merge")
        run.stop()
        shutil.rmtree(directory)
    except Violation as violation:
        tally.violations.append(f"run {number} ({mode}): {violation}; kept in {directory}")
    finally:
        run.close()


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
