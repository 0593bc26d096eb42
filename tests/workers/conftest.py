"""One local Ray cluster for all tests that need one: four CPUs, no dashboard, a token of its own."""

import os
import secrets
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    import ray

    with tempfile.TemporaryDirectory(prefix="svb", dir="/tmp", ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=directory,  # short: the paths of Unix sockets are limited to about 107 bytes
        )
        yield
        ray.shutdown()
