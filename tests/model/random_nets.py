"""Small models and episodes with random numbers in all the places that matter."""

import torch
from torch import nn

from model import build_hdmnet

CLASSES = 5


def random_net(backbone="resnet18", shot=1, seed=0, classes=CLASSES, **options):
    """An HDMNet whose batch norms have seen something, without dropout, in eval mode."""
    torch.manual_seed(seed)
    net = without_dropout(
        build_hdmnet(backbone, classes, shot=shot, kshot_trans_dim=0, **options)
    ).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    with torch.no_grad():
        # As initialised these merges hide what they merge.
        net.ensemble.adjustment_merge.weight.copy_(torch.tensor([1.0, 0.5]).view(1, 2, 1, 1))
        net.ensemble.background_merge.weight.copy_(torch.tensor([0.8, 0.3]).view(1, 2, 1, 1))
    return net


def without_dropout(net):
    """The same network, which no longer drops anything in training."""
    for module in net.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return net


def random_episode(size, batch=1, shot=1, masks=None, seed=0):
    """(query, support, support_mask, class_index) with images of `size` = (H, W).

    masks: one letter per support, over all episodes in turn: "b" a box with an ignored row, "e" empty,
    "f" full, "i" all ignored, "p" a single pixel; None for boxes of different sizes.
    """
    torch.manual_seed(seed)
    height, width = size
    mask = torch.zeros(batch * shot, height, width, dtype=torch.long)
    for index, kind in enumerate(masks or "b" * (batch * shot)):
        if kind == "b":
            mask[index, height // 4 : height // 2 + 3 * index, width // 5 : width // 2 + index] = 1
            mask[index, height // 3] = 255
        elif kind == "p":
            mask[index, height // 2, width // 2] = 1
        elif kind in "fi":
            mask[index] = 1 if kind == "f" else 255
    return (
        torch.randn(batch, 3, height, width),
        torch.randn(batch, shot, 3, height, width),
        mask.unflatten(0, (batch, shot)),
        torch.arange(batch) % CLASSES,
    )


def in_double(episode):
    """The same episode with float64 images."""
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in episode)
