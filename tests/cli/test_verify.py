"""`verify` finds what is broken, and finds nothing in what is whole."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_verbs import SETTINGS, answer, fitted, running, typed

from streaming_vb.cli import verify
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState
from streaming_vb.types import Interval, NaturalParameters, SetAside

SOURCE = IntegerSource(95, 2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is over, with its journal kept."""
    return fitted(tmp_path, SOURCE, replace(SETTINGS, keep_deltas=True), workers=2)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A run that is over, whose journal was removed."""
    fitted(tmp_path, SOURCE, workers=2)
    shutil.rmtree(tmp_path / "journal")
    return tmp_path


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run that was killed: nearly everything is in the journal."""
    with running(tmp_path) as process:
        process.kill()
        process.wait()
    return tmp_path


def broken(path: Path) -> set[str]:
    """Names of the checks that fail."""
    told = [json.loads(line) for line in _lines(path)]
    return {check["name"] for check in told if not check["whole"]}


def _lines(path: Path) -> list[str]:
    return [json.dumps(check._asdict()) for check in verify.checks(path)]


def change(run: Path, changed: Callable[[ServerState], ServerState]) -> None:
    """Write another state with digests that fit, as a bug would."""
    state, settings, _, generation = snapshot.load(run / "posterior.safetensors")
    snapshot.save(run / "other", changed(state), settings, generation=generation)
    (run / "other").replace(run / "posterior.safetensors")


