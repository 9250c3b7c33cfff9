"""Task sampling: which rows an epoch draws, in which batches, and what a label counts in the loss.

How long a training is depends on the draws, and is tested here, too.
"""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import MOOD, TWO, tiny_model, train_tiny
from sklearn.utils.class_weight import compute_class_weight

import mtbert
from mtbert import Classification
from support import runs


def labels_of(*masks):
    """What a Dataset has as labels: classes and numbers in turn, where the masks are 1."""
    labels = {}
    for i, mask in enumerate(masks):
        is_labelled = np.array(mask, bool)
        if i % 2 == 0:
            labels[f"task {i}"] = np.where(is_labelled, 1, mtbert.NO_CLASS)
        else:
            labels[f"task {i}"] = np.where(is_labelled, 0.5, math.nan).astype(np.float32)
    return labels


def two_tasks(few, many):
    """Labels of two tasks that share no row."""
    return labels_of([1] * few + [0] * many, [0] * few + [1] * many)


def random_labels(rng, n, num_tasks):
    """Labels of which some tasks have few; no task, and no row, is without a label."""
    masks = rng.random((num_tasks, n)) < rng.random((num_tasks, 1)) ** 2
    masks[:, :2] = True
    masks[rng.integers(num_tasks, size=n), np.arange(n)] = True
    return labels_of(*masks)


def draw_and_batch(lengths, draws, seed, batch_size=32):
    """-> how often an epoch draws each row, and its batches."""
    counts = mtbert.draw_rows(draws, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng(seed)
    return counts, mtbert.length_grouped_batches(lengths, batch_size, rng, counts)


def count_repeats(batches):
    """How many rows of the batches are in their batch already."""
    return sum(len(batch) - len(set(batch)) for batch in batches)


# --------------------------------------------------------------------------------------------------
# Draws


def expected_by_formula(labels, power, n):
    """Each task's labels are drawn in proportion to their number ** power."""
    masks = [mtbert.is_labelled(values) for values in labels.values()]
    weights = [mask.sum() ** power for mask in masks]
    draws = np.zeros(n)
    for mask, weight in zip(masks, weights, strict=True):
        draws[mask] += weight / sum(weights) * n / mask.sum()
    return draws


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("n", "num_tasks"), [(5, 1), (50, 2), (700, 3)])
def test_an_epoch_draws_each_row_as_often_as_expected_rounded_down_or_up(power, n, num_tasks):
    labels = random_labels(np.random.default_rng(0), n, num_tasks)
    draws = mtbert.expected_draws(labels, power)
    assert draws.min() > 0 and draws.max() <= 8
    formula = expected_by_formula(labels, power, n)
    if formula.max() <= 8:
        assert draws == pytest.approx(formula) and draws.sum() == pytest.approx(n)

    counts = []
    for seed in range(400):
        counts.append(mtbert.draw_rows(draws, np.random.default_rng([seed, 1])))
    counts = np.array(counts)
    assert (counts >= np.floor(draws - 1e-9)).all()
    assert (counts <= np.ceil(draws + 1e-9)).all() and counts.max() <= 8
    assert (counts.sum(1) == round(draws.sum())).all()  # the schedule counts on these steps
    assert abs(counts.mean(0) - draws).max() < 0.12
    for name, rate in mtbert.label_rates(draws, labels).items():
        drawn = counts[:, mtbert.is_labelled(labels[name])].sum() / counts.sum()
        assert drawn == pytest.approx(rate, rel=0.02)


def test_fewer_labels_are_drawn_more_often_the_lower_the_power_and_one_is_in_proportion():
    labels = two_tasks(few=100, many=900)
    rates = []
    for power in (1.0, 0.5, 0.3, 0.0):
        draws = mtbert.expected_draws(labels, power)
        rates.append(mtbert.label_rates(draws, labels)["task 0"])
    assert rates == pytest.approx([0.1, 0.25, 100**0.3 / (100**0.3 + 900**0.3), 0.5])
    draws = mtbert.expected_draws(two_tasks(few=10, many=990), 0.0)
    assert draws.max() == pytest.approx(8, rel=0.01)


def test_rows_of_any_number_of_labels_are_drawn_as_rows_of_classes_are():
    classes = np.array([0, 0, mtbert.NO_CLASS, mtbert.NO_CLASS, 1])
    lists = np.array([[1, 0], [0, 0], [math.nan] * 2, [math.nan] * 2, [1, 1]], np.float32)
    other = np.array([0, 1, 0, 1, mtbert.NO_CLASS])
    for power in (0.5, 1.0):
        draws = mtbert.expected_draws({"x": lists, "other": other}, power)
        expected = mtbert.expected_draws({"x": classes, "other": other}, power)
        assert draws.tolist() == expected.tolist()


