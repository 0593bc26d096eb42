"""`streaming-vb inspect POSTERIOR`: what a posterior file holds. Loads no torch."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from streaming_vb.cli import output, run_directory
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState


def inspect(
    posterior: Annotated[Path, Argument(help="posterior.safetensors, or a run directory")],
    json: Annotated[bool, Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Records and intervals counted, settings, shapes, spread of the posterior, digests (all checked)."""
    path = snapshot.posterior_path(posterior)
    state, settings, digests, generation = snapshot.load(path)
    values = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "run_id": state.run_id,
        "version": state.version,
        "records": state.num_records,
        "generation": generation,
        "lineage": [asdict(ancestor) for ancestor in state.lineage],
        "intervals": _runs(state.ledger),
        "set_aside": [f"{entry.interval}: {entry.reason}" for entry in state.ledger.set_aside],
        "settings": dict(settings),
        "tensors": {
            **{f"posterior.{name}": list(array.shape) for name, array in state.posterior.arrays.items()},
            **{f"fit_state.{name}": list(array.shape) for name, array in state.fit_state.items()},
        },
        **_spread(state, settings),
        "posterior_sha256": snapshot.posterior_sha256(state.posterior),
        "digests_checked": len(digests),
    }
    output.choose(json).result(values, _text(values))


def _runs(ledger: Ledger) -> dict[str, list[list[int]]]:
    """Covered runs by partition; with the source before it where there are several.

    >>> from streaming_vb.types import Interval
    >>> _runs(Ledger().add(Interval("sha", "pass-0", 0, 10)))
    {'pass-0': [[0, 10]]}
    """
    several = len({source for source, _ in ledger.runs}) > 1
    return {
        f"{source[:12]} {partition}" if several else partition: [list(run) for run in runs]
        for (source, partition), runs in ledger.runs.items()
    }


def _spread(state: ServerState, settings: Any) -> dict[str, Any]:
    """Quantiles of the served standard deviation over the prior's, where the precision is a vector."""
    if "precision" not in state.posterior.arrays or state.posterior["precision"].ndim != 1:
        return {}
    variance_ratio = (state.prior["precision"] / run_directory.served(state, settings)["precision"]).astype(np.float32)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    ranks = [int(level * (variance_ratio.size - 1)) for level in levels]
    quantiles = np.sqrt(np.sort(variance_ratio)[ranks])
    return {
        "sd_over_prior_sd": {f"{level:.0%}": float(q) for level, q in zip(levels, quantiles, strict=True)},
        "share_of_weights_unmoved": float(np.mean(variance_ratio > 0.99**2)),
    }


def _text(values: dict[str, Any]) -> str:
    settings = values["settings"]
    shapes = "  ".join(f"{name} {shape}" for name, shape in values["tensors"].items())
    model = ", ".join(
        f"{name} {settings[name]}" for name in ("columns", "hidden", "latent", "likelihood") if name in settings
    )
    lines = [
        f"file       {values['file']}  {values['bytes']:,} bytes, {values['digests_checked']} digests checked",
        f"run        {values['run_id']}",
        *(f"from       version {entry['version']:,} of run {entry['run_id']}" for entry in values["lineage"]),
        f"records    {values['records']:,}, each counted once, in {values['version']:,} merges",
        f"intervals  {_intervals(values['intervals'])}",
        *(f"set aside  {entry}" for entry in _first(values["set_aside"])),
        f"model      {settings.get('model')} ({model}); {settings['family']}, {settings['primitive']}",
        f"settings   mode {settings['mode']}, seed {settings['seed']}, batch {settings['batch_size']}, forgetting "
        f"{settings['forgetting']}",
        f"tensors    {shapes}",
    ]
    if "sd_over_prior_sd" in values:
        quantiles = "  ".join(f"{level} {q:.3f}" for level, q in values["sd_over_prior_sd"].items())
        lines.append(
            f"spread     sd / prior sd: {quantiles}; {values['share_of_weights_unmoved']:.1%} of the weights unmoved"
        )
    return "\n".join([*lines, f"sha256     {values['posterior_sha256']}"])


def _first(entries: list[str], most: int = 10) -> list[str]:
    """The first entries, and how many more there are."""
    return entries[:most] + ([f"and {len(entries) - most:,} more"] if len(entries) > most else [])


def _intervals(runs_of: dict[str, list[list[int]]]) -> str:
    """How many positions are covered, and where there are gaps.

    >>> _intervals({"pass-0": [[0, 100]], "pass-1": [[0, 10], [20, 30]]})
    '120 positions in 2 partitions; gaps in pass-1 (0:10 20:30)'
    """
    positions = sum(stop - start for runs in runs_of.values() for start, stop in runs)
    gaps = [
        f"{name} ({' '.join(f'{start:,}:{stop:,}' for start, stop in runs)})"
        for name, runs in runs_of.items()
        if len(runs) > 1 or runs[0][0] > 0
    ]
    return f"{positions:,} positions in {len(runs_of)} partitions; " + (
        f"gaps in {', '.join(gaps)}" if gaps else "no gaps"
    )
