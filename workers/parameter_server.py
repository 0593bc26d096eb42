"""The parameter server as an actor: a plain class around `streaming_vb.streaming.server.Server`.

It is wrapped with `ray.remote` where it is created, runs one call at a time, and loads no torch. It hands out no object
of its own: what it returns belongs to the driver, and outlives it.
"""

from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.server import Server
from streaming_vb.types import Delta, Interval, Receipt, Snapshot


class ParameterServer:
    """Counts pushes in; every answer is (receipt, snapshot or none)."""

    def __init__(self, state: ServerState, rule: MergeRule) -> None:
        self._server = Server(state, rule)

    def push(self, delta: Delta, publish: bool, oldest_base: int) -> tuple[Receipt, Snapshot | None]:
        """Merge a delta. A repeated one is acknowledged and not added, so a caller may send it again."""
        receipt = self._server.push(delta, oldest_base)
        return receipt, self._server.publish() if publish and receipt.status != "rejected" else None

    def set_aside(
        self, interval: Interval, num_records: int, reason: str, publish: bool
    ) -> tuple[Receipt, Snapshot | None]:
        """Record that an interval was read but not learned."""
        receipt = self._server.set_aside(interval, num_records, reason)
        return receipt, self._server.publish() if publish else None

    def read(self) -> Snapshot:
        """Publish the current version."""
        return self._server.publish()

    def state(self) -> ServerState:
        """State at the last published version, to be saved."""
        return self._server.published()
