"""Linear models on the encoder's pooled states, fitted by scikit-learn: where heads start from.

Every function takes the states as (N, D) and gives a weight (C, D) and a bias (C,), as nn.Linear
has them. Before the fit each dimension is divided by its root mean square, which penalises a weight
as much as dropout punishes it (Wager et al. 2013, arXiv:1307.1493): a dimension that is large and
nearly constant gets a small one. The weight and the bias are those for the states as they came.
"""

import warnings

import numpy as np

# Chosen among five and seven values, on training rows of four data sets.
INVERSE_REGULARIZATION = 1.0  # C of LogisticRegression
RIDGE_PENALTY = 0.3  # alpha of Ridge


class Scaling:
    """States minus their mean, each dimension divided by its root mean square times sqrt(D)."""

    def __init__(self, states):
        self.mean = states.mean(0)
        size = np.sqrt(np.square(states).mean(0))
        size = np.maximum(size, 1e-3 * size.max())  # what is always about zero tells nothing
        size[size == 0] = 1.0
        self.scale = size * np.sqrt(states.shape[1])
        self.states = (states - self.mean) / self.scale

    def undo(self, weight, bias):
        """Weight and bias for scaled states -> those for the states as they came."""
        weight = weight / self.scale
        return weight, bias - weight @ self.mean


def logistic_regression(states, numbers, class_weight):
    """scikit-learn's model of (N,) numbers of two classes or more."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=INVERSE_REGULARIZATION, class_weight=class_weight)
    with warnings.catch_warnings():
        # After 100 iterations it is a good start, whether it has converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(states, numbers)


def fit_classes(states, numbers, num_classes, balanced=False):
    """Logistic regression for (N,) numbers of classes.

    A class without a row has weights of zero, and a bias below that of all others.
    """
    weight = np.zeros((num_classes, states.shape[1]))
    bias = np.zeros(num_classes)
    present = np.unique(numbers)
    if len(present) < 2:
        return weight, bias
    scaling = Scaling(states)
    class_weight = "balanced" if balanced else None
    model = logistic_regression(scaling.states, numbers, class_weight)
    coefficients = model.coef_
    intercepts = model.intercept_
    if len(present) == 2:  # scikit-learn has one logit for two classes
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    bias[:] = intercepts.min() - 1.0
    weight[present] = coefficients
    bias[present] = intercepts
    return scaling.undo(weight, bias)


def fit_labels(states, labels, weights=None):
    """A logistic regression for each label, of an (N, C) array of 0 and 1.

    weights: how much a 1 of each label counts, where a 0 counts 1 (default: 1).
    """
    scaling = Scaling(states)
    num_labels = labels.shape[1]
    weight = np.zeros((num_labels, states.shape[1]))
    bias = np.zeros(num_labels)
    if weights is None:
        weights = np.ones(num_labels)
    for i in range(num_labels):
        numbers = labels[:, i]
        positives = numbers.sum()
        if 0 < positives < len(numbers):
            model = logistic_regression(scaling.states, numbers, {0: 1.0, 1: weights[i]})
            weight[i] = model.coef_[0]
            bias[i] = model.intercept_[0]
        else:  # all rows have it, or none has: what the frequencies say, with a row more of each
            bias[i] = np.log((positives + 1) / (len(numbers) - positives + 1))
    return scaling.undo(weight, bias)


def fit_numbers(states, numbers):
    """Ridge regression for (N,) numbers."""
    from sklearn.linear_model import Ridge

    scaling = Scaling(states)
    model = Ridge(alpha=RIDGE_PENALTY).fit(scaling.states, numbers)
    return scaling.undo(model.coef_[None], np.array([model.intercept_]))
