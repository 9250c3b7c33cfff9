"""Properties of support/metrics.py: scores and calibration, of arrays and of tasks.

Any number of labels a row: test_multi_label.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import MOOD, STARS, TAGS

import mtbert
from support import metrics

KIND = mtbert.Classification("kind", ["x", "y", "z"], [5, 9, 1], {"x": "x", "y": "y", "z": "z"})
NO_CLASS = mtbert.NO_CLASS

# --------------------------------------------------------------------------------------------------
# Scores


def test_metrics_of_classes_are_those_computed_by_hand():
    gold = np.array([0, 0, 1, 1, 2, NO_CLASS])
    logits = np.eye(3)[[0, 1, 1, 1, 0, 2]]
    result = mtbert.evaluate([KIND], {"kind": gold}, {"kind": logits})["kind"]
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["majority_accuracy"] == pytest.approx(2 / 5)
    f1_of_x = 2 * 0.5 * 0.5 / (0.5 + 0.5)
    f1_of_y = 2 * (2 / 3) * 1 / (2 / 3 + 1)
    assert result["macro_f1"] == pytest.approx((f1_of_x + f1_of_y + 0) / 3)
    scores_of_y = {"precision": 2 / 3, "recall": 1, "f1": f1_of_y, "rows": 2}
    assert result["per_class"]["y"] == pytest.approx(scores_of_y)
    assert result["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert KIND.selection_score(result) == result["macro_f1"]


def test_metrics_of_numbers_are_those_computed_by_hand():
    gold = np.array([-1, 0, 1, 3, math.nan, math.nan])
    predicted = np.array([-1, 1, 2, 2.5, 9, 9])
    result = mtbert.evaluate([STARS], {"stars": gold}, {"stars": predicted[:, None]})["stars"]
    assert result["rmse"] == pytest.approx(STARS.std * math.sqrt((0 + 1 + 1 + 0.25) / 4))
    assert result["mean_rmse"] == pytest.approx(STARS.std * math.sqrt((1 + 0 + 1 + 9) / 4))
    assert result["pearson"] == pytest.approx(np.corrcoef(gold[:4], predicted[:4])[0, 1])
    assert result["spearman"] == pytest.approx(1)
    assert STARS.selection_score(result) == result["pearson"]


def test_a_constant_has_no_correlation():
    result = metrics.number_metrics(np.array([0.0, 1.0, 2.0]), np.ones(3), std=1.0)
    assert result["pearson"] == result["spearman"] == 0


def test_a_class_that_no_training_row_has_is_always_missed():
    gold = np.array([0, 1, 2, 3, 3])
    result = metrics.class_metrics(["x", "y", "z"], [5, 9, 1], gold, np.array([0, 1, 2, 0, 1]))
    assert result["accuracy"] == pytest.approx(3 / 5)
    f1 = {"x": 2 / 3, "y": 2 / 3, "z": 1}
    assert result["macro_f1"] == pytest.approx(sum(f1.values()) / 4)
    found = {name: scores["f1"] for name, scores in result["per_class"].items()}
    assert found == pytest.approx(f1)
    assert result["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_task_without_a_labelled_row_has_no_metrics_and_is_not_fitted():
    tasks = [replace(MOOD, temperature=3.0), STARS, replace(TAGS, temperature=3.0, threshold=0.2)]
    labels = {
        "mood": np.full(4, NO_CLASS),
        "stars": np.full(4, math.nan),
        "tags": np.full((4, 4), math.nan),
    }
    logits = {"mood": np.zeros((4, 2)), "stars": np.zeros((4, 1)), "tags": np.zeros((4, 3))}
    before = [replace(task) for task in tasks]
    mtbert.calibrate(tasks, labels, logits)
    assert tasks == before
    assert mtbert.evaluate(tasks, labels, logits) == {}


def test_tasks_are_constant_where_one_class_is_predicted_for_rows_of_several():
    results = {
        "constant": {"confusion": [[3, 0], [2, 0]]},
        "right": {"confusion": [[3, 0], [0, 0]]},
        "varied": {"confusion": [[3, 0], [1, 1]]},
        "number": {"pearson": 0.5},
    }
    assert metrics.constant_tasks(results) == ["constant"]


# --------------------------------------------------------------------------------------------------
# Calibration

CONFIDENT = np.array([[0.95, 0.05], [0.95, 0.05], [0.3, 0.7], [0.31, 0.69], [1.0, 0.0]])
GOLD = np.array([0, 1, 1, 1, 0])


def test_calibration_error_is_that_of_a_table_made_by_hand():
    bin_of_high = abs((0.95 + 0.95 + 1.0) - 2)  # confidence of three rows, of which two are right
    bin_of_low = abs((0.7 + 0.69) - 2)
    error = metrics.calibration_error(CONFIDENT, GOLD)
    assert error == pytest.approx((bin_of_high + bin_of_low) / 5)
    assert metrics.calibration_error(np.eye(3), np.array([0, 1, 2])) == 0


def test_reliability_has_a_point_for_each_bin_that_has_rows():
    points = metrics.reliability(CONFIDENT, GOLD)
    assert points == [
        pytest.approx([0.69, 1, 1 / 5]),
        pytest.approx([0.7, 1, 1 / 5]),
        pytest.approx([(0.95 + 0.95 + 1.0) / 3, 2 / 3, 3 / 5]),
    ]
    found = metrics.calibration_metrics(CONFIDENT, np.eye(2)[[0, 0, 1, 1, 0]], GOLD)
    assert found["reliability"]["calibrated"] == points
    assert found["reliability"]["uncalibrated"] == [[1, 4 / 5, 1]]


def test_a_few_rows_that_are_all_right_are_no_proof_of_certainty():
    task = replace(MOOD)
    task.calibrate(np.array([0, 0, 1, 1]), np.array([[1.5, 0], [1.5, 0], [0, 1.5], [0, 1.5]]))
    assert 0.4 < task.temperature < 1


def test_predictions_are_made_with_the_temperature():
    logits = np.array([[0.0, 3.0]])
    [prediction] = replace(MOOD, temperature=3.0).predictions(logits)
    [cooler] = MOOD.predictions(logits / 3)
    assert prediction["probabilities"] == pytest.approx(cooler["probabilities"])
    assert prediction["label"] == "good"
