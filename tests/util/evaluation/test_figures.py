from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from util.data.draws import Draw, DrawnRun
from util.evaluation.figures import (
    PREDICTION_COLOUR,
    SUPPORT_COLOUR,
    TRUTH_COLOUR,
    EpisodePicture,
    contact_sheet,
    draw_pictures,
    episode_figure,
    render,
    write_png,
)

LONG = "people_riding_bicycles_in_the_rain of $the$ validation list, seed 510 " * 3 + "x" * 300
MAPS = [np.add.outer(np.arange(n), np.arange(n)).astype(np.float32) for n in (4, 4, 8)]


def picture(shots=1, shape=(120, 160), title="cat", correlations=MAPS):
    """An episode on grey images: the class is a box; the lowest rows are ignored."""
    image, mask = np.full((*shape, 3), 90, np.uint8), np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : shape[0] // 2 + 1, shape[1] // 4 : shape[1] // 2 + 1] = 1
    prediction = mask.copy()
    mask[shape[0] - shape[0] // 8 :] = 255
    supports = [(image, mask)] * shots
    return EpisodePicture(image, supports, mask, prediction, title, correlations)


def panels(figure):
    """{caption: (pixels of the panel, (H, W, 3)), in reading order}."""
    image = render(figure)
    found = {}
    for axes in figure.axes:
        box = axes.get_window_extent()
        top, bottom = len(image) - round(box.y1), len(image) - round(box.y0)
        found[axes.get_title()] = image[top:bottom, round(box.x0) : round(box.x1)]
    return found


def share(pixels, colour, tolerance=0.03):
    """The share of pixels about as bright and as coloured as a colour."""
    return (np.abs(pixels / 255 - np.array(colour)) < tolerance).all(axis=-1).mean()


@pytest.mark.parametrize(
    ("shots", "rows"), [(1, [4, 3]), (2, [5, 3]), (3, [3, 3, 3]), (7, [5, 2, 3, 3])]
)
def test_panels_stand_in_rows(shots, rows):
    figure = episode_figure(picture(shots))
    places = [axes.get_position(original=True) for axes in figure.axes]
    # They reach to the edges of the figure.
    assert min(place.x0 for place in places) < 0.02 and max(place.x1 for place in places) > 0.98
    assert min(place.y0 for place in places) < 0.02
    bottoms = [round(place.y0, 6) for place in places]
    assert [bottoms.count(y) for y in dict.fromkeys(bottoms)] == rows
    captions = [axes.get_title() for axes in figure.axes]
    names = [f"support {n}" for n in range(1, shots + 1)] if shots > 1 else ["support"]
    assert captions[:-3] == [*names, "query", "truth", "prediction, IoU 100.0"]
    assert captions[-3] == "correlation 4×4, max 6.0"


def test_panels_and_texts_have_sizes_that_can_be_read():
    figure = episode_figure(picture(7, title=LONG))
    inches = width, height = figure.get_size_inches()
    assert inches == pytest.approx((12.08, 9.28)) and figure.dpi == 100
    boxes = [axes.get_position(original=True).bounds for axes in figure.axes]
    found = [(x * width, y * height, w * width, h * height) for x, y, w, h in boxes]
    rows = {6.38: 5, 4.28: 2, 2.18: 3, 0.08: 3}  # inches from the lowest edge, and panels
    places = [(0.08 + 2.4 * n, y) for y, number in rows.items() for n in range(number)]
    assert found == [pytest.approx((*place, 2.32, 1.77)) for place in places]
    (title,) = figure.texts
    assert [len(line) for line in title.get_text().split("\n")] == [135, 138, 138, 98]
    x, y = title.get_position()
    assert (x * width, (1 - y) * height, title.get_size()) == pytest.approx((0.08, 0.08, 10))
    axes = figure.axes[0]
    assert axes.get_xlim() == (-0.5, 159.5) and axes.get_ylim() == (119.5, -0.5)
    assert axes.title.get_size() == 9
    area, outline, _ = axes.collections
    assert area.get_alpha() == 0.5 and outline.get_linewidth() == 1.5
    heat = figure.axes[-1].images[1]
    assert heat.get_alpha() == 0.65 and heat.get_extent() == [-0.5, 159.5, 119.5, -0.5]


def test_captions_tell_the_size_of_maps_and_a_prediction_that_misses():
    episode = picture(correlations=[np.full((2, 3), -1.25, np.float32)])
    episode.prediction[:] = 0
    captions = [axes.get_title() for axes in episode_figure(episode).axes]
    assert captions[-2:] == ["prediction, IoU 0.0", "correlation 3×2, max -1.2"]
    assert picture()._field_defaults == {"title": "", "correlations": ()}


@pytest.mark.slow
def test_a_map_lies_over_the_grey_query():
    episode = picture(correlations=[np.zeros((2, 3), np.float32)])
    episode.query[...] = (30, 60, 120)
    below, _ = episode_figure(episode).axes[-1].images
    assert below.get_array().shape == (120, 160, 3) and (below.get_array() == 70).all()


def test_each_panel_has_its_own_mask_and_colour():
    found = panels(episode_figure(picture()))
    colours = {"support": SUPPORT_COLOUR, "truth": TRUTH_COLOUR}
    colours["prediction, IoU 100.0"] = PREDICTION_COLOUR
    for caption, colour in colours.items():
        tint = 0.5 * np.array(to_rgb(colour)) + 0.5 * 90 / 255
        assert 0.04 < share(found[caption], tint) < 0.08  # a quarter of both sides
        assert share(found[caption], to_rgb(colour)) > 0.003  # the outline
    assert share(found["query"], (90 / 255,) * 3) > 0.97
    for caption, pixels in found.items():
        lowest = pixels[-len(pixels) // 10 :]  # ignored and hatched
        hatched = share(lowest, (0.8,) * 3) > 0.3 and share(lowest, (0,) * 3, 0.3) > 0.05
        assert hatched == (caption in ("support", "truth"))
    # Maps run from dark blue to yellow over the grey image.
    heat, grey = found["correlation 8×8, max 14.0"] / 255, 0.35 * 90 / 255
    assert heat[5, 5] == pytest.approx(np.array([68, 1, 84]) / 255 * 0.65 + grey, abs=0.03)
    assert heat[-6, -6] == pytest.approx(np.array([253, 231, 37]) / 255 * 0.65 + grey, abs=0.03)


def test_ignored_pixels_have_no_part_in_the_iou():
    episode = picture(correlations=())
    episode.prediction[-15:] = 1
    episode.prediction[30:45] = 0
    assert "prediction, IoU 51.6" in panels(episode_figure(episode))  # 16 of 31 rows
    episode.prediction[:] = episode.truth[:] = 0
    assert "prediction" in panels(episode_figure(episode))


@pytest.mark.parametrize(
    ("shape", "shots", "title"),
    [((120, 160), 5, LONG), ((300, 40), 1, LONG), ((1, 900), 1, "cat"), ((900, 1), 5, "")],
)
def test_texts_are_whole_inside_and_apart(shape, shots, title):
    figure = episode_figure(picture(shots, shape, title))
    image = render(figure)
    written = figure.texts + [axes.title for axes in figure.axes]
    assert "".join(written[0].get_text().split()) == "".join(title.split())
    boxes = [text.get_window_extent() for text in written if text.get_text()]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= image.shape[1] and box.y0 >= 0 and box.y1 <= len(image)
        for other in boxes[:number]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0
            assert apart or box.y1 <= other.y0 or other.y1 <= box.y0
    assert (image[:, -2:] == 255).all() and (image[:2] == 255).all()


def test_a_contact_sheet_holds_pictures_of_several_sizes():
    images = [np.full((40 + n, 100, 3), n, np.uint8) for n in range(9)]
    sheet = contact_sheet(images)
    assert [(sheet == n).all(axis=-1).sum() for n in range(9)] == [(40 + n) * 100 for n in range(9)]


@pytest.mark.parametrize(
    ("number", "shape", "columns"),
    [(1, (40, 100), 1), (9, (40, 100), 2), (7, (90, 100), 3), (3, (10, 100), 1), (5, (100, 10), 5)],
)
def test_a_contact_sheet_has_as_many_columns_as_make_it_square(number, shape, columns):
    images = [np.full((*shape, 3), n, np.uint8) for n in range(number)]
    sheet = contact_sheet(images)
    height, width = shape
    assert sheet.shape == (-(-number // columns) * height, columns * width, 3)
    for n in range(number):
        y, x = n // columns * height, n % columns * width
        assert (sheet[y : y + height, x : x + width] == n).all()
    assert (sheet == 255).all(axis=2).sum() == sheet[..., 0].size - number * height * width


def test_the_first_and_the_chosen_episodes_are_files_named_by_what_they_show(tmp_path, monkeypatch):
    image, mask, titles = np.full((30, 40, 3), 90, np.uint8), np.ones((30, 40), np.uint8), []
    write_png(tmp_path / "data/query.png", image)
    shown = {"label": torch.from_numpy(mask), "final": torch.from_numpy(mask == 1)}
    predictor = SimpleNamespace(
        episodes=SimpleNamespace(
            data_root=str(tmp_path / "data"), lists=SimpleNamespace(entries=[("query.png", "")])
        ),
        parts=SimpleNamespace(annotated=lambda index, class_id: (image, mask)),
        predict=lambda draws, units: (
            [SimpleNamespace(position=position, correlations=[], **shown) for position in batch]
            for unit in units
            for batch in unit
        ),
    )
    runs = [DrawnRun(seed, [Draw(0, 2, [0])] * 3) for seed in (510, 365)]
    monkeypatch.setattr(
        "util.evaluation.figures.episode_figure",
        lambda episode: titles.append(episode.title) or episode_figure(episode),
    )
    draw_pictures(predictor, runs, 2, {"best": [4]}, ["cat", "dog"], tmp_path / "out", "1shot")
    names = ["best-1shot-0", "contact-1shot", "episode-1shot-0", "episode-1shot-1"]
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == names
    expected = [f"seed 510, episode {n}" for n in (0, 1)] + ["seed 365, episode 1"]
    assert titles == [f"dog, {text}" for text in expected]
    order = ("episode-1shot-0", "episode-1shot-1", "best-1shot-0", "contact-1shot")
    *pictures, sheet = (np.asarray(Image.open(tmp_path / "out" / f"{n}.png")) for n in order)
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert (sheet == contact_sheet(pictures)).all()
    titles.clear()
    draw_pictures(predictor, runs, 9, {}, None, tmp_path / "all", "1shot")
    assert titles == [f"class 2, seed 510, episode {n}" for n in (0, 1, 2)], "of the first run"
    draw_pictures(predictor, runs, 0, {}, None, tmp_path / "none", "1shot")
    assert not (tmp_path / "none").exists()
