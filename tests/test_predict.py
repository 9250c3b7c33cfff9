"""Properties of predict.py and support/writers.py: texts and files in, predictions out."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MOOD, ROOT, TAGS, tiny_model

import mtbert
import predict
import train
from support import cpu, plots, writers
from support.errors import InputError
from support.files import PLAIN
from support.script import run_script

CASES = Path(__file__).parent / "cases"
SENTIMENTS = ["negative", "positive"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def base_run(tiny, tmp_path_factory):
    """The folder of a run on cases/base.csv."""
    folder = tmp_path_factory.mktemp("base") / "run"
    flags = ["--data", str(CASES / "base.csv"), "--test", str(CASES / "base.csv")]
    flags += ["--encoder", str(tiny), "--epochs", "1", "--out", str(folder)]
    train.main(flags)
    return folder


def write(name, *lines):
    Path(name).write_text("".join(line + "\n" for line in lines), "utf-8")
    return name


def files_here():
    return {path.name for path in Path().iterdir()}


def read_json(path):
    return json.loads(Path(path).read_text("utf-8"))


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def column(rows, name):
    """What each of some rows has under a name, or at a place."""
    return [row[name] for row in rows]


def read_csv(path, **settings):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file, **settings))


# --------------------------------------------------------------------------------------------------
# What is printed for people


def test_it_imports_neither_transformers_nor_scikit_learn_and_needs_no_docstrings(finished):
    code = f"""
