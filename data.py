"""What users bring: files become rows, rows become tasks and splits, and what looks like a mistake is said.

A row is {"text": ..., "text_pair": ... (optional), TASK: LABEL, ...}; a task is a key of the rows. This file knows
formats, cells and labels. It never knows a tensor or a model.
"""

import codecs
import csv
import io
import itertools
import json
import math
import random
import re
import shlex
from collections import Counter, deque
from contextlib import contextmanager, suppress
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


def listed(names, most=10):
    """Names for a message: quoted, and not too many."""
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass
class Task:
    """One thing to predict: a class out of `labels`, any number of these, or a number where `labels` is None."""

    name: str
    labels: list | None  # in the order of the logits
    counts: list | None = None  # training rows that have each label
    names: dict = field(default_factory=dict)  # str(label) -> a name for people
    mean: float = 0.0  # of the training targets; regression learns (target - mean) / std
    std: float = 1.0
    temperature: float = 1.0  # that divides the logits before the softmax; fitted by `calibrate`
    threshold: float | None = None  # a text has the labels whose probability reaches it; None: it has one, or a number

    @property
    def several(self):
        """Whether a text has any number of the labels."""
        return self.threshold is not None

    @property
    def kind(self):
        """The type of its labels: int or str for classes, a list of these for several a text, float for a number."""
        kind = type(self.labels[0]) if self.labels else float
        return list[kind] if self.several else kind

    def check(self):
        """Raise ValueError, KeyError or TypeError for what cannot be a task; a file may say anything."""
        texts = [self.name, *(self.names[str(label)] for label in self.labels or [])]
        valid = all(isinstance(text, str) for text in texts) and math.isfinite(self.mean) and 0 < self.std < math.inf
        valid &= 0 < self.temperature < math.inf
        valid &= not self.several or (type(self.threshold) is float and 0 < self.threshold < 1 and bool(self.labels))
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
    labels: dict  # task name -> str or int (a class), a tuple of these, float (a target); absent where not labelled


class Cell(str):
    """A label as a table holds it: characters, whose type its whole column decides."""

    __slots__ = ()


@dataclass(frozen=True)
class Format:
    """How files are to be read."""

    text_column: str = "text"
    pair_column: str | None = None  # None: "text_pair", where there is one
    encoding: str | None = None  # None: UTF-8, or what the file's first bytes say
    missing: tuple = ("nan", "NaN", "NA", "N/A", "n/a", "<NA>", "#N/A", "None", "null", "NULL")  # no label, in tables
    multi_label: dict = field(default_factory=dict)  # column -> the separator of its labels


PLAIN = Format()


def format_flags(flag):
    """The flags that fill a Format, for argparse."""
    flag("--text-column", metavar="NAME", help="the column of the text (default: text)")
    flag("--pair-column", metavar="NAME", help="the column of a second text (default: text_pair, if there is one)")
    flag("--text-encoding", metavar="NAME", help="such as cp1252 (default: UTF-8, or UTF-16 with a mark)")
    flag("--missing", nargs="*", metavar="WORD", help="words for no label in .csv and .tsv, beside empty cells")
    flag("--multi-label", nargs="+", metavar="NAME[=S]", help="columns of several labels, joined by S (default: |)")


def format_of(args, stored=None):
    """The Format that flags ask for; where they are silent, that of the flags that a run was trained with."""

    def pick(name, kind, default):
        given = getattr(args, name)
        given = (stored or {}).get(name) if given is None else given
        return given if isinstance(given, kind) else default

    missing, columns = tuple(map(str, pick("missing", list, PLAIN.missing))), {}
    for name, equals, separator in (str(word).partition("=") for word in pick("multi_label", list, [])):
        if equals and not separator.strip():
            raise InputError(f"--multi-label {name}=: the separator is missing")
        columns[name] = separator.strip() or "|"
    text, pair = pick("text_column", str, "text"), pick("pair_column", str, None)
    return Format(text, pair, args.text_encoding, missing, columns)


