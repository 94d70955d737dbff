import cv2
import numpy as np
import pytest

from util.visualize import (
    CAPTION,
    GAP,
    PANEL_HEIGHT,
    PREDICTION_COLOUR,
    SUPPORT_COLOUR,
    TRUTH_COLOUR,
    draw_episode,
    overlay,
)


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
