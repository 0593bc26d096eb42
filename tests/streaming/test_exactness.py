"""Streamed linear regression equals batch linear regression, whatever the schedule."""

import itertools

import numpy as np
from checks import relative_error
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.inference import conjugate
from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.run import run
from streaming_vb.streaming.server import Server
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Array, Delta, Interval, Lease, Moments, Receipt, Records, Snapshot

NOISE, PRIOR = 0.7, 3.0
TOLERANCE = 1e-10


def table(num_records: int, columns: int, seed: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    x = generator.normal(0.5, 1.0, (num_records, columns)) * generator.uniform(0.3, 3.0, columns)
    return x, x @ generator.normal(size=columns) + generator.normal(0.0, np.sqrt(NOISE), num_records)


def batch(x: Array, y: Array) -> Moments:
    """Bishop (2006), equations 3.50 and 3.51."""
    covariance = np.linalg.inv(np.eye(x.shape[1]) / PRIOR + x.T @ x / NOISE)
    return Moments(covariance @ (x.T @ y) / NOISE, covariance)


def assert_is_batch(model: LinearRegression, state: ServerState, x: Array, y: Array) -> None:
    streamed, expected = model.family.moments(state.posterior), batch(x, y)
    assert relative_error(streamed.mean, expected.mean) <= TOLERANCE
    assert relative_error(streamed.variance, expected.variance) <= TOLERANCE


def model_of(x: Array) -> LinearRegression:
    return LinearRegression(x.shape[1], noise_variance=NOISE, prior_variance=PRIOR)


@given(
    st.integers(1, 60),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 15),
    st.sampled_from(["async", "ordered"]),
    st.sampled_from(["auto", "1"]),
    st.sampled_from([0, 20]),
)
def test_a_run_with_any_number_of_workers_is_exact(
    num_records: int, columns: int, workers: int, batch_size: int, mode: str, share: str, ramp: int
) -> None:
    x, y = table(num_records, columns, seed=num_records)
    settings = Settings(mode=mode, share=share, ramp=ramp, batch_size=batch_size, local_steps=1, round_size=3)
    *_, last = run(model_of(x), ArraySource({"x": x, "y": y}), settings, workers=workers)
    assert_is_batch(model_of(x), last.state(), x, y)
    assert last.records == num_records


@given(st.data())
def test_any_order_any_staleness_and_any_repetition_is_exact(data: st.DataObject) -> None:
    """Deltas of random intervals, fitted from random old snapshots, pushed in random order and some of them often."""
    x, y = table(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4)), seed=len(data.draw(st.text(max_size=3))))
    model = model_of(x)
    prior = model.prior(0)
    server = Server(ServerState("run", prior, prior, {}), MergeRule(model.family, Nothing()))
    primitive = conjugate.build(model)

    cuts = sorted(data.draw(st.sets(st.integers(0, len(x)), max_size=8)) | {0, len(x)})
    intervals = [Interval("table", "pass-0", start, stop) for start, stop in itertools.pairwise(cuts)]
    snapshots: list[Snapshot] = [server.publish()]
    sent: list[tuple[Delta, Receipt]] = []
    for interval in data.draw(st.permutations(intervals)):
        base = data.draw(st.sampled_from(snapshots))
        share = data.draw(st.sampled_from([1.0, 0.5, 1 / 3, 0.125]))
        fields = {"x": x[interval.start : interval.stop], "y": y[interval.start : interval.stop]}
        records = Records(interval, fields)
        fit = primitive(base.posterior.scale(share), base.posterior, base.fit_state, records, 0)
        delta = Delta("run", Lease(interval, 0, base.version, share, share), fit, len(records))
        sent.append((delta, server.push(delta, oldest_base=0)))
        assert sent[-1][1].status == "merged"
        for again, first in data.draw(st.lists(st.sampled_from(sent), max_size=3)):
            assert server.push(again, oldest_base=0) is first
        if data.draw(st.booleans()):
            snapshots.append(server.publish())
    server.publish()
    assert_is_batch(model, server.published(), x, y)
    assert server.published().num_records == len(x)


def test_a_lost_record_would_show() -> None:
    x, y = table(40, 3, seed=1)
    assert relative_error(batch(x[:-1], y[:-1]).mean, batch(x, y).mean) > 1e5 * TOLERANCE


def test_data_in_float32_is_exact_too() -> None:
    x, y = (array.astype(np.float32) for array in table(500, 3, seed=1))
    settings = Settings(batch_size=10, local_steps=1, ramp=0)
    *_, last = run(model_of(x), ArraySource({"x": x, "y": y}), settings, workers=3)
    assert_is_batch(model_of(x), last.state(), x.astype(np.float64), y.astype(np.float64))
