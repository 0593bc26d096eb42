"""Arithmetic of posteriors. Evidence adds up in natural parameters, so two posteriors with a common ancestor can be
joined, two can be compared, and an interval can be taken out again:

    merge      lambda = lambda_A + lambda_B - lambda_C
    unlearn    lambda = lambda_A - Delta

The first is the sum of SDA-Bayes (Broderick et al. 2013, equation 7), with the ancestor C in the place of the prior.
Both are exact for conjugate models, where evidence does not depend on what was known before it. Elsewhere they are
approximate; a run that forgets no longer holds all of C, or of Delta, and only what it still holds is subtracted. What
cannot be right is refused: adding is silent, so a record counted twice would never show.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from streaming_vb.errors import MergeRefused, MergeRejected
from streaming_vb.streaming.forgetting import Forgetting, Nothing
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import Ancestor, ServerState, average
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.snapshot import posterior_sha256
from streaming_vb.types import Array, Delta, Family, FitState, Interval, Moments, NaturalParameters, SetAside

UNLEARNED = "unlearned"
"""Reason of a ledger entry whose evidence was taken out."""
SCHEDULE = {field.name for field in fields(Settings)} - {"forgetting"} | {"source", "prior_seed"}
"""Settings that may differ between posteriors that are added: what was streamed, in which steps. The priors themselves
are compared."""


class MomentFamily(Family, Protocol):
    """A family with moments."""

    def moments(self, natural: NaturalParameters) -> Moments: ...


class Difference(NamedTuple):
    """How two posteriors differ.

    Attributes:
        kl_a_b, kl_b_a: KL(a || b) and KL(b || a), nats.
        movement: (mean of b - mean of a) / standard deviation of a [P].
    """

    kl_a_b: float
    kl_b_a: float
    movement: Array


def difference(family: MomentFamily, a: NaturalParameters, b: NaturalParameters) -> Difference:
    """How b differs from a, both as they are served.

    >>> from streaming_vb.families.unit_normal import UnitNormal
    >>> a, b = (NaturalParameters({"sum": np.array([x])}) for x in (1.0, 3.0))
    >>> difference(UnitNormal(), a, b)
    Difference(kl_a_b=2.0, kl_b_a=2.0, movement=array([2.]))
    """
    moments = family.moments(a)
    variance = moments.variance if moments.variance.ndim == 1 else np.diag(moments.variance)
    movement = (family.mean(b) - moments.mean) / np.sqrt(variance)
    return Difference(family.kl(a, b), family.kl(b, a), movement)


def identity(state: ServerState) -> Ancestor:
    """What descendants call this posterior."""
    return Ancestor(state.run_id, state.version, posterior_sha256(state.posterior))


def descends(state: ServerState, base: ServerState) -> bool:
    """Whether a posterior is `base`, a later version of its run, or started from it."""
    if state.run_id == base.run_id:
        return state.version > base.version or identity(state) == identity(base)
    return identity(base) in state.lineage


def relation(a: ServerState, b: ServerState) -> str:
    """How two posteriors are related, in words."""
    if identity(a) == identity(b):
        return "A and B are the same posterior"
    if a.run_id == b.run_id:
        return "B is a later version of A" if b.version > a.version else "A is a later version of B"
    if descends(b, a):
        return "B started from A"
    if descends(a, b):
        return "A started from B"
    shared = [ancestor for ancestor in a.lineage if ancestor in b.lineage]
    if shared:
        return f"A and B started from version {shared[-1].version:,} of run {shared[-1].run_id}"
    return "A and B have no common ancestor that they name"


def minus(a: Ledger, b: Ledger) -> list[Interval]:
    """What a covers and b does not.

    >>> a = Ledger().add(Interval("s", "p", 0, 10))
    >>> [str(interval) for interval in minus(a, Ledger().add(Interval("s", "p", 2, 5)))]
    ['p[0:2]', 'p[5:10]']
    """
    return [part for interval in a.intervals() for part in b.uncovered(interval)]


def common(intervals: Iterable[Interval], ledger: Ledger) -> Iterator[Interval]:
    """The parts of some intervals that a ledger covers."""
    for interval in intervals:
        position = interval.start
        for gap in (*ledger.uncovered(interval), replace(interval, start=interval.stop)):
            if position < gap.start:
                yield replace(interval, start=position, stop=gap.start)
            position = gap.stop


def is_exact(settings: Mapping[str, Any]) -> bool:
    """Whether sums and differences of these posteriors equal the batch posterior."""
    return settings.get("primitive") == "conjugate" and settings.get("forgetting") == "none"


def quality(settings: Mapping[str, Any]) -> str:
    """What a sum or difference of these posteriors is, for people."""
    if is_exact(settings):
        return "exact: equal to the posterior of these records in one batch"
    return "approximate: what is learned from a record depends on what was learned before it"


def require_memory(settings: Mapping[str, Any], approximate: bool) -> None:
    """Raise MergeRefused if the run forgot, unless an approximation was asked for."""
    text = settings.get("forgetting")
    if text != "none" and not approximate:
        raise MergeRefused(
            f"expected posteriors that forgot nothing, got forgetting {text}: what they hold of a record depends on "
            "what came after it. Type --approximate to go on all the same"
        )


def require_same_model(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> None:
    """Raise MergeRefused unless the settings of two posteriors describe one model, family and local fit."""
    for setting in sorted((a.keys() | b.keys()) - SCHEDULE):
        if a.get(setting) != b.get(setting):
            raise MergeRefused(
                f"A has {setting} {a.get(setting)}, {name} has {setting} {b.get(setting)}: natural parameters of "
                "different models do not add up. Give posteriors of one model"
            )


def require_same_weights(a: ServerState, other: ServerState, name: str) -> None:
    """Raise MergeRefused unless two posteriors are over the same weights with the same prior."""
    for what, ours, theirs in (
        ("natural parameters", a.posterior.arrays, other.posterior.arrays),
        ("fit state", a.fit_state, other.fit_state),
    ):
        if _shapes(ours) != _shapes(theirs):
            raise MergeRefused(
                f"A has {what} {_shapes(ours)}, {name} has {_shapes(theirs)}. Give posteriors of one model"
            )
    if posterior_sha256(a.prior) != posterior_sha256(other.prior):
        raise MergeRefused(
            f"A and {name} have different priors: their evidence is about different modes. Start both runs with "
            "streaming-vb fit --start-from BASE"
        )


def remembered(
    forgetting: Forgetting,
    natural: NaturalParameters,
    prior: NaturalParameters,
    num_new: Iterable[int],
    num_records: int,
) -> NaturalParameters:
    """What is left of a posterior of `num_records` records after merges of `num_new` records each."""
    for count in num_new:
        natural = forgetting.forget(natural, prior, count, num_records)
        num_records += count
    return natural


def merge(
    family: Family,
    a: ServerState,
    b: ServerState,
    base: ServerState,
    forgetting: Forgetting = Nothing(),
    interval_records: int = 1_000,
) -> ServerState:
    """What either learned since the base that both started from, once.

    lambda = (lambda_A - C_A) + (lambda_B - C_B) + C_AB, where C_A, C_B and C_AB are what is left of the base after the
    merges of A, of B and of both: all of it where nothing is forgotten, and then it is lambda_A + lambda_B - lambda_C.

    Args:
        forgetting: of the runs.
        interval_records: that a merge had.

    Raises:
        MergeRefused: other weights or priors, a base that is not the ancestor of both, records counted twice, or a
            result that is no distribution.
    """
    for name, other in (("B", b), ("--base", base)):
        require_same_weights(a, other, name)
    for name, state in (("A", a), ("B", b)):
        _require_base(state, base, name)
    _require_disjoint(a, b, base)
    steps = [_steps(state.num_records - base.num_records, interval_records) for state in (a, b)]
    of_a, of_b, of_both = (
        remembered(forgetting, base.posterior, base.prior, counts, base.num_records)
        for counts in (steps[0], steps[1], [*steps[0], *steps[1]])
    )
    learned_a = family.add(a.posterior, of_a.scale(-1.0))
    learned_b = family.add(b.posterior, of_b.scale(-1.0))
    posterior = family.add(family.add(learned_a, learned_b), of_both)
    _require_distribution(family, posterior, "A + B - base has a precision that is not positive, or is not finite")
    parents = identity(a), identity(b)
    ledger = a.ledger
    for interval in minus(b.ledger, a.ledger):
        ledger = ledger.add(interval)
    return ServerState(
        run_id=hashlib.sha256(repr((*parents, identity(base))).encode()).hexdigest()[:16],
        prior=a.prior,
        posterior=posterior,
        fit_state=_average(a.fit_state, b.fit_state),
        version=a.version + b.version - base.version,
        num_records=a.num_records + b.num_records - base.num_records,
        ledger=Ledger(ledger.runs, _united(a.ledger, b.ledger)),
        lineage=tuple(dict.fromkeys((*a.lineage, *b.lineage, *parents))),
    )


def unlearn(
    family: Family,
    state: ServerState,
    delta: Delta,
    forgetting: Forgetting = Nothing(),
    later: Sequence[int] = (),
) -> ServerState:
    """lambda - Delta: the posterior without an interval, which the ledger keeps as set aside: it is not read again.

    Args:
        delta: exactly what was added for that interval.
        forgetting: of the run.
        later: records of each merge since then; by these it was forgotten.

    Raises:
        MergeRefused: the interval is not in the posterior, or what is left is no distribution.
    """
    interval = delta.lease.interval
    if any(state.ledger.uncovered(interval)):
        raise MergeRefused(f"{interval}: not in the ledger, so there is nothing to unlearn")
    if is_unlearned(state.ledger, interval):
        raise MergeRefused(f"{interval}: unlearned before; taking it out twice would leave less than nothing of it")
    evidence = delta.fit.natural
    if not isinstance(forgetting, Nothing):
        alone = family.add(state.prior, evidence)
        left = remembered(forgetting, alone, state.prior, later, state.num_records - sum(later))
        evidence = family.add(left, state.prior.scale(-1.0))
    posterior = family.add(state.posterior, evidence.scale(-1.0))
    _require_distribution(family, posterior, f"without {interval} a precision is not positive, or is not finite")
    return replace(
        state,
        posterior=posterior,
        version=state.version + 1,
        num_records=state.num_records - delta.num_records,
        ledger=state.ledger.without(interval, UNLEARNED, len(interval)),
    )


def is_unlearned(ledger: Ledger, interval: Interval) -> bool:
    """Whether the evidence of an interval was taken out."""
    return any(entry.reason == UNLEARNED and interval in entry.interval for entry in ledger.set_aside)


def listed(intervals: Iterable[Interval], most: int = 5) -> str:
    """Intervals for people: the first few, and how many more.

    >>> listed([Interval("s", "p", 0, 10)])
    'p[0:10]'
    """
    found = list(intervals)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return " ".join(map(str, found[:most])) + more


def _steps(total: int, size: int) -> list[int]:
    """Counts of at most `size` that add up to `total`; none where so much was unlearned that it is negative.

    >>> _steps(2_500, 1_000)
    [1000, 1000, 500]
    """
    return [min(size, total - start) for start in range(0, total, size)]


def _require_base(state: ServerState, base: ServerState, name: str) -> None:
    lacking = minus(base.ledger, state.ledger)
    if not descends(state, base) or lacking:
        why = f"; {name} lacks {listed(lacking)}" if lacking else ""
        raise MergeRefused(
            f"{name} did not start from --base (version {base.version:,} of run {base.run_id}){why}: without a common "
            "ancestor nothing says what both have learned. Start both runs with streaming-vb fit --start-from BASE"
        )


def _require_disjoint(a: ServerState, b: ServerState, base: ServerState) -> None:
    twice = list(common(minus(a.ledger, base.ledger), b.ledger))
    if twice:
        raise MergeRefused(
            f"A and B both learned {listed(twice)} ({sum(map(len, twice)):,} records) since --base: a merge would "
            "count them twice. Fit one of them on other records; streaming-vb diff A B lists what each has"
        )
    taken_out = [_unlearned(state.ledger) - _unlearned(base.ledger) for state in (a, b)]
    twice = sorted(set.intersection(*taken_out))
    if twice:
        raise MergeRefused(
            f"A and B both unlearned {listed(twice)} since --base: a merge would take it out twice. Unlearn it in "
            "one of them only"
        )


def _require_distribution(family: Family, natural: NaturalParameters, why: str) -> None:
    if not family.is_normalizable(natural):
        raise MergeRefused(f"the result is no distribution: {why}. Nothing was written")


def _unlearned(ledger: Ledger) -> set[Interval]:
    return {entry.interval for entry in ledger.set_aside if entry.reason == UNLEARNED}


def _united(a: Ledger, b: Ledger) -> tuple[SetAside, ...]:
    """Entries of both, each once; single records inside an interval that was unlearned whole are counted with it."""
    whole = _unlearned(a) | _unlearned(b)
    entries = dict.fromkeys((*a.set_aside, *b.set_aside))
    return tuple(
        entry
        for entry in entries
        if entry.reason == UNLEARNED or not any(entry.interval in interval for interval in whole)
    )


def _average(a: FitState, b: FitState) -> FitState:
    try:
        return average(a, b, 0.5)
    except MergeRejected as error:
        raise MergeRefused(f"{error}: the warm starts of A and B cannot be averaged") from error


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sorted(arrays.items())}
