"""The benchmark over mutated records, some of each; and that it finds it when a check is left out."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))

from fuzz import Tally, every_decoder, fuzz_decoders, outcome_of, random_of, stream_one
from mutations import mutated_bytes, mutated_fields, mutated_plain

from streaming_vb.families.full_rank_normal import FullRankNormal
from streaming_vb.models.linear_regression import LinearRegression
from streaming_vb.sources import files
from streaming_vb.streaming import local_update, merge, messages, quarantine, wire
from streaming_vb.types import Records

pytestmark = pytest.mark.filterwarnings("ignore")  # of casts and of files: what matters is what comes out
ROWS = 100


def fuzzed(directory: Path, inputs: int, only: str = "") -> Tally:
    """So many inputs, spread over the decoders whose names start with `only`."""
    decoders = {name: decoder for name, decoder in every_decoder(directory).items() if name.startswith(only)}
    tally = Tally()
    fuzz_decoders(decoders, inputs, 0, tally)
    return tally


def streamed(number: int) -> Tally:
    tally = Tally()
    stream_one(ROWS, np.random.default_rng([0, number]), number, tally)
    return tally


def test_mutated_input_is_read_or_refused(tmp_path: Path) -> None:
    tally = fuzzed(tmp_path, 800)
    assert tally.crashes == []
    assert sum(counts.total() for counts in tally.outcomes.values()) == 800
    assert all(counts["refused"] for counts in tally.outcomes.values())


@pytest.mark.parametrize("number", range(8))
def test_a_run_over_mutated_records_accounts_for_all_of_them(number: int) -> None:
    tally = streamed(number)
    assert (tally.crashes, tally.violations, tally.not_finite) == ([], [], 0)
    assert tally.read == ROWS == tally.counted + tally.set_aside
    assert min(tally.merges, tally.set_aside) > 0


def test_a_seed_gives_the_same_input_again(tmp_path: Path) -> None:
    for name, decoder in every_decoder(tmp_path).items():
        tallies = [Tally(), Tally()]
        outcomes = []
        for tally in tallies:
            mutation, decode = decoder(random_of(3, name, 7))
            outcomes.append((mutation, outcome_of(decode, tally), tally.refusals))
        assert outcomes[0] == outcomes[1]


def test_mutations_leave_what_they_were_given_as_it_was() -> None:
    data, plain, fields = b"data", {"a": [1, {"b": 2}]}, {"x": np.ones((4, 2)), "y": np.ones(4)}
    for seed in range(300):
        random = np.random.default_rng(seed)
        mutated_bytes(data, random)
        mutated_plain(plain, random)
        mutated_fields(fields, random)
    assert (data, plain) == (b"data", {"a": [1, {"b": 2}]})
    assert all((array == 1).all() for array in fields.values())


def _one_too_many(records: Records, bad: Any) -> Records:
    left = whole_without(records, bad)
    return Records(left.interval, {name: array[:-1] for name, array in left.fields.items()})


def _unchecked_number(header: Any, name: str, kind: Any) -> Any:
    return header[name]


whole_without = quarantine.without
DECODERS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "message": (messages, "_value", _unchecked_number),
    "wire header": (wire, "_row", lambda row: (row[0], np.dtype(row[1]), tuple(row[2]))),
    "table": (files, "_require", lambda *arguments: None),
    "model linear": (LinearRegression, "validate", lambda self, records: np.isfinite(records["x"]).all()),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_check_that_is_left_out_of_a_decoder_is_found(
    decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name, replacement = DECODERS[decoder]
    monkeypatch.setattr(where, name, replacement)
    assert fuzzed(tmp_path, 400, decoder).crashes


def test_a_record_lost_in_quarantine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "without", _one_too_many)
    tally = streamed(0)
    assert tally.violations
    assert tally.counted + tally.set_aside < tally.read


def test_a_record_that_is_never_checked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit of its interval is not finite; without the checks behind it, it would be merged."""
    monkeypatch.setattr(LinearRegression, "validate", lambda self, records: None)
    monkeypatch.setattr(local_update, "is_finite", lambda array: True)
    monkeypatch.setattr(merge, "is_finite", lambda array: True)
    monkeypatch.setattr(FullRankNormal, "is_normalizable", lambda self, natural: True)
    tally = streamed(0)
    assert tally.not_finite or tally.crashes
