"""Fixed rounds in interval order, on Ray: the same posterior for any number of workers, to the bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from streaming_vb.streaming.run import Step
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Model, Primitive, Source
from workers import asynchronous


def run(
    model: Model,
    source: Source,
    settings: Settings = Settings(),
    *,
    workers: int = 2,
    address: str | None = None,
    primitive: Primitive | None = None,
    run_dir: Path | str | None = None,
    start_from: Path | str | None = None,
) -> Iterator[Step]:
    """As `workers.asynchronous.run`, with `Settings.mode` "ordered"."""
    ordered = replace(settings, mode="ordered")
    return asynchronous.run(
        model,
        source,
        ordered,
        workers=workers,
        address=address,
        primitive=primitive,
        run_dir=run_dir,
        start_from=start_from,
    )
