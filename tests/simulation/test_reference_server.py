"""The reference counts positions one by one."""

from dataclasses import replace

import numpy as np
import pytest

from simulation.reference_server import Change, ReferenceServer, Violation
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState
from streaming_vb.types import Interval, NaturalParameters


def state_of(*intervals: Interval, per_partition: int) -> ServerState:
    """What the real code computes."""
    ledger = Ledger()
    ids: list[int] = []
    for interval in intervals:
        ledger = ledger.add(interval)
        first = int(interval.partition.removeprefix("part-")) * per_partition
        ids += range(first + interval.start, first + interval.stop)
    sums = LedgerModel().sums(np.array(ids, np.int64))
    natural = NaturalParameters({"sum": sums, "twin": 3 * sums})
    return ServerState("run", natural, natural, {}, len(intervals), len(ids), ledger)


INTERVALS = [Interval("s", "part-1", 0, 3), Interval("s", "part-0", 2, 4)]


def test_it_agrees_with_the_real_sums() -> None:
    reference = ReferenceServer(records_per_partition=10)
    for interval in INTERVALS:
        reference.apply(Change(interval, learned=True))
    assert reference.difference(state_of(*INTERVALS, per_partition=10)) == ""
    assert reference.prefix(1).difference(state_of(INTERVALS[0], per_partition=10)) == ""


def test_it_sees_a_lost_interval_a_torn_group_and_a_wrong_ledger() -> None:
    reference = ReferenceServer(records_per_partition=10)
    for interval in INTERVALS:
        reference.apply(Change(interval, learned=True))
    state = state_of(*INTERVALS, per_partition=10)
    assert "sums" in reference.difference(state_of(INTERVALS[0], per_partition=10))
    torn = NaturalParameters({"sum": state.posterior["sum"], "twin": state.posterior["sum"]})
    assert reference.difference(replace(state, posterior=torn)).startswith("twin")
    assert reference.difference(replace(state, ledger=Ledger())).startswith("ledger")


def test_an_interval_that_comes_twice_is_a_violation() -> None:
    reference = ReferenceServer(records_per_partition=10)
    reference.apply(Change(INTERVALS[0], learned=False))
    with pytest.raises(Violation, match="twice"):
        reference.apply(Change(replace(INTERVALS[0], start=2), learned=True))
