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


def calibration_error(p, gold, bins=15):
    """The expected calibration error of probabilities, (N, C): the mean distance of confidence and accuracy, over bins
    of equal width by confidence, weighted by their rows (Guo et al. 2017, arXiv:1706.04599, section 2)."""
    confidence, right = p.max(1), p.argmax(1) == gold
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(sum(abs((confidence - right)[bin_of == b].sum()) for b in range(bins)) / len(gold))


def calibrate(tasks, labels, logits):
    """Set each task's temperature to the one, of 0.05 to 20, under which its `labels` are likeliest.

    Its logarithm has a standard normal prior, without which a few rows that are all right would make it zero.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import log_loss

    def loss(log_t, gold, output):
        cross_entropy = log_loss(gold, softmax(output / math.exp(log_t)), labels=range(output.shape[1]))
        return cross_entropy + log_t**2 / (2 * len(gold))

    bounds = math.log(0.05), math.log(20)
    for task, gold, output in labelled_rows((task for task in tasks if task.labels), labels, logits):
        known = gold < len(task.labels)
        if known.any():
            rows = gold[known], output[known]
            task.temperature = math.exp(minimize_scalar(loss, args=rows, bounds=bounds, method="bounded").x)


def labelled_rows(tasks, labels, logits):
    """Yield (task, gold, (n, C) logits) for each task, of the n rows labelled for it, where there are any."""
    for task in tasks:
        gold = labels[task.name]
        labelled = gold != -100 if task.labels else ~np.isnan(gold)
        if labelled.any():
            yield task, gold[labelled], logits[task.name][labelled]


def correlation(x, y):
    """Pearson's, and 0 where either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def evaluate(tasks, labels, logits):
    """{task: {metric: value}} over the rows labelled for the task; without any it is absent.

    `labels` is {task: (N,)}: int64 classes, -100 where not labelled, C for a label that the task does not have; or
    float32 z-scores, NaN where not labelled. `logits` is {task: (N, C)}, C = 1 for a number.

    Classes: `accuracy`, `macro_f1`, `majority_accuracy` (of always answering the training rows' most frequent class),
    `ece` (`calibration_error`; `ece_uncalibrated`: without the temperature), `confusion` (row: gold, column: predicted)
    and `per_class`. Numbers: `pearson`, `spearman` (0 for constants), `rmse`, `mean_rmse` (of the training rows' mean).
    """
    from scipy.stats import rankdata
    from sklearn import metrics

    result = {}
    for task, gold, output in labelled_rows(tasks, labels, logits):
        if task.labels:
            guess, classes = output.argmax(1), range(len(task.labels))
            scores = metrics.precision_recall_fscore_support(gold, guess, labels=classes, zero_division=0.0)
            confusion = np.zeros((len(classes) + 1, len(classes)), int)  # last: labels that it does not have
            np.add.at(confusion, (gold, guess), 1)
            per_class = zip(*np.array(scores).tolist(), strict=True)
            result[task.name] = {
                "accuracy": float(metrics.accuracy_score(gold, guess)),
                "macro_f1": float(metrics.f1_score(gold, guess, average="macro", zero_division=0.0)),
                "majority_accuracy": float(np.mean(gold == np.argmax(task.counts))),
                "ece": calibration_error(softmax(output / task.temperature), gold),
                "ece_uncalibrated": calibration_error(softmax(output), gold),
                "confusion": confusion[:-1].tolist(),
                "per_class": {
                    str(label): dict(zip(("precision", "recall", "f1", "rows"), values, strict=True))
                    for label, values in zip(task.labels, per_class, strict=True)
                },
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
