"""From rows to columns of labels and to splits, and sentences about likely mistakes in them.

A column is a key of the rows that can be learned. This file decides which keys these are, of which
kind each is, and what its labels are. It never knows a tensor, or how a kind is learned.
"""

import itertools
import math
import random
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .errors import InputError, listed
from .files import PLAIN, RawLabel, read_rows

SPLITS = ("train", "validation", "test")


class Row(NamedTuple):
    where: str  # "FILE, line N", for messages
    text: str
    text_pair: str | None
    labels: dict  # column -> int, str, float, or a tuple of int or str; no key: not labelled


@dataclass
class Column:
    """A key of the rows that can be learned, as the training rows describe it."""

    name: str
    kind: str  # "classification", "multi_label", "regression", or a name that the user gave
    label_type: type  # of each label: int or str; float for regression
    labels: list = field(default_factory=list)  # sorted; [] for regression
    counts: list = field(default_factory=list)  # the training rows that have each label
    label_names: dict = field(default_factory=dict)  # str(label) -> a name for people
    mean: float = 0.0  # of the training rows' numbers, for regression
    std: float = 1.0


@dataclass
class Notes:
    """What the user should know about the files that were read."""

    left_out: dict = field(default_factory=dict)  # column -> why it is not learned
    messages: list = field(default_factory=list)  # sentences


def each(label):
    """The labels of a row as a tuple, whether it has one or any number of them."""
    if isinstance(label, tuple):
        return label
    return (label,)


# --------------------------------------------------------------------------------------------------
# A row

BRACKETS = re.compile(r"\[.*\]")  # a list that is written into a cell


def parse_row(raw, format=PLAIN):
    """The Row of a RawRow. Raises InputError for a text that is missing, empty or not Unicode."""
    if isinstance(raw.values, InputError):
        raise raw.values
    if not isinstance(raw.values, dict):
        raise InputError(f'{raw.where}: a row must be an object such as {{"text": "great movie"}}')
    text, text_pair = parse_texts(raw, format)
    check_unicode(raw)
    labels = {}
    for name, value in raw.values.items():
        if name not in (format.text_column, format.pair_column or "text_pair"):
            label = parse_label(raw, name, value, format)
            if label is not None:
                labels[name] = label
    return Row(raw.where, text, text_pair, labels)


def parse_texts(raw, format):
    values = raw.values
    if format.text_column not in values:
        keys = f"no {format.text_column!r} among the keys {listed(values)}"
        raise InputError(f"{raw.where}: {keys}; --text-column names it")
    if format.pair_column is not None and format.pair_column not in values:
        keys = f"no {format.pair_column!r} among the keys {listed(values)}"
        raise InputError(f"{raw.where}: {keys}; --pair-column names it")
    text = values[format.text_column]
    text_pair = values.get(format.pair_column or "text_pair") or None
    for value in (text, text_pair or text):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{raw.where}: the text must be a string that is not empty")
    return text, text_pair


def check_unicode(raw):
    """JSON can escape one half of a surrogate pair, which no tokenizer and no file takes."""
    try:
        for name, value in raw.values.items():
            name.encode()
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, str):
                    part.encode()
    except UnicodeEncodeError:
        what = "a text, key or label has a lone surrogate, which is not a character"
        raise InputError(f"{raw.where}: {what}") from None


def parse_label(raw, name, value, format):
    """The label that a row gives to a column, its type not yet decided; None where it has none."""
    is_cell = raw.cells is not None and not isinstance(value, tuple)
    if is_cell:
        value = value.strip()
        if value in format.missing:
            return None
    if value is None or value == "":
        return None
    if name in format.multi_label and isinstance(value, str):
        return split_labels(raw, name, value, format.multi_label[name])
    if is_cell:
        return RawLabel(value)
    return value


def split_labels(raw, name, value, separator):
    if BRACKETS.fullmatch(value):
        hint = f"join labels by {separator!r}, without brackets"
        raise InputError(f"{raw.where}: {name!r} is {value!r:.40}; {hint}")
    labels = []
    for part in value.split(separator):
        part = part.strip()
        if part:
            labels.append(RawLabel(part))
    return labels


