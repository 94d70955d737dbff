"""Write a trained model as three graphs: python -m util.export --weights best.pth --out DIR

The graphs run without this code, and those of ONNX without torch. docs/export.md shows how.
"""

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from model import HDMNet
from model.backbone import check_size
from model.graphs import Encoder, Matcher, SupportEncoder
from model.preprocessing import MEAN, STD
from util.checkpoints.trained import fingerprint, load_trained
from util.config import Parser
from util.preparation.shared import argument_type, open_folder, resumable
from util.runtime.errors import UserError, errors_as
from util.runtime.files import write_atomically

FORMATS = ("onnx", "pt2")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # for ONNX
LARGEST_FILE = 2**31  # bytes that a file of ONNX can hold
TOLERANCE = 1e-4  # of the largest logit

Run = Callable[..., dict[str, Tensor]]  # runs a graph on its inputs, given by name


class Graph(NamedTuple):
    """One graph as the bytes of a file.

    Attributes:
        data: the bytes.
        inputs: shapes of the tensors by name; a letter is any number.
        outputs: names.
    """

    data: bytes
    inputs: dict[str, list[Any]]
    outputs: tuple[str, ...]


@torch.no_grad()
def export(net: HDMNet, size: int, kind: str) -> dict[str, Graph]:
    """Return the graphs of a model, by name.

    Args:
        net: the model in eval mode.
        size: S of the images S×S.
        kind: one of `FORMATS`.

    Raises:
        UserError: the exporter of torch cannot do it.
    """
    encoder, support, matcher = Encoder(net), SupportEncoder(net), Matcher(net, size)
    # Sizes that no other axis has, and not 1, which the exporter would take for a constant.
    queries, images, mask = random_episode(2, 3, size)
    features, masked = encoder(queries), encoder(images * mask[:, None])
    examples = {
        "encoder": (encoder, (queries,)),
        "support": (support, (*masked, mask)),
        "matcher": (matcher, (*features, *support(*masked, mask))),
    }
    graphs = {}
    for name, (module, example) in examples.items():
        axes = module.inputs.values()
        sizes = {axis: torch.export.Dim(axis, min=1) for axis in axes}
        inputs = {
            key: [axis, *tensor.shape[1:]]
            for (key, axis), tensor in zip(module.inputs.items(), example, strict=True)
        }
        try:
            data = _export(module, example, tuple({0: sizes[axis]} for axis in axes), kind)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"torch {torch.__version__} cannot export it: {reason}") from error
        graphs[name] = Graph(data, inputs, module.outputs)
    return graphs


def _export(module: Encoder, example: tuple[Tensor, ...], shapes: Any, kind: str) -> bytes:
    program = torch.export.export(module, example, dynamic_shapes=(shapes,), strict=False)
    if kind == "pt2":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()
    written: Any = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=[*module.inputs],
        output_names=module.outputs,
    )
    return written.model_proto.SerializeToString()


def load(graph: Graph, kind: str) -> Run:
    """Return a function that runs a graph."""
    compute: Callable[..., Any]
    if kind == "pt2":
        compute = torch.export.load(io.BytesIO(graph.data)).module()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])

        def compute(*tensors: Tensor) -> Any:
            feeds = {name: x.numpy() for name, x in zip(graph.inputs, tensors, strict=True)}
            return map(torch.from_numpy, session.run([*graph.outputs], feeds))

    def run(**tensors: Tensor) -> dict[str, Tensor]:
        outputs = compute(*(tensors[name] for name in graph.inputs))
        return dict(zip(graph.outputs, outputs, strict=True))

    return run


def segment(graphs: dict[str, Run], query: Tensor, support: Tensor, mask: Tensor) -> Any:
    """Return the logits by name of queries (B, 3, S, S); supports (K, 3, S, S), masks (K, S, S)."""
    masked = graphs["encoder"](image=support * mask[:, None])
    supports = graphs["support"](**masked, mask=mask)
    return graphs["matcher"](**graphs["encoder"](image=query), **supports)


def random_episode(queries: int, shot: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random queries, supports, and masks, which are rectangles of different sizes."""
    images = torch.randn(queries + shot, 3, size, size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(shot, size, size)
    for number, one in enumerate(mask):
        one[size // 4 : -size // 4, size // (4 + number) : size // 2] = 1
    return images[:queries], images[queries:], mask


@torch.no_grad()
def largest_deviation(graphs: dict[str, Run], net: HDMNet, size: int) -> float:
    """Return the largest difference from the model's logits, as a share of the largest of them."""
    shares = []
    for queries, shot in {(1, 1), (3, 2), (1, net.ensemble.shot)}:
        query, support, mask = random_episode(queries, shot, size)
        episodes = (tensor.expand(queries, *tensor.shape) for tensor in (support, mask))
        expected = net.for_shot(shot)(query, *episodes)
        for name, logits in segment(graphs, query, support, mask).items():
            model = getattr(expected, name)
            shares.append((logits - model).abs().max() / model.abs().max())
    return torch.stack(shares).max().item()


def _parser() -> Parser:
    parser = Parser(prog="python -m util.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("--weights", required=True, help="checkpoint, folder of a run, OWNER/NAME")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for the graphs")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="(%(default)s)")
    parser.add_argument(
        "--size", type=argument_type(PositiveInt), help="S of the images S×S (that of the training)"
    )
    return parser


@resumable
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (the process's own if None)."""
    args = _parser().parse_args(argv)
    out, kind = args.out, args.format
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if kind == "onnx" and missing:
        what = ", ".join(missing)
        raise UserError(f"--format onnx needs {what}: pip install -r requirements-export.txt")
    open_folder(out, "--out")
    net, trained_size, backbone = load_trained(args.weights)
    size = args.size or trained_size
    with errors_as(UserError, ValueError):
        check_size(backbone, size)
    if kind == "onnx" and sum(x.nbytes for x in net.state_dict().values()) >= LARGEST_FILE:
        raise UserError(f"{backbone} is too large for one file of ONNX: use --format pt2")
    graphs = export(net.eval().requires_grad_(False), size, kind)
    deviation = largest_deviation({name: load(graphs[name], kind) for name in graphs}, net, size)
    if not deviation <= TOLERANCE:
        raise UserError(
            f"the graphs deviate from the model by {deviation:.0e} of the largest logit, more than "
            f"{TOLERANCE:.0e}: nothing was written"
        )
    about = {
        "weights": fingerprint(net),
        "backbone": backbone,
        "size": size,
        "mean": MEAN,
        "std": STD,
        "logits": ["background", "object"],
        "base_classes": net.base.base_classes,
        "trained_shot": net.ensemble.shot,
        "graphs": {
            name: {"file": f"{name}.{kind}", "inputs": graph.inputs, "outputs": graph.outputs}
            for name, graph in graphs.items()
        },
    }
    # A folder without export.json holds no whole export.
    (out / "export.json").unlink(missing_ok=True)
    for name, graph in graphs.items():
        write_atomically(out / f"{name}.{kind}", graph.data)
        print(f"{out / name}.{kind}: {len(graph.data) / 1e6:.1f} MB")
    write_atomically(out / "export.json", json.dumps(about, indent=1) + "\n")
    print(f"largest deviation from the model: {deviation:.1e} of the largest logit")


if __name__ == "__main__":
    main()
