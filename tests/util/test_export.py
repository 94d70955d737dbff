"""Exported graphs give the logits of the model; the script of the docs runs them."""

import json
import re
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from segmenter import FewShotSegmenter, Support
from tests.model.random_nets import random_net
from tests.paths import ROOT
from util import export

pytestmark = pytest.mark.slow
needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, export.PACKAGES)), reason="requirements-export.txt is not installed"
)
FORMATS = [pytest.param("onnx", marks=needs_onnx), "pt2"]


def save(net, path, backbone, size):
    state = {"state_dict": net.state_dict(), "backbone": backbone, "size": size}
    torch.save(state | {"prior": net.prior}, path)
    return str(path)


@pytest.fixture(scope="module")
def net():
    """A net for two supports, whose learned weights are far from equal, and both labels occur."""
    net = random_net("resnet18", shot=2)
    with torch.no_grad():
        net.ensemble.shot_weights.weight.copy_(torch.tensor([[9.0, 0], [0, -9]])[..., None, None])
        net.ensemble.adjustment_merge.weight[:, 1] = 30
        net.ensemble.background_merge.weight.copy_(torch.tensor([1.0, 0.165])[None, :, None, None])
    return net


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    return save(net, tmp_path_factory.mktemp("weights") / "best.pth", "resnet18", 65)


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    """Make the folder of a format once."""
    folders = {}

    def make(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            export.main(["--weights", weights, "--out", str(folders[kind]), "--format", kind])
        return folders[kind]

    return make


def read(folder):
    about = json.loads((folder / "export.json").read_text("utf-8"))
    graphs = {
        name: export.Graph((folder / graph["file"]).read_bytes(), graph["inputs"], graph["outputs"])
        for name, graph in about["graphs"].items()
    }
    return about, graphs


@pytest.mark.parametrize("kind", FORMATS)
@torch.no_grad()
def test_the_files_give_the_logits_of_the_model_for_any_number_of_supports(kind, net, exported):
    about, written = read(exported(kind))
    graphs = {name: export.load(graph, kind) for name, graph in written.items()}
    assert about["size"] == 65 and about["trained_shot"] == 2
    for queries, shot in ((1, 1), (2, 2), (1, 4)):
        query, support, mask = export.random_episode(queries, shot, 65)
        found = export.segment(graphs, query, support, mask)
        features = net.encode_support(support[None], mask[None])
        for index in range(queries):
            one = net.encode_query(query[index : index + 1])
            out = net.for_shot(shot).segment(one, features, (65, 65))
            for name in ("final", "meta"):
                expected = getattr(out, name)[0]
                assert (found[name][index] - expected).abs().max() < 1e-4 * expected.abs().max()
    # The learned weights of two supports matter here.
    equal = net.ensemble.for_shot(2)
    distances = torch.tensor([[0.01, 0.05]])
    assert (net.ensemble.adjustment(distances) - equal.adjustment(distances)).abs() > 1e-3


def test_pt2_needs_none_of_the_packages(weights, tmp_path, monkeypatch, error_line):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert error_line(export.main, ["--weights", weights, "--out", str(tmp_path / "onnx")]) == (
        "error: --format onnx needs onnx, onnxscript, onnxruntime: "
        "pip install -r requirements-export.txt\n"
    )
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ("64", "size 64: resnet18 takes 8·n + 1 and at least 33; the nearest is 65"),
        ("65", "of the largest logit, more than -1e+00: nothing was written"),
    ],
)
def test_what_fails_writes_nothing(
    size, reason, weights, exported, tmp_path, monkeypatch, error_line
):
    graphs = read(exported("pt2"))[1]
    monkeypatch.setattr(export, "export", lambda *_: graphs)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    words = ["--weights", weights, "--out", str(tmp_path), "--format", "pt2", "--size", size]
    assert reason in error_line(export.main, words)
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.faults
@pytest.mark.parametrize(
    ("backbone", "size", "options"),
    [
        ("resnet50", 33, {"shot": 5}),
        ("vgg16", 57, {}),
        ("timm:vit_small_patch14_dinov2", 70, {"classes": 0, "prior": "minmax"}),
    ],
)
def test_backbones(backbone, size, options, tmp_path, capsys):
    file = save(random_net(backbone, **options), tmp_path / "best.pth", backbone, size)
    export.main(["--weights", file, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert float(re.search(r"largest deviation from the model: (\S+)", said)[1]) < 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "encoder.onnx",
        "support.onnx",
        "matcher.onnx",
        "export.json",
    }


@needs_onnx
def test_the_script_of_the_docs_gives_the_mask_of_the_segmenter(
    weights, exported, tmp_path, monkeypatch
):
    folder = exported("onnx")
    page = (ROOT / "docs/export.md").read_text("utf-8")
    script = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    for name in ("query", "a", "b"):
        image = rng.integers(0, 80, (90, 120, 3), dtype=np.uint8)
        cv2.circle(image, (60, 45), 30, (220, 60, 40), cv2.FILLED)
        Image.fromarray(image).save(f"{name}.png")
        mask = cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 30, 255, cv2.FILLED)
        Image.fromarray(mask).save(f"{name}_mask.png")
    words = [str(folder), "query.png", "out.png", "a.png", "a_mask.png", "b.png", "b_mask.png"]
    monkeypatch.setattr("sys.argv", ["segment.py", *words])
    names: dict = {}
    exec(compile(script, "docs/export.md", "exec"), names)
    segmenter = FewShotSegmenter.from_pretrained(weights, device="cpu")
    supports = segmenter.fit([Support(f"{name}.png", mask=f"{name}_mask.png") for name in "ab"])
    result = segmenter.segment("query.png", supports)
    assert np.abs(names["probability"] - result.probability).max() < 1e-4
    found = np.asarray(Image.open("out.png")) > 0
    sure = np.abs(result.probability - 0.5) > 1e-4
    assert (found == result.mask)[sure].all() and sure.mean() > 0.8
    assert 0 < result.mask.mean() < 1
