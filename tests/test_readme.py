"""The README's examples run as printed."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    assert names["state"].num_records == 5_000
    assert "5,000 records  ELBO" in capsys.readouterr().out
    exec(BLOCKS[1], names)
    assert names["step"].records == 5_000
    exec(BLOCKS[3], names)
    assert "5,000 records  log p(y | x)" in capsys.readouterr().out
    assert names["step"].elbo > -1.5  # nats; guessing gives -2.3


def test_the_first_example_is_about_ten_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 12


def test_both_commands_stand_at_the_top() -> None:
    top = README.read_text()[:900]
    assert "make demo" in top
    assert "make test" in top
