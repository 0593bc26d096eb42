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
    from streaming_vb.likelihoods.categorical import Categorical as Categorical
    from streaming_vb.likelihoods.continuous_bernoulli import ContinuousBernoulli as ContinuousBernoulli
    from streaming_vb.likelihoods.normal import Normal as Normal
    from streaming_vb.likelihoods.poisson import Poisson as Poisson
    from streaming_vb.models.convolutional_vae import ConvolutionalVAE as ConvolutionalVAE
    from streaming_vb.models.linear_regression import LinearRegression as LinearRegression
    from streaming_vb.models.mlp import MLP as MLP
    from streaming_vb.models.two_layer_vae import TwoLayerVAE as TwoLayerVAE
    from streaming_vb.models.vae import VAE as VAE
    from streaming_vb.sources.arrays import ArraySource as ArraySource
    from streaming_vb.sources.binarized import BinarizedSource as BinarizedSource
    from streaming_vb.streaming.run import Step as Step
    from streaming_vb.streaming.run import run as run
    from streaming_vb.streaming.run import run_processes as run_processes
    from streaming_vb.streaming.settings import Settings as Settings
    from streaming_vb.streaming.snapshot import load as load
    from streaming_vb.streaming.snapshot import save as save

__version__ = "0.1.0"

_HOMES = {
    "ArraySource": "sources.arrays",
    "Bernoulli": "likelihoods.bernoulli",
    "BinarizedSource": "sources.binarized",
    "Categorical": "likelihoods.categorical",
    "ContinuousBernoulli": "likelihoods.continuous_bernoulli",
    "ConvolutionalVAE": "models.convolutional_vae",
    "FullRankNormal": "families.full_rank_normal",
    "LinearRegression": "models.linear_regression",
    "MLP": "models.mlp",
    "MeanFieldNormal": "families.mean_field_normal",
    "Normal": "likelihoods.normal",
    "Poisson": "likelihoods.poisson",
    "Progressive": "evaluation.progressive",
    "Settings": "streaming.settings",
    "Step": "streaming.run",
    "TwoLayerVAE": "models.two_layer_vae",
    "VAE": "models.vae",
    "load": "streaming.snapshot",
    "run": "streaming.run",
    "run_processes": "streaming.run",
    "save": "streaming.snapshot",
}

__all__ = [
    "MLP",
    "VAE",
    "ArraySource",
    "Bernoulli",
    "BinarizedSource",
    "Categorical",
    "ContinuousBernoulli",
    "ConvolutionalVAE",
    "FullRankNormal",
    "LinearRegression",
    "MeanFieldNormal",
    "Normal",
    "Poisson",
    "Progressive",
    "Settings",
    "Step",
    "TwoLayerVAE",
    "load",
    "run",
    "run_processes",
    "save",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
