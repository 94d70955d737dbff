"""What the model takes from mmcv and mmseg, imported without the notices they print.

Below Python 3.13 these are mmcv-full 1.x and mmsegmentation. Newer Pythons cannot build mmcv-full;
there mmcv-lite 2.x has the same modules, and torch the function that mmseg's `resize` calls.
"""

import io
import sys
import warnings
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from types import ModuleType

from torch.nn import functional as F

# mmcv also imports torchvision, and with it the compiler of torch. That would double the time and add
# 0.2 GB to the memory of every command. So mmcv gets a module that imports it at its first use.
_torchvision = ModuleType("torchvision")
sys.modules.setdefault("torchvision", _torchvision)
# mmcv imports torch's module for compiled operators, which are not used here; it writes notices where
# the CUDA toolkit or the GPU is missing.
with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    from mmcv.cnn import ConvModule
    from mmcv.cnn.bricks.transformer import PatchEmbed

    try:
        from mmseg.ops import resize as _resize
    except ModuleNotFoundError:
        resize = F.interpolate
    else:
        # mmseg advises on the ratio of sizes at every call; PSPNet's pooled maps never have it.
        resize = partial(_resize, warning=False)
if sys.modules["torchvision"] is _torchvision:
    del sys.modules["torchvision"]
    _torchvision.__getattr__ = lambda name: getattr(  # type: ignore[method-assign]
        import_module("torchvision"), name
    )

__all__ = ["ConvModule", "PatchEmbed", "resize"]
