"""The life of a worker's process: leases come from the driver, snapshots from the server, and a delta goes straight to
the server. It is kept until the driver says that it is answered, because it may have to be pushed again.
"""

import socket
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from streaming_vb.errors import NumericalError, StreamingVBError
from streaming_vb.failpoints import reach
from streaming_vb.streaming import audit, control, messages, wire
from streaming_vb.streaming.door import Door
from streaming_vb.streaming.fork_server import lifeline
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.types import Delta, Interval, Lease, Snapshot


def live(local_update: LocalUpdate, door: Door, driver: socket.socket, arguments: Mapping[str, Any]) -> None:
    """Carry out the driver's commands, one after the other, until it is gone."""
    del arguments  # all workers are alike
    commands: SimpleQueue[wire.Message] = SimpleQueue()
    lifeline(driver, commands.put)
    worker = _Worker(local_update, door, driver)
    control.tell(driver, "up")
    try:
        while True:
            worker.carry_out(commands.get().header)
    except Exception as error:
        control.tell(driver, "down", reason=f"{type(error).__name__}: {error}")
        raise


class _Worker:
    def __init__(self, local_update: LocalUpdate, door: Door, driver: socket.socket) -> None:
        self._local_update, self._door, self._driver = local_update, door, driver
        self._server: socket.socket | None = None
        self._snapshot: Snapshot | None = None
        self._deltas: dict[Interval, Delta] = {}

    def carry_out(self, command: Mapping[str, Any]) -> None:
        match command:
            case {"kind": "fit", "lease": lease}:
                self._fit(messages.unpack_lease(lease))
            case {"kind": "push", "interval": interval, "publish": publish, "oldest_base": oldest_base}:
                self._push(messages.unpack_interval(interval), publish, oldest_base)
            case {"kind": "drop", "interval": interval}:
                self._deltas.pop(messages.unpack_interval(interval), None)
                reach("W7")

    def _fit(self, lease: Lease) -> None:
        reach("W1")
        snapshot = self._pulled(lease.base_version)
        if snapshot is None:
            return control.tell(self._driver, "gone", lease=messages.pack_lease(lease))
        reach("W3")
        reach("W4")
        try:
            delta = self._local_update(lease, snapshot)
        except NumericalError as error:
            return self._fitted(lease, float("nan"), len(lease.interval), failure=str(error))
        except StreamingVBError as error:
            return control.tell(self._driver, "failed", error=control.pack_error(error))
        reach("W5")
        self._deltas[lease.interval] = delta
        sha256 = audit.digest(delta) if self._local_update.is_audited else ""
        num_read = delta.num_records + sum(entry.num_records for entry in delta.bad_records)
        self._fitted(lease, delta.fit.elbo, num_read, digest=sha256)

    def _fitted(self, lease: Lease, elbo: float, num_records: int, failure: str = "", digest: str = "") -> None:
        control.tell(
            self._driver,
            "fitted",
            lease=messages.pack_lease(lease),
            elbo=float(elbo),
            num_records=num_records,
            failure=failure,
            digest=digest,
        )

    def _push(self, interval: Interval, publish: bool, oldest_base: int) -> None:
        delta = self._deltas.get(interval)
        if delta is None:
            return control.tell(self._driver, "lost", interval=messages.pack_interval(interval))
        header, arrays = messages.pack_delta(delta)
        while True:
            try:
                control.tell(self._connected(), "push", arrays, delta=header, publish=publish, oldest_base=oldest_base)
                break
            except OSError:
                self._disconnect()
        reach("W6")

    def _pulled(self, version: int) -> Snapshot | None:
        """A published version, none if the server no longer keeps it."""
        if self._snapshot is not None and self._snapshot.version == version:
            return self._snapshot
        while True:
            try:
                server = self._connected()
                control.tell(server, "pull", version=version)
                header, arrays = control.hear(server)
                break
            except control.GONE:
                self._disconnect()
        if header["snapshot"] is None:
            return None
        self._snapshot = messages.unpack_snapshot(header["snapshot"], arrays)
        return self._snapshot

    def _connected(self) -> socket.socket:
        """A connection to the server; where it has died, what is written waits for the next one."""
        if self._server is None:
            self._server = self._door.connect()
        return self._server

    def _disconnect(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
