"""What a run shows a person on the terminal: lines and tables.

This file never knows how anything was read or computed. What it says of a task and its predictions
comes from the task's own methods (mtbert.py, section "Tasks").
"""

import math
import shutil
import sys

from .errors import listed, printable
from .mistakes import associations, data_warnings
from .script import warn

# --------------------------------------------------------------------------------------------------
# Words and tables


def shorten(text, width):
    text = printable(text)
    if len(text) <= width:
        return text
    return text[: width - 3] + "..."


def terminal_width():
    return shutil.get_terminal_size((120, 24)).columns


def name_class(label, name):
    """A class in words: "1 story", or the name alone where the label is the name."""
    if str(label) == name:
        return name
    return f"{label} {name}"


def guess(name, p):
    """A predicted class and its probability: "story 0.77", or "story? 0.41" for a mere guess."""
    return f"{name}{guess_mark(p)} {p:.2f}"


def guess_mark(p):
    """ "?" below one half, where a prediction is more likely wrong than right."""
    if p < 0.5:
        return "?"
    return ""


def print_table(rows, left=1, widest=60):
    """Print rows of cells in columns: the first `left` flush left, the others flush right.

    A cell of more than `widest` characters is shortened.
    """
    table = []
    for row in rows:
        table.append([shorten(str(cell), widest) for cell in row])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            if number < left:
                cells.append(cell.ljust(width))
            else:
                cells.append(cell.rjust(width))
        print("  ".join(cells).rstrip())


# --------------------------------------------------------------------------------------------------
# Before a training


def print_encoder(name, encoder):
    config = encoder.config
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    shape = f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}"
    size = f"{config.model_type}, {shape}, {millions:.1f}M parameters"
    print(f"encoder: {name}, from {encoder.source} ({size})")


def print_data(tasks, columns, rows, notes, sampling=None):
    """Say what the tasks are, how many labels they have, and what is probably a mistake.

    tasks, columns: each task and the column of labels that it was made from. rows: {split: [Row]}.
    notes: what was found while reading; None: nothing is warned of. sampling: what
    mtbert.expected_draws and mtbert.label_rates gave for the training rows, and {task: number of
    rows to learn from}, which is above that of the labels where there are teachers.
    """
    print_tasks(tasks, notes)
    print_label_counts(tasks, rows, sampling)
    strongest = strongest_associations(columns, rows)
    if strongest:
        pairs = [f"{one} and {other} {v:.2f}" for v, one, other in strongest]
        print(printable(f"association of tasks (Cramér's V, 0 to 1): {', '.join(pairs)}"))
    if notes is None:
        return
    for v, one, other in strongest:
        if v > 0.9:
            warn(f"{one!r} and {other!r} nearly give each other away: Cramér's V {v:.2f}")
    for message in notes.messages:
        warn(message)
    for message in data_warnings(columns, rows):
        warn(message)


def print_tasks(tasks, notes):
    line = "tasks: " + ", ".join(f"{task.name} ({task.summary()})" for task in tasks)
    if notes is not None and notes.left_out:
        left_out = [f"{name!r} ({reason})" for name, reason in notes.left_out.items()]
        line += f"; left out: {', '.join(left_out)}; --tasks takes any column"
    print(printable(line))


def print_label_counts(tasks, rows, sampling):
    header = ["labels of", *rows, "majority"]
    if sampling is not None:
        header += ["share of draws", "draws per label"]
    table = [header]
    for task in tasks:
        counts = [count_labelled(part, task) for part in rows.values()]
        line = [task.name, *counts, task.typical(counts[0])]
        if sampling is not None:
            draws, rates, num_learned = sampling
            rate = rates[task.name]
            draws_per_label = rate * draws.sum() / num_learned[task.name]  # in an epoch
            line += [f"{rate:.3f}", f"{draws_per_label:.2f}"]
        table.append(line)
    totals = ["(rows)", *map(len, rows.values())]
    blanks = [""] * (len(header) - len(totals))
    table.append(totals + blanks)
    print_table(table)


def count_labelled(rows, task):
    return sum(task.name in row.labels for row in rows)


def strongest_associations(columns, rows, most=5):
    every_row = []
    for part in rows.values():
        every_row += part
    return sorted(associations(columns, every_row), reverse=True)[:most]


def print_teachers(teachers, num_taught, num_rows):
    """Say which runs teach a task, {task: folders}, and on how many of the training rows."""
    for name, folders in teachers.items():
        on = f"on {num_taught[name]} of {num_rows} training rows"
        print(printable(f"{name} is taught by {', '.join(folders)}, {on}"))


