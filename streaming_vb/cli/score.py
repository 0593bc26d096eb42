"""`streaming-vb score RUN FILE`: nats per record, with the spread over the weights' posterior."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from streaming_vb.cli import output, run_directory
from streaming_vb.cli.job import EVALUATION_SEED


def score(
    run: Annotated[Path, Argument(help="Run directory")],
    file: Annotated[Path, Argument(help="Records to score: IDX, .npy, .npz, .csv with a header")],
    draws: Annotated[int, Option(help="Draws of the weights")] = 16,
    json: Annotated[bool, Option("--json", help="JSON lines on stdout")] = False,
) -> None:
    """Score every record of FILE: ELBO in nats, and its standard deviation over the posterior of the weights."""
    opened = run_directory.open_run(run)
    from streaming_vb.evaluation import held_out
    from streaming_vb.sources import datasets
    from streaming_vb.sources.binarized import binarize

    likelihood = opened.model.likelihood.name
    x = datasets.read_for(opened.model.num_columns, file, likelihood)
    if likelihood == "bernoulli":
        x = binarize(x, EVALUATION_SEED, 0)
    scores = held_out.score(opened.model, opened.served, {"x": x}, draws, EVALUATION_SEED)
    show = output.choose(json)
    for i, (mean, deviation) in enumerate(zip(scores.mean.tolist(), scores.deviation.tolist(), strict=True)):
        show.result({"record": i, "elbo": mean, "sd": deviation}, f"{i:>8}  {mean:12.3f}  +- {deviation:.3f}")
    total = float(scores.mean.mean())
    show.result(
        {"event": "done", "num_records": len(x), "elbo": total, "version": opened.state.version, "draws": draws},
        f"mean      {total:12.3f}  nats per record; {len(x):,} records, {draws} draws of the weights, version "
        f"{opened.state.version:,}",
    )
