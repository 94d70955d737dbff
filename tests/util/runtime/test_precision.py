import sys

import pytest
import torch

import test as command
from model import build_hdmnet, hdmnet_loss
from util.runtime.errors import UserError
from util.runtime.precision import Precision, require_type, resolve_amp
from util.training.schedule import hdmnet_optimizer

CPU = torch.device("cpu")


def test_float16_is_for_cuda():
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        Precision("fp16", CPU)


def test_types_that_a_device_does_not_compute_in_are_named(monkeypatch):
    with pytest.raises(UserError, match="backbone_dtype fp16 needs a CUDA device"):
        require_type("backbone_dtype", "fp16", CPU)
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"amp bf16 needs .* this one has 7\.5; set amp to fp16"):
        require_type("amp", "bf16", cuda)
    assert resolve_amp("auto", cuda) == "off"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    require_type("amp", "bf16", cuda)
    assert resolve_amp("auto", cuda) == "bf16"


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("off", torch.float32)])
def test_the_test_computes_in_the_chosen_precision(amp, dtype, tmp_path, monkeypatch):
    seen = []

    def keep(cfg, processes, args):
        seen.append((cfg.amp, torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype))

    monkeypatch.setattr(command, "test", keep)
    # What "auto" means depends on the machine.
    resolve = {"auto": amp}
    monkeypatch.setattr(
        "util.runtime.precision.resolve_amp", lambda word, device: resolve.get(word, word)
    )
    words = ["test.py", "--config", "config/pascal/pascal_split0_resnet50.yaml", "--opts"]
    for word in (amp, "auto"):
        monkeypatch.setattr(sys, "argv", [*words, f"exp_dir={tmp_path}", f"amp={word}"])
        command.main()
    assert seen == [(amp, dtype)] * 2


def losses_of_training(amp, backbone_dtype=None):
    """Losses of ten iterations on one batch, (10, 3): total, main, distillation."""
    torch.manual_seed(0)
    net = build_hdmnet(backbone="resnet18", base_classes=3, backbone_dtype=backbone_dtype).train()
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 3, 33, 33, generator=generator)
    support = torch.randn(2, 1, 3, 33, 33, generator=generator)
    mask = torch.zeros(2, 33, 33, dtype=torch.long)
    mask[:, 8:24, 8:24] = 1
    # Empty masks, of supports and of queries, make the teacher of the distillation flat.
    support_mask = mask[:, None].clone()
    support_mask[1] = 0
    optimizer = hdmnet_optimizer(net, 1e-4)
    precision = Precision(amp, CPU)
    rows = []
    for step in range(10):
        torch.manual_seed(step)  # the same dropout
        with precision.autocast():
            out = net(query, support, support_mask, torch.zeros(2, dtype=torch.long))
        losses = hdmnet_loss(out, mask, mask)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        assert losses.total.dtype == losses.distillation.dtype == torch.float32
        rows.append([losses.total.item(), losses.main.item(), losses.distillation.item()])
    return torch.tensor(rows)


@pytest.mark.slow
def test_reduced_precision_follows_float32_within_two_percent():
    expected = losses_of_training("off")
    assert expected[-1, 0] < expected[0, 0] - 0.1
    for losses in (losses_of_training("bf16"), losses_of_training("off", torch.bfloat16)):
        assert losses.isfinite().all()
        torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.02)
