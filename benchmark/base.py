"""Measure training steps of stage 1, the base learner: `python -m benchmark.base`.

The same random images pass a PSPNet in float32 and in bfloat16 by turns. Each median is of some runs.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

from benchmark.measure import release_memory, seconds_of
from model import build_pspnet
from util.runtime.machine import environment_line
from util.runtime.precision import Precision
from util.runtime.seed import choose_kernels
from util.runtime.tables import markdown_table
from util.training.schedule import base_optimizer

# Backbone, pixels and images of a batch: as published for PASCAL, and as in the demo.
CASES = (("resnet50", 417, 12), ("resnet18", 97, 8))
SMALL_CASES = (("resnet18", 65, 2),)
BASE_CLASSES = 15


def training_step(
    backbone: str, size: int, batch: int, amp: str, device: torch.device
) -> Callable[[], None]:
    """Return a function that trains on one batch of random images, as train_base.py does."""
    net = build_pspnet(backbone, BASE_CLASSES).train().to(device)
    net.to(memory_format=torch.channels_last)
    optimizer = base_optimizer(net, 1e-3, 0.9, 1e-4)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(BASE_CLASSES + 1, (batch, size, size), device=device)
    precision = Precision(amp, device)

    def train() -> None:
        with precision.autocast():
            logits = net(images)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (%(default)s)")
    parser.add_argument("--small", action="store_true", help="a small case, to see that it runs")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choose_kernels(deterministic=False, tf32=True)
    rows = []
    for backbone, size, batch in SMALL_CASES if options.small else CASES:
        steps = {amp: training_step(backbone, size, batch, amp, device) for amp in ("off", "bf16")}
        taken = defaultdict(list)
        for _ in range(1 + options.repeats):
            for amp, step in steps.items():
                taken[amp].append(seconds_of(step, device))
        exact, reduced = (median(seconds[1:]) for seconds in taken.values())
        case = f"{backbone}, {size} px, batch {batch}"
        rows.append([case, f"{exact:.3g}", f"{reduced:.3g}", f"{exact / reduced:.2f}×"])
        del steps
        release_memory(device)
    print(f"{environment_line()}\n")
    heads = ["training step of stage 1", "amp off, s", "amp bf16, s", "faster"]
    print(markdown_table(heads, rows))


if __name__ == "__main__":
    main()
