"""The settings: names, types, defaults and allowed values, one class a YAML section.

Keys are unique over the sections; `util.config.schema.Config` joins them to one flat object.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _number(value: Any) -> Any:
    """Turn text such as `1e-4`, which YAML 1.1 reads as a string, into the number it means."""
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


# YAML 1.1 reads a bare `off` as false.
Amp = Annotated[
    Literal["off", "auto", "bf16", "fp16"],
    BeforeValidator(lambda value: "off" if value is False else value),
]
Folds = (
    Literal["contiguous", "interleaved", "seen"]
    | list[list[int]]
    | dict[Literal["train", "val", "test"], list[int]]
)
MixedImages = Literal["drop", "background", "ignore"]


class DataFields(BaseModel):
    """Where the images lie, and what the classes and folds are."""

    data_root: str | None = None  # folder that the lists are relative to
    base_data_root: str | None = None  # folder of base labels; unset: computed on the fly
    train_list: str | None = None  # images of the training, one IMAGE MASK per line
    val_list: str | None = None  # images of validation and test, one IMAGE MASK per line
    list_dir: str = "lists"  # folder of the cache of the scanned masks
    classes: Literal[2] = 2  # background and foreground
    num_classes: Annotated[int, Field(ge=1, le=65534)]  # without background; 16-bit masks above 254
    class_names: list[str] | None = None  # names in the order of the ids, for reports and messages
    masks: Literal["index", "folders"] = "index"  # folders: binary masks in a folder of their class
    folds: Folds = "contiguous"  # a rule, held-out classes of each fold, or classes of each part
    num_folds: Annotated[int, Field(ge=2)] = 4  # number of contiguous or interleaved folds
    min_pixels: CountOrZero = 2048  # smallest area with which a class counts in an image
    min_cells: CountOrZero = 0  # as min_pixels, in cells of the network's grid
    mixed_images: MixedImages = "drop"  # what becomes of training images with held-out classes


class TrainFields(BaseModel):
    """Stage 2, the episodes, and validation."""

    # Sizes are in pixels; which ones are possible depends on the backbone.
    train_h: Count = 473  # height of the images in training, which are square
    train_w: Count = 473
    val_size: Count = 473  # side of the images in validation and test
    scale_min: Positive = 0.9  # random scale of an image in training
    scale_max: Positive = 1.1
    rotate_min: Angle = -10.0  # random rotation in training, degrees
    rotate_max: Angle = 10.0
    ignore_label: Literal[255] = 255  # label of pixels without a class
    padding_label: Literal[255] = 255  # label of the border that fills the canvas
    split: CountOrZero = 0  # index of the fold
    shot: Count = 1  # supports of an episode
    data_set: Name  # its description: config/datasets/NAME.yaml
    use_split_coco: bool = True  # False: contiguous folds where folds is interleaved
    batch_size: Count = 4  # episodes of a process at a time
    grad_accum: Count = 1  # batches of a process per iteration, in both stages
    base_lr: Positive = 1e-4  # learning rate of AdamW
    pre_weight: str | None = None  # checkpoint of HDMNet to start from: a file, a folder or best
    base_weight: str | None = None  # the same for the base learner; it wins over that of pre_weight
    epochs: Count = 200  # number of epochs of stage 2
    start_epoch: CountOrZero = 0  # number of epochs that count as done
    stop_interval: CountOrZero = 75  # epochs without a better mIoU before stopping; 0: never
    index_split: Annotated[int, Field(ge=-1)] = -1  # read without effect
    power: NonNegative = 0.9  # exponent of the decay of the learning rate
    momentum: Fraction = 0.9  # read without effect: stage 2 uses AdamW
    weight_decay: NonNegative = 0.01  # weight decay of AdamW
    warmup: bool = False  # let the learning rate rise over the first half epoch
    print_freq: Count = 10  # iterations between lines of the log
    save_freq: Count = 10  # epochs between checkpoints
    save_iters: CountOrZero = 500  # iterations between checkpoints within an epoch; 0: none
    max_nonfinite: Count = 10  # iterations in a row without a finite loss before training stops
    resume: str = "auto"  # "auto", "none" or a checkpoint
    evaluate: bool = True  # validate during training
    SubEpoch_val: bool = True  # validate mid-epoch too, in trainings of at most 100 epochs
    fix_random_seed_val: bool = True  # use the same episodes in every validation
    batch_size_val: Count = 1  # episodes of a process at a time, in testing and validation
    val_freq: Count = 1  # epochs between validations
    select_on: Literal["novel", "base"] = "novel"  # classes that choose the best checkpoint
    val_num: Count = 1000  # episodes of a validation during training
    resized_val: bool = True  # False: the image is padded at the bottom and right, not resized
    ori_resize: bool = True  # score at the original size; False: at val_size
    workers: CountOrZero = 8  # loader processes of each process
    amp: Amp = "off"  # mixed precision; fp16: CUDA only; auto: bf16 where it is fast
    backbone_dtype: Literal["bf16", "fp16"] | None = None  # type of the frozen backbone; unset: amp
    tf32: bool = True  # multiply float32 in TF32 on a GPU; False: to compare with a CPU
    compile: bool = False  # use torch.compile: slow to start, may be faster afterwards
    cuda_graphs: bool = False  # launch each pass of stage 2 at once, on GPUs
    checkpoint_activations: bool = False  # use less memory in stage 2, and more time
    fix_bn: bool = True  # batch norms of stage 2 do not learn
    manual_seed: Annotated[int, Field(ge=0, le=2**31)] | None = 321  # none: another one each time
    seed_per_rank: bool = False  # processes draw differently; False: alike, as published
    seed_deterministic: bool = False  # the same command gives the same bits
    zoom_factor: Literal[8] = 8  # logits have the size of the image
    exp_dir: str = "exp"  # folder of all runs
    exp_name: Name | None = None  # folder of this run; unset: the name of the fold


class BaseFields(BaseModel):
    """Stage 1, the base learner."""

    base_h: Count = 417  # height of the images in training and validation
    base_w: Count = 417
    base_scale_min: Positive = 0.5  # random scale of an image
    base_scale_max: Positive = 2.0
    base_rotate_min: Angle = -10.0  # random rotation, degrees
    base_rotate_max: Angle = 10.0
    base_batch_size: Count = 12  # images over all processes
    base_epochs: Count = 100  # number of epochs of stage 1
    base_rate: Positive = 2.5e-4  # learning rate of SGD
    base_encoder_ratio: NonNegative = 1.0  # ratio of the backbone's learning rate to base_rate
    base_head_ratio: NonNegative = 10.0  # ratio of the head's learning rate to base_rate
    base_momentum: Fraction = 0.9  # momentum of SGD
    base_weight_decay: NonNegative = 1e-4  # weight decay of SGD
    base_power: NonNegative = 0.9  # exponent of the decay of the learning rate
    base_val_freq: Count = 1  # epochs between validations
    backbone_weight: str | None = None  # ImageNet weights; "none": start from random ones


class MethodFields(BaseModel):
    """The network."""

    backbone: str = ""  # a NAME of docs/backbones.md; unset: what layers and vgg say
    layers: Literal[18, 34, 50, 101, 152] = 50  # depth of the ResNet
    vgg: bool = False  # VGG16 with batch norm instead of a ResNet
    aux_weight1: NonNegative = 1.0  # weight of the distillation loss
    aux_weight2: NonNegative = 1.0  # weight of the base learner's loss
    low_fea: Literal["layer2", "layer3", "layer4"] = "layer2"  # features whose styles are compared
    kshot_trans_dim: CountOrZero = 2  # width of the net that weighs the supports; 0: one linear map
    kshot_order: Literal["sorted", "restored"] = "sorted"  # order of weights; sorted: as published
    train_kshot_rw: bool = False  # train the net that weighs the supports
    prior: Literal["max", "minmax"] = "max"  # minmax: stretch it to 0..1 in each image
    base_learner: Literal["pspnet", "none"] = "pspnet"  # none: no stage 1, and a prior of f3 and f4
    ensemble: bool = True  # correct by the base learner; False: test the meta learner alone
    merge: Literal["final", "base"] = "final"  # read without effect, as in the published code
    merge_tau: Fraction = 0.9  # read without effect, as in the published code


class TestFields(BaseModel):
    """The test protocol."""

    weight: str | None = None  # checkpoint to test: a file, a folder or best; unset: the run's best
    ann_type: Literal["mask", "bbox", "scribble", "point"] = "mask"  # annotation of the supports
    test_num: Count = 1000  # episodes per run
    test_runs: Count = 10  # number of runs, each with a seed of its own
    protocol: Literal["hdmnet", "hsnet"] = "hdmnet"  # whose episodes the test draws
    hsnet_list: str | None = None  # a fold list of HSNet; unset: the images of val_list
    hsnet_class: Literal["listed", "drawn", "cyclic"] = "listed"  # how hsnet chooses the class
    absent_class: Literal["zero", "skip"] = "zero"  # a class without episodes: 0, or left out
    vis_num: CountOrZero = 3  # episodes drawn as pictures
    baselines: bool = False  # also score everything foreground and the prior alone
    feature_cache_gb: NonNegative = 2.0  # kept features of supports in each process; 0: none
    scale_to_trained_shot: bool = True  # scale the matching of weights of another shot


SECTIONS: dict[str, type[BaseModel]] = {
    "Data": DataFields,
    "Train": TrainFields,
    "Base": BaseFields,
    "Method": MethodFields,
    "Test_Finetune": TestFields,
}
SIZES = ("train_h", "train_w", "val_size", "base_h", "base_w")
SECTION_OF = {key: name for name, fields in SECTIONS.items() for key in fields.model_fields}
SECTION_NAMES = {name.lower(): name for name in SECTIONS}
