"""The pages name files, headings, classes and functions that exist, and their examples run."""

import ast
import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import predict
from model import backbone, build_hdmnet
from model.features import split_supports, stack_supports
from util.config import load_config, loading
from util.data.dataset import read_pair
from util.data.lists import MaskForm, read_entries
from util.data.loaders import config_fold
from util.demo_data import write_demo
from util.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "initmodel" / "README.md",
    ROOT / "lists" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[tuple[str, Path, str]]:
    """Return the text, the file and the heading of every relative link of a page."""
    found = []
    for text, target in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, heading = target.partition("#")
            found.append((text, (page.parent / path).resolve() if path else page, heading))
    return found


@cache
def headings(page: Path) -> set[str]:
    """Return the names by which links reach the headings of a page, as GitHub makes them."""
    text = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def defined_names(file: Path) -> set[str]:
    """Return the classes, functions and constants of a module, and `Class.method`."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part.name for part in node.body if isinstance(part, ast.FunctionDef))
            names.update(f"{node.name}.{method}" for method in methods)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_headings_and_names_that_exist(page):
    for text, file, heading in links(page):
        assert file.exists(), text
        assert not heading or heading in headings(file), text
        if file.suffix == ".py" and text.startswith("`"):
            assert text.strip("`") in {file.name, *defined_names(file)}, text


def test_code_names_headings_of_the_pages():
    named = [
        (page, " ".join(title.split()))
        for folder in ("model", "util")
        for file in (ROOT / folder).rglob("*.py")
        for page, title in re.findall(
            r'docs/(\w+\.md),\s+"([^"]+)"', file.read_text(encoding="utf-8")
        )
    ]
    titles = {page.name: page.read_text(encoding="utf-8") for page in PAGES if "docs" in page.parts}
    assert len(named) > 5
    assert all(f"\n## {title}\n" in titles[page] for page, title in named)


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def backbones(monkeypatch):
    """The registry, which forgets what a test adds."""
    monkeypatch.setattr("model.backbone.BACKBONES", dict(backbone.BACKBONES))


@pytest.mark.slow
def test_the_parts_of_the_examples_take_their_places(backbones, tmp_path, monkeypatch):
    page: dict = {}
    for block in blocks("docs/extend.md", "python"):
        exec(compile(block, "docs/extend.md", "exec"), page)
    net, episode = page["net"].eval(), (page["query"], page["support"], page["support_mask"])
    assert {type(layer) for layer in net.matching} == {page["MeanMatching"]}
    assert type(net.decoder) is page["SumDecoder"]
    with torch.no_grad():
        out, expected = net(*episode), net.reference_forward(*episode)
        torch.testing.assert_close(out.final, expected.final, rtol=1e-4, atol=1e-5)
        # Tokens of supports that were encoded alone make up the same episode.
        supports = split_supports(net.encode_support(*episode[1:]))
        again = net.segment(net.encode_query(episode[0]), stack_supports(supports), (65, 65))
    torch.testing.assert_close(again.final, out.final, rtol=1e-4, atol=1e-5)
    for part in (net.matching, net.decoder):
        assert all(parameter.grad is not None for parameter in part.parameters())
    assert page["small"].base.backbone.grid((65, 65)) == (9, 9)
    # The new backbone is known to the settings, with its file.
    assert page["named"].base.backbone.channels == (64, 64, 128)
    monkeypatch.setattr(loading, "BASES", str(tmp_path))
    (tmp_path / "small.yaml").write_text(blocks("docs/extend.md", "yaml")[-1])
    (tmp_path / "run.yaml").write_text("Train: {data_set: demo}")
    cfg = load_config(str(tmp_path / "run.yaml"), ["backbone", "small"])
    assert (cfg.backbone, cfg.net_name, cfg.backbone_weight) == ("small", "small", "none")
    with pytest.raises(UserError, match=r"train_h = 96: must be 8·n \+ 1 and at least 33"):
        load_config(str(tmp_path / "run.yaml"), ["backbone", "small", "train_h", "96"])


def test_the_example_of_a_dataset_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "DATASETS", str(tmp_path))
    dataset, lvis, _ = blocks("docs/extend.md", "yaml")
    (tmp_path / "mine.yaml").write_text(dataset)
    (tmp_path / "run.yaml").write_text("Train: {data_set: mine, split: 2}\n")
    cfg = load_config(str(tmp_path / "run.yaml"), [])
    assert config_fold(cfg).novel == (5, 6) and cfg.class_names[4] == "nail"
    names = [f"class {number}" for number in range(920)]
    (tmp_path / "mine.yaml").write_text(f"{lvis}  class_names: {names}\n")
    cfg = load_config(str(tmp_path / "run.yaml"), [])
    assert config_fold(cfg).novel == tuple(range(3, 921, 10)) and cfg.masks == "folders"


def test_the_example_of_lvis_writes_masks_and_lines(tmp_path):
    page: dict = {}
    (block,) = (one for one in blocks("docs/extend.md", "python") if "write_masks" in one)
    exec(compile(block, "docs/extend.md", "exec"), page)
    square = [[2, 1, 6, 1, 6, 4, 2, 4]]
    content = {
        "images": [{"id": 42, "height": 8, "width": 10}],
        "categories": [{"id": 1, "name": "nut"}, {"id": 5, "name": "bolt"}],
        "annotations": [
            {"image_id": 42, "category_id": category, "segmentation": square}
            for category in (1, 5, 5)
        ],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    lines = page["write_masks"](tmp_path / "lvis.json", "train2017", tmp_path)
    name = "000000000042"
    assert lines == [f"train2017/{name}.jpg masks/{one}/{name}.png\n" for one in ("nut", "bolt")]
    (tmp_path / "train2017").mkdir()
    Image.new("RGB", (10, 8)).save(tmp_path / f"train2017/{name}.jpg")
    (tmp_path / "list.txt").write_text("".join(lines))
    form = MaskForm(2, ["nut", "bolt"])
    entries = read_entries(str(tmp_path), str(tmp_path / "list.txt"), form)
    labels = [read_pair(str(tmp_path), entry)[1] for entry in entries]
    assert [int((label == class_id).sum()) for class_id, label in enumerate(labels, 1)] == [12, 12]


@pytest.fixture
def own_pictures(tmp_path, monkeypatch):
    """The files that the examples name, in the current folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b", "query", "photos/1", "photos/2"):
        image = rng.integers(0, 80, (200, 240, 3), dtype=np.uint8)
        cv2.circle(image, (120, 100), 50, (220, 60, 40), cv2.FILLED)
        Image.fromarray(image).save(tmp_path / f"{name}.jpg")
    mask = cv2.circle(np.zeros((200, 240), np.uint8), (120, 100), 50, 255, cv2.FILLED)
    Image.fromarray(mask).save(tmp_path / "a.png")
    net = build_hdmnet("resnet18", 5)
    torch.save({"state_dict": net.state_dict(), "size": 33}, tmp_path / "best.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_examples_of_own_pictures_run(own_pictures, capsys):
    page: dict = {"repository": str(ROOT)}
    for block in blocks("docs/own_pictures.md", "python"):
        exec(compile(block, "docs/own_pictures.md", "exec"), page)
    assert page["mask"].shape == (200, 240) and page["result"].mask.shape == (200, 240)
    assert {path.name for path in (own_pictures / "shared").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    pages = blocks("docs/own_pictures.md", "sh")
    commands = [one for one in "".join(pages).splitlines() if "predict" in one]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "predict.py"]
        predict.main(words[2:])
        assert "2 of 2 pictures have labels" in capsys.readouterr().out
    assert (own_pictures / "labels" / "review.png").exists()
    (own_pictures / "query.png").unlink()
    (block,) = (one for one in blocks("README.md", "python") if "segmenter" in one)
    exec(compile(block, "README.md", "exec"), {})
    assert (own_pictures / "query.png").exists()


@pytest.mark.slow
def test_the_cells_of_the_tour_run(tmp_path, monkeypatch, capsys):
    write_demo(tmp_path / "data" / "demo", train=1, val=60)
    (tmp_path / "config").symlink_to(ROOT / "config")
    snapshots = tmp_path / "exp/demo/HDMNet/split0/resnet18/snapshot"
    snapshots.mkdir(parents=True)
    net = build_hdmnet("resnet18", 15)
    torch.save({"state_dict": net.state_dict(), "size": 97}, snapshots / "best_epoch_1_0.5000.pth")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    monkeypatch.setattr(sys, "path", list(sys.path))
    shown: list = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    page: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), page)
            assert cell["outputs"] or "import" in cell["source"][0], (
                "run the notebook before it is saved"
            )
    plt.close("all")
    assert len(shown) == 7
    printed = capsys.readouterr().out
    assert "grids: 4×4, 7×7, 13×13" in printed and "style distance: " in printed
