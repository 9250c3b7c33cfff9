"""Any number of labels a text: files, loss, threshold, metrics, and the real command lines."""

import argparse
import csv
import json
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MOOD, make_rows, tiny_model
from sklearn import metrics as sklearn_metrics

import mtbert
import train
from benchmarks import compare
from mtbert import Classification, MultiLabel
from support import columns, former, metrics, mistakes
from support.columns import Column, Notes, Row, read_data
from support.errors import InputError
from support.files import Format, format_flags, format_of

CASES = Path(__file__).parent / "cases"
TAGS = MultiLabel("tags", ["a", "b", "c"], [4, 2, 1], {"a": "a", "b": "b", "c": "c"})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, float)))


def write_lines(name, lines):
    Path(name).write_text("".join(line + "\n" for line in lines), "utf-8")
    return name


def read_json(path):
    return json.loads(Path(path).read_text("utf-8"))


def read_json_lines(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


# --------------------------------------------------------------------------------------------------
# Loss


def batch_of(model, *labels):
    data = mtbert.encode(model.tokenizer, make_rows(*labels), model.tasks)
    return mtbert.collate(data, np.arange(len(labels)), model.encoder.config, "cpu")


def test_the_loss_is_the_sum_of_binary_cross_entropies_of_the_labelled_rows(tiny):
    model = tiny_model(tiny, [TAGS])
    labels = [{"tags": ("a", "c")}, {"tags": ()}, {}, {"tags": ("b",)}]
    logits, losses = model(**batch_of(model, *labels))
    p = sigmoid(logits["tags"].detach())
    labelled = [0, 1, 3]
    gold = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    expected = 0
    for label in range(3):
        expected += sklearn_metrics.log_loss(
            gold[:, label], p[labelled, label], labels=[0, 1], normalize=False
        )
    assert losses["tags"].item() == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "is_learned"),
    [({"tags": ()}, True), ({"tags": ("z",)}, True), ({}, False)],
)
def test_no_label_is_something_to_learn_and_a_missing_key_is_not(tiny, labels, is_learned):
    model = tiny_model(tiny, [TAGS, MOOD])
    batch = batch_of(model, {"mood": "bad"} | labels)
    assert mtbert.is_labelled(batch["labels"]["tags"].numpy()).tolist() == [is_learned]
    _, losses = model(**batch)
    losses["tags"].backward()
    gradient = model.heads[mtbert.head_key(TAGS)].bias.grad
    if is_learned:
        assert (gradient > 0).all()  # each label is made less likely
    else:
        assert (gradient == 0).all()
    for parameter in model.encoder.layers.parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == is_learned


def test_balanced_classes_make_a_rare_label_count_more():
    logits = torch.zeros(1, 3)
    all_labels = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    weights = [7 / 3 / count for count in TAGS.counts]  # rows / (labels * rows of the label)
    loss = TAGS.loss(logits, all_labels, balanced=True).item()
    assert loss == pytest.approx(np.log(2) * sum(weights), rel=1e-6)
    loss = TAGS.loss(logits, torch.zeros(1, 4), balanced=True).item()
    assert loss == pytest.approx(np.log(2) * 3)


# --------------------------------------------------------------------------------------------------
# Threshold, calibration, metrics


def planted(seed=0):
    """Labels of 380 rows, (380, 4), and logits that know something of them."""
    rng = np.random.default_rng(seed)
    gold = rng.random((380, 3)) < [0.6, 0.3, 0.1]
    logits = 1.5 * rng.normal(size=gold.shape) + 2 * gold - 2.5
    return with_unknown(gold), logits.astype(np.float32)


def with_unknown(gold):
    """(N, C) labels and, in a last column, that no row has an unknown one."""
    return np.pad(gold.astype(np.float32), ((0, 0), (0, 1)))


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_best_of_the_grid_on_the_rows_that_it_is_fitted_on(seed):
    gold, logits = planted(seed)
    task = replace(TAGS)
    task.calibrate(gold, logits)
    p = sigmoid(logits / task.temperature)
    scores = {}
    for threshold in metrics.THRESHOLDS:
        guess = p >= threshold
        scores[threshold] = sklearn_metrics.f1_score(gold[:, :3], guess, average="macro")
    assert scores[task.threshold] == max(scores.values()) > scores[0.5]
    assert task.metrics(gold, logits)["macro_f1"] == scores[task.threshold]