def print_steps(epochs, draws, batch_size):
    """Say how long the training is; `draws` is the number of rows that an epoch draws."""
    steps = epochs * math.ceil(draws / batch_size)
    count = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    rule = "by default about 250, in 3 to 20 epochs"
    print(f"{count} of {draws} draws, {steps} steps of {batch_size} rows ({rule})")


def print_texts(data, max_length, how, encoder):
    """Say how many texts of {split: Dataset} are truncated, and which the encoder hardly knows.

    how: "were truncated", or what else happened to them.
    """
    num_truncated = sum(part.num_truncated for part in data.values())
    if num_truncated:
        print(f"{num_truncated} texts are longer than {max_length} tokens and {how}")
    for split, part in data.items():
        if part.unknown_rate > 0.2:
            share = f"{part.unknown_rate:.0%} of the tokens of the {split} texts"
            warn(f"{share} are unknown to {encoder}")


def print_heads(folder, heads, dropped=()):
    """Say which heads start from the run in `folder`, and which of its tasks are left behind.

    heads: {task: its labels that the run does not have}; None: the run pools in another way.
    dropped: the names of its tasks that are not learned here.
    """
    if heads is None:
        print(f"the heads start anew: {folder} was trained with another --pooling")
    elif heads:
        print(f"heads that start from {folder}, too: {listed(heads)}")
        for name, labels in heads.items():
            if labels:
                print(f"labels of {name!r} that start anew: {listed(labels)}")
    if dropped:
        print(f"tasks of {folder} that are left behind: {listed(dropped)}")


def print_fitted_heads(fitted):
    """Say which heads start from a linear fit, {task: rows it was fitted to}."""
    if not fitted:
        return
    words = [f"{printable(name)} ({count:,} rows)" for name, count in fitted.items()]
    which = ", ".join(words)
    if len(words) > 3:
        which = f"{len(words)} tasks"
    print(f"heads start as linear fits to the encoder's states: {which}")


def print_few_to_validate(counts, least_to_judge, least_to_calibrate):
    """Say which tasks have few validation rows, {task: their number}, and what that means."""
    no_judges = [name for name, count in counts.items() if count < least_to_judge]
    if no_judges:
        consequence = "they choose no epoch"
        if len(no_judges) == len(counts):
            consequence = "the last epoch is kept"
        print(f"fewer than {least_to_judge} validation rows of {listed(no_judges)}: {consequence}")
    raw = [name for name, count in counts.items() if count < least_to_calibrate]
    if raw:
        few = f"fewer than {least_to_calibrate} validation rows of {listed(raw)}"
        print(f"{few}: nothing is calibrated")


def print_groups(groups):
    """Print AdamW's parameter groups."""
    table = [["group", "tensors", "parameters", "learning rate", "weight decay"]]
    for group in groups:
        parameters = group["params"]
        size = sum(parameter.numel() for parameter in parameters)
        rates = [f"{group['lr']:g}", f"{group['weight_decay']:g}"]
        table.append([group["name"], len(parameters), f"{size:,}", *rates])
    print_table(table)


# --------------------------------------------------------------------------------------------------
# An epoch


def print_epoch(epoch, num_epochs, losses, scores, is_best):
    """losses, scores: {task: of this epoch's steps; of the validation rows after them, if any}."""
    parts = [f"epoch {epoch}/{num_epochs}"]
    for name, loss in losses.items():
        part = f"{printable(name)}: loss {loss:.3f}"
        if name in scores:
            part += f", validation {scores[name]:.3f}"
        parts.append(part)
    if is_best:
        parts.append("best")
    print("  ".join(parts))


def warn_constant(names):
    """Warn of the tasks that predict the same class for each row."""
    if names:
        found = f"one class is predicted for every validation row of {listed(names)}"
        warn(f"{found}; if this stays, try another --lr")


# --------------------------------------------------------------------------------------------------
# Metrics and predictions

# What a metric is called above its column. One without an entry is called by its own name.
HEADINGS = {
    "macro_f1": "macro-F1",
    "majority_accuracy": "majority class",
    "micro_f1": "micro-F1",
    "exact_match": "exact match",
    "majority_micro_f1": "majority's micro-F1",
    "ece": "calibration error",
    "ece_uncalibrated": "uncalibrated",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "rmse": "RMSE",
    "mean_rmse": "RMSE of the mean",
}


