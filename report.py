"""What a run shows a person: lines and tables on the terminal, and its folder as one page, report.png.

python report.py runs/shared-1             # draw the page again; train.py does so at its end

It never knows how anything was read or computed.
"""

import json
import math
import warnings
from itertools import cycle
from pathlib import Path

import numpy as np

import mtbert
import runs
from data import associations, data_warnings, input_errors, printable
from metrics import score

# ---------------------------------------------------------------------------------------------------------------------
# On the terminal


def note(message):
    if runs.processes()[0] == 0:
        runs.say(printable(message))


def warn(message):
    note(f"warning: {message}")


def print_groups(groups):
    print("group         tensors  parameters        lr  weight decay")
    for g in groups:
        numel = sum(p.numel() for p in g["params"])
        print(f"{g['name']:12}{len(g['params']):9}{numel:12,}{g['lr']:10.1e}{g['weight_decay']:14g}")


def print_data(tasks, rows, notes):
    """Say which columns are tasks, how many labels each split has of each, how tasks hang together, and what may be a
    mistake. `notes` are what reading found; None, and nothing is warned of."""
    kinds = (f"{task.name} ({f'{len(task.labels)} classes' if task.labels else 'a number'})" for task in tasks)
    left_out = (f"{name!r} ({reason})" for name, reason in (notes.left_out if notes else {}).items())
    left_out = "; left out: " * bool(notes and notes.left_out) + ", ".join(left_out)
    print(printable(f"tasks: {', '.join(kinds)}{left_out}"))
    width = max(len(printable(name)) for name in ["labels of", *(task.name for task in tasks)]) + 1
    print(f"{'labels of':{width}}" + "".join(f"{split:>12}" for split in rows), " classes (share of the most frequent)")
    for task in tasks:
        counts = (sum(task.name in row.labels for row in part) for part in rows.values())
        print(f"{printable(task.name):{width}}" + "".join(f"{count:12}" for count in counts), end="  ")
        if task.labels:
            print(f"{len(task.labels)} ({max(task.counts) / sum(task.counts):.3f})")
        else:
            print(f"a number, {task.mean:.2f} ± {task.std:.2f}")
    print(f"{'(rows)':{width}}" + "".join(f"{len(part):12}" for part in rows.values()))
    for v, one, other in sorted(associations(tasks, [row for part in rows.values() for row in part]), reverse=True)[:5]:
        print(f"association of {printable(one)} and {printable(other)}: Cramér's V {v:.2f}")
        if v > 0.9 and notes:
            warn(f"{one!r} and {other!r} nearly give each other away: Cramér's V {v:.2f}")
    for warning in [*notes.said, *data_warnings(tasks, rows)] if notes else ():
        warn(warning)


def print_mixture(tasks, rows, draws, shares, epochs, batch_size):
    """Say how often an epoch's `draws` out of the training rows bring each task, and how long training will be."""
    print(f"{'an epoch draws':20}{'labels':>12}{'share':>12}{'passes':>12}")
    for task in tasks:
        share, count = shares[task.name], sum(task.name in row.labels for row in rows)
        print(f"{printable(task.name)[:19]:20}{count:12}{share:12.3f}{share * draws / count:12.2f}")
    steps = epochs * math.ceil(draws / batch_size)
    print(f"{epochs} epochs of {draws} draws, {steps} steps (the default is about 250, in 3 to 20 epochs)")


def print_metrics(tasks, metrics, rows="test"):
    for task in (task for task in tasks if task.name in metrics):
        m = metrics[task.name]
        print(f"\n{printable(task.name)}, {printable(rows)}")
        if "accuracy" not in m:
            print(f"  Pearson {m['pearson']:.3f}, Spearman {m['spearman']:.3f}, RMSE {m['rmse']:.3f}", end="")
            print(f" (always the mean: {m['mean_rmse']:.3f})")
            continue
        print(f"  accuracy {m['accuracy']:.3f} (always the majority class: {m['majority_accuracy']:.3f})", end="")
        print(f", macro-F1 {m['macro_f1']:.3f}")
        print(f"  calibration error {m['ece']:.3f} (before the temperature, {task.temperature:.2f}:", end="")
        print(f" {m['ece_uncalibrated']:.3f})")
        names = [printable(mtbert.describe_class(label, task.names[label])) for label in m["per_class"]]
        width = max(map(len, ["class", *names]))
        print(f"  {'class':{width}}{'precision':>10}{'recall':>10}{'F1':>10}{'rows':>10}")
        for name, c in zip(names, m["per_class"].values(), strict=True):
            print(f"  {name:{width}}", end="")
            print(f"{c['precision']:10.3f}{c['recall']:10.3f}{c['f1']:10.3f}{c['rows']:10.0f}")