@pytest.mark.parametrize(("p", "threshold"), [(0.9, 0.5), (0.27, 0.25)])
def test_of_thresholds_that_are_equally_good_the_nearest_to_one_half_is_taken(p, threshold):
    gold = TAGS.to_array([("a",), ("b",), ("c",), ("a", "c")])
    assert metrics.best_threshold(gold, p * gold[:, :3]) == threshold


def test_metrics_are_those_of_scikit_learn():
    task = replace(TAGS, threshold=0.35, temperature=1.3)
    gold, logits = planted()
    result = task.metrics(gold, logits)
    gold = gold[:, :3]
    p = sigmoid(logits / 1.3)
    guess = p >= 0.35
    macro_f1 = sklearn_metrics.f1_score(gold, guess, average="macro")
    assert result["macro_f1"] == pytest.approx(macro_f1) == task.selection_score(result)
    micro_f1 = sklearn_metrics.f1_score(gold, guess, average="micro")
    assert result["micro_f1"] == pytest.approx(micro_f1)
    assert result["exact_match"] == pytest.approx(sklearn_metrics.accuracy_score(gold, guess))
    most_frequent = np.tile([True, False, False], (len(gold), 1))
    majority = sklearn_metrics.f1_score(gold, most_frequent, average="micro")
    assert result["majority_micro_f1"] == pytest.approx(majority)
    scores = sklearn_metrics.precision_recall_fscore_support(gold, guess)
    for name, expected in zip("abc", zip(*scores, strict=True), strict=True):
        assert list(result["per_class"][name].values()) == pytest.approx(list(expected))

    # Each label of each row is a decision between no and yes.
    decisions = np.stack([1 - p.ravel(), p.ravel()], 1)
    gold = gold.ravel().astype(int)
    assert result["ece"] == pytest.approx(metrics.calibration_error(decisions, gold), abs=1e-6)
    points = result["reliability"]["calibrated"]
    expected = metrics.reliability(decisions, gold)
    np.testing.assert_allclose(points, expected, atol=1e-6)
    assert sum(share for _, _, share in points) == pytest.approx(1)


