"""The pictures to segment and the supports, as the command line names them."""

import glob
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from segmenter import ONE_CLASS, Support
from util.data.pictures import read_marks
from util.preparation.custom_pairs import IMAGE_TYPES, left_behind
from util.runtime.errors import UserError

_NUMBERS = re.compile(r"-?[\d.]+(,-?[\d.]+)*(\+-?[\d.]+(,-?[\d.]+)*)*")
# Types of pictures that are not read.
_OTHERS = (".avif", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef")
_CLASS = re.compile(r"([^=/\\]+)=(.+)", re.DOTALL)


class Query(NamedTuple):
    """A picture to segment, and the name of its results: a relative path without suffix."""

    path: Path
    name: str


def find_queries(words: Sequence[str], out: Path, annotations: Iterable[Path]) -> list[Query]:
    """Return the pictures that files, folders and patterns name, without doubles.

    In a folder these are all images of it and its folders, without what lies in `out` and without the
    files that annotate supports. Results of a folder keep the names of its folders.

    Raises:
        UserError: a word names nothing, or two pictures would have results of one name.
    """
    skipped = {path.resolve() for path in annotations}
    queries: dict[Path, Query] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            files = sorted(path.rglob("*"))
            found = [
                Query(file, file.relative_to(path).with_suffix("").as_posix())
                for file in files
                if file.suffix.lower() in IMAGE_TYPES
                and not any(map(left_behind, file.relative_to(path).parts))
                and not file.resolve().is_relative_to(out.resolve())
                and file.resolve() not in skipped
            ]
            if path.resolve().is_relative_to(out.resolve()):
                raise UserError(f"--out {out}: it holds the pictures; give another folder")
            if not found:
                raise UserError(
                    f"--query {word}: this folder holds no images ({', '.join(IMAGE_TYPES)})"
                )
            if others := sorted(
                {kind for file in files if (kind := file.suffix.lower()) in _OTHERS}
            ):
                print(
                    f"--query {word}: files of {', '.join(others)} are passed over", file=sys.stderr
                )
        else:
            names = [word] if path.is_file() else sorted(glob.glob(word, recursive=True))
            found = [Query(Path(name), Path(name).stem) for name in names if Path(name).is_file()]
            if not found:
                raise UserError(f"--query {word}: there is no such file, folder or pattern")
        for query in found:
            queries.setdefault(query.path.resolve(), query)
    by_name: dict[str, Path] = {}
    for query in queries.values():
        other = by_name.setdefault(query.name, query.path)
        if other != query.path:
            raise UserError(
                f"{other} and {query.path} would both have the results {query.name}: rename one, or "
                "give another folder as --query"
            )
    return list(queries.values())


def read_supports(pairs: Iterable[Sequence[str]], refine: bool) -> dict[str, list[Support]]:
    """Return the supports of `--support [CLASS=]IMAGE ANNOTATION` by class.

    An annotation is a file, a mask; else boxes x0,y0,x1,y1 or points x,y, with "+" between several.

    Raises:
        UserError: an annotation is none of them, or the mask comes before the picture.
    """
    supports: dict[str, list[Support]] = {}
    for image, annotation in pairs:
        # A file whose own name holds "=" is that file.
        named = None if Path(image).exists() else _CLASS.fullmatch(image)
        before, _, after = image.partition("=")
        # The names of some files and folders begin with that of the class.
        if (named and not before.strip(" .")) or (not named and Path(after).is_file()):
            raise UserError(
                f"--support {image}: {before} cannot name a class, which is a word without / and \\"
            )
        name, image = (named[1], named[2]) if named else (ONE_CLASS, image)
        supports.setdefault(name, []).append(_support(image, annotation, refine))
    return supports


def find_supports(folder: str) -> dict[str, list[Support]]:
    """Return the supports in a folder of classes: CLASS/NAME.jpg with CLASS/NAME.png or NAME_mask.png.

    Raises:
        UserError: the folder is none, or an image has no mask.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--supports {folder}: there is no such folder")
    supports: dict[str, list[Support]] = {}
    folders = (path for path in Path(folder).iterdir() if path.is_dir())
    for place in sorted(path for path in folders if not left_behind(path.name)):
        files = [path for path in sorted(place.iterdir()) if path.suffix.lower() in IMAGE_TYPES]
        masks = {path: _mask_of(path, files) for path in files}
        for path, mask in masks.items():
            if path in masks.values():
                continue
            if mask is None:
                raise UserError(
                    f"--supports {folder}: {path} has no mask {path.stem}_mask.png or {path.stem}.png"
                )
            supports.setdefault(place.name, []).append(Support(path, mask=mask))
    if not supports:
        raise UserError(f"--supports {folder}: it holds no CLASS/IMAGE with a mask beside it")
    return supports


def _mask_of(image: Path, files: Sequence[Path]) -> Path | None:
    names = [image.with_name(f"{image.stem}_mask{kind}") for kind in (".png", *IMAGE_TYPES)]
    names.append(image.with_suffix(".png"))
    return next((path for path in names if path != image and path in files), None)


def _support(image: str, annotation: str, refine: bool) -> Support:
    if not _NUMBERS.fullmatch(annotation) or Path(annotation).is_file():
        if Path(annotation).is_file() and not _is_mask(annotation) and _is_mask(image):
            raise UserError(
                f"--support {image} {annotation}: the first is a mask and the second is none; the "
                "picture comes first"
            )
        return Support(Path(image), mask=Path(annotation))
    try:
        rows = [[float(number) for number in row.split(",")] for row in annotation.split("+")]
    except ValueError:
        rows = []
    lengths = {len(row) for row in rows}
    if lengths == {4}:
        return Support(Path(image), box=rows, refine=refine)
    if lengths == {2}:
        return Support(Path(image), points=rows, refine=refine)
    raise UserError(
        f"--support {image} {annotation}: an annotation is a mask file, a box x0,y0,x1,y1 or a point "
        "x,y; several boxes or points have + between them"
    )


def _is_mask(path: str) -> bool:
    try:
        read_marks(path, binary=True)
    except ValueError:
        return False
    return True
