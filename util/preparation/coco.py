"""Reading COCO instances files: those of COCO itself, and those that labelling tools export."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from util.data.folds import IGNORE, MAX_CLASSES
from util.data.images import FilePath
from util.preparation.exports import Export, json_files
from util.preparation.segmentations import LONGEST, AnnotatedImage, has_region
from util.runtime.errors import UserError, in_plain_words

CROWDS = ("object", "ignore")  # what a region with iscrowd 1 may become


class Instances(NamedTuple):
    """The content of an instances file of COCO."""

    images: list[AnnotatedImage]  # those with annotations, by image id
    total: int  # number of images with and without annotations
    categories: list[str]  # names of the classes 1, 2, …: the categories in the order of their ids


def _id(value: Any) -> Any:
    """Return an id as text: tools write 7, 7.0 and "7"."""
    whole = isinstance(value, int | float) and value % 1 == 0
    return str(int(value)) if whole else value


Id = Annotated[str, BeforeValidator(_id)]
Side = Annotated[int, Field(gt=0, le=LONGEST)]
Size = Annotated[Side | None, BeforeValidator(lambda value: value or None)]


class _Image(BaseModel):
    id: Id
    file_name: str
    height: Size = None
    width: Size = None


class _Category(BaseModel):
    id: Id
    name: str
    supercategory: Any = None


class _Annotation(BaseModel):
    id: Any = None
    image_id: Id
    category_id: Id
    segmentation: Any = None
    iscrowd: bool | None = False


class _File(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_instances(path: FilePath) -> Instances:
    """Read an instances file of COCO; the label of a crowd region is 255.

    Raises:
        UserError: The file is no COCO instances file, two images would share a mask, an image lies
            outside its folder, or an annotation names an unknown image or category.
    """
    content = _load(path, "give annotations/instances_*2014.json of COCO")
    if len(content.categories) > MAX_CLASSES:
        raise UserError(
            f"{path} has {len(content.categories)} categories; at most {MAX_CLASSES} fit"
        )
    categories = sorted(content.categories, key=_order)
    labels = {category.id: label for label, category in enumerate(categories, 1)}
    images, _ = _annotated(path, content, labels)
    records: dict[str, AnnotatedImage] = {}
    for image in (image for image in images if not image.is_empty):
        name = os.path.normpath(image.file_name)
        if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
            raise UserError(f"{path}: the image {image.file_name} lies outside the image folder")
        other = records.setdefault(image.mask_name, image)
        if other is not image:
            raise UserError(f"{path}: {other.file_name} and {name} would share one mask")
    return Instances([*records.values()], len(images), [category.name for category in categories])


def read_coco(export: Export, masks: str, crowd: str) -> None:
    """Read the instances files of a labelling tool into `export`.

    The classes are the categories in the order of their ids.

    Args:
        export: Where to.
        masks: A file, or a folder of files that have the same categories.
        crowd: One of CROWDS.

    Raises:
        UserError: A file is wrong, or the annotations are boxes without masks.
    """
    advice = "export it again as COCO instances"
    contents = {path: _load(path, advice) for path in json_files(masks, "coco")}
    categories: dict[str, _Category] = {}
    for path, content in contents.items():
        for category in content.categories:
            if categories.setdefault(category.id, category).name != category.name:
                raise UserError(f"{path}: category {category.id} has another name in another file")
    annotations = [one for content in contents.values() for one in content.annotations]
    parents = _parents(categories.values(), {annotation.category_id for annotation in annotations})
    if parents:
        names = ", ".join(parent.name for parent in parents)
        export.notes.append(f"no class, since it only groups others: {names}")
    used = [one for one in sorted(categories.values(), key=_order) if one not in parents]
    classes = export.set_classes([category.name for category in used], masks)
    labels = {category.id: classes[category.name] for category in used}

    boxes = sum(not has_region(annotation.segmentation) for annotation in annotations)
    export.check_boxes(boxes, len(annotations), masks)
    if crowds := sum(bool(annotation.iscrowd) for annotation in annotations):
        other = CROWDS[crowd == CROWDS[0]]
        export.notes.append(
            f"annotations with iscrowd 1: {crowds:,}, read as --crowd {crowd}; see --crowd {other}"
        )
    for path, content in contents.items():
        images, lost = _annotated(path, content, labels, crowd == "ignore", strict=False)
        if lost:
            export.notes.append(f"annotations of images that {path} does not list: {lost:,}")
        for image in images:
            export.add(image, os.path.join(os.path.dirname(path), image.file_name))


def _load(path: FilePath, advice: str) -> _File:
    """Return the content of an instances file; UserError, which ends with `advice`, if it is none."""
    data = Path(path).read_bytes()
    encoding = json.detect_encoding(data)
    try:
        text = data if encoding == "utf-8" else data.decode(encoding)
        content = _File.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "file"
        raise UserError(
            f"{path} is no COCO instances file ({where}: {in_plain_words(problem['msg'])}): "
            f"{advice}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text ({error}): {advice}") from error
    for records in (content.images, content.categories):
        if len({record.id for record in records}) < len(records):
            raise UserError(f"{path}: two images, or two categories, have the same id")
    return content


def _annotated(
    path: FilePath,
    content: _File,
    labels: Mapping[str, int],
    ignore_crowds: bool = True,
    strict: bool = True,
) -> tuple[list[AnnotatedImage], int]:
    """Return the images of a file by id, and the number of annotations of images that it lacks.

    An annotation of an unknown category, and if `strict` of an unknown image, is a UserError.
    """
    drawings: dict[str, list[tuple[Any, int, Any]]] = {image.id: [] for image in content.images}
    lost = 0
    for one in content.annotations:
        unknown = one.image_id not in drawings
        if one.category_id not in labels or (unknown and strict):
            raise UserError(
                f"{path}: annotation {one.id} names image {one.image_id} and category "
                f"{one.category_id}, which the file does not have both"
            )
        label = IGNORE if one.iscrowd and ignore_crowds else labels[one.category_id]
        lost += unknown
        if not unknown:
            drawings[one.image_id].append((one.id, label, one.segmentation))
    images = []
    for image in sorted(content.images, key=_order):
        data = json.dumps(drawings.pop(image.id), separators=(",", ":")).encode()
        record = AnnotatedImage(image.file_name, image.height, image.width, data, os.fspath(path))
        images.append(record)
    return images, lost


def _order(record: _Image | _Category) -> tuple[bool, int, str]:
    """Return the sort key of a record by its id: numbers first, by value."""
    number = record.id.isdecimal()
    return not number, int(record.id) if number else 0, record.id


def _parents(categories: Iterable[_Category], used: set[str]) -> list[_Category]:
    """Return the categories that Roboflow adds: they group others and own nothing."""
    categories = list(categories)
    above = {str(one.supercategory) for one in categories if one.supercategory != one.name}
    tops = [one for one in categories if one.supercategory == "none"]
    return [
        one
        for one in categories
        if one.id not in used
        and (one.name in above or (one in tops and len(tops) < len(categories)))
    ]
