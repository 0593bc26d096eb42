"""The objects that travel or are stored, as plain JSON values and named arrays, and back. For `wire` and `snapshot`.

`pack_x` takes an object apart: a header of plain values, and where it holds arrays also these, named after their part:
"natural.precision", "fit_state.momentum". `unpack_x` puts it together again, equal to the bit. It trusts nothing: a
value that is missing or of another type raises `WireError`; what is not asked for is ignored, so a header may hold
more. Whether shapes and values fit a run is not decided here.

The tables below are the fields that are plain values, with their types; each serves both directions.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from streaming_vb.streaming.ledger import Ledger, Partition, Runs
from streaming_vb.streaming.merge import Ancestor, ServerState
from streaming_vb.streaming.transport import Position
from streaming_vb.streaming.wire import Message, WireError
from streaming_vb.types import Array, Delta, Fit, Interval, Lease, NaturalParameters, Receipt, SetAside, Snapshot

Header = dict[str, Any]
T = TypeVar("T")

_INTERVAL = {"source": str, "partition": str, "start": int, "stop": int}
_LEASE = {"attempt": int, "base_version": int, "share": float, "state_weight": float, "generation": int}
_RECEIPT = {
    "status": str,
    "version": int,
    "num_new": int,
    "num_records": int,
    "staleness": int,
    "staleness_sd": float,
    "step_kl": float,
    "reason": str,
    "is_stale": bool,
}
_SET_ASIDE = {"num_records": int, "reason": str}
_ANCESTOR = {"run_id": str, "version": int, "sha256": str}
_POSITION = {"generation": int, "run_id": str, "version": int, "num_records": int}
_DELTA = {"run_id": str, "num_records": int}
_SNAPSHOT = {"version": int, "num_records": int}
_STATE = {"run_id": str, "version": int, "num_records": int}
_LARGEST = 2**63 - 1


def pack_interval(interval: Interval) -> Header:
    """Plain values.

    >>> pack_interval(Interval("sha", "pass-0", 0, 10))
    {'source': 'sha', 'partition': 'pass-0', 'start': 0, 'stop': 10}
    """
    return _pack(interval, _INTERVAL)


def unpack_interval(header: Mapping[str, Any]) -> Interval:
    """Raises WireError, as everything here that unpacks."""
    interval = Interval(**_unpack(header, _INTERVAL))
    if not 0 <= interval.start <= interval.stop:
        raise WireError(f"message: an interval from {interval.start} to {interval.stop}")
    return interval


def pack_lease(lease: Lease) -> Header:
    """Plain values."""
    return {"interval": pack_interval(lease.interval), **_pack(lease, _LEASE)}


def unpack_lease(header: Mapping[str, Any]) -> Lease:
    """The lease."""
    return Lease(unpack_interval(_value(header, "interval", dict)), **_unpack(header, _LEASE))


def pack_receipt(receipt: Receipt) -> Header:
    """Plain values."""
    return _pack(receipt, _RECEIPT)


def unpack_receipt(header: Mapping[str, Any]) -> Receipt:
    """The receipt."""
    return Receipt(**_unpack(header, _RECEIPT))


def pack_set_aside(entry: SetAside) -> Header:
    """Plain values."""
    return {"interval": pack_interval(entry.interval), **_pack(entry, _SET_ASIDE)}


def unpack_set_aside(header: Mapping[str, Any]) -> SetAside:
    """The entry."""
    return SetAside(unpack_interval(_value(header, "interval", dict)), **_unpack(header, _SET_ASIDE))


def pack_ledger(ledger: Ledger) -> Header:
    """Plain values: runs as [source, partition, [[start, stop], ...]].

    >>> pack_ledger(Ledger().add(Interval("sha", "pass-0", 0, 10)))
    {'runs': [['sha', 'pass-0', [[0, 10]]]], 'set_aside': []}
    """
    return {
        "runs": [[source, partition, [list(run) for run in runs]] for (source, partition), runs in ledger.runs.items()],
        "set_aside": [pack_set_aside(entry) for entry in ledger.set_aside],
    }


def unpack_ledger(header: Mapping[str, Any]) -> Ledger:
    """The ledger; runs that overlap or stand in another order raise WireError too."""
    ledger: dict[Partition, Runs] = {}
    for entry in _value(header, "runs", list):
        match entry:
            case [str(source), str(partition), list(runs)] if (source, partition) not in ledger:
                ledger[source, partition] = _runs(runs)
            case _:
                raise WireError("message: an entry of a ledger is not [source, partition, runs]")
    return Ledger(ledger, tuple(map(unpack_set_aside, _values(header, "set_aside", dict))))


def pack_position(position: Position) -> Header:
    """Plain values."""
    return {
        **_pack(position, _POSITION),
        "ledger": pack_ledger(position.ledger),
        "merged": pack_ledger(position.merged),
        "notes": list(position.notes),
    }


def unpack_position(header: Mapping[str, Any]) -> Position:
    """The position."""
    return Position(
        **_unpack(header, _POSITION),
        ledger=unpack_ledger(_value(header, "ledger", dict)),
        merged=unpack_ledger(_value(header, "merged", dict)),
        notes=tuple(_values(header, "notes", str)),
    )


def pack_delta(delta: Delta, with_fit_state: bool = True) -> Message:
    """Plain values and arrays, without the warm start where it is not wanted."""
    header = {
        **_pack(delta, _DELTA),
        "lease": pack_lease(delta.lease),
        "elbo": float(delta.fit.elbo),
        "bad_records": [pack_set_aside(entry) for entry in delta.bad_records],
    }
    groups = {"natural": delta.fit.natural.arrays, "fit_state": delta.fit.fit_state if with_fit_state else {}}
    return Message(header, join(groups))


def unpack_delta(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Delta:
    """The delta; its fit state is empty where none was packed."""
    groups = split(arrays, ("natural", "fit_state"))
    return Delta(
        **_unpack(header, _DELTA),
        lease=unpack_lease(_value(header, "lease", dict)),
        fit=Fit(NaturalParameters(groups["natural"]), groups["fit_state"], _value(header, "elbo", float)),
        bad_records=tuple(map(unpack_set_aside, _values(header, "bad_records", dict))),
    )


def pack_snapshot(snapshot: Snapshot) -> Message:
    """Plain values and arrays."""
    groups = {"posterior": snapshot.posterior.arrays, "fit_state": snapshot.fit_state}
    return Message(_pack(snapshot, _SNAPSHOT), join(groups))


def unpack_snapshot(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Snapshot:
    """The snapshot."""
    groups = split(arrays, ("posterior", "fit_state"))
    natural = NaturalParameters(groups["posterior"])
    return Snapshot(**_unpack(header, _SNAPSHOT), posterior=natural, fit_state=groups["fit_state"])


def pack_server_state(state: ServerState) -> Message:
    """Plain values and arrays."""
    header = {
        **_pack(state, _STATE),
        "ledger": pack_ledger(state.ledger),
        "lineage": [_pack(ancestor, _ANCESTOR) for ancestor in state.lineage],
    }
    groups = {"prior": state.prior.arrays, "posterior": state.posterior.arrays, "fit_state": state.fit_state}
    return Message(header, join(groups))


def unpack_server_state(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> ServerState:
    """The state."""
    groups = split(arrays, ("prior", "posterior", "fit_state"))
    return ServerState(
        **_unpack(header, _STATE),
        prior=NaturalParameters(groups["prior"]),
        posterior=NaturalParameters(groups["posterior"]),
        fit_state=groups["fit_state"],
        ledger=unpack_ledger(_value(header, "ledger", dict)),
        lineage=tuple(Ancestor(**_unpack(entry, _ANCESTOR)) for entry in _values(header, "lineage", dict)),
    )


def join(groups: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Groups of arrays as one, each named after its group.

    >>> list(join({"prior": {"sum": 1}, "posterior": {"sum": 2}}))
    ['prior.sum', 'posterior.sum']
    """
    return {f"{group}.{name}": array for group, arrays in groups.items() for name, array in arrays.items()}


