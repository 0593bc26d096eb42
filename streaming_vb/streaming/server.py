"""The parameter server without its process: a `ServerState`, the rule that changes it, and the snapshots it has
published.

Synchronous and single-threaded: a reader sees a version before or after a merge, never between.
"""

from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.types import Array, Delta, Interval, Receipt, Snapshot


class Server:
    """Mutators return a receipt, not the state.

    Args:
        state: where the run stands.
        rule: how a delta is merged.
    """

    def __init__(self, state: ServerState, rule: MergeRule) -> None:
        self._state = state
        self._published = state
        self._rule = rule
        self._base_means: dict[int, Array] = {}

    def push(self, delta: Delta, oldest_base: int) -> Receipt:
        """Merge a delta; push it again and it is acknowledged and not added.

        Args:
            delta: what a worker sends.
            oldest_base: oldest version that a fit in flight started from; means of older ones are dropped.
        """
        base_version = delta.lease.base_version
        base_mean = None if base_version == self._state.version else self._base_means.get(base_version)
        self._state, receipt = self._rule(self._state, delta, base_mean)
        self._base_means = {v: mean for v, mean in self._base_means.items() if v >= oldest_base}
        return receipt

    def set_aside(self, interval: Interval, num_records: int, reason: str) -> Receipt:
        """Record in the ledger that an interval was read but not learned; the posterior does not change."""
        state = self._state
        if state.ledger.covers(interval):
            return Receipt("duplicate", state.version, state.num_records, 0, 0.0, 0.0)
        ledger = state.ledger.put_aside(interval, num_records, reason)
        self._state = ServerState(
            state.run_id, state.prior, state.posterior, state.fit_state, state.version, state.num_records, ledger
        )
        return Receipt("set-aside", state.version, state.num_records, 0, 0.0, 0.0, reason)

    def publish(self) -> Snapshot:
        """The current version, in the wire format: the base of the next leases, and what `published` gives."""
        state = self._published = self._state
        family = self._rule.family
        if self._rule.measure:
            self._base_means[state.version] = family.mean(state.posterior)
        return Snapshot(state.version, state.num_records, state.posterior.astype(family.wire_dtype), state.fit_state)

    def published(self) -> ServerState:
        """State at the last `publish`: what is saved, so that an ordered run resumes at the start of a round."""
        return self._published
