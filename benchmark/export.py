"""Measure exported graphs beside the model on this machine: `python -m benchmark.export`.

It measures a test episode with random weights on the CPU: the graphs of ONNX in onnxruntime, and the
model in torch, in turns, each also with the supports encoded before. Masks cover about an eighth of
each image. The deviation is the largest of the final logits, as a share of the largest of them.
"""

import argparse
from statistics import median

import torch

from benchmark.measure import seconds_of
from model import build_hdmnet
from model.backbone import find_backbone
from util.export import export, load, random_episode, segment
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

CPU = torch.device("cpu")
HEADER = ["backbone", "size, px", "graphs, s", "model, s"]
HEADER += ["graphs, supports known, s", "model, supports known, s", "deviation"]


@torch.no_grad()
def measure(backbone: str, size: int, shot: int, repeats: int) -> list[str]:
    """Return the row of one backbone, as in `HEADER`."""
    size = find_backbone(backbone).sizes.nearest(size)
    torch.manual_seed(0)
    net = build_hdmnet(backbone, 15, shot=shot).eval().requires_grad_(False)
    graphs = {name: load(graph, "onnx") for name, graph in export(net, size, "onnx").items()}
    query, support, mask = random_episode(1, shot, size)
    keys = graphs["support"](**graphs["encoder"](image=support * mask[:, None]), mask=mask)
    known = net.encode_support(support[None], mask[None])
    steps = (
        lambda: segment(graphs, query, support, mask),
        lambda: net(query, support[None], mask[None]),
        lambda: graphs["matcher"](**graphs["encoder"](image=query), **keys),
        lambda: net.segment(net.encode_query(query), known, (size, size)),
    )
    final, expected = steps[0]()["final"], steps[1]().final  # They also warm up.
    deviation = (final - expected).abs().max() / expected.abs().max()
    turns = [[seconds_of(step, CPU) for step in steps] for _ in range(repeats)]
    seconds = [f"{median(taken):.3g}" for taken in zip(*turns, strict=True)]
    return [backbone, str(size), *seconds, f"{deviation:.0e}"]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--backbones", nargs="+", metavar="NAME", default=["resnet50"])
    parser.add_argument("--size", type=int, default=473, help="S of images (%(default)s)")
    parser.add_argument("--shot", type=int, default=1, help="supports (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (%(default)s)")
    args = parser.parse_args()
    rows = [measure(name, args.size, args.shot, args.repeats) for name in args.backbones]
    print(markdown_table(HEADER, rows), environment_line(), sep="\n")


if __name__ == "__main__":
    main()
