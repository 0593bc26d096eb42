import numpy as np
import pytest
import torch
from checks import STANDARD_ERRORS, example_records, fingerprint

from streaming_vb.evaluation.held_out import at_mean, mean_weights, over_draws, score
from streaming_vb.models import vae
from streaming_vb.objectives import elbo
from streaming_vb.types import Moments, NaturalParameters

MODEL = vae.example()
POSTERIOR = MODEL.prior(0)
RECORDS = example_records(MODEL, 400).fields


def sharp(factor: float) -> NaturalParameters:
    moments = MODEL.family.moments(POSTERIOR)
    return MODEL.family.natural(Moments(moments.mean, moments.variance / factor))


def test_scores_are_the_same_for_the_same_seed_and_leave_inputs_alone() -> None:
    before = fingerprint(POSTERIOR, RECORDS)
    assert at_mean(MODEL, POSTERIOR, RECORDS, seed=1) == at_mean(MODEL, POSTERIOR, RECORDS, seed=1)
    assert over_draws(MODEL, POSTERIOR, RECORDS, 3, seed=1) == over_draws(MODEL, POSTERIOR, RECORDS, 3, seed=1)
    assert at_mean(MODEL, POSTERIOR, RECORDS, seed=1) != at_mean(MODEL, POSTERIOR, RECORDS, seed=2)
    assert fingerprint(POSTERIOR, RECORDS) == before


def test_the_score_at_the_mean_agrees_with_many_draws_of_z() -> None:
    estimate = at_mean(MODEL, POSTERIOR, RECORDS, seed=1)
    weights = mean_weights(MODEL, POSTERIOR)
    terms = MODEL.terms(
        weights, {"x": torch.from_numpy(RECORDS["x"])}, torch.Generator().manual_seed(9), num_samples=300
    )
    exact = float(elbo(terms).mean())
    assert abs(estimate.mean - exact) < STANDARD_ERRORS * estimate.standard_error


def test_the_standard_error_at_the_mean_is_the_spread_between_samples_of_records() -> None:
    estimates = [at_mean(MODEL, POSTERIOR, example_records(MODEL, 50, seed=i).fields, seed=i) for i in range(200)]
    spread = np.std([estimate.mean for estimate in estimates], ddof=1)
    claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert abs(spread / claimed - 1) < STANDARD_ERRORS / np.sqrt(2 * 200)


def test_the_standard_error_over_draws_covers_records_and_draws() -> None:
    estimates = [over_draws(MODEL, POSTERIOR, example_records(MODEL, 50, seed=i).fields, 8, seed=i) for i in range(150)]
    spread = np.std([estimate.mean for estimate in estimates], ddof=1)
    claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert 0.8 < spread / claimed < 1.2
    only_records = np.sqrt(
        np.mean(
            [at_mean(MODEL, POSTERIOR, example_records(MODEL, 50).fields, i).standard_error ** 2 for i in range(20)]
        )
    )
    assert spread > 1.3 * only_records


def test_draws_of_a_sharp_posterior_score_as_its_mean() -> None:
    draws, mean = over_draws(MODEL, sharp(1e12), RECORDS, 3, seed=1), at_mean(MODEL, POSTERIOR, RECORDS, seed=1)
    assert draws.mean == pytest.approx(mean.mean, abs=1e-3)


def test_single_records_average_to_the_estimate() -> None:
    scores, estimate = score(MODEL, POSTERIOR, RECORDS, 5, seed=1), over_draws(MODEL, POSTERIOR, RECORDS, 5, seed=1)
    assert scores.mean.shape == scores.deviation.shape == (400,)
    assert scores.mean.mean() == pytest.approx(estimate.mean)


def test_the_deviation_of_a_record_is_that_of_the_weights() -> None:
    assert score(MODEL, sharp(1e12), RECORDS, 5, seed=1).deviation.max() < 1e-3
    assert score(MODEL, POSTERIOR, RECORDS, 5, seed=1).deviation.min() > 1e-3


def test_more_records_than_fit_at_once_are_scored_in_parts() -> None:
    records = example_records(MODEL, 2300).fields
    assert score(MODEL, POSTERIOR, records, 2, seed=1).mean.shape == (2300,)
