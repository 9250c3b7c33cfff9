"""The mixture of tasks: which rows an epoch draws, in which batches, what a label counts, and when training ends."""

import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

import compare
import mtbert
import train
from conftest import TWO, tiny_model, train_tiny
from data import Task


def parse(*flags):
    return train.parse_args(list(flags))


def labels_of(*masks):
    """A mixture's labels, of two kinds of task in turn, from masks of 0 and 1."""
    kinds = (lambda m: np.where(m, 1, -100), lambda m: np.where(m, np.float32(0.5), np.float32(math.nan)))
    return {f"task {i}": kinds[i % 2](np.array(mask, bool)) for i, mask in enumerate(masks)}


def random_labels(rng, n, tasks):
    masks = rng.random((tasks, n)) < rng.random((tasks, 1)) ** 2
    masks[:, :2], masks[rng.integers(tasks, size=n), np.arange(n)] = True, True  # no task, and no row, without a label
    return labels_of(*masks)


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
def test_an_epoch_draws_each_row_its_expected_number_of_times_rounded_down_or_up_and_at_most_eight(power):
    rng = np.random.default_rng(0)
    for n, tasks in ((5, 1), (50, 2), (700, 3), (2000, 2)):
        labels = random_labels(rng, n, tasks)
        masks = {name: ~np.isnan(v) if v.dtype == np.float32 else v != -100 for name, v in labels.items()}
        weights = {name: mask.sum() ** power for name, mask in masks.items()}
        rates = {t: weights[t] / sum(weights.values()) * n / masks[t].sum() for t in masks}
        expected = [sum(rates[t] * masks[t][r] for t in masks) for r in range(n)]
        draws, shares = mtbert.mixture(labels, power)
        assert draws.max() <= 8 and (draws > 0).all()
        if max(expected) <= 8:
            assert draws == pytest.approx(expected) and draws.sum() == pytest.approx(n)
        counts = np.array([mtbert.draw_rows(draws, np.random.default_rng([seed, 1])) for seed in range(400)])
        assert (counts >= np.floor(draws - 1e-9)).all() and (counts <= np.ceil(draws + 1e-9)).all()
        assert counts.max() <= 8
        assert (counts.sum(1) == round(draws.sum())).all()  # an epoch has as many steps as the schedule counts on
        assert abs(counts.mean(0) - draws).max() < 0.12
        for name, mask in masks.items():
            assert counts[:, mask].sum() / counts.sum() == pytest.approx(shares[name], rel=0.02)


def test_fewer_labels_are_drawn_more_often_the_lower_the_power_and_one_is_in_proportion():
    labels = labels_of([1] * 100 + [0] * 900, [0] * 100 + [1] * 900)
    shares = [mtbert.mixture(labels, power)[1]["task 0"] for power in (1.0, 0.5, 0.3, 0.0)]
    assert shares == pytest.approx([0.1, 0.25, 100**0.3 / (100**0.3 + 900**0.3), 0.5])
    few = labels_of([1] * 10 + [0] * 990, [0] * 10 + [1] * 990)
    assert mtbert.mixture(few, 0.0)[0].max() == pytest.approx(8, rel=0.01)


def former_batches(lengths, batch_size, rng):
    order, block = rng.permutation(len(lengths)), 32 * batch_size
    blocks = [order[i : i + block] for i in range(0, len(order), block)]
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in blocks])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_rows_with_every_label_come_once_each_in_the_batches_of_a_plain_shuffle(power):
    for n in (1, 31, 700, 1024, 3001):
        lengths = np.random.default_rng(n).integers(3, 60, n)
        draws, shares = mtbert.mixture(labels_of(*[[1] * n] * 3), power)
        assert list(shares.values()) == [1, 1, 1]
        counts = mtbert.draw_rows(draws, np.random.default_rng([7, 2, 1]))
        ours = mtbert.length_grouped_batches(lengths, 16, np.random.default_rng([7, 2]), counts)
        theirs = former_batches(lengths, 16, np.random.default_rng([7, 2]))
        assert [batch.tolist() for batch in ours] == [batch.tolist() for batch in theirs]


