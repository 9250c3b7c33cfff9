"""Properties of support/files.py: any file that people have becomes rows, or one clear sentence."""

import argparse
import csv
import importlib
import json
import re
import sys
import types

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support import files
from support.columns import parse_row
from support.errors import InputError

often = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def values_of(path, format=files.PLAIN):
    return [raw.values for raw in files.read_rows(path, format)]


# --------------------------------------------------------------------------------------------------
# JSON

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
json_values = st.recursive(
    scalars, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=4
)
cells = st.text(st.characters(exclude_categories=["Cs"]))
texts = cells.filter(str.strip)
good_row = st.fixed_dictionaries(
    {"text": texts}, optional={"text_pair": texts, "a": cells, "b": st.integers()}
)
keys = st.sampled_from(["text", "text_pair", "a", "b", "\ud800", ""])
any_row = good_row | st.dictionaries(keys, json_values | st.text(min_size=1)) | json_values
any_rows = st.lists(good_row, max_size=8) | st.lists(any_row, max_size=8)


def as_read(value):
    """What of a value of JSON is a label."""
    if isinstance(value, list):
        return [as_read(part) if isinstance(part, str) else part for part in value]
    if not isinstance(value, str):
        return value
    value = files.clean(value)
    if not value or value in files.PLAIN.missing:
        return None
    return value


