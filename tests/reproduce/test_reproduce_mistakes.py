"""Mistakes on the command line of `reproduce`: one line, and the exit code of its class."""

import subprocess
import sys
from pathlib import Path

import pytest

from streaming_vb.cli import main
from streaming_vb.cli.choices import EXPERIMENTS


def mistake(*words: object, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, in this process; returns its one line."""
    monkeypatch.setattr(sys, "argv", ["streaming-vb", "reproduce", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == code
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert isinstance(line, str)
    return line


def test_an_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("figure-9", "--quick", "--out", tmp_path / "out")
    line = mistake(*words, code=2, monkeypatch=monkeypatch, capsys=capsys)
    assert line == f"streaming-vb: reproduce figure-9: expected one of {', '.join(EXPERIMENTS)}, all"
    assert not (tmp_path / "out").exists()


def test_a_data_dir_without_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("figure-4", "--data-dir", tmp_path, "--out", tmp_path / "out")
    line = mistake(*words, code=3, monkeypatch=monkeypatch, capsys=capsys)
    assert f"--data-dir {tmp_path}: expected train-images-idx3-ubyte.gz of mnist there, found none" in line
    assert not (tmp_path / "out").exists()


def test_without_matplotlib() -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv[:1] = ['streaming-vb', 'reproduce', 'figure-4']\n"
        "from streaming_vb.cli import main; main.main()"
    )
    finished = subprocess.run([sys.executable, "-c", script, "--quick"], capture_output=True, text=True)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr == "streaming-vb: reproduce draws pictures. Type pip install 'streaming-vb[plots]'\n"
