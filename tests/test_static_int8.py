"""The simulation of int8 with static scales."""

import sys

import numpy as np
import pytest
import torch
from conftest import MOOD, ROOT, make_rows

sys.path.insert(0, str(ROOT / "benchmarks"))

import static_int8


def relative_error(linear, inputs, percentage, alpha):
    rounded = static_int8.StaticLinear(linear, inputs, percentage, alpha)
    expected = linear(inputs)
    return ((rounded(inputs) - expected).norm() / expected.norm()).item()


@torch.no_grad()
def test_static_scales_round_to_8_bits_and_smoothing_saves_them_from_a_large_channel():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    inputs = torch.randn(500, 64)
    assert 0.001 < relative_error(linear, inputs, 100, 0) < 0.02
    assert relative_error(linear, inputs, 100, 0.5) < 0.02
    assert relative_error(linear, inputs, 90, 0) > 0.02  # what is not covered is cut off

    inputs[:, 3] *= 50
    linear.weight[:, 3] /= 50
    rough = relative_error(linear, inputs, 100, 0)
    assert rough > 0.1
    assert relative_error(linear, inputs, 100, 0.5) < rough / 5


def test_rows_without_a_label_count_for_nothing():
    logits = {"mood": np.array([[0, 1], [1, 0], [1, 0], [0, 1]], np.float32)}
    rows = make_rows({"mood": "good"}, {"mood": "good"}, {}, {})
    [entry] = static_int8.agreement(MOOD, rows, {static_int8.EXACT: logits}).values()
    assert entry["accuracy"] == pytest.approx(0.5)
    assert entry["rows"] == 2
