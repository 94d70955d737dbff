"""The layout of the page by Gradio, which no other module imports."""

import html
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from segmenter import ONE_CLASS, FewShotSegmenter
from util.data.label_maps import COLOURS
from util.page import session as work
from util.page.session import BOX, BRUSH, WAYS, Session
from util.runtime.errors import errors_as

_PICTURES: dict[str, Any] = {
    "file_types": [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"],
    "height": 140,
}
# Labels would hide a corner of the pictures, a single support would be larger than its frame, and the
# word "Error" would cover all that an event writes to, earlier results included: its line suffices.
_CSS = """
.labelled {padding-top: 2.2em !important}
#supports .grid-container {grid-template-columns: 1fr 1fr !important}
[data-testid="status-tracker"]:has(> .error) {display: none !important}
"""
_SWATCH = "display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em"
# Gradio keeps a session for an hour after its page was closed, in case that the network failed.
_CLEANED, _KEPT = 600, 3000  # seconds between deletions of files, and of their age


class _Shown(gr.Error):
    """An error that the page shows as one line."""

    def __init__(self, message: str):
        super().__init__(html.escape(message), print_exception=False)


_shown = errors_as(_Shown, ValueError)


def build_page(segmenter: FewShotSegmenter, examples: Sequence[Sequence[Any]] = ()) -> gr.Blocks:
    """Return the page, whose sessions share a segmenter and nothing else.

    Args:
        segmenter: computes all masks.
        examples: what visitors can try: path of a picture, name of a class, paths of queries.
    """
    with gr.Blocks(title="HDMNet", analytics_enabled=False, delete_cache=(_CLEANED, _KEPT)) as page:
        session = gr.State(Session(), delete_callback=Session.close)
        gr.Markdown(
            "# Few-shot segmentation\n"
            "Mark an object in one to five pictures, and find it in others. Your pictures are "
            "deleted within an hour after you have closed this page."
        )
        with gr.Row():
            with gr.Column(min_width=320):
                gr.Markdown("## 1. Mark the object")
                upload = gr.File(label="A picture of the object", elem_id="upload", **_PICTURES)
                name = gr.Textbox(ONE_CLASS, label="Name of its class", elem_id="name")
                way = gr.Radio(WAYS, value=BRUSH, label="Mark it by", elem_id="way")
                editor = gr.ImageEditor(
                    label="Paint over the object",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(12, [(_hex(work.MARK), 0.7)], color_mode="fixed"),
                    elem_id="editor",
                )
                clicked = _image("Click", "clicked", visible=False)
                undo = gr.Button("Remove the last click", visible=False, elem_id="undo")
                refine = gr.Checkbox(
                    True, label="Refine the marks to its outline", elem_id="refine"
                )
                add = gr.Button("Add as support", variant="primary", elem_id="add")
            with gr.Column(min_width=320):
                supports = gr.Gallery(
                    label="Supports, with the masks that the marks became",
                    columns=2,
                    object_fit="contain",
                    interactive=False,
                    elem_id="supports",
                    elem_classes="labelled",
                )
                remove = gr.Button("Remove the last support", elem_id="remove")
                gr.Markdown("## 2. Find it in other pictures")
                queries = gr.File(
                    label="Pictures to search in",
                    file_count="multiple",
                    elem_id="queries",
                    **_PICTURES,
                )
                find = gr.Button("Find the objects", variant="primary", elem_id="find")
        if examples:
            label = "Examples: choose one, then mark the object"
            gr.Examples([list(one) for one in examples], [upload, name, queries], label=label)
        with gr.Column(visible=False) as results:
            gr.Markdown("## 3. Look at the results")
            with gr.Row():
                query = gr.Dropdown([], label="Picture", elem_id="query")
                one = gr.Dropdown(
                    [], label="Class of the probability and the maps", elem_id="class"
                )
                threshold = gr.Slider(0.05, 0.95, 0.5, label="Threshold", elem_id="threshold")
            legend = gr.HTML(elem_id="legend")
            with gr.Row():
                views = [_image("", f"view{n}") for n in range(2)]
            with gr.Row():
                views += [_image("", f"view{n}") for n in range(2, 5)]
            write = gr.Button("Make files to download", elem_id="write")
            files = gr.File(label="Masks and COCO JSON", visible=False, elem_id="files")

        private: dict[str, Any] = {"api_visibility": "private"}
        marks, shown = [session, name, way, editor, refine], [session, query, one, threshold]
        upload.change(_take, [session, upload], [session, editor, clicked], **private)
        way.change(_choose, [session, way], [editor, clicked, undo], **private)
        clicked.select(_click, [session, way], clicked, **private)
        undo.click(_undo, [session, way], clicked, **private)
        add.click(_add, marks, [session, supports], **private)
        remove.click(_remove, session, supports, **private)
        outputs = [session, results, query, one, legend, files, *views]
        find.click(partial(_find, segmenter), [session, queries, threshold], outputs, **private)
        for event in (query.input, one.input, threshold.change):
            event(
                _look, shown, views, trigger_mode="always_last", show_progress="hidden", **private
            )
        write.click(_write, [session, threshold], [session, files], **private)
    return page


def serve(page: gr.Blocks, host: str, port: int | None) -> str:
    """Start to serve the page at an address of this machine; return its URL.

    Raises:
        OSError: the port, or each from 7860 on if there is None, is taken.
    """
    page.queue(max_size=20)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size="20mb",
        state_session_capacity=20,
        run_history=False,
        footer_links=[],
        css=_CSS,
    )
    return url


