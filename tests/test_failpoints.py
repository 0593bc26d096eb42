"""Points at which a process dies on purpose."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from streaming_vb.failpoints import reach
for number in range(5):
    reach("S4")
    print(number, flush=True)
"""


def run(setting: str | None) -> subprocess.CompletedProcess[str]:
    environment = {} if setting is None else {"SVB_FAIL": setting}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("setting", [None, "", "S5:kill:1"])
def test_a_point_that_is_not_set_does_nothing(setting: str | None) -> None:
    assert run(setting).stdout.split() == ["0", "1", "2", "3", "4"]


def test_a_process_is_killed_where_and_when_it_was_asked_for() -> None:
    done = run("W1:stop:1,S4:kill:3")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1"]


def test_a_point_with_a_token_acts_once_however_many_processes_reach_it(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    setting = f"S4:kill:2:{token}"
    assert [run(setting).returncode for _ in range(3)] == [-signal.SIGKILL, 0, 0]


def test_a_disk_can_be_full() -> None:
    assert "No space left" in run("S4:full:2").stderr
