"""How good it is: scores and calibration, of labels and logits as arrays.

N rows, C classes. It never knows a file or a model.
"""

import math

import numpy as np

# scikit-learn and SciPy are imported where they are used: prediction needs `softmax` alone, and starts sooner so.


def softmax(logits):
    """(..., C) -> the same, in float64."""
    p = np.exp(logits - logits.max(-1, keepdims=True), dtype=float)
    return p / p.sum(-1, keepdims=True)


def sigmoid(logits):
    """(N, C) -> the same, in float64: each class against none of it."""
    return softmax(two_classes(logits))[..., 1]


def two_classes(logits):
    """(..., C) logits of yes -> (..., C, 2), those of no and yes."""
    return np.stack([np.zeros_like(logits), logits], -1)


def label_array(task, given):
    """The labels of N rows, None where not labelled, as an array: (N,) int64 classes, -100 where not labelled, C for a
    label that the task does not have; (N,) float32 z-scores, NaN where not labelled; or, of several labels a text,
    (N, C + 1) float32 of 0 and 1, NaN where not labelled, the last column for labels that the task does not have."""
    if task.labels is None:
        return np.array([math.nan if x is None else (x - task.mean) / task.std for x in given], np.float32)
    index = {label: i for i, label in enumerate(task.labels)}
    if not task.several:
        return np.array([-100 if x is None else index.get(x, len(index)) for x in given], np.int64)
    array = np.full((len(given), len(index) + 1), math.nan, np.float32)
    for i, labels in enumerate(given):
        if labels is not None:
            array[i] = 0
            array[i, [index.get(label, len(index)) for label in labels]] = 1
    return array


def is_labelled(labels):
    """(N,) bool: which rows of a `label_array` have a label."""
    labels = labels[:, 0] if labels.ndim > 1 else labels
    return ~np.isnan(labels) if labels.dtype.kind == "f" else labels != -100


def calibration_error(p, gold, bins=15):
    """The expected calibration error of probabilities, (N, C): the mean distance of confidence and accuracy, over bins
    of equal width by confidence, weighted by their rows (Guo et al. 2017, arXiv:1706.04599, section 2)."""
    confidence, right = p.max(1), p.argmax(1) == gold
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(sum(abs((confidence - right)[bin_of == b].sum()) for b in range(bins)) / len(gold))


