"""One flat vector of weights [P], and views of it by name.

The posterior of a network is one vector on the server and on the wire; a layer sees its part as a view, never a copy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of the weights, in the order in which they lie in the vector.

    >>> Layout({"weight": (2, 3), "bias": (2,)}).num_weights
    8
    """

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def num_weights(self) -> int:
        """P."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a vector [P], by name."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = flat.split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Moments of the weights, as views by name: mean, and variance or none (then the mean is used as it is)."""

    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor] | None = None
