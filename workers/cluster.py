"""Connecting to Ray: an existing cluster by address, or a local one that ends with the run.

A local cluster gets a token of its own, no dashboard and no usage report, and leaves no file in the home directory.
"""

import logging
import os
import secrets
import socket
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from streaming_vb.errors import ClusterError

_CONNECT_SECONDS = 5.0


def connect(address: str | None, num_cpus: int) -> bool:
    """Connect this process to Ray; returns whether the cluster is ours to end.

    Args:
        address: host:port or "auto" of an existing cluster; none starts a local one.
        num_cpus: of the local cluster. They are logical: one per worker.

    Raises:
        ClusterError: no cluster answers at the address, or it wants another token.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is not None:
        _require_listener(address)
    else:
        os.environ.pop("RAY_ADDRESS", None)  # init would attach to it, and then refuse num_cpus
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(
            address=address,
            num_cpus=num_cpus if address is None else None,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
        _keep_off_stdout()
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError and its own
        raise _unreachable(address, " ".join(str(error).split())[:200]) from error
    return True


def require_cpus(workers: int) -> None:
    """Refuse what would otherwise wait for ever.

    Raises:
        ClusterError: the cluster has fewer CPUs than workers.
    """
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < workers:
        raise ClusterError(
            f"--workers {workers} need a CPU each, the cluster has {cpus}. Type --workers {max(cpus, 1)}, or add nodes"
        )


def _require_listener(address: str) -> None:
    """Refuse at once an address where nothing listens; Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():  # "auto" and the like: Ray looks it up
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from error


def _keep_off_stdout() -> None:
    """Ray prints on stdout that an actor died, whatever was asked of it; there a program's results belong."""
    to_stream = getattr(ray._private.worker, "print_to_stdstream", None)
    if to_stream is None:  # not a promise of Ray's
        return

    def to_stderr(data: dict[str, Any], *arguments: Any, **named: Any) -> None:
        to_stream({**data, "is_err": True}, *arguments, **named)

    ray._private.worker.print_to_stdstream = to_stderr


def _unreachable(address: str | None, reason: str) -> ClusterError:
    where = f"at {address}" if address else "on this machine"
    return ClusterError(
        f"no Ray cluster answers {where} ({reason}). Start one with ray start --head, set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN if it wants a token, or leave --address out"
    )


def place_of_server() -> dict[str, Any]:
    """Options that pin the server to the node whose disk has the run directory: the one that offers the resource
    parameter_server, where there is one, else that of the driver."""
    if "parameter_server" in ray.cluster_resources():
        return {"resources": {"parameter_server": 1}}
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
