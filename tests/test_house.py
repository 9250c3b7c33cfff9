"""How the parts stand to each other: the direction of imports, forks beside the code and elsewhere,
the examples, and what can be taken out.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from conftest import ROOT, TWO, partly_labelled_rows, tiny_model, train_tiny

import mtbert
from support import cpu

# --------------------------------------------------------------------------------------------------
# Imports

ROOMS = [  # each may import those above it, and no other of ours
    "support.versions",
    "support.errors",
    "support.processes",
    "support.script",
    "support.runs",
    "support.files",
    "support.columns",
    "support.mistakes",
    "support.metrics",
    "support.linear",
    "support.bounds",
    "support.huggingface",
    "support.cpu",
    "support.former",
    "support.report",
    "support.writers",
    "support.plots",
    "mtbert",
    "predict",
    "train",
]


def path_of(room):
    return ROOT / f"{room.replace('.', '/')}.py"


def test_each_file_has_its_place_in_the_order_of_imports():
    files = {*ROOT.glob("*.py"), *ROOT.glob("support/*.py")}
    files -= {ROOT / "test_mtbert.py", ROOT / "support/__init__.py"}
    assert files == {path_of(room) for room in ROOMS}


def imported_rooms(room):
    """The rooms that a room's file imports, also within its functions."""
    package = room.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path_of(room).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {part.name for part in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1:
                module = f"{package}.{module}".strip(".")
            names |= {module} | {f"{module}.{part.name}" for part in node.names}
    return names & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    assert imported_rooms(room) <= set(ROOMS[: ROOMS.index(room)])


# --------------------------------------------------------------------------------------------------
# Kinds of tasks are asked for within their classes alone

KIND_IS_ASKED = re.compile(r"\.several\b|labels is None|(?<!column)(?<!dtype)\.kind\b")
# What makes tasks, writes and reads them, and compares a former run's with today's
MAY_ASK = {"Classification", "MultiLabel", "Regression", "copy_linear"}
MAY_ASK |= {"describe_model", "read_tasks", "column_of_labels"}
READERS_OF_COLUMNS = {"support.columns", "support.files", "support.mistakes"}


def code_of(path, leave_out=()):
    """A file's code, without comments, strings that stand alone, and what has these names."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [part for part in body if getattr(part, "name", None) not in leave_out]
            node.body = [part for part in kept if not is_text(part)]
    return ast.unparse(tree)


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@pytest.mark.parametrize("room", sorted(set(ROOMS) - READERS_OF_COLUMNS))
def test_no_other_code_asks_for_the_kind_of_a_task(room):
    code = code_of(path_of(room), MAY_ASK if room == "mtbert" else ())
    found = [line.strip() for line in code.splitlines() if KIND_IS_ASKED.search(line)]
    assert found == []


# --------------------------------------------------------------------------------------------------
# Forks

FORK = """
import data, metrics, report, runs
import mtbert, predict, train

for module in (data, metrics, report, runs):
    assert module.MINE, module

if __name__ == "__main__":
    train.main(["--data", "rows.csv", "--encoder", "TINY", "--epochs", "1", "--out", "run"])
    predict.main(["--model", "run", "great movie"])
    print("the end")
"""


def write_fork(folder, tiny, before=""):
    """A script with modules of its own of names that mtbert's modules have or had, and rows."""
    for name in ("data", "metrics", "runs", "report"):
        (folder / f"{name}.py").write_text("MINE = True\n")
    (folder / "fork.py").write_text(before + FORK.replace("TINY", str(tiny)))
    lines = [f"film {i},{'xy'[i % 2]}" for i in range(30)]
    (folder / "rows.csv").write_text("\n".join(["text,liked", *lines]))


def test_forks_have_modules_of_their_own_beside_mtbert_and_elsewhere(tiny, tmp_path):
    beside = tmp_path / "beside"
    elsewhere = tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, beside)
    shutil.copytree(ROOT / "support", beside / "support")
    write_fork(beside, tiny)
    write_fork(elsewhere, tiny, f"import sys\nsys.path.append({str(ROOT)!r})\n")
    started = []
    for folder in (beside, elsewhere):
        command = [sys.executable, folder / "fork.py"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=folder, **pipes))
    for process in started:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "saved in run" in out and "great movie" in out and out.endswith("the end\n")


# --------------------------------------------------------------------------------------------------
# Without support/cpu.py


def predictions_of_training(tiny, folder, texts):
    """What a model of `train_tiny` predicts, its training log, and the same once it is loaded."""
    trained = train_tiny(tiny, folder, "--dropout", "0", "--lr", "1e-3", "--epochs", "1")
    model = tiny_model(tiny, TWO)
    model.load_state_dict(trained.weights)
    mtbert.save(model, folder)
    return trained.log, mtbert.predict(mtbert.load(folder, dtype="float32"), texts)


