"""Properties of support/report.py: what a run prints, as lines and tables."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MOOD, STARS, TAGS, TWO, make_rows

from support import report
from support.columns import Notes

# --------------------------------------------------------------------------------------------------
# Words and tables


def test_a_class_below_one_half_is_shown_as_a_guess():
    assert report.guess("story", 0.49) == "story? 0.49"
    assert report.guess("story", 0.5) == "story 0.50"
    assert report.name_class(3, "story") == "3 story"
    assert report.name_class(3, "3") == "3" and report.name_class("story", "story") == "story"


def test_what_is_shown_cannot_steer_a_terminal(capsys):
    report.print_table([["a\x1b[2J", "b\n"], ["\u202e", 1]])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 and all(c.isprintable() or c == "\n" for c in out)
    assert report.shorten("x" * 30, 10) == "xxxxxxx..."


def test_columns_of_a_table_are_aligned(capsys):
    report.print_table([["name", "rows"], ["a", 5], ["longest", 12345]])
    assert capsys.readouterr().out == "name      rows\na            5\nlongest  12345\n"


# --------------------------------------------------------------------------------------------------
# Metrics and predictions


def test_tasks_with_the_same_metrics_share_a_table_and_a_forks_metric_has_its_own_name(capsys):
    metrics = {
        "mood": {"accuracy": 0.5, "macro_f1": 0.25, "per_class": {}},
        "other": {"accuracy": 1.0, "macro_f1": 1.0, "per_class": {}},
        "stars": {"pearson": 0.125, "my_metric": 2},
    }
    tasks = [MOOD, STARS, replace(MOOD, name="other"), replace(MOOD, name="absent")]
    report.print_metrics(tasks, metrics, "given")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        [],
        ["given", "accuracy", "macro-F1"],
        ["mood", "0.500", "0.250"],
        ["other", "1.000", "1.000"],
        [],
        ["given", "Pearson", "my_metric"],
        ["stars", "0.125", "2.000"],
    ]


def test_intervals_stand_behind_their_scores_and_what_does_not_fit_follows_below(
    capsys, monkeypatch
):
    intervals = {"accuracy": [0.4, 0.6125], "macro_f1": None}
    result = {"accuracy": 0.5, "macro_f1": 0.25, "ece": 0.125, "intervals": intervals}
    without = {"accuracy": 1.0, "macro_f1": 1.0, "ece": 0.0}
    tasks = [MOOD, replace(MOOD, name="other")]
    scores = [
        "given                accuracy  macro-F1",
        "mood   0.500 (0.400 to 0.613)     0.250",
        "other                   1.000     1.000",
    ]
    errors = ["given  calibration error", "mood               0.125", "other              0.000"]
    explanation = "in brackets: 95 % intervals over rows"
    monkeypatch.setenv("COLUMNS", "50")
    report.print_metrics(tasks, {"mood": result, "other": without}, "given")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["", *scores, "", *errors, explanation]
    monkeypatch.setenv("COLUMNS", "58")
    report.print_metrics(tasks, {"mood": result, "other": without}, "given")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[1] == f"{scores[0]}  calibration error"
    report.print_metrics(tasks, {"other": without}, "given")
    assert explanation not in capsys.readouterr().out


def test_classes_are_printed_where_they_are_asked_for(capsys):
    scores = {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "rows": 7}
    metrics = {"tags": {"macro_f1": 0.5, "per_class": {"1": scores}}}
    report.print_metrics([TAGS], metrics)
    assert "precision" not in capsys.readouterr().out
    report.print_metrics([TAGS], metrics, verbose=True)
    assert re.search(r"^1 one +0\.500 +1\.000 +0\.667 +7$", capsys.readouterr().out, re.M)


def test_a_wrong_list_of_labels_is_marked(capsys):
    rows = make_rows({"tags": (1, 3)}, {"tags": ()}, {"tags": (2,)}, {"tags": ()}, {})
    logits = np.array([[1, -1, 1], [-1, -1, -1], [1, 1, 0], [1, -1, -1], [1, -1, 1]])
    predictions = [{"tags": prediction} for prediction in TAGS.predictions(logits)]
    report.print_examples([TAGS], rows, predictions, "test")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "" and lines[1].split() == ["5", "test", "rows", "tags", "predicted"]
    cells = [re.split("  +", line)[1:] for line in lines[2:]]
    labels_and_marks = [line[:-1] for line in cells]
    assert labels_and_marks == [["one, three"], ["none"], ["two", "x"], ["none", "x"], ["-"]]
    assert [line[-1] for line in cells[:2]] == ["one 0.73, three 0.73", "none"]


def test_bars_show_the_likeliest_classes_all_labels_and_numbers(capsys):
    prediction = {
        "mood": MOOD.predictions(np.array([[0.0, 2.0]]))[0],
        "stars": {"value": 2.5},
        "tags": {"labels": [], "names": [], "probabilities": {1: 0.1, 2: 0.2, 3: 0.3}},
    }
    report.print_bars([MOOD, STARS, TAGS], "a\nfilm", prediction)
    lines = capsys.readouterr().out.replace("\N{FULL BLOCK}", "#").splitlines()
    assert lines == [
        "a film",
        "  mood   good  0.88 " + 18 * "#",
        "         bad   0.12 " + 2 * "#",
        "  stars  2.50",
        "  tags   none",
    ]


def test_an_epoch_is_one_line(capsys):
    losses = {"a": 0.1234, "b": 2.0}
    scores = {"a": 0.5, "b": -0.25}
    first = "epoch 1/3  a: loss 0.123, validation 0.500  b: loss 2.000, validation -0.250"
    report.print_epoch(1, 3, losses, scores, is_best=True)
    report.print_epoch(1, 3, losses, scores, is_best=False)
    assert capsys.readouterr().out == f"{first}  best\n{first}\n"


def test_only_constant_tasks_are_warned_of(capsys):
    report.warn_constant([])
    assert capsys.readouterr().err == ""
    report.warn_constant(["a", "b"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "every validation row of 'a', 'b'" in err and "--lr" in err


# --------------------------------------------------------------------------------------------------
# Before a training


def test_examples_of_many_tasks_and_long_labels_fit_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    rows = make_rows({"mood": "good " * 100}, {"mood": "bad"})
    prediction = MOOD.predictions(np.array([[0.0, 9.0]]))[0]
    for number, shown in ((1, 1), (4, 3), (9, 3)):
        tasks = [replace(MOOD, name=f"mood{i}") for i in range(number)]
        predictions = [{task.name: prediction for task in tasks}] * 2
        report.print_examples(tasks, rows, predictions, "test")
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
        assert lines[1].split().count("predicted") == shown
        said = f"(the first {shown} of {number} tasks)"
        assert (lines[-1] == said) is (shown < number)


def test_the_data_are_a_table_with_the_share_of_the_draws(capsys):
    rows = {
        "train": make_rows({"mood": "bad"}, {"mood": "good"}, {"mood": "bad"}, {"stars": 1.0}),
        "validation": make_rows({"mood": "bad", "stars": 2.0}),
        "test": [],
    }
    columns = [task.column() for task in TWO]
    draws = np.array([0.5, 0.5, 0.5, 2.5])
    notes = Notes({"id": "its name"}, ["something is odd"])
    rates = {"mood": 0.375, "stars": 0.625}
    num_learned = {"mood": 3, "stars": 1}
    report.print_data(TWO, columns, rows, notes, (draws, rates, num_learned))
    out, err = capsys.readouterr()
    first, *table = out.splitlines()
    assert first.startswith("tasks: mood (2 classes), stars (a number); left out: 'id' (its name)")
    cells = [re.split("  +", line) for line in table]
    header = ["labels of", "train", "validation", "test", "majority"]
    assert cells == [
        [*header, "share of draws", "draws per label"],
        ["mood", "3", "1", "0", "0.333", "0.375", "0.50"],
        ["stars", "1", "1", "0", "2.00 ± 0.50", "0.625", "2.50"],
        ["(rows)", "4", "1", "0"],
    ]
    assert "something is odd" in err

    report.print_data(TWO, columns, rows, None)
    out, err = capsys.readouterr()
    assert "share of draws" not in out and "left out" not in out and err == ""


def test_steps_are_counted(capsys):
    report.print_steps(1, 65, 32)
    report.print_steps(3, 64, 32)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 epoch of 65 draws, 3 steps")
    assert lines[1].startswith("3 epochs of 64 draws, 6 steps")


def test_what_becomes_of_a_former_runs_heads_is_said(capsys):
    for heads in (None, {}, {"mood": []}):
        report.print_heads("runs/a", heads)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "another --pooling" in lines[0] and lines[1].endswith("'mood'")
    report.print_heads("runs/a", {"mood": ["new"]}, ["stars"])
    _, new_labels, dropped = capsys.readouterr().out.splitlines()
    assert new_labels == "labels of 'mood' that start anew: 'new'"
    assert dropped == "tasks of runs/a that are left behind: 'stars'"


# --------------------------------------------------------------------------------------------------
# What train.py prints


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_table(name, header, lines):
    Path(name).write_text("\n".join([header, *lines]) + "\n", "utf-8")


def test_train_says_how_tasks_hang_together(script, tiny):
    lines = []
    for i in range(120):
        liked = "yes" if i % 2 else "no"
        part = "a" if i < 52 else "ab" if i < 60 else "b"
        lines.append(f"film {i},{liked},{i % 2},{part}")
    write_table("a.csv", "text,liked,same,part", lines)
    flags = ["--data", "a.csv", "--test", "a.csv", "--no-test", "--encoder", tiny, "--epochs", "1"]
    status, out, err = script("train.py", *flags, "--out", "run")
    assert status == 0, err
    assert "'liked' and 'same' nearly give each other away: Cramér's V 1.00" in err
    assert re.search(r"^liked +\d+ +\d+ +0 +0\.5\d\d +1\.000 +1\.00$", out, re.M)
    assert "liked and part" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test"] == {} and metrics["validation"]
    assert Path("run/test_predictions.jsonl").read_text() == ""


def test_what_is_probably_a_mistake_in_the_rows_is_said_once(script, tiny):
    lines = []
    for i in range(40):
        mood = "good" if i % 2 else "bad"
        lines.append(f"film {i},{mood},{i % 3}")
    write_table("a.csv", "text,mood,stars", [*lines, "film 1,Good ,1", "film 2,bad,0"])
    write_table("b.csv", "text,mood,stars", [*lines[:5], "new,bad,0"])
    flags = ["--data", "a.csv", "--val", "b.csv", "--encoder", tiny, "--epochs", "1"]
    status, _, err = script("train.py", *flags)
    said = []
    for line in err.splitlines():
        message = line.removeprefix("train.py: warning: ")
        if not message.startswith("one class is predicted"):
            said.append(message)
    assert status == 0 and said == [
        "'mood' has separate labels that differ only in case or blanks: 'Good', 'good'",
        "1 texts have more than one label of 'mood'",
        "1 texts have more than one label of 'stars'",
        "5 validation rows are also train rows",
    ]


def test_a_run_fits_one_screen_and_marks_wrong_predictions(script, tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    rows = []
    for i in range(80):
        text = f"film {i} " + "so " * (i % 30)
        rows.append({"text": text, "liked": "yn"[i % 2], "kind": i % 3})
    splits = {"train": rows[:40], "validation": rows[40:70], "test": rows[70:]}
    Path("rows.json").write_text(json.dumps(splits))
    flags = ["--data", "rows.json", "--encoder", tiny, "--epochs", "3", "--out", "run"]
    status, out, _ = script("train.py", *flags)
    lines = out.splitlines()
    assert status == 0 and len(lines) <= 40 and max(map(len, lines[1:-1])) <= 100
    assert "run/report.png" in lines[-1] and "precision" not in out

    [start] = [number for number, line in enumerate(lines) if line.startswith("8 test rows")]
    shown = lines[start + 1 : start + 9]
    tested = Path("run/test_predictions.jsonl").read_text().splitlines()
    pattern = r"[yn] +(x?)  [yn]\S* 0\.\d\d  +\d +(x?)  \d\S* 0\.\d\d$"
    for line, row in zip(shown, map(json.loads, tested), strict=False):
        marks = re.search(pattern, line).groups()
        for task, mark in zip(("liked", "kind"), marks, strict=True):
            wrong = row["labels"][task] != row["predictions"][task]["label"]
            assert (mark == "x") == wrong, line
    assert "precision" in script("train.py", *flags, "--overwrite", "--verbose")[1]


@pytest.mark.parametrize("text", ["\u0e20\u0e32\u0e1e\u0e22\u0e19\u0e15\u0e23\u0e4c", "film"])
def test_texts_of_which_the_encoder_knows_few_tokens_are_said(script, tiny, text):
    lines = [f"{text} {text} {text},{'xy'[i % 2]}" for i in range(30)]
    write_table("a.csv", "text,a", lines)
    status, _, err = script("train.py", "--data", "a.csv", "--encoder", tiny, "--epochs", "1")
    are_unknown = "of the tokens of the train texts are unknown" in err
    assert status == 0 and are_unknown == (text != "film"), err


def test_truncated_texts_are_counted_once(script, tiny):
    lines = ["very " * i + f"long,{i % 2}" for i in range(30)]
    write_table("a.csv", "text,a", lines)
    flags = ["--data", "a.csv", "--encoder", tiny, "--epochs", "1"]
    status, out, _ = script("train.py", *flags, "--max-length", "4")
    assert status == 0
    assert out.count("28 texts are longer than 4 tokens and were truncated\n") == 1
    status, out, _ = script("train.py", *flags)
    assert status == 0 and "texts are longer" not in out


def test_a_first_epoch_that_predicts_one_class_is_said(script, tiny):
    write_table("a.csv", "text,a", [f"film,{'xxxy'[i % 4]}" for i in range(120)])
    status, _, err = script("train.py", "--data", "a.csv", "--encoder", tiny, "--epochs", "2")
    said = "one class is predicted for every validation row of 'a'"
    assert status == 0 and err.count(said) == 1