@pytest.mark.parametrize("first", [("a", "z"), ("a", "z", "y")])
def test_a_label_that_no_training_row_has_is_a_miss(first):
    right = [("a",), ("b",), ("c",), ()]
    gold = TAGS.to_array(right)
    logits = np.where(gold[:, :3] == 1, 9.0, -9.0)
    result = TAGS.metrics(gold, logits)
    assert result["macro_f1"] == result["micro_f1"] == result["exact_match"] == 1
    missed = TAGS.metrics(TAGS.to_array([first, *right[1:]]), logits)
    assert missed["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1))
    assert missed["macro_f1"] == missed["exact_match"] == 3 / 4  # one more label, never predicted
    assert missed["per_class"] == result["per_class"]


def test_rows_of_unknown_labels_alone_score_zero_and_are_said():
    result = TAGS.metrics(TAGS.to_array([("z",)]), np.array([[-9.0, -9.0, -9.0]]))
    assert result["macro_f1"] == result["micro_f1"] == result["exact_match"] == 0
    rows = make_rows({"tags": ("a", "z")}, {"tags": ()}, {})
    [sentence] = columns.unseen_labels(TAGS.column(), "test", rows)
    assert sentence == "1 test labels of 'tags' are in no training row and count as wrong: 'z'"


def test_calibration_finds_a_planted_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(10_000, 3))
    gold = with_unknown(rng.random(logits.shape) < sigmoid(logits))
    task = replace(TAGS)
    task.calibrate(gold, 2.5 * logits)
    assert task.temperature == pytest.approx(2.5, rel=0.05)
    result = task.metrics(gold, 2.5 * logits)
    assert result["ece"] < 0.01 and result["ece_uncalibrated"] > 0.08
    [prediction] = task.predictions(2.5 * logits[:1])
    expected = dict(zip("abc", sigmoid(logits[0]), strict=True))
    assert prediction["probabilities"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("threshold", [0, 1, -0.5, float("nan"), "0.5", [], True, None])
def test_a_threshold_that_is_none_is_refused(threshold):
    TAGS.check()
    with pytest.raises((ValueError, TypeError)):
        replace(TAGS, threshold=threshold).check()


@pytest.mark.parametrize(("threshold", "kind"), [(0.25, MultiLabel), (None, Classification)])
def test_a_task_of_the_former_version_is_multi_label_where_it_has_a_threshold(threshold, kind):
    saved = {"name": "tags", "labels": [1, 2], "counts": [3, 4], "names": {"1": "a", "2": "b"}}
    saved |= {"mean": 0.0, "std": 1.0, "temperature": 2.0, "threshold": threshold}
    fitted = {}
    values = former.upgrade_task(saved, fitted)
    [task] = mtbert.read_tasks([values], {"tags": fitted})
    assert type(task) is kind and task.temperature == 2.0
    assert getattr(task, "threshold", None) == threshold


def test_a_head_starts_from_that_of_a_task_of_the_same_kind_in_any_order_of_labels(tiny):
    mtbert.save(tiny_model(tiny, [TAGS]), ".")
    classes = Classification(TAGS.name, TAGS.labels, TAGS.counts, TAGS.label_names)
    taken = {}
    for task in (replace(TAGS, threshold=0.3), replace(TAGS, labels=["c", "b", "a"]), classes):
        taken[task.kind, task.labels[0]] = mtbert.take_heads(tiny_model(tiny, [task]), ".")
    assert taken == {
        ("multi_label", "a"): {"tags": []},
        ("multi_label", "c"): {"tags": []},
        ("classification", "a"): {},
    }


# --------------------------------------------------------------------------------------------------
# From files to labels


def numbered(*values, times=10):
    """Lines of JSON, each a different text, whose "t" are these in turn; None is an absent key."""
    rows = []
    for i, value in enumerate(values * times):
        row = {"text": f"x {i}"}
        if value is not None:
            row["t"] = value
        rows.append(json.dumps(row))
    return rows


def read(lines, name="a.jsonl", flags=()):
    """-> the columns of a file, the labels of its rows, and Notes."""
    parser = argparse.ArgumentParser()
    format_flags(parser.add_argument)
    notes = Notes()
    format = format_of(parser.parse_args(flags))
    found, splits = read_data([write_lines(name, lines)], format=format, notes=notes)
    labels = []
    for rows in splits.values():
        labels += [row.labels for row in rows]
    return found, labels, notes


def count_labels(labels):
    return Counter(row["t"] for row in labels)


def test_lists_are_labels_and_an_absent_key_is_none():
    [column], labels, _ = read(numbered(["u", "v", "u"], [], None, ["v"], times=12))
    assert (column.kind, column.labels, column.label_type) == ("multi_label", ["u", "v"], str)
    assert count_labels(labels) == {("u", "v"): 12, (): 12, ("v",): 12}  # sorted, each once
    [column], labels, _ = read(numbered([10, 2], [2.0], []))
    assert (column.labels, column.label_type) == ([2, 10], int)
    assert set(count_labels(labels)) == {(2, 10), (2,), ()}
    [column], *_ = read(numbered([1, "u"], [1]))
    assert column.labels == ["1", "u"]  # with a word among them all are words, as for classes


def test_joined_cells_are_split_where_the_flag_says_so():
    lines = ["x 0,u| v", "x 1,|", "x 2,", "x 3,nan", "x 4,v||v", "x 5,u"]
    [column], labels, notes = read(["text,t", *lines * 9], "a.csv", ["--multi-label", "t"])
    assert column.labels == ["u", "v"] and len(labels) == 36
    assert count_labels(labels) == {("u", "v"): 9, (): 9, ("v",): 9, ("u",): 9}
    assert "9 cells of 't' hold 'nan', which counts as no label" in notes.messages[0]


@pytest.mark.parametrize(
    ("name", "lines", "flag", "labels"),
    [
        ("a.tsv", ["text\tt", *["x\t1, 2", "y\t2.0", "z\t10"] * 9], "t=,", [1, 2, 10]),
        ("a.csv", ["text,t", *["x,p==q", "y,q"] * 9], "t===", ["p", "q"]),
        ("a.jsonl", numbered("u;v", ["v"], "nan", []), "t=;", ["u", "v"]),
        ("a.csv", ["text,t", *["x,p q", "y,q"] * 9], "t= ", ["p", "q"]),
        ("a.csv", ["text,t", *['x,"p\nq"', "y,q"] * 9], r"t=\n", ["p", "q"]),
    ],
)
def test_any_separator_splits_cells_and_strings(name, lines, flag, labels):
    [column], *_ = read(lines, name, ["--multi-label", flag])
    assert column.labels == labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [["u"], [["v"]]],
            r"a.jsonl, line 2: 't' is \[\['v'\]\] here, but \['u'\] in a.jsonl, line 1; "
            r"multi-label rows have lists",
        ),
        ([["u"], [None], ["v"]], r"line 2: 't' is \[None\] here"),
        ([["u"], [{"v": 1}]], r"line 2: 't' is \[\{'v': 1\}\] here"),
        ([["u"], [True]], r"line 2: 't' is \[True\] here"),
        ([["u"], [" "]], r"line 2: 't' is \[' '\] here"),
        ([["u"], "v"], r"line 2: 't' is 'v' here, but .*; --multi-label t splits texts"),
        (["u", ["v"]], r"line 1: 't' is 'u' here"),
        ([["\ud800"], ["v"]], r"line 1: a text, key or label has a lone surrogate"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(labels, message):
    with pytest.raises(InputError, match=message):
        read(numbered(*labels))


def test_a_list_that_is_written_into_a_cell_is_refused():
    lines = ["text,t", *["x,\"['u', 'v']\"", "y,\"['u']\""] * 9]
    message = r"line 2: 't' is \"\['u', 'v'\]\"; join labels by '\|', without brackets"
    with pytest.raises(InputError, match=message):
        read(lines, "a.csv", ["--multi-label", "t"])


@pytest.mark.parametrize("label", ["u", [None], [["u"]], {"u": 1}, 1.5, True])
def test_rows_of_other_files_are_refused_without_a_list(label):
    column = Column("t", "multi_label", str)
    message = r"row 0: the label .* of 't' is not a list of labels; --multi-label splits a text"
    with pytest.raises(InputError, match=message):
        columns.convert_labels(make_rows({"t": label}), [column])


def test_a_word_in_rows_of_other_files_stays_one_among_numbers():
    column = Column("t", "multi_label", int)
    [row] = columns.convert_labels(make_rows({"t": ["w", 2, 10, "w"]}), [column])
    assert row.labels == {"t": (2, 10, "w")}


def test_lists_that_hold_no_labels_are_left_out():
    lines = []
    for i in range(40):
        lists = {"vector": [0.5, i + 0.5], "words": ["x", str(i)]}
        lines.append(json.dumps({"text": f"x {i}", "t": [i % 2, 0], **lists}))
    [column], _, notes = read(lines)
    assert column.name == "t"
    assert notes.left_out == {
        "vector": "lists that hold no labels",
        "words": "different in most rows",
    }
    with pytest.raises(InputError, match=r"line 1: 'vector' is \[0.5, 0.5\] here"):
        read_data(["a.jsonl"], names=["vector"])


def test_many_labels_are_a_task_where_each_has_a_few_rows():
    lists = [[str(i % 60), str(i * 7 % 60)] for i in range(100)]
    assert columns.why_no_task("tags", lists) is None
    lists = [["x", str(i)] for i in range(60)]
    assert columns.why_no_task("tags", lists) == "different in most rows"


def test_a_separator_that_does_not_fit_and_lists_of_zeros_and_ones_are_said():
    cells = ["u; v", "u", "v"]
    lines = [f"x {i},{cells[i % 3]}" for i in range(60)]
    found, *_ = read(["text,t", *lines], "a.csv", ["--multi-label", "t"])
    splits = {"train": [], "validation": [], "test": []}
    [said] = mistakes.data_warnings(found, splits)
    assert said.startswith("'t' looks multi-label ('u; v'), but each combination is one label")
    assert said.endswith("; --multi-label 't=;' splits them")
    found, *_ = read(numbered([0, 1], [1], []))
    [said] = mistakes.data_warnings(found, splits)
    assert said.startswith("'t' has the labels 0 and 1 alone")


def test_every_label_keeps_a_training_row():
    """Half of the rows are held out, which would take most of the rare labels without the rule."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        rows = []
        for i in range(30):
            numbers = rng.integers(0, 12, rng.integers(0, 4))
            labels = sorted({f"l{number}" for number in numbers})
            rows.append(Row("", f"x {i}", None, {"t": tuple(labels)}))
        rows.append(Row("", "rare", None, {"t": ("l1", "rare")}))
        rows.append(Row("", "rare, too", None, {"t": ("rare2",)}))
        column = Column("t", "multi_label", str)
        kept, held = columns.hold_out(rows, [column], seed, fraction=0.5)
        assert labels_in(kept) == labels_in(rows)
        assert len(held) >= 8 and len(kept) + len(held) == 32


def labels_in(rows):
    found = set()
    for row in rows:
        found.update(row.labels["t"])
    return found


# --------------------------------------------------------------------------------------------------
# The command lines


@pytest.fixture(scope="module", params=["list_labels.json", "pipe_lists.csv"])
def trained(request, tiny, tmp_path_factory):
    """-> the folder of a run on the lists of a file of cases/, and this file."""
    path = CASES / request.param
    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--data", path, "--test", path, "--encoder", tiny, "--out", folder]
    flags += ["--epochs", "2", "--lr", "1e-3", "--dtype", "float32"]
    if path.suffix == ".csv":
        flags += ["--multi-label", "tags"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mtbert, "MIN_TO_CALIBRATE", 1)  # six rows choose the threshold
        patch.setattr("support.columns.MIN_TO_SPLIT", 10)
        train.main([str(flag) for flag in flags])
    return folder, path


def predicted_labels(lines):
    return [line["predictions"]["tags"]["labels"] for line in lines]


def test_metrics_json_is_of_the_test_predictions(trained):
    folder, _ = trained
    [task] = read_json(folder / "config.json")["tasks"]
    assert task["labels"] == ["acting", "negative", "positive", "sound", "story"]
    lines = read_json_lines(folder / "test_predictions.jsonl")
    gold = [line["labels"]["tags"] for line in lines]
    guess = predicted_labels(lines)
    assert len(lines) == 60 and gold[0] == ["negative", "sound"]
    tests = read_json(folder / "metrics.json")["test"]["tags"]
    right = [one == other for one, other in zip(gold, guess, strict=True)]
    assert tests["exact_match"] == pytest.approx(np.mean(right))
    are_given = []
    are_predicted = []
    for label in task["labels"]:
        are_given.append([label in row for row in gold])
        are_predicted.append([label in row for row in guess])
    macro_f1 = sklearn_metrics.f1_score(
        np.transpose(are_given), np.transpose(are_predicted), average="macro", zero_division=0.0
    )
    assert tests["macro_f1"] == pytest.approx(macro_f1)


def test_an_epoch_is_scored_under_its_own_best_threshold(trained, monkeypatch):
    monkeypatch.setattr("support.columns.MIN_TO_SPLIT", 10)
    folder, path = trained
    model = mtbert.load(folder, dtype="float32")
    _, rows = read_data([str(path)], format=Format(multi_label={"tags": "|"}))
    data = mtbert.encode(model.tokenizer, rows["validation"], model.tasks)
    logits = mtbert.compute_logits(model, data)["tags"]
    scores = {}
    for threshold in metrics.THRESHOLDS:
        task = replace(model.tasks[0], threshold=threshold)
        scores[threshold] = task.metrics(data.labels["tags"], logits)["macro_f1"]
    validation = read_json(folder / "metrics.json")["validation"]["tags"]
    assert validation["macro_f1"] == pytest.approx(max(scores.values()))
    assert max(scores.values()) > scores[0.5]


def test_predict_repeats_the_test_and_gives_the_labels_above_the_threshold(script, trained):
    folder, path = trained
    flags = ["--model", folder, "--input", path]
    status, out, err = script("predict.py", *flags, "--score", "--output", "s.json")
    assert status == 0 and err.count("\n") == 1 and "54 of 60 rows are training rows" in err
    assert read_json("s.json") == read_json(folder / "metrics.json")["test"]
    heads = ["macro-F1", "micro-F1", "exact match", "majority's micro-F1"]
    heads += ["calibration error", "uncalibrated"]
    for head in heads:
        assert f"  {head}" in out
    score = r"[01]\.\d{3}"
    macro_f1 = rf" +{score} \({score} to {score}\)"
    assert re.search(rf"^{path.name} .*\ntags{macro_f1} +{score} +{score}", out, re.M), out

    assert script("predict.py", *flags, "--output", "o.jsonl")[0] == 0
    lines = read_json_lines("o.jsonl")
    assert predicted_labels(lines) == predicted_labels(
        read_json_lines(folder / "test_predictions.jsonl")
    )
    threshold = read_json(folder / "config.json")["fitted"]["tags"]["threshold"]
    for line in lines:
        prediction = line["predictions"]["tags"]
        assert set(prediction) == {"labels", "names", "probabilities"}
        probabilities = prediction["probabilities"]
        expected = [label for label, p in probabilities.items() if p >= threshold]
        assert prediction["labels"] == prediction["names"] == expected
    if path.suffix == ".csv":
        check_table(script, flags, lines)
    else:
        check_joined_labels_need_the_flag(script, folder, out)


def check_table(script, flags, lines):
    assert script("predict.py", *flags, "--output", "o.csv")[0] == 0
    with open("o.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, lines, strict=True):
        prediction = line["predictions"]["tags"]
        assert row["tags_predicted"] == ("|".join(prediction["labels"]) or "|")
        assert row["error"] == ""
        numbers = [float(word) for word in row["tags_probability"].split("|") if word]
        expected = [prediction["probabilities"][label] for label in prediction["labels"]]
        assert numbers == pytest.approx(expected, abs=1e-5)


def check_joined_labels_need_the_flag(script, folder, expected):
    flags = ["--model", folder, "--input", CASES / "pipe_lists.csv", "--score"]
    status, _, err = script("predict.py", *flags)
    assert status == 2 and err.count("\n") == 1 and "--multi-label splits a text" in err
    status, out, _ = script("predict.py", *flags, "--multi-label", "tags")
    out = out.replace("pipe_lists.csv", "list_labels.json")
    assert status == 0 and out.split() == expected.split()


@pytest.mark.parametrize(
    ("threshold", "bars", "cell", "labels"),
    [
        (0.3, ["acting +0.50 #+", "plot\\? +0.38 #+"], "0 acting 0.50, 1 plot? 0.38", "0|1"),
        (0.9, ["none"], "none", "|"),
    ],
)
def test_all_labels_above_the_threshold_are_printed_or_that_there_is_none(
    script, tiny, threshold, bars, cell, labels
):
    names = {"0": "acting", "1": "plot", "2": "2"}
    tags = MultiLabel("tags", [0, 1, 2], [4, 2, 1], names, threshold=threshold)
    model = tiny_model(tiny, [tags, MOOD])
    head = model.heads[mtbert.head_key(tags)]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, -0.5, -3.0]))
    mtbert.save(model, ".")
    status, out, _ = script("predict.py", "--model", ".", "a film")
    out = out.replace("\N{FULL BLOCK}", "#")
    assert status == 0 and re.search(r"^  tags  +" + "\n +".join(bars) + "\n  mood", out, re.M)
    write_lines("a.txt", ["a film"])
    status, out, _ = script("predict.py", "--model", ".", "--input", "a.txt")
    assert status == 0 and re.search(rf"^a film +{re.escape(cell)}  +", out, re.M)
    assert script("predict.py", "--model", ".", "--input", "a.txt", "--output", "o.csv")[0] == 0
    assert Path("o.csv").read_text().splitlines()[1].startswith(f"a film,{labels},")


def test_a_stopped_run_ends_as_an_undisturbed_one(script, tiny, signal_at):
    lines = []
    for i, line in enumerate(numbered(["u", "v"], [], None, ["v"], times=8)):
        row = json.loads(line)
        if "t" not in row or i % 3 > 0:
            row["mood"] = i % 2
        lines.append(json.dumps(row))
    flags = ["--data", write_lines("a.jsonl", lines), "--test", "a.jsonl", "--encoder", tiny]
    flags += ["--epochs", "2", "--batch-size", "8"]
    assert script("train.py", *flags, "--out", "whole")[0] == 0
    signal_at(mtbert, "forward_backward", 5, signal.SIGTERM)
    assert script("train.py", *flags, "--out", "parts")[0] == 128 + signal.SIGTERM
    status, _, err = script("train.py", "--resume", "parts")
    assert status == 0, err
    for name in ("log.jsonl", "model.safetensors", "test_predictions.jsonl"):
        assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes()
    fitted = read_json("parts/config.json")["fitted"]
    assert fitted == read_json("whole/config.json")["fitted"]
    assert set(fitted["t"]) == {"temperature", "threshold"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--multi-label tag", "--multi-label: there is no task 'tag'"),
        ("--multi-label t --tasks other", "--multi-label: there is no task 't'"),
        ("--multi-label t=", "--multi-label t=: the separator is missing"),
        ("--multi-label t --regression t", "--regression t: it is multi-label"),
        (
            "--multi-label other",
            "a.jsonl, line 1: 'other' is 0 here; multi-label rows have lists of words",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(script, tiny, flags, message):
    lines = []
    for i, line in enumerate(numbered("u|v", "v")):
        lines.append(json.dumps(json.loads(line) | {"other": i % 2}))
    files = ["--data", write_lines("a.jsonl", lines), "--encoder", tiny, "--out", "run"]
    status, _, err = script("train.py", *files, *flags.split())
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert not Path("run").exists()


# --------------------------------------------------------------------------------------------------
# Comparisons (test_compare.py has the rest)


def test_runs_of_a_comparison_read_the_lists_that_it_read():
    lines = [f"x {i},{['u; v', 'u', ';'][i % 3]},{i % 2}" for i in range(60)]
    write_lines("a.csv", ["text,t,m", *lines])
    args = train.parse_args(["--data", "a.csv", "--multi-label", "t=;"])
    tasks, found, rows, *_ = train.read_rows(args, None)
    compare.write_splits(Path("."), found, rows)
    flags = compare.flags_of_columns(found)
    again, _, same_rows, *_ = train.read_rows(
        train.parse_args(["--data", "data.json", *flags]), None
    )
    assert again == tasks and tasks[0].labels == ["u", "v"]
    for split, part in rows.items():
        assert [row.labels for row in same_rows[split]] == [row.labels for row in part]


def test_a_comparison_is_of_macro_f1_and_exact_matches(trained, capsys):
    folder, _ = trained
    result = read_json(folder / "metrics.json") | {"folder": folder}
    contenders = []
    for variant in compare.VARIANTS:
        contenders.append(
            compare.Contender(variant, variant, variant, ["tags"], [], 1, [result, result])
        )
    [task] = mtbert.load(folder).tasks
    baselines = {"most frequent label": {"macro_f1": 0.25, "exact_match": 0.125}}
    args = argparse.Namespace(margin=1.0)
    summary = compare.summarise(args, task, baselines, contenders)
    assert set(summary["differences"]) == {"macro_f1", "exact_match"}
    assert summary["baselines"] == {"most frequent label": {"macro_f1": 25, "exact_match": 12.5}}
    lines = read_json_lines(folder / "test_predictions.jsonl")
    assert summary["gold"] == [line["labels"]["tags"] for line in lines]
    assert summary["predictions"]["shared"] == [predicted_labels(lines)] * 2
    compare.print_task("tags", summary)
    out = capsys.readouterr().out
    for name in ("macro-F1", "exact match"):
        assert re.search(rf"^  {name} +shared - single .* equivalent$", out, re.M)
