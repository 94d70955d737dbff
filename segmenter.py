"""Few-shot segmentation of your own pictures: mark a class in a few of them, and get it in the rest.

    from segmenter import FewShotSegmenter, Support

    segmenter = FewShotSegmenter.from_pretrained("best.pth")
    bolts = segmenter.fit([Support("a.jpg", mask="a.png"), Support("b.jpg", box=(40, 30, 200, 180))])
    result = segmenter.segment("query.jpg", bolts)
    result.save("query.png")

docs/own_pictures.md explains it with examples. What `segment` computes is what test.py computes for an
episode of the same query and supports.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import islice
from pathlib import Path
from typing import Any, cast, overload

import util  # isort: skip  # noqa: F401  # Before torch, since it says how threads wait.
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelHubMixin
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from model import HDMNet, preprocess_image, preprocess_mask
from model.backbone import check_size
from model.features import SupportFeatures, map_tensors, split_supports, stack_supports
from util.checkpoints.support_set import SupportSet
from util.checkpoints.trained import Trained, fingerprint, load_trained, save_trained
from util.data.label_maps import draw_overlay, index_image
from util.data.marks import Marks, marked_mask
from util.data.pictures import Picture, is_picture, read_picture
from util.runtime.device import choose_device
from util.runtime.errors import UserError, errors_as
from util.runtime.files import ROOT, write_atomically
from util.runtime.precision import Precision

ONE_CLASS = "object"  # the name of the class where the user gives none
MAX_CLASSES = 254
_BAND = 8  # pixels on either side of an outline: a step of the network's finest grid


@dataclass(frozen=True, eq=False)
class Support:
    """A picture in which the object is marked, in one of four ways.

    All coordinates are pixels of the picture as a viewer shows it, after its EXIF orientation.

    Args:
        image: a path, a PIL image, an RGB array uint8 (H, W, 3), or a tensor (3, H, W), uint8 or float
            in [0, 1].
        mask: a path or PIL image of one object in any form of docs/data.md, or an array (H, W) where
            whatever is not zero is the object.
        box: (x0, y0, x1, y1) around the object, or several of them.
        points: (x, y) of a pixel, or several of them.
        labels: of the points, 1 on the object and 0 beside it; by default all are on the object.
        scribble: a path, PIL image or array (H, W) with 1 on the object and 2 beside it.
        refine: turn a box, points or a scribble into a mask of the object by GrabCut. Without, the mask
            is what was marked: the filled box, disks around the points, or the stroke.
    """

    image: Picture
    mask: Picture | None = None
    box: ArrayLike | None = None
    points: ArrayLike | None = None
    labels: ArrayLike | None = None
    scribble: Picture | None = None
    refine: bool = True

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the picture, uint8 (H, W, 3), and the mask of the object, bool (H, W).

        Raises:
            ValueError: a file cannot be read, or the marks are missing, empty or do not fit.
        """
        image = read_picture(self.image)
        marks = Marks(self.mask, self.box, self.points, self.scribble)
        return image, marked_mask(image, marks, self.labels, self.refine, self.image)


