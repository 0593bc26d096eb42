"""The journal: what was synced is read back, in order and to the bit, or an error says why not."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from checks import delta_of, fingerprint
from faulty_disk import FaultyDisk
from hypothesis import given
from hypothesis import strategies as st

from streaming_vb.errors import IntegrityError
from streaming_vb.streaming.disk import Disk, RealDisk
from streaming_vb.streaming.journal import Entry, Journal, JournalBroken, Mark, Merged, PutAside, Segments
from streaming_vb.types import Interval, SetAside

START = Mark(0, 0)


def entry(number: int, num_values: int = 3) -> Entry:
    """Entries of which every one differs; each fifth sets its interval aside."""
    if number % 5 == 4:
        return PutAside(SetAside(Interval("s", "p", number, number + 1), 1, f"reason {number}"), publish=True)
    evidence = np.random.default_rng(number).standard_normal(num_values)
    fit_state = {"momentum": evidence.astype(np.float32), "steps": np.array(number)}
    return Merged(delta_of({"sum": evidence}, number, number + 1, fit_state=fit_state), publish=number % 2 == 0)


def print_of(entry: Entry) -> object:
    if isinstance(entry, PutAside):
        return entry.set_aside, entry.publish
    delta = entry.delta
    arrays = fingerprint(delta.fit.natural, delta.fit.fit_state)
    return arrays, delta.run_id, delta.lease, delta.num_records, delta.bad_records, delta.fit.elbo, entry.publish


def prints(entries: Sequence[Entry]) -> list[object]:
    return [print_of(entry) for entry in entries]


def read(directory: Path, start: Mark | None = START) -> tuple[list[Entry], Segments]:
    segments = Segments(RealDisk(), directory)
    return list(segments.after(start)), segments


def open_journal(directory: Path, generation: int = 1, disk: Disk = RealDisk()) -> Journal:
    """A journal after everything that is there."""
    _, segments = read(directory, None)
    return Journal(disk, directory, generation, keep_fit_state=True, after=segments)


def written(directory: Path, numbers: Sequence[int], generation: int = 1, base: Mark = START) -> Journal:
    journal = open_journal(directory, generation)
    journal.begin(base)
    for number in numbers:
        journal.append(entry(number))
        journal.sync()
    return journal


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def test_what_is_read_is_what_was_appended(tmp_path: Path) -> None:
    written(tmp_path, range(10))
    found, segments = read(tmp_path)
    assert prints(found) == prints([entry(number) for number in range(10)])
    assert segments.notes == []


def test_warm_starts_are_left_out_where_they_are_not_wanted(tmp_path: Path) -> None:
    journal = Journal(RealDisk(), tmp_path, 1, keep_fit_state=False, after=Segments(RealDisk(), tmp_path))
    journal.begin(START)
    journal.append(entry(0))
    ((found,), _) = read(tmp_path)
    assert isinstance(found, Merged)
    assert found.delta.fit.fit_state == {}
    np.testing.assert_array_equal(found.delta.fit.natural["sum"], entry(0).delta.fit.natural["sum"])  # type: ignore[union-attr]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 300)), st.sampled_from([("sync", 0), ("begin", 0), ("trim", 0)])
        ),
        max_size=30,
    ),
    st.integers(1, 3),
)
def test_any_schedule_over_any_number_of_generations(steps: list[tuple[str, int]], num_generations: int) -> None:
    """Appends of any size, syncs, rotations, trims to the rotation before the last, and restarts."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        appended: list[Entry] = []
        bases = [START]
        for generation in range(1, num_generations + 1):
            journal = open_journal(directory, generation)
            journal.begin(Mark(len(appended), len(appended)))
            for step, size in steps:
                if step == "append":
                    appended.append(entry(len(appended), size))
                    journal.append(appended[-1])
                elif step == "sync":
                    journal.sync()
                elif step == "begin":
                    bases.append(Mark(len(appended), len(appended)))
                    journal.begin(bases[-1])
                else:
                    journal.trim(bases[-1])
                    bases = bases[-1:]
            journal.close()
        start = bases[-1]
        found, segments = read(directory, start)
        assert prints(found) == prints(appended)[start.num_covered :]
        assert segments.notes == []


