from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from checks import fingerprint
from stubs import SMALL_VAE, binary_source

from streaming_vb.errors import DataError, NumericalError
from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.inference import natural_gradient
from streaming_vb.objectives import Elbo
from streaming_vb.seeding import interval_seed
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.streaming.forgetting import Window
from streaming_vb.streaming.local_update import LocalUpdate
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Fit, FitState, Lease, Moments, NaturalParameters, Records, Snapshot

FAMILY = MeanFieldNormal()
PRIOR = FAMILY.natural(Moments(np.zeros(2), np.ones(2))).astype(np.float32)
POSTERIOR = FAMILY.natural(Moments(np.ones(2), np.full(2, 0.2))).astype(np.float32)
SOURCE = ArraySource({"x": np.arange(20.0).reshape(10, 2)}, seed=None)


class Particular:
    """A model that refuses the number 19."""

    def validate(self, records: Records) -> None:
        if (records["x"] == 19).any():
            raise DataError("record 9 column 1 is 19")


@dataclass(frozen=True)
class Recorder:
    """A primitive that remembers what it was given."""

    evidence: float = 1.0
    momentum: float = 0.0
    is_cautious: bool = False
    counted: int = -1
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, **arguments: Any) -> Fit:
        self.calls.append({**arguments, "is_cautious": self.is_cautious, "counted": self.counted})
        natural = NaturalParameters({"precision_mean": np.ones(2), "precision": np.full(2, self.evidence)})
        return Fit(natural, {"momentum": np.full(2, self.momentum)}, -1.5)

    def describe(self) -> dict[str, object]:
        return {"primitive": "stub"}

    def initial_state(self) -> FitState:
        return {"momentum": np.zeros(2)}

    def cautious(self) -> "Recorder":
        return replace(self, is_cautious=True)

    def after(self, num_records: int) -> "Recorder":
        return replace(self, counted=num_records)


def lease_of(start: int, stop: int, attempt: int = 0, share: float = 0.5) -> Lease:
    interval = replace(next(SOURCE.intervals({}, 10)), start=start, stop=stop)
    return Lease(interval, attempt, 3, share, 0.5)


def update(primitive: Any, lease: Lease, num_records: int = 4000) -> Any:
    model: Any = Particular()
    local_update = LocalUpdate("run", model, primitive, SOURCE, PRIOR, Window(FAMILY), 7)
    return local_update(lease, Snapshot(3, num_records, POSTERIOR, {"momentum": np.zeros(2)}))


def test_the_prior_of_a_fit_is_its_share_of_the_posterior() -> None:
    primitive = Recorder()
    update(primitive, lease_of(0, 5, share=0.5))
    assert fingerprint(primitive.calls[0]["prior"]) == fingerprint(POSTERIOR.scale(0.5))


def test_noise_is_drawn_from_the_served_posterior() -> None:
    primitive = Recorder()
    update(primitive, lease_of(0, 5), num_records=4000)
    np.testing.assert_allclose(primitive.calls[0]["served"]["precision"], 1 + 2 * 4, rtol=1e-6)


def test_the_fit_gets_the_records_of_its_interval_and_their_seed() -> None:
    primitive = Recorder()
    update(primitive, lease_of(2, 5, attempt=1))
    np.testing.assert_array_equal(primitive.calls[0]["records"]["x"], np.arange(4.0, 10.0).reshape(3, 2))
    assert primitive.calls[0]["seed"] == interval_seed(7, lease_of(2, 5).interval, 1)


def test_only_the_second_attempt_is_cautious() -> None:
    primitive = Recorder()
    update(primitive, lease_of(0, 5, attempt=0))
    update(primitive, lease_of(0, 5, attempt=1))
    assert [call["is_cautious"] for call in primitive.calls] == [False, True]


@pytest.mark.parametrize(("attempt", "num_records"), [(0, 0), (0, 4000), (1, 4000)])
def test_an_annealed_primitive_is_as_the_records_of_the_snapshot_have_it(attempt: int, num_records: int) -> None:
    """On the second attempt too."""
    primitive = Recorder()
    update(primitive, lease_of(0, 5, attempt), num_records)
    assert (primitive.calls[0]["counted"], primitive.calls[0]["is_cautious"]) == (num_records, attempt == 1)


def test_a_warm_up_is_that_of_the_snapshot() -> None:
    """Half way, a fit is bit for bit that of half the weight; afterwards that of the ELBO."""
    source, prior = binary_source(50), SMALL_VAE.prior(0).astype(np.float32)
    (interval,) = source.intervals({}, 50)

    def fit(objective: Elbo, num_records: int) -> str:
        primitive = natural_gradient.build(SMALL_VAE, batch_size=10, objective=objective)
        local_update = LocalUpdate("run", SMALL_VAE, primitive, source, prior, Window(SMALL_VAE.family), 7)
        snapshot = Snapshot(3, num_records, prior, primitive.initial_state())
        delta = local_update(Lease(interval, 0, 3, 1.0, 1.0), snapshot)
        return fingerprint(delta.fit.natural, delta.fit.fit_state)

    rising = Elbo(warm_up=1000)
    assert fit(rising, 500) == fit(Elbo(kl_weight=0.5), 500)
    assert fit(rising, 1000) == fit(rising, 1001) == fit(Elbo(), 0)
    assert len({fit(rising, number) for number in (0, 250, 500, 1000)}) == 4


@pytest.mark.parametrize("workers", [2, 4])
def test_a_warm_up_is_the_same_for_any_number_of_workers(workers: int) -> None:
    settings = Settings(mode="ordered", batch_size=5, local_steps=4, ramp=40, round_size=3)

    def bits(number: int, warm_up: int) -> str:
        primitive = natural_gradient.build(SMALL_VAE, batch_size=5, objective=Elbo(warm_up=warm_up))
        *_, last = run(SMALL_VAE, binary_source(190), settings, workers=number, primitive=primitive)
        return fingerprint(last.state().posterior, last.state().fit_state)

    assert bits(workers, 150) == bits(1, 150) != bits(1, 0)


def test_the_delta_says_what_it_came_from() -> None:
    delta = update(Recorder(), lease_of(2, 5))
    assert (delta.run_id, delta.lease, delta.num_records, delta.fit.elbo) == ("run", lease_of(2, 5), 3, -1.5)


@pytest.mark.parametrize("broken", [{"evidence": np.nan}, {"evidence": np.inf}, {"momentum": np.nan}])
def test_a_fit_that_is_not_finite_is_an_error_that_names_what_broke(broken: dict[str, float]) -> None:
    with pytest.raises(NumericalError, match=r"precision|momentum") as raised:
        update(Recorder(**broken), lease_of(0, 5, attempt=1))
    assert "pass-0[0:5]" in str(raised.value)
    assert "attempt 2" in str(raised.value)


def test_records_are_checked_before_they_are_fitted() -> None:
    primitive = Recorder()
    with pytest.raises(DataError, match="record 9"):
        update(primitive, lease_of(5, 10))
    assert primitive.calls == []
