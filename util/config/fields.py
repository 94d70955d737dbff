"""The settings: names, types, defaults and allowed values, one class a YAML section.

Keys are unique over the sections; `util.config.schema.Config` joins them to one flat object.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

# A smaller coarsest stage has fewer positions than its attention reduces to one.
SMALLEST = 33


def _number(value):
    """YAML 1.1 reads `1e-4` as a string; a user means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _folder_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        raise PydanticCustomError(
            "name", "names a folder: letters, digits, '.', '_' and '-' only, no '/'"
        )
    return value


Float = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Float, Field(gt=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Angle = Annotated[Float, Field(ge=-180, le=180)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Name = Annotated[str, AfterValidator(_folder_name)]


def _grid_size(value: int) -> int:
    if value < SMALLEST or (value - 1) % 8:
        near = max(SMALLEST, 8 * round((value - 1) / 8) + 1)
        raise PydanticCustomError(
            "size",
            "must be 8·n + 1 and at least {smallest}; the nearest is {near}",
            {"smallest": SMALLEST, "near": near},
        )
    return value


Size = Annotated[int, AfterValidator(_grid_size)]  # pixels
# YAML 1.1 reads a bare `off` as false.
Amp = Annotated[
    Literal["off", "bf16", "fp16"],
    BeforeValidator(lambda value: "off" if value is False else value),
]
Folds = Literal["contiguous", "interleaved", "seen"] | list[list[int]]


class DataFields(BaseModel):
    """Where the pictures are and what the classes and folds are."""

    data_root: str | None = None
    base_data_root: str | None = None  # folder of base labels; unset: computed on the fly
    train_list: str | None = None
    val_list: str | None = None
    fold_list: str | None = None  # IMAGE__CLASS per line: queries of the test, in their order
    list_dir: str = "lists"  # cache of the parsed lists
    classes: Literal[2] = 2  # background and foreground
    num_classes: Annotated[int, Field(ge=1, le=254)]  # without background
    class_names: list[str] | None = None
    folds: Folds = "contiguous"
    num_folds: Annotated[int, Field(ge=2)] = 4  # of contiguous and interleaved ones
    min_pixels: CountOrZero = 2048  # a class counts in an image from this area on


class TrainFields(BaseModel):
    """Stage 2, the episodes, and validation."""

    train_h: Size = 473
    train_w: Size = 473
    val_size: Size = 473
    scale_min: Positive = 0.9
    scale_max: Positive = 1.1
    rotate_min: Angle = -10.0  # degrees
    rotate_max: Angle = 10.0
    ignore_label: Literal[255] = 255
    padding_label: Literal[255] = 255
    split: CountOrZero = 0  # index of the fold
    shot: Count = 1
    data_set: Name
    use_split_coco: bool = True
    batch_size: Count = 4  # episodes of a process at a time
    grad_accum: Count = 1  # batches of a process per iteration, in both stages
    base_lr: Positive = 1e-4
    pre_weight: str | None = None  # checkpoint that initialises HDMNet
    base_weight: str | None = None  # checkpoint of stage 1
    epochs: Count = 200
    start_epoch: CountOrZero = 0
    stop_interval: CountOrZero = 75  # epochs without a better mIoU before stopping; 0: never
    index_split: Annotated[int, Field(ge=-1)] = -1
    power: NonNegative = 0.9
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 0.01
    warmup: bool = False
    print_freq: Count = 10  # iterations
    save_freq: Count = 10  # epochs
    save_iters: CountOrZero = 500  # iterations between checkpoints within an epoch; 0: none
    max_nonfinite: Count = 10  # iterations in a row without a finite loss before training stops
    resume: str = "auto"  # "auto", "none" or a checkpoint
    evaluate: bool = True
    SubEpoch_val: bool = True
    fix_random_seed_val: bool = True
    batch_size_val: Count = 1  # episodes of a process at a time, in testing and validation
    val_freq: Count = 1  # epochs between validations
    select_on: Literal["novel", "base"] = "novel"  # classes of the validation in training
    val_num: Count = 1000  # episodes of a validation during training
    resized_val: bool = True
    ori_resize: bool = True
    workers: CountOrZero = 8  # loader processes per process
    amp: Amp = "off"  # mixed precision: off, bf16, or fp16 (CUDA only)
    backbone_dtype: Literal["bf16", "fp16"] | None = None  # of the frozen backbone; unset: as amp
    checkpoint_activations: bool = False  # hierarchy and matching: less memory, more time
    fix_bn: bool = True
    manual_seed: Annotated[int, Field(ge=0, le=2**31)] | None = 321
    seed_deterministic: bool = False
    zoom_factor: Literal[8] = 8  # logits have the size of the image
    exp_dir: str = "exp"
    exp_name: Name | None = None


class BaseFields(BaseModel):
    """Stage 1, the base learner."""

    base_h: Size = 417
    base_w: Size = 417
    base_scale_min: Positive = 0.5
    base_scale_max: Positive = 2.0
    base_rotate_min: Angle = -10.0
    base_rotate_max: Angle = 10.0
    base_batch_size: Count = 12  # images over all processes
    base_epochs: Count = 100
    base_rate: Positive = 2.5e-4
    base_encoder_ratio: NonNegative = 1.0  # of base_rate
    base_head_ratio: NonNegative = 10.0  # of base_rate
    base_momentum: Fraction = 0.9
    base_weight_decay: NonNegative = 1e-4
    base_power: NonNegative = 0.9
    base_val_freq: Count = 1  # epochs
    backbone_weight: str | None = None  # ImageNet weights; "none": start from random ones


class MethodFields(BaseModel):
    """The network."""

    layers: Literal[18, 34, 50, 101, 152] = 50
    vgg: bool = False
    aux_weight1: NonNegative = 1.0  # of the distillation loss
    aux_weight2: NonNegative = 1.0  # of the base learner's loss
    low_fea: Literal["layer2", "layer3", "layer4"] = "layer2"
    kshot_trans_dim: CountOrZero = 2
    kshot_order: Literal["sorted", "restored"] = "sorted"
    train_kshot_rw: bool = False
    ensemble: bool = True  # with the base learner; False: the meta learner alone is tested
    merge: Literal["final", "base"] = "final"  # read without effect, as in the published code
    merge_tau: Fraction = 0.9  # read without effect, as in the published code


class TestFields(BaseModel):
    """The test protocol."""

    weight: str | None = None
    ann_type: Literal["mask", "bbox", "scribble", "point"] = "mask"  # of the supports
    test_num: Count = 1000  # episodes per run
    test_runs: Count = 10
    vis_num: CountOrZero = 3  # episodes drawn as pictures
    baselines: bool = False
    feature_cache_gb: NonNegative = 2.0  # of each process, for features of supports; 0: none kept
    scale_to_trained_shot: bool = True  # matching, where the weights are of another shot


SECTIONS = {
    "Data": DataFields,
    "Train": TrainFields,
    "Base": BaseFields,
    "Method": MethodFields,
    "Test_Finetune": TestFields,
}
SIZES = ("train_h", "train_w", "val_size", "base_h", "base_w")
SECTION_OF = {key: name for name, fields in SECTIONS.items() for key in fields.model_fields}
SECTION_NAMES = {name.lower(): name for name in SECTIONS}
