"""Measure the model against its reference on this machine: `python -m benchmark.model`.

The piece `steps` compares test episodes and training steps with model/reference.py in each precision:
median times of runs that take turns, the most memory that a run adds to weights and batch, and the
logits of tests. With `--published DIR`, a copy of the published code is measured beside them (its
training step on a GPU alone, which it asks for). `profile` says which parts, operators and kernels the
time goes to. Either writes PIECE.json and PIECE.md after each row. Weights and images are random; masks
cover 15 % of an image.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.profiler import profile

from benchmark import published
from benchmark.cases import CPU_CASES, GPU_CASES, SMALL_CASES, Case, Lab
from benchmark.measure import (
    cpu_peak_bytes,
    measure_peaks,
    median_seconds,
    peak_bytes,
    release_memory,
    seconds_of,
    timed_parts,
)
from model.backbone import BACKBONES, check_size
from util.config import Parser
from util.runtime.errors import UserError, errors_as, exits_on_user_error
from util.runtime.files import write_atomically
from util.runtime.machine import environment_line, require_writable, run_environment
from util.runtime.tables import markdown_table


class Precision(NamedTuple):
    """How products are computed: float32 in TF32, and mixed precision.

    What uses TF32, torch.compile or CUDA graphs is measured on GPUs alone.
    """

    tf32: bool = False
    amp: torch.dtype | None = None
    way: str = "fast"  # the way of `Lab`; in float32 and TF32 all of EXACT are measured
    ceiling: str = "bf16"  # the type of the matrix product that bounds the speed


EXACT = ("reference", "fast", "cached")
PRECISIONS = {
    "float32": Precision(ceiling="float32"),
    "TF32": Precision(tf32=True, ceiling="TF32"),
    "backbone_dtype bf16": Precision(way="bf16"),
    "amp bf16": Precision(tf32=True, amp=torch.bfloat16),
    "TF32, cuda_graphs": Precision(tf32=True, way="captured", ceiling="TF32"),
    "amp bf16, cuda_graphs": Precision(tf32=True, amp=torch.bfloat16, way="captured"),
    "amp fp16": Precision(tf32=True, amp=torch.float16),
    "TF32, compile": Precision(tf32=True, way="compiled", ceiling="TF32"),
    "amp bf16, compile, cuda_graphs": Precision(
        tf32=True, amp=torch.bfloat16, way="compiled, captured"
    ),
}
PROFILED = ("float32", "TF32", "amp bf16")


def measure_steps(lab: Lab, name: str, repeats: int) -> dict[str, Any]:
    """Return seconds, bytes and, in a test, the difference of each way, or why it failed."""
    taken: dict[str, list[float]] = defaultdict(list)
    failed: dict[str, str] = {}

    def attempt(way: str, key: str, action: Callable[[], float]) -> None:
        if f"{way} failed" not in failed:
            try:
                taken[key].append(action())
            except (torch.cuda.OutOfMemoryError, BrokenProcessPool) as error:
                failed[f"{way} failed"] = str(error).partition("\n")[0]

    precision = PRECISIONS[name]
    ways = EXACT if precision.amp is None and precision.way == "fast" else (precision.way,)
    if ways is EXACT and lab.folder and (not lab.case.training or lab.device.type == "cuda"):
        ways = (*ways, "published")
    if lab.case.training:  # whose steps change the weights
        ways = tuple(way for way in ways if way != "cached")
    else:
        for way in ways:
            attempt(way, f"{way} difference", partial(lab.difference, way))
    steps = {way: lab.step(way) for way in ways}
    for _ in range(1 + repeats):
        for way, step in steps.items():
            attempt(way, way, partial(seconds_of, step, lab.device))
    for way, step in steps.items():
        lab.forget_gradients()
        release_memory(lab.device)
        if way.endswith("captured"):
            continue  # Graphs hold their memory, whether it is in use or not.
        if lab.device.type == "cuda" or lab.case in SMALL_CASES:
            attempt(way, f"{way} bytes", partial(peak_bytes, step, lab.device))
        elif way != "bf16":  # each number takes a new process
            attempt(way, f"{way} bytes", partial(cpu_peak_bytes, lab.case, way, lab.folder))
    attempt(precision.way, "flops", lambda: lab.flops)
    # The first of several runs was to warm up.
    return failed | {key: median(values[1:] or values) for key, values in taken.items() if values}


def steps_text(record: dict[str, Any]) -> str:
    """Return the measured steps as markdown."""
    rates = ", ".join(
        f"{name} {rate / 1e12:.3g} {'TB/s' if name == 'copy' else 'TFLOP/s'}"
        for name, rate in record["ceilings"].items()
    )
    rows = [_row(found, record) for found in record["results"]]
    table = markdown_table([*rows[0]], [[*row.values()] for row in rows], left=(0, 1))
    return (
        f"{table}\n"
        f"Measured peaks, of a large matrix product and of a copy: {rates}. Differences are the "
        "largest to the logits of the reference in float32, divided by the largest of them.\n"
    )


def _row(found: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
    _, _, way, ceiling = PRECISIONS[found["precision"]]

    def cell(key: str, form: str, factor: float = 1) -> str:
        if key in found:
            return format(found[key] * factor, form)
        return "out of memory" if f"{key.split()[0]} failed" in found else ""

    def ratio(suffix: str, form: str, slow: str = "reference") -> str:
        keys = f"{slow}{suffix}", f"{way}{suffix}"
        # Small cases fit into what the process held before.
        known = all(found.get(key, 0) > 0 for key in keys)
        return f"{found[keys[0]] / found[keys[1]]:{form}}×" if known else ""

    of_published = {
        "published, s": cell("published", ".3g"),
        "faster than it": ratio("", ".2f", "published"),
        "published, MiB": cell("published bytes", ".0f", 2**-20),
        "smaller than it": ratio(" bytes", ".1f", "published"),
        "its difference": cell("published difference", ".0e"),
    }
    known = "flops" in found and way in found
    share = f"{found['flops'] / found[way] / record['ceilings'][ceiling]:.0%}" if known else ""
    return {
        "case": found["name"],
        "precision": found["precision"],
        "reference, s": cell("reference", ".3g"),
        "here, s": cell(way, ".3g"),
        "faster": ratio("", ".2f"),
        "features known, s": cell("cached", ".3g"),
        "reference, MiB": cell("reference bytes", ".0f", 2**-20),
        "here, MiB": cell(f"{way} bytes", ".0f", 2**-20),
        "smaller": ratio(" bytes", ".1f"),
        "features known, MiB": cell("cached bytes", ".0f", 2**-20),
        "share of peak": share,
        "difference": cell(f"{way} difference", ".0e"),
        **(of_published if record["published"] else {}),
    }


def measure_profile(lab: Lab, name: str, repeats: int) -> dict[str, Any]:
    """Return seconds, shares of the parts, and torch's table of operators and kernels."""
    device = lab.device.type
    step = lab.step("fast")
    seconds = median_seconds(step, lab.device, repeats)
    with timed_parts(lab.device) as parts:
        whole = seconds_of(step, lab.device)
    with profile() as profiler:  # of all devices
        seconds_of(step, lab.device)
    operators = profiler.key_averages().table(
        f"self_{device}_time_total", row_limit=50, max_name_column_width=90
    )
    shares = {part: value / whole for part, value in parts.items()}
    return {"seconds": seconds, "parts": shares, "operators": operators}


