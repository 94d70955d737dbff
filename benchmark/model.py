"""Time and memory of the model, fast against plain: `python -m benchmark.model` prints the tables.

In each case both take turns in one process and the ratio is that of the medians; memory is the peak
of one run in a process of its own, above the weights and the batch. Weights and images are random,
each mask covers a part of its image. What is plain is in benchmark/plain.py. On a machine with a GPU
the same command measures there.
"""

import argparse

import torch

from benchmark.cases import PUBLISHED, QUICK, Case
from benchmark.worker import measure
from model.backbone import BACKBONES
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

HEADER = (
    "case",
    "plain, s",
    "here, s",
    "faster",
    "with backbone_dtype bf16, s",
    "faster again",
    "plain, MiB",
    "here, MiB",
    "smaller",
)


def main() -> None:
    args = _parse()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    print(environment_line(), flush=True)
    cases = _cases(args)
    print(f"\n{_comparison(cases, args, device)}", end="", flush=True)
    if not args.no_parts:
        print(f"\nSeconds of each part:\n\n{_parts(cases, device)}", end="")


def _parse() -> argparse.Namespace:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=details)
    parser.add_argument("--quick", action="store_true", help="small cases, to see that it runs")
    parser.add_argument("--only", choices=("test", "train"), help="only these cases")
    parser.add_argument("--size", type=int, help="one case instead of the published ones: pixels,")
    parser.add_argument("--shot", type=int, default=1, help="supports of an episode,")
    parser.add_argument("--batch", type=int, default=1, help="episodes at once;")
    parser.add_argument("--train", action="store_true", help="a training step, else a test")
    parser.add_argument("--backbone", choices=BACKBONES, help="default resnet50")
    parser.add_argument("--share", type=float, help="part of an image that its mask covers, 0.15")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each way")
    parser.add_argument("--no-bf16", action="store_true", help="only float32")
    parser.add_argument("--no-memory", action="store_true", help="only times")
    parser.add_argument("--no-parts", action="store_true", help="without the table of the parts")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU if there is one"
    )
    return parser.parse_args()


def _cases(args: argparse.Namespace) -> list[Case]:
    cases = QUICK if args.quick else PUBLISHED
    if args.size is not None:
        cases = (Case(args.train, args.size, args.shot, args.batch),)
    changes = {"backbone": args.backbone, "share": args.share}
    changes = {key: value for key, value in changes.items() if value is not None}
    kept = [case for case in cases if args.only is None or case.training == (args.only == "train")]
    return [case._replace(**changes) for case in kept]


def _ways(case: Case, args: argparse.Namespace) -> list[str]:
    ways = ["plain", "fast"]
    if not args.no_bf16:
        ways.append("bf16")
    if not case.training:
        ways.append("cached")
    return ways


def _comparison(cases: list[Case], args: argparse.Namespace, device: str) -> str:
    rows = []
    largest: dict[str, float] = {}
    for case in cases:
        ways = _ways(case, args)
        times = measure("times", case=case, ways=ways, repeats=args.repeats, device=device)
        memory = {}
        if not args.no_memory:
            memory = {
                way: measure("memory", case=case, way=way, device=device)
                for way in ways
                if way != "bf16"
            }
        rows += _rows(case.name, times["seconds"], memory)
        for way, difference in times["differences"].items():
            largest[way] = max(difference, largest.get(way, 0))
    differences = ", ".join(f"{way} {value:.1e}" for way, value in largest.items())
    return (
        f"{markdown_table(HEADER, rows)}\n"
        f"Largest difference to the plain logits, divided by the largest of them: {differences}\n"
    )


def _rows(name: str, seconds: dict[str, float], memory: dict[str, float]) -> list[list[str]]:
    """A row of the case and, where it was measured, one of the features known."""
    rows = []
    for way, label in {"fast": name, "cached": "its features known"}.items():
        if way not in seconds:
            continue
        cells = dict.fromkeys(HEADER, "")
        cells["case"] = label
        cells["here, s"] = f"{seconds[way]:.3g}"
        cells["faster"] = f"{seconds['plain'] / seconds[way]:.2f}×"
        if memory:
            cells["here, MiB"] = f"{memory[way] / 2**20:.0f}"
            if memory[way] > 0:  # small cases fit into what the process held before
                cells["smaller"] = f"{memory['plain'] / memory[way]:.1f}×"
        if way == "fast":
            cells["plain, s"] = f"{seconds['plain']:.3g}"
            if memory:
                cells["plain, MiB"] = f"{memory['plain'] / 2**20:.0f}"
            if "bf16" in seconds:
                cells["with backbone_dtype bf16, s"] = f"{seconds['bf16']:.3g}"
                cells["faster again"] = f"{seconds['fast'] / seconds['bf16']:.2f}×"
        rows.append(list(cells.values()))
    return rows


def _parts(cases: list[Case], device: str) -> str:
    rows = []
    for case in cases:
        for way in ("plain", "fast"):
            seconds = measure("parts", case=case, way=way, device=device)
            whole = seconds.pop("whole")
            seconds["rest"] = whole - sum(seconds.values())
            cells = [f"{value:.3f} ({value / whole:.0%})" for value in seconds.values()]
            rows.append([case.name, way, *cells, f"{whole:.3f}"])
    return markdown_table(["case", "way", *seconds, "whole"], rows, left=(0, 1))


if __name__ == "__main__":
    main()