def test_a_file_cut_anywhere_gives_the_entries_before_the_cut(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    journal = open_journal(tmp_path / "whole")
    journal.begin(START)
    ends = [journal.num_bytes]
    for number in range(4):
        journal.append(entry(number))
        ends.append(journal.num_bytes)
    whole = only_file(tmp_path / "whole").read_bytes()
    assert len(whole) == ends[-1]
    (tmp_path / "cut").mkdir()
    path = tmp_path / "cut" / only_file(tmp_path / "whole").name
    for size in range(0, len(whole), 3):
        path.write_bytes(whole[:size])
        found, segments = read(tmp_path / "cut")
        num_whole = max(sum(end <= size + 63 for end in ends) - 1, 0)  # the zeros behind an entry may be missing
        assert num_whole - 1 <= len(found) <= num_whole
        assert prints(found) == prints([entry(number) for number in range(len(found))])
        assert len(segments.notes) == (len(found) < 4 and size >= ends[len(found)] + 64)  # where there is a head


@pytest.mark.parametrize("sync", [True, False])
def test_a_flipped_bit_is_found_and_what_was_synced_is_not_cut_off(sync: bool, tmp_path: Path) -> None:
    """Where a later entry says that it was synced it is an error; where none does it may be the tail of a crash."""
    journal = open_journal(tmp_path)
    journal.begin(START)
    for number in range(3):
        journal.append(entry(number))
        if sync:
            journal.sync()
    path = only_file(tmp_path)
    whole = path.read_bytes()
    counts = {"error": 0, "cut": 0, "same": 0}
    for bit in range(0, 8 * len(whole), 11):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found, _ = read(tmp_path)
        except IntegrityError as error:
            counts["error"] += str(error).startswith(f"{path}: ")
            continue
        assert prints(found) == prints([entry(number) for number in range(len(found))])
        counts["same" if len(found) == 3 else "cut"] += 1
        assert len(found) >= (2 if sync else 0)
    assert counts["cut"] > 0
    assert (counts["error"] > counts["cut"]) == sync


def test_a_torn_tail_is_cut_with_a_note_and_the_next_generation_goes_on_from_there(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-70])
    journal = open_journal(tmp_path, generation=2)
    assert "after entry 2 of 000001-000000.journal do not match their checksum, cut there" in read(tmp_path)[1].notes[0]
    journal.begin(Mark(2, 2))
    journal.append(entry(7))
    journal.sync()
    assert prints(read(tmp_path)[0]) == prints([entry(0), entry(1), entry(7)])


def test_what_was_read_and_perhaps_not_durable_is_durable_once_the_next_generation_began(tmp_path: Path) -> None:
    written(tmp_path, range(2))
    path = only_file(tmp_path)
    end = path.stat().st_size
    journal = open_journal(tmp_path, generation=2)
    journal.begin(Mark(2, 2))
    with open(path, "r+b") as file:
        file.truncate(end - 70)  # the power goes, and the tail that no frame says to be synced is lost
    assert prints(read(tmp_path)[0]) == prints([entry(0), entry(1)])
    journal.append(entry(2))
    journal.sync()
    assert prints(read(tmp_path)[0]) == prints([entry(0), entry(1), entry(2)])


