"""Configuration: what loads, what wins, and one clear line for everything that is wrong."""

import glob
import inspect
import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from model import HDMNet
from tests.paths import ROOT
from tests.util.config import settings_page
from util.checkpoints.run_files import RunFiles
from util.config import VIZ, Config, config_parser, dump_config, fields, load_config
from util.config.fields import SECTIONS
from util.runtime.errors import UserError

DATASETS = ("coco", "demo", "pascal")  # beside them may be the user's own
SHIPPED = [
    path
    for dataset in DATASETS
    for path in sorted(glob.glob(str(ROOT / f"config/{dataset}/*_split*_*.yaml")))
]

PUBLISHED = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")

SMALL = "Train: {data_set: tiny}\nData: {num_classes: 8}\n"


def write(folder, text, name="some config.yaml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def load(folder, text=SMALL, *opts):
    return load_config(write(folder, text), list(opts))


def error_of(path, opts=()):
    """What is said of settings that are refused."""
    with pytest.raises(UserError) as caught:
        load_config(path, opts)
    return str(caught.value)


def test_a_published_file_loads_unchanged(tmp_path):
    cfg = load(tmp_path, PUBLISHED, "merge", "base")
    assert cfg.data_root == "../data/VOCdevkit2012/VOC2012"
    assert cfg.base_data_root is None and cfg.weight is None and cfg.resume == "auto"
    assert (cfg.num_classes, cfg.class_names[-1], cfg.test_num) == (20, "tvmonitor", 1000)
    assert cfg.base_lr == 1e-4 and cfg.zoom_factor == 8
    assert isinstance(cfg.aux_weight1, float) and isinstance(cfg.rotate_min, float)
    assert (cfg.backbone, cfg.net_name) == ("vgg16", "vgg")
    assert (cfg.merge, cfg.merge_tau) == ("base", 0.9)  # read without effect
    assert str(RunFiles(cfg).folder) == "exp/pascal/HDMNet/split1/vgg"
    assert str(RunFiles(cfg).base_folder) == "exp/pascal/PSPNet/split1/vgg"
    assert str(RunFiles(cfg).published_base) == "initmodel/PSPNet/pascal/split1/vgg/best.pth"


def test_published_coco_folds_follow_use_split_coco(tmp_path):
    text = PUBLISHED.replace("pascal", "coco")
    assert load(tmp_path, text).effective_folds == "contiguous"
    interleaved = load(tmp_path, text, "use_split_coco", "True")
    assert interleaved.effective_folds == "interleaved"
    assert (interleaved.num_classes, interleaved.test_num) == (80, 10000)
    assert interleaved.class_names[0] == "person" and interleaved.class_names[79] == "toothbrush"


def test_values_left_empty_are_set_by_opts(tmp_path):
    cfg = load(tmp_path, PUBLISHED, "weight", "some where/best.pth", "pre_weight=a=b")
    assert (cfg.weight, cfg.pre_weight) == ("some where/best.pth", "a=b")


def test_every_fold_of_every_dataset_has_its_files():
    names = {os.path.basename(path) for path in SHIPPED}
    for dataset, small in (("pascal", "resnet101"), ("coco", "resnet101"), ("demo", "resnet18")):
        files = {
            f"{dataset}_split{i}_{n}.yaml" for i in range(4) for n in ("resnet50", "vgg", small)
        }
        assert files <= names


@pytest.mark.parametrize("path", SHIPPED, ids=os.path.basename)
def test_shipped_files_load_and_mean_what_their_names_say(path):
    cfg = load_config(path)
    dataset, split, net = Path(path).stem.split("_")
    assert (cfg.data_set, f"split{cfg.split}", cfg.net_name) == (dataset, split, net)
    assert cfg.train_list and cfg.val_list and cfg.data_root and RunFiles(cfg).imagenet_weight
    size, epochs, ratio = {
        "pascal": (473, 200, 1.0),
        "coco": (633, 50, 10.0),
        "demo": (cfg.val_size, cfg.epochs, cfg.base_encoder_ratio),
    }[dataset]
    assert (cfg.train_h, cfg.train_w, cfg.val_size) == (size, size, size)
    assert (cfg.epochs, cfg.base_encoder_ratio) == (epochs, ratio)
    assert cfg.effective_folds == ("interleaved" if dataset == "coco" else "contiguous")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config/base").glob("*.yaml")), ids=os.path.basename
)
def test_every_backbone_has_a_file_that_means_what_its_name_says(path, tmp_path):
    if path.stem in DATASETS:
        return
    cfg = load_config(path, ["data_set", "tiny", "num_classes", "8"])
    assert cfg.net_name == path.stem
    by_name = load(tmp_path, SMALL, "backbone", path.stem)
    assert by_name.model_dump() | {"layers": cfg.layers, "vgg": cfg.vgg} == cfg.model_dump()


