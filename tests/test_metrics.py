"""Properties of metrics.py: scores and calibration."""

import math

import numpy as np
import pytest

import metrics
import mtbert
from conftest import tiny_model
from data import Task


def test_metrics_are_those_computed_by_hand():
    tasks = [Task("c", ["x", "y", "z"], [5, 9, 1]), Task("n", None, mean=10.0, std=2.0), Task("none", [0, 1], [1, 1])]
    gold = {"c": [0, 0, 1, 1, 2, -100], "n": [-1, 0, 1, 3, math.nan, math.nan], "none": [-100] * 6}
    guess = {"c": [0, 1, 1, 1, 0, 2], "n": [-1, 1, 2, 2.5, 9, 9], "none": [0] * 6}
    logits = {"c": np.eye(3)[guess["c"]], "n": np.array(guess["n"])[:, None], "none": np.eye(2)[guess["none"]]}
    result = metrics.evaluate(tasks, {name: np.array(values) for name, values in gold.items()}, logits)
    assert set(result) == {"c", "n"}
    c, n = result["c"], result["n"]
    assert c["accuracy"] == pytest.approx(3 / 5) and c["majority_accuracy"] == pytest.approx(2 / 5)
    assert c["macro_f1"] == pytest.approx((2 * 0.5 * 0.5 / 1 + 2 * (2 / 3) * 1 / (5 / 3) + 0) / 3)
    assert c["per_class"]["y"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "rows": 2})
    assert n["rmse"] == pytest.approx(2 * math.sqrt((0 + 1 + 1 + 0.25) / 4))
    assert n["mean_rmse"] == pytest.approx(2 * math.sqrt((1 + 0 + 1 + 9) / 4))
    assert n["pearson"] == pytest.approx(np.corrcoef(gold["n"][:4], guess["n"][:4])[0, 1])
    assert n["spearman"] == pytest.approx(1)


def test_calibration_error_is_that_of_a_table_made_by_hand():
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.3, 0.7], [0.31, 0.69], [1.0, 0.0]])  # bins of 0.95, of 0.7, and of 1.0
    gold = np.array([0, 1, 1, 1, 0])
    assert metrics.calibration_error(p, gold) == pytest.approx((abs(0.95 + 0.95 + 1.0 - 2) + abs(0.7 + 0.69 - 2)) / 5)
    assert metrics.calibration_error(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2])) == 0


def test_calibration_finds_a_planted_temperature_and_predictions_are_made_with_it(tiny, tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    gold = np.array([rng.choice(3, p=p) for p in metrics.softmax(logits)])
    tasks = [Task("a", [0, 1, 2], [1, 1, 1], {"0": "0", "1": "1", "2": "2"}), Task("n", None)]
    tasks.append(Task("none", [0], [1], {"0": "0"}))
    labels = {"a": gold, "n": np.full(20_000, 1.0), "none": np.full(20_000, -100)}
    outputs = {"a": 2.5 * logits, "n": logits[:, :1], "none": logits[:, :1]}
    metrics.calibrate(tasks, labels, outputs)
    assert tasks[0].temperature == pytest.approx(2.5, rel=0.05) and [task.temperature for task in tasks[1:]] == [1, 1]
    result = metrics.evaluate(tasks, labels, outputs)["a"]
    assert result["ece"] < 0.015 < 0.1 < result["ece_uncalibrated"]
    four = Task("a", [0, 1], [1, 1])
    metrics.calibrate([four], {"a": np.array([0, 0, 1, 1])}, {"a": np.array([[1.5, 0], [1.5, 0], [0, 1.5], [0, 1.5]])})
    assert 0.4 < four.temperature < 1  # all right, but four rows are no proof
    probabilities = mtbert.decode_one(tasks[0], outputs["a"][0])["probabilities"]
    assert list(probabilities.values()) == pytest.approx(metrics.softmax(logits[0]), abs=0.02)

    model = tiny_model(tiny, tasks)
    mtbert.save(model, tmp_path)
    assert [task.temperature for task in mtbert.load(tmp_path).tasks] == [task.temperature for task in tasks]
