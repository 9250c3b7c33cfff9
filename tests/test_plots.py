"""Properties of support/plots.py: what is drawn of a run, and that odd names do not stop it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from support import metrics, plots
from support.errors import InputError

PNG = b"\x89PNG"


def class_metrics(labels, rows=30):
    """Metrics of a made-up task with these labels, that a run writes to metrics.json."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, len(labels), rows)
    p = rng.dirichlet(np.ones(len(labels)), rows)
    result = metrics.class_metrics(labels, [1] * len(labels), gold, p.argmax(1))
    return result | metrics.calibration_metrics(p, p, gold)


def write_run(folder, tasks):
    """Write the files that a picture is drawn from; `tasks`: {name: labels} -> metrics.json's."""
    folder.mkdir(exist_ok=True)
    results = {}
    scores = {}
    saved = []
    for name, labels in tasks.items():
        results[name] = class_metrics(labels)
        scores[name] = results[name]["macro_f1"]
        label_names = {label: label for label in labels}
        saved.append({"kind": "classification", "name": name, "label_names": label_names})
    entries = []
    for step in (1, 2):
        entries.append({"step": step, "loss": dict.fromkeys(tasks, 1 / step)})
    entries.append({"step": 2, "epoch": 1, "validation": results, "scores": scores})
    (folder / "config.json").write_text(json.dumps({"tasks": saved, "fitted": {}}))
    write_lines(folder / "log.jsonl", entries)
    row = {"labels": dict.fromkeys(tasks), "predictions": {}}
    write_lines(folder / "test_predictions.jsonl", [row])
    return {"test": results, "best_epoch": 1}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn from now on."""
    figures = []

    def remember(figure, grid):
        figures.append(figure)
        draw_grid(figure, grid)

    draw_grid = plots.draw_grid
    monkeypatch.setattr(plots, "draw_grid", remember)
    return figures


def words_of(texts):
    return [text.get_text() for text in texts]


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


# --------------------------------------------------------------------------------------------------
# The picture of a run


def test_a_task_has_the_panels_of_the_metrics_that_it_has(tmp_path, drawn, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert (run / "report.png").read_bytes().startswith(PNG)
    number = {"pearson": 0.5, "spearman": 0.5, "rmse": 1.0, "mean_rmse": 2.0}
    tests = {"liked": class_metrics(["no", "yes"]), "stars": number}
    predictions = []
    for i in range(5):
        values = {"liked": {}, "stars": {"value": i / 2}}
        row = {"labels": {"liked": "no", "stars": i / 4}, "predictions": values}
        predictions.append(row)
    write_lines(run / "test_predictions.jsonl", predictions)
    plots.draw(run, tmp_path / "a.png", {"test": tests, "best_epoch": 1})
    curves = ["Training loss", "Validation score after each epoch"]
    accuracy = f"liked, test: accuracy {tests['liked']['accuracy']:.3f}"
    confusion = [accuracy, "liked, test: calibration"]
    numbers = ["stars, test: Pearson 0.500"]
    assert titles(drawn[-1]) == [curves[0], *confusion, curves[1], *numbers]

    del tests["liked"]["reliability"]  # as in the metrics.json of the former version
    plots.draw(run, tmp_path / "a.png", {"test": tests, "best_epoch": 2})
    assert titles(drawn[-1]) == [curves[0], confusion[0], curves[1], *numbers]

    plots.draw(run, tmp_path / "a.png", {"test": {}, "best_epoch": 2})  # --no-test
    assert titles(drawn[-1]) == curves


def test_the_same_run_is_drawn_again_to_the_bit_by_hand(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    picture = (run / "report.png").read_bytes()
    (run / "report.png").unlink()
    command = [sys.executable, "-m", "support.plots"]
    result = subprocess.run([*command, run], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == f"{run / 'report.png'}\n", result.stderr
    assert (run / "report.png").read_bytes() == picture


def test_a_folder_without_a_finished_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="nowhere: no finished run to draw"):
        plots.main([str(tmp_path / "nowhere")])
    assert not list(tmp_path.iterdir())


def test_a_run_of_the_former_version_is_drawn(tmp_path, drawn):
    results = write_run(tmp_path, {"mood": ["bad", "good"]})
    del results["test"]["mood"]["reliability"]
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    del entries[-1]["scores"]
    write_lines(tmp_path / "log.jsonl", entries)
    task = {"name": "mood", "labels": ["bad", "good"], "counts": [1, 1], "temperature": 1.0}
    task |= {"names": {"bad": "awful", "good": "fine"}, "mean": 0.0, "std": 1.0}
    encoder = {"model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps({"tasks": [task], "encoder": encoder}))
    (tmp_path / "tokenizer.json").write_text('{"truncation": {"max_length": 64}}')
    plots.draw(tmp_path, tmp_path / "a.png", results)
    ticks = words_of(drawn[0].axes[1].get_xticklabels())
    assert ticks == ["bad awful", "good fine"]


@pytest.mark.parametrize(
    "names",
    [
        ["$", "$x_{$"],
        ["$\\frac{$", "\\$"],
        ["_", "__all__"],
        ["\u0e20\u0e32\u0e1e", "\u6620\u753b", "\U0001f3ac"],
        ["\u202eright\n\tto left", "nul \0"],
        ["x" * 1000, " ".join("many words" for _ in range(100))],
        [f"class {i}" for i in range(60)],
    ],
)
def test_odd_names_of_tasks_and_labels_do_not_stop_it(tmp_path, names):
    tasks = dict.fromkeys(names[:2], names)
    results = write_run(tmp_path, tasks)
    plots.draw(tmp_path, tmp_path / "a.png", results)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_of_many_tasks_the_first_are_drawn_and_the_picture_says_so(tmp_path, drawn):
    names = [f"task {i}" for i in range(15)]
    results = write_run(tmp_path, {name: ["bad", "good"] for name in names})
    plots.draw(tmp_path, tmp_path / "a.png", results)
    [figure] = drawn
    shown = {title.partition(",")[0] for title in titles(figure) if "test:" in title}
    assert shown == set(names[:12]) and len(figure.axes[0].get_legend().get_texts()) == 12
    assert figure.get_suptitle() == "the first 12 of 15 tasks"


def test_each_panel_is_drawn_once(tmp_path, monkeypatch):
    results = write_run(tmp_path, {"mood": ["bad", "good"]})
    drawings = []
    draw_axes = Axes.draw

    def count(axes, renderer):
        drawings.append(axes.get_title())
        draw_axes(axes, renderer)

    monkeypatch.setattr(Axes, "draw", count)
    plots.draw(tmp_path, tmp_path / "a.png", results)
    assert len(drawings) == len(set(drawings)) == 4


# --------------------------------------------------------------------------------------------------
# Panels


def panel(draw_panel, content):
    axes = Figure().add_subplot()
    draw_panel(axes, content)
    return axes


def test_the_epoch_whose_weights_are_kept_is_marked(tmp_path, drawn):
    """By few validation rows none is chosen, so the epoch with the highest score need not be it."""
    results = write_run(tmp_path, {"mood": ["bad", "good"]})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    for epoch in (2, 3):
        lines.append(json.dumps(json.loads(lines[2]) | {"step": 2 * epoch, "epoch": epoch}))
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    plots.draw(tmp_path, tmp_path / "a.png", results | {"best_epoch": 3})
    [figure] = drawn
    curves = [axes for axes in figure.axes if axes.get_xlabel() == "step"]
    assert len(curves) == 2
    for axes in curves:
        [note] = [text for text in axes.texts if text.get_text() == "epoch kept"]
        assert note.xy[0] == 6


def test_a_run_of_the_former_version_has_scores_among_its_metrics():
    validation = {"a": {"macro_f1": 0.2}, "b": {"pearson": 0.4, "rmse": 1.0}}
    assert plots.scores_of({"validation": validation}) == {"a": 0.2, "b": 0.4}
    assert plots.scores_of({"validation": {}, "scores": {"a": 1.0}}) == {"a": 1.0}


def test_a_loss_is_the_mean_of_the_last_steps():
    assert plots.running_mean([2.0, 4.0, 9.0], 2).tolist() == [2.0, 3.0, 6.5]
    steps = [{"step": i + 1, "loss": {"a": float(i)}} for i in range(30)]
    epochs = [{"step": 30, "scores": {"a": 1.0}}]
    axes = panel(plots.draw_losses, plots.Log(steps, epochs, 30))
    line = axes.get_lines()[0]
    assert line.get_xdata()[-1] == 30 and line.get_ydata()[-1] == pytest.approx(19.5)


def test_of_many_labels_those_with_the_most_rows_have_a_bar():
    per_class = {}
    names = {}
    for i in range(40):
        per_class[f"l{i}"] = {"f1": i / 40, "rows": i}
        names[f"l{i}"] = f"l{i}"
    result = {"macro_f1": 0.5, "per_class": per_class}
    axes = panel(plots.draw_f1, plots.Tested("tags", names, result, []))
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [i / 40 for i in range(39, 14, -1)]
    ticks = words_of(axes.get_yticklabels())
    assert ticks[:2] == ["l39 (39)", "l38 (38)"]
    assert "15 labels of fewer rows are not shown" in axes.get_xlabel()


def test_reliability_has_a_point_for_each_bin_before_and_after_calibration():
    calibrated = [[0.55, 0.5, 0.25], [0.9, 1.0, 0.75]]
    uncalibrated = [[0.95, 0.875, 1.0]]
    reliability = {"calibrated": calibrated, "uncalibrated": uncalibrated}
    result = {"ece": 0.1, "ece_uncalibrated": 0.2, "reliability": reliability}
    axes = panel(plots.draw_reliability, plots.Tested("mood", {}, result, []))
    before, after = axes.collections
    assert before.get_offsets().tolist() == [[0.95, 0.875]]
    assert after.get_offsets().tolist() == [[0.55, 0.5], [0.9, 1.0]]
    assert after.get_sizes().tolist() == [20 + 45, 20 + 135]
    words = words_of(axes.get_legend().get_texts())
    assert words == ["uncalibrated: error 0.200", "calibrated: error 0.100"]


def test_counts_are_written_into_a_confusion_of_few_classes():
    result = {"accuracy": 0.75, "confusion": [[3, 1], [0, 0]], "per_class": {"0": {}, "1": {}}}
    tested = plots.Tested("mood", {"0": "bad", "1": "1"}, result, [])
    axes = panel(plots.draw_confusion, tested)
    assert words_of(axes.texts) == ["75%\n3", "25%\n1"]
    assert words_of(axes.get_xticklabels()) == ["0 bad", "1"]
