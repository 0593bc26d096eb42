"""Posterior files: what is loaded is what was saved, to the bit, or an error says why not."""

import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from checks import fingerprint
from safetensors import safe_open
from safetensors.numpy import save_file
from simulation.simulated_disk import CHANGES as CHANGING
from simulation.simulated_disk import ProcessDied, SimulatedDisk

from streaming_vb.errors import FormatTooNew, IntegrityError
from streaming_vb.families import full_rank_normal, mean_field_normal
from streaming_vb.streaming import snapshot
from streaming_vb.streaming.disk import Buffer, File, RealDisk
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.merge import Ancestor, ServerState
from streaming_vb.streaming.snapshot import (
    POSTERIOR_FILE,
    PREVIOUS_FILE,
    load,
    newest,
    posterior_sha256,
    read_description,
    save,
)
from streaming_vb.types import Interval, NaturalParameters, SetAside

SETTINGS = {"model": "vae", "hidden": [500, 20], "share": "auto", "ramp": 30_000, "ä": None, "rate": 0.1}


def state_of(example: Callable[[], Any] = mean_field_normal.example, version: int = 42) -> ServerState:
    """Every kind of array that a run keeps, and a ledger with runs, gaps and an interval set aside."""
    _, prior, posterior = example()
    fit_state = {"momentum": np.arange(3, dtype=np.float32), "steps": np.array(7), "empty": np.zeros((0, 2))}
    ledger = Ledger().add(Interval("sha", "pass-0", 0, 10)).add(Interval("sha", "pass-0", 2**60, 2**60 + 5))
    ledger = ledger.put_aside(SetAside(Interval("other", "größe", 3, 4), 1, 'it said "NaN"\n'))
    lineage = (Ancestor("fedcba9876543210", 7, "ab" * 32),)
    return ServerState("0123456789abcdef", prior, posterior, fit_state, version, 15, ledger, lineage)


def bits(state: ServerState) -> tuple[object, ...]:
    arrays = fingerprint(state.prior, state.posterior, state.fit_state)
    return arrays, state.run_id, state.version, state.num_records, state.ledger, state.lineage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved posterior."""
    path = tmp_path / "posterior.safetensors"
    save(path, state_of(), SETTINGS, generation=3)
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
    save(path, loaded.state, loaded.settings, generation=loaded.generation)
    again = load(path)
    assert (bits(again.state), *again[1:]) == (bits(loaded.state), *loaded[1:])
    assert again.generation == 3


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
        if bits(loaded.state) != expected or loaded.settings != SETTINGS or loaded.generation != 3:
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


NEEDED = "run_id version num_records ledger lineage generation settings digests format_version"


@pytest.mark.parametrize("key", NEEDED.split())
def test_a_description_that_lacks_something_is_refused(path: Path, key: str) -> None:
    rewrite(path, lambda content: content.pop(key))
    with pytest.raises(IntegrityError):
        load(path)


def test_any_safetensors_reader_reads_the_tensors(path: Path) -> None:
    state = state_of()
    expected = {f"posterior.{name}": array for name, array in state.posterior.arrays.items()}
    expected |= {f"prior.{name}": array for name, array in state.prior.arrays.items()}
    expected |= {f"fit_state.{name}": array for name, array in state.fit_state.items()}
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(expected)
        for name, array in expected.items():
            assert fingerprint(file.get_tensor(name)) == fingerprint(array)


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f8", ">i4"])
def test_every_kind_of_number_is_kept(dtype: str, tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]], dtype)
    point = NaturalParameters({"sum": np.zeros(1)})
    save(tmp_path / "file", ServerState("run", point, point, {"values": values}), {})
    found = load(tmp_path / "file").state.fit_state["values"]
    assert found.dtype == values.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found, values)
    with safe_open(tmp_path / "file", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("fit_state.values"), values)


def test_a_tensor_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    point = NaturalParameters({"sum": np.zeros(1)})
    with pytest.raises(IntegrityError, match=r"fit_state\.text"):
        save(tmp_path / "file", ServerState("run", point, point, {"text": np.array(["x"])}), {})
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_many_blocks_are_hashed_whole(tmp_path: Path) -> None:
    point = NaturalParameters({name: np.arange(700_001.0) for name in ("precision", "precision_mean")})
    save(tmp_path / "file", ServerState("run", point, point, {}), {})
    assert fingerprint(load(tmp_path / "file").state.posterior) == fingerprint(point)
    content = bytearray((tmp_path / "file").read_bytes())
    for position in (-1, len(content) // 2, len(content) // 5):
        content[position] ^= 1
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(IntegrityError, match="does not match its SHA-256"):
            load(tmp_path / "file")
        content[position] ^= 1


SAVES_LAST = """
import atexit, sys
import numpy as np
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.snapshot import save
from streaming_vb.types import NaturalParameters

