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
import unicodedata
from collections import deque
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from .errors import InputError, input_errors


class NoRow(InputError):
    """What stands where a row should, but is none: it has no text, or repeats the header.

    Such rows are left out and counted, by their `reason`.
    """

    def __init__(self, where, reason):
        super().__init__(f"{where}: {reason}")
        self.reason = reason


class RawLabel(str):
    """A label as a table holds it: characters, whose type depends on its whole column."""

    __slots__ = ()


class RawRow(NamedTuple):
    where: str  # "FILE, line N", for messages
    split: str | None  # "train", "validation" or "test", if the file says so
    values: dict | InputError  # a dict (from JSON perhaps another value), or what is wrong here
    cells: list | None  # what the line of a table holds, or a line of broken JSON
    is_text: bool = False  # a text without columns, in which no word means "no text"


# --------------------------------------------------------------------------------------------------
# How files are to be read


@dataclass(frozen=True)
class Format:
    """How files are to be read."""

    text_column: str = "text"
    pair_column: str | None = None  # None: "text_pair", if there is one
    encoding: str | None = None  # None: UTF-8, or what the first bytes of the file say
    # Words that stand for "no label" and "no text"
    missing: tuple = (
        *("nan", "NaN", "NA", "N/A", "n/a", "<NA>", "#N/A"),
        *("None", "null", "NULL"),
    )
    multi_label: dict = field(default_factory=dict)  # column -> the separator of its labels
    separator: str | None = None  # of a table's cells; None: the most frequent in its header
    header: tuple = ()  # the names of a table's columns, where its first line is a row already
    split_column: str | None = None  # None: the one that holds names of splits; "": none
    strict: bool = False  # whether a row without a text is a mistake


PLAIN = Format()


def format_flags(flag):
    """Add the flags that fill a Format; `flag` is add_argument of argparse."""
    flag("--text-column", metavar="NAME", help="the column of the text (default: text)")
    flag(
        "--pair-column",
        metavar="NAME",
        help='the column of a second text (default: text_pair, if there is one; "": none)',
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
        help="more words that mean: no label (nan, NA and the like do); no WORD: none does",
    )
    flag(
        "--multi-label",
        nargs="+",
        metavar="NAME[=S]",
        help="columns whose cells hold any number of labels, joined by S (default: |)",
    )
    flag("--separator", metavar="S", help="of a table's cells (default: , ; tab or |)")
    flag(
        "--header",
        nargs="*",
        metavar="NAME",
        help="names of the columns of tables that have no header",
    )
    flag(
        "--split-column",
        metavar="NAME",
        help='the column of train, validation, test (default: one that holds these; "": none)',
    )
    flag("--strict", action="store_true", help="stop at the first row that has no text")


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

    missing = pick("missing", list, None)
    multi_label = pick("multi_label", list, [])
    separator = pick("separator", str, "")
    header = pick("header", list, [])
    return Format(
        text_column=pick("text_column", str, PLAIN.text_column),
        pair_column=pick("pair_column", str, PLAIN.pair_column),
        encoding=args.text_encoding,
        missing=missing_words(missing),
        multi_label=parse_separators(multi_label),
        separator=parse_separator(separator),
        header=tuple(clean(str(name)) for name in header),
        split_column=pick("split_column", str, None),
        strict=args.strict,
    )


def missing_words(words):
    """The words for "no label": the usual ones and `words`, none for an empty list."""
    if words is None:
        return PLAIN.missing
    if not words:
        return ()
    return (*PLAIN.missing, *map(clean, map(str, words)))


def parse_separator(text):
    """The separator that --separator names; None for an empty text."""
    separator = unescape(text)
    if len(separator) > 1 or separator in ("\n", "\r", '"'):
        raise InputError(f"--separator {text}: it must be one character, such as ; or \\t")
    return separator or None


def unescape(text):
    """A tab or an end of line, if a user wrote it as two characters."""
    return text.replace("\\t", "\t").replace("\\n", "\n")