@dataclass
class Notes:
    """What a reader of files tells its user."""

    left_out: dict = field(default_factory=dict)  # column -> why it is no task
    said: list = field(default_factory=list)  # sentences


# ---------------------------------------------------------------------------------------------------------------------
# From files to rows

MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
         (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def read_lines(path, encoding=None):
    """Yield each line of a text file with its ending, "\\n", "\\r\\n" or "\\r"; "-" is standard input."""
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        start = file.peek(4)
        marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
        encoding = marked or encoding or "utf-8"
        try:
            name = codecs.lookup(encoding).name
            yield from io.TextIOWrapper(file, "utf-8-sig" if name == "utf-8" else encoding, newline="")
        except LookupError:
            raise InputError(f"--text-encoding {encoding}: there is no such encoding") from None
        except UnicodeError:
            place = f" at byte {undecodable_byte(path, name)}" if path != "-" else ""
            raise InputError(f"{path}: not {name.upper()}{place}; --text-encoding names its encoding") from None


def undecodable_byte(path, encoding):
    decoder, place = codecs.getincrementaldecoder(encoding)(), 0
    with open(path, "rb") as file:
        while chunk := file.read(2**16):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeError as error:
                return place - pending + getattr(error, "start", 0)
            place += len(chunk)
    return place


def parse_json(text, where):
    def finite(number):
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is no finite number")
        return float(number)

    def unique(pairs):
        if len(row := dict(pairs)) < len(pairs):
            raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} occurs twice")
        return row

    try:
        return json.loads(text, parse_float=finite, parse_constant=finite, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        hint = "; for a row a line, name the file .jsonl" if "Extra data" in str(error) else ""
        raise InputError(f"{where}: invalid JSON: {error}{hint}") from None


def read_table(path, encoding=None):
    """-> the header of a .csv or .tsv file, its separator, and an iterator of (line number, cells).

    The separator is the most frequent in the header: comma, semicolon, tab or bar.
    """
    csv.field_size_limit(2**31 - 1)  # the csv module's own limit is 128 KiB a cell
    tsv, lines = str(path).lower().endswith(".tsv"), read_lines(path, encoding)
    read = []
    while (first := next(lines, None)) is not None and (not first.strip() or re.fullmatch(r"sep=.\s*", first)):
        read.append("\n")  # an empty line, or Excel's word for the separator
    first = first or ""
    separators = "\t,;|" if tsv else ",;\t|"
    separator = max(separators, key=re.sub(r'"[^"]*"', "", first).count)
    lines = itertools.chain(read, [first], lines)
    records = read_tabs(lines) if tsv and separator == "\t" else read_csv(path, lines, separator)
    _, header = next(records, (0, []))
    if "\0" in first:
        raise InputError(f"{path}: it looks like UTF-16 without a mark; --text-encoding names its encoding")
    return header, separator, records


def read_csv(path, lines, separator):
    reader, number = csv.reader(lines, delimiter=separator, strict=True), 0
    try:
        for cells in filter(None, reader):  # an empty line is no row
            number = reader.line_num
            yield number, cells
    except csv.Error as error:
        hint = 'a cell that begins with a quote ends with one, and those within are doubled ("")'
        raise InputError(f"{path}, line {number + 1}: {error}; {hint}") from None


QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_tabs(lines):
    """Yield (line number, cells) of a .tsv file, in which a quote is a character like others.

    A cell that begins and ends with a quote, its inner ones doubled, is taken as csv writers mean it. It may hold tabs
    and line ends, but a line that has as many cells as the header is a row: no stray quote swallows the next rows.
    """
    ahead, number, width = deque(), 0, None

    def peek(i):
        while len(ahead) <= i and (line := next(lines, None)) is not None:
            ahead.append(line)
        return ahead[i] if i < len(ahead) else None

    def split(line):
        return line.rstrip("\r\n").split("\t")

    def is_row(cells):
        opened = cells[-1].startswith('"') and not QUOTED.fullmatch(cells[-1]) and peek(1) is not None
        return len(cells) == width and not (opened and (width == 1 or len(split(peek(1))) != width))

    while (line := peek(0)) is not None:
        cells, taken = split(line), 1
        width = width or len(cells)
        if '"' in line and not is_row(cells):
            joined = csv.reader((peek(i) for i in range(1000) if peek(i) is not None), delimiter="\t", strict=True)
            with suppress(csv.Error):
                record = next(joined)
                if len(record) == width:
                    cells, taken = record, joined.line_num
        elif '"' in line:
            cells = [cell[1:-1].replace('""', '"') if QUOTED.fullmatch(cell) else cell for cell in cells]
        for _ in range(taken):
            ahead.popleft()
        number += taken
        if cells != [""]:  # an empty line is no row
            yield number, cells


def read_rows(path, form=PLAIN, label_names=None):
    """Yield (where, split, row, cells) for each row of a .json, .jsonl, .csv, .tsv or .txt file; "-" is texts on stdin.

    `row` is a dict, or the InputError that says what is wrong with this row alone; `cells` is what a table's line
    holds, or a broken line of JSON. A column that occurs twice has a tuple of its cells. `split` is None, but for a
    .json object of splits, whose "label_names" are added to `label_names`. All but .json are read as a stream. Raises
    InputError where what follows cannot be read either, OSError if the file cannot be read.
    """
    kind, where = "txt" if path == "-" else Path(path).suffix.lower().lstrip("."), None
    if kind == "json":
        content = parse_json("".join(read_lines(path, form.encoding)), path)
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
                yield where, split, row, None
    elif kind in ("jsonl", "ndjson", "txt"):
        for count, line in enumerate(read_lines(path, form.encoding), 1):
            where = f"{path}, line {count}"
            if kind == "txt":
                yield where, None, {form.text_column: line.rstrip("\r\n")}, None
            elif line.strip():
                try:
                    yield where, None, parse_json(line, where), None
                except InputError as error:
                    yield where, None, error, [line.rstrip("\r\n")]
    elif kind in ("csv", "tsv"):
        header, _, records = read_table(path, form.encoding)
        columns = {}
        for i, name in enumerate(header):
            columns.setdefault(name.strip(), []).append(i)
        single = [(name, places[0]) for name, places in columns.items() if len(places) == 1]
        double = [(name, places) for name, places in columns.items() if len(places) > 1]
        for line, cells in records:
            where, row = f"{path}, line {line}", None
            if len(cells) == len(header):
                row = {name: cells[i] for name, i in single}
                for name, places in double:
                    row[name] = tuple(cells[i] for i in places)
            row = row or InputError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
            yield where, None, row, cells
    else:
        raise InputError(f"{path}: unknown kind of file; known are .json, .jsonl, .csv, .tsv and, to predict, .txt")
    if where is None:
        raise InputError(f"{path}: no rows")


# ---------------------------------------------------------------------------------------------------------------------
# From rows to tasks

BRACKETS = re.compile(r"\[.*\]")  # a list that is written into a cell


def parse_row(where, row, form=PLAIN, cells=None):
    """The Row of a row as read. Raises InputError for a text that is missing, empty or no Unicode text."""
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError(f'{where}: a row must be an object such as {{"text": "great movie"}}')
    text, pair = row.get(form.text_column), row.get(form.pair_column or "text_pair") or None
    for name in (form.text_column, form.pair_column or form.text_column):
        if name not in row:
            flag = "--text-column" if name == form.text_column else "--pair-column"
            raise InputError(f"{where}: no {name!r} among the keys {listed(row)}; {flag} names it")
    for value in (text, pair or text):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: the text must be a string that is not empty")
    values = [part for value in row.values() for part in (value if isinstance(value, list) else [value])]
    try:
        "".join((text, pair or "", *row, *(value for value in values if isinstance(value, str)))).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: a text, key or label has a lone surrogate, which is no character") from None
    labels = {}
    for name, value in row.items():
        if name not in (form.text_column, form.pair_column or "text_pair"):
            cell = cells is not None and not isinstance(value, tuple)
            value = value.strip() if cell else value
            if value in (None, "") or (cell and value in form.missing):
                continue
            if isinstance(value, str) and (separator := form.multi_label.get(name)):
                if BRACKETS.fullmatch(value):
                    raise InputError(f"{where}: {name!r} is {value!r:.40}; join labels by {separator!r}, no brackets")
                labels[name] = [Cell(part) for part in map(str.strip, value.split(separator)) if part]
            else:
                labels[name] = Cell(value) if cell else value
    return Row(where, text, pair, labels)


def check_text_column(path, rows, form):
    """Raise InputError where none of a file's first rows has the texts, naming the column that seems to hold them."""
    rows = [row for row in rows if isinstance(row, dict)]
    columns = dict.fromkeys(name for row in rows for name in row)
    for name in (form.text_column, form.pair_column):
        if rows and isinstance(rows[0].get(name), tuple):
            raise InputError(f"{path}: two columns have the name {name!r}")
    if rows and form.pair_column is not None and form.pair_column not in columns:
        raise InputError(f"{path}: no {form.pair_column!r} among the columns {listed(columns)}; --pair-column names it")
    if not rows or form.text_column in columns:
        return
    sentences = []
    for name in columns:
        words = [len(row[name].split()) for row in rows if isinstance(row.get(name), str)]
        if words and np.mean(words) >= 3:
            sentences.append(name)
    hint = f"{sentences[0]!r} holds sentences: --text-column {shlex.quote(sentences[0])}" if len(sentences) == 1 else ""
    hint = hint or "--text-column names the text"
    raise InputError(f"{path}: no {form.text_column!r} among the columns {listed(columns)}; {hint}")


WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,17})(\.0*)?")  # not 007, nor what is too long for an integer of 64 bits
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.I)


