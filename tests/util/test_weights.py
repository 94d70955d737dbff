import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save as serialise
from safetensors.torch import save_file
from torchvision.models import vgg16_bn

from model import build_hdmnet, build_pspnet
from model.backbone import find_backbone
from tests.golden import SHAPES
from tests.tables import cells_of
from tests.util.weight_data import imagenet, light, light_state, published, timm_state
from util.checkpoints.io import load_backbone, read_checkpoint
from util.weights import main

VGG = Path("initmodel/vgg16_bn.pth")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder with a blank and a letter beyond ASCII, where the commands work."""
    place = tmp_path / "ein Ordner für Gewichte"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def run(run_command, error_line):
    """Runs the command; returns what it printed, or its line of error."""

    def run(*argv, code=0):
        words = [str(word) for word in argv]
        if code:
            return error_line(main, words)
        found, out, err = run_command(main, words)
        assert found == 0, err
        return out

    return run


def left():
    """Files in initmodel/."""
    return sorted(path.name for path in Path("initmodel").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "model", "file"),
    [("resnet50", "resnet50s", "resnet50_v2.pth"), ("vgg", "vgg16_bn", "vgg16_bn.pth")],
)
def test_fetch_writes_the_published_names_once(net, model, file, hub, run):
    state = timm_state(model)
    state = {key: value for key, value in state.items() if not key.startswith("pre_logits.fc")}
    entry = find_backbone("vgg16" if net == "vgg" else net)
    hub.files[entry.hub] = content = serialise(state)
    place = Path("initmodel", file)
    said = run("fetch", net)
    digest = hashlib.sha256(content).hexdigest()[:8]
    assert said == (
        f"{place}: ImageNet weights, {net}: its tensors written (sha256 {digest}); "
        f"from {entry.hub} on huggingface.co, licence {entry.licence}\n"
    )
    assert [path.name for path in Path("initmodel").iterdir()] == [file]
    written = torch.load(place, weights_only=True)
    if net == "resnet50":
        names = {
            "conv1.weight": "conv1.0.weight",
            "bn2.bias": "conv1.4.bias",
            "bn3.bias": "bn1.bias",
        }
        names |= {"conv3.weight": "conv1.6.weight", "layer4.2.bn3.bias": "layer4.2.bn3.bias"}
        assert all(torch.equal(written[ours], state[theirs]) for ours, theirs in names.items())
    load_backbone(entry.build(), place)
    assert run("fetch", net) == f"{place}: exists already\n"
    save_file(state, "by hand.safetensors")
    assert "exists already" in run("import", "by hand.safetensors")


def test_fetch_offline_says_what_to_bring(hub, run, monkeypatch, tmp_path):
    error = run("fetch", "resnet101", code=2)
    page = f"{hub.address}/timm/resnet101s.gluon_in1k"
    assert f"cache {tmp_path / 'cache'}" in error and f"model.safetensors from {page}" in error
    assert "`python -m util.weights import FILE`" in error and left() == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert page in run("fetch", "resnet101", code=2)


def test_a_place_that_cannot_be_written_is_said_before_the_download(hub, run, tmp_path):
    Path("initmodel").symlink_to("/proc")  # It refuses even root.
    error = run("fetch", "resnet50", code=2)
    assert "cannot write in initmodel: " in error and "it gets the weights" in error
    assert not (tmp_path / "cache").exists()


def test_attempts_without_a_network_are_not_listed(run, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    template = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"  # Nobody answers there.
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [caplog.handler])
    assert "could not be downloaded" in run("fetch", "resnet101", code=2)
    assert caplog.text == ""


def test_what_is_not_the_architecture_is_not_kept(hub, run):
    hub.files["timm/resnet50s.gluon_in1k"] = serialise(timm_state("resnet50c"))
    assert "stages.0.0.weight has shape (32, 3, 3, 3)" in run("fetch", "resnet50", code=2)
    assert left() == []
    assert "no public weights of this architecture exist" in run("fetch", "resnet18", code=2)


def test_fetch_keeps_a_file_that_exists(run):
    VGG.parent.mkdir()
    VGG.write_bytes(b"mine")
    assert f"checkpoint {VGG}: holds no weights" in run("fetch", "vgg", code=2)
    assert VGG.read_bytes() == b"mine"


def save(path, state, **details):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, **details}, path)
    return path


def pspnet(net="resnet18", classes=15):
    return light_state(lambda: build_pspnet(net, classes))


def listed(run, *opts):
    """The cells of the table by file, and the lines below it."""
    said = run("list", *opts)
    below = [line for line in said.splitlines() if not line.startswith("|")]
    return {row[1]: row for row in cells_of(said)[2:]}, below


def test_list_names_all_that_can_be_had(run):
    rows, problems = listed(run)
    assert problems == []
    bases = [f"initmodel/PSPNet/{data}/split{i}/{net}/best.pth"
             for data in ("pascal", "coco") for i in range(4) for net in ("resnet50", "vgg")]  # fmt: skip
    images = [f"initmodel/resnet{layers}_v2.pth" for layers in (50, 101, 152)]
    images.append(str(VGG))
    assert set(rows) == {*bases, *images}
    assert {row[2] for row in rows.values()} == {"missing"}
    assert rows[str(VGG)][3] == "timm/vgg16_bn.tv_in1k: python -m util.weights fetch vgg"
    assert rows[bases[1]][3].endswith(
        "python -m util.weights import FILE --dataset pascal --split 0"
    )
    assert run() == run("list")


@pytest.mark.slow
def test_list_tells_good_files_from_bad_ones(run):
    learner = "initmodel/PSPNet/{}/split{}/{}/best.pth"
    save(learner.format("pascal", 0, "resnet50"), published("pspnet_pascal_resnet50"))
    save(learner.format("pascal", 1, "resnet50"), published("pspnet_coco_resnet50"))
    save(learner.format("demo", 2, "resnet18"), pspnet())
    save("exp/pascal/HDMNet/split3_5shot/resnet50/snapshot/published.pth",
         published("hdmnet_pascal_resnet50_5shot"))  # fmt: skip
    save("exp/coco/PSPNet/split0/vgg/snapshot/best_epoch_3_0.4100.pth", pspnet("vgg16", 60))
    save("exp/coco/HDMNet/split0/resnet50/snapshot/best_epoch_9_0.4000.pth",
         published("hdmnet_coco_resnet50_1shot"))  # fmt: skip
    save(VGG, vgg16_bn_state())
    rows, problems = listed(run)
    states = {path: row[2] for path, row in rows.items() if row[2] != "missing"}
    assert states == {
        learner.format("pascal", 0, "resnet50"): "ok",
        learner.format("pascal", 1, "resnet50"): "wrong",
        learner.format("demo", 2, "resnet18"): "ok",
        "exp/pascal/HDMNet/split3_5shot/resnet50/snapshot/published.pth": "ok",
        "exp/coco/PSPNet/split0/vgg/snapshot/best_epoch_3_0.4100.pth": "ok",
        "exp/coco/HDMNet/split0/resnet50/snapshot/best_epoch_9_0.4000.pth": "ok",
        str(VGG): "ok",
    }
    (problem,) = problems
    assert problem.startswith("wrong: checkpoint " + learner.format("pascal", 1, "resnet50"))
    rows, _ = listed(run, "--opts", "exp_dir", "elsewhere")
    assert not any(path.startswith("exp") for path in rows)


def vgg16_bn_state():
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in vgg16_bn().state_dict().items()}
    return light(shapes)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        (lambda: imagenet("resnet50"), "initmodel/resnet50_v2.pth"),
        (lambda: imagenet("resnet101"), "initmodel/resnet101_v2.pth"),
        (vgg16_bn_state, str(VGG)),
    ],
)
def test_imagenet_files_go_to_their_place(state, place, run):
    torch.save(state(), "ImageNet Gewichte ü.pth")
    said = run("import", "ImageNet Gewichte ü.pth")
    assert said.startswith(f"{place}: ImageNet weights, ") and ": copied (sha256 " in said
    assert Path(place).read_bytes() == Path("ImageNet Gewichte ü.pth").read_bytes()
    assert [path.name for path in Path(place).parent.iterdir()] == [Path(place).name]


@pytest.mark.parametrize("variant", [name for name in SHAPES if name.startswith("pspnet")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_base_learners_go_to_their_place(variant, prefix, run):
    _, dataset, backbone = variant.split("_")
    net = "vgg" if backbone == "vgg16" else backbone
    save("best.pth", published(variant, prefix))
    said = run("import", "best.pth", "--dataset", dataset, "--split", "2")
    place = Path(f"initmodel/PSPNet/{dataset}/split2/{net}/best.pth")
    assert said == f"{place}: base learner, {net}, fold 2 of {dataset}: copied\n"
    assert place.read_bytes() == Path("best.pth").read_bytes()
    assert run("import", "best.pth", "--dataset", dataset, "--split", "2").endswith(
        ": exists already\n"
    )


def test_the_path_of_a_file_may_tell_dataset_and_fold(run):
    for split in (0, 3):
        name = f"from BAM/pascal/split{split}/resnet50/best.pth"
        save(name, published("pspnet_pascal_resnet50"))
    run("import", *sorted(Path("from BAM").rglob("*.pth")))
    for split in (0, 3):
        assert Path(f"initmodel/PSPNet/pascal/split{split}/resnet50/best.pth").is_file()


def test_the_options_win_over_the_path(run):
    save("pascal/split0/best.pth", published("pspnet_pascal_vgg16"))
    run("import", "pascal/split0/best.pth", "--dataset", "demo", "--split", "1")
    assert Path("initmodel/PSPNet/demo/split1/vgg/best.pth").is_file()


def test_what_a_file_cannot_tell_is_asked_for(run):
    save("best.pth", published("pspnet_pascal_vgg16"))
    error = run("import", "best.pth", code=2)
    assert "15 base classes; add --dataset, one of demo, pascal" in error
    error = run("import", "best.pth", "--dataset", "pascal", code=2)
    assert "tells the fold; add --split N" in error
    # Of the datasets known only COCO has 60 base classes.
    save("best.pth", published("pspnet_coco_resnet50"))
    run("import", "best.pth", "--split", "1")
    assert Path("initmodel/PSPNet/coco/split1/resnet50/best.pth").is_file()


def test_our_files_tell_their_fold(run):
    held_out = range(6, 11)
    classes = [class_id for class_id in range(1, 21) if class_id not in held_out]
    save("best.pth", pspnet(), base_classes=classes)
    run("import", "best.pth", "--dataset", "demo")
    assert Path("initmodel/PSPNet/demo/split1/resnet18/best.pth").is_file()
    error = run("import", "best.pth", "--dataset", "demo", "--split", "2", code=2)
    assert "was trained on base classes" in error


@pytest.mark.parametrize(
    ("variant", "place", "command"),
    [
        ("hdmnet_pascal_resnet50_1shot", "pascal/HDMNet/split2/resnet50",
         "NET=resnet50 sh test.sh split2 pascal 1 weight published.pth"),
        ("hdmnet_pascal_resnet50_5shot", "pascal/HDMNet/split2_5shot/resnet50",
         "NET=resnet50 sh test.sh split2 pascal 1 shot 5 kshot_trans_dim 2 weight published.pth"),
        ("hdmnet_pascal_resnet50_2shot_dim0", "pascal/HDMNet/split2_2shot/resnet50",
         "NET=resnet50 sh test.sh split2 pascal 1 shot 2 kshot_trans_dim 0 weight published.pth"),
        ("hdmnet_pascal_vgg16_1shot", "pascal/HDMNet/split2/vgg",
         "NET=vgg sh test.sh split2 pascal 1 weight published.pth"),
        ("hdmnet_coco_resnet50_1shot", "coco/HDMNet/split2/resnet50",
         "NET=resnet50 sh test.sh split2 coco 1 weight published.pth"),
    ],
)  # fmt: skip
def test_published_hdmnet_goes_where_the_test_finds_it(variant, place, command, run):
    save("train_epoch_148.pth", published(variant, "module."), epoch=148)
    options = ("--dataset", variant.split("_")[1], "--split", 2, "--opts", "exp_dir", "my runs")
    said = run("import", "train_epoch_148.pth", *options)
    place = Path("my runs", place, "snapshot/published.pth")
    command = command.replace(" weight ", " exp_dir 'my runs' weight ")
    assert said.startswith(f"{place}: HDMNet, ") and f"test it by `{command}`" in said
    assert read_checkpoint(place)["epoch"] == 148


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds neither"),
        ({"weight": torch.ones(1)}, "its first entry is weight"),
        ({"layer0.0.weight": torch.ones(1), "decoder.x": torch.ones(1)}, "belongs to no known"),
    ],
)
def test_foreign_files_are_refused(state, message, run):
    save("some.pth", state)
    assert message in run("import", "some.pth", code=2)
    assert not Path("initmodel").exists()


@pytest.mark.slow
def test_a_file_of_another_backbone_goes_to_its_run(run):
    state = light_state(lambda: build_hdmnet("timm:test_vit", 0))
    save("last.pth", state, backbone="timm:test_vit", base_classes=list(range(1, 16)))
    said = run("import", "last.pth", "--dataset", "pascal")
    place = Path("exp/pascal/HDMNet/split3_nobase/timm_test_vit/snapshot/published.pth")
    command = "NET=timm:test_vit sh test.sh split3 pascal 1 base_learner none weight published.pth"
    assert place.is_file() and f"test it by `{command}`" in said


def test_files_that_fit_no_network_are_refused(run):
    state = imagenet("resnet50")
    save("a.pth", {key: value for key, value in state.items() if key != "layer3.5.conv1.weight"})
    error = run("import", "a.pth", code=2)
    assert "stages.3.5.conv1.weight is missing (1 of" in error
    save("b.pth", state | {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    assert "stem of torchvision's ResNets" in run("import", "b.pth", code=2)
    save("c.pth", published("pspnet_coco_resnet50"))
    error = run("import", "c.pth", "--dataset", "pascal", "--split", "0", code=2)
    assert "classifier.2.weight has shape (61, 512, 1, 1), the model has (16, 512, 1, 1)" in error
    state = published("hdmnet_pascal_resnet50_1shot")
    del state["base_learnear.2.bias"]
    save("f.pth", state)
    assert "HDMNet without its base.classifier.2.bias" in run("import", "f.pth", code=2)
    save("d.pth", imagenet("resnet34"))
    assert "name it by backbone_weight d.pth" in run("import", "d.pth", code=2)
    save("e.pth", imagenet("resnet18"))
    assert "name it by backbone_weight e.pth" in run("import", "e.pth", code=2)
    assert not Path("initmodel").exists()


def test_other_weights_in_the_place_are_kept(run):
    state = imagenet("resnet50")
    place = save("initmodel/resnet50_v2.pth", state)
    before = place.read_bytes()
    save("other.pth", state | {"bn1.bias": torch.ones(64)})
    assert "holds other weights; move it away" in run("import", "other.pth", code=2)
    assert place.read_bytes() == before
    assert run("import", place).count(": in its place already (") == 1


def test_a_copy_that_fails_leaves_nothing(run, monkeypatch):
    save("resnet50.pth", imagenet("resnet50"))

    def full(source, target):
        target.write(source.read(100))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    assert "No space left on device" in run("import", "resnet50.pth", code=2)
    assert left() == []


def test_files_with_more_than_tensors_need_the_flag(run):
    file = save("a b.pth", published("pspnet_pascal_vgg16"), args=SimpleNamespace(lr=0.1))
    options = ("--dataset", "pascal", "--split", "0")
    error = run("import", file, *options, code=2)
    assert "holds more than tensors (types.SimpleNamespace)" in error
    assert "`python -m util.weights import --unsafe 'a b.pth'`" in error
    assert not Path("initmodel").exists()

    assert run("import", "--unsafe", file, *options).endswith(": its tensors written\n")
    place = Path("initmodel/PSPNet/pascal/split0/vgg/best.pth")
    content = torch.load(place, weights_only=True)
    assert set(content) == {"state_dict"}
    expected = pspnet("vgg16")
    assert {k: v.shape for k, v in content["state_dict"].items()} == {
        k: v.shape for k, v in expected.items()
    }
    assert run("import", "--unsafe", file, *options).endswith(": exists already\n")


def test_an_unsafe_file_in_its_place_is_converted_there(run):
    place = save(
        "initmodel/PSPNet/pascal/split1/vgg/best.pth",
        published("pspnet_pascal_vgg16"),
        args=SimpleNamespace(lr=0.1),
    )
    run("import", place, code=2)
    run("import", "--unsafe", place)
    assert set(torch.load(place, weights_only=True)) == {"state_dict"}
    assert [path.name for path in place.parent.iterdir()] == ["best.pth"]


def test_the_flag_copies_plain_files_as_they_are(run):
    save("resnet50.pth", imagenet("resnet50"), epoch=3)
    assert ": copied (" in run("import", "--unsafe", "resnet50.pth")


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize(
    ("build", "variant"),
    [
        (lambda: build_pspnet("vgg16", 15), "pspnet_pascal_vgg16"),
        (lambda: build_hdmnet("resnet50", 15, shot=5), "hdmnet_pascal_resnet50_5shot"),
    ],
)
def test_export_writes_the_published_names(build, variant, module, run):
    ours = light_state(build)
    save("best.pth", ours, shot=5)
    out = Path("to publish/best ü.pth")
    run("export", "best.pth", "--out", out, *["--module"] * module)
    content = torch.load(out, weights_only=True)
    assert set(content) == {"state_dict"}
    prefix = "module." if module else ""
    assert {key: list(value.shape) for key, value in content["state_dict"].items()} == {
        prefix + key: shape for key, shape in SHAPES[variant].items()
    }
    back = read_checkpoint(out)["state_dict"]
    assert all(torch.equal(back[key], value) for key, value in ours.items())


def test_export_takes_the_best_of_a_run(run):
    for epoch in (1, 3, 2):
        name = f"a run/snapshot/best_epoch_{epoch}_0.{epoch}000.pth"
        save(name, light_state(lambda: build_hdmnet("resnet18", epoch)))  # noqa: B023
    said = run("export", "a run", "--out", "best.pth")
    assert "best.pth: a run/snapshot/best_epoch_3_0.3000.pth, HDMNet of resnet18" in said
    assert len(read_checkpoint("best.pth")["state_dict"]["base.classifier.2.bias"]) == 4
    assert "name the run's folder" in run("export", "best", "--out", "x.pth", code=2)


def test_export_refuses_what_has_no_other_names(run):
    save("resnet50.pth", imagenet("resnet50"))
    assert "have the published names" in run("export", "resnet50.pth", "--out", "x.pth", code=2)
    for backbone, classes, network in (
        ("timm:test_vit", 15, "timm:test_vit"),
        ("resnet18", 0, "resnet18 without a base learner"),
    ):
        state = light_state(lambda: build_hdmnet(backbone, classes))  # noqa: B023
        save("other.pth", state, backbone=backbone)
        error = run("export", "other.pth", "--out", "x.pth", code=2)
        assert f"HDMNet of {network}, and the published code has no such network" in error
    assert "there is no such file" in run("export", "no.pth", "--out", "x.pth", code=2)
    assert not Path("x.pth").exists()
    assert "end the name with .pth" in run("export", "other.pth", "--out", "notes.py", code=2)
    Path("file").touch()
    assert "cannot write in file: " in run("export", "other.pth", "--out", "file/x.pth", code=2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bring"], "invalid choice: 'bring'"),
        (["import"], "required: FILE"),
        (["export", "a.pth"], "required: --out"),
        (["import", "a.pth", "--split", "x"], "invalid int value: 'x'"),
        (["import", "a.pth"], "there is no such file"),
    ],
)
def test_wrong_command_lines_are_one_line(argv, message, run):
    assert message in run(*argv, code=2)
