"""HDMNet: the network and its loss. Pure modules and functions: no files, no configuration parsing."""

from model.hdmnet import HDMNet, HDMNetOutput, build_hdmnet
from model.loss import Losses, hdmnet_loss
from model.pspnet import PSPNet, build_pspnet

__all__ = [
    "HDMNet",
    "HDMNetOutput",
    "Losses",
    "PSPNet",
    "build_hdmnet",
    "build_pspnet",
    "hdmnet_loss",
]
