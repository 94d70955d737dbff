"""The pieces taken from mmcv and mmseg, imported without the notices they print.

mmcv 1.x announces mmcv 2.0 on every import, and the torch module it pulls in for compiled operators
(which are not used here) warns where no CUDA toolkit is installed.
"""

import logging
import warnings
from functools import partial

_cpp_logger = logging.getLogger("torch.utils.cpp_extension")
_level = _cpp_logger.level
_cpp_logger.setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmcv.cnn import ConvModule
    from mmcv.cnn.bricks.transformer import PatchEmbed
    from mmseg.ops import resize as _resize
_cpp_logger.setLevel(_level)

# mmseg advises on the ratio of sizes at every call; the pooled maps of PSPNet never have that ratio.
resize = partial(_resize, warning=False)

__all__ = ["ConvModule", "PatchEmbed", "resize"]
