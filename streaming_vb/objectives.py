"""Bounds on the log likelihood, from a model's per-record terms. Unit: nats per record."""

from torch import Tensor

from streaming_vb.models.neural import Terms


def elbo(terms: Terms) -> Tensor:
    """E_q(z|x)[log p(x | z, w)] - KL(q(z | x, w) || p(z)) per record [B], estimated with the S draws of `terms`.

    The KL of the weights is not in it: it is paid once per interval, through the proximal pull of the local fit.
    (Kingma and Welling 2014, equation 7.)
    """
    return terms.log_likelihood.mean(0) - terms.kl_latent
