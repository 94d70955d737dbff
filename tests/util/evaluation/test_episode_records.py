import os

import numpy as np
import pytest

from tests.tables import cells_of, rows_of
from util.data.draws import Draw, DrawnRun
from util.evaluation.counts import RECORD
from util.evaluation.episode_records import (
    COLUMNS,
    EpisodeRecord,
    episode_records,
    read_csv,
    shown_episodes,
    slice_tables,
    write_csv,
)
from util.runtime.errors import UserError


def record(iou=0.5, share=0.1, classes=1, query="q.jpg", supports=("s.jpg",), **other):
    values = {"class_name": "cat", "iou_meta": iou / 2, "pixels": 7, "seed": 510, **other}
    return EpisodeRecord(
        query=query, iou=iou, share=share, classes=classes, supports=supports, **values
    )


def test_records_from_counts():
    counts = np.zeros(2, RECORD)
    counts["final"], counts["meta"] = [[0, 1], [1, 2]], [[1, 0], [3, 0]]
    counts["pixels"], counts["classes"] = 5, 3
    runs = [DrawnRun(seed, [Draw(1, class_id, [2, 0])]) for seed, class_id in ((365, 2), (510, 1))]
    made = episode_records(runs, counts, ["a", "b", "c"], ["cat", "dog"])
    first = EpisodeRecord("b", "dog", 0.5, 0.0, 3, 0.6, 3, 365, ("c", "a"))
    assert made == [first, first._replace(class_name="cat", seed=510)]
    (record,) = episode_records(runs[:1], counts[:1], ["a", "b", "c"], None)
    assert record.class_name == "class 2"


def test_files_hold_the_records_exactly(tmp_path):
    records = [
        record(1 / 3, 0.1 + 0.2, 2, 'a, "b"; ü.jpg', ("x y.jpg", "z;.jpg")),
        record(0.0, 1.0, supports=("one.jpg", "two.jpg"), class_name="potted plant"),
        record(query=os.fsdecode(b"caf\xe9.jpg")),
    ]
    path = tmp_path / "new folder" / "episodes.csv"
    write_csv(path, records)
    assert read_csv(path) == records
    header = path.read_bytes().splitlines()[0].decode()
    assert header == ",".join([*COLUMNS, "support_1", "support_2"])
    write_csv(path, [])
    assert read_csv(path) == []


HEADER = ",".join(COLUMNS).encode() + b",support_1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is no file of episodes"),
        (b"a,b\n1,2\n", "is no file of episodes"),
        (b"zoo\n1\n", "is no file of episodes"),
        (b"\xff\xfe", "is no file of episodes"),
        (HEADER + b"q,cat\n", "row 2: 2 columns, at least 9"),
        (HEADER + b"q,cat,high,0,1,0,1,5,s\n", "row 2: iou = high: no number"),
    ],
)
def test_other_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "episodes.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_csv(path)
    assert str(path) in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slices_by_size_and_by_number_of_classes():
    shares = [0.01, 0.0499, 0.05, 0.1999, 0.2, 0.9]
    records = [record(iou=number / 10, share=share) for number, share in enumerate(shares)]
    rows = rows_of(slice_tables(records))
    assert rows["small, below 5% of the image"] == ["2", "5.0", "2.5"]
    assert rows["medium"] == ["2", "25.0", "12.5"]
    assert rows["large, 20% or more"] == ["2", "45.0", "22.5"]
    assert rows["all"] == ["6", "25.0", "12.5"]
    records = [record(iou=0.1 * count, classes=count) for count in (1, 1, 2, 4, 6)]
    rows = rows_of(slice_tables(records))
    assert rows["1"] == ["2", "10.0", "5.0"] and rows["2"] == ["1", "20.0", "10.0"]
    assert rows["3"] == ["0", "-", "-"] and rows["4 or more"] == ["2", "50.0", "25.0"]


@pytest.mark.parametrize(
    ("number", "title"), [(20, "All episodes, by"), (21, "The 20 episodes of")]
)
def test_all_episodes_are_listed_where_they_are_few(number, title):
    records = [record(iou=0.5, query=f"q{n:02}.jpg", supports=("a", "b")) for n in range(number)]
    _, rules, *listed = cells_of(slice_tables(records).partition(f"\n{title}")[2])
    assert len(listed) == 20
    assert listed[0] == ["50.0", "25.0", "cat", "10.0", "q00.jpg", "a b", "510"]
    # Words stand at the left.
    assert [rule.endswith(":") for rule in rules] == [
        *(True, True, False, True, False, False, True)
    ]


def test_the_worst_episodes_come_first():
    records = [record(iou=number / 50, query=f"q{number}.jpg") for number in range(30)]
    records[0] = record(iou=0.0, query=os.fsdecode(b"caf\xe9.jpg"))  # not UTF-8
    text = slice_tables(records[::-1])
    assert text.encode().decode() == text
    named = [cells[4] for cells in cells_of(text[text.index("The 20 episodes") :])[2:]]
    assert named == [r"caf\udce9.jpg", *(f"q{number}.jpg" for number in range(1, 20))]


def test_the_best_and_those_in_the_middle_are_shown():
    records = [record(iou=number / 50, query=f"q{number:02}.jpg") for number in range(30)]
    shown = shown_episodes(records[::-1])
    assert list(shown) == ["best", "median", "worst"] and len(shown["worst"]) == 20
    assert [r.query for r in shown["best"]] == ["q29.jpg", "q28.jpg", "q27.jpg"]
    assert [r.query for r in shown["median"]] == ["q13.jpg", "q14.jpg", "q15.jpg"]
    two = shown_episodes(records[:2])
    assert two == {"best": records[1::-1], "median": records[:2], "worst": records[:2]}


def test_an_episode_that_is_drawn_again_comes_once():
    records = [
        record(query=f"q{number % 23}.jpg", iou=(number % 23) / 50, seed=seed)
        for seed in (510, 365)
        for number in range(46)
    ]
    worst = shown_episodes(records)["worst"]
    assert worst == records[:20]
    other = record(query="q0.jpg", iou=0.0, supports=("another.jpg",))
    assert {worst[0], other} <= set(shown_episodes([*records, other])["worst"])
    assert "All episodes, by IoU" in slice_tables([*records[:20], *records[:20]])
