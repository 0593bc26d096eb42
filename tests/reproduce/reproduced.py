"""An experiment as the command line runs it, in this process."""

import json
from pathlib import Path
from typing import Any

from streaming_vb.cli.reproduce import reproduce


def quickly(name: str, out: Path) -> dict[str, Any]:
    """Run the quick version, look at its three files, and return what the JSON file holds."""
    reproduce(name, out=out, quick=True)
    assert {path.name for path in out.iterdir()} == {f"{name}.{ending}" for ending in ("png", "svg", "json")}
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (out / f"{name}.svg").read_text().startswith("<?xml")
    document: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert document["name"] == name
    assert document["data"] == "digits"
    assert document["caption"].endswith(".")
    return document