WITH_SEPARATOR = re.compile(r"(.+?)=(\W+|\\[nt])", re.S)


def parse_separators(words):
    """{column: separator} from words such as "tags", "tags=;" and "tags=\\n".

    The name of a column may have a "=" of its own, as in "a=b=;".
    """
    separators = {}
    for word in map(str, words):
        match = WITH_SEPARATOR.fullmatch(word)
        if match:
            column, separator = match.groups()
        else:
            column, equals, separator = word.partition("=")
            if equals and not separator:
                raise InputError(f"--multi-label {word}: the separator is missing")
        if not separator.isspace():
            separator = unescape(separator.strip())
        separators[clean(column)] = separator or "|"
    return separators


INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)
JOINERS = "\u200c\u200d"  # within a word they may mean something


def clean(text):
    """A name or a label, so that what looks the same is the same.

    It is in Unicode's composed form (NFC), without invisible characters and blanks around it.
    """
    if text.isascii():
        return text.strip()
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    return text.strip().strip(JOINERS).strip()


# --------------------------------------------------------------------------------------------------
# Rows of any file


# Endings of packed files, and the modules of Python that unpack them
PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}


def ending_of(path):
    """The ending that says what a file holds: ".csv" for reviews.csv, and for reviews.csv.gz."""
    if path == "-":
        return ".txt"
    path = Path(path)
    if path.suffix.lower() in PACKED:
        path = path.with_suffix("")
    return path.suffix.lower()


def check_is_file(path):
    if path != "-" and Path(path).is_dir():
        raise InputError(f"{path} is a folder; name the files in it")


def read_rows(path, format=PLAIN, label_names=None):
    """Yield a RawRow for each row of a .json, .jsonl, .csv, .tsv, .txt, .parquet or .xlsx file.

    "-" is standard input, with a text on each line. Tables, .jsonl and .txt are read as a stream.
    A column that occurs twice in a table has a tuple of its cells. The "label_names" of a .json
    file are added to the dict `label_names`. A mistake in one row is the `values` of this row;
    InputError is raised where the rest cannot be read either, OSError where the file cannot be
    read.
    """
    check_is_file(path)
    ending = ending_of(path)
    if ending == ".json":
        rows = read_json(path, format, label_names)
    elif ending in (".jsonl", ".ndjson"):
        rows = read_json_lines(path, format)
    elif ending in (".csv", ".tsv"):
        rows = read_table_rows(path, format)
    elif ending == ".txt":
        rows = read_texts(path, format)
    elif ending in (".parquet", ".xlsx"):
        rows = read_with_pandas(path, ending)
    else:
        known = ".json, .jsonl, .csv, .tsv (also .gz), .parquet, .xlsx and, for prediction, .txt"
        raise InputError(f"{path}: unknown kind of file; known are {known}")
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: no rows")
    yield first
    yield from rows


def read_json(path, format, label_names):
    """Yield the RawRows of a list, or of an object of lists: {"train": [...], "test": [...]}."""
    hint = "if each line is a row, name the file .jsonl"
    content = parse_json("".join(read_lines(path, format.encoding)), path, hint)
    if not isinstance(content, dict):
        content = {None: content}
    names = content.pop("label_names", {})
    if not is_dict_of_dicts(names):
        example = '{"category": {"0": "acting", "1": "story"}}'
        raise InputError(f"{path}: label_names must be like {example}")
    if label_names is not None:
        for column, by_label in names.items():
            label_names[clean(column)] = clean_names(by_label)
    for split, rows in content.items():
        if split not in (None, "train", "validation", "test") or not isinstance(rows, list):
            expected = "a list of rows, or an object of lists: train, validation, test"
            raise InputError(f"{path}: must be {expected}")
        prefix = f"{split} " if split else ""
        for count, values in enumerate(rows, 1):
            yield RawRow(f"{path}, {prefix}row {count}", split, clean_names(values), None)


def clean_names(values):
    """A row of JSON, its keys as those of other files are compared with them."""
    if not isinstance(values, dict):
        return values
    cleaned = {}
    for name, value in values.items():
        cleaned[clean(name)] = value
    if len(cleaned) < len(values):  # two would be one
        return values
    return cleaned


