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
from speed import agreement, read_labelled

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mtbert
from support import cpu
from support.errors import InputError
from support.script import Parser, number, run_script

EXACT = "mtbert, float32"  # what speed.agreement compares with
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
        compute_logits(model, [row])
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in recorded]


def compute_logits(model, rows):
    """{task: (N, C) logits}"""
    data = mtbert.encode(model.tokenizer, rows, max_length=model.max_length)
    return mtbert.compute_logits(model, data)


class Model:
    """A run with the rows to measure, what its layers read, and its logits in float32."""

    def __init__(self, folder, val_files, test_files, most):
        self.model = mtbert.load(folder, "cpu", trainable=True)
        self.linears = linear_layers(self.model)
        test = read_labelled(self.model, test_files)
        val = contenders.not_among(read_labelled(self.model, val_files), test)
        calibration = contenders.draw_calibration(val)
        self.rows = {
            "validation": contenders.draw(contenders.not_among(val, calibration), most, seed=1),
            "test": contenders.draw(test, most, seed=1),
        }
        if not self.rows["validation"]:
            raise InputError("--val has no row to choose by that no scale is fitted to")
        self.inputs = record_inputs(self.model, self.linears, calibration)
        self.exact = {}
        for split, rows in self.rows.items():
            self.exact[split] = compute_logits(self.model, rows)

    def static(self, setting, split):
        """Logits with static scales."""

        def make(i, linear):
            return StaticLinear(linear, self.inputs[i], *setting)

        return self.compute_with(make, split)

    def by_token(self, split):
        """Logits in support/cpu.py's int8."""
        return self.compute_with(lambda _, linear: cpu.Int8Linear(linear), split)

    def compute_with(self, make, split):
        """Logits with make(i, linear) in place of each linear layer."""
        for i, (layer, name, linear) in enumerate(self.linears):
            setattr(layer, name, make(i, linear))
        logits = compute_logits(self.model, self.rows[split])
        for layer, name, linear in self.linears:
            setattr(layer, name, linear)
        return logits

    def agreement(self, logits, split):
        """{task: speed.agreement's entries of {name: logits}}, of tasks with one class a row."""
        found = {}
        for task in self.model.tasks:
            entries = agreement(task, self.rows[split], {EXACT: self.exact[split]} | logits)
            if entries:
                found[task.name] = entries
        return found


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
            static = {"static": model.static(setting, "validation")}
            shares = []
            for entries in model.agreement(static, "validation").values():
                shares.append(100 * entries["static"]["same_as_float32"])
            scores[setting].append(np.mean(shares))
            print(f"{folder} validation, {setting}: {scores[setting][-1]:.2f} %", flush=True)
        models.append(model)
    best = max(scores, key=lambda setting: np.mean(scores[setting]))
    print(f"chosen: scales cover {best[0]} % of the values, alpha {best[1]}", flush=True)

    found = defaultdict(list)  # (task, what it is) -> its value for each model
    for model in models:
        logits = {"a scale for each token": model.by_token("test")}
        logits["static scales"] = model.static(best, "test")
        for name, entries in model.agreement(logits, "test").items():
            for way in logits:
                same = 100 * entries[way]["same_as_float32"]
                change = 100 * (entries[way]["accuracy"] - entries[EXACT]["accuracy"])
                found[name, f"{way}: labels as in float32"].append(same)
                found[name, f"{way}: accuracy minus float32's"].append(change)
    for (name, what), values in found.items():
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:12}{what:52}{np.mean(values):8.2f}   {each}")


if __name__ == "__main__":
    run_script(main)
