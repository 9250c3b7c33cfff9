"""Files as people have them, through the real command lines: learned, refused and predicted.

What is learned from each file of cases/ is tested in test_columns.py, without a model.
"""

import csv
import json
import re
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"
MOOD = {"sentiment": ["negative", "positive"]}
TAGS = {"tags": ["acting", "negative", "positive", "sound", "story"]}
TOPIC = {"topic": ["acting", "sound", "story"]}


@pytest.fixture
def train(script, tiny, tmp_path, monkeypatch):
    """Train on files of cases/ for one epoch, in the folder "run".

    -> (exit status, stdout, stderr, {task: its labels, None for regression})
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        paths = [CASES / word if (CASES / word).is_file() else word for word in arguments]
        flags = ["--encoder", tiny, "--epochs", "1", "--out", "run"]
        status, out, err = script("train.py", *paths, *flags)
        labels = {}
        if status == 0:
            for task in json.loads(Path("run/config.json").read_text())["tasks"]:
                labels[task["name"]] = task.get("labels")
        return status, out, err, labels

    return run


@pytest.fixture(scope="session")
def base_run(tiny, tmp_path_factory):
    """The folder of a run on cases/base.csv."""
    import train

    folder = tmp_path_factory.mktemp("base") / "run"
    flags = ["--encoder", str(tiny), "--epochs", "1", "--out", str(folder)]
    train.main(["--data", str(CASES / "base.csv"), *flags])
    return folder


def write(name, *lines):
    Path(name).write_text("".join(line + "\n" for line in lines), "utf-8")
    return name


def read_lines_of_json(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def read_csv(path, separator=","):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=separator))


# --------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize(
    ("arguments", "labels", "said"),
    [
        (
            "--data base.csv --test test_unseen.csv",
            MOOD | TOPIC,
            [
                "tasks: sentiment (2 classes), topic (3 classes)\n",
                "1 test labels of 'topic' are in no training row and count as wrong: 'costume'",
                "no test row has a label of 'sentiment'",
            ],
        ),
        ("--data nanlabels.csv", MOOD | TOPIC, ["15 cells of 'sentiment' hold 'nan'"]),
        ("--data user_id.csv", MOOD, ["left out: 'user_id' (its name), 'day' (dates)"]),
        ("--data pipe_lists.csv --multi-label tags", TAGS, ["tasks: tags (5 labels)\n"]),
        ("--data latin1.csv --text-encoding cp1252", MOOD, []),
        (
            "--data user_id.csv --tasks sentiment user_id --regression user_id",
            MOOD | {"user_id": None},
            [],
        ),
        (
            "--data user_id.csv --tasks sentiment user_id --kinds user_id=regression",
            MOOD | {"user_id": None},
            [],
        ),
    ],
)
def test_flags_decide_what_is_learned_and_all_that_should_be_known_is_said(
    train, arguments, labels, said
):
    status, out, err, found = train(*arguments.split())
    assert status == 0 and found == labels, err
    assert all(words in out + err for words in said) and out.count("tasks: ") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--data base.csv --val test_misnamed.csv",
            r"test_misnamed.csv: no validation row has a label of the tasks 'sentiment', 'topic'",
        ),
        ("--data latin1.csv", r"latin1.csv: not UTF-8 at byte 50; --text-encoding"),
        (
            "--data base.csv --text-encoding klingon",
            r"--text-encoding klingon: there is no such encoding",
        ),
        ("--data base.csv --regression topics", r"--regression: there is no task 'topics'"),
        ("--data base.csv --kinds topics=classification", r"--kinds: there is no task 'topics'"),
        ("--data base.csv --multi-label topics", r"--multi-label: there is no task 'topics'"),
        (
            "--data base.csv --regression topic",
            r"base.csv, line 2: 'topic' is 'sound' here, which is not a number",
        ),
        (
            "--data base.csv --pair-column nothing",
            r"base.csv: no 'nothing' among the columns .*; --pair-column",
        ),
    ],
)
def test_what_is_refused_leaves_no_run(train, arguments, message):
    status, _, err, _ = train(*arguments.split())
    assert status == 2 and re.search(message, err) and err.count("\n") == 1, err
    assert not Path("run").exists()


def test_a_label_that_no_training_row_has_counts_as_wrong(train):
    assert train("--data", "base.csv", "--test", "test_unseen.csv")[0] == 0
    test = json.loads(Path("run/metrics.json").read_text())["test"]["topic"]
    lines = read_lines_of_json("run/test_predictions.jsonl")
    right = 0
    for line in lines:
        right += line["labels"]["topic"] == line["predictions"]["topic"]["label"]
    assert len(lines) == 10 and lines[0]["labels"]["topic"] == "costume"
    assert test["accuracy"] == right / 10


def test_a_file_of_unseen_labels_alone_counts_as_wrong_and_ends_no_run(script, base_run, train):
    unseen = write("t.csv", "text,sentiment", "a b,Pos", "c d,Neg")
    status, _, err, _ = train("--data", "base.csv", "--test", unseen)
    assert status == 0 and "2 test labels of 'sentiment' are in no training row" in err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test"]["sentiment"]["accuracy"] == 0
    status, out, _ = script("predict.py", "--model", base_run, "--input", unseen, "--score")
    assert status == 0 and re.search(r"^sentiment +0\.000 ", out, re.M)
    status, _, err, _ = train("--data", "base.csv", "--val", unseen, "--overwrite")
    assert status == 0, err


def test_single_is_not_stopped_by_a_column_that_it_does_not_learn(train):
    lines = [f"film {i},{i % 2},{'1.5' if i else 'odd'}" for i in range(40)]
    write("a.csv", "text,label,mixed", *lines)
    assert train("--data", "a.csv", "--variant", "single")[3] == {"label": [0, 1]}


# --------------------------------------------------------------------------------------------------
# Prediction


@pytest.mark.parametrize(
    ("name", "rows", "failing"),
    [
        ("blank_mid_predict.csv", 60, [30]),
        ("blank_line.txt", 3, [1]),
        ("emoji_only.csv", 6, [2, 4]),
    ],
)
def test_a_row_that_cannot_be_predicted_has_a_reason_and_the_others_do_not(
    script, base_run, tmp_path, name, rows, failing
):
    command = ["--model", base_run, "--input", CASES / name, "--output", tmp_path / "out.jsonl"]
    status, _, err = script("predict.py", *command)
    assert status == 0 and f"{len(failing)} rows could not be predicted" in err
    assert "--strict" in err
    lines = read_lines_of_json(tmp_path / "out.jsonl")
    assert len(lines) == rows
    assert [i for i, line in enumerate(lines) if line["predictions"] is None] == failing
    assert [i for i, line in enumerate(lines) if "error" in line] == failing
    (tmp_path / "out.jsonl").unlink()
    status, _, err = script("predict.py", *command, "--strict")
    assert status == 2 and name in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    if name.endswith(".csv"):
        assert script("predict.py", *command[:-1], tmp_path / "out.csv")[0] == 0
        with open(tmp_path / "out.csv", newline="") as file:
            table = list(csv.DictReader(file))
        assert [i for i, row in enumerate(table) if row["error"]] == failing
        assert [i for i, row in enumerate(table) if not row["topic"]] == failing


@pytest.mark.parametrize(("name", "separator"), [("base.csv", ","), ("semicolon.csv", ";")])
def test_a_csv_comes_back_as_a_csv_with_its_columns_first(
    script, base_run, tmp_path, name, separator
):
    command = ["--model", base_run, "--input", CASES / name, "--output", tmp_path / "o.csv"]
    assert script("predict.py", *command)[0] == 0
    ours = read_csv(tmp_path / "o.csv", separator)
    theirs = read_csv(CASES / name, separator)
    added = ["sentiment_predicted", "sentiment_probability", "topic_predicted", "topic_probability"]
    assert ours[0] == [*theirs[0], *added, "error"]
    assert [row[:3] for row in ours] == theirs
    for row in ours[1:]:
        assert row[3] in MOOD["sentiment"] and 0.5 <= float(row[4]) <= 1 and row[7] == ""


def test_a_column_that_would_be_overwritten_is_refused_at_once(
    script, base_run, tmp_path, monkeypatch
):
    import mtbert

    monkeypatch.setattr(mtbert, "predict_encoded", None)
    command = ["--model", base_run, "--input"]
    for how in (["--output", tmp_path / "o.jsonl"], ["--json"]):
        status, out, err = script("predict.py", *command, CASES / "predictions_column.csv", *how)
        assert status == 2 and "has 'predictions' already, which would be lost" in err and not out
    table = write(tmp_path / "a.csv", "text,sentiment,sentiment_predicted", "good,positive,mine")
    output = tmp_path / "o.csv"
    status, _, err = script("predict.py", *command, table, "--output", output)
    assert status == 2 and "would have two columns 'sentiment_predicted'" in err
    assert not output.exists()


def test_score_prints_the_metrics_of_labelled_rows_as_training_does(
    script, base_run, train, tmp_path
):
    command = ["--model", base_run, "--score", "--input"]
    output = ["--output", tmp_path / "s.json"]
    status, out, err = script("predict.py", *command, CASES / "base.csv", *output)
    assert status == 0 and re.search(r"^base.csv +accuracy +macro-F1 ", out, re.M) and not err
    score = json.loads((tmp_path / "s.json").read_text())
    assert train("--data", "base.csv", "--test", "base.csv")[0] == 0  # the same run, tested
    assert score == json.loads(Path("run/metrics.json").read_text())["test"]
    status, _, err = script("predict.py", *command, CASES / "blank_mid_predict.csv")
    assert status == 2
    assert "no row has a label of 'sentiment', 'topic'; its columns are 'id', 'text'" in err
    status, _, err = script("predict.py", *command, CASES / "test_unseen.csv")
    assert status == 0
    assert "labels of 'topic' are in no training row and count as wrong: 'costume'" in err


def test_prediction_reads_rows_as_those_were_read_that_the_model_learned_from(script, train):
    lines = []
    for i in range(40):
        mood = "good" if i % 2 else "bad"
        label = "nan" if i % 2 else "no"
        lines.append(f"other {i},film {i},is {mood},{label}")
    write("a.csv", "text,review,more,label", *lines)
    columns = ["--text-column", "review", "--pair-column", "more"]
    flags = [*columns, "--missing", "--tasks", "label"]
    assert train("--data", "a.csv", *flags)[3] == {"label": ["nan", "no"]}

    command = ["--model", "run", "--input", "a.csv", "--output"]
    assert script("predict.py", *command, "o.jsonl")[0] == 0
    assert script("predict.py", *command, "e.jsonl", *columns)[0] == 0
    assert Path("o.jsonl").read_text() == Path("e.jsonl").read_text()
    other = write("b.csv", "text", "film")
    status, _, err = script("predict.py", "--model", "run", "--input", other, "--json")
    assert status == 2 and "b.csv: no 'more' among the columns 'text'; --pair-column names" in err
    assert script("predict.py", *command, "s.json", "--score")[0] == 0
    confusion = json.loads(Path("s.json").read_text())["label"]["confusion"]
    assert sum(map(sum, confusion)) == 40
    assert script("predict.py", "--model", "run", "great movie")[0] == 0


def test_nothing_of_a_row_of_a_table_that_cannot_be_predicted_is_lost(
    script, base_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ["--model", base_run, "--input"]
    write("a.csv", "text,x", "fine,1", "a b,1,2")
    assert script("predict.py", *command, "a.csv", "--output", "o.csv")[0] == 0
    last = read_csv("o.csv")[-1]
    assert last[:2] == ["a b", "1"]
    assert last[-1] == "a.csv, line 3: 3 cells, but the header has 2; the row is a b,1,2"
    assert script("predict.py", *command, "a.csv", "--output", "o.jsonl")[0] == 0
    row = read_lines_of_json("o.jsonl")[-1]
    assert row["row"] == ["a b", "1", "2"] and row["predictions"] is None
    assert "line 3" in row["error"]
    write("d.csv", "text,sentiment", "a b,positive", ",negative", "c d,negative,x")
    status, _, err = script("predict.py", *command, "d.csv", "--score")
    assert status == 0
    assert "2 rows were left out; the first: d.csv, line 3: the text must be" in err


def test_nothing_of_a_line_of_json_that_cannot_be_predicted_is_lost(
    script, base_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ["--model", base_run, "--input"]
    write("b.jsonl", '{"text": "fine"}', '{"text": ', '{"text": null}')
    assert script("predict.py", *command, "b.jsonl", "--output", "o.jsonl")[0] == 0
    rows = read_lines_of_json("o.jsonl")
    assert rows[1]["row"] == ['{"text": ']
    assert "b.jsonl, line 2: invalid JSON" in rows[1]["error"]
    assert rows[2]["error"] == "the text must be a string that is not empty"
    write("c.jsonl", *['{"text": "fine"}'] * 5000, '{"text": "fine", "predictions": 1}')
    status, out, err = script("predict.py", *command, "c.jsonl", "--json")
    assert status == 2 and not out and "c.jsonl has 'predictions' already" in err


def test_rows_of_json_have_no_columns_to_write_to_a_csv(script, base_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--model", base_run, "--output", "o.csv", "--input"]
    write("a.json", '[{"text": "x", "b": 1}]')
    write("a.jsonl", '{"text": "x", "b": 1}')
    write("a.ndjson", '{"text": "x", "b": 1}')
    for name in ("a.json", "a.jsonl", "a.ndjson"):
        status, _, err = script("predict.py", *command, name)
        assert status == 2 and "o.csv takes a .csv, .tsv or .txt as input" in err
        assert not Path("o.csv").exists()
    assert script("predict.py", *command, write("a.txt", "x", "y"))[0] == 0
    assert [row[0] for row in read_csv("o.csv")] == ["text", "x", "y"]
