"""One natural-gradient step of a normal posterior, in its natural parameters: the study form.

The bound is E_q[log p(D | w)] - KL(q || prior). Its natural gradient is its gradient with respect to the mean
parameters (m, V + m m'), so that no Fisher matrix is formed or inverted. With L(m, V) = E_q[log p(D | w)] a step is

    S <- (1 - rho) S + rho (S0 - 2 dL/dV)                        precision
    h <- (1 - rho) h + rho (h0 + dL/dm - 2 dL/dV m)              precision mean, h = S m

For a conjugate model the brackets are the natural parameters of the posterior, whatever q is: one step of rho = 1 is
exact. (Amari 1998; Khan and Lin 2017.)

-2 dL/dV is minus the expected Hessian of the log likelihood, and may have negative directions: the step then leaves the
distributions. `natural_gradient` is the form that fits networks: there a curvature that cannot be negative (the
empirical Fisher) stands in its place, with momentum and a trust region.
"""

from streaming_vb.errors import ConfigError, NumericalError
from streaming_vb.families.full_rank_normal import FullRankNormal
from streaming_vb.families.mean_field_normal import MeanFieldNormal
from streaming_vb.types import Array, NaturalParameters


def step(
    family: FullRankNormal | MeanFieldNormal,
    posterior: NaturalParameters,
    prior: NaturalParameters,
    gradient_mean: Array,
    gradient_covariance: Array,
    *,
    rho: float,
) -> NaturalParameters:
    """The posterior after one step of size rho, float64; no argument is changed.

    Args:
        family: of posterior and prior.
        posterior: q = N(m, V), where both gradients were taken.
        prior: S0 and h0.
        gradient_mean: dL/dm [P], nats.
        gradient_covariance: dL/dV [P, P]; for a mean-field q the gradient of the variance [P].
        rho: step size.

    Raises:
        ConfigError: rho is not in (0, 1], or a gradient has another shape than its parameter.
        NumericalError: the result is not a distribution.

    The record y = 3 ~ N(w, 1) and the prior N(0, 1), from q = N(1, 1/4), where dL/dm = 3 - m and dL/dv = -1/2:

    >>> import numpy as np
    >>> q = NaturalParameters({"precision_mean": np.array([4.0]), "precision": np.array([4.0])})
    >>> prior = NaturalParameters({"precision_mean": np.array([0.0]), "precision": np.array([1.0])})
    >>> exact = step(MeanFieldNormal(), q, prior, np.array([2.0]), np.array([-0.5]), rho=1.0)
    >>> exact["precision_mean"], exact["precision"]
    (array([3.]), array([2.]))
    """
    if not 0.0 < rho <= 1.0:
        raise ConfigError(f"natural-gradient step: rho must be above 0 and at most 1, got {rho}; rho=1 is a full step")
    _check_shape("gradient_mean", gradient_mean, posterior["precision_mean"])
    _check_shape("gradient_covariance", gradient_covariance, posterior["precision"])
    mean = family.mean(posterior)
    # -2 dL/dV along symmetric V: autograd may give the two entries of a covariance different halves
    curvature = -(gradient_covariance + gradient_covariance.T)
    curvature_mean = curvature @ mean if curvature.ndim == 2 else curvature * mean
    target = NaturalParameters(
        {
            "precision_mean": prior["precision_mean"] + gradient_mean + curvature_mean,
            "precision": prior["precision"] + curvature,
        }
    )
    stepped = family.add(posterior.scale(1.0 - rho), target.scale(rho))
    if not family.is_normalizable(stepped):
        raise NumericalError(
            f"natural-gradient step: rho={rho} gives a precision that is not positive, or not finite. "
            "Repeat it with a smaller rho, or check that both gradients are finite"
        )
    return stepped


def _check_shape(name: str, gradient: Array, parameter: Array) -> None:
    """A gradient of another shape would be broadcast."""
    if gradient.shape != parameter.shape:
        raise ConfigError(
            f"natural-gradient step: {name} has shape {gradient.shape}, expected {parameter.shape}. "
            "Take the gradient with respect to the mean [P] and the covariance [P, P] (mean-field: variance [P])"
        )
