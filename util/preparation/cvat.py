"""Reading coloured masks with labelmap.txt, which CVAT exports as "Segmentation mask"."""

import os
import re

from util.data.folds import IGNORE
from util.preparation.exports import MASK_FOLDERS, Export, files_under
from util.preparation.pascal import Colour, voc_colour
from util.preparation.segmentations import LABEL_MAP, ColouredMask
from util.runtime.errors import UserError
from util.runtime.texts import read_text

_ROW = re.compile(r"(.+?):(\d+),(\d+),(\d+)(:.*)?")
_COLOURLESS = re.compile(r"([^#:][^:]*)::.*")  # of datumaro, whose colours are VOC's then


def read_cvat(export: Export, masks: str) -> None:
    """Read coloured masks into `export`; the classes are in the order of the label map.

    Raises:
        UserError: The label map is missing or wrong.
    """
    files = [path for path in files_under(masks, (".txt",)) if os.path.basename(path) == LABEL_MAP]
    if not files:
        raise UserError(f"{masks} holds no {LABEL_MAP}")
    if len(files) > 1:
        raise UserError(f"{masks} holds {files[0]} and {files[1]}: give the folder of one of them")
    rows = {}
    for number, line in enumerate(read_text(files[0]).split("\n"), 1):
        if row := _ROW.fullmatch(line.strip()):
            rows[row[1]] = (int(row[2]), int(row[3]), int(row[4]))
        elif row := _COLOURLESS.fullmatch(line.strip()):
            rows[row[1]] = voc_colour(len(rows))
        elif line.strip() and not line.startswith("#"):
            what = f"is not NAME:RED,GREEN,BLUE: {line.strip()!r}"
            raise UserError(f"{files[0]} line {number} {what}")
    black = [name for name, colour in rows.items() if colour == voc_colour(0)]
    background = [name for name in rows if name.lower() == "background"] or black
    by_colour: dict[Colour, str] = {}
    for name, colour in rows.items():
        other = by_colour.setdefault(colour, name)
        if other != name and not {other, name} <= {*background}:
            raise UserError(f"{files[0]}: {other} and {name} have the same colour {colour}")
    classes = export.set_classes([name for name in rows if name not in background], files[0])
    colours = {voc_colour(0): 0, voc_colour(IGNORE): IGNORE}
    colours |= {colour: classes.get(name, 0) for name, colour in rows.items()}
    paths = files_under(os.path.dirname(files[0]), (".png",))
    classes_folder, instances_folder = MASK_FOLDERS
    for path in [path for path in paths if classes_folder in path.split(os.sep)] or paths:
        if instances_folder not in path.split(os.sep):
            export.add(ColouredMask(path, colours), path.replace(f"{classes_folder}/", ""))
