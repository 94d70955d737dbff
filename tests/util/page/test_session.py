"""The page's work without a browser: marks, limits, results, files."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter import Support
from util.page import session as work
from util.page.session import BOX, BRUSH, POINTS, Session


@pytest.fixture(scope="module")
def pictures(tiny_voc):
    return [str(path) for path in sorted((tiny_voc / "JPEGImages").glob("val_*.png"))[:4]]


@pytest.fixture
def session(pictures):
    return Session(work.read_upload(pictures[0]))


def strokes(shape):
    """What a brush draws: RGBA, opaque in a rectangle, with any colours elsewhere."""
    drawn = np.random.default_rng(0).integers(0, 128, (*shape, 4), dtype=np.uint8)
    drawn[40:60, 50:80, 3] = 255
    return drawn, drawn[..., 3] == 255


def test_marks_become_the_masks_that_supports_have(session):
    shape = session.picture.shape[:2]
    drawn, painted = strokes(shape)
    for refine in (True, False):
        brushed = work.marked_support(session, BRUSH, drawn, refine).load()
        expected = Support(session.picture, scribble=painted, refine=refine).load()
        assert np.array_equal(brushed[0], session.picture)
        assert np.array_equal(brushed[1], expected[1])
    assert np.array_equal(brushed[1], painted)
    session.clicks = [(80, 70), (30, 20), (5, 6), (9, 12), (1, 1)]
    boxes = work.marked_support(session, BOX, refine=False).load()[1]
    assert boxes.sum() == 51 * 51 + 5 * 7 and boxes[20:71, 30:81].all() and boxes[6:13, 5:10].all()
    points = work.marked_support(session, POINTS).load()[1]
    assert np.array_equal(points, Support(session.picture, points=session.clicks).load()[1])
    shown = [work.draw_clicks(session, way) for way in (BOX, POINTS)]
    assert all((image[6, 5] == work.MARK).all() for image in shown)
    assert (shown[0][45, 30] == work.MARK).all() and (shown[1][45, 30] != work.MARK).any()
    assert work.draw_clicks(Session(), BOX) is None


def test_missing_marks_and_wrong_names_are_one_line(session):
    for given, way, message in (
        (Session(), BRUSH, "upload a picture of the object first"),
        (session, BRUSH, "paint over the object"),
        (session, BOX, "click two opposite corners"),
        (session, POINTS, "click on the object first"),
    ):
        with pytest.raises(ValueError, match=message):
            work.marked_support(given, way, np.zeros((*session.picture.shape[:2], 4), np.uint8))
    support = Support(session.picture, box=(10, 10, 90, 80), refine=False)
    for name in ("", 41 * "x"):
        with pytest.raises(ValueError, match="name the class, by at most 40"):
            work.add_support(session, name, support)
    for number in range(work.MAX_CLASSES):
        work.add_support(session, f"class {number}", support)
    with pytest.raises(ValueError, match="no more than 6 classes"):
        work.add_support(session, "one more", support)
    for _ in range(work.MAX_SUPPORTS - work.MAX_CLASSES):
        work.add_support(session, "class 0", support)
    with pytest.raises(ValueError, match="no more than 20 supports"):
        work.add_support(session, "class 0", support)
    # Each class has a colour of its own.
    shown = work.draw_supports(session)
    assert [name for _, name in shown[5:7]] == ["class 5", "class 0"]
    assert len({image.tobytes() for image, _ in shown}) == work.MAX_CLASSES
    for _ in range(work.MAX_SUPPORTS + 1):
        work.remove_support(session)
    assert session.supports == []


def test_uploads_are_checked_before_they_are_decoded(tmp_path, monkeypatch):
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "vector.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("RGB", (60, 50)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:500])
    for name in ("notes.jpg", "vector.png", "half.jpg"):
        with pytest.raises(ValueError, match=rf"^{name} is no JPEG, .* that can be read$"):
            work.read_upload(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"old.jpg was deleted after an hour: upload it again"):
        work.read_upload(str(tmp_path / "old.jpg"))
    monkeypatch.setattr(work, "read_picture", pytest.fail)
    Image.new("1", (10_000, 5_000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large.png has 50 megapixels; at most 40"):
        work.read_upload(str(tmp_path / "large.png"))
    assert work.shrink(np.zeros((100, 4000, 3), np.uint8)).shape == (26, 1024, 3)


@pytest.mark.slow
def test_queries_have_the_masks_of_the_segmenter(seg, session, pictures, tmp_path):
    with pytest.raises(ValueError, match="add a support first"):
        work.find_objects(seg, session, pictures[1:])
    session.clicks = [(20, 20), (90, 80)]
    work.add_support(session, "first", work.marked_support(session, BOX))
    drawn, painted = strokes(session.picture.shape[:2])
    work.add_support(session, "second", work.marked_support(session, BRUSH, drawn))
    for paths in ([], 21 * pictures[:1]):
        with pytest.raises(ValueError, match=f"1 to 20 pictures to search in, not {len(paths)}"):
            work.find_objects(seg, session, paths)
    with pytest.raises(ValueError, match="find the objects first"):
        work.write_files(session, 0.5)

    (tmp_path / "notes.jpg").write_text("no picture")
    tracked = []
    failures = work.find_objects(
        seg,
        session,
        [pictures[1], str(tmp_path / "notes.jpg"), pictures[2], pictures[1]],
        lambda paths: (tracked.append(path) or path for path in paths),
    )
    assert len(tracked) == 4 and len(failures) == 2
    assert "notes.jpg is no" in failures[0] and "has the name of another picture" in failures[1]
    picture = session.picture
    boxed, brushed = Support(picture, box=(20, 20, 91, 81)), Support(picture, scribble=painted)
    expected = seg.fit({"first": boxed, "second": brushed})
    results = seg.segment(pictures[1:3], expected, threshold=0.4)
    names = [Path(path).name for path in pictures[1:3]]
    assert list(session.found) == names
    archive, coco = work.write_files(session, 0.4)
    with zipfile.ZipFile(archive) as files:
        assert files.read("classes.txt") == b"first\nsecond\n"
        for name, result in zip(names, results, strict=True):
            with files.open(name) as file:
                assert np.array_equal(np.asarray(Image.open(file)), result.label_map)
    content = json.loads(Path(coco).read_text())
    assert [image["file_name"] for image in content["images"]] == names
    assert sum(a["area"] for a in content["annotations"]) == sum(r.mask.sum() for r in results)

    # The supports are encoded once; other files take the place of the former ones.
    encoded = session.encoded
    work.find_objects(seg, session, pictures[3:])
    assert session.encoded is encoded
    again = work.write_files(session, 0.5)
    assert not Path(archive).exists() and Path(again[0]).exists()
    session.close()
    assert not Path(again[0]).parent.exists()
    with pytest.raises(ValueError, match=r"notes.jpg is no JPEG"):
        work.find_objects(seg, session, [str(tmp_path / "notes.jpg")])


def test_results_are_drawn_small_and_at_any_threshold(seg, session, tmp_path, pictures):
    work.add_support(session, "object", Support(session.picture, box=(20, 20, 90, 80)))
    with Image.open(pictures[1]) as image:
        image.resize((2000, 1000)).save(tmp_path / "large.png")
    work.find_objects(seg, session, [str(tmp_path / "large.png")])
    result = session.found["large.png"]
    assert result.shape == (1000, 2000)
    shown = [work.draw_result(result, "object", t) for t in (0.05, 0.5, 0.95)]
    for drawn in shown:
        assert {image.shape for image, _ in drawn} == {(512, 1024, 3)}
    masks = [(drawn[0][0] != result.image).any(axis=2).mean() for drawn in shown]
    assert masks[0] > 0.9 and masks[0] > masks[1] > masks[2]
    texts = [text for _, text in shown[1]]
    assert texts[0].endswith("% of the picture found") and texts[1].startswith("Probability, at")
    for text, values in zip(texts[2:], result.correlations["object"], strict=True):
        size = f"{values.shape[1]}×{values.shape[0]}"
        assert text == f"Correlation {size}, {values.min():.2f} to {values.max():.2f}"
