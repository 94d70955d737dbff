"""A copy of the published code (github.com/Pbihao/HDMNet), to measure it beside this repository."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from model import HDMNet
from model.norms import fix_norms
from util.checkpoints.published_names import to_published
from util.runtime.errors import UserError

_PACKAGES = ("model", "util")  # have the same names in both repositories
_BASE_WEIGHT = "weights of the base learner"
BACKBONES = {"resnet50": 50, "resnet101": 101, "resnet152": 152, "vgg16": 50}  # name: its `layers`
DATASETS = {15: "pascal", 60: "coco"}  # by the number of base classes


class Published(nn.Module):
    """The published model with the weights of ours, called by the arguments of ours.

    No file of weights is needed: where the published code loads one, it gets those of `net`.

    Args:
        folder: the copy.
        net: our model.
        backbone: its name, one of `BACKBONES`.

    Raises:
        UserError: it is no copy, or a module that it needs is missing.
    """

    def __init__(self, folder: Path, net: HDMNet, backbone: str):
        super().__init__()
        self._args = Namespace(
            data_set=DATASETS[net.base.base_classes],
            layers=BACKBONES[backbone],
            vgg=backbone == "vgg16",
            shot=net.ensemble.shot,
            kshot_trans_dim=0,
            low_fea="layer2",
            pre_weight=_BASE_WEIGHT,
            ignore_label=255,
            zoom_factor=8,
            weight_decay=0.01,
        )
        base = to_published(net.base.state_dict())
        device = net.ensemble.adjustment_merge.weight.device

        def load(path: object, *_: object, **__: object) -> dict[str, Any]:
            return {"state_dict": base} if path == _BASE_WEIGHT else {}

        try:
            with _packages_of(folder), mock.patch.object(torch, "load", load):
                self.net = import_module("model.HDMNet").OneModel(self._args, cls_type="Base")
        except ModuleNotFoundError as error:
            raise UserError(
                f"{folder}: the published code needs the module {error.name}, which is missing"
            ) from error
        except AttributeError as error:
            raise UserError(f"{folder}: is not the published code ({error})") from error
        self.net.load_state_dict(to_published(net.state_dict()))
        self.net.freeze_modules(self.net)
        self.net.to(device)

    def train(self, mode: bool = True) -> "Published":
        """Set the mode, but keep batch norms in eval mode, as the published training does."""
        super().train(mode)
        fix_norms(self)
        return self

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Return the optimiser of the published training."""
        return self.net.get_optim(self.net, self._args, LR=rate)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, 2, H, W) of `final` and `meta` in eval mode."""
        final, meta, _ = self.net(x=query, s_x=support, s_y=mask)
        return final, meta

    def loss(
        self, query: Tensor, support: Tensor, mask: Tensor, class_index: Tensor, query_mask: Tensor
    ) -> Tensor:
        """Return the loss in training mode, which the published code computes on a GPU alone.

        The labels of the base learner are those of the query: their loss has no gradient.
        """
        labels = {"y_m": query_mask, "y_b": query_mask, "cat_idx": [class_index]}
        _, *terms = self.net(x=query, s_x=support, s_y=mask, **labels)
        return sum(terms, start=query.new_zeros(()))


@contextmanager
def _packages_of(folder: Path) -> Iterator[None]:
    """Let `model` and `util` be imported from another repository while entered."""
    ours = _taken_packages()
    for name in _PACKAGES:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(folder / name)]
        package.__file__ = str(folder / name)
    try:
        yield
    finally:
        _taken_packages()
        sys.modules.update(ours)


def _taken_packages() -> dict[str, ModuleType]:
    """Return the imported modules of both packages, after Python has forgotten them."""
    names = [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]
    return {name: sys.modules.pop(name) for name in names}