def test_the_name_of_the_backbone_and_the_published_keys_end_each_other(tmp_path):
    write(tmp_path, "Method: {backbone: resnet18}", "named.yaml")
    write(tmp_path, "Method: {layers: 101}", "published.yaml")
    named = "_base_: [published.yaml, named.yaml]\n" + SMALL
    assert load(tmp_path, named).backbone == "resnet18"
    assert load(tmp_path, named, "vgg", "True").backbone == "vgg16"
    assert load(tmp_path, named, "layers", "34").backbone == "resnet34"
    published = "_base_: [named.yaml, published.yaml]\n" + SMALL
    assert load(tmp_path, published).backbone == "resnet101"
    assert load(tmp_path, published, "backbone", "vgg").backbone == "vgg16"
    dump_config(load(tmp_path, published), tmp_path / "dumped.yaml")
    assert load_config(tmp_path / "dumped.yaml").backbone == "resnet101"
    with pytest.raises(UserError, match=r"--opts: backbone = resnet51: .* is none of resnet18, "):
        load(tmp_path, SMALL, "backbone", "resnet51")


def test_the_child_wins_over_its_bases_and_a_later_base_over_an_earlier(tmp_path):
    write(tmp_path, "Train: {shot: 2, epochs: 5, workers: 1}\nData: {num_classes: 8}", "b/one.yaml")
    write(tmp_path, "Train: {epochs: 6, workers: 2}", "b/two.yaml")
    text = "_base_: [b/one.yaml, b/two.yaml]\nTrain: {data_set: tiny, workers: 3, epochs: }"
    cfg = load(tmp_path, text)
    assert (cfg.shot, cfg.epochs, cfg.workers) == (2, 6, 3)
    assert load(tmp_path, text, "workers", "4").workers == 4


def test_two_bases_may_share_a_base(tmp_path):
    write(tmp_path, SMALL, "root.yaml")
    write(tmp_path, "_base_: root.yaml", "left.yaml")
    write(tmp_path, "_base_: [root.yaml]", "right.yaml")
    assert load(tmp_path, "_base_: [left.yaml, right.yaml]").data_set == "tiny"


def test_the_dataset_is_described_by_one_file_and_loses_against_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("util.config.loading.DATASETS", str(tmp_path / "datasets"))
    described = "Data: {num_classes: 6, folds: [[1, 2], [3, 5]], min_pixels: 7}"
    write(tmp_path, described, "datasets/birds.yaml")
    text = "Train: {data_set: birds, split: 1}\nData: {min_pixels: }"
    cfg = load(tmp_path, text)
    assert (cfg.num_classes, cfg.effective_folds, cfg.min_pixels) == (6, [[1, 2], [3, 5]], 7)
    assert load(tmp_path, text, "min_pixels", "9").min_pixels == 9
    assert load(tmp_path, "Train: {data_set: other}", "data_set=birds").num_classes == 6


def test_a_key_is_good_in_any_section(tmp_path):
    assert load(tmp_path, SMALL + "Method: {shot: 5}").shot == 5


