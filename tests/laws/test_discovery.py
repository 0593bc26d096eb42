"""The laws look at what discovery finds, so it must find what is known to be there."""

import pytest
from discovery import names, primitives

KNOWN = {
    "families": {"full_rank_normal", "mean_field_normal", "unit_normal"},
    "likelihoods": {"bernoulli", "normal"},
    "layers": {"linear"},
    "models": {"ledger_model", "linear_regression", "vae"},
    "sources": {"arrays", "binarized", "integers"},
}


@pytest.mark.parametrize("subpackage", KNOWN)
def test_discovery_finds_at_least_the_known_implementations(subpackage: str) -> None:
    assert names(subpackage) >= KNOWN[subpackage]


def test_discovery_pairs_primitives_with_the_models_they_accept() -> None:
    found = {parameter.id for parameter in primitives()}
    assert found >= {"natural_gradient-vae", "adam-vae", "conjugate-linear_regression", "conjugate-ledger_model"}
    assert "conjugate-vae" not in found