@pytest.mark.parametrize(("few", "many"), [(100, 2000), (100, 9000), (20, 400)])
def test_a_row_drawn_several_times_is_hardly_ever_twice_in_one_batch(few, many):
    lengths = np.random.default_rng(0).integers(3, 60, few + many)
    draws, _ = mtbert.mixture(labels_of([1] * few + [0] * many, [0] * few + [1] * many), 0.3)
    counts = mtbert.draw_rows(draws, np.random.default_rng([0, 1, 1]))
    batches = mtbert.length_grouped_batches(lengths, 32, np.random.default_rng([0, 1]), counts)
    assert counts.max() > 4 and (np.bincount(np.concatenate(batches), minlength=few + many) == counts).all()
    assert {len(batch) for batch in batches[:-1]} <= {32, counts.sum() % 32}
    twice = sum(len(batch) - len(set(batch)) for batch in batches)
    shuffled = np.random.default_rng(5).permutation(np.repeat(np.arange(few + many), counts))
    assert twice <= sum(len(part) - len(set(part)) for part in np.array_split(shuffled, len(batches)))


def test_a_draw_counts_the_same_in_the_loss_whatever_its_task(tiny, tmp_path, monkeypatch):
    """The gradient is of the sum over labelled rows / the labelled rows that a batch has on average; so is the log."""
    seen, forward_backward = [], mtbert.forward_backward

    def watched(model, data, rows, weights, accumulate):
        seen.append((model, data, rows, weights, forward_backward(model, data, rows, weights, accumulate)))
        return seen[-1][-1]

    monkeypatch.setattr(mtbert, "forward_backward", watched)
    flags = ["--dropout", "0", "--lr", "0", "--task-weights", "stars=3", "--clip", "0"]
    log = train_tiny(tiny, tmp_path / "a", *flags).log
    data = seen[0][1]  # 22 rows: 14 labelled for mood, 8 for stars
    q = {"mood": 14**0.5 / (14**0.5 + 8**0.5), "stars": 8**0.5 / (14**0.5 + 8**0.5)}
    for (model, _, rows, _, _), entry in zip(seen, log, strict=True):
        model = tiny_model(tiny, TWO)
        logits = model(**mtbert.collate(data, rows, model.encoder.config, "cpu"))[0]
        total = 0
        for task in TWO:
            gold = torch.from_numpy(data.labels[task.name][rows])
            loss = mtbert.loss_sum(task, logits[task.name], gold) / (len(rows) * q[task.name])
            assert entry["loss"][task.name] == pytest.approx(loss.item(), rel=1e-4)
            total = total + loss * {"mood": 1, "stars": 3}[task.name]
        total.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
        assert entry["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_balanced_class_weights_are_those_of_scikit_learn(tiny, tmp_path, monkeypatch):
    gold = np.array([0] * 6 + [1] * 3 + [2])
    task = Task("kind", ["x", "y", "z"], [6, 3, 1], {"x": "x", "y": "y", "z": "z"})
    weights = compute_class_weight("balanced", classes=np.arange(3), y=gold)
    logits = torch.randn(10, 3)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(gold), reduction="none")
    weighted = loss @ torch.from_numpy(weights[gold]).float()
    found = mtbert.loss_sum(task, logits, torch.from_numpy(gold), balanced=True)
    assert found.item() == pytest.approx(weighted.item(), rel=1e-5)
    monkeypatch.setattr(TWO[0], "counts", [1, 5])
    plain = train_tiny(tiny, tmp_path / "plain").log[0]["loss"]
    balanced = train_tiny(tiny, tmp_path / "balanced", "--class-weights", "balanced").log[0]["loss"]
    assert plain["mood"] != balanced["mood"] and plain["stars"] == balanced["stars"]


