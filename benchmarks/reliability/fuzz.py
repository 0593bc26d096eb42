"""Mutated records through every decoder: nothing may crash, and nothing that is not finite may be merged.

Half of the records are inputs of decoders, each a valid one with one mutation (`mutations.py`): files through the
readers, messages through the codecs, a journal and a snapshot through recovery, tables through the sources, records
through the check of every likelihood and model. Each must be read, or refused with a `StreamingVBError` of one line:

    read        it was valid all the same; a table that passed a check holds numbers that float32 can hold
    refused     a StreamingVBError
    crash       anything else: a violation

The other half are rows of tables, one in twenty with NaNs, infinities or numbers out of range, streamed with
`bad_records="set-aside"` through several models. After every merge the posterior must be finite; in the end the records
counted and those set aside must be all that were read, and a row that is not finite must be among those set aside.

`--only DECODER:NUMBER` takes one input again, and shows where it crashes.

    python benchmarks/reliability/fuzz.py --records 100000 --seed 0
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gzip
import hashlib
import io
import json
import struct
import sys
import tempfile
import warnings
import zlib
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from ledger_run import LedgerRun
from mutations import Random, mutated_bytes, mutated_fields, mutated_plain, mutated_values
from report import at_most, progress, write

from streaming_vb.errors import StreamingVBError
from streaming_vb.likelihoods import bernoulli, categorical, continuous_bernoulli, normal, poisson
from streaming_vb.models import convolutional_vae, ledger_model, linear_regression, mlp, two_layer_vae, vae
from streaming_vb.sources import files
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.streaming import messages, snapshot, wire
from streaming_vb.streaming.disk import RealDisk
from streaming_vb.streaming.journal import Segments
from streaming_vb.streaming.ledger import Ledger
from streaming_vb.streaming.run import run
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.transport import Position
from streaming_vb.types import Delta, Fit, Interval, Lease, NaturalParameters, Receipt, Records, SetAside, Snapshot

LIKELIHOODS = (bernoulli, categorical, continuous_bernoulli, normal, poisson)
MODELS = (convolutional_vae, ledger_model, linear_regression, mlp, two_layer_vae, vae)
ROWS_PER_RUN = 1_000
BAD_ROWS = 0.05
Decoder = Callable[[Random], tuple[str, Callable[[], None]]]
"""Makes one input: the name of its mutation, and what decodes it."""


class Unsound(Exception):
    """A decoder let something pass that it must not."""


@dataclass
class Tally:
    """What happened."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    refusals: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    read: int = 0
    counted: int = 0
    set_aside: int = 0
    merges: int = 0
    not_finite: int = 0
    violations: list[str] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Mutate, decode, stream and print."""
    arguments = parse()
    warnings.simplefilter("ignore")  # of casts and of files: what matters is what comes out
    with tempfile.TemporaryDirectory() as name:
        decoders = every_decoder(Path(name))
        if arguments.only:
            decoder, _, number = arguments.only.rpartition(":")
            mutation, decode = decoders[decoder](random_of(arguments.seed, decoder, int(number)))
            progress(f"{decoder}: {mutation}")
            return decode()
        tally = Tally()
        fuzz_decoders(decoders, arguments.records // 2, arguments.seed, tally)
    stream_mutated(arguments.records - arguments.records // 2, arguments.seed, tally)
    report(arguments, tally)


def fuzz_decoders(decoders: dict[str, Decoder], inputs: int, seed: int, tally: Tally) -> None:
    """So many inputs, the same number through each decoder."""
    for index, (name, decoder) in enumerate(decoders.items()):
        share = (index + 1) * inputs // len(decoders) - index * inputs // len(decoders)
        for number in range(share):
            mutation, decode = decoder(random_of(seed, name, number))
            outcome = outcome_of(decode, tally)
            tally.outcomes[name][outcome.partition(":")[0]] += 1
            tally.kinds[mutation][outcome.partition(":")[0]] += 1
            if outcome.startswith("crash"):
                tally.crashes.append(f"--seed {seed} --only '{name}:{number}' ({mutation}): {outcome}")
        progress(f"{name}: {dict(tally.outcomes[name])}")


def outcome_of(decode: Callable[[], None], tally: Tally) -> str:
    """What comes of one input."""
    try:
        decode()
    except StreamingVBError as error:
        if "\n" in str(error):
            return f"crash: an error of several lines: {error!r}"
        tally.refusals[type(error).__name__] += 1
        return "refused"
    except Exception as error:
        return f"crash: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "read"


def random_of(seed: int, decoder: str, number: int) -> Random:
    """The generator of one input."""
    return np.random.default_rng([seed, zlib.crc32(decoder.encode()), number])


def every_decoder(directory: Path) -> dict[str, Decoder]:
    """By name."""
    return {
        **file_readers(directory),
        **codecs(),
        **recovery(directory),
        "array source": _array_source,
        "binarized source": _binarized_source,
        **{f"likelihood {module.__name__.rpartition('.')[2]}": _likelihood(module.example()) for module in LIKELIHOODS},
        **{f"model {module.__name__.rpartition('.')[2]}": _model(module.example()) for module in MODELS},
    }


def file_readers(directory: Path) -> dict[str, Decoder]:
    """The readers of tables, on every kind of file, each plain and compressed."""
    x = np.random.default_rng(0).integers(0, 256, (12, 3, 4))
    real = x.reshape(12, -1) / 255
    lines = [",".join(f"c{i}" for i in range(12)), *(",".join(f"{value:.6g}" for value in row) for row in real)]
    contents = {
        "digits.idx": b"\0\0\x08\x03" + np.array(x.shape, ">u4").tobytes() + x.astype(np.uint8).tobytes(),
        "real.idx": b"\0\0\x0d\x02" + np.array(real.shape, ">u4").tobytes() + real.astype(">f4").tobytes(),
        "table.npy": _saved(np.save, real),
        "bytes.npy": _saved(np.save, x.astype(np.uint8)),
        "table.npz": _saved(np.savez, x=real, y=np.arange(12)),
        "packed.npz": _saved(np.savez_compressed, x=real),
        "table.csv": "\n".join(lines).encode(),
    }
    contents |= {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in contents.items()}
    return {name: _file_reader(directory / name, data) for name, data in contents.items()}


def _saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def _file_reader(path: Path, data: bytes) -> Decoder:
    def decoder(random: Random) -> tuple[str, Callable[[], None]]:
        if path.suffix == ".gz" and random.integers(2):  # what is compressed, or its wrapping
            mutation, plain = mutated_bytes(gzip.decompress(data), random)
            changed = gzip.compress(plain, 1, mtime=0)
        else:
            mutation, changed = mutated_bytes(data, random)
        likelihood = str(random.choice(["normal", "bernoulli", "poisson", "categorical:4", "continuous-bernoulli"]))
        path.write_bytes(changed)
        return mutation, lambda: _read_file(path, likelihood)

    return decoder


def _read_file(path: Path, likelihood: str) -> None:
    table = files.read_table(path)
    files.require_scorable(table, likelihood)
    if not np.isfinite(table.x).all() or table.x.ndim != 2 or len(table.columns) != table.x.shape[1]:
        raise Unsound(f"a table of shape {table.x.shape} passed")


def codecs() -> dict[str, Decoder]:
    """Frames, and every object that is unpacked from one."""
    interval = Interval("source", "pass-0", 0, 10)
    lease = Lease(interval, 0, 3, 0.5, 0.5, 1)
    aside = SetAside(Interval("source", "pass-0", 3, 4), 1, "not a number: é")
    ledger = Ledger().add(interval, (aside,)).add(Interval("source", "pass-1", 5, 9))
    state = LedgerRun(3).states[-1]
    natural = NaturalParameters({"precision": np.ones((2, 2)), "precision_mean": np.ones(2, np.float32)})
    delta = Delta("run", lease, Fit(natural, {"steps": np.int64(3) * np.ones((), np.int64)}, -1.5), 9, (aside,))
    packed: dict[str, tuple[Any, Callable[..., Any]]] = {
        "interval": (wire.Message(messages.pack_interval(interval), {}), messages.unpack_interval),
        "lease": (wire.Message(messages.pack_lease(lease), {}), messages.unpack_lease),
        "set_aside": (wire.Message(messages.pack_set_aside(aside), {}), messages.unpack_set_aside),
        "receipt": (
            wire.Message(messages.pack_receipt(Receipt("merged", 1, 9, 9, 0, 0.0, float("nan"))), {}),
            messages.unpack_receipt,
        ),
        "ledger": (wire.Message(messages.pack_ledger(ledger), {}), messages.unpack_ledger),
        "position": (
            wire.Message(messages.pack_position(Position(1, "run", 3, 19, ledger, ledger, ("note",))), {}),
            messages.unpack_position,
        ),
        "delta": (messages.pack_delta(delta), messages.unpack_delta),
        "snapshot": (messages.pack_snapshot(Snapshot(3, 9, natural, {})), messages.unpack_snapshot),
        "server_state": (messages.pack_server_state(state), messages.unpack_server_state),
    }
    frame = b"".join(map(bytes, wire.encode(*packed["delta"][0])))
    return {
        "wire bytes": lambda random: _frame(frame, random),
        "wire header": lambda random: _header(frame, random),
        **{f"message {name}": _message(message, unpack) for name, (message, unpack) in packed.items()},
    }


def _frame(frame: bytes, random: Random) -> tuple[str, Callable[[], None]]:
    mutation, changed = mutated_bytes(frame, random)
    return mutation, lambda: _decode(changed)


def _header(frame: bytes, random: Random) -> tuple[str, Callable[[], None]]:
    """A frame whose lengths are right and whose JSON is not."""
    magic, header_bytes, payload_bytes = struct.unpack("<8sQQ", frame[:24])
    mutation, text = _mutated_json(json.loads(frame[24 : 24 + header_bytes]), random)
    head = struct.pack("<8sQQ", magic, len(text), payload_bytes)
    return mutation, lambda: _decode(head + text + frame[24 + header_bytes :])


def _decode(frame: bytes) -> None:
    for array in wire.decode(frame).arrays.values():
        with np.errstate(all="ignore"):
            array.sum()


def _mutated_json(content: Any, random: Random) -> tuple[str, bytes]:
    """Name of the mutation, and a text after it."""
    mutation, changed = mutated_plain(content, random)
    try:
        return mutation, json.dumps(changed).encode()
    except RecursionError:  # deeper than JSON is written
        return mutation, b"[" * 100_000


def _message(message: wire.Message, unpack: Callable[..., Any]) -> Decoder:
    with_arrays = bool(message.arrays)

    def decoder(random: Random) -> tuple[str, Callable[[], None]]:
        mutation, header = mutated_plain(message.header, random)
        return mutation, lambda: unpack(header, message.arrays) if with_arrays else unpack(header)

    return decoder


def recovery(directory: Path) -> dict[str, Decoder]:
    """A journal with one file changed, and a posterior file."""
    run, left = LedgerRun(9, segment_bytes=1_500), directory / "left"
    store = run.store(left)
    run.go_on(store, store.open(run.states[0]), run.num_entries, lambda count: None)
    store.abandon()
    journal = {path: path.read_bytes() for path in sorted((left / "journal").iterdir())}
    posterior = (left / "posterior.safetensors").read_bytes()

    def segments(random: Random) -> tuple[str, Callable[[], None]]:
        for path, data in journal.items():
            path.write_bytes(data)
        path = list(journal)[random.integers(len(journal))]
        mutation, changed = mutated_bytes(journal[path], random)
        path.write_bytes(changed)
        return mutation, lambda: _replay(left / "journal")

    def posterior_file(random: Random) -> tuple[str, Callable[[], None]]:
        mutation, changed = mutated_bytes(posterior, random)
        path = directory / "changed.safetensors"
        path.write_bytes(changed)
        return mutation, lambda: _load(path)

    def posterior_header(random: Random) -> tuple[str, Callable[[], None]]:
        """Description or table of tensors changed, with the digest that belongs to it."""
        length = int.from_bytes(posterior[:8], "little")
        table = json.loads(posterior[8 : 8 + length])
        if random.integers(2):
            mutation, text = _mutated_json(json.loads(table["__metadata__"]["streaming_vb"]), random)
            table["__metadata__"] = {"streaming_vb": text.decode(), "sha256": hashlib.sha256(text).hexdigest()}
            header = json.dumps(table).encode()
        else:
            mutation, header = _mutated_json(table, random)
        path = directory / "changed.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + posterior[8 + length :])
        return mutation, lambda: _load(path)

    return {"journal": segments, "snapshot bytes": posterior_file, "snapshot header": posterior_header}


def _replay(journal: Path) -> None:
    for _ in Segments(RealDisk(), journal).after(None):
        pass


def _load(path: Path) -> None:
    snapshot.load(path)


def _array_source(random: Random) -> tuple[str, Callable[[], None]]:
    mutation, fields = mutated_fields(_fields(random, 3), random)
    scale = float(random.choice([0.0, 1 / 255]))
    return mutation, lambda: _stream(ArraySource(fields, scale=scale))


def _binarized_source(random: Random) -> tuple[str, Callable[[], None]]:
    mutation, fields = mutated_fields(_fields(random, 6), random)

    def decode() -> None:
        source = BinarizedSource(ArraySource(fields), seed=3)
        for records in _stream(source):
            vae.example().validate(records)
            if not np.isin(records["x"], (0, 1)).all():
                raise Unsound("a value that is neither 0 nor 1 passed")

    return mutation, decode


def _stream(source: Any) -> list[Records]:
    parts = [source.read(interval) for interval in source.intervals({}, 3)]
    for part in parts:
        if any(len(array) != len(part.interval) for array in part.fields.values()):
            raise Unsound(f"{part.interval} has another number of records")
    return parts


def _likelihood(example: Any) -> Decoder:
    """Its check sees finite and infinite numbers of any format [n, D]; what is no number, the model refuses."""
    likelihood, columns = example

    def decoder(random: Random) -> tuple[str, Callable[[], None]]:
        mutation, x = mutated_values(random.integers(0, 2, (5, columns)), random)
        x = x.astype(str(random.choice(["f4", "f8", ">f4", "f2", "g"])))
        return mutation, lambda: likelihood.validate(x, int(random.integers(2**40)))

    return decoder


def _model(model: Any) -> Decoder:
    columns = int(model.describe().get("columns", 1))

    def decoder(random: Random) -> tuple[str, Callable[[], None]]:
        mutation, fields = mutated_fields(_fields(random, columns), random)
        return mutation, lambda: _validate(model, fields)

    return decoder


def _validate(model: Any, fields: dict[str, Any]) -> None:
    model.validate(Records(Interval("source", "pass-0", 0, 5), fields))
    for name in getattr(model, "fields", ()):
        if not np.isfinite(np.asarray(fields[name], np.float32)).all():
            raise Unsound(f"{name} passed, and is not finite in float32")
    if hasattr(model, "evidence"):
        with np.errstate(all="ignore"):
            model.evidence(Records(Interval("source", "pass-0", 0, 5), fields))


def _fields(random: Random, columns: int) -> dict[str, Any]:
    """Valid records, for any model."""
    x = random.integers(0, 2, (5, columns)).astype(str(random.choice(["f4", "f8"])))
    return {"x": x, "y": random.integers(0, 2, 5).astype(np.float64), "id": np.arange(5)}


def stream_mutated(rows: int, seed: int, tally: Tally) -> None:
    """Runs over tables with mutated rows, until that many rows are read."""
    number = 0
    while rows > 0:
        size = min(rows, ROWS_PER_RUN)
        stream_one(size, np.random.default_rng([seed, number]), number, tally)
        rows -= size
        number += 1
        if number % 10 == 0:
            progress(f"{tally.read:,} rows read, {tally.set_aside:,} set aside, {tally.merges:,} merges")


def stream_one(rows: int, random: Random, number: int, tally: Tally) -> None:
    """One run; models, orders and numbers of workers take turns."""
    name, model, x, y = _tables(rows, random)[number % 4]
    is_bad = random.random(rows) < BAD_ROWS
    for row in np.flatnonzero(is_bad):
        _, x[row] = mutated_values(x[row], random)
    fields = {"x": x} if y is None else {"x": x, "y": y}
    source: Any = ArraySource(fields, seed=None)
    if name == "bernoulli VAE, binarized":
        source = BinarizedSource(source, seed=number)
    mode = ("async", "ordered")[number // 4 % 2]
    settings = Settings(seed=number, mode=mode, batch_size=10, local_steps=2, ramp=100, bad_records="set-aside")
    tally.runs[name] += 1
    label = f"run {number} ({name}, {mode})"
    try:
        for step in run(model, source, settings, workers=1 + number % 3):
            state = step.state()
            tally.merges += step.status == "merged"
            tally.not_finite += not all(np.isfinite(array).all() for array in state.posterior.arrays.values())
    except Exception as error:
        tally.crashes.append(f"{label}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        tally.read += rows
        return
    tally.read += rows
    tally.counted += state.num_records
    tally.set_aside += state.ledger.num_set_aside
    tally.violations += [f"{label}: {wrong}" for wrong in _account(state, rows, x)]


def _account(state: Any, rows: int, x: Any) -> Iterator[str]:
    """What is wrong with the ledger of a run that is over."""
    ledger = state.ledger
    if ledger.num_covered() != rows:
        yield f"{ledger.num_covered()} of {rows} positions are covered"
    if state.num_records + ledger.num_set_aside != rows:
        yield f"{state.num_records} counted and {ledger.num_set_aside} set aside, {rows} read"
    aside = np.zeros(rows, int)
    for entry in ledger.set_aside:
        aside[entry.interval.start : entry.interval.stop] += 1
    if aside.max(initial=0) > 1 or aside.sum() != ledger.num_set_aside:
        yield "a record is set aside twice"
    is_counted_badly = ~np.isfinite(x).all(axis=1) & (aside == 0)
    if is_counted_badly.any():
        yield f"row {is_counted_badly.argmax()} is not finite and is counted"


def _tables(rows: int, random: Random) -> list[tuple[str, Any, Any, Any]]:
    """Name, model, x and y of a valid table for each kind of run."""
    real = random.normal(size=(rows, 6))
    return [
        (
            "linear regression",
            linear_regression.LinearRegression(6),
            real,
            real @ np.ones(6) + random.normal(size=rows),
        ),
        ("bernoulli VAE, binarized", vae.VAE(6, hidden=(5,), latent=2), random.random((rows, 6)), None),
        ("normal VAE", vae.VAE(6, hidden=(5,), latent=2, likelihood=normal.Normal()), real.astype(np.float32), None),
        ("MLP", mlp.MLP(6, hidden=(5,)), real.copy(), random.normal(size=rows)),
    ]


def report(arguments: Namespace, tally: Tally) -> None:
    """Print the document."""
    inputs = sum(map(Counter.total, tally.outcomes.values()))
    results = {
        "inputs_of_decoders": inputs,
        "by_decoder": {name: dict(counts) for name, counts in tally.outcomes.items()},
        "by_mutation": {name: dict(counts) for name, counts in sorted(tally.kinds.items())},
        "refusals": dict(tally.refusals),
        "crashes": len(tally.crashes),
        "examples": tally.crashes[:50],
        "runs": dict(tally.runs),
        "merges": tally.merges,
        "merges_not_finite": tally.not_finite,
        "ledger": {
            "read": tally.read,
            "counted": tally.counted,
            "set_aside": tally.set_aside,
            "missing": tally.read - tally.counted - tally.set_aside,
            "violations": tally.violations,
        },
        "bound_on_share_of_crashes_95": 3 / arguments.records,
    }
    bars = [
        at_most("results.crashes", len(tally.crashes), 0),
        at_most("results.merges_not_finite", tally.not_finite, 0),
        at_most("results.ledger.missing", abs(tally.read - tally.counted - tally.set_aside), 0),
        at_most("results.ledger.violations", len(tally.violations), 0),
    ]
    write({"records": arguments.records, "seed": arguments.seed}, results, bars)


def parse() -> Namespace:
    """Flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000, help="half inputs of decoders, half rows of runs")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--only", help="one input of a decoder again, such as 'table.csv:17'")
    return parser.parse_args()


if __name__ == "__main__":
    main()
