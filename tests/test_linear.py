"""Properties of support/linear.py: the fits that heads start from."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import mtbert
from support import linear


def states_and_classes(num_classes):
    """200 states of 6 dimensions, and classes that they tell apart in part."""
    rng = np.random.default_rng(0)
    states = rng.normal(3.0, 2.0, (200, 6))
    return states, (states[:, :num_classes] + rng.normal(0, 2, (200, num_classes))).argmax(1)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_logits_are_those_of_a_logistic_regression(num_classes, balanced):
    states, classes = states_and_classes(num_classes)
    weight, bias = linear.fit_classes(states, classes, num_classes, balanced)
    assert weight.shape == (num_classes, 6) and bias.shape == (num_classes,)

    scaled = (states - states.mean(0)) / np.sqrt((states**2).mean(0) * 6)
    theirs = LogisticRegression(C=1.0, class_weight="balanced" if balanced else None)
    theirs.fit(scaled, classes)
    p = softmax(states @ weight.T + bias)
    assert np.allclose(p, theirs.predict_proba(scaled), atol=1e-6)
    assert (p.argmax(1) == classes).mean() > 0.6


def test_larger_states_give_the_same_fit():
    states, classes = states_and_classes(3)
    labels = np.eye(3)[classes]
    numbers = states[:, 0] - classes
    fits = [
        lambda states: linear.fit_classes(states, classes, 3),
        lambda states: linear.fit_labels(states, labels),
        lambda states: linear.fit_numbers(states, numbers),
    ]
    for fit in fits:
        weight, bias = fit(states)
        larger_weight, larger_bias = fit(states * 50)
        outputs = states @ weight.T + bias
        assert np.allclose(outputs, states * 50 @ larger_weight.T + larger_bias, atol=1e-3)


def test_dropout_of_a_large_and_nearly_constant_dimension_does_little_harm():
    """As encoders have them: without the scaling its weight would be large, and dropout noisy."""
    states, classes = states_and_classes(2)
    states[:, 5] = 300 + (classes - 0.5) / 10
    weight, bias = linear.fit_classes(states, classes, 2)
    kept = np.random.default_rng(1).random(states.shape) > 0.1
    noisy = states * kept / 0.9 @ weight.T + bias
    losses = -np.log(softmax(noisy)[np.arange(200), classes])
    assert losses.mean() < np.log(2)
    states[:, 5] = 0.0  # and one that is always zero gives no NaN
    assert np.isfinite(linear.fit_classes(states, classes, 2)[0]).all()


def test_a_class_without_a_row_is_the_least_likely():
    states, classes = states_and_classes(3)
    classes[classes == 1] = 3
    weight, bias = linear.fit_classes(states, classes, 5)
    logits = states @ weight.T + bias
    at_mean = states.mean(0) @ weight.T + bias
    assert at_mean[[1, 4]].max() < at_mean[[0, 2, 3]].min()
    assert set(logits.argmax(1)) == {0, 2, 3}


def test_a_single_class_or_row_gives_no_nan():
    states, _ = states_and_classes(2)
    for rows in (states[:1], states):
        weight, bias = linear.fit_classes(rows, np.zeros(len(rows), int), 2)
        assert not weight.any() and not bias.any()
    weight, bias = linear.fit_numbers(states[:1], np.array([2.0]))
    assert np.allclose(states[:1] @ weight.T + bias, 2.0)


def test_labels_that_all_rows_have_or_none_has_follow_their_frequency():
    states, classes = states_and_classes(2)
    labels = np.stack([np.ones(200), np.zeros(200), classes], axis=1)
    weight, bias = linear.fit_labels(states, labels)
    p = 1 / (1 + np.exp(-(states @ weight.T + bias)))
    assert np.allclose(p[:, 0], 201 / 202) and np.allclose(p[:, 1], 1 / 202)
    assert ((p[:, 2] > 0.5) == classes).mean() > 0.7


def test_the_weight_of_a_label_makes_it_likelier_and_changes_no_other():
    states, classes = states_and_classes(2)
    labels = np.stack([classes, 1 - classes], axis=1).astype(np.float32)
    weight, bias = linear.fit_labels(states, labels)
    for balanced in (False, True):  # both labels have 100 rows, so both weights are 1
        task = mtbert.MultiLabel("tags", ["a", "b"], [100, 100], {})
        found = task.linear_fit(states, np.concatenate([labels, labels[:, :1]], axis=1), balanced)
        assert np.allclose(found[0], weight) and np.allclose(found[1], bias)
    heavier_weight, heavier_bias = linear.fit_labels(states, labels, [4.0, 1.0])
    before = states @ weight.T + bias
    after = states @ heavier_weight.T + heavier_bias
    assert (after[:, 0] > before[:, 0]).all() and np.allclose(after[:, 1], before[:, 1])


def test_numbers_are_fitted_by_ridge_regression():
    states, _ = states_and_classes(2)
    numbers = states @ np.array([1.0, -2.0, 0.5, 0.0, 0.0, 0.0]) + 4
    weight, bias = linear.fit_numbers(states, numbers)
    assert weight.shape == (1, 6) and bias.shape == (1,)
    assert np.corrcoef((states @ weight.T + bias)[:, 0], numbers)[0, 1] > 0.999