def _image(label: str, name: str, **options: Any) -> gr.Image:
    return gr.Image(
        label=label, interactive=False, buttons=[], elem_id=name, elem_classes="labelled", **options
    )


def _hex(colour: np.ndarray) -> str:
    return "#" + bytes(colour.tolist()).hex()


@_shown
def _take(session: Session, path: str | None) -> tuple[Any, ...]:
    session.clicks = []
    session.picture = None if path is None else work.shrink(work.read_upload(path))
    layers: dict[str, Any] = {"background": session.picture, "layers": [], "composite": None}
    return session, layers, session.picture


def _choose(session: Session, way: str) -> tuple[Any, ...]:
    session.clicks, by_clicks = [], way != BRUSH
    label = "Click two opposite corners of a box around it" if way == BOX else "Click points on it"
    return (
        gr.ImageEditor(visible=not by_clicks),
        gr.Image(session.picture, label=label, visible=by_clicks),
        gr.Button(visible=by_clicks),
    )


def _click(session: Session, way: str, event: gr.SelectData) -> np.ndarray | None:
    x, y = event.index
    session.clicks.append((x, y))
    return work.draw_clicks(session, way)


def _undo(session: Session, way: str) -> np.ndarray | None:
    del session.clicks[-1:]
    return work.draw_clicks(session, way)


@_shown
def _add(
    session: Session, name: str, way: str, painted: dict[str, Any] | None, refine: bool
) -> tuple[Any, ...]:
    layers: list[Any] = painted["layers"] if painted else []
    support = work.marked_support(session, way, layers[0] if layers else None, refine)
    work.add_support(session, name.strip(), support)
    return session, work.draw_supports(session)


def _remove(session: Session) -> list[tuple[np.ndarray, str]]:
    work.remove_support(session)
    return work.draw_supports(session)


@_shown
def _find(
    segmenter: FewShotSegmenter,
    session: Session,
    paths: list[str] | None,
    threshold: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio looks for it here.
) -> tuple[Any, ...]:
    track = partial(progress.tqdm, desc="Pictures")
    for failure in work.find_objects(segmenter, session, paths or [], track):
        gr.Warning(html.escape(failure))
    names = list(session.found)
    classes = session.found[names[0]].classes
    legend = "".join(
        f'<span style="background: {_hex(COLOURS[label])}; {_SWATCH}"></span>{html.escape(name)}'
        for label, name in enumerate(classes, 1)
    )
    choices = gr.Dropdown(names, value=names[0]), gr.Dropdown(classes, value=classes[0])
    shown = gr.Column(visible=True), *choices, legend, gr.File(None, visible=False)
    return session, *shown, *_look(session, names[0], classes[0], threshold)


def _look(session: Session, query: str, name: str, threshold: float) -> list[gr.Image]:
    drawn = work.draw_result(session.found[query], name, threshold)
    return [gr.Image(image, label=label) for image, label in drawn]


@_shown
def _write(session: Session, threshold: float) -> tuple[Any, ...]:
    return session, gr.File(work.write_files(session, threshold), visible=True)
