"""What the page does, without its layout: marks become supports, and queries masks and files."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from segmenter import FewShotSegmenter, Result, Support, SupportSet
from util.data.images import UNREADABLE
from util.data.label_maps import COLOURS, draw_overlay
from util.data.pictures import read_picture
from util.predict import formats

BRUSH, BOX, POINTS = WAYS = ("Brush", "Box", "Points")
MARK = COLOURS[3]  # orange, the colour of marks
MAX_MEGAPIXELS, MAX_CLASSES, MAX_SUPPORTS, MAX_QUERIES, MAX_NAME = 40, 6, 20, 20, 40
_TYPES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_SIDE = 1024  # pixels of the longer side of supports, and of pictures that the page shows
_OPACITY = 0.65  # of a map over its picture


@dataclass
class Session:
    """What the page keeps of one visitor until the session ends.

    Attributes:
        picture: the one that is being marked, RGB, uint8 (H, W, 3).
        clicks: x and y of pixels in it: points, or two opposite corners of each box.
        supports: the name of the class and the picture with its mask, in the order of adding.
        encoded: their features; None until a query needs them.
        found: by the name of its file, the result of each query, with a small picture.
        folder: of the files to download; None without.
    """

    picture: np.ndarray | None = None
    clicks: list[tuple[int, int]] = field(default_factory=list)
    supports: list[tuple[str, Support]] = field(default_factory=list)
    encoded: SupportSet | None = None
    found: dict[str, Result] = field(default_factory=dict)
    folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Delete the files."""
        if self.folder is not None:
            self.folder.cleanup()


