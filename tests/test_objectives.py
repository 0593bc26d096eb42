import torch

from streaming_vb.models.neural import Terms
from streaming_vb.objectives import elbo


def test_elbo_is_the_mean_over_draws_minus_the_kl_of_the_latents() -> None:
    terms = Terms(torch.tensor([[-1.0, -2.0], [-3.0, -8.0]]), torch.tensor([0.5, 1.0]))
    assert elbo(terms).tolist() == [-2.5, -6.0]