def check_text_column(path, raw_rows, format):
    """Raise InputError where none of a file's first rows has the columns of the texts.

    The message names the column that seems to hold the text, if it is only one.
    """
    rows = [raw.values for raw in raw_rows if isinstance(raw.values, dict)]
    if not rows:
        return
    columns = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    for name in (format.text_column, format.pair_column):
        if isinstance(rows[0].get(name), tuple):
            raise InputError(f"{path}: two columns have the name {name!r}")
    if format.pair_column is not None and format.pair_column not in columns:
        missing = f"no {format.pair_column!r} among the columns {listed(columns)}"
        raise InputError(f"{path}: {missing}; --pair-column names it")
    if format.text_column not in columns:
        hint = "--text-column names the text"
        sentences = [name for name in columns if holds_sentences(rows, name)]
        if len(sentences) == 1:
            flag = f"--text-column {shlex.quote(sentences[0])}"
            hint = f"{sentences[0]!r} holds sentences: {flag}"
        missing = f"no {format.text_column!r} among the columns {listed(columns)}"
        raise InputError(f"{path}: {missing}; {hint}")


def holds_sentences(rows, name):
    numbers = []  # of words
    for row in rows:
        if isinstance(row.get(name), str):
            numbers.append(len(row[name].split()))
    return bool(numbers) and sum(numbers) >= 3 * len(numbers)


# --------------------------------------------------------------------------------------------------
# A label

WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,17})(\.0*)?")  # not 007, nor what takes more than 64 bits
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.I)


def as_number(label):
    """The number that a label is, or None."""
    if isinstance(label, RawLabel):
        return float(label) if NUMBER.fullmatch(label) else None
    if isinstance(label, bool) or not isinstance(label, (int, float)):
        return None
    return label


def as_class(label):
    """A label as a class: a whole number is an int however it is written, all else is a str."""
    if isinstance(label, RawLabel):
        return int(label.partition(".")[0]) if WHOLE.fullmatch(label) else str(label)
    number = as_number(label)
    if number is None or number % 1 or abs(number) >= 2**63:
        return str(label)
    return int(number)


def class_type(labels):
    """int if all labels are whole numbers, else str."""
    if all(isinstance(as_class(label), int) for label in labels):
        return int
    return str


def is_list_of_labels(label):
    """Whether it is a list of words and whole numbers, perhaps an empty one."""
    if type(label) is not list:
        return False
    for part in label:
        if isinstance(part, str):
            if not part.strip():
                return False
        elif type(part) not in (int, float) or part % 1:
            return False
    return True


def as_type(label, label_type):
    """A label as int, str or float. Where int is asked for, a word stays one, and matches no class.

    Raises ValueError or OverflowError for what is no such label.
    """
    if isinstance(label, (list, tuple, dict)):
        raise ValueError(f"{label} is not one label")
    if label_type is int:
        return as_class(label)
    if label_type is str:
        return str(label)
    number = as_number(label)
    if number is None or not math.isfinite(number):
        raise ValueError(f"{label} is not a finite number")
    return float(number)


def convert_labels(rows, columns):
    """The rows with the labels of these columns alone, each of the type of its column.

    A label of a multi_label column is a sorted tuple. Raises InputError for what is no such label.
    """
    converted = []
    for row in rows:
        labels = {}
        for column in columns:
            if column.name in row.labels:
                labels[column.name] = convert_label(row, column)
        converted.append(row._replace(labels=labels))
    return converted


def convert_label(row, column):
    label = row.labels[column.name]
    try:
        if column.kind != "multi_label":
            return as_type(label, column.label_type)
        if is_list_of_labels(label):
            parts = {as_type(part, column.label_type) for part in label}
            return tuple(sorted(parts, key=numbers_first))
    except (ValueError, OverflowError):
        pass
    expected = "class"
    if column.kind == "multi_label":
        expected = "list of labels; --multi-label splits a text at a separator"
    elif column.kind == "regression":
        expected = "finite number"
    what = f"the label {label!s:.60} of {column.name!r} is not a {expected}"
    raise InputError(f"{row.where}: {what}")


