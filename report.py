"""What a run shows a person: lines and tables on the terminal, and its folder as one page, report.png.

python report.py runs/shared-1             # draw the page again; train.py does so at its end

It never knows how anything was read or computed.
"""

import json
import math
import shutil
import sys
import warnings
from itertools import cycle
from pathlib import Path

import numpy as np

import runs
from data import associations, data_warnings, each, input_errors, listed, printable
from metrics import score

# ---------------------------------------------------------------------------------------------------------------------
# On the terminal


def print_table(rows, left=1):
    """Print rows of cells in columns, the first `left` of them flush left, the others flush right."""
    rows = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        aligned = [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
        aligned += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        print("  ".join(aligned).rstrip())


def shorten(text, width):
    text = printable(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def print_groups(groups):
    """Print AdamW's parameter groups."""
    rows = [["group", "tensors", "parameters", "learning rate", "weight decay"]]
    for group in groups:
        count = f"{sum(parameter.numel() for parameter in group['params']):,}"
        rows.append([group["name"], len(group["params"]), count, f"{group['lr']:g}", f"{group['weight_decay']:g}"])
    print_table(rows)


def print_data(tasks, rows, notes, mixture=None):
    """Say which columns are tasks, how many labels each split has of each, how tasks hang together, and what may be a
    mistake. `notes` are what reading found; None, and nothing is warned of. `mixture` is mtbert.mixture's."""
    kinds = ["labels" if task.several else "classes" for task in tasks]
    kinds = [f"{len(t.labels)} {kind}" if t.labels else "a number" for t, kind in zip(tasks, kinds, strict=True)]
    line = f"tasks: {', '.join(f'{task.name} ({kind})' for task, kind in zip(tasks, kinds, strict=True))}"
    if notes and notes.left_out:
        left_out = ", ".join(f"{name!r} ({reason})" for name, reason in notes.left_out.items())
        line += f"; left out: {left_out}; --tasks takes any column"
    print(printable(line))
    table = [["labels of", *rows, "majority", *["share of draws", "passes an epoch"] * bool(mixture)]]
    for task in tasks:
        counts = [sum(task.name in row.labels for row in part) for part in rows.values()]
        usual = f"{max(task.counts) / counts[0]:.3f}" if task.labels else f"{task.mean:.2f} ± {task.std:.2f}"
        table.append([task.name, *counts, usual])
        if mixture:
            draws, shares = mixture
            passes = shares[task.name] * draws.sum() / counts[0]
            table[-1] += [f"{shares[task.name]:.3f}", f"{passes:.2f}"]
    table.append(["(rows)", *map(len, rows.values()), *[""] * (len(table[0]) - len(rows) - 1)])
    print_table(table)
    associated = sorted(associations(tasks, [row for part in rows.values() for row in part]), reverse=True)[:5]
    if associated:
        pairs = ", ".join(f"{one} and {other} {v:.2f}" for v, one, other in associated)
        print(printable(f"association of tasks (Cramér's V, 0 to 1): {pairs}"))
    for v, one, other in associated if notes else ():
        if v > 0.9:
            runs.warn(f"{one!r} and {other!r} nearly give each other away: Cramér's V {v:.2f}")
    for warning in [*notes.said, *data_warnings(tasks, rows)] if notes else ():
        runs.warn(warning)


def print_encoder(name, encoder):
    config, size = encoder.config, sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    shape = f"{config.model_type}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}"
    print(f"encoder: {name}, from {encoder.source} ({shape}, {size:.1f}M parameters)")


def print_heads(folder, heads):
    """Say which heads start from the run in `folder`; None: it pools otherwise."""
    if heads is None:
        print(f"the heads of {folder} are left: it was trained with another --pooling")
    elif heads:
        print(f"heads that start from {folder}, too: {listed(heads)}")


def print_texts(encoded, max_length, how, encoder):
    """Say how many texts of {split: Dataset} were cut, and how, and where the encoder does not know the language."""
    if cut := sum(part.cut for part in encoded.values()):
        print(f"{cut} texts are longer than {max_length} tokens and {how}")
    for split, part in encoded.items():
        if part.unknown > 0.2:
            runs.warn(f"{part.unknown:.0%} of the tokens of the {split} texts are unknown to {encoder}")


def print_steps(epochs, draws, batch_size):
    steps = epochs * math.ceil(draws / batch_size)
    count = f"{epochs} epoch{'s' * (epochs > 1)}"
    print(f"{count} of {draws} draws, {steps} steps (by default about 250, in 3 to 20 epochs)")


CALIBRATION = {"calibration error": "ece", "uncalibrated": "ece_uncalibrated"}
COLUMNS = {  # of print_metrics: head -> metric
    "class": {"accuracy": "accuracy", "macro-F1": "macro_f1", "majority class": "majority_accuracy", **CALIBRATION},
    "labels": {"macro-F1": "macro_f1", "micro-F1": "micro_f1", "exact match": "exact_match",
               "majority's micro-F1": "majority_micro_f1", **CALIBRATION},
    "number": {"Pearson": "pearson", "Spearman": "spearman", "RMSE": "rmse", "RMSE of the mean": "mean_rmse"},
}  # fmt: skip


def print_metrics(tasks, metrics, rows="test", verbose=False):
    """Print how good the answers for these rows are, a line a task, and with `verbose` a line a class."""
    kinds = {"class": [], "labels": [], "number": []}
    for task in tasks:
        if task.name in metrics:
            kinds["labels" if task.several else "class" if task.labels else "number"].append(task)
    for kind, some in kinds.items():
        heads, keys = zip(*COLUMNS[kind].items(), strict=True)
        table = [[rows, *heads], *([task.name, *(f"{metrics[task.name][key]:.3f}" for key in keys)] for task in some)]
        if some:
            print()
            print_table(table)
        for task in some if kind != "number" and verbose else ():
            table = [[task.name, "precision", "recall", "F1", "rows"]]
            for label, c in metrics[task.name]["per_class"].items():
                numbers = [f"{c[key]:.3f}" for key in ("precision", "recall", "f1")]
                table.append([describe_class(label, task.names[label]), *numbers, f"{c['rows']:.0f}"])
            print()
            print_table(table)


def print_examples(tasks, rows, predictions, what):
    """Print some rows, each task's label beside its prediction, a wrong one marked by an x."""
    table = [[word for task in tasks for word in (task.name, "", "predicted")]]
    for row, prediction in zip(rows, predictions, strict=True):
        table.append([])
        for task in tasks:
            p, gold = prediction[task.name], row.labels.get(task.name)
            right = tuple(p["labels"]) if task.several else p.get("label")
            wrong = "x" if task.labels and gold is not None and gold != right else ""
            names = ", ".join(str(task.names.get(str(label), label)) for label in each(gold)) or "none"
            shown = describe(p, short=True)
            if task.several:
                names, shown = shorten(names, 40), shorten(shown, 40)
            gold = "-" if gold is None else names if task.labels else f"{gold:.2f}"
            table[-1] += [gold, wrong, shown]
    widths = [max(len(str(cell)) for cell in column) + 2 for column in zip(*table, strict=True)]
    width = max(24, terminal_width() - sum(widths))
    texts = [f"{len(rows)} {what} rows", *(row.text for row in rows)]
    print()
    print_table([[shorten(text, width), *cells] for text, cells in zip(texts, table, strict=True)], left=99)


def terminal_width():
    return shutil.get_terminal_size((120, 24)).columns


def describe_class(label, name):
    return name if name == label else f"{label} {name}"


def describe(prediction, short=False):
    """A prediction in a word or two. A class whose probability is below one half is marked as a guess by "?": it is
    more likely wrong than right."""
    if "value" in prediction:
        return f"{prediction['value']:.2f}"
    if "labels" in prediction:
        named = zip(prediction["labels"], prediction["names"], strict=True)
        shown = [(name if short else describe_class(str(label), name), label) for label, name in named]
        return ", ".join(guess(name, prediction["probabilities"][label]) for name, label in shown) or "none"
    name = prediction["name"] if short else describe_class(str(prediction["label"]), prediction["name"])
    return guess(name, prediction["probability"])


def guess(name, probability):
    return f"{name}{'?' * (probability < 0.5)} {probability:.2f}"


def print_bars(tasks, text, prediction):
    """Print one text's predictions, of each task the three likeliest classes, or all its labels, with bars."""
    print(shorten(text, terminal_width()))
    block = "\N{FULL BLOCK}" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    table = []
    for task in tasks:
        p = prediction[task.name]
        if not task.labels or p.get("labels") == []:
            table.append([f"  {task.name}", describe(p), ""])
            continue
        shown = [(label, p["probabilities"][label]) for label in p["labels"]] if task.several else (
            sorted(p["probabilities"].items(), key=lambda item: -item[1])[:3]
        )
        for i, (label, probability) in enumerate(shown):
            name = task.names[str(label)] + "?" * ((task.several or i == 0) and probability < 0.5)
            bar = f"{probability:.2f} {block * round(20 * probability)}"
            table.append([f"  {task.name}" if i == 0 else "", name, bar])
    print_table(table, left=99)


# ---------------------------------------------------------------------------------------------------------------------
# On the page

# The lines of up to 21 tasks: Okabe and Ito's colours (2008), which the colour-blind tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = [{"linestyle": style, "color": color} for style in ("-", "--", ":") for color in COLORS]


def draw(folder, path, metrics):
    """Write a PNG to `path`: loss and validation score over the steps; for each task a row with its confusions (of
    several labels a text the F1 of each) and its reliability, or a number's predictions, on the test rows; where
    logged, how the tasks' gradients agree."""
    from matplotlib.figure import Figure

    entries = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text("utf-8").splitlines()]
    steps, epochs = [e for e in entries if "loss" in e], [e for e in entries if "validation" in e]
    conflicts = [e for e in steps if "conflict" in e]
    pairs = [(a, b) for a, others in (conflicts[0]["conflict"]["cosines"].items() if conflicts else ()) for b in others]
    best = max(epochs, key=lambda e: np.mean([score(m) for m in e["validation"].values()]))  # the first of equal ones
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    tasks = {task["name"]: task for task in config["tasks"]}
    first = [(draw_loss, steps, best), (draw_validation, epochs, best)]
    first += [(draw_cosines, conflicts, *pair) for pair in pairs] if len(pairs) <= 3 else [(draw_means, conflicts)]
    first += [(draw_norms, conflicts)] * bool(conflicts)
    tested = [(tasks[name], result, predictions_of(folder, name)) for name, result in metrics["test"].items()]
    lines, columns = (max(len(first), len(tested)), 3) if tested else (-(-len(first) // 2), 2)
    figure = Figure(figsize=(5.2 * columns, 4.2 * lines), layout="constrained")
    for i, (draw_panel, *arguments) in enumerate(first):
        draw_panel(figure.add_subplot(lines, columns, columns * i + 1 if tested else i + 1), *arguments)
    for i, (task, result, predictions) in enumerate(tested):
        axes = figure.add_subplot(lines, columns, columns * i + 2)
        if task["labels"]:
            (draw_f1 if several(task) else draw_confusion)(axes, task, result)
            draw_reliability(figure.add_subplot(lines, columns, columns * i + 3), task, result, predictions)
        else:
            draw_numbers(axes, task, result, predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks; they become boxes
        figure.savefig(path, dpi=110, format="png")


def short(text, length=24):
    text = printable(text).replace("$", r"\$")  # which would begin a formula
    return text if len(text) <= length else text[: length - 3] + "..."


def draw_loss(axes, steps, best):
    axes.set(title="Training loss", xlabel="step", ylabel="loss (mean of the last 20 steps)")
    for task, line in zip(steps[0]["loss"], cycle(LINES), strict=False):
        values = np.cumsum([0.0] + [e["loss"][task] for e in steps])
        last = np.arange(1, len(values))
        first = np.maximum(last - 20, 0)
        means = (values[last] - values[first]) / (last - first)
        axes.plot([e["step"] for e in steps], means, marker="o" if len(steps) == 1 else None, **line)
    axes.set_ylim(0, None)
    axes.locator_params("x", integer=True)
    axes.legend(axes.get_lines(), map(short, steps[0]["loss"]))
    mark_best(axes, best, 0.98)


def mark_best(axes, best, height):
    axes.axvline(best["step"], color="#999999", linewidth=1, linestyle=":", zorder=0)
    axes.annotate("best epoch", (best["step"], height), xycoords=axes.get_xaxis_transform(), rotation=90, ha="right",
                  va="top" if height > 0.5 else "bottom", fontsize=8, color="#666666")  # fmt: skip


def draw_validation(axes, epochs, best):
    axes.set(title="Validation score, an epoch a point", xlabel="step", ylabel="macro-F1, or Pearson's correlation")
    for task, line in zip(epochs[0]["validation"], cycle(LINES), strict=False):
        scores = [score(e["validation"][task]) for e in epochs]
        axes.plot([e["step"] for e in epochs], scores, marker="o", **line)
    axes.set_xlim(0, None)
    axes.locator_params("x", integer=True)
    axes.legend(axes.get_lines(), map(short, epochs[0]["validation"]))
    mark_best(axes, best, 0.02)


def predictions_of(folder, name):
    """(label, prediction) of the test rows that are labelled for the task so named."""
    rows = map(json.loads, (Path(folder) / "test_predictions.jsonl").read_text("utf-8").splitlines())
    return [(row["labels"][name], row["predictions"][name]) for row in rows if row["labels"][name] is not None]


def draw_numbers(axes, task, result, predictions):
    gold, value = [label for label, _ in predictions], [p["value"] for _, p in predictions]
    ends = [min(gold + value), max(gold + value)]
    axes.plot(ends, ends, color="#999999", linewidth=1)
    axes.scatter(gold, value, s=6, alpha=0.4, color=COLORS[0], edgecolors="none")
    title = f"{short(task['name'])}, test: Pearson {result['pearson']:.3f}"
    axes.set(title=title, xlabel="label", ylabel="prediction")


def several(task):
    """Whether a text has any number of the labels; runs of before had no such tasks."""
    return task.get("threshold") is not None


def draw_f1(axes, task, result, most=25):
    """The F1 of each label; of more than `most` those with the most rows."""
    labels = sorted(result["per_class"].items(), key=lambda item: -item[1]["rows"])[:most]
    names = [f"{short(describe_class(label, task['names'][label]), 22)} ({c['rows']:.0f})" for label, c in labels]
    values = [c["f1"] for _, c in labels]
    axes.barh(range(len(values)), values, color=COLORS[0])
    axes.axvline(result["macro_f1"], color="#999999", linewidth=1)
    for i, value in enumerate(values) if len(values) <= 12 else ():
        inside = value > 0.12  # at the bar's foot, where the line of the mean seldom is
        x, color = (0.02, "white") if inside else (value + 0.02, "black")
        axes.text(x, i, f"{value:.2f}", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) > 12 else None)
    axes.invert_yaxis()  # the first on top
    left_out = len(result["per_class"]) - len(labels)
    title = f"{short(task['name'])}, test: macro-F1 {result['macro_f1']:.3f} (line)"
    axes.set(title=title, xlim=(0, 1), ylabel="label (its rows)")
    axes.set_xlabel(f"F1; {left_out} labels of fewer rows are not shown" if left_out else "F1")


def draw_confusion(axes, task, result):
    counts = np.array(result["confusion"])
    labels = [short(describe_class(label, task["names"][label]), 14) for label in result["per_class"]]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    title = f"{short(task['name'])}, test: accuracy {result['accuracy']:.3f}"
    axes.set(title=title, xlabel="predicted", ylabel="label (% of its rows, rows)")
    ticks = range(0, len(labels), -(-len(labels) // 25))
    axes.set_xticks(ticks, [labels[i] for i in ticks], rotation=90 if len("".join(labels)) > 45 else 0)
    axes.set_yticks(ticks, [labels[i] for i in ticks])
    for (i, j), count in np.ndenumerate(counts) if len(labels) <= 8 else ():
        text = f"{shares[i, j]:.0%}\n{count}" if count else ""
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 0.6 else "black")


def draw_reliability(axes, task, result, predictions, bins=10):
    """Accuracy against confidence, in bins of equal width, as calibrated and as it was before: p ** temperature."""
    p = np.array([list(p["probabilities"].values()) for _, p in predictions])
    if several(task):  # each label is an answer of two classes, no and yes
        gold = np.array([[label in labels for label in task["labels"]] for labels, _ in predictions])
        p = np.stack([1 - p, p], -1).reshape(-1, 2)
        right = p.argmax(1) == gold.ravel()
    else:
        right = np.array([str(label) == str(p["label"]) for label, p in predictions])
    raw = np.maximum(p, 1e-12) ** task["temperature"]
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    before = ("before", raw / raw.sum(1, keepdims=True), "ece_uncalibrated", "#999999", "s")
    for what, values, error, color, marker in (before, ("calibrated", p, "ece", COLORS[0], "o")):
        confidence = values.max(1)
        bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
        filled = [b for b in range(bins) if (bin_of == b).any()]
        x, y = ([part[bin_of == b].mean() for b in filled] for part in (confidence, right))
        sizes = [20 + 180 * (bin_of == b).mean() for b in filled]
        axes.scatter(x, y, sizes, color, marker=marker, alpha=0.7, label=f"{what}: error {result[error]:.3f}")
    title = f"{short(task['name'])}, test: is it right as often as it is sure?"
    answer = "each answer, yes or no" if several(task) else "the answer"
    axes.set(title=title, xlabel=f"probability of {answer}", ylabel="share of right answers")
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    what = "answers" if several(task) else "rows"
    for handle in axes.legend(title=f"a bin of {what} a point").legend_handles:
        handle.set_sizes([40])


def draw_cosines(axes, conflicts, one, other):
    layers = list(zip(*(e["conflict"]["cosines"][one][other] for e in conflicts), strict=True))
    grid = np.array(layers, dtype=float)  # (layers, steps); a cosine that there was not is NaN
    every = conflicts[0]["step"]  # the first is behind as many steps as lie between two
    extent = (every / 2, conflicts[-1]["step"] + every / 2, len(grid) + 0.5, 0.5)
    draw_grid(axes, grid, extent=extent)
    axes.set(title=f"Conflict: {short(one, 16)} and {short(other, 16)}", xlabel="step", ylabel="encoder layer")
    axes.locator_params("y", integer=True)


def draw_means(axes, conflicts):
    """For many tasks: the mean cosine of each two, over layers and steps."""
    cosines = [e["conflict"]["cosines"] for e in conflicts]
    tasks = list(cosines[0])
    grid = np.full((len(tasks), len(tasks)), np.nan)
    for i, one in enumerate(tasks):
        for other in cosines[0][one]:
            values = np.array([c[one][other] for c in cosines], dtype=float)
            if not np.isnan(values).all():
                grid[i, tasks.index(other)] = grid[tasks.index(other), i] = np.nanmean(values)
    draw_grid(axes, grid)
    axes.set_xticks(range(len(tasks)), [short(task, 14) for task in tasks], rotation=90)
    axes.set_yticks(range(len(tasks)), [short(task, 14) for task in tasks])
    axes.set(title="Conflict: mean over layers and steps")


def draw_grid(axes, grid, **settings):
    image = axes.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest", **settings)
    axes.figure.colorbar(image, ax=axes, label="cosine of the gradients")


def draw_norms(axes, conflicts):
    axes.set(title="Gradient of each task, mean over steps", xlabel="encoder layer", ylabel="norm")
    norms = [e["conflict"]["norms"] for e in conflicts]
    for task, line in zip(norms[0], cycle(LINES), strict=False):
        means = np.mean([norm[task] for norm in norms], axis=0)
        axes.plot(range(1, len(means) + 1), means, marker="o", **line)
    axes.set_ylim(0, None)
    axes.locator_params("x", integer=True)
    axes.legend(axes.get_lines(), map(short, norms[0]))


def main(argv=None):
    parser = runs.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a finished run")
    folder = parser.parse_args(argv).folder
    with input_errors(f"{folder}: no finished run to draw"):
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        with runs.replacing(folder / "report.png") as beside:
            draw(folder, beside, metrics)
    print(folder / "report.png")


if __name__ == "__main__":
    runs.run_script(main)
