"""Time of one training step, one thread: the library's natural-gradient step against a plain VAE with fused Adam.

Both on the VAE 784-500-20, minibatches of 100. Ours is a whole local fit of 10 steps by the default primitive, from
arrays to evidence and fit state, minus the scoring of its records (the progressive evaluation, which no training step
needs), divided by 10; what an interval costs once (copies in and out, the prior's mean) is therefore in it. Reading
and binarizing data is in neither arm. The peer is nn.Linear, binary_cross_entropy_with_logits, autograd and
torch.optim.Adam(fused=True), also 10 steps a block.

The arms take turns, one block each, and every turn gives one ratio: read `results.ratio.median`, of processor times,
against the bar, and the quartiles for how sure it is; on an idle machine `ratio_on_the_wall` is the same.
`gemm_ratio` is what matrix products alone would give: ours does two where the peer does one (mean and variance forward
and backward to the inputs, gradient and squared gradient of the weights).

    python benchmarks/training_step.py
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import plain_vae
import torch
from mnist import MODEL, NUM_COLUMNS
from report import at_most, progress, write
from stopwatch import Seconds, clock, quartiles

from streaming_vb.inference import natural_gradient, neural
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Interval, Records

BAR = 2.6
"""Most that a step may cost, in steps of the peer."""
BATCH_SIZE = 100
NUM_STEPS = 10
_ON = 0.13
"""Share of pixels that are 1, as in MNIST."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    x = (np.random.default_rng(0).random((BATCH_SIZE * NUM_STEPS, NUM_COLUMNS)) < _ON).astype(np.float32)
    fit, score, plain = ours(x), scoring(x), peer(x)
    for warm_up in (fit, score, plain) * 3:
        warm_up()
    turns = []
    for turn in range(arguments.turns):
        turns.append(Turn(clock(fit), clock(score), clock(plain)))
        if (turn + 1) % 20 == 0:
            progress(f"{turn + 1} of {arguments.turns} turns")
    ours_ms, peer_ms = 1e3 / NUM_STEPS * np.array([turn.steps("processor") for turn in turns]).T
    ours_wall, peer_wall = 1e3 / NUM_STEPS * np.array([turn.steps("wall") for turn in turns]).T
    results = {
        "ratio": quartiles(ours_ms / peer_ms),
        "ratio_on_the_wall": quartiles(ours_wall / peer_wall),
        "gemm_ratio": 2.0,
        "ours_ms": quartiles(ours_ms),
        "peer_ms": quartiles(peer_ms),
        "ours_ms_on_the_wall": quartiles(ours_wall),
        "peer_ms_on_the_wall": quartiles(peer_wall),
    }
    settings = {"turns": arguments.turns, "batch_size": BATCH_SIZE, "steps": NUM_STEPS, "model": MODEL.describe()}
    write(settings, results, [at_most("results.ratio.median", results["ratio"]["median"], BAR)])


class Turn(NamedTuple):
    """One block of each arm."""

    fit: Seconds
    score: Seconds
    plain: Seconds

    def steps(self, which: str) -> tuple[float, float]:
        """Time of our steps, without the scoring, and of the peer's."""
        return getattr(self.fit, which) - getattr(self.score, which), getattr(self.plain, which)


def ours(x: np.ndarray) -> Callable[[], object]:
    """A local fit of the default primitive on x; it includes the scoring."""
    primitive = natural_gradient.build(MODEL, batch_size=BATCH_SIZE)
    prior = MODEL.prior(0).astype(MODEL.family.wire_dtype)
    fit_state = primitive.initial_state()
    records = Records(Interval("random", "pass-0", 0, len(x)), {"x": x})
    return lambda: primitive(prior, prior, fit_state, records, seed=1)


def scoring(x: np.ndarray) -> Callable[[], object]:
    """The scoring that a fit begins with."""
    mean = torch.from_numpy(MODEL.family.mean(MODEL.prior(0)).astype(np.float32))
    records, generator = Records(Interval("random", "pass-0", 0, len(x)), {"x": x}), torch_generator(1, "score")
    return lambda: neural.score_at_mean(MODEL, MODEL.layout, mean, records, generator)


def peer(x: np.ndarray) -> Callable[[], object]:
    """The same number of steps of the plain VAE."""
    model = plain_vae.PlainVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    minibatches = torch.from_numpy(x).split(BATCH_SIZE)
    return lambda: [plain_vae.step(model, optimizer, minibatch) for minibatch in minibatches]


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=100, help="blocks of each arm")
    return parser.parse_args()


if __name__ == "__main__":
    main()
