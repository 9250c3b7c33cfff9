"""Properties of data.py: files become rows, rows become tasks and splits. Mistakes are in test_scripts.py."""

import csv
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
from conftest import make_rows
from data import InputError, Task

# ---------------------------------------------------------------------------------------------------------------------
# Rows


def texts_and_labels(tasks, splits):
    return [task.name for task in tasks], [(row.text, row.text_pair, row.labels) for row in splits["train"]]


def test_all_formats_give_the_same_rows(tmp_path):
    rows = [
        {"text": 'say "yes",\nthen leave', "text_pair": "b", "mood": "good", "grade": 1, "stars": 0.5},
        {"text": "no\ttab", "mood": "bad", "grade": 2},
        {"text": "ünï ☃ 👍", "text_pair": "x", "grade": 1, "stars": 3.0},
        {"text": "plain", "mood": "bad", "stars": 2.25},
        {"text": "more", "mood": "good", "grade": 2},
    ] * 4
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps({"train": rows}), "utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), "utf-8")
    keys = ["mood", "text", "grade", "text_pair", "stars"]
    for name, comma in (("a.csv", ","), ("a.tsv", "\t")):
        cells = [keys, *([str(row.get(key, "")).replace('"', '""') for key in keys] for row in rows)]
        lines = [comma.join(f'"{cell}"' for cell in line) for line in cells]
        (tmp_path / name).write_text("\r\n".join(lines), "utf-8-sig")
    results = [
        texts_and_labels(*data.read_data([str(tmp_path / name)], names=["mood", "grade", "stars"], seed=3))
        for name in ("a.json", "b.json", "a.jsonl", "a.csv", "a.tsv")
    ]
    assert all(result == results[0] for result in results)
    assert 16 <= len(results[0][1]) <= 18


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
json_values = st.recursive(scalars, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=4)
cells = st.text(st.characters(exclude_categories=["Cs"]))
texts = cells.filter(str.strip)
good_row = st.fixed_dictionaries({"text": texts}, optional={"text_pair": texts, "a": cells, "b": st.integers()})
keys = st.sampled_from(["text", "text_pair", "a", "b", "\ud800", ""])
rows_of_anything = st.lists(good_row, max_size=8) | st.lists(
    good_row | st.dictionaries(keys, json_values | st.text(min_size=1)) | json_values, max_size=8
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=rows_of_anything, kind=st.sampled_from(["json", "jsonl"]))
def test_arbitrary_json_is_read_unchanged_or_refused(rows, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    try:
        read = [data.parse_row(where, row) for where, _, row, _ in data.read_rows(path)]
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert [row.text for row in read] == [row["text"] for row in rows]
    assert [row.text_pair for row in read] == [row.get("text_pair") or None for row in rows]
    for one, row in zip(read, rows, strict=True):
        labels = {key: value for key, value in row.items() if not key.startswith("text") and value not in (None, "")}
        assert one.labels == labels


def read_cells(path):
    """The cells of a table as read_rows gives them, where no word stands for a missing label."""
    form = data.Format(missing=())
    rows = [data.parse_row(where, row, form, cells) for where, _, row, cells in data.read_rows(path, form)]
    return [(row.text, row.labels.get("a", "")) for row in rows]


def stripped(rows):
    return [(text, label.strip()) for text, label in rows]  # blanks around a label do not count


dialects = {
    "delimiter": st.sampled_from(",;\t|"),
    "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
}


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(texts, cells), min_size=1, max_size=6), dialect=st.fixed_dictionaries(dialects))
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
    assert [row for _, _, row, _ in data.read_rows(tmp_path / "a.csv")] == [{"text": "good", "a;b,c,d,e": "1"}]
    assert [row for _, _, row, _ in data.read_rows(tmp_path / "b.csv")] == [{"text": "good"}, {"text": "bad"}]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(texts, cells), min_size=1, max_size=6))
