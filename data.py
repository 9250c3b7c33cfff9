"""What users bring: files become rows, rows become tasks and splits, and what looks like a mistake is said.

A row is {"text": ..., "text_pair": ... (optional), TASK: LABEL, ...}; a task is a key of the rows. It knows formats,
cells and labels. It never knows a tensor or a model.
"""

import csv
import itertools
import json
import math
import random
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np


class InputError(ValueError):
    """A mistake in what the user gave us. The scripts print it as one line and exit with status 2."""


@contextmanager
def input_errors(what):
    """Turn what libraries raise for a file that is missing or wrong into an InputError of one line."""
    try:
        yield
    except Exception as error:  # each library has its own; within such a block they all mean the same
        raise InputError(f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from None


def printable(text):
    """`text` on one line, without the characters that could steer a terminal: controls, bidirectional marks."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and rows


@dataclass
class Task:
    """One thing to predict: a class out of `labels`, or a number where `labels` is None."""

    name: str
    labels: list | None  # in the order of the logits
    counts: list | None = None  # training rows of each label
    names: dict = field(default_factory=dict)  # str(label) -> a name for people
    mean: float = 0.0  # of the training targets; regression learns (target - mean) / std
    std: float = 1.0
    temperature: float = 1.0  # that divides the logits before the softmax; fitted by `calibrate`

    def check(self):
        """Raise ValueError, KeyError or TypeError for what cannot be a task; a file may say anything."""
        texts = [self.name, *(self.names[str(label)] for label in self.labels or [])]
        valid = all(isinstance(text, str) for text in texts) and math.isfinite(self.mean) and 0 < self.std < math.inf
        valid &= 0 < self.temperature < math.inf
        if self.labels is not None:
            valid &= {type(label) for label in self.labels} in ({str}, {int})
            valid &= len(set(self.labels)) == len(self.labels)
            valid &= [type(count) for count in self.counts] == [int] * len(self.labels)
        if not valid:
            raise ValueError(f"the task {self.name!r:.40} is not valid")


class Row(NamedTuple):
    where: str  # "FILE, line N", for messages
    text: str
    text_pair: str | None
    labels: dict  # task name -> str or int (a class), float (a target); absent where not labelled


def read_lines(path):
    """Yield each line of a UTF-8 file, with its ending and without a byte-order mark; "-" is standard input."""
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        offset = 0
        for line in file:
            try:
                yield line.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: not UTF-8 at byte {offset + error.start}; convert the file") from None
            offset += len(line)


def parse_json(text, where):
    def finite(number):
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is no finite number")
        return float(number)

    def unique(pairs):
        if len(row := dict(pairs)) < len(pairs):
            raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} occurs twice")
        return row

    with input_errors(f"{where}: invalid JSON"):
        return json.loads(text, parse_float=finite, parse_constant=finite, object_pairs_hook=unique)


def read_rows(path, label_names=None):
    """Yield (where, split, row) for each row of a .json, .jsonl, .csv, .tsv or .txt file; "-" is texts on stdin.

    `split` is None, but for a .json object of splits, whose "label_names" are added to `label_names`. All but .json
    are read as a stream. Raises InputError naming file and row, OSError if the file cannot be read.
    """
    kind = "txt" if path == "-" else Path(path).suffix.lower().lstrip(".")
    where = None
    if kind == "json":
        content = parse_json("".join(read_lines(path)), path)
        splits = content if isinstance(content, dict) else {None: content}
        names = splits.pop("label_names", {})
        if not isinstance(names, dict) or not all(isinstance(value, dict) for value in names.values()):
            raise InputError(f'{path}: label_names must be like {{"category": {{"0": "acting", "1": "story"}}}}')
        if label_names is not None:
            label_names.update(names)
        for split, rows in splits.items():
            if split not in (None, "train", "validation", "test") or not isinstance(rows, list):
                raise InputError(f"{path}: must be a list of rows, or an object of lists: train, validation, test")
            for count, row in enumerate(rows, 1):
                where = f"{path}, {split + ' ' if split else ''}row {count}"
                yield where, split, row
    elif kind in ("jsonl", "txt"):
        for count, line in enumerate(read_lines(path), 1):
            where = f"{path}, line {count}"
            if kind == "txt":
                yield where, None, {"text": line.rstrip("\r\n")}
            elif line.strip():
                yield where, None, parse_json(line, where)
    elif kind in ("csv", "tsv"):
        csv.field_size_limit(2**31 - 1)  # the csv module's own limit is 128 KiB a cell
        reader = csv.reader(read_lines(path), delimiter="," if kind == "csv" else "\t", strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise InputError(f"{path}: two columns have the same name")
            for cells in filter(None, reader):  # an empty line is no row
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
                yield where, None, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    else:
        raise InputError(f"{path}: unknown kind of file; known are .json, .jsonl, .csv, .tsv and, to predict, .txt")
    if where is None:
        raise InputError(f"{path}: no rows")


def parse_row(where, row, text_column="text"):
    """The Row of a row as read. Raises InputError for a text that is missing, empty or no Unicode text."""
    if not isinstance(row, dict):
        raise InputError(f'{where}: a row must be an object such as {{"text": "great movie"}}')
    text, pair = row.get(text_column), row.get("text_pair") or None
    if text is None:
        raise InputError(f"{where}: no {text_column!r} among the keys {', '.join(map(repr, row))}; --text-column names the text")
    for value in (text, pair or text):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: the text must be a string that is not empty")
    try:
        "".join((text, pair or "", *row)).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: a text or a key has a lone surrogate, which is no character") from None
    texts = (text_column, "text", "text_pair")
    return Row(where, text, pair, {k: v for k, v in row.items() if k not in texts and v not in (None, "")})


def type_cells(rows):
    """Turn the labels of CSV rows, which come as strings, into integers or numbers where a whole column is such."""
    for name in dict.fromkeys(name for row in rows for name in row.labels):
        labelled = [row for row in rows if name in row.labels]
        cells = [row.labels[name] for row in labelled]
        integers = [re.fullmatch(r"0|-?[1-9][0-9]{0,99}", cell) for cell in cells]  # 007 stays a string
        numbers = [re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", cell, re.I) for cell in cells]
        decimals = [match[0] for match in numbers if match and not match[0].lstrip("+-").isdigit()]
        if decimals and not all(numbers):
            row = labelled[numbers.index(None)]
            raise InputError(f"{row.where}: {name!r} is {row.labels[name]!r} here and {decimals[0]} elsewhere")
        cast = int if all(integers) else float if decimals else str
        for row in labelled:
            row.labels[name] = cast(row.labels[name])


def make_task(name, splits, names):
    """The task that the labels under `name` describe. Raises InputError where they describe none."""
    rows = [row for split in splits.values() for row in split if name in row.labels]
    for row in rows:
        label, first = row.labels[name], rows[0].labels[name]
        if type(label) not in (str, int, float) or not (isinstance(label, str) or abs(label) < 2**63):
            raise InputError(f"{row.where}: the label {label!r} of {name!r} is no string, integer or finite number")
        if isinstance(label, str) != isinstance(first, str):
            raise InputError(f"{row.where}: {name!r} is {label!r} here and {first!r} before: strings, or numbers")
    counts = Counter(row.labels[name] for row in splits["train"] if name in row.labels)
    if len(counts) < 2:
        raise InputError(f"task {name!r} has {len(counts)} different labels in the training rows; it takes two or more")
    if any(isinstance(row.labels[name], float) for row in rows):
        targets = list(counts.elements())
        task = Task(name, None, mean=float(np.mean(targets)), std=float(np.std(targets)))
        with input_errors(f"the numbers of {name!r} span too much or too little"):
            task.check()
        return task
    for row in rows:
        if row.labels[name] not in counts:
            raise InputError(f"{row.where}: the label {row.labels[name]!r} of {name!r} is in no training row")
    labels = sorted(counts)
    names = {str(label): str(names.get(str(label), label)) for label in labels}
    return Task(name, labels, [counts[label] for label in labels], names)


def hold_out(rows, tasks, seed, fraction=0.1):
    """Split `rows` in two, the second a stratified `fraction`; every class keeps a row in the first.

    Rows are sorted by their labels, equal ones shuffled, and picked at equal distances, so that each combination of
    labels, however rare, and each range of a regression target gives its share.
    """

    def by_labels(i):
        labels = [rows[i].labels.get(task.name) for task in tasks]
        return [(label is not None, label or 0) for label in labels]

    left = Counter((task.name, row.labels.get(task.name)) for row in rows for task in tasks)
    held, due = set(), 0.5
    for i in sorted(random.Random(seed).sample(range(len(rows)), len(rows)), key=by_labels):
        due += fraction
        keys = [(task.name, rows[i].labels.get(task.name)) for task in tasks if task.labels]
        if due >= 1 and all(left[key] > 1 for key in keys):
            held.add(i)
            left.subtract(keys)
            due -= 1
    if not held:
        names = ", ".join(repr(task.name) for task in tasks)
        raise InputError(f"no row can be held out for validation without losing a label of {names}; --val gives rows")
    return [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


def read_data(train_files, val_files=(), test_files=(), names=None, all_tasks=True, text_column="text", seed=0):
    """Read and merge the files of the three splits, and find the tasks.

    -> [Task], {"train": [Row], "validation": [Row], "test": [Row]}; each row is labelled for at least one task.
    `names` picks and orders the tasks (default: every key but the texts); `all_tasks=False` keeps the first alone.
    Splits inside a .json of `train_files` count as such; for tasks that no validation row is labelled for, a tenth of
    the training rows is held out. Raises InputError, OSError.
    """
    splits, label_names, cells = {"train": [], "validation": [], "test": []}, {}, []
    for default, files in zip(splits, (train_files, val_files, test_files), strict=True):
        for path in files:
            rows = {split: [] for split in splits}
            for where, split, row in read_rows(path, label_names):
                rows[split or default].append(parse_row(where, row, text_column))
            if not rows[default]:
                raise InputError(f"{path}: no rows for {default}")
            for split in splits if default == "train" else [default]:
                splits[split] += rows[split]
                cells += rows[split] if str(path).lower().endswith((".csv", ".tsv")) else []
    type_cells(cells)
    found = dict.fromkeys(name for rows in splits.values() for row in rows for name in row.labels)
    names = list(dict.fromkeys(names or found))[: None if all_tasks else 1]
    for name in names:
        if name not in found or not name:
            raise InputError(f"no task {name!r}; the rows have {', '.join(map(repr, found))}; --tasks picks among them")
    if not names:
        raise InputError(f'{train_files[0]}: no row has a label; a row is {{"text": ..., TASK: LABEL, ...}}')
    splits = {split: [row for row in part if row.labels.keys() & names] for split, part in splits.items()}
    tasks = [make_task(name, splits, label_names.get(name, {})) for name in names]
    for task in tasks:
        if not any(task.name in row.labels for row in splits["validation"]):
            kept, held = hold_out([row for row in splits["train"] if task.name in row.labels], tasks, seed)
            splits["train"] = [row for row in splits["train"] if task.name not in row.labels] + kept
            splits["validation"] += held
    return [make_task(name, splits, label_names.get(name, {})) for name in names], splits  # without the held-out rows


def data_warnings(tasks, splits):
    """Yield in words what in the rows is probably a mistake."""
    for task in tasks:
        spellings = {}
        for label in task.labels or []:
            spellings.setdefault(" ".join(str(label).casefold().split()), []).append(label)
        for labels in spellings.values():
            if len(labels) > 1:
                yield f"{task.name!r} has separate labels that differ only in case or blanks: {str(labels)[1:-1]}"
        found = {}
        for row in (row for rows in splits.values() for row in rows if task.name in row.labels):
            found.setdefault((row.text, row.text_pair), set()).add(row.labels[task.name])
        if count := sum(len(labels) > 1 for labels in found.values()):
            yield f"{count} texts have more than one label of {task.name!r}"
    texts = {split: {(row.text, row.text_pair) for row in rows} for split, rows in splits.items()}
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if count := sum((row.text, row.text_pair) in texts[other] for row in splits[one]):
            yield f"{count} {one} rows are also {other} rows"


def associations(tasks, rows):
    """Yield (Cramer's V, task, task) for each two tasks with classes, over the rows that are labelled for both.

    1 where one label gives the other away, 0 where they are independent (Cramer 1946, section 21.9); by chance well
    above 0 where the rows are few beside the pairs of classes.
    """
    from scipy.stats.contingency import association, crosstab

    for one, other in itertools.combinations([task.name for task in tasks if task.labels], 2):
        pairs = [(row.labels[one], row.labels[other]) for row in rows if one in row.labels and other in row.labels]
        columns = list(zip(*pairs, strict=True))
        if pairs and all(len(set(labels)) > 1 for labels in columns):
            yield float(association(crosstab(*columns).count, method="cramer")), one, other
