"""Merge on arrival, on Ray: the loop of `streaming_vb.run` with workers in processes of their own, on one machine or
many."""

from collections.abc import Iterator
from pathlib import Path

from streaming_vb.streaming.prepared import prepare
from streaming_vb.streaming.run import Step, stream
from streaming_vb.streaming.settings import Settings
from streaming_vb.types import Model, Primitive, Source
from workers.ray_transport import engine


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
    """Stream a source through a model on Ray; yields one `Step` per merge. The workers are up when this returns.

    Args:
        model, source, settings, primitive, run_dir, start_from: as for `streaming_vb.run`.
        workers: worker actors, one CPU each.
        address: of an existing cluster; none starts a local one that ends with the run.

    Raises:
        ClusterError: the cluster cannot be used, or the server died and there is no run directory.
        StreamingVBError: as for `streaming_vb.run`.
    """
    prepared = prepare(model, source, settings, primitive=primitive, run_dir=run_dir, start_from=start_from)
    return stream(prepared, engine(prepared, workers, address), workers)
