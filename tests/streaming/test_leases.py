"""Deadlines by one monotonic clock, which grow with what fits take."""

from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.streaming.leases import FACTOR, Leases


def test_a_lease_ends_after_the_least_duration_and_not_before() -> None:
    leases = Leases(least=60.0)
    leases.grant(0, now=0.0)
    leases.grant(1, now=30.0)
    assert leases.next_deadline() == 60.0
    assert leases.expired(now=59.9) == []
    assert leases.expired(now=60.0) == [0]
    assert leases.expired(now=90.0) == [0, 1]


def test_slow_fits_make_leases_longer() -> None:
    leases = Leases(least=60.0)
    leases.grant(0, now=0.0)
    assert leases.end(0, now=20.0) == 20.0
    leases.grant(0, now=20.0)
    assert leases.next_deadline() == 20.0 + FACTOR * 20.0


def test_a_lease_that_was_revoked_says_nothing_about_how_long_fits_take() -> None:
    leases = Leases(least=60.0)
    leases.grant(0, now=0.0)
    leases.revoke(0)
    leases.grant(1, now=1_000.0)
    assert (leases.expired(now=1_059.0), leases.next_deadline()) == ([], 1_060.0)


def test_a_worker_without_a_lease_took_no_time() -> None:
    assert Leases().end(7, now=5.0) == 0.0
    assert Leases().next_deadline() is None


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), max_size=20), st.floats(0, 1_000))
def test_nobody_is_late_before_the_next_deadline(grants: list[tuple[int, float]], later: float) -> None:
    leases = Leases(least=50.0)
    for worker, now in grants:
        leases.grant(worker, now)
    deadline = leases.next_deadline()
    if deadline is not None:
        now = min(later, deadline - 1e-6)
        assert leases.expired(now) == []
        assert leases.expired(deadline + 1e-6) != []