def test_files_are_used_again_and_their_old_entries_are_not_read(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for turn in range(10):
        journal.begin(Mark(turn, turn))
        journal.trim(Mark(turn - 1, turn - 1))
        for number in range(20 - 2 * turn):  # shorter every time: more is left over
            journal.append(entry(100 * turn + number))
    assert len(list(tmp_path.iterdir())) == 3
    for turn in (8, 9):
        found, segments = read(tmp_path, Mark(turn, turn))
        expected = [entry(100 * t + n) for t in range(turn, 10) for n in range(20 - 2 * t)]
        assert prints(found) == prints(expected)
        assert segments.notes == []


def test_entries_that_the_start_has_are_not_read_and_all_are_without_a_start(tmp_path: Path) -> None:
    journal = written(tmp_path, [0, 1])
    journal.begin(Mark(2, 2))
    journal.append(entry(2))
    assert prints(read(tmp_path, Mark(2, 2))[0]) == prints([entry(2)])
    assert prints(read(tmp_path, Mark(9, 9))[0]) == prints([entry(2)])
    assert prints(read(tmp_path, Mark(1, 1))[0]) == prints([entry(0), entry(1), entry(2)])
    assert prints(read(tmp_path, None)[0]) == prints([entry(0), entry(1), entry(2)])


def test_a_snapshot_that_the_journal_does_not_reach_back_to_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, [5], base=Mark(5, 5))
    with pytest.raises(IntegrityError, match="snapshot holds version 4, the journal goes on from 5"):
        read(tmp_path, Mark(4, 4))


def test_a_segment_that_is_missing_is_an_error(tmp_path: Path) -> None:
    journal = written(tmp_path, [0])
    for number in (1, 2):
        journal.begin(Mark(number, number))
        journal.append(entry(number))
    (tmp_path / "000001-000001.journal").unlink()
    with pytest.raises(IntegrityError, match="segment 2 is missing"):
        read(tmp_path)


def test_a_file_that_lost_entries_on_which_the_next_one_counts_is_an_error(tmp_path: Path) -> None:
    journal = written(tmp_path, [0, 1])
    journal.begin(Mark(2, 2))
    path = tmp_path / "000001-000000.journal"
    path.write_bytes(path.read_bytes()[:-70])
    with pytest.raises(IntegrityError, match="entry 2 of segment 1 does not match its checksum"):
        read(tmp_path)


def test_files_that_were_swapped_or_copied_are_an_error(tmp_path: Path) -> None:
    written(tmp_path, [0]).close()
    written(tmp_path, [1], generation=2, base=Mark(1, 1))
    one, two = sorted(tmp_path.iterdir())
    shutil.copy(two, tmp_path / "000002-000009.journal")
    with pytest.raises(IntegrityError, match="holds segment 2 of generation 2, not its own"):
        read(tmp_path)
    (tmp_path / "000002-000009.journal").unlink()
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(IntegrityError, match="not its own"):
        read(tmp_path)


def test_what_an_overtaken_writer_adds_does_not_count(tmp_path: Path) -> None:
    first = written(tmp_path, [0, 1])
    second = open_journal(tmp_path, generation=2)
    first.append(entry(2))  # before its successor begins, and after it was read
    first.sync()
    second.begin(Mark(2, 2))
    first.append(entry(3))
    first.begin(Mark(3, 3))
    second.append(entry(10))
    first.append(entry(4))
    for journal in (first, second):
        journal.sync()
    assert prints(read(tmp_path)[0]) == prints([entry(0), entry(1), entry(10)])


