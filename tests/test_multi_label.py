"""Several labels a text: from lists and joined cells to loss, threshold, metrics, and the real command lines."""

import argparse
import csv
import json
import re
import signal
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn import metrics as sklearn_metrics

import metrics
import mtbert
import report
import runs
from conftest import TWO, make_rows, tiny_model
from data import (
    InputError,
    Notes,
    Row,
    Task,
    convert_labels,
    data_warnings,
    format_of,
    hold_out,
    read_data,
    unseen_labels,
    why_no_task,
)

CASES = Path(__file__).parent / "cases"
TAGS = Task("tags", ["a", "b", "c"], [4, 2, 1], {name: name for name in "abc"}, threshold=0.5)


def write(name, rows):
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Loss, threshold, metrics


def test_the_loss_is_the_sum_of_binary_cross_entropies_of_the_labelled_rows(tiny):
    model = tiny_model(tiny, [TAGS])
    data = mtbert.encode(model.tokenizer, make_rows({"tags": ("a", "c")}, {"tags": ()}, {}, {"tags": ("b",)}), [TAGS])
    gold = data.labels["tags"]
    assert gold.dtype == np.float32 and np.isnan(gold[2]).all()
    assert gold[[0, 1, 3]].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    logits, loss = model(**mtbert.collate(data, np.arange(4), model.encoder.config, "cpu"))
    p, rows = torch.sigmoid(logits["tags"].detach().double()).numpy(), [0, 1, 3]
    by_hand = -np.log(np.where(gold[rows, :3] == 1, p[rows], 1 - p[rows])).sum()
    assert loss["tags"].item() == pytest.approx(by_hand / 4, rel=1e-5)
    theirs = [sklearn_metrics.log_loss(gold[rows, c], p[rows, c], labels=[0, 1], normalize=False) for c in range(3)]
    assert loss["tags"].item() == pytest.approx(sum(theirs) / 4, rel=1e-5)


def test_none_of_the_labels_is_learned_from_and_a_missing_key_is_not(tiny):
    model = tiny_model(tiny, [TAGS, TWO[0]])
    for labels, learned in (((), True), (None, False), (("z",), True)):
        row = {"mood": "bad"} if labels is None else {"mood": "bad", "tags": labels}
        data = mtbert.encode(model.tokenizer, make_rows(row), model.tasks)
        assert metrics.is_labelled(data.labels["tags"]).tolist() == [learned]
        model.zero_grad()
        model(**mtbert.collate(data, np.arange(1), model.encoder.config, "cpu"))[1]["tags"].backward()
        gradient = model.heads["head_tags"].bias.grad
        assert (gradient > 0).all() if learned else (gradient == 0).all()  # all answers are pushed down, or none moves
        assert all((p.grad is None or not p.grad.any()) != learned for p in model.encoder.layers.parameters())


def test_rows_of_several_labels_are_drawn_as_rows_of_classes_are():
    given = [("a",), (), None, None, ("a", "z")]
    several, one = metrics.label_array(TAGS, given), metrics.label_array(TWO[0], [x and "bad" for x in "aa" + "\0" * 3])
    classes = np.array([0, 0, -100, -100, 1])
    for power in (0.5, 1.0):
        ours, theirs = (mtbert.mixture({"x": x, "other": one}, power) for x in (several, classes))
        assert ours[0].tolist() == theirs[0].tolist() and ours[1] == theirs[1]


def test_balanced_makes_what_is_rare_count_more():
    logits, yes = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    loss = mtbert.loss_sum(TAGS, logits, yes, balanced=True).item()
    assert loss == pytest.approx(np.log(2) * sum(7 / 3 / count for count in TAGS.counts), rel=1e-6)
    assert mtbert.loss_sum(TAGS, logits, 0 * yes, balanced=True).item() == pytest.approx(3 * np.log(2))


