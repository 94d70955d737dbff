import cv2
import numpy as np
import pytest

from util.evaluation.figures import (
    PANEL_HEIGHT,
    PREDICTION_COLOUR,
    SUPPORT_COLOUR,
    TRUTH_COLOUR,
    EpisodePicture,
    draw_contact_sheet,
    draw_episode,
    heat_map,
    overlay,
)
from util.evaluation.sheet import CAPTION, GAP


def picture(height, width, value=90):
    return np.full((height, width, 3), value, np.uint8)


def box_mask(height, width, ignore=False):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    if ignore:
        mask[-height // 8 :] = 255
    return mask


def panels(sheet):
    """Bounding boxes (top, left, bottom, right) of the panels, found by their non-white pixels."""
    dark = (sheet < 250).any(axis=-1).astype(np.uint8)
    count, _, boxes, _ = cv2.connectedComponentsWithStats(dark, connectivity=8)
    found = [
        (int(y), int(x), int(y + h), int(x + w))
        for x, y, w, h, _ in boxes[1:count]
        if h == PANEL_HEIGHT
    ]
    return sorted(found)


def drawn(path, *arguments, **options):
    draw_episode(path, *arguments, **options)
    return cv2.imread(str(path))[..., ::-1]


def episode(shots, shape=(120, 160)):
    images, masks = [picture(*shape)] * shots, [box_mask(*shape)] * shots
    return picture(*shape), images, masks, box_mask(*shape), box_mask(*shape)


def holds(region, colour):
    return bool((region == np.array(colour)).all(axis=-1).any())


def test_overlay_changes_the_mask_and_nothing_else():
    rng = np.random.RandomState(0)
    image = rng.randint(0, 100, (60, 80, 3)).astype(np.uint8)
    mask = box_mask(60, 80, ignore=True)
    before, mask_before = image.copy(), mask.copy()
    painted = overlay(image, mask, (230, 159, 0))
    changed = (painted != image).any(axis=-1)
    assert (changed == (mask != 0)).all()
    assert (image == before).all() and (mask == mask_before).all()
    assert painted.dtype == np.uint8


def test_overlay_has_a_contour_of_full_colour_around_a_tint():
    painted = overlay(picture(60, 80), box_mask(60, 80), (200, 100, 0))
    assert painted[15, 20].tolist() == painted[29, 39].tolist() == [200, 100, 0]
    assert painted[22, 30].tolist() == [145, 95, 45]


def test_overlay_hatches_ignored_pixels_in_grey():
    mask = np.full((30, 30), 255, np.uint8)
    painted = overlay(picture(30, 30, 10), mask, (200, 100, 0))
    assert {tuple(pixel) for pixel in painted.reshape(-1, 3).tolist()} == {
        (128, 128, 128),
        (200, 200, 200),
    }


@pytest.mark.parametrize(
    "shots, rows", [(1, [4]), (2, [5]), (3, [3, 3]), (5, [5, 3]), (7, [5, 2, 3])]
)
def test_panels_of_one_height_in_rows(tmp_path, shots, rows):
    sheet = drawn(tmp_path / "episode.png", *episode(shots))
    boxes = panels(sheet)
    assert len(boxes) == shots + 3
    tops = sorted({top for top, _, _, _ in boxes})
    assert [sum(box[0] == top for box in boxes) for top in tops] == rows
    assert np.diff(tops).tolist() == [CAPTION + PANEL_HEIGHT + GAP] * (len(rows) - 1)
    assert max(bottom for _, _, bottom, _ in boxes) == sheet.shape[0] - GAP
    assert max(right for _, _, _, right in boxes) == sheet.shape[1] - GAP
    for top, left, _, right in boxes:
        assert (sheet[top - CAPTION : top, left:right] < 128).any()  # a caption above each


def test_each_panel_has_its_own_mask_and_colour(tmp_path):
    query, images, masks, truth, _ = episode(1)
    sheet = drawn(tmp_path / "episode.png", query, images, masks, truth, np.zeros_like(truth))
    regions = [sheet[top:bottom, left:right] for top, left, bottom, right in panels(sheet)]
    support, plain, true, predicted = regions
    assert holds(support, SUPPORT_COLOUR) and holds(true, TRUTH_COLOUR)
    assert (plain == 90).all() and (predicted == 90).all()
    sheet = drawn(tmp_path / "episode.png", query, images, masks, truth, truth)
    top, left, bottom, right = panels(sheet)[3]
    assert holds(sheet[top:bottom, left:right], PREDICTION_COLOUR)


def test_sizes_may_differ_and_nothing_is_cut_off(tmp_path):
    shapes = [(40, 400), (300, 30)]
    sheet = drawn(
        tmp_path / "episode.png",
        picture(100, 130),
        [picture(*shape) for shape in shapes],
        [np.ones(shape, np.uint8) for shape in shapes],
        box_mask(100, 130, ignore=True),
        box_mask(100, 130),
    )
    boxes = panels(sheet)
    assert len(boxes) == 5
    for (top, left, bottom, right), (height, width) in zip(boxes, shapes, strict=False):
        region = sheet[top:bottom, left:right]
        rows, columns = np.nonzero((region != region[0, 0]).any(axis=-1))  # less the padding
        shown_height, shown_width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert shown_width / shown_height == pytest.approx(width / height, rel=0.1)


def test_title_takes_its_own_line_and_is_never_wider_than_the_sheet(tmp_path):
    bare = drawn(tmp_path / "bare.png", *episode(1))
    for title in ("striped_star", "a title that goes on " * 30):
        sheet = drawn(tmp_path / "titled.png", *episode(1), title=title)
        added = sheet.shape[0] - bare.shape[0]
        assert added > 0 and sheet.shape[1] == bare.shape[1]
        assert (sheet[added + GAP :] == bare[GAP:]).all()
        assert (sheet[:added] < 128).any()
        assert (sheet[:, -GAP:] > 250).all()


def test_caption_tells_the_iou_without_ignored_pixels(tmp_path, monkeypatch):
    captions = []
    write = cv2.putText
    monkeypatch.setattr(
        cv2,
        "putText",
        lambda image, text, *rest: captions.append(text) or write(image, text, *rest),
    )
    query, images, masks, truth, prediction = episode(1)
    truth[:30] = 0
    truth[-10:] = 255
    prediction[-10:] = 1
    prediction[30:45] = 0
    draw_episode(tmp_path / "episode.png", query, images, masks, truth, prediction)
    assert captions == ["support", "query", "truth", "prediction, IoU 50.0"]


def test_folders_are_made_and_no_temporary_file_stays(tmp_path):
    path = tmp_path / "a folder" / "deep" / "episode.png"
    draw_episode(path, *episode(1))
    draw_episode(path, *episode(2))
    assert [entry.name for entry in path.parent.iterdir()] == ["episode.png"]


def test_wrong_input_is_refused_and_nothing_written(tmp_path):
    query, images, masks, truth, prediction = episode(2)
    path = tmp_path / "episode.png"
    with pytest.raises(ValueError, match="2 supports with 1"):
        draw_episode(path, query, images, masks[:1], truth, prediction)
    with pytest.raises(ValueError, match="0 supports"):
        draw_episode(path, query, [], [], truth, prediction)
    with pytest.raises(ValueError, match="belong together"):
        draw_episode(path, query, images, masks, truth[:-1], prediction)
    assert not path.exists()


def maps(rows=3, columns=4):
    """A correlation map of each stage, highest in the lower right corner."""
    ramp = np.add.outer(np.arange(rows), np.arange(columns)).astype(np.float32)
    return [ramp, 2 * ramp, np.kron(ramp, np.ones((2, 2)))]


def test_heat_maps_run_from_dark_blue_to_yellow_over_the_grey_image():
    heat = heat_map(picture(60, 80), maps()[0])
    assert heat.shape == (60, 80, 3) and heat.dtype == np.uint8
    grey = 0.35 * 90
    assert heat[0, 0] == pytest.approx(np.array([68, 1, 84]) * 0.65 + grey, abs=2)
    assert heat[-1, -1] == pytest.approx(np.array([253, 231, 37]) * 0.65 + grey, abs=2)
    textured = picture(60, 80)
    textured[:, ::2] = 200
    assert (heat_map(textured, maps()[0])[:, ::2] > heat[:, ::2]).any()


def test_a_map_of_one_value_is_all_dark():
    heat = heat_map(picture(20, 20), np.zeros((3, 3)))
    assert (heat == heat[0, 0]).all() and heat[0, 0, 2] > heat[0, 0, 1]


def test_correlation_maps_stand_in_a_row_below(tmp_path):
    plain = drawn(tmp_path / "plain.png", *episode(1))
    sheet = drawn(tmp_path / "maps.png", *episode(1), correlations=maps())
    assert (sheet[: len(plain) - GAP, : plain.shape[1]] == plain[:-GAP]).all()
    boxes = panels(sheet)
    tops = sorted({top for top, _, _, _ in boxes})
    assert [sum(box[0] == top for box in boxes) for top in tops] == [4, 3]
    for _, _, bottom, right in boxes[4:]:
        assert sheet[bottom - 3, right - 3, 1] > 150  # yellow


def recorded_texts(monkeypatch):
    """Boxes (x, y, right, bottom) of every text that is drawn from now on, and the sheets."""
    boxes, sheets = [], []
    write = cv2.putText

    def record(sheet, text, origin, font, scale, *rest):
        (width, height), below = cv2.getTextSize(text, font, scale, 1)
        x, y = origin
        boxes.append((x, y - height, x + width, y + below))
        sheets.append(sheet)
        return write(sheet, text, origin, font, scale, *rest)

    monkeypatch.setattr(cv2, "putText", record)
    return boxes, sheets


def assert_disjoint(boxes):
    for number, (left, top, right, bottom) in enumerate(boxes):
        for x, y, other_right, other_bottom in boxes[:number]:
            assert right <= x or other_right <= left or bottom <= y or other_bottom <= top


LONG = "people_riding_bicycles_in_the_rain of the validation list, seed 510 " * 3 + "x" * 200


@pytest.mark.parametrize("shape", [(120, 160), (300, 40), (40, 300), (1, 900), (900, 1)])
@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("title", ["cat", LONG, "电视 and Fahrräder " * 12, ""])
def test_texts_are_whole_inside_and_apart(tmp_path, monkeypatch, shape, shots, title):
    boxes, sheets = recorded_texts(monkeypatch)
    one = EpisodePicture(*episode(shots, shape), title, maps())
    draw_episode(tmp_path / "episode.png", *one)
    first = len(boxes)
    draw_contact_sheet(tmp_path / "sheet.png", [one, one._replace(correlations=()), one], title)
    for found in (boxes[:first], boxes[first:]):
        assert_disjoint(found)
    for (left, top, right, bottom), sheet in zip(boxes, sheets, strict=True):
        assert 0 <= left < right <= sheet.shape[1] and 0 <= top < bottom <= sheet.shape[0]
    for sheet in (sheets[0], sheets[-1]):
        assert (sheet[:, -2:] == 255).all()  # no ink runs off the edge


def test_long_titles_are_wrapped_and_lose_nothing(tmp_path, monkeypatch):
    written = []
    write = cv2.putText
    monkeypatch.setattr(
        cv2, "putText", lambda image, text, *rest: written.append(text) or write(image, text, *rest)
    )
    draw_episode(tmp_path / "episode.png", *episode(1), title=LONG)
    lines = written[: written.index("support")]
    assert len(lines) > 2 and "".join(lines).replace(" ", "") == LONG.replace(" ", "")


def test_pictures_cover_no_text(tmp_path, monkeypatch):
    boxes, sheets = recorded_texts(monkeypatch)
    pictures = [EpisodePicture(*episode(shots), LONG, maps()) for shots in (1, 5, 2)]
    draw_contact_sheet(tmp_path / "sheet.png", pictures, "all")
    for left, top, right, bottom in boxes:
        region = sheets[0][top:bottom, left:right].astype(int)
        assert (np.ptp(region, axis=-1) == 0).all() and (region > 250).any()  # ink on paper


def test_a_contact_sheet_holds_every_episode_and_is_about_square(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    pictures = [
        EpisodePicture(*episode(1)[:-1], np.zeros((120, 160), np.uint8), f"class {number}")
        for number in range(9)
    ]
    draw_contact_sheet(path, pictures, "fold 0")
    sheet = cv2.imread(str(path))[..., ::-1]
    truths = (sheet == np.array(TRUTH_COLOUR)).all(axis=-1).astype(np.uint8)
    assert cv2.connectedComponents(truths)[0] - 1 == 9
    assert 0.5 < sheet.shape[0] / sheet.shape[1] < 2
    with pytest.raises(ValueError, match="no episodes"):
        draw_contact_sheet(path, [])
