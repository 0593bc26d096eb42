"""The pictures of a run directory: learning curve; records, reconstructions and samples; latent map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming_vb.types import Array, NaturalParameters

if TYPE_CHECKING:
    from streaming_vb.cli.chosen_model import VAEModel
    from streaming_vb.sources.datasets import Dataset

_TILES = 12
_POINTS = 3000
_SEED = 0


def draw(
    directory: Path,
    model: "VAEModel",
    posterior: NaturalParameters,
    dataset: "Dataset",
    x: Array,
    rows: Sequence[Mapping[str, Any]],
    held_out: float,
) -> str:
    """Write the pictures to directory/plots; returns a line that says where, or what is missing.

    Args:
        directory: of the run.
        model, posterior: what was fitted; pictures use its mean.
        dataset: gives labels and the shape of a record.
        x: held-out records as the model sees them [m, D].
        rows: metrics of the run.
        held_out: ELBO at the end, nats per record.
    """
    try:
        from streaming_vb.plots import images, latent_map, learning_curve
    except ImportError:
        return "pictures   none: type pip install 'streaming-vb[plots]'"
    import torch

    from streaming_vb.evaluation.held_out import mean_weights
    from streaming_vb.seeding import torch_generator

    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    if any(row["status"] == "merged" for row in rows):
        learning_curve.draw(rows, held_out, plots / "learning_curve.png")
    weights, generator = mean_weights(model, posterior), torch_generator(_SEED, "pictures")
    with torch.no_grad():
        latent, _ = model.encode(weights, torch.from_numpy(x[:_POINTS]), generator)
        reconstructed = model.likelihood.mean(model.decode(weights, latent[:_TILES], generator))
    records = dataset.test_values()[:_TILES]
    tiles = {
        "held-out records": records,
        "reconstructions": reconstructed.numpy(),
        "samples": samples(model, posterior, _TILES, _SEED),
    }
    images.draw(
        {title: images.shades(row, records) for title, row in tiles.items()}, dataset.shape, plots / "images.png"
    )
    labels = None if dataset.test_labels is None else dataset.test_labels[:_POINTS]
    latent_map.draw(latent.numpy(), labels, plots / "latent_map.png")
    return f"pictures   {plots}/learning_curve.png  images.png  latent_map.png"


def samples(model: "VAEModel", posterior: NaturalParameters, count: int, seed: int) -> Array:
    """E[x | z] for z from its prior, at the mean weights [count, D]."""
    import torch

    from streaming_vb.evaluation.held_out import mean_weights
    from streaming_vb.seeding import torch_generator

    weights, generator = mean_weights(model, posterior), torch_generator(seed, "samples")
    with torch.no_grad():
        z = model.sample_latent(weights, count, generator)
        drawn: Array = model.likelihood.mean(model.decode(weights, z, generator)).numpy()
    return drawn