def numbers_first(label):
    """A sort key for numbers and words together, which Python does not compare."""
    return isinstance(label, str), label


# --------------------------------------------------------------------------------------------------
# Which columns are learned

ID_NAME = re.compile(
    r"unnamed: [\d.]+|(.*[^a-z])?(id|ids|uid|uuid|guid|index|idx|date|datetime|timestamp)", re.I
)
CAMEL_ID = re.compile(r".*[a-z](Id|ID|Date|Index)")
DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{4}/\d\d?/\d\d?( .*)?|\d\d?[./-]\d\d?[./-]\d{2,4}( .*)?"
)
NOT_A_LABEL = {dict: "an object", tuple: "two columns of this name"}


def choose_names(path, rows, names, kinds, notes):
    """The names of the columns to learn: `names`, else those of all that look like labels.

    A column of `kinds` is always taken for labels. Adds to `notes.left_out`; raises InputError.
    """
    found = {}  # column -> its labels
    for row in rows:
        for name, label in row.labels.items():
            found.setdefault(name, []).append(label)
    if names is None:
        names = find_names(path, found, kinds, notes)
    for name in names:
        if name not in found:
            hint = f"the rows have {listed(found)}; --tasks picks among them"
            raise InputError(f"no task {name!r}; {hint}")
    for name, kind in kinds.items():
        if name not in names:
            raise InputError(f"{flag_of(kind)}: there is no task {name!r}")
    return list(dict.fromkeys(names))


def find_names(path, found, kinds, notes):
    names = []
    for name, labels in found.items():
        reason = why_no_task(name, labels)
        if reason and name not in kinds:
            notes.left_out[name] = reason
        else:
            names.append(name)
    if not found:
        raise InputError(f'{path}: no row has a label; a row is {{"text": ..., TASK: LABEL, ...}}')
    if not names:
        reasons = [f"{name!r} ({reason})" for name, reason in notes.left_out.items()]
        left_out = f"left out: {', '.join(reasons)}; --tasks names the tasks"
        raise InputError(f"{path}: no column looks like a task; {left_out}")
    return names


def flag_of(kind):
    """The flag by which a user asks for a kind."""
    if kind == "regression":
        return "--regression"
    if kind == "multi_label":
        return "--multi-label"
    return "--kinds"


def why_no_task(name, labels):
    """Why a column with these labels is not learned unless the user names it, in words; or None."""
    if not name:
        return "no name"
    if ID_NAME.fullmatch(name) or CAMEL_ID.fullmatch(name):
        return "its name"
    types = set(map(type, labels))
    if types == {list}:
        return why_no_lists(labels)
    if types & {list, *NOT_A_LABEL}:
        if len(types) == 1:
            return NOT_A_LABEL[types.pop()]
        return None  # a mixture is a mistake, which find_column reports
    if types <= {str, RawLabel}:
        return why_no_words(labels) or why_no_classes(labels)
    return why_no_classes(labels)


def why_no_lists(labels):
    lists = [label for label in labels if is_list_of_labels(label)]
    parts = list(itertools.chain.from_iterable(lists))
    if not parts or any(map(has_fraction, labels)):
        return "lists that hold no labels"
    if len(lists) < len(labels):
        return None  # a mixture is a mistake, which find_column reports
    return why_no_classes(parts)


def has_fraction(label):
    return any(isinstance(part, float) and part % 1 for part in label)


def why_no_words(labels):
    if all(map(BRACKETS.fullmatch, labels)):
        return "lists in brackets"
    dates = sum(map(bool, map(DATE.fullmatch, labels)))
    if dates > 0.9 * len(labels):
        return "dates"
    words = sum(len(label.split(" ")) for label in labels)
    if words > 6 * len(labels):
        return "free text"
    return None