def planted(rows=400, seed=0):
    """A task, a label_array, and logits that know something of it; the last 20 rows are not labelled."""
    rng = np.random.default_rng(seed)
    gold = rng.random((rows, 3)) < [0.6, 0.3, 0.1]
    logits = (1.5 * rng.normal(size=gold.shape) + 2 * gold - 2.5).astype(np.float32)
    given = [tuple(name for name, yes in zip("abc", row, strict=True) if yes) for row in gold]
    return replace(TAGS), metrics.label_array(TAGS, [*given[:-20], *[None] * 20]), logits


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_the_grid_on_the_validation_rows(seed):
    task, gold, logits = planted(seed=seed)
    metrics.calibrate([task], {"tags": gold}, {"tags": logits})
    p = 1 / (1 + np.exp(-logits[:-20].astype(float) / task.temperature))
    scores = {}
    for t in np.arange(1, 20) / 20:
        scores[t] = sklearn_metrics.f1_score(gold[:-20, :3], p >= t, average="macro", zero_division=0.0)
    assert scores[task.threshold] == max(scores.values()) > scores[0.5]
    assert metrics.evaluate([task], {"tags": gold}, {"tags": logits})["tags"]["macro_f1"] == scores[task.threshold]


def test_of_equal_thresholds_the_nearest_to_one_half_is_taken():
    for sure, threshold in ((100.0, 0.5), (-1.0, 0.25)):  # sigmoid(-1) = 0.27, which all below it divide equally
        task, gold = replace(TAGS), metrics.label_array(TAGS, [("a",), ("b",), ("c",), ("a", "c")])
        metrics.choose_thresholds([task], {"tags": gold}, {"tags": np.where(gold[:, :3] == 1, sure, -100.0)})
        assert task.threshold == threshold
    metrics.choose_thresholds([task], {"tags": np.full((4, 4), np.nan)}, {"tags": np.zeros((4, 3))})
    assert task.threshold == 0.25  # without a labelled row it stays


def test_metrics_are_those_of_scikit_learn():
    task, gold, logits = planted()
    task.threshold, task.temperature = 0.35, 1.3
    ours, known = metrics.evaluate([task], {"tags": gold}, {"tags": logits})["tags"], gold[:-20, :3]
    assert next(iter(ours)) == "macro_f1" and metrics.score(ours) == ours["macro_f1"]
    p = 1 / (1 + np.exp(-logits[:-20].astype(float) / 1.3))
    guess = p >= 0.35
    for average in ("macro", "micro"):
        assert ours[f"{average}_f1"] == pytest.approx(sklearn_metrics.f1_score(known, guess, average=average))
    assert ours["exact_match"] == pytest.approx(sklearn_metrics.accuracy_score(known, guess))
    usual = np.tile([True, False, False], (len(known), 1))
    assert ours["majority_micro_f1"] == pytest.approx(sklearn_metrics.f1_score(known, usual, average="micro"))
    theirs = zip(*sklearn_metrics.precision_recall_fscore_support(known, guess), strict=True)
    for name, values in zip("abc", theirs, strict=True):
        assert list(ours["per_class"][name].values()) == pytest.approx(list(values))
    answers = np.stack([1 - p.ravel(), p.ravel()], 1)
    assert ours["ece"] == pytest.approx(metrics.calibration_error(answers, known.ravel().astype(int)), abs=1e-6)


