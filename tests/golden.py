"""The golden model files: numbers computed with the published model (see tests/data/README.md)."""

import json

import numpy as np
import pytest
import torch

from model import build_hdmnet, hdmnet_loss
from tests.deterministic import episode, tensor_for
from tests.model.random_nets import without_dropout
from tests.paths import DATA
from util.checkpoints.published_names import from_published, to_published
from util.training.schedule import hdmnet_optimizer, poly_rate, set_rate

FILES = sorted(path.stem for path in DATA.glob("golden_*shot.npz"))
SHAPES = json.loads((DATA / "state_dict_shapes.json").read_text())


def published_state(variant, seed=0, meta_bias=None):
    """State dict of one variant with the published names and the deterministic weights."""
    state = {
        key: torch.from_numpy(np.asarray(tensor_for(key, shape, seed)))
        for key, shape in SHAPES[variant].items()
    }
    if meta_bias is not None:
        state["transformer.mix_transformer.cls.4.bias"] = torch.tensor(meta_bias)
    return state


def variant_of(config):
    """Name of the golden variant in state_dict_shapes.json."""
    backbone = "vgg16" if config["vgg"] else f"resnet{config['layers']}"
    suffix = "_dim0" if config["kshot_trans_dim"] == 0 else ""
    return f"hdmnet_{config['dataset']}_{backbone}_{config['shot']}shot{suffix}"


def golden_model(config):
    """The model with the weights that the golden numbers were computed with."""
    net = build_hdmnet(
        backbone="vgg16" if config["vgg"] else f"resnet{config['layers']}",
        base_classes=config["base_classes"],
        shot=config["shot"],
        kshot_trans_dim=config["kshot_trans_dim"],
        low_fea=config["low_fea"],
    )
    state = published_state(variant_of(config), config["seed"], config["meta_bias"])
    net.load_state_dict(from_published(state))
    return net.eval()


def golden_episode(config):
    """The batch of episodes of a golden file, as tensors."""
    batch = episode(
        config["size"],
        config["shot"],
        config["batch"],
        config["base_classes"],
        config["seed"],
        config["empty"],
    )
    return {key: torch.from_numpy(value) for key, value in batch.items()}


def _golden(name, device):
    """Numbers, config, model and batch of a golden file."""
    numbers = np.load(DATA / f"{name}.npz")
    config = json.loads(str(numbers["config"]))
    batch = {key: value.to(device) for key, value in golden_episode(config).items()}
    return numbers, config, golden_model(config).to(device), batch


def _relative_error(actual, expected):
    return np.abs(actual.detach().cpu().numpy() - expected).max() / np.abs(expected).max()


def check_outputs(name, device="cpu", slack=1):
    """Assert that a golden file's outputs in eval mode are computed.

    `slack` multiplies the tolerances, for devices that sum in other orders.
    """
    numbers, config, net, batch = _golden(name, device)
    with torch.no_grad():
        out = net(batch["query"], batch["support"], batch["support_mask"])
    stride = config["output_stride"]
    for key in ("final", "meta", "base"):
        logits = getattr(out, key)[..., ::stride, ::stride]
        assert _relative_error(logits, numbers[key]) < 2e-5 * slack, key
    assert _relative_error(out.adjustment, numbers["adjustment"]) < 2e-5 * slack
    assert len(out.correlations) == 3
    for index, correlation in enumerate(out.correlations):
        assert _relative_error(correlation, numbers[f"correlation_{index}"]) < 2e-5 * slack, index


def check_training_steps(name, device="cpu", slack=1):
    """Assert that a golden file's losses, gradients and three training steps are computed.

    `slack` is that of `check_outputs`.
    """
    numbers, _, net, batch = _golden(name, device)
    without_dropout(net).train()
    optimizer = hdmnet_optimizer(net, 1e-4)

    for step in range(3):
        set_rate(optimizer, poly_rate(1e-4, step + 1, 10))
        out = net(batch["query"], batch["support"], batch["support_mask"], batch["class_index"])
        losses = hdmnet_loss(out, batch["query_mask"], batch["base_mask"])
        actual = [losses.main.item(), losses.distillation.item(), losses.base.item()]
        tolerance = 1e-5 * slack if step == 0 else 1e-2
        np.testing.assert_allclose(actual, numbers["losses"][step], rtol=tolerance)
        optimizer.zero_grad()
        losses.total.backward()
        if step == 0:
            _check_first_step(numbers, net, out, optimizer, slack)
        optimizer.step()

    parameters = to_published({name: p.detach() for name, p in net.named_parameters()})
    rates = sum(poly_rate(1e-4, step + 1, 10) for step in range(3))
    for key, expected in zip(
        numbers["param_sum_keys"], numbers["param_sums_after_3_steps"], strict=True
    ):
        total = rates if key.startswith("transformer.") else 10 * rates
        loose = key in ("transformer.mix_transformer.cls.4.bias", "gram_merge.weight")
        tolerance = (0.02 if loose else 1e-3 * slack) * parameters[key].numel() * total
        actual = parameters[key].double().sum().item()
        assert abs(actual - expected) <= tolerance + (0 if loose else 1e-5), key


def _check_first_step(numbers, net, out, optimizer, slack):
    final = out.final.detach()
    tie = (final[:, 0] - final[:, 1]).abs() < 2e-5 * slack * final.abs().max()
    same = final.argmax(1).cpu() == torch.from_numpy(numbers["train_prediction"])
    assert (same | tie.cpu()).all()
    assert tie.float().mean() < 1e-3 * slack

    groups = sorted(group["lr"] for group in optimizer.param_groups)
    np.testing.assert_allclose(groups, sorted(set(numbers["lr"])), rtol=1e-12)

    gradients = to_published({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
    assert set(gradients) == set(numbers["grad_norm_keys"])
    expected = dict(zip(numbers["grad_norm_keys"], numbers["grad_norms"], strict=True))
    largest = max(expected.values())
    for key, norm in expected.items():
        if norm > 1e-6 * largest:
            assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-3 * slack), key
