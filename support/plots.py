"""What is drawn of a finished run: its folder as one picture, report.png.

    python -m support.plots runs/shared-1      # draw it again; train.py does so at its end

This file knows the files of a run, and the names of metrics. It never knows a model, or the kind
of a task: which panels a task has depends on which metrics it has.
"""

import json
import math
import os
import warnings
from itertools import cycle, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import former
from .errors import input_errors, printable
from .report import name_class, shorten
from .runs import replacing
from .script import Parser, run_script

# Okabe and Ito's colours (2008), which colour-blind people can tell apart too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = []
for style in ("-", "--"):
    LINES += [{"linestyle": style, "color": color} for color in COLORS]
GREY = "#999999"

MOST_TASKS = 12  # that are drawn: of more the picture would be too long, and its curves a tangle


class Log(NamedTuple):
    """What log.jsonl holds."""

    steps: list  # {"step", "loss": {task: loss}, ...}
    epochs: list  # {"step", "validation": {task: metrics}, ...}
    kept_step: int  # at the end of the epoch whose weights are kept


class Tested(NamedTuple):
    """A task on the test rows that are labelled for it."""

    name: str
    label_names: dict  # str(label) -> a name for people; {} without labels, such as of a number
    metrics: dict
    rows: list  # (label, prediction) of each


def draw(folder, path, metrics):
    """Write a PNG to `path`: loss and validation scores of the run in `folder`, and its tests.

    `metrics` is what metrics.json holds. Each task that was tested has a row of panels (`PANELS`).
    Curves and rows are drawn for the first MOST_TASKS tasks.
    """
    matplotlib = import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    log = read_log(folder, metrics["best_epoch"])
    curves = [(draw_losses, log)]
    if scores_of(log.epochs[0]):
        curves.append((draw_scores, log))
    grid = [curves]
    if metrics["test"]:
        grid = beside(curves, [panels_of(tested) for tested in read_tested(folder, metrics)])

    num_tasks = len(log.steps[0]["loss"])
    settings = {"text.parse_math": False, "text.usetex": False}  # a label may have a "$"
    settings["axes.titley"] = 1.0  # else each drawing measures all ticks to find a title's place
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.simplefilter("ignore")  # of characters that the font lacks; they become boxes
        figure = matplotlib.figure.Figure(layout="constrained", dpi=110)
        if num_tasks > MOST_TASKS:
            figure.suptitle(f"the first {MOST_TASKS} of {num_tasks} tasks")
        draw_grid(figure, grid)
        # savefig would draw twice, the first time to give the panels their places.
        FigureCanvasAgg(figure).print_png(path)


def import_matplotlib():
    """matplotlib, of which only Agg is used: it draws into memory, and needs no window.

    The variable MPLBACKEND may name another backend, which need not be installed here: notebooks
    set it for every program that they start, and matplotlib cannot be imported then.
    """
    wanted = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib.figure
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
    return matplotlib


def beside(curves, tests):
    """A grid of panels: the curves below each other, and on their right a line for each task.

    A place without a panel is None.
    """
    width = max(map(len, tests))
    grid = []
    for curve, panels in zip_longest(curves, tests, fillvalue=None):
        line = [curve, *(panels or [])]
        line += [None] * (1 + width - len(line))
        grid.append(line)
    return grid


def draw_grid(figure, grid):
    height = len(grid)
    width = len(grid[0])
    figure.set_size_inches(5.2 * width, 4.2 * height)
    for i, line in enumerate(grid):
        for j, panel in enumerate(line):
            if panel is not None:
                draw_panel, content = panel
                draw_panel(figure.add_subplot(height, width, i * width + j + 1), content)


# --------------------------------------------------------------------------------------------------
# The files of a run


def read_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read_log(folder, kept_epoch):
    steps = []
    epochs = []
    for entry in read_lines(Path(folder) / "log.jsonl"):
        if "loss" in entry:
            steps.append(entry)
        elif "validation" in entry:
            epochs.append(entry)
    return Log(steps, epochs, epochs[kept_epoch - 1]["step"])