def is_dict_of_dicts(value):
    return isinstance(value, dict) and all(isinstance(part, dict) for part in value.values())


def read_json_lines(path, format):
    is_first = True
    for number, line in enumerate(read_lines(path, format.encoding), 1):
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            raise InputError(
                f"{path}: it begins with a list; if that holds the rows, name it .json"
            )
        is_first = False
        where = f"{path}, line {number}"
        hint = "each line holds one object"
        if line.rstrip().endswith(","):
            hint = "a line ends without a comma"
        try:
            yield RawRow(where, None, clean_names(parse_json(line, where, hint)), None)
        except InputError as error:
            yield RawRow(where, None, error, [line.rstrip("\r\n")])


def read_texts(path, format):
    for number, line in enumerate(read_lines(path, format.encoding), 1):
        values = {format.text_column: line.rstrip("\r\n")}
        yield RawRow(f"{path}, line {number}", None, values, None, is_text=True)


def read_with_pandas(path, ending):
    try:
        import pandas
    except ImportError:
        hint = "pip install pandas pyarrow openpyxl, or save it as .csv"
        raise InputError(f"{path}: pandas reads such files, and is not installed; {hint}") from None
    with input_errors(f"{path} cannot be read"):
        read = pandas.read_excel
        if ending == ".parquet":
            read = pandas.read_parquet
        frame = read(path)
        # JSON has None for all that pandas calls missing, and lists for arrays.
        rows = frame.to_json(orient="records", date_format="iso", double_precision=15)
    for count, values in enumerate(json.loads(rows), 1):
        yield RawRow(f"{path}, row {count}", None, clean_names(values), None)


def read_table_rows(path, format):
    header, separator, records = read_table(path, format)
    names = [clean(name) for name in header]
    places = {}  # column -> where its cells are
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    first = list(itertools.islice(records, 100))
    if format.text_column not in places and not format.header:
        check_header(path, names, separator, first, format)
    for number, cells in itertools.chain(first, records):
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            values = wrong_width(where, cells, header, separator)
        elif clean(cells[0]) == names[0] and list(map(clean, cells)) == names:
            values = NoRow(where, "the row repeats the header")
        else:
            values = name_cells(places, cells)
        yield RawRow(where, None, values, cells)


def wrong_width(where, cells, header, separator):
    """What is wrong with a row that has more or fewer cells than the header."""
    hint = ""
    rest = cells[len(header) :]
    if rest and not any(map(str.strip, rest)):
        hint = "; those at the end are empty: delete them, or give them names in the header"
    elif rest:
        hint = f"; a text with {separator!r} in it must stand in quotes"
        hint += ", and --separator names another separator"
    message = f"{where}: {len(cells)} cells, but the header has {len(header)}"
    return InputError(message + hint)


def check_header(path, names, separator, records, format):
    """Raise InputError where a table without the column of the text has no header, or a wrong one.

    records: the first ones, (line number, cells).
    """
    text = format.text_column
    others = separators_that_name(text, names, separator)
    if others:
        what = f"with {separator!r} between cells the header has no {text!r}"
        raise InputError(f"{path}: {what}; --separator {shell_word(others[0])} would give it")
    for number, cells in records[:20]:
        cells = list(map(clean, cells))
        if text in cells or separators_that_name(text, cells, separator):
            hint = "delete the lines above it"
            raise InputError(f"{path}: the header seems to be in line {number}; {hint}")
    rows = []
    for _, cells in records:
        if len(cells) == len(names) and list(map(clean, cells)) != names:
            rows.append(cells)
    for i, name in enumerate(names):
        cells = [clean(row[i]) for row in rows]
        is_text = len(names) == 1 and " " in name
        if name and (is_text or name in cells or re.fullmatch(r"-?[\d.,]+", name)):
            found = f"it seems to have no header, but {name!r:.40} in its first line"
            flag = f"--header {' '.join(guess_names(rows, len(names), format))}"
            raise InputError(f"{path}: {found}; {flag} names the columns")


