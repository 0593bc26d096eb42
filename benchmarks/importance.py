"""Importance-sampled log likelihood (`streaming_vb.evaluation.importance`): against a closed form, and how fast it is.

1,000 images of 784 columns, 5,000 samples of 50 latent dimensions each, one thread. Two models:

    linear-gaussian  encoder and decoder linear, normal likelihood: log p(x) is known in closed form. Images are drawn
                     from the model; the encoder is made wrong in mean and variance, so that there is something to do
    bernoulli        784-500-50, at the mean weights of the prior, random binary images: speed alone

Read `results.error.standard_errors` against the bar: the mean over images of the difference to the closed form, over
its standard error. `elbo` beside it is where one sample would lead.

For speed, ours is compared with three loops over the same weights:

    sample by sample             for every image and every sample: encode, draw, decode, score, a batch of one, written
                                 with nn.Linear and torch.distributions
    sample by sample, our terms  the same loop over the library's own `encode` and `log_weights`, which are leaner
    chunk by chunk               for every image and every 100 samples: encode 100 copies of the image, then a draw for
                                 each, as the `get_nll` of pythae does (Chadebec, Vincent and Allassonniere 2022)

The loops run on a part of the work, in turns with ours, and are read per image and sample; `seconds_for_all` is that
figure times images and samples, an extrapolation. `log_likelihood` of an arm, over the images of its turns, says that
it computes the same. Read `results.speed.*.*.ratio.median`, of processor times, against the bar; on an idle machine
`ratio_on_the_wall` is the same.

    python benchmarks/importance.py
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and torch load

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mnist import NUM_COLUMNS
from report import at_least, at_most, progress, write
from stopwatch import Seconds, clock, quartiles
from torch import Tensor, distributions, nn

from streaming_vb import VAE, Normal
from streaming_vb.evaluation import importance
from streaming_vb.evaluation.held_out import mean_weights
from streaming_vb.layers.layout import Weights
from streaming_vb.layers.linear import Linear
from streaming_vb.seeding import torch_generator
from streaming_vb.types import Array

BARS = {"standard_errors": 3.0, "sample by sample": 50.0}
"""Largest error, and least ratio of times; both for the linear-Gaussian model."""
LATENT = 50
CHUNK = 100
"""pythae's default."""
NOISE = 0.3
SHIFT, SPREAD = 0.1, 1.2
"""Of the encoder: its mean is off by so many posterior standard deviations, its variance by that factor."""
LOG_SCALE_BOUND = 5.0
"""Of the normal likelihood: log standard deviation = bound tanh(raw / bound)."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    oracle = linear_gaussian(np.random.default_rng(0))
    x = oracle.sample(arguments.images, np.random.default_rng(1))
    error = accuracy(oracle, x, arguments.samples)
    bernoulli = VAE(NUM_COLUMNS, hidden=(500,), latent=LATENT)
    binary = (np.random.default_rng(2).random((arguments.images, NUM_COLUMNS)) < 0.13).astype(np.float32)
    speed = {
        "linear-gaussian": compare(oracle.model, oracle.weights(), x, arguments),
        "bernoulli": compare(bernoulli, mean_weights(bernoulli, bernoulli.prior(0)), binary, arguments),
    }
    ratio = speed["linear-gaussian"]["sample by sample"]["ratio"]["median"]
    bars = [
        at_most("results.error.standard_errors", error["standard_errors"], BARS["standard_errors"]),
        at_least("results.speed.linear-gaussian.sample by sample.ratio.median", ratio, BARS["sample by sample"]),
    ]
    settings = {
        "images": arguments.images,
        "samples": arguments.samples,
        "turns": arguments.turns,
        "latent": LATENT,
        "encoder_shift": SHIFT,
        "encoder_spread": SPREAD,
        "models": {"linear-gaussian": oracle.model.describe(), "bernoulli": bernoulli.describe()},
    }
    write(settings, {"error": error, "speed": speed}, bars)


class LinearGaussian(NamedTuple):
    """x = W z + b + s e with z, e ~ N(0, I); the columns of W are orthogonal, so that p(z | x) is diagonal."""

    loading: Array
    offset: Array

    @property
    def model(self) -> VAE:
        """The VAE whose weights `weights` gives."""
        return VAE(NUM_COLUMNS, hidden=(), latent=LATENT, likelihood=Normal())

    @property
    def latent_variance(self) -> Array:
        """Of z given x [Z]."""
        return 1 / (1 + np.square(self.loading).sum(axis=0) / NOISE**2)

    def sample(self, num_images: int, generator: np.random.Generator) -> Array:
        """x [n, D]."""
        z, noise = generator.standard_normal((num_images, LATENT)), generator.standard_normal((num_images, NUM_COLUMNS))
        return z @ self.loading.T + self.offset + NOISE * noise

    def log_density(self, x: Array) -> Array:
        """log N(x; b, W W' + s^2 I) [n], nats."""
        covariance = self.loading @ self.loading.T + NOISE**2 * np.eye(NUM_COLUMNS)
        residual = x - self.offset
        squared = (residual * np.linalg.solve(covariance, residual.T).T).sum(axis=1)
        return -0.5 * (squared + np.linalg.slogdet(2 * np.pi * covariance).logabsdet)

    def kl_of_encoder(self) -> float:
        """KL(q(z | x) || p(z | x)), nats, the same for every x."""
        return 0.5 * LATENT * (SPREAD + SHIFT**2 - 1 - math.log(SPREAD))

    def weights(self) -> Weights:
        """Weights that make the VAE this model, with the wrong encoder."""
        layout = self.model.layout
        views = {name: view.numpy() for name, view in layout.views(torch.zeros(layout.num_weights)).items()}
        projection = (self.loading / NOISE**2 * self.latent_variance).T
        views["encoder.0.weight"][:LATENT] = projection
        views["encoder.0.bias"][:LATENT] = SHIFT * np.sqrt(self.latent_variance) - projection @ self.offset
        views["encoder.0.bias"][LATENT:] = np.log(SPREAD * self.latent_variance)
        views["decoder.0.weight"][:NUM_COLUMNS] = self.loading
        views["decoder.0.bias"][:NUM_COLUMNS] = self.offset
        views["decoder.0.bias"][NUM_COLUMNS:] = LOG_SCALE_BOUND * math.atanh(math.log(NOISE) / LOG_SCALE_BOUND)
        return Weights({name: torch.from_numpy(view) for name, view in views.items()})


def linear_gaussian(generator: np.random.Generator) -> LinearGaussian:
    """Directions of different length, and an offset."""
    directions = np.linalg.qr(generator.standard_normal((NUM_COLUMNS, LATENT))).Q
    return LinearGaussian(directions * np.linspace(0.2, 3.0, LATENT), generator.normal(0.5, 1.0, NUM_COLUMNS))


def accuracy(oracle: LinearGaussian, x: Array, num_samples: int) -> dict[str, Any]:
    """All images, all samples, beside the closed form; nats per image."""
    sampled: list[importance.ImportanceSampled] = []

    def run() -> None:
        for part in importance.stream(oracle.model, oracle.weights(), x, num_samples=num_samples, seed=0):
            sampled.append(part)
            if len(sampled) % 100 == 0:
                progress(f"linear-gaussian: {len(sampled):,} of {len(x):,} images")

    seconds = clock(run)
    whole, exact = importance.join(sampled), oracle.log_density(x)
    difference = whole.log_likelihood - exact
    standard_error = float(difference.std(ddof=1) / math.sqrt(len(x)))
    return {
        "standard_errors": abs(float(difference.mean())) / standard_error,
        "difference": float(difference.mean()),
        "standard_error": standard_error,
        "log_likelihood": float(whole.log_likelihood.mean()),
        "closed_form": float(exact.mean()),
        "elbo": float(exact.mean()) - oracle.kl_of_encoder(),
        "effective_sample_size": quartiles(whole.effective_sample_size.tolist()),
        "seconds": seconds.wall,
        "processor_seconds": seconds.processor,
    }


def compare(model: VAE, weights: Weights, x: Array, arguments: Namespace) -> dict[str, Any]:
    """Microseconds per image and sample of ours and of the loops, in turns."""
    rows = torch.from_numpy(x.astype(np.float32))
    generator = torch_generator(0, "loops")
    plain = PlainVAE.of(model, weights)
    few, chunks = 500, 20
    arms = {
        "ours": Arm(lambda image: ours(model, weights, x[[image]], arguments.samples), arguments.samples),
        "sample by sample": Arm(lambda image: sample_by_sample(plain, rows[[image]], few), few),
        "sample by sample, our terms": Arm(lambda image: our_terms(model, weights, rows[[image]], few, generator), few),
        "chunk by chunk": Arm(
            lambda image: chunk_by_chunk(model, weights, rows[[image]], chunks, generator), chunks * CHUNK
        ),
    }
    for turn in range(-2, arguments.turns):  # the first two warm up
        for arm in arms.values():
            arm.run(image=turn % len(x), keep=turn >= 0)
    work = len(x) * arguments.samples
    figures = {name: arm.figures(arms["ours"], work) for name, arm in arms.items()}
    for name, arm_figures in figures.items():
        progress(
            f"{name}: {arm_figures['microseconds']['median']:.1f} microseconds per image and sample, "
            f"{arm_figures['ratio']['median']:.1f} times ours"
        )
    return figures


class Arm:
    """One way to do it, and how long it took per image and sample."""

    def __init__(self, action: Callable[[int], float], num_samples: int) -> None:
        self._action, self._num_samples = action, num_samples
        self.seconds: list[Seconds] = []
        self._log_likelihood: list[float] = []

    def run(self, *, image: int, keep: bool) -> None:
        """Do it for one image."""
        found: list[float] = []
        seconds = clock(lambda: found.append(self._action(image)))
        if keep:
            self._log_likelihood += found
            self.seconds.append(Seconds(*(part / self._num_samples for part in seconds)))

    def figures(self, ours: "Arm", work: int) -> dict[str, Any]:
        """Time per image and sample, for all of them, and in times of ours, turn by turn."""
        wall, processor = np.array(self.seconds).T
        our_wall, our_processor = np.array(ours.seconds).T
        return {
            "log_likelihood": float(np.mean(self._log_likelihood)),
            "microseconds": quartiles(1e6 * processor),
            "microseconds_on_the_wall": quartiles(1e6 * wall),
            "seconds_for_all": work * float(np.median(processor)),
            "ratio": quartiles(processor / our_processor),
            "ratio_on_the_wall": quartiles(wall / our_wall),
        }


class PlainVAE(NamedTuple):
    """The same VAE as it is usually written."""

    encoder: nn.Sequential
    decoder: nn.Sequential
    likelihood: Callable[[Tensor], distributions.Distribution]

    @classmethod
    def of(cls, model: VAE, weights: Weights) -> "PlainVAE":
        """A copy of the weights."""

        def stack(layers: tuple[Linear, ...]) -> nn.Sequential:
            modules: list[nn.Module] = []
            for layer in layers:
                modules += [linear := nn.Linear(layer.num_inputs, layer.num_outputs), nn.ReLU()]
                nn.utils.vector_to_parameters(
                    torch.cat([weights.mean[layer.weight].flatten(), weights.mean[layer.bias]]), linear.parameters()
                )
            return nn.Sequential(*modules[:-1])

        likelihood = normal if model.likelihood.name == "normal" else bernoulli
        return cls(stack(model.encoder), stack(model.decoder), likelihood)


def normal(outputs: Tensor) -> distributions.Distribution:
    """p(x | outputs) of the library's normal likelihood."""
    mean, raw = outputs.chunk(2, dim=-1)
    return distributions.Normal(mean, torch.exp(LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND)))


