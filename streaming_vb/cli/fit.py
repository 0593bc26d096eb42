"""`streaming-vb fit DATA`: stream a data set through a Bayesian VAE."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from streaming_vb.cli import output
from streaming_vb.cli.chosen_fit import ChosenFit
from streaming_vb.cli.chosen_model import ChosenModel
from streaming_vb.cli.job import Job, execute
from streaming_vb.streaming.settings import Settings

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
        str,
        Option(
            help="inline (this process), simulated (workers under a virtual clock), processes (this machine's cores), "
            "ray (machines)"
        ),
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
    start_from: Annotated[
        Path | None,
        Option(help="Posterior, or run directory, that a new run starts from: yesterday's posterior is today's prior"),
    ] = None,
    keep_deltas: Annotated[
        bool, Option("--keep-deltas", help="Keep every delta in the journal, so that unlearn can take it out again")
    ] = False,
    bad_records: Annotated[
        str, Option(help="A record that cannot be scored: stop, or set-aside (leave it out; the ledger names it)")
    ] = _DEFAULT.bad_records,
    audit: Annotated[
        float, Option(help="Share of the intervals fitted by two workers, which must agree in every bit")
    ] = _DEFAULT.audit,
    seed: Annotated[int, Option(help="All randomness is a function of it")] = _DEFAULT.seed,
    primitive: Annotated[
        str, Option(help="Local fit: natural-gradient, kronecker (for large minibatches) or adam")
    ] = "natural-gradient",
    objective: Annotated[
        str, Option(help="What a fit ascends: elbo, score-function, importance-weighted or vimco")
    ] = "elbo",
    samples: Annotated[int | None, Option(help="Draws of z per record. [default: 1, or the objective's own]")] = None,
    kl_weight: Annotated[
        float, Option(help="Weight of the KL of z while training; other than 1, what is trained is not the ELBO")
    ] = 1.0,
    kl_warm_up: Annotated[int, Option(help="Records over which that weight rises from 0")] = 0,
    max_norm: Annotated[
        float | None, Option(help="Largest norm of a minibatch's mean gradient; longer ones are shortened")
    ] = None,
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
    model: Annotated[str, Option(help="vae, convolutional-vae or two-layer-vae")] = "vae",
    estimator: Annotated[
        str,
        Option(
            help="Draws of the weights: local, separate, flipout, shared, or mean (none: classic auto-encoder, MAP)"
        ),
    ] = "local",
    latent: Annotated[int | None, Option(help="Latent dimensions. [default: 20; two-layer-vae 100]")] = None,
    hidden: Annotated[
        str | None,
        Option(
            help="Widths of the encoder's hidden layers, mirrored in the decoder, such as 500,200. "
            "[default: 500; convolutional-vae 128; two-layer-vae 200,200]"
        ),
    ] = None,
    channels: Annotated[str | None, Option(help="Of the convolutions of a convolutional-vae. [default: 16,32]")] = None,
    upper_hidden: Annotated[
        str | None, Option(help="Widths between the latent layers of a two-layer-vae. [default: 100,100]")
    ] = None,
    upper_latent: Annotated[
        int | None, Option(help="Upper latent dimensions of a two-layer-vae. [default: 50]")
    ] = None,
    encoder_dropout: Annotated[
        float | None,
        Option(help="Variance of Gaussian dropout on the encoder's hidden activations while training. [default: 0]"),
    ] = None,
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
        bad_records=bad_records,
        audit=audit,
        keep_deltas=keep_deltas,
    )
    job = Job(
        data=data,
        data_dir=data_dir,
        run_dir=run_dir,
        start_from=start_from,
        engine=engine,
        workers=workers,
        address=address,
        model=ChosenModel(
            kind=model,
            likelihood=likelihood,
            estimator=estimator,
            hidden=hidden,
            latent=latent,
            channels=channels,
            upper_hidden=upper_hidden,
            upper_latent=upper_latent,
            encoder_dropout=encoder_dropout,
        ),
        fit=ChosenFit(
            primitive=primitive,
            objective=objective,
            samples=samples,
            kl_weight=kl_weight,
            kl_warm_up=kl_warm_up,
            max_norm=max_norm,
        ),
        settings=settings,
    )
    execute(job, output.choose_live(json))
