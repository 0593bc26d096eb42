"""The laws look at what discovery finds, so it must find what is known to be there."""

import pytest
from discovery import modules, names, primitives

KNOWN = {
    "families": {"full_rank_normal", "mean_field_normal", "unit_normal"},
    "likelihoods": {"bernoulli", "categorical", "continuous_bernoulli", "normal", "poisson"},
    "layers": {"convolution", "linear", "transposed_convolution"},
    "models": {"convolutional_vae", "ledger_model", "linear_regression", "mlp", "two_layer_vae", "vae"},
    "sources": {"arrays", "binarized", "integers"},
}


@pytest.mark.parametrize("subpackage", KNOWN)
def test_discovery_finds_at_least_the_known_implementations(subpackage: str) -> None:
    assert names(subpackage) >= KNOWN[subpackage]


def test_discovery_pairs_primitives_with_the_models_they_accept() -> None:
    found = {parameter.id for parameter in primitives()}
    assert found >= {"natural_gradient-vae", "adam-vae", "conjugate-linear_regression", "conjugate-ledger_model"}
    assert found >= {f"natural_gradient-{model}" for model in ("convolutional_vae", "mlp", "two_layer_vae")}
    assert found >= {f"kronecker-{model}" for model in ("mlp", "two_layer_vae", "vae")}
    assert found.isdisjoint({"conjugate-vae", "kronecker-convolutional_vae"})


def test_every_primitive_accepts_a_model() -> None:
    """One that refused them all would be bound by no law."""
    offered = {name for name, module in modules("inference") if hasattr(module, "build")}
    assert offered >= {"adam", "conjugate", "kronecker", "natural_gradient"}
    assert offered == {str(parameter.id).split("-")[0] for parameter in primitives()}