def why_no_classes(labels):
    different = len(set(labels))
    if different < 2:
        return "one value only"
    if different <= max(10, len(labels)) / 2:
        return None
    numbers = [as_number(label) for label in labels]
    if None not in numbers and any(number % 1 for number in numbers):
        return None  # numbers to predict may all be different
    return "different in most rows"


# --------------------------------------------------------------------------------------------------
# The kind of a column


def find_column(name, rows, kind=None):
    """The Column of the rows' labels, not yet described; `kind` is what the user asked for.

    Without it, lists are multi_label, numbers of which one has a fraction are regression, and all
    else are classes. Raises InputError where the labels do not fit to each other or to `kind`.
    """
    rows = [row for row in rows if name in row.labels]
    labels = [row.labels[name] for row in rows]
    if kind == "multi_label" or any(type(label) is list for label in labels):
        check_lists(name, rows)
        check_is_no_list(name, kind)
        parts = itertools.chain.from_iterable(labels)
        return Column(name, "multi_label", class_type(parts))
    check_single_labels(name, rows)
    if kind is None:
        kind = find_kind(name, rows)
    elif kind == "regression":
        check_numbers(name, rows)
    if kind == "regression":
        return Column(name, kind, float)
    return Column(name, kind, class_type(labels))


def check_lists(name, rows):
    good = []
    wrong = []
    for row in rows:
        if is_list_of_labels(row.labels[name]):
            good.append(row)
        else:
            wrong.append(row)
    if not wrong:
        return
    label = wrong[0].labels[name]
    found = f"{wrong[0].where}: {name!r} is {label!r:.40} here"
    if good:
        found += f", but {good[0].labels[name]!r:.40} in {good[0].where}"
    rule = "multi-label rows have lists of words or whole numbers, [] for none"
    hint = "--tasks names other columns"
    if isinstance(label, str):
        hint = f"--multi-label {name} splits texts"
    raise InputError(f"{found}; {rule}; {hint}")


def check_is_no_list(name, kind):
    """Raise InputError where the user asked for another kind of a multi-label column."""
    if kind not in (None, "multi_label"):
        asked = f"{flag_of(kind)} {name}"
        if kind != "regression":
            asked += f"={kind}"
        raise InputError(f"{asked}: it is multi-label, and takes no other kind")


def check_single_labels(name, rows):
    for row in rows:
        reason = NOT_A_LABEL.get(type(row.labels[name]))
        if reason:
            hint = "--tasks names other columns"
            raise InputError(f"{row.where}: {name!r} cannot be learned: {reason}; {hint}")


def find_kind(name, rows):
    """Tell numbers with fractions, which are regression, from classes."""
    labels = [row.labels[name] for row in rows]
    if all(isinstance(label, bool) or label in ("True", "False") for label in labels):
        return "classification"
    words = []
    fractions = []
    typed = []  # numbers and booleans of JSON
    for row, label in zip(rows, labels, strict=True):
        number = as_number(label)
        if number is None:
            words.append(row)
        elif number % 1:
            fractions.append(row)
        if isinstance(label, (int, float)):
            typed.append(row)
    numbers = fractions or typed
    if words and numbers:
        refuse_word(name, words[0], f"but {numbers[0].labels[name]} in {numbers[0].where}")
    if fractions:
        return "regression"
    return "classification"


def check_numbers(name, rows):
    for row in rows:
        if as_number(row.labels[name]) is None:
            refuse_word(name, row, "which is not a number")


def refuse_word(name, row, why):
    label = row.labels[name]
    hint = ""
    if isinstance(label, RawLabel):
        hint = "; --missing names words for no label"
    raise InputError(f"{row.where}: {name!r} is {label!r:.40} here, {why}{hint}")


def describe(column, rows, label_names):
    """Set what training rows tell about a column. Raises InputError where it cannot be learned."""
    counts = Counter()
    for row in rows:
        if column.name in row.labels:
            counts.update(each(row.labels[column.name]))
    if len(counts) < 2:
        found = f"task {column.name!r} has {len(counts)} different labels in the training rows"
        raise InputError(f"{found}; it takes two or more")
    if column.kind == "regression":
        describe_numbers(column, list(counts.elements()))
        return
    column.labels = sorted(counts)
    column.counts = [counts[label] for label in column.labels]
    column.label_names = {}
    for label in column.labels:
        column.label_names[str(label)] = str(label_names.get(str(label), label))


