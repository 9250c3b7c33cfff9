"""How good predictions are: scores and calibration, of labels and probabilities as arrays.

Shapes: N rows, C classes. This file never knows a file, a model or a task.
"""

import math

import numpy as np

# scikit-learn and SciPy are imported where they are used: prediction needs neither, and starts
# sooner without them.


def softmax(logits):
    """(..., C) logits -> (..., C) probabilities in float64."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True), dtype=float)
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits):
    """Logits of any shape -> probabilities of the same shape in float64."""
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))


def no_and_yes(p):
    """(N, C) probabilities of labels -> (N * C, 2): each as a decision between no and yes."""
    return np.stack([1 - p, p], axis=-1).reshape(-1, 2)


# --------------------------------------------------------------------------------------------------
# Calibration


def fit_temperature(probabilities, gold):
    """The temperature from 0.05 to 20 under which the classes `gold`, (N,), are likeliest.

    `probabilities(temperature)` gives an array (N, C). The logarithm of the temperature has a
    standard normal prior. Without it a few rows that are all right would make it zero.
    Temperature scaling: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature):
        p = probabilities(math.exp(log_temperature))
        likelihood = p[np.arange(len(gold)), gold]
        cross_entropy = -np.log(np.maximum(likelihood, np.finfo(float).eps)).mean()
        return cross_entropy + log_temperature**2 / (2 * len(gold))

    bounds = (math.log(0.05), math.log(20))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


THRESHOLDS = np.arange(1, 20) / 20


def best_threshold(gold, p):
    """The one of THRESHOLDS with the highest macro-F1; of equal ones the nearest to one half.

    `gold` is (N, C + 1) as for `multi_label_f1`, `p` the (N, C) probabilities of the labels.
    """
    best = 0.5
    best_score = multi_label_f1(gold, p >= best, "macro")
    for threshold in sorted(THRESHOLDS, key=lambda t: abs(t - 0.5)):
        score = multi_label_f1(gold, p >= threshold, "macro")
        if score > best_score:
            best = float(threshold)
            best_score = score
    return best


def bin_by_confidence(confidence, bins):
    """For each value from 0 to 1 the number of its bin, of `bins` that are equally wide."""
    return np.minimum((confidence * bins).astype(int), bins - 1)


def calibration_error(p, gold, bins=15):
    """The expected calibration error of (N, C) probabilities for the classes `gold`, (N,).

    It is the mean distance between confidence and accuracy over bins of equal width, weighted by
    their rows (Guo et al. 2017, arXiv:1706.04599, section 2).
    """
    confidence = p.max(1)
    right = p.argmax(1) == gold
    bin_of = bin_by_confidence(confidence, bins)
    total = 0.0
    for number in range(bins):
        inside = bin_of == number
        total += abs((confidence - right)[inside].sum())
    return float(total / len(gold))


def reliability(p, gold, bins=10):
    """The points of a reliability diagram: [confidence, accuracy, share of rows] of each bin."""
    confidence = p.max(1)
    right = p.argmax(1) == gold
    bin_of = bin_by_confidence(confidence, bins)
    points = []
    for number in range(bins):
        inside = bin_of == number
        if inside.any():
            values = (confidence[inside].mean(), right[inside].mean(), inside.mean())
            points.append([float(value) for value in values])
    return points


def calibration_metrics(p, uncalibrated, gold):
    """The metrics that tell how far (N, C) probabilities can be trusted, and before calibration."""
    return {
        "ece": calibration_error(p, gold),
        "ece_uncalibrated": calibration_error(uncalibrated, gold),
        "reliability": {
            "calibrated": reliability(p, gold),
            "uncalibrated": reliability(uncalibrated, gold),
        },
    }


# --------------------------------------------------------------------------------------------------
# Scores


def per_class(names, gold, predicted):
    """{name: {"precision", "recall", "f1", "rows"}} of the classes (or labels) so named."""
    from sklearn.metrics import precision_recall_fscore_support

    numbers = range(len(names))
    scores = precision_recall_fscore_support(gold, predicted, labels=numbers, zero_division=0.0)
    precision, recall, f1, rows = scores
    result = {}
    for i, name in enumerate(names):
        result[name] = {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "rows": int(rows[i]),
        }
    return result


def class_metrics(names, counts, gold, predicted):
    """Metrics of one class a row.

    `gold` and `predicted` are (N,); the number C in `gold` is a label that no training row has, and
    is always missed. `counts` are the training rows of each class.
    """
    from sklearn.metrics import accuracy_score, f1_score

    num_classes = len(names)
    confusion = np.zeros((num_classes + 1, num_classes), int)
    np.add.at(confusion, (gold, predicted), 1)
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0.0)),
        "majority_accuracy": float(np.mean(gold == np.argmax(counts))),
        "confusion": confusion[:-1].tolist(),
        "per_class": per_class(names, gold, predicted),
    }


def with_unknown(predicted):
    """(N, C) predictions -> (N, C + 1) with a last column for unknown labels: never predicted."""
    return np.pad(predicted, ((0, 0), (0, 1)))


def multi_label_f1(gold, predicted, average):
    """F1 of any number of labels a row, over the labels in `gold` or `predicted`.

    `gold` is (N, C + 1): the last column is for labels that no training row has. `predicted` is
    (N, C). `average` is "macro" or "micro".
    """
    from sklearn.metrics import f1_score

    predicted = with_unknown(predicted)
    found = np.flatnonzero(gold.any(0) | predicted.any(0))
    if len(found) == 0:
        return 0.0
    return float(f1_score(gold, predicted, labels=found, average=average, zero_division=0.0))


def multi_label_metrics(names, counts, gold, predicted):
    """Metrics of any number of labels a row; shapes as in `multi_label_f1`."""
    from sklearn.metrics import accuracy_score

    most_frequent = np.zeros(predicted.shape, bool)
    most_frequent[:, np.argmax(counts)] = True
    return {
        "macro_f1": multi_label_f1(gold, predicted, "macro"),
        "micro_f1": multi_label_f1(gold, predicted, "micro"),
        "exact_match": float(accuracy_score(gold, with_unknown(predicted))),
        "majority_micro_f1": multi_label_f1(gold, most_frequent, "micro"),
        "per_class": per_class(names, gold, with_unknown(predicted)),
    }


def correlation(x, y):
    """Pearson's correlation, and 0 where either is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def number_metrics(gold, predicted, std):
    """Metrics of numbers, (N,), that are given as z-scores; `std` is their unit."""
    from scipy.stats import rankdata

    rmse = np.sqrt(np.mean((gold - predicted) ** 2))
    mean_rmse = np.sqrt(np.mean(gold**2))
    return {
        "pearson": correlation(gold, predicted),
        "spearman": correlation(rankdata(gold), rankdata(predicted)),
        "rmse": float(std * rmse),
        "mean_rmse": float(std * mean_rmse),
    }


def constant_tasks(metrics):
    """The tasks of {task: metrics} for which one class was predicted for rows of several."""
    names = []
    for name, result in metrics.items():
        if "confusion" not in result:
            continue
        counts = np.array(result["confusion"])
        classes_in_gold = (counts.sum(1) > 0).sum()
        classes_predicted = (counts.sum(0) > 0).sum()
        if classes_predicted == 1 < classes_in_gold:
            names.append(name)
    return names
