"""`streaming-vb diff A B`: how two posteriors differ, what each has learned that the other has not, and how they are
related. Loads torch only where the weights have layers to name."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from streaming_vb.cli import choices, output, run_directory, run_files
from streaming_vb.streaming import posterior_algebra
from streaming_vb.streaming.merge import ServerState
from streaming_vb.types import Array, Interval

_LEVELS = {"50%": 0.5, "95%": 0.95, "max": 1.0}


def diff(
    a: Annotated[Path, Argument(metavar="A", help="Run directory, or a posterior file")],
    b: Annotated[Path, Argument(metavar="B", help="Another one, of the same model")],
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """KL each way, how far the mean moved in posterior standard deviations, and what only one of them has learned."""
    first, second = run_files.open_posterior(a), run_files.open_posterior(b)
    posterior_algebra.require_same_model(first.settings, second.settings, "B")
    posterior_algebra.require_same_weights(first.state, second.state, "B")
    family: Any = run_directory.family(first.settings)
    found = posterior_algebra.difference(family, run_directory.served(*first[:2]), run_directory.served(*second[:2]))
    distance = np.abs(found.movement)
    largest = int(distance.argmax())
    only_a = posterior_algebra.minus(first.state.ledger, second.state.ledger)
    only_b = posterior_algebra.minus(second.state.ledger, first.state.ledger)
    values = {
        "event": "diff",
        "a": _side(a, first.state),
        "b": _side(b, second.state),
        "relation": posterior_algebra.relation(first.state, second.state),
        "kl_a_b": found.kl_a_b,
        "kl_b_a": found.kl_b_a,
        "movement_rms": float(np.sqrt(np.mean(distance**2))),
        "movement_quantiles": {name: float(np.quantile(distance, level)) for name, level in _LEVELS.items()},
        "largest_movement": float(found.movement[largest]),
        "largest_weight": _name_of(largest, first.settings),
        "layers": _by_layer(distance, first.settings),
        "only_in_a": _records(only_a),
        "only_in_b": _records(only_b),
    }
    output.choose(json).result(values, _text(values, only_a, only_b))


def _side(path: Path, state: ServerState) -> dict[str, Any]:
    return {"file": str(path), "run_id": state.run_id, "version": state.version, "records": state.num_records}


def _records(intervals: list[Interval]) -> list[dict[str, Any]]:
    return [{**asdict(interval), "records": len(interval)} for interval in intervals]


def _layout(settings: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of the weights, in the order in which they lie in the vector; empty where they have no names."""
    if settings.get("model") not in choices.MODELS:
        return {}
    from streaming_vb.cli import chosen_model  # the model's layers need torch

    return chosen_model.rebuild(settings).layout.shapes


def _name_of(position: int, settings: Mapping[str, Any]) -> str:
    """A weight as people find it, such as decoder.0.weight[3, 7].

    >>> _name_of(5, {"model": "linear-regression"})
    'weight 5'
    """
    offset = position
    for name, shape in _layout(settings).items():
        size = int(np.prod(shape))
        if offset < size:
            return f"{name}{[int(index) for index in np.unravel_index(offset, shape)]}"
        offset -= size
    return f"weight {position}"


def _by_layer(distance: Array, settings: Mapping[str, Any]) -> dict[str, float]:
    """Root mean square movement of each tensor of weights."""
    found, start = {}, 0
    for name, shape in _layout(settings).items():
        stop = start + int(np.prod(shape))
        found[name] = float(np.sqrt(np.mean(distance[start:stop] ** 2)))
        start = stop
    return found


def _text(values: Mapping[str, Any], only_a: list[Interval], only_b: list[Interval]) -> str:
    quantiles = "  ".join(f"{level} {value:.3g}" for level, value in values["movement_quantiles"].items())
    return "\n".join(
        [
            *(
                f"{name.upper():<11}{side['file']}  version {side['version']:,}, {side['records']:,} records"
                for name, side in (("a", values["a"]), ("b", values["b"]))
            ),
            f"relation   {values['relation']}",
            f"KL         A || B {values['kl_a_b']:.6g} nats, B || A {values['kl_b_a']:.6g} nats",
            f"movement   of the mean, in standard deviations of A: rms {values['movement_rms']:.3g}; {quantiles}",
            f"largest    {values['largest_movement']:+.3g} at {values['largest_weight']}",
            *(f"           {name} rms {value:.3g}" for name, value in values["layers"].items()),
            f"only in A  {_summary(only_a)}",
            f"only in B  {_summary(only_b)}",
        ]
    )


def _summary(intervals: list[Interval]) -> str:
    if not intervals:
        return "nothing"
    sources = sorted({interval.source for interval in intervals})
    where = f"  (source {', '.join(source[:12] for source in sources)})"
    return f"{sum(map(len, intervals)):,} records: {posterior_algebra.listed(intervals)}{where}"