def test_a_label_that_the_task_does_not_have_is_a_miss():
    right = [("a",), ("b",), ("c",), ()]
    logits = {"tags": np.where(metrics.label_array(TAGS, right)[:, :3] == 1, 9.0, -9.0)}
    found = []
    for given in (right, [("a", "z"), *right[1:]], [("a", "z", "y"), *right[1:]]):
        found.append(metrics.evaluate([TAGS], {"tags": metrics.label_array(TAGS, given)}, logits)["tags"])
    assert [found[0][key] for key in ("macro_f1", "micro_f1", "exact_match")] == [1, 1, 1]
    for result in found[1:]:
        assert result["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1)) and result["exact_match"] == 3 / 4
        assert result["macro_f1"] == 3 / 4  # as a class that no training row has: one more, never answered
        assert result["per_class"] == found[0]["per_class"]
    [sentence] = unseen_labels(TAGS, "test", make_rows({"tags": ("a", "z")}, {"tags": ()}, {}))
    assert sentence == "1 test labels of 'tags' are in no training row and count as wrong: 'z'"
    only = metrics.evaluate([TAGS], {"tags": metrics.label_array(TAGS, [("z",)])}, {"tags": logits["tags"][-1:]})
    assert only["tags"]["macro_f1"] == only["tags"]["micro_f1"] == only["tags"]["exact_match"] == 0


def test_calibration_finds_a_planted_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(10_000, 3))
    gold = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    labels, task = {"tags": np.pad(gold, ((0, 0), (0, 1)))}, replace(TAGS)
    metrics.calibrate([task], labels, {"tags": 2.5 * logits})
    assert task.temperature == pytest.approx(2.5, rel=0.05)
    result = metrics.evaluate([task], labels, {"tags": 2.5 * logits})["tags"]
    assert result["ece"] < 0.01 < 0.08 < result["ece_uncalibrated"]
    answer = mtbert.decode_one(task, 2.5 * logits[0])
    assert list(answer["probabilities"].values()) == pytest.approx((1 / (1 + np.exp(-logits[0]))).tolist(), abs=0.02)
    assert answer["labels"] == [x for x, p in answer["probabilities"].items() if p >= task.threshold]


# ---------------------------------------------------------------------------------------------------------------------
# From files to labels


def read(*rows, name="a.jsonl", **settings):
    flags = {"text_column": None, "pair_column": None, "text_encoding": None, "missing": None, "multi_label": None}
    notes, form = Notes(), format_of(argparse.Namespace(**flags | settings))
    tasks, splits = read_data([write(name, rows)], form=form, notes=notes)
    return tasks, [row.labels for part in splits.values() for row in part], notes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def numbered(*labels, times=10, name="t"):
    """Rows, each a different text, with these labels in turn; None is an absent key."""
    return [{"text": f"x {i}"} | ({} if x is None else {name: x}) for i, x in enumerate(labels * times)]


def test_lists_are_labels_and_an_absent_key_is_none():
    [task], labels, _ = read(*numbered(["u", "v", "u"], [], None, ["v"], times=12))
    assert (task.labels, task.several, task.threshold, task.kind) == (["u", "v"], True, 0.5, list[str])
    assert Counter(row["t"] for row in labels) == {("u", "v"): 12, (): 12, ("v",): 12}  # sorted, without repeats
    [task], labels, _ = read(*numbered([10, 2], [2.0], []))
    assert task.labels == [2, 10] and {row["t"] for row in labels} == {(2, 10), (2,), ()} and task.kind == list[int]
    assert read(*numbered([1, "u"], [1]))[0][0].labels == ["1", "u"]  # a word among them: all are words, as for classes


def test_joined_cells_are_taken_apart_where_the_flag_says_so():
    lines = ["x 0,u| v", "x 1,|", "x 2,", "x 3,nan", "x 4,v||v", "x 5,u"]
    [task], labels, notes = read("text,t", *lines * 9, name="a.csv", multi_label=["t"])
    assert task.labels == ["u", "v"] and len(labels) == 36 and "9 cells 'nan' of 't' are no labels" in notes.said[0]
    assert Counter(row["t"] for row in labels) == {("u", "v"): 9, (): 9, ("v",): 9, ("u",): 9}
    [task], *_ = read("text\tt", *["x\t1, 2", "y\t2.0", "z\t10"] * 9, name="a.tsv", multi_label=["t=,"])
    assert task.labels == [1, 2, 10]
    [task], *_ = read("text,t", *["x,p==q", "y,q"] * 9, name="a.csv", multi_label=["t==="])
    assert task.labels == ["p", "q"]
    [task], labels, _ = read(*numbered("u;v", ["v"], "nan", []), multi_label=["t=;"])  # as JSON has them
    assert task.labels == ["nan", "u", "v"] and {row["t"] for row in labels} == {("u", "v"), ("v",), ("nan",), ()}


