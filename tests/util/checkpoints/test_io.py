import errno
import os
import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.vgg import cfgs, make_layers

from model import build_hdmnet, build_pspnet
from model.backbone import build_backbone
from tests.golden import SHAPES, published_state
from tests.util.weight_data import imagenet, light_state
from util.checkpoints.io import (
    check_classes,
    check_fit,
    load_backbone,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from util.checkpoints.published_names import from_published, to_published
from util.runtime.errors import UserError


def model_of(variant):
    """Our model of a published variant, without allocating its weights."""
    kind, dataset, backbone, *rest = variant.split("_")
    classes = {"pascal": 15, "coco": 60}[dataset]
    with torch.device("meta"):
        if kind == "pspnet":
            return build_pspnet(backbone, classes)
        shot = int(rest[0].removesuffix("shot"))
        return build_hdmnet(
            backbone, classes, shot=shot, kshot_trans_dim=0 if rest[-1] == "dim0" else 2
        )


@pytest.mark.parametrize("variant", SHAPES)
def test_conversion_covers_every_variant_both_ways(variant):
    published = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[variant].items()}
    ours = model_of(variant).state_dict()
    converted = from_published(published)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
    back = to_published(ours)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in published.items()}


@pytest.fixture(scope="module")
def published():
    """A published base learner; its file holds the encoder's tensors twice."""
    state = published_state("pspnet_pascal_vgg16")
    twice = {key: state[key.replace("encoder.", "layer")] for key in state if key[:2] == "en"}
    return state | twice


@pytest.mark.parametrize("wrapped", [True, False])
def test_published_files_are_read_with_our_names_and_converted_back(wrapped, published, tmp_path):
    wrapper = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in published.items()}}
    torch.save(wrapper if wrapped else published, tmp_path / "some.pth")
    state = read_checkpoint(tmp_path / "some.pth")["state_dict"]
    with torch.device("meta"):
        check_fit(build_pspnet("vgg16", 15), state, "some.pth")
    back = to_published(state)
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], published[key]) for key in published)


def test_a_foreign_entry_in_a_file_names_the_file(tmp_path):
    state = {"layer0.0.weight": torch.ones(1), "other.weight": torch.ones(1)}
    torch.save(state, tmp_path / "some.pth")
    with pytest.raises(UserError, match=r"'other\.weight' belongs to no known.*some\.pth\)$"):
        read_checkpoint(tmp_path / "some.pth")


def small():
    return torch.nn.Linear(2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bias"), r"bias is missing \(1 of 2"),
        (lambda s: s.update(other=torch.ones(1)), r"other is unexpected \(1 of 2"),
        (lambda s: s.update(bias=torch.ones(4)), r"bias has shape \(4,\), the model has \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(change, message):
    net, state = small(), small().state_dict()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    change(state)
    with pytest.raises(UserError, match=f"checkpoint some.pth does not fit.*{message}"):
        load_weights(net, state, "some.pth")
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    # The check needs no memory for the model.
    with pytest.raises(UserError, match=message):
        check_fit(net.to("meta"), state, "some.pth")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"backbone": "resnet34"}, r"backbone\.stages\.\S+ is unexpected.*check backbone"),
        ({"base_classes": 5}, r"2\.weight has shape \(6, .*number of base classes: check data_set"),
        ({"shot": 2}, r"shot_weights\.0\.weight has shape .*another shot or kshot_trans_dim"),
        ({"kshot_trans_dim": 0}, r"shot_weights\.0\.weight is missing.*another shot or kshot"),
    ],
)
def test_the_cause_is_named_where_weights_do_not_fit(other, message):
    own = {"backbone": "resnet18", "base_classes": 3, "shot": 3}
    with torch.device("meta"):
        net, state = build_hdmnet(**own), build_hdmnet(**own | other).state_dict()
    with pytest.raises(UserError, match=message):
        check_fit(net, state, "some.pth")


def test_saved_files_come_back(tmp_path):
    path = tmp_path / "new folder" / "last.pth"
    state = small().state_dict()
    save_checkpoint(path, {"state_dict": state, "shot": 5})
    assert [p.name for p in path.parent.iterdir()] == ["last.pth"]
    older = tmp_path / "older.pth"
    torch.save({"state_dict": state, "shot": 5}, older, _use_new_zipfile_serialization=False)
    for file in (path, older):
        for mapped in (False, True):
            content = read_checkpoint(file, mapped=mapped)
            assert content["shot"] == 5
            assert torch.equal(content["state_dict"]["weight"], state["weight"])


