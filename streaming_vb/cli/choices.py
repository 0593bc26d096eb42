"""Names that a user may type, in one literal table, and where each one lives. Values load on first use."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from streaming_vb.errors import ConfigError

ENGINES = ("inline", "simulated", "ray")

PRIMITIVES = {
    "natural-gradient": "streaming_vb.inference.natural_gradient:build",
    "adam": "streaming_vb.inference.adam:build",
}
LIKELIHOODS = {
    "bernoulli": "streaming_vb.likelihoods.bernoulli:Bernoulli",
    "normal": "streaming_vb.likelihoods.normal:Normal",
}
FAMILIES = {
    "mean-field-normal": "streaming_vb.families.mean_field_normal:MeanFieldNormal",
    "full-rank-normal": "streaming_vb.families.full_rank_normal:FullRankNormal",
    "unit-normal": "streaming_vb.families.unit_normal:UnitNormal",
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


def widths(text: str) -> tuple[int, ...]:
    """Widths of hidden layers, input side first.

    >>> widths("500,200")
    (500, 200)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--hidden {text}: expected whole numbers such as 500 or 500,200") from None
