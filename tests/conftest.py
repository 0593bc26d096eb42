"""Settings of the whole suite: the same examples on every machine, and no time limit on a single example."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads: small tests only wait for a second thread

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")