def test_cells_of_a_tsv_come_back_the_same_from_a_csv_writer(rows, tmp_path_factory):
    """But for a tab and a line end in one cell: there a line with as many cells as the header is a row."""
    rows = [tuple(cell.replace("\t", "") if re.search("[\r\n]", cell) else cell for cell in row) for row in rows]
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("text", "a"), *rows])
    try:
        assert read_cells(path) == stripped(rows)
    except InputError as error:
        assert str(path) in str(error) and any(not text.strip() for text, _ in rows)  # a tab alone


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n") | st.just('"'), min_size=1)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(plain, plain), min_size=1, max_size=6))
def test_a_quote_in_a_raw_tsv_is_a_character_and_swallows_nothing(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "raw.tsv"
    path.write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "a"), *rows]), "utf-8", newline="")

    def bare(cell):  # a cell that is quoted as a whole loses its quotes
        return cell[1:-1].replace('""', '"') if data.QUOTED.fullmatch(cell) else cell

    try:
        assert read_cells(path) == stripped((bare(text), bare(label)) for text, label in rows)
    except InputError as error:
        assert str(path) in str(error) and any(not bare(text).strip() for text, _ in rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings_are_told_by_their_mark_or_named_with_the_byte_that_is_none(encoding, tmp_path):
    path, form = tmp_path / "a.csv", data.Format(encoding=encoding)
    path.write_bytes("text,a\ncafé,x\n".encode(encoding))
    if encoding in ("utf-16-le", "cp1252"):
        message = "not UTF-8 at byte 10" if encoding == "cp1252" else "like UTF-16 without a mark|not UTF-8 at byte"
        with pytest.raises(InputError, match=f"({message}).*; --text-encoding names its encoding"):
            list(data.read_rows(path))
    else:
        assert [row for _, _, row, _ in data.read_rows(path)] == [{"text": "café", "a": "x"}]
    assert [row for _, _, row, _ in data.read_rows(path, form)] == [{"text": "café", "a": "x"}]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), kind=st.sampled_from(["json", "jsonl", "csv", "tsv", "txt"]))
def test_arbitrary_bytes_make_data_or_the_documented_error(content, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(b"text,a\n" * (kind == "csv") + content)
    try:
        tasks, splits = data.read_data([str(path)])
        assert tasks and splits["train"] and list(data.data_warnings(tasks, splits)) is not None
    except InputError as error:
        assert "\n" not in str(error)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and splits


def test_kinds_of_tasks_follow_from_their_labels(tmp_path):
    (tmp_path / "a.csv").write_text("text,i,f,s,m\na,1,1,x,1\nb,2,2.5,y,z\n" + "c,1,3,x,1\nd,2,2.5,y,z\n" * 6)
    tasks, splits = data.read_data([str(tmp_path / "a.csv")])
    kinds = {task.name: task.labels for task in tasks}
    assert kinds == {"i": [1, 2], "f": None, "s": ["x", "y"], "m": ["1", "z"]}
    targets = [row.labels["f"] for row in splits["train"]]
    assert tasks[1].mean == pytest.approx(np.mean(targets), abs=0.1)
    assert tasks[1].std == pytest.approx(np.std(targets), abs=0.1)
    (tmp_path / "b.csv").write_text("text,s,t\n" + "a,01,+1\nb,1,-1\n" * 9)
    assert [task.labels for task in data.read_data([str(tmp_path / "b.csv")])[0]] == [["01", "1"], ["+1", "-1"]]
    (tmp_path / "c.csv").write_text("text,f\n" + "a,1e-1\nb,.5\nc,-2\n" * 9)
    assert data.read_data([str(tmp_path / "c.csv")])[0][0].labels is None
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a", "n": n} for n in [1, 2, 2.5] * 9]))
    assert data.read_data([str(tmp_path / "a.json")])[0][0].labels is None


def write_column(folder, cells):
    (folder / "column.csv").write_text("text,a\n" + "".join(f"film {i},{cell}\n" for i, cell in enumerate(cells)))
    return [str(folder / "column.csv")]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "0", ""] * 9, [0, 1]),
        (["1.0", "0.0", ""] * 9, [0, 1]),
        (["1", "0.00", "nan"] * 9, [0, 1]),
        (["1.0", "2.5"] * 9, None),
        (["-1", "0", "1"] * 9, [-1, 0, 1]),
        (["007", "1"] * 9, ["007", "1"]),
        (["1e3", "2e3"] * 9, ["1e3", "2e3"]),
        (["True", "False"] * 9, ["False", "True"]),
        (["1", "1" + "0" * 30] * 9, ["1", "1" + "0" * 30]),
        ([" 1", "0.", "<NA>"] * 9, [0, 1]),
        (["none", "None", "some"] * 9, ["none", "some"]),
    ],
)
def test_whole_numbers_are_classes_however_written_and_fractions_are_numbers(cells, labels, tmp_path):
    [task], _ = data.read_data(write_column(tmp_path, cells))
    assert task.labels == labels
    if labels == [0, 1]:
        [task], splits = data.read_data(write_column(tmp_path, cells), regression=["a"])
        assert task.labels is None and {type(row.labels["a"]) for row in splits["train"]} == {float}


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
        ("title", ["a story of two friends who meet", "the other side of the other hill"] * 10, "free text"),
        ("source", ["web"] * 20, "one value only"),
        ("kind", ["a", "b"] * 10, None),
        ("idea", ["a", "b"] * 10, None),
        ("grid", ["a", "b"] * 10, None),
        ("candidate", ["a", "b"] * 10, None),
        ("stars", [f"{i}.5" for i in range(20)], None),
    ],
)
def test_which_columns_are_tasks(name, cells, reason, tmp_path):
    lines = [f"film {i},{cell},{i % 2}\n" for i, cell in enumerate(cells)]
    (tmp_path / "a.csv").write_text(f"text,{name},liked\n" + "".join(lines))
    notes = data.Notes()
    tasks, _ = data.read_data([str(tmp_path / "a.csv")], notes=notes)
    assert notes.left_out == ({name: reason} if reason else {})
    assert [task.name for task in tasks] == [name] * (reason is None) + ["liked"]


