"""Weights an experiment can use: python -m util.weights [list | fetch NET | import FILE | export FILE]

list    (or nothing) every file, where it goes, whether it exists and fits, where it comes from
fetch   download ImageNet weights from a public hub: of resnet50, resnet101, resnet152, vgg, …
import  put published files where the commands look for them
export  write a checkpoint of ours with the names of the published code
"""

import argparse
from pathlib import Path
from typing import Any

from model.backbone import OWN_BACKBONES
from util.checkpoints.io import read_checkpoint, save_checkpoint
from util.checkpoints.published_names import to_published
from util.checkpoints.run_files import find_checkpoint
from util.config import OPTS, Parser
from util.config.schema import net_name
from util.preparation.shared import resumable
from util.pretrained.importing import fetch, import_file
from util.pretrained.kinds import HDMNET, IMAGENET, recognise, require_fit
from util.pretrained.places import known_places
from util.runtime.errors import UserError
from util.runtime.machine import require_writable
from util.runtime.tables import markdown_table


def print_list(args: argparse.Namespace) -> None:
    """Print the table of all weights, and what is wrong with those that are not ok."""
    rows, problems = [], []
    for place in known_places(args.opts):
        state = "ok" if place.path.exists() else "missing"
        try:
            if place.path.exists():
                require_fit(place.kind, read_checkpoint(place.path), place.cfg, str(place.path))
        except UserError as error:
            state = "wrong"
            problems.append(str(error))
        rows.append([place.name, str(place.path), state, place.origin])
    print(markdown_table(["weights", "file", "state", "from"], rows, left=(0, 1, 2, 3)), end="")
    for problem in problems:
        print(f"wrong: {problem}")


def fetch_all(args: argparse.Namespace) -> None:
    """Download the weights of every backbone named; the first that cannot be had ends it."""
    for name in args.nets:
        print(fetch(name))


def import_files(args: argparse.Namespace) -> None:
    """Put every file in its place; the first that cannot be used ends it."""
    for file in args.files:
        print(import_file(file, args.dataset, args.split, args.opts, args.unsafe))


def export(args: argparse.Namespace) -> None:
    """Write a checkpoint as the published code reads it."""
    if Path(args.out).suffix not in (".pth", ".pt"):
        raise UserError(f"--out {args.out}: end the name with .pth")
    require_writable(Path(args.out).parent, "give another place as --out")
    path = find_checkpoint(args.file, "FILE")
    content = read_checkpoint(path)
    contents = recognise(content, str(path))
    if contents.kind == IMAGENET:
        raise UserError(f"{path} holds ImageNet weights, which have the published names")
    alone = contents.kind == HDMNET and contents.base_classes == 0
    if alone or contents.net not in map(net_name, OWN_BACKBONES):
        network = f"{contents.kind} of {contents.net}" + alone * " without a base learner"
        raise UserError(f"{path} holds {network}, and the published code has no such network")
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

    fetching = commands.add_parser("fetch", help="download ImageNet weights")
    fetching.add_argument("nets", nargs="+", metavar="NET", help="resnet50, resnet101, vgg, …")
    fetching.set_defaults(run=fetch_all)

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
