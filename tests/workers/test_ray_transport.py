"""The engine on a real local Ray: exact counting, one posterior for any number of workers, and workers, servers and
drivers that die mid-run."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from streaming_vb.errors import ClusterError, RunInUse
from streaming_vb.models.ledger_model import LedgerModel
from streaming_vb.models.vae import VAE
from streaming_vb.sources.arrays import ArraySource
from streaming_vb.sources.binarized import BinarizedSource
from streaming_vb.sources.integers import IntegerSource
from streaming_vb.streaming import run as streaming
from streaming_vb.streaming.merge import ServerState
from streaming_vb.streaming.remote_engine import RemoteEngine
from streaming_vb.streaming.run import Step
from streaming_vb.streaming.settings import Settings
from streaming_vb.streaming.snapshot import load, posterior_sha256
from workers import asynchronous, ray_transport, synchronous
from workers.parameter_server import ParameterServer
from workers.ray_transport import RayTransport

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.usefixtures("local_ray")]


def digits(passes: int = 1) -> BinarizedSource:
    table = ArraySource({"x": load_digits().data.astype(np.uint8)}, passes=passes, scale=1 / 16)
    return BinarizedSource(table, seed=0)


@pytest.mark.parametrize("run", [asynchronous.run, synchronous.run], ids=["asynchronous", "synchronous"])
def test_every_record_is_counted_once(run) -> None:
    source = IntegerSource(records_per_partition=10_500, partitions=2)
    for _step in run(LedgerModel(), source, Settings(ramp=2_000), workers=3):
        last = _step
    state = last.state()
    assert state.num_records == 21_000
    np.testing.assert_array_equal(state.posterior["sum"], LedgerModel().sums(np.arange(21_000)))


def test_ordered_mode_gives_the_bits_of_the_inline_engine() -> None:
    model, settings = VAE(64, hidden=(20,), latent=3), Settings(mode="ordered", ramp=300, local_steps=2)
    shas = set()
    for workers in (1, 2, 4):
        *_, last = synchronous.run(model, digits(), settings, workers=workers)
        shas.add(posterior_sha256(last.state().posterior))
    *_, last = streaming.run(model, digits(), settings)
    assert shas == {posterior_sha256(last.state().posterior)}


def test_staleness_is_real_and_reported() -> None:
    model = VAE(64, hidden=(20,), latent=3)
    steps = list(asynchronous.run(model, digits(passes=3), Settings(ramp=0, local_steps=2), workers=3))
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert max(step.staleness for step in steps) >= 1
    stale = [step for step in steps if step.staleness > 0]
    assert all(step.staleness_sd > 0 for step in stale)
    assert all(np.isfinite(step.elbo) and step.step_kl > 0 for step in steps)


def started(model, source, settings: Settings, run_dir: Path | None = None) -> tuple[RayTransport, Iterator[Step]]:
    """A run with two workers, and its transport."""
    prepared = streaming.prepare(model, source, settings, run_dir=run_dir)
    transport = RayTransport(prepared, workers=2)
    engine = RemoteEngine(transport, 2, is_durable=run_dir is not None)
    return transport, streaming.stream(prepared, engine, 2)


def require_exact(state: ServerState, num_records: int) -> None:
    assert state.num_records == num_records
    np.testing.assert_array_equal(state.posterior["sum"], LedgerModel().sums(np.arange(num_records)))


def test_a_worker_killed_mid_run_loses_and_doubles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    import ray

    transport, steps = started(LedgerModel(), IntegerSource(30_000), Settings(ramp=0))
    for number, step in enumerate(steps):
        last = step
        if number in (3, 9):
            ray.kill(transport._workers[number % 2])
    require_exact(last.state(), 30_000)
    assert any("died" in message for message in caplog.messages)


def test_a_dead_server_is_started_again_from_the_run_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    transport, steps = started(LedgerModel(), IntegerSource(30_000), Settings(ramp=0), tmp_path)
    versions = []
    for number, step in enumerate(steps):
        versions += [step.version] if step.status == "merged" else []
        if number in (3, 9, 10):
            ray.kill(transport._server)
    require_exact(load(tmp_path / "posterior.safetensors").state, 30_000)
    assert sorted(versions) == list(range(1, 31))  # what was acknowledged is never taken back
    assert sum("is started again" in message for message in caplog.messages) >= 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["new"] for row in rows) == 30_000


def test_a_snapshot_that_is_lost_is_read_again(caplog: pytest.LogCaptureFixture) -> None:
    import ray

    transport, steps = started(LedgerModel(), IntegerSource(30_000), Settings(ramp=0))
    dead = ray.remote(ParameterServer).remote(None)
    ray.kill(dead)
    for number, step in enumerate(steps):
        last = step
        if number == 4:
            for version in transport._snapshots:
                transport._snapshots[version] = dead.snapshot.remote(version)
    require_exact(last.state(), 30_000)
    assert not caplog.messages  # nobody took it for the death of a worker


def test_a_dead_server_without_a_run_directory_is_one_error() -> None:
    import ray

    transport, steps = started(LedgerModel(), IntegerSource(30_000), Settings(ramp=0))
    next(steps)
    ray.kill(transport._server)
    with pytest.raises(ClusterError, match="without a run directory its posterior is gone"):
        list(steps)


def test_kills_do_not_change_the_bits_of_an_ordered_run(tmp_path: Path) -> None:
    import ray

    model, settings = VAE(64, hidden=(20,), latent=3), Settings(mode="ordered", ramp=0, round_size=4, local_steps=2)
    *_, calm = streaming.run(model, digits(passes=2), settings)
    transport, steps = started(model, digits(passes=2), settings, tmp_path)
    for number, _step in enumerate(steps):
        if number in (1, 6):
            ray.kill(transport._workers[0])
        if number in (2, 9):
            ray.kill(transport._server)
    state = load(tmp_path / "posterior.safetensors").state
    assert posterior_sha256(state.posterior) == posterior_sha256(calm.state().posterior)


def test_a_relative_run_directory_is_the_one_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    list(asynchronous.run(LedgerModel(), IntegerSource(3_000), Settings(ramp=0), workers=1, run_dir="run"))
    require_exact(load(tmp_path / "run" / "posterior.safetensors").state, 3_000)


def test_a_run_directory_that_only_the_server_sees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = streaming.prepare(LedgerModel(), IntegerSource(3_000), Settings(), run_dir=tmp_path / "run")
    monkeypatch.setattr(ray_transport, "POSTERIOR_FILE", "of-another-machine")
    with pytest.raises(ClusterError, match=r"wrote .* on another machine"):
        RemoteEngine(RayTransport(prepared, workers=1), 1, is_durable=True)


def test_a_run_directory_in_use_is_refused(tmp_path: Path) -> None:
    steps = streaming.run(LedgerModel(), IntegerSource(5_000), run_dir=tmp_path)
    next(steps)
    prepared = streaming.prepare(LedgerModel(), IntegerSource(5_000), Settings(), run_dir=tmp_path)
    with pytest.raises(RunInUse, match=r"writes this run directory\. Wait until it is done"):
        RemoteEngine(RayTransport(prepared, workers=1, lock_seconds=0), 1, is_durable=True)
    list(steps)


def test_more_workers_than_cpus_is_refused() -> None:
    with pytest.raises(ClusterError, match="--workers 5 need a CPU each, the cluster has 4"):
        asynchronous.run(LedgerModel(), IntegerSource(100), workers=5)


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["step"].records == 5_000


def test_metrics_and_posterior_agree_where_a_caller_stops_early(tmp_path: Path) -> None:
    source = IntegerSource(records_per_partition=50_000)
    steps = asynchronous.run(LedgerModel(), source, Settings(ramp=0), workers=3, run_dir=tmp_path)
    for _ in range(7):
        next(steps)
    steps.close()
    state = load(tmp_path / "posterior.safetensors").state
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == list(range(1, state.version + 1))
    assert sum(row["new"] for row in rows) == state.num_records
