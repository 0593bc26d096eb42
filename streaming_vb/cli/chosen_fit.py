"""The local fit that the flags of `fit` choose: a primitive and what it ascends."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaming_vb.cli import choices
from streaming_vb.errors import ConfigError
from streaming_vb.types import Primitive

if TYPE_CHECKING:
    from streaming_vb.objectives import AbstractObjective


@dataclass(frozen=True, slots=True)
class ChosenFit:
    """Flags of `fit` about the local fit; none means the default of the primitive or objective."""

    primitive: str
    objective: str = "elbo"
    samples: int | None = None
    kl_weight: float = 1.0
    kl_warm_up: int = 0
    max_norm: float | None = None

    def check(self) -> None:
        """Raise ConfigError for what can be refused before torch is loaded."""
        choices.require("--primitive", tuple(choices.PRIMITIVES), self.primitive)
        choices.require("--objective", tuple(choices.OBJECTIVES), self.objective)
        if self.objective != "elbo" and (self.kl_weight != 1.0 or self.kl_warm_up):
            raise ConfigError(
                f"--kl-weight and --kl-warm-up scale the KL of the ELBO, got --objective {self.objective}. "
                "Leave them out, or type --objective elbo"
            )
        if self.primitive == "kronecker" and self.max_norm is not None:
            raise ConfigError("--max-norm: kronecker bounds its steps by a trust region. Leave it out")

    def build(self, model: Any, batch_size: int) -> Primitive:
        """The primitive for a model."""
        build = choices.pick("--primitive", choices.PRIMITIVES, self.primitive)
        clipping = {} if self.max_norm is None else {"max_norm": self.max_norm}
        made: Primitive = build(model, batch_size=batch_size, objective=self._objective(), **clipping)
        return made

    def _objective(self) -> "AbstractObjective":
        made = choices.pick("--objective", choices.OBJECTIVES, self.objective)
        given: dict[str, object] = {} if self.samples is None else {"num_samples": self.samples}
        if self.objective == "elbo":
            given |= {"kl_weight": self.kl_weight, "warm_up": self.kl_warm_up}
        objective: AbstractObjective = made(**given)
        return objective
