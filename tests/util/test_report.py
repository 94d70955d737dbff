import io
import json
import os
import re
from base64 import b64decode
from html import unescape

import numpy as np
import pytest
from PIL import Image

from tests.tables import cells_of
from util.evaluation.episode_records import EpisodeRecord, write_csv
from util.evaluation.figures import write_png
from util.evaluation.metrics import SCORES
from util.report import find_results, main, paper_tables
from util.runtime.errors import UserError

SETTINGS = {
    **{"weight": "w.pth", "dataset": "pascal", "split": 0, "shot": 1, "backbone": "resnet50"},
    **{"size": 473, "episodes": 1000, "seeds": [510, 365], "workers": 8, "baselines": False},
}


def write(root, exp="split0", miou=0.5, name="best", trained_shot=None, runs=(), **changed):
    """A result as the test writes it; mIoU_m is half of mIoU, FBIoU a tenth more."""
    settings = {**SETTINGS, **changed}
    mean = {**dict.fromkeys(SCORES, 0.0), "mIoU": miou, "mIoU_m": miou / 2, "FBIoU": miou + 0.1}
    shot = trained_shot or settings["shot"]
    content = {"settings": settings, "trained_shot": shot, "runs": [*runs], "mean": mean}
    content["published_mIoU_percent"] = None if "protocol" in changed else 71.0
    folder = root / settings["dataset"] / "HDMNet" / exp / settings["backbone"] / "result"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"test-{settings['shot']}shot-{name}.json"
    path.write_text(json.dumps(content))
    return path


def write_folds(root, shot=1, folds=range(4), first=0.5, exp="", **changed):
    suffix = f"_{shot}shot" if shot != 1 else ""
    for split in folds:
        miou = first + split / 100
        write(root, f"{exp}split{split}{suffix}", miou, split=split, shot=shot, **changed)


def table(*paths, **options):
    return cells_of(paper_tables(find_results(paths), **options))


def row(found, name, backbone="resnet50"):
    (cells,) = [cells[2:] for cells in found if cells[:2] == [name, backbone]]
    return cells


NONE = ["-"] * 6
PASCAL = ["50.0", "51.0", "52.0", "53.0", "51.5", "61.5"]  # what `write_folds` gives by default


def test_folds_and_shots_join_to_one_row_beside_the_paper(tmp_path):
    write_folds(tmp_path)
    write_folds(tmp_path, shot=2, first=0.3)
    write_folds(tmp_path, shot=5, first=0.6)
    found = table(tmp_path)
    columns = ["fold1", "fold2", "fold3", "mean", "FB-IoU"]
    shots = [word for shot in (1, 2, 5) for word in (f"{shot}-shot fold0", *columns)]
    assert found[0] == ["experiment", "backbone", *shots]
    two = ["30.0", "31.0", "32.0", "33.0", "31.5", "41.5"]
    five = ["60.0", "61.0", "62.0", "63.0", "61.5", "71.5"]
    assert row(found, "HDMNet") == PASCAL + two + five
    published = row(found, "HDMNet (published)")
    assert published[:6] == ["71.0", "75.4", "68.9", "62.1", "69.4", "-"]
    assert published[6:] == [*NONE, "71.3", "76.2", "71.3", "68.5", "71.8", "-"]
    assert len(found) == 4


def test_no_mean_over_some_of_the_folds(tmp_path):
    write_folds(tmp_path, folds=(0, 1, 3))
    assert row(table(tmp_path), "HDMNet") == ["50.0", "51.0", "-", "53.0", "-", "-", *NONE]
    text = paper_tables(find_results([tmp_path]))
    assert "A mean is shown where the results of all folds were found" in text


def test_other_scores_stand_without_the_paper(tmp_path):
    write_folds(tmp_path)
    found = table(tmp_path, metric="mIoU_m")
    assert row(found, "HDMNet") == ["25.0", "25.5", "26.0", "26.5", "25.8", "0.0", *NONE]
    assert len(found) == 3
    # A test without the score leaves its cell empty.
    path = write(tmp_path, "split2", split=2)
    content = json.loads(path.read_text())
    del content["mean"]["mIoU_b"]
    path.write_text(json.dumps(content))
    found = table(tmp_path, metric="mIoU_b")
    assert row(found, "HDMNet") == ["0.0", "0.0", "-", "0.0", "-", "-", *NONE]


@pytest.mark.parametrize("said", [{"generalised": None}, {"fold_count": 4, "ann_type": None}])
def test_settings_without_a_value_do_not_tell_tests_apart(tmp_path, said):
    write_folds(tmp_path, folds=(0, 1), **said)
    write_folds(tmp_path, folds=(2, 3))
    assert row(table(tmp_path), "HDMNet") == PASCAL + NONE