def test_many_classes_and_cells_of_several_labels_are_said(tmp_path):
    tasks, splits = data.read_data(write_column(tmp_path, [str(i % 120) for i in range(300)]))
    assert "'a' has 120 classes" in (said := " ".join(data.data_warnings(tasks, splits))) and "--regression a" in said
    tasks, splits = data.read_data(write_column(tmp_path, ["x|y", "x", "x|y|z", "y|z", "z"] * 9))
    assert any("'a' looks like several labels a text" in warning for warning in data.data_warnings(tasks, splits))


def test_a_label_of_validation_or_test_rows_does_not_change_the_kind_of_a_task(tmp_path):
    train = write_column(tmp_path, ["1", "2"] * 10)
    (tmp_path / "t.csv").write_text("text,a\none,2.0\nanother,?\n")
    [task], splits = data.read_data(train, (), [str(tmp_path / "t.csv")])
    assert task.labels == [1, 2] and [row.labels["a"] for row in splits["test"]] == [2, "?"]


def test_files_that_label_different_tasks_train_together(tmp_path):
    contents = {
        "a.jsonl": [{"text": f"a {i}", "a": i % 3} for i in range(60)],
        "b.jsonl": [{"text": f"b {i}", "b": "xy"[i % 2]} for i in range(40)],
        "v.jsonl": [{"text": f"v {i}", "a": i % 3, "b": None} for i in range(9)],
    }
    for name, rows in contents.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    tasks, splits = data.read_data(files)
    assert [task.name for task in tasks] == ["a", "b"]
    assert Counter(tuple(row.labels) for row in splits["validation"]) == {("a",): 6, ("b",): 4}
    tasks, splits = data.read_data(files, [str(tmp_path / "v.jsonl")], names=["b", "a"])
    assert [task.name for task in tasks] == ["b", "a"]
    assert Counter(tuple(row.labels) for row in splits["validation"]) == {("a",): 9, ("b",): 4}  # only b had none
    tasks, splits = data.read_data(files, all_tasks=False)
    assert [task.name for task in tasks] == ["a"] and len(splits["train"]) == 54


def test_held_out_rows_are_a_seeded_stratified_tenth_and_leave_every_class_in_training():
    rows = make_rows(*({"a": "x" if i < 150 else "y", "b": i % 3} for i in range(300)), {"a": "x", "b": 7})
    tasks = [Task("a", ["x", "y"]), Task("b", [0, 1, 2, 7])]
    kept, held = data.hold_out(rows, tasks, seed=0)
    assert Counter((row.labels["a"], row.labels["b"]) for row in held) == {(a, b): 5 for a in "xy" for b in range(3)}
    assert rows[-1] in kept and len(kept) + len(held) == len(rows)
    assert data.hold_out(rows, tasks, seed=0)[1] == held != data.hold_out(rows, tasks, seed=1)[1]


def test_every_task_gets_its_own_held_out_rows_by_the_seed(tmp_path):
    rows = [{"text": f"{i}", "a": i % 2} for i in range(200)] + [{"text": f"b {i}", "b": i % 2} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    held = [data.read_data([str(tmp_path / "a.json")], seed=seed)[1]["validation"] for seed in (0, 0, 1)]
    assert Counter(tuple(row.labels) for row in held[0]) == {("a",): 20, ("b",): 2}
    assert held[0] == held[1] != held[2]


def test_association_is_one_for_labels_that_give_each_other_away_and_about_zero_for_independent_ones():
    rng = np.random.default_rng(0)
    labels = [(int(a), "xyz"[a], int(rng.integers(4))) for a in rng.integers(3, size=3000)]
    rows = make_rows(*(dict(zip("abc", row, strict=True)) for row in labels), {"a": 1}, {"d": "alone"})
    tasks = [Task(name, [0, 1]) for name in "abcd"] + [Task("n", None)]
    found = {(one, other): v for v, one, other in data.associations(tasks, rows)}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found["a", "b"] == pytest.approx(1) and found["a", "c"] < 0.05