def calibrate(tasks, labels, logits):
    """Set each task's temperature to the one, of 0.05 to 20, under which its `labels` are likeliest, then `threshold`s.

    Its logarithm has a standard normal prior, without which a few rows that are all right would make it zero. Several
    labels a text are as many answers of two classes, yes and no, as there are labels.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import log_loss

    def loss(log_t, gold, output):
        cross_entropy = log_loss(gold, softmax(output / math.exp(log_t)), labels=range(output.shape[1]))
        return cross_entropy + log_t**2 / (2 * len(gold))

    bounds = math.log(0.05), math.log(20)
    for task, gold, output in labelled_rows((task for task in tasks if task.labels), labels, logits):
        if task.several:
            gold, output = yes_or_no(gold, output)
        known = gold < len(task.labels)
        if known.any():
            rows = gold[known], output[known]
            task.temperature = math.exp(minimize_scalar(loss, args=rows, bounds=bounds, method="bounded").x)
    choose_thresholds(tasks, labels, logits)


THRESHOLDS = sorted(np.arange(1, 20) / 20, key=lambda t: abs(t - 0.5))  # the nearest to 0.5 first


def choose_thresholds(tasks, labels, logits):
    """Set the threshold of each task of several labels a text to the one of THRESHOLDS with the highest macro-F1."""
    for task, gold, output in labelled_rows((task for task in tasks if task.several), labels, logits):
        p = sigmoid(output / task.temperature)
        task.threshold = float(max(THRESHOLDS, key=lambda t: f1(gold, p >= t, "macro")))


def yes_or_no(gold, output):
    """(N, C + 1) labels and (N, C) logits of several labels a text -> (N * C,) and (N * C, 2), of two classes."""
    return gold[:, :-1].astype(int).ravel(), two_classes(output).reshape(-1, 2)


def with_others(guess):
    """(N, C) answers of several labels a text -> (N, C + 1), as a `label_array`: the others are never answered."""
    return np.pad(guess, ((0, 0), (0, 1)))


def f1(gold, guess, average):
    """Of several labels a text, (N, C + 1) and (N, C), over the labels in either. All that the task does not have
    count as one, which is always missed."""
    from sklearn.metrics import f1_score

    guess = with_others(guess)
    found = np.flatnonzero(gold.any(0) | guess.any(0))
    return float(f1_score(gold, guess, labels=found, average=average, zero_division=0.0)) if len(found) else 0.0


def per_class(task, gold, guess):
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(gold, guess, labels=range(len(task.labels)), zero_division=0.0)
    names = ("precision", "recall", "f1", "rows")
    values = [dict(zip(names, some, strict=True)) for some in zip(*np.array(scores).tolist(), strict=True)]
    return dict(zip(map(str, task.labels), values, strict=True))


def labelled_rows(tasks, labels, logits):
    """Yield (task, gold, (n, C) logits) for each task, of the n rows labelled for it, where there are any."""
    for task in tasks:
        labelled = is_labelled(labels[task.name])
        if labelled.any():
            yield task, labels[task.name][labelled], logits[task.name][labelled]


def correlation(x, y):
    """Pearson's, and 0 where either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def evaluate(tasks, labels, logits):
    """{task: {metric: value}} over the rows labelled for the task; without any it is absent.

    `labels` is {task: a `label_array`}, `logits` {task: (N, C)}, C = 1 for a number.

    Classes: `accuracy`, `macro_f1`, `majority_accuracy` (of always answering the training rows' most frequent class),
    `ece` (`calibration_error`; `ece_uncalibrated`: without the temperature), `confusion` (row: gold, column: predicted)
    and `per_class`. Several labels a text: `macro_f1`, `micro_f1`, `exact_match`, `majority_micro_f1` (of always
    answering the one label that most training rows have), `ece` (of N * C answers, yes or no), `per_class`. Numbers:
    `pearson`, `spearman` (0 for constants), `rmse`, `mean_rmse` (of the training rows' mean).
    """
    from scipy.stats import rankdata
    from sklearn import metrics

    result = {}
    for task, gold, output in labelled_rows(tasks, labels, logits):
        if task.several:
            guess, usual = sigmoid(output / task.temperature) >= task.threshold, np.zeros(output.shape, bool)
            usual[:, np.argmax(task.counts)] = True
            binary, raw = yes_or_no(gold, output)
            result[task.name] = {
                "macro_f1": f1(gold, guess, "macro"),
                "micro_f1": f1(gold, guess, "micro"),
                "exact_match": float(metrics.accuracy_score(gold, with_others(guess))),
                "majority_micro_f1": f1(gold, usual, "micro"),
                "ece": calibration_error(softmax(raw / task.temperature), binary),
                "ece_uncalibrated": calibration_error(softmax(raw), binary),
                "per_class": per_class(task, gold, with_others(guess)),
            }
        elif task.labels:
            guess = output.argmax(1)
            confusion = np.zeros((len(task.labels) + 1, len(task.labels)), int)  # last: labels that it does not have
            np.add.at(confusion, (gold, guess), 1)
            result[task.name] = {
                "accuracy": float(metrics.accuracy_score(gold, guess)),
                "macro_f1": float(metrics.f1_score(gold, guess, average="macro", zero_division=0.0)),
                "majority_accuracy": float(np.mean(gold == np.argmax(task.counts))),
                "ece": calibration_error(softmax(output / task.temperature), gold),
                "ece_uncalibrated": calibration_error(softmax(output), gold),
                "confusion": confusion[:-1].tolist(),
                "per_class": per_class(task, gold, guess),
            }
        else:
            guess = output[:, 0]
            result[task.name] = {
                "pearson": correlation(gold, guess),
                "spearman": correlation(rankdata(gold), rankdata(guess)),
                "rmse": task.std * float(metrics.root_mean_squared_error(gold, guess)),
                "mean_rmse": task.std * float(metrics.root_mean_squared_error(gold, np.zeros_like(gold))),
            }
    return result


def score(metrics):
    """The one number of a task's metrics that epochs are chosen by."""
    return metrics["macro_f1"] if "macro_f1" in metrics else metrics["pearson"]


def one_answer(metrics):
    """The tasks for which all rows, of several classes, were given one class."""
    confusions = {name: np.array(result["confusion"]) for name, result in metrics.items() if "confusion" in result}
    return [name for name, counts in confusions.items() if (counts.sum(0) > 0).sum() == 1 < (counts.sum(1) > 0).sum()]
