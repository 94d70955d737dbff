"""Any model of timm as a backbone: three of its feature maps become f2, f3 and f4."""

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.func import functional_call

from model.backbone import Backbone, BackboneFeatures, Sizes
from model.mm import resize
from model.preprocessing import MEAN, STD

# What models raise that do not take images of some size.
_REFUSALS = (AssertionError, RuntimeError, ValueError)


class TimmBackbone(Backbone):
    """A model of timm; images come normalised by ImageNet's statistics and are normalised by its own.

    Plain vision transformers give the outputs of three blocks, after the model's last LayerNorm where
    it has one. Other models give their last three stages. f4 is brought to the grid of f3.

    Args:
        model: its name in timm, such as "convnext_tiny.fb_in1k".
        stride: pixels per position of the grid, where the model can dilate; None: 8 if it can.
        taps: the three blocks or stages, counted from 0; None: the last three stages, or the blocks
            after a half, three quarters and all of a transformer.
        foldable: see `Backbone`.

    Raises:
        ValueError: timm has no such model, or it cannot do this.
    """

    net: Any
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: str,
        stride: int | None = None,
        taps: tuple[int, ...] | None = None,
        foldable: bool = False,
    ):
        # `is_model` leaves out the tag, which names the weights.
        if not timm.is_model(model) or (
            "." in model and not timm.models.is_model_pretrained(model)
        ):
            raise ValueError(f"timm {timm.__version__} has no model {model}")
        net, self.options = _create(model, stride)
        maps = net.feature_info
        reductions = [entry["reduction"] for entry in maps]
        self.is_flat = len(set(reductions)) == 1
        count = len(maps)
        if taps is None and self.is_flat:
            taps = (count // 2 - 1, 3 * count // 4 - 1, count - 1)
        taps = taps or (count - 3, count - 2, count - 1)
        if sorted({*taps} & {*range(count)}) != list(taps) or len(taps) != 3:
            raise ValueError(f"taps of {model} have to be three of 0 to {count - 1}, ascending")
        super().__init__([], (0, 0, 0))
        self.model, self.taps, self.foldable = model, taps, foldable
        self.net = _pruned(net, taps, self.is_flat)
        own = net.pretrained_cfg
        mean, std = (255 * torch.tensor(own[key]).view(3, 1, 1) for key in ("mean", "std"))
        here_mean, here_std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        # Of an image that ImageNet's statistics normalised.
        self.register_buffer("scale", here_std / std, persistent=False)
        self.register_buffer("shift", (here_mean - mean) / std, persistent=False)
        self.hub = own.get("hf_hub_id")  # repository of the weights
        self.licence = own.get("license")  # of the weights
        self.eval()  # Batch norms that train take no single value.
        self.sizes = self._sizes(max(reductions), reductions[taps[1]])
        try:
            f2, f3, f4 = self.shapes((self.sizes.smallest,) * 2)
        except _REFUSALS as error:
            size = "×".join(map(str, own["input_size"][1:]))
            raise ValueError(
                f"{model} cannot be used: it takes no images of other sizes than {size}"
            ) from error
        self.channels = f2[1], f3[1], f4[1]
        self.train()

    def forward(self, image: Tensor) -> BackboneFeatures:
        """Return the features of images (B, 3, H, W), normalised by `model.preprocessing`."""
        f2, f3, f4 = self.net.forward_intermediates(
            image * self.scale + self.shift,
            indices=list(self.taps),
            norm=self.is_flat,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        if f4.shape[-2:] != f3.shape[-2:]:
            f4 = resize(f4, size=f3.shape[-2:], mode="bilinear", align_corners=True)
        return BackboneFeatures(f2, f3, f4)

    def shapes(self, size: tuple[int, int]) -> list[torch.Size]:
        """Return the shapes of f2, f3 and f4 for one image of `size` = (H, W).

        They are read off a run on the meta device, which computes shapes alone. Some models take no
        empty batch.
        """
        tensors = dict(chain(self.named_parameters(), self.named_buffers()))
        meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
        image = torch.empty(1, 3, *size, device="meta", dtype=next(self.parameters()).dtype)
        with torch.no_grad():
            return [feature.shape for feature in functional_call(self, meta, (image,))]

    def load_file(self, path: str | Path) -> None:
        """Load a file of weights of the model, as timm or the model's authors serve it.

        Raises:
            OSError, RuntimeError, ValueError: it is not readable or of another model.
        """
        overlay = {"file": str(Path(path).absolute())}
        source = timm.create_model(
            self.model, pretrained=True, pretrained_cfg_overlay=overlay, **self.options
        )
        self.net.load_state_dict(_pruned(source, self.taps, self.is_flat).state_dict())

    def _sizes(self, coarsest: int, stride: int) -> Sizes:
        """Return the sizes of images: multiples of a patch, or 8·n + 1 for padded convolutions."""
        if self.is_flat:
            return Sizes(coarsest, 0, 5 * coarsest)
        try:
            if self.grid((8 * stride + 1,) * 2) == (9, 9):
                return Sizes(8, 1, 4 * stride + 1)
        except _REFUSALS:
            pass
        return Sizes(coarsest, 0, -(-5 * stride // coarsest) * coarsest)


def _create(model: str, stride: int | None) -> tuple[Any, dict[str, Any]]:
    """Return a model with random weights, and the options that it was made with.

    Raises:
        ValueError: it cannot dilate to this stride.
    """
    choices: list[dict[str, Any]] = [{"output_stride": stride or 8}]
    if stride is None:
        choices += [{"dynamic_img_size": True}, {}]
    for options in choices:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return timm.create_model(model, pretrained=False, **options), options
        except (TypeError, AssertionError, NotImplementedError):
            continue
    raise ValueError(f"{model} cannot have the stride {stride}")


def _pruned(net: Any, taps: tuple[int, ...], keep_norm: bool) -> Any:
    """Return the model without what comes after its last tap."""
    net.prune_intermediate_layers(list(taps), prune_norm=not keep_norm, prune_head=True)
    return net
