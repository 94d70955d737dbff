"""The results of tests and the curves of trainings as one HTML page that needs no other file.

It loads nothing and runs no script: pictures are inside, and its policy of contents forbids the rest.
"""

import io
import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

from PIL import Image

from util.evaluation.charts import as_png, class_bars, training_curves
from util.evaluation.episode_records import TYPICAL, EpisodeRecord, read_csv, shown_episodes
from util.runtime.errors import UserError

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>HDMNet: results</title>
<style>
body { font: 16px/1.45 sans-serif; color: #111; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem }
th, td { padding: 0.25rem 0.4rem; text-align: right; border-bottom: 1px solid #ccc }
th.left, td.left { text-align: left; min-width: 5rem; overflow-wrap: anywhere }
h2 { margin-top: 3rem; border-bottom: 2px solid #111 }
h3 { margin-top: 2rem; break-after: avoid }
figcaption { color: #444; font-size: 0.85rem; overflow-wrap: anywhere }
figure { margin: 1rem 0; break-inside: avoid }
img { max-width: 100%; display: block }
</style>
</head>
<body>
<h1>HDMNet: results of tests and trainings</h1>
"""
_KINDS = {"best": "Highest IoU", "median": "Median IoU", "worst": "Lowest IoU"}


def report_page(tables: str, tests: Sequence[Path], trainings: Sequence[Path]) -> str:
    """Return the page.

    Args:
        tables: The paper's tables as HTML.
        tests: The test-*.json to show, with what test.py kept beside each.
        trainings: The scalars.jsonl to show.

    Raises:
        UserError: A file is damaged.
    """
    parts = [_HEAD, tables]
    parts += ["<h2>Tests</h2>\n", *(_test(path) for path in tests)]
    if trainings:
        parts.append("<h2>Trainings</h2>\n")
    for path in trainings:
        with _reading(path):
            curves = as_png(training_curves(path))
        parts.append(_figure(curves, "png", f"Curves of {path.parent}"))
    return "".join([*parts, "</body>\n</html>\n"])


def _test(path: Path) -> str:
    with _reading(path):
        report = json.loads(path.read_text(encoding="utf-8"))
        s = report["settings"]
        title = f"{s['backbone']}, fold {s['split']} of {s['dataset']}, {s['shot']}-shot"
        # Versions before 0.5.0 wrote no chart, those before 1.0.0 the names of the classes only in it.
        bars = path.with_suffix(".png")
        data = bars.read_bytes() if bars.exists() else as_png(class_bars(report))
    parts = [f"<h3>{escape(title)}</h3>\n", _figure(data, "png", f"IoU per class, from {path}")]
    suffix, episodes = path.stem.removeprefix("test-"), path.with_suffix(".csv")
    contact = path.with_name(f"contact-{suffix}.png")
    if episodes.exists():
        for kind, records in shown_episodes(read_csv(episodes)).items():
            parts.append(f"<h4>{_KINDS[kind]}</h4>\n")
            for number, record in enumerate(records[:TYPICAL]):
                parts.append(_episode(path.with_name(f"{kind}-{suffix}-{number}.png"), record))
    elif contact.exists():
        parts.append(_figure(_as_jpeg(contact), "jpeg", "The first episodes."))
    return "".join(parts)


def _episode(picture: Path, record: EpisodeRecord) -> str:
    caption = (
        f"{record.class_name} in {record.query}, {record.share:.1%} of the image: IoU "
        f"{100 * record.iou:.1f} %, of the meta learner {100 * record.iou_meta:.1f} %."
    )
    if picture.exists():
        return _figure(_as_jpeg(picture), "jpeg", caption)
    return f"<p>{escape(caption)}</p>\n"


def _as_jpeg(path: Path) -> bytes:
    # A fifth of the size of photographs in PNG.
    file = io.BytesIO()
    with _reading(path):
        Image.open(path).convert("RGB").save(file, "JPEG", quality=88)
    return file.getvalue()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise a UserError about a file that is damaged or that cannot be read."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, TypeError, LookupError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged, or another file"
        raise UserError(f"{path} cannot be read: {reason}") from error


def _figure(data: bytes, kind: str, caption: str) -> str:
    text = escape(caption)
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>\n'