def test_experiments_backbones_and_datasets_have_rows_of_their_own(tmp_path):
    write_folds(tmp_path)
    write_folds(tmp_path, exp="wide_", first=0.7)
    write_folds(tmp_path, backbone="vgg16", first=0.3)
    write_folds(tmp_path, dataset="demo", backbone="resnet18", first=0.2)
    for split in range(4):
        write(tmp_path, f"split{split}_contiguous", split=split, dataset="coco")
    found = table(tmp_path)
    assert row(found, "wide")[4] == "71.5" and row(found, "HDMNet")[4] == "51.5"
    assert row(found, "HDMNet", "vgg16")[4] == "31.5"
    assert row(found, "HDMNet", "resnet18")[4] == "21.5"
    assert row(found, "contiguous")[4] == "50.0"
    assert [cells[0] for cells in found].count("HDMNet (published)") == 3
    assert [cells[0] for cells in found].count("experiment") == 3


def test_tests_of_other_settings_never_share_a_row(tmp_path):
    write_folds(tmp_path)
    write_folds(tmp_path, folds=(0, 1), ann_type="bbox", name="boxes", first=0.1)
    write(tmp_path, "split2", split=2, seeds=[510], ann_type="bbox", name="boxes", miou=0.2)
    found = table(tmp_path)
    assert row(found, "HDMNet, runs 2")[4] == "51.5"
    assert row(found, "HDMNet, ann_type bbox, runs 2")[:5] == ["10.0", "11.0", "-", "-", "-"]
    assert row(found, "HDMNet, ann_type bbox, runs 1")[:5] == ["-", "-", "20.0", "-", "-"]


def test_several_folders_are_named(tmp_path, monkeypatch):
    write_folds(tmp_path / "ours")
    write_folds(tmp_path / "theirs", first=0.2)
    monkeypatch.chdir(tmp_path)
    found = table("ours", tmp_path / "theirs")
    assert row(found, "ours")[4] == "51.5" and row(found, "theirs")[4] == "21.5"


def test_of_two_tests_the_newer_stands_and_notes_say_so(tmp_path):
    old = write(tmp_path, miou=0.9, name="b")
    new = write(tmp_path, miou=0.4, name="a", trained_shot=5)
    os.utime(old, (1000, 1000))
    text = paper_tables(find_results([old, new, old]))
    assert row(cells_of(text), "HDMNet")[0] == "40.0"
    assert text.count("Not shown") == 1 and f"Not shown: {old}, older than {new}." in text
    assert f"{new}: 1-shot with weights of 5-shot." in text


def test_another_number_of_folds(tmp_path):
    write_folds(tmp_path, folds=range(3), dataset="mine")
    assert row(table(tmp_path, folds=3), "HDMNet")[:5] == ["50.0", "51.0", "52.0", "51.0", "61.0"]
    with pytest.raises(UserError, match="fold 2 of 2; give --folds"):
        table(tmp_path, folds=2)


def test_the_tests_say_the_number_of_folds_of_each_dataset(tmp_path):
    write_folds(tmp_path)
    write_folds(tmp_path, folds=range(3), dataset="mine", fold_count=3)
    write(tmp_path, dataset="mine", folds="seen", fold_count=1, name="seen")
    mine, pascal = paper_tables(find_results([tmp_path])).split("### pascal")
    assert [cells[2:7] for cells in cells_of(mine)[2:]] == [
        ["50.0", "-", "-", "50.0", "60.0"],
        ["50.0", "51.0", "52.0", "51.0", "61.0"],
    ]
    assert row(cells_of(pascal), "HDMNet")[4] == "51.5"
    found = table(tmp_path / "pascal", folds=5)
    assert row(found, "HDMNet")[:6] == ["50.0", "51.0", "52.0", "53.0", "-", "-"]


def test_the_lists_of_hsnet_share_a_row_and_are_not_beside_the_paper(tmp_path):
    hsnet, both = {"size": 401, "protocol": "hsnet"}, tmp_path / "both"
    for folder in (tmp_path / "alone", both):
        for split in range(4):
            own = hsnet | {"split": split, "hsnet_list": f"lists/2017/fold{split}.txt"}
            write(folder, f"split{split}", 0.1, "listed", **own)
    assert [cells[0] for cells in table(tmp_path / "alone")[2:]] == ["HDMNet"]
    write_folds(both)
    found = table(both)
    assert row(found, "HDMNet, size 473")[4] == "51.5"
    name = "HDMNet, hsnet_list fold*.txt, protocol hsnet, size 401"
    assert row(found, name)[4] == "10.0"
    assert row(found, "HDMNet (published)")[4] == "69.4"