def separators_that_name(text, names, separator):
    """The separators by which a line has the column `text`, other than `separator`."""
    line = separator.join(names)
    found = []
    for other in SEPARATORS:
        if other != separator and text in map(clean, line.split(other)):
            found.append(other)
    return found


def shell_word(separator):
    if separator == "\t":
        return "'\\t'"
    return f"'{separator}'"


def guess_names(rows, count, format):
    """Names for the columns of a table without a header: texts are those with several words."""
    texts = [format.text_column, format.pair_column or "text_pair"]
    names = []
    num_labels = 0
    for i in range(count):
        words = sum(len(row[i].split()) for row in rows)
        if texts and words >= 3 * len(rows):
            names.append(texts.pop(0))
            continue
        num_labels += 1
        names.append("label" if num_labels == 1 else f"label{num_labels}")
    return names


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


def open_bytes(path):
    """A file to read bytes from, unpacked if it is packed; "-" is standard input."""
    if path == "-":
        return open(0, "rb", closefd=False)
    module = PACKED.get(Path(path).suffix.lower())
    if module is None:
        return open(path, "rb")
    return import_module(module).open(path, "rb")


def read_lines(path, encoding=None, is_table=False):
    """Yield each line of a text file with its ending; "-" is stdin.

    is_table: whether the first line is a header, and so ends as the others do.
    """
    with open_bytes(path) as file:
        try:
            encoding = marked_encoding(file.peek(4)) or encoding or "utf-8"
            name = codecs.lookup(encoding).name
            if name == "utf-8":
                encoding = "utf-8-sig"  # leaves the mark out
            with io.TextIOWrapper(file, encoding, newline="") as pieces:
                yield from join_returns(pieces, is_table)
        except LookupError:
            raise InputError(f"--text-encoding {encoding}: there is no such encoding") from None
        except UnicodeError:
            place = ""
            if path != "-":
                place = f" at byte {undecodable_byte(path, name)}"
            message = f"{path}: not {name.upper()}{place}; --text-encoding names its encoding"
            raise InputError(message) from None
        except Exception as error:  # each of the modules that unpack has its own
            if Path(path).suffix.lower() not in PACKED:
                raise
            raise InputError(f"{path} cannot be unpacked: {error}") from None


def join_returns(pieces, is_table):
    """Lines, out of pieces that end with "\\n", "\\r\\n" or "\\r".

    Where lines end with "\\n", a "\\r" within them is a character. It ends lines only in a file
    without "\\n", or in a table whose header ends with it.
    """
    first = next(pieces, "")
    if is_table and first.endswith("\r"):
        yield first
        yield from pieces
        return
    waiting = []  # pieces of one line
    has_ends = False
    for piece in itertools.chain([first], pieces):
        waiting.append(piece)
        if piece.endswith("\n"):
            has_ends = True
            yield "".join(waiting)
            waiting = []
    if has_ends:
        waiting = ["".join(waiting)]
    yield from filter(None, waiting)


def marked_encoding(start):
    for mark, name in MARKS:
        if start.startswith(mark):
            return name
    return None


