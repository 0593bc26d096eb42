"""Merge on arrival, on Ray: the loop of `streaming_vb.run` with workers in processes of their own, on one machine or
many."""

from collections.abc import Iterator
from pathlib import Path

from streaming_vb.streaming.run import Settings, Step, drive, prepare, record
from streaming_vb.types import Model, Primitive, Source
from workers.ray_engine import RayEngine


def run(
    model: Model,
    source: Source,
    settings: Settings = Settings(),
    *,
    workers: int = 2,
    address: str | None = None,
    primitive: Primitive | None = None,
    run_dir: Path | str | None = None,
) -> Iterator[Step]:
    """Stream a source through a model on Ray; yields one `Step` per merge. The workers are up when this returns.

    Args:
        model, source, settings, primitive, run_dir: as for `streaming_vb.run`.
        workers: worker actors, one CPU each.
        address: of an existing cluster; none starts a local one that ends with the run.

    Raises:
        ClusterError: the cluster cannot be used, or the server died.
        StreamingVBError: as for `streaming_vb.run`.
    """
    prepared = prepare(model, source, settings, primitive=primitive, run_dir=run_dir)
    engine = RayEngine(prepared, workers, address)
    return record(drive(prepared.scheduler(workers), engine), engine, prepared)