@often
@given(rows=any_rows, kind=st.sampled_from(["json", "jsonl"]))
@example(rows=[{"text": "0", "text_pair": "\xad"}], kind="json")
def test_arbitrary_json_is_read_unchanged_or_refused(rows, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    content = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    path.write_text(content)
    try:
        read = [parse_row(raw) for raw in files.read_rows(path)]
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert [row.text for row in read] == [row["text"] for row in rows]
    for one, row in zip(read, rows, strict=True):
        pair = row.get("text_pair")
        assert one.text_pair == (pair if as_read(pair) else None)
    for one, row in zip(read, rows, strict=True):
        labels = {}
        for key, value in row.items():
            value = as_read(value)
            if not key.startswith("text") and value is not None:
                labels[key] = value
        assert one.labels == labels


def test_the_splits_and_label_names_of_a_json_file_are_read(tmp_path):
    rows = [{"text": "x"}]
    content = {"train": rows * 2, "test": rows, "label_names": {"a": {"1": "one"}}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    names = {}
    read = list(files.read_rows(tmp_path / "a.json", label_names=names))
    assert [raw.split for raw in read] == ["train", "train", "test"]
    assert read[1].where == f"{tmp_path / 'a.json'}, train row 2"
    assert names == {"a": {"1": "one"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{", "a.json: invalid JSON"),
        ("a.json", "[" * 100_000, "a.json: invalid JSON"),
        ("a.json", '{"text": "x"}\n{"text": "y"}\n', "Extra data.*; .* name the file .jsonl"),
        ("a.json", '{"training": []}', "a.json: must be a list of rows, or an object of lists"),
        ("a.json", '{"train": [], "label_names": ["x"]}', "a.json: label_names must be like"),
        ("a.json", "[]", "a.json: no rows"),
        ("a.csv", "", "a.csv: no rows"),
        ("a.csv", 'text,a\nx,y\n"x,y\n', r"a.csv, line 3: .*quotes within it are doubled"),
        ("a.csv", '\n\ntext,a\n\n"x" ,y\n', r"a.csv, line 5: "),
        ("a.xml", "<rows/>", "a.xml: unknown kind of file"),
    ],
)
def test_what_cannot_be_read_at_all_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        list(files.read_rows(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("a.jsonl", '{"text": ', "a.jsonl, line 2: invalid JSON"),
        ("a.jsonl", '{"text": "x", "a": -Infinity}', "JSON: -Infinity is not a finite number"),
        ("a.jsonl", '{"text": "x"},', "invalid JSON: Extra data.*; a line ends without a comma"),
        ("a.jsonl", '{"text": "x", "a": 1e400}', "invalid JSON: 1e400 is not a finite number"),
        ("a.jsonl", '{"a": 1, "a": 2}', "a.jsonl, line 2: invalid JSON: the key 'a' occurs twice"),
        ("a.csv", "x,y", "a.csv, line 2: 2 cells, but the header has 1"),
    ],
)
def test_a_mistake_in_one_row_leaves_the_others(name, line, message, tmp_path):
    first = "text" if name == "a.csv" else '{"text": "x"}'
    last = "good" if name == "a.csv" else first
    (tmp_path / name).write_text(f"{first}\n{line}\n{last}\n")
    *_, wrong, last = files.read_rows(tmp_path / name)
    assert isinstance(wrong.values, InputError) and re.search(message, str(wrong.values))
    assert wrong.cells == (["x", "y"] if name == "a.csv" else [line])
    assert last.values in ({"text": "good"}, {"text": "x"}) and last.where.endswith("line 3")


# --------------------------------------------------------------------------------------------------
# Tables


def read_cells(path):
    """The cells of a table as rows have them, where no word stands for a missing label."""
    format = files.Format(missing=())
    rows = [parse_row(raw, format) for raw in files.read_rows(path, format)]
    return [(row.text, row.labels.get("a", "")) for row in rows]


def stripped(rows):
    return [(text, files.clean(label)) for text, label in rows]


dialects = {
    "delimiter": st.sampled_from(",;\t|"),
    "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
}
table_rows = st.lists(st.tuples(texts, cells), min_size=1, max_size=6)


@often
@given(rows=table_rows, dialect=st.fixed_dictionaries(dialects))
def test_cells_in_any_dialect_of_csv_come_back_the_same(rows, dialect, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    if dialect["lineterminator"] != "\r\n":  # csv quotes the line ends of its own dialect only
        dialect["quoting"] = csv.QUOTE_ALL
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **dialect).writerows([("text", "a"), *rows])
    assert read_cells(path) == stripped(rows)


def test_a_header_of_quoted_separators_and_one_column_is_read(tmp_path):
    (tmp_path / "a.csv").write_text('"text";"a;b,c,d,e"\ngood;1\n')
    (tmp_path / "b.csv").write_text("text\ngood\nbad\n")
    assert values_of(tmp_path / "a.csv") == [{"text": "good", "a;b,c,d,e": "1"}]
    assert values_of(tmp_path / "b.csv") == [{"text": "good"}, {"text": "bad"}]


@pytest.mark.parametrize("start", ["sep=;\n", "\n\n"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_lines_before_the_header_are_skipped_and_counted(start, ending, tmp_path):
    separator = {"csv": ";", "tsv": "\t"}[ending]
    lines = ["text;a", "x, y;0", "", '"z";1']
    content = start + "\n".join(lines).replace(";", separator)
    (tmp_path / f"a.{ending}").write_text(content)
    skipped = start.count("\n")
    read = list(files.read_rows(tmp_path / f"a.{ending}"))
    assert [raw.values for raw in read] == [{"text": "x, y", "a": "0"}, {"text": "z", "a": "1"}]
    assert [int(raw.where.split()[-1]) for raw in read] == [skipped + 2, skipped + 4]


def test_a_column_that_occurs_twice_has_both_cells(tmp_path):
    (tmp_path / "a.csv").write_text("text,b,b\nx,u,v\n")
    assert values_of(tmp_path / "a.csv") == [{"text": "x", "b": ("u", "v")}]


@often
@given(rows=table_rows)
def test_cells_of_a_tsv_come_back_the_same_from_a_csv_writer(rows, tmp_path_factory):
    """But for tab and line end in one cell: a line with as many cells as the header is a row."""

    def without_tab(cell):
        return cell.replace("\t", "") if re.search("[\r\n]", cell) else cell

    rows = [tuple(map(without_tab, row)) for row in rows]
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("text", "a"), *rows])
    try:
        assert read_cells(path) == stripped(rows)
    except InputError as error:
        assert str(path) in str(error)
        assert any(not text.strip() for text, _ in rows)  # a tab alone


not_ends = st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n")
plain = st.text(not_ends | st.just('"'), min_size=1)


@often
@given(rows=st.lists(st.tuples(plain, plain), min_size=1, max_size=6))
def test_a_quote_in_a_raw_tsv_is_a_character_and_swallows_nothing(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "raw.tsv"
    lines = [f"{text}\t{label}\n" for text, label in [("text", "a"), *rows]]
    path.write_text("".join(lines), "utf-8", newline="")

    def bare(cell):  # a cell that is quoted as a whole loses its quotes
        if re.fullmatch(r'"(?:[^"]|"")*"', cell):
            return cell[1:-1].replace('""', '"')
        return cell

    rows = [(bare(text), bare(label)) for text, label in rows]
    try:
        assert read_cells(path) == stripped(rows)
    except InputError as error:
        assert str(path) in str(error) and any(not text.strip() for text, _ in rows)


@pytest.mark.parametrize("header", ["text,a", "\ufefftext,a", " text , a"])
def test_a_row_that_repeats_the_header_is_none(header, tmp_path):
    (tmp_path / "a.csv").write_text(f"text,a\nx,1\n{header}\ny,2\n", "utf-8")
    _, repeated, last = files.read_rows(tmp_path / "a.csv")
    assert isinstance(repeated.values, files.NoRow) and "line 3: the row repeats" in str(
        repeated.values
    )
    assert last.values == {"text": "y", "a": "2"}


def test_a_first_line_that_is_no_header_is_said(tmp_path):
    path = tmp_path / "a.csv"
    for content, names in (
        ("a good film\na bad one\n", "text"),
        ("x,0.5\ny,1.5\n", "label label2"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=f"it seems to have no header, .* --header {names} n"):
            values_of(path)
    path.write_text("review,mood\nfine,good\nreview,mood\n")  # it has one, and it is repeated
    assert len(values_of(path)) == 2


def test_names_of_columns_make_the_first_line_a_row(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("good\t1\nbad\t0\n")
    format = files.Format(header=("text", "a"))
    expected = [{"text": "good", "a": "1"}, {"text": "bad", "a": "0"}]
    assert values_of(path, format) == expected
    with pytest.raises(InputError, match=r"line 1: it has 2 cells, but --header names 1 columns"):
        values_of(path, files.Format(header=("text",)))
    path.write_text("a\ttext\n1\tgood\n")  # it has a header after all
    assert values_of(path, format) == [{"a": "1", "text": "good"}]


def test_a_separator_that_the_user_names_is_taken(tmp_path):
    (tmp_path / "a.csv").write_text("text:a,b,c\nx, y, z:1\n")
    format = files.format_of(parse_flags("--separator", ":"))
    assert values_of(tmp_path / "a.csv", format) == [{"text": "x, y, z", "a,b,c": "1"}]
    assert files.format_of(parse_flags("--separator", r"\t")).separator == "\t"
    assert files.format_of(parse_flags("--separator", "")).separator is None


def test_blanks_before_quotes_are_skipped_where_all_have_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text, a, b\n"x, y", "1", "z"\n')
    assert values_of(path) == [{"text": "x, y", "a": "1", "b": "z"}]
    path.write_text('text,a\nx, said "y"\n')
    assert values_of(path) == [{"text": "x", "a": ' said "y"'}]


def test_a_carriage_return_ends_a_line_only_where_no_other_character_does(tmp_path):
    path = tmp_path / "a.txt"
    for content, texts in (
        (b"a\rb\nc\n", ["a\rb", "c"]),
        (b"a\r\nb\rc\r\n", ["a", "b\rc"]),
        (b"a\rb\r", ["a", "b"]),
        (b"a\nb\rc", ["a", "b\rc"]),
    ):
        path.write_bytes(content)
        assert [values["text"] for values in values_of(path)] == texts
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,a\nx\ry,1\n"z\r",2\n')
    assert values_of(path) == [{"text": "x\ry", "a": "1"}, {"text": "z\r", "a": "2"}]
    path.write_bytes(b"text,a\rx,1\ry,2\r")
    assert values_of(path) == [{"text": "x", "a": "1"}, {"text": "y", "a": "2"}]


def test_names_and_labels_are_compared_as_they_look():
    assert files.clean(" cafe\u0301\u200b ") == files.clean("caf\xe9") == "caf\xe9"
    flag = "\U0001f3f4\U000e0067\U000e0062\U000e007f"  # its tags are invisible, and mean something
    family = "\U0001f468\u200d\U0001f469"
    assert files.clean(flag) == flag and files.clean(family + "\u200d") == family


def test_keys_of_json_are_compared_as_they_look(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text\u200b": "x", "e\u0301": NaN}\n', "utf-8")
    assert values_of(tmp_path / "a.jsonl") == [{"text": "x", "\xe9": None}]


# --------------------------------------------------------------------------------------------------
# Packed files, and those that pandas reads


@pytest.mark.parametrize("module", ["gzip", "bz2", "lzma"])
def test_packed_files_are_read_and_damaged_ones_refused(module, tmp_path):
    endings = {name: ending for ending, name in files.PACKED.items()}
    path = tmp_path / f"a.csv{endings[module]}"
    packed = importlib.import_module(module).compress(b"text,a\nx,1\n" * 100)
    path.write_bytes(packed)
    assert values_of(path)[0] == {"text": "x", "a": "1"}
    for content in (packed[:-20], b"text,a\nx,1\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"a.csv{endings[module]} cannot be unpacked: "):
            values_of(path)


def test_what_pandas_reads_becomes_rows_where_it_is_installed(tmp_path, monkeypatch):
    class Frame:
        def to_json(self, **settings):
            assert settings["orient"] == "records"
            return '[{"text": "x", "a": 1.0, "b": null}]'

    pandas = types.SimpleNamespace(read_parquet=lambda path: Frame(), read_excel=None)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    [row] = files.read_rows(tmp_path / "a.parquet")
    assert row.values == {"text": "x", "a": 1.0, "b": None} and row.where.endswith("row 1")
    with pytest.raises(InputError, match=r"a.xlsx cannot be read: "):
        values_of(tmp_path / "a.xlsx")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pandas reads such files, and is not installed; pip"):
        values_of(tmp_path / "a.xlsx")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; name the files in it"):
        values_of(tmp_path)


# --------------------------------------------------------------------------------------------------
# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_an_encoding_is_told_by_its_mark(encoding, tmp_path):
    (tmp_path / "a.csv").write_bytes("text,a\ncafé,x\n".encode(encoding))
    assert values_of(tmp_path / "a.csv") == [{"text": "café", "a": "x"}]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16-le", "like UTF-16 without a mark|not UTF-8 at byte"),
        ("cp1252", "not UTF-8 at byte 10"),
    ],
)
def test_an_encoding_without_a_mark_is_to_be_named(encoding, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,a\ncafé,x\n".encode(encoding))
    with pytest.raises(InputError, match=f"({message}).*; --text-encoding names its encoding"):
        values_of(path)
    assert values_of(path, files.Format(encoding=encoding)) == [{"text": "café", "a": "x"}]
    with pytest.raises(InputError, match="--text-encoding klingon: there is no such encoding"):
        values_of(path, files.Format(encoding="klingon"))


def test_the_first_byte_that_is_wrong_is_found_far_into_a_file(tmp_path):
    (tmp_path / "a.txt").write_bytes("é".encode() * 100_001 + b"\xff")
    with pytest.raises(InputError, match=r"a.txt: not UTF-8 at byte 200002;"):
        values_of(tmp_path / "a.txt")


# --------------------------------------------------------------------------------------------------
# Flags


def parse_flags(*arguments):
    parser = argparse.ArgumentParser()
    files.format_flags(parser.add_argument)
    return parser.parse_args(arguments)


def test_flags_make_a_format_and_those_of_a_run_count_where_they_are_silent():
    assert files.format_of(parse_flags()) == files.PLAIN
    flags = ["--text-column", "review", "--missing", "--multi-label", "tags", "b=;"]
    args = parse_flags(*flags, "--text-encoding", "cp1252")
    format = files.format_of(args)
    assert format == files.Format("review", None, "cp1252", (), {"tags": "|", "b": ";"})
    again = files.format_of(parse_flags("--pair-column", "more"), vars(args))
    assert again == files.Format("review", "more", None, (), {"tags": "|", "b": ";"})
    damaged = {"text_column": 3, "missing": "x", "multi_label": None}
    assert files.format_of(parse_flags(), damaged) == files.PLAIN


@pytest.mark.parametrize(
    ("word", "separators"),
    [
        ("tags", {"tags": "|"}),
        ("tags= ", {"tags": " "}),
        (r"tags=\n", {"tags": "\n"}),
        ("tags= ;", {"tags": ";"}),
        ("tags===", {"tags": "=="}),
        ("a=b=|", {"a=b": "|"}),
        ("tags=and", {"tags": "and"}),
    ],
)
def test_the_separator_of_labels_follows_the_name_of_their_column(word, separators):
    assert files.format_of(parse_flags("--multi-label", word)).multi_label == separators


def test_a_separator_that_is_missing_or_too_long_is_refused():
    with pytest.raises(InputError, match="--multi-label tags=: the separator is missing"):
        files.format_of(parse_flags("--multi-label", "tags="))
    with pytest.raises(InputError, match="--separator ;;: it must be one character"):
        files.format_of(parse_flags("--separator", ";;"))