def as_number(label):
    """The number that a label is, or None."""
    if isinstance(label, Cell):
        return float(label) if NUMBER.fullmatch(label) else None
    return label if isinstance(label, (int, float)) and not isinstance(label, bool) else None


def as_class(label):
    """A label as a class: whole numbers are integers however they are written, all else is text."""
    if isinstance(label, Cell):
        return int(label.partition(".")[0]) if WHOLE.fullmatch(label) else str(label)
    if isinstance(label, bool) or not isinstance(label, (int, float)) or label % 1 or abs(label) >= 2**63:
        return str(label)
    return int(label)


def as_label(label, kind):
    """A label as one of the kind, as in Task.kind; several as a sorted tuple. Raises ValueError for what is none."""
    if kind in (list[int], list[str]):
        if not are_labels(label):
            raise ValueError(f"{label} is no list of labels")
        parts = {as_label(part, *kind.__args__) for part in label}
        return tuple(sorted(parts, key=lambda part: (isinstance(part, str), part)))
    if type(label) in NO_LABEL:
        raise ValueError(f"{label} is no label")
    if kind is not float:
        return as_class(label) if kind is int else str(label)
    if (number := as_number(label)) is None or not math.isfinite(number):
        raise ValueError(f"{label!r} is no number")
    return float(number)


