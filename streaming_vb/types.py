"""The small immutable objects that travel between a source, a worker and the parameter server.

Everything here is NumPy and the standard library, so that a server, a ledger or `inspect` never loads torch.

=====================  ==================================================================
on paper               in code
=====================  ==================================================================
C (data of a fit)      `Interval` names it, `Records` holds it
lambda, xi             `NaturalParameters`
A(C, prior)            a `Primitive`; it returns a `Fit`
Delta                  `Delta` = `Fit` + the identity of the lease it answers
N                      `num_records`
=====================  ==================================================================
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streaming_vb.errors import DataError

Array = NDArray[Any]
FitState = Mapping[str, Array]
"""Warm start of a primitive (momentum, curvature, step count), never evidence: name -> array of any shape."""


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """Records [start, stop) of one partition of one source: the unit of lease, delta and ledger.

    It names the data, for ever: it seeds the fit, is the whole de-duplication key, and is the unit of retry.

    Attributes:
        source: fingerprint of the content, not a path.
        partition: name of a partition; pass k over a data set is a partition of its own.
        start, stop: positions in the partition's own order, half open.

    >>> Interval("sha", "pass-0", 0, 1000)
    Interval(source='sha', partition='pass-0', start=0, stop=1000)
    """

    source: str
    partition: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.partition}[{self.start:,}:{self.stop:,}]"

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, part: "Interval") -> bool:
        same = (part.source, part.partition) == (self.source, self.partition)
        return same and self.start <= part.start and part.stop <= self.stop


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """The data of an interval: arrays with one row per record, by field name (x, y, ids, ...)."""

    interval: Interval
    fields: Mapping[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, field: str) -> Array:
        if field not in self.fields:
            names = " ".join(", ".join(self.fields).split())  # a message has one line
            raise DataError(
                f"{self.interval}: the model reads the field {field!r}, the records have {names}. "
                "Give the source that field"
            )
        return self.fields[field]


@dataclass(frozen=True, slots=True, eq=False)
class NaturalParameters:
    """A point of a family's natural-parameter space, or a difference of two: named arrays.

    Only a `Family` adds two of them: a difference may be sparse, and may have negative precision.
    """

    arrays: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def astype(self, dtype: Any) -> "NaturalParameters":
        """The same point in another floating-point format; arrays already in it are shared, not copied."""
        return NaturalParameters({name: array.astype(dtype, copy=False) for name, array in self.arrays.items()})

    def part(self, shard: slice) -> "NaturalParameters":
        """Views of a range of coordinates."""
        return NaturalParameters({name: array[shard] for name, array in self.arrays.items()})

    def scale(self, share: float) -> "NaturalParameters":
        """`share` times the point: the part of the posterior that a worker borrows as its prior."""
        if share == 1.0:
            return self
        return NaturalParameters({name: array * array.dtype.type(share) for name, array in self.arrays.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean [P] and variance [P] (or covariance [P, P]) of a normal distribution over the weights."""

    mean: Array
    variance: Array


@dataclass(frozen=True, slots=True)
class Lease:
    """Permission to fit one interval.

    Attributes:
        interval: what to fit.
        attempt: 0 at first; 1 after a fit that was not finite (it is repeated with smaller steps).
        base_version: version of the snapshot that the fit starts from.
        share: part of that posterior the fit may use as its prior, 1/W(t).
        state_weight: weight of the returned fit state in the server's average.
        generation: of the server when the lease was given; those of an earlier driver are refused.
    """

    interval: Interval
    attempt: int
    base_version: int
    share: float
    state_weight: float
    generation: int = 0


