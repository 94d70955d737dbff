"""What prepare_pascal and prepare_coco have in common."""

import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.util.coco_files import VAL, annotation, write_coco, write_json
from tests.util.pascal_files import HEIGHT, WIDTH, area, write_mat, write_voc_and_sbd
from tests.util.prepare_files import becomes, contents, cut, noise, run_killed
from util import prepare_coco, prepare_pascal
from util.preparation.shared import DataRoot
from util.runtime.errors import UserError


class Case(NamedTuple):
    write: Callable
    prepare: Callable  # of the written folder and a DataRoot
    main: Callable
    options: tuple[str, ...]  # those that take the written folder
    root: str  # the original dataset in that folder, which may become the data root
    image: str  # an image
    in_place: str  # what becomes of all images there
    change: Callable  # of the written folder: changes what one mask is made from


CASES = {
    "pascal": Case(
        write_voc_and_sbd,
        lambda data, root: prepare_pascal.prepare_pascal(data, data, root),
        prepare_pascal.main,
        ("--voc", "--sbd"),
        "VOCdevkit/VOC2012",
        "VOCdevkit/VOC2012/JPEGImages/2007_2.jpg",
        "6 in place, 1 linked",
        lambda data: write_mat(data / "benchmark_RELEASE/dataset/cls/2008_2.mat", area(11)),
    ),
    "coco": Case(
        write_coco,
        prepare_coco.prepare_coco,
        prepare_coco.main,
        ("--coco",),
        "",
        "train2014/COCO_9.jpg",
        "3 in place",
        lambda data: write_json(data, "val", VAL | {"annotations": [annotation(8, 4, 18, [])]}),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def originals(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("my data ü")
    case.write(folder)
    return folder


@pytest.fixture(scope="module")
def whole(case, originals, tmp_path_factory):
    """The files of an uninterrupted run."""
    out = tmp_path_factory.mktemp("out") / "ready"
    prepare(case, originals, out)
    return contents(out)


@pytest.fixture
def data(originals, tmp_path):
    """A copy of the stand-ins that a test may spoil."""
    return shutil.copytree(originals, tmp_path / "data")


def prepare(case, data, out, copy=False, workers=1):
    return case.prepare(data, DataRoot(out, out / "lists", copy, workers))


def test_processes_and_copies_give_the_same(case, originals, whole, tmp_path):
    lines = prepare(case, originals, tmp_path / "out", copy=True, workers=2)
    assert any("copied" in line for line in lines)
    assert contents(tmp_path / "out") == whole
    for path in tmp_path.rglob("*.jpg"):
        assert not path.is_symlink() and path.stat().st_nlink == 1


def test_the_folder_of_the_dataset_can_be_the_data_root(case, data, whole):
    root = data / case.root
    before = contents(root)
    assert f"images: {case.in_place}" in prepare(case, data, root)
    after = contents(root)
    assert after == {**before, **whole}
    assert any(", 0 of them written now" in line for line in prepare(case, data, root))
    assert contents(root) == after


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_and_the_next_continues(case, originals, whole, tmp_path):
    out = tmp_path / "out"
    renames = 0
    while run_killed(lambda: prepare(case, originals, out), renames):
        final = {name: data for name, data in contents(out).items() if not name.endswith(".tmp")}
        assert final.items() <= whole.items()
        if renames % 2:  # every second run starts from nothing, the others continue
            shutil.rmtree(out)
        renames += 1
    assert renames > 5
    assert contents(out) == whole


def test_only_a_mask_whose_source_changed_is_written_again(case, data, tmp_path):
    prepare(case, data, tmp_path / "out")
    case.change(data)
    lines = prepare(case, data, tmp_path / "out")
    assert sum(", 1 of them written now" in line for line in lines) == 1
    prepare(case, data, tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "is damaged or truncated"),
        (lambda path: path.write_bytes(b""), "is damaged or truncated"),
        (becomes(noise((HEIGHT + 1, WIDTH))), "is 64×49 pixels but its mask 64×48"),
    ],
)
def test_a_wrong_image_is_named_and_once_replaced_the_run_completes(
    case, data, whole, tmp_path, spoil, message
):
    image, out = data / case.image, tmp_path / "out"
    before = image.read_bytes()
    spoil(image)
    for workers in (1, 2):
        with pytest.raises(UserError, match=message) as error:
            prepare(case, data, out, workers=workers)
        assert str(image) in str(error.value)
    assert not list((out / "lists").iterdir())
    image.write_bytes(before)
    prepare(case, data, out)
    assert contents(out) == whole


def test_the_command(name, case, originals, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for option in case.options for word in (option, str(originals))]
    case.main([*words, "--out", "out", "--workers", "1"])
    for part in ("train", "val"):
        written = (tmp_path / "lists" / name / f"{part}.txt").read_bytes()
        assert written == whole[f"lists/{part}.txt"]
    out = capsys.readouterr().out
    assert "images: " in out
    config = f"config/{name}/{name}_split0_resnet50.yaml"
    # Seen from here, the lists are where the configuration has them.
    assert f"next: python -m util.verify --config {config} --opts data_root out\n" in out
    assert out.endswith(f"then: sh train.sh split0 {name} 1 data_root out\n")


@pytest.mark.parametrize("option", ["--out", "--lists"])
def test_the_command_ends_with_one_line_for_an_error(case, originals, tmp_path, error_line, option):
    (tmp_path / "file").touch()
    words = [word for name in case.options for word in (name, str(originals))]
    words += ["--out", str(tmp_path / "out"), option, str(tmp_path / "file")]
    error = error_line(case.main, words)
    assert error.startswith("error: cannot write in ") and option in error
