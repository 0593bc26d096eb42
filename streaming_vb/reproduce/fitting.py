"""A Bayesian VAE streamed by the library, for the figures that look at a fitted model."""

from typing import TYPE_CHECKING

from streaming_vb.evaluation.held_out import mean_weights
from streaming_vb.layers.layout import Weights
from streaming_vb.models.vae import VAE
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Progress
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import NaturalParameters, Primitive

if TYPE_CHECKING:
    from streaming_vb.streaming.run import Step


def stream(
    model: VAE,
    images: Images,
    records: int,
    seed: int,
    progress: Progress,
    primitive: Primitive | None = None,
    batch_size: int = 100,
) -> NaturalParameters:
    """The served posterior after `records` records, one worker, the library's defaults."""
    settings = Settings(records=records, seed=seed, batch_size=batch_size)
    step: Step | None = None
    for step in run(model, images.stream(records, seed), settings, primitive=primitive):
        if step.version % 100 == 0:
            progress(f"{step.records:,} of {records:,} records, ELBO {step.elbo:.1f}")
    assert step is not None
    return step.state().posterior


def weights(model: VAE, images: Images, records: int, seed: int, progress: Progress) -> Weights:
    """The mean weights of `stream`."""
    return mean_weights(model, stream(model, images, records, seed, progress))
