"""Memory of matching and prior over shots and sizes: `python -m benchmark.matching` prints the table.

Forward and backward of the finest stage, with both priors, above the features that go in; each number
from a process of its own. The fast way should grow in proportion to the number of support positions.
"""

import argparse

import torch

from benchmark.worker import measure
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

SHOTS = (1, 2, 5, 10)
SIZES = (473, 633, 801)
PLAIN_MATRICES = 10  # of query by support positions, float32, that the plain way holds at most


def main() -> None:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=details)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the images, pixels")
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS)
    parser.add_argument("--share", type=float, default=1.0, help="part that a mask covers")
    parser.add_argument(
        "--plain-limit", type=float, default=4, help="GiB; where the plain way needs more, skip it"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU if there is one"
    )
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{environment_line()}\n", flush=True)
    rows = []
    for size in args.sizes:
        for shot in args.shots:
            case = {"size": size, "shot": shot, "share": args.share, "device": device}
            positions, fast = measure("matching_memory", way="fast", **case)
            grid = ((size - 1) // 8 + 1) ** 2
            plain = "–"
            if PLAIN_MATRICES * 4 * shot * grid**2 <= args.plain_limit * 2**30:
                plain = f"{measure('matching_memory', way='plain', **case)[1] / 2**20:.0f}"
            rows.append(
                [
                    str(size),
                    str(shot),
                    str(positions),
                    f"{fast / 2**20:.0f}",
                    f"{fast / (positions or 1) / 2**10:.1f}",
                    plain,
                ]
            )
    header = ["px", "shot", "support positions", "fast, MiB", "KiB a position", "plain, MiB"]
    print(markdown_table(header, rows, left=()), end="")


if __name__ == "__main__":
    main()