def test_a_failed_save_leaves_the_file_before(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"state_dict": small().state_dict()})
    before = path.read_bytes()
    with pytest.raises(Exception, match="<lambda>"):
        save_checkpoint(path, {"state_dict": {}, "unpicklable": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"last\.pth cannot be written \(No space left .*: free some space or name"),
        (
            errno.EROFS,
            r"last\.pth cannot be written \(Read-only .*: its folder a b cannot be written",
        ),
    ],
)
def test_a_full_disk_and_a_folder_that_cannot_be_written_are_told_apart(
    code, message, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=message) as error:
        save_checkpoint("a b/last.pth", {"state_dict": {}})
    assert "Errno" not in str(error.value)


def test_weights_of_another_fold_are_refused():
    content = {"base_classes": [1, 2, 4]}
    check_classes(content, (1, 2, 4), "some.pth")
    check_classes({}, (1, 2, 3), "published.pth")
    with pytest.raises(UserError, match=r"some.pth was trained on base classes \[1, 2, 4\]"):
        check_classes(content, (1, 2, 3), "some.pth")


class Touch:
    """Makes a file when it is unpickled: what an evil checkpoint would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run_and_the_flag_is_named(zipped, tmp_path):
    path, made = tmp_path / "some weights.pth", tmp_path / "made"
    content = {"state_dict": small().state_dict(), "args": Touch(str(made))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    name = f"{open.__module__}.open"  # io, or _io from Python 3.13 on
    assert f"checkpoint {path}: holds more than tensors ({name})" in str(error.value)
    assert f"`python -m util.weights import --unsafe '{path}'`" in str(error.value)
    assert "\n" not in str(error.value) and not made.exists()
    read_checkpoint(path, unsafe=True)
    assert made.exists()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_are_found_under_the_usual_names(key, prefix, tmp_path):
    state = {prefix + name: value for name, value in small().state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "some.pth")
    content = read_checkpoint(tmp_path / "some.pth")
    assert set(content["state_dict"]) == {"weight", "bias"}
    assert content.get("epoch") == (3 if key else None)


@pytest.mark.parametrize("name", ["some.safetensors", "renamed.pth"])
def test_safetensors_are_read(name, tmp_path):
    state = small().state_dict()
    save_file(state, tmp_path / name)
    found = read_checkpoint(tmp_path / name)["state_dict"]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "is empty"),
        (b"PK\x03\x04 torn", "not readable as weights"),
        (b"\x09\0\0\0\0\0\0\0{not JSON", "not readable as weights"),
        (b"\n<!DOCTYPE html>\n<html>", "holds no weights but a text that begins '<!DOCTYPE html>'"),
        ([1, 2], "holds no state_dict"),
        ({"state_dict": {"weight": 3}}, "holds no state_dict"),
        ({3: torch.ones(1)}, "holds no state_dict"),
    ],
)
def test_unusable_files_are_named(content, message, tmp_path):
    path = tmp_path / "some.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=re.escape(f"checkpoint {path}: {message}")) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_torn_file_is_to_be_copied_again(tmp_path):
    path = tmp_path / "some.pth"
    torch.save({"state_dict": small().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:600])
    # Without the advice that torch appends to the reason.
    with pytest.raises(UserError, match=r"weights \([^.]*\); copy or download it again$"):
        read_checkpoint(path)


def test_imagenet_vgg_weights_of_torchvision_fit(tmp_path):
    # Without the large classifier, which is not used.
    donor = make_layers(cfgs["D"], batch_norm=True).eval()
    # The file that torchvision serves is older than these counters.
    state = {
        f"features.{key}": value
        for key, value in donor.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(state | {"classifier.6.bias": torch.ones(1000)}, tmp_path / "vgg16_bn.pth")
    backbone = build_backbone("vgg16").eval()
    load_backbone(backbone, tmp_path / "vgg16_bn.pth")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        # The last stage ends before torchvision's last pool.
        torch.testing.assert_close(backbone(image).f4, donor[:43](image))


def test_imagenet_deep_stem_weights_fit(tmp_path):
    state, backbone = imagenet("resnet18"), build_backbone("resnet18")
    assert {"conv1.weight", "bn3.running_var", "layer4.1.conv2.weight"} <= set(state)
    path = tmp_path / "resnet18_v2.pth"
    torch.save(state, path)
    load_backbone(backbone, path)
    for key, value in light_state(lambda: build_backbone("resnet18")).items():
        assert torch.equal(backbone.state_dict()[key], value.to(backbone.state_dict()[key])), key
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(UserError, match=r"resnet18_v2\.pth has the stem of torchvision's ResNets"):
        load_backbone(backbone, path)
