"""The one object that holds every setting, and the rules on which settings fit together.

Settings are flat attributes (`cfg.train_h`, `cfg.backbone`). `util.config.fields` holds the single
settings with their types and defaults, `util.config.loading` the reading and the error messages.
"""

import re
from typing import Any

from pydantic import ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from model.backbone import find_backbone
from util.config.fields import (
    SIZES,
    BaseFields,
    DataFields,
    MethodFields,
    TestFields,
    TrainFields,
)
from util.data.folds import SEEN, count_folds
from util.runtime.precision import DTYPES

NO_VALUE = "none"
KEEPS_NO_VALUE = ("resume", "backbone_weight", "base_learner")


def net_name(backbone: str) -> str:
    """Return the name of a backbone in paths: "vgg" for "vgg16", "timm_x" for "timm:x"."""
    return "vgg" if backbone == "vgg16" else re.sub(r"[:/=]", "_", backbone)


def _impossible(keys: tuple[str, ...], text: str) -> PydanticCustomError:
    """Return the error of a combination; `keys` are the wrong settings, the likeliest first."""
    return PydanticCustomError("combination", "{text}", {"text": text, "keys": keys})


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
            if info.field_name in KEEPS_NO_VALUE:
                return NO_VALUE
            return None
        return value

    @model_validator(mode="after")
    def _possible_together(self) -> "Config":
        self._set_backbone()
        for low, high in (
            ("scale_min", "scale_max"),
            ("rotate_min", "rotate_max"),
            ("base_scale_min", "base_scale_max"),
            ("base_rotate_min", "base_rotate_max"),
        ):
            bottom, top = getattr(self, low), getattr(self, high)
            if bottom > top:
                raise _impossible((low, high), f"{low} {bottom:g} is above {high} {top:g}")
        if self.train_h != self.train_w:
            raise _impossible(
                ("train_w", "train_h"),
                f"episodes are square: train_h {self.train_h} and train_w {self.train_w} differ",
            )
        if self.start_epoch >= self.epochs:
            raise _impossible(
                ("start_epoch", "epochs"), f"must be below the number of epochs, {self.epochs}"
            )
        self._check_classes()
        return self

    def _set_backbone(self) -> None:
        """Set the name of the backbone, and bring the sizes to ones that it takes."""
        published = "vgg16" if self.vgg else f"resnet{self.layers}"
        name = self.backbone or published
        # The model is frozen, but not yet complete.
        object.__setattr__(self, "backbone", "vgg16" if name == "vgg" else name)
        try:
            sizes = find_backbone(self.backbone).sizes
        except ValueError as error:
            raise _impossible(("backbone",), str(error)) from None
        for key in SIZES:
            size = getattr(self, key)
            if sizes.fit(size):
                continue
            if sizes.rest == 0 and size % 8 == 1:
                # 473 of a dataset's YAML file is meant for the published nets.
                object.__setattr__(self, key, sizes.nearest(size))
                continue
            raise _impossible(
                (key, "backbone", "vgg"),
                f"must be {sizes.describe()}; the nearest is {sizes.nearest(size)} "
                f"(backbone {self.backbone})",
            )

    def _check_classes(self) -> None:
        names = self.class_names
        if names is not None and len(names) != self.num_classes:
            raise _impossible(
                ("class_names", "num_classes"),
                f"{len(names)} class names for num_classes {self.num_classes}",
            )
        if names is not None and len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise _impossible(("class_names",), f"the name {twice} occurs twice")
        if self.folds != SEEN:
            self._check_division()
        if self.split >= self.fold_count:
            raise _impossible(
                ("split", "folds", "num_folds"), f"the folds are 0..{self.fold_count - 1}"
            )

    def _check_division(self) -> None:
        """Check that the folds hold classes out and leave some to train on."""
        folds = self.folds
        if self.num_classes == 1:
            raise _impossible(
                ("folds", "num_classes"),
                "a single class cannot be both trained on and held out; set folds to seen",
            )
        if isinstance(folds, str):
            divides = self.num_classes % self.num_folds == 0
            if self.num_folds > self.num_classes or (
                self.effective_folds == "contiguous" and not divides
            ):
                raise _impossible(
                    ("num_folds", "num_classes", "folds"),
                    f"{self.num_classes} classes do not split into {self.num_folds} equal folds; "
                    "list the held-out classes of each fold in folds",
                )
        elif not folds:
            raise _impossible(("folds",), "the list of folds is empty")
        else:
            for index, held_out in enumerate(folds):
                self._check_fold(index, held_out)

    def _check_fold(self, index: int, held_out: list[int]) -> None:
        outside = [label for label in held_out if not 1 <= label <= self.num_classes]
        if outside:
            text = f"class {outside[0]} is not within 1..{self.num_classes}"
        elif len(set(held_out)) != len(held_out):
            text = "a class occurs twice"
        elif not held_out:
            text = "no class is held out"
        elif len(held_out) == self.num_classes:
            text = "all classes are held out, none is left to train on; folds: seen holds none out"
        else:
            return
        raise _impossible(("folds", "num_classes"), f"fold {index}: {text}")

    @property
    def fold_count(self) -> int:
        """The number of folds."""
        return count_folds(self.folds, self.num_folds)

    @property
    def effective_folds(self) -> str | list[list[int]]:
        """`folds`, where the published `use_split_coco: False` asks for contiguous ones."""
        if self.folds == "interleaved" and not self.use_split_coco:
            return "contiguous"
        return self.folds

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `model.build_hdmnet`, without the number of base classes."""
        keys = (
            "backbone",
            "shot",
            "kshot_trans_dim",
            "low_fea",
            "kshot_order",
            "prior",
            "fix_bn",
            "checkpoint_activations",
        )
        arguments = {key: getattr(self, key) for key in keys}
        dtype = DTYPES[self.backbone_dtype] if self.backbone_dtype else None
        return arguments | {"backbone_dtype": dtype}

    @property
    def net_name(self) -> str:
        """Name of the backbone in paths, as in the published code: "vgg", "resnet50", ..."""
        return net_name(self.backbone)

    @property
    def net(self) -> str:
        """The value of NET that chooses this backbone in the scripts."""
        return self.backbone if ":" in self.backbone else self.net_name
