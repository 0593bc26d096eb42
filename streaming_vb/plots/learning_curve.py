"""Learning curve: score of every interval before it was learned, and what each merge taught."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def draw(rows: Sequence[Mapping[str, Any]], held_out: float | None, path: Path) -> None:
    """Write a picture with two panels over the records counted.

    Args:
        rows: merges as in metrics.jsonl.
        held_out: ELBO of the held-out records at the end, nats per record; none leaves its line out.
        path: of the PNG file.
    """
    merged = [row for row in rows if row["status"] == "merged" and row["elbo"] is not None]
    records = np.array([row["records"] for row in merged])
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    score, teaching = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    elbo = np.array([row["elbo"] for row in merged])
    score.plot(records, elbo, color="#0072B2", linewidth=1.2, label="interval, before it is learned")
    if held_out is not None:
        score.axhline(
            held_out, color="#D55E00", linestyle="--", linewidth=1, label=f"held out, at the end: {held_out:.2f}"
        )
    if len(elbo) > 4:  # the first scores of an untrained model would flatten the rest
        low = np.percentile(elbo, 5)
        score.set_ylim(low - 0.05 * (elbo.max() - low), elbo.max() + 0.05 * (elbo.max() - low))
    score.set_ylabel("ELBO (nats per record)")
    score.legend(loc="lower right", frameon=False)
    teaching.plot(records, [row["step_kl"] / row["new"] for row in merged], color="#009E73", linewidth=1.2)
    teaching.set_yscale("log")
    teaching.set_ylabel("step KL\n(nats per record)")
    teaching.set_xlabel("records counted")
    for axes in (score, teaching):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
