"""HDMNet: the network, its preprocessing and its loss, without files and configuration parsing.

model/reference.py states the whole method; read it first.
"""

from model.hdmnet import HDMNet, build_hdmnet
from model.loss import Losses, hdmnet_loss
from model.preprocessing import MEAN, STD, preprocess_image, preprocess_mask
from model.pspnet import PSPNet, build_pspnet
from model.reference import HDMNetOutput

__all__ = [
    "MEAN",
    "STD",
    "HDMNet",
    "HDMNetOutput",
    "Losses",
    "PSPNet",
    "build_hdmnet",
    "build_pspnet",
    "hdmnet_loss",
    "preprocess_image",
    "preprocess_mask",
]