def test_a_joined_column_without_the_flag_is_classes_and_a_warning_names_the_flag():
    tasks, splits = read_data([str(CASES / "pipe_lists.csv")])
    [warning] = data_warnings(tasks, splits)
    assert not tasks[0].several and warning.endswith("; --multi-label 'tags=|' takes them apart")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["u"], [["v"]]], r"a.jsonl, line 2: 't' is \[\['v'\]\] here, but \['u'\] in a.jsonl, line 1; several"),
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
        read(*numbered(*labels))


def test_rows_of_other_files_are_refused_or_count_as_wrong():
    for label in ("u", [None], [["u"]], {"u": 1}, 1.5, True):
        with pytest.raises(InputError, match=r"row 0: the label .* of 't' is no list of labels; --multi-label"):
            convert_labels(make_rows({"t": label}), {"t": list[str]})
    [row] = convert_labels(make_rows({"t": ["w", 2, 10, "w"]}), {"t": list[int]})
    assert row.labels == {"t": (2, 10, "w")}


def test_lists_that_are_no_labels_are_left_out_as_other_columns_are():
    vectors = [{"text": f"x {i}", "t": [i % 2, 0], "vector": [0.5, i + 0.5], "words": ["x", str(i)]} for i in range(40)]
    [task], _, notes = read(*vectors)
    assert task.name == "t"
    assert notes.left_out == {"vector": "lists of no labels", "words": "different in most rows"}
    with pytest.raises(InputError, match=r"line 1: 'vector' is \[0.5, 0.5\] here"):
        read_data(["a.jsonl"], names=["vector"])