# --------------------------------------------------------------------------------------------------
# Batches


def plainly_shuffled_batches(lengths, batch_size, rng):
    """Length-grouped batches, written for rows that come once each."""
    order = rng.permutation(len(lengths))
    block_size = 32 * batch_size
    blocks = []
    for i in range(0, len(order), block_size):
        rows = order[i : i + block_size]
        blocks.append(rows[np.argsort(lengths[rows], kind="stable")])
    order = np.concatenate(blocks)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_rows_with_every_label_come_once_each_in_the_batches_of_a_plain_shuffle(power):
    for n in (1, 31, 700, 1024, 3001):
        lengths = np.random.default_rng(n).integers(3, 60, n)
        labels = labels_of([1] * n, [1] * n, [1] * n)
        draws = mtbert.expected_draws(labels, power)
        assert set(mtbert.label_rates(draws, labels).values()) == {1}
        _, ours = draw_and_batch(lengths, draws, 7, batch_size=16)
        expected = plainly_shuffled_batches(lengths, 16, np.random.default_rng(7))
        assert [batch.tolist() for batch in ours] == [batch.tolist() for batch in expected]


@pytest.mark.parametrize(("few", "many"), [(100, 2000), (100, 9000), (20, 400)])
def test_a_row_that_is_drawn_again_is_hardly_ever_twice_in_one_batch(few, many):
    n = few + many
    lengths = np.random.default_rng(0).integers(3, 60, n)
    draws = mtbert.expected_draws(two_tasks(few, many), 0.3)
    counts, batches = draw_and_batch(lengths, draws, 0)
    assert counts.max() > 4
    assert (np.bincount(np.concatenate(batches), minlength=n) == counts).all()
    sizes = {len(batch) for batch in batches}
    assert sizes <= {32, counts.sum() % 32}
    shuffled = np.random.default_rng(5).permutation(np.repeat(np.arange(n), counts))
    by_chance = count_repeats(np.array_split(shuffled, len(batches)))
    assert count_repeats(batches) <= by_chance


def test_repeats_draw_each_row_as_often_and_hardly_twice_in_a_batch():
    labels = labels_of([1] * 70)
    draws = mtbert.expected_draws(labels, 0.5, repeats=7)
    counts, batches = draw_and_batch(np.arange(70) % 9, draws, 0)
    assert (counts == 7).all()
    assert mtbert.label_rates(draws, labels) == {"task 0": 1}
    assert len(batches) == math.ceil(490 / 32)
    assert count_repeats(batches) <= 0.3 * 490  # 70 rows make about two batches


# --------------------------------------------------------------------------------------------------
# What a label counts


def test_a_label_counts_the_same_in_the_loss_whatever_its_task(tiny, tmp_path, monkeypatch):
    """The gradient is of sums over labelled rows / the labelled rows of an average batch.

    So is what is logged.
    """
    batches = []
    forward_backward = mtbert.forward_backward

    def watched(model, data, rows, *others):
        batches.append((data, rows))
        return forward_backward(model, data, rows, *others)

    monkeypatch.setattr(mtbert, "forward_backward", watched)
    flags = ["--epochs", "1", "--dropout", "0", "--lr", "0"]
    flags += ["--task-weights", "stars=3", "--max-grad-norm", "0"]
    log = train_tiny(tiny, tmp_path / "a", *flags).log
    # of 22 rows 14 are labelled for mood, 8 for stars
    rates = {"mood": 14**0.5 / (14**0.5 + 8**0.5), "stars": 8**0.5 / (14**0.5 + 8**0.5)}
    for (data, rows), entry in zip(batches, log, strict=True):
        model = tiny_model(tiny, TWO)
        logits, _ = model(**mtbert.collate(data, rows, model.encoder.config, "cpu"))
        total = 0
        for task, weight in zip(TWO, (1, 3), strict=True):
            labels = torch.from_numpy(data.labels[task.name][rows])
            loss = task.loss(logits[task.name], labels) / (len(rows) * rates[task.name])
            assert entry["loss"][task.name] == pytest.approx(loss.item(), rel=1e-4)
            total = total + weight * loss
        total.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        norm = torch.stack(norms).norm().item()
        assert entry["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_balanced_class_weights_are_those_of_scikit_learn(tiny, tmp_path, monkeypatch):
    labels = np.array([0] * 6 + [1] * 3 + [2])
    task = Classification("kind", ["x", "y", "z"], [6, 3, 1], {"x": "x", "y": "y", "z": "z"})
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    logits = torch.randn(10, 3)
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    expected = losses @ torch.from_numpy(weights[labels]).float()
    found = task.loss(logits, torch.from_numpy(labels), balanced=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)

    monkeypatch.setattr(MOOD, "counts", [1, 5])
    plain = train_tiny(tiny, tmp_path / "plain", "--epochs", "1").log[0]["loss"]
    flags = ["--epochs", "1", "--class-weights", "balanced"]
    balanced = train_tiny(tiny, tmp_path / "balanced", *flags).log[0]["loss"]
    assert plain["mood"] != balanced["mood"] and plain["stars"] == balanced["stars"]


# --------------------------------------------------------------------------------------------------
# When a training ends


def test_patience_ends_a_resumed_run_after_the_same_epoch(tiny, tmp_path, monkeypatch):
    scores = [0.2, 0.5, 0.4, 0.6, 0.6, 0.1, 0.9]
    flags = ["--epochs", "7", "--patience", "2"]

    def validate(model, data):
        score = scores[next(number_of_epoch)]
        return {"mood": {"macro_f1": score}, "stars": {"pearson": 0.0}}

    monkeypatch.setattr(mtbert, "validate", validate)
    monkeypatch.setattr(mtbert, "MIN_TO_JUDGE", 1)
    number_of_epoch = iter(range(7))
    train_tiny(tiny, tmp_path / "whole", *flags)
    assert next(number_of_epoch) == 6

    end_epoch = runs.Run.end_epoch

    def killed(run):
        end_epoch(run)
        if run.epoch == 6:
            run.save()  # as if a minute had passed
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "end_epoch", killed)
    number_of_epoch = iter(range(7))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny, tmp_path / "parts", *flags)
    monkeypatch.setattr(runs.Run, "end_epoch", end_epoch)
    train_tiny(tiny, tmp_path / "parts", *flags)
    assert next(number_of_epoch) == 6
    log = (tmp_path / "parts/log.jsonl").read_bytes()
    assert log == (tmp_path / "whole/log.jsonl").read_bytes()


