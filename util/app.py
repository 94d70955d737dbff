"""Mark an object in a few pictures, and find it in others, on a page in the browser.

Example: python -m util.app --weights best.pth. docs/own_pictures.md explains it. Only this machine can
open the page, unless --host says otherwise, and nothing is kept after a session.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from segmenter import FewShotSegmenter
from util.checkpoints.run_files import find_checkpoint
from util.config import Parser, load_config
from util.data.lists import load_lists
from util.data.loaders import config_fold, data_paths
from util.evaluation.episode_records import class_name
from util.preparation.shared import argument_type
from util.runtime.errors import UserError, errors_as, exits_on_user_error

LOCAL = "127.0.0.1"
_QUERIES = 3  # of an example
_Port = Annotated[int, Field(ge=1, le=65535)]


@exits_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hdmnet-") as folder:
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        try:
            from util.page.layout import build_page, serve
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed: pip install -r requirements-app.txt"
            ) from error
        with errors_as(UserError, ValueError):
            segmenter = FewShotSegmenter.from_pretrained(
                options.weights, size=options.size, device=options.device
            )
        page = build_page(segmenter, demo_examples(options.weights))
        os.chdir(folder)  # Gradio may serve files of the current folder.
        with errors_as(UserError, OSError):
            address = serve(page, options.host, options.port)
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if options.host != LOCAL:
            print("Everyone who can reach this machine can use the page.", flush=True)
        page.block_thread()


def demo_examples(weights: str) -> list[list[Any]]:
    """Return examples from the demo for its own weights: path of a picture, its class, queries.

    The classes are held out, and the picture shows nothing else. There are none for other weights, or
    where the pictures of the demo are missing.
    """
    try:
        config = find_checkpoint(weights, "--weights").parent.parent / "config.yaml"
        if not config.is_file() or (cfg := load_config(config)).data_set != "demo":
            return []
        (root, list_file), fold = data_paths(cfg, "val"), config_fold(cfg)
        lists = load_lists(root, list_file, fold, "val", cfg.list_dir)
    except UserError:
        return []
    examples: list[list[Any]] = []
    for class_id, indices in lists.class_files.items():
        files = [str(Path(root, lists.entries[index][0]).resolve()) for index in indices]
        alone = [number for number, i in enumerate(indices) if lists.present[i] == (class_id,)]
        if alone and len(files) > _QUERIES:
            picture = files.pop(alone[0])
            examples.append([picture, class_name(class_id, cfg.class_names), files[:_QUERIES]])
    return examples


def _parser() -> Parser:
    parser = Parser(prog="python -m util.app", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--weights",
        required=True,
        help="checkpoint, folder of a run, or OWNER/NAME of the Hugging Face Hub",
    )
    parser.add_argument(
        "--host", default=LOCAL, help="address to serve at, 0.0.0.0 for all (%(default)s)"
    )
    parser.add_argument("--port", type=argument_type(_Port), help="the first free one from 7860 on")
    parser.add_argument(
        "--size", type=argument_type(PositiveInt), help="S of the images S×S (that of the training)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="by default CUDA if there is a GPU"
    )
    return parser


if __name__ == "__main__":
    main()
