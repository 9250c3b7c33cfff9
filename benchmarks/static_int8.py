"""How many labels would stay as they are if int8 had fixed scales in place of one for each token.

python benchmarks/static_int8.py --model RUN ... --val FILE ... --test FILE ...

support/cpu.py scales each token by its largest value, which has to be found first. Fixed ("static")
scales need no search. What they do to labels is simulated here, in float32: inputs and weights of
all linear layers are rounded to 8 bits, products are exact. A scale covers a percentage of the
values that 300 rows of --val have. Inputs may be divided channel by channel by what their weights
are multiplied with, so that a single large channel does not spread the scale (SmoothQuant, Xiao et
al. 2022, arXiv:2211.10438). The best setting is chosen on other rows of --val, and measured on
--test. Only tasks with one class a row count.
"""

import sys
from collections import defaultdict
from pathlib import Path

import contenders  # before torch: it sets the environment
import numpy as np
import torch
import torch.nn as nn
from speed import read_labelled

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mtbert
from support import cpu
from support.errors import InputError
from support.script import Parser, number, run_script

# (how many of the values a scale covers in %, SmoothQuant's alpha; 0: no smoothing)
SETTINGS = ((100, 0), (99.99, 0), (100, 0.5), (100, 0.7), (99.99, 0.7))


class StaticLinear(nn.Module):
    """An nn.Linear whose inputs and weights are rounded to 8 bits, with scales that are fixed.

    inputs: (N, D) float32, what the scales are fitted to. As on a CPU, inputs become bytes
    from 0 to 255, weights whole numbers from -127 to 127 with a scale for each output.
    """

    def __init__(self, linear, inputs, percentage, alpha):
        super().__init__()
        weight = linear.weight.detach()  # (outputs, D)
        self.channels = torch.ones(inputs.shape[1])
        if alpha > 0:
            of_inputs = inputs.abs().amax(0).clamp_min(cpu.TINY)
            of_weights = weight.abs().amax(0).clamp_min(cpu.TINY)
            self.channels = of_inputs**alpha / of_weights ** (1 - alpha)
        weight = weight * self.channels
        scale = weight.abs().amax(1, keepdim=True).clamp_min(cpu.TINY) / 127
        self.weight = (weight / scale).round() * scale
        self.bias = linear.bias.detach()

        rest = (100 - percentage) / 2
        values = (inputs / self.channels).numpy()
        lowest, highest = np.percentile(values, [rest, 100 - rest])
        lowest = min(lowest, 0.0)
        highest = max(highest, 0.0)
        self.scale = max((highest - lowest) / 255, cpu.TINY)
        self.zero_point = round(-lowest / self.scale)

    def forward(self, x):
        quantized = (x / self.channels / self.scale + self.zero_point).round().clamp(0, 255)
        rounded = (quantized - self.zero_point) * self.scale
        return nn.functional.linear(rounded, self.weight, self.bias)


def linear_layers(model):
    """[(the module that has it, its name, the nn.Linear)] of all layers of the encoder."""
    found = []
    for layer in model.encoder.layers:
        for name, module in layer.named_children():
            if type(module) is nn.Linear:
                found.append((layer, name, module))
    return found


def record_inputs(model, linears, rows):
    """What each linear layer reads when the rows are predicted: a list of (N, D) float32."""
    recorded = [[] for _ in linears]
    handles = []
    for (_, _, linear), parts in zip(linears, recorded, strict=True):

        def keep(module, arguments, parts=parts):
            parts.append(arguments[0].flatten(0, -2).clone())

        handles.append(linear.register_forward_pre_hook(keep))
    for row in rows:  # alone, so that no scale is fitted to padding
        predict_labels(model, [row])
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in recorded]


def classifications(model):
    return [task for task in model.tasks if isinstance(task, mtbert.Classification)]


def predict_labels(model, rows):
    """{task: the label of each row}"""
    data = mtbert.encode(model.tokenizer, rows, max_length=model.max_length)
    logits = mtbert.compute_logits(model, data)
    labels = {}
    for task in classifications(model):
        predictions = task.predictions(logits[task.name])
        labels[task.name] = [prediction["label"] for prediction in predictions]
    return labels