def test_by_default_a_training_has_about_250_steps_in_3_to_20_epochs():
    sizes = (100, 810, 2000, 9000, 10**6)
    assert [mtbert.default_epochs(n, 32) for n in sizes] == [20, 10, 4, 3, 3]


def test_by_default_batches_are_smaller_where_there_would_be_fewer_than_250_steps():
    assert [mtbert.default_batch_size(n, None) for n in (1, 24, 100)] == [8, 8, 8]
    assert [mtbert.default_batch_size(n, None) for n in (101, 200, 201, 300)] == [16, 16, 24, 24]
    assert [mtbert.default_batch_size(n, None) for n in (301, 1350, 10**6)] == [32, 32, 32]
    assert [mtbert.default_batch_size(1424, n) for n in (1, 2, 3, 6)] == [8, 16, 24, 32]
    for n in range(1, 400):  # these rows are few: they are learned 20 times in any batches
        assert mtbert.default_epochs(n, mtbert.default_batch_size(n, None)) == 20


def write_rows(folder):
    """200 rows with a class, of which 40 have a number too."""
    rows = []
    for i in range(200):
        row = {"text": f"film {i}", "liked": "yn"[i % 2]}
        if i < 40:
            row["stars"] = i / 4
        rows.append(row)
    path = folder / "rows.json"
    path.write_text(json.dumps({"train": rows, "validation": rows[:9]}))
    return path


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_shows_the_shares_of_the_draws_and_counts_the_rows_that_it_learns_from(
    script, tiny, tmp_path
):
    flags = ["--data", write_rows(tmp_path), "--encoder", tiny, "--batch-size", "64"]
    status, out, err = script("train.py", *flags, "--out", tmp_path / "a", "--patience", "1")
    assert status == 0, err
    rate = 40**0.5 / (40**0.5 + 200**0.5)
    rate += 0.2 * (1 - rate)  # a fifth of the rows that are drawn for the class have a number
    shares = rf"{rate:.3f} +{rate * 5:.2f}"
    assert re.search(rf"^stars +40 +9 +0 +4\.88 ± 2\.89 +{shares}$", out, re.M)
    assert re.search(r"^liked +200 +9 +0 +0\.500 +1\.000 +1\.00$", out, re.M)
    assert "20 epochs of 200 draws, 80 steps" in out
    metrics = json.loads((tmp_path / "a/metrics.json").read_text())
    num_epochs = 0
    for entry in read_json_lines(tmp_path / "a/log.jsonl"):
        num_epochs += "validation" in entry
    trained = metrics["examples_per_second"] * metrics["train_seconds"]
    assert trained == pytest.approx(200 * num_epochs)

    flags += ["--epochs", "2", "--task-sampling", "1"]
    status, out, err = script("train.py", *flags, "--out", tmp_path / "b")
    assert status == 0, err
    assert "2 epochs of 200 draws, 8 steps" in out
    assert re.search(r"^stars +40 .* 0\.333 +1\.67$", out, re.M)
