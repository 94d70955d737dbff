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


def test_a_contact_sheet_holds_every_picture_and_is_about_square(tmp_path):
    images = [np.full((40 + n, 100, 3), n, np.uint8) for n in range(9)]
    path = tmp_path / "a folder" / "sheet.png"
    write_png(path, contact_sheet(images))
    sheet = np.asarray(Image.open(path))
    assert [(sheet == n).all(axis=-1).sum() for n in range(9)] == [(40 + n) * 100 for n in range(9)]
    assert 0.5 < sheet.shape[0] / sheet.shape[1] < 2
    assert [entry.name for entry in path.parent.iterdir()] == ["sheet.png"]


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
