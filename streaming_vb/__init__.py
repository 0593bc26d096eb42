"""Streaming variational Bayes: a posterior over every weight of a model, always current, each record counted once.

The names below load on first use, so that importing the package loads neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaming_vb.evaluation.progressive import Progressive as Progressive
    from streaming_vb.families.full_rank_normal import FullRankNormal as FullRankNormal
    from streaming_vb.families.mean_field_normal import MeanFieldNormal as MeanFieldNormal
    from streaming_vb.likelihoods.bernoulli import Bernoulli as Bernoulli
    from streaming_vb.likelihoods.normal import Normal as Normal
    from streaming_vb.models.linear_regression import LinearRegression as LinearRegression
    from streaming_vb.models.vae import VAE as VAE
    from streaming_vb.sources.arrays import ArraySource as ArraySource
    from streaming_vb.sources.binarized import BinarizedSource as BinarizedSource
    from streaming_vb.streaming.run import Settings as Settings
    from streaming_vb.streaming.run import Step as Step
    from streaming_vb.streaming.run import run as run
    from streaming_vb.streaming.snapshot import load as load
    from streaming_vb.streaming.snapshot import save as save

__version__ = "0.1.0"

_HOMES = {
    "ArraySource": "sources.arrays",
    "Bernoulli": "likelihoods.bernoulli",
    "BinarizedSource": "sources.binarized",
    "FullRankNormal": "families.full_rank_normal",
    "LinearRegression": "models.linear_regression",
    "MeanFieldNormal": "families.mean_field_normal",
    "Normal": "likelihoods.normal",
    "Progressive": "evaluation.progressive",
    "Settings": "streaming.run",
    "Step": "streaming.run",
    "VAE": "models.vae",
    "load": "streaming.snapshot",
    "run": "streaming.run",
    "save": "streaming.snapshot",
}

__all__ = [
    "VAE",
    "ArraySource",
    "Bernoulli",
    "BinarizedSource",
    "FullRankNormal",
    "LinearRegression",
    "MeanFieldNormal",
    "Normal",
    "Progressive",
    "Settings",
    "Step",
    "load",
    "run",
    "save",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