def test_files_of_older_generations_are_kept_until_no_snapshot_needs_them(tmp_path: Path) -> None:
    written(tmp_path, [0]).close()
    written(tmp_path, [1], generation=2, base=Mark(1, 1)).close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    journal = written(tmp_path, [2], generation=3, base=Mark(2, 2))
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()
    journal.begin(Mark(3, 3))
    journal.trim(Mark(1, 1))
    assert {path.name for path in tmp_path.iterdir()} & before.keys() == {"000002-000000.journal"}
    journal.trim(Mark(2, 2))
    assert not {path.name for path in tmp_path.iterdir()} & before.keys()
    journal.close(saved=Mark(3, 3))
    assert len(list(tmp_path.iterdir())) == 1
    assert list(Segments(RealDisk(), tmp_path).after(Mark(3, 3))) == []
    with pytest.raises(IntegrityError, match="the snapshot holds version 2, the journal goes on from 3"):
        list(Segments(RealDisk(), tmp_path).after(Mark(2, 2)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_where_an_append_fails_nothing_is_appended_and_the_next_takes_its_place(number: int, tmp_path: Path) -> None:
    disk = FaultyDisk()
    journal = open_journal(tmp_path, disk=disk)
    journal.begin(START)
    journal.append(entry(0))
    journal.sync()
    disk.fail("write", number=number)
    with pytest.raises(OSError, match=r"No space|Input/output"):
        journal.append(entry(1, 1000))
    journal.append(entry(2))
    journal.append(entry(3))
    journal.sync()
    found, segments = read(tmp_path)
    assert prints(found) == prints([entry(0), entry(2), entry(3)])
    assert segments.notes == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_after_a_sync_that_failed_nothing_can_be_written(number: int, tmp_path: Path) -> None:
    disk = FaultyDisk()
    journal = open_journal(tmp_path, disk=disk)
    journal.begin(START)
    journal.append(entry(0))
    disk.fail("sync", number=number)
    with pytest.raises(JournalBroken, match="cannot be made durable"):
        journal.sync()
    with pytest.raises(JournalBroken):
        journal.sync()
    with pytest.raises(JournalBroken):
        journal.append(entry(1))
    with pytest.raises(JournalBroken):
        journal.begin(START)


@pytest.mark.parametrize(
    ("operation", "is_reused"),
    [("create", False), ("write", False), ("sync", False), ("sync_directory", False), ("write", True), ("sync", True)],
)
def test_where_a_segment_cannot_begin_entries_go_on_before_it(operation: str, is_reused: bool, tmp_path: Path) -> None:
    disk = FaultyDisk()
    journal = open_journal(tmp_path, disk=disk)
    journal.begin(START)
    if is_reused:
        journal.begin(Mark(0, 0))
        journal.trim(Mark(0, 0))
    journal.append(entry(0))
    journal.sync()
    disk.fail(operation)
    with pytest.raises(OSError, match="No space"):
        journal.begin(Mark(1, 1))
    journal.append(entry(1))
    journal.sync()
    assert prints(read(tmp_path)[0]) == prints([entry(0), entry(1)])
    journal.begin(Mark(2, 2))
    journal.append(entry(2))
    assert prints(read(tmp_path)[0]) == prints([entry(0), entry(1), entry(2)])


def test_a_header_that_cannot_be_taken_back_stops_the_journal(tmp_path: Path) -> None:
    """The file may say that the segment before it ends here; then nothing may be added to that one."""
    disk = FaultyDisk()
    journal = open_journal(tmp_path, disk=disk)
    journal.begin(START)
    disk.fail("sync_directory", times=2)
    with pytest.raises(OSError, match="No space"):
        journal.begin(Mark(1, 1))
    with pytest.raises(JournalBroken):
        journal.append(entry(1))


def test_a_header_torn_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    journal = written(tmp_path, [0])
    journal.begin(Mark(1, 1))
    path = tmp_path / "000001-000001.journal"
    path.write_bytes(path.read_bytes()[:100])
    assert prints(read(tmp_path)[0]) == prints([entry(0)])


def test_a_header_with_entries_behind_it_was_durable(tmp_path: Path) -> None:
    journal = written(tmp_path, [0])
    journal.begin(Mark(1, 1))
    journal.append(entry(1))
    path = tmp_path / "000001-000001.journal"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="header of segment 2 does not match"):
        read(tmp_path)


def test_a_snapshot_of_an_overtaken_writer_is_known_by_its_generation(tmp_path: Path) -> None:
    written(tmp_path, [0, 1, 2]).close()
    written(tmp_path, [], generation=2, base=Mark(3, 3))
    segments = Segments(RealDisk(), tmp_path)
    assert not segments.disowns(1, Mark(3, 3))
    assert segments.disowns(1, Mark(4, 4))
    assert not segments.disowns(2, Mark(4, 4))
    assert not segments.disowns(0, Mark(4, 4))
