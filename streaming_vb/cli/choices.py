"""Names that a user may type, in one literal table, and where each one lives. Values load on first use."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from streaming_vb.errors import ConfigError

ENGINES = ("inline", "simulated", "processes", "ray")

PRIMITIVES = {
    "natural-gradient": "streaming_vb.inference.natural_gradient:build",
    "adam": "streaming_vb.inference.adam:build",
    "kronecker": "streaming_vb.inference.kronecker:build",
}
LIKELIHOODS = {
    "bernoulli": "streaming_vb.likelihoods.bernoulli:Bernoulli",
    "continuous-bernoulli": "streaming_vb.likelihoods.continuous_bernoulli:ContinuousBernoulli",
    "normal": "streaming_vb.likelihoods.normal:Normal",
    "poisson": "streaming_vb.likelihoods.poisson:Poisson",
    "categorical:K": "streaming_vb.likelihoods.categorical:Categorical",
}
"""K, the number of categories, is typed as a number."""
MODELS = {
    "vae": "streaming_vb.models.vae:VAE",
    "convolutional-vae": "streaming_vb.models.convolutional_vae:ConvolutionalVAE",
    "two-layer-vae": "streaming_vb.models.two_layer_vae:TwoLayerVAE",
}
ESTIMATORS = {
    name: f"streaming_vb.layers.estimators:{name}" for name in ("local", "separate", "flipout", "shared", "mean")
}
OBJECTIVES = {
    "elbo": "streaming_vb.objectives:Elbo",
    "score-function": "streaming_vb.objectives:ScoreFunction",
    "importance-weighted": "streaming_vb.objectives:ImportanceWeighted",
    "vimco": "streaming_vb.objectives:Vimco",
}
FAMILIES = {
    "mean-field-normal": "streaming_vb.families.mean_field_normal:MeanFieldNormal",
    "full-rank-normal": "streaming_vb.families.full_rank_normal:FullRankNormal",
    "unit-normal": "streaming_vb.families.unit_normal:UnitNormal",
}
EXPERIMENTS = {
    "figure-3": "streaming_vb.reproduce.figure_3:run",
    "figure-4": "streaming_vb.reproduce.figure_4:run",
    "latent-dimension": "streaming_vb.reproduce.latent_dimension:run",
    "gradient-variance": "streaming_vb.reproduce.gradient_variance:run",
    "dropout-variance": "streaming_vb.reproduce.dropout_variance:run",
    "dropout-accuracy": "streaming_vb.reproduce.dropout_accuracy:run",
    "latent-manifold": "streaming_vb.reproduce.latent_manifold:run",
    "streaming": "streaming_vb.reproduce.streaming:run",
}


def pick(flag: str, table: Mapping[str, str], name: str) -> Any:
    """The object named `name`.

    Raises:
        ConfigError: no such name.

    >>> pick("--family", FAMILIES, "unit-normal")().name
    'unit-normal'
    """
    require(flag, tuple(table), name)
    module, attribute = table[name].split(":")
    return getattr(import_module(module), attribute)


def require(flag: str, names: tuple[str, ...], name: str) -> None:
    """Raise ConfigError unless `name` is one of `names`."""
    if name not in names:
        raise ConfigError(f"{flag} {name}: expected one of {', '.join(names)}")


def likelihood(flag: str, text: str) -> Any:
    """The likelihood that a user typed, or that stands in a posterior file.

    Raises:
        ConfigError: no such likelihood, or no number of categories.

    >>> likelihood("--likelihood", "categorical:17")
    Categorical(num_categories=17)
    """
    require_likelihood(flag, text)
    name, _, num_categories = text.partition(":")
    if num_categories:
        return pick(flag, LIKELIHOODS, f"{name}:K")(int(num_categories))
    return pick(flag, LIKELIHOODS, name)()


def require_likelihood(flag: str, text: str) -> None:
    """Raise ConfigError unless `text` names a likelihood; loads no torch."""
    name, _, num_categories = text.partition(":")
    if name != "categorical":
        require(flag, tuple(LIKELIHOODS), text)
    elif not num_categories.isdecimal() or int(num_categories) < 2:
        raise ConfigError(
            f"{flag} {text}: expected the number of categories, at least 2, after a colon, such as categorical:10"
        )


def widths(flag: str, text: str) -> tuple[int, ...]:
    """Widths of layers, input side first.

    >>> widths("--hidden", "500,200")
    (500, 200)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} {text}: expected whole numbers such as 500 or 500,200") from None
