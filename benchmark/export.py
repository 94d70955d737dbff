"""Measure exported graphs beside the model on this machine: `python -m benchmark.export`.

It measures the graphs of ONNX in onnxruntime and the model in torch, in turns, on a 1-shot test
episode with random weights on the CPU: the support, the query, the matching, and all of them. Masks
cover an eighth of each image.
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


@torch.no_grad()
def measure(backbone: str, size: int, shot: int, repeats: int) -> list[str]:
    """Return the row of one backbone: seconds of an episode, and of one with known supports."""
    size = find_backbone(backbone).sizes.nearest(size)
    torch.manual_seed(0)
    net = build_hdmnet(backbone, 15, shot=shot).eval().requires_grad_(False)
    graphs = {name: load(graph, "onnx") for name, graph in export(net, size, "onnx").items()}
    query, support, mask = random_episode(1, shot, size)
    masked = graphs["encoder"](image=support * mask[:, None])
    keys = graphs["support"](**masked, mask=mask)
    known = net.encode_support(support[None], mask[None])
    steps = {
        "graphs": lambda: segment(graphs, query, support, mask),
        "model": lambda: net(query, support[None], mask[None]),
        "graphs, support known": lambda: graphs["matcher"](
            **graphs["encoder"](image=query), **keys
        ),
        "model, support known": lambda: net.segment(net.encode_query(query), known, (size, size)),
    }
    turns = [[seconds_of(step, CPU) for step in steps.values()] for _ in range(1 + repeats)]
    # The first turn was to warm up.
    return [backbone, str(size), *(f"{median(each):.3g}" for each in zip(*turns[1:], strict=True))]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--backbones", nargs="+", metavar="NAME", default=["resnet50"])
    parser.add_argument("--size", type=int, default=473, help="S of images (%(default)s)")
    parser.add_argument("--shot", type=int, default=1, help="supports (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (%(default)s)")
    args = parser.parse_args()
    rows = [measure(name, args.size, args.shot, args.repeats) for name in args.backbones]
    header = ["backbone", "size, px", "graphs, s", "model, s"]
    header += ["graphs, supports known, s", "model, supports known, s"]
    print(markdown_table(header, rows), environment_line(), sep="\n")


if __name__ == "__main__":
    main()