def flip(path: Path, position: int, mask: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def with_runs(state: ServerState, runs: tuple[tuple[int, int], ...]) -> ServerState:
    key = SOURCE.fingerprint, "part-0"
    return replace(state, ledger=Ledger({**state.ledger.runs, key: runs}, state.ledger.set_aside))


def test_a_run_that_is_over_is_whole(run: Path) -> None:
    told = verify.checks(run)
    assert [check.name for check in told] == [
        "posterior", "posterior", "journal", "replay", "ledger", "counts", "precision", "gaps", "metrics",
    ]  # fmt: skip
    assert all(check.whole for check in told)
    assert typed("verify", run).count("ok  ") == len(told)
    assert answer("verify", run)["found"] == "20 rows, each in the ledger, once"


def test_a_run_that_was_killed_is_whole(killed: Path) -> None:
    assert broken(killed) == set()


def test_a_run_that_goes_on_is_whole_at_every_look(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        for _ in range(20):
            assert broken(tmp_path) == set()
        assert process.poll() is None


def test_a_posterior_file_alone_is_whole(run: Path) -> None:
    assert broken(run / "posterior.safetensors") == set()
    assert "journal" not in typed("verify", run / "posterior.safetensors")


def test_it_writes_nothing(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    typed("verify", run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["posterior.safetensors", "previous.safetensors"])
def test_a_flipped_bit_of_a_snapshot(run: Path, name: str) -> None:
    flip(run / name, -3)
    assert broken(run) == {"posterior"}
    assert f"{run / name}: tensor" in "".join(_lines(run))
    assert "not whole: posterior. Nothing was changed" in typed("verify", run, code=5)


def test_without_any_snapshot_that_can_be_read_there_is_nothing_more_to_check(run: Path) -> None:
    for name in ("posterior.safetensors", "previous.safetensors"):
        flip(run / name, -3)
    assert len(_lines(run)) == 2


def test_a_flipped_bit_of_the_journal(killed: Path) -> None:
    (path,) = (killed / "journal").iterdir()
    flip(path, path.stat().st_size // 3)
    assert "journal" in broken(killed)
    typed("verify", killed, code=5)


def test_a_truncated_journal(killed: Path) -> None:
    (path,) = (killed / "journal").iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert broken(killed) & {"journal", "metrics"}


def test_a_journal_that_is_gone(killed: Path) -> None:
    (path,) = (killed / "journal").iterdir()
    path.unlink()
    assert broken(killed) == {"metrics"}  # rows tell of merges that nothing holds any more


def test_a_tail_torn_by_a_crash_is_no_fault(killed: Path) -> None:
    """The last entry alone may be torn: nobody was told of it."""
    lines = (killed / "metrics.jsonl").read_text().splitlines()
    (killed / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n" + '{"status": "merged", "par')
    (path,) = (killed / "journal").iterdir()
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[:-20])
    assert broken(killed) == set()
    assert "do not match their checksum, cut there" in typed("verify", killed)


def test_a_gap_in_the_ledger(plain: Path) -> None:
    change(plain, lambda state: with_runs(state, ((0, 30), (40, 95))))
    assert broken(plain) == {"counts", "metrics"}


def test_a_gap_in_the_ledger_and_in_the_counts(plain: Path) -> None:
    change(plain, lambda state: replace(with_runs(state, ((0, 30), (40, 95))), num_records=state.num_records - 10))
    assert broken(plain) == {"metrics"}


def test_a_gap_that_the_journal_would_fill_a_second_time(run: Path) -> None:
    change(run, lambda state: replace(with_runs(state, ((0, 30), (40, 95))), num_records=state.num_records - 10))
    assert "replay" in broken(run)
    assert "holds entry 4 and lacks one before it" in "".join(_lines(run))


def test_a_gap_is_told_and_is_a_fault_once_the_run_is_finished(plain: Path) -> None:
    change(plain, lambda state: replace(with_runs(state, ((0, 30), (40, 95))), num_records=state.num_records - 10))
    rewrite_rows(plain, lambda rows: rows.remove(next(row for row in rows if row["start"] == 30)))
    assert broken(plain) == set()
    assert "part-0 (0:30 40:95); filled when the run goes on" in typed("verify", plain)
    (plain / "config.resolved.yaml").write_text("settings: {records: 100}\n")
    assert broken(plain) == {"gaps"}


def test_an_older_snapshot_in_the_place_of_the_newest(tmp_path: Path) -> None:
    fitted(tmp_path, SOURCE)
    assert broken(tmp_path) == set()
    shutil.copy(tmp_path / "previous.safetensors", tmp_path / "posterior.safetensors")
    assert broken(tmp_path) == {"journal", "metrics"}


def test_an_overlap_in_the_ledger(run: Path) -> None:
    change(run, lambda state: with_runs(state, ((0, 50), (40, 95))))
    assert broken(run) == {"posterior"}
    assert "not disjoint" in "".join(_lines(run))


@pytest.mark.parametrize("runs", [((0, 50), (40, 95)), ((40, 95), (0, 40)), ((5, 5),), ((-1, 95),)])
def test_an_overlap_of_runs_is_found_by_itself_too(runs: tuple[tuple[int, int], ...]) -> None:
    assert list(verify._overlaps(Ledger({("s", "p"): runs})))
    assert not list(verify._overlaps(Ledger({("s", "p"): ((0, 5), (7, 9))})))


def test_a_count_that_is_off_by_one(run: Path) -> None:
    change(run, lambda state: replace(state, num_records=state.num_records + 1))
    assert broken(run) == {"counts"}


def test_an_entry_set_aside_outside_of_the_ledger(run: Path) -> None:
    stray = SetAside(Interval(SOURCE.fingerprint, "part-0", 95, 96), 0, "stray")
    change(run, lambda state: replace(state, ledger=Ledger(state.ledger.runs, (stray,))))
    assert broken(run) == {"counts"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(run: Path, value: float) -> None:
    change(run, lambda state: replace(state, posterior=NaturalParameters({"sum": np.full(4, value)})))
    assert broken(run) == {"precision"}


def rewrite_rows(run: Path, changed: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changed(rows)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_told_twice(run: Path) -> None:
    rewrite_rows(run, lambda rows: rows.append(rows[3]))
    assert broken(run) == {"metrics"}


def test_a_row_of_records_that_are_not_in_the_ledger(run: Path) -> None:
    rewrite_rows(run, lambda rows: rows[-1].update(stop=rows[-1]["stop"] + 1))
    assert broken(run) == {"metrics"}


def test_a_row_that_was_rejected_tells_of_nothing_counted(run: Path) -> None:
    rewrite_rows(run, lambda rows: rows.append({**rows[3], "status": "rejected"}))
    assert broken(run) == set()


def test_a_journal_of_another_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("other")) as process:
        process.kill()
        process.wait()
        other = Path(str(process.args[2]))  # type: ignore[index]
    (run / "journal").rename(run / "kept")
    (other / "journal").rename(run / "journal")
    assert broken(run) & {"journal", "replay"}


def test_another_directory_is_refused(tmp_path: Path) -> None:
    assert "not a run directory" in typed("verify", tmp_path, code=2)
