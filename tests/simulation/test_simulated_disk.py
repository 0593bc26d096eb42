"""The simulated disk loses what a disk may lose, and nothing else."""

from pathlib import Path
from random import Random

import pytest

from simulation.simulated_disk import ProcessDied, ProcessDisk, SimulatedDisk

RUN = Path("/run")


def disk(seed: int = 0, unit: int = 64) -> tuple[SimulatedDisk, ProcessDisk]:
    medium = SimulatedDisk(Random(seed), unit)
    here = medium.process("here")
    here.make_directory(RUN)
    return medium, here


def content(medium: SimulatedDisk, name: str) -> bytes | None:
    try:
        return medium.process("reader").open(RUN / name).read(0, 10_000)
    except FileNotFoundError:
        return None


def test_what_was_synced_with_its_name_survives_a_power_cut() -> None:
    for seed in range(20):
        medium, here = disk(seed)
        file = here.create(RUN / "a")
        file.write([b"x" * 300], 0)
        file.sync()
        here.sync_directory(RUN)
        medium.cut_power()
        assert content(medium, "a") == b"x" * 300


def test_what_was_not_synced_is_kept_lost_or_torn() -> None:
    found = set()
    for seed in range(60):
        medium, here = disk(seed)
        file = here.create(RUN / "a")
        file.write([b"a" * 192], 0)
        file.sync()
        here.sync_directory(RUN)
        file.write([b"b" * 192], 0)
        medium.cut_power()
        after = content(medium, "a")
        assert after is not None
        assert len(after) == 192
        assert all(len(set(after[at : at + 64])) == 1 for at in (0, 64, 128)), "units are whole"
        found.add(after)
    assert {b"a" * 192, b"b" * 192} < found
    assert len(found) > 4


def test_names_that_were_not_synced_come_and_go() -> None:
    found = set()
    for seed in range(40):
        medium, here = disk(seed)
        for name in ("old", "new"):
            file = here.create(RUN / name)
            file.write([name.encode()], 0)
            file.sync()
        here.sync_directory(RUN)
        here.replace(RUN / "new", RUN / "old")
        medium.cut_power()
        found.add((content(medium, "old"), content(medium, "new")))
    assert found == {(b"old", b"new"), (b"new", b"new"), (b"old", None), (b"new", None)}


def test_a_process_that_dies_loses_its_locks_and_nothing_else() -> None:
    medium, here = disk()
    here.lock(RUN / "lock")
    file = here.create(RUN / "a")
    file.write([b"text"], 0)
    with pytest.raises(BlockingIOError):
        medium.process("there").lock(RUN / "lock")
    medium.kill("here")
    medium.process("there").lock(RUN / "lock")
    assert content(medium, "a") == b"text"
    with pytest.raises(ProcessDied):
        file.write([b"more"], 4)


def test_a_handle_of_a_file_that_was_replaced_writes_where_nobody_looks() -> None:
    medium, here = disk()
    file = here.create(RUN / "a")
    other = medium.process("there").create(RUN / "b")
    other.write([b"new"], 0)
    medium.process("there").replace(RUN / "b", RUN / "a")
    file.write([b"late"], 0)
    assert content(medium, "a") == b"new"


def test_a_sync_that_failed_says_clean_the_next_time() -> None:
    lost = 0
    for seed in range(20):
        medium, here = disk(seed)
        file = here.create(RUN / "a")
        here.sync_directory(RUN)
        file.write([b"text"], 0)
        medium.interrupt = lambda process, operation, path: "error" if operation == "sync" else ""
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
        medium.interrupt = lambda process, operation, path: ""
        file.sync()
        assert content(medium, "a") == b"text"
        medium.cut_power()
        lost += content(medium, "a") != b"text"
    assert 0 < lost < 20


def test_a_full_disk_takes_a_part() -> None:
    lengths = set()
    for seed in range(20):
        medium, here = disk(seed)
        file = here.create(RUN / "a")
        medium.interrupt = lambda process, operation, path: "full" if operation == "write" else ""
        with pytest.raises(OSError, match="No space"):
            file.write([b"text"], 0)
        lengths.add(file.size())
    assert min(lengths) == 0
    assert len(lengths) > 2
