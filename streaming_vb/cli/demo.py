"""`streaming-vb demo`: the main job on data that is already on the machine."""

from pathlib import Path
from typing import Annotated

from typer import Option

from streaming_vb.cli import output
from streaming_vb.cli.chosen_fit import ChosenFit
from streaming_vb.cli.chosen_model import ChosenModel
from streaming_vb.cli.job import Job, execute
from streaming_vb.streaming.settings import Settings

RECORDS = 150_000
"""About 90 passes over the digits, each binarized afresh: the ELBO has levelled off."""


def demo(
    run_dir: Annotated[
        Path | None,
        Option(help="Where everything is kept; the same command resumes. [default: runs/digits-1, -2, ...]"),
    ] = None,
    json: Annotated[bool, Option("--json", help="JSON lines on stdout, talk on stderr")] = False,
) -> None:
    """Stream scikit-learn's handwritten digits through a Bayesian VAE in this process: no download, no Ray, under a
    minute."""
    job = Job(
        data="digits",
        data_dir=None,
        run_dir=run_dir,
        start_from=None,
        engine="inline",
        workers=1,
        address=None,
        model=ChosenModel("vae", "bernoulli", "local", hidden="200", latent=10),
        fit=ChosenFit("natural-gradient"),
        settings=Settings(records=RECORDS),
    )
    execute(job, output.choose_live(json))
