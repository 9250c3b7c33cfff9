"""Properties of support/columns.py: which columns are learned, as what, and what is said of them.

The files of cases/ are such as people really have.
"""

import argparse
import json
import shlex
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import columns, mistakes
from support.columns import Column, Notes, Row, read_data
from support.errors import InputError
from support.files import Format, format_flags, format_of

CASES = Path(__file__).parent / "cases"


def make_rows(*labels):
    """A Row for each {column: label}."""
    return [Row(f"row {i}", f"text {i}", None, row) for i, row in enumerate(labels)]


def write(path, *lines):
    Path(path).write_text("".join(line + "\n" for line in lines), "utf-8")
    return str(path)


def write_column(folder, cells):
    lines = [f"film {i},{cell}" for i, cell in enumerate(cells)]
    return [write(folder / "column.csv", "text,a", *lines)]


def labels_of(found):
    return {column.name: column.labels for column in found}


# --------------------------------------------------------------------------------------------------
# From files to columns


def test_all_formats_give_the_same_rows(tmp_path):
    rows = [
        {
            "text": 'say "yes",\nthen leave',
            "text_pair": "b",
            "mood": "good",
            "grade": 1,
            "stars": 0.5,
        },
        {"text": "no\ttab", "mood": "bad", "grade": 2},
        {"text": "ünï ☃ 👍", "text_pair": "x", "grade": 1, "stars": 3.0},
        {"text": "plain", "mood": "bad", "stars": 2.25},
        {"text": "more", "mood": "good", "grade": 2},
    ] * 40
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps({"train": rows}), "utf-8")
    lines = [json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(lines), "utf-8")
    keys = ["mood", "text", "grade", "text_pair", "stars"]
    table = [keys]
    for row in rows:
        table.append([str(row.get(key, "")).replace('"', '""') for key in keys])
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        lines = [separator.join(f'"{cell}"' for cell in line) for line in table]
        (tmp_path / name).write_text("\r\n".join(lines), "utf-8-sig")
    results = []
    for name in ("a.json", "b.json", "a.jsonl", "a.csv", "a.tsv"):
        path = str(tmp_path / name)
        found, splits = read_data([path], names=["mood", "grade", "stars"], seed=3)
        train = [(row.text, row.text_pair, row.labels) for row in splits["train"]]
        results.append((found, train))
    assert all(result == results[0] for result in results)
    assert 180 <= len(results[0][1]) <= 190


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    content=st.binary(max_size=200),
    kind=st.sampled_from(["json", "jsonl", "csv", "tsv", "txt"]),
)
def test_arbitrary_bytes_make_columns_or_the_documented_error(content, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    header = b"text,a\n" if kind == "csv" else b""
    path.write_bytes(header + content)
    try:
        found, splits = read_data([str(path)])
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert found and splits["train"]
    list(mistakes.data_warnings(found, splits))


def read(arguments):
    """Read data as flags of train.py ask for it -> columns, splits, notes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+")
    for name in ("--val", "--test", "--regression", "--classification"):
        parser.add_argument(name, nargs="+", default=[])
    parser.add_argument("--tasks", nargs="+")
    format_flags(parser.add_argument)
    args = parser.parse_args(shlex.split(arguments))
    files = []
    for names in (args.data, args.val, args.test):
        files.append([str(CASES / name) for name in names])
    kinds = dict.fromkeys(args.regression, "regression")
    kinds.update(dict.fromkeys(args.classification, "classification"))
    notes = Notes()
    found, splits = read_data(*files, args.tasks, format=format_of(args), kinds=kinds, notes=notes)
    notes.messages += mistakes.data_warnings(found, splits)
    return found, splits, notes


MOOD = {"sentiment": ["negative", "positive"]}
TAGS = {"tags": ["acting", "negative", "positive", "sound", "story"]}
TOPIC = {"topic": ["acting", "sound", "story"]}
NAN_CLASSES = {
    "sentiment": ["nan", "negative", "positive"],
    "topic": ["NA", "acting", "sound", "story"],
}
JIGSAW = {name: [0, 1] for name in ("toxic", "insult", "threat")}


@pytest.mark.parametrize(
    ("arguments", "labels", "rows", "said"),
    [
        ("--data base.csv", MOOD | TOPIC, 60, []),
        ("--data floatint.csv", MOOD | {"spam": [0, 1]}, 60, []),
        ("--data raw_quotes.tsv", MOOD, 60, []),
        ("--data raw_quotes_swallow.tsv", MOOD, 60, []),
        (
            "--data nanlabels.csv",
            MOOD | TOPIC,
            57,
            ["15 cells of 'sentiment' hold 'nan', which counts", "12 cells of 'topic' hold 'NA'"],
        ),
        ("--data nanlabels.csv --missing", NAN_CLASSES, 60, []),
        ("--data user_id.csv", MOOD, 60, ["'user_id': 'its name', 'day': 'dates'"]),
        ("--data id.csv", MOOD, 60, ["'review_id': 'its name', 'date': 'its name'"]),
        ("--data index.csv", MOOD, 60, ["'': 'no name'"]),
        ("--data jigsaw_onehot.csv --tasks toxic insult threat", JIGSAW, 60, []),
        ("--data jigsaw_onehot.csv", JIGSAW, 60, ["'id': 'its name'"]),
        ("--data list_labels.json", TAGS, 60, []),
        ("--data pipe_lists.csv --multi-label tags", TAGS, 60, []),
        ("--data boolean.json", {"is_positive": ["False", "True"]}, 60, []),
        ("--data semicolon.csv", MOOD | TOPIC, 60, []),
        ("--data latin1.csv --text-encoding cp1252", MOOD, 60, []),
        ("--data excel_blank_tail.csv", MOOD, 60, ["3 empty rows were left out"]),
        (
            "--data base.csv --test test_unseen.csv",
            MOOD | TOPIC,
            60,
            [
                "1 test labels of 'topic' are in no training row and count as wrong: 'costume'",
                "no test row has a label of 'sentiment'",
            ],
        ),
        (
            "--data user_id.csv --tasks sentiment user_id --regression user_id",
            MOOD | {"user_id": []},
            60,
            [],
        ),
    ],
)
def test_what_is_learned_and_said_of_files_as_people_have_them(arguments, labels, rows, said):
    found, splits, notes = read(arguments)
    assert labels_of(found) == labels
    assert len(splits["train"]) + len(splits["validation"]) == rows
    text = f"{notes.left_out} {notes.messages}"
    assert all(words in text for words in said), text


LABEL = {"label": ["negative", "positive"]}
NLI = "--text-column sentence1 --pair-column sentence2"
SECOND_HARVEST = [
    ("concat.csv", LABEL, 48, "1 rows were left out: the row repeats the header"),
    ("concat_float.csv", {"score": []}, 48, "1 rows were left out: the row repeats the header"),
    (
        "split_col.csv",
        LABEL,
        48,
        "'split' says of which split a row is: 30 train, 9 validation, 9 test rows",
    ),
    ("split_col.csv --split-column ''", LABEL, 48, "{'split': 'its name'}"),
    (
        "split_col.csv --tasks split",
        {"split": ["test", "train", "validation"]},
        48,
        "",
    ),
    ("emobank_like.csv", {"V": [], "A": [], "D": []}, 48, "30 train, 9 validation, 9 test rows"),
    (f"nli_minus1.csv {NLI}", {"label": [-1, 0, 1, 2]}, 48, "is it a class? --missing -1 makes"),
    (
        f"nli_minus1.csv {NLI} --missing -1",
        {"label": [0, 1, 2]},
        44,
        "4 cells of 'label' hold '-1'",
    ),
    (f"nli_minus1.jsonl {NLI} --missing -1", {"label": [0, 1, 2]}, 44, "4 cells"),
    (
        f"nli_dash.jsonl {NLI} --tasks gold_label",
        {"gold_label": ["-", "contradiction", "entailment", "neutral"]},
        48,
        "4 training rows of 'gold_label' have the label '-': is it a class? --missing - makes",
    ),
    (
        f"nli_dash.jsonl {NLI} --tasks gold_label --missing -",
        {"gold_label": ["contradiction", "entailment", "neutral"]},
        44,
        "4 cells of 'gold_label' hold '-'",
    ),
    (
        "tags_space.csv",
        {"tags": ["acting", "acting story", "sound", "sound story", "story"]},
        48,
        "'tags' looks multi-label ('acting story'), but each combination is one label; "
        "--multi-label 'tags= ' splits them",
    ),
    ("tags_space.csv --multi-label 'tags= '", {"tags": ["acting", "sound", "story"]}, 48, ""),
    (
        "tags_newline.csv",
        {"tags": ["acting", "acting\nstory", "sound", "sound\nstory", "story"]},
        48,
        r"--multi-label 'tags=\n' splits them",
    ),
    (r"tags_newline.csv --multi-label 'tags=\n'", {"tags": ["acting", "sound", "story"]}, 48, ""),
    ("empty_texts.csv", LABEL, 45, "3 rows were left out: the text must be a string that is not"),
    ("null_text.jsonl", LABEL, 46, "2 rows were left out: the text must be a string that is not"),
    ("na_text.csv", LABEL, 45, "3 rows were left out: the text is 'NA', which means none"),
    ("na_text.csv --missing", LABEL, 48, "1 texts have more than one label"),
    ("noheader_two.csv --header text label", LABEL, 48, ""),
    (
        "noheader_agnews.csv --header label text text_pair",
        {"label": [1, 2, 3, 4]},
        48,
        "",
    ),
    (
        "icd.csv",
        {"icd": ["008.45", "038.11", "250.00", "401.9"]},
        48,
        "the cells of 'icd' are read as words, not numbers, as '008.45'; --regression icd makes",
    ),
    ("dewey.csv", {"code": ["007.1", "07.10", "7.1", "71"]}, 48, "read as words, not numbers"),
    ("version.csv", {"version": ["1.1", "1.10", "1.9", "2.0"]}, 48, "read as words, not numbers"),
    ("version.csv --regression version", {"version": []}, 48, ""),
    ("nan.jsonl", LABEL | {"score": []}, 48, ""),
    ("doccano_one.jsonl", LABEL, 48, "'label' has lists of one label each, read as classes"),
    ("tie_header.csv --separator ;", {"label, main": ["negative", "positive"]}, 48, ""),
    ("space_quotes.csv", LABEL, 48, ""),
    ("german.csv", {"note": []}, 48, "the cells of 'note' are read as numbers, '3,5' as 3.5"),
    ("percent.csv", {"share": []}, 48, "the cells of 'share' are read as numbers, '0%' as 0"),
    ("currency.csv", {"price": []}, 48, "the cells of 'price' are read as numbers, '$5.50' as 5.5"),
    (
        "currency.csv --classification price",
        {"price": ["$15.50", "$25.50", "$35.50", "$5.50"]},
        48,
        "",
    ),
    ("none_label_only.csv --missing", {"hate": ["None", "racism"]}, 48, ""),
    (
        "mysql_null.csv",
        {"label": [r"\N", "negative", "positive"]},
        48,
        r"have the label '\\N': is it a class? --missing '\N' makes it none",
    ),
    (r"mysql_null.csv --missing '\N'", LABEL, 42, "6 cells of 'label' hold"),
    ("missing_and_nan.csv --missing unknown", LABEL, 36, "6 cells of 'label' hold 'nan'"),
    ("nan_strings.jsonl", LABEL, 43, "5 cells of 'label' hold 'nan'"),
    ("unknown_word.jsonl --missing unknown", LABEL, 43, "5 cells of 'label' hold 'unknown'"),
    ("blank_label.jsonl", LABEL, 42, "6 cells of 'label' hold ' '"),
    ("nfc_nfd.csv", {"label": ["bar", "café"]}, 48, r"'cafe\u0301' as 'café'"),
    ("zwsp_label.csv", LABEL, 48, "8 labels of 'label' are read without invisible characters"),
    ("oneword.csv", {"label": ["0", "1", "x"]}, 48, "in 1 rows words: 'x'"),
    (
        "case_cols_a.csv case_cols_b.csv",
        {"Label": ["negative", "positive"]} | LABEL,
        48,
        "'Label', 'label' differ only in case",
    ),
    ("label_names_typo.json", {"label": [0, 1]}, 48, "label_names has 'lable', and no row does"),
    ("eq_col.csv", {"a=b": ["x", "x|y", "y"]}, 48, "--multi-label 'a=b=|' splits them"),
    ("eq_col.csv --multi-label 'a=b=|'", {"a=b": ["x", "y"]}, 48, ""),
    (
        "kaggle_disaster.csv",
        {"keyword": ["ablaze", "body%20bag"], "target": [0, 1]},
        48,
        "'location': 'different in most rows'",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "labels", "rows", "said"), SECOND_HARVEST, ids=[c[0] for c in SECOND_HARVEST]
)
def test_what_is_learned_and_said_of_the_second_harvest(arguments, labels, rows, said):
    found, splits, notes = read(f"--data {arguments}")
    assert labels_of(found) == labels
    assert sum(map(len, splits.values())) == rows
    assert said in "; ".join([str(notes.left_out), *notes.messages])
    if not said:
        assert [message for message in notes.messages if "none is held out" not in message] == []


def test_numbers_as_people_write_them_keep_their_value(tmp_path):
    cells = ["1.234,50", "-0,5", "12,25", "3"]
    path = write(tmp_path / "a.csv", "text;a", *[f"x {i};{cells[i % 4]}" for i in range(40)])
    [column], splits = read_data([path])
    values = {row.labels["a"] for row in splits["train"]}
    assert values == {1234.5, -0.5, 12.25, 3.0} and column.decimal == ","
    cells = ["$1,000", "$2,500.75", "-$3"]
    lines = [f'x {i},"{cells[i % 3]}"' for i in range(40)]
    [column], splits = read_data([write(tmp_path / "b.csv", "text,a", *lines)])
    values = {row.labels["a"] for row in splits["train"]}
    assert values == {1000.0, 2500.75, -3.0} and column.decimal == "."


def test_numbers_among_words_are_said_and_never_split_at_the_comma(tmp_path):
    cells = ["3,5", "1,5", "4", "none given"]
    path = write(tmp_path / "a.csv", "text;a", *[f"x {i};{cells[i % 4]}" for i in range(40)])
    [said] = warnings_of([path])
    assert said.startswith("'a' has numbers such as '1,5', but also 'none given', so that each is")


def test_numbers_in_quotes_of_json_are_said_to_be_classes(tmp_path):
    rows = [{"text": f"x {i}", "a": ["3,5", "12%"][i % 2]} for i in range(40)]
    notes = Notes()
    [column], _ = read_data([write(tmp_path / "a.json", json.dumps(rows))], notes=notes)
    assert column.labels == ["12%", "3,5"]
    assert notes.messages[0].startswith("'a' has texts such as '3,5', so that each is a class")


@pytest.mark.parametrize("flags", ["--val", "--test"])
def test_a_file_without_second_texts_is_refused_where_training_rows_have_them(flags):
    command = f"--data rel_train.csv {flags} "
    message = "no 'text_pair' among the columns .*, and the model learns from pairs; --pair-column"
    with pytest.raises(InputError, match=message):
        read(command + "rel_test_misnamed.csv")
    assert (
        len(read(command + "rel_test.csv")[1]["test" if flags == "--test" else "validation"]) == 60
    )
    read(command + "rel_test_misnamed.csv --pair-column ''")


def test_whether_rows_are_pairs():
    rows = make_rows(*[{}] * 100)
    pairs = [row._replace(text_pair="b") for row in rows]
    assert columns.all_have_pairs(pairs) is columns.all_have_pairs(pairs[:99] + rows[:1]) is True
    assert columns.all_have_pairs(rows) is False
    assert columns.all_have_pairs(pairs + rows) is None
    assert columns.row_hash(rows[0]) != columns.row_hash(pairs[0]) != columns.row_hash(pairs[1])


@pytest.mark.parametrize("name", ["fold", "is_test", "weight", "sample_weight", "dev_set"])
def test_columns_about_the_part_of_a_row_are_left_out(name, tmp_path):
    lines = [f"film {i},{i % 2},{'uv'[i % 2]}" for i in range(20)]
    notes = Notes()
    [column], _ = read_data([write(tmp_path / "a.csv", f"text,{name},t", *lines)], notes=notes)
    assert column.name == "t" and notes.left_out == {name: "its name"}


def test_a_test_file_with_splits_gives_its_test_rows_and_one_without_them_all(tmp_path):
    lines = [f"film {i},{'xy'[i % 2]},{'Train' if i < 30 else 'TEST'}" for i in range(40)]
    path = write(tmp_path / "a.csv", "text,a,part", *lines)
    _, splits = read_data([path], (), [path])
    assert [len(rows) for rows in splits.values()] == [30, 0, 20]  # the file is given twice
    other = write(tmp_path / "b.csv", "text,a,part", *lines[:4])
    _, splits = read_data([path], (), [other])
    assert len(splits["test"]) == 14
    with pytest.raises(InputError, match="'a' is 'x' here, which is no split; splits are called"):
        read_data([path], format=Format(split_column="a"))


def test_a_column_of_joined_labels_is_never_taken_silently_for_classes():
    found, _, notes = read("--data pipe_lists.csv")
    assert found[0].kind == "classification" and len(found[0].labels) == 6
    _, message = notes.messages
    assert message.startswith("'tags' looks multi-label ('negative|acting'), but each combination")
    assert message.endswith("; --multi-label 'tags=|' splits them")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--data base.csv --val test_misnamed.csv",
            r"test_misnamed.csv: no validation row has a label of the tasks 'sentiment', 'topic'; "
            r"its columns are 'text', 'Sentiment'; --tasks names the tasks",
        ),
        (
            "--data base.csv --test test_misnamed.csv",
            r"test_misnamed.csv: no test row has a label of the tasks",
        ),
        ("--data latin1.csv", r"latin1.csv: not UTF-8 at byte 50; --text-encoding"),
        ("--data base.csv --multi-label topics", r"--multi-label: there is no task 'topics'"),
        (
            "--data base.csv --multi-label topic --regression topic",
            r"--regression topic: it is multi-label",
        ),
        ("--data list_labels.json --regression tags", r"--regression tags: it is multi-label"),
        (
            "--data base.csv --tasks nothing",
            r"no task 'nothing'; the rows have 'sentiment', 'topic'; --tasks picks",
        ),
        (
            "--data base.csv --regression topic",
            r"base.csv, line 2: 'topic' is 'sound' here, which is not a number; --missing",
        ),
        (
            "--data base.csv --text-column topics",
            r"no 'topics' among the columns 'text', 'sentiment', 'topic'; "
            r"'text' holds sentences: --text-column text",
        ),
        (
            "--data base.csv --pair-column nothing",
            r"base.csv: no 'nothing' among the columns .*; --pair-column",
        ),
        (
            "--data noheader_two.csv",
            "noheader_two.csv: it seems to have no header, but 'negative' in its first line; "
            "--header text label names the columns",
        ),
        ("--data noheader_agnews.csv", "--header label text text_pair names the columns"),
        ("--data empty_texts.csv --strict", "empty_texts.csv, line 9: the text must be a string"),
        ("--data comment_top.csv", "the header seems to be in line 2; delete the lines above it"),
        ("--data title_row.csv", "the header seems to be in line 3; delete the lines above it"),
        (
            "--data trailing_cells.tsv",
            "line 2: 5 cells, but the header has 2; those at the end are",
        ),
        ("--data tie_header.csv", "the header has no 'text'; --separator ';' would give it"),
        ("--data fasttext.txt", 'a .txt has no labels; write each line .* {"text": "...", "label"'),
        ("--data lines_cr.txt", "a .txt has no labels; name a .csv"),
        ("--data array.jsonl", "array.jsonl: it begins with a list; .* name it .json"),
        ("--data num_text.jsonl", "line 8: the text must be a string, and is 2012; write it in"),
        ("--data none_label_only.csv", "24 times 'None'; --missing alone makes that a label"),
        (
            "--data eq_col.csv --multi-label a=b",
            r"no task 'a'; write 'a=b=\|' for the column 'a=b'",
        ),
        ("--data split_col.csv --split-column no", "no 'no' among the columns 'text', 'label'"),
    ],
)
def test_what_is_refused_is_said_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        read(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "lines", "labels", "said"),
    [
        (
            "comma.csv",
            ["text;a", *["x;0,5", "z;1,0"] * 10],
            {"a": []},
            "the cells of 'a' are read as numbers, '0,5' as 0.5; --classification a",
        ),
        (
            "some.csv",
            ["text,a", *["x,a|b", "x,a", "z,b"] * 10],
            {"a": ["a", "a|b", "b"]},
            "'a' looks multi-label ('a|b')",
        ),
        (
            "list.csv",
            ["text,a,b", *["x,\"['u', 'v']\",0", "z,\"['u']\",1"] * 10],
            {"b": [0, 1]},
            "{'a': 'lists in brackets'}",
        ),
        ("bools.csv", ["text,a", *["x,True", "z,False"] * 10], {"a": ["False", "True"]}, ""),
        (
            "rows.ndjson",
            ['{"text": "x", "a": 1}', '{"text": "y", "a": 2}'] * 10,
            {"a": [1, 2]},
            "",
        ),
        (
            "two.csv",
            ["text,a,b,b", *["x,0,u,v", "z,1,v,u"] * 10],
            {"a": [0, 1]},
            "{'b': 'two columns of this name'}",
        ),
    ],
)
def test_more_tables_as_people_have_them(name, lines, labels, said, tmp_path):
    notes = Notes()
    found, splits = read_data([write(tmp_path / name, *lines)], notes=notes)
    assert labels_of(found) == labels
    messages = [*notes.messages, *mistakes.data_warnings(found, splits)]
    assert said in f"{notes.left_out} {messages}"


# --------------------------------------------------------------------------------------------------
# Kinds


def test_kinds_of_columns_follow_from_their_labels(tmp_path):
    lines = ["a,1,1,x,1", "b,2,2.5,y,z", *["c,1,3,x,1", "d,2,2.5,y,z"] * 6]
    found, splits = read_data([write(tmp_path / "a.csv", "text,i,f,s,m", *lines)])
    assert labels_of(found) == {"i": [1, 2], "f": [], "s": ["x", "y"], "m": ["1", "z"]}
    kinds = ["classification", "regression", "classification", "classification"]
    assert [column.kind for column in found] == kinds
    assert [column.label_type for column in found] == [int, float, str, str]
    numbers = [row.labels["f"] for row in splits["train"]]
    assert found[1].mean == np.mean(numbers) and found[1].std == np.std(numbers)
    for column in (found[0], *found[2:]):
        counts = Counter(row.labels[column.name] for row in splits["train"])
        assert column.counts == [counts[label] for label in column.labels]


def test_signs_and_exponents_are_numbers_only_where_they_are_written_as_such(tmp_path):
    found, _ = read_data([write(tmp_path / "b.csv", "text,s,t", *["a,01,+1", "b,1,-1"] * 9)])
    assert labels_of(found) == {"s": ["01", "1"], "t": ["+1", "-1"]}
    lines = ["a,1e-1", "b,.5", "c,-2"] * 9
    [column], _ = read_data([write(tmp_path / "c.csv", "text,f", *lines)])
    assert column.kind == "regression"
    rows = [{"text": "a", "n": n} for n in [1, 2, 2.5] * 9]
    [column], _ = read_data([write(tmp_path / "a.json", json.dumps(rows))])
    assert column.kind == "regression"


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "0", ""] * 9, [0, 1]),
        (["1.0", "0.0", ""] * 9, [0, 1]),
        (["1", "0.00", "nan"] * 9, [0, 1]),
        (["1.0", "2.5"] * 9, []),
        (["-1", "0", "1"] * 9, [-1, 0, 1]),
        (["007", "1"] * 9, ["007", "1"]),
        (["1e3", "2e3"] * 9, ["1e3", "2e3"]),
        (["True", "False"] * 9, ["False", "True"]),
        (["1", "1" + "0" * 30] * 9, ["1", "1" + "0" * 30]),
        ([" 1", "0.", "<NA>"] * 9, [0, 1]),
        (["none", "None", "some"] * 9, ["none", "some"]),
    ],
)
def test_whole_numbers_are_classes_and_fractions_are_regression(cells, labels, tmp_path):
    path = write_column(tmp_path, cells)
    [column], _ = read_data(path)
    assert column.labels == labels
    if labels == [0, 1]:
        [column], splits = read_data(path, kinds={"a": "regression"})
        assert column.kind == "regression" and column.labels == []
        assert {type(row.labels["a"]) for row in splits["train"]} == {float}


def test_any_other_kind_that_the_user_names_reads_labels_as_classes(tmp_path):
    path = write_column(tmp_path, ["3", "1.0", "2"] * 9)
    [column], splits = read_data(path, kinds={"a": "ordinal"})
    assert (column.kind, column.label_type, column.labels) == ("ordinal", int, [1, 2, 3])
    assert {row.labels["a"] for row in splits["train"]} == {1, 2, 3}
    path = write_column(tmp_path, ["1.5", "2.5", "x"] * 9)
    [column], _ = read_data(path, kinds={"a": "classification"})
    assert (column.kind, column.labels) == ("classification", ["1.5", "2.5", "x"])
    path = write_column(tmp_path, [f"id {i}" for i in range(20)])
    with pytest.raises(InputError, match="no column looks like a task"):
        read_data(path)
    with pytest.raises(InputError, match="can be held out"):  # it is learned where it is named
        read_data(path, kinds={"a": "classification"})


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"b": "ordinal"}, "--kinds: there is no task 'b'"),
        ({"b": "regression"}, "--regression: there is no task 'b'"),
        ({"b": "multi_label"}, "--multi-label: there is no task 'b'"),
        ({"tags": "ordinal"}, "--kinds tags=ordinal: it is multi-label"),
        ({"a": "multi_label"}, "row 1: 'a' is 0 here; multi-label rows have lists"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(kinds, message, tmp_path):
    rows = [{"text": f"x {i}", "a": i % 2, "tags": ["u", "v"][: i % 3]} for i in range(30)]
    with pytest.raises(InputError, match=message):
        read_data([write(tmp_path / "a.json", json.dumps(rows))], kinds=kinds)


def test_numbers_whose_mean_or_deviation_is_not_finite_are_refused(tmp_path):
    path = write_column(tmp_path, ["1e308", "1.5e308", "0.5"] * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(InputError, match="the numbers of 'a' span too much or too little"):
            read_data(path)


@pytest.mark.parametrize("label", [["x"], {"x": 1}, 10**400, "x", float("inf"), True])
def test_what_is_not_a_number_is_refused_in_rows_of_other_files(label):
    column = Column("a", "regression", float)
    with pytest.raises(InputError, match=r"row 0: the label .* of 'a' is not a finite number"):
        columns.convert_labels(make_rows({"a": label}), [column])


# --------------------------------------------------------------------------------------------------
# Which columns are learned


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("id", ["1", "2"] * 10, "its name"),
        ("user_id", ["1", "2"] * 10, "its name"),
        ("reviewId", ["1", "2"] * 10, "its name"),
        ("Unnamed: 0", ["1", "2"] * 10, "its name"),
        ("day", ["2024-01-01", "2024-01-02T10:00"] * 10, "dates"),
        ("day", ["01.02.2024", "3/4/24"] * 10, "dates"),
        ("hash", [f"{i:04x}x" for i in range(20)], "different in most rows"),
        ("row", [str(i) for i in range(20)], "different in most rows"),
        (
            "title",
            ["a story of two friends who meet", "the other side of the other hill"] * 10,
            "free text",
        ),
        ("source", ["web"] * 20, "one value only"),
        ("kind", ["a", "b"] * 10, None),
        ("idea", ["a", "b"] * 10, None),
        ("grid", ["a", "b"] * 10, None),
        ("candidate", ["a", "b"] * 10, None),
        ("stars", [f"{i}.5" for i in range(20)], None),
    ],
)
def test_which_columns_are_learned(name, cells, reason, tmp_path):
    lines = [f"film {i},{cell},{i % 2}" for i, cell in enumerate(cells)]
    notes = Notes()
    found, _ = read_data([write(tmp_path / "a.csv", f"text,{name},liked", *lines)], notes=notes)
    names = [column.name for column in found]
    if reason:
        assert notes.left_out == {name: reason} and names == ["liked"]
    else:
        assert notes.left_out == {} and names == [name, "liked"]


def test_a_mistake_in_a_column_counts_only_where_it_is_learned(tmp_path):
    lines = [f"film {i},{i % 2},{'1.5' if i else 'odd'}" for i in range(40)]
    path = [write(tmp_path / "a.csv", "text,label,mixed", *lines)]
    [column], _ = read_data(path, all_tasks=False)
    assert column.labels == [0, 1]
    with pytest.raises(InputError, match=r"a.csv, line 2: 'mixed' is 'odd' here, but 1.5 in .*3"):
        read_data(path)


def test_a_label_of_validation_or_test_rows_does_not_change_the_kind_of_a_column(tmp_path):
    train = write_column(tmp_path, ["1", "2"] * 10)
    test = write(tmp_path / "t.csv", "text,a", "one,2.0", "another,?")
    [column], splits = read_data(train, (), [test])
    assert column.labels == [1, 2] and [row.labels["a"] for row in splits["test"]] == [2, "?"]


# --------------------------------------------------------------------------------------------------
# What is said


def warnings_of(path):
    return list(mistakes.data_warnings(*read_data(path)))


def test_many_classes_and_cells_of_joined_labels_are_said(tmp_path):
    [said] = warnings_of(write_column(tmp_path, [str(i % 120) for i in range(300)]))
    assert said.startswith("'a' has 120 classes of 2.") and "--regression a makes it" in said
    [said] = warnings_of(write_column(tmp_path, ["x|y", "x", "x|y|z", "y|z", "z"] * 9))
    assert said.startswith("'a' looks multi-label")


def test_spellings_contradictions_and_shared_rows_are_said(tmp_path):
    lines = [f"film {i},{'good' if i % 2 else 'bad'},{i % 3}" for i in range(40)]
    train = write(tmp_path / "a.csv", "text,mood,stars", *lines, "film 1,Good ,1", "film 2,bad,0")
    val = write(tmp_path / "b.csv", "text,mood,stars", *lines[:5], "new,bad,0")
    assert list(mistakes.data_warnings(*read_data([train], [val]))) == [
        "'mood' has separate labels that differ only in case or blanks: 'Good', 'good'",
        "1 texts have more than one label of 'mood'",
        "1 texts have more than one label of 'stars'",
        "5 validation rows are also train rows",
    ]


def test_association_is_one_for_labels_that_give_each_other_away_and_near_zero_by_chance():
    rng = np.random.default_rng(0)
    rows = [{"a": 1}, {"d": "alone"}]
    for a in rng.integers(3, size=3000).tolist():
        rows.append({"a": a, "b": "xyz"[a], "c": int(rng.integers(4))})
    found = [Column(name, "classification", int) for name in "abcd"]
    found += [Column("n", "regression", float), Column("t", "multi_label", str)]
    values = {}
    for v, one, other in mistakes.associations(found, make_rows(*rows)):
        values[one, other] = v
    assert set(values) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert values["a", "b"] == pytest.approx(1) and values["a", "c"] < 0.05


# --------------------------------------------------------------------------------------------------
# Splits


def counts_of(rows):
    """{the columns that label a row: how many such rows there are}"""
    return Counter(tuple(row.labels) for row in rows)


def test_files_that_label_different_columns_train_together(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MIN_TO_SPLIT", 10)
    contents = {
        "a.jsonl": [{"text": f"a {i}", "a": i % 3} for i in range(60)],
        "b.jsonl": [{"text": f"b {i}", "b": "xy"[i % 2]} for i in range(40)],
        "v.jsonl": [{"text": f"v {i}", "a": i % 3, "b": None} for i in range(9)],
    }
    paths = []
    for name, rows in contents.items():
        paths.append(write(tmp_path / name, *map(json.dumps, rows)))

    found, splits = read_data(paths[:2])
    assert [column.name for column in found] == ["a", "b"]
    assert counts_of(splits["validation"]) == {("a",): 6, ("b",): 4}
    found, splits = read_data(paths[:2], paths[2:], names=["b", "a"])
    assert [column.name for column in found] == ["b", "a"]
    assert counts_of(splits["validation"]) == {("a",): 9, ("b",): 4}  # only b had none
    found, splits = read_data(paths[:2], all_tasks=False)
    assert [column.name for column in found] == ["a"] and len(splits["train"]) == 54


def test_held_out_rows_are_a_seeded_stratified_tenth_and_leave_every_class_in_training():
    labels = [{"a": "x" if i < 150 else "y", "b": i % 3} for i in range(300)]
    rows = make_rows(*labels, {"a": "x", "b": 7})
    found = [Column("a", "classification", str), Column("b", "classification", int)]
    kept, held = columns.hold_out(rows, found, seed=0)
    counts = Counter((row.labels["a"], row.labels["b"]) for row in held)
    assert len(counts) == 6 and set(counts.values()) == {5}
    assert rows[-1] in kept and len(kept) + len(held) == len(rows)
    assert columns.hold_out(rows, found, seed=0)[1] == held
    assert columns.hold_out(rows, found, seed=1)[1] != held


def test_every_column_gets_its_own_held_out_rows_by_the_seed(tmp_path):
    rows = [{"text": f"{i}", "a": i % 2} for i in range(200)]
    rows += [{"text": f"b {i}", "b": i % 2} for i in range(100)]
    path = [write(tmp_path / "a.json", json.dumps(rows))]
    held = [read_data(path, seed=seed)[1]["validation"] for seed in (0, 0, 1)]
    assert counts_of(held[0]) == {("a",): 20, ("b",): 10}
    assert held[0] == held[1] != held[2]


def test_no_row_is_held_out_where_a_tenth_would_tell_nothing(tmp_path):
    rows = [{"text": f"{i}", "a": i % 2} for i in range(200)]
    rows += [{"text": f"b {i}", "b": i % 2} for i in range(99)]
    rows += [{"text": f"c {i}", "c": i % 2} for i in range(4)]
    notes = Notes()
    path = write(tmp_path / "a.json", json.dumps(rows))
    _, splits = read_data([path], names=["a", "b", "c"], notes=notes)
    assert counts_of(splits["validation"]) == {("a",): 20}
    assert counts_of(splits["train"]) == {("a",): 180, ("b",): 99, ("c",): 4}
    about_b, about_c = notes.messages
    assert about_b.startswith("'b' has 99 training rows, of which a tenth would tell nothing")
    assert about_b.endswith(": none is held out for validation; --val gives such rows")
    assert about_c.startswith("'c' has 4 training rows")


def test_a_column_of_few_rows_may_be_validated_by_what_others_hold_out(tmp_path):
    rows = []
    for i in range(120):
        row = {"text": f"{i}", "a": i % 2}
        if i < 90:
            row["b"] = i % 2
        rows.append(row)
    notes = Notes()
    _, splits = read_data([write(tmp_path / "a.json", json.dumps(rows))], notes=notes)
    held = counts_of(splits["validation"])
    assert held["a", "b"] + held["a",] == 12
    [about_b] = notes.messages
    assert f"it is validated by the {held['a', 'b']} that other tasks hold out" in about_b


def test_rows_held_out_for_one_column_count_for_another_that_labels_them(tmp_path):
    both = [{"text": f"{i}", "a": i % 2, "b": i % 4} for i in range(200)]
    _, splits = read_data([write(tmp_path / "a.json", json.dumps(both))])
    assert counts_of(splits["validation"]) == {("a", "b"): 20}
    few = [{"text": f"{i}", "a": i % 2} | ({"b": i % 2} if i < 40 else {}) for i in range(200)]
    others = [{"text": f"b {i}", "b": i % 2} for i in range(960)]
    _, splits = read_data([write(tmp_path / "b.json", json.dumps(few + others))])
    held = counts_of(splits["validation"])
    assert held["a", "b"] >= 4  # of a's tenth; too few for b, which has a tenth of its own
    assert 95 <= held["a", "b"] + held["b",] <= 105


# --------------------------------------------------------------------------------------------------
# Soft labels


def write_soft(folder, labels, times=8):
    """A .jsonl whose rows have these labels of "a" in turn."""
    lines = []
    for i, label in enumerate(labels * times):
        lines.append(json.dumps({"text": f"film {i}", "a": label}))
    return write(folder / "soft.jsonl", *lines)


@pytest.mark.parametrize(
    ("labels", "classes", "soft", "label"),
    [
        ([{"b": 0.3, "a": 0.7}, {"b": 1}], ["a", "b"], {"a": 0.7, "b": 0.3}, "a"),
        ([{"b": 0.5, "a": 0.5}, "c"], ["a", "b", "c"], {"a": 0.5, "b": 0.5}, "a"),
        ([{" b ": 1, "c": 0}, "a"], ["a", "b"], {"b": 1.0}, "b"),
        ([{"10": 0.8, "2": 0.2}, {"2": 1}], [2, 10], {2: 0.2, 10: 0.8}, 10),
        ([{"1": 0.8, "0.0": 0.2}, 0, 1.0], [0, 1], {0: 0.2, 1: 0.8}, 1),
        ([{"1": 0.8, "x": 0.2}, {"1": 1}], ["1", "x"], {"1": 0.8, "x": 0.2}, "1"),
        ([{"True": 1}, True, False], ["False", "True"], {"True": 1.0}, "True"),
        ([{"a": 0.5, "b": 0.4}, {"b": 1}, {"b": 0.1}], ["a", "b"], {"a": 0.5, "b": 0.4}, ("a",)),
        ([{"a": 0.2, "b": 0.8}, ["a"], []], ["a", "b"], {"a": 0.2, "b": 0.8}, ("b",)),
        ([{"1": 0.9, "2": 0.9}, [3]], [1, 2, 3], {1: 0.9, 2: 0.9}, (1, 2)),
        ([{"a": 0}, ["a"], ["b"]], ["a", "b"], {}, ()),
    ],
)
def test_an_object_of_probabilities_is_a_label(labels, classes, soft, label, tmp_path):
    [column], splits = read_data([write_soft(tmp_path, labels)])
    assert column.labels == classes
    assert column.kind == ("multi_label" if isinstance(label, tuple) else "classification")
    rows = splits["train"] + splits["validation"]
    found = [row for row in rows if (row.soft.get("a"), row.labels["a"]) == (soft, label)]
    assert len(found) == 8
    counts = Counter()
    for row in splits["train"]:
        counts.update(columns.each(row.labels["a"]))
    assert column.counts == [counts[name] for name in classes]


def test_probabilities_of_classes_sum_to_one_exactly_and_the_likeliest_is_counted(tmp_path):
    path = write_soft(tmp_path, [{"a": 0.3333, "b": 0.3333, "c": 0.3333}, {"b": 0.6, "a": 0.4}])
    [column], splits = read_data([path], test_files=[path])
    for row in splits["test"]:
        assert sum(row.soft["a"].values()) == pytest.approx(1, abs=1e-15)
    labels = Counter(row.labels["a"] for row in splits["test"])
    assert labels == {"a": 8, "b": 8}  # of equal ones the first
    assert column.labels == ["a", "b", "c"] and column.counts[2] == 0


def test_the_user_says_of_which_kind_objects_are(tmp_path):
    path = write_soft(tmp_path, [{"a": 0.3, "b": 0.7}, {"b": 1}])
    [column], splits = read_data([path], kinds={"a": "multi_label"})
    assert column.kind == "multi_label" and splits["train"][0].soft == {"a": {"a": 0.3, "b": 0.7}}
    assert {row.labels["a"] for row in splits["train"]} == {("b",)}
    [column], _ = read_data([path], kinds={"a": "ordinal"})
    assert (column.kind, column.labels) == ("ordinal", ["a", "b"])
    path = write_soft(tmp_path, [{"a": 0.3, "b": 0.9}, {"b": 1}, {"b": 0.1}])
    notes = Notes()
    [column], _ = read_data([path], notes=notes)
    assert (
        column.kind == "multi_label" and "do not sum to 1, read as multi-label" in notes.messages[0]
    )


GOOD = [{"a": 0.3, "b": 0.7}, {"b": 1}]


@pytest.mark.parametrize(
    ("labels", "wrong", "message"),
    [
        (GOOD, {"a": 0.3, "b": 0.6}, "the probabilities of 'a' sum to 0.9, and not to 1"),
        (GOOD, {"a": 0}, "the probabilities of 'a' sum to 0, and not to 1"),
        (GOOD, {"a": 1.2}, "'a' has 1.2, which is no probability from 0 to 1"),
        (GOOD, {"a": -0.1}, "'a' has -0.1, which is no probability"),
        (GOOD, {"a": True}, "'a' has True, which is no probability"),
        (GOOD, {"a": "1"}, "'a' has '1', which is no probability"),
        (GOOD, {"a": float("nan")}, "'a' has None, which is no probability"),
        (GOOD, {"a": {"b": 1}}, "which is no probability"),
        (GOOD, {}, "it is empty; null means no label"),
        (GOOD, {" ": 1}, "' ' is blank, is there twice, or has a lone surrogate"),
        (GOOD, {"b ": 0.5, "b": 0.5}, "'b' is blank, is there twice"),
        (GOOD, {"\ud800": 1}, "has a lone surrogate"),
        ([{"0": 1}, {"1": 1}], {"1": 0.5, "1.0": 0.5}, "two labels of 'a' mean the same number"),
        ([0, 1], {"x": 1}, "'a' is {'x': 1} here, but 0 in another row; the keys must be"),
        ([1.5, 2], {"2": 1}, "'a' is {'2': 1} here, which is not a number"),
        ([["a"], ["b"]], {"a": 2}, "'a' has 2, which is no probability from 0 to 1"),
        ([["a"], {"b": 1}], {"a": "1"}, "'a' has '1', which is no probability from 0 to 1"),
    ],
)
def test_an_object_that_is_no_soft_label_is_refused_by_its_row(labels, wrong, message, tmp_path):
    path = write_soft(tmp_path, labels)
    with open(path, "a") as file:
        file.write(json.dumps({"text": "the last", "a": wrong}))
    with pytest.raises(InputError) as error:
        read_data([path])
    said = str(error.value)
    assert said.startswith(f"{path}, line 17: ") and message in said and "\n" not in said


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([{"label": "x", "probabilities": {"a": 0.5}}], "an object"),
        ([{"source": "web"}, {"page": 3}], "an object"),
        ([{"votes": 1}, {"votes": 3}, {"votes": 12}], "objects of other things than probabilities"),
        ([{"votes": 1}], "one value only"),
        ([{}], "an object"),
    ],
)
def test_objects_of_other_things_are_left_out_as_before(labels, reason, tmp_path):
    lines = []
    for i, label in enumerate(labels * 12):
        lines.append(json.dumps({"text": f"film {i}", "meta": label, "b": i % 2}))
    notes = Notes()
    [column], _ = read_data([write(tmp_path / "a.jsonl", *lines)], notes=notes)
    assert column.name == "b" and notes.left_out == {"meta": reason}


def test_tables_have_no_soft_labels_and_that_is_said(tmp_path):
    cells = ['"{""x"": 0.7, ""y"": 0.3}"', "\"{'x': 0.2, 'y': 0.8}\""]
    lines = ["text,a,b"]
    for i, cell in enumerate(cells * 10):
        lines.append(f"film {{'x': 1}} {i},{cell},{'uv'[i % 2]}")
    path = write(tmp_path / "a.csv", *lines)
    notes = Notes()
    [column], _ = read_data([path], notes=notes)
    reason = "probabilities in text; only objects of JSON are soft labels"
    assert column.name == "b" and notes.left_out == {"a": reason}
    message = "line 2: 'a' is the text .*; only objects of .json and .jsonl are soft labels"
    for kinds in ({}, {"a": "classification"}):
        with pytest.raises(InputError, match=message):
            read_data([path], names=["a"], kinds=kinds)
    with pytest.raises(InputError, match=message):
        read_data([path], names=["a"], format=Format(multi_label={"a": "|"}))


def test_soft_labels_of_one_file_go_with_the_labels_of_a_table(tmp_path):
    hard = write_column(tmp_path, ["0", "1"] * 8)
    soft = write_soft(tmp_path, [{"0": 0.4, "1": 0.6}])
    test = write(tmp_path / "test.jsonl", '{"text": "x", "a": {"1": 0.4, "7": 0.6}}')
    notes = Notes()
    [column], splits = read_data([*hard, soft], test_files=[test], notes=notes)
    assert column.labels == [0, 1] and column.label_type is int
    assert sum(row.soft == {"a": {0: 0.4, 1: 0.6}} for row in splits["train"]) in (7, 8)
    assert splits["test"][0].labels == {"a": 7}
    assert "1 test labels of 'a' are in no training row and count as wrong: 7" in notes.messages


def test_rows_are_not_held_out_that_alone_give_a_label_some_probability(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MIN_TO_SPLIT", 10)
    path = write_soft(tmp_path, [{"a": 1}, {"b": 1}, {"a": 0.9, "b": 0.1}])
    with open(path, "a") as file:
        for i in range(5):
            file.write(json.dumps({"text": f"rare {i}", "a": {"a": 0.9, f"rare {i}": 0.1}}) + "\n")
    for seed in range(5):
        [column], splits = read_data([path], seed=seed)
        assert len(column.labels) == 7 and column.counts[2:] == [0] * 5
        assert splits["validation"]