def split(arrays: Mapping[str, Array], groups: Iterable[str]) -> dict[str, dict[str, Array]]:
    """The arrays of every group; the inverse of `join`.

    Raises:
        WireError: an array belongs to none of them.
    """
    parts: dict[str, dict[str, Array]] = {group: {} for group in groups}
    for full_name, array in arrays.items():
        group, _, name = full_name.partition(".")
        if group not in parts:
            raise WireError(f"message: array {full_name!r} is none of {', '.join(parts)}")
        parts[group][name] = array
    return parts


def _pack(value: object, fields: Mapping[str, type]) -> Header:
    return {name: kind(getattr(value, name)) for name, kind in fields.items()}  # NumPy's numbers become Python's


def _unpack(header: Mapping[str, Any], fields: Mapping[str, type]) -> Header:
    return {name: _value(header, name, kind) for name, kind in fields.items()}


def _value(header: Mapping[str, Any], name: str, kind: type[T]) -> T:
    if name not in header:
        raise WireError(f"message: {name} is missing")
    return _typed(header[name], name, kind)


def _values(header: Mapping[str, Any], name: str, kind: type[T]) -> list[T]:
    return [_typed(value, name, kind) for value in _value(header, name, list)]


def _typed(value: object, name: str, kind: type[T]) -> T:
    if type(value) is not kind:  # exactly: a bool is an int too
        raise WireError(f"message: {name} is of type {type(value).__name__}, expected {kind.__name__}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise WireError(f"message: {name} is an integer of {value.bit_length()} bits")
    return value


def _runs(plain: list[Any]) -> Runs:
    runs, position = [], 0
    for run in plain:
        if type(run) is not list or len(run) != 2:
            raise WireError("message: the runs of a ledger are not pairs")
        start, stop = (_typed(value, "run", int) for value in run)
        if not position <= start < stop:
            raise WireError("message: the runs of a ledger are not disjoint and in order")
        runs.append((start, stop))
        position = stop
    return tuple(runs)
