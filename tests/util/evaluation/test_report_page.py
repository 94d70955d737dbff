"""The parts of the page; tests/util/test_report.py has the page of the command."""

import json
import re
from html import unescape

import numpy as np
import pytest

from util.evaluation.episode_records import EpisodeRecord, write_csv
from util.evaluation.figures import write_png
from util.evaluation.report_page import report_page
from util.runtime.errors import UserError

SETTINGS = {"backbone": "vgg16", "split": 2, "dataset": "a<b", "shot": 5}


@pytest.fixture
def result(tmp_path):
    """A test whose chart is 5 pixels high."""
    path = tmp_path / "test-5shot.json"
    runs = [{"class_iou": {"1": 0.5}}]
    path.write_text(json.dumps({"settings": SETTINGS, "runs": runs, "mean": {"mIoU": 0.5}}))
    write_png(path.with_suffix(".png"), np.zeros((5, 5, 3), np.uint8))
    return path


def captions(text):
    return [unescape(caption) for caption in re.findall("<figcaption>(.*?)</figcaption>", text)]


def test_a_test_has_its_chart_and_the_first_episodes(result):
    text = report_page("<p>TABLES</p>", [result], [])
    assert text.startswith("<!DOCTYPE html>\n") and text.endswith("</body>\n</html>\n")
    assert text.index("<p>TABLES</p>") < text.index("<h2>Tests</h2>")
    assert "<h3>vgg16, fold 2 of a&lt;b, 5-shot</h3>" in text and "Trainings" not in text
    assert captions(text) == [f"IoU per class, from {result}"]
    write_png(result.with_name("contact-5shot.png"), np.zeros((9, 9, 3), np.uint8))
    text = report_page("", [result], [])
    assert captions(text)[1:] == ["The first episodes."] and text.count("data:image/jpeg") == 1
    # Without a chart, it is drawn.
    size = len(text)
    result.with_suffix(".png").unlink()
    assert len(report_page("", [result], [])) > size + 1000


def test_episodes_are_the_best_three_those_in_the_middle_and_the_lowest(result):
    records = [
        EpisodeRecord(f"q{n:02}.jpg", "cat", n / 40, 0.125, 7, 0.1, 1, 510, ("s",))
        for n in range(31)
    ]
    write_csv(result.with_suffix(".csv"), records)
    image = np.zeros((9, 9, 3), np.uint8)
    write_png(result.with_name("contact-5shot.png"), image)
    for name in ("best-5shot-0", "median-5shot-2", "worst-5shot-1"):
        write_png(result.with_name(f"{name}.png"), image)
    text = report_page("", [result], [])
    shown = re.findall(r"<h4>(.*?)</h4>|<p>cat in (q\d+)|<figcaption>cat in (q\d+)", text)
    assert shown == [
        *(("Highest IoU", "", ""), ("", "", "q30"), ("", "q29", ""), ("", "q28", "")),
        *(("Median IoU", "", ""), ("", "q14", ""), ("", "q15", ""), ("", "", "q16")),
        *(("Lowest IoU", "", ""), ("", "q00", ""), ("", "", "q01"), ("", "q02", "")),
    ]
    line = "cat in q16.jpg, 10.0% of the image: IoU 40.0 %, of the meta learner 12.5 %."
    assert line in captions(text)


def test_a_training_has_its_curves(tmp_path):
    scalars = tmp_path / "split0/scalars.jsonl"
    scalars.parent.mkdir()
    scalars.write_text('{"step": 1, "train/loss": 2.0}\n')
    text = report_page("", [], [scalars])
    assert text.count("<h2>Trainings</h2>") == 1
    assert captions(text) == [f"Curves of {tmp_path}/split0"]
    scalars.unlink()
    with pytest.raises(UserError, match=f"{scalars} cannot be read: No such file"):
        report_page("", [], [scalars])
