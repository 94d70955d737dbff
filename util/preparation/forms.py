"""The forms of --masks: recognising one, and pairing the images with an export of a labelling tool."""

import os
from collections.abc import Sequence

from util.preparation.coco import read_coco
from util.preparation.custom_pairs import IMAGE_TYPES, Pair
from util.preparation.cvat import read_cvat
from util.preparation.exports import Export, ImageNames, files_under, form_of_json, some_of
from util.preparation.labelme import read_labelme
from util.preparation.segmentations import LABEL_MAP, AnnotatedImage
from util.preparation.yolo import YAML, is_labels, read_yolo
from util.runtime.errors import UserError

MASKS = "masks"
FORMS = {
    MASKS: "mask files, one per image",
    "coco": "COCO instances",
    "labelme": "files of labelme",
    "yolo": "YOLO segmentation labels",
    "cvat": f"coloured masks with {LABEL_MAP}",
}
_ADVICE = (
    "give a COCO instances file, or a folder of masks, labelme files, YOLO segmentation labels or "
    f"coloured masks with {LABEL_MAP}; datumaro converts most other formats to COCO"
)


def recognise(masks: str) -> str:
    """Return the form, a key of FORMS, of a file or folder that is given as --masks.

    Raises:
        UserError: It has none of the forms, or several.
    """
    if not os.path.exists(masks):
        raise UserError(f"{masks} does not exist: give the masks or annotations as --masks")
    found: dict[str, str] = {}  # form → a file of it
    known = set()  # folders with a type of files whose form is known
    files = files_under(masks, (".json", ".txt")) if os.path.isdir(masks) else [masks]
    for path in files:
        folder, kind = os.path.dirname(path), os.path.splitext(path)[1].lower()
        if os.path.basename(path) == LABEL_MAP:
            found["cvat"] = path
        elif kind in YAML:
            found["yolo"] = path
        elif (folder, kind) not in known:
            form = "yolo" if kind == ".txt" and is_labels(path) else None
            form = form_of_json(path) if kind == ".json" else form
            if form:
                found.setdefault(form, path)
                known.add((folder, kind))
    if len(found) > 1:
        raise UserError(
            f"{masks} holds several forms ({', '.join(found.values())}): give one of them as --masks, "
            "or choose by --format"
        )
    if found:
        return next(iter(found))
    advice = _ADVICE
    if os.path.isdir(masks) and (not os.listdir(masks) or files_under(masks, IMAGE_TYPES)):
        # The images of an export must not be taken for masks because its form is not known.
        annotations = files_under(masks, (".json", ".xml", *YAML))
        if not annotations:
            return MASKS
        advice += f"; --format {MASKS} passes over {annotations[0]}"
    raise UserError(f"{masks} is damaged, packed, or of another form: {advice}")


def read_export(
    form: str, images: str, masks: str, class_names: Sequence[str] | None, crowd: str
) -> tuple[list[Pair], list[str], list[str]]:
    """Return pairs of images and annotations, the names of the classes 1, 2, …, and lines to print.

    Args:
        form: A key of FORMS other than MASKS.
        images: The folder of the images, whose folders are searched too.
        masks: The file or folder of the export.
        class_names: The order of the classes, or None.
        crowd: See `util.preparation.coco.read_coco`.

    Raises:
        UserError: The export is wrong, or none of its images is in `images`.
    """
    export = Export(ImageNames.under(images, IMAGE_TYPES), class_names)
    if form == "coco":
        read_coco(export, masks, crowd)
    else:
        if os.path.isfile(masks) and form != "labelme":
            masks = os.path.dirname(masks) or "."
        {"labelme": read_labelme, "yolo": read_yolo, "cvat": read_cvat}[form](export, masks)
    if not export.masks:
        if not export.absent:
            raise UserError(f"{masks} names no image: export it again, with the annotations")
        raise UserError(f"no image of {masks} is in {images}, such as {some_of(export.absent)}")
    pairs = [
        Pair(os.path.join(images, name), mask, name) for name, mask in sorted(export.masks.items())
    ]
    by_mask: dict[str, Pair] = {}
    for pair in pairs:
        other = by_mask.setdefault(pair.entry[1], pair)
        if other is not pair:
            raise UserError(f"{other.image} and {pair.image} differ only in their type: rename one")
    others = sorted(export.images.parts.keys() - export.masks.keys())
    empty = sum(isinstance(one, AnnotatedImage) and one.is_empty for one in export.masks.values())
    lines = [
        f"{what}: {len(names):,}, such as {some_of(names)}"
        for what, names in (
            (f"warning: annotated images that are not in {images}", export.absent),
            ("images that are not in the export, left out", others),
        )
        if names
    ]
    if empty == len(export.masks):
        raise UserError(
            f"{masks} holds no object in any image of {images}: export the annotations again"
        )
    lines += [f"images without objects, all background: {empty:,}"] if empty else []
    # File names may hold bytes that are no text.
    lines = [one.encode(errors="backslashreplace").decode() for one in (*export.notes, *lines)]
    return pairs, export.classes, lines