def describe_numbers(column, numbers):
    with np.errstate(all="ignore"):  # what overflows is not finite
        column.mean = float(np.mean(numbers))
        column.std = float(np.std(numbers))
    if not math.isfinite(column.mean) or not 0 < column.std < math.inf:
        what = f"the numbers of {column.name!r} span too much or too little"
        raise InputError(f"{what}; scale them, or leave them out with --tasks")


# --------------------------------------------------------------------------------------------------
# Files and splits


@dataclass
class FileRows:
    """The rows of one file, and what was seen while they were read."""

    path: str
    splits: dict  # split -> list of Row
    columns: dict  # its keys are the columns, in order
    missing: Counter  # (column, word for no label) -> number of cells


def read_data(
    train_files,
    val_files=(),
    test_files=(),
    names=None,
    all_tasks=True,
    seed=0,
    format=PLAIN,
    kinds=None,
    notes=None,
):
    """Read and merge the files of the three splits, and find the columns to learn.

    -> list of Column, {"train": [Row], "validation": [Row], "test": [Row]}; each row is labelled
    for at least one column.

    `names` picks and orders the columns (default: all that look like labels), `all_tasks=False`
    keeps the first alone, and `kinds` {column: kind} says of which kind some are. Splits within a
    .json file of `train_files` count as such. For columns without a labelled validation row, a
    tenth of the training rows is held out. What the user should know is added to `notes`. Raises
    InputError and OSError.
    """
    notes = notes or Notes()
    label_names = {}
    files = []
    for split, paths in zip(SPLITS, (train_files, val_files, test_files), strict=True):
        for path in paths:
            files.append(read_file(path, split, format, label_names, notes))
    splits = merge_splits(files)

    kinds = merge_kinds(kinds, format)
    names = choose_names(train_files[0], splits["train"], names, kinds, notes)
    check_files_are_labelled(files, names)
    if not all_tasks:
        names = names[:1]
    columns = [find_column(name, splits["train"], kinds.get(name)) for name in names]
    note_missing_words(files, names, notes)

    for split, rows in splits.items():
        splits[split] = [row for row in convert_labels(rows, columns) if row.labels]
    for column in columns:
        describe(column, splits["train"], label_names.get(column.name, {}))
        note_unlabelled_splits(column, splits, notes)
    for column in columns:
        if not labelled(splits["validation"], column):
            move_held_out(splits, column, columns, seed)
    for column in columns:  # again, without the rows that were held out
        describe(column, splits["train"], label_names.get(column.name, {}))
    return columns, splits


def read_file(path, default, format, label_names, notes):
    """The FileRows of a file for the split `default`; one for training may have all three."""
    splits = {split: [] for split in SPLITS}
    file = FileRows(path, splits, {}, Counter())
    raw_rows = read_rows(path, format, label_names)
    first = list(itertools.islice(raw_rows, 100))
    check_text_column(path, first, format)
    empty = 0
    for raw in itertools.chain(first, raw_rows):
        if raw.cells is not None and not any(map(str.strip, raw.cells)):
            empty += 1
            continue
        splits[raw.split or default].append(parse_row(raw, format))
        file.columns.update(dict.fromkeys(raw.values))
        if raw.cells is not None:
            count_missing_words(file, raw, format)
    if not splits[default]:
        raise InputError(f"{path}: no rows for {default}")
    if empty:
        notes.messages.append(f"{path}: {empty} empty rows were left out")
    if default != "train":
        file.splits = {default: splits[default]}
    return file


def count_missing_words(file, raw, format):
    for name, cell in raw.values.items():
        if isinstance(cell, str):
            word = cell.strip()
            if word in format.missing:
                file.missing[name, word] += 1