def test_patience_ends_a_run_and_a_resumed_one_behind_the_same_epoch(tiny, tmp_path, monkeypatch, capsys):
    scores = [0.2, 0.5, 0.4, 0.6, 0.6, 0.1, 0.9]
    monkeypatch.setattr(mtbert, "compute_logits", lambda model, data: None)
    monkeypatch.setattr(mtbert, "evaluate", lambda tasks, labels, logits: {"mood": {"macro_f1": scores[next(epoch)]}})
    epoch = iter(range(10))
    train_tiny(tiny, tmp_path / "whole", "--epochs", "7", "--patience", "2")
    assert next(epoch) == 6 and "stopped: nothing better than epoch 4 in 2 more" in capsys.readouterr().out
    # stopped behind the fifth epoch, the resumed run ends where the first did
    epoch, end_epoch = iter(range(10)), mtbert.runs.Run.end_epoch

    def killed(self, *arguments):
        end_epoch(self, *arguments)
        if self.at["epoch"] == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(mtbert.runs.Run, "end_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny, tmp_path / "parts", "--epochs", "7", "--patience", "2")
    monkeypatch.setattr(mtbert.runs.Run, "end_epoch", end_epoch)
    train_tiny(tiny, tmp_path / "parts", "--epochs", "7", "--patience", "2")
    assert next(epoch) == 6
    assert (tmp_path / "parts/log.jsonl").read_bytes() == (tmp_path / "whole/log.jsonl").read_bytes()


def test_train_shows_the_mixture_and_takes_epochs_for_its_steps_unless_told(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"film {i}", "liked": "yn"[i % 2]} | ({"stars": i / 4} if i < 40 else {}) for i in range(200)]
    (tmp_path / "rows.json").write_text(json.dumps({"train": rows, "validation": rows[:9]}))
    flags = ["--data", "rows.json", "--encoder", tiny, "--batch-size", "64"]
    status, out, err = script("train.py", *flags, "--out", "a", "--patience", "1")
    assert status == 0, err
    share = 40**0.5 / (40**0.5 + 200**0.5)
    share += 0.2 * (1 - share)
    assert re.search(rf"^stars +40 +9 +0 +4\.88 ± 2\.89 +{share:.3f} +{share * 5:.2f}$", out, re.M)
    assert re.search(r"^liked +200 +9 +0 +0\.500 +1\.000 +1\.00$", out, re.M)
    assert "20 epochs of 200 draws, 80 steps" in out
    metrics = json.loads((tmp_path / "a/metrics.json").read_text())
    steps = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    count = 200 * sum("validation" in step for step in steps)
    assert metrics["examples_per_second"] * metrics["train_seconds"] == pytest.approx(count)
    status, out, _ = script("train.py", *flags, "--epochs", "2", "--task-sampling", "1", "--out", "b")
    assert status == 0 and "2 epochs of 200 draws, 8 steps" in out
    assert re.search(r"^stars +40 .* 0\.333 +1\.67$", out, re.M)
    assert [mtbert.default_epochs(n, 32) for n in (100, 810, 2000, 9000, 10**6)] == [20, 10, 4, 3, 3]
    assert parse().task_sampling == 0.5


def test_every_model_of_a_comparison_takes_about_as_many_steps_whatever_its_number_of_labels():
    labels = [{"mood", "stars"} if i < 70 else {"mood"} for i in range(500)]
    assert compare.equal_steps(TWO, labels, parse("--epochs", "3")) == (3, 48, {"": 1, "mood": 1, "stars": 7})
    assert compare.equal_steps(TWO, labels, parse())[:2] == (16, 256)
    twice = parse("--passes", "2", "--epochs", "1")
    assert compare.equal_steps(TWO, labels, twice)[1:] == (32, {"": 2, "mood": 2, "stars": 14})
    labels = [{"mood", "stars"}] * 500
    assert compare.equal_steps(TWO, labels, parse()) == (16, 256, {"": 1, "mood": 1, "stars": 1})


def test_passes_draw_each_row_as_often_and_hardly_twice_in_a_batch():
    draws, shares = mtbert.mixture(labels_of([1] * 70), 0.5, passes=7)
    counts = mtbert.draw_rows(draws, np.random.default_rng(0))
    batches = mtbert.length_grouped_batches(np.arange(70) % 9, 32, np.random.default_rng(0), counts)
    assert (counts == 7).all() and shares == {"task 0": 1} and len(batches) == math.ceil(490 / 32)
    assert sum(len(batch) - len(set(batch)) for batch in batches) <= 0.3 * 490  # 70 rows make about two batches


def test_the_curve_keeps_a_share_of_the_labels_and_joins_its_points(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(compare.__file__).parent / "benchmarks"))
    curve = importlib.import_module("curve")
    rows = [{"text": str(i), "a": "xyz"[min(i, 2)], "b": i % 2} for i in range(100)]
    content = {"label_names": {"a": {}}, "train": rows, "validation": rows[:5], "test": rows[:5]}
    count, kept = curve.keep_labels(content, "a", 10, tmp_path / "data.json")
    labels = [row["a"] for row in kept if "a" in row]
    assert count == len(labels) and 10 <= count <= 12 and set(labels) == set("xyz")
    assert [row["b"] for row in kept] == [row["b"] for row in rows]
    point = {"metric": "macro-F1", "beside": ["b"], "single": [1, 2], "shared": [2, 3]}
    for percent in (100, 5):
        (tmp_path / str(percent)).mkdir()
        tasks = {"a": [point | {"percent": percent, "labels": percent}]}
        (tmp_path / str(percent) / "curve.json").write_text(json.dumps({"tasks": tasks}))
    drawn = []
    monkeypatch.setattr(curve, "draw", lambda panels, path: drawn.extend(panels))
    curve.join([tmp_path / "100", tmp_path / "5"], tmp_path / "out")
    assert [(task, [p["percent"] for p in points]) for task, points in drawn] == [("a", [5, 100])]