def bernoulli(outputs: Tensor) -> distributions.Distribution:
    """p(x | outputs) of the library's Bernoulli likelihood."""
    return distributions.Bernoulli(logits=outputs)


def ours(model: VAE, weights: Weights, x: Array, num_samples: int) -> float:
    """log p(x) of one image [1, D]."""
    sampled = importance.join(importance.stream(model, weights, x, num_samples=num_samples, seed=0))
    return float(sampled.log_likelihood[0])


def sample_by_sample(vae: PlainVAE, x: Tensor, num_samples: int) -> float:
    """log p(x) of one image [1, D]; every sample encodes it."""
    log_weights = []
    with torch.no_grad():
        prior = distributions.Normal(torch.zeros(1, LATENT), torch.ones(1, LATENT))
        for _ in range(num_samples):
            mean, log_variance = vae.encoder(x).chunk(2, dim=-1)
            q = distributions.Normal(mean, torch.exp(0.5 * log_variance))
            z = q.sample()
            log_joint = vae.likelihood(vae.decoder(z)).log_prob(x).sum() + prior.log_prob(z).sum()
            log_weights.append(float(log_joint - q.log_prob(z).sum()))
    return float(np.logaddexp.reduce(log_weights)) - math.log(num_samples)


def our_terms(model: VAE, weights: Weights, x: Tensor, num_samples: int, generator: torch.Generator) -> float:
    """The same by the library's own methods."""
    log_weights = []
    with torch.no_grad():
        for _ in range(num_samples):
            encoding = model.encode(weights, x, generator)
            log_weights.append(float(model.log_weights(weights, x, encoding, 1, generator)))
    return float(np.logaddexp.reduce(log_weights)) - math.log(num_samples)


def chunk_by_chunk(model: VAE, weights: Weights, x: Tensor, num_chunks: int, generator: torch.Generator) -> float:
    """log p(x) of one image [1, D]; every chunk encodes as many copies as it has samples."""
    log_weights = []
    with torch.no_grad():
        for _ in range(num_chunks):
            copies = torch.cat(CHUNK * [x])
            encoding = model.encode(weights, copies, generator)
            log_weights.append(model.log_weights(weights, copies, encoding, 1, generator)[0])
    return float(torch.cat(log_weights).logsumexp(0)) - math.log(num_chunks * CHUNK)


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=importance.NUM_SAMPLES, help="per image")
    parser.add_argument("--turns", type=int, default=30, help="images on which the loops are timed, beside ours")
    return parser.parse_args()


if __name__ == "__main__":
    main()
