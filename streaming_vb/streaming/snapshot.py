"""Posterior files: one safetensors file holds everything needed to go on, score, serve or fork. No pickle, no torch.

safetensors neither syncs nor notices a flipped bit, so this module adds both: a SHA-256 per tensor and one for the
description; a temporary file, synced, renamed, and the directory synced after it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from streaming_vb.errors import FormatTooNew, IntegrityError
from streaming_vb.streaming.ledger import Ledger, SetAside
from streaming_vb.streaming.merge import ServerState
from streaming_vb.types import Array, Interval, NaturalParameters

FORMAT_VERSION = 1
_KEY = "streaming_vb"


class PosteriorFile(NamedTuple):
    """What a posterior file holds.

    Attributes:
        state: posterior, prior, fit state, ledger, counts.
        settings: what determined the run (model, source, seed, ...): plain values.
        digests: SHA-256 per tensor.
    """

    state: ServerState
    settings: Mapping[str, Any]
    digests: Mapping[str, str]


def save(path: Path | str, state: ServerState, settings: Mapping[str, Any]) -> None:
    """Write a posterior file; on any failure the file that was there stays.

    Raises:
        OSError: the disk refuses.
    """
    path = Path(path)
    tensors = _tensors(state)
    content = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "run_id": state.run_id,
            "version": state.version,
            "num_records": state.num_records,
            "ledger": _ledger_to_plain(state.ledger),
            "settings": settings,
            "digests": {name: _digest(array) for name, array in tensors.items()},
        }
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    data = to_bytes(tensors, {_KEY: content, "sha256": digest})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path | str) -> PosteriorFile:
    """Read a posterior file and check every digest.

    Raises:
        IntegrityError: the file is missing, truncated, altered, or not a posterior.
        FormatTooNew: it was written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise IntegrityError(f"{path}: no posterior file there. Expected the posterior.safetensors of a run directory")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise IntegrityError(
            f"{path}: not a readable safetensors file ({_one_line(error)}). It is truncated or of another kind; "
            "restore a copy, or fit again into a new --run-dir"
        ) from error
    if _KEY not in metadata:
        raise IntegrityError(f"{path}: a safetensors file, but not a streaming_vb posterior (no {_KEY} description)")
    if hashlib.sha256(metadata[_KEY].encode()).hexdigest() != metadata.get("sha256"):
        raise IntegrityError(f"{path}: the description does not match its SHA-256; restore a copy of the file")
    try:
        return _parsed(path, json.loads(metadata[_KEY]), tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"{path}: the description lacks something or is of another form ({type(error).__name__}: {error}); "
            "restore a copy of the file"
        ) from error


def posterior_sha256(natural: NaturalParameters) -> str:
    """SHA-256 of the natural parameters: equal exactly where two posteriors are equal to the bit.

    >>> posterior_sha256(NaturalParameters({"sum": np.zeros(2)}))[:12]
    'bdd01f81e11f'
    """
    digest = hashlib.sha256()
    for name in sorted(natural.arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(natural[name]).data)
    return digest.hexdigest()


def _parsed(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Array]) -> PosteriorFile:
    if content["format_version"] > FORMAT_VERSION:
        raise FormatTooNew(
            f"{path}: written in format {content['format_version']}, this version reads up to {FORMAT_VERSION}. "
            "Type pip install -U streaming-vb"
        )
    digests = content["digests"]
    for name in sorted(tensors.keys() | digests.keys()):
        if name not in tensors or name not in digests or _digest(tensors[name]) != digests[name]:
            raise IntegrityError(f"{path}: tensor {name} does not match its SHA-256; restore a copy of the file")
    state = ServerState(
        content["run_id"],
        NaturalParameters(_part(tensors, "prior")),
        NaturalParameters(_part(tensors, "posterior")),
        _part(tensors, "fit_state"),
        content["version"],
        content["num_records"],
        _ledger_from_plain(content["ledger"]),
    )
    return PosteriorFile(state, content["settings"], digests)


def _tensors(state: ServerState) -> dict[str, Array]:
    groups = {"prior": state.prior.arrays, "posterior": state.posterior.arrays, "fit_state": state.fit_state}
    return {
        f"{group}.{name}": np.asarray(array, order="C")  # safetensors writes memory as it lies
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }


def _part(tensors: Mapping[str, Array], group: str) -> dict[str, Array]:
    return {name.removeprefix(f"{group}."): array for name, array in tensors.items() if name.startswith(f"{group}.")}


def _digest(array: Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(array.data)
    return digest.hexdigest()


def _ledger_to_plain(ledger: Ledger) -> dict[str, Any]:
    aside = [
        {
            "partition": entry.interval.partition,
            "start": entry.interval.start,
            "stop": entry.interval.stop,
            "num_records": entry.num_records,
            "reason": entry.reason,
        }
        for entry in ledger.set_aside
    ]
    return {"source": ledger.source, "runs": dict(ledger.runs), "set_aside": aside}


def _ledger_from_plain(plain: Mapping[str, Any]) -> Ledger:
    runs = {name: tuple((start, stop) for start, stop in pairs) for name, pairs in plain["runs"].items()}
    aside = tuple(
        SetAside(
            Interval(plain["source"], entry["partition"], entry["start"], entry["stop"]),
            entry["num_records"],
            entry["reason"],
        )
        for entry in plain["set_aside"]
    )
    return Ledger(plain["source"], runs, aside)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
