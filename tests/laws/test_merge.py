"""Laws of the merge, for every family and every conjugate model."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checks import all_of, assert_close, delta_of, example_records, fingerprint
from discovery import examples, primitives

from streaming_vb.families import unit_normal
from streaming_vb.streaming.forgetting import Nothing, ScalableFamily, Window
from streaming_vb.streaming.merge import MergeRule, ServerState, average
from streaming_vb.types import Delta, Model, NaturalParameters, Primitive, Receipt

Example = tuple[Any, NaturalParameters, NaturalParameters]
every_family = pytest.mark.parametrize("example", examples("families"))
conjugate = pytest.mark.parametrize(
    ("model", "primitive"), [case for case in primitives() if hasattr(case.values[0], "evidence")]
)


def state_of(prior: NaturalParameters, **fit_state: np.ndarray) -> ServerState:
    return ServerState("run", prior, prior, fit_state)


def merged_with(example: Example, **changes: Any) -> tuple[ServerState, Delta, ServerState, Receipt]:
    """State before, delta, state after, receipt; the evidence is a tenth of another member unless changed."""
    family, prior, other = example
    state = state_of(prior)
    delta = delta_of(changes.pop("evidence", other.scale(0.1).arrays), **changes)
    return state, delta, *MergeRule(family, Nothing())(state, delta)


def with_one_array(evidence: NaturalParameters, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    return {**evidence.arrays, name: array}


@every_family
def test_the_posterior_is_prior_plus_evidence(example: Example) -> None:
    family, prior, _ = example
    _, delta, after, receipt = merged_with(example)
    assert receipt.status == "merged"
    assert_close(after.posterior, family.add(prior, delta.fit.natural))
    assert fingerprint(after.prior) == fingerprint(prior)


@every_family
def test_no_evidence_is_the_identity(example: Example) -> None:
    _, prior, _ = example
    state, _, after, receipt = merged_with(example, evidence=prior.scale(0.0).arrays)
    assert fingerprint(after.posterior) == fingerprint(state.posterior)
    assert (after.version, after.num_records, receipt.step_kl) == (1, 10, pytest.approx(0.0, abs=1e-12))


@every_family
def test_a_merge_counts_version_records_and_ledger(example: Example) -> None:
    _, delta, after, receipt = merged_with(example, start=5, stop=25)
    assert (after.version, after.num_records) == (receipt.version, receipt.num_records) == (1, 20)
    assert after.ledger.covers(delta.lease.interval)


@every_family
def test_a_merge_touches_none_of_its_inputs(example: Example) -> None:
    family, prior, other = example
    state = state_of(prior, momentum=np.array([1.0, 2.0]), steps=np.array(3))
    delta = delta_of(other.scale(0.1).arrays, fit_state={"momentum": np.array([3.0, 5.0]), "steps": np.array(4)})
    arrays = (state.prior, state.posterior, state.fit_state, delta.fit.natural, delta.fit.fit_state)
    before, ledger = fingerprint(*arrays), state.ledger
    MergeRule(family, Nothing())(state, delta)
    assert fingerprint(*arrays) == before
    assert (state.version, state.num_records, state.ledger) == (0, 0, ledger)


@every_family
def test_a_repeated_interval_is_acknowledged_and_not_added(example: Example) -> None:
    family = example[0]
    _, delta, after, _ = merged_with(example)
    again, receipt = MergeRule(family, Nothing())(after, delta)
    assert again is after
    assert (receipt.status, receipt.version, receipt.num_records) == ("duplicate", 1, 10)


@every_family
def test_a_part_of_a_merged_interval_is_a_duplicate(example: Example) -> None:
    family, _, other = example
    after = merged_with(example)[2]
    again, receipt = MergeRule(family, Nothing())(after, delta_of(other.arrays, 3, 7))
    assert again is after
    assert receipt.status == "duplicate"


@pytest.mark.parametrize(("start", "stop"), [(5, 15), (0, 11)])
@every_family
def test_a_partial_overlap_is_refused(example: Example, start: int, stop: int) -> None:
    family, _, other = example
    after = merged_with(example)[2]
    again, receipt = MergeRule(family, Nothing())(after, delta_of(other.arrays, start, stop))
    assert again is after
    assert receipt.status == "rejected"
    assert "counted before" in receipt.reason


@every_family
def test_a_delta_of_another_run_is_refused(example: Example) -> None:
    state, _, after, receipt = merged_with(example, run_id="elsewhere")
    assert after is state
    assert receipt.status == "rejected"
    assert "elsewhere" in receipt.reason


@every_family
def test_the_same_positions_of_another_source_are_other_records(example: Example) -> None:
    family, _, other = example
    after = merged_with(example)[2]
    both, receipt = MergeRule(family, Nothing())(after, delta_of(other.arrays, 0, 10, source="elsewhere"))
    assert (receipt.status, receipt.num_new) == ("merged", 10)
    assert both.ledger.num_covered() == 20


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_family
def test_evidence_that_is_not_finite_is_refused(example: Example, value: float) -> None:
    evidence = example[2]
    for name, spoiled in zip(evidence.arrays, all_of(evidence.arrays.values(), value), strict=True):
        state, _, after, receipt = merged_with(example, evidence=with_one_array(evidence, name, spoiled))
        assert after is state
        assert receipt.status == "rejected"
        assert name in receipt.reason


@every_family
def test_a_fit_state_that_is_not_finite_is_refused(example: Example) -> None:
    family, prior, other = example
    state = state_of(prior, momentum=np.zeros(2))
    after, receipt = MergeRule(family, Nothing())(
        state, delta_of(other.arrays, fit_state={"momentum": np.array([0, np.nan])})
    )
    assert after is state
    assert receipt.status == "rejected"


OTHER_FORMS = {
    "nothing": {},
    "another name": {"curvature": np.zeros(2)},
    "longer": {"momentum": np.zeros(3)},
    "shorter": {"momentum": np.zeros(1)},
}


@pytest.mark.parametrize("fit_state", OTHER_FORMS.values(), ids=OTHER_FORMS)
@pytest.mark.parametrize("state_weight", [0.5, 1.0])
def test_a_fit_state_of_another_form_is_refused(fit_state: Any, state_weight: float) -> None:
    family, prior, other = unit_normal.example()
    state = state_of(prior, momentum=np.zeros(2))
    delta = delta_of(other.arrays, fit_state=fit_state, state_weight=state_weight)
    after, receipt = MergeRule(family, Nothing())(state, delta)
    assert after is state
    assert receipt.status == "rejected"


@every_family
def test_evidence_of_another_shape_is_refused(example: Example) -> None:
    evidence = {name: array[:1] for name, array in example[2].arrays.items()}
    state, _, after, receipt = merged_with(example, evidence=evidence)
    assert after is state
    assert receipt.status == "rejected"


@every_family
def test_a_precision_that_would_not_be_positive_is_refused(example: Example) -> None:
    _, prior, other = example
    if "precision" in prior.arrays:
        for precision in (-prior["precision"], -2 * prior["precision"]):
            state, _, after, receipt = merged_with(example, evidence=with_one_array(other, "precision", precision))
            assert after is state
            assert receipt.status == "rejected"
            assert "precision" in receipt.reason


@every_family
def test_negative_evidence_that_leaves_a_distribution_is_merged(example: Example) -> None:
    _, prior, _ = example
    assert merged_with(example, evidence=prior.scale(-0.5).arrays)[3].status == "merged"


@every_family
def test_a_refused_interval_can_still_be_merged(example: Example) -> None:
    family, _, other = example
    state, _, after, _ = merged_with(example, evidence={name: np.nan * a for name, a in other.arrays.items()})
    after, receipt = MergeRule(family, Nothing())(after, delta_of(other.arrays))
    assert (receipt.status, after.version, state.version) == ("merged", 1, 0)


@every_family
def test_the_step_kl_is_that_of_the_served_posteriors(example: Example) -> None:
    family, prior, other = example
    forgetting = Window(family, minimum=5.0) if isinstance(family, ScalableFamily) else Nothing()
    rule = MergeRule(family, forgetting)
    before, _ = rule(state_of(prior), delta_of(other.arrays, 0, 10))
    after, receipt = rule(before, delta_of(other.arrays, 10, 30))
    served = [forgetting.served(state.posterior, prior, state.num_records) for state in (before, after)]
    assert receipt.step_kl == pytest.approx(family.kl(served[1], served[0]), rel=1e-12)
    assert receipt.step_kl > 0


@every_family
def test_a_merge_forgets_first_by_the_records_counted_before_it(example: Example) -> None:
    """With a window of half the records, and 100 of them counted, 10 new ones keep exp(-10 / 50) of the evidence."""
    family, prior, other = example
    if isinstance(family, ScalableFamily):
        before = replace(state_of(prior), posterior=family.add(prior, other), num_records=100)
        after, _ = MergeRule(family, Window(family, minimum=1.0, fraction=0.5))(
            before, delta_of(other.scale(0.1).arrays)
        )
        remembered = family.scale_evidence(before.posterior, prior, np.exp(-0.2))
        assert_close(after.posterior, family.add(remembered, other.scale(0.1)))


@every_family
def test_staleness_is_measured_against_the_base(example: Example) -> None:
    family, _, other = example
    before = merged_with(example)[2]
    base_mean = family.mean(other)
    delta = delta_of(other.arrays, 10, 20, base_version=0)
    _, receipt = MergeRule(family, Nothing())(before, delta, base_mean)
    assert receipt.staleness == 1
    assert receipt.staleness_sd == pytest.approx(family.distance_sd(before.posterior, base_mean), rel=1e-12)


@every_family
def test_a_fit_of_the_current_version_is_not_stale(example: Example) -> None:
    receipt = merged_with(example)[3]
    assert (receipt.staleness, receipt.staleness_sd) == (0, 0.0)


@every_family
def test_measuring_does_not_change_the_result(example: Example) -> None:
    family, prior, other = example
    delta = delta_of(other.arrays)
    measured, plain = (MergeRule(family, Nothing(), measure=m)(state_of(prior), delta) for m in (True, False))
    assert fingerprint(measured[0].posterior) == fingerprint(plain[0].posterior)
    assert np.isnan(plain[1].step_kl)


def test_real_fit_state_moves_by_its_weight() -> None:
    averaged = average({"g": np.array([1.0, -2.0])}, {"g": np.array([3.0, 2.0])}, 0.25)
    np.testing.assert_array_equal(averaged["g"], [1.5, -1.0])


def test_a_full_weight_replaces_the_fit_state() -> None:
    np.testing.assert_array_equal(average({"g": np.array([0.1])}, {"g": np.array([0.3])}, 1.0)["g"], [0.3])


@pytest.mark.parametrize(("old", "new"), [(3, 5), (5, 3)])
def test_a_count_in_the_fit_state_becomes_the_larger_one(old: int, new: int) -> None:
    assert average({"steps": np.array(old)}, {"steps": np.array(new)}, 0.25)["steps"] == 5


def test_the_fit_state_keeps_its_format_and_its_inputs() -> None:
    old, new = {"g": np.ones(3, np.float32)}, {"g": np.zeros(3, np.float32)}
    averaged = average(old, new, 1 / 3)
    assert averaged["g"].dtype == np.float32
    assert old["g"].tolist() == [1, 1, 1]
    assert new["g"].tolist() == [0, 0, 0]


def test_weights_one_over_i_give_the_mean_of_a_round() -> None:
    fits = [np.array([value]) for value in (4.0, 1.0, 7.0, 2.0)]
    state = {"g": np.array([100.0])}
    for i, fit in enumerate(fits, start=1):
        state = dict(average(state, {"g": fit}, 1 / i))
    np.testing.assert_allclose(state["g"], np.mean(fits))


def conjugate_deltas(model: Model, primitive: Primitive, bounds: list[int]) -> list[Delta]:
    """Deltas of consecutive intervals, all fitted from the prior."""
    whole, prior = example_records(model, bounds[-1]), model.prior(0)
    deltas = []
    for start, stop in itertools.pairwise(bounds):
        part = type(whole)(whole.interval, {name: array[start:stop] for name, array in whole.fields.items()})
        deltas.append(delta_of(primitive(prior, prior, {}, part, 0).natural.arrays, start, stop))
    return deltas


def merge_all(model: Model, deltas: list[Delta]) -> ServerState:
    rule: Callable[..., tuple[ServerState, Receipt]] = MergeRule(model.family, Nothing())
    state = state_of(model.prior(0))
    for delta in deltas:
        state, _ = rule(state, delta)
    return state


@conjugate
def test_splitting_and_merging_equals_learning_at_once(model: Model, primitive: Primitive) -> None:
    split = merge_all(model, conjugate_deltas(model, primitive, [0, 7, 8, 19, 30]))
    whole = merge_all(model, conjugate_deltas(model, primitive, [0, 30]))
    assert_close(split.posterior, whole.posterior)
    assert split.num_records == whole.num_records == 30
    assert split.ledger == whole.ledger


@conjugate
def test_the_order_of_merges_does_not_matter(model: Model, primitive: Primitive) -> None:
    deltas = conjugate_deltas(model, primitive, [0, 7, 8, 19, 30])
    expected = merge_all(model, deltas)
    for order in itertools.permutations(deltas):
        state = merge_all(model, list(order))
        assert_close(state.posterior, expected.posterior)
        assert state.ledger == expected.ledger


@conjugate
def test_repeating_any_delta_at_any_time_changes_nothing(model: Model, primitive: Primitive) -> None:
    deltas = conjugate_deltas(model, primitive, [0, 7, 8, 19, 30])
    repeated = [delta for i, delta in enumerate(deltas) for delta in [delta, *deltas[: i + 1]]]
    assert fingerprint(merge_all(model, repeated).posterior) == fingerprint(merge_all(model, deltas).posterior)
