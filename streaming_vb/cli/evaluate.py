"""`streaming-vb evaluate RUN`: held-out ELBO at the posterior mean and over draws of the weights, active units, and the
importance-sampled log likelihood where it is asked for."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from streaming_vb.cli import output, run_directory
from streaming_vb.cli.job import EVALUATION_SEED, held_out_records
from streaming_vb.cli.run_directory import Run
from streaming_vb.errors import ConfigError
from streaming_vb.types import Array

if TYPE_CHECKING:
    from streaming_vb.evaluation.importance import ImportanceSampled


def evaluate(
    run: Annotated[Path, Argument(help="Run directory")],
    draws: Annotated[int, Option(help="Draws of the weights")] = 10,
    importance_samples: Annotated[
        int, Option(help="Draws of z per record for the importance-sampled log likelihood; 0 leaves it out")
    ] = 0,
    records: Annotated[int, Option(help="First held-out records that it is computed on")] = 1000,
    data_dir: Annotated[Path | None, Option(help="Where the data set's files are now, if they moved")] = None,
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Held-out ELBO at the posterior mean and over draws of the weights, each with its standard error; active units;
    with --importance-samples, the importance-sampled log likelihood."""
    if importance_samples < 0:
        raise ConfigError(
            f"--importance-samples must be at least 1 per record, or 0 to leave them out, got {importance_samples}"
        )
    if records < 2:
        raise ConfigError(f"--records must be at least 2 for a standard error, got {records}")
    opened = run_directory.open_run(run)
    x = held_out_records(opened.dataset(data_dir), opened.model.likelihood.name)
    parts = [_elbo(opened, x, draws), _active_units(opened, x, draws)]
    if importance_samples:
        parts.append(_importance(opened, x[:records], importance_samples))
    values = {name: value for part, _ in parts for name, value in part.items()}
    output.choose(json).result(values, "\n".join(text for _, text in parts))


def _elbo(opened: Run, x: Array, draws: int) -> tuple[dict[str, Any], str]:
    from streaming_vb.evaluation import held_out

    mean = held_out.at_mean(opened.model, opened.served, {"x": x}, EVALUATION_SEED)
    drawn = held_out.over_draws(opened.model, opened.served, {"x": x}, draws, EVALUATION_SEED)
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
    return values, text


def _active_units(opened: Run, x: Array, draws: int) -> tuple[dict[str, Any], str]:
    from streaming_vb.evaluation import active_units

    mean = active_units.at_mean(opened.model, opened.served, x)
    drawn = active_units.over_draws(opened.model, opened.served, x, draws=draws, seed=EVALUATION_SEED)
    values = {
        "latent": len(mean.variance),
        "active_units": mean.num_active,
        "active_units_over_draws": drawn.num_active,
        "active_units_over_draws_sd": drawn.num_active_deviation,
    }
    text = (
        f"active     {mean.num_active} of {len(mean.variance)} latent dimensions; over draws {drawn.num_active:.1f}, "
        f"standard deviation {drawn.num_active_deviation:.1f}"
    )
    return values, text


def _importance(opened: Run, x: Array, num_samples: int) -> tuple[dict[str, Any], str]:
    import numpy as np

    sampled = _sample(opened, x, num_samples)
    estimate, effective = sampled.estimate(), float(np.median(sampled.effective_sample_size))
    values = {
        "log_likelihood_mean_weights": estimate.mean,
        "log_likelihood_mean_weights_se": estimate.standard_error,
        "importance_samples": num_samples,
        "importance_records": len(x),
        "effective_sample_size_median": effective,
    }
    text = (
        f"importance log likelihood {estimate.mean:.2f} +- {estimate.standard_error:.2f} nats per record, at mean "
        f"({len(x):,} records, {num_samples:,} samples each, median effective sample size {effective:,.1f})"
    )
    return values, text


def _sample(opened: Run, x: Array, num_samples: int) -> "ImportanceSampled":
    """With a line on stderr from time to time."""
    from streaming_vb.evaluation import importance
    from streaming_vb.evaluation.held_out import mean_weights

    weights = mean_weights(opened.model, opened.served)
    parts, done, shown = [], 0, time.monotonic()
    for part in importance.stream(opened.model, weights, x, num_samples=num_samples, seed=EVALUATION_SEED):
        parts.append(part)
        done += len(part.log_likelihood)
        if time.monotonic() - shown >= output.PLAIN_EVERY:
            shown = time.monotonic()
            print(f"importance {done:,} of {len(x):,} records", file=sys.stderr, flush=True)
    return importance.join(parts)
