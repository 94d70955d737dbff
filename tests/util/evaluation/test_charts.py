import json

import numpy as np
import pytest

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
    path = tmp_path / "demo/HDMNet/split0/resnet18/scalars.jsonl"
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


def report(*ious):
    runs = [{"class_iou": {str(number): iou for number, iou in enumerate(run, 1)}} for run in ious]
    settings = {"backbone": "vgg16", "split": 2, "dataset": "my_$x$", "shot": 5}
    return {"settings": settings, "runs": runs, "mean": {"mIoU": 0.4}}


def test_bars_have_the_means_of_the_classes_and_their_names():
    figure = class_bars(report([0.2, None, 0.5], [0.4, None, 0.5]), ["cat", "x" * 60, "sea lion"])
    (axes,) = figure.axes
    assert [(bar.get_width(), bar.get_y() + 0.35) for bar in axes.patches] == [
        pytest.approx((30, 0)),
        pytest.approx((50, 2)),
    ]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["cat", "x" * 39 + "…", "sea lion"]
    assert [text.get_text() for text in axes.texts] == ["30.0", "no episode", "50.0"]
    assert axes.get_xlabel() == "IoU (%), mean and 95 % interval of 2 runs"
    assert axes.get_legend().texts[0].get_text() == "mIoU 40.0 %"
    assert figure.get_suptitle() == "IoU per class: vgg16, fold 2 of my_$x$, 5-shot"
    # The whiskers of two runs: 12.7 standard errors of 10 %.
    ends = axes.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([30 - 127.06, 30 + 127.06], abs=0.01)


def test_one_run_has_no_interval_and_classes_without_names_have_their_number():
    (axes,) = class_bars(report([0.25, 1.0]), None).axes
    assert axes.get_xlabel() == "IoU (%)" and len(axes.containers) == 2
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 1", "class 2"]
    more = class_bars(report([0.5] * 20), None).get_figheight()
    assert more > axes.figure.get_figheight() + 18 * 0.2, "each has room for its name"


def test_letters_that_no_font_has_give_no_warning(recwarn):
    assert as_png(class_bars(report([0.5]), ["猫"])).startswith(b"\x89PNG")
    assert not recwarn.list
