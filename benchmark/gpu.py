"""Training steps and test episodes at the published sizes on this machine's GPU: see benchmark/gpu.sh.

`python -m benchmark.gpu steps OUT` compares the model with the plain one in each precision, in one
process; `profile` says which parts and which kernels the time goes to. Both write OUT/PIECE.json and
OUT/PIECE.md.
"""

import argparse
import datetime
import gc
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmark.cases import QUICK, Case, Lab, difference
from benchmark.machine import describe_machine
from benchmark.parts import timed_parts
from benchmark.worker import Peak, seconds_of
from util.runtime.tables import markdown_table

# The batch sizes of the paper; COCO has 60 base classes.
STEPS = (
    Case(True, 473, 1, 4),
    Case(True, 473, 5, 4),
    Case(False, 473, 1, 1),
    Case(False, 633, 1, 1, base_classes=60),
    Case(True, 633, 1, 6, base_classes=60),
    Case(True, 633, 5, 6, base_classes=60),
    Case(False, 473, 5, 1),
    Case(False, 633, 5, 1, base_classes=60),
)
PROFILED = (STEPS[1], STEPS[2], STEPS[0])


class Precision(NamedTuple):
    """How products are computed: ceiling is the type of the matrix product that bounds their speed."""

    tf32: bool
    amp: torch.dtype | None
    ways: tuple[str, ...]
    ceiling: str


EXACT = ("plain", "fast", "cached")
PRECISIONS = {
    "float32": Precision(False, None, EXACT, "float32"),
    "TF32": Precision(True, None, EXACT, "TF32"),
    "backbone_dtype bf16": Precision(False, None, ("bf16",), "bf16"),
    "backbone_dtype bf16, TF32": Precision(True, None, ("bf16",), "bf16"),
    "amp bf16": Precision(True, torch.bfloat16, ("fast",), "bf16"),
    "amp fp16": Precision(True, torch.float16, ("fast",), "bf16"),
}