def read_upload(path: str) -> np.ndarray:
    """Return an uploaded picture, RGB, uint8 (H, W, 3).

    Raises:
        ValueError: it has too many pixels, or it is no picture.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=_TYPES) as image:
            megapixels = image.width * image.height / 1e6
        if megapixels <= MAX_MEGAPIXELS:
            return read_picture(path)
    except FileNotFoundError as error:
        raise ValueError(f"{name} was deleted after an hour: upload it again") from error
    except UNREADABLE as error:
        raise ValueError(f"{name} is no JPEG, PNG, WebP, BMP or TIFF that can be read") from error
    raise ValueError(
        f"{name} has {megapixels:.0f} megapixels; at most {MAX_MEGAPIXELS} can be used"
    )


def shrink(image: np.ndarray) -> np.ndarray:
    """Return a picture of at most the size that the page shows."""
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = [max(1, round(scale * length)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image


def marked_support(
    session: Session, way: str, strokes: np.ndarray | None = None, refine: bool = True
) -> Support:
    """Return the picture of a session with its marks.

    Args:
        session: its clicks are the marks of `BOX` and `POINTS`.
        way: one of `WAYS`.
        strokes: the marks of `BRUSH`, RGBA, uint8 (H, W, 4), opaque where something is painted.
        refine: see `Support`.

    Raises:
        ValueError: there is no picture, or it has no such marks.
    """
    if session.picture is None:
        raise ValueError("upload a picture of the object first")
    clicks = np.array(session.clicks, int).reshape(-1, 2)
    corners = clicks[: len(clicks) // 2 * 2].reshape(-1, 2, 2)
    if way == BRUSH:
        if strokes is None or not (strokes[..., 3] >= 128).any():
            raise ValueError("paint over the object with the brush first")
        return Support(session.picture, scribble=strokes[..., 3] >= 128, refine=refine)
    if way == POINTS:
        if not len(clicks):
            raise ValueError("click on the object first")
        return Support(session.picture, points=clicks, refine=refine)
    if not len(corners):
        raise ValueError("click two opposite corners of a box around the object first")
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1)
    return Support(session.picture, box=boxes, refine=refine)


def draw_clicks(session: Session, way: str) -> np.ndarray | None:
    """Return the picture of a session with its clicks, and with the boxes that they make."""
    if session.picture is None:
        return None
    drawn, colour = session.picture.copy(), MARK.tolist()
    size = max(2, round(max(drawn.shape) / 200))
    for point in session.clicks:
        cv2.circle(drawn, point, 2 * size + 2, (255, 255, 255), cv2.FILLED)
        cv2.circle(drawn, point, 2 * size, colour, cv2.FILLED)
    if way == BOX:
        for first, second in zip(session.clicks[::2], session.clicks[1::2], strict=False):
            cv2.rectangle(drawn, first, second, colour, size)
    return drawn


def draw_supports(session: Session) -> list[tuple[np.ndarray, str]]:
    """Return each support with its mask in the colour of its class, and the name of the class."""
    classes = list(dict.fromkeys(name for name, _ in session.supports))
    drawn = []
    for name, support in session.supports:
        image, mask = support.load()
        overlay = draw_overlay(image, np.uint8(classes.index(name) + 1) * mask)
        drawn.append((np.asarray(overlay), name))
    return drawn


def add_support(session: Session, name: str, support: Support) -> None:
    """Add a support of a class.

    Raises:
        ValueError: the name or the marks cannot be used, or there are too many supports or classes.
    """
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"name the class, by at most {MAX_NAME} characters")
    if len(session.supports) == MAX_SUPPORTS:
        raise ValueError(f"no more than {MAX_SUPPORTS} supports can be used: remove one")
    if len({name, *(one for one, _ in session.supports)}) > MAX_CLASSES:
        raise ValueError(f"no more than {MAX_CLASSES} classes can be used")
    image, mask = support.load()
    session.supports.append((name, Support(image, mask=mask)))
    session.encoded = None


def remove_support(session: Session) -> None:
    """Remove the support that was added last, if there is one."""
    del session.supports[-1:]
    session.encoded = None


def find_objects(
    segmenter: FewShotSegmenter,
    session: Session,
    paths: Sequence[str],
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[str]:
    """Segment pictures by the supports of a session, which gets the results.

    Args:
        segmenter: the one of all sessions.
        session: with supports.
        paths: of the pictures.
        track: wraps the paths to show the progress.

    Returns:
        For each picture that cannot be used, a line that says why.

    Raises:
        ValueError: there are no supports, too few or too many pictures, or none that can be used.
    """
    if not session.supports:
        raise ValueError("add a support first: a picture in which the object is marked")
    if not 1 <= len(paths) <= MAX_QUERIES:
        raise ValueError(f"upload 1 to {MAX_QUERIES} pictures to search in, not {len(paths)}")
    if session.encoded is None:
        given: dict[str, list[Support]] = {}
        for name, support in session.supports:
            given.setdefault(name, []).append(support)
        session.encoded = segmenter.fit(given)
    found: dict[str, Result] = {}
    failures = []
    for path in track(paths):
        name = Path(path).name
        try:
            if Path(name).stem in {Path(other).stem for other in found}:
                raise ValueError(f"{name} has the name of another picture: rename it")
            image = read_upload(path)
        except ValueError as error:
            failures.append(str(error))
        else:
            result = segmenter.segment(image, session.encoded)
            found[name] = replace(result, image=shrink(image))
    if not found:
        raise ValueError(failures[0])
    session.found = found
    return failures


def draw_result(result: Result, name: str, threshold: float) -> list[tuple[np.ndarray, str]]:
    """Return pictures of a result with a caption each: mask, probability, three correlation maps.

    Args:
        result: of a query, with a small picture.
        name: of the class whose probability and correlation maps are shown.
        threshold: of the probability from which a pixel belongs to a class.
    """
    image = read_picture(result.image)
    # Maps of the query's own size would take seconds where it is large.
    shown = replace(result, shape=image.shape[:2], threshold=threshold)
    probability = shown.probabilities[name]
    maps = [(_draw_map(image, probability), f"Probability, at most {probability.max():.2f}")]
    for values in result.correlations[name]:
        low, high = float(values.min()), float(values.max())
        drawn = _draw_map(image, (values - low) / max(high - low, 1e-6))
        height, width = values.shape
        maps.append((drawn, f"Correlation {width}×{height}, {low:.2f} to {high:.2f}"))
    return [(np.asarray(shown.overlay()), f"{shown.mask.mean():.0%} of the picture found"), *maps]


def _draw_map(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a grey picture under values (h, w) in [0, 1], from dark blue (0) to yellow (1)."""
    levels = (255 * cv2.resize(values, image.shape[1::-1]).clip(0, 1)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 1 - _OPACITY, colours, _OPACITY, 0)


def write_files(session: Session, threshold: float) -> list[str]:
    """Write what a session has found, and return the paths of masks.zip and coco.json.

    masks.zip holds PNGs of class indices with a palette, and classes.txt. The files exist until the
    session ends or writes others.

    Raises:
        ValueError: nothing was found so far.
    """
    if not session.found:
        raise ValueError("find the objects first")
    session.close()
    # Gradio serves files from its folder, and copies others to it.
    session.folder = tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR"))
    folder, classes = Path(session.folder.name), next(iter(session.found.values())).classes
    coco = formats.CocoFile(classes, polygons=False)
    for name, result in session.found.items():
        chosen = replace(result, threshold=threshold)
        chosen.save(folder / "masks" / f"{Path(name).stem}.png")
        coco.add(name, chosen.label_map)
    (folder / "masks" / "classes.txt").write_text("\n".join([*classes, ""]), "utf-8")
    coco.write(folder / "coco.json")
    archive = shutil.make_archive(str(folder / "masks"), "zip", folder / "masks")
    return [archive, str(folder / "coco.json")]
