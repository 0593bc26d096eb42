"""The peer: an ordinary PyTorch VAE of the same shape, a point estimate trained with Adam.

No posterior over weights, no merge, nothing of this library but the data stream and the evaluation. Its weights lie in
the same order as ours, so the same function scores both.
"""

from collections.abc import Iterator

import numpy as np
import torch
from mnist import MODEL, NUM_COLUMNS
from torch import Tensor, nn
from torch.nn import functional

from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.prepared import remaining
from streaming_vb.types import Moments, NaturalParameters, Source


class PlainVAE(nn.Module):
    """784-500-(2x20) / 20-500-784 with ReLU; PyTorch's default initialisation."""

    def __init__(self) -> None:
        super().__init__()
        (hidden,), latent = MODEL.hidden, MODEL.latent
        self.encoder = nn.Sequential(nn.Linear(NUM_COLUMNS, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, NUM_COLUMNS))

    def loss(self, x: Tensor) -> Tensor:
        """Minus the ELBO of x [B, D] with one draw of z per record; nats per record."""
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl_latent = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum()
        return (reconstruction + kl_latent) / len(x)

    def as_posterior(self) -> NaturalParameters:
        """The weights as a distribution with this mean: what the common evaluation reads."""
        weights = nn.utils.parameters_to_vector(self.parameters()).detach().double().numpy()
        return MODEL.family.natural(Moments(weights, np.ones_like(weights)))


def train(source: Source, *, records: int, batch_size: int, rate: float, seed: int) -> PlainVAE:
    """One Adam step per `batch_size` records of the stream."""
    torch.manual_seed(seed)
    model = PlainVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    for x in minibatches(source, records, batch_size):
        step(model, optimizer, x)
    return model


def step(model: PlainVAE, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """One training step."""
    optimizer.zero_grad()
    model.loss(x).backward()
    optimizer.step()


def minibatches(source: Source, records: int, batch_size: int) -> Iterator[Tensor]:
    """The records that a run of the library reads, in the same order: the noise of a row does not depend on how it is
    cut."""
    for interval in remaining(source, Ledger(), batch_size, records):
        yield torch.from_numpy(source.read(interval)["x"])