class Bench:
    """Measures on a device, and keeps what it found in OUT after each case."""

    def __init__(self, piece: str, out: Path, small: bool):
        self.piece, self.out, self.small = piece, out, small
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.repeats = 1 if small else 7
        torch.backends.cudnn.benchmark = True
        self.found = {
            "machine": describe_machine(),
            "date": datetime.date.today().isoformat(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "results": [],
        }

    def keep(self, text: str) -> None:
        """Write what was found, and the text as markdown."""
        heading = f"{self.found['machine']}, {self.found['date']}\n\n"
        (self.out / f"{self.piece}.json").write_text(json.dumps(self.found, indent=1) + "\n")
        (self.out / f"{self.piece}.md").write_text(heading + text)

    def release_memory(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def set(self, lab: Lab, precision: Precision) -> bool:
        """Choose the precision of what runs next; False where the device has none such."""
        lab.amp = precision.amp
        torch.backends.cuda.matmul.allow_tf32 = precision.tf32
        torch.backends.cudnn.allow_tf32 = precision.tf32
        return self.device.type == "cuda" or not precision.tf32

    def seconds(self, step: Callable[[], object]) -> float:
        """The median of some runs after two to warm up."""
        taken = [seconds_of(step, self.device) for _ in range(2 + self.repeats)]
        return median(taken[2:])

    def ceilings(self) -> dict[str, float]:
        """FLOP/s of a large matrix product of each type, and B/s of a copy, read and written."""
        size = 256 if self.small else 8192
        rates = {}
        for name, dtype in {
            "float32": torch.float32,
            "TF32": torch.float32,
            "bf16": torch.bfloat16,
        }.items():
            torch.backends.cuda.matmul.allow_tf32 = name == "TF32"
            a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
            rates[name] = 2 * size**3 / self.seconds(lambda a=a, b=b: a @ b)
        a = torch.randn(size, 16 * size, device=self.device)
        b = torch.empty_like(a)
        rates["copy"] = 2 * a.nbytes / self.seconds(lambda: b.copy_(a))
        return rates


def measure_steps(bench: Bench) -> None:
    """Time, memory and difference of each way in each precision."""
    bench.found["ceilings"] = ceilings = bench.ceilings()
    rows = []
    for case in QUICK if bench.small else STEPS:
        lab = expected = flops = None
        bench.release_memory()
        lab = Lab(case, bench.device, True)
        for name, precision in PRECISIONS.items():
            if not bench.set(lab, precision):
                continue
            ways = [way for way in precision.ways if way != "cached" or not case.training]
            found = {"case": case._asdict(), "name": case.name, "precision": name}
            for way in ways:
                try:
                    if not case.training:  # whose steps change the weights
                        expected = expected or lab.test("plain")
                        found[f"{way} difference"] = difference(lab.test(way), expected)
                    step = lab.step(way)
                    found[way] = bench.seconds(step)
                    if flops is None and way == "fast":
                        with FlopCounterMode(display=False) as counter:
                            step()
                        flops = counter.get_total_flops()
                    with Peak(bench.device) as peak:
                        step()
                    found[f"{way} bytes"] = peak.bytes
                except torch.OutOfMemoryError as error:
                    found[f"{way} failed"] = str(error).partition("\n")[0]
                # What a failed or an earlier step holds.
                step = None
                lab.net.zero_grad(set_to_none=True)
                bench.release_memory()
            found["flops"] = flops
            bench.found["results"].append(found)
            rows.append(_row(found, ceilings[precision.ceiling]))
            bench.keep(_steps_text(rows, ceilings))


HEADER = (
    "case",
    "precision",
    "plain, ms",
    "here, ms",
    "faster",
    "features known, ms",
    "plain, MiB",
    "here, MiB",
    "smaller",
    "share of peak",
    "difference",
)


def _row(found: dict, ceiling: float) -> list[str]:
    way = "fast" if "fast" in found or "fast failed" in found else "bf16"

    def cell(key: str, factor: float, digits: str = ".0f") -> str:
        if key in found:
            return format(found[key] * factor, digits)
        return "out of memory" if f"{key.split()[0]} failed" in found else ""

    def ratio(suffix: str) -> str:
        keys = f"plain{suffix}", f"{way}{suffix}"
        # Small cases fit into what the process held before.
        known = all(found.get(key, 0) > 0 for key in keys)
        return f"{found[keys[0]] / found[keys[1]]:.1f}×" if known else ""

    share = found["flops"] / found[way] / ceiling if found["flops"] and way in found else None
    return [
        found["name"],
        found["precision"],
        cell("plain", 1e3, ".1f"),
        cell(way, 1e3, ".1f"),
        ratio(""),
        cell("cached", 1e3, ".1f"),
        cell("plain bytes", 2**-20),
        cell(f"{way} bytes", 2**-20),
        ratio(" bytes"),
        "" if share is None else f"{share:.0%}",
        cell(f"{way} difference", 1, ".0e"),
    ]


def _steps_text(rows: list[list[str]], ceilings: dict[str, float]) -> str:
    rates = ", ".join(
        f"{name} {rate / 1e12:.3g} {'TB/s' if name == 'copy' else 'TFLOP/s'}"
        for name, rate in ceilings.items()
    )
    return (
        f"{markdown_table(HEADER, rows, left=(0, 1))}\n"
        f"Measured peaks, of a large matrix product and of a copy: {rates}. Differences are the "
        "largest to the plain logits of float32, divided by the largest of them.\n"
    )


def measure_profile(bench: Bench) -> None:
    """Parts, operators and kernels that take most of the time."""
    cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    text = ""
    for case in QUICK if bench.small else PROFILED:
        lab = None
        bench.release_memory()
        lab = Lab(case, bench.device, True)
        for name in ("float32", "TF32", "amp bf16"):
            if not bench.set(lab, PRECISIONS[name]) and name != "amp bf16":
                continue
            step = lab.step("fast")
            whole = bench.seconds(step)
            with timed_parts(bench.device) as parts:
                parts_whole = seconds_of(step, bench.device)
            with profile(activities=activities) as profiler:
                seconds_of(step, bench.device)
            found = {
                "case": case._asdict(),
                "precision": name,
                "seconds": whole,
                "parts": {part: value / parts_whole for part, value in parts.items()},
                "operators": _longest(profiler, DeviceType.CPU, cuda),
                "kernels": _longest(profiler, DeviceType.CUDA, cuda),
            }
            bench.found["results"].append(found)
            text += f"## {case.name}, {name}: {whole * 1e3:.1f} ms\n\n"
            text += ", ".join(f"{part} {share:.0%}" for part, share in found["parts"].items())
            for kind in ("operators", "kernels"):
                rows = [
                    [name[:90], f"{seconds * 1e3:.2f}", f"{share:.0%}", str(calls)]
                    for name, seconds, share, calls in map(dict.values, found[kind])
                ]
                text += f"\n\n{markdown_table([kind, 'ms', 'share', 'calls'], rows)}"
            text += "\n"
            bench.keep(text)


def _longest(profiler: profile, kind: DeviceType, cuda: bool) -> list[dict]:
    """The 25 that take most of the device's time, with their shares."""
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [
        event
        for event in profiler.key_averages()
        if event.device_type == kind and not getattr(event, "is_user_annotation", False)
    ]
    seconds = sorted(((getattr(event, key) / 1e6, event) for event in events), key=lambda x: -x[0])
    whole = sum(taken for taken, _ in seconds)
    return [
        {"name": event.key, "seconds": taken, "share": taken / whole, "calls": event.count}
        for taken, event in seconds[:25]
        if taken > 0
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("piece", choices=("steps", "profile"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="small cases, to see that it runs")
    args = parser.parse_args()
    bench = Bench(args.piece, args.out, args.small)
    {"steps": measure_steps, "profile": measure_profile}[args.piece](bench)
    print((args.out / f"{args.piece}.md").read_text(), end="")


if __name__ == "__main__":
    main()
