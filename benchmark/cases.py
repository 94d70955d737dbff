"""What is measured: an episode of the test or a training step, at a size, on random images."""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.plain import plain_forward
from model import HDMNet, HDMNetOutput, build_hdmnet, hdmnet_loss
from model.features import QueryFeatures, SupportFeatures
from util.training.schedule import hdmnet_optimizer


class Case(NamedTuple):
    """One line of the tables.

    training: a step of stage 2, else an episode of the test without gradients.
    size: S of images S×S, in pixels.
    share: part of each image that its mask covers.
    """

    training: bool
    size: int
    shot: int
    batch: int
    backbone: str = "resnet50"
    share: float = 0.15
    base_classes: int = 15

    @property
    def name(self) -> str:
        what = f"training step, batch {self.batch}" if self.training else "test episode"
        if self.batch > 1 and not self.training:
            what = f"{self.batch} test episodes"
        return f"{what}, {self.size} px, {self.shot}-shot"


# The sizes of the paper: PASCAL at 473, COCO at 633 px.
PUBLISHED = (
    Case(False, 473, 1, 1),
    Case(False, 473, 5, 1),
    Case(False, 633, 5, 1),
    Case(True, 473, 1, 4),
    Case(True, 633, 5, 2),
)
# Seconds instead of minutes, to see that everything runs.
QUICK = (
    Case(False, 97, 1, 1, "resnet18"),
    Case(True, 97, 2, 2, "resnet18"),
)


def random_masks(count: int, size: int, share: float) -> Tensor:
    """int64 (count, size, size): an ellipse somewhere, 1 inside, 0 outside, 255 in the top rows."""
    axis = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    masks = []
    for _ in range(count):
        ratio = 0.6 + 0.8 * torch.rand(())
        radii = (share / torch.pi * torch.stack([ratio, 1 / ratio])).sqrt()
        centre = radii + (1 - 2 * radii).clamp(min=0) * torch.rand(2)
        mask = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
        masks.append(mask.long())
    masks = torch.stack(masks)
    masks[:, : size // 60] = 255
    return masks


class Lab:
    """One batch of a case, and ways to run the model on it, all with the same random weights.

    Args:
        case: what to run.
        device: where.
        reduced: whether there is a way "bf16"; it needs a model of its own.

    Attributes:
        amp: type of automatic mixed precision in what runs next, None for none.
    """

    def __init__(self, case: Case, device: torch.device, reduced: bool):
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.amp: torch.dtype | None = None
        batch, shot, size = case.batch, case.shot, case.size
        with device:  # on a GPU, random weights are drawn in no time
            self.net = _build(case, None)
            self.reduced = _build(case, torch.bfloat16) if reduced else None
        if self.reduced is not None:
            self.reduced.load_state_dict(self.net.state_dict())
        self.query = torch.randn(batch, 3, size, size, device=device)
        self.support = torch.randn(batch, shot, 3, size, size, device=device)
        masks = random_masks(batch * (shot + 1), size, case.share).to(device)
        self.query_mask = masks[:batch]
        self.support_mask = masks[batch:].unflatten(0, (batch, shot))
        self.class_index = torch.arange(batch, device=device) % case.base_classes

    def step(self, way: str) -> Callable[[], None]:
        """A function that does the case once.

        Args:
            way: as of `test`.
        """
        if way == "cached":
            _ = self._features
        if not self.case.training:
            return lambda: self.test(way)
        net = self._net(way)
        net.train()
        optimizer = hdmnet_optimizer(net, 1e-4)

        def train() -> None:
            inputs = (self.query, self.support, self.support_mask, self.class_index)
            with self._autocast():
                out = plain_forward(net, *inputs) if way == "plain" else net(*inputs)
            optimizer.zero_grad(set_to_none=True)
            # The labels of the base learner do not matter here: its loss has no gradient.
            hdmnet_loss(out, self.query_mask, self.query_mask).total.backward()
            optimizer.step()

        return train

    @torch.no_grad()
    def test(self, way: str) -> HDMNetOutput:
        """The output in eval mode.

        Args:
            way: "plain", "fast", "bf16" (fast, its backbone in bfloat16), or "cached" (fast, the
                features of query and supports known from an earlier call).
        """
        net = self._net(way).eval()
        with self._autocast():
            if way == "cached":
                return net.segment(*self._features, self.query.shape[-2:])
            inputs = (self.query, self.support, self.support_mask)
            return plain_forward(net, *inputs) if way == "plain" else net(*inputs)

    @cached_property
    def _features(self) -> tuple[QueryFeatures, SupportFeatures]:
        encoded = self.net.encode_support(self.support, self.support_mask)
        return self.net.encode_query(self.query), encoded

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    def _net(self, way: str) -> HDMNet:
        return self.reduced if way == "bf16" else self.net


def difference(actual: HDMNetOutput, expected: HDMNetOutput) -> float:
    """The largest one of `final` and of `meta`, each divided by its largest logit."""
    return max(
        ((a - b).abs().max() / b.abs().max()).item()
        for a, b in zip(actual[:2], expected[:2], strict=True)
    )


def _build(case: Case, backbone_dtype: torch.dtype | None) -> HDMNet:
    return build_hdmnet(
        case.backbone, case.base_classes, case.shot, 0, backbone_dtype=backbone_dtype
    )
