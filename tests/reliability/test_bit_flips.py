"""The benchmark over flipped bits, a few hundred of them; and that it finds it when a check is left out."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))

from bit_flips import flip, flip_many, leave_behind
from ledger_run import LedgerRun

from streaming_vb.streaming import frames

RUN = LedgerRun(33)


def test_no_flipped_bit_gives_another_posterior(tmp_path: Path) -> None:
    left = leave_behind(RUN, tmp_path / "left")
    counts, violations = flip_many(RUN, left, tmp_path / "tried", flips=150, seed=1)
    assert violations == []
    assert counts["generation"].keys() == {"refused"}
    assert counts["posterior.safetensors"].keys() == {"same"}  # the one before and the journal give it too
    assert counts["journal"].keys() == {"same", "refused", "earlier"}


def test_a_checksum_that_is_not_looked_at_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames.zlib, "crc32", lambda data, value=0: 0)
    left = leave_behind(RUN, tmp_path / "left")
    file = max((left / "journal").iterdir(), key=lambda path: path.stat().st_mtime_ns).relative_to(left)
    outcomes = (flip(RUN, left, tmp_path / "tried", file, bit) for bit in range(0, 8 * 2_000, 200))
    assert any(outcome.startswith("violation") for outcome in outcomes)
