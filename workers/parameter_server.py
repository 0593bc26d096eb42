"""The parameter server as an actor: a plain class around `streaming_vb.streaming.server.Server`.

It is wrapped with `ray.remote` where it is created, runs one call at a time, and loads no torch. It hands out no object
of its own: what it returns belongs to the driver, and outlives it. Every call may be made again.
"""

import errno
import time
from collections.abc import Callable

from streaming_vb.errors import RunInUse
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.server_setup import ServerSetup
from streaming_vb.streaming.transport import Position
from streaming_vb.types import Delta, Interval, Receipt, Snapshot

LOCK_SECONDS = 15.0
"""How long a run directory may be locked: Ray takes some seconds to end the server of a driver that was killed."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PAUSE = 0.5
"""Seconds before a call to a server whose disk is full is answered: the driver makes it again."""


class ParameterServer:
    """Counts pushes in; every answer is durable before it is given, and is (receipt, snapshot or none).

    Args:
        setup: the run.
        since: leases of this generation and later ones are accepted; none means those of this server alone.
        lock_seconds: how long another process may hold the run directory.
    """

    def __init__(self, setup: ServerSetup, since: int | None = None, lock_seconds: float = LOCK_SECONDS) -> None:
        self._setup, self._since, self._lock_seconds = setup, since, lock_seconds
        self._opened: Server | None = None
        self._is_closed = False

    def open(self) -> tuple[Position, Snapshot]:
        """Open the run; where it stands, and its current version.

        Raises:
            StreamingVBError: the run directory cannot be used.
        """
        deadline = time.monotonic() + self._lock_seconds
        while self._opened is None:
            try:
                self._opened = self._setup.open(self._since)
            except RunInUse:
                if time.monotonic() > deadline:
                    raise
        position = self._opened.position()
        snapshot = self._opened.snapshot(position.version)
        assert snapshot is not None
        return position, snapshot

    def push(self, delta: Delta, publish: bool, oldest_base: int) -> tuple[Receipt | None, Snapshot | None]:
        """Merge a delta. No receipt means that the disk is full."""
        return self._durable(lambda: self._server.push(delta, publish=publish, oldest_base=oldest_base))

    def set_aside(
        self, interval: Interval, num_records: int, reason: str, publish: bool
    ) -> tuple[Receipt | None, Snapshot | None]:
        """Record that an interval was read but not learned. No receipt means that the disk is full."""
        return self._durable(lambda: self._server.set_aside(interval, num_records, reason, publish=publish))

    def snapshot(self, version: int) -> Snapshot | None:
        """A published version, none if it is no longer kept."""
        return self._server.snapshot(version)

    def state(self) -> ServerState:
        """The state published last."""
        return self._server.published()

    def close(self) -> ServerState:
        """Save the state published last, and give it."""
        if not self._is_closed:
            self._is_closed = True
            self._server.close()
        return self._server.published()

    @property
    def _server(self) -> Server:
        assert self._opened is not None
        return self._opened

    def _durable(self, change: Callable[[], Receipt]) -> tuple[Receipt | None, Snapshot | None]:
        try:
            receipt = change()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            time.sleep(_PAUSE)
            return None, None
        self._server.commit()
        return receipt, self._server.snapshot(receipt.version)