def test_without_what_makes_a_cpu_faster_training_and_prediction_are_the_same(
    tiny, tmp_path, monkeypatch
):
    texts = [row.text for row in partly_labelled_rows()][:5]
    fast_log, fast = predictions_of_training(tiny, tmp_path / "fast", texts)
    monkeypatch.setattr(cpu, "speed_up_training", lambda model, optimizer: None)
    monkeypatch.setattr(cpu, "speed_up_prediction", lambda model, dtype: "float32")
    plain_log, plain = predictions_of_training(tiny, tmp_path / "plain", texts)
    assert len(fast_log) == len(plain_log) == 6
    for one, other in zip(fast_log, plain_log, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5, abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5, abs=1e-5)
    for one, other in zip(fast, plain, strict=True):
        expected = other["mood"]["probabilities"]
        assert one["mood"]["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert one["stars"]["value"] == pytest.approx(other["stars"]["value"], abs=1e-5)


# --------------------------------------------------------------------------------------------------
# Examples

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def run_example(script, tiny, tmp_path, monkeypatch):
    """Train on few rows with a script of examples/ -> its output, and the rows' predictions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mtbert, "KINDS", dict(mtbert.KINDS))  # examples add to them
    monkeypatch.setattr(mtbert, "POOLING", dict(mtbert.POOLING))
    monkeypatch.setattr(mtbert, "forward_backward", mtbert.forward_backward)
    rows = []
    for i in range(40):
        grade = i % 4
        text = "film " + ["bad", "so so", "fine", "great"][grade] + f" {i}"
        rows.append({"text": text, "sentiment": grade, "category": "xy"[i % 2], "stars": i / 8})
    splits = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    Path("rows.json").write_text(json.dumps(splits))

    def run(name):
        flags = ["--data", "rows.json", "--encoder", tiny, "--epochs", "1", "--batch-size", "8"]
        status, out, err = script(f"examples/{name}", *flags, "--out", "run")
        assert status == 0, err
        lines = Path("run/test_predictions.jsonl").read_text().splitlines()
        return out, [json.loads(line)["predictions"] for line in lines]

    return run


def test_each_example_is_tested():
    assert EXAMPLES == ["attention_pooling.py", "ordinal.py", "pcgrad.py"]


def test_grades_have_probabilities_that_sum_to_one(run_example):
    out, predictions = run_example("ordinal.py")
    assert re.search(r"^tasks: sentiment \(4 classes\), category \(2 classes\), stars", out, re.M)
    for prediction in predictions:
        grades = prediction["sentiment"]
        assert sorted(grades["probabilities"]) == ["0", "1", "2", "3"]
        assert sum(grades["probabilities"].values()) == pytest.approx(1)
        assert all(p >= 0 for p in grades["probabilities"].values())
        assert grades["label"] in (0, 1, 2, 3)
    model = mtbert.load("run")
    assert model.heads["head_sentiment"].out_features == 3
    [again] = mtbert.predict(model, ["film great 35"])
    assert sum(again["sentiment"]["probabilities"].values()) == pytest.approx(1)


def test_a_pooling_that_learns_is_saved_and_loaded(run_example):
    run_example("attention_pooling.py")
    model = mtbert.load("run")
    assert model.pooling == "attention" and model.pool.score.weight.abs().sum() > 0
    texts = ["great", "film " * 30]
    [alone] = mtbert.predict(model, texts[:1])
    together = mtbert.predict(model, texts)[0]
    expected = alone["category"]["probabilities"]
    assert together["category"]["probabilities"] == pytest.approx(expected, abs=0.02)


def test_gradient_surgery_trains_and_logs_the_loss_of_each_task(run_example):
    run_example("pcgrad.py")
    entries = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 3
    for loss in losses:
        assert loss.keys() == {"sentiment", "category", "stars"}
        assert all(value > 0 for value in loss.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_at_most_30_lines_of_code(name):
    """Beside its imports, docstrings, comments and blank lines."""
    path = ROOT / "examples" / name
    tree = ast.parse(path.read_text("utf-8"))
    leave_out = set()
    for node in ast.walk(tree):
        if is_text(node) or isinstance(node, (ast.Import, ast.ImportFrom)):
            leave_out.update(range(node.lineno, node.end_lineno + 1))
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    no_code |= {tokenize.ENCODING, tokenize.ENDMARKER}
    lines = set()
    with open(path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in no_code:
                lines.update(range(token.start[0], token.end[0] + 1))
    assert len(lines - leave_out) <= 30