NO_LABEL = {list: "several labels of a text", dict: "an object", tuple: "two columns of this name"}


def are_labels(label):
    """Whether it is a list of words and whole numbers, perhaps an empty one."""
    return type(label) is list and all(
        bool(part.strip()) if isinstance(part, str) else type(part) in (int, float) and part % 1 == 0 for part in label
    )


def each(label):
    """The labels of a row as a tuple, whether it has one or several."""
    return label if isinstance(label, tuple) else (label,)


def find_kind(name, rows, regression, multi_label):
    """The kind of a task, as in Task.kind, that has the rows' labels. Raises InputError where there is none."""
    if name in multi_label or any(type(row.labels[name]) is list for row in rows):
        good = [f", but {row.labels[name]!r:.40} in {row.where}" for row in rows if are_labels(row.labels[name])][:1]
        for row in rows:
            if not are_labels(label := row.labels[name]):
                what = "several labels are a list of words or whole numbers in each row, [] for none"
                where = f"{row.where}: {name!r} is {label!r:.40} here{''.join(good)}"
                hint = f"--multi-label {name} splits texts" if isinstance(label, str) else "--tasks names other columns"
                raise InputError(f"{where}; {what}; {hint}")
        if name in regression:
            raise InputError(f"--regression {name}: it has several labels a text, and is no number")
        whole = all(isinstance(as_class(part), int) for row in rows for part in row.labels[name])
        return list[int] if whole else list[str]
    for row in rows:
        if (kind := type(row.labels[name])) in NO_LABEL:
            raise InputError(f"{row.where}: {name!r} has {NO_LABEL[kind]}, which no task takes; --tasks names others")
    labels = [row.labels[name] for row in rows]
    if all(isinstance(label, bool) or label in ("True", "False") for label in labels) and name not in regression:
        return str
    numbers = [as_number(label) for label in labels]
    words = [row for row, number in zip(rows, numbers, strict=True) if number is None]
    fractions = [row for row, number in zip(rows, numbers, strict=True) if number is not None and number % 1]
    meant = fractions or [row for row in rows if isinstance(row.labels[name], (int, float))]
    if words and (meant or name in regression):
        word = words[0]
        number = f", but {meant[0].labels[name]} in {meant[0].where}" if meant else ", which is no number"
        hint = "; --missing names words for no label" if isinstance(word.labels[name], Cell) else ""
        raise InputError(f"{word.where}: {name!r} is {word.labels[name]!r:.40} here{number}{hint}")
    if fractions or name in regression:
        return float
    return int if not words and all(isinstance(as_class(label), int) for label in labels) else str