def read_tested(folder, metrics):
    """A list of Tested, for the first MOST_TASKS tasks of metrics["test"]."""
    label_names = read_label_names(folder)
    lines = read_lines(Path(folder) / "test_predictions.jsonl")
    result = []
    for name in list(metrics["test"])[:MOST_TASKS]:
        rows = []
        for line in lines:
            if line["labels"][name] is not None:
                rows.append((line["labels"][name], line["predictions"][name]))
        result.append(Tested(name, label_names[name], metrics["test"][name], rows))
    return result


def read_label_names(folder):
    """{task: {str(label): a name for people}}"""
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    names = {}
    for task in former.upgrade(config, folder)["tasks"]:
        names[task["name"]] = task.get("label_names", {})
    return names


# --------------------------------------------------------------------------------------------------
# Curves of the training


def scores_of(epoch):
    """{task: the score by which epochs are compared} of an entry of the log."""
    if "scores" in epoch:
        return epoch["scores"]
    scores = {}  # the log of a run of the former version has metrics alone
    for name, result in epoch["validation"].items():
        scores[name] = result.get("macro_f1", result.get("pearson"))
    return scores


def draw_losses(axes, log):
    axes.set(title="Training loss", xlabel="step", ylabel="loss (mean of the last 20 steps)")
    numbers = [entry["step"] for entry in log.steps]
    values = {}
    for name in log.steps[0]["loss"]:
        values[name] = running_mean([entry["loss"][name] for entry in log.steps], 20)
    marker = "o" if len(log.steps) == 1 else None  # a line of one point cannot be seen
    draw_lines(axes, numbers, values, marker)
    axes.set_ylim(0, None)
    mark_kept(axes, log.kept_step, 0.98, "top")


def draw_scores(axes, log):
    axes.set(title="Validation score after each epoch", xlabel="step")
    axes.set_ylabel("macro-F1, or Pearson's correlation")
    numbers = [entry["step"] for entry in log.epochs]
    values = {}
    for name in scores_of(log.epochs[0]):
        values[name] = [scores_of(entry)[name] for entry in log.epochs]
    draw_lines(axes, numbers, values, "o")
    axes.set_xlim(0, None)
    mark_kept(axes, log.kept_step, 0.02, "bottom")


def running_mean(values, size):
    """The mean of each value and those before it, `size` in all."""
    sums = np.cumsum([0.0, *values])
    last = np.arange(1, len(sums))
    first = np.maximum(last - size, 0)
    return (sums[last] - sums[first]) / (last - first)


def draw_lines(axes, numbers, values, marker):
    names = list(values)[:MOST_TASKS]
    for name, line in zip(names, cycle(LINES), strict=False):
        axes.plot(numbers, values[name], marker=marker, **line)
    axes.locator_params("x", integer=True)
    axes.legend(axes.get_lines(), [shorten(name, 24) for name in names])


def mark_kept(axes, step, height, end):
    """A vertical line at the epoch that is kept, and words beside it, `end` at this height."""
    axes.axvline(step, color=GREY, linewidth=1, linestyle=":", zorder=0)
    axes.annotate(
        "epoch kept",
        (step, height),
        xycoords=axes.get_xaxis_transform(),
        rotation=90,
        ha="right",
        va=end,
        fontsize=8,
        color="#666666",
    )


# --------------------------------------------------------------------------------------------------
# Panels of a task that was tested


def panels_of(tested):
    panels = []
    for metric, draw_panel in PANELS.items():
        if metric in tested.metrics:
            panels.append((draw_panel, tested))
    return panels


def set_title(axes, tested, words):
    axes.set_title(f"{shorten(tested.name, 24)}, test: {words}")


def label_text(tested, label, width):
    return shorten(name_class(label, tested.label_names.get(label, label)), width)


