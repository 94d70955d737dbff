"""Measure the segmentation of own pictures on the CPU: `python -m benchmark.predict`.

It measures, with random weights and pictures: the time of a query by known supports, beside that of the
network alone; the memory of a process over many queries; and its peak for one large picture.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmark.measure import in_new_process, process_bytes, seconds_of
from model import build_hdmnet, preprocess_image
from segmenter import FewShotSegmenter, Support, SupportSet
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a random picture, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def prepare(backbone: str, size: int, shot: int, amp: str) -> tuple[FewShotSegmenter, SupportSet]:
    """Return a segmenter of random weights, and supports with a box over 15 % of each."""
    torch.manual_seed(0)
    net = build_hdmnet(backbone, 15, shot=shot)
    segmenter = FewShotSegmenter(net, size, backbone, CPU, amp)
    box = (150, 117, 350, 258)
    supports = [Support(picture(375, 500, k), box=box, refine=False) for k in range(shot)]
    return segmenter, segmenter.fit(supports)


def measure_query(backbone: str, size: int, shot: int, amp: str, repeats: int) -> list[float]:
    """Return medians of seconds: a whole query, encoding it, the backbone's part, and matching."""
    segmenter, supports = prepare(backbone, size, shot, amp)
    query = picture(375, 500, shot)
    images = preprocess_image(query, size)[None]
    net, (features,) = segmenter.net.for_shot(shot), supports.features.values()
    with torch.no_grad(), segmenter.precision.autocast():
        encoded = net.encode_query(images)
        ways = (
            lambda: segmenter.segment(query, supports).mask,
            lambda: net.encode_query(images),
            lambda: list(net.frozen.features(images)),
            lambda: net.segment(encoded, features, (size, size)),
        )
        rounds = [[seconds_of(way, CPU) for way in ways] for _ in range(1 + repeats)]
    return [median(seconds) for seconds in zip(*rounds[1:], strict=True)]


def memory_of_queries(backbone: str, size: int, shot: int, amp: str, queries: int) -> list[int]:
    """Return the bytes that the process holds after each tenth of many queries."""
    segmenter, supports = prepare(backbone, size, shot, amp)

    def pictures() -> Iterator[np.ndarray]:
        for seed in range(queries):
            yield picture(375 + seed % 50, 500 - seed % 70, seed)

    held = []
    for number, result in enumerate(segmenter.segment(pictures(), supports), 1):
        assert result.mask.shape == result.shape
        if number % max(1, queries // 10) == 0:
            held.append(process_bytes("VmRSS"))
    return held


def peak_of_large(backbone: str, size: int, shot: int, amp: str) -> tuple[int, int]:
    """Return the bytes after `fit`, and the peak with a picture of 12 megapixels and its mask."""
    segmenter, supports = prepare(backbone, size, shot, amp)
    held = process_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    assert segmenter.segment(picture(3000, 4000), supports).mask.shape == (3000, 4000)
    return held, process_bytes("VmHWM")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--net", default="resnet50", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=473, help="S of images (%(default)s)")
    parser.add_argument("--shot", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--amp", nargs="+", default=["auto"], help="off, bf16, auto (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each (%(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="for memory (%(default)s)")
    args = parser.parse_args(arguments)
    rows = []
    for amp in args.amp:
        case = (args.net, args.size, args.shot, amp)
        # A process each, so that one leaves no memory to the next.
        seconds, held, large = (
            in_new_process(function, *case, *more)
            for function, more in (
                (measure_query, [args.repeats]),
                (memory_of_queries, [args.queries]),
                (peak_of_large, []),
            )
        )
        memory = [f"{size / 1e9:.2f}" for size in (held[0], held[-1], *large)]
        ratio = seconds[0] / (seconds[1] + seconds[3])
        rows.append([amp, *(f"{value:.3g}" for value in seconds), f"{ratio:.2f}", *memory])
    tenth = max(1, args.queries // 10)
    header = ["amp", "query, s", "encoding, s", "of it backbone, s", "matching, s"]
    header += ["query : network", f"after {tenth} queries, GB", f"after {args.queries}, GB"]
    header += ["after fit, GB", "peak at 12 megapixels, GB"]
    print(f"{environment_line()}\n\n{args.net}, {args.size} px, {args.shot}-shot:\n")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
