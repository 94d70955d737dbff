"""Damaged and made-up files of every kind that users give: an answer or one line, and nothing harmed.

The cases are drawn anew by hypothesis, always the same ones. `python -m pytest tests/test_fuzz.py --fuzz
100000` draws more than the 2,000 of every test run.
"""

import io
import json
import os
import random
import signal
import string
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from util.checkpoints.io import read_checkpoint
from util.config import load_config
from util.config.fields import SECTION_OF
from util.data.images import read_image, read_mask
from util.data.lists import existing_entries
from util.evaluation.counts import Counts
from util.evaluation.journal import Journal
from util.preparation.coco import read_coco, read_instances
from util.preparation.exports import Export, ImageNames
from util.preparation.labelme import read_labelme
from util.preparation.yolo import read_yolo
from util.runtime.errors import UserError

SECONDS = 120  # until a case counts as hanging; most take a few milliseconds
# Numbers at which arithmetic or memory may break, and words that mean something somewhere.
NUMBERS = [0, 1, -1, 2, 254, 255, 256, 65536, 2**31, 2**63, 10**30, 0.5, -1e300, 1e-300]
NUMBERS += [float("nan"), float("inf"), 10**400]
WORDS = ["", " ", "none", "auto", "split0", "a.png", "../a.png", "/", "polygon", "rectangle", "\0"]
PLAIN = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=8)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def damaged(draw, samples):
    """One of some files with up to three places cut out, overwritten or filled."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.sampled_from([start, start + 1, start + 4, start + 100, len(data)]))
        data = data[:start] + draw(st.binary(max_size=4)) + data[stop:]
    return data


@st.composite
def altered(draw, sample):
    """A structure of plain values with up to three of its parts replaced or left out."""
    value = json.loads(json.dumps(sample))
    for _ in range(draw(st.integers(1, 3))):
        value = _altered(draw, value)
    return value


def _altered(draw, value):
    if not value or not isinstance(value, list | dict) or draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    copy = value.copy()
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = _altered(draw, value[key])
    return copy


def files_of(images, **options):
    """Return the bytes of images in some formats."""
    found = []
    for image, format in images:
        file = io.BytesIO()
        image.save(file, format, **options)
        found.append(file.getvalue())
    return found


def pictures():
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    deep = Image.fromarray(rng.integers(0, 2**16, (9, 12)).astype(np.uint16))
    formats = [(colours, kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP")]
    return [*files_of([*formats, (deep, "TIFF")]), *files_of([(colours, "JPEG")], exif=turned)]


def masks():
    labels = Image.fromarray(np.random.default_rng(0).integers(0, 3, (9, 12), dtype=np.uint8))
    palette = labels.copy().convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    clear = Image.merge("LA", (labels, labels.point(lambda v: 255 * (v > 0))))
    return files_of([(labels, "PNG"), (labels, "TIFF"), (palette, "PNG"), (clear, "PNG")])


def checkpoints():
    tensors = {"base.a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)}
    file = io.BytesIO()
    torch.save({"state_dict": tensors, "backbone": "resnet18", "shot": 1}, file)
    return [file.getvalue(), safetensors.torch.save(tensors)]


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 12}],
    "categories": [{"id": 1, "name": "nut"}, {"id": 2, "name": "bolt", "supercategory": "nut"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": [[1, 1, 8, 1, 8, 6]],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 2,
            "iscrowd": 1,
            "segmentation": {"size": [9, 12], "counts": [50, 8, 50]},
        },
    ],
}
LABELME = {
    "imagePath": "a.png",
    "imageHeight": 9,
    "imageWidth": 12,
    "shapes": [
        {"label": "nut", "shape_type": "polygon", "points": [[1, 1], [8, 1], [8, 6]]},
        {"label": "bolt", "shape_type": "circle", "points": [[4, 4], [6, 4]], "mask": None},
    ],
}
CONFIG = {
    "Data": {"data_root": "data", "num_classes": 20, "folds": "contiguous", "class_names": None},
    "Train": {"train_h": 473, "data_set": "demo", "split": 0, "base_lr": "1e-4", "resume": "auto"},
    "Method": {"layers": 18, "vgg": False},
    "Test_Finetune": {"test_num": 5},
}
YOLO = [b"0 0.1 0.1 0.9 0.1 0.5 0.9\n1 0.2 0.2 0.3 0.2 0.3 0.4\n", b"1 0.5 0.5 0.2 0.2\n"]
LIST = [b"a.png m.png\nb c.png\tm.png\n# a comment\n", "a.png m.png\n".encode("utf-16")]
OPTS = st.lists(
    st.builds(
        lambda key, sign, value: f"{key}{sign}{value}",
        st.sampled_from([*SECTION_OF, "", "x"]),
        st.sampled_from(["=", " ", "", "=="]),
        VALUES.map(str) | st.text(string.printable, max_size=10),
    ),
    max_size=4,
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def export_of(folder):
    write(folder / "a.png", pictures()[0])
    return Export(ImageNames(["a.png"]))


def draw_all(export, folder):
    for image, mask in export.masks.items():
        drawn = mask.draw(str(folder / image))
        assert drawn.dtype == np.uint8 and drawn.ndim == 2


def try_config(folder, content):
    load_config(write(folder / "x.yaml", yaml.safe_dump(content).encode()))


def try_config_file(folder, content):
    load_config(write(folder / "x.yaml", content))


def try_opts(folder, words):
    load_config(write(folder / "x.yaml", yaml.safe_dump(CONFIG).encode()), words)


def try_list(folder, content):
    for name in ("a.png", "m.png", "b c.png"):
        write(folder / name, b"")
    entries = existing_entries(str(folder), str(write(folder / "list.txt", content)))
    assert all(os.path.isfile(folder / name) for entry in entries for name in entry)


def try_image(folder, content):
    image = read_image(str(write(folder / "a.png", content)))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def try_mask(folder, content):
    mask = read_mask(str(write(folder / "m.png", content)))
    assert mask.dtype == np.uint8 and mask.ndim == 2


def try_coco(folder, content):
    path = write(folder / "x.json", content)
    export = export_of(folder)
    read_coco(export, str(path), None)
    draw_all(export, folder)
    for image in read_instances(path).images:
        image.draw(folder / "a.png")


def try_labelme(folder, content):
    export = export_of(folder)
    read_labelme(export, str(write(folder / "x.json", content).parent))
    draw_all(export, folder)


def try_yolo(folder, content):
    export = export_of(folder)
    write(folder / "classes.txt", b"nut\nbolt\n")
    write(folder / "a.txt", content)
    read_yolo(export, str(folder))
    draw_all(export, folder)


def try_checkpoint(folder, content):
    path = write(folder / "x.pth", content)
    for mapped in (False, True):
        state = read_checkpoint(path, mapped=mapped)["state_dict"]
        assert all(isinstance(value, torch.Tensor) for value in state.values())


def journal_lines():
    counts = Counts(3, 1, 2)
    counts.numbers += 5
    counts.sums += 7
    return counts


def try_journal(folder, content):
    """What is read is either a whole unit or nothing."""
    journal = Journal(folder, "x")
    write(folder / f"{journal.name}-0.jsonl", content)
    counts = Counts(3, 1, 2)
    journal.read(counts)
    assert counts.numbers.tolist() in ([[5] * 14] * 3, [[0] * 14] * 3)


def journal_file(folder):
    journal = Journal(folder, "x")
    with journal.writing(0) as append:
        append([0, 1, 2], journal_lines())
    content = (folder / f"{journal.name}-0.jsonl").read_bytes()
    journal.remove()
    return content


KINDS = {
    "settings": (try_config, lambda folder: altered(CONFIG)),
    "settings file": (
        try_config_file,
        lambda folder: damaged([yaml.safe_dump(CONFIG).encode(), b"_base_: [x.yaml]\nTrain: {}\n"]),
    ),
    "opts": (try_opts, lambda folder: OPTS),
    "list": (try_list, lambda folder: damaged(LIST)),
    "image": (try_image, lambda folder: damaged(pictures())),
    "mask": (try_mask, lambda folder: damaged(masks())),
    "coco": (try_coco, lambda folder: altered(COCO)),
    "coco file": (try_coco, lambda folder: damaged([json.dumps(COCO).encode()])),
    "labelme": (try_labelme, lambda folder: altered(LABELME)),
    "yolo": (try_yolo, lambda folder: damaged(YOLO)),
    "checkpoint": (try_checkpoint, lambda folder: damaged(checkpoints())),
    "journal": (try_journal, lambda folder: damaged([journal_file(folder)])),
}


@contextmanager
def limited():
    """Fail where the block takes longer than SECONDS."""

    def hang(number, frame):
        raise AssertionError(f"it hangs: {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_any_input_gives_an_answer_or_one_line(kind, request, tmp_path):
    attempt, cases = KINDS[kind]
    number = -(-request.config.getoption("--fuzz") // len(KINDS))
    tried = 0

    @settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(tmp_path))
    def check(case):
        nonlocal tried
        tried += 1
        folder = tmp_path / "case"
        folder.mkdir(exist_ok=True)
        state = random.getstate()
        with limited():
            try:
                attempt(folder, case)
            except UserError as error:
                assert "\n" not in str(error).strip(), error
        random.setstate(state)
        for path in folder.iterdir():
            path.unlink()

    check()
    print(f"{kind}: {tried} cases")
    assert tried >= 0.9 * number or kind in ("settings file", "yolo", "list")
