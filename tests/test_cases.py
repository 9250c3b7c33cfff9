"""Files as people have them, through the real command lines: learned, refused and predicted.

What is learned from each file of cases/ is tested in test_columns.py, without a model.
"""

import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

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
            "--data currency.csv --classification price",
            {"price": ["$15.50", "$25.50", "$35.50", "$5.50"]},
            [],
        ),
        (
            "--data noheader_agnews.csv --header label text text_pair --missing 4",
            {"label": [1, 2, 3]},
            ["12 cells of 'label' hold '4', which counts as no label"],
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
        (
            "--data base.csv --kinds topics=classification",
            r"--classification: there is no task 'topics'",
        ),
        ("--data .", r"error: \. is a folder; name the files in it"),
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


def test_a_column_with_too_few_labels_ends_no_run_unless_it_is_asked_for(train):
    lines = [f"film {i},{'xy'[i % 2]}," for i in range(20)]
    lines += [f"few {i},,{'abc'[i % 3]}" for i in range(3)]
    data = ["--data", write("few.csv", "text,label,few", *lines)]
    status, out, err, labels = train(*data)
    assert status == 0 and labels == {"label": ["x", "y"]}, err
    assert "'few' (no row can be held out without losing a class)" in out
    status, _, err, _ = train(*data, "--tasks", "label", "few", "--overwrite")
    assert status == 2 and "no row of 'few' can be held out" in err


def test_rows_without_a_token_are_left_out_of_training_unless_it_is_strict(train):
    lines = [f"film {i},{'xy'[i % 2]}" for i in range(20)]
    write("a.csv", "text,label", *lines, "\u200b,x", ",y")
    status, _, err, _ = train("--data", "a.csv")
    assert status == 0 and "1 train rows were left out: no token is left of their text" in err
    assert "a.csv: 1 rows were left out: the text must be a string that is not empty" in err
    status, _, err, _ = train("--data", "a.csv", "--strict", "--overwrite")
    assert status == 2 and "a.csv, line 23: the text must be" in err


# --------------------------------------------------------------------------------------------------
# Prediction. That of files in general is tested in test_predict.py.


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The folder with a run on pairs, one on a file with splits, and one on decimal commas."""
    import train

    folder = tmp_path_factory.mktemp("runs")
    for name in ("rel_train", "split_col", "german"):
        data = str(CASES / f"{name}.csv")
        flags = ["--encoder", str(tiny), "--epochs", "1", "--out", str(folder / name)]
        train.main(["--data", data, *flags])
    return folder


def test_a_model_that_learned_from_pairs_refuses_texts_without_a_second(script, runs, tmp_path):
    assert json.loads((runs / "rel_train/config.json").read_text())["pairs"] is True
    assert json.loads((runs / "german/config.json").read_text())["pairs"] is False
    model = ["--model", runs / "rel_train"]
    message = "no 'text_pair' among the columns 'text', 'pair', 'label', and the model learns from"
    for flags in ([], ["--score"], ["--json"]):
        command = [*model, "--input", CASES / "rel_test_misnamed.csv", *flags]
        status, out, err = script("predict.py", *command)
        assert status == 2 and message in err and "--pair-column names it" in err and not out
        assert script("predict.py", *command, "--pair-column", "pair")[0] == 0
        assert script("predict.py", *command, "--pair-column", "")[0] == 0
    (tmp_path / "a.txt").write_text("a text\n")
    status, _, err = script("predict.py", *model, "--input", tmp_path / "a.txt")
    assert status == 2 and "a.txt: no 'text_pair' among the columns 'text'" in err
    status, _, err = script("predict.py", *model, "a text")
    assert status == 2 and "--pair TEXT" in err
    texts = ["one", "two", "--pair", "first", "--pair", "second"]
    assert script("predict.py", *model, *texts)[0] == 0
    assert script("predict.py", *model, "--pair-column", "", "a text")[0] == 0


def test_second_texts_that_are_missing_or_too_many_are_said(script, runs, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,text_pair\none,first\ntwo,\n")
    command = ["--input", path, "--json", "--model"]
    status, _, err = script("predict.py", *command, runs / "rel_train")
    assert status == 0 and "1 rows have no second text, and the model learned from pairs" in err
    status, _, err = script("predict.py", *command, runs / "german")
    assert status == 0 and "'text_pair' is read as a second text, and the model saw none" in err


def test_of_a_file_with_splits_the_test_rows_are_scored(script, runs, tmp_path):
    output = ["--output", tmp_path / "s.json"]
    command = ["--model", runs / "split_col", "--score", "--input", CASES / "split_col.csv"]
    status, _, err = script("predict.py", *command, *output)
    assert status == 0 and "the test rows are scored (30 train, 9 validation, 9 test)" in err
    assert "training rows of this run" not in err
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores == json.loads((runs / "split_col/metrics.json").read_text())["test"]
    for split, number in (("train", 30), ("all", 48)):
        status, _, err = script("predict.py", *command, "--split", split, *output)
        assert status == 0 and f"30 of {number} rows are training rows of this run" in err
        scores = json.loads((tmp_path / "s.json").read_text())
        assert sum(map(sum, scores["label"]["confusion"])) == number


def test_decimal_commas_are_scored_as_they_were_learned(script, runs, tmp_path):
    output = tmp_path / "s.json"
    command = ["--model", runs / "german", "--score", "--output", output, "--input"]
    status, _, err = script("predict.py", *command, CASES / "german.csv")
    assert status == 0, err
    assert json.loads(output.read_text())["note"]["mean_rmse"] == pytest.approx(1.0, abs=0.1)


def test_labels_under_a_name_of_other_case_are_said_not_to_be_scored(script, base_run):
    command = ["--model", base_run, "--score", "--input", CASES / "score_case.csv"]
    status, out, err = script("predict.py", *command)
    assert status == 0 and "topic" in out and "sentiment" not in out
    assert "no row has a label of 'sentiment'; the columns are 'text', 'Sentiment', 'topic'" in err


def test_a_carriage_return_within_a_line_or_a_cell_makes_no_row(script, base_run, tmp_path):
    command = ["--model", base_run, "--input"]
    status, out, _ = script("predict.py", *command, CASES / "lines_cr.txt", "--json")
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    assert status == 0 and texts[0] == "first good film\rstill the first line" and len(texts) == 3
    (tmp_path / "a.csv").write_bytes(b"text,x\ngood\rfilm,1\n")
    status, _, _ = script(
        "predict.py", *command, tmp_path / "a.csv", "--output", tmp_path / "o.csv"
    )
    assert status == 0 and read_csv(tmp_path / "o.csv")[1][:2] == ["good\rfilm", "1"]
    assert b'\n"good\rfilm",1,' in (tmp_path / "o.csv").read_bytes()


def test_a_file_of_which_no_row_can_be_predicted_is_a_mistake(script, base_run, tmp_path):
    (tmp_path / "a.csv").write_text("text,x\n,1\nNA,2\n")
    status, _, err = script("predict.py", "--model", base_run, "--input", tmp_path / "a.csv")
    assert status == 2
    assert "none of 2 rows could be predicted; the first: the text must be a string" in err


def test_a_packed_table_is_predicted_as_a_table(script, base_run, tmp_path):
    with gzip.open(tmp_path / "base.csv.gz", "wb") as file:
        file.write((CASES / "base.csv").read_bytes())
    command = ["--model", base_run, "--input", tmp_path / "base.csv.gz"]
    output = tmp_path / "o.csv"
    assert script("predict.py", *command, "--output", output)[0] == 0
    assert [row[:3] for row in read_csv(output)] == read_csv(CASES / "base.csv")


def test_who_writes_a_line_gets_its_answer_before_the_next(base_run):
    command = [sys.executable, ROOT / "predict.py", "--model", base_run, "--json"]
    command += ["--input", "/dev/stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for text in (b"great movie", b"awful film"):
            process.stdin.write(text + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text.decode()
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0