point = NaturalParameters({"sum": np.arange(1_000_000.0)})
atexit.register(save, sys.argv[1], ServerState("run", point, point, {}), {})
"""


def test_a_save_while_the_interpreter_ends_is_made(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SAVES_LAST, str(tmp_path / "file")], check=True)
    np.testing.assert_array_equal(load(tmp_path / "file").state.posterior["sum"], np.arange(1_000_000.0))


def test_a_file_of_format_1_is_read(tmp_path: Path) -> None:
    state = state_of()
    groups = {"prior": state.prior.arrays, "posterior": state.posterior.arrays, "fit_state": state.fit_state}
    tensors = {f"{group}.{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
    content = {
        "format_version": 1,
        "run_id": "run",
        "version": 9,
        "num_records": 12,
        "ledger": {
            "source": "sha",
            "runs": {"pass-0": [[0, 10], [20, 23]], "pass-1": [[0, 1]]},
            "set_aside": [{"partition": "pass-1", "start": 0, "stop": 1, "num_records": 1, "reason": "odd"}],
        },
        "settings": SETTINGS,
        "digests": {
            name: hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode() + array.tobytes()).hexdigest()
            for name, array in tensors.items()
        },
    }
    text = json.dumps(content)
    path = tmp_path / POSTERIOR_FILE
    save_file(tensors, path, {"streaming_vb": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    loaded = load(path)
    assert fingerprint(loaded.state.posterior, loaded.state.prior, loaded.state.fit_state) == fingerprint(
        state.posterior, state.prior, state.fit_state
    )
    assert (loaded.state.run_id, loaded.state.version, loaded.state.num_records) == ("run", 9, 12)
    assert loaded.state.lineage == ()
    assert (loaded.settings, loaded.generation) == (SETTINGS, 0)
    assert loaded.state.ledger == Ledger(
        {("sha", "pass-0"): ((0, 10), (20, 23)), ("sha", "pass-1"): ((0, 1),)},
        (SetAside(Interval("sha", "pass-1", 0, 1), 1, "odd"),),
    )
    save(path, loaded.state, loaded.settings)
    assert bits(load(path).state) == bits(loaded.state)
    assert bits(load(path.with_name(PREVIOUS_FILE)).state) == bits(loaded.state)


def test_the_description_is_read_without_the_tensors(path: Path) -> None:
    content = path.read_bytes()
    description = read_description(path)
    assert (description["run_id"], description["generation"], description["version"]) == ("0123456789abcdef", 3, 42)
    assert description["settings"] == SETTINGS
    assert description["cursors"] == {"sha": {"pass-0": 10}, "other": {"größe": 0}}
    assert description["counters"] == {"covered": 16, "set_aside": 1}
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a tensor: not looked at
    assert read_description(path) == description
    at = content.index(b"0123456789abcdef")
    path.write_bytes(content[:at] + b"X" + content[at + 1 :])
    with pytest.raises(IntegrityError, match="description does not match its SHA-256"):
        read_description(path)


MATRIX = {"dtype": "F64", "shape": [2, 4], "data_offsets": [0, 64]}
TABLES: dict[str, Any] = {
    "not an object": [],
    "entry is no object": {"a": 3},
    "unknown type": {"a": MATRIX | {"dtype": "F128"}},
    "type is no text": {"a": MATRIX | {"dtype": ["F64"]}},
    "negative lengths": {"a": MATRIX | {"shape": [-2, -4]}},
    "product wraps around": {"a": MATRIX | {"shape": [2**33, 2**33]}},
    "huge": {"a": MATRIX | {"shape": [2**50], "data_offsets": [0, 2**53]}},
    "nothing, and far too wide": {"a": MATRIX, "b": {"dtype": "F64", "shape": [0, 2**62], "data_offsets": [64, 64]}},
    "too many dimensions": {"a": MATRIX | {"shape": [2, 4, *[1] * 63]}},
    "gap": {"a": MATRIX | {"data_offsets": [8, 72]}},
    "overlap": {"a": MATRIX, "b": MATRIX},
    "too short": {"a": MATRIX | {"shape": [7], "data_offsets": [0, 56]}},
    "offsets and shape differ": {"a": MATRIX | {"shape": [7]}},
    "three offsets": {"a": MATRIX | {"data_offsets": [0, 64, 64]}},
    "no offsets": {"a": {"dtype": "F64", "shape": [8]}},
    "something more": {"a": MATRIX | {"more": 1}},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_hostile_table_of_tensors_is_refused(table: Any, tmp_path: Path) -> None:
    text = json.dumps({"format_version": 2, "digests": {}})
    metadata = {"streaming_vb": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    header = json.dumps({"__metadata__": metadata, **table} if isinstance(table, dict) else table).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(IntegrityError, match="not a readable safetensors file"):
        load(tmp_path / "file")


def test_a_header_nested_without_end_is_refused(tmp_path: Path) -> None:
    header = b'{"a":' * 100_000
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(IntegrityError, match="not a readable safetensors file"):
        load(tmp_path / "file")


def test_a_description_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="at most"):
        save(tmp_path / "file", state_of(), {"text": "a" * 2**24})
    assert list(tmp_path.iterdir()) == []


class WatchedDisk(RealDisk):
    """A disk that tells what changes it, and fails at one of the changes."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.events: list[str] = []
        self.fails_at = fails_at

    def change(self, event: str) -> None:
        self.events.append(event)
        if len(self.events) - 1 == self.fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: Path) -> File:
        self.change("create")
        return WatchedFile(self, super().create(path))

    def replace(self, source: Path, target: Path) -> None:
        self.change(f"replace {target.name}")
        super().replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        self.change(f"link {source.name}")
        super().link(source, target)

    def sync_directory(self, directory: Path) -> None:
        self.change("sync directory")
        super().sync_directory(directory)


