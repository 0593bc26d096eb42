"""The model that the flags of `fit` choose, and the model of a posterior file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaming_vb.cli import choices
from streaming_vb.errors import ConfigError

if TYPE_CHECKING:
    from streaming_vb.models.two_layer_vae import TwoLayerVAE
    from streaming_vb.models.vae import AbstractVAE

    VAEModel = AbstractVAE | TwoLayerVAE

_FLAGS = {
    "vae": {"hidden", "latent", "encoder_dropout"},
    "convolutional-vae": {"hidden", "latent", "channels", "encoder_dropout"},
    "two-layer-vae": {"hidden", "latent", "upper_hidden", "upper_latent"},
}
"""Flags that a model has, besides its likelihood and estimator."""


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """Flags of `fit` about the model; none means the model's own default.

    >>> ChosenModel("vae", "bernoulli", "local", hidden="50", latent=3).build(64, (8, 8)).hidden
    (50,)
    """

    kind: str
    likelihood: str
    estimator: str
    hidden: str | None = None
    latent: int | None = None
    channels: str | None = None
    upper_hidden: str | None = None
    upper_latent: int | None = None
    encoder_dropout: float | None = None

    def check(self) -> None:
        """Raise ConfigError for what can be refused before torch is loaded."""
        choices.require("--model", tuple(choices.MODELS), self.kind)
        choices.require("--estimator", tuple(choices.ESTIMATORS), self.estimator)
        choices.require_likelihood("--likelihood", self.likelihood)
        for name in ("channels", "upper_hidden", "upper_latent", "encoder_dropout"):
            if getattr(self, name) is not None and name not in _FLAGS[self.kind]:
                owners = " or ".join(kind for kind, flags in _FLAGS.items() if name in flags)
                raise ConfigError(f"--{name.replace('_', '-')} belongs to --model {owners}, got --model {self.kind}")
        for name in ("hidden", "channels", "upper_hidden"):
            self._widths(name)

    def build(self, num_columns: int, shape: tuple[int, ...]) -> "VAEModel":
        """The model for records of the given width and shape."""
        given: dict[str, object] = {
            "likelihood": choices.likelihood("--likelihood", self.likelihood),
            "estimator": choices.pick("--estimator", choices.ESTIMATORS, self.estimator),
            **{name: self._widths(name) for name in ("hidden", "channels", "upper_hidden")},
            **{name: getattr(self, name) for name in ("latent", "upper_latent", "encoder_dropout")},
        }
        given = {name: value for name, value in given.items() if value is not None}
        made = choices.pick("--model", choices.MODELS, self.kind)
        if self.kind != "convolutional-vae":
            return made(num_columns, **given)  # type: ignore[no-any-return]
        if len(shape) != 2:
            raise ConfigError(f"--model convolutional-vae needs images; these records have the shape {shape}")
        if "hidden" in given:
            (given["hidden"],) = self._one_width()
        return made(*shape, **given)  # type: ignore[no-any-return]

    def _widths(self, name: str) -> tuple[int, ...] | None:
        text = getattr(self, name)
        return None if text is None else choices.widths(f"--{name.replace('_', '-')}", text)

    def _one_width(self) -> tuple[int, ...]:
        widths = self._widths("hidden") or ()
        if len(widths) != 1:
            raise ConfigError(f"--hidden {self.hidden}: a convolutional-vae has one hidden layer, such as --hidden 128")
        return widths


def rebuild(settings: Mapping[str, Any]) -> "VAEModel":
    """The model that the settings of a posterior file describe.

    Raises:
        ConfigError: it is no variational auto-encoder.
    """
    kind = settings.get("model")
    if kind not in choices.MODELS:
        raise ConfigError(f"the file holds a {kind} posterior; this verb needs one of {', '.join(choices.MODELS)}")
    made = choices.pick("model", choices.MODELS, kind)
    names = {"height", "width", "in_channels"} if kind == "convolutional-vae" else set()
    given = {name: _tuple(settings[name]) for name in _FLAGS[kind] | names}
    if kind != "convolutional-vae":
        given["num_columns"] = settings["columns"]
    given["likelihood"] = choices.likelihood("likelihood", settings["likelihood"])
    given["estimator"] = choices.pick("estimator", choices.ESTIMATORS, settings["estimator"])
    return made(**given)  # type: ignore[no-any-return]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
