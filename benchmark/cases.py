"""What is measured: an episode of the test or a training step, at a size, on random images."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmark.published import Published
from model import HDMNet, build_hdmnet, hdmnet_loss
from model.features import QueryFeatures, SupportFeatures
from util.training.captured import CapturedPass
from util.training.schedule import hdmnet_optimizer

MASK_SHARE = 0.15  # part of each image that its mask covers


class Case(NamedTuple):
    """One case of the tables."""

    training: bool  # a step of stage 2, else an episode of the test
    size: int  # S of images S×S, in pixels
    shot: int
    batch: int  # episodes at once
    backbone: str = "resnet50"
    base_classes: int = 15

    @property
    def name(self) -> str:
        if self.training:
            what = f"training step, batch {self.batch}"
        else:
            what = "test episode" if self.batch == 1 else f"{self.batch} test episodes"
        return f"{what}, {self.size} px, {self.shot}-shot"


# Sizes and, on a GPU, batch sizes of the paper; COCO is measured at 633 px and has 60 base classes.
# The cases that matter most come first.
GPU_CASES = (
    Case(True, 473, 1, 4),
    Case(True, 473, 5, 4),
    Case(False, 473, 1, 1),
    Case(False, 633, 1, 1, base_classes=60),
    Case(True, 633, 1, 6, base_classes=60),
    Case(True, 633, 5, 6, base_classes=60),
    Case(False, 473, 5, 1),
    Case(False, 633, 5, 1, base_classes=60),
)
CPU_CASES = (
    Case(False, 473, 1, 1),
    Case(True, 473, 1, 4),
    Case(False, 473, 5, 1),
    Case(False, 633, 5, 1),
    Case(True, 633, 5, 2),
)
SMALL_CASES = (
    Case(False, 65, 1, 1, "resnet18"),
    Case(True, 65, 2, 2, "resnet18"),
)


class Lab:
    """One batch of a case, and ways to run the model on it, all with the same random weights.

    The ways are "reference", "fast", "bf16" (fast, the backbone in bfloat16), "compiled" (fast, after
    torch.compile), in a test "cached" (fast, the features of query and supports known from an earlier
    call), in training "captured" and "compiled, captured" (replayed from a CUDA graph), and
    "published", where a copy of the published code is given.

    Args:
        case: what is measured.
        device: where.
        folder: that of a copy of the published code, or None.

    Attributes:
        amp: The type of automatic mixed precision in what runs next, or None.
        expected: The output of the reference in eval mode, in the precision of its first use.
        flops: The operations of one fast step.
    """

    def __init__(self, case: Case, device: torch.device, folder: Path | None = None):
        torch.manual_seed(0)
        self.case, self.device, self.folder = case, device, folder
        self.amp: torch.dtype | None = None
        batch, shot, size = case.batch, case.shot, case.size
        self.net = self._build()
        self.query = torch.randn(batch, 3, size, size, device=device)
        self.support = torch.randn(batch, shot, 3, size, size, device=device)
        masks = _random_masks(batch * (shot + 1), size).to(device)
        self.query_mask = masks[:batch]
        self.support_mask = masks[batch:].unflatten(0, (batch, shot))
        self.class_index = torch.arange(batch, device=device) % case.base_classes

    def model(self, way: str) -> HDMNet:
        """Return the model that runs in one of the ways but "published"."""
        if way == "bf16":
            return self._reduced
        return self._compiled if way.startswith("compiled") else self.net

    def step(self, way: str) -> Callable[[], object]:
        """Return a function that runs the case once in one of the ways."""
        if way == "cached":
            _ = self._features  # computed before anything is measured
        if not self.case.training:
            return lambda: self.test(way)
        if way == "published":
            return self._published_step()
        net = self.model(way).train()
        optimizer = hdmnet_optimizer(net, 1e-4)

        def compute(*_: object) -> dict[str, Tensor]:
            inputs = (self.query, self.support, self.support_mask, self.class_index)
            with self._autocast():
                out = net.reference_forward(*inputs) if way == "reference" else net(*inputs)
            # The labels of the base learner do not matter here: its loss has no gradient.
            hdmnet_loss(out, self.query_mask, self.query_mask).total.backward()
            return {}

        run: Callable[..., object] = compute
        captured = way.endswith("captured")
        if captured:
            lengths = net.mask_lengths(self.support_mask.cpu())
            run = CapturedPass(compute, net.parameters(), (), lambda _: lengths)

        def train() -> None:
            optimizer.zero_grad(set_to_none=not captured)
            run({}, {})
            optimizer.step()

        return train

    def forget_gradients(self) -> None:
        """Free the memory of all gradients."""
        for name in ("net", "_reduced", "_compiled", "published"):
            if name in vars(self):  # It was used.
                vars(self)[name].zero_grad(set_to_none=True)

    def _published_step(self) -> Callable[[], object]:
        net = self.published.train()
        optimizer = net.optimizer(1e-4)
        inputs = (self.query, self.support, self.support_mask, self.class_index, self.query_mask)

        def train() -> None:
            optimizer.zero_grad()
            net.loss(*inputs).backward()
            optimizer.step()

        return train

    @torch.no_grad()
    def test(self, way: str) -> Sequence[Any]:
        """Return the output in eval mode, `final` and `meta` first, computed in one of the ways."""
        inputs = (self.query, self.support, self.support_mask)
        if way == "published":
            return self.published.eval()(*inputs)
        net = self.model(way).eval()
        with self._autocast():
            if way == "cached":
                return net.segment(*self._features, self.query.shape[-2:])
            return net.reference_forward(*inputs) if way == "reference" else net(*inputs)

    def difference(self, way: str) -> float:
        """Return the difference between the outputs of a way and of the reference in eval mode."""
        return difference(self.test(way), self.expected)

    @cached_property
    def expected(self) -> Sequence[Any]:
        return self.test("reference")

    @cached_property
    def published(self) -> Published:
        assert self.folder is not None
        return Published(self.folder, self.net, self.case.backbone)

    @cached_property
    def flops(self) -> int:
        step = self.step("fast")
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()

    @cached_property
    def _reduced(self) -> HDMNet:
        net = self._build(torch.bfloat16)
        net.load_state_dict(self.net.state_dict())
        return net

    @cached_property
    def _compiled(self) -> HDMNet:
        net = self._build()
        net.load_state_dict(self.net.state_dict())
        net.compile_parts()
        return net

    def _build(self, backbone_dtype: torch.dtype | None = None) -> HDMNet:
        options = {"shot": self.case.shot, "kshot_trans_dim": 0, "backbone_dtype": backbone_dtype}
        with self.device:  # on a GPU, random weights are drawn in no time
            return build_hdmnet(self.case.backbone, self.case.base_classes, **options)

    @cached_property
    def _features(self) -> tuple[QueryFeatures, SupportFeatures]:
        encoded = self.net.encode_support(self.support, self.support_mask)
        return self.net.encode_query(self.query), encoded

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)


def difference(actual: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the largest difference of `final` and of `meta`, each divided by its largest logit."""
    pairs = zip(actual[:2], expected[:2], strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def _random_masks(count: int, size: int) -> Tensor:
    """Return int64 (count, size, size): 1 in a disc somewhere, else 0; 255 in the top rows."""
    radius = size * (MASK_SHARE / torch.pi) ** 0.5
    centre = radius + (size - 2 * radius) * torch.rand(count, 2, 1)
    y, x = (torch.arange(size) - centre).square().unbind(1)
    masks = (y[:, :, None] + x[:, None] <= radius**2).long()
    masks[:, : size // 60] = 255
    return masks
