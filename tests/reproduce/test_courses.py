"""What the arms of a comparison descend, against the same thing written out; and that they start alike."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from streaming_vb.evaluation.held_out import mean_weights
from streaming_vb.layers import dropout_divergence
from streaming_vb.layers.layout import Weights
from streaming_vb.models.neural import Minibatch
from streaming_vb.models.vae import VAE
from streaming_vb.objectives import elbo
from streaming_vb.reproduce import courses, training
from streaming_vb.reproduce.images import Images
from streaming_vb.seeding import torch_generator

MODEL = VAE(12, hidden=(9,), latent=2)
RATE = 0.01
SEED = 3


def images() -> Images:
    grey = np.random.default_rng(0).integers(0, 17, (70, 12)).astype(np.uint8)
    return Images("grey", grey[:50], np.zeros(50, int), grey[50:], np.zeros(20, int), 1 / 16, (3, 4))


def minibatch() -> Minibatch:
    return next(training.minibatches(images().stream(100, SEED), 100, 20))


def test_minibatches_are_those_of_a_streamed_run() -> None:
    source = images().stream(100, SEED)
    read = [source.read(interval)["x"] for interval in source.intervals({}, 20)]
    ours = [minibatch["x"].numpy() for minibatch in training.minibatches(source, 100, 20)]
    assert [len(x) for x in ours] == [20, 20, 10, 20, 20, 10]  # two passes over 50 images
    assert all(np.array_equal(a, b) for a, b in zip(ours, read, strict=True))


def test_the_first_step_of_adam_moves_every_weight_by_the_rate_against_its_gradient() -> None:
    before = training.prior_centre(MODEL, SEED)
    expected = mean_weights(MODEL, MODEL.prior(SEED)).mean
    assert all(torch.equal(before[name], expected[name]) for name in expected)
    generator = torch_generator(SEED, "plain")
    loss = -elbo(MODEL.terms(Weights(before), minibatch(), generator)).mean()
    gradients = dict(zip(before, torch.autograd.grad(loss, list(before.values())), strict=True))

    after = next(courses.plain(MODEL, images(), 100, SEED, batch_size=20, rate=RATE))().mean
    for name, gradient in gradients.items():
        moved = after[name] - before[name].detach()
        clear = gradient.abs() > 1e-5  # Adam adds 1e-8
        assert clear.any()
        assert torch.allclose(moved[clear], -RATE * gradient[clear].sign(), rtol=2e-3)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Mapping[str, Tensor], Tensor]]:
    """Parameters and first loss of the dropout arm for a number of records."""

    def first(records: int) -> tuple[Mapping[str, Tensor], Tensor]:
        kept: list[tuple[Mapping[str, Tensor], Tensor]] = []

        def adam(
            parameters: Mapping[str, Tensor],
            loss: Callable[[Minibatch], Tensor],
            minibatches: Iterable[Minibatch],
            rate: float,
        ) -> Iterator[int]:
            kept.append((parameters, loss(minibatch()).detach()))
            yield 1

        monkeypatch.setattr(training, "adam", adam)
        next(courses.variational_dropout(MODEL, images(), records, SEED, batch_size=20, rate=RATE))
        return kept[0]

    return first


def test_the_dropout_arm_descends_minus_the_elbo_plus_its_kl_per_record(
    losses: Callable[[int], tuple[Mapping[str, Tensor], Tensor]],
) -> None:
    (parameters, few), (_, many) = losses(20), losses(80)
    kl = 9 * float(dropout_divergence.exact(torch.tensor(math.log(courses.ALPHA))))  # one noise per hidden unit
    assert float(few - many) == pytest.approx(kl / 20 - kl / 80, rel=1e-4)

    generator = torch_generator(SEED, "variational dropout")
    noise = 1 + math.sqrt(courses.ALPHA) * torch.randn(20, 9, generator=generator)
    weights, x = Weights({name: tensor.detach() for name, tensor in parameters.items()}), minibatch()["x"]
    hidden = torch.relu(functional.linear(x, weights.mean["encoder.0.weight"], weights.mean["encoder.0.bias"])) * noise
    mean, log_variance = functional.linear(
        hidden, weights.mean["encoder.1.weight"], weights.mean["encoder.1.bias"]
    ).chunk(2, -1)
    z = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    draw = mean + z.scale * torch.randn(1, 20, 2, generator=generator)[0]
    log_likelihood = torch.distributions.Bernoulli(logits=MODEL.decode(weights, draw, generator)).log_prob(x).sum(-1)
    kl_latent = torch.distributions.kl_divergence(z, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    assert float(few) == pytest.approx(float(-(log_likelihood - kl_latent).mean()) + kl / 20, rel=1e-5)


def test_the_dropout_arm_learns_alpha_and_is_measured_without_noise() -> None:
    *_, last = courses.variational_dropout(MODEL, images(), 100, SEED, batch_size=20, rate=RATE)
    weights = last()
    log_alpha = weights.mean["encoder.1.log_alpha"]
    assert log_alpha.shape == (9,)
    assert not torch.equal(log_alpha, torch.full((9,), math.log(courses.ALPHA)))
    x = torch.from_numpy(images().held_out())
    without = Weights({name: tensor for name, tensor in weights.mean.items() if name != "encoder.1.log_alpha"})
    assert courses.measure(MODEL, weights, x) == courses.measure(MODEL, without, x)


def test_a_natural_gradient_course_has_an_item_per_interval_at_the_served_mean() -> None:
    course = courses.natural_gradient(MODEL, images(), 100, SEED, batch_size=20)
    moments = [weights().mean["decoder.1.bias"].clone() for weights in course]
    assert len(moments) == 6
    assert not torch.equal(moments[0], moments[-1])
    start = training.prior_centre(MODEL, SEED)["decoder.1.bias"].detach()
    assert float((moments[0] - start).abs().max()) < 0.1  # one step away


def test_the_bound_is_the_difference_of_its_terms() -> None:
    weights = Weights(training.prior_centre(MODEL, SEED))
    bound = courses.measure(MODEL, weights, torch.from_numpy(images().held_out()))
    assert bound.elbo == pytest.approx(bound.reconstruction - bound.kl, abs=1e-5)