def undecodable_byte(path, encoding):
    """The position of the first byte of a file that is not of its encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with open_bytes(path) as file:
        while chunk := file.read(2**16):
            pending = len(decoder.getstate()[0])  # bytes of a character that the chunk completes
            try:
                decoder.decode(chunk)
            except UnicodeError as error:
                return position - pending + getattr(error, "start", 0)
            position += len(chunk)
    return position


def parse_json(text, where, hint):
    """The value of strict JSON: no number is infinite, and no object has a key twice.

    NaN is None. hint: what to do where more follows after the value.
    """
    try:
        return json.loads(
            text,
            parse_float=finite_number,
            parse_constant=parse_constant,
            object_pairs_hook=unique_keys,
        )
    except (ValueError, RecursionError) as error:
        message = f"{where}: invalid JSON: {error}"
        if "Extra data" in str(error):
            message += f"; {hint}"
        raise InputError(message) from None


def parse_constant(word):
    """NaN, which pandas writes where nothing is known, or infinity."""
    if word == "NaN":
        return None
    return finite_number(word)


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
SEPARATORS = ",;\t|"
STAND_IN = "\ue00d"  # begins what stands for "\r", which csv would take for the end of a row


def read_table(path, format=PLAIN):
    """-> the header of a .csv or .tsv file, its separator, an iterator of (line number, cells).

    The separator is the one that is most frequent in the header: comma, semicolon, tab or bar.
    """
    csv.field_size_limit(2**31 - 1)  # the default is 128 KiB for a cell
    lines = read_lines(path, format.encoding, is_table=True)
    first, skipped = find_header(lines)
    if "\0" in first:
        hint = "it looks like UTF-16 without a mark; --text-encoding names its encoding"
        raise InputError(f"{path}: {hint}")
    is_tsv = ending_of(path) == ".tsv"
    separators = "\t,;|" if is_tsv else SEPARATORS  # the first one where two are equally frequent
    separator = format.separator or max(separators, key=QUOTED.sub("", first).count)
    ahead = LinesAhead(itertools.chain([first], lines))
    if is_tsv and separator == "\t":
        records = read_tsv(ahead, skipped)
    else:
        records = read_csv(path, ahead, separator, skipped)
    number, header = next(records, (0, []))
    if format.header and format.text_column not in map(clean, header):
        if len(header) != len(format.header):
            found = f"it has {len(header)} cells"
            wanted = f"--header names {len(format.header)} columns"
            raise InputError(f"{path}, line {number}: {found}, but {wanted}")
        records = itertools.chain([(number, header)], records)
        header = list(format.header)
    return header, separator, records


def find_header(lines):
    """-> the line of the header, and how many lines stand before it."""
    skipped = 0
    for line in lines:
        if line.strip() and not EXCEL_SEPARATOR.fullmatch(line):
            return line, skipped
        skipped += 1
    return "", skipped


def read_csv(path, ahead, separator, skipped):
    reader = csv.reader(
        map(hide_returns, ahead),
        delimiter=separator,
        skipinitialspace=has_blanks_before_quotes(ahead, separator),
        strict=True,
    )
    number = skipped
    try:
        for cells in reader:
            number = skipped + reader.line_num
            if cells:  # an empty line is not a row
                yield number, [show_returns(cell) for cell in cells]
    except csv.Error as error:
        rule = (
            'a cell that begins with a quote ends with one, and quotes within it are doubled ("")'
        )
        raise InputError(f"{path}, line {number + 1}: {error}; {rule}") from None


def hide_returns(line):
    """A line in which the end alone has a carriage return."""
    content = line.rstrip("\r\n")
    hidden = content.replace(STAND_IN, f"{STAND_IN}0").replace("\r", f"{STAND_IN}1")
    return hidden + line[len(content) :]


def show_returns(cell):
    return cell.replace(f"{STAND_IN}1", "\r").replace(f"{STAND_IN}0", STAND_IN)


def has_blanks_before_quotes(ahead, separator):
    """Whether the first of the first two lines with quotes has blanks before each of them."""
    for line in ahead.peek_each(2):
        if line.count('"') % 2:
            return False
        cells = QUOTED.sub('""', line).split(separator)[1:]
        quoted = [cell for cell in cells if cell.lstrip(" ").startswith('""')]
        if quoted:
            return all(cell.startswith(" ") for cell in quoted)
    return False


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

    def __iter__(self):
        while self.waiting:
            yield self.waiting.popleft()
        yield from self.lines


def read_tsv(ahead, skipped):
    """Yield (line number, cells) of a .tsv file, in which a quote is a character like any other.

    Only a cell that begins and ends with a quote, and whose inner quotes are doubled, is read as
    csv writers mean it. It may hold tabs and line ends. But a line that has as many cells as the
    header is a row, so that no stray quote swallows the rows after it.
    """
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
