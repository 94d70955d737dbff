"""Where the model fails: the episodes of a test by object size and by number of classes.

`python -m util.slices FILE.csv... [--out FILE]` prints the tables of the per-episode files that the
test writes; several files, for instance of the four folds, are taken together.
"""

import csv
import io
from typing import NamedTuple

import numpy as np

from util.config import Parser
from util.evaluation.metrics import as_array, confusion, foreground_iou
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.files import write_atomically
from util.runtime.tables import markdown_table, write_or_print

SMALL, LARGE = 0.05, 0.20  # shares of the image that bound the middle size
MANY_CLASSES = 4
WORST = 20


class EpisodeRecord(NamedTuple):
    """One tested episode.

    query, supports: names of the images as in the list file; class_name: the episode's class; iou,
    iou_meta: IoU of the foreground of final and meta, shares of 1; pixels, share: size of the class
    in the query, in pixels of the label and as a share of all its pixels; classes: number of the
    dataset's classes in the query; seed: of the run.
    """

    query: str
    class_name: str
    iou: float
    iou_meta: float
    pixels: int
    share: float
    classes: int
    seed: int
    supports: tuple[str, ...]


COLUMNS = EpisodeRecord._fields[:-1]  # the supports take the columns after these, one each
_NUMBERS = {
    name: kind for name, kind in EpisodeRecord.__annotations__.items() if kind in (int, float)
}


def episode_counts(final, meta, label, classes):
    """What `episode_record` needs to know of an episode, int64 (10,), to be summed over processes.

    final, meta: predictions (H, W) in {0, 1}; label: (H, W) in {0, 1, 255}, arrays or tensors of one
    shape; ignored pixels count in neither IoU. classes: the record's.
    """
    confusions = [confusion(prediction, label, 2).ravel() for prediction in (final, meta)]
    return np.array([*np.concatenate(confusions), as_array(label).size, classes], np.int64)


def episode_record(query, supports, class_name, seed, counts):
    """The EpisodeRecord of an episode with `counts` of `episode_counts`."""
    final, meta = np.reshape(counts[:8], (2, 2, 2))
    area, classes = int(counts[8]), int(counts[9])
    pixels = int(final[1].sum())
    return EpisodeRecord(
        query=query,
        class_name=class_name,
        iou=foreground_iou(final),
        iou_meta=foreground_iou(meta),
        pixels=pixels,
        share=pixels / area,
        classes=classes,
        seed=int(seed),
        supports=tuple(supports),
    )


def write_csv(path, records):
    """Write records as CSV with a header: COLUMNS, then support_1, support_2, …"""
    shot = max((len(record.supports) for record in records), default=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"support_{number}" for number in range(1, shot + 1))])
    writer.writerows([*record[:-1], *record.supports] for record in records)
    write_atomically(path, text.getvalue())


def read_csv(path):
    """The records that `write_csv` wrote. Raises UserError for another or a damaged file."""
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            header, *rows = list(csv.reader(handle)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from None
    if tuple(header[: len(COLUMNS)]) != COLUMNS:
        raise UserError(f"{path} is no file of episodes: its columns are not {', '.join(COLUMNS)}…")
    return [_record(path, line, row) for line, row in enumerate(rows, 2)]


def _record(path, line, row):
    if len(row) <= len(COLUMNS):
        raise UserError(
            f"{path}, row {line}: {len(row)} columns, at least {len(COLUMNS) + 1} needed"
        )
    values = dict(zip(COLUMNS, row, strict=False))
    for name, kind in _NUMBERS.items():
        try:
            values[name] = kind(values[name])
        except ValueError:
            raise UserError(f"{path}, row {line}: {name} = {values[name]}: no number") from None
    return EpisodeRecord(**values, supports=tuple(row[len(COLUMNS) :]))


def worst_episodes(records):
    """The WORST records of lowest IoU of final, the lowest first.

    An episode that is drawn again, in this or another run, has the same result and comes once.
    """
    return sorted(_different(records), key=lambda r: (r.iou, r.query, r.class_name))[:WORST]


def _different(records):
    return {record._replace(seed=0): record for record in reversed(records)}.values()


def slice_tables(records):
    """Markdown: the episodes by object size, by number of classes, and `worst_episodes`.

    Small objects cover less than SMALL of the image, large ones LARGE or more. IoU is the mean over
    the episodes of a row, not the mIoU of the protocol, which sums pixels per class first.
    """
    sizes = {
        f"small, below {SMALL:.0%} of the image": [r for r in records if r.share < SMALL],
        "medium": [r for r in records if SMALL <= r.share < LARGE],
        f"large, {LARGE:.0%} or more": [r for r in records if r.share >= LARGE],
        "all": records,
    }
    numbers = {
        str(count): [r for r in records if r.classes == count] for count in range(1, MANY_CLASSES)
    }
    numbers[f"{MANY_CLASSES} or more"] = [r for r in records if r.classes >= MANY_CLASSES]
    header = ["IoU", "IoU_m", "class", "share", "query", "supports", "seed"]
    rows = [
        [
            _percent(r.iou),
            _percent(r.iou_meta),
            r.class_name,
            _percent(r.share),
            r.query,
            " ".join(r.supports),
            str(r.seed),
        ]
        for r in worst_episodes(records)
    ]
    some = len(_different(records)) > WORST
    return "\n".join(
        [
            "IoU in %, mean over the episodes (`IoU_m`: of the meta learner).\n",
            _slices("object size", sizes),
            _slices("classes in the query", numbers),
            f"The {WORST} episodes of lowest IoU:\n" if some else "All, by IoU:\n",
            markdown_table(header, rows, left=(2, 4, 5)),
        ]
    )


def _slices(corner, slices):
    rows = []
    for name, chosen in slices.items():
        means = [[r.iou for r in chosen], [r.iou_meta for r in chosen]]
        cells = [_percent(np.mean(values)) if values else "-" for values in means]
        rows.append([name, str(len(chosen)), *cells])
    return markdown_table([corner, "episodes", "IoU", "IoU_m"], rows)


def _percent(value):
    return f"{100 * value:.1f}"


@exits_on_user_error
def main(arguments=None):
    parser = Parser(description="Tables of tested episodes by size and classes.")
    parser.add_argument("files", nargs="+", metavar="FILE.csv", help="what the test wrote")
    parser.add_argument("--out", metavar="FILE", help="write the tables there, not to the console")
    options = parser.parse_args(arguments)
    records = [record for path in options.files for record in read_csv(path)]
    write_or_print(options.out, slice_tables(records))


if __name__ == "__main__":
    main()