class WatchedFile:
    """A file of a watched disk; a write that fails has written a part."""

    def __init__(self, disk: WatchedDisk, file: File) -> None:
        self.disk, self.file = disk, file
        self.read, self.size, self.close = file.read, file.size, file.close

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        self.file.write(parts[:1], offset)
        self.disk.change("write")
        self.file.write(parts, offset)

    def sync(self) -> None:
        self.disk.change("sync")
        self.file.sync()


CHANGES = [
    "create",
    "write",
    "sync",
    f"link {POSTERIOR_FILE}",
    f"replace {POSTERIOR_FILE}",
    "sync directory",
    f"replace {PREVIOUS_FILE}",
    "sync directory",
]


def test_a_file_is_synced_then_renamed_then_its_directory_synced_and_only_then_the_older_replaced(path: Path) -> None:
    disk = WatchedDisk()
    save(path, state_of(), {}, disk)
    assert disk.events == CHANGES


@pytest.mark.parametrize("at", range(len(CHANGES)), ids=CHANGES)
@pytest.mark.parametrize("damaged", [False, True], ids=["", "where the file was damaged"])
def test_a_save_that_fails_leaves_the_old_file_or_the_new_one(at: int, damaged: bool, path: Path) -> None:
    save(path, state_of(version=43), SETTINGS)  # 42 is kept as the previous one
    if damaged:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="No space left"):
        save(path, state_of(full_rank_normal.example, version=44), {}, WatchedDisk(fails_at=at))
    renamed = at > CHANGES.index(f"replace {POSTERIOR_FILE}")
    assert newest(path.parent)[0].state.version == (44 if renamed else 42 if damaged else 43)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [POSTERIOR_FILE, PREVIOUS_FILE]


def test_a_first_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / POSTERIOR_FILE, state_of(), {}, WatchedDisk(fails_at=2))
    assert list(tmp_path.iterdir()) == []


def test_two_are_kept(path: Path) -> None:
    for version in (43, 44):
        save(path, state_of(version=version), SETTINGS)
    assert load(path).state.version == 44
    assert load(path.with_name(PREVIOUS_FILE)).state.version == 43
    assert len(list(path.parent.iterdir())) == 2


def test_a_file_of_another_name_is_kept_alone(tmp_path: Path) -> None:
    for _ in range(2):
        save(tmp_path / "mine.safetensors", state_of(), SETTINGS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.safetensors"]


def test_where_the_newest_is_damaged_the_one_before_is_used_with_a_note(path: Path) -> None:
    save(path, state_of(version=43), SETTINGS)
    assert (newest(path.parent)[0].state.version, newest(path.parent)[1]) == (43, [])
    path.write_bytes(path.read_bytes()[:-1])
    found, notes = newest(path.parent)
    assert found.state.version == 42
    assert len(notes) == 1
    assert notes[0].startswith(f"used {PREVIOUS_FILE} (version 42) instead: {path}: ")
    path.with_name(PREVIOUS_FILE).unlink()
    with pytest.raises(IntegrityError, match=f"{POSTERIOR_FILE}: "):
        newest(path.parent)


def test_the_one_before_is_not_used_where_the_newest_is_only_newer(path: Path) -> None:
    save(path, state_of(version=43), SETTINGS)
    rewrite(path, lambda content: content.update(format_version=snapshot.FORMAT_VERSION + 1))
    with pytest.raises(FormatTooNew):
        newest(path.parent)


@pytest.mark.parametrize("seed", range(40))
def test_after_a_power_cut_at_any_change_an_old_or_the_new_file_is_whole(seed: int) -> None:
    random = Random(seed)
    medium = SimulatedDisk(random)
    directory = Path("run")
    path = directory / POSTERIOR_FILE
    disk = medium.process("first")
    disk.make_directory(directory)
    for version in (1, 2):
        save(path, state_of(version=version), SETTINGS, disk)
    writer = medium.process("writer")
    left = [random.randrange(12)]

    def interrupt(process: str, operation: str, at: Path) -> str:
        if process == "writer" and operation in CHANGING:
            left[0] -= 1
            return "kill" if left[0] < 0 else ""
        return ""

    medium.interrupt = interrupt
    saved = False
    try:
        save(path, state_of(version=3), SETTINGS, writer)
        saved = True
    except ProcessDied:
        pass
    medium.kill("writer")
    medium.cut_power()
    medium.interrupt = lambda process, operation, at: ""
    found, notes = newest(directory, medium.process("reader"))
    assert found.state.version in ((3,) if saved else (2, 3))
    assert notes == []
    older = load(directory / PREVIOUS_FILE, medium.process("reader")).state.version
    assert older in ((2,) if saved else (1, 2))
    assert bits(found.state) == bits(state_of(version=found.state.version))


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
