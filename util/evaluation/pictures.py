"""Pictures of tested episodes: the first ones, and the worst."""

from pathlib import Path

import numpy as np

from util.data.draws import Draw, DrawnRun
from util.data.images import read_image
from util.evaluation.episode_parts import SupportKey
from util.evaluation.episode_records import class_name
from util.evaluation.figures import (
    EpisodePicture,
    contact_sheet,
    episode_figure,
    render,
    write_png,
)
from util.evaluation.plan import plan_units
from util.evaluation.predictor import Prediction, Predictor


def draw_pictures(
    predictor: Predictor,
    runs: list[DrawnRun],
    first: int,
    worst: list[int],
    class_names: list[str] | None,
    folder: Path,
    suffix: str,
) -> None:
    """Write one PNG per episode, and a contact sheet of all.

    Args:
        predictor: One that gives maps at the original size.
        runs: The episodes.
        first: Number of episodes of the first run to draw, from its start.
        worst: Positions of further episodes, counted over all runs.
        class_names: The names of the classes 1, 2, …
        folder: The folder of the files.
        suffix: Of the files' names: episode-SUFFIX-N.png, worst-SUFFIX-N.png, contact-SUFFIX.png.
    """
    drawn = [(run, number) for run in runs for number in range(len(run.draws))]
    draws = [run.draws[number] for run, number in drawn]
    wanted = {f"episode-{suffix}-{n}": n for n in range(min(first, len(runs[0].draws)))}
    wanted |= {f"worst-{suffix}-{n}": position for n, position in enumerate(worst)}
    units = plan_units(draws, 1, sorted(set(wanted.values())))
    predictions = {p.position: p for unit in predictor.predict(draws, units) for p in unit}
    images = []
    for name, position in wanted.items():
        run, number = drawn[position]
        title = class_name(draws[position].class_id, class_names)
        title += f", seed {run.seed}, episode {number}"
        picture = _picture(predictor, draws[position], predictions[position], title)
        images.append(render(episode_figure(picture)))
        write_png(folder / f"{name}.png", images[-1])
    if images:
        write_png(folder / f"contact-{suffix}.png", contact_sheet(images))


def _picture(
    predictor: Predictor, draw: Draw, prediction: Prediction, title: str
) -> EpisodePicture:
    parts, episodes = predictor.parts, predictor.episodes
    query = read_image(str(Path(episodes.data_root) / episodes.lists.entries[draw.index][0]))
    supports = [
        parts.annotated(SupportKey(support, draw.class_id, predictor.ann_type))
        for support in draw.supports
    ]
    return EpisodePicture(
        query.astype(np.uint8),
        [image.astype(np.uint8) for image, _ in supports],
        [mask for _, mask in supports],
        prediction.label,
        prediction.final,
        title,
        prediction.correlations,
    )