@dataclass(frozen=True, slots=True)
class SetAside:
    """Records that were read and are not in the posterior, and why.

    Attributes:
        interval: where they stand: a whole lease, or single records of one.
        num_records: how many they are.
        reason: what was wrong with them, one line.
    """

    interval: Interval
    num_records: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What a primitive returns.

    Attributes:
        natural: the evidence, posterior - prior in natural parameters, computed directly and not as a difference.
        fit_state: the warm start for the next fit.
        elbo: score of the records at the snapshot, before learning from them; nats per record.
    """

    natural: NaturalParameters
    fit_state: FitState
    elbo: float


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """A `Fit` that says what it came from: the message from a worker to the parameter server.

    Attributes:
        num_records: records learned; those in `bad_records` are not among them.
        bad_records: records of the interval that could not be scored, one or more in each entry.
    """

    run_id: str
    lease: Lease
    fit: Fit
    num_records: int
    bad_records: tuple[SetAside, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server's answer to a push.

    Attributes:
        status: "merged", "set-aside", "duplicate" (acknowledged and not added) or "rejected" (nothing was changed).
        version: the server's version after the push.
        num_new: records counted by the push.
        num_records: records counted after the push.
        staleness: versions between the fit's snapshot and the merge.
        staleness_sd: ||S^(1/2) (m_now - m_base)||, the same distance in posterior standard deviations.
        step_kl: KL(posterior after || before), nats; NaN where it was not asked for.
        reason: why a push was rejected, else "".
        is_stale: it was rejected for its staleness alone; the same interval is fitted again from a newer version.
    """

    status: str
    version: int
    num_new: int
    num_records: int
    staleness: int
    staleness_sd: float
    step_kl: float
    reason: str = ""
    is_stale: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One published version: what a worker needs to fit the next interval. Shared by reference, never written again."""

    version: int
    num_records: int
    posterior: NaturalParameters
    fit_state: FitState


class Family(Protocol):
    """An exponential family q and its algebra. Natural parameters are float64 NumPy arrays on the server.

    `wire_dtype` is the format in which they travel, both ways.
    """

    @property
    def name(self) -> str: ...
    @property
    def wire_dtype(self) -> Any: ...
    def shards(self, natural: NaturalParameters) -> Iterator[slice]:
        """Ranges of coordinates that can be merged each on its own; figures of a merge are sums over them."""

    def add(
        self, natural: NaturalParameters, delta: NaturalParameters, out: NaturalParameters | None = None
    ) -> NaturalParameters:
        """natural + delta, written to `out` where it is given; neither argument is changed."""

    def kl(self, a: NaturalParameters, b: NaturalParameters) -> float:
        """KL(a || b) in nats."""

    def sample(self, natural: NaturalParameters, generator: np.random.Generator) -> Array:
        """One draw of the weights [P]."""

    def log_normalizer(self, natural: NaturalParameters) -> float:
        """log Z, nats."""

    def is_normalizable(self, natural: NaturalParameters) -> bool:
        """Whether the point is a distribution: everything finite, precision positive."""

    def mean(self, natural: NaturalParameters) -> Array:
        """Expected weights [P]."""

    def distance_sd(self, natural: NaturalParameters, mean: Array) -> float:
        """||S^(1/2) (E[w] - mean)||: how far `mean` [P] lies away, in standard deviations."""

    def movement(
        self,
        before: NaturalParameters,
        after: NaturalParameters,
        prior: NaturalParameters,
        factors: tuple[float, float],
        mean: Array | None,
    ) -> tuple[float, float]:
        """KL(after || before) in nats and the squared distance of `mean` from before (0 without one).

        Both are of the posteriors whose evidence is scaled by `factors` (before, after) around its mean.
        """


class Primitive(Protocol):
    """A(C, prior): fits a local posterior to the records of one interval. No hidden state."""

    def describe(self) -> Mapping[str, object]:
        """Settings that determine a fit, for files; `primitive` is its name."""

    def initial_state(self) -> FitState:
        """The fit state of a run that has seen nothing."""

    def __call__(
        self,
        prior: NaturalParameters,
        served: NaturalParameters,
        fit_state: FitState,
        records: Records,
        seed: int,
    ) -> Fit:
        """Evidence of the records.

        Args:
            prior: share x raw posterior of the snapshot.
            served: the posterior as it is sampled; noise during the fit is drawn from it.
            fit_state: the warm start of the snapshot.
            records: the interval's data.
            seed: all randomness of the fit is a function of it.
        """

    def cautious(self) -> "Primitive":
        """The same primitive with smaller steps, for the second attempt at an interval."""

    def after(self, num_records: int) -> "Primitive":
        """The primitive once `num_records` are counted: itself, unless something in it is annealed."""


class Model(Protocol):
    """What has a posterior over its weights."""

    @property
    def family(self) -> Family: ...
    def prior(self, seed: int) -> NaturalParameters:
        """Natural parameters of p(w) in float64; the same draw for every worker of a run."""

    def validate(self, records: Records) -> None:
        """Raise DataError, naming record and column, if the records cannot be scored."""

    def describe(self) -> Mapping[str, object]:
        """Settings that determine the model, for files: numbers, text and lists only."""


class Source(Protocol):
    """Where intervals of records come from: a small immutable description that travels to the workers."""

    @property
    def fingerprint(self) -> str:
        """Identity of the content."""

    def intervals(self, cursor: Mapping[str, int], max_records: int) -> Iterator[Interval]:
        """Consecutive intervals that tile each partition from its cursor (0 where absent) on."""

    def read(self, interval: Interval) -> Records:
        """The records of an interval: the same every time, wherever it is called."""

    def newest(self) -> Mapping[str, int]:
        """End of each partition known now."""

    def close(self) -> None:
        """Release handles."""
