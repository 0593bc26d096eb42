"""Posteriors add up and come apart without counting a record twice, or they are refused."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from checks import assert_close, delta_of, fingerprint
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import MergeRefused
from streaming_vb.families import mean_field_normal
from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.streaming import posterior_algebra
from streaming_vb.streaming.forgetting import Nothing, Window
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import MergeRule, ServerState
from streaming_vb.streaming.posterior_algebra import (
    UNLEARNED,
    common,
    descends,
    difference,
    identity,
    merge,
    minus,
    relation,
    require_memory,
    require_same_model,
    unlearn,
)
from streaming_vb.types import Array, Delta, Fit, Interval, Lease, NaturalParameters, Records, SetAside

TOLERANCE = 1e-10
NUM_RECORDS = 60
MODEL = LinearRegression(3, noise_variance=0.7, prior_variance=3.0)
GENERATOR = np.random.default_rng(7)
X = GENERATOR.normal(0.5, 1.0, (NUM_RECORDS, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + GENERATOR.normal(0.0, 0.8, NUM_RECORDS)
RULE = MergeRule(MODEL.family, Nothing())
WINDOW = Window(MODEL.family, minimum=20, fraction=0.0)


def empty(run_id: str = "base") -> ServerState:
    prior = MODEL.prior(0)
    return ServerState(run_id, prior, prior, {"count": np.array(3), "momentum": np.zeros(2)})


def delta(state: ServerState, start: int, stop: int, bad: tuple[SetAside, ...] = ()) -> Delta:
    """The evidence of the records [start, stop), but for those that cannot be scored."""
    interval = Interval("table", "pass-0", start, stop)
    lost = {position for entry in bad for position in range(entry.interval.start, entry.interval.stop)}
    rows = [row for row in range(start, stop) if row not in lost]
    evidence = MODEL.evidence(Records(interval, {"x": X[rows], "y": Y[rows]}))
    fit_state = {"count": np.array(stop), "momentum": np.full(2, float(start))}
    return Delta(
        state.run_id, Lease(interval, 0, state.version, 1.0, 1.0), Fit(evidence, fit_state, 0.0), len(rows), bad
    )


def learn(state: ServerState, intervals: Iterable[tuple[int, int]]) -> ServerState:
    for start, stop in intervals:
        state, receipt = RULE(state, delta(state, start, stop))
        assert receipt.status == "merged", receipt.reason
    return state


def started_from(base: ServerState, run_id: str) -> ServerState:
    return replace(base, run_id=run_id, lineage=(*base.lineage, identity(base)))


def batch(rows: Iterable[int]) -> NaturalParameters:
    rows = list(rows)
    evidence = MODEL.evidence(Records(Interval("table", "pass-0", 0, len(rows)), {"x": X[rows], "y": Y[rows]}))
    return MODEL.family.add(MODEL.prior(0), evidence)


def counts_agree(state: ServerState) -> bool:
    return state.num_records + state.ledger.num_set_aside == state.ledger.num_covered()


BASE = learn(empty(), [(0, 10), (10, 20)])
A = learn(started_from(BASE, "a"), [(20, 30)])
B = learn(started_from(BASE, "b"), [(30, 45), (45, 60)])


def test_a_merge_is_the_batch_posterior() -> None:
    merged = merge(MODEL.family, A, B, BASE)
    assert_close(merged.posterior, batch(range(NUM_RECORDS)), TOLERANCE)
    assert (merged.num_records, merged.version) == (NUM_RECORDS, 5)
    assert merged.ledger.runs == {("table", "pass-0"): ((0, NUM_RECORDS),)}
    assert merged.lineage == (identity(BASE), identity(A), identity(B))
    assert merged.run_id not in {"a", "b", "base"}


@given(st.lists(st.sampled_from(["base", "a", "b", "none"]), min_size=12, max_size=12))
def test_a_merge_is_exact_however_the_data_are_dealt_out(owners: list[str]) -> None:
    dealt = {
        name: [(5 * i, 5 * i + 5) for i, owner in enumerate(owners) if owner == name] for name in ("base", "a", "b")
    }
    base = learn(empty(), dealt["base"])
    a = learn(started_from(base, "a"), dealt["a"])
    b = learn(started_from(base, "b"), dealt["b"])
    merged = merge(MODEL.family, a, b, base)
    rows = [row for i, owner in enumerate(owners) if owner != "none" for row in range(5 * i, 5 * i + 5)]
    assert_close(merged.posterior, batch(rows), TOLERANCE)
    assert merged.num_records == merged.ledger.num_covered() == len(rows)
    assert fingerprint(merged.posterior) != fingerprint(base.posterior) or not (dealt["a"] or dealt["b"])


def test_a_merge_does_not_depend_on_the_order() -> None:
    one, other = merge(MODEL.family, A, B, BASE), merge(MODEL.family, B, A, BASE)
    assert_close(one.posterior, other.posterior, TOLERANCE)
    assert one.ledger == other.ledger


def test_warm_starts_are_averaged_and_counts_are_the_larger() -> None:
    fit_state = merge(MODEL.family, A, B, BASE).fit_state
    assert fit_state["count"] == 60
    np.testing.assert_array_equal(fit_state["momentum"], (A.fit_state["momentum"] + B.fit_state["momentum"]) / 2)


def test_nothing_that_was_given_is_changed() -> None:
    before = [fingerprint(state.posterior, state.fit_state) for state in (A, B, BASE)]
    merge(MODEL.family, A, B, BASE)
    unlearn(MODEL.family, A, delta(A, 20, 30))
    assert [fingerprint(state.posterior, state.fit_state) for state in (A, B, BASE)] == before


def test_a_base_merged_with_what_came_of_it_is_just_that() -> None:
    assert_close(merge(MODEL.family, A, BASE, BASE).posterior, A.posterior, TOLERANCE)


def test_a_merge_can_be_merged_again() -> None:
    merged = merge(MODEL.family, A, B, BASE)
    c = started_from(merged, "c")
    assert_close(merge(MODEL.family, c, merged, merged).posterior, merged.posterior, TOLERANCE)
    assert descends(merged, BASE)
    assert descends(c, A)


def test_records_set_aside_stay_so_and_are_counted() -> None:
    bad = (SetAside(Interval("table", "pass-0", 22, 23), 1, "NaN"),)
    start = started_from(BASE, "a")
    a, _ = RULE(start, delta(start, 20, 30, bad))
    merged = merge(MODEL.family, a, B, BASE)
    assert merged.ledger.set_aside == bad
    assert counts_agree(merged)
    assert_close(merged.posterior, batch(row for row in range(NUM_RECORDS) if row != 22), TOLERANCE)


def test_what_one_of_them_unlearned_is_not_in_the_merge() -> None:
    start = started_from(BASE, "a")
    a = learn(unlearn(MODEL.family, start, delta(start, 0, 10)), [(20, 30)])
    merged = merge(MODEL.family, a, B, BASE)
    assert_close(merged.posterior, batch(range(10, NUM_RECORDS)), TOLERANCE)
    assert [entry.reason for entry in merged.ledger.set_aside] == [UNLEARNED]
    assert counts_agree(merged)


def test_what_both_unlearned_is_refused() -> None:
    a, b = (unlearn(MODEL.family, state, delta(state, 0, 10)) for state in (A, B))
    with pytest.raises(MergeRefused, match=r"both unlearned pass-0\[0:10\] since --base"):
        merge(MODEL.family, a, b, BASE)


def test_records_that_both_learned_are_refused() -> None:
    b = learn(started_from(BASE, "b"), [(25, 40)])
    with pytest.raises(MergeRefused, match=r"both learned pass-0\[25:30\] \(5 records\) since --base"):
        merge(MODEL.family, A, b, BASE)


def test_the_same_posterior_twice_is_refused() -> None:
    with pytest.raises(MergeRefused, match=r"both learned pass-0\[20:30\]"):
        merge(MODEL.family, A, A, BASE)


@pytest.mark.parametrize(
    "stranger",
    [
        learn(empty("stranger"), [(30, 40)]),
        learn(replace(started_from(BASE, "b"), lineage=(replace(identity(BASE), version=1),)), [(30, 40)]),
        learn(replace(started_from(BASE, "b"), lineage=(replace(identity(BASE), sha256="0" * 64),)), [(30, 40)]),
    ],
    ids=["other run", "other version", "other posterior"],
)
def test_without_a_common_ancestor_it_is_refused(stranger: ServerState) -> None:
    with pytest.raises(MergeRefused, match="B did not start from --base"):
        merge(MODEL.family, A, stranger, BASE)
    with pytest.raises(MergeRefused, match="A did not start from --base"):
        merge(MODEL.family, stranger, A, BASE)


def test_a_later_version_is_no_base() -> None:
    later = learn(BASE, [(45, 60)])
    with pytest.raises(MergeRefused, match=r"A did not start from --base .*; A lacks pass-0\[45:60\]"):
        merge(MODEL.family, A, B, later)


def test_a_copy_of_a_run_that_went_another_way_is_no_base() -> None:
    later = learn(BASE, [(45, 60), (30, 45)])
    with pytest.raises(MergeRefused, match=r"B did not start from --base .*; B lacks pass-0\[20:30\]"):
        merge(MODEL.family, learn(BASE, [(20, 30), (50, 60)]), later, learn(BASE, [(20, 30)]))


def test_an_earlier_version_of_the_same_run_is_a_base() -> None:
    later = learn(BASE, [(30, 60)])
    assert_close(merge(MODEL.family, A, later, BASE).posterior, batch(range(NUM_RECORDS)), TOLERANCE)


def test_other_weights_and_priors_are_refused() -> None:
    other = replace(B, posterior=NaturalParameters({"precision_mean": np.zeros(2), "precision": np.eye(2)}))
    with pytest.raises(MergeRefused, match=r"A has natural parameters .*3.*, B has .*2"):
        merge(MODEL.family, A, other, BASE)
    other = replace(B, fit_state={})
    with pytest.raises(MergeRefused, match="A has fit state"):
        merge(MODEL.family, A, other, BASE)
    other = replace(B, prior=LinearRegression(3, prior_variance=2.0).prior(0))
    with pytest.raises(MergeRefused, match="A and B have different priors"):
        merge(MODEL.family, A, other, BASE)


def test_a_result_that_is_no_distribution_is_refused() -> None:
    broken = B.posterior.scale(1.0).arrays | {"precision": B.posterior["precision"] - 1e4 * np.eye(3)}
    with pytest.raises(MergeRefused, match="the result is no distribution"):
        merge(MODEL.family, A, replace(B, posterior=NaturalParameters(broken)), BASE)


def forgetful(state: ServerState, intervals: Iterable[tuple[int, int]]) -> ServerState:
    for start, stop in intervals:
        state, receipt = MergeRule(MODEL.family, WINDOW)(state, delta(state, start, stop))
        assert receipt.status == "merged", receipt.reason
    return state


def precision_of(start: int, stop: int) -> Array:
    return X[start:stop].T @ X[start:stop] / 0.7


def test_of_a_forgetful_run_only_what_it_still_holds_of_the_base_is_subtracted() -> None:
    base = forgetful(empty(), [(0, 10), (10, 40)])
    a = forgetful(started_from(base, "a"), [(40, 50)])
    b = forgetful(started_from(base, "b"), [(50, 60)])
    merged = merge(MODEL.family, a, b, base, WINDOW, interval_records=10)
    prior = MODEL.prior(0)["precision"]
    kept = np.exp(-20 / 20) * (base.posterior["precision"] - prior)  # 20 records, of a window of 20, came after it
    expected = prior + kept + precision_of(40, 50) + precision_of(50, 60)
    np.testing.assert_allclose(merged.posterior["precision"], expected, rtol=1e-10)
    plain = merge(MODEL.family, a, b, base).posterior["precision"]
    assert np.linalg.eigvalsh(merged.posterior["precision"] - plain)[0] > 1.0  # all of the base is too much


def test_of_a_forgetful_run_only_what_it_still_holds_is_unlearned() -> None:
    state = forgetful(empty(), [(0, 10), (10, 20), (20, 40)])
    after = unlearn(MODEL.family, state, delta(state, 10, 20), WINDOW, later=[20])
    kept = np.exp(-30 / 20) * precision_of(0, 10)
    expected = MODEL.prior(0)["precision"] + kept + precision_of(20, 40)
    np.testing.assert_allclose(after.posterior["precision"], expected, rtol=1e-10)


def test_warm_starts_that_are_not_finite_are_refused() -> None:
    broken = replace(B, fit_state={**B.fit_state, "momentum": np.array([np.nan, 0.0])})
    with pytest.raises(MergeRefused, match="momentum is not finite"):
        merge(MODEL.family, A, broken, BASE)


@given(st.sets(st.integers(0, 5), max_size=5))
def test_unlearning_is_the_batch_posterior_of_the_rest(gone: set[int]) -> None:
    state = learn(empty(), [(10 * i, 10 * i + 10) for i in range(6)])
    for i in gone:
        state = unlearn(MODEL.family, state, delta(state, 10 * i, 10 * i + 10))
    rest = [row for row in range(NUM_RECORDS) if row // 10 not in gone]
    assert_close(state.posterior, batch(rest), TOLERANCE)
    assert state.num_records == len(rest)
    assert state.version == 6 + len(gone)
    assert state.ledger.num_covered() == NUM_RECORDS
    assert counts_agree(state)


def test_integers_are_unlearned_without_a_trace() -> None:
    model = LedgerModel()
    rule = MergeRule(model.family, Nothing())
    prior = model.prior(0)
    state = without = ServerState("run", prior, prior, {})
    deltas = [delta_of({"sum": model.sums(np.arange(start, start + 10))}, start, start + 10) for start in (0, 10, 20)]
    for number, part in enumerate(deltas):
        state, _ = rule(state, part)
        without = rule(without, part)[0] if number != 1 else without
    assert fingerprint(unlearn(model.family, state, deltas[1]).posterior) == fingerprint(without.posterior)


def test_bad_records_of_what_is_unlearned_are_counted_once() -> None:
    bad = (SetAside(Interval("table", "pass-0", 3, 5), 2, "NaN"),)
    part = delta(empty(), 0, 10, bad)
    state, _ = RULE(empty(), part)
    after = unlearn(MODEL.family, state, part)
    assert after.ledger.set_aside == (SetAside(part.lease.interval, 10, UNLEARNED),)
    assert after.num_records == 0
    assert counts_agree(after)


def test_what_is_not_there_cannot_be_unlearned() -> None:
    with pytest.raises(MergeRefused, match=r"pass-0\[20:30\]: not in the ledger"):
        unlearn(MODEL.family, BASE, delta(BASE, 20, 30))
    once = unlearn(MODEL.family, BASE, delta(BASE, 0, 10))
    with pytest.raises(MergeRefused, match="unlearned before"):
        unlearn(MODEL.family, once, delta(BASE, 0, 10))


def test_more_than_there_is_cannot_be_unlearned() -> None:
    family, prior, _ = mean_field_normal.example()
    state = ServerState("run", prior, prior, {}, 1, 10, Ledger().add(Interval("example", "pass-0", 0, 10)))
    heavy = delta_of({"precision_mean": np.zeros(3), "precision": 2.0 * prior["precision"]})
    with pytest.raises(MergeRefused, match=r"without pass-0\[0:10\] a precision is not positive"):
        unlearn(family, state, heavy)


def test_a_run_that_forgot_is_refused_unless_an_approximation_was_asked_for() -> None:
    require_memory({"forgetting": "none"}, False)
    require_memory({"forgetting": "window:2000:0.1"}, True)
    with pytest.raises(MergeRefused, match=r"got forgetting window:2000:0.1.*--approximate"):
        require_memory({"forgetting": "window:2000:0.1"}, False)


def test_settings_of_the_schedule_may_differ_and_those_of_the_model_may_not() -> None:
    settings = {"model": "ledger", "family": "unit-normal", "forgetting": "none", "seed": 0, "source": "x"}
    require_same_model(settings, {**settings, "seed": 1, "source": "y", "mode": "ordered", "prior_seed": 0}, "B")
    for name in ("model", "family", "forgetting", "noise_variance", "primitive"):
        with pytest.raises(MergeRefused, match=f"A has {name} .*, B has {name} other"):
            require_same_model(settings, {**settings, name: "other"}, "B")


def test_a_difference_is_in_nats_and_standard_deviations() -> None:
    family = MeanFieldNormal()
    a = NaturalParameters({"precision_mean": np.array([4.0, 0.0]), "precision": np.array([4.0, 1.0])})
    b = NaturalParameters({"precision_mean": np.array([8.0, 0.0]), "precision": np.array([4.0, 1.0])})
    found = difference(family, a, b)
    np.testing.assert_allclose(found.movement, [2.0, 0.0])
    assert found.kl_a_b == pytest.approx(2.0)
    assert found.kl_b_a == pytest.approx(family.kl(b, a))
    full = difference(MODEL.family, BASE.posterior, A.posterior)
    deviation = np.sqrt(np.diag(np.linalg.inv(BASE.posterior["precision"])))
    moved = MODEL.family.mean(A.posterior) - MODEL.family.mean(BASE.posterior)
    np.testing.assert_allclose(full.movement, moved / deviation)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (A, A, "A and B are the same posterior"),
        (BASE, learn(BASE, [(50, 60)]), "B is a later version of A"),
        (learn(BASE, [(50, 60)]), BASE, "A is a later version of B"),
        (BASE, A, "B started from A"),
        (A, BASE, "A started from B"),
        (A, B, "A and B started from version 2 of run base"),
        (A, empty("stranger"), "A and B have no common ancestor that they name"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_relations(a: ServerState, b: ServerState, says: str) -> None:
    assert relation(a, b) == says


def ledger_of(positions: Array) -> Ledger:
    ledger = Ledger()
    for position in positions:
        ledger = ledger.add(Interval("s", f"p{position % 2}", int(position), int(position) + 1))
    return ledger


def positions_of(intervals: Iterable[Interval]) -> list[tuple[str, int]]:
    return sorted((i.partition, position) for i in intervals for position in range(i.start, i.stop))


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_differences_and_common_parts_of_ledgers(a: set[int], b: set[int]) -> None:
    first, second = ledger_of(np.array(sorted(a), int)), ledger_of(np.array(sorted(b), int))
    assert positions_of(minus(first, second)) == sorted((f"p{position % 2}", position) for position in a - b)
    assert positions_of(common(first.intervals(), second)) == sorted(
        (f"p{position % 2}", position) for position in a & b
    )


def test_long_lists_are_cut() -> None:
    intervals = [Interval("s", "p", 2 * i, 2 * i + 1) for i in range(8)]
    assert posterior_algebra.listed(intervals).endswith("p[8:9] and 3 more")
