"""Posterior files: what is loaded is what was saved, to the bit, or an error says why not."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import fingerprint
from safetensors import safe_open
from safetensors.numpy import save_file

from streaming_vb.errors import FormatTooNew, IntegrityError
from streaming_vb.families import full_rank_normal, mean_field_normal
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.snapshot import load, posterior_sha256, save
from streaming_vb.types import Interval, NaturalParameters

SETTINGS = {"model": "vae", "hidden": [500, 20], "share": "auto", "ramp": 30_000, "ä": None, "rate": 0.1}


def state_of(example: Callable[[], Any] = mean_field_normal.example) -> ServerState:
    """Every kind of array that a run keeps, and a ledger with runs, gaps and an interval set aside."""
    _, prior, posterior = example()
    fit_state = {"momentum": np.arange(3, dtype=np.float32), "steps": np.array(7), "empty": np.zeros((0, 2))}
    ledger = Ledger().add(Interval("sha", "pass-0", 0, 10)).add(Interval("sha", "pass-0", 2**60, 2**60 + 5))
    ledger = ledger.put_aside(Interval("sha", "größe", 3, 4), 1, 'it said "NaN"\n')
    return ServerState("0123456789abcdef", prior, posterior, fit_state, 42, 15, ledger)


def bits(state: ServerState) -> tuple[object, ...]:
    arrays = fingerprint(state.prior, state.posterior, state.fit_state)
    return arrays, state.run_id, state.version, state.num_records, state.ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved posterior."""
    path = tmp_path / "posterior.safetensors"
    save(path, state_of(), SETTINGS)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description of a file as a newer or hostile writer would: with a digest that fits."""
    with safe_open(path, framework="numpy") as file:
        content = json.loads(file.metadata()["streaming_vb"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(content)
    text = json.dumps(content)
    save_file(tensors, path, {"streaming_vb": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


@pytest.mark.parametrize("example", [mean_field_normal.example, full_rank_normal.example])
def test_what_is_loaded_is_what_was_saved(example: Callable[[], Any], tmp_path: Path) -> None:
    save(tmp_path / "file", state_of(example), SETTINGS)
    loaded = load(tmp_path / "file")
    assert bits(loaded.state) == bits(state_of(example))
    assert loaded.settings == SETTINGS


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: a.T.copy().T])
def test_memory_layout_leaves_no_trace(layout: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    point = NaturalParameters({"precision": layout(matrix)})
    save(tmp_path / "file", ServerState("run", point, point, {}), {})
    np.testing.assert_array_equal(load(tmp_path / "file").state.posterior["precision"], matrix)


def test_values_that_are_not_finite_keep_their_bits(tmp_path: Path) -> None:
    point = NaturalParameters({"sum": np.array([np.nan, np.inf, -0.0, 5e-324])})
    save(tmp_path / "file", ServerState("run", point, point, {}), {})
    assert fingerprint(load(tmp_path / "file").state.posterior) == fingerprint(point)


def test_saving_what_was_loaded_loses_nothing(path: Path) -> None:
    loaded = load(path)
    save(path, loaded.state, loaded.settings)
    again = load(path)
    assert (bits(again.state), again.settings, again.digests) == (bits(loaded.state), loaded.settings, loaded.digests)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_a_changed_byte_is_noticed_or_harmless(path: Path, mask: int) -> None:
    content = path.read_bytes()
    expected = bits(load(path).state)
    unnoticed = []
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :])
        try:
            loaded = load(path)
        except IntegrityError:
            continue
        if bits(loaded.state) != expected or loaded.settings != SETTINGS:
            unnoticed.append(position)
    assert unnoticed == []


def test_a_truncated_file_is_noticed_at_every_length(path: Path) -> None:
    content = path.read_bytes()
    for length in {*range(0, len(content), 7), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(IntegrityError):
            load(path)


def test_trailing_bytes_are_noticed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(IntegrityError):
        load(path)


FOREIGN = {
    "empty": b"",
    "text": b"hello world, this is a text file\n",
    "pickle": pickle.dumps({"posterior": [1.0, 2.0]}),
    "huge header": b"\xff" * 64,
    "zip": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(IntegrityError, match="not a readable safetensors file"):
        load(tmp_path / "file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_safetensors_file_of_somebody_else_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3)}, tmp_path / "file", metadata)
    with pytest.raises(IntegrityError, match="not a streaming_vb posterior"):
        load(tmp_path / "file")


@pytest.mark.parametrize("place", ["nothing", "directory"])
def test_a_file_that_is_not_there_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IntegrityError, match=f"{place}: no posterior file there"):
        load(tmp_path / place)


def test_a_newer_format_says_how_to_read_it(path: Path) -> None:
    rewrite(path, lambda content: content.update(format_version=snapshot.FORMAT_VERSION + 1))
    with pytest.raises(FormatTooNew, match="pip install -U streaming-vb"):
        load(path)


def test_a_tensor_without_a_digest_is_refused(path: Path) -> None:
    rewrite(path, lambda content: content["digests"].pop("posterior.precision"))
    with pytest.raises(IntegrityError, match=r"posterior\.precision"):
        load(path)


@pytest.mark.parametrize("key", ["run_id", "version", "num_records", "ledger", "settings", "digests", "format_version"])
def test_a_description_that_lacks_something_is_refused(path: Path, key: str) -> None:
    rewrite(path, lambda content: content.pop(key))
    with pytest.raises(IntegrityError):
        load(path)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(snapshot.os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        save(path, state_of(full_rank_normal.example), {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_and_then_its_directory_are_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_sync, real_replace = snapshot.os.fsync, snapshot.os.replace
    monkeypatch.setattr(snapshot.os, "fsync", lambda file: (events.append("sync"), real_sync(file)))
    monkeypatch.setattr(snapshot.os, "replace", lambda *names: (events.append("replace"), real_replace(*names)))
    save(path, state_of(), {})
    assert events == ["sync", "replace", "sync"]


def test_a_file_holds_no_pickle(path: Path) -> None:
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    json.loads(content[8 : 8 + header])
    for protocol in range(2, 6):
        assert b"\x80" + bytes([protocol]) + b"\x95" not in content


def test_equal_posteriors_have_equal_digests_and_others_do_not() -> None:
    _, a, b = mean_field_normal.example()
    same = NaturalParameters({name: a[name].copy() for name in reversed(list(a.arrays))})
    last_bit = NaturalParameters({**a.arrays, "precision": np.nextafter(a["precision"], np.inf)})
    assert posterior_sha256(a) == posterior_sha256(same)
    assert len({posterior_sha256(point) for point in (a, b, last_bit)}) == 3
