"""The drawn episodes of a test as a file, so that another model or machine is tested on the same ones.

The file is JSON. It holds the images by name and, for each run, its seed and its episodes. An
episode is [query, class, support, ...] with numbers of images counted from 0 and the supports in the
order of drawing.
"""

import hashlib
import json
import os

from util.data.draws import Draw, DrawnRun
from util.data.episodes import EpisodeDataset
from util.runtime.errors import UserError
from util.runtime.files import write_atomically


def list_text(episodes: EpisodeDataset, data_set: str, split: int, runs: list[DrawnRun]) -> str:
    """Return the content of the file."""
    content = _header(episodes, data_set, split)
    content["runs"] = [
        {"seed": run.seed, "episodes": [[d.index, d.class_id, *d.supports] for d in run.draws]}
        for run in runs
    ]
    return json.dumps(content) + "\n"


def list_digest(text: str) -> str:
    """Return a short name for the episodes of `list_text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_list(path: str, episodes: EpisodeDataset, data_set: str, split: int) -> list[DrawnRun]:
    """Read the runs of a file that holds `list_text` with the same arguments.

    Raises:
        UserError: The file cannot be read, or is of another dataset, list, fold or shot.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle)
        found = {key: content[key] for key in _header(episodes, data_set, split)}
        runs = [
            DrawnRun(int(run["seed"]), [Draw(e[0], e[1], e[2:]) for e in run["episodes"]])
            for run in content["runs"]
        ]
    except OSError as error:
        raise UserError(f"--episodes {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"--episodes {path}: is no file of drawn episodes") from None
    for key, wanted in _header(episodes, data_set, split).items():
        if found[key] != wanted:
            what = f"{key} {found[key]}, this test has {wanted}"
            what = f"other {key}" if isinstance(wanted, list) else what
            raise UserError(f"--episodes {path}: drawn for {what}; name another file")
    lengths = {len(run.draws) for run in runs}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(f"--episodes {path}: its runs are empty or not of one length")
    present = episodes.lists.present
    for index, class_id, supports in (draw for run in runs for draw in run.draws):
        images = [index, *supports]
        if not (
            len(supports) == episodes.shot
            and all(isinstance(image, int) and 0 <= image < len(present) for image in images)
            and all(class_id in present[image] for image in images)
            and index not in supports
        ):
            raise UserError(
                f"--episodes {path}: the episode {[index, class_id, *supports]} cannot be: a query "
                f"and {episodes.shot} others as supports have to show the class"
            )
    return runs


def read_or_write_list(
    path: str, episodes: EpisodeDataset, data_set: str, split: int, runs: list[DrawnRun]
) -> list[DrawnRun]:
    """Return the runs of the file if it exists; else write `runs` to it and return them.

    Raises:
        UserError: As of `read_list`, or the file cannot be written.
    """
    if os.path.exists(path):
        return read_list(path, episodes, data_set, split)
    try:
        write_atomically(path, list_text(episodes, data_set, split, runs))
    except OSError as error:
        raise UserError(f"--episodes {path}: cannot be written: {error.strerror}") from None
    return runs


def _header(episodes: EpisodeDataset, data_set: str, split: int) -> dict:
    return {
        "dataset": data_set,
        "split": split,
        "shot": episodes.shot,
        "classes": list(episodes.classes),
        "images": [image for image, _ in episodes.lists.entries],
    }
