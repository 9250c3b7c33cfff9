"""From files to rows: the formats in which people keep their data.

A row is a dict {"text": ..., "text_pair": ... (optional), COLUMN: LABEL, ...}. This file knows
encodings, JSON, tables and plain text. It never knows what a label means.
"""

import codecs
import csv
import io
import itertools
import json
import math
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .errors import InputError


class RawLabel(str):
    """A label as a table holds it: characters, whose type depends on its whole column."""

    __slots__ = ()


class RawRow(NamedTuple):
    where: str  # "FILE, line N", for messages
    split: str | None  # "train", "validation" or "test", if the file says so
    values: dict | InputError  # a dict (from JSON perhaps another value), or what is wrong here
    cells: list | None  # what the line of a table holds, or a line of broken JSON


# --------------------------------------------------------------------------------------------------
# How files are to be read


@dataclass(frozen=True)
class Format:
    """How files are to be read."""

    text_column: str = "text"
    pair_column: str | None = None  # None: "text_pair", if there is one
    encoding: str | None = None  # None: UTF-8, or what the first bytes of the file say
    # Words that stand for "no label" in tables
    missing: tuple = (
        *("nan", "NaN", "NA", "N/A", "n/a", "<NA>", "#N/A"),
        *("None", "null", "NULL"),
    )
    multi_label: dict = field(default_factory=dict)  # column -> the separator of its labels


PLAIN = Format()


def format_flags(flag):
    """Add the flags that fill a Format; `flag` is add_argument of argparse."""
    flag("--text-column", metavar="NAME", help="the column of the text (default: text)")
    flag(
        "--pair-column",
        metavar="NAME",
        help="the column of a second text (default: text_pair, if there is one)",
    )
    flag(
        "--text-encoding",
        metavar="NAME",
        help="such as cp1252 (default: UTF-8, or UTF-16 if the file begins with its mark)",
    )
    flag(
        "--missing",
        nargs="*",
        metavar="WORD",
        help="words in .csv and .tsv files that mean: no label (as empty cells do)",
    )
    flag(
        "--multi-label",
        nargs="+",
        metavar="NAME[=S]",
        help="columns whose cells hold any number of labels, joined by S (default: |)",
    )


def format_of(args, stored=None):
    """The Format that the flags in `args` ask for.

    `stored` holds the flags of a finished run: they count where `args` does not say otherwise,
    except for the encoding, which belongs to a file.
    """
    stored = stored or {}

    def pick(name, kind, default):
        value = getattr(args, name)
        if value is None:
            value = stored.get(name)
        if not isinstance(value, kind):
            return default
        return value

    return Format(
        text_column=pick("text_column", str, PLAIN.text_column),
        pair_column=pick("pair_column", str, PLAIN.pair_column),
        encoding=args.text_encoding,
        missing=tuple(map(str, pick("missing", list, PLAIN.missing))),
        multi_label=parse_separators(pick("multi_label", list, [])),
    )


def parse_separators(words):
    """{column: separator} from words such as "tags" and "tags=;"."""
    separators = {}
    for word in words:
        column, equals, separator = str(word).partition("=")
        separator = separator.strip()
        if equals and not separator:
            raise InputError(f"--multi-label {column}=: the separator is missing")
        separators[column] = separator or "|"
    return separators


# --------------------------------------------------------------------------------------------------
# Rows of any file


def read_rows(path, format=PLAIN, label_names=None):
    """Yield a RawRow for each row of a .json, .jsonl, .csv, .tsv or .txt file.

    "-" is standard input, with a text on each line. All but .json are read as a stream. A column
    that occurs twice in a table has a tuple of its cells. The "label_names" of a .json file are
    added to the dict `label_names`. A mistake in one row is the `values` of this row; InputError is
    raised where the rest cannot be read either, OSError where the file cannot be read.
    """
    ending = ".txt" if path == "-" else Path(path).suffix.lower()
    if ending == ".json":
        rows = read_json(path, format, label_names)
    elif ending in (".jsonl", ".ndjson"):
        rows = read_json_lines(path, format)
    elif ending in (".csv", ".tsv"):
        rows = read_table_rows(path, format)
    elif ending == ".txt":
        rows = read_texts(path, format)
    else:
        known = ".json, .jsonl, .csv, .tsv and, for prediction, .txt"
        raise InputError(f"{path}: unknown kind of file; known are {known}")
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: no rows")
    yield first
    yield from rows