def print_examples(tasks, rows, predictions):
    for row, prediction in zip(rows, predictions, strict=True):
        print(f"\n  {printable(row.text)[:110]}")
        for task in tasks:
            gold = row.labels.get(task.name, "not labelled")
            gold = task.names.get(str(gold), str(gold))
            print("   ", printable(f"{task.name}: {mtbert.describe(prediction[task.name])} (gold: {gold})"))


# ---------------------------------------------------------------------------------------------------------------------
# On the page

# The lines of up to 21 tasks: Okabe and Ito's colours (2008), which the colour-blind tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = [{"linestyle": style, "color": color} for style in ("-", "--", ":") for color in COLORS]


def draw(folder, path, metrics):
    """Write a PNG to `path`: loss and validation score of each task over the steps; on the test rows each class's
    confusions, and each number's predictions; where logged, how the tasks' gradients agree."""
    from matplotlib.figure import Figure

    entries = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text("utf-8").splitlines()]
    steps, epochs = [e for e in entries if "loss" in e], [e for e in entries if "validation" in e]
    conflicts = [e for e in steps if "conflict" in e]
    pairs = [(a, b) for a, others in (conflicts[0]["conflict"]["cosines"].items() if conflicts else ()) for b in others]
    panels = [(draw_loss, steps), (draw_validation, epochs)]
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    names = {task["name"]: task["names"] for task in config["tasks"]}
    panels += [(draw_task, folder, task, names[task], result) for task, result in metrics["test"].items()]
    panels += [(draw_cosines, conflicts, *pair) for pair in pairs] if len(pairs) <= 3 else [(draw_means, conflicts)]
    panels += [(draw_norms, conflicts)] * bool(conflicts)
    columns = 2 if len(panels) in (2, 4) else 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * lines), layout="constrained")
    for i, (draw_panel, *arguments) in enumerate(panels, 1):
        draw_panel(figure.add_subplot(lines, columns, i), *arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks; they become boxes
        figure.savefig(path, dpi=110, format="png")


def short(text, length=24):
    text = printable(text).replace("$", r"\$")  # which would begin a formula
    return text if len(text) <= length else text[: length - 3] + "..."


def draw_loss(axes, steps):
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


def draw_validation(axes, epochs):
    axes.set(title="Validation score, an epoch a point", xlabel="step", ylabel="macro-F1, or Pearson's correlation")
    for task, line in zip(epochs[0]["validation"], cycle(LINES), strict=False):
        scores = [score(e["validation"][task]) for e in epochs]
        axes.plot([e["step"] for e in epochs], scores, marker="o", **line)
    axes.set_xlim(0, None)
    axes.locator_params("x", integer=True)
    axes.legend(axes.get_lines(), map(short, epochs[0]["validation"]))


def test_predictions(folder, task):
    """The labels, or numbers, predicted for the test rows that are labelled for the task so named, and their own."""
    rows = map(json.loads, (Path(folder) / "test_predictions.jsonl").read_text("utf-8").splitlines())
    rows = [row for row in rows if row["labels"][task] is not None]
    predictions = [row["predictions"][task] for row in rows]
    return [p["value"] if "value" in p else p["label"] for p in predictions], [row["labels"][task] for row in rows]


def draw_task(axes, folder, name, names, result):
    if "confusion" not in result:
        value, gold = test_predictions(folder, name)
        ends = [min(gold + value), max(gold + value)]
        axes.plot(ends, ends, color="#999999", linewidth=1)
        axes.scatter(gold, value, s=6, alpha=0.4, color=COLORS[0], edgecolors="none")
        axes.set(title=f"{short(name)}, test: Pearson {result['pearson']:.3f}", xlabel="label", ylabel="prediction")
        return
    counts = np.array(result["confusion"])
    labels = [short(mtbert.describe_class(label, names[label]), 14) for label in result["per_class"]]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(title=f"{short(name)}, test: accuracy {result['accuracy']:.3f}", xlabel="predicted", ylabel="label")
    ticks = range(0, len(labels), -(-len(labels) // 25))
    axes.set_xticks(ticks, [labels[i] for i in ticks], rotation=90 if len("".join(labels)) > 40 else 0)
    axes.set_yticks(ticks, [labels[i] for i in ticks])
    for (i, j), count in np.ndenumerate(counts) if len(labels) <= 12 else ():
        axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.6 else "black")


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