def test_the_command_writes_latex(tmp_path, capsys):
    write_folds(tmp_path, exp="wide_")
    out = tmp_path / "table.tex"
    main([str(tmp_path), "--format", "latex", "--out", str(out)])
    text = out.read_text()
    assert "wide & resnet50 & 50.0 & 51.0 & 52.0 & 53.0 & 51.5 & 61.5 & - & " in text
    assert all(line.startswith("%") for line in text.splitlines()[-1:])
    main([str(tmp_path)])
    assert "### pascal, mIoU in %" in capsys.readouterr().out


def page(*words):
    """The page of a command, and its figures: [(caption, picture)]; what every page must keep."""
    main([*map(str, words), "--format", "html"])
    out = words[0] / "report.html" if words[0].is_dir() else words[0].parent / "report.html"
    text = out.read_text(encoding="utf-8")
    assert not re.search(r"http:|https:|<script|<link|url\(|@import", text)
    found = re.findall(r'src="(.*?)"><figcaption>(.*?)</figcaption>', text)
    assert len(found) == text.count("src=") and text.endswith("</html>\n")
    figures = []
    for source, caption in found:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", source).groups()
        picture = Image.open(io.BytesIO(b64decode(data)))
        assert picture.format == kind.upper()
        figures.append((unescape(caption), picture))
    return text, figures


def test_the_page_has_the_tables_of_the_text(tmp_path):
    write_folds(tmp_path, exp="a<b_")
    write_folds(tmp_path, dataset="mine&yours", folds=range(3), fold_count=3)
    text, _ = page(tmp_path)
    cells = [
        [unescape(cell) for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row)]
        for row in re.findall("<tr>(.*)</tr>", text)
    ]
    assert cells == [row for row in table(tmp_path) if not row[0].startswith("---")]
    assert ["a<b", "resnet50", *PASCAL, *NONE] in cells
    assert "<h2>mine&amp;yours, mIoU in %</h2>" in text
    assert text.count(">HDMNet (published)<") == 1
    assert "<p>A mean is shown where" in text


def test_the_page_shows_the_tests_and_trainings_that_it_finds(tmp_path):
    """What it shows of each is tested with `report_page`."""
    path = write(tmp_path, runs=[{"class_iou": {"1": 0.5, "2": None}}])
    other = write(tmp_path, "split1", split=1)
    for run in (path, other):
        run.parents[1].joinpath("scalars.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    tests = [f"IoU per class, from {one}" for one in (path, other)]
    curves = [f"Curves of {one.parents[1]}" for one in (path, other)]
    assert [caption for caption, _ in page(path)[1]] == [tests[0], curves[0]]
    records = [
        EpisodeRecord(f"<{n}>\udce9.jpg", "cat", n / 10, 0.25, 7, 0.1, 1, 510, ("s",))
        for n in range(9)
    ]
    write_csv(path.with_suffix(".csv"), records)
    image = np.full((20, 30, 3), 90, np.uint8)
    write_png(path.with_name("worst-1shot-best-0.png"), image)
    write_png(path.with_suffix(".png"), image[:5])
    _, figures = page(tmp_path)
    worst = r"cat in <0>\udce9.jpg, 10.0% of the image: IoU 0.0 %, of the meta learner 25.0 %."
    assert [caption for caption, _ in figures] == [tests[0], worst, tests[1], *curves]
    assert [picture.size for _, picture in figures[:2]] == [(30, 5), (30, 20)]
    assert figures[1][1].getpixel((9, 9))[0] == 90
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere" / "page.html"
    main([str(path), "--format", "html", "--out", str(out)])
    assert out.exists() and not (tmp_path / "elsewhere" / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("contact-1shot-best.png", b"\x89PNG\r\n\x1a\nxxxx", "cannot be read: it is damaged, or"),
        ("test-1shot-best.csv", b"a,b\n", "is no file of episodes"),
        ("../scalars.jsonl", None, "cannot be read: Is a directory"),
        ("test-1shot-best.json", None, "cannot be read: it is damaged, or another file"),
    ],
)
def test_files_that_the_page_cannot_show_are_one_line(name, content, reason, tmp_path, error_line):
    result = write(tmp_path, runs=[{}] * name.endswith(".json"))  # runs without classes
    damaged = (result.parent / name).resolve()
    if content is not None:
        damaged.write_bytes(content)
    elif damaged != result:
        damaged.mkdir()
    line = error_line(main, [str(tmp_path), "--format", "html"])
    assert line.startswith(f"error: {damaged} {reason}")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a result of test.sh: "),
        ("[]", "is not a result of test.sh: "),
        ('{"mean": {}}', "settings is missing"),
        (json.dumps({"settings": SETTINGS, "trained_shot": 1, "mean": {}}), "mIoU is missing"),
    ],
)
def test_other_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "test-1shot-best.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        find_results([tmp_path])
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none cannot be read"),
        (["."], "no test-*.json below it"),
        ([".", "--folds", "0"], "--folds: 0 is no number"),
    ],
)
def test_nothing_to_report_is_one_line(words, message, tmp_path, error_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(main, words)
