import json

import numpy as np
import pytest

from util.evaluation import charts
from util.evaluation.charts import as_png, class_bars, training_curves


def write(path, rows, ending="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + ending)
    return path


def train(step, loss=1.0, **others):
    parts = {"main": loss / 2, "gradient": 9.0, "rate": 1 / step, "samples_per_s": 7.0} | others
    return {"step": step, "train/loss": loss, **{f"train/{k}": v for k, v in parts.items()}}


def lines(figure):
    """{name of the axis: {name of the line: its points}}, from the top."""
    return {
        axes.get_ylabel(): {
            line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines
        }
        for axes in figure.axes
    }


def test_losses_rate_and_validation_have_a_panel_each(tmp_path):
    scores = {"val/mIoU": 0.5, "val/mIoU_m": 0.25, "val/FBIoU": 0.7}
    rows = [train(2, 4.0), train(4, 2.0), {"step": 4, **scores}]
    path = tmp_path / "a/folder/demo/HDMNet/split0/resnet18/scalars.jsonl"
    figure = training_curves(write(path, rows, '\n{"step": 6, "tra'))
    assert lines(figure) == {
        "loss (no unit)": {"total": [(2, 4), (4, 2)], "main": [(2, 2), (4, 1)]},
        "learning rate (no unit)": {"rate": [(2, 0.5), (4, 0.25)]},
        "validation mIoU (%)": {"final prediction": [(4, 50)], "meta learner": [(4, 25)]},
    }
    assert figure.get_suptitle() == "Training of demo/HDMNet/split0/resnet18"
    assert figure.axes[-1].get_xlabel() == "iterations done (number)"
    # Lines of a panel differ also in grey.
    styles = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(styles)) == len({style for _, style in styles}) == 2


@pytest.mark.parametrize(("points", "marker"), [(39, "o"), (40, "None")])
def test_curves_have_sizes_that_can_be_read_and_few_points_are_marked(points, marker, tmp_path):
    scores = {f"val/{name}": 0.5 for name in ("mIoU", "mIoU_m", "mIoU_b")}
    rows = [*(train(step) for step in range(1, points + 1)), {"step": points, **scores}]
    figure = training_curves(write(tmp_path / "scalars.jsonl", rows))
    assert figure.get_size_inches() == pytest.approx((7.0, 0.5 + 3 * 2.1)) and figure.dpi == 120
    losses, rate, scored = figure.axes
    assert {line.get_marker() for axes in (losses, rate) for line in axes.lines} == {marker}
    assert {(line.get_marker(), line.get_markersize()) for line in scored.lines} == {("o", 3)}
    assert [line.get_linestyle() for line in scored.lines] == ["-", "--", "-."]
    # One curve needs no legend, and the axis below the last panel is that of all.
    assert [axes.get_legend() is not None for axes in figure.axes] == [True, False, True]
    assert [axes.get_xlabel() != "" for axes in figure.axes] == [False, False, True]
    assert {text.get_size() for text in scored.get_legend().texts} == {8}
    assert losses.yaxis.get_major_formatter()(0.001, 0) == "0.001"
    assert losses.xaxis.get_major_formatter()(12345.6, 0) == "12,346"


def test_more_losses_than_styles_begin_with_the_first_again(tmp_path):
    rows = [{"step": 1, **{f"train/{name}": 1.0 for name in "abcdefgh"}}]
    curves = training_curves(write(tmp_path / "scalars.jsonl", rows)).axes[0].lines
    styles = [(line.get_color(), line.get_linestyle()) for line in curves]
    assert len(set(styles)) == 6 and styles[6:] == styles[:2]


def test_a_step_that_is_reported_twice_counts_once(tmp_path):
    rows = [
        train(2, 4.0),
        train(2, 3.0),
        {"step": 2, "val/mIoU": 0.1},
        {"step": 2, "val/mIoU": 0.2},
    ]
    found = lines(training_curves(write(tmp_path / "scalars.jsonl", rows)))
    assert found["loss (no unit)"]["total"] == [(2, 3)]
    assert found["validation mIoU (%)"]["final prediction"] == [(2, 20)]


def test_what_a_run_repeats_replaces_what_was_there(tmp_path):
    before = [train(2), train(4, 9.0), {"step": 4, "val/mIoU": 0.1}, train(6, 9.0)]
    after = [train(4, 3.0), {"step": 4, "val/mIoU": 0.3}]
    found = lines(training_curves(write(tmp_path / "scalars.jsonl", [*before, *after])))
    assert found["loss (no unit)"]["total"] == [(2, 1), (4, 3)]
    assert found["validation mIoU (%)"]["final prediction"] == [(4, 30)]
    anew = [*before, *after, train(1, 5.0)]
    found = lines(training_curves(write(tmp_path / "scalars.jsonl", anew)))
    assert found["loss (no unit)"]["total"] == [(1, 5)] and "validation mIoU (%)" not in found


