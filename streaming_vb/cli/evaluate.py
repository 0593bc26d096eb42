"""`streaming-vb evaluate RUN`: held-out ELBO at the posterior mean and over draws of the weights."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from streaming_vb.cli import output, run_directory
from streaming_vb.cli.job import EVALUATION_SEED, held_out_records


def evaluate(
    run: Annotated[Path, Argument(help="Run directory")],
    draws: Annotated[int, Option(help="Draws of the weights")] = 10,
    data_dir: Annotated[Path | None, Option(help="Where the data set's files are now, if they moved")] = None,
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Held-out ELBO at the posterior mean and over draws of the weights, each with its standard error."""
    opened = run_directory.open_run(run)
    from streaming_vb.evaluation import held_out

    x = held_out_records(opened.dataset(data_dir), opened.model.likelihood.name)
    mean = held_out.at_mean(opened.model, opened.served, x, EVALUATION_SEED)
    drawn = held_out.over_draws(opened.model, opened.served, x, draws, EVALUATION_SEED)
    values = {
        "event": "evaluation",
        "records": opened.state.num_records,
        "version": opened.state.version,
        "num_heldout": len(x),
        "elbo_mean_weights": mean.mean,
        "elbo_mean_weights_se": mean.standard_error,
        "elbo_over_draws": drawn.mean,
        "elbo_over_draws_se": drawn.standard_error,
        "draws": draws,
    }
    text = (
        f"held out   {len(x):,} records; posterior of {opened.state.num_records:,} records, version "
        f"{opened.state.version:,}\n"
        f"at mean    ELBO {mean.mean:.2f} +- {mean.standard_error:.2f} nats per record\n"
        f"over draws ELBO {drawn.mean:.2f} +- {drawn.standard_error:.2f} nats per record ({draws} draws of the weights)"
    )
    output.choose(json).result(values, text)