ID_NAME = re.compile(r"unnamed: [\d.]+|(.*[^a-z])?(id|ids|uid|uuid|guid|index|idx|date|datetime|timestamp)", re.I)
CAMEL_ID = re.compile(r".*[a-z](Id|ID|Date|Index)")
DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{4}/\d\d?/\d\d?( .*)?|\d\d?[./-]\d\d?[./-]\d{2,4}( .*)?")


def why_no_task(name, labels):
    """In words, why a column with these labels is not learned unless the user names it; or None."""
    if not name:
        return "no name"
    if ID_NAME.fullmatch(name) or CAMEL_ID.fullmatch(name):
        return "its name"
    kinds = {type(label) for label in labels}
    if kinds == {list}:
        lists, rows = [label for label in labels if are_labels(label)], len(labels)
        fractions = any(isinstance(part, float) and part % 1 for label in labels for part in label)
        labels = [part for label in lists for part in label]
        if fractions or not labels:
            return "lists of no labels"
        if len(lists) < rows:
            return None  # a mixture is a mistake
    elif kinds & NO_LABEL.keys():
        return NO_LABEL[kinds.pop()] if len(kinds) == 1 else None  # a mixture is a mistake
    if kinds <= {str, Cell}:
        if all(map(BRACKETS.fullmatch, labels)):
            return NO_LABEL[list]
        if sum(DATE.fullmatch(label) is not None for label in labels) > 0.9 * len(labels):
            return "dates"
        if np.mean([label.count(" ") for label in labels]) > 5:
            return "free text"
    numbers = [as_number(label) for label in labels]
    different = len(set(labels))
    if different < 2:
        return "one value only"
    if different > max(10, len(labels)) / 2 and (None in numbers or not any(number % 1 for number in numbers)):
        return "different in most rows"
    return None