Supports = Support | Sequence[Support] | Mapping[str, Support | Sequence[Support]]


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in a picture, at its own size H×W.

    Attributes:
        image: the picture, as it was given.
        shape: (H, W).
        classes: names of the classes.
        logits: final logits of each class at the size S×S of the network, (N, 2, S, S), on the CPU.
        correlations: by class, the three correlation maps, coarsest first, each float32 (h, w).
        threshold: of the probability from which a pixel belongs to a class.
    """

    image: Picture
    shape: tuple[int, int]
    classes: tuple[str, ...]
    logits: Tensor
    correlations: dict[str, list[np.ndarray]]
    threshold: float = 0.5

    @cached_property
    def label_map(self) -> np.ndarray:
        """The class of each pixel, uint8 (H, W): 0 none, 1 the first of `classes`, 2 the second, …"""
        return self._label_map(self.shape)

    @property
    def mask(self) -> np.ndarray:
        """Where any of the classes is, bool (H, W)."""
        return self.label_map > 0

    @property
    def probability(self) -> np.ndarray:
        """The probability of the class, float32 (H, W); of several classes, the highest."""
        return reduce(np.maximum, self.probabilities.values())

    @property
    def probabilities(self) -> dict[str, np.ndarray]:
        """The probability of each class, float32 (H, W), without regard to the other classes."""
        maps = (margin.sigmoid().numpy() for margin in self._margins(self.shape))
        return dict(zip(self.classes, maps, strict=True))

    @property
    def uncertainty(self) -> float:
        """The mean entropy around the outlines, in bits; without any object, the highest entropy."""
        height, width = self.logits.shape[-2:]
        margin = torch.stack(list(self._margins((height, width)))).amax(0).double()
        p = margin.sigmoid().clamp(1e-9, 1 - 1e-9).numpy()
        entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
        # At the outline itself, it is always near 1. How soon it falls says how sure the network is.
        labels, square = self._label_map((height, width)), np.ones((2 * _BAND + 1,) * 2, np.uint8)
        around = cv2.dilate(labels, square) != cv2.erode(labels, square)
        return float(entropy[around].mean() if around.any() else entropy.max())

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """Return the picture with each class in a colour and a line around it."""
        return draw_overlay(read_picture(self.image), self.label_map, opacity)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the label map as a PNG of indices with a palette, which viewers show in colours.

        Raises:
            ValueError: the name is not that of a PNG.
        """
        if Path(path).suffix.lower() != ".png":
            raise ValueError(f"{path}: the label map is saved as a PNG; end the name with .png")
        image = index_image(self.label_map)
        write_atomically(path, lambda file: image.save(file, "PNG"))

    def _margins(self, shape: tuple[int, int]) -> Iterator[Tensor]:
        """Yield foreground minus background logit of each class at a size (height, width)."""
        # One class at a time, since two logits of a large picture take much memory.
        for logits in self.logits:
            (resized,) = F.interpolate(logits[None], shape, mode="bilinear", align_corners=True)
            background, foreground = resized
            yield foreground.sub_(background)

    def _label_map(self, shape: tuple[int, int]) -> np.ndarray:
        labels = np.zeros(shape, np.uint8)
        # At 0.5 this is 0, and the comparison is that of the two logits, as in test.py.
        highest: Any = math.log(self.threshold / (1 - self.threshold))
        for label, margin in enumerate(self._margins(shape), 1):
            labels[margin.numpy() > highest] = label
            highest = np.maximum(margin.numpy(), highest, out=margin.numpy())
        return labels