def test_opts_forms_and_order(tmp_path):
    cfg = load(
        tmp_path,
        SMALL,
        *("shot=2", "TRAIN.split", "1", "rotate_min", "-20", "base_lr", "1e-3", "Method.vgg=True"),
        *("folds", "[[1, 2], [3]]", "exp_name", "2024", "shot", "3", "merge", "final"),
    )
    assert (cfg.shot, cfg.split, cfg.rotate_min, cfg.base_lr, cfg.vgg) == (3, 1, -20.0, 1e-3, True)
    assert (cfg.folds, cfg.exp_name, cfg.merge) == ([[1, 2], [3]], "2024", "final")


def test_every_setting_of_the_model_is_handed_to_it(tmp_path):
    given = {
        "backbone": "resnet18",
        "shot": 3,
        "kshot_trans_dim": 0,
        "low_fea": "layer3",
        "kshot_order": "restored",
        "prior": "minmax",
        "fix_bn": False,
        "checkpoint_activations": True,
        "backbone_dtype": "bf16",
    }
    cfg = load(tmp_path, SMALL, *(f"{key}={value}" for key, value in given.items()))
    assert cfg.model_arguments == given | {"backbone_dtype": torch.bfloat16}
    assert load(tmp_path).model_arguments["backbone_dtype"] is None
    # What the model takes besides comes from the weights, or is for code that extends it.
    others = {"self", "base", "trained_shot", "matching", "decoder"}
    taken = set(inspect.signature(HDMNet.__init__).parameters) - others
    assert taken == given.keys() - {"backbone"}


def test_an_empty_opt_takes_an_earlier_one_back(tmp_path):
    assert load(tmp_path, SMALL, "shot", "2", "shot", "").shot == 1


def test_the_word_none_is_an_explicit_no_value(tmp_path):
    cfg = load(tmp_path, SMALL, "manual_seed", "none", "resume", "None", "backbone_weight", "none")
    assert (cfg.manual_seed, cfg.resume, cfg.backbone_weight) == (None, "none", "none")
    assert load(tmp_path).manual_seed == 321 and load(tmp_path).backbone_weight is None


@pytest.mark.parametrize(
    ("opts", "path"),
    [
        (("layers", "101"), "initmodel/resnet101_v2.pth"),
        (("vgg", "True"), "initmodel/vgg16_bn.pth"),
        (("layers", "18"), None),
        (("layers", "50", "backbone_weight", "none"), "none"),
        (("layers", "50", "backbone_weight", "my.pth"), "my.pth"),
    ],
)
def test_stage_1_starts_from_the_published_files_unless_told(opts, path, tmp_path):
    assert RunFiles(load(tmp_path, SMALL, *opts)).imagenet_weight == path