def draw_confusion(axes, tested):
    """Which class is predicted for rows of which; a row of the picture adds up to 100 %."""
    counts = np.array(tested.metrics["confusion"])
    rows = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    set_title(axes, tested, f"accuracy {tested.metrics['accuracy']:.3f}")
    axes.set(xlabel="predicted", ylabel="label (% of its rows, rows)")

    labels = [label_text(tested, label, 14) for label in tested.metrics["per_class"]]
    every = math.ceil(len(labels) / 25)
    ticks = range(0, len(labels), every)
    shown = [labels[i] for i in ticks]
    rotation = 90 if len("".join(shown)) > 45 else 0
    axes.set_xticks(ticks, shown, rotation=rotation)
    axes.set_yticks(ticks, shown)
    if len(labels) <= 8:
        write_counts(axes, counts, shares)


def write_counts(axes, counts, shares):
    for (i, j), count in np.ndenumerate(counts):
        if count:
            text = f"{shares[i, j]:.0%}\n{count}"
            color = "white" if shares[i, j] > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=color)


def draw_f1(axes, tested, most=25):
    """The F1 of each label; of more than `most` those with the most rows."""
    per_class = sorted(tested.metrics["per_class"].items(), key=lambda item: -item[1]["rows"])
    left_out = len(per_class) - most
    per_class = per_class[:most]
    names = []
    for label, scores in per_class:
        names.append(f"{label_text(tested, label, 22)} ({scores['rows']:.0f})")
    values = [scores["f1"] for _, scores in per_class]
    axes.barh(range(len(values)), values, color=COLORS[0])
    axes.axvline(tested.metrics["macro_f1"], color=GREY, linewidth=1)
    set_title(axes, tested, f"macro-F1 {tested.metrics['macro_f1']:.3f} (line)")
    axes.set(xlim=(0, 1), xlabel="F1", ylabel="label (its rows)")
    if left_out > 0:
        axes.set_xlabel(f"F1; {left_out} labels of fewer rows are not shown")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()  # the first on top
    if len(names) > 12:
        axes.tick_params("y", labelsize=8)
    else:
        write_values(axes, values)


def write_values(axes, values):
    """Write each value at the foot of its bar, or behind a bar that is too short for it."""
    for i, value in enumerate(values):
        if value > 0.12:
            axes.text(0.02, i, f"{value:.2f}", va="center", fontsize=8, color="white")
        else:
            axes.text(value + 0.02, i, f"{value:.2f}", va="center", fontsize=8)


def draw_numbers(axes, tested):
    """Predicted numbers against labels, and the line where both are equal."""
    labels = [label for label, _ in tested.rows]
    values = [prediction["value"] for _, prediction in tested.rows]
    ends = [min(labels + values), max(labels + values)]
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.scatter(labels, values, s=6, alpha=0.4, color=COLORS[0], edgecolors="none")
    set_title(axes, tested, f"Pearson {tested.metrics['pearson']:.3f}")
    axes.set(xlabel="label", ylabel="prediction")


def draw_reliability(axes, tested):
    """Accuracy against confidence, in bins of equal width, before and after calibration."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for state, metric, color, marker in (
        ("uncalibrated", "ece_uncalibrated", GREY, "s"),
        ("calibrated", "ece", COLORS[0], "o"),
    ):
        confidence, accuracy, share = np.array(tested.metrics["reliability"][state]).T
        words = f"{state}: error {tested.metrics[metric]:.3f}"
        style = {"color": color, "marker": marker, "alpha": 0.7, "label": words}
        axes.scatter(confidence, accuracy, 20 + 180 * share, **style)
    set_title(axes, tested, "calibration")
    axes.set(xlabel="probability of the prediction", ylabel="share of predictions that are right")
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    for handle in axes.legend(title="bins (larger: more predictions)").legend_handles:
        handle.set_sizes([40])


# A task has the panels of those metrics that it has, in this order.
PANELS = {
    "confusion": draw_confusion,
    "micro_f1": draw_f1,
    "pearson": draw_numbers,
    "reliability": draw_reliability,
}


def main(argv=None):
    parser = Parser(description="Draw report.png of a finished run again.")
    parser.add_argument("folder", type=Path, help="of a finished run")
    folder = parser.parse_args(argv).folder
    with input_errors(f"{folder}: no finished run to draw"):
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        with replacing(folder / "report.png") as path:
            draw(folder, path, metrics)
    print(printable(str(folder / "report.png")))


if __name__ == "__main__":
    run_script(main)
