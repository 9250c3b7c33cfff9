"""How many labels would stay as they are if int8 had fixed scales in place of one for each token.

python benchmarks/static_int8.py --model RUN ... --val FILE ... --test FILE ...

support/cpu.py scales each token by its largest value, which takes a pass over all of them. With
fixed ("static") scales there is none. What they do to labels is simulated here, in float32: inputs
and weights of all linear layers are rounded to 8 bits, products are exact. A scale covers all but a
share of the values that 300 rows of --val have. Inputs may be divided channel by channel by what
their weights are multiplied with, so that a single large channel does not spread the scale
(SmoothQuant, Xiao et al. 2022, arXiv:2211.10438). The best way is chosen on other rows of --val,
and measured on --test. Only tasks with one class a row count.
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
from support.script import Parser, number, run_script

# (the share of values that a scale covers in %, the power of the inputs in the smoothing)
WAYS = ((100, 0), (99.99, 0), (100, 0.5), (100, 0.7), (99.99, 0.7))


class StaticLinear(nn.Module):
    """An nn.Linear whose inputs and weights are rounded to 8 bits, with scales that are fixed.

    inputs: (N, D) float32, what the scales are fitted to. As on a processor, inputs become bytes
    from 0 to 255, weights whole numbers from -127 to 127 with a scale for each output.
    """

    def __init__(self, linear, inputs, covered, power):
        super().__init__()
        weight = linear.weight.detach()  # (outputs, D)
        self.channels = torch.ones(inputs.shape[1])
        if power > 0:
            of_inputs = inputs.abs().amax(0).clamp_min(cpu.TINY)
            of_weights = weight.abs().amax(0).clamp_min(cpu.TINY)
            self.channels = of_inputs**power / of_weights ** (1 - power)
        weight = weight * self.channels
        scale = weight.abs().amax(1, keepdim=True).clamp_min(cpu.TINY) / 127
        self.weight = (weight / scale).round() * scale
        self.bias = linear.bias.detach()

        rest = (100 - covered) / 2
        values = (inputs / self.channels).numpy()
        lowest, highest = np.percentile(values, [rest, 100 - rest])
        lowest = min(lowest, 0.0)
        highest = max(highest, 0.0)
        self.scale = max((highest - lowest) / 255, cpu.TINY)
        self.zero = round(-lowest / self.scale)

    def forward(self, x):
        steps = (x / self.channels / self.scale + self.zero).round().clamp(0, 255)
        return nn.functional.linear((steps - self.zero) * self.scale, self.weight, self.bias)


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
        predict(model, [row])
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in recorded]


def classifications(model):
    return [task for task in model.tasks if isinstance(task, mtbert.Classification)]


def predict(model, rows):
    """{task: predicted labels}"""
    data = mtbert.encode(model.tokenizer, rows, max_length=model.max_length)
    logits = mtbert.compute_logits(model, data)
    labels = {}
    for task in classifications(model):
        predictions = task.predictions(logits[task.name])
        labels[task.name] = [prediction["label"] for prediction in predictions]
    return labels


def predict_with(model, linears, make, rows):
    """`predict` with make(i, linear) in place of each linear layer."""
    for i, (layer, name, linear) in enumerate(linears):
        setattr(layer, name, make(i, linear))
    labels = predict(model, rows)
    for layer, name, linear in linears:
        setattr(layer, name, linear)
    return labels


def share_equal(labels, others):
    """{task: share of equal labels in %}"""
    shares = {}
    for name in labels:
        equal = [one == other for one, other in zip(labels[name], others[name], strict=True)]
        shares[name] = 100 * float(np.mean(equal))
    return shares


def true_labels(model, rows):
    labels = {}
    for task in classifications(model):
        labels[task.name] = [row.labels.get(task.name) for row in rows]
    return labels


class Model:
    """A run, what its layers read of the calibration rows, and its labels in float32."""

    def __init__(self, folder, val_files, test_files, most):
        self.model = mtbert.load(folder, "cpu", trainable=True)
        self.linears = linear_layers(self.model)
        self.test = read_labelled(self.model, test_files)[:most]
        rows = read_labelled(self.model, val_files)
        calibration = contenders.draw_calibration(rows)
        self.validation = contenders.not_among(rows, calibration)[:most]
        self.inputs = record_inputs(self.model, self.linears, calibration)

    def predict_static(self, way, rows):
        def make(i, linear):
            return StaticLinear(linear, self.inputs[i], *way)

        return predict_with(self.model, self.linears, make, rows)

    def agreement(self, way):
        """On validation rows, the mean over tasks."""
        exact = predict(self.model, self.validation)
        static = self.predict_static(way, self.validation)
        return float(np.mean(list(share_equal(static, exact).values())))


def parse_args():
    parser = Parser(description="Labels of int8 with static scales, simulated.", allow_abbrev=False)
    flag = parser.add_argument
    flag("--model", nargs="+", required=True, metavar="FOLDER", help="runs of train.py")
    flag("--val", nargs="+", required=True, metavar="FILE", help="rows that were not learned")
    flag("--test", nargs="+", required=True, metavar="FILE", help="rows to measure")
    flag("--rows", type=number(int, 1), default=1000, help="at most so many of each")
    return parser.parse_args()


def main():
    args = parse_args()
    scores = defaultdict(list)  # way -> the agreement of each model
    models = []
    for folder in args.model:
        model = Model(folder, args.val, args.test, args.rows)
        for way in WAYS:
            scores[way].append(model.agreement(way))
            print(f"{folder} validation, {way}: {scores[way][-1]:.2f} %", flush=True)
        models.append(model)
    best = max(scores, key=lambda way: np.mean(scores[way]))
    print(f"chosen: {best[0]} % of the values, smoothing {best[1]}", flush=True)

    found = defaultdict(list)  # (task, name of a number) -> its value for each model
    for model in models:
        exact = predict(model.model, model.test)
        by_token = predict_with(
            model.model, model.linears, lambda _, linear: cpu.Int8Linear(linear), model.test
        )
        static = model.predict_static(best, model.test)
        truth = true_labels(model.model, model.test)
        for words, labels in (("a scale for each token", by_token), ("static", static)):
            accuracy = share_equal(labels, truth)
            former = share_equal(exact, truth)
            for name, share in share_equal(labels, exact).items():
                found[name, f"{words}: labels as in float32"].append(share)
                change = accuracy[name] - former[name]
                found[name, f"{words}: accuracy minus that of float32"].append(change)
    for (name, words), values in found.items():
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:12}{words:52}{np.mean(values):8.2f}   {each}")


if __name__ == "__main__":
    run_script(main)
