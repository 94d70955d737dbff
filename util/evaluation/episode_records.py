"""Records of tested episodes, their CSV file, and tables that show where the model fails."""

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.data.draws import DrawnRun
from util.evaluation.metrics import foreground_iou
from util.runtime.errors import UserError
from util.runtime.files import write_atomically
from util.runtime.tables import markdown_table

SMALL, LARGE = 0.05, 0.20  # shares of the image that bound the middle size
MANY_CLASSES = 4
TYPICAL, WORST = 3, 20  # episodes that are shown


class EpisodeRecord(NamedTuple):
    """One tested episode; images have their names of the list file."""

    query: str
    class_name: str
    iou: float  # of the foreground of the final prediction, within 0 and 1
    iou_meta: float  # the same of the meta learner's prediction
    pixels: int  # of the class in the query
    share: float  # the same as a share of all pixels
    classes: int  # of the dataset in the query
    seed: int  # of the run
    supports: tuple[str, ...]


COLUMNS = EpisodeRecord._fields[:-1]  # the supports take the columns after these, one each


def episode_records(
    runs: Sequence[DrawnRun],
    counts: np.ndarray,
    images: Sequence[str],
    class_names: list[str] | None,
) -> list[EpisodeRecord]:
    """Return the records of all episodes, run after run.

    Args:
        runs: The drawn episodes.
        counts: The counts of each, `util.evaluation.counts.RECORD` (episodes,).
        images: The names of all images, which the draws index.
        class_names: The names of the classes 1, 2, …
    """
    drawn = [(run.seed, draw) for run in runs for draw in run.draws]
    records = []
    for (seed, draw), counted in zip(drawn, counts, strict=True):
        pixels = int(counted["final"][1].sum())
        records.append(
            EpisodeRecord(
                query=images[draw.index],
                class_name=class_name(draw.class_id, class_names),
                iou=foreground_iou(counted["final"]),
                iou_meta=foreground_iou(counted["meta"]),
                pixels=pixels,
                share=pixels / int(counted["pixels"]),
                classes=int(counted["classes"]),
                seed=seed,
                supports=tuple(images[support] for support in draw.supports),
            )
        )
    return records


def class_name(class_id: int, class_names: list[str] | None) -> str:
    """Return the name of a class for reports."""
    return class_names[class_id - 1] if class_names else f"class {class_id}"


def write_csv(path: Path, records: Sequence[EpisodeRecord]) -> None:
    """Write records as CSV with a header: COLUMNS, then support_1, support_2, …"""
    shot = max((len(record.supports) for record in records), default=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"support_{number}" for number in range(1, shot + 1))])
    writer.writerows([*record[:-1], *record.supports] for record in records)
    # surrogateescape, because a file name may be any bytes.
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def read_csv(path: str | Path) -> list[EpisodeRecord]:
    """Read the records that `write_csv` wrote.

    Raises:
        UserError: The file is another one or damaged.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as handle:
            header, *rows = list(csv.reader(handle)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from None
    if tuple(header[: len(COLUMNS)]) != COLUMNS:
        raise UserError(f"{path} is no file of episodes: its columns are not {', '.join(COLUMNS)}…")
    records = []
    for line, row in enumerate(rows, 2):
        where = f"{path}, row {line}"
        if len(row) <= len(COLUMNS):
            raise UserError(f"{where}: {len(row)} columns, at least {len(COLUMNS) + 1} needed")
        values = []
        for name, text in zip(COLUMNS, row, strict=False):
            try:
                values.append(EpisodeRecord.__annotations__[name](text))
            except ValueError:
                raise UserError(f"{where}: {name} = {text}: no number") from None
        records.append(EpisodeRecord._make([*values, tuple(row[len(COLUMNS) :])]))
    return records


def shown_episodes(records: Sequence[EpisodeRecord]) -> dict[str, list[EpisodeRecord]]:
    """Return the episodes to look at, by the IoU of the final prediction.

    An episode that is drawn again, in this or another run, has the same result and comes once.

    Returns:
        "best": the TYPICAL highest, the highest first; "median": the TYPICAL in the middle; "worst":
        the WORST lowest, the lowest first.
    """
    ranked = sorted(_different(records), key=lambda r: (r.iou, r.query, r.class_name))
    middle = max(0, len(ranked) - TYPICAL) // 2
    return {
        "best": ranked[::-1][:TYPICAL],
        "median": ranked[middle : middle + TYPICAL],
        "worst": ranked[:WORST],
    }


def _different(records: Sequence[EpisodeRecord]) -> Collection[EpisodeRecord]:
    return {record._replace(seed=0): record for record in reversed(records)}.values()


def slice_tables(records: Sequence[EpisodeRecord]) -> str:
    """Return the episodes by object size and by number of classes, and the worst, as markdown.

    Small objects cover less than SMALL of the image, large ones LARGE or more. IoU is the mean over
    the episodes of a row, not the mIoU of the protocol, which sums pixels per class first.
    """
    sizes = {
        f"small, below {SMALL:.0%} of the image": [r for r in records if r.share < SMALL],
        "medium": [r for r in records if SMALL <= r.share < LARGE],
        f"large, {LARGE:.0%} or more": [r for r in records if r.share >= LARGE],
        "all": list(records),
    }
    numbers = {str(n): [r for r in records if r.classes == n] for n in range(1, MANY_CLASSES)}
    numbers[f"{MANY_CLASSES} or more"] = [r for r in records if r.classes >= MANY_CLASSES]
    header = ["IoU", "IoU_m", "class", "share", "query", "supports", "seed"]
    rows = []
    for r in shown_episodes(records)["worst"]:
        scores, query = [_percent(r.iou), _percent(r.iou_meta)], _printable(r.query)
        supports = _printable(" ".join(r.supports))
        rows.append([*scores, r.class_name, _percent(r.share), query, supports, str(r.seed)])
    some = len(_different(records)) > WORST
    return "\n".join(
        [
            "IoU in %, mean over the episodes (`IoU_m`: of the meta learner).\n",
            _slices("object size", sizes),
            _slices("classes in the query", numbers),
            f"The {WORST} episodes of lowest IoU:\n" if some else "All episodes, by IoU:\n",
            markdown_table(header, rows, left=(2, 4, 5)),
        ]
    )


def _printable(name: str) -> str:
    # A console and a log take no file name that is not UTF-8.
    return name.encode(errors="backslashreplace").decode()


def _slices(corner: str, slices: dict[str, list[EpisodeRecord]]) -> str:
    rows = []
    for name, chosen in slices.items():
        means = [[r.iou for r in chosen], [r.iou_meta for r in chosen]]
        cells = [_percent(float(np.mean(values))) if values else "-" for values in means]
        rows.append([name, str(len(chosen)), *cells])
    return markdown_table([corner, "episodes", "IoU", "IoU_m"], rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