def choose_tasks(path, rows, names, all_tasks, regression, multi_label, notes):
    """-> the names of the tasks, which are `names`, else all columns that look like labels; {task: kind of its labels}
    of all of them or of the first. Raises InputError."""
    columns = {}
    for row in rows:
        for name in row.labels:
            columns.setdefault(name, []).append(row)
    for name in names or ():
        if name not in columns:
            raise InputError(f"no task {name!r}; the rows have {listed(columns)}; --tasks picks among them")
    if names is None:
        for name, labelled in columns.items():
            reason = why_no_task(name, [row.labels[name] for row in labelled])
            if reason and name not in regression and name not in multi_label:
                notes.left_out[name] = reason
        names = [name for name in columns if name not in notes.left_out]
    if not names and columns:
        left_out = ", ".join(f"{name!r} ({reason})" for name, reason in notes.left_out.items())
        raise InputError(f"{path}: no column looks like a task; left out: {left_out}; --tasks names the tasks")
    if not names:
        raise InputError(f'{path}: no row has a label; a row is {{"text": ..., TASK: LABEL, ...}}')
    for flag, given in (("--regression", regression), ("--multi-label", multi_label)):
        if unknown := set(given) - set(names):
            raise InputError(f"{flag}: there is no task {min(unknown)!r}")
    names = list(dict.fromkeys(names))
    learned = names[: None if all_tasks else 1]
    return names, {name: find_kind(name, columns[name], regression, multi_label) for name in learned}


def make_task(name, kind, rows, names):
    """The task that the labels under `name` of training rows describe. Raises InputError where they describe none."""
    counts = Counter(label for row in rows if name in row.labels for label in each(row.labels[name]))
    if len(counts) < 2:
        raise InputError(f"task {name!r} has {len(counts)} different labels in the training rows; it takes two or more")
    if kind is float:
        targets = list(counts.elements())
        task = Task(name, None, mean=float(np.mean(targets)), std=float(np.std(targets)))
        with input_errors(f"the numbers of {name!r} span too much or too little"):
            task.check()
        return task
    labels = sorted(counts)
    names = {str(label): str(names.get(str(label), label)) for label in labels}
    threshold = 0.5 if kind in (list[int], list[str]) else None
    return Task(name, labels, [counts[label] for label in labels], names, threshold=threshold)