def test_every_label_keeps_a_training_row():
    """Half of the rows are held out, so that without the rule most of the rare labels would be lost."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        names = [tuple(sorted({f"l{n}" for n in rng.integers(0, 12, rng.integers(0, 4))})) for _ in range(30)]
        names += [("rare", "l1"), ("rare2",)]
        rows = [Row("", f"x {i}", None, {"t": labels}) for i, labels in enumerate(names)]
        labels = sorted({label for row in rows for label in row.labels["t"]})
        kept, held = hold_out(rows, [Task("t", labels, threshold=0.5)], seed, fraction=0.5)
        assert {label for row in kept for label in row.labels["t"]} == set(labels)
        assert len(held) >= 8 and len(kept) + len(held) == 32


def test_tasks_of_both_kinds_are_told_apart(tiny):
    one = replace(TAGS, threshold=None)
    for task in (TAGS, one):
        task.check()
        assert task.several == (task.threshold is not None)
    wrong = [replace(TAGS, threshold=threshold) for threshold in (0, 1, -0.5, float("nan"), "0.5", [], True)]
    for task in [*wrong, replace(TWO[1], threshold=0.5)]:
        with pytest.raises((ValueError, TypeError)):
            task.check()
    Path("several").mkdir()
    mtbert.save(tiny_model(tiny, [TAGS]), "several")
    assert asdict(mtbert.load("several").tasks[0]) == asdict(TAGS)
    assert mtbert.take_heads(tiny_model(tiny, [one]), "several") == []
    assert mtbert.take_heads(tiny_model(tiny, [replace(TAGS, threshold=0.3)]), "several") == ["tags"]
    config = runs.read_record(Path("several/config.json"))
    del config["tasks"][0]["threshold"]
    runs.write_record(Path("several/config.json"), config)  # as a run of before
    assert not mtbert.load("several").tasks[0].several


# ---------------------------------------------------------------------------------------------------------------------
# The command lines


@pytest.mark.parametrize(
    ("name", "flags"), [("list_labels.json", []), ("pipe_lists.csv", ["--multi-label", "tags"])]
)
def test_train_predict_and_score(script, tiny, name, flags):
    flags = ["--data", CASES / name, "--test", CASES / name, *flags, "--encoder", tiny, "--epochs", "2", "--lr", "1e-3"]
    status, out, err = script("train.py", *flags, "--verbose", "--out", "run")
    assert status == 0 and "tasks: tags (5 labels)\n" in out and "each combination" not in err, err
    heads = "test +macro-F1 +micro-F1 +exact match +majority's micro-F1 +calibration error +uncalibrated"
    table = re.search(rf"^{heads}\ntags( +[01]\.\d\d\d){{6}}$", out, re.M)
    assert table and re.search(r"^story +([01]\.\d\d\d +){3}18$", out, re.M)
    config, result = (json.loads(Path(f"run/{name}.json").read_text()) for name in ("config", "metrics"))
    [task] = config["tasks"]
    assert task["labels"] == ["acting", "negative", "positive", "sound", "story"]
    lines = [json.loads(line) for line in Path("run/test_predictions.jsonl").read_text().splitlines()]
    gold, found = ([line[key]["tags"] for line in lines] for key in ("labels", "predictions"))
    found = [p["labels"] for p in found]
    assert len(lines) == 60 and gold[0] == ["negative", "sound"]
    exact = np.mean([one == other for one, other in zip(gold, found, strict=True)])
    assert result["test"]["tags"]["exact_match"] == pytest.approx(exact)
    hot = [[[name in row for name in task["labels"]] for row in rows] for rows in (gold, found)]
    macro = sklearn_metrics.f1_score(*map(np.array, hot), average="macro", zero_division=0.0)
    assert result["test"]["tags"]["macro_f1"] == pytest.approx(macro)
    picture = Path("run/report.png").read_bytes()
    assert script("report.py", "run")[0] == 0 and Path("run/report.png").read_bytes() == picture

    predict = ["--model", "run", "--input", CASES / name]
    status, out, err = script("predict.py", *predict, "--score", "--output", "s.json")
    assert status == 0 and not err and json.loads(Path("s.json").read_text()) == result["test"]
    assert out.split()[1:] == table[0].split()[1:]
    assert script("predict.py", *predict, "--output", "o.jsonl")[0] == 0
    answers = [json.loads(line)["predictions"]["tags"] for line in Path("o.jsonl").read_text().splitlines()]
    assert [p["labels"] for p in answers] == found
    for p in answers:
        assert set(p) == {"labels", "names", "probabilities"} and p["names"] == p["labels"]
        assert p["labels"] == [x for x in task["labels"] if p["probabilities"][x] >= task["threshold"]]
    if name.endswith(".csv"):
        assert script("predict.py", *predict, "--output", "o.csv")[0] == 0
        with open("o.csv", newline="") as file:
            for row, p in zip(csv.DictReader(file), answers, strict=True):
                assert row["tags_predicted"] == ("|".join(p["labels"]) or "|") and row["error"] == ""
                numbers = [float(word) for word in row["tags_probability"].split("|") if word]
                assert numbers == pytest.approx([p["probabilities"][label] for label in p["labels"]], abs=1e-5)
    else:
        joined = [CASES / "pipe_lists.csv", "--multi-label", "tags"]
        status, _, err = script("predict.py", *predict[:3], joined[0], "--score")
        assert status == 2 and err.count("\n") == 1 and "--multi-label splits a text" in err
        status, again, _ = script("predict.py", *predict[:3], *joined, "--score")
        assert status == 0 and again.split()[1:] == out.split()[1:]


def test_an_epoch_is_scored_under_its_own_best_threshold(script, tiny):
    flags = ["--data", CASES / "list_labels.json", "--encoder", tiny, "--epochs", "1", "--dtype", "float32"]
    assert script("train.py", *flags, "--out", "run")[0] == 0
    model, (_, rows) = mtbert.load("run", dtype="float32"), read_data([str(CASES / "list_labels.json")])
    data = mtbert.encode(model.tokenizer, rows["validation"], model.tasks)
    logits, scores = mtbert.compute_logits(model, data), {}
    for t in np.arange(1, 20) / 20:
        task = replace(model.tasks[0], temperature=1.0, threshold=t)
        scores[t] = metrics.evaluate([task], data.labels, logits)["tags"]["macro_f1"]
    validation = json.loads(Path("run/metrics.json").read_text())["validation"]["tags"]
    assert validation["macro_f1"] == pytest.approx(max(scores.values())) and max(scores.values()) > scores[0.5]


def test_what_is_printed_of_a_text(script, tiny):
    tags = replace(TAGS, labels=[0, 1, 2], names={"0": "acting", "1": "plot", "2": "2"})
    model = tiny_model(tiny, [tags, TWO[0]])
    Path("run").mkdir()
    with torch.no_grad():
        model.heads["head_tags"].weight.zero_()
        model.heads["head_tags"].bias.copy_(torch.tensor([0.0, -0.5, -3.0]))
    for threshold, bars, cell in ((0.3, ["acting +0.50 #+", " plot\\? +0.38 #+"], "0 acting 0.50, 1 plot? 0.38"),
                                  (0.9, ["none"], "none")):  # fmt: skip
        model.tasks[0].threshold = threshold
        mtbert.save(model, "run")
        status, out, _ = script("predict.py", "--model", "run", "a film")
        assert status == 0 and re.search(r"^  tags  +" + "\n +".join(bars), out.replace("\N{FULL BLOCK}", "#"), re.M)
        assert "2 " not in out and " bad" in out
        write("a.txt", ["a film"])
        status, out, _ = script("predict.py", "--model", "run", "--input", "a.txt")
        assert status == 0 and re.search(rf"^a film +{re.escape(cell)}  +", out, re.M)
    assert script("predict.py", "--model", "run", "--input", "a.txt", "--output", "o.csv")[0] == 0
    assert Path("o.csv").read_text().splitlines()[1].startswith("a film,|,,")


def test_a_wrong_list_is_marked(capsys):
    rows = make_rows(*({"tags": labels} for labels in (("a", "c"), (), ("b",), ())), {})
    found = [{"tags": mtbert.decode_one(TAGS, np.array(x))} for x in ([1, -1, 1], [-1] * 3, [1, 1, 0], [1, -1, -1])]
    report.print_examples([TAGS], rows, [*found, found[0]], "test")
    lines = [re.split("  +", line)[1:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:-1] for line in lines] == [["a, c"], ["none"], ["b", "x"], ["none", "x"], ["-"]]
    assert [line[-1] for line in lines[:2]] == ["a 0.73, c 0.73", "none"]


def test_the_picture_has_a_bar_a_label_and_a_point_a_bin_of_answers():
    task, result = asdict(TAGS), {"macro_f1": 0.5, "ece": 0.1, "ece_uncalibrated": 0.2}
    scores = {f"l{i}": {"f1": i / 40, "rows": float(i)} for i in range(40)}
    many = task | {"names": {label: label for label in scores}}
    axes = Figure().add_subplot()
    report.draw_f1(axes, many, result | {"per_class": scores})
    assert [bar.get_width() for bar in axes.patches] == [i / 40 for i in range(39, 14, -1)]
    assert [x.get_text() for x in axes.get_yticklabels()][:2] == ["l39 (39)", "l38 (38)"]
    assert "15 labels of fewer rows are not shown" in axes.get_xlabel()
    p = [{"a": 0.91, "b": 0.93, "c": 0.08}, {"a": 0.92, "b": 0.72, "c": 0.07}]
    axes = Figure().add_subplot()
    gold = (["a"], ["a", "z"])
    rows = [(labels, {"labels": [], "probabilities": x}) for labels, x in zip(gold, p, strict=True)]
    report.draw_reliability(axes, task | {"temperature": 1.0}, result, rows)
    points = axes.collections[-1].get_offsets().tolist()
    assert points == [pytest.approx([0.72, 0]), pytest.approx([(0.91 + 0.93 + 0.92 + 0.92 + 0.93) / 5, 4 / 5])]


def test_a_stopped_run_ends_as_an_undisturbed_one(script, tiny, signal_at):
    rows = [row | ({"mood": i % 2} if i % 3 else {}) for i, row in enumerate(numbered(["u", "v"], [], None, ["v"]))]
    flags = ["--data", write("a.jsonl", [row for row in rows if len(row) > 1]), "--encoder", tiny, "--epochs", "3"]
    flags += ["--batch-size", "8", "--test", "a.jsonl"]
    assert script("train.py", *flags, "--out", "whole")[0] == 0
    signal_at(mtbert, "forward_backward", 7, signal.SIGTERM)
    assert script("train.py", *flags, "--out", "run")[0] == 143
    status, _, err = script("train.py", "--resume", "run")
    assert status == 0, err
    for name in ("log.jsonl", "model.safetensors", "test_predictions.jsonl"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()
    tasks = [runs.read_record(Path(name, "config.json"))["tasks"] for name in ("run", "whole")]
    assert tasks[0] == tasks[1] and tasks[0][0]["threshold"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--multi-label tag", "--multi-label: there is no task 'tag'"),
        ("--multi-label tags --tasks other", "--multi-label: there is no task 'tags'"),
        ("--multi-label tags=", "--multi-label tags=: the separator is missing"),
        ("--multi-label tags --regression tags", "--regression tags: it has several labels a text, and is no number"),
        ("--multi-label other", "a.jsonl, line 1: 'other' is 0 here; several labels are a list of words"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(script, tiny, flags, message):
    rows = [row | {"other": i % 2} for i, row in enumerate(numbered("u|v", "v", name="tags"))]
    flags = ["--data", write("a.jsonl", rows), "--encoder", tiny, "--out", "r", *flags.split()]
    status, _, err = script("train.py", *flags)
    assert status == 2 and message in err and err.count("\n") == 1 and not Path("r").exists(), err


def test_compare_has_both_baselines_and_differences_of_macro_f1(script, tiny):
    words = {"u": "good", "v": "loud"}
    lines = []
    for i in range(60):
        some = [x for j, x in enumerate("uv") if i >> j & 1]
        lines.append(f"film {i} is {' '.join(words[x] for x in some)},{';'.join(some) or ';'},{'ny'[i % 2]}")
    files = ["--data", write("a.csv", ["text,t,m", *lines[:40]]), "--test", write("b.csv", ["text,t,m", *lines[40:]])]
    flags = [*files, "--multi-label", "t=;", "--encoder", tiny, "--epochs", "1", "--seeds", "2", "--out", "c"]
    status, out, err = script("compare.py", *flags)
    assert status == 0 and "nan" not in out and re.search(r"^  macro-F1 +shared - single ", out, re.M), err
    task = json.loads(Path("c/compare.json").read_text())["tasks"]["t"]
    assert set(task["differences"]) == {"macro_f1", "exact_match"} and set(task["gold"][3]) <= {"u", "v"}
    assert task["baselines"]["TF-IDF, linear"]["macro_f1"] == 100
    always = sklearn_metrics.f1_score([[i & 1, i >> 1 & 1] for i in range(40, 60)], [[1, 0]] * 20, average="macro",
                                      zero_division=0.0)  # fmt: skip
    assert task["baselines"]["majority label"]["macro_f1"] == pytest.approx(100 * always)


@pytest.mark.parametrize(
    ("cells", "flags", "said"),
    [
        (["u; v", "u", "v"], ["--multi-label", "tags"], "looks like several labels a text ('u; v')"),
        (["['u', 'v']", "['u']"], ["--multi-label", "tags"], "line 2: 'tags' is \"['u', 'v']\"; join labels by '|'"),
        (["u|v", "u"], ["--multi-label", "tags= "], "--multi-label tags=: the separator is missing"),
    ],
)
def test_a_separator_that_does_not_fit_is_said(tiny, tmp_path, script, cells, flags, said):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,tags\n" + "".join(f'film {i},"{cells[i % len(cells)]}"\n' for i in range(60)))
    _, _, err = script("train.py", "--encoder", tiny, "--data", rows, *flags, "--epochs", 1, "--out", tmp_path / "run")
    assert said in err


def test_lists_of_zeros_and_ones_are_warned_of_and_many_labels_of_few_rows_are_a_task():
    rows = [Row("", f"text {i}", None, {"tags": (0, 1)}) for i in range(9)]
    task = Task("tags", [0, 1], [9, 9], {"0": "0", "1": "1"}, threshold=0.5)
    said = list(data_warnings([task], {"train": rows, "validation": [], "test": []}))
    assert any("'tags' has the labels 0 and 1 alone" in sentence for sentence in said)
    lists = [[str(i % 60), str(i * 7 % 60)] for i in range(100)]
    assert why_no_task("tags", lists) is None and why_no_task("tags", [["x", str(i)] for i in range(60)])