import runpy, sys
sys.argv = ["predict.py", "--model", {str(finished)!r}, "great movie"]
runpy.run_path("predict.py", run_name="__main__")
print(sorted({{"transformers", "sklearn", "scipy", "matplotlib"}} & set(sys.modules)))
"""
    command = [sys.executable, "-OO", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "great movie" in result.stdout, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("flag", ["-P", "-I"])
def test_it_finds_its_modules_where_python_leaves_its_folder_out(finished, flag):
    command = [sys.executable, flag, ROOT / "predict.py", "--model", finished, "great movie"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.startswith("great movie\n"), result.stderr


def test_a_file_gives_a_table_as_wide_as_the_terminal(script, finished, monkeypatch):
    texts = ["great movie", "evil\x1b[2J\u202e\x9b\nred", "long " * 60]
    write("a.jsonl", *[json.dumps({"text": text}) for text in texts])
    monkeypatch.setenv("COLUMNS", "70")
    status, out, err = script("predict.py", "--model", finished, "--input", "a.jsonl")
    lines = out.splitlines()
    assert status == 0 and not err
    assert re.search(r"^text +liked +stars$", out, re.M)
    assert re.search(r"^great movie +(yes|no) [01]\.\d\d +-?\d+\.\d\d$", out, re.M)
    assert len(lines) == 4 and max(map(len, lines)) <= 70
    assert all(c.isprintable() or c == "\n" for c in out)


def test_texts_of_the_command_line_give_bars(script, finished):
    texts = ["great movie", "evil\x1b[2J\u202e\x9b\nred"]
    status, out, err = script("predict.py", "--model", finished, *texts)
    lines = out.splitlines()
    assert status == 0 and not err and all(c.isprintable() or c == "\n" for c in out)
    assert len(lines) == 8 and lines[0] == "great movie"
    assert re.match(r"  stars +-?\d+\.\d\d$", lines[3])
    found = []
    for line in lines[1:3]:
        found.append(re.fullmatch(r"(?:  liked)? +(yes|no) +([01]\.\d\d)(?: [█#]+)?", line))
    assert {match[1] for match in found} == {"yes", "no"}
    assert float(found[0][2]) >= float(found[1][2])


def test_the_first_rows_decide_how_wide_the_columns_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(writers.TextTableWriter, "FIRST_ROWS", 2)
    writer = writers.TextTableWriter([MOOD], "text")
    good, bad = MOOD.predictions(np.array([[0.0, 9.0], [9.0, 0.0]]))
    rows = list(predict.rows_of_texts(["one", "two", "three"], PLAIN))
    writer.write(rows[0], {"mood": good}, None)
    assert capsys.readouterr().out == ""
    writer.write(rows[1], None, "there is a reason, and it is a long one")
    first = capsys.readouterr().out.splitlines()
    writer.write(rows[2], {"mood": bad}, None)
    writer.finish()
    lines = first + capsys.readouterr().out.splitlines()
    column = lines[0].index("mood")
    assert [line[column:] for line in lines] == [
        "mood",
        "good 1.00",
        "there is a reason, and it is a long one",
        "bad 1.00",
    ]


def test_a_table_without_a_row_has_a_header(capsys):
    writers.TextTableWriter([MOOD], "text").finish()
    assert capsys.readouterr().out.split() == ["text", "mood"]


@pytest.mark.parametrize(
    ("threshold", "bars", "cell"),
    [
        (0.3, ["acting +0.50 #+", " plot\\? +0.38 #+"], "0 acting 0.50, 1 plot? 0.38"),
        (0.9, ["none"], "none"),
    ],
)
def test_what_is_printed_of_multi_label_texts(script, tiny, threshold, bars, cell):
    names = {"0": "acting", "1": "plot", "2": "2"}
    tags = replace(TAGS, labels=[0, 1, 2], label_names=names, threshold=threshold)
    model = tiny_model(tiny, [tags, MOOD])
    with torch.no_grad():
        model.heads["head_tags"].weight.zero_()
        model.heads["head_tags"].bias.copy_(torch.tensor([0.0, -0.5, -3.0]))
    Path("run").mkdir()
    mtbert.save(model, "run")
    status, out, _ = script("predict.py", "--model", "run", "a film")
    pattern = r"^  tags  +" + "\n +".join(bars)
    assert status == 0 and re.search(pattern, out.replace("\N{FULL BLOCK}", "#"), re.M)
    assert "2 " not in out and " bad" in out

    write("a.txt", "a film")
    status, out, _ = script("predict.py", "--model", "run", "--input", "a.txt")
    assert status == 0 and re.search(rf"^a film +{re.escape(cell)}  +", out, re.M)
    assert script("predict.py", "--model", "run", "--input", "a.txt", "--output", "o.csv")[0] == 0
    row = read_csv("o.csv")[1]
    if threshold == 0.9:
        assert row[:3] == ["a film", "|", ""]
    else:
        assert row[:2] == ["a film", "0|1"]
        assert [round(float(p), 2) for p in row[2].split("|")] == [0.5, 0.38]


def test_truncated_texts_are_counted_once(script, finished):
    texts = ["short", "long " * 100, "longer " * 200]
    status, _, err = script("predict.py", "--model", finished, *texts)
    said = "2 texts are longer than 66 tokens and were truncated"
    assert status == 0 and err == f"predict.py: {said}\n"


def test_the_newest_finished_run_is_taken_and_named(script, finished):
    for name in ("older", "newer", "unfinished"):
        shutil.copytree(finished, Path("runs") / name)
    Path("runs/unfinished/metrics.json").unlink()
    Path("runs/newer/metrics.json").touch()
    status, out, err = script("predict.py", "great movie", "--json")
    assert status == 0 and err == "model: runs/newer\n"
    assert json.loads(out)["predictions"]["liked"]["name"] in ("yes", "no")


# --------------------------------------------------------------------------------------------------
# Files in and out


def test_it_takes_every_format_and_keeps_the_rows_keys(script, finished):
    rows = []
    for i in range(10):
        text = f"film number {i}, " + "very " * (i * 5 % 11)
        rows.append({"id": str(i), "text": text, "liked": "kept"})
    write("a.json", json.dumps(rows))
    write("a.jsonl", *map(json.dumps, rows))
    write("a.csv", "id,text,liked", *[f'{row["id"]},"{row["text"]}",kept' for row in rows])
    write("a.tsv", "id\ttext\tliked", *["\t".join(row.values()) for row in rows])
    write("a.txt", *column(rows, "text"))
    texts = column(rows, "text")
    expected = mtbert.predict(mtbert.load(finished, dtype="float32"), texts)
    for name in ("a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt"):
        flags = ["--model", finished, "--dtype", "float32", "--input", name, "--output", "out"]
        assert script("predict.py", *flags)[0] == 0
        results = read_lines("out")
        predictions = [result.pop("predictions") for result in results]
        kept = [{"text": text} for text in texts] if name == "a.txt" else rows
        assert results == kept
        for ours, theirs in zip(predictions, expected, strict=True):
            assert ours["liked"]["label"] == theirs["liked"]["label"]
            assert ours["liked"].keys() == theirs["liked"].keys()
            assert ours["stars"]["value"] == pytest.approx(theirs["stars"]["value"], abs=1e-4)
    command = [sys.executable, ROOT / "predict.py", "--model", finished, "--input", "-", "--json"]
    piped = subprocess.run(command, input=Path("a.txt").read_bytes(), capture_output=True)
    assert [json.loads(line)["text"] for line in piped.stdout.splitlines()] == texts


def test_every_kind_of_character_gives_one_line_for_each_row(script, finished):
    texts = [
        "nul \0 nul",
        "\u202eright to left",
        "e\u0301 \u0308 combining",
        "\U0001f3ac \U0001f468\u200d\U0001f469",
        "a\r\nb\nc",
        "one\u2028two\x85three\x0bfour\x1cfive",
        '"quoted", and, commas',
        "x" * 10**6,
        "word " * 10**6,
    ]
    with open("a.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    command = ["--model", finished, "--input", "a.csv"]
    assert script("predict.py", *command, "--output", "out")[0] == 0
    with open("out", newline="") as file:
        assert [json.loads(line)["text"] for line in file] == texts
    status, out, _ = script("predict.py", *command)
    assert status == 0 and len(out.splitlines()) == len(texts) + 1


def test_a_large_file_is_read_in_windows_and_a_mistake_at_its_end_leaves_the_output(
    script, finished, monkeypatch
):
    write("a.txt", *[f"film {i}" for i in range(4200)], "")
    write("out", "former")
    command = ["--model", finished, "--input", "a.txt", "--output", "out"]
    status, _, err = script("predict.py", *command, "--strict")
    assert status == 2 and "a.txt, line 4201" in err
    assert Path("out").read_text() == "former\n"
    assert files_here() == {"a.txt", "out"}

    sizes = []
    encode = mtbert.encode

    def remember(tokenizer, rows, *others):
        sizes.append(len(rows))
        return encode(tokenizer, rows, *others)

    monkeypatch.setattr(mtbert, "encode", remember)
    assert script("predict.py", *command)[0] == 0
    texts = column(read_lines("out"), "text")
    assert sizes[0] == 4096 and texts == [f"film {i}" for i in range(4200)] + [""]


def test_a_column_of_another_name(script, tiny):
    for name, kinds in (("a.tsv", "xy"), ("b.tsv", "uv")):
        write(name, "review\tkind", *[f"film {i}\t{kinds[i % 2]}" for i in range(30)])
    flags = ["--encoder", tiny, "--text-column", "review", "--epochs", "1", "--out", "run"]
    flags += ["--pooling", "cls"]
    assert script("train.py", "--data", "a.tsv", *flags)[0] == 0
    assert script("train.py", "--data", "b.tsv", "--test", "b.tsv", *flags, "--overwrite")[0] == 0
    command = ["--model", "run", "--input", "b.tsv", "--text-column", "review", "--json"]
    status, out, _ = script("predict.py", *command)
    predictions = [json.loads(line)["predictions"] for line in out.splitlines()]
    assert status == 0 and len(predictions) == 30
    assert {prediction["kind"]["name"] for prediction in predictions} <= set("uv")
    assert read_json("run/config.json")["pooling"] == "cls"


def test_rows_are_read_as_those_were_that_the_model_learned_from(script, tiny):
    lines = []
    for i in range(40):
        end = "good,nan" if i % 2 else "bad,no"
        lines.append(f"other {i},film {i},is {end}")
    write("a.csv", "text,review,more,label", *lines)
    names = ["--text-column", "review", "--pair-column", "more"]
    flags = [*names, "--missing", "--tasks", "label", "--encoder", tiny, "--epochs", "1"]
    assert script("train.py", "--data", "a.csv", *flags, "--out", "run")[0] == 0
    assert read_json("run/config.json")["tasks"][0]["labels"] == ["nan", "no"]

    command = ["--model", "run", "--input", "a.csv"]
    assert script("predict.py", *command, "--output", "o.jsonl")[0] == 0
    assert script("predict.py", *command, "--output", "e.jsonl", *names)[0] == 0
    assert Path("o.jsonl").read_text() == Path("e.jsonl").read_text()
    write("b.csv", "text", "film")
    status, _, err = script("predict.py", "--model", "run", "--input", "b.csv", "--json")
    assert status == 2
    assert "b.csv: no 'more' among the columns 'text'; --pair-column names it" in err
    assert script("predict.py", *command, "--score", "--output", "s.json")[0] == 0
    assert np.sum(read_json("s.json")["label"]["confusion"]) == 40
    command = ["--model", "run", "great movie"]
    status, _, err = script("predict.py", *command)
    assert status == 2 and "the model learned from pairs of texts: --pair TEXT" in err
    assert script("predict.py", *command, "--pair", "is good")[0] == 0


# --------------------------------------------------------------------------------------------------
# Tables out


@pytest.mark.parametrize(("name", "separator"), [("base.csv", ","), ("semicolon.csv", ";")])
def test_a_csv_comes_back_as_a_csv_with_its_columns_first(script, base_run, name, separator):
    command = ["--model", base_run, "--input", CASES / name, "--output", "o.csv"]
    assert script("predict.py", *command)[0] == 0
    ours = read_csv("o.csv", delimiter=separator)
    theirs = read_csv(CASES / name, delimiter=separator)
    added = ["sentiment_predicted", "sentiment_probability"]
    added += ["topic_predicted", "topic_probability", "error"]
    assert ours[0] == theirs[0] + added and [row[:3] for row in ours] == theirs
    for row in ours[1:]:
        assert row[3] in SENTIMENTS and 0.5 <= float(row[4]) <= 1 and row[7] == ""


def test_a_mark_stays_and_a_tsv_has_tabs(script, base_run):
    Path("a.csv").write_bytes(b"\xef\xbb\xbftext;x\na;1\n")
    command = ["--model", base_run, "--input", "a.csv"]
    assert script("predict.py", *command, "--output", "o.csv")[0] == 0
    assert Path("o.csv").read_bytes().startswith(b"\xef\xbb\xbftext;x;sentiment;")
    assert script("predict.py", *command, "--output", "o.tsv")[0] == 0
    assert Path("o.tsv").read_bytes().startswith(b"\xef\xbb\xbftext\tx\tsentiment\t")


def test_a_column_that_would_be_overwritten_is_refused_at_once(script, base_run, monkeypatch):
    monkeypatch.setattr(mtbert, "predict_encoded", None)
    command = ["--model", base_run, "--input"]
    for how in (["--output", "o.jsonl"], ["--json"]):
        status, out, err = script("predict.py", *command, CASES / "predictions_column.csv", *how)
        assert status == 2 and not out
        assert "has 'predictions' already, which would be lost" in err
    write("a.csv", "text,sentiment,sentiment_predicted", "good,positive,mine")
    status, _, err = script("predict.py", *command, "a.csv", "--output", "o.csv")
    assert status == 2 and "would have two columns 'sentiment_predicted'" in err
    write("c.jsonl", *['{"text": "fine"}'] * 5000, '{"text": "fine", "predictions": 1}')
    status, out, err = script("predict.py", *command, "c.jsonl", "--json")
    assert status == 2 and not out and "c.jsonl has 'predictions' already" in err
    assert files_here() == {"a.csv", "c.jsonl"}


def test_rows_of_json_have_no_columns_to_write_to_a_csv(script, base_run):
    row = '{"text": "x", "b": 1}'
    for name, content in (("a.json", f"[{row}]"), ("a.jsonl", row), ("a.ndjson", row)):
        write(name, content)
        command = ["--model", base_run, "--input", name, "--output", "o.csv"]
        status, _, err = script("predict.py", *command)
        assert status == 2 and "o.csv takes a .csv, .tsv or .txt as input" in err
        assert not Path("o.csv").exists()
    write("a.txt", "x", "y")
    command = ["--model", base_run, "--input", "a.txt", "--output", "o.csv"]
    assert script("predict.py", *command)[0] == 0
    assert column(read_csv("o.csv"), 0) == ["text", "x", "y"]


def test_labels_that_could_not_be_told_apart_again_are_refused():
    tags = replace(TAGS, labels=["a|b", "c", "d"], label_names={})
    with pytest.raises(InputError, match=r"--output o.csv: the label 'a\|b' .*; name a .jsonl"):
        writers.TableWriter(io.StringIO(), "o.csv", [tags], None, PLAIN)
    joined = replace(PLAIN, multi_label={"tags": ";"})
    writers.TableWriter(io.StringIO(), "o.csv", [tags], None, joined)


@pytest.mark.parametrize(
    ("name", "flags"), [("list_labels.json", []), ("pipe_lists.csv", ["--multi-label", "tags"])]
)
def test_multi_label_predictions_are_lists_in_json_and_joined_in_a_table(script, tiny, name, flags):
    data = ["--data", CASES / name, "--test", CASES / name, *flags]
    flags = [*data, "--encoder", tiny, "--epochs", "2", "--lr", "1e-3", "--out", "run"]
    assert script("train.py", *flags)[0] == 0
    task = read_json("run/config.json")["tasks"][0]
    threshold = read_json("run/config.json")["fitted"]["tags"]["threshold"]
    tested = column(column(read_lines("run/test_predictions.jsonl"), "predictions"), "tags")

    command = ["--model", "run", "--input", CASES / name]
    status, out, err = script("predict.py", *command, "--score", "--output", "s.json")
    assert status == 0 and err.count("\n") == 1 and "60 of 60 rows are training rows" in err
    assert read_json("s.json") == read_json("run/metrics.json")["test"]
    assert script("predict.py", *command, "--output", "o.jsonl")[0] == 0
    predictions = column(column(read_lines("o.jsonl"), "predictions"), "tags")
    assert column(predictions, "labels") == column(tested, "labels")
    for p in predictions:
        assert set(p) == {"labels", "names", "probabilities"} and p["names"] == p["labels"]
        reached = [x for x in task["labels"] if p["probabilities"][x] >= threshold]
        assert p["labels"] == reached
    if name.endswith(".csv"):
        assert script("predict.py", *command, "--output", "o.csv")[0] == 0
        header, *rows = read_csv("o.csv")
        for row, p in zip(rows, predictions, strict=True):
            cells = dict(zip(header, row, strict=True))
            assert cells["tags_predicted"] == ("|".join(p["labels"]) or "|")
            numbers = [float(word) for word in cells["tags_probability"].split("|") if word]
            expected = [p["probabilities"][label] for label in p["labels"]]
            assert numbers == pytest.approx(expected, abs=1e-5) and cells["error"] == ""
        return
    joined = ["--model", "run", "--input", CASES / "pipe_lists.csv", "--score"]
    status, _, err = script("predict.py", *joined)
    assert status == 2 and err.count("\n") == 1 and "--multi-label splits a text" in err
    status, again, _ = script("predict.py", *joined, "--multi-label", "tags")
    again = again.replace("pipe_lists.csv", "list_labels.json")
    assert status == 0 and again.split() == out.split()


# --------------------------------------------------------------------------------------------------
# Rows that cannot be predicted


@pytest.mark.parametrize(
    ("name", "rows", "failing"),
    [
        ("blank_mid_predict.csv", 60, [30]),
        ("blank_line.txt", 3, [1]),
        ("emoji_only.csv", 6, [2, 4]),
    ],
)
def test_a_row_that_cannot_be_predicted_has_a_reason_and_the_others_do_not(
    script, base_run, name, rows, failing
):
    command = ["--model", base_run, "--input", CASES / name, "--output"]
    status, _, err = script("predict.py", *command, "out.jsonl")
    assert status == 0 and "--strict" in err
    assert f"{len(failing)} rows could not be predicted" in err
    lines = read_lines("out.jsonl")
    without = [i for i, line in enumerate(lines) if line["predictions"] is None]
    with_error = [i for i, line in enumerate(lines) if "error" in line]
    assert len(lines) == rows and without == with_error == failing
    Path("out.jsonl").unlink()
    status, _, err = script("predict.py", *command, "out.jsonl", "--strict")
    assert status == 2 and name in err and err.count("\n") == 1 and not list(Path().iterdir())
    if name.endswith(".csv"):
        assert script("predict.py", *command, "out.csv")[0] == 0
        header, *table = read_csv("out.csv")
        errors = column(table, header.index("error"))
        topics = column(table, header.index("topic"))
        assert [i for i, error in enumerate(errors) if error] == failing
        assert [i for i, topic in enumerate(topics) if not topic] == failing


def test_nothing_of_a_row_that_cannot_be_predicted_is_lost(script, base_run):
    command = ["--model", base_run, "--input"]
    write("a.csv", "text,x", "fine,1", "a b,1,2")
    assert script("predict.py", *command, "a.csv", "--output", "o.csv")[0] == 0
    last = read_csv("o.csv")[-1]
    reason = "a.csv, line 3: 3 cells, but the header has 2; a text with ',' in it must stand in"
    reason += " quotes, and --separator names another separator"
    assert last[:2] == ["a b", "1"] and last[-1] == f"{reason}; the row is a b,1,2"
    assert script("predict.py", *command, "a.csv", "--output", "o.jsonl")[0] == 0
    row = read_lines("o.jsonl")[-1]
    assert row == {"row": ["a b", "1", "2"], "predictions": None, "error": reason}

    write("b.jsonl", '{"text": "fine"}', '{"text": ', '{"text": null}', "5")
    assert script("predict.py", *command, "b.jsonl", "--output", "o.jsonl")[0] == 0
    rows = read_lines("o.jsonl")
    assert rows[1]["row"] == ['{"text": '] and "b.jsonl, line 2: invalid JSON" in rows[1]["error"]
    assert rows[2]["error"] == "the text must be a string that is not empty"
    assert rows[3]["row"] == 5 and "a row must be an object" in rows[3]["error"]
    status, out, _ = script("predict.py", *command, "b.jsonl")
    assert status == 0 and len(out.splitlines()) == 5


# --------------------------------------------------------------------------------------------------
# Scores


def test_rows_that_come_steadily_are_predicted_before_the_last_has_come():
    def slowly():
        for i in range(60):
            time.sleep(0.02)
            yield i

    begin = time.monotonic()
    found = predict.chunks(slowly(), hurry=True)
    first = next(found)
    assert 1 <= len(first) < 60 and time.monotonic() - begin < 1.1
    assert [row for chunk in [first, *found] for row in chunk] == list(range(60))


def test_the_score_of_labelled_rows_is_that_of_the_runs_test(script, base_run):
    command = ["--model", base_run, "--score", "--input"]
    status, out, err = script("predict.py", *command, CASES / "base.csv", "--output", "s.json")
    assert status == 0 and err.count("\n") == 1 and "60 of 60 rows are training rows" in err
    assert re.search(r"^base.csv +accuracy +macro-F1 ", out, re.M)
    assert read_json("s.json") == read_json(base_run / "metrics.json")["test"]
    status, _, err = script("predict.py", *command, CASES / "blank_mid_predict.csv")
    assert status == 2
    assert "no row has a label of 'sentiment', 'topic'; its columns are 'id', 'text'" in err
    status, _, err = script("predict.py", *command, CASES / "test_unseen.csv")
    assert status == 0
    assert "labels of 'topic' are in no training row and count as wrong: 'costume'" in err


def test_unseen_labels_alone_count_as_wrong_and_rows_left_out_are_said(script, base_run):
    command = ["--model", base_run, "--score", "--input"]
    write("t.csv", "text,sentiment", "a b,Pos", "c d,Neg")
    status, out, _ = script("predict.py", *command, "t.csv")
    assert status == 0 and re.search(r"^sentiment +0\.000 ", out, re.M)
    write("d.csv", "text,sentiment", "a b,positive", ",negative", "c d,negative,x")
    status, _, err = script("predict.py", *command, "d.csv")
    said = "2 rows were left out; the first: d.csv, line 3: the text must be"
    assert status == 0 and said in err


def test_a_score_is_computed_in_the_dtype_of_the_runs_test(script, base_run, monkeypatch):
    shutil.copytree(base_run, "run")
    taken = []
    load = mtbert.load

    def remember(folder, device, dtype):
        taken.append(str(dtype))
        return load(folder, device, dtype)

    monkeypatch.setattr(mtbert, "load", remember)
    command = ["--model", "run", "--input", CASES / "base.csv"]
    record = read_json("run/metrics.json")
    for tested_in in ("float32", "bfloat16", None):
        record["dtype"] = tested_in
        write("run/metrics.json", json.dumps(record))
        assert script("predict.py", *command, "--score")[0] == 0
    assert script("predict.py", *command, "--score", "--dtype", "float32")[0] == 0
    assert script("predict.py", *command)[0] == 0
    assert taken == ["float32", "bfloat16", "auto", "float32", "auto"]


def test_a_dtype_that_cannot_be_had_here_is_replaced_and_said(script, base_run, monkeypatch):
    shutil.copytree(base_run, "run")
    record = read_json("run/metrics.json")
    write("run/metrics.json", json.dumps(record | {"dtype": "int8"}))
    monkeypatch.delenv("MTBERT_ARITHMETIC", raising=False)
    monkeypatch.setattr(cpu, "has_int8", lambda: False)
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda device: False)
    command = ["--model", "run", "--input", CASES / "base.csv", "--score"]
    status, out, err = script("predict.py", *command)
    said = "the run was tested in int8, which cannot be had here; float32 is taken"
    assert status == 0 and err.startswith(f"predict.py: {said}\n") and "sentiment" in out


# --------------------------------------------------------------------------------------------------
# Mistakes


def write_files(folder):
    """Files with one mistake each, for PREDICT_ERRORS."""
    good = []
    for i in range(30):
        good.append({"text": f"film {i}", "a": "xy"[i % 2], "b": "uv"[i % 2]})
    for name, row in (("good", []), ("text", [{"a": "x"}]), ("blank", [{"text": " "}])):
        (folder / f"{name}.json").write_text(json.dumps(good + row))
    (folder / "short.csv").write_text("text,a\nfilm,x\nfilm\n")
    (folder / "column.csv").write_text("review,a\nfilm,x\n")
    (folder / "full").mkdir()


PREDICT_ERRORS = [
    ("", "give texts, or --input FILE"),
    ("-bad film", "unrecognized arguments: -bad; see --help; texts that begin with - follow after"),
    ("a b --pair c", "2 texts, but 1 times --pair TEXT"),
    ("text --split test", "--split picks the rows for --score"),
    ("--model RUN --input good.json --score --split test", "good.json has no splits"),
    ("--model RUN --input full", "full is a folder; name the files in it"),
    ("text --input good.json", "give texts, or --input FILE"),
    ("text --model nowhere", "nowhere: no trained model there"),
    ("text", "no finished run under runs/"),
    ("--model RUN --input nowhere.txt", "nowhere.txt: No such file"),
    ("--model RUN --input text.json --output out --strict", "text.json, row 31: no 'text'"),
    ("--model RUN --input blank.json --output out --strict", "row 31: the text must be"),
    ("--model RUN --input good.json --output nowhere/out", "is in no folder that exists"),
    ("--model RUN --input good.json --output full", "--output full is a folder"),
    ("--model DAMAGED text", "damaged cannot be loaded: "),
    ("--model RUN \u200b\x01", "text 1: no token is left"),
    ("--model RUN --input column.csv --output out", "no 'text' among the columns 'review', 'a'"),
    ("--model RUN --input good.json --output out.json", "known are .jsonl, .csv, .tsv"),
    ("--model RUN --input good.json --output out.csv", "takes a .csv, .tsv or .txt as input"),
    ("--model RUN --score text", "--score takes --input FILE with labels"),
    ("--model RUN --input good.json --score --output out.csv", "out.csv: known are .json"),
    ("--model RUN --input short.csv --output short.csv", "is the input, which would be lost"),
    ("--model RUN --input good.json --json --output out.csv", "--json writes JSON Lines"),
    ("--model RUN --dtype float16 text", "invalid choice: 'float16'"),
    ("--model RUN --device abacus text", "device 'abacus' cannot be used here"),
]


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "message"), PREDICT_ERRORS, ids=[row[0] for row in PREDICT_ERRORS]
)
def test_a_mistake_is_one_line_and_changes_nothing(script, finished, flags, message):
    write_files(Path())
    Path("damaged").mkdir()
    for path in finished.iterdir():
        (Path("damaged") / path.name).write_bytes(path.read_bytes()[:-100])
    places = {"RUN": str(finished), "DAMAGED": "damaged"}
    before = content_of(Path())
    status, _, err = script("predict.py", *[places.get(flag, flag) for flag in flags.split()])
    assert status == 2 and err.count("\n") == 1, err
    assert err.startswith("predict.py: error: ") and message in err
    assert content_of(Path()) == before


# --------------------------------------------------------------------------------------------------
# Where it runs


def test_in_a_notebook_in_a_thread_and_under_a_foreign_rank(tiny, monkeypatch):
    """A notebook's stdout has no `reconfigure`; a thread cannot have signal handlers."""
    monkeypatch.setenv("RANK", "3")
    write("rows.csv", "text,a", *[f"film {i},{'xy'[i % 2]}" for i in range(30)])
    out = io.StringIO()
    errors = []
    monkeypatch.setattr(sys, "stdout", out)

    def work():
        flags = ["--data", "rows.csv", "--encoder", str(tiny), "--epochs", "1", "--out", "run"]
        try:
            train.main(flags)
            predict.main(["--model", "run", "great movie"])
            run_script(lambda: plots.main(["run"]))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors and "saved in run" in out.getvalue() and "great movie" in out.getvalue()
    assert out.getvalue().endswith("run/report.png\n")
