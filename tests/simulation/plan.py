"""What a history is about: the run, the records that misbehave, and how much goes wrong. All of it from one seed."""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from simulation.traced_model import Traced, TracedModel
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming.forgetting import Nothing
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.prepared import Prepared
from streaming_vb.streaming.screening import Screening
from streaming_vb.streaming.settings import Settings

RUN_DIR = Path("/run")
NUM_ORDERED = 16
"""Tasks of ordered mode."""


@dataclass(frozen=True)
class Task:
    """What is fitted: equal tasks have equal posteriors in ordered mode, whatever happens.

    Attributes:
        mode: "async" or "ordered".
        partitions, records: of the source; records in each partition.
        size: records per interval.
        killers: ids whose fit kills the worker, every time.
        nan_once, nan_always: ids whose fit is NaN.
        bad: ids of records that cannot be scored.
        ramp, round_size: of the scheduler.
        max_staleness: versions.
    """

    mode: str
    partitions: int
    records: int
    size: int
    killers: frozenset[int]
    nan_once: frozenset[int]
    nan_always: frozenset[int]
    bad: frozenset[int]
    ramp: int
    round_size: int
    max_staleness: int

    def prepared(self) -> Prepared:
        """The run, as every engine takes it."""
        model = TracedModel(self.bad)
        prior = model.prior(0)
        primitive = Traced(model, self.nan_once, self.nan_always)
        state = ServerState("run", prior, prior, primitive.initial_state())
        settings = Settings(
            mode=self.mode,
            batch_size=self.size,
            local_steps=1,
            ramp=self.ramp,
            round_size=self.round_size,
            bad_records="set-aside",
        )
        source = IntegerSource(self.records, self.partitions)
        local_update = LocalUpdate(
            "run", model, primitive, source, prior, Nothing(), seed=0, sets_bad_records_aside=True
        )
        rule = MergeRule(model.family, Nothing(), measure=False)
        screening = Screening(max_staleness=self.max_staleness)
        return Prepared(local_update, state, rule, screening, settings, {"seed": 0}, RUN_DIR)


@dataclass(frozen=True)
class Plan:
    """A task, and what happens to it.

    Attributes:
        seed: of every choice while it runs.
        network, processes, disk: faults of each kind that may happen; after that nothing goes wrong any more.
        network_rate, process_rate, disk_rate: how often, per message, event and operation.
        workers: most workers of a driver.
        segment_bytes: of the journal.
        unit: bytes that the disk writes whole.
    """

    seed: int
    task: Task
    network: int
    processes: int
    disk: int
    network_rate: float
    process_rate: float
    disk_rate: float
    workers: int
    segment_bytes: int
    unit: int

    def without_faults(self) -> "Plan":
        """The same task on a good day."""
        return replace(self, seed=0, network=0, processes=0, disk=0, workers=1)


def draw(seed: int) -> Plan:
    """The plan of a history."""
    random = Random(f"history {seed}")
    mode = "async" if random.random() < 0.6 else "ordered"
    task = _ordered_task(random) if mode == "ordered" else _task(mode, random)
    calm = random.random() < 0.05
    return Plan(
        seed=seed,
        task=task,
        network=0 if calm else random.choice((0, 5, 20, 40)),
        processes=0 if calm else random.choice((0, 2, 4, 8)),
        disk=0 if calm else random.choice((0, 1, 3, 6, 10)),
        network_rate=random.choice((0.02, 0.1, 0.3)),
        process_rate=random.choice((0.005, 0.02, 0.05)),
        disk_rate=random.choice((0.01, 0.03, 0.1)),
        workers=random.randint(1, 4),
        segment_bytes=random.choice((1_500, 3_000, 6_000, 20_000)),
        unit=random.choice((64, 512)),
    )


def takeover(seed: int) -> Plan:
    """A plan in which servers sleep, are taken over, and wake; the disk and the network are good."""
    return replace(draw(seed), network=0, disk=0, processes=16, process_rate=0.1, segment_bytes=1_500)


def _ordered_task(random: Random) -> Task:
    """One of a few, so that the posterior of the good day is computed once for each."""
    return ordered_task(random.randrange(NUM_ORDERED))


def ordered_task(number: int) -> Task:
    """One of `NUM_ORDERED`."""
    return _task("ordered", Random(f"ordered task {number}"))


def _task(mode: str, random: Random) -> Task:
    partitions, intervals, size = random.randint(1, 3), random.randint(20, 36), random.randint(1, 4)
    records = max(intervals * size // partitions, 2)
    ids = range(records * partitions)

    def some(probability: float) -> frozenset[int]:
        return frozenset(random.sample(ids, random.randint(1, 2))) if random.random() < probability else frozenset()

    return Task(
        mode=mode,
        partitions=partitions,
        records=records,
        size=size,
        killers=some(0.25),
        nan_once=some(0.25),
        nan_always=some(0.25),
        bad=some(0.25),
        ramp=random.choice((0, 0, 10)),
        round_size=random.randint(2, 6),
        max_staleness=random.choice((2, 4, 1_000)) if mode == "async" else 1_000,
    )
