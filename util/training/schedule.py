"""Optimiser groups and learning-rate schedules of both stages (paper, section 4.1)."""

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from model import HDMNet, PSPNet


def _group(
    modules: list[nn.Module], rate: float, ratio: float, fused_on: tuple[str, ...]
) -> dict[str, Any]:
    parameters = [p for module in modules for p in module.parameters()]
    fused = all(p.device.type in fused_on for p in parameters)
    return {"params": parameters, "lr": rate * ratio, "ratio": ratio, "fused": fused}


def hdmnet_optimizer(
    net: HDMNet, rate: float, weight_decay: float = 0.01, train_kshot_rw: bool = False
) -> AdamW:
    """AdamW: hierarchy, matching and decoder at `rate`, the other trained parts at ten times that.

    Without a base learner there is no ensemble to train.

    Args:
        net: the model.
        rate: base learning rate.
        weight_decay: on every parameter, norms and biases included.
        train_kshot_rw: train the weights of the supports too, which the published code leaves as they
            were initialised.
    """
    ten_times: list[nn.Module] = [
        net.reduce_support,
        net.reduce_query,
        net.merge_support,
        net.merge_query,
    ]
    if net.base.base_classes:
        ten_times += [net.ensemble.adjustment_merge, net.ensemble.background_merge]
        if train_kshot_rw and net.ensemble.shot_weights is not None:
            ten_times.append(net.ensemble.shot_weights)
    # One kernel for all parameters. On the CPU it rounds otherwise than the published code does, and
    # Adam makes large steps of small differences.
    fused_on = ("cuda",)
    groups = [
        _group([net.hierarchy, net.matching, net.decoder], rate, 1.0, fused_on),
        _group(ten_times, rate, 10.0, fused_on),
    ]
    return AdamW(groups, betas=(0.9, 0.999), weight_decay=weight_decay)


def freeze_untrained(net: nn.Module, optimizer: Optimizer) -> None:
    """Give no gradients to parameters that no group holds: nothing would ever reset them."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in net.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


def base_optimizer(
    net: PSPNet,
    rate: float,
    momentum: float,
    weight_decay: float,
    encoder_ratio: float = 1.0,
    head_ratio: float = 10.0,
) -> SGD:
    """SGD for the base learner; pyramid and head learn at `head_ratio` times the rate.

    With an `encoder_ratio` of 0 the backbone stays as it is, and no gradients are computed for it.
    """
    fused_on = ("cuda", "cpu")  # On the CPU it halves the time of a step of SGD.
    groups = [_group([net.pyramid, net.head, net.classifier], rate, head_ratio, fused_on)]
    if encoder_ratio:
        groups.insert(0, _group([net.backbone], rate, encoder_ratio, fused_on))
    return SGD(groups, momentum=momentum, weight_decay=weight_decay)


def poly_rate(
    base: float, iteration: int, total: int, power: float = 0.9, warmup_steps: float = 0
) -> float:
    """The rate of one iteration.

    Args:
        base: rate at the start.
        iteration: counted from 1.
        total: iterations of the whole training.
        power: exponent of the decay.
        warmup_steps: below this many iterations the rate rises linearly from a tenth of `base`
            instead of following the decay.
    """
    if iteration < warmup_steps:
        return base * (0.1 + 0.9 * iteration / warmup_steps)
    return base * (1 - iteration / total) ** power


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate` times its ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]
