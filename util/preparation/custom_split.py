"""Which of the user's own images are trained on and which are tested on."""

import os
from hashlib import sha256
from pathlib import Path

from util.preparation.custom_pairs import Pair, match_name
from util.runtime.errors import UserError

PARTS = ("train", "val")


def split(pairs: list[Pair], val: str | None, share: float, seed: int) -> dict[str, list[Pair]]:
    """The pairs of each of PARTS, in their order: "val" by the file `val`, else a random share.

    Raises:
        UserError: a name in the file is no image's, or a part is empty.
    """
    chosen = _read(val, pairs) if val else _draw(pairs, share, seed)
    parts = {
        "train": [pair for pair in pairs if pair.image not in chosen],
        "val": [pair for pair in pairs if pair.image in chosen],
    }
    for part in PARTS:
        if not parts[part]:
            source = f"--val {val}" if val else f"--val_share {share} of {len(pairs)} images"
            raise UserError(f"{source} leaves no image for {part}; each part needs some")
    return parts


def _read(path: str, pairs: list[Pair]) -> set[str]:
    """Images that a file names, one a line, with or without suffix."""
    files = {match_name(os.path.basename(pair.image)): pair.image for pair in pairs}
    by_name = {os.path.splitext(name)[0]: image for name, image in files.items()} | files
    chosen = set()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name = match_name(line.strip())
        if name and name not in by_name:
            raise UserError(f"{path} line {number}: there is no image {name}")
        if name:
            chosen.add(by_name[name])
    return chosen


def _draw(pairs: list[Pair], share: float, seed: int) -> set[str]:
    """A share of the images, at least one; by each image's name, so that few change when more come."""

    def place(image: str) -> bytes:
        name = match_name(os.path.basename(image))
        return sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()

    images = sorted((pair.image for pair in pairs), key=place)
    return set(images[: max(1, round(share * len(pairs)))])


def read_text(path: str) -> str:
    """The content of a text file in UTF-8. Raises UserError if it cannot be read."""
    try:
        # surrogateescape: a file name may be any bytes
        return Path(path).read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
