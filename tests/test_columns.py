"""Properties of support/columns.py: which columns are learned, as what, and what is said of them.

The files of cases/ are such as people really have.
"""

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import columns
from support.columns import Column, Notes, Row, read_data
from support.errors import InputError
from support.files import format_flags, format_of

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
    ] * 4
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
    assert 16 <= len(results[0][1]) <= 18


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
    list(columns.data_warnings(found, splits))


def read(arguments):
    """Read data as flags of train.py ask for it -> columns, splits, notes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+")
    for name in ("--val", "--test", "--regression"):
        parser.add_argument(name, nargs="+", default=[])
    parser.add_argument("--tasks", nargs="+")
    format_flags(parser.add_argument)
    args = parser.parse_args(arguments.split())
    files = []
    for names in (args.data, args.val, args.test):
        files.append([str(CASES / name) for name in names])
    kinds = dict.fromkeys(args.regression, "regression")
    notes = Notes()
    found, splits = read_data(*files, args.tasks, format=format_of(args), kinds=kinds, notes=notes)
    notes.messages += columns.data_warnings(found, splits)
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


def test_a_column_of_joined_labels_is_never_taken_silently_for_classes():
    found, _, notes = read("--data pipe_lists.csv")
    assert found[0].kind == "classification" and len(found[0].labels) == 6
    [message] = notes.messages
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
            {"a": ["0,5", "1,0"]},
            "'a' has decimal commas",
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
    messages = [*notes.messages, *columns.data_warnings(found, splits)]
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
    return list(columns.data_warnings(*read_data(path)))


def test_many_classes_and_cells_of_joined_labels_are_said(tmp_path):
    [said] = warnings_of(write_column(tmp_path, [str(i % 120) for i in range(300)]))
    assert said.startswith("'a' has 120 classes of 2.") and "--regression a makes it" in said
    [said] = warnings_of(write_column(tmp_path, ["x|y", "x", "x|y|z", "y|z", "z"] * 9))
    assert said.startswith("'a' looks multi-label")


def test_spellings_contradictions_and_shared_rows_are_said(tmp_path):
    lines = [f"film {i},{'good' if i % 2 else 'bad'},{i % 3}" for i in range(40)]
    train = write(tmp_path / "a.csv", "text,mood,stars", *lines, "film 1,Good ,1", "film 2,bad,0")
    val = write(tmp_path / "b.csv", "text,mood,stars", *lines[:5], "new,bad,0")
    assert list(columns.data_warnings(*read_data([train], [val]))) == [
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
    for v, one, other in columns.associations(found, make_rows(*rows)):
        values[one, other] = v
    assert set(values) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert values["a", "b"] == pytest.approx(1) and values["a", "c"] < 0.05


# --------------------------------------------------------------------------------------------------
# Splits


def test_files_that_label_different_columns_train_together(tmp_path):
    contents = {
        "a.jsonl": [{"text": f"a {i}", "a": i % 3} for i in range(60)],
        "b.jsonl": [{"text": f"b {i}", "b": "xy"[i % 2]} for i in range(40)],
        "v.jsonl": [{"text": f"v {i}", "a": i % 3, "b": None} for i in range(9)],
    }
    paths = []
    for name, rows in contents.items():
        paths.append(write(tmp_path / name, *map(json.dumps, rows)))

    def counts(rows):
        return Counter(tuple(row.labels) for row in rows)

    found, splits = read_data(paths[:2])
    assert [column.name for column in found] == ["a", "b"]
    assert counts(splits["validation"]) == {("a",): 6, ("b",): 4}
    found, splits = read_data(paths[:2], paths[2:], names=["b", "a"])
    assert [column.name for column in found] == ["b", "a"]
    assert counts(splits["validation"]) == {("a",): 9, ("b",): 4}  # only b had none
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
    rows += [{"text": f"b {i}", "b": i % 2} for i in range(20)]
    path = [write(tmp_path / "a.json", json.dumps(rows))]
    held = [read_data(path, seed=seed)[1]["validation"] for seed in (0, 0, 1)]
    assert Counter(tuple(row.labels) for row in held[0]) == {("a",): 20, ("b",): 2}
    assert held[0] == held[1] != held[2]