def share_equal(labels, others):
    """{task: share of equal labels in %, of the rows where the others have one}"""
    shares = {}
    for name in labels:
        equal = []
        for label, other in zip(labels[name], others[name], strict=True):
            if other is not None:
                equal.append(label == other)
        shares[name] = 100 * float(np.mean(equal))
    return shares


def draw(rows, most):
    """At most so many of the rows, at random; the same ones in each call."""
    order = np.random.default_rng(1).permutation(len(rows))
    return [rows[i] for i in order[:most]]


class Model:
    """A run with the rows to measure, what its layers read, and its labels in float32."""

    def __init__(self, folder, val_files, test_files, most):
        self.model = mtbert.load(folder, "cpu", trainable=True)
        self.linears = linear_layers(self.model)
        test = read_labelled(self.model, test_files)
        val = contenders.not_among(read_labelled(self.model, val_files), test)
        calibration = contenders.draw_calibration(val)
        self.rows = {
            "validation": draw(contenders.not_among(val, calibration), most),
            "test": draw(test, most),
        }
        if not self.rows["validation"]:
            raise InputError("--val has no row to choose by that no scale is fitted to")
        self.inputs = record_inputs(self.model, self.linears, calibration)
        self.exact = {}
        for split, rows in self.rows.items():
            self.exact[split] = predict_labels(self.model, rows)

    def static(self, setting, split):
        """Labels with static scales."""

        def make(i, linear):
            return StaticLinear(linear, self.inputs[i], *setting)

        return self.predict_with(make, split)

    def by_token(self, split):
        """Labels in support/cpu.py's int8."""
        return self.predict_with(lambda _, linear: cpu.Int8Linear(linear), split)

    def predict_with(self, make, split):
        """Labels with make(i, linear) in place of each linear layer."""
        for i, (layer, name, linear) in enumerate(self.linears):
            setattr(layer, name, make(i, linear))
        labels = predict_labels(self.model, self.rows[split])
        for layer, name, linear in self.linears:
            setattr(layer, name, linear)
        return labels

    def true_labels(self, split):
        labels = {}
        for task in classifications(self.model):
            labels[task.name] = [row.labels.get(task.name) for row in self.rows[split]]
        return labels


def parse_args():
    parser = Parser(description="Labels of int8 with static scales, simulated.", allow_abbrev=False)
    flag = parser.add_argument
    files = {"nargs": "+", "required": True, "metavar": "FILE"}
    flag("--model", nargs="+", required=True, metavar="FOLDER", help="runs of train.py")
    flag("--val", **files, help="rows to fit scales to and to choose by")
    flag("--test", **files, help="rows to measure")
    flag("--rows", type=number(int, 1), metavar="N", help="at most so many of each (default: all)")
    return parser.parse_args()


def main():
    args = parse_args()
    scores = defaultdict(list)  # setting -> the share of equal labels of each model
    models = []
    for folder in args.model:
        model = Model(folder, args.val, args.test, args.rows)
        for setting in SETTINGS:
            shares = share_equal(model.static(setting, "validation"), model.exact["validation"])
            scores[setting].append(np.mean(list(shares.values())))
            print(f"{folder} validation, {setting}: {scores[setting][-1]:.2f} %", flush=True)
        models.append(model)
    best = max(scores, key=lambda setting: np.mean(scores[setting]))
    print(f"chosen: scales cover {best[0]} % of the values, alpha {best[1]}", flush=True)

    found = defaultdict(list)  # (task, what it is) -> its value for each model
    for model in models:
        exact = model.exact["test"]
        truth = model.true_labels("test")
        before = share_equal(exact, truth)
        ways = {"a scale for each token": model.by_token("test")}
        ways["static scales"] = model.static(best, "test")
        for way, labels in ways.items():
            after = share_equal(labels, truth)
            for name, share in share_equal(labels, exact).items():
                found[name, f"{way}: labels as in float32"].append(share)
                found[name, f"{way}: accuracy minus float32's"].append(after[name] - before[name])
    for (name, what), values in found.items():
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:12}{what:52}{np.mean(values):8.2f}   {each}")


if __name__ == "__main__":
    run_script(main)
