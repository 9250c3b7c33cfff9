"""Files as people really have them, through the real command lines: what is learned, said, refused and predicted."""

import csv
import json
import re
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"


@pytest.fixture
def train(script, tiny, tmp_path, monkeypatch):
    """Train on files of cases/ for one epoch -> (exit status, stdout, stderr, {task: labels}, the run's folder)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        arguments = [CASES / word if (CASES / word).is_file() else word for word in arguments]
        status, out, err = script("train.py", *arguments, "--encoder", tiny, "--epochs", "1", "--out", "run")
        tasks = {}
        if status == 0:
            tasks = {task["name"]: task["labels"] for task in json.loads(Path("run/config.json").read_text())["tasks"]}
        return status, out, err, tasks

    return run


@pytest.fixture(scope="session")
def base_run(tiny, tmp_path_factory):
    """The folder of a run on cases/base.csv."""
    import train

    folder = tmp_path_factory.mktemp("base") / "run"
    train.main(["--data", str(CASES / "base.csv"), "--encoder", str(tiny), "--epochs", "1", "--out", str(folder)])
    return folder


MOOD = {"sentiment": ["negative", "positive"]}
TAGS = {"tags": ["acting", "negative", "positive", "sound", "story"]}
TOPIC = {"topic": ["acting", "sound", "story"]}
NAN_CLASSES = {"sentiment": ["nan", "negative", "positive"], "topic": ["NA", "acting", "sound", "story"]}
JIGSAW = {name: [0, 1] for name in ("toxic", "insult", "threat")}


@pytest.mark.parametrize(
    ("arguments", "tasks", "rows", "said"),
    [
        ("--data base.csv", MOOD | TOPIC, 60, ["tasks: sentiment (2 classes), topic (3 classes)\n"]),
        ("--data floatint.csv", MOOD | {"spam": [0, 1]}, 60, ["spam (2 classes)"]),
        ("--data raw_quotes.tsv", MOOD, 60, []),
        ("--data raw_quotes_swallow.tsv", MOOD, 60, []),
        ("--data nanlabels.csv", MOOD | TOPIC, 57, ["15 cells 'nan' of 'sentiment' are no labels", "12 cells 'NA' of"]),
        ("--data nanlabels.csv --missing", NAN_CLASSES, 60, []),
        ("--data user_id.csv", MOOD, 60, ["left out: 'user_id' (its name), 'day' (dates)"]),
        ("--data id.csv", MOOD, 60, ["left out: 'review_id' (its name), 'date' (its name)"]),
        ("--data index.csv", MOOD, 60, ["left out: '' (no name)"]),
        ("--data jigsaw_onehot.csv --tasks toxic insult threat", JIGSAW, 60, []),
        ("--data jigsaw_onehot.csv", JIGSAW, 60, ["left out: 'id'"]),
        ("--data list_labels.json", TAGS, 60, ["tasks: tags (5 labels)\n"]),
        ("--data pipe_lists.csv --multi-label tags", TAGS, 60, ["tasks: tags (5 labels)\n"]),
        ("--data boolean.json", {"is_positive": ["False", "True"]}, 60, []),
        ("--data semicolon.csv", MOOD | TOPIC, 60, []),
        ("--data latin1.csv --text-encoding cp1252", MOOD, 60, []),
        ("--data excel_blank_tail.csv", MOOD, 60, ["3 rows without any cell were left out"]),
        ("--data base.csv --test test_unseen.csv", MOOD | TOPIC, 60,
         ["1 test labels of 'topic' are in no training row and count as wrong: 'costume'",
          "no test row has a label of 'sentiment'"]),
    ],
)  # fmt: skip
def test_what_is_learned_and_said(train, arguments, tasks, rows, said):
    status, out, err, found = train(*arguments.split())
    assert status == 0 and found == tasks, err
    counts = re.search(r"^\(rows\) +(\d+) +(\d+) ", out, re.M)
    assert int(counts[1]) + int(counts[2]) == rows
    assert all(words in out + err for words in said) and out.count("tasks: ") == 1


def test_a_label_that_no_training_row_has_counts_as_wrong(train):
    assert train("--data", "base.csv", "--test", "test_unseen.csv")[0] == 0
    test = json.loads(Path("run/metrics.json").read_text())["test"]["topic"]
    lines = [json.loads(line) for line in Path("run/test_predictions.jsonl").read_text().splitlines()]
    right = sum(line["labels"]["topic"] == line["predictions"]["topic"]["label"] for line in lines)
    assert len(lines) == 10 and lines[0]["labels"]["topic"] == "costume" and test["accuracy"] == right / 10


def test_columns_that_identify_are_learned_where_tasks_names_them(train):
    status, _, err, tasks = train("--data", "user_id.csv", "--tasks", "sentiment", "user_id", "--regression", "user_id")
    assert status == 0 and tasks == MOOD | {"user_id": None}, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data base.csv --val test_misnamed.csv",
         r"test_misnamed.csv: no validation row has a label of the tasks 'sentiment', 'topic'; "
         r"its columns are 'text', 'Sentiment'; --tasks names the tasks"),
        ("--data base.csv --test test_misnamed.csv", r"test_misnamed.csv: no test row has a label of the tasks"),
        ("--data latin1.csv", r"latin1.csv: not UTF-8 at byte 50; --text-encoding"),
        ("--data latin1.csv --text-encoding klingon", r"--text-encoding klingon: there is no such encoding"),
        ("--data base.csv --multi-label topics", r"--multi-label: there is no task 'topics'"),
        ("--data base.csv --multi-label topic --regression topic", r"--regression topic: it has several labels a text"),
        ("--data base.csv --tasks nothing", r"no task 'nothing'; the rows have 'sentiment', 'topic'; --tasks picks"),
        ("--data base.csv --regression topic", r"base.csv, line 2: 'topic' is 'sound' here, which is no number"),
        ("--data base.csv --text-column topics", r"no 'topics' among the columns 'text', 'sentiment', 'topic'; "
         r"'text' holds sentences: --text-column text"),
        ("--data base.csv --pair-column nothing", r"base.csv: no 'nothing' among the columns .*; --pair-column"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_no_run(train, arguments, message):
    status, _, err, _ = train(*arguments.split())
    assert status == 2 and re.search(message, err) and err.count("\n") == 1, err
    assert not Path("run").exists()


def test_a_column_of_lists_is_never_taken_silently_for_classes(train):
    status, _, err, tasks = train("--data", "pipe_lists.csv")
    assert status == 0 and len(tasks["tags"]) == 6
    assert "'tags' looks like several labels a text ('negative|acting'): each combination is one; " in err
    assert "; --multi-label 'tags=|' takes them apart\n" in err


# ---------------------------------------------------------------------------------------------------------------------
# Prediction


@pytest.mark.parametrize(
    ("name", "rows", "failing"),
    [("blank_mid_predict.csv", 60, [30]), ("blank_line.txt", 3, [1]), ("emoji_only.csv", 6, [2, 4])],
)
def test_a_row_that_cannot_be_predicted_has_a_reason_and_the_others_do_not(
    script, base_run, tmp_path, name, rows, failing
):
    command = ["--model", base_run, "--input", CASES / name, "--output", tmp_path / "out.jsonl"]
    status, _, err = script("predict.py", *command)
    assert status == 0 and f"{len(failing)} rows could not be predicted" in err and "--strict" in err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == rows and [i for i, line in enumerate(lines) if line["predictions"] is None] == failing
    assert all(("error" in line) == (i in failing) for i, line in enumerate(lines))
    (tmp_path / "out.jsonl").unlink()
    status, _, err = script("predict.py", *command, "--strict")
    assert status == 2 and name in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
    if name.endswith(".csv"):
        assert script("predict.py", *command[:-1], tmp_path / "out.csv")[0] == 0
        with open(tmp_path / "out.csv", newline="") as file:
            table = list(csv.DictReader(file))
        assert [i for i, row in enumerate(table) if row["error"]] == failing
        assert [i for i, row in enumerate(table) if not row["topic"]] == failing


@pytest.mark.parametrize(("name", "separator"), [("base.csv", ","), ("semicolon.csv", ";")])
def test_a_csv_comes_back_as_a_csv_with_its_columns_first(script, base_run, tmp_path, name, separator):
    assert script("predict.py", "--model", base_run, "--input", CASES / name, "--output", tmp_path / "o.csv")[0] == 0
    with open(tmp_path / "o.csv", newline="", encoding="utf-8") as ours, open(CASES / name, newline="") as theirs:
        ours, theirs = list(csv.reader(ours, delimiter=separator)), list(csv.reader(theirs, delimiter=separator))
    added = ["sentiment_predicted", "sentiment_probability", "topic_predicted", "topic_probability", "error"]
    assert ours[0] == theirs[0] + added and [row[:3] for row in ours] == theirs
    assert all(row[3] in MOOD["sentiment"] and 0.5 <= float(row[4]) <= 1 and row[7] == "" for row in ours[1:])


def test_a_column_that_would_be_overwritten_is_refused_at_once(script, base_run, tmp_path, monkeypatch):
    import mtbert

    monkeypatch.setattr(mtbert, "predict_encoded", None)
    command, output = ["--model", base_run, "--input"], ["--output", tmp_path / "o.csv"]
    for how in (["--output", tmp_path / "o.jsonl"], ["--json"]):
        status, out, err = script("predict.py", *command, CASES / "predictions_column.csv", *how)
        assert status == 2 and "has 'predictions' already, which would be lost" in err and not out
    (tmp_path / "a.csv").write_text("text,sentiment,sentiment_predicted\ngood,positive,mine\n")
    status, _, err = script("predict.py", *command, tmp_path / "a.csv", *output)
    assert status == 2 and "would have two columns 'sentiment_predicted'" in err and not (tmp_path / "o.csv").exists()


def test_score_prints_the_metrics_of_labelled_rows_as_training_does(script, base_run, train, tmp_path):
    command = ["--model", base_run, "--input", CASES / "base.csv", "--score"]
    status, out, err = script("predict.py", *command, "--output", tmp_path / "s.json")
    assert status == 0 and re.search(r"^base.csv +accuracy +macro-F1 ", out, re.M) and not err
    score = json.loads((tmp_path / "s.json").read_text())
    assert train("--data", "base.csv", "--test", "base.csv")[0] == 0  # the same run, tested on the same rows
    assert score == json.loads(Path("run/metrics.json").read_text())["test"]
    status, _, err = script("predict.py", *command[:3], CASES / "blank_mid_predict.csv", "--score")
    assert status == 2 and "no row has a label of 'sentiment', 'topic'; its columns are 'id', 'text'" in err
    status, _, err = script("predict.py", *command[:3], CASES / "test_unseen.csv", "--score")
    assert status == 0 and "labels of 'topic' are in no training row and count as wrong: 'costume'" in err


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours of these files


def write(name, *lines):
    Path(name).write_text("".join(line + "\n" for line in lines), "utf-8")
    return name


def test_a_file_of_unseen_labels_alone_counts_as_wrong_and_ends_no_run(script, base_run, train):
    status, _, err, _ = train("--data", "base.csv", "--test", write("t.csv", "text,sentiment", "a b,Pos", "c d,Neg"))
    assert status == 0 and "2 test labels of 'sentiment' are in no training row" in err
    assert json.loads(Path("run/metrics.json").read_text())["test"]["sentiment"]["accuracy"] == 0
    status, out, _ = script("predict.py", "--model", base_run, "--input", "t.csv", "--score")
    assert status == 0 and re.search(r"^sentiment +0\.000 ", out, re.M)
    status, _, err, _ = train("--data", "base.csv", "--val", "t.csv", "--overwrite")
    assert status == 0, err


def test_prediction_reads_rows_as_those_were_read_that_the_model_learned_from(script, train):
    lines = [f"other {i},film {i},is {'good' if i % 2 else 'bad'},{'nan' if i % 2 else 'no'}" for i in range(40)]
    write("a.csv", "text,review,more,label", *lines)
    flags = ["--text-column", "review", "--pair-column", "more", "--missing", "--tasks", "label"]
    assert train("--data", "a.csv", *flags)[3] == {"label": ["nan", "no"]}
    assert script("predict.py", "--model", "run", "--input", "a.csv", "--output", "o.jsonl")[0] == 0
    explicit = ["--text-column", "review", "--pair-column", "more"]
    assert script("predict.py", "--model", "run", "--input", "a.csv", "--output", "e.jsonl", *explicit)[0] == 0
    assert Path("o.jsonl").read_text() == Path("e.jsonl").read_text()
    status, _, err = script("predict.py", "--model", "run", "--input", write("b.csv", "text", "film"), "--json")
    assert status == 2 and "b.csv: no 'more' among the columns 'text'; --pair-column names it" in err
    assert script("predict.py", "--model", "run", "--input", "a.csv", "--score", "--output", "s.json")[0] == 0
    assert sum(map(sum, json.loads(Path("s.json").read_text())["label"]["confusion"])) == 40
    assert script("predict.py", "--model", "run", "great movie")[0] == 0


def test_nothing_of_a_row_that_cannot_be_predicted_is_lost(script, base_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--model", base_run, "--input"]
    write("a.csv", "text,x", "fine,1", "a b,1,2")
    assert script("predict.py", *command, "a.csv", "--output", "o.csv")[0] == 0
    last = list(csv.reader(Path("o.csv").read_text().splitlines()))[-1]
    assert last[:2] == ["a b", "1"] and last[-1] == "a.csv, line 3: 3 cells, but the header has 2; the row is a b,1,2"
    assert script("predict.py", *command, "a.csv", "--output", "o.jsonl")[0] == 0
    row = json.loads(Path("o.jsonl").read_text().splitlines()[-1])
    assert row["row"] == ["a b", "1", "2"] and row["predictions"] is None and "line 3" in row["error"]
    write("b.jsonl", '{"text": "fine"}', '{"text": ', '{"text": null}')
    assert script("predict.py", *command, "b.jsonl", "--output", "o.jsonl")[0] == 0
    rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert rows[1]["row"] == ['{"text": '] and "b.jsonl, line 2: invalid JSON" in rows[1]["error"]
    assert rows[2]["error"] == "the text must be a string that is not empty"
    write("c.jsonl", *['{"text": "fine"}'] * 5000, '{"text": "fine", "predictions": 1}')
    status, out, err = script("predict.py", *command, "c.jsonl", "--json")
    assert status == 2 and not out and "c.jsonl has 'predictions' already" in err
    write("d.csv", "text,sentiment", "a b,positive", ",negative", "c d,negative,x")
    status, out, err = script("predict.py", *command, "d.csv", "--score")
    assert status == 0 and "2 rows were left out; the first: d.csv, line 3: the text must be" in err


@pytest.mark.parametrize(
    ("name", "lines", "tasks", "said"),
    [
        ("sep.csv", ["sep=;", "text;a", *["x, y;0", "z;1"] * 10], {"a": [0, 1]}, ""),
        ("blank.csv", ["", "", "text;a", *["x, y;0", "z;1"] * 10], {"a": [0, 1]}, ""),
        ("comma.csv", ["text;a", *["x;0,5", "z;1,0"] * 10], {"a": ["0,5", "1,0"]}, "'a' has decimal commas"),
        ("some.csv", ["text,a", *["x;a|b", "x,a|b", "x,a", "z,b"][1:] * 10], {"a": ["a", "a|b", "b"]},
         "'a' looks like several labels a text ('a|b')"),
        ("list.csv", ["text,a,b", *["x,\"['u', 'v']\",0", "z,\"['u']\",1"] * 10], {"b": [0, 1]},
         "left out: 'a' (several labels of a text)"),
        ("bools.csv", ["text,a", *["x,True", "z,False"] * 10], {"a": ["False", "True"]}, ""),
        ("rows.ndjson", ['{"text": "x", "a": 1}', '{"text": "y", "a": 2}'] * 10, {"a": [1, 2]}, ""),
        ("two.csv", ["text,a,b,b", *["x,0,u,v", "z,1,v,u"] * 10], {"a": [0, 1]}, "'b' (two columns of this name)"),
    ],
)  # fmt: skip
def test_more_tables_as_people_have_them(train, name, lines, tasks, said):
    status, out, err, found = train("--data", write(name, *lines))
    assert status == 0 and found == tasks and said in out + err, err


def test_single_is_not_stopped_by_a_column_that_it_does_not_learn(train):
    lines = [f"film {i},{i % 2},{'1.5' if i else 'odd'}" for i in range(40)]
    write("a.csv", "text,label,mixed", *lines)
    assert train("--data", "a.csv", "--variant", "single")[3] == {"label": [0, 1]}
    status, _, err, _ = train("--data", "a.csv", "--overwrite")
    assert status == 2 and "a.csv, line 2: 'mixed' is 'odd' here, but 1.5 in a.csv, line 3" in err


def test_rows_of_json_have_no_columns_to_write_to_a_csv(script, base_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.jsonl", "a.ndjson"):
        write(name, '[{"text": "x", "b": 1}]' if name == "a.json" else '{"text": "x", "b": 1}')
        status, _, err = script("predict.py", "--model", base_run, "--input", name, "--output", "o.csv")
        assert status == 2 and "o.csv takes a .csv, .tsv or .txt as input" in err and not Path("o.csv").exists()
    write("a.txt", "x", "y")
    assert script("predict.py", "--model", base_run, "--input", "a.txt", "--output", "o.csv")[0] == 0
    assert [line.split(",")[0] for line in Path("o.csv").read_text().splitlines()] == ["text", "x", "y"]


def test_json_lines_in_a_json_file_are_told(train):
    status, _, err, _ = train("--data", write("a.json", '{"text": "x", "a": 1}', '{"text": "y", "a": 2}'))
    assert status == 2 and "a.json: invalid JSON: Extra data" in err and "name the file .jsonl" in err
