"""`streaming-vb sample RUN`: new records from the model at the posterior mean."""

from pathlib import Path
from typing import Annotated

import numpy as np
from typer import Argument, Option

from streaming_vb.cli import output, pictures, run_directory
from streaming_vb.errors import ConfigError
from streaming_vb.types import Array


def sample(
    run: Annotated[Path, Argument(help="Run directory")],
    count: Annotated[int, Option(help="How many")] = 16,
    seed: Annotated[int, Option(help="Of the draws of z")] = 0,
    out: Annotated[Path | None, Option(help="Where to write the array. [default: RUN/samples.npy]")] = None,
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Draw z ~ N(0, I) and write E[x | z] as an array, and as a picture beside it where matplotlib is installed."""
    if count < 1:
        raise ConfigError(f"--count must be at least 1, got {count}")
    opened = run_directory.open_run(run)
    drawn = pictures.samples(opened.model, opened.served, count, seed)
    path = out or run / "samples.npy"
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: no such folder {path.parent}. Make it first, or give another path")
    with open(path, "wb") as file:
        np.save(file, drawn, allow_pickle=False)
    picture = _picture(drawn, path.with_suffix(".png"))
    values = {"event": "done", "samples": str(path), "picture": picture, "count": count, "columns": drawn.shape[1]}
    output.choose(json).result(
        values, f"samples    {path}  [{count}, {drawn.shape[1]}]\npicture    {picture or 'none'}"
    )


def _picture(drawn: Array, path: Path) -> str | None:
    try:
        from streaming_vb.plots import images
    except ImportError:
        return None
    side = round(drawn.shape[1] ** 0.5)
    shape = (side, side) if side * side == drawn.shape[1] else (drawn.shape[1],)
    grey = images.shades(drawn, drawn)
    lines = [grey[i : i + 12] for i in range(0, len(grey), 12)]
    width = len(lines[0])
    full = {f"samples {12 * i + 1} to {12 * i + width}": line for i, line in enumerate(lines) if len(line) == width}
    images.draw(full, shape, path)
    return str(path)
