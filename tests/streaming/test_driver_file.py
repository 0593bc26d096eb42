"""The driver of a run is found by an identity that no later process can have."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from streaming_vb.streaming import driver_file
from streaming_vb.streaming.driver_file import DRIVER_FILE, Driver


def test_this_process_is_alive(tmp_path: Path) -> None:
    assert (
        driver_file.write(tmp_path)
        == driver_file.read(tmp_path)
        == Driver(os.getpid(), driver_file._started(os.getpid()))
    )
    assert driver_file.write(tmp_path).alive()
    assert [path.name for path in tmp_path.iterdir()] == [DRIVER_FILE]


def test_a_process_that_ended_is_not_even_before_its_parent_looks(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from streaming_vb.streaming import driver_file\n"
        "driver_file.write(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # ends with the process
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    driver = driver_file.read(tmp_path)
    assert driver is not None
    assert driver.pid == process.pid
    assert not driver.alive()
    process.communicate()
    assert not driver.alive()


def test_another_process_under_the_same_number_is_not_the_driver(tmp_path: Path) -> None:
    driver = driver_file.write(tmp_path)
    assert not replace(driver, started=driver.started + "1").alive()
    assert not replace(driver, started="").alive()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"pid": 1}', '{"pid": "x", "started": ""}'])
def test_a_file_that_cannot_be_read_names_nobody(text: str, tmp_path: Path) -> None:
    (tmp_path / DRIVER_FILE).write_text(text)
    assert driver_file.read(tmp_path) is None


def test_only_the_driver_itself_takes_its_name_away(tmp_path: Path) -> None:
    driver = driver_file.write(tmp_path)
    other = replace(driver, pid=driver.pid + 1)
    (tmp_path / DRIVER_FILE).write_text(json.dumps(asdict(other)))
    driver_file.remove(tmp_path)
    assert driver_file.read(tmp_path) == other
    driver_file.write(tmp_path)
    driver_file.remove(tmp_path)
    driver_file.remove(tmp_path)
    assert driver_file.read(tmp_path) is None
