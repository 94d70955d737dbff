"""The one object that holds every setting, and the rules on which settings fit together.

Settings are flat attributes (`cfg.train_h`, `cfg.backbone`). `util.config.fields` holds the single
settings with their types and defaults, `util.config.loading` the reading and the error messages.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from util.config.fields import SIZES, BaseFields, DataFields, MethodFields, TestFields, TrainFields
from util.data.folds import MAX_CLASSES, SEEN, Folds, count_folds, fold_classes
from util.runtime.errors import UserError

if TYPE_CHECKING:
    from model.backbone import Sizes

NO_VALUE = "none"
KEEPS_NO_VALUE = ("resume", "backbone_weight", "base_learner")


def net_name(backbone: str) -> str:
    """Return the name of a backbone in paths: "vgg" for "vgg16", "timm_x" for "timm:x"."""
    return "vgg" if backbone == "vgg16" else re.sub(r"[:/=]", "_", backbone)


def backbone_of(net: str) -> str:
    """Return the backbone that a name of the published code or of the registry means."""
    return "vgg16" if net == "vgg" else net


def net_of(backbone: str) -> str:
    """Return the value of NET that chooses a backbone in the scripts."""
    return backbone if ":" in backbone else net_name(backbone)


class Config(TestFields, MethodFields, BaseFields, TrainFields, DataFields):
    """Every setting, validated. Raises `pydantic.ValidationError` when built from wrong values."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, coerce_numbers_to_str=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _spelled_out_no_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Read the word `none` as an explicit "no value", for keys that can be without one."""
        if isinstance(value, str) and value.lower() == NO_VALUE:
            return NO_VALUE if info.field_name in KEEPS_NO_VALUE else None
        return value

    @model_validator(mode="after")
    def _possible_together(self) -> "Config":
        # Imported here because torch takes seconds, which commands without settings do not need.
        from model.backbone import find_backbone

        published = "vgg16" if self.vgg else f"resnet{self.layers}"
        # The object is frozen, but not yet complete.
        object.__setattr__(self, "backbone", backbone_of(self.backbone or published))
        try:
            sizes = find_backbone(self.backbone).sizes
        except ValueError as error:
            raise _contradiction(("backbone",), str(error)) from error
        for key in SIZES:
            if sizes.rest == 0 and getattr(self, key) % 8 == 1:
                # 473 of a dataset's YAML file is meant for the published nets.
                object.__setattr__(self, key, sizes.nearest(getattr(self, key)))
        for keys, text in self._contradictions(sizes):
            raise _contradiction(keys, text)
        return self

    def _contradictions(self, sizes: "Sizes") -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield settings that do not fit together, the likeliest wrong one first, and the reason.

        Args:
            sizes: those that the backbone takes.
        """
        for key in SIZES:
            if not sizes.fit(size := getattr(self, key)):
                text = f"must be {sizes.describe()}; the nearest is {sizes.nearest(size)}"
                yield (key, "backbone", "vgg"), f"{text} (backbone {self.backbone})"
        for part in ("scale", "rotate", "base_scale", "base_rotate"):
            low, high = f"{part}_min", f"{part}_max"
            bottom, top = getattr(self, low), getattr(self, high)
            if bottom > top:
                yield (low, high), f"{low} {bottom:g} is above {high} {top:g}"
        if self.train_h != self.train_w:
            yield (
                ("train_w", "train_h"),
                f"episodes are square: train_h {self.train_h} and train_w {self.train_w} differ",
            )
        if self.start_epoch >= self.epochs:
            yield ("start_epoch", "epochs"), f"must be below the number of epochs, {self.epochs}"
        if self.hsnet_list and self.protocol != "hsnet":
            yield ("hsnet_list", "protocol"), "needs protocol hsnet"
        names = self.class_names
        if self.masks == "folders" and names is None:
            yield ("masks",), "folders needs class_names, the names of the folders of the masks"
        if self.base_data_root and (self.masks == "folders" or self.num_classes > MAX_CLASSES):
            text = f"needs index masks of at most {MAX_CLASSES} classes; leave it empty"
            yield ("base_data_root", "masks", "num_classes"), text
        if names is not None and len(names) != self.num_classes:
            text = f"{len(names)} class names for num_classes {self.num_classes}"
            yield ("class_names", "num_classes"), text
        if names is not None and len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            yield ("class_names",), f"the name {twice} occurs twice"
        if self.folds != SEEN:
            yield from self._wrong_folds()
        if self.split >= self.fold_count:
            yield ("split", "folds", "num_folds"), f"the folds are 0..{self.fold_count - 1}"

    def _wrong_folds(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield what is wrong where folds must hold classes out and leave some to train on."""
        folds, classes = self.folds, self.num_classes
        if classes == 1:
            yield (
                ("folds", "num_classes"),
                "a single class cannot be both trained on and held out; set folds to seen",
            )
        else:
            keys = ("folds", "num_classes")
            try:
                for split in range(max(1, self.fold_count)):
                    fold_classes(classes, self.effective_folds, split, self.num_folds)
            except UserError as error:
                yield ("num_folds", *keys) if isinstance(folds, str) else keys, str(error)

    @property
    def fold_count(self) -> int:
        """The number of folds."""
        return count_folds(self.folds, self.num_folds)

    @property
    def effective_folds(self) -> Folds:
        """`folds`, where the published `use_split_coco: False` asks for contiguous ones."""
        if self.folds == "interleaved" and not self.use_split_coco:
            return "contiguous"
        return self.folds

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `model.build_hdmnet`, without the number of base classes."""
        keys = {"backbone", "shot", "kshot_trans_dim", "low_fea", "kshot_order", "prior", "fix_bn"}
        arguments = self.model_dump(include={*keys, "checkpoint_activations"})
        from util.runtime.precision import DTYPES

        dtype = DTYPES[self.backbone_dtype] if self.backbone_dtype else None
        return arguments | {"backbone_dtype": dtype}

    @property
    def net_name(self) -> str:
        """Name of the backbone in paths, as in the published code: "vgg", "resnet50", ..."""
        return net_name(self.backbone)

    @property
    def net(self) -> str:
        """The value of NET that chooses this backbone in the scripts."""
        return net_of(self.backbone)


def _contradiction(keys: tuple[str, ...], text: str) -> PydanticCustomError:
    return PydanticCustomError("combination", "{text}", {"text": text, "keys": keys})
