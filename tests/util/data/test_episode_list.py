import json
import os

import pytest

from util.data.draws import DrawnRun, draw_test_episodes
from util.data.episode_list import list_digest, list_text, read_list, read_or_write_list
from util.runtime.errors import UserError


@pytest.fixture
def runs(episodes):
    return [DrawnRun(seed, draw_test_episodes(episodes.lists, 2, 9, seed, 8)) for seed in (510, 3)]


def test_written_where_there_is_none_and_replayed_where_there_is(episodes, runs, tmp_path):
    path = str(tmp_path / "new" / "drawn.json")
    assert read_or_write_list(path, episodes, "pascal", 0, runs) == runs
    others = [DrawnRun(7, draw_test_episodes(episodes.lists, 2, 4, 7, 0))]
    assert read_or_write_list(path, episodes, "pascal", 0, others) == runs
    first = json.loads((tmp_path / "new" / "drawn.json").read_text())
    query, class_id, *supports = first["runs"][0]["episodes"][0]
    draw = runs[0].draws[0]
    assert first["images"][query] == episodes.lists.entries[draw.index][0]
    assert (class_id, supports) == (draw.class_id, draw.supports)


def test_the_digest_names_the_episodes(episodes, runs):
    def digest(drawn):
        return list_digest(list_text(episodes, "pascal", 0, drawn))

    assert digest(runs) == digest(list(runs)) != digest(runs[:1])
    swapped = [runs[0]._replace(draws=runs[0].draws[::-1]), runs[1]]
    assert digest(swapped) != digest(runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "coco"}, "drawn for dataset coco, this test has pascal"),
        ({"split": 3}, "drawn for split 3, this test has 0"),
        ({"shot": 5}, "drawn for shot 5, this test has 2"),
        ({"classes": [1, 2]}, "drawn for other classes"),
        ({"images": ["a.png"]}, "drawn for other images"),
        ({"runs": []}, "empty or not of one length"),
        ({"runs": [{"seed": 1, "episodes": []}]}, "empty or not of one length"),
        ({"runs": [{"seed": 1}]}, "is no file of drawn episodes"),
        ({"runs": [{"seed": 1, "episodes": [[0, 1, 2]]}]}, r"episode \[0, 1, 2\] cannot be"),
        ({"runs": [{"seed": 1, "episodes": [[0, 1, 2, -1]]}]}, "cannot be"),
        ({"runs": [{"seed": 1, "episodes": [[0, 1, 2, 10**6]]}]}, "cannot be"),
        ({"runs": [{"seed": 1, "episodes": [[0, 1, 2, "3"]]}]}, "cannot be"),
        ({"runs": [{"seed": 1, "episodes": [[0, 77, 2, 3]]}]}, "cannot be"),
    ],
)
def test_a_file_of_something_else_is_one_line(change, message, episodes, runs, tmp_path):
    content = json.loads(list_text(episodes, "pascal", 0, runs)) | change
    path = tmp_path / "drawn.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^--episodes .*drawn\.json: .*{message}"):
        read_list(str(path), episodes, "pascal", 0)


def test_a_query_does_not_support_itself(episodes, runs, tmp_path):
    draw = runs[0].draws[0]
    path = str(tmp_path / "drawn.json")
    own = [DrawnRun(1, [draw._replace(supports=[draw.index, draw.supports[0]])])]
    read_or_write_list(path, episodes, "pascal", 0, own)
    with pytest.raises(UserError, match="cannot be: a query and 2 others as supports have to show"):
        read_list(path, episodes, "pascal", 0)
    os.remove(path)
    # As the draws of a fold list may have it.
    twice = [DrawnRun(1, [draw._replace(supports=[draw.supports[0]] * 2)])]
    read_or_write_list(path, episodes, "pascal", 0, twice)
    assert read_list(path, episodes, "pascal", 0) == twice


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"runs": 3', "\x00"])
def test_what_is_no_list_is_one_line(text, episodes, tmp_path):
    path = tmp_path / "drawn.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no file of drawn episodes"):
        read_list(str(path), episodes, "pascal", 0)


def test_a_path_that_cannot_be_used_is_one_line(episodes, runs, tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_or_write_list(str(tmp_path), episodes, "pascal", 0, runs)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        read_or_write_list(str(tmp_path / "file" / "drawn.json"), episodes, "pascal", 0, runs)
