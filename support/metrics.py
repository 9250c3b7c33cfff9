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


# --------------------------------------------------------------------------------------------------
# Intervals

RESAMPLES = 1000
MOST_COUNTS = 1_000_000  # in memory at once


def intervals(answers, scores):
    """{metric: [low, high]}: a 95 % interval of each score, or None where there is none.

    answers: (N, K), the label and the prediction of each row. It is the bootstrap over rows: N rows
    are drawn with replacement, 1,000 times, with a fixed seed. How often each of the U answers that
    differ is drawn has a multinomial distribution, so that no row need be copied.

    scores(answers, counts) -> {metric: (B,) values} for (U, K) answers, and (B, U) counts of how
    often each was drawn. The interval is that of bias-corrected percentiles (Efron 1981).

    There is no interval where all resamples have the same score, where one of them has none (NaN),
    or where the score lies outside: in these cases the rows are too few to tell.
    """
    answers, counts = np.unique(answers, axis=0, return_counts=True)
    num_rows = counts.sum()
    rng = np.random.default_rng(0)
    batch_size = max(1, MOST_COUNTS // len(answers))
    batches = []
    for start in range(0, RESAMPLES, batch_size):
        size = min(batch_size, RESAMPLES - start)
        drawn = rng.multinomial(num_rows, counts / num_rows, size).astype(float)
        batches.append(scores(answers, drawn))
    result = {}
    for name, [score] in scores(answers, counts[None].astype(float)).items():
        resampled = np.concatenate([batch[name] for batch in batches])
        result[name] = interval(score, resampled)
    return result


def interval(score, resampled):
    """[low, high] of a score, from its values in resamples, (B,); or None. See `intervals`."""
    from scipy.special import ndtr, ndtri  # the normal distribution's function, and its inverse

    # Were the score their median, `bias` would be 0, and these the 2.5 and 97.5 percentiles.
    bias = ndtri(np.mean(resampled < score) + np.mean(resampled == score) / 2)
    shares = ndtr(2 * bias + ndtri([0.025, 0.975]))
    low, high = np.quantile(resampled, shares).tolist()
    if low < high and low <= score <= high:
        return [low, high]
    return None


def class_intervals(num_classes, gold, predicted):
    """Intervals of one class a row; arguments as of `class_metrics`."""

    def scores(answers, counts):
        one_hot = np.eye(num_classes + 1, dtype=bool)
        found = label_scores(one_hot[answers[:, 0]], one_hot[answers[:, 1]], counts)
        return {"accuracy": found["exact_match"], "macro_f1": found["macro_f1"]}

    return intervals(np.stack([gold, predicted], axis=1), scores)


def multi_label_intervals(gold, predicted):
    """Intervals of any number of labels a row; arguments as of `multi_label_f1`."""

    def scores(answers, counts):
        gold, predicted = np.split(answers, 2, axis=1)
        return label_scores(gold, predicted, counts)

    return intervals(np.hstack([gold.astype(bool), with_unknown(predicted)]), scores)


def label_scores(gold, predicted, counts):
    """{metric: (B,)} of (U, C) bool labels and predictions that were drawn (B, U) counts times."""
    found = counts @ (gold & predicted).astype(float)  # (B, C), how often each label is right
    occur = counts @ gold.astype(float) + counts @ predicted.astype(float)
    f1 = 2 * found / np.maximum(occur, 1)
    num_labels = (occur > 0).sum(1)
    right = (gold == predicted).all(1).astype(float)
    return {
        "macro_f1": f1.sum(1) / np.maximum(num_labels, 1),
        "micro_f1": 2 * found.sum(1) / np.maximum(occur.sum(1), 1),
        "exact_match": counts @ right / counts.sum(1),
    }


def number_intervals(gold, predicted, std):
    """Intervals of numbers; arguments as of `number_metrics`."""

    def scores(answers, counts):
        gold, predicted = answers.T

        def mean(values):
            return counts @ values / counts.sum(1)

        return {
            "pearson": correlations(gold, predicted, mean),
            "rmse": std * np.sqrt(mean((gold - predicted) ** 2)),
        }

    return intervals(np.stack([gold, predicted], axis=1).astype(float), scores)


def correlations(x, y, mean):
    """Pearson's correlation of (U,) x and y in B resamples; NaN where either is constant.

    `mean` gives the (B,) means of (U,) values in the resamples.
    """
    x = x - x.mean()
    y = y - y.mean()
    variance_x = mean(x**2) - mean(x) ** 2
    variance_y = mean(y**2) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    # Sums are rounded: the variance of a constant is not exactly zero.
    varies = (variance_x > 1e-9 * np.mean(x**2)) & (variance_y > 1e-9 * np.mean(y**2))
    result = np.full(len(varies), math.nan)
    result[varies] = covariance[varies] / np.sqrt(variance_x[varies] * variance_y[varies])
    return result


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
