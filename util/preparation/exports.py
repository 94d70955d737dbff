"""What the readers of annotation exports share: the images that an export names, and its classes."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from util.data.folds import IGNORE, MAX_CLASSES
from util.preparation.segmentations import Drawable
from util.runtime.errors import UserError

# Folders that exporters put around images or annotations, which therefore do not tell images apart.
_LAYOUT = {"", ".", "..", "annotations", "data", "images", "img", "JPEGImages", "labels"}
MASK_FOLDERS = ("SegmentationClass", "SegmentationObject")  # in VOC and CVAT
# What VOC and CVAT, and the examples of labelme, call what is no class.
NO_CLASS = {"background": 0, "_background_": 0, "__ignore__": IGNORE}
_TYPE = re.compile(r"\.(bmp|jpe?g|json|png|tiff?|txt|webp)$", re.IGNORECASE)

# Folders that systems and programs leave behind, besides those whose name begins with a dot.
_LEFT_BEHIND = {
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}


def normal_form(name: str) -> str:
    """Return the form in which names are compared: systems write é as one letter or as two."""
    return unicodedata.normalize("NFC", name)


def left_behind(folder: str) -> bool:
    """Tell whether a folder of this name holds what a system or a program left behind."""
    return folder.startswith(".") or folder in _LEFT_BEHIND


def some_of(names: Sequence[str]) -> str:
    """Return the first three names for a message, which says whether there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def files_under(folder: str, types: tuple[str, ...]) -> list[str]:
    """Return the paths of the files of these types in a folder and all its folders, sorted.

    Hidden files and folders, and those that systems leave behind, are passed over.
    """
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not left_behind(name)]
        found += [
            os.path.join(place, name)
            for name in files
            if name.lower().endswith(types) and name[0] != "."
        ]
    return sorted(found)


class ImageNames:
    """The names of images, found by what lists and exports call them.

    Another folder, the Windows separator, and a missing or other file type do not matter: the last
    part of the name decides, and among several images of this name the folders do, from the last
    one on. So a name never leads out of the folder of the images.

    Args:
        names: Names relative to the folder of the images.
    """

    def __init__(self, names: Iterable[str]):
        self.parts = {name: _parts(name) for name in names}
        self._by_last: dict[str, list[str]] = {}
        for name, (*_, last) in self.parts.items():
            for key in {last, _TYPE.sub("", last)}:
                self._by_last.setdefault(key, []).append(name)

    @classmethod
    def under(cls, folder: str, types: tuple[str, ...]) -> "ImageNames":
        """Return the names of all images of these types in a folder and its folders."""
        names = (os.path.relpath(path, folder) for path in files_under(folder, types))
        return cls(name for name in names if not set(_parts(name)) & set(MASK_FOLDERS))

    def find(self, name: str) -> str | None:
        """Return the image that is meant by `name`, None if there is none.

        Raises:
            UserError: Several images may be meant.
        """
        *folders, last = _parts(name)
        stem = _TYPE.sub("", last)
        found = self._by_last.get(last, []) or self._by_last.get(stem, [])

        def agreement(image: str) -> tuple[bool, int, bool]:
            *own, own_last = self.parts[image]
            pairs = zip(reversed(folders), reversed(own), strict=False)
            common = len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])
            return own_last == last, common, common == len(own)

        best = max(map(agreement, found), default=None)
        meant = [image for image in found if agreement(image) == best]
        if len(meant) > 1:
            raise UserError(
                f"{name} may be the image {meant[0]} or {meant[1]}: name its folder and its type, "
                "or move one of them away"
            )
        return meant[0] if meant else None

    def means_another(self, name: str, image: str) -> bool:
        """Return whether `name` is that of another image than `image`, whatever its folder and type."""
        stem = _TYPE.sub("", _parts(name)[-1])
        return stem in self._by_last and stem != _TYPE.sub("", self.parts[image][-1])


def _parts(name: str) -> list[str]:
    """Return the parts of a path that tell images apart; there is at least one."""
    path = posixpath.normpath(normal_form(name).replace("\\", "/"))
    *folders, last = path.split("/")
    return [*(part for part in folders if part not in _LAYOUT), last]