def merge_splits(files):
    splits = {split: [] for split in SPLITS}
    for file in files:
        for split, rows in file.splits.items():
            splits[split] += rows
    return splits


def merge_kinds(kinds, format):
    """The kinds that the user asked for, with those of the columns of --multi-label."""
    kinds = dict(kinds or {})
    for name in format.multi_label:
        check_is_no_list(name, kinds.get(name))
        kinds[name] = "multi_label"
    return kinds


def check_files_are_labelled(files, names):
    """Raise InputError for a file whose validation or test rows have no label to compare with."""
    for file in files:
        for split in ("validation", "test"):
            rows = file.splits.get(split)
            if rows and not any(row.labels.keys() & set(names) for row in rows):
                found = f"no {split} row has a label of the tasks {listed(names)}"
                hint = f"its columns are {listed(file.columns)}; --tasks names the tasks"
                raise InputError(f"{file.path}: {found}; {hint}")


def note_missing_words(files, names, notes):
    missing = Counter()
    for file in files:
        missing += file.missing
    for (name, word), count in sorted(missing.items()):
        if name in names:
            what = f"{count} cells of {name!r} hold {word!r}, which counts as no label"
            notes.messages.append(f"{what}; --missing changes these words")


def note_unlabelled_splits(column, splits, notes):
    """Note where a column has no validation or test labels, or such as are not in training rows."""
    for split in ("validation", "test"):
        rows = splits[split]
        if rows and not labelled(rows, column):
            message = f"no {split} row has a label of {column.name!r}"
            if split == "validation":
                message += "; a tenth of its training rows is held out"
            notes.messages.append(message)
        notes.messages += unseen_labels(column, split, rows)


def labelled(rows, column):
    return [row for row in rows if column.name in row.labels]


def move_held_out(splits, column, columns, seed):
    """Move a tenth of the training rows of a column to the validation rows."""
    kept, held = hold_out(labelled(splits["train"], column), columns, seed, name=column.name)
    others = [row for row in splits["train"] if column.name not in row.labels]
    splits["train"] = others + kept
    splits["validation"] += held


def hold_out(rows, columns, seed, fraction=0.1, name=""):
    """Split the rows of the column `name` in two, the second a stratified `fraction` of them.

    Rows are sorted by their labels, equal ones shuffled, and taken at equal distances, so that each
    combination of labels and each range of a number gives its share. The last training row of a
    class is never taken. Raises InputError where no row can be taken.
    """
    left = Counter()
    for row in rows:
        left.update(class_labels(row, columns))
    shuffled = random.Random(seed).sample(range(len(rows)), len(rows))
    held = set()
    due = 0.5
    for i in sorted(shuffled, key=lambda i: by_labels(rows[i], columns)):
        due += fraction
        labels = class_labels(rows[i], columns)
        if due >= 1 and all(left[label] > 1 for label in labels):
            held.add(i)
            left.subtract(labels)
            due -= 1
    if not held:
        what = f"no row of {name!r} can be held out for validation without losing a class"
        raise InputError(f"{what}; --val gives rows, --tasks leaves it out")
    kept_rows = [row for i, row in enumerate(rows) if i not in held]
    held_rows = [rows[i] for i in sorted(held)]
    return kept_rows, held_rows


def class_labels(row, columns):
    """Each class of a row as (column, label); to have no label (None) is one more class."""
    found = []
    for column in columns:
        if column.kind != "regression":
            for label in each(row.labels.get(column.name)):
                found.append((column.name, label))
    return found


def by_labels(row, columns):
    """A sort key in which rows without a label come first."""
    key = []
    for column in columns:
        if column.name in row.labels:
            key.append((True, row.labels[column.name]))
        else:
            key.append((False, 0))
    return key


# --------------------------------------------------------------------------------------------------
# What is probably a mistake