def test_paths_tell_shots_and_experiments_apart(tmp_path):
    several = RunFiles(load(tmp_path, SMALL, "shot", "5"))
    assert str(several.folder) == "exp/tiny/HDMNet/split0_5shot/resnet50"
    named = load(tmp_path, SMALL, "exp_name", "wide", "exp_dir", "out", "layers", "101")
    assert str(RunFiles(named).folder) == "out/tiny/HDMNet/wide/resnet101"
    assert str(RunFiles(named).base_folder) == "out/tiny/PSPNet/split0/resnet101"
    kept = RunFiles(load(tmp_path, SMALL + "Method: {mixed_images: background}"))
    assert str(kept.folder) == "exp/tiny/HDMNet/split0_background/resnet50"
    assert str(kept.base_folder) == "exp/tiny/PSPNet/split0/resnet50"
    assert kept.command("train.sh").endswith("split0 tiny 1 mixed_images background")
    ignored = RunFiles(load(tmp_path, SMALL, "mixed_images", "ignore", "exp_name", "wide"))
    assert str(ignored.folder) == "exp/tiny/HDMNet/wide_ignore/resnet50"
    assert str(ignored.base_folder) == "exp/tiny/PSPNet/split0_ignore/resnet50"
    place = "initmodel/PSPNet/tiny/split0_ignore/resnet50/best.pth"
    assert str(ignored.published_base) == place


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["manual_seed", "none", "base_lr", "1e-7", "folds", "[[1,2],[3,4]]", "merge", "base"],
        ["backbone_weight", "none", "resume", "none", "weight", "wörds and blanks.pth"],
    ],
)
def test_a_dumped_configuration_loads_to_an_equal_one(tmp_path, opts):
    cfg = load(tmp_path, SMALL, *opts)
    with pytest.raises(ValueError, match="frozen"):
        cfg.shot = 5
    path = tmp_path / "new folder" / "config.yaml"
    dump_config(cfg, path)
    assert load_config(path) == cfg
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))) == list(SECTIONS)
    assert [entry.name for entry in path.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Train: {bathc_size: 3}", "bathc_size = 3: unknown key; did you mean batch_size?"),
        ("Data: {fold_list: a.txt}", "replaced by the settings protocol hsnet and hsnet_list FILE"),
        ("Train: {subepoch_val: 1}", "subepoch_val = 1: unknown key; did you mean SubEpoch_val?"),
        ("Tain: {shot: 3}", "Tain: unknown section; did you mean Train?"),
        ("Xyz: {shot: 3}", "Xyz: unknown section; sections are Data, Train, Base, Method, Test_F"),
        ("shot: 3", "shot: unknown section; put this key under Train:"),
        ("Train: 3", "Train = 3: a section holds KEY: VALUE lines"),
        ("Data: {shot: 2}\nTrain: {shot: 3}", "shot = 3: another section of this file says 2"),
        ("Train: {shot: 2, shot: 3}", "line 1: not valid YAML: the key shot occurs twice"),
        ("Train: [", "not valid YAML: "),
        ("- 1", "holds a list, not sections with keys"),
        ("Train: {shot: 3}", "data_set is not set"),
        ("", "data_set is not set"),
        ("Train: {data_set: pascla}", "data_set = pascla: unknown dataset; did you mean pascal?"),
        ("Train: {data_set: xyz}", "num_classes in "),
        ("_base_: no.yaml", "_base_ = no.yaml: there is no file "),
        ("_base_: {a: b}", "_base_ = {'a': 'b'}: must be a list of files"),
        ("_base_: [some config.yaml]", "_base_ leads back to this file"),
    ],
)
def test_wrong_files_are_one_line_that_names_them(tmp_path, text, message):
    path = write(tmp_path, text)
    error = error_of(path)
    assert error.startswith(path) and message in error


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"missing.yaml: no such configuration file"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.yaml: not a text file in UTF-8"):
        load_config(tmp_path / "binary.yaml")


