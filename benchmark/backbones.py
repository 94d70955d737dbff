"""Measure every backbone on this machine: `python -m benchmark.backbones`.

It measures a 1-shot test episode with random weights, at the size nearest to --size that the backbone
takes: the median time of runs, the same with the features of both images known, and the most memory
that a run adds to weights and batch. Multiplications are those of the backbone for one image.
backbones.md and backbones.json are written after each row.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark.cases import Case, Lab
from benchmark.measure import cpu_peak_bytes, median_seconds, peak_bytes, release_memory
from model.backbone import BACKBONES, find_backbone
from util.config.schema import net_name
from util.runtime.files import write_atomically
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

HEADER = ["backbone", "licence", "parameters, M", "size, px", "grid", "multiplications, G"]
HEADER += ["episode, s", "features known, s", "memory, MiB"]


def measure(backbone: str, size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Return the numbers of one backbone, by the names of `HEADER`."""
    entry = find_backbone(backbone)
    size = entry.sizes.nearest(size)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = entry.build().eval()
        net(torch.empty(1, 3, size, size))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    numbers: list[Any] = [parameters / 1e6, size, "×".join(map(str, net.grid((size, size))))]
    numbers.append(counter.get_total_flops() / 2e9)
    case = Case(False, size, 1, 1, backbone)
    # First, since a process that holds a model shows less.
    peak = cpu_peak_bytes(case, "fast") if device.type == "cpu" else None
    lab = Lab(case, device)
    numbers += [median_seconds(lab.step(way), device, repeats) for way in ("fast", "cached")]
    peak = peak_bytes(lab.step("fast"), device) if peak is None else peak
    numbers.append(round(peak / 2**20))
    return dict(zip(HEADER, [net_name(backbone), entry.licence or "-", *numbers], strict=True))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--backbones", nargs="+", metavar="NAME", default=list(BACKBONES))
    parser.add_argument("--size", type=int, default=473, help="S of images (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (%(default)s)")
    parser.add_argument("--out", default="result/benchmark", help="folder (%(default)s)")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for backbone in args.backbones:
        rows.append(measure(backbone, args.size, args.repeats, device))
        release_memory(device)
        cells = [[_cell(value) for value in row.values()] for row in rows]
        table = markdown_table(HEADER, cells, left=(0, 1))
        write_atomically(Path(args.out, "backbones.md"), f"{table}\n{environment_line()}\n")
        write_atomically(Path(args.out, "backbones.json"), json.dumps(rows, indent=1) + "\n")
    print(f"{table}\n{environment_line()}")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
