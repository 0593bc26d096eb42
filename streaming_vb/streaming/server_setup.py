"""What a server is opened from, wherever it runs: it holds neither the model nor the data, so a process that opens one
loads no torch, and a message that carries it is small."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.screening import Screening
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.store import Store


@dataclass(frozen=True, slots=True, eq=False)
class ServerSetup:
    """The server's part of a prepared run.

    Attributes:
        state: where a new run starts; a run directory that holds a posterior goes on from that.
        rule, screening: how deltas are merged, and which are refused.
        settings: with what was automatic resolved.
        identity: what must be equal for a run directory to be resumed.
        run_dir: where the run is kept; none keeps it in memory.
    """

    state: ServerState
    rule: MergeRule
    screening: Screening
    settings: Settings
    identity: Mapping[str, Any]
    run_dir: Path | None

    def open(self, since: int | None = None) -> Server:
        """The parameter server, recovered from the run directory where there is one.

        Args:
            since: leases of this generation and later ones are accepted; none means those given from now on.

        Raises:
            RunInUse: another process writes the run directory.
            IntegrityError: what is there is corrupt.
        """
        if self.run_dir is None:
            return Server(self.state, self.rule, screening=self.screening)
        store = Store(
            self.run_dir,
            self.identity,
            rule=replace(self.rule, measure=False),
            keep_fit_state=self.settings.mode == "ordered",
            keep_deltas=self.settings.keep_deltas,
        )
        recovered = store.open(self.state)
        return Server(
            recovered.state,
            self.rule,
            screening=self.screening,
            store=store,
            published=recovered.published,
            generation=recovered.generation,
            since=since,
            receipts=recovered.receipts,
            notes=tuple(recovered.notes),
        )