WRONG = [
    ("shot = 0", "should be at least 1"),
    ("shot = 1.5", "should be a whole number"),
    ("shot = true", "should be a whole number"),
    ("zoom_factor = true", "should be 8"),
    ("zoom_factor = 3", "should be 8"),
    ("base_lr = fast", "should be a number"),
    ("base_lr = true", "should be a number"),
    ("base_lr = 0", "should be above 0"),
    ("base_lr = .nan", "should be a"),
    ("weight_decay = -1", "should be at least 0"),
    ("momentum = 2", "should be at most 1"),
    ("fix_bn = 1", "should be True or False"),
    ("classes = 3", "should be 2"),
    ("ignore_label = 0", "should be 255"),
    ("layers = 51", "should be 18, 34, 50, 101 or 152"),
    ("low_fea = layer1", "should be 'layer2', 'layer3' or 'layer4'"),
    ("ann_type = box", "should be 'mask', 'bbox', 'scribble' or 'point'"),
    ("merge = meta", "should be 'final' or 'base'"),
    ("merge_tau = 1.5", "should be at most 1"),
    ("kshot_order = up", "should be 'sorted' or 'restored'"),
    ("mixed_images = keep", "should be 'drop', 'background' or 'ignore'"),
    ("protocol = pfenet", "should be 'hdmnet' or 'hsnet'"),
    ("hsnet_list = fold0.txt", "needs protocol hsnet"),
    ("absent_class = one", "should be 'zero' or 'skip'"),
    ("min_cells = -1", "should be at least 0"),
    ("manual_seed = -1", "should be at least 0"),
    ("val_size = 472", "must be 8·n + 1 and at least 33; the nearest is 473"),
    ("val_size = 9", "must be 8·n + 1 and at least 33; the nearest is 33"),
    ("base_h = 100", "must be 8·n + 1"),
    ("train_h = 97", "episodes are square: train_h 97 and train_w 473 differ"),
    ("scale_max = 0.5", "scale_min 0.9 is above scale_max 0.5"),
    ("rotate_min = 20", "rotate_min 20 is above rotate_max 10"),
    ("base_scale_min = 3", "base_scale_min 3 is above base_scale_max 2"),
    ("base_rotate_max = -20", "base_rotate_min -10 is above base_rotate_max -20"),
    ("start_epoch = 200", "must be below the number of epochs, 200"),
    ("batch_size_val = 0", "should be at least 1"),
    ("split = 4", "the folds are 0..3"),
    ("num_classes = 65535", "should be at most 65534"),
    ("num_classes = 0", "should be at least 1"),
    ("num_classes = 1", "a single class cannot be both trained on and held out; set folds to seen"),
    ("num_folds = 3", "8 classes do not divide into 3 contiguous folds; give the held-out"),
    ("class_names = [a, b]", "2 class names for num_classes 8"),
    ("class_names = [a, b, c, d, e, f, g, a]", "the name a occurs twice"),
    ("folds = thirds", "should be contiguous, interleaved or seen, a list of the held-out classes"),
    ("folds = {train: [1], tests: [2]}", "or the classes of train, val and test"),
    ("class_names = bolt", "should be a list"),
    ("class_names = [1]", "should be text"),
    ("folds = []", "there are 0 folds"),
    ("folds = [[1], [2, 9]]", "fold 1 holds out class 9; ids are 1..8"),
    ("folds = {train: [1], test: [2, 3]}", "have to hold the classes 1..8, each once"),
    ("masks = folders", "folders needs class_names"),
    ("exp_name = a/b", "names a folder"),
]


@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_wrong_values_are_one_line_with_origin_key_and_value(tmp_path, setting, message):
    key, text = setting.split(" = ")
    shown = str(yaml.safe_load(text))
    path = write(tmp_path, SMALL.replace("num_classes: 8", "num_classes: 8, min_pixels: 1"))
    error = error_of(path, [key, text])
    assert error.startswith(f"--opts: {key} = {shown}: ") and message in error
    if key == "num_classes":
        return
    path = write(tmp_path, f"{SMALL}Method: {{{key}: {text}}}")
    error = error_of(path)
    assert error.startswith(f"{path}: {key} = {shown}: ") and message in error


def test_a_wrong_value_of_a_base_names_the_base(tmp_path):
    base = write(tmp_path, "Train: {shot: 0}", "base.yaml")
    path = write(tmp_path, "_base_: base.yaml\n" + SMALL.replace("tiny}", "tiny, epochs: 3}"))
    assert error_of(path).startswith(f"{base}: shot = 0: ")


def test_folds_that_hold_no_class_out(tmp_path):
    cfg = load(tmp_path, SMALL, "folds", "seen", "num_classes", "1", "class_names", "[cell]")
    assert (cfg.num_classes, cfg.effective_folds, cfg.fold_count) == (1, "seen", 1)
    assert str(RunFiles(cfg).base_folder) == "exp/tiny/PSPNet/split0/resnet50"
    assert load(tmp_path, SMALL, "folds", "seen", "num_classes", "7").fold_count == 1
    with pytest.raises(UserError, match=r"^--opts: split = 1: the folds are 0\.\.0$"):
        load(tmp_path, SMALL, "folds", "seen", "split", "1")
    single = r"--opts: folds = \[\[1\]\]: a single class cannot be both"
    with pytest.raises(UserError, match=single):
        load(tmp_path, SMALL.replace("8", "1"), "folds", "[[1]]")


