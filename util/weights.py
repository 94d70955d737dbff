"""Weights an experiment can use: python -m util.weights [list | fetch | import FILE | export FILE]

list    (or nothing) every file, where it goes, whether it exists and fits, where it comes from
fetch   download the ImageNet weights that torchvision serves: those of VGG16-BN
import  put published files where the commands look for them
export  write a checkpoint of ours with the names of the published code
"""

import argparse
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from util.checkpoints.io import read_checkpoint, save_checkpoint
from util.checkpoints.published_names import to_published
from util.checkpoints.run_files import PUBLISHED_IMAGENET, find_checkpoint
from util.config import OPTS, Parser
from util.preparation.shared import resumable
from util.pretrained.importing import import_file
from util.pretrained.kinds import IMAGENET, recognise
from util.pretrained.places import check_place, foreign_sha256, known_places, vgg_source
from util.runtime.errors import UserError
from util.runtime.tables import markdown_table


def print_list(args: argparse.Namespace) -> None:
    """Print the table of all weights, and what is wrong with those that are not ok."""
    rows, problems = [], []
    for place in known_places(args.opts):
        try:
            state = check_place(place)
        except UserError as error:
            state = "wrong"
            problems.append(str(error))
        rows.append([place.name, str(place.path), state, place.origin])
    print(markdown_table(["weights", "file", "state", "from"], rows, left=(0, 1, 2, 3)), end="")
    for problem in problems:
        print(f"wrong: {problem}")


def fetch(args: argparse.Namespace) -> None:
    """Download torchvision's file for VGG16-BN, unless it exists.

    Raises:
        UserError: The download fails, or another file is in its place.
    """
    path, source = Path("initmodel", PUBLISHED_IMAGENET["vgg16"]), vgg_source()
    if path.exists():
        if problem := foreign_sha256("vgg", path):
            raise UserError(f"{path} exists and is {problem}; move it away to download that")
        print(f"{path}: exists already")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        bar = sys.stderr.isatty()
        torch.hub.download_url_to_file(source.url, str(path), source.sha256, progress=bar)
    except (URLError, HTTPException, ConnectionError, TimeoutError, RuntimeError) as error:
        raise UserError(
            f"{source.url} could not be downloaded ({error}); give the same command again, or bring "
            f"the file here as {path}"
        ) from error
    print(f"{path}: downloaded")


def import_files(args: argparse.Namespace) -> None:
    """Put every file in its place; the first that cannot be used ends it."""
    for file in args.files:
        print(import_file(file, args.dataset, args.split, args.opts, args.unsafe))


def export(args: argparse.Namespace) -> None:
    """Write a checkpoint as the published code reads it."""
    path = find_checkpoint(args.file, "FILE")
    content = read_checkpoint(path)
    contents = recognise(content, str(path))
    if contents.kind == IMAGENET:
        raise UserError(f"{path} holds ImageNet weights, which have the published names")
    prefix = "module." if args.module else ""
    state = {prefix + key: value for key, value in to_published(content["state_dict"]).items()}
    save_checkpoint(args.out, {"state_dict": state})
    print(f"{args.out}: {path}, {contents.kind} of {contents.net}, with the published names")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m util.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=print_list, opts=[])
    commands = parser.add_subparsers(metavar="COMMAND")
    settings: dict[str, Any] = {
        "nargs": "*",
        "action": "extend",
        "default": [],
        "metavar": "KEY VALUE",
        "help": "settings of the experiment, as everywhere: exp_dir FOLDER, use_split_coco False",
    }

    listing = commands.add_parser("list", help="what is where")
    listing.add_argument(OPTS, **settings)
    listing.set_defaults(run=print_list)

    commands.add_parser("fetch", help="download VGG16-BN").set_defaults(run=fetch)

    importing = commands.add_parser("import", help="put published files in their places")
    importing.add_argument("files", nargs="+", metavar="FILE")
    importing.add_argument("--dataset", help="its dataset, where the file and its path do not tell")
    importing.add_argument("--split", type=int, help="its fold, where they do not tell")
    importing.add_argument(
        "--unsafe",
        action="store_true",
        help="read files that hold more than tensors too; this runs code of the file",
    )
    importing.add_argument(OPTS, **settings)
    importing.set_defaults(run=import_files)

    exporting = commands.add_parser("export", help="write the published names")
    exporting.add_argument(
        "file", metavar="FILE", help="a checkpoint, or the folder of a run: its best one"
    )
    exporting.add_argument("--out", required=True, metavar="FILE")
    exporting.add_argument(
        "--module", action="store_true", help='put "module." before every name, as DDP does'
    )
    exporting.set_defaults(run=export)
    return parser


@resumable
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (the process's own if None)."""
    args = _parser().parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
