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
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from .errors import InputError, listed
from .files import PLAIN, NoRow, RawLabel, RawRow, clean, ending_of, read_rows

MIN_TO_SPLIT = 100  # labelled rows of a column: a tenth of fewer tells nothing of a model
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {  # what people call them
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class Row(NamedTuple):
    where: str  # "FILE, line N", for messages
    text: str
    text_pair: str | None
    labels: dict  # column -> int, str, float, or a tuple of int or str; no key: not labelled
    soft: dict = {}  # noqa: RUF012  column -> {label: probability}; its label is the likeliest


@dataclass
class Column:
    """A key of the rows that can be learned, as the training rows describe it."""

    name: str
    kind: str  # "classification", "multi_label", "regression", or a name that the user gave
    label_type: type  # of each label: int or str; float for regression
    labels: list = field(default_factory=list)  # sorted; [] for regression
    # The training rows that have each label; 0 for one that is never the likeliest in soft labels
    counts: list = field(default_factory=list)
    label_names: dict = field(default_factory=dict)  # str(label) -> a name for people
    mean: float = 0.0  # of the training rows' numbers, for regression
    std: float = 1.0
    decimal: str = "."  # the decimal mark of numbers in tables


class TooFew(InputError):
    """A column has too few labels to be learned."""

    def __init__(self, name, message, reason):
        super().__init__(message)
        self.name = name  # of the column
        self.reason = reason  # for the list of columns that are left out


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
# An object of probabilities that is written into a cell, as {"good": 0.7} or {'good': 0.7}
SOFT_TEXT = re.compile(r"""\{\s*(["'])[^{}]*\1\s*:\s*[0-9.][^{}]*\}""")


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
        if name not in (format.text_column, name_of_pair(format)):
            label = parse_label(raw, name, value, format)
            if label is not None:
                labels[name] = label
    return Row(raw.where, text, text_pair, labels)


def name_of_pair(format):
    return format.pair_column or "text_pair"


def parse_texts(raw, format):
    values = raw.values
    if format.text_column not in values:
        keys = f"no {format.text_column!r} among the keys {listed(values)}"
        raise InputError(f"{raw.where}: {keys}; --text-column names it")
    if format.pair_column and format.pair_column not in values:
        keys = f"no {format.pair_column!r} among the keys {listed(values)}"
        raise InputError(f"{raw.where}: {keys}; --pair-column names it")
    text = parse_text(raw, values[format.text_column], format)
    if not text:
        raise NoRow(raw.where, "the text must be a string that is not empty")
    if not raw.is_text and text.strip() in format.missing:
        reason = f"the text is {text.strip()!r}, which means none; --missing alone makes it one"
        raise NoRow(raw.where, reason)
    text_pair = None
    if format.pair_column != "":
        text_pair = parse_text(raw, values.get(name_of_pair(format)), format)
    if text_pair and not raw.is_text:
        word = clean(text_pair)
        if not word or word in format.missing:  # only invisible characters, or a word for nothing
            text_pair = None
    return text, text_pair


def parse_text(raw, text, format):
    """A text of a row, or None for one that is empty or blank."""
    if text is None:
        return None
    if not isinstance(text, str):
        hint = "write it in quotes"
        raise InputError(f"{raw.where}: the text must be a string, and is {text!r:.40}; {hint}")
    if not text.strip():
        return None
    return text


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
    if isinstance(value, dict):
        return parse_soft_label(value)
    if isinstance(value, list):
        return [clean_part(part) for part in value]
    if not isinstance(value, str):
        return None if is_missing(value, format.missing) else value
    separator = format.multi_label.get(name)
    if value == separator:
        return []
    value = clean(value)
    label = value
    if raw.cells is not None:
        label = RawLabel(value)
    if not value or is_missing(label, format.missing):
        return None
    if separator is not None:
        return split_labels(raw, name, value, separator)
    return label


class SoftLabel(dict):
    """{label: probability}, without probabilities of 0. The type of labels depends on the column.

    Like the cells of a table, the keys of JSON are characters, so the labels are RawLabels.
    """

    __slots__ = ()


def parse_soft_label(value):
    """The SoftLabel of an object of probabilities. Any other object is returned as it is."""
    if why_not_soft(value):
        return value
    soft = SoftLabel()
    for label, p in value.items():
        if p > 0:
            soft[RawLabel(clean(label))] = p
    return soft


def why_not_soft(value):
    """Why an object does not give labels their probabilities, in words; or None."""
    if not value:
        return "it is empty; null means no label"
    seen = set()
    for label, p in value.items():
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            return f"{label!a:.40} has {p!r:.20}, which is no probability from 0 to 1"
        cleaned = clean(label)
        if not cleaned or cleaned in seen or not is_unicode(cleaned):
            return f"{label!a:.40} is blank, is there twice, or has a lone surrogate"
        seen.add(cleaned)
    return None


def is_unicode(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_part(part):
    """A part of a list of labels, cleaned; a blank one stays, as it is a mistake."""
    if isinstance(part, str):
        return clean(part) or part
    return part


def is_missing(label, words):
    """Whether a label is None or one of the words for it; -1 and -1.0 are both the word "-1"."""
    if label in words:
        return True
    if isinstance(label, (str, int, float)) and words != PLAIN.missing:
        return str(as_class(label)) in words
    return label is None


def split_labels(raw, name, value, separator):
    if SOFT_TEXT.fullmatch(value):
        refuse_soft_text(raw.where, name, value)
    if BRACKETS.fullmatch(value):
        hint = f"join labels by {separator!r}, without brackets"
        raise InputError(f"{raw.where}: {name!r} is {value!r:.40}; {hint}")
    labels = []
    for part in value.split(separator):
        part = part.strip()
        if part:
            labels.append(RawLabel(part))
    return labels


def rows_of_texts(texts, flags, needs_pairs=False, mask=None):
    """A list of Rows, without labels, of what a caller in Python gives. Raises InputError.

    texts: a list of texts, of pairs (text, text_pair), or of dicts; one dict; or a DataFrame.
    flags: of train.py, which name the columns. mask: what stands in place of an empty text.
    """
    if hasattr(texts, "to_dict") and hasattr(texts, "columns"):  # a DataFrame
        texts = texts.to_dict("records")
    if isinstance(texts, dict):
        texts = [texts]
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        raise InputError(f"texts must be a list of texts, not {type(texts).__name__}")
    rows = []
    for number, given in enumerate(texts, 1):
        where = f"text {number}"
        text, text_pair = text_and_pair(where, given, flags)
        if needs_pairs and not text_pair:
            raise InputError(f"{where}: the model learned from pairs; give (text, text_pair)")
        if mask is not None and isinstance(text, str) and not text.strip():
            text = mask
        values = {"text": text, "text_pair": text_pair}
        rows.append(parse_row(RawRow(where, None, values, None, is_text=True)))
    return rows


def text_and_pair(where, given, flags):
    """The text and the second text, or None, of what a caller gave for one row."""
    if isinstance(given, dict):
        column = flags.get("text_column") or "text"
        if column not in given:
            raise InputError(f"{where}: no {column!r} among the keys {listed(given)}")
        pair_column = flags.get("pair_column")
        if pair_column is None:
            pair_column = "text_pair"
        return given[column], given.get(pair_column)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return given[0], given[1]
    return given, None


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
    for name in (format.text_column, name_of_pair(format)):
        if isinstance(rows[0].get(name), tuple):
            raise InputError(f"{path}: two columns have the name {name!r}")
    if format.pair_column and format.pair_column not in columns:
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


def all_have_pairs(rows):
    """True if nearly all rows have a second text, False if none has one, None if some have."""
    count = sum(row.text_pair is not None for row in rows)
    if count == 0:
        return False
    if count >= 0.95 * len(rows):  # a few cells may be empty
        return True
    return None


def row_hash(row):
    """Eight bytes that tell the texts of a row from those of any other."""
    texts = f"{row.text}\0{row.text_pair or ''}"
    return sha256(texts.encode()).digest()[:8]


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


# A number with a sign of a percentage or a currency, and marks that group its digits in threes
SIGNED = re.compile(
    r"(?P<minus>[+-]?)\s*(?P<before>[$€£¥₹]?)\s*(?P<digits>\d[\d.,' \xa0\u202f]*?)\s*"
    r"(?P<after>[%$€£¥₹]?)"
)
GROUPED = {  # by decimal mark
    ".": re.compile(r"[1-9]\d{0,2}((,\d{3})+|('\d{3})+)(\.\d+)?"),
    ",": re.compile(r"[1-9]\d{0,2}((\.\d{3})+|([ \xa0\u202f]\d{3})+|('\d{3})+)(,\d+)?"),
}
DECIMAL_COMMA = re.compile(r"(0|[1-9]\d*)(,\d+)?")


def parse_number(text, decimal="."):
    """The number that a cell holds as people write it, such as "3,5", "$1,000" or "12 %"; or None.

    decimal: the decimal mark, a point or a comma.
    """
    is_grouped = GROUPED[decimal].fullmatch(text.lstrip("+-"))
    if NUMBER.fullmatch(text) and not is_grouped:
        return float(text)
    match = SIGNED.fullmatch(text)
    if match is None:
        return None
    digits = match["digits"]
    if GROUPED[decimal].fullmatch(digits):
        marks = rf"[^\d{decimal}]"
        digits = re.sub(marks, "", digits)
    if decimal == "," and DECIMAL_COMMA.fullmatch(digits):
        digits = digits.replace(",", ".")
    if not NUMBER.fullmatch(digits):
        return None
    return float(match["minus"] + digits)


def is_written_number(label):
    return any(parse_number(label, decimal) is not None for decimal in GROUPED)


def find_decimal(labels):
    """The decimal mark by which all cells of a column are numbers as people write them, or None.

    None also where they are numbers as programs write them.
    """
    if not all(isinstance(label, RawLabel) for label in labels):
        return None
    signs = set()
    for label in labels:
        match = SIGNED.fullmatch(label)
        if match is None:
            return None
        signs.add(match.group("before", "after"))
    if len(signs) > 1 or all(map(NUMBER.fullmatch, labels)):
        return None
    if all(parse_number(label) is not None for label in labels):
        return "."
    if all(parse_number(label, ",") is not None for label in labels):
        has_points = any(re.fullmatch(r"\D*\d+\.\d*[^\d,]*", label) for label in labels)
        has_groups = any(re.search(r"\.\d{3}\b", label) for label in labels)
        if has_groups or not has_points:
            return ","
    return None


def are_codes(labels):
    """Whether numbers of a table are names of something: they have leading zeros, as 008.45, or
    one number is written in several ways, as versions 1.1 and 1.10 are.
    """
    spellings = {}  # number -> how it is written
    for label in labels:
        if not isinstance(label, RawLabel) or not NUMBER.fullmatch(label):
            return False
        if re.match(r"[+-]?0\d", label):
            return True
        if not WHOLE.fullmatch(label):
            spellings.setdefault(float(label), set()).add(label)
    are_few = len(set(labels)) <= max(10, len(labels)) / 2
    return are_few and any(len(ways) > 1 for ways in spellings.values())


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


def as_type(label, label_type, decimal="."):
    """A label as int, str or float. Where int is asked for, a word stays one, and matches no class.

    decimal: the decimal mark of numbers in tables. Raises ValueError or OverflowError for what is
    no such label.
    """
    if isinstance(label, (list, tuple, dict)):
        raise ValueError(f"{label} is not one label")
    if label_type is int:
        return as_class(label)
    if label_type is str:
        return as_word(label)
    number = as_number(label)
    if isinstance(label, RawLabel):
        number = parse_number(label, decimal)
    if number is None or not math.isfinite(number):
        raise ValueError(f"{label} is not a finite number")
    return float(number)


def as_word(label):
    """A label as a class among words. In JSON 1.0 is 1."""
    if isinstance(label, RawLabel):
        return str(label)
    return str(as_class(label))


def convert_labels(rows, columns):
    """The rows with the labels of these columns alone, each of the type of its column.

    A label of a multi_label column is a sorted tuple. In place of a soft label stands the likeliest
    label, and Row.soft holds the probabilities. Raises InputError for what is no such label.
    """
    converted = []
    for row in rows:
        labels = {}
        soft = {}
        for column in columns:
            name = column.name
            if name not in row.labels:
                continue
            if isinstance(row.labels[name], SoftLabel) and column.kind != "regression":
                soft[name] = convert_soft_label(row, column)
                labels[name] = likeliest(soft[name], column)
            else:
                labels[name] = convert_label(row, column)
        converted.append(row._replace(labels=labels, soft=soft))
    return converted


def convert_soft_label(row, column):
    """{label: probability}, in the order of labels; of classes they sum to 1."""
    given = row.labels[column.name]
    found = {}
    for label, p in given.items():
        found[as_type(label, column.label_type)] = p
    if len(found) < len(given):
        what = f"two labels of {column.name!r} mean the same number in {given!s:.60}"
        raise InputError(f"{row.where}: {what}")
    total = 1.0
    if column.kind != "multi_label":
        total = math.fsum(found.values())
        if not sums_to_one(given):
            what = f"the probabilities of {column.name!r} sum to {total:.4g}, and not to 1"
            hint = f"--multi-label {shlex.quote(column.name)} takes any"
            raise InputError(f"{row.where}: {what}; {hint}")
    ordered = {}
    for label in sorted(found, key=numbers_first):
        ordered[label] = found[label] / total
    return ordered


def sums_to_one(soft):
    return abs(math.fsum(soft.values()) - 1) <= 1e-3


def likeliest(soft, column):
    """The label that stands for a soft one where a label is counted: of equal ones the first."""
    if column.kind == "multi_label":
        return tuple(label for label, p in soft.items() if p >= 0.5)
    return max(soft, key=soft.get)


def possible_labels(row, name):
    """All labels of a row's column, also those that only have some probability."""
    return {*each(row.labels[name]), *row.soft.get(name, ())}


def convert_label(row, column):
    label = row.labels[column.name]
    try:
        if column.kind != "multi_label":
            if is_single(label):
                label = label[0]
            return as_type(label, column.label_type, column.decimal)
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
    if type(label) is dict and column.kind != "regression" and why_not_soft(label):
        what += f"; and as probabilities: {why_not_soft(label)}"
    raise InputError(f"{row.where}: {what}")


def is_single(label):
    """Whether it is a list of one label, as some tools of annotation write a class."""
    return is_list_of_labels(label) and len(label) == 1


def numbers_first(label):
    """A sort key for numbers and words together, which Python does not compare."""
    return isinstance(label, str), label


# --------------------------------------------------------------------------------------------------
# Which columns are learned

ID_NAME = re.compile(
    r"unnamed: [\d.]+|(.*[^a-z])?(id|ids|uid|uuid|guid|index|idx|date|datetime|timestamp)", re.I
)
CAMEL_ID = re.compile(r".*[a-z](Id|ID|Date|Index)")
# Columns about the part that a row has in an experiment
PART_NAME = re.compile(
    r"(.*[^a-z])?(folds?|splits?|partition|subset|is[_ ]?(train|test|val|valid|validation|dev)"
    r"|(train|test|val|valid|validation|dev)[_ ]?set|weights?)",
    re.I,
)
DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{4}/\d\d?/\d\d?( .*)?|\d\d?[./-]\d\d?[./-]\d{2,4}( .*)?"
)
NOT_A_LABEL = {dict: "an object", tuple: "two columns of this name"}


def choose_names(path, rows, names, kinds, missing, notes):
    """The names of the columns to learn: `names`, else those of all that look like labels.

    A column of `kinds` is always taken for labels. missing: (column, word for no label) -> its
    cells. Adds to `notes.left_out`; raises InputError.
    """
    found = {}  # column -> its labels
    for row in rows:
        for name, label in row.labels.items():
            found.setdefault(name, []).append(label)
    if names is None:
        for name, _ in missing:
            found.setdefault(name, [])
        names = find_names(path, found, kinds, missing, notes)
    for name in names:
        if name not in found:
            hint = f"the rows have {listed(found)}; --tasks picks among them"
            raise InputError(f"no task {name!r}; {hint}")
    for name, kind in kinds.items():
        if name not in names:
            hint = ""
            for column in found:
                if kind == "multi_label" and column.startswith(f"{name}="):
                    hint = f"; write '{column}=|' for the column {column!r}"
            raise InputError(f"{flag_of(kind)}: there is no task {name!r}{hint}")
    return list(dict.fromkeys(names))


def find_names(path, found, kinds, missing, notes):
    names = []
    for name, labels in found.items():
        reason = why_no_task(name, labels)
        if reason == ONE_VALUE:
            for (column, word), count in missing.items():
                if column == name:
                    reason += f", and {count} times {word!r}; --missing alone makes that a label"
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
    if kind == "classification":
        return "--classification"
    return "--kinds"


ONE_VALUE = "one value only"


def why_no_task(name, labels):
    """Why a column with these labels is not learned unless the user names it, in words; or None."""
    if not name:
        return "no name"
    if ID_NAME.fullmatch(name) or CAMEL_ID.fullmatch(name) or PART_NAME.fullmatch(name):
        return "its name"
    if not labels:
        return ONE_VALUE
    types = set(map(type, labels))
    if types == {list}:
        return why_no_lists(labels)
    if types == {SoftLabel, dict}:
        num_soft = sum(type(label) is SoftLabel for label in labels)
        return None if 2 * num_soft > len(labels) else "objects of other things than probabilities"
    if types & {list, *NOT_A_LABEL}:
        if len(types) == 1:
            return NOT_A_LABEL[types.pop()]
        return None  # a mixture is a mistake, which find_column reports
    if types <= {str, RawLabel}:
        return why_no_words(labels) or why_no_classes(labels)
    return why_no_classes(with_parts(labels))


def with_parts(labels):
    """Labels, with the labels that have a probability in place of each soft one."""
    parts = []
    for label in labels:
        if isinstance(label, SoftLabel):
            parts += label
        else:
            parts.append(label)
    return parts


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
    if all(map(SOFT_TEXT.fullmatch, labels)):
        return "probabilities in text; only objects of JSON are soft labels"
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
        return ONE_VALUE
    if different <= max(10, len(labels)) / 2:
        return None
    numbers = [as_number(label) for label in labels]
    if None not in numbers and any(number % 1 for number in numbers) and not are_codes(labels):
        return None  # numbers to predict may all be different
    if find_decimal(labels):
        return None
    return "different in most rows"


# --------------------------------------------------------------------------------------------------
# The kind of a column


def find_column(name, rows, kind, notes):
    """The Column of the rows' labels, not yet described; `kind` is what the user asked for.

    Without it, lists are multi_label, numbers of which one has a fraction are regression, and all
    else are classes; of objects alone see `are_soft_classes`. Raises InputError where the labels do
    not fit to each other or to `kind`.
    """
    rows = [row for row in rows if name in row.labels]
    labels = [row.labels[name] for row in rows]
    if kind != "multi_label" and labels and all(map(is_single, labels)):
        labels = [label[0] for label in labels]
        rows = [row._replace(labels={name: row.labels[name][0]}) for row in rows]
        if kind is None:
            hint = f"--multi-label {shlex.quote(name)} reads them as lists"
            notes.messages.append(f"{name!r} has lists of one label each, read as classes; {hint}")
    if kind is None and not are_soft_classes(labels):
        kind = "multi_label"
        found = f"{name!r} has objects whose probabilities do not sum to 1, read as multi-label"
        hint = "if they are classes, make those of each row sum to 1"
        notes.messages.append(f"{found}; {hint}")
    if kind == "multi_label" or any(type(label) is list for label in labels):
        check_lists(name, rows)
        check_is_no_list(name, kind)
        parts = itertools.chain.from_iterable(labels)
        return Column(name, "multi_label", class_type(parts))
    check_single_labels(name, rows)
    hard_rows = [row for row in rows if not isinstance(row.labels[name], SoftLabel)]
    hard = [row.labels[name] for row in hard_rows]
    decimal = find_decimal(hard)
    if kind is None:
        kind = find_kind(name, hard_rows, decimal)
        notes.messages += sentences_on_numbers(name, hard, decimal)
        check_soft_numbers(name, rows, hard)
    if kind == "regression":
        check_numbers(name, rows, decimal or ".")
        return Column(name, kind, float, decimal=decimal or ".")
    return Column(name, kind, class_type(with_parts(labels)))


def are_soft_classes(labels):
    """False where there are objects alone, and less than half of them sum to 1.

    The others are then mistakes, which `convert_soft_label` reports.
    """
    if not labels or not all(isinstance(label, SoftLabel) for label in labels):
        return True
    return 2 * sum(map(sums_to_one, labels)) >= len(labels)


def check_soft_numbers(name, rows, hard):
    """Raise InputError for an object with words, where the labels without one are whole numbers."""
    numbers = [label for label in hard if isinstance(label, (int, float))]
    if not numbers or class_type(hard) is not int:
        return
    for row in rows:
        soft = row.labels[name]
        if isinstance(soft, SoftLabel) and class_type(soft) is not int:
            found = f"{name!r} is {soft!r:.60} here, but {numbers[0]} in another row"
            raise InputError(f"{row.where}: {found}; the keys must be such numbers")


def sentences_on_numbers(name, labels, decimal):
    """A list with a sentence on numbers that are written for people, or are codes; or []."""
    column = shlex.quote(name)
    if decimal is not None:
        example = next(label for label in labels if not NUMBER.fullmatch(label))
        number = parse_number(example, decimal)
        hint = f"--classification {column} makes them classes"
        return [f"the cells of {name!r} are read as numbers, {example!r} as {number:g}; {hint}"]
    if are_codes(labels) and any(as_number(label) % 1 for label in labels):
        hint = f"--regression {column} makes them numbers"
        return [f"the cells of {name!r} are read as words, not numbers, as {labels[0]!r}; {hint}"]
    written = [label for label in labels if type(label) is str and is_written_number(label)]
    if len(written) == len(labels) > 0:  # of JSON, which can say what is a number
        hint = "numbers of JSON have a point, and no quotes"
        return [f"{name!r} has texts such as {written[0]!r}, so that each is a class; {hint}"]
    return []


def check_lists(name, rows):
    good = []
    wrong = []
    for row in rows:
        if type(row.labels[name]) is dict:
            refuse_object(row, name)
        if isinstance(row.labels[name], SoftLabel) or is_list_of_labels(row.labels[name]):
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
        label = row.labels[name]
        if type(label) is dict:
            refuse_object(row, name)
        if isinstance(label, str) and SOFT_TEXT.fullmatch(label):
            refuse_soft_text(row.where, name, label)
        reason = NOT_A_LABEL.get(type(label))
        if reason:
            hint = "--tasks names other columns"
            raise InputError(f"{row.where}: {name!r} cannot be learned: {reason}; {hint}")


def refuse_object(row, name):
    reason = why_not_soft(row.labels[name])
    hint = "--tasks names other columns"
    raise InputError(f"{row.where}: {name!r} cannot be learned: an object: {reason}; {hint}")


def refuse_soft_text(where, name, text):
    what = f"{name!r} is the text {text!r:.40}; only objects of .json and .jsonl are soft labels"
    raise InputError(f"{where}: {what}")


def find_kind(name, rows, decimal):
    """Tell numbers with fractions, which are regression, from classes."""
    labels = [row.labels[name] for row in rows]
    if decimal is not None:
        return "regression"
    if are_codes(labels):
        return "classification"
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


def check_numbers(name, rows, decimal):
    for row in rows:
        label = row.labels[name]
        number = as_number(label)
        if isinstance(label, RawLabel):
            number = parse_number(label, decimal)
        if number is None:
            refuse_word(name, row, "which is not a number")


def refuse_word(name, row, why):
    label = row.labels[name]
    hint = ""
    if isinstance(label, str):
        hint = f"; --missing {shlex.quote(label):.40} makes it no label"
    raise InputError(f"{row.where}: {name!r} is {label!r:.40} here, {why}{hint}")


def describe(column, rows, label_names):
    """Set what training rows tell about a column. Raises InputError where it cannot be learned."""
    counts = Counter()
    different = set()
    for row in rows:
        if column.name in row.labels:
            counts.update(each(row.labels[column.name]))
            different |= possible_labels(row, column.name)
    if len(different) < 2:
        found = f"task {column.name!r} has {len(different)} different labels in the training rows"
        reason = f"{len(different)} different labels in the training rows"
        raise TooFew(column.name, f"{found}; it takes two or more", reason)
    if column.kind == "regression":
        describe_numbers(column, list(counts.elements()))
        return
    column.labels = sorted(different)
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
    default: str  # the split of rows for which nothing else is said
    rows: list = field(default_factory=list)  # Row
    row_splits: list = field(default_factory=list)  # for each of them a split, or None
    columns: dict = field(default_factory=dict)  # its keys are the columns, in order
    missing: Counter = field(default_factory=Counter)  # (column, word for no label) -> its cells
    cleaned: dict = field(default_factory=dict)  # column -> labels that were not as they looked
    empty: int = 0  # number of rows without any cell
    left_out: Counter = field(default_factory=Counter)  # why a row is none -> number of rows
    splits: dict = field(default_factory=dict)  # split -> list of Row, once the splits are known


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
    keeps the first alone, and `kinds` {column: kind} says of which kind some are. Splits that a
    file of `train_files` names, in JSON or in a column, count as such. For columns without a
    labelled validation row, a tenth of the training rows is held out, if there are MIN_TO_SPLIT or
    more. What the user should know is added to `notes`. Raises InputError and OSError.
    """
    notes = notes or Notes()
    label_names = {}
    files = []
    for split, paths in zip(SPLITS, (train_files, val_files, test_files), strict=True):
        for path in paths:
            file = read_file(path, split, format, label_names)
            note_rows_left_out(file, notes)
            files.append(file)
    kinds = merge_kinds(kinds, format)
    splits = split_files(files, [*(names or ()), *kinds], format, notes)
    check_pairs_of_files(files, splits["train"], format)

    missing = sum((file.missing for file in files), Counter())
    chosen = choose_names(train_files[0], splits["train"], names, kinds, missing, notes)
    check_files_are_labelled(files, chosen)
    named = set(names or ()) | set(kinds)
    while True:
        learned = chosen
        if not all_tasks:
            learned = chosen[:1]
        try:
            columns, final, sentences = make_columns(learned, splits, kinds, label_names, seed)
            break
        except TooFew as error:
            if error.name in named or len(chosen) == 1:
                raise
            notes.left_out[error.name] = error.reason
            chosen.remove(error.name)
    note_labels(files, columns, missing, label_names, notes)
    notes.messages += sentences
    return columns, final


def make_columns(names, splits, kinds, label_names, seed):
    """-> the columns, the splits with their labels alone, and sentences for the user.

    Raises TooFew for a column that cannot be learned.
    """
    notes = Notes()
    columns = [find_column(name, splits["train"], kinds.get(name), notes) for name in names]
    converted = {}
    for split, rows in splits.items():
        converted[split] = [row for row in convert_labels(rows, columns) if row.labels]
    unvalidated = []
    for column in columns:
        describe(column, converted["train"], label_names.get(column.name, {}))
        note_unlabelled_splits(column, converted, notes)
        if not labelled(converted["validation"], column):
            unvalidated.append(column)
    for column in unvalidated:
        move_held_out(converted, column, columns, seed, notes)
    for column in columns:  # again, without the rows that were held out
        describe(column, converted["train"], label_names.get(column.name, {}))
    return columns, converted, notes.messages


def read_file(path, default, format, label_names):
    """The FileRows of a file for the split `default`; one for training may have all three."""
    file = FileRows(path, default)
    raw_rows = read_rows(path, format, label_names)
    first = list(itertools.islice(raw_rows, 100))
    check_has_labels(path, first)
    check_text_column(path, first, format)
    for raw in itertools.chain(first, raw_rows):
        if raw.cells is not None and not any(map(str.strip, raw.cells)):
            file.empty += 1
            continue
        try:
            row = parse_row(raw, format)
        except NoRow as error:
            if format.strict:
                raise
            file.left_out[error.reason] += 1
            continue
        file.rows.append(row)
        file.row_splits.append(raw.split)
        file.columns.update(dict.fromkeys(raw.values))
        look_at_labels(file, raw, row, format)
    return file


def check_has_labels(path, raw_rows):
    """Raise InputError for a file of texts alone."""
    if ending_of(path) != ".txt":
        return
    hint = "name a .csv, .tsv, .json or .jsonl"
    if str(raw_rows[0].values).find("__label__") >= 0:
        hint = (
            'write each line of fastText as one of a .jsonl: {"text": "...", "label": ["...", ...]}'
        )
    raise InputError(f"{path}: a .txt has no labels; {hint}")


def look_at_labels(file, raw, row, format):
    """Note which labels of a row are missing by a word, or were not as they looked."""
    for name, value in raw.values.items():
        if not isinstance(value, (str, int, float)) or value == "":
            continue
        if name in (format.text_column, name_of_pair(format)):
            continue
        is_cell = raw.cells is not None
        if name not in row.labels:
            word = str(value).strip()
            if word or not is_cell:  # to have empty cells is no surprise
                file.missing[name, word or str(value)] += 1
        elif isinstance(value, str) and not value.isascii() and value.strip() != clean(value):
            file.cleaned.setdefault(name, []).append(value)


def note_rows_left_out(file, notes):
    if file.empty:
        notes.messages.append(f"{file.path}: {file.empty} empty rows were left out")
    for reason, count in file.left_out.items():
        what = f"{file.path}: {count} rows were left out: {reason}"
        notes.messages.append(f"{what}; --strict stops at the first")


# Splits


def split_files(files, asked, format, notes):
    """{split: [Row]} of all files. `asked`: columns that the user wants to learn."""
    train_files = [file for file in files if file.default == "train"]
    name = format.split_column or None
    has_splits = any(any(file.row_splits) for file in train_files)
    if format.split_column is None and not has_splits:
        rows = itertools.chain.from_iterable(file.rows for file in train_files)
        name = find_split_column(rows, asked)
    splits = {split: [] for split in SPLITS}
    for file in files:
        file.splits = split_file(file, name)
        for split, rows in file.splits.items():
            splits[split] += rows
    if not splits["train"]:
        raise InputError(f"{files[0].path}: no rows for train")
    if name is not None:
        if not any(name in file.columns for file in files):
            columns = listed(files[0].columns)
            raise InputError(f"{files[0].path}: no {name!r} among the columns {columns}")
        counts = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
        hint = 'rows; --split-column "" takes no notice of it'
        notes.messages.append(f"{name!r} says of which split a row is: {counts} {hint}")
    return splits


def find_split_column(rows, asked):
    """The first column whose values are names of splits, two different ones at least; or None.

    asked: columns that are labels, whatever they hold.
    """
    found = {}  # column -> the splits that it names; None among them for any other value
    for row in rows:
        for name, label in row.labels.items():
            if None not in found.setdefault(name, set()):
                found[name].add(split_called(label))
    for name, splits in found.items():
        if name not in asked and None not in splits and len(splits) > 1:
            return name
    return None


def split_called(label):
    """The split that people call so, or None."""
    if not isinstance(label, str):
        return None
    return SPLIT_NAMES.get(clean(label).casefold())


def split_file(file, split_column):
    """{split: [Row]} of one file, where the split column is no label any more."""
    splits = {}
    for row, split in zip(file.rows, file.row_splits, strict=True):
        label = None
        if split_column is not None:
            label = row.labels.pop(split_column, None)
        if split is None and label is not None:
            split = split_called(label)
            if split is None:
                known = listed(SPLIT_NAMES)
                what = f"{split_column!r} is {label!r:.40} here, which is no split"
                raise InputError(f"{row.where}: {what}; splits are called {known}")
        splits.setdefault(split or file.default, []).append(row)
    if file.default == "train":
        return splits
    if file.default in splits:
        return {file.default: splits[file.default]}
    if any(file.row_splits) or not file.rows:
        raise InputError(f"{file.path}: no rows for {file.default}")
    return {file.default: file.rows}  # it names no such split, so that all of them are meant


def check_pairs_of_files(files, train_rows, format):
    """Raise InputError for a file without second texts, where the training rows have them."""
    if not all_have_pairs(train_rows):
        return
    for file in files:
        if file.default != "train" and all_have_pairs(file.rows) is False:
            check_pair_column(file.path, file.columns, format)


def check_pair_column(path, columns, format):
    """Raise InputError unless the second texts of pairs are among these columns."""
    name = name_of_pair(format)
    if name not in columns:
        what = f"no {name!r} among the columns {listed(columns)}, and the model learns from pairs"
        raise InputError(f'{path}: {what}; --pair-column names it ("": predict without it)')


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


def note_labels(files, columns, missing, label_names, notes):
    """Note what is odd about the labels of the columns that are learned."""
    names = [column.name for column in columns]
    for (name, word), count in sorted(missing.items()):
        if name in names:
            message = f"{count} cells of {name!r} hold {word!r}, which counts as no label"
            if word in PLAIN.missing:
                message += "; --missing without a word makes such words labels"
            notes.messages.append(message)
    for file in files:
        for name, labels in file.cleaned.items():
            if name in names:
                what = f"{len(labels)} labels of {name!r} are read without invisible characters"
                example = f"{labels[0]!a:.60} as {clean(labels[0])!r:.40}"
                notes.messages.append(f"{file.path}: {what}, or with whole accents: {example}")
    spellings = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    for same in spellings.values():
        if len(same) > 1:
            what = f"{listed(same)} differ only in case, and are a task each"
            notes.messages.append(f"{what}; if they are one, give them one name")
    every_column = set()
    for file in files:
        every_column.update(file.columns)
    note_label_names(columns, every_column, label_names, notes)


def note_label_names(columns, every_column, label_names, notes):
    """Note names of labels that nothing has."""
    for name in label_names:
        if name not in every_column:
            what = f"label_names has {name!r}, and no row does"
            notes.messages.append(f"{what}; the tasks are {listed(c.name for c in columns)}")
    for column in columns:
        unused = label_names.get(column.name, {}).keys() - column.label_names.keys()
        if unused and column.labels:
            what = f"label_names of {column.name!r} has {listed(sorted(unused), 3)}"
            notes.messages.append(f"{what}, which no training row has")


def note_unlabelled_splits(column, splits, notes):
    """Note where a column has no validation or test labels, or such as are not in training rows."""
    for split in ("validation", "test"):
        rows = splits[split]
        if rows and not labelled(rows, column):
            message = f"no {split} row has a label of {column.name!r}"
            if split == "validation" and len(labelled(splits["train"], column)) >= MIN_TO_SPLIT:
                message += "; a tenth of its training rows is held out"
            notes.messages.append(message)
        notes.messages += unseen_labels(column, split, rows)


def labelled(rows, column):
    return [row for row in rows if column.name in row.labels]


def move_held_out(splits, column, columns, seed, notes):
    """Move a tenth of the training rows of a column to the validation rows, unless it is tiny.

    Rows that were held out for another column and have a label of this one count as well. Raises
    TooFew where no row can go without losing a class.
    """
    rows = labelled(splits["train"], column)
    counts = count_classes(rows, columns)
    if not any(can_go(class_labels(row, columns), counts) for row in rows):
        what = f"no row of {column.name!r} can be held out for validation without losing a class"
        reason = "no row can be held out without losing a class"
        raise TooFew(column.name, f"{what}; --val gives rows, --tasks leaves it out", reason)
    num_held = len(labelled(splits["validation"], column))
    num_rows = num_held + len(rows)
    if num_rows < MIN_TO_SPLIT:
        what = f"{column.name!r} has {num_rows} training rows, of which a tenth would tell nothing"
        held = "none is held out for validation"
        if num_held > 0:
            held = f"it is validated by the {num_held} that other tasks hold out, and no more"
        notes.messages.append(f"{what}: {held}; --val gives such rows")
    elif num_held < 0.05 * num_rows:  # else those of the other columns are enough
        kept, held = hold_out(rows, columns, seed)
        others = [row for row in splits["train"] if column.name not in row.labels]
        splits["train"] = others + kept
        splits["validation"] += held


def can_go(labels, counts):
    """Whether a row of these classes can go, where `counts` rows have each, without losing one."""
    return all(counts[label] > 1 for label in labels)


def count_classes(rows, columns):
    counts = Counter()
    for row in rows:
        counts.update(class_labels(row, columns))
    return counts


def hold_out(rows, columns, seed, fraction=0.1):
    """Split rows in two, the second a stratified `fraction` of them.

    Rows are sorted by their labels, equal ones shuffled, and taken at equal distances, so that each
    combination of labels and each range of a number gives its share. The last training row of a
    class is never taken.
    """
    left = count_classes(rows, columns)
    shuffled = random.Random(seed).sample(range(len(rows)), len(rows))
    held = set()
    due = 0.5
    for i in sorted(shuffled, key=lambda i: by_labels(rows[i], columns)):
        due += fraction
        labels = class_labels(rows[i], columns)
        if due >= 1 and can_go(labels, left):
            held.add(i)
            left.subtract(labels)
            due -= 1
    kept_rows = [row for i, row in enumerate(rows) if i not in held]
    held_rows = [rows[i] for i in sorted(held)]
    return kept_rows, held_rows


def class_labels(row, columns):
    """Each class of a row as (column, label); to have no label (None) is one more class.

    So is each label to which a soft one gives some probability.
    """
    found = []
    for column in columns:
        if column.kind != "regression":
            for label in each(row.labels.get(column.name)):
                found.append((column.name, label))
            for label in row.soft.get(column.name, ()):
                found.append((column.name, "possible", label))
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
