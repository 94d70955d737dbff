"""A copy of the published code beside ours; a small stand-in with its interface is the copy."""

import sys

import pytest
import torch

import model
from benchmark import model as benchmark
from benchmark import published
from benchmark.cases import Case, Lab
from model.backbone import BACKBONES
from util.checkpoints.published_names import to_published
from util.runtime.errors import UserError

COPY = """
import torch
from model.parts_of_theirs import halves  # of this package, not of ours

class OneModel(torch.nn.Module):
    def __init__(self, args, cls_type=None):
        super().__init__()
        assert cls_type == "Base" and (args.layers, args.vgg) == (50, False)
        self.args, self.weight = args, torch.nn.Parameter(torch.ones(()))
        torch.load("./initmodel/resnet50_v2.pth", map_location="cpu")
        self.base = torch.load(args.pre_weight, map_location=torch.device("cpu"))["state_dict"]

    def load_state_dict(self, state):
        self.state = state

    def freeze_modules(self, model):
        assert model is self

    def get_optim(self, model, args, LR):
        return torch.optim.AdamW(model.parameters(), LR, weight_decay=args.weight_decay)

    def forward(self, x, y_m=None, y_b=None, s_x=None, s_y=None, cat_idx=None):
        assert s_x.shape[1] == s_y.shape[1] == self.args.shot
        logits = halves(x[:, :2]) * self.weight
        if not self.training:
            return logits, logits, x
        assert y_m.shape == y_b.shape and len(cat_idx[0]) == len(x)
        return logits.max(1)[1], logits.mean(), logits.std(), x.mean()
"""


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/HDMNet.py").write_text(COPY)
    (tmp_path / "model/parts_of_theirs.py").write_text("def halves(x):\n    return x / 2\n")
    return tmp_path


def test_the_copy_is_measured_with_our_weights(copy, monkeypatch):
    monkeypatch.setattr(benchmark, "cpu_peak_bytes", lambda *_: 2**20)
    lab = Lab(Case(False, 65, 1, 1), torch.device("cpu"), copy)
    found = benchmark.measure_steps(lab, "float32", 1)
    theirs = lab.published.net
    assert theirs.args.data_set == "pascal" and theirs.args.shot == 1
    state = to_published(lab.net.state_dict())
    assert theirs.state.keys() == state.keys()
    assert all(torch.equal(theirs.state[key], value) for key, value in state.items())
    assert theirs.base.keys() == to_published(lab.net.base.state_dict()).keys()
    # Ours are the packages of this process again.
    assert sys.modules["model"] is model and "model.parts_of_theirs" not in sys.modules

    record = {"ceilings": {"float32": 1e12}, "published": True}
    row = benchmark._row(found | {"name": "case", "precision": "float32"}, record)
    assert float(row["published, s"]) > 0 and row["faster than it"].endswith("×")
    assert row["published, MiB"] == "1" and row["smaller than it"] == "1.0×"
    assert float(row["its difference"]) > 0.01  # The stand-in segments otherwise.


def test_a_training_step_of_the_copy_changes_its_weights(copy):
    lab = Lab(Case(True, 65, 2, 2, base_classes=60), torch.device("cpu"), copy)
    step = lab.step("published")
    theirs = lab.published.net
    assert theirs.args.data_set == "coco" and theirs.args.shot == 2
    step()
    assert theirs.weight != 1 and theirs.weight.grad is not None
    lab.forget_gradients()
    assert theirs.weight.grad is None


def test_a_copy_that_lacks_a_module_is_one_line(copy):
    (copy / "model/HDMNet.py").write_text("import no_such_module\n")
    lab = Lab(Case(False, 65, 1, 1), torch.device("cpu"), copy)
    with pytest.raises(UserError, match="needs the module no_such_module, which is missing"):
        lab.test("published")
    (copy / "model/HDMNet.py").write_text("")
    with pytest.raises(UserError, match="is not the published code"):
        lab.test("published")
    assert sys.modules["model"] is model


def test_backbones_of_the_published_code_are_known_here():
    assert published.BACKBONES.keys() <= BACKBONES.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--published", "model"], "there is no model/HDMNet.py in it"),
        (["--published", ".", "--small"], "--small is without --published"),
        (["--published", ".", "--backbone", "resnet18"], "no other backbones than resnet50"),
        (["--size", "100"], "size 100: "),
        (["--out", "model/HDMNet.py"], "cannot write in model/HDMNet.py: "),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(copy, monkeypatch, error_line, words, message):
    monkeypatch.chdir(copy)
    assert message in error_line(benchmark.main, words)
