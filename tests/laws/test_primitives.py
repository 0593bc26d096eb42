"""Laws of every local primitive A(C, prior), on every example model that it accepts."""

from typing import Any

import numpy as np
import pytest
import torch
from checks import assert_close, example_records, fingerprint
from discovery import primitives

from streaming_vb.types import Fit, FitState, Model, NaturalParameters, Primitive, Records

every_primitive = pytest.mark.parametrize(("model", "primitive"), primitives(batch_size=8))
SHARE = 0.25
NUM_RECORDS = 20


def prior_of(model: Model, share: float = 1.0) -> NaturalParameters:
    """share x prior, as it travels."""
    return model.prior(0).astype(model.family.wire_dtype).scale(share)


def fit(model: Model, primitive: Primitive, *, share: float = 1.0, start: int = 0, seed: int = 5) -> Fit:
    """A fit in the middle of a run: the fit state is that of an earlier one."""
    served = prior_of(model)
    records = example_records(model, NUM_RECORDS, start)
    state = primitive(served, served, primitive.initial_state(), example_records(model, 16, 500), 1).fit_state
    return primitive(served.scale(share), served, state, records, seed)


def bits(result: Fit) -> str:
    return fingerprint(result.natural, result.fit_state, result.elbo)


def local_mean(model: Model, result: Fit, share: float) -> np.ndarray:
    """m_loc: the mean of prior + delta."""
    family = model.family
    return family.mean(family.add(prior_of(model, share).astype(np.float64), result.natural))


@every_primitive
def test_a_fit_touches_none_of_its_inputs(model: Model, primitive: Primitive) -> None:
    prior, state = prior_of(model), primitive.initial_state()
    records = example_records(model, NUM_RECORDS)
    before = fingerprint(prior, state, records)
    primitive(prior, prior, state, records, 1)
    assert fingerprint(prior, state, records) == before


@every_primitive
def test_a_fit_reads_arrays_that_nobody_may_write(model: Model, primitive: Primitive) -> None:
    prior, state, records = prior_of(model), primitive.initial_state(), example_records(model, NUM_RECORDS)
    for array in (*prior.arrays.values(), *state.values(), *records.fields.values()):
        array.setflags(write=False)
    primitive(prior.scale(SHARE), prior, state, records, 1)


@every_primitive
def test_the_same_seed_gives_the_same_bits(model: Model, primitive: Primitive) -> None:
    assert bits(fit(model, primitive)) == bits(fit(model, primitive))


@every_primitive
def test_another_seed_gives_another_neural_fit(model: Model, primitive: Primitive) -> None:
    same = bits(fit(model, primitive, seed=5)) == bits(fit(model, primitive, seed=6))
    assert same != hasattr(model, "layout")


@every_primitive
def test_a_fit_does_not_depend_on_what_its_worker_did_before(model: Model, primitive: Primitive) -> None:
    expected = bits(fit(model, primitive))
    torch.manual_seed(99)
    np.random.seed(99)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fit(model, primitive, start=100, seed=8)
        assert bits(fit(model, primitive)) == expected
    finally:
        torch.set_num_threads(threads)


@every_primitive
def test_evidence_is_never_negative(model: Model, primitive: Primitive) -> None:
    evidence = fit(model, primitive, share=SHARE).natural
    if "precision" in evidence.arrays:
        diagonal = (
            evidence["precision"] if evidence["precision"].ndim == 1 else np.linalg.eigvalsh(evidence["precision"])
        )
        assert diagonal.min() >= -1e-12
        assert diagonal.max() > 0


@every_primitive
def test_evidence_has_the_shapes_and_the_format_of_the_wire(model: Model, primitive: Primitive) -> None:
    evidence, prior = fit(model, primitive).natural, prior_of(model)
    shapes = {name: (array.shape, array.dtype) for name, array in evidence.arrays.items()}
    assert shapes == {name: (array.shape, array.dtype) for name, array in prior.arrays.items()}


@every_primitive
def test_prior_plus_evidence_is_a_distribution(model: Model, primitive: Primitive) -> None:
    family = model.family
    assert family.is_normalizable(family.add(model.prior(0), fit(model, primitive).natural))


@every_primitive
def test_the_fit_state_keeps_its_keys_shapes_and_formats(model: Model, primitive: Primitive) -> None:
    def form(state: FitState) -> dict[str, Any]:
        return {name: (np.shape(array), np.asarray(array).dtype) for name, array in state.items()}

    assert form(fit(model, primitive).fit_state) == form(primitive.initial_state())


@every_primitive
def test_the_score_is_that_of_the_snapshot_before_learning(model: Model, primitive: Primitive) -> None:
    plain, careful = fit(model, primitive), fit(model, primitive.cautious())
    assert np.isfinite(plain.elbo)
    assert plain.elbo == careful.elbo


@every_primitive
def test_a_conjugate_fit_does_not_depend_on_its_prior(model: Model, primitive: Primitive) -> None:
    if hasattr(model, "evidence"):
        assert fingerprint(fit(model, primitive).natural) == fingerprint(fit(model, primitive, share=SHARE).natural)


@every_primitive
def test_conjugate_evidence_of_two_parts_adds_up_to_the_whole(model: Model, primitive: Primitive) -> None:
    if hasattr(model, "evidence"):
        prior, whole = prior_of(model), example_records(model, 20)
        parts = [
            Records(whole.interval, {n: a[rows] for n, a in whole.fields.items()})
            for rows in (slice(13), slice(13, 20))
        ]
        first, second, expected = (primitive(prior, prior, {}, records, 0).natural for records in (*parts, whole))
        assert_close(model.family.add(first, second), expected)


@every_primitive
def test_the_delta_of_a_neural_fit_moves_the_mean_part_of_the_way(model: Model, primitive: Primitive) -> None:
    """Merging with a share gives m_t + (share S_t + F) / (S_t + F) (m_loc - m_t), between m_t and m_loc."""
    if hasattr(model, "layout"):
        result = fit(model, primitive, share=SHARE)
        start, target = model.family.mean(prior_of(model).astype(np.float64)), local_mean(model, result, SHARE)
        merged = model.family.mean(model.family.add(prior_of(model).astype(np.float64), result.natural))
        precision, evidence = prior_of(model)["precision"], result.natural["precision"]
        part = (SHARE * precision + evidence) / (precision + evidence)
        np.testing.assert_allclose(merged - start, part * (target - start), rtol=1e-3, atol=1e-6)
        slack = 1e-6
        assert np.all((merged - start) * (target - merged) >= -slack * slack)
        assert np.abs(target - start).max() > 1e-3


@every_primitive
def test_cautious_takes_smaller_steps(model: Model, primitive: Primitive) -> None:
    if hasattr(model, "layout"):
        start = model.family.mean(prior_of(model).astype(np.float64))
        moves = [
            np.linalg.norm(local_mean(model, fit(model, chosen, share=SHARE), SHARE) - start)
            for chosen in (primitive, primitive.cautious(), primitive.cautious().cautious())
        ]
        assert moves[0] > 2 * moves[1] > 4 * moves[2] > 0


@every_primitive
def test_cautious_is_a_new_primitive(model: Model, primitive: Primitive) -> None:
    expected = bits(fit(model, primitive))
    primitive.cautious()
    assert bits(fit(model, primitive)) == expected