@dataclass
class Export:
    """What an export of a labelling tool says of images."""

    images: ImageNames  # those at hand
    class_names: Sequence[str] | None = None  # of the command line
    classes: list[str] = field(default_factory=list)  # the names of the classes 1, 2, …
    masks: dict[str, Drawable] = field(default_factory=dict)  # image → what its mask is made from
    absent: list[str] = field(default_factory=list)  # annotated images that are not at hand
    notes: list[str] = field(default_factory=list)  # lines that the user should see

    def set_classes(self, found: Iterable[str], file: str) -> dict[str, int]:
        """Set the classes, in the order of the command line or else of `found` in `file`.

        Names that tools give to the background and to what is ignored are classes only if the
        command line has them.

        Returns:
            Name in `found` → class id, or 0 or 255 for what is no class.

        Raises:
            UserError: The command line lacks one of them, or there are too many.
        """
        found = list(dict.fromkeys(found))
        no_class = {
            name: NO_CLASS[name.lower()]
            for name in found
            if name.lower() in NO_CLASS and name not in (self.class_names or ())
        }
        if no_class:
            self.notes.append(f"no class, but background or ignored: {', '.join(no_class)}")
        found = [name for name in found if name not in no_class]
        if no_class and not found:
            names = ", ".join(no_class)
            raise UserError(
                f"{file} names no class but {names}, which is background or ignored; if it is a class, "
                f"give it as --class_names {names}"
            )
        self.classes = list(self.class_names or found)
        ids = {normal_form(name): class_id for class_id, name in enumerate(self.classes, 1)}
        for name in found:
            if normal_form(name) not in ids:
                raise UserError(f"{file} holds the class {name}: add it to --class_names")
        if len(self.classes) > MAX_CLASSES:
            raise UserError(f"{file} has {len(self.classes)} classes; at most {MAX_CLASSES} fit")
        alike: dict[str, list[str]] = {}
        for name in self.classes:
            alike.setdefault("".join(name.casefold().split()), []).append(repr(name))
        if same := [name for names in alike.values() if len(names) > 1 for name in names]:
            text = f"warning: classes that differ only in capitals or blanks: {', '.join(same)}"
            self.notes.append(text)
        return no_class | {name: ids[normal_form(name)] for name in found}

    def add(self, mask: Drawable, *names: str) -> None:
        """Add a mask to the first image that is meant by one of the names.

        Raises:
            UserError: The image has a mask already, or several images may be meant.
        """
        image = next(filter(None, map(self.images.find, names)), None)
        if image is None:
            self.absent.append(mask.file_name)
            return
        other = self.masks.setdefault(image, mask)
        if other is not mask:
            raise UserError(
                f"{other.file_name} of {other.file} and {mask.file_name} of {mask.file} are both the "
                f"image {image}: keep one of them"
            )

    def check_boxes(self, boxes: int, total: int, file: str) -> None:
        """Note how many annotations are boxes without masks; UserError if all are."""
        if boxes and boxes == total:
            raise UserError(
                f"{file} holds {boxes:,} boxes without masks: draw polygons or masks in the labelling "
                "tool, and export these"
            )
        if boxes:
            number = f"{boxes:,} of {total:,} annotations"
            self.notes.append(f"warning: boxes without masks, left out: {number}")


def json_files(masks: str, form: str) -> list[str]:
    """Return the JSON files of a form: `masks` itself, or those in this folder.

    Raises:
        UserError: There is none.
    """
    if os.path.isfile(masks):
        return [masks]
    files = [path for path in files_under(masks, (".json",)) if form_of_json(path) == form]
    if not files:
        raise UserError(f"{masks} holds no JSON file of the form {form}: give another --format")
    return files


def form_of_json(path: str) -> str | None:
    """Return "coco" or "labelme" for a JSON file of that form, without parsing it, else None."""
    data = Path(path).read_bytes().replace(b"\0", b"")  # UTF-16 differs from ASCII by zeros.
    forms = {"labelme": (b'"shapes"', b'"imagePath"'), "coco": (b'"images"', b'"annotations"')}
    return next((form for form, keys in forms.items() if all(key in data for key in keys)), None)
