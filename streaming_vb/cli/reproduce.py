"""`streaming-vb reproduce NAME`: a figure of the papers behind this project, as PNG, SVG and JSON."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from streaming_vb.cli import choices, output
from streaming_vb.errors import MissingExtra


def reproduce(
    name: Annotated[
        str, Argument(metavar="NAME", help=f"{', '.join(choices.EXPERIMENTS)}, or all (with an HTML page)")
    ],
    data_dir: Annotated[
        Path | None, Option(help="Folder with the original files of MNIST; without it they are downloaded")
    ] = None,
    out: Annotated[Path, Option(help="Folder of the pictures")] = Path("reproduced"),
    quick: Annotated[bool, Option("--quick", help="The embedded digits and small settings: under a minute")] = False,
    json: Annotated[bool, Option("--json", help="JSON lines on stdout, talk on stderr")] = False,
) -> None:
    """Draw a figure of the papers behind this project, with the numbers, settings and seeds behind it."""
    if name != "all":
        choices.require("reproduce", (*choices.EXPERIMENTS, "all"), name)
    names = list(choices.EXPERIMENTS) if name == "all" else [name]
    shown = output.choose(json)
    try:
        from streaming_vb.reproduce import images, outcome, page
    except ImportError:
        raise MissingExtra("reproduce draws pictures. Type pip install 'streaming-vb[plots]'") from None
    import torch

    torch.set_num_threads(1)
    data = images.load(data_dir, quick)
    for each in names:
        started = time.monotonic()
        made = choices.pick("reproduce", choices.EXPERIMENTS, each)(data, quick, _throttled(shown, each))
        paths = outcome.write(each, made, data, out)
        seconds = time.monotonic() - started
        values = {"event": "reproduced", "name": each, "seconds": seconds, "files": [str(path) for path in paths]}
        shown.result(values, f"{each}: {paths[0]}  {paths[1].name}  {paths[2].name}  ({seconds:.0f} s)")
    if name == "all":
        written = page.write(names, out)
        shown.result({"event": "page", "file": str(written)}, f"page: {written}")


def _throttled(shown: output.Output, name: str) -> Callable[[str], None]:
    """Talk at most every ten seconds."""
    last = time.monotonic()

    def progress(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= output.PLAIN_EVERY:
            last = time.monotonic()
            shown.say(f"{name}: {text}")

    return progress