def convert_labels(rows, kinds):
    """The rows with the labels of these tasks alone, {task: kind}, each of its task's kind."""
    known, converted = {}, []
    for row in rows:
        labels = {}
        for name, kind in kinds.items():
            if name in row.labels:
                label = row.labels[name]
                key = kind, type(label), repr(label) if isinstance(label, list) else label
                try:
                    labels[name] = known[key] = known[key] if key in known else as_label(label, kind)
                except (TypeError, ValueError):
                    what = {float: "finite number", int: "class", str: "class"}
                    what = what.get(kind, "list of labels; --multi-label splits a text at a separator")
                    raise InputError(f"{row.where}: the label {label!s:.60} of {name!r} is no {what}") from None
        converted.append(row._replace(labels=labels))
    return converted


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def hold_out(rows, tasks, seed, fraction=0.1, name=""):
    """Split `rows` of the task `name` in two, the second a stratified `fraction`; every class keeps one in the first.

    Rows are sorted by their labels, equal ones shuffled, and picked at equal distances, so that each combination of
    labels, however rare, and each range of a regression target gives its share. Several labels of a text are a
    combination, and each of them is a class.
    """

    def by_labels(i):
        labels = [rows[i].labels.get(task.name) for task in tasks]
        return [(label is not None, 0 if label is None else label) for label in labels]

    left = Counter((task.name, label) for row in rows for task in tasks for label in each(row.labels.get(task.name)))
    held, due = set(), 0.5
    for i in sorted(random.Random(seed).sample(range(len(rows)), len(rows)), key=by_labels):
        due += fraction
        named = [(task.name, rows[i].labels.get(task.name)) for task in tasks if task.labels]
        keys = [(name, label) for name, labels in named for label in each(labels)]
        if due >= 1 and all(left[key] > 1 for key in keys):
            held.add(i)
            left.subtract(keys)
            due -= 1
    if not held:
        raise InputError(f"no row of {name!r} can be held out for validation without losing a class; --val gives rows, "
                         "--tasks leaves it out")  # fmt: skip
    return [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


SPLITS = ("train", "validation", "test")


def read_file(path, default, form, label_names, notes):
    """-> {split: [Row]} of one file, and its columns. Rows of a table without any cell are left out."""
    splits, columns, missing, blank = {split: [] for split in SPLITS}, {}, Counter(), 0
    rows = read_rows(path, form, label_names)
    first = list(itertools.islice(rows, 100))
    check_text_column(path, [row for _, _, row, _ in first], form)
    for where, split, row, cells in itertools.chain(first, rows):
        if cells is not None and not any(map(str.strip, cells)):
            blank += 1
            continue
        splits[split or default].append(parse_row(where, row, form, cells))
        columns |= dict.fromkeys(row)
        if cells is not None:
            missing.update((name, word) for name, cell in row.items() if (word := str(cell).strip()) in form.missing)
    if not splits[default]:
        raise InputError(f"{path}: no rows for {default}")
    if blank:
        notes.said.append(f"{path}: {blank} rows without any cell were left out")
    return splits, columns, missing


def read_data(train_files, val_files=(), test_files=(), names=None, all_tasks=True, seed=0, form=PLAIN,
              regression=(), notes=None):  # fmt: skip
    """Read and merge the files of the three splits, and find the tasks.

    -> [Task], {"train": [Row], "validation": [Row], "test": [Row]}; each row is labelled for at least one task.
    `names` picks and orders the tasks (default: every column that looks like labels); those in `regression` are
    numbers; `all_tasks=False` keeps the first alone. Splits inside a .json of `train_files` count as such; for tasks
    that no validation row is labelled for, a tenth of the training rows is held out. What the user should know goes to
    `notes`. Raises InputError, OSError.
    """
    notes, label_names = notes or Notes(), {}
    splits, parts, missing = {split: [] for split in SPLITS}, [], Counter()
    for default, files in zip(SPLITS, (train_files, val_files, test_files), strict=True):
        for path in files:
            rows, columns, words = read_file(path, default, form, label_names, notes)
            missing += words
            for split in SPLITS if default == "train" else [default]:
                splits[split] += rows[split]
                parts += [(path, split, columns, rows[split])] if rows[split] and split != "train" else []
    names, kinds = choose_tasks(train_files[0], splits["train"], names, all_tasks, regression, form.multi_label, notes)
    for path, split, columns, rows in parts:
        if not any(row.labels.keys() & set(names) for row in rows):
            raise InputError(f"{path}: no {split} row has a label of the tasks {listed(names)}; its columns are "
                             f"{listed(columns)}; --tasks names the tasks")  # fmt: skip
    for (name, word), count in sorted(missing.items()):
        if name in kinds:
            notes.said.append(f"{count} cells {word!r} of {name!r} are no labels; --missing sets such words")
    splits = {split: [row for row in convert_labels(part, kinds) if row.labels] for split, part in splits.items()}
    tasks = [make_task(name, kind, splits["train"], label_names.get(name, {})) for name, kind in kinds.items()]
    for task in tasks:
        for split in ("validation", "test"):
            if splits[split] and not any(task.name in row.labels for row in splits[split]):
                instead = "; a tenth of its training rows is held out" if split == "validation" else ""
                notes.said.append(f"no {split} row has a label of {task.name!r}{instead}")
            notes.said += unseen_labels(task, split, splits[split])
    for task in tasks:
        if not any(task.name in row.labels for row in splits["validation"]):
            labelled = [row for row in splits["train"] if task.name in row.labels]
            kept, held = hold_out(labelled, tasks, seed, name=task.name)
            splits["train"] = [row for row in splits["train"] if task.name not in row.labels] + kept
            splits["validation"] += held
    # without the held-out rows
    return [make_task(name, kind, splits["train"], label_names.get(name, {})) for name, kind in kinds.items()], splits


def unseen_labels(task, what, rows):
    """In a list, a sentence on labels of a task that it does not have, if there are any."""
    labels = [label for row in rows if task.name in row.labels for label in each(row.labels[task.name])]
    unseen = [label for label in labels if task.labels and label not in task.labels]
    names = f"are in no training row and count as wrong: {listed(dict.fromkeys(unseen), 3)}"
    return [f"{len(unseen)} {what} labels of {task.name!r} {names}"] if unseen else []


def data_warnings(tasks, splits):
    """Yield in words what in the rows is probably a mistake."""
    for task in tasks:
        labels = task.labels or []
        if labels and (len(labels) > 100 or sum(task.counts) < 3 * len(labels)):
            number = f"--regression {task.name} makes it a number, " if all(isinstance(x, int) for x in labels) else ""
            yield (f"{task.name!r} has {len(labels)} classes of {sum(task.counts) / len(labels):.1f} rows on average; "
                   f"{number}--tasks leaves it out")  # fmt: skip
        words = [label for label in labels if isinstance(label, str)]
        if words and all(re.fullmatch(r"[+-]?\d+,\d+", word) for word in words):
            yield f"{task.name!r} has decimal commas, so that each number is a class; write points"
        if task.several and labels == [0, 1]:
            yield f"{task.name!r} has the labels 0 and 1 alone; if a list has one of them for each label, name these"
        for separator in "|;,":
            joined = [word for word in words if separator in word]
            parts = {part.strip() for word in joined for part in word.split(separator)}
            if parts & set(words) or (2 * len(joined) > len(labels) > len(parts)):
                yield (f"{task.name!r} looks like several labels a text ({joined[0]!r}): each combination is one; "
                       f"--multi-label {shlex.quote(f'{task.name}={separator}')} takes them apart")  # fmt: skip
        spellings = {}
        for label in labels:
            spellings.setdefault(" ".join(str(label).casefold().split()), []).append(label)
        for same in spellings.values():
            if len(same) > 1:
                yield f"{task.name!r} has separate labels that differ only in case or blanks: {listed(same)}"
        found = {}
        for row in (row for rows in splits.values() for row in rows if task.name in row.labels):
            found.setdefault((row.text, row.text_pair), set()).add(row.labels[task.name])
        if count := sum(len(labels) > 1 for labels in found.values()):
            yield f"{count} texts have more than one {'list of labels' if task.several else 'label'} of {task.name!r}"
    texts = {split: {(row.text, row.text_pair) for row in rows} for split, rows in splits.items()}
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if count := sum((row.text, row.text_pair) in texts[other] for row in splits[one]):
            yield f"{count} {one} rows are also {other} rows"


def associations(tasks, rows):
    """Yield (Cramer's V, task, task) for each two tasks of one class a text, over the rows labelled for both.

    1 where one label gives the other away, 0 where they are independent (Cramer 1946, section 21.9); by chance well
    above 0 where the rows are few beside the pairs of classes.
    """
    from scipy.stats.contingency import association, crosstab

    for one, other in itertools.combinations([t.name for t in tasks if t.labels and not t.several], 2):
        pairs = [(row.labels[one], row.labels[other]) for row in rows if one in row.labels and other in row.labels]
        columns = list(zip(*pairs, strict=True))
        if pairs and all(len(set(labels)) > 1 for labels in columns):
            yield float(association(crosstab(*columns).count, method="cramer")), one, other
