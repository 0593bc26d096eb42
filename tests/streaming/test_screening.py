"""What the server refuses before it touches state, and that nothing has changed then."""

from dataclasses import replace

import numpy as np
import pytest
from checks import delta_of, fingerprint

from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.screening import Screening
from streaming_vb.streaming.server import Server
from streaming_vb.types import Delta, Interval, Moments, NaturalParameters, SetAside

FAMILY = MeanFieldNormal()
PRIOR = FAMILY.natural(Moments(np.zeros(2), np.ones(2)))
GOOD = delta_of({"precision_mean": np.array([1.0, 2.0]), "precision": np.ones(2)})


def server(screening: Screening = Screening(), generation: int = 0, since: int | None = None) -> Server:
    state = ServerState("run", PRIOR, PRIOR, {})
    rule = MergeRule(FAMILY, Nothing())
    return Server(state, rule, screening=screening, generation=generation, since=since)


def leased_in(generation: int) -> Delta:
    return replace(GOOD, lease=replace(GOOD.lease, generation=generation))


def with_evidence(**arrays: np.ndarray) -> Delta:
    natural = NaturalParameters({**GOOD.fit.natural.arrays, **arrays})
    return replace(GOOD, fit=replace(GOOD.fit, natural=natural))


def bad_record(start: int, stop: int, num_records: int = 1) -> tuple[SetAside, ...]:
    return (SetAside(Interval("example", "pass-0", start, stop), num_records, "nan"),)


REFUSED = {
    "another run": (replace(GOOD, run_id="elsewhere"), "elsewhere"),
    "a value that is not finite": (with_evidence(precision=np.array([1.0, np.nan])), "precision is not finite"),
    "negative precision": (with_evidence(precision=np.array([1.0, -5.0])), "non-positive"),
    "another shape": (with_evidence(precision=np.ones(3)), "expected"),
    "another kind of number": (with_evidence(precision=np.ones(2, np.int64)), "expected"),
    "a missing array": (replace(GOOD, fit=replace(GOOD.fit, natural=NaturalParameters({}))), "expected"),
    "no records": (replace(GOOD, num_records=0), "0 records learned"),
    "more records than positions": (replace(GOOD, num_records=11), "11 records learned"),
    "more records and bad ones than positions": (replace(GOOD, bad_records=bad_record(3, 4)), "1 bad of 10"),
    "bad records of another interval": (
        replace(GOOD, num_records=9, bad_records=bad_record(30, 31)),
        "bad records outside",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_delta_is_refused_with_its_reason_and_nothing_has_changed(name: str) -> None:
    delta, reason = REFUSED[name]
    parameters = server()
    before = fingerprint(parameters.publish().posterior)
    receipt = parameters.push(delta, oldest_base=0, publish=True)
    assert receipt.status == "rejected"
    assert reason in receipt.reason
    assert not receipt.is_stale
    assert (receipt.version, receipt.num_new) == (0, 0)
    assert fingerprint(parameters.publish().posterior) == before
    assert parameters.push(GOOD, oldest_base=0).status == "merged"


def test_leases_of_an_earlier_driver_are_refused_and_those_of_an_earlier_server_are_not() -> None:
    fifth = server(generation=5)
    assert "earlier driver" in fifth.push(leased_in(4), oldest_base=0).reason
    assert fifth.push(leased_in(5), oldest_base=0).status == "merged"
    restarted = server(generation=5, since=3)
    assert restarted.push(leased_in(2), oldest_base=0).status == "rejected"
    assert restarted.push(leased_in(3), oldest_base=0).status == "merged"
    assert server(generation=5, since=3).push(leased_in(6), oldest_base=0).status == "rejected"


def test_a_fit_that_is_too_old_is_refused_as_stale_and_its_interval_is_free() -> None:
    parameters = server(Screening(max_staleness=2))
    for number in range(3):
        delta = delta_of(GOOD.fit.natural.arrays, 10 * number, 10 * number + 10, base_version=number)
        assert parameters.push(delta, oldest_base=0, publish=True).status == "merged"
    late = delta_of(GOOD.fit.natural.arrays, 90, 100, base_version=0)
    receipt = parameters.push(late, oldest_base=0)
    assert (receipt.status, receipt.is_stale, receipt.staleness) == ("rejected", True, 3)
    again = replace(late, lease=replace(late.lease, base_version=3))
    assert parameters.push(again, oldest_base=0).status == "merged"


def test_a_version_of_the_future_is_refused() -> None:
    assert server().push(delta_of(GOOD.fit.natural.arrays, base_version=7), oldest_base=0).status == "rejected"


def test_a_step_that_teaches_too_much_is_refused() -> None:
    far = with_evidence(precision_mean=np.array([1e4, 0.0]))
    assert server(Screening(max_step_kl=1e7)).push(far, oldest_base=0).status == "merged"
    receipt = server(Screening(max_step_kl=1e6)).push(far, oldest_base=0)
    assert receipt.status == "rejected"
    assert "nats per record" in receipt.reason
    assert (receipt.version, receipt.num_records) == (0, 0)
