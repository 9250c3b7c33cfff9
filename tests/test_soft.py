"""Properties of soft labels in training: what the losses learn of them, and predictions as labels.

How they are read is in test_columns.py.
"""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import MOOD, ROOT, STARS, TAGS, TWO, make_rows, tiny_model

import mtbert
import train
from mtbert import Classification
from support import writers
from support.columns import read_data
from support.errors import InputError
from support.files import PLAIN

LETTERS = Classification("letter", ["a", "b", "c"], [3, 1, 0], {"a": "a", "b": "b", "c": "c"})
LOGITS = [[1.0, 2.0, 0.5], [0.0, 0.0, 3.0], [9.0, -9.0, 0.0]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_lines(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def read_lines(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def log_softmax(logits):
    total = math.log(sum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def entropy(p):
    """The least cross-entropy with these probabilities, which they themselves have."""
    return -sum(value * math.log(value) for value in p)


# --------------------------------------------------------------------------------------------------
# Losses


def loss_of(task, logits, p, balanced=False):
    return float(task.loss(torch.tensor(logits), torch.from_numpy(p), balanced))


def test_the_loss_of_probabilities_is_their_cross_entropy():
    soft = [{"a": 0.7, "b": 0.3}, {"b": 0.4, "c": 0.6}, None]
    p = LETTERS.soft_array(["a", "c", None], soft)
    first = log_softmax(LOGITS[0])
    second = log_softmax(LOGITS[1])
    losses = [-0.7 * first[0] - 0.3 * first[1], -0.4 * second[1] - 0.6 * second[2]]
    assert loss_of(LETTERS, LOGITS, p) == pytest.approx(sum(losses), rel=1e-6)
    # 5 rows, as a class of none counts as one of one row: 5 / (3 * 3) for "a", 5 / (3 * 1) for "c"
    balanced = losses[0] * 5 / 9 + losses[1] * 5 / 3
    assert loss_of(LETTERS, LOGITS, p, balanced=True) == pytest.approx(balanced, rel=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_labels_without_doubt_have_the_loss_of_labels(balanced):
    labels = ["b", None, "a"]
    hard = LETTERS.to_array(labels)
    for soft in ([None] * 3, [{"b": 1.0}, None, {"a": 1.0}]):
        p = LETTERS.soft_array(labels, soft)
        expected = loss_of(LETTERS, LOGITS, hard, balanced)
        assert loss_of(LETTERS, LOGITS, p, balanced) == pytest.approx(expected, rel=1e-6)
    tags = TAGS.soft_array([(1, 3), None], [{1: 1.0, 3: 1.0}, None])
    assert np.array_equal(tags, TAGS.to_array([(1, 3), None]), equal_nan=True)
    assert np.array_equal(STARS.soft_array([2.5], [None]), STARS.to_array([2.5]))


def test_the_loss_of_many_labels_is_the_cross_entropy_of_each():
    p = TAGS.soft_array([(1,), (), None], [{1: 0.9, 2: 0.2}, {}, None])
    logits = [[0.3, -1.0, 2.0], [1.0, 0.0, -1.0], [5.0, 5.0, 5.0]]
    expected = 0.0
    for values, targets in zip(logits, ([0.9, 0.2, 0.0], [0.0, 0.0, 0.0]), strict=False):
        for value, target in zip(values, targets, strict=True):
            yes = 1 / (1 + math.exp(-value))
            expected -= target * math.log(yes) + (1 - target) * math.log(1 - yes)
    assert loss_of(TAGS, logits, p) == pytest.approx(expected, rel=1e-6)


def test_what_no_training_row_has_is_left_out_of_probabilities():
    soft = [{"a": 0.3, "z": 0.4, "b": 0.3}, {"z": 1.0}, None]
    p = LETTERS.soft_array(["z", "z", "z"], soft)
    assert p[0] == pytest.approx([0.5, 0.5, 0])
    assert np.isnan(p[1:]).all()


def test_targets_are_labels_or_probabilities_or_what_a_teacher_says(tiny):
    model = tiny_model(tiny, TWO)
    rows = make_rows({"mood": "good"}, {"mood": "bad"}, {"stars": 2.5}, {"mood": "bad"})
    rows[0] = rows[0]._replace(soft={"mood": {"bad": 0.25, "good": 0.75}})
    data = mtbert.encode(model.tokenizer, rows, TWO)
    assert list(data.soft) == ["mood"]
    assert data.labels["mood"].tolist() == [1, 0, mtbert.NO_CLASS, 0]
    batch = mtbert.collate(data, np.array([2, 0]), model.encoder.config, "cpu")["labels"]
    assert batch["mood"].dtype == torch.float32 and batch["mood"][0].isnan().all()
    assert batch["mood"][1].tolist() == [0.25, 0.75]
    assert batch["stars"].tolist()[:1] == [1.0]

    nothing = [math.nan, math.nan]
    data.teachers["mood"] = np.array([[1, 0], [0.5, 0.5], [0.1, 0.9], nothing], np.float32)
    data.gold_share = 0.25
    targets = data.targets("mood", np.arange(4))
    expected = [[0.75 + 0.0625, 0.1875], [0.625, 0.375], [0.1, 0.9], [1, 0]]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    assert targets.dtype == np.float32
    assert data.targets("stars", np.array([2])).tolist() == [1.0]


def test_the_grades_of_an_example_learn_probabilities_as_they_learn_labels(monkeypatch):
    monkeypatch.setattr(mtbert, "KINDS", dict(mtbert.KINDS))  # the example adds to them
    kind = runpy.run_path(str(ROOT / "examples/ordinal.py"))["Ordinal"]
    task = kind("grade", [1, 2, 3], [1, 1, 1], {"1": "1", "2": "2", "3": "3"})
    logits = [[1.0, 0.5]]
    losses = []
    for label in (1, 3):
        losses.append(loss_of(task, logits, task.to_array([label])))
        soft = task.soft_array([label], [None])
        assert loss_of(task, logits, soft) == pytest.approx(losses[-1], rel=1e-6)
    both = task.soft_array([1], [{1: 0.8, 3: 0.2}])
    expected = 0.8 * losses[0] + 0.2 * losses[1]
    assert loss_of(task, logits, both) == pytest.approx(expected, rel=1e-6)


def test_soft_labels_of_a_row_without_a_label_are_not_learned():
    row = make_rows({})[0]._replace(soft={"mood": {"bad": 1.0}})
    assert np.isnan(mtbert.soft_labels(MOOD, [row])).all()


# --------------------------------------------------------------------------------------------------
# Training


def rows_of(labels, times=10):
    rows = []
    for i in range(len(labels) * times):
        rows.append({"text": f"film number {i}", **labels[i % len(labels)]})
    return rows


def train_on(rows, folder, *flags):
    """The weights and the log of a run on these rows."""
    data = write_lines(f"{folder}.jsonl", rows)
    flags = ["--data", data, "--out", folder, "--batch-size", "8", *flags]
    train.main(["--dtype", "float32", "--device", "cpu", *flags])
    weights = safetensors.torch.load_file(f"{folder}/model.safetensors")
    return weights, read_lines(f"{folder}/log.jsonl")


@pytest.mark.parametrize("flags", [[], ["--class-weights", "balanced"]])
def test_objects_without_doubt_train_to_the_weights_of_labels(tiny, flags):
    labels = [
        {"mood": "good", "tags": ["u", "v"]},
        {"mood": "bad", "tags": []},
        {"mood": "bad", "tags": ["v"]},
        {"tags": ["u"]},
    ]
    objects = []
    for row in labels:
        soft = {"tags": {"u": int("u" in row["tags"]), "v": int("v" in row["tags"])}}
        if "mood" in row:
            soft["mood"] = {row["mood"]: 1}
        objects.append(soft)
    objects[0]["tags"] = ["u", "v"]  # a list among objects: there are several labels
    flags = [*flags, "--encoder", str(tiny), "--epochs", "1", "--tasks", "mood", "tags"]
    hard, _ = train_on(rows_of(labels), "hard", *flags)
    soft, _ = train_on(rows_of(objects), "soft", *flags)
    assert hard.keys() == soft.keys()
    for name, weight in hard.items():
        torch.testing.assert_close(soft[name], weight, rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory):
    """The folder of a run on classes of words and of whole numbers, on lists, and on numbers."""
    folder = tmp_path_factory.mktemp("taught")
    rows = []
    for i in range(48):
        mood = ["good", "bad", "so so"][i % 3]
        tags = [["u"], ["u", "v"], []][i % 3]
        row = {"text": f"film {i} is {mood}", "mood": mood, "grade": i % 2, "tags": tags}
        rows.append({**row, "stars": i / 8})
    splits = {"train": rows[:36], "validation": rows[36:42], "test": rows[42:]}
    (folder / "data.json").write_text(json.dumps(splits))
    flags = ["--data", str(folder / "data.json"), "--encoder", str(tiny), "--epochs", "2"]
    train.main([*flags, "--out", str(folder / "run")])
    return folder


def test_predictions_become_labels_that_are_learned(script, tiny, taught):
    rows = []
    for i in range(60):
        text = f"film {i} is " + ["good", "bad", "so so"][i % 3]
        rows.append({"text": text, "note": "x", "mood": "good"})
    rows[3]["text"] = " "
    write_lines("rows.jsonl", rows)
    run = taught / "run"
    flags = ["--model", run, "--input", "rows.jsonl", "--output", "soft.jsonl", "--as-labels"]
    status, _, err = script("predict.py", *flags)
    assert status == 0, err
    assert (
        "1 rows could not be predicted; they are left out, the first is rows.jsonl, line 4: " in err
    )
    written = read_lines("soft.jsonl")
    predictions = mtbert.predict(mtbert.load(run), [row["text"] for row in written])
    assert len(written) == 59
    for row, prediction in zip(written, predictions, strict=True):
        assert list(row) == ["text", "mood", "grade", "tags", "stars"]
        assert sum(row["mood"].values()) == pytest.approx(1, abs=1e-6)
        expected = prediction["mood"]["probabilities"]
        assert row["mood"] == pytest.approx(expected, abs=0.02)  # batches differ, as bfloat16 may
        assert row["stars"] == pytest.approx(prediction["stars"]["value"], abs=0.1)

    columns, splits = read_data(["soft.jsonl"], names=["mood", "grade", "tags", "stars"])
    kinds = [column.kind for column in columns]
    assert kinds == ["classification", "classification", "multi_label", "regression"]
    assert columns[0].labels == ["bad", "good", "so so"] and columns[1].labels == [0, 1]
    tasks = train.make_tasks(columns)
    data = mtbert.encode(mtbert.load(run).tokenizer, splits["train"], tasks)
    probabilities = {row["text"]: row for row in written}
    for name in ("mood", "grade", "tags"):
        targets = data.targets(name, np.arange(len(data)))
        for row, target in zip(splits["train"], targets, strict=True):
            expected = list(probabilities[row.text][name].values())
            if name == "mood":
                expected = [probabilities[row.text][name][label] for label in columns[0].labels]
            assert target[: len(expected)] == pytest.approx(expected, abs=1e-6)

    flags = ["--data", "soft.jsonl", "--encoder", tiny, "--out", "again", "--head-init", "random"]
    flags += ["--lr", "1e-2", "--epochs", "12", "--batch-size", "8", "--dropout", "0"]
    status, out, err = script("train.py", *flags)
    assert status == 0, err
    assert "tasks: mood (3 classes), grade (2 classes), tags (2 labels), stars (a number)" in out
    losses = [entry["loss"] for entry in read_lines("again/log.jsonl") if "loss" in entry]
    for loss in losses:
        assert loss.keys() == {"mood", "grade", "tags", "stars"}
        assert all(map(math.isfinite, loss.values()))
    least = np.mean([entropy(row["mood"].values()) for row in written])
    above = [loss["mood"] - least for loss in losses]
    assert abs(np.mean(above[-7:])) < 0.5 * np.mean(above[:7])  # an epoch has seven steps

    # A score compares with the likeliest.
    flags = ["--model", run, "--input", "soft.jsonl", "--score", "--output", "scores.json"]
    status, _, err = script("predict.py", *flags)
    assert status == 0, err
    scores = json.loads(Path("scores.json").read_text())
    assert scores["mood"]["accuracy"] == 1 and scores["stars"]["pearson"] > 0.99


def test_of_a_file_with_splits_the_training_rows_become_labels(script, taught):
    flags = ["--model", taught / "run", "--input", taught / "data.json", "--as-labels"]
    status, out, err = script("predict.py", *flags, "--json")
    assert status == 0 and len(out.splitlines()) == 36
    assert "the train rows are written (36 train, 6 validation, 6 test)" in err
    for split, count in (("test", 6), ("all", 48)):
        status, out, _ = script("predict.py", *flags, "--json", "--split", split)
        assert status == 0 and len(out.splitlines()) == count


def test_texts_in_columns_of_other_names_are_written_under_the_usual_ones(script, tiny):
    rows = []
    for i in range(30):
        rows.append({"first": f"film {i}", "second": f"is {i % 2}", "same": i % 2})
    write_lines("pairs.jsonl", rows)
    names = ["--text-column", "first", "--pair-column", "second"]
    flags = ["--encoder", str(tiny), "--epochs", "1", "--out", "pairs", *names]
    train.main(["--data", "pairs.jsonl", *flags])
    flags = ["--model", "pairs", "--input", "pairs.jsonl", "--as-labels", "--output", "soft.jsonl"]
    status, _, err = script("predict.py", *flags)
    assert status == 0, err
    written = read_lines("soft.jsonl")
    assert list(written[5]) == ["text", "text_pair", "same"]
    assert (written[5]["text"], written[5]["text_pair"]) == ("film 5", "is 1")
    assert written[5]["same"].keys() == {"0", "1"}


def test_a_task_that_is_called_as_a_text_is_refused():
    task = replace(LETTERS, name="text_pair")
    with pytest.raises(InputError, match="the task 'text_pair' has the name of a text"):
        writers.LabelsWriter(None, [task], PLAIN)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--input a.jsonl --as-labels", "--as-labels takes --output NAME.jsonl, or --json"),
        ("--input a.jsonl --as-labels --output b.csv", "--output b.csv: with --as-labels it is a"),
        ("--input a.jsonl --as-labels --output b.json", "with --as-labels it is a .jsonl"),
        ("--input a.jsonl --as-labels --output b", "with --as-labels it is a .jsonl"),
        ("--input a.jsonl --as-labels --score --output b.jsonl", "--as-labels writes predictions"),
        ("--input - --as-labels --json --split test", "--split picks the rows for --score or"),
        ("--input a.jsonl --as-labels --json --split test", "a.jsonl has no splits"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(script, taught, flags, message):
    write_lines("a.jsonl", [{"text": "film"}])
    status, _, err = script("predict.py", "--model", taught / "run", *flags.split())
    assert status == 2 and err.count("\n") == 1, err
    assert message in err
    assert [path.name for path in Path().iterdir()] == ["a.jsonl"]
