import json

import numpy as np
import pytest

from util.evaluation.counts import RECORD, Counts, UnitCounts
from util.evaluation.journal import Journal
from util.runtime.errors import UserError

SIZE = 50
LENGTHS = [4, 4]


def unit(*positions, seed=0):
    rng = np.random.default_rng(seed)
    runs = {position // LENGTHS[0] for position in positions}
    states = {run: rng.integers(0, 3, SIZE) * 10**11 for run in runs}
    return UnitCounts(list(positions), rng.integers(1, 9, (len(positions), RECORD)), states)


def read(journal):
    counts = Counts(LENGTHS, SIZE)
    journal.read(counts)
    return counts


def expected(*units):
    counts = Counts(LENGTHS, SIZE)
    for one in units:
        counts.add(one)
    return counts


def same(one, other):
    return (one.records == other.records).all() and (one.states == other.states).all()


@pytest.fixture
def written(tmp_path):
    """A journal of two processes, and its units."""
    journal = Journal(tmp_path, {"a": 1})
    units = [unit(0, 5, seed=1), unit(3, seed=2), unit(6, 7, seed=3)]
    with journal.writing(0) as append:
        append(units[0])
        append(units[1])
    with journal.writing(1) as append:
        append(units[2])
    return journal, units


def test_what_all_processes_wrote_is_read(written):
    journal, units = written
    counts = read(journal)
    assert same(counts, expected(*units))
    assert counts.done().tolist() == [True, False, False, True, False, True, True, True]


def test_every_line_is_whole_at_once(tmp_path):
    journal = Journal(tmp_path, "x")
    with journal.writing(0) as append:
        append(unit(1))
        assert same(read(journal), expected(unit(1)))


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_line_is_left_out_and_the_next_one_counts(written, cut):
    journal, units = written
    path = sorted(journal.folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-cut])
    whole = cut == 1  # only the line's end is missing
    assert same(read(journal), expected(*units) if whole else expected(units[0], units[2]))
    with journal.writing(0) as append:
        append(unit(1, 2, seed=5))
    kept = units if whole else [units[0], units[2]]
    assert same(read(journal), expected(*kept, unit(1, 2, seed=5)))


WHOLE = {"episodes": [1], "records": [[1] * RECORD], "runs": {"0": [[3], [7]]}}


@pytest.mark.parametrize(
    "foreign",
    [
        [],
        7,
        None,
        {},
        {"episode": 3},
        WHOLE | {"episodes": "1"},
        WHOLE | {"episodes": [[1]]},
        WHOLE | {"episodes": [8]},
        WHOLE | {"episodes": [-1]},
        WHOLE | {"episodes": [1, 2]},
        WHOLE | {"records": [[1, 2]]},
        WHOLE | {"records": [[10**30] * RECORD]},
        WHOLE | {"runs": [0]},
        WHOLE | {"runs": {"0": [[3]]}},
        WHOLE | {"runs": {"0": [[SIZE], [7]]}},
        WHOLE | {"runs": {"0": [[3, 4], [7, 8, 9]]}},
        WHOLE | {"runs": {"2": [[3], [7]]}},
    ],
    ids=str,
)
def test_a_whole_line_of_another_form_is_left_out(written, foreign):
    journal, units = written
    path = sorted(journal.folder.iterdir())[0]
    path.write_bytes(json.dumps(foreign).encode() + b"\n\xff\xfe\n" + path.read_bytes())
    assert same(read(journal), expected(*units))
    path.write_bytes(json.dumps(WHOLE).encode() + b"\n")
    assert read(journal).done()[1]


def test_what_was_counted_twice_counts_once(written):
    journal, units = written
    with journal.writing(7) as append:
        append(unit(3, 4, seed=9))
    assert same(read(journal), expected(*units))


def test_another_test_has_its_own_files(written):
    journal, _ = written
    other = Journal(journal.folder, {"a": 2})
    assert not read(other).done().any()
    with other.writing(0) as append:
        append(unit(4))
    journal.remove()
    assert not read(journal).done().any() and read(other).done().sum() == 1
    assert Journal(journal.folder, {"a": 1}).name == journal.name


def test_lines_are_json_and_hold_what_is_not_zero(written):
    journal, _ = written
    line = json.loads(sorted(journal.folder.iterdir())[0].read_text().splitlines()[1])
    assert line["episodes"] == [3]
    at, by = line["runs"]["0"]
    assert len(at) == len(by) < SIZE and 0 not in by


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/journal-.*-0\.jsonl cannot be written"),
        Journal(tmp_path / "file", 1).writing(0),
    ):
        pass
