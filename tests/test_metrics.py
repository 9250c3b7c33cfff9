"""Properties of support/metrics.py: scores and calibration, of arrays and of tasks.

Any number of labels a row: test_multi_label.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import MOOD, STARS, TAGS
from scipy.stats import bootstrap

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
# Intervals

SST = np.array([912, 389, 909]) / 2210  # the shares of the classes in its 2,210 test rows


def draw_answers(rng, num_rows):
    """Labels and predictions of a model that is right with a probability of 0.73."""
    gold = rng.choice(3, num_rows, p=SST)
    other = (gold + rng.integers(1, 3, num_rows)) % 3
    return gold, np.where(rng.random(num_rows) < 0.73, gold, other)


def test_an_interval_covers_the_true_score_in_95_of_100_and_of_other_rows_in_83():
    """The score of as many other rows varies as much as that of these: the difference has twice
    the variance, and is below 1.96 of one's standard deviations in 83 %.
    """
    rng = np.random.default_rng(0)
    covers_truth = []
    covers_other = []
    for _ in range(1000):
        gold, predicted = draw_answers(rng, 2210)
        half = rng.permutation(2210) < 1105
        low, high = metrics.class_intervals(3, gold[half], predicted[half])["accuracy"]
        covers_truth.append(low <= 0.73 <= high)
        covers_other.append(low <= (gold == predicted)[~half].mean() <= high)
    assert 0.93 <= np.mean(covers_truth) <= 0.97
    assert 0.80 <= np.mean(covers_other) <= 0.86


def test_intervals_are_close_to_those_of_scipy():
    rng = np.random.default_rng(0)
    gold, predicted = draw_answers(rng, 400)
    x = rng.normal(size=400)
    y = x + rng.normal(size=400)
    one_hot = np.eye(4, dtype=np.float32)
    found = metrics.class_intervals(3, gold, predicted)
    labels = metrics.multi_label_intervals(one_hot[gold], np.eye(3, dtype=bool)[predicted])
    numbers = metrics.number_intervals(x, y, std=2.0)

    def macro_f1(gold, predicted):
        f1 = []
        for label in range(3):
            right = np.sum((gold == label) & (predicted == label))
            f1.append(2 * right / (np.sum(gold == label) + np.sum(predicted == label)))
        return np.mean(f1)

    def rmse(x, y):
        return 2 * np.sqrt(np.mean((x - y) ** 2))

    def check(interval, statistic, *data):
        many = {"n_resamples": 2000, "random_state": 1}
        expected = bootstrap(data, statistic, paired=True, vectorized=False, **many)
        width = interval[1] - interval[0]
        assert interval == pytest.approx(list(expected.confidence_interval), abs=width / 10)

    check(found["accuracy"], np.mean, gold == predicted)
    check(found["macro_f1"], macro_f1, gold, predicted)
    check(numbers["pearson"], metrics.correlation, x, y)
    check(numbers["rmse"], rmse, x, y)
    assert labels["exact_match"] == labels["micro_f1"]
    assert labels["exact_match"] == pytest.approx(found["accuracy"], abs=0.005)
    assert labels["macro_f1"] == pytest.approx(found["macro_f1"], abs=0.005)


def test_each_interval_is_of_a_metric_and_holds_its_score_and_is_the_same_again():
    rng = np.random.default_rng(0)
    labels = {
        "kind": rng.integers(0, 4, 60),  # 3: a class that no training row has
        "stars": rng.normal(size=60),
        "tags": (rng.random((60, 4)) < 0.4).astype(np.float32),
    }
    logits = {
        "kind": np.eye(4)[labels["kind"]][:, :3] + rng.normal(size=(60, 3)),
        "stars": labels["stars"][:, None] + rng.normal(size=(60, 1)),
        "tags": labels["tags"][:, :3] - 0.5 + rng.normal(size=(60, 3)),
    }
    tasks = [KIND, STARS, TAGS]
    found = mtbert.evaluate(tasks, labels, logits, intervals=True)
    names = {
        "kind": ["accuracy", "macro_f1"],
        "stars": ["pearson", "rmse"],
        "tags": ["macro_f1", "micro_f1", "exact_match"],
    }
    for name, result in found.items():
        assert list(result["intervals"]) == names[name]
        for metric, (low, high) in result["intervals"].items():
            assert low < result[metric] < high
    order = rng.permutation(60)
    for name in names:
        labels[name] = labels[name][order]
        logits[name] = logits[name][order]
    again = mtbert.evaluate(tasks, labels, logits, intervals=True)
    for name in ("kind", "tags", "stars"):
        assert again[name]["intervals"] == found[name]["intervals"]
    without = mtbert.evaluate(tasks, labels, logits)
    assert not any("intervals" in result for result in without.values())


def test_scores_of_the_rows_themselves_are_the_metrics():
    rng = np.random.default_rng(0)
    gold = rng.random((30, 4)) < 0.3
    predicted = rng.random((30, 3)) < 0.3
    once = np.ones((1, 30))
    scores = metrics.label_scores(gold, metrics.with_unknown(predicted), once)
    expected = metrics.multi_label_metrics(["x", "y", "z"], [1, 1, 1], gold, predicted)
    for name, value in scores.items():
        assert value == pytest.approx([expected[name]])


@pytest.mark.filterwarnings("error")
def test_where_rows_are_too_few_to_tell_there_is_no_interval():
    one = np.array([1])
    assert metrics.class_intervals(3, one, one) == {"accuracy": None, "macro_f1": None}
    assert metrics.number_intervals(one, one + 1, 1.0) == {"pearson": None, "rmse": None}
    nothing = np.zeros((2, 4), np.float32)
    found = metrics.multi_label_intervals(nothing, np.zeros((2, 3), bool))
    assert found == {"macro_f1": None, "micro_f1": None, "exact_match": None}
    two = np.array([0, 1])
    assert metrics.class_intervals(3, two, np.array([0, 0]))["accuracy"] == [0, 1]
    assert metrics.number_intervals(two, two, 1.0) == {"pearson": None, "rmse": None}
    constant = metrics.number_intervals(np.full(9, 0.3), np.linspace(0, 1, 9), 1.0)
    assert constant["pearson"] is None and constant["rmse"] is not None
    all_right = np.arange(50) % 3
    assert metrics.class_intervals(3, all_right, all_right)["accuracy"] is None


def test_a_kind_of_a_fork_need_not_have_intervals():
    class Fork:
        name = "kind"

        def metrics(self, labels, logits):
            return {"rows": len(labels)}

    labels = {"kind": np.array([0, 1])}
    found = mtbert.evaluate([Fork()], labels, {"kind": np.eye(2)}, intervals=True)
    assert found == {"kind": {"rows": 2}}


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