def test_many_values_become_means_of_neighbours(tmp_path):
    rows = [train(step, float(step % 2)) for step in range(1, 3001)]
    points = np.array(
        lines(training_curves(write(tmp_path / "scalars.jsonl", rows)))["loss (no unit)"]["total"]
    )
    assert points.shape == (300, 2) and (points[:, 1] == 0.5).all()
    assert points[0, 0] == 5.5 and points[-1, 0] == 2995.5


@pytest.mark.parametrize("rows", [[], [{"step": 3}], [{"step": 3, "other/x": 1}], [[1]]])
def test_a_file_without_scalars_is_a_chart_without_panels(tmp_path, rows):
    figure = training_curves(write(tmp_path / "scalars.jsonl", rows))
    assert not figure.axes and as_png(figure)


def report(*ious, names=()):
    runs = [{"class_iou": {str(number): iou for number, iou in enumerate(run, 1)}} for run in ious]
    settings = {"backbone": "vgg16", "split": 2, "dataset": "my_$x$", "shot": 5}
    named = {str(number): name for number, name in enumerate(names, 1)}
    return {"settings": settings, "runs": runs, "class_names": named, "mean": {"mIoU": 0.4}}


def test_bars_have_the_means_of_the_classes_and_their_names():
    names = ["cat", "x" * 40, "x" * 41]
    figure = class_bars(report([0.2, None, 0.5], [0.4, None, 0.5], names=names))
    (axes,) = figure.axes
    assert [(bar.get_width(), bar.get_y() + 0.35) for bar in axes.patches] == [
        pytest.approx((30, 0)),
        pytest.approx((50, 2)),
    ]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["cat", "x" * 40, "x" * 39 + "…"]
    assert [text.get_text() for text in axes.texts] == ["30.0", "no episode", "50.0"]
    assert axes.get_xlabel() == "IoU (%), mean and 95 % interval of 2 runs"
    assert axes.get_legend().texts[0].get_text() == "mIoU 40.0 %"
    assert figure.get_suptitle() == "IoU per class: vgg16, fold 2 of my_$x$, 5-shot"
    # The whiskers of two runs: 12.7 standard errors of 10 %.
    ends = axes.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([30 - 127.06, 30 + 127.06], abs=0.01)


def test_one_run_has_no_interval_and_classes_without_names_have_their_number():
    result = report([0.25, 1.0])
    del result["class_names"]  # as in the files of earlier versions
    (axes,) = class_bars(result).axes
    assert axes.get_xlabel() == "IoU (%)" and len(axes.containers) == 2
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 1", "class 2"]


def test_bars_have_sizes_that_can_be_read():
    figure = class_bars(report([0.25, None, 1.0]))
    (axes,) = figure.axes
    assert figure.get_size_inches() == pytest.approx((7.0, 1.5 + 3 * 0.24)) and figure.dpi == 120
    assert axes.get_xlim() == (0, 110) and axes.get_ylim() == (2.5, -0.5)
    assert [*axes.get_xticks()] == [0, 20, 40, 60, 80, 100] and [*axes.get_yticks()] == [0, 1, 2]
    assert [text.get_position() for text in axes.texts] == [(109, 0), (1, 1), (109, 2)]
    small = {*axes.texts, *axes.get_yticklabels(), *axes.get_legend().texts}
    assert {text.get_size() for text in small} == {8} and figure._suptitle.get_size() == 11
    assert [(bar.get_height(), bar.get_linewidth()) for bar in axes.patches] == [
        pytest.approx((0.7, 0.5))
    ] * 2
    assert axes.lines[0].get_xdata() == pytest.approx([40, 40])
    legend = axes.get_legend().get_bbox_to_anchor()
    assert axes.transAxes.inverted().transform(legend.p0) == pytest.approx((1, 1))


@pytest.mark.parametrize(("classes", "height"), [(0, 1.5), (1, 1.74), (9, 3.0)])
def test_a_chart_is_as_high_as_its_classes_need_up_to_a_limit(classes, height, monkeypatch):
    assert charts._HIGHEST * charts._DPI < 2**16, "what matplotlib draws"
    monkeypatch.setattr(charts, "_HIGHEST", 3.0)
    figure = class_bars(report([0.5] * classes))
    assert figure.get_figheight() == pytest.approx(height)
    assert figure.axes[0].get_ylim() == (max(classes, 1) - 0.5, -0.5)


def test_letters_that_no_font_has_give_no_warning(recwarn):
    assert as_png(class_bars(report([0.5], names=["猫"]))).startswith(b"\x89PNG")
    assert not recwarn.list