def unseen_labels(column, what, rows):
    """A list with one sentence on labels that no training row has; [] if there are none."""
    if not column.labels:
        return []
    unseen = []
    for row in labelled(rows, column):
        for label in each(row.labels[column.name]):
            if label not in column.labels:
                unseen.append(label)
    if not unseen:
        return []
    names = listed(dict.fromkeys(unseen), 3)
    consequence = f"are in no training row and count as wrong: {names}"
    return [f"{len(unseen)} {what} labels of {column.name!r} {consequence}"]


def data_warnings(columns, splits):
    """Yield sentences on what in the rows is probably a mistake."""
    for column in columns:
        if column.labels:
            yield from warn_of_many_classes(column)
            yield from warn_of_digits(column)
            yield from warn_of_joined_labels(column)
            yield from warn_of_spellings(column)
        yield from warn_of_contradictions(column, splits)
    yield from warn_of_shared_rows(splits)


def warn_of_many_classes(column):
    number = len(column.labels)
    rows = sum(column.counts)
    if number > 100 or rows < 3 * number:
        hint = "--tasks leaves it out"
        if column.label_type is int and column.kind != "multi_label":
            hint = f"--regression {column.name} makes it a number, {hint}"
        found = f"{column.name!r} has {number} classes of {rows / number:.1f} rows on average"
        yield f"{found}; {hint}"


def warn_of_digits(column):
    if all(re.fullmatch(r"[+-]?\d+,\d+", str(label)) for label in column.labels):
        yield f"{column.name!r} has decimal commas, so that each number is a class; write points"
    if column.kind == "multi_label" and column.labels == [0, 1]:
        hint = "if a list has one of them for each label, name the labels"
        yield f"{column.name!r} has the labels 0 and 1 alone; {hint}"


def warn_of_joined_labels(column):
    if column.label_type is not str:
        return
    for separator in "|;,":
        joined = [label for label in column.labels if separator in label]
        parts = set()
        for label in joined:
            parts.update(part.strip() for part in label.split(separator))
        are_labels_too = bool(parts & set(column.labels))
        are_few = 2 * len(joined) > len(column.labels) > len(parts)
        if are_labels_too or are_few:
            found = f"{column.name!r} looks multi-label ({joined[0]!r})"
            flag = f"--multi-label {shlex.quote(f'{column.name}={separator}')}"
            yield f"{found}, but each combination is one label; {flag} splits them"


def warn_of_spellings(column):
    spellings = {}
    for label in column.labels:
        plain = " ".join(str(label).casefold().split())
        spellings.setdefault(plain, []).append(label)
    for same in spellings.values():
        if len(same) > 1:
            what = "separate labels that differ only in case or blanks"
            yield f"{column.name!r} has {what}: {listed(same)}"


def warn_of_contradictions(column, splits):
    found = {}  # texts -> their labels
    for rows in splits.values():
        for row in labelled(rows, column):
            labels = found.setdefault((row.text, row.text_pair), set())
            labels.add(row.labels[column.name])
    count = sum(len(labels) > 1 for labels in found.values())
    if count:
        what = "list of labels" if column.kind == "multi_label" else "label"
        yield f"{count} texts have more than one {what} of {column.name!r}"


def warn_of_shared_rows(splits):
    texts = {}
    for split, rows in splits.items():
        texts[split] = {(row.text, row.text_pair) for row in rows}
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        count = sum((row.text, row.text_pair) in texts[other] for row in splits[one])
        if count:
            yield f"{count} {one} rows are also {other} rows"


def associations(columns, rows):
    """Yield (Cramér's V, column, column) for each two columns with one class in a row.

    V is 1 where one label gives the other away, and 0 where they are independent (Cramér 1946,
    section 21.9). By chance it is well above 0 where the rows are few for the pairs of classes.
    """
    from scipy.stats.contingency import association, crosstab

    names = [c.name for c in columns if c.kind not in ("multi_label", "regression")]
    for one, other in itertools.combinations(names, 2):
        both = [row for row in rows if one in row.labels and other in row.labels]
        first = [row.labels[one] for row in both]
        second = [row.labels[other] for row in both]
        if len(set(first)) > 1 and len(set(second)) > 1:
            table = crosstab(first, second).count
            yield float(association(table, method="cramer")), one, other