def profile_text(record: dict[str, Any]) -> str:
    """Return the profiles as markdown."""
    text = ""
    for found in record["results"]:
        text += f"## {found['name']}, {found['precision']}: {found['seconds'] * 1e3:.1f} ms\n\n"
        text += ", ".join(f"{part} {share:.0%}" for part, share in found["parts"].items())
        text += f"\n\n```\n{found['operators'].strip()}\n```\n\n"
    return text


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    description, _, details = __doc__.partition("\n\n")
    parser = Parser(prog="python -m benchmark.model", description=description, epilog=details)
    parser.add_argument("piece", nargs="?", choices=("steps", "profile"), default="steps")
    parser.add_argument("--out", type=Path, default="result/benchmark", help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (%(default)s)")
    parser.add_argument("--small", action="store_true", help="small cases, to see that it runs")
    parser.add_argument("--size", type=int, help="of one case instead of the published ones")
    parser.add_argument("--shot", type=int, default=1, help="supports of an episode of this case")
    parser.add_argument("--batch", type=int, default=1, help="its episodes at once")
    parser.add_argument("--train", action="store_true", help="a training step, else a test")
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50")
    parser.add_argument(
        "--published", type=Path, metavar="DIR", help="also measure a copy of the published code"
    )
    args = parser.parse_args(arguments)
    require_writable(args.out, "give another folder as --out")
    if args.size is not None:
        with errors_as(UserError, ValueError):
            check_size(args.backbone, args.size)
    if args.published is not None:
        if not (args.published / "model/HDMNet.py").is_file():
            parser.error(f"--published {args.published}: there is no model/HDMNet.py in it")
        if args.small:
            parser.error("--small is without --published, which has no small backbone")
        if args.backbone not in published.BACKBONES:
            names = ", ".join(published.BACKBONES)
            parser.error(f"--published has no other backbones than {names}")
    return args


@exits_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
    args = _parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names, measure, text = PRECISIONS, measure_steps, steps_text
    cases = GPU_CASES if device.type == "cuda" else CPU_CASES
    if args.piece == "profile":
        names, measure, text = PROFILED, measure_profile, profile_text
        cases = cases[:3]
    if args.small:
        cases = SMALL_CASES
    elif args.size is not None:
        cases = (Case(args.train, args.size, args.shot, args.batch, args.backbone),)
    record = {
        "environment": run_environment(),
        "cudnn": torch.backends.cudnn.version(),
        "ceilings": measure_peaks(device),
        "published": args.published is not None,
        "results": [],
    }
    # What torch compiles takes minutes to start, and comes last.
    names = [name for name in names if not PRECISIONS[name].tf32 or device.type == "cuda"]
    compiled = [name for name in names if PRECISIONS[name].way.startswith("compiled")]
    others = [name for name in names if name not in compiled]
    for chosen, case in product(filter(None, (others, compiled)), cases):
        lab = Lab(case, device, args.published)
        for name in chosen:
            precision = PRECISIONS[name]
            if precision.way.endswith("captured") and not case.training:
                continue
            lab.amp = precision.amp
            torch.backends.cuda.matmul.allow_tf32 = precision.tf32
            torch.backends.cudnn.allow_tf32 = precision.tf32
            found = {"case": case._asdict(), "name": case.name, "precision": name}
            record["results"].append(found | measure(lab, name, args.repeats))
            table = f"{environment_line(record['environment'])}\n\n{text(record)}"
            write_atomically(args.out / f"{args.piece}.json", json.dumps(record, indent=1) + "\n")
            write_atomically(args.out / f"{args.piece}.md", table)
        del lab
        release_memory(device)
    print(table, end="")


if __name__ == "__main__":
    main()
