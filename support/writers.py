"""How predictions are written: bars and a table for people, JSON Lines, and tables for programs.

Each writer has write(raw, predictions, error) for one row: a RawRow (support/files.py), and either
its {task: prediction}, or None and in words why there is none. finish() follows the last row. It
may come more often, so that nobody waits for what is known already.

This file never knows how predictions were computed. What it writes of them comes from the methods
of the tasks (mtbert.py, section "Tasks").
"""

import csv
import io
import json
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from .columns import name_of_pair
from .errors import InputError, printable
from .files import clean, ending_of, open_bytes, read_rows, read_table
from .processes import is_first
from .report import print_bars, shorten, terminal_width
from .runs import locked, replacing


@contextmanager
def opened(path):
    """A file to write to, as a whole or not at all, by one process at a time.

    None is standard output. A pipe or a device is written directly, since it cannot be replaced.
    """
    if path is None or not is_first():  # the standard output of other processes goes nowhere
        yield sys.stdout
        return
    path = Path(path)
    if path.exists() and not path.is_file():
        with open(path, "w", encoding="utf-8", newline="") as file:
            yield file
        return
    path = path.resolve()  # a link stays one, and the file behind it is replaced
    with (
        locked(f"{path}.lock", path),
        replacing(path) as beside,
        open(beside, "w", encoding="utf-8", newline="") as file,
    ):
        yield file


def is_table(path):
    return path is not None and ending_of(path) in (".csv", ".tsv")


def has_columns_of_its_own(path):
    """Whether the rows of a file may have other columns than the text: not standard input, .txt."""
    return path is not None and ending_of(path) != ".txt"


class BarsWriter:
    """For people who look at a few texts: each with all its probabilities."""

    def __init__(self, tasks, text_column):
        self.tasks = tasks
        self.text_column = text_column

    def write(self, raw, predictions, error):
        print_bars(self.tasks, raw.values[self.text_column], predictions)

    def finish(self):
        pass


class TextTableWriter:
    """For people who look at a file: a line a row, as wide as the terminal.

    The first rows wait, since they decide how wide the columns are.
    """

    FIRST_ROWS = 1000
    WIDEST = 60  # of what is predicted of one task

    def __init__(self, tasks, text_column):
        self.tasks = tasks
        self.text_column = text_column
        self.waiting = []  # arguments of `write`
        self.widths = None  # of the columns, once they are known

    def write(self, raw, predictions, error):
        self.waiting.append((raw, predictions, error))
        if self.widths is not None or len(self.waiting) == self.FIRST_ROWS:
            self.print_waiting()

    def finish(self):
        self.print_waiting()

    def print_waiting(self):
        if self.widths is None:
            self.widths = self.find_widths()
            self.print_line("text", self.names())
        for raw, predictions, error in self.waiting:
            text = ""
            if isinstance(raw.values, dict):
                text = str(raw.values.get(self.text_column, ""))
            cells = [printable(error)] if predictions is None else self.cells_of(predictions)
            self.print_line(text, cells)
        self.waiting = []

    def cells_of(self, predictions):
        return [shorten(task.describe(predictions[task.name]), self.WIDEST) for task in self.tasks]

    def names(self):
        return [shorten(task.name, self.WIDEST) for task in self.tasks]

    def find_widths(self):
        widths = [len(name) for name in self.names()]
        for _, predictions, _ in self.waiting:
            if predictions is not None:
                for i, cell in enumerate(self.cells_of(predictions)):
                    widths[i] = max(widths[i], len(cell))
        gaps = 2 * len(widths)
        text_width = max(24, terminal_width() - sum(widths) - gaps)
        return [text_width, *widths]

    def print_line(self, text, cells):
        cells = [shorten(text, self.widths[0]), *cells]
        padded = []
        for cell, width in zip(cells, self.widths, strict=False):  # an error is one cell for all
            padded.append(cell.ljust(width))
        print("  ".join(padded).rstrip(), flush=True)


class JsonLinesWriter:
    """The keys of each row, then `predictions`, and `error` where there are none."""

    def __init__(self, file, source, format):
        """source: the file that the rows come from, or None. Raises InputError."""
        self.file = file
        if is_table(source):
            header, _, _ = read_table(source, format)
            check_keys(source, header)
        elif has_columns_of_its_own(source):
            for raw in read_rows(source, format):
                if isinstance(raw.values, dict):
                    check_keys(source, raw.values)

    def write(self, raw, predictions, error):
        if isinstance(raw.values, dict):
            row = dict(raw.values)
        elif raw.cells is not None:
            row = {"row": raw.cells}  # what cannot be read is kept as it is
        else:
            row = {"row": raw.values}
        row["predictions"] = predictions
        if error is not None:
            row["error"] = error
        print(json.dumps(row), file=self.file)

    def finish(self):
        self.file.flush()


