"""The actors' classes are plain: they are tested without Ray."""

import numpy as np

from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.run import Settings, prepare
from streaming_vb.types import Interval, Lease
from workers.encoder_worker import EncoderWorker
from workers.parameter_server import ParameterServer

SOURCE = IntegerSource(records_per_partition=100)


def test_a_push_that_is_sent_twice_is_acknowledged_and_not_added() -> None:
    prepared = prepare(LedgerModel(), SOURCE, Settings())
    server = ParameterServer(prepared.server_state, prepared.rule)
    worker = EncoderWorker(prepared.local_update)
    lease = Lease(Interval(SOURCE.fingerprint, "part-0", 0, 60), 0, 0, 1.0, 1.0)
    report, delta = worker.process(lease, server.read())
    assert report.num_records == 60
    assert delta is not None
    first, snapshot = server.push(delta, publish=True, oldest_base=0)
    second, nothing = server.push(delta, publish=False, oldest_base=0)
    assert (first.status, second.status) == ("merged", "duplicate")
    assert nothing is None
    assert snapshot is not None
    np.testing.assert_array_equal(snapshot.posterior["sum"], LedgerModel().sums(np.arange(60)))
    assert server.state().num_records == 60
