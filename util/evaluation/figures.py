"""Pictures of tested episodes: supports with masks, query, truth, prediction and correlation maps.

Colours stay apart under the common colour-vision deficiencies: those of Okabe and Ito for the masks,
viridis for the maps.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from util.data.draws import DrawnRun
from util.data.folds import IGNORE
from util.data.images import read_image
from util.evaluation.episode_records import class_name
from util.evaluation.metrics import confusion, foreground_iou
from util.evaluation.plan import plan_units
from util.evaluation.predictor import Predictor
from util.runtime.files import write_atomically

SUPPORT_COLOUR, TRUTH_COLOUR, PREDICTION_COLOUR = "#E69F00", "#009E73", "#CC79A7"
_PER_ROW = 5
_DPI = 100
# In inches. A caption has at most some 30 characters, which the width of a cell holds.
_CELL_WIDTH, _CELL_HEIGHT, _CAPTION, _GAP = 2.4, 2.1, 0.25, 0.08
_TITLE_LINE, _TITLE_CHARACTER = 0.2, 0.086  # of _TITLE_FONT, whose characters have one width
_TITLE_FONT: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": 10, "parse_math": False}


class EpisodePicture(NamedTuple):
    """The pictures of an episode. Masks (H, W) hold 1 = the class, 0 = other, 255 = ignore."""

    query: np.ndarray  # uint8 (H, W, 3) RGB
    supports: Sequence[tuple[np.ndarray, np.ndarray]]  # such images and their masks, of any sizes
    truth: np.ndarray
    prediction: np.ndarray
    title: str = ""  # the class, and what else to say, of any length
    correlations: Sequence[ArrayLike] = ()  # maps (h, w) over the whole query, coarsest first


class _Panel(NamedTuple):
    """A picture under its caption, with a mask in a colour or a map of values over it."""

    image: np.ndarray
    caption: str
    mask: np.ndarray | None = None
    colour: str = ""
    values: np.ndarray | None = None


def draw_pictures(
    predictor: Predictor,
    runs: list[DrawnRun],
    first: int,
    chosen: Mapping[str, Sequence[int]],
    class_names: list[str] | None,
    folder: Path,
    suffix: str,
) -> None:
    """Write a PNG of each of the first and of chosen tested episodes, and a contact sheet of all.

    Args:
        predictor: One that gives maps at the original size.
        runs: The episodes.
        first: Number of episodes of the first run to draw, from its start.
        chosen: Positions of further episodes, counted over all runs, by a name for files.
        class_names: The names of the classes 1, 2, …
        folder: The folder of the files.
        suffix: Of the files' names: episode-SUFFIX-N.png, NAME-SUFFIX-N.png, contact-SUFFIX.png.
    """
    drawn = [(run.seed, number, draw) for run in runs for number, draw in enumerate(run.draws)]
    draws = [draw for _, _, draw in drawn]
    wanted = {f"episode-{suffix}-{n}": n for n in range(min(first, len(runs[0].draws)))}
    for name, positions in chosen.items():
        wanted |= {f"{name}-{suffix}-{n}": position for n, position in enumerate(positions)}
    units = plan_units(draws, 1, sorted(set(wanted.values())))
    predictions = {p.position: p for unit in predictor.predict(draws, units) for p in unit}
    parts, episodes = predictor.parts, predictor.episodes
    images = []
    for name, position in wanted.items():
        seed, number, draw = drawn[position]
        prediction = predictions[position]
        query = Path(episodes.data_root) / episodes.lists.entries[draw.index][0]
        picture = EpisodePicture(
            read_image(str(query)),
            [parts.annotated(support, draw.class_id) for support in draw.supports],
            prediction.label.cpu().numpy(),
            prediction.final.cpu().numpy(),
            f"{class_name(draw.class_id, class_names)}, seed {seed}, episode {number}",
            [maps.cpu() for maps in prediction.correlations],
        )
        images.append(render(episode_figure(picture)))
        write_png(folder / f"{name}.png", images[-1])
    if images:
        write_png(folder / f"contact-{suffix}.png", contact_sheet(images))


def episode_figure(episode: EpisodePicture) -> Figure:
    """Draw an episode: its panels from the supports to the prediction, and the maps in a row below.

    The caption of the prediction holds its foreground IoU, that of a map its size and highest value.
    """
    rows = _rows(episode)
    columns = max(map(len, rows))
    width = columns * _CELL_WIDTH + _GAP
    lines = textwrap.wrap(episode.title, int((width - 2 * _GAP) / _TITLE_CHARACTER))
    top = _GAP + _TITLE_LINE * len(lines)
    height = top + _CELL_HEIGHT * len(rows)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    figure.text(_GAP / width, 1 - _GAP / height, "\n".join(lines), va="top", **_TITLE_FONT)
    for row, panels in enumerate(rows):
        bottom = height - top - _CELL_HEIGHT * (row + 1) + _GAP
        for column, panel in enumerate(panels):
            left = _GAP + column * _CELL_WIDTH
            size = (_CELL_WIDTH - _GAP, _CELL_HEIGHT - _CAPTION - _GAP)
            place = (left / width, bottom / height, size[0] / width, size[1] / height)
            _draw_panel(figure.add_axes(place), panel)
    return figure


def render(figure: Figure) -> np.ndarray:
    """Return a figure as an image, uint8 (H, W, 3) RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def contact_sheet(images: Sequence[np.ndarray]) -> np.ndarray:
    """Join images, uint8 (H, W, 3), in reading order to one that is about as wide as it is high."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = min(len(images), max(1, round((len(images) * height / width) ** 0.5)))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = number // columns * height, number % columns * width
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 (H, W, 3) RGB; missing folders on the way to `path` are made."""
    write_atomically(path, lambda file: Image.fromarray(image).save(file, "PNG"))