class LabelsWriter:
    """Rows that train.py learns from: the texts, and of each task what was predicted as its label.

    A row without predictions is left out, and so is what else the row of the input holds.
    """

    def __init__(self, file, tasks, format):
        """Raises InputError."""
        self.file = file
        self.tasks = tasks
        self.format = format
        for task in tasks:
            if task.name in ("text", "text_pair"):
                raise InputError(f"--as-labels: the task {task.name!r} has the name of a text")

    def write(self, raw, predictions, error):
        if predictions is None:
            return
        row = {"text": raw.values[self.format.text_column]}
        pair = None
        if self.format.pair_column != "":
            pair = raw.values.get(name_of_pair(self.format))
        if pair is not None:
            row["text_pair"] = pair
        for task in self.tasks:
            row[task.name] = task.as_label(predictions[task.name])
        print(json.dumps(row), file=self.file)

    def finish(self):
        self.file.flush()


def check_keys(source, keys):
    for name in ("error", "predictions"):
        if name in keys:
            raise InputError(f"{source} has {name!r} already, which would be lost; rename it")


class TableWriter:
    """The input's columns, then those of each task, and `error`; as a .csv or .tsv.

    The separator of a .csv is that of the input. The labels of a multi-label task are joined as in
    the column that the model learned from, else by "|".
    """

    def __init__(self, file, path, tasks, source, format):
        """file: the opened `path`. source: the file that the rows come from, or None, "-".

        Raises InputError.
        """
        self.tasks = tasks
        self.format = format
        self.header, self.separator, mark = read_header(path, source, format)
        self.suffixes = {}  # task -> what follows its name in its columns
        added = []
        for task in tasks:
            self.suffixes[task.name] = self.columns_of(task, path)
            added += self.heads_of(task)
        added.append("error")
        check_columns(path, self.header, added)
        self.file = file
        file.write(mark)
        self.write_line(self.header + added)

    def write_line(self, cells):
        """A line that ends with "\\n", and in which csv has quoted each kind of line end."""
        line = io.StringIO()
        csv.writer(line, delimiter=self.separator, lineterminator="\r\n").writerow(cells)
        self.file.write(line.getvalue().removesuffix("\r\n") + "\n")

    def label_separator(self, task):
        return self.format.multi_label.get(task.name, "|")

    def columns_of(self, task, path):
        try:
            return task.table_columns(self.label_separator(task))
        except ValueError as error:
            raise InputError(f"--output {path}: {error}; name a .jsonl") from None

    def heads_of(self, task):
        names = [clean(name) for name in self.header]
        heads = []
        for suffix in self.suffixes[task.name]:
            head = task.name + suffix
            if head == task.name and head in names:  # a labelled file keeps its labels
                head = f"{task.name}_predicted"
            heads.append(head)
        return heads

    def write(self, raw, predictions, error):
        cells = raw.cells
        if cells is None:
            cells = [raw.values[self.header[0]]]
        elif len(cells) != len(self.header):
            error = f"{error}; the row is {self.separator.join(cells)}"
            padding = [""] * len(self.header)
            cells = (cells + padding)[: len(self.header)]
        row = list(cells)
        for task in self.tasks:
            if predictions is None:
                row += [""] * len(self.suffixes[task.name])
            else:
                prediction = predictions[task.name]
                row += task.table_cells(prediction, self.label_separator(task))
        self.write_line([*row, error or ""])

    def finish(self):
        self.file.flush()


def read_header(path, source, format):
    """-> the columns of the input, the separator for `path`, and the mark that begins the file."""
    header = [format.text_column]
    separator = ","
    mark = ""
    if is_table(source):
        header, separator, _ = read_table(source, format)
        with open_bytes(source) as file:
            if file.read(3) == b"\xef\xbb\xbf":
                mark = "\ufeff"
    elif has_columns_of_its_own(source):
        raise InputError(
            f"--output {path} takes a .csv, .tsv or .txt as input; for {source}, name a .jsonl"
        )
    if path.lower().endswith(".tsv"):
        separator = "\t"
    elif separator == "\t":
        separator = ","
    return header, separator, mark


def check_columns(path, header, added):
    """Raise InputError where two columns of the output would have the same name."""
    names = {clean(name) for name in header}
    counts = Counter([*names, *added])
    for name, count in counts.items():
        if count > 1:
            raise InputError(
                f"--output {path} would have two columns {name!r}; rename one, or name a .jsonl"
            )
