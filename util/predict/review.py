"""The pictures that a person should look at first: those whose outlines are the least certain."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.data.label_maps import draw_overlay
from util.data.pictures import read_picture
from util.predict.formats import read_labels
from util.runtime.files import write_atomically

CONTACT_SHEET = 24  # pictures
_THUMBNAIL, _CAPTION = 320, 16  # pixels


class Reviewed(NamedTuple):
    """A picture, the file of its label map, its uncertainty, and the share of it that has a class."""

    picture: Path
    labels: Path
    uncertainty: float
    share: float


def write_review(folder: Path, pictures: Sequence[Reviewed]) -> None:
    """Write review.csv, the least certain picture first, and review.png with the first of them."""
    ordered = sorted(pictures, key=lambda one: (-one.uncertainty, one.picture))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["picture", "uncertainty", "share", "labels"])
    for one in ordered:
        values = (f"{one.uncertainty:.4f}", f"{one.share:.4f}")
        table.writerow([one.picture, *values, one.labels])
    write_atomically(folder / "review.csv", text.getvalue())
    if ordered:
        # Imported here, since it loads matplotlib, and few runs make a review.
        from util.evaluation.figures import contact_sheet, write_png

        sheet = contact_sheet([_thumbnail(one) for one in ordered[:CONTACT_SHEET]])
        write_png(folder / "review.png", sheet)


def _thumbnail(one: Reviewed) -> np.ndarray:
    """Return a small overlay under its name and uncertainty, uint8 (h, w, 3)."""
    overlay = draw_overlay(read_picture(one.picture), read_labels(one.labels)[0])
    overlay.thumbnail((_THUMBNAIL, _THUMBNAIL))
    framed = Image.new("RGB", (_THUMBNAIL + 8, _THUMBNAIL + _CAPTION + 8), "white")
    framed.paste(overlay, (4, _CAPTION + 4))
    caption = f"{one.uncertainty:.3f}  {one.picture.name}"
    from matplotlib import get_data_path

    # Its font has the letters of most languages.
    font = ImageFont.truetype(os.path.join(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 11)
    ImageDraw.Draw(framed).text((4, 2), caption, fill="black", font=font)
    return np.array(framed)
