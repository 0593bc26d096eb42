"""One stream, more and more asynchronous workers: held-out ELBO against records counted, and against time.

Workers are simulated: a seeded virtual clock with real staleness (`streaming/engines.py`). Its unit is one minibatch
fitted by one worker, and it contains the ramp, during which few workers work. Beside them stands synchronous
data-parallel Adam: the gradients of as many workers as there are at most, averaged every step, are one gradient of
their minibatches together; a step lasts as long as the slowest of them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from torch import Tensor

from streaming_vb.layers.layout import Weights
from streaming_vb.models.vae import VAE
from streaming_vb.reproduce import courses
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Outcome, Progress
from streaming_vb.seeding import numpy_generator
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.prepared import prepare, remaining
from streaming_vb.streaming.run import drive, in_process
from streaming_vb.streaming.settings import Settings

SEED = 0
BATCH_SIZE = 100
RATES = (1e-3, 2e-3, 3e-3, 5e-3)
"""Of Adam; the best is drawn."""
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#D55E00")
MEASURED = 1_000
"""Held-out images of the curves; their ends are measured on all."""


class Size(NamedTuple):
    """What `quick` shrinks; `every` is records between two points of a curve."""

    records: int
    hidden: int
    latent: int
    workers: tuple[int, ...]
    local_steps: int
    ramp: int
    every: int


FULL = Size(300_000, 500, 20, (1, 2, 4, 8), 10, 30_000, 10_000)
QUICK = Size(15_000, 100, 8, (1, 4), 2, 1_500, 1_000)


class Moment(NamedTuple):
    """Where a run stands.

    Attributes:
        records: counted so far.
        rounds: time so far, in minibatches fitted by one worker.
        weights: gives the mean weights, until the next moment.
    """

    records: int
    rounds: float
    weights: Callable[[], Weights]


class Track(NamedTuple):
    """A curve: ELBO of the measured images (nats per image) against records and rounds, and that of all at its end."""

    records: list[int]
    rounds: list[float]
    elbo: list[float]
    end: float

    def speed_up(self) -> float:
        """Minibatches counted in the time that one worker takes for one."""
        return self.records[-1] / BATCH_SIZE / self.rounds[-1]


def run(images: Images, quick: bool, progress: Progress) -> Outcome:
    """Follow every number of workers, and Adam at every rate."""
    size = QUICK if quick else FULL
    model = VAE(images.train.shape[1], hidden=(size.hidden,), latent=size.latent)
    x = torch.from_numpy(images.held_out())
    tracks = {}
    for workers in size.workers:
        name = f"{workers} worker{'s' * (workers > 1)}"
        progress(name)
        tracks[name] = follow(model, asynchronous(model, images, size, workers), size, x)
    by_rate = {}
    for rate in RATES:
        progress(f"Adam, rate {rate:g}")
        by_rate[rate] = follow(model, synchronous(model, images, size, rate), size, x)
    best = max(RATES, key=lambda rate: by_rate[rate].end)
    tracks[f"synchronous Adam, batch {max(size.workers) * BATCH_SIZE}"] = by_rate[best]
    settings = {
        **size._asdict(),
        "batch_size": BATCH_SIZE,
        "seed": SEED,
        "adam_rates": RATES,
        "model": model.describe(),
    }
    results = {
        "tracks": {name: track._asdict() | {"speed_up": track.speed_up()} for name, track in tracks.items()},
        "adam_end_by_rate": {f"{rate:g}": track.end for rate, track in by_rate.items()},
    }
    return Outcome("Streaming", caption(size, tracks, best), draw(tracks), settings, results)


def asynchronous(model: VAE, images: Images, size: Size, workers: int) -> Iterator[Moment]:
    """The library's workers with its defaults, merged on arrival."""
    settings = Settings(
        records=size.records, seed=SEED, batch_size=BATCH_SIZE, local_steps=size.local_steps, ramp=size.ramp
    )
    prepared = prepare(model, images.stream(size.records, SEED), settings)
    engine = in_process(prepared, workers)
    for step in drive(prepared.scheduler(workers, engine.position()), engine):
        yield Moment(step.records, engine.usage().elapsed, partial(courses.served_mean, model, step))


def synchronous(model: VAE, images: Images, size: Size, rate: float) -> Iterator[Moment]:
    """Data-parallel Adam: every step waits for the slowest worker, of the same speeds as above."""
    workers = max(size.workers)
    source = images.stream(size.records, SEED)
    intervals = remaining(source, Ledger(), workers * BATCH_SIZE, size.records)
    course = courses.plain(model, images, size.records, SEED, batch_size=workers * BATCH_SIZE, rate=rate)
    clock = numpy_generator(SEED, "synchronous clock")
    records, rounds = 0, 0.0
    for interval, weights in zip(intervals, course, strict=True):
        records += interval.stop - interval.start
        rounds += float(clock.uniform(0.8, 1.2, workers).max())
        yield Moment(records, rounds, weights)


def follow(model: VAE, moments: Iterable[Moment], size: Size, x: Tensor) -> Track:
    """Measure every so many records, and at the end."""
    measured = x[:: max(1, len(x) // MEASURED)]
    track = Track([], [], [], math.nan)
    moment = None
    for moment in moments:
        if moment.records >= size.every * (len(track.records) + 1):
            track.records.append(moment.records)
            track.rounds.append(moment.rounds)
            track.elbo.append(courses.measure(model, moment.weights(), measured).elbo)
    assert moment is not None
    return track._replace(end=courses.measure(model, moment.weights(), x).elbo)


def caption(size: Size, tracks: Mapping[str, Track], rate: float) -> str:
    """What is seen, and what the clock leaves out."""
    ends = "; ".join(f"{name} {track.end:.1f}, speed-up {track.speed_up():.2f}" for name, track in tracks.items())
    rates = ", ".join(f"{tried:g}" for tried in RATES)
    return (
        f"Held-out ELBO of one stream of {size.records:,} records with asynchronous workers (simulated, with real "
        f"staleness; the ramp adds a worker every {size.ramp:,} records), against records and against time, counted in "
        f"minibatches of {BATCH_SIZE} of one worker. Adam's rate is the best of {rates}: {rate:g}. Messages cost "
        f"nothing on this clock, which favours Adam, with one per minibatch where a worker sends one per "
        f"{size.local_steps}; a minibatch of ours counts no more than one of Adam, which favours ours. On all held-out "
        f"images, after the last record: {ends}. One seed."
    )


def draw(tracks: Mapping[str, Track]) -> Figure:
    """Two panels: over records, and over rounds."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, track), colour in zip(tracks.items(), [*COLOURS[: len(tracks) - 1], "black"], strict=True):
        line = "--" if colour == "black" else "-"
        left.plot(track.records, track.elbo, color=colour, linestyle=line, linewidth=1.4, label=name)
        right.plot(track.rounds, track.elbo, color=colour, linestyle=line, linewidth=1.4)
    left.set(xlabel="records counted", ylabel="ELBO (nats per held-out image)")
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.set(xlabel="time (minibatches of one worker)", xscale="log")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(loc="outside upper center", ncols=len(tracks), frameon=False)
    return figure
