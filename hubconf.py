"""Entry points of torch.hub: `torch.hub.load(REPOSITORY, "hdmnet", weights="best.pth")`."""

import os
from typing import Any

dependencies = ["cv2", "huggingface_hub", "mmcv", "numpy", "PIL", "safetensors", "torch", "yaml"]


def hdmnet(weights: str | os.PathLike[str], **options: Any) -> Any:
    """Return a `segmenter.FewShotSegmenter` with trained weights.

    Args:
        weights: a checkpoint, the folder of a run, or a repository of the Hugging Face Hub.
        **options: size, device and amp, see `FewShotSegmenter.from_pretrained`.
    """
    from segmenter import FewShotSegmenter

    return FewShotSegmenter.from_pretrained(weights, **options)