def read_json(path, format, label_names):
    """Yield the RawRows of a list, or of an object of lists: {"train": [...], "test": [...]}."""
    content = parse_json("".join(read_lines(path, format.encoding)), path)
    if not isinstance(content, dict):
        content = {None: content}
    names = content.pop("label_names", {})
    if not is_dict_of_dicts(names):
        example = '{"category": {"0": "acting", "1": "story"}}'
        raise InputError(f"{path}: label_names must be like {example}")
    if label_names is not None:
        label_names.update(names)
    for split, rows in content.items():
        if split not in (None, "train", "validation", "test") or not isinstance(rows, list):
            expected = "a list of rows, or an object of lists: train, validation, test"
            raise InputError(f"{path}: must be {expected}")
        prefix = f"{split} " if split else ""
        for count, values in enumerate(rows, 1):
            yield RawRow(f"{path}, {prefix}row {count}", split, values, None)


def is_dict_of_dicts(value):
    return isinstance(value, dict) and all(isinstance(part, dict) for part in value.values())


def read_json_lines(path, format):
    for number, line in enumerate(read_lines(path, format.encoding), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield RawRow(where, None, parse_json(line, where), None)
        except InputError as error:
            yield RawRow(where, None, error, [line.rstrip("\r\n")])


def read_texts(path, format):
    for number, line in enumerate(read_lines(path, format.encoding), 1):
        values = {format.text_column: line.rstrip("\r\n")}
        yield RawRow(f"{path}, line {number}", None, values, None)


def read_table_rows(path, format):
    header, _, records = read_table(path, format.encoding)
    places = {}  # column -> where its cells are
    for i, name in enumerate(header):
        places.setdefault(name.strip(), []).append(i)
    for number, cells in records:
        where = f"{path}, line {number}"
        if len(cells) == len(header):
            values = name_cells(places, cells)
        else:
            values = InputError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        yield RawRow(where, None, values, cells)


def name_cells(places, cells):
    values = {}
    for name, numbers in places.items():
        if len(numbers) == 1:
            values[name] = cells[numbers[0]]
        else:
            values[name] = tuple(cells[i] for i in numbers)
    return values


# --------------------------------------------------------------------------------------------------
# Lines and JSON

MARKS = (  # at the beginning of a file; UTF-32 before UTF-16, whose mark it begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_lines(path, encoding=None):
    """Yield each line of a text file with its ending, "\\n", "\\r\\n" or "\\r"; "-" is stdin."""
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        encoding = marked_encoding(file.peek(4)) or encoding or "utf-8"
        try:
            name = codecs.lookup(encoding).name
            if name == "utf-8":
                encoding = "utf-8-sig"  # leaves the mark out
            with io.TextIOWrapper(file, encoding, newline="") as lines:
                yield from lines
        except LookupError:
            raise InputError(f"--text-encoding {encoding}: there is no such encoding") from None
        except UnicodeError:
            place = ""
            if path != "-":
                place = f" at byte {undecodable_byte(path, name)}"
            message = f"{path}: not {name.upper()}{place}; --text-encoding names its encoding"
            raise InputError(message) from None


def marked_encoding(start):
    for mark, name in MARKS:
        if start.startswith(mark):
            return name
    return None


def undecodable_byte(path, encoding):
    """The position of the first byte of a file that is not of its encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**16):
            pending = len(decoder.getstate()[0])  # bytes of a character that the chunk completes
            try:
                decoder.decode(chunk)
            except UnicodeError as error:
                return position - pending + getattr(error, "start", 0)
            position += len(chunk)
    return position


def parse_json(text, where):
    """The value of strict JSON: all numbers are finite, and no object has a key twice."""
    try:
        return json.loads(
            text,
            parse_float=finite_number,
            parse_constant=finite_number,
            object_pairs_hook=unique_keys,
        )
    except (ValueError, RecursionError) as error:
        hint = ""
        if "Extra data" in str(error):
            hint = "; if each line is a row, name the file .jsonl"
        raise InputError(f"{where}: invalid JSON: {error}{hint}") from None


def finite_number(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def unique_keys(pairs):
    content = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} occurs twice")
        content[key] = value
    return content


# --------------------------------------------------------------------------------------------------
# Tables

QUOTED = re.compile(r'"(?:[^"]|"")*"')
EXCEL_SEPARATOR = re.compile(r"sep=.\s*")  # a first line that Excel writes
MOST_LINES = 1000  # of one row of a .tsv file


def read_table(path, encoding=None):
    """-> the header of a .csv or .tsv file, its separator, an iterator of (line number, cells).

    The separator is the one that is most frequent in the header: comma, semicolon, tab or bar.
    """
    csv.field_size_limit(2**31 - 1)  # the default is 128 KiB for a cell
    lines = read_lines(path, encoding)
    first, skipped = find_header(lines)
    if "\0" in first:
        hint = "it looks like UTF-16 without a mark; --text-encoding names its encoding"
        raise InputError(f"{path}: {hint}")
    is_tsv = str(path).lower().endswith(".tsv")
    separators = "\t,;|" if is_tsv else ",;\t|"  # the first one where two are equally frequent
    separator = max(separators, key=QUOTED.sub("", first).count)
    lines = itertools.chain([first], lines)
    if is_tsv and separator == "\t":
        records = read_tsv(lines, skipped)
    else:
        records = read_csv(path, lines, separator, skipped)
    _, header = next(records, (0, []))
    return header, separator, records


def find_header(lines):
    """-> the line of the header, and how many lines stand before it."""
    skipped = 0
    for line in lines:
        if line.strip() and not EXCEL_SEPARATOR.fullmatch(line):
            return line, skipped
        skipped += 1
    return "", skipped


def read_csv(path, lines, separator, skipped):
    reader = csv.reader(lines, delimiter=separator, strict=True)
    number = skipped
    try:
        for cells in reader:
            number = skipped + reader.line_num
            if cells:  # an empty line is not a row
                yield number, cells
    except csv.Error as error:
        rule = (
            'a cell that begins with a quote ends with one, and quotes within it are doubled ("")'
        )
        raise InputError(f"{path}, line {number + 1}: {error}; {rule}") from None


class LinesAhead:
    """Lines that can be looked at before they are taken."""

    def __init__(self, lines):
        self.lines = lines
        self.waiting = deque()

    def peek(self, i):
        """The line that is `i` lines ahead; None after the end."""
        while len(self.waiting) <= i:
            line = next(self.lines, None)
            if line is None:
                return None
            self.waiting.append(line)
        return self.waiting[i]

    def peek_each(self, most):
        for i in range(most):
            line = self.peek(i)
            if line is None:
                return
            yield line

    def take(self, count):
        for _ in range(count):
            self.waiting.popleft()


def read_tsv(lines, skipped):
    """Yield (line number, cells) of a .tsv file, in which a quote is a character like any other.

    Only a cell that begins and ends with a quote, and whose inner quotes are doubled, is read as
    csv writers mean it. It may hold tabs and line ends. But a line that has as many cells as the
    header is a row, so that no stray quote swallows the rows after it.
    """
    ahead = LinesAhead(lines)
    number = skipped
    width = None
    while (line := ahead.peek(0)) is not None:
        cells = split_tabs(line)
        taken = 1
        if width is None:
            width = len(cells)
        if '"' in line:
            if is_whole_row(cells, width, ahead.peek(1)):
                cells = [without_quotes(cell) for cell in cells]
            else:
                cells, taken = join_lines(ahead, width, cells)
        ahead.take(taken)
        number += taken
        if cells != [""]:  # an empty line is not a row
            yield number, cells


def split_tabs(line):
    return line.rstrip("\r\n").split("\t")


def is_whole_row(cells, width, next_line):
    """Whether these cells of one line are a row, or their last one goes on in the next line."""
    if len(cells) != width:
        return False
    last = cells[-1]
    is_open = last.startswith('"') and not QUOTED.fullmatch(last)
    if not is_open or next_line is None:
        return True
    return width > 1 and len(split_tabs(next_line)) == width


def without_quotes(cell):
    if not QUOTED.fullmatch(cell):
        return cell
    return cell[1:-1].replace('""', '"')


def join_lines(ahead, width, cells):
    """-> the cells of a quoted row, and its number of lines; `cells` and 1 where there is none."""
    reader = csv.reader(ahead.peek_each(MOST_LINES), delimiter="\t", strict=True)
    try:
        joined = next(reader)
    except csv.Error:
        return cells, 1
    if len(joined) != width:
        return cells, 1
    return joined, reader.line_num
