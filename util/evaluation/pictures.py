"""Pictures of tested episodes: the first ones, and the worst."""

from pathlib import Path

import numpy as np

from util.data.draws import DrawnRun
from util.data.images import read_image
from util.evaluation.episode_parts import SupportKey
from util.evaluation.figures import EpisodePicture, draw_contact_sheet, draw_episode
from util.evaluation.plan import plan_units
from util.evaluation.predictor import Prediction, Predictor
from util.slices import EpisodeRecord, episode_record


def class_name(class_id: int, class_names: list[str] | None) -> str:
    """What a class is called in reports."""
    return class_names[class_id - 1] if class_names else f"class {class_id}"


def episode_records(
    predictor: Predictor,
    runs: list[DrawnRun],
    counts: np.ndarray,
    class_names: list[str] | None,
) -> list[EpisodeRecord]:
    """The records of all episodes, run after run; `counts` are those of `Evaluation.records`."""
    entries = predictor.episodes.lists.entries
    drawn = [(run.seed, draw) for run in runs for draw in run.draws]
    return [
        episode_record(
            entries[draw.index][0],
            [entries[support][0] for support in draw.supports],
            class_name(draw.class_id, class_names),
            seed,
            counts_of_one,
        )
        for (seed, draw), counts_of_one in zip(drawn, counts, strict=True)
    ]


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
        predictor: one that gives maps at the original size.
        runs: the episodes.
        first: number of episodes of the first run to draw, from its start.
        worst: positions of further episodes, counted over all runs.
        class_names: of classes 1, 2, ...
        folder: to write to.
        suffix: of the files' names: episode-SUFFIX-N.png, worst-SUFFIX-N.png, contact-SUFFIX.png.
    """
    drawn = [(run, number) for run in runs for number in range(len(run.draws))]
    draws = [run.draws[number] for run, number in drawn]
    wanted = {f"episode-{suffix}-{n}": n for n in range(min(first, len(runs[0].draws)))}
    wanted |= {f"worst-{suffix}-{n}": position for n, position in enumerate(worst)}
    units = plan_units(draws, 1, sorted(set(wanted.values())))
    predictions = {p.position: p for unit in predictor.predict(draws, units) for p in unit}
    pictures = {}
    for name, position in wanted.items():
        run, number = drawn[position]
        title = class_name(draws[position].class_id, class_names)
        title += f", seed {run.seed}, episode {number}"
        pictures[name] = _picture(predictor, draws[position], predictions[position], title)
        draw_episode(folder / f"{name}.png", *pictures[name])
    if pictures:
        draw_contact_sheet(folder / f"contact-{suffix}.png", list(pictures.values()))


def remove_pictures(folder: Path, suffix: str) -> None:
    """Remove what `draw_pictures` has written with this suffix."""
    names = (f"episode-{suffix}-[0-9]*.png", f"worst-{suffix}-[0-9]*.png", f"contact-{suffix}.png")
    for path in (path for name in names for path in folder.glob(name)):
        path.unlink(missing_ok=True)


def _picture(predictor: Predictor, draw, prediction: Prediction, title: str) -> EpisodePicture:
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
