"""What an experiment gives back, and the three files it becomes: a picture twice (PNG, SVG) and its figures (JSON)."""

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from streaming_vb.reproduce.images import Images

Progress = Callable[[str], None]
"""Takes one line of talk."""


class Outcome(NamedTuple):
    """One reproduced figure.

    Attributes:
        title: one line.
        caption: what to look at, what the paper shows, and where ours deviates; sentences.
        figure: the picture.
        settings: everything that was chosen, the seeds among it: numbers, text, lists and mappings.
        results: the figures behind the picture, likewise.
    """

    title: str
    caption: str
    figure: Figure
    settings: Mapping[str, object]
    results: Mapping[str, object]


Experiment = Callable[[Images, bool, Progress], Outcome]
"""(images, quick, progress) -> outcome; `quick` is small enough for a test."""


def write(name: str, outcome: Outcome, images: Images, out: Path) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.json into a folder, which is made; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.{ending}" for ending in ("png", "svg", "json")]
    outcome.figure.savefig(paths[0], dpi=130)
    with rc_context({"svg.hashsalt": name}):  # the same figures give the same file
        outcome.figure.savefig(paths[1], metadata={"Date": None})
    document = {
        "name": name,
        "title": outcome.title,
        "caption": outcome.caption,
        "data": images.name,
        "settings": outcome.settings,
        "results": outcome.results,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    paths[2].write_text(json.dumps(document, indent=1) + "\n")
    return paths
