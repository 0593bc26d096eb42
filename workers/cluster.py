"""Connecting to Ray: an existing cluster by address, or a local one that ends with the run.

A local cluster gets a token of its own, no dashboard and no usage report, and leaves no file in the home directory.
"""

import logging
import os
import secrets

import ray

from streaming_vb.errors import ClusterError

OBJECT_STORE_BYTES = 1_000_000_000
"""Room for about 80 snapshots or deltas of 800,000 weights; a run holds a handful per worker."""


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
    if address is None:
        os.environ.pop("RAY_ADDRESS", None)  # init would attach to it, and then refuse num_cpus
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(
            address=address,
            num_cpus=num_cpus if address is None else None,
            object_store_memory=OBJECT_STORE_BYTES if address is None else None,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError and its own
        where = f"at {address}" if address else "on this machine"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ClusterError(
            f"no Ray cluster answers {where} ({reason}). Start one with ray start --head, give RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN if it wants a token, or leave --address out"
        ) from error
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