def test_small_vgg_inputs_are_refused(tmp_path):
    assert load(tmp_path, SMALL, "base_h", "49").base_h == 49
    with pytest.raises(
        UserError, match=r"base_h = 49: must be 8·n . 1 and at least 57; the nearest"
    ):
        load(tmp_path, SMALL, "base_h", "49", "vgg", "True")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["shot"], "--opts: shot: the value is missing"),
        (["shto", "1"], "--opts: shto = 1: unknown key; did you mean shot?"),
        (["shto=1"], "--opts: shto = 1: unknown key; did you mean shot?"),
        (["Tran.shot", "1"], "--opts: Tran.shot = 1: unknown section Tran; did you mean Train?"),
        (["shot", "[1"], "--opts: shot = [1: should be a whole number"),
        (
            ["folds=seen", "num_classes=300", "base_data_root=x"],
            "--opts: base_data_root = x: needs index masks of at most 254 classes; leave it empty",
        ),
    ],
)
def test_wrong_opts(tmp_path, opts, message):
    assert error_of(write(tmp_path, SMALL), opts) == message


def parsed(*words):
    return config_parser("Train.", flags=[VIZ]).parse_args(words)


@pytest.mark.parametrize(
    ("words", "opts", "viz"),
    [
        ("--opts scale_max 1 shot=5 --viz --opts split 1", "scale_max 1 shot=5 split 1", True),
        ("--opts rotate_min -10", "rotate_min -10", False),
        ("--opts", "", False),
        ("--opts shot 5 --viz split=1 epochs 2", "shot 5 split=1 epochs 2", True),
    ],
)
def test_the_command_line(words, opts, viz):
    args = parsed("--config", "a b.yaml", *words.split())
    assert (args.config, args.opts, args.viz) == ("a b.yaml", opts.split(), viz)


@pytest.mark.parametrize("words", ["", "--config", "--config a --vis", "--config a b --vis", "a"])
def test_a_wrong_command_line_is_a_user_error(words):
    with pytest.raises(UserError, match=r"--config|--vis"):
        parsed(*words.split())


# Keys of the published code that are read so that its files load.
WITHOUT_EFFECT = {"index_split", "momentum", "merge", "merge_tau"}
# Keys with one allowed value.
FIXED = {"classes", "ignore_label", "padding_label", "zoom_factor"}


def test_every_setting_is_used():
    code = [*ROOT.glob("*.py"), *(ROOT / "model").rglob("*.py"), *(ROOT / "util").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in code if path.name != "fields.py")
    used = {word for words in re.findall(r"\.(\w+)|\"(\w+)\"", text) for word in words}
    assert set(Config.model_fields) - FIXED - WITHOUT_EFFECT <= used
    assert {key for key in WITHOUT_EFFECT if re.search(rf"\bcfg\.{key}\b", text)} == set()


def test_every_setting_is_described_where_it_stands():
    text = Path(fields.__file__).read_text(encoding="utf-8")
    lines = re.findall(r"^    (\w+): [^\n]*?(?:  # (.+))?$", text, re.MULTILINE)
    described = {key for key, comment in lines if comment}
    # The second of a pair is described with the first.
    pairs = {"train_w", "base_w", "scale_max", "rotate_max", "base_scale_max", "base_rotate_max"}
    assert set(Config.model_fields) - described == pairs


def test_sections_share_no_key():
    keys = [key for fields in SECTIONS.values() for key in fields.model_fields]
    assert len(keys) == len(set(keys)) == len(Config.model_fields)


def test_the_page_of_settings_says_what_the_code_says():
    assert settings_page.page_text() == settings_page.PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", settings_page.page_text(), re.MULTILINE)
    assert sorted(rows) == sorted(Config.model_fields)