def print_metrics(tasks, metrics, rows="test", verbose=False):
    """Print {task: {metric: value}}, a line a task; with `verbose` also a line a class.

    Tasks with the same metrics share a table. rows: which rows these are, in a word. A metric with
    an interval is printed as "0.897 (0.871 to 0.920)".
    """
    tables = {}  # names of metrics -> the tasks that have them
    for task in tasks:
        if task.name in metrics:
            names = names_of_numbers(metrics[task.name])
            tables.setdefault(names, []).append(task)
    for names, members in tables.items():
        table = [[rows, *(HEADINGS.get(name, name) for name in names)]]
        for task in members:
            result = metrics[task.name]
            intervals = result.get("intervals", {})
            line = [task.name]
            for name in names:
                line.append(score_cell(result[name], intervals.get(name)))
            table.append(line)
        print_folded(table)
        if verbose:
            for task in members:
                print_classes(task, metrics[task.name].get("per_class", {}))
    if any(map(has_interval, metrics.values())):
        print("in brackets: 95 % intervals over rows")


def score_cell(value, interval):
    if interval is None:
        return f"{value:.3f}"
    low, high = interval
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def has_interval(result):
    intervals = result.get("intervals", {})
    return any(intervals.values())


def print_folded(table):
    """Print rows of cells as `print_table` does, after an empty line.

    Columns that do not fit the terminal follow in another table, with the same first column.
    """
    first, *others = zip(*table, strict=True)
    parts = [[first]]
    for column in others:
        wider = [*parts[-1], column]
        fits = width_of(zip(*wider, strict=True)) - 2 <= terminal_width()
        if fits or len(parts[-1]) == 1:
            parts[-1] = wider
        else:
            parts.append([first, column])
    for part in parts:
        print()
        print_table(list(zip(*part, strict=True)))


def names_of_numbers(result):
    """The metrics that are one number, in their order."""
    names = []
    for name, value in result.items():
        if isinstance(value, (int, float)):
            names.append(name)
    return tuple(names)


def print_classes(task, per_class):
    if not per_class:
        return
    table = [[task.name, "precision", "recall", "F1", "rows"]]
    for label, scores in per_class.items():
        name = name_class(label, task.describe_label(label))
        line = [name]
        for key in ("precision", "recall", "f1"):
            line.append(f"{scores[key]:.3f}")
        table.append([*line, scores["rows"]])
    print()
    print_table(table)


def print_examples(tasks, rows, predictions, what):
    """Print rows with each task's label beside its prediction; an x marks a wrong one.

    It shows as many tasks as fit the terminal, four at most. what: which rows these are, in a word.
    """
    table = [[] for _ in range(len(rows) + 1)]  # its first line is the header
    room = terminal_width()
    shown = 0
    for task in tasks[:4]:
        lines = [[shorten(task.name, 40), "", "predicted"]]
        for row, prediction in zip(rows, predictions, strict=True):
            lines.append(example_cells(task, row.labels.get(task.name), prediction[task.name]))
        width = width_of(lines)
        if shown > 0 and room - width < SHORTEST_TEXT:
            break
        room -= width
        shown += 1
        for line, cells in zip(table, lines, strict=True):
            line += cells
    room = max(room, SHORTEST_TEXT)
    table[0].insert(0, f"{len(rows)} {what} rows")
    for row, cells in zip(rows, table[1:], strict=True):
        cells.insert(0, shorten(row.text, room))
    print()
    print_table(table, left=len(table[0]), widest=room)
    if shown < len(tasks):
        print(f"(the first {shown} of {len(tasks)} tasks)")


SHORTEST_TEXT = 24  # of the rows that are shown as examples


def width_of(lines):
    """The width of a table's columns, with the gaps between them and the column before."""
    width = 0
    for column in zip(*lines, strict=True):
        width += max(map(len, column)) + 2
    return width


def example_cells(task, label, prediction):
    """The cells for one task: its label, the mark of a wrong prediction, and the prediction."""
    predicted = shorten(task.describe(prediction, names_only=True), 40)
    if label is None:
        return ["-", "", predicted]
    wrong = "x" if task.is_wrong(label, prediction) else ""
    return [shorten(task.describe_label(label), 40), wrong, predicted]


def print_bars(tasks, text, prediction):
    """Print the predictions for one text, with a bar for each probability."""
    print(shorten(text, terminal_width()))
    block = "#"
    if "utf" in (sys.stdout.encoding or "").lower():
        block = "\N{FULL BLOCK}"
    table = []
    for task in tasks:
        first_cell = f"  {task.name}"
        for name, p in task.bars(prediction[task.name]):
            bar = ""
            if p is not None:
                bar = f"{p:.2f} {block * round(20 * p)}"
            table.append([first_cell, name, bar])
            first_cell = ""
    print_table(table, left=3)
