"""`streaming-vb fit DATA`: stream a data set through a Bayesian VAE."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from streaming_vb.cli import output
from streaming_vb.cli.job import Job, execute
from streaming_vb.streaming.run import Settings

_DEFAULT = Settings()


def fit(
    data: Annotated[
        str,
        Argument(
            metavar="DATA",
            help="digits, mnist, fashion-mnist, or a path: IDX, .npy, .npz, .csv with a header (each also .gz)",
        ),
    ],
    data_dir: Annotated[
        Path | None,
        Option(help="Folder with the original files of mnist or fashion-mnist; without it they are downloaded"),
    ] = None,
    records: Annotated[
        int | None,
        Option(help="Records to count; more than the data set holds means further passes. [default: one pass]"),
    ] = None,
    workers: Annotated[int, Option(help="Fits in flight at most")] = 1,
    engine: Annotated[
        str, Option(help="inline (this process), simulated (workers under a virtual clock), ray (processes, machines)")
    ] = "inline",
    mode: Annotated[
        str, Option(help="async (merge on arrival) or ordered (fixed rounds: the same bits for any number of workers)")
    ] = _DEFAULT.mode,
    address: Annotated[
        str | None, Option(help="Existing Ray cluster, host:port or auto; without it a local one")
    ] = None,
    run_dir: Annotated[
        Path | None, Option(help="Where everything is kept; the same command resumes. [default: runs/DATA-1, -2, ...]")
    ] = None,
    seed: Annotated[int, Option(help="All randomness is a function of it")] = _DEFAULT.seed,
    primitive: Annotated[str, Option(help="Local fit: natural-gradient or adam")] = "natural-gradient",
    batch_size: Annotated[int, Option(help="Records per local step")] = _DEFAULT.batch_size,
    local_steps: Annotated[int, Option(help="Local steps per interval")] = _DEFAULT.local_steps,
    ramp: Annotated[int, Option(help="Records per additional fit in flight; 0 means all at once")] = _DEFAULT.ramp,
    share: Annotated[
        str,
        Option(
            help="Part of the posterior that a fit borrows as prior: auto (1/fits in flight) or 1 (plain SDA-Bayes)"
        ),
    ] = _DEFAULT.share,
    round_size: Annotated[int, Option("--round", help="Intervals per round of the ordered mode")] = _DEFAULT.round_size,
    latent: Annotated[int, Option(help="Latent dimensions")] = 20,
    hidden: Annotated[
        str, Option(help="Widths of the encoder's hidden layers, mirrored in the decoder: 500 or 500,200")
    ] = "500",
    likelihood: Annotated[
        str,
        Option(
            help="bernoulli (values in [0, 1], binarized afresh), continuous-bernoulli (values in [0, 1]), normal, "
            "poisson (counts), or categorical:K (whole numbers 0 to K-1)"
        ),
    ] = "bernoulli",
    forgetting: Annotated[
        str, Option(help="Of stale curvature: none, or window:MIN:KAPPA. [default auto: window:2000:0.1]")
    ] = _DEFAULT.forgetting,
    json: Annotated[bool, Option("--json", help="JSON lines on stdout, talk on stderr")] = False,
) -> None:
    """Stream DATA through a Bayesian VAE: a posterior over every weight, each record counted once."""
    settings = Settings(
        records=records,
        seed=seed,
        mode=mode,
        batch_size=batch_size,
        local_steps=local_steps,
        ramp=ramp,
        share=share,
        round_size=round_size,
        forgetting=forgetting,
    )
    job = Job(
        data=data,
        data_dir=data_dir,
        run_dir=run_dir,
        engine=engine,
        workers=workers,
        address=address,
        primitive=primitive,
        latent=latent,
        hidden=hidden,
        likelihood=likelihood,
        settings=settings,
    )
    execute(job, output.choose_live(json))
