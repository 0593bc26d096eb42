"""Streamed against batch, where the answer is known: conjugate linear regression over random schedules.

The posterior of a linear-Gaussian model is known in closed form from all records at once. Here the same records go
through the library's worker (`LocalUpdate`) and server (`Server`, `MergeRule`), under random schedules: intervals of
random sizes, in random order, fitted by a random number of workers from versions that grow arbitrarily old, finished in
random order, each borrowing a random share of the posterior, and a third of the deltas pushed again, at once or later.
The posterior must not depend on any of it.

Read `results.maximum_relative_error` against the bar: over all schedules, the largest difference from batch in an
array, relative to the largest entry of that array, for precision, precision times mean, mean and covariance. `records`
and `duplicates` say that every record was counted, and counted once.

    python benchmarks/exactness.py
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from report import at_most, progress, write

from streaming_vb import ArraySource, LinearRegression
from streaming_vb.inference import conjugate
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.server import Server
from streaming_vb.types import Array, Delta, Interval, Lease, NaturalParameters, Snapshot

BAR = 1e-10
NUM_RECORDS = 3000
NUM_COLUMNS = 12
MODEL = LinearRegression(NUM_COLUMNS, noise_variance=0.25, prior_variance=2.0)


class Outcome(NamedTuple):
    """What one schedule came to."""

    error: float
    records: int
    duplicates: int
    oldest: int


def main() -> None:
    """Measure and print."""
    arguments = parse()
    source = data(np.random.default_rng(arguments.seed))
    expected = batch(source)
    outcomes = []
    for number in range(arguments.schedules):
        outcomes.append(schedule(source, expected, np.random.default_rng((arguments.seed, number))))
        if (number + 1) % 50 == 0:
            progress(f"{number + 1} of {arguments.schedules} schedules, error {max(o.error for o in outcomes):.1e}")
    error = max(outcome.error for outcome in outcomes)
    results = {
        "maximum_relative_error": error,
        "median_relative_error": float(np.median([outcome.error for outcome in outcomes])),
        "records": sorted({outcome.records for outcome in outcomes}),
        "duplicates": sum(outcome.duplicates for outcome in outcomes),
        "oldest_base": max(outcome.oldest for outcome in outcomes),
    }
    settings = {
        "schedules": arguments.schedules,
        "seed": arguments.seed,
        "records": NUM_RECORDS,
        "columns": NUM_COLUMNS,
    }
    write(settings, results, [at_most("results.maximum_relative_error", error, BAR)])


def data(generator: np.random.Generator) -> ArraySource:
    """Correlated columns of different scale, and a noisy linear target."""
    x = generator.standard_normal((NUM_RECORDS, NUM_COLUMNS)) @ generator.standard_normal((NUM_COLUMNS, NUM_COLUMNS))
    y = x @ generator.standard_normal(NUM_COLUMNS) + 0.5 * generator.standard_normal(NUM_RECORDS)
    return ArraySource({"x": x, "y": y})


def batch(source: ArraySource) -> dict[str, Array]:
    """The posterior given all records at once, by the textbook and without the library's model."""
    x, y = source.fields["x"], source.fields["y"]
    precision = x.T @ x / MODEL.noise_variance + np.eye(NUM_COLUMNS) / MODEL.prior_variance
    precision_mean = x.T @ y / MODEL.noise_variance
    return {
        "precision": precision,
        "precision_mean": precision_mean,
        "mean": np.linalg.solve(precision, precision_mean),
        "covariance": np.linalg.inv(precision),
    }


def schedule(source: ArraySource, expected: dict[str, Array], generator: np.random.Generator) -> Outcome:
    """Stream the source under one random schedule and compare."""
    prior = MODEL.prior(0)
    forgetting = Nothing()
    local_update = LocalUpdate("benchmark", MODEL, conjugate.build(MODEL), source, prior, forgetting, seed=0)
    server = Server(ServerState("benchmark", prior, prior, {}), MergeRule(MODEL.family, forgetting))
    intervals = list(cut(source, generator))
    generator.shuffle(intervals)
    workers = int(generator.integers(1, 17))
    snapshots: list[Snapshot] = [server.publish()]
    in_flight: list[Delta] = []
    sent: list[Delta] = []
    duplicates = oldest = 0
    while intervals or in_flight:
        while intervals and len(in_flight) < workers:
            base = snapshots[generator.integers(len(snapshots))]
            lease = Lease(intervals.pop(), 0, base.version, generator.uniform(0.05, 1.0), 1.0)
            in_flight.append(local_update(lease, base))
        delta = in_flight.pop(generator.integers(len(in_flight)))
        receipt = server.push(delta, oldest_base=0)
        assert receipt.status == "merged", receipt
        oldest = max(oldest, receipt.staleness)
        snapshots.append(server.publish())
        sent.append(delta)
        if generator.random() < 1 / 3:
            again = server.push(sent[generator.integers(len(sent))], oldest_base=0)
            assert again.status == "duplicate", again
            duplicates += 1
    state = server.published()
    return Outcome(relative_error(state.posterior, expected), state.num_records, duplicates, oldest)


def cut(source: ArraySource, generator: np.random.Generator) -> Iterator[Interval]:
    """Intervals of random sizes that tile the source."""
    (whole,) = source.intervals({}, max_records=NUM_RECORDS)
    num_cuts = int(generator.integers(0, 80))
    inside = np.sort(generator.choice(np.arange(1, NUM_RECORDS), num_cuts, replace=False)).tolist()
    edges = [0, *inside, NUM_RECORDS]
    for start, stop in itertools.pairwise(edges):
        yield Interval(whole.source, whole.partition, start, stop)


def relative_error(posterior: NaturalParameters, expected: dict[str, Array]) -> float:
    """Largest difference in an array, relative to the largest entry of that array; over the four arrays."""
    moments = MODEL.family.moments(posterior)
    streamed = {**posterior.arrays, "mean": moments.mean, "covariance": moments.variance}
    return max(float(np.abs(streamed[name] - array).max() / np.abs(array).max()) for name, array in expected.items())


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
