"""`streaming-vb merge A B --base C -o D`: what either of two posteriors has learned since the one that both started
from, each record once. Loads no torch."""

from pathlib import Path
from typing import Annotated

import yaml
from typer import Argument, Option

from streaming_vb.cli import output, run_directory, run_files
from streaming_vb.errors import ConfigError
from streaming_vb.streaming import forgetting, posterior_algebra, snapshot
from streaming_vb.streaming.snapshot import POSTERIOR_FILE


def merge(
    a: Annotated[Path, Argument(metavar="A", help="Run directory, or a posterior file")],
    b: Annotated[Path, Argument(metavar="B", help="Another one, started from the same posterior")],
    base: Annotated[Path, Option(metavar="C", help="The posterior that both started from")],
    to: Annotated[Path, Option("-o", "--output", metavar="D", help="New directory for the result")],
    approximate: Annotated[
        bool, Option("--approximate", help="Also where the runs forgot old curvature, so that sums are not exact")
    ] = False,
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Add A and B and take their common ancestor C away once. Exact for conjugate models. D opens with inspect and
    evaluate, and fit --start-from D goes on from it."""
    if (to / POSTERIOR_FILE).exists() or to.is_file():
        raise ConfigError(f"{to}: expected a new directory, and there is something. Give another one with -o")
    first, second, common = (run_files.open_posterior(path) for path in (a, b, base))
    for name, other in (("B", second), ("--base", common)):
        posterior_algebra.require_same_model(first.settings, other.settings, name)
    posterior_algebra.require_memory(first.settings, approximate)
    family = run_directory.family(first.settings)
    rule = forgetting.parse(first.settings["forgetting"], family)
    size = first.settings["batch_size"] * first.settings["local_steps"]
    state = posterior_algebra.merge(family, first.state, second.state, common.state, rule, size)
    to.mkdir(parents=True, exist_ok=True)
    _write_config(a, to, {"a": str(a), "b": str(b), "base": str(base)})
    snapshot.save(to / POSTERIOR_FILE, state, first.settings)
    exact = posterior_algebra.is_exact(first.settings)
    values = {
        "event": "merged",
        "file": str(to / POSTERIOR_FILE),
        "run_id": state.run_id,
        "version": state.version,
        "records": state.num_records,
        "set_aside": state.ledger.num_set_aside,
        "exact": exact,
        "posterior_sha256": snapshot.posterior_sha256(state.posterior),
    }
    counts = " ".join(
        f"{sign}{found.state.num_records:,}" for sign, found in (("", first), ("+ ", second), ("- ", common))
    )
    text = (
        f"merged     {counts} = {state.num_records:,} records, each counted once\n"
        f"quality    {posterior_algebra.quality(first.settings)}\n"
        f"posterior  {to / POSTERIOR_FILE}\n"
        f"next       streaming-vb inspect {to}    streaming-vb fit DATA --start-from {to}"
    )
    output.choose(json).result(values, text)


def _write_config(a: Path, to: Path, merged_from: dict[str, str]) -> None:
    """The data set of A, where it is known, for `evaluate`."""
    path = snapshot.posterior_path(a).with_name(run_directory.CONFIG_FILE)
    if path.is_file():
        data = yaml.safe_load(path.read_text()).get("data")
        run_directory.write_config(to, {"data": data, "merged_from": merged_from})
