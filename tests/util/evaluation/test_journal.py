import numpy as np
import pytest

from util.evaluation.counts import Counts
from util.evaluation.journal import Journal
from util.runtime.errors import UserError

RUNS, EPISODES, NUM_BASE = 2, 8, 6


def unit(*positions, seed=0):
    """The counts of the episodes at some positions."""
    rng = np.random.default_rng(seed)
    counts = Counts(len(positions), RUNS, NUM_BASE)
    counts.numbers[:] = rng.integers(1, 9, counts.numbers.shape)
    counts.sums[:] = rng.integers(0, 3, counts.sums.shape) * 10**11
    return [*positions], counts


def read(journal):
    counts = Counts(EPISODES, RUNS, NUM_BASE)
    journal.read(counts)
    return counts


def holds(journal, *units):
    """Whether what the journal holds is what the units counted."""
    found, expected = read(journal), Counts(EPISODES, RUNS, NUM_BASE)
    for positions, counts in units:
        expected.numbers[positions] = counts.numbers
        expected.sums += counts.sums
    return (found.numbers == expected.numbers).all() and (found.sums == expected.sums).all()


@pytest.fixture
def written(tmp_path):
    """A journal of two processes, and its units."""
    journal = Journal(tmp_path, {"a": 1})
    units = [unit(0, 5, seed=1), unit(3, seed=2), unit(6, 7, seed=3)]
    with journal.writing(0) as append:
        append(*units[0])
        assert holds(journal, units[0])  # Every line is whole at once.
        append(*units[1])
    with journal.writing(1) as append:
        append(*units[2])
    return journal, units


def test_what_all_processes_wrote_is_read(written):
    journal, units = written
    assert holds(journal, *units)
    assert read(journal).done().tolist() == [True, False, False, True, False, True, True, True]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_line_is_left_out_and_the_next_one_counts(written, cut):
    journal, units = written
    path = sorted(journal.folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-cut])
    kept = units if cut == 1 else [units[0], units[2]]  # 1: only the line's end is missing
    assert holds(journal, *kept)
    more = unit(1, 2, seed=5)
    with journal.writing(0) as append:
        append(*more)
    assert holds(journal, *kept, more)


@pytest.mark.parametrize("foreign", [b"", b"[]", b'{"episodes": [1]}', b"\xff\xfe", b"0a1b2c3d []"])
def test_a_line_of_another_form_is_left_out(written, foreign):
    journal, units = written
    path = sorted(journal.folder.iterdir())[0]
    path.write_bytes(foreign + b"\n" + path.read_bytes().replace(b"\n", b"\n" + foreign + b"\n"))
    assert holds(journal, *units)


def test_a_changed_digit_is_found(written):
    journal, units = written
    path = sorted(journal.folder.iterdir())[1]
    path.write_bytes(path.read_bytes().replace(b"[6, 7]", b"[1, 2]"))
    assert holds(journal, *units[:2])


def test_what_was_counted_twice_counts_once(written):
    journal, units = written
    with journal.writing(7) as append:
        append(*unit(3, 4, seed=9))
    assert holds(journal, *units)


def test_another_test_has_its_own_files(written):
    journal, _ = written
    other = Journal(journal.folder, {"a": 2})
    assert not read(other).done().any()
    with other.writing(0) as append:
        append(*unit(4))
    journal.remove()
    assert not read(journal).done().any() and read(other).done().sum() == 1
    # A later version finds the files of this one.
    assert Journal(journal.folder, {"a": 1}).name == journal.name == "journal-f9d86028c6e0"


def test_a_test_that_does_not_score_the_base_learner_has_no_sums(tmp_path):
    journal, counts, found = Journal(tmp_path, 1), Counts(1, RUNS, 0), Counts(EPISODES, RUNS, 0)
    counts.numbers[:] = 1
    with journal.writing(0) as append:
        append([2], counts)
    journal.read(found)
    assert np.flatnonzero(found.done()).tolist() == [2] and not found.sums.size


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/journal-.*-0\.jsonl cannot be written"),
        Journal(tmp_path / "file", 1).writing(0),
    ):
        pass
