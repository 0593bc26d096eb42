"""Every mistake of a user: one line that says what was expected, what came, where and what to type; the exit code of
its class."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SMALL = ("--hidden", "10", "--latent", "2", "--records", "1000")


def mistake(*words: object, code: int) -> str:
    """Run a command that must fail; returns its one line."""
    finished = subprocess.run(
        [sys.executable, "-m", "streaming_vb.cli.main", *map(str, words)], capture_output=True, text=True
    )
    assert finished.returncode == code, (finished.returncode, finished.stderr)
    lines = finished.stderr.splitlines()
    errors = [line for line in lines if line.startswith("streaming-vb: ")]
    assert len(errors) == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    return errors[0]


def csv(rows: list[list[object]], width: int = 4) -> str:
    header = ",".join(f"x{i}" for i in range(width))
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


GOOD = [[0.5, 0.1, 0.9, 0.0]] * 30


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("fit", "mnits"), 3, "unknown data set 'mnits': expected digits, mnist, fashion-mnist, or a path"),
        (("fit", "nothing/there.csv"), 3, "nothing/there.csv: no such file"),
        (("fit", "digits", "--workers", 0), 2, "--workers must be at least 1, got 0"),
        (("fit", "digits", "--workers", 4), 2, "--engine inline means one worker.*--engine ray.*--engine simulated"),
        (
            ("fit", "digits", "--engine", "spark"),
            2,
            "--engine spark: expected one of inline, simulated, processes, ray",
        ),
        (("fit", "digits", "--primitive", "sgd"), 2, "--primitive sgd: expected one of natural-gradient, adam"),
        (
            ("fit", "digits", "--likelihood", "gauss"),
            2,
            "--likelihood gauss: expected one of bernoulli, .*categorical:K",
        ),
        (("fit", "digits", "--mode", "sync"), 2, "--mode must be one of async, ordered, got 'sync'"),
        (("fit", "digits", "--share", "half"), 2, "--share must be one of auto, 1, got 'half'"),
        (("fit", "digits", "--forgetting", "window"), 2, "--forgetting: expected none or window:MIN:KAPPA"),
        (("fit", "digits", "--batch-size", 0), 2, "--batch-size must be at least 1, got 0"),
        (("fit", "digits", "--records", 0), 2, "--records must be at least 1, got 0"),
        (("fit", "digits", "--hidden", "wide"), 2, "--hidden wide: expected whole numbers"),
        (("fit", "digits", "--latent", 0), 2, "latent must be at least 1, got 0"),
        (("fit", "digits", "--address", "auto"), 2, "--address auto needs a cluster. Type --engine ray"),
        (("fit", "digits", "--wrokers", 2), 2, "No such option: --wrokers.*--workers"),
        (("fit",), 2, "Missing argument 'DATA'"),
        (("fti", "digits"), 2, "No such command 'fti'"),
        (("evaluate", "nowhere"), 2, "nowhere: not a run directory"),
        (("inspect", "nowhere.safetensors"), 5, "nowhere.safetensors: no posterior file there"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_mistake_on_the_command_line(words: tuple[object, ...], code: int, says: str) -> None:
    assert re.search(says, mistake(*words, code=code))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("nan.csv", csv([*GOOD, [0.1, "nan", 0, 0]]), "record 30 column x1 is nan; every value must be finite"),
        ("inf.csv", csv([*GOOD, [0.1, 0, 0, "inf"]]), "record 30 column x3 is inf; every value must be finite"),
        ("range.csv", csv([[0, 0, 8.7, 0], *GOOD]), r"record 0 column x2 is 8.7; .*\[0, 1\].*--likelihood normal"),
        ("word.csv", csv([*GOOD, [0, "abc", 0, 0]]), "word.csv:32: column x1 holds 'abc', expected a number"),
        ("short.csv", csv([[1, 0], *GOOD]), "short.csv:2: 2 values, the header names 4 columns"),
        ("bare.csv", "0,1\n1,0\n", "line 1 holds numbers, expected a header"),
        ("empty.csv", "", "empty.csv: empty"),
        ("few.csv", csv(GOOD[:3]), "3 records; at least 20 are needed"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(".csv") else "",
)
def test_a_mistake_in_a_table(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert re.search(says, mistake("fit", tmp_path / name, *SMALL, "--run-dir", tmp_path / "run", code=3))
    assert not (tmp_path / "run").exists()


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        (
            "cut-idx3-ubyte",
            lambda p: p.write_bytes(idx((30, 2, 2), b"\1" * 100)),
            "shape .30, 2, 2.*136 bytes.*holds 116",
        ),
        ("cut.gz", lambda p: p.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc"), "truncated or damaged"),
        ("text-idx", lambda p: p.write_text("hello"), "not an IDX file"),
        ("cut.npy", lambda p: p.write_bytes(npy(np.zeros((30, 4)))[:200]), "not a readable array of numbers"),
        ("objects.npy", lambda p: np.save(p, np.array([{}], dtype=object), allow_pickle=True), "not a readable array"),
        ("flat.npy", lambda p: p.write_bytes(npy(np.zeros(30))), r"one row per record, got float64 of shape \(30,\)"),
        ("two.npz", lambda p: np.savez(p, a=np.zeros(3), b=np.zeros(3)), "one named x; it holds a, b"),
        ("bad.npz", lambda p: p.write_bytes(b"PK\3\4 nothing"), "not a readable .npz file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_broken_file(name: str, write: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert re.search(says, mistake("fit", tmp_path / name, *SMALL, "--run-dir", tmp_path / "run", code=3))


def npy(array: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def test_a_run_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = mistake("fit", "digits", *SMALL, "--run-dir", tmp_path / "file", code=2)
    assert f"{tmp_path / 'file'}: File exists" in line


def test_an_empty_data_dir(tmp_path: Path) -> None:
    line = mistake("fit", "mnist", "--data-dir", tmp_path, code=3)
    assert "expected train-images-idx3-ubyte.gz of mnist there, found none" in line


def test_a_run_directory_made_with_other_settings(tmp_path: Path) -> None:
    good = [sys.executable, "-m", "streaming_vb.cli.main", "fit", "digits", *SMALL, "--run-dir", str(tmp_path)]
    assert subprocess.run(good, capture_output=True).returncode == 0
    before = (tmp_path / "posterior.safetensors").read_bytes()
    words = ("fit", "digits", "--hidden", 10, "--latent", 3, "--run-dir", tmp_path)
    assert "was made with latent = 2, now latent = 3" in mistake(*words, code=2)
    assert "seed = 0, now seed = 5" in mistake("fit", "digits", *SMALL, "--seed", 5, "--run-dir", tmp_path, code=2)
    assert (tmp_path / "posterior.safetensors").read_bytes() == before

    wide = tmp_path / "wide.csv"
    wide.write_text(csv(GOOD))
    assert "4 columns came, the model expects 64" in mistake("score", tmp_path, wide, code=3)

    damaged = bytearray(before)
    damaged[-5] ^= 1
    (tmp_path / "posterior.safetensors").write_bytes(damaged)
    assert "does not match its SHA-256" in mistake("inspect", tmp_path, code=5)
    assert "does not match its SHA-256" in mistake("fit", "digits", *SMALL, "--run-dir", tmp_path, code=5)
    (tmp_path / "posterior.safetensors").write_bytes(before[:1000])
    assert "not a readable safetensors file" in mistake("evaluate", tmp_path, code=5)


@pytest.mark.parametrize(
    ("package", "words", "says"),
    [
        ("sklearn", ("fit", "digits"), r"pip install 'streaming-vb\[demo\]'"),
        ("pooch", ("fit", "mnist"), r"pip install 'streaming-vb\[data\]', or give --data-dir"),
        ("ray", ("fit", "digits", "--engine", "ray"), r"pip install 'streaming-vb\[ray\]'"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_a_missing_extra(package: str, words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[:1] = ['streaming-vb', *{words}, '--run-dir']\n"
        "from streaming_vb.cli import main; main.main()"
    )
    finished = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 2, finished.stderr
    assert re.search(says, finished.stderr.splitlines()[-1])


def test_no_network_for_a_download(tmp_path: Path) -> None:
    script = (
        "import socket, sys\n"
        "def refuse(*arguments, **names): raise OSError('network is unreachable')\n"
        "socket.create_connection = socket.getaddrinfo = refuse\n"
        "sys.argv = ['streaming-vb', 'fit', 'fashion-mnist', '--run-dir', sys.argv[1]]\n"
        "from streaming_vb.cli import main; main.main()"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 3, finished.stderr
    line = finished.stderr.splitlines()[-1]
    assert "fashion-mnist: cannot download" in line
    assert "give its folder with --data-dir" in line


def test_no_ray_at_the_address() -> None:
    words = ("fit", "digits", *SMALL, "--engine", "ray", "--address", "127.0.0.1:1")
    assert "no Ray cluster answers at 127.0.0.1:1" in mistake(*words, code=4)