def _rows(episode: EpisodePicture) -> list[list[_Panel]]:
    query, truth, prediction = episode.query, episode.truth, episode.prediction
    several = len(episode.supports) > 1
    shots = [
        _Panel(image, f"support {number}" if several else "support", mask, SUPPORT_COLOUR)
        for number, (image, mask) in enumerate(episode.supports, 1)
    ]
    counts = confusion(prediction == 1, truth, 2)
    found = f", IoU {100 * foreground_iou(counts):.1f}" if counts.sum() > counts[0, 0] else ""
    rest = [
        _Panel(query, "query"),
        _Panel(query, "truth", truth, TRUTH_COLOUR),
        _Panel(query, f"prediction{found}", prediction, PREDICTION_COLOUR),
    ]
    rows = [shots[start : start + _PER_ROW] for start in range(0, len(shots), _PER_ROW)]
    rows = [[*shots, *rest]] if len(shots) + len(rest) <= _PER_ROW else [*rows, rest]
    grey = query.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
    maps = [np.asarray(values, np.float32) for values in episode.correlations]
    captions = [f"correlation {m.shape[1]}×{m.shape[0]}, max {m.max():.1f}" for m in maps]
    panels = [_Panel(grey, text, values=m) for text, m in zip(captions, maps, strict=True)]
    return [*rows, panels] if panels else rows


def _draw_panel(axes: Axes, panel: _Panel) -> None:
    height, width = panel.image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.set_axis_off()
    axes.set_title(panel.caption, size=9, pad=3, y=1)
    axes.imshow(panel.image)
    if panel.values is not None:
        axes.imshow(panel.values, "viridis", alpha=0.65, interpolation="bilinear", extent=extent)
    if panel.mask is not None:
        _fill(axes, panel.mask == 1, colors=[panel.colour], alpha=0.5)
        _fill(axes, panel.mask == 1, outlined=True, colors=[panel.colour], linewidths=1.5)
        _fill(axes, panel.mask == IGNORE, colors=["0.8"], hatches=["/////"])
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _fill(axes: Axes, region: np.ndarray, outlined: bool = False, **style: Any) -> None:
    """Fill or outline the pixels of a region, bool (H, W)."""
    if region.any():
        # A border of pixels outside closes the outline at the edges of the image.
        padded = np.pad(region, 1).astype(float)
        y, x = (np.arange(size) - 1 for size in padded.shape)
        draw = axes.contour if outlined else axes.contourf
        draw(x, y, padded, levels=[0.5] if outlined else [0.5, 1.5], **style)