class FewShotSegmenter(
    ModelHubMixin,
    library_name="hdmnet",
    pipeline_tag="image-segmentation",
    tags=["few-shot-segmentation"],
    paper_url="https://arxiv.org/abs/2303.14652",
    model_card_template=(ROOT / "util" / "checkpoints" / "model_card.md").read_text("utf-8"),
):
    """A trained HDMNet that segments pictures by a few marked ones.

    No call changes it, so several threads may use one.

    Args:
        net: the model; it is moved to the device and set to eval mode.
        size: S of the images S×S that it was trained with.
        backbone: name of its backbone, which `save_pretrained` writes.
        device: where to compute; None is the GPU if there is one.
        amp: "off", "bf16" or "fp16" (CUDA only); "auto" is bf16 where the device computes it fast.
    """

    def __init__(
        self,
        net: HDMNet,
        size: int,
        backbone: str | None = None,
        device: str | torch.device | None = None,
        amp: str = "off",
    ):
        with errors_as(ValueError):
            self.device = choose_device(0) if device is None else torch.device(device)
            if self.device.type == "cuda" and not torch.cuda.is_available():
                raise UserError("device cuda: torch finds no GPU here")
            self.precision = Precision(amp, self.device)
        self.weights = fingerprint(net)
        self.net, self.size, self.backbone = net.eval().to(self.device), size, backbone

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        weights: str | os.PathLike[str],
        *,
        size: int | None = None,
        device: str | torch.device | None = None,
        amp: str = "off",
        **hub: Any,
    ) -> "FewShotSegmenter":
        """Load weights.

        Args:
            weights: a checkpoint of this or of the published code, the folder of a run (its best
                checkpoint), the folder of `save_pretrained`, or a repository OWNER/NAME of the
                Hugging Face Hub.
            size: S of the images S×S. None is that of the training. Where neither the checkpoint nor its
                run tells it, this is 633 for the 60 base classes of COCO-20^i and else 473.
            device: see the class.
            amp: see the class.
            **hub: for a repository of the hub: revision, token, cache_dir, local_files_only.

        Raises:
            ValueError: there are no such weights, or they are not of HDMNet.
        """
        with errors_as(ValueError):
            net, trained_size, backbone = load_trained(weights, **hub)
            return cls(net, size or trained_size, backbone, device, amp)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights and settings, for `save_pretrained` and `push_to_hub` of the mixin."""
        if self.backbone is None:
            raise ValueError("name the backbone of the model: FewShotSegmenter(..., backbone=NAME)")
        with errors_as(ValueError):
            save_trained(Trained(self.net, self.size, self.backbone), save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the page that describes the weights in a folder or repository."""
        about = {"backbone": self.backbone, "size": self.size, "shot": self.net.ensemble.shot}
        classes = self.net.base.base_classes
        return super().generate_model_card(*args, base_classes=classes, **about, **kwargs)

    def fit(self, supports: Supports, size: int | None = None) -> SupportSet:
        """Encode supports, once for all queries.

        Args:
            supports: of one class, or {name: supports} of several classes; as many as there are, also
                if the training had another number.
            size: S of the images S×S; None is that of the training.

        Raises:
            ValueError: a support cannot be used; the message begins with its place in `supports`.
        """
        named = dict(supports) if isinstance(supports, Mapping) else {ONE_CLASS: supports}
        if not 1 <= len(named) <= MAX_CLASSES:
            raise ValueError(f"{len(named)} classes; expected 1 to {MAX_CLASSES}")
        size = size or self.size
        if self.backbone is not None:
            check_size(self.backbone, size)
        features, masks = {}, {}
        for name, given in named.items():
            listed = [given] if isinstance(given, Support | str | os.PathLike) else list(given)
            where = f"supports[{name!r}]" if isinstance(supports, Mapping) else "supports"
            if not listed:
                raise ValueError(f"{where} is empty")
            encoded = [
                self._encode(support, size, f"{where}[{index}]")
                for index, support in enumerate(listed)
            ]
            features[name] = stack_supports([[one for one, _ in encoded]])
            masks[name] = [mask for _, mask in encoded]
        return SupportSet(features, masks, size, self.weights)

    def _encode(
        self, support: Support, size: int, where: str
    ) -> tuple[SupportFeatures, np.ndarray]:
        """Return the features of a support as an episode of its own, and its mask."""
        if not isinstance(support, Support):
            raise ValueError(f"{where} is of type {type(support).__name__}, not a Support")
        if isinstance(support.image, str | os.PathLike):
            where += f" ({os.fspath(support.image)})"
        try:
            image, mask = support.load()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        inputs = preprocess_image(image, size), preprocess_mask(mask, size)
        with torch.no_grad(), self.precision.autocast():
            encoded = self.net.encode_support(*(x[None, None].to(self.device) for x in inputs))
        features = split_supports(encoded)[0][0]
        if not features.count[..., 0].item():
            raise ValueError(
                f"{where}: the object is too small, {int(mask.sum())} of {mask.size} pixels: no "
                f"position of the network's grid lies on it; crop the picture around it"
            )
        return features, mask

    @overload
    def segment(  # type: ignore[overload-overlap]  # A path is an iterable of letters, too.
        self, images: Picture, supports: SupportSet, threshold: float = ..., batch_size: int = ...
    ) -> Result: ...

    @overload
    def segment(  # type: ignore[overload-overlap]
        self,
        images: list[Picture] | tuple[Picture, ...],
        supports: SupportSet,
        threshold: float = ...,
        batch_size: int = ...,
    ) -> list[Result]: ...

    @overload
    def segment(
        self,
        images: Iterable[Picture],
        supports: SupportSet,
        threshold: float = ...,
        batch_size: int = ...,
    ) -> Iterator[Result]: ...

    def segment(
        self,
        images: Picture | Iterable[Picture],
        supports: SupportSet,
        threshold: float = 0.5,
        batch_size: int = 1,
    ) -> Result | list[Result] | Iterator[Result]:
        """Segment one picture or many by supports.

        Args:
            images: one picture; a list or tuple of them; or any other iterable, whose results come as
                an iterator that reads a batch at a time. See `Support` for what a picture may be.
            supports: what `fit` returned.
            threshold: of the probability from which a pixel belongs to a class.
            batch_size: pictures computed at a time. All have one shape in the network, whatever theirs.

        Returns:
            A `Result`, a list of them, or an iterator of them.

        Raises:
            ValueError: a picture cannot be read, or the supports belong to other weights.
        """
        if not isinstance(supports, SupportSet):
            raise ValueError(
                f"supports is of type {type(supports).__name__}, not what fit returned; the picture "
                "comes first"
            )
        if supports.weights != self.weights:
            raise ValueError("these supports were encoded by other weights: call fit again")
        if not 0 < threshold < 1:
            raise ValueError(f"the threshold {threshold} is not between 0 and 1")
        if batch_size < 1:
            raise ValueError(f"the batch size {batch_size} is not at least 1")
        if is_picture(images):
            return next(self._results([images], supports, threshold, 1))
        results = self._results(cast(Iterable[Picture], images), supports, threshold, batch_size)
        return list(results) if isinstance(images, list | tuple) else results

    def _results(
        self, images: Iterable[Picture], supports: SupportSet, threshold: float, batch_size: int
    ) -> Iterator[Result]:
        pictures = iter(images)
        features = {
            name: map_tensors(one, lambda tensor: tensor.to(self.device))
            for name, one in supports.features.items()
        }
        while batch := list(islice(pictures, batch_size)):
            yield from self._segment_batch(batch, features, supports.size, threshold)

    def _segment_batch(
        self,
        batch: list[Picture],
        supports: dict[str, SupportFeatures],
        size: int,
        threshold: float,
    ) -> list[Result]:
        """Return the results of pictures, which pass the backbone once for all classes."""
        shapes, inputs = [], []
        for picture in batch:
            image = read_picture(picture)
            shapes.append(image.shape[:2])
            inputs.append(preprocess_image(image, size))
        outputs = {}
        with torch.no_grad(), self.precision.autocast():
            queries = self.net.encode_query(torch.stack(inputs).to(self.device))
            for name, features in supports.items():
                episodes = map_tensors(features, lambda x: x.expand(len(batch), *x.shape[1:]))
                net = self.net.for_shot(features.prototype.shape[1])
                out = net.segment(queries, episodes, (size, size))
                outputs[name] = out.final.cpu(), [maps.float().cpu() for maps in out.correlations]
        results = []
        for number, (picture, shape) in enumerate(zip(batch, shapes, strict=True)):
            logits = torch.stack([final[number] for final, _ in outputs.values()])
            maps = {
                name: [one[number].numpy() for one in own] for name, (_, own) in outputs.items()
            }
            results.append(Result(picture, shape, tuple(outputs), logits, maps, threshold))
        return results
