import numpy as np
import pytest
from checks import delta_of, fingerprint

from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.server import Server
from streaming_vb.types import Delta, Interval, Moments

FAMILY = MeanFieldNormal()
PRIOR = FAMILY.natural(Moments(np.zeros(2), np.ones(2)))


def new_server(measure: bool = True) -> Server:
    return Server(ServerState("run", PRIOR, PRIOR, {}), MergeRule(FAMILY, Nothing(), measure))


def evidence(number: int, base_version: int = 0) -> Delta:
    arrays = {"precision_mean": np.array([1.0, 2.0]) * (number + 1), "precision": np.ones(2)}
    return delta_of(arrays, 10 * number, 10 * number + 10, base_version=base_version)


def test_what_is_published_does_not_change_with_a_merge() -> None:
    server = new_server()
    snapshot = server.publish()
    before = fingerprint(snapshot.posterior)
    server.push(evidence(0), oldest_base=0)
    assert fingerprint(snapshot.posterior) == before
    assert server.published().version == snapshot.version == 0
    assert server.publish().version == server.published().version == 1


def test_a_snapshot_is_in_the_wire_format() -> None:
    assert new_server().publish().posterior["precision"].dtype == FAMILY.wire_dtype


def test_a_push_may_be_repeated() -> None:
    server = new_server()
    server.publish()
    server.push(evidence(0), oldest_base=0)
    before = server.publish()
    again = server.push(evidence(0), oldest_base=0)
    assert (again.status, again.version) == ("merged", 1)  # the first answer, once more
    assert fingerprint(server.publish().posterior) == fingerprint(before.posterior)


def test_staleness_is_the_distance_to_the_base_in_standard_deviations() -> None:
    server = new_server()
    server.publish()
    server.push(evidence(0), oldest_base=0)
    server.publish()
    receipt = server.push(evidence(1, base_version=0), oldest_base=0)
    now = server.published().posterior
    assert receipt.staleness == 1
    assert receipt.staleness_sd == pytest.approx(FAMILY.distance_sd(now, np.zeros(2)))
    assert receipt.staleness_sd > 0


def test_means_older_than_every_fit_in_flight_are_dropped() -> None:
    server = new_server()
    for number in range(20):
        server.publish()
        server.push(evidence(number, base_version=number), oldest_base=number)
    assert len(server._base_means) <= 2


def test_setting_an_interval_aside_leaves_the_posterior_alone() -> None:
    server = new_server()
    before = server.publish()
    interval = Interval("example", "pass-0", 0, 10)
    receipt = server.set_aside(interval, 10, "not finite")
    after = server.publish()
    assert (receipt.status, receipt.reason) == ("set-aside", "not finite")
    assert (after.version, after.num_records) == (before.version, before.num_records)
    assert fingerprint(after.posterior) == fingerprint(before.posterior)
    assert [entry.reason for entry in server.published().ledger.set_aside] == ["not finite"]


def test_an_interval_set_aside_is_not_merged_later() -> None:
    server = new_server()
    server.publish()
    server.set_aside(Interval("example", "pass-0", 0, 10), 10, "not finite")
    assert server.push(evidence(0), oldest_base=0).status == "set-aside"
    assert server.publish().version == 0


def test_an_interval_that_was_merged_is_not_set_aside_later() -> None:
    server = new_server()
    server.publish()
    server.push(evidence(0), oldest_base=0)
    server.set_aside(evidence(0).lease.interval, 10, "three workers died")
    server.publish()
    assert server.published().ledger.num_covered() == 10
    assert server.published().ledger.set_aside == ()
