"""mtbert: multi-task BERT. One pass of one encoder, and a prediction for each task.

    python train.py --variant shared           # learn all tasks of sample_data.json
    python predict.py "great movie"            # one pass of the encoder, one prediction per task

    model = mtbert.load("runs/shared-1")       # the same from Python
    mtbert.predict(model, ["great movie"])

Read it from top to bottom: tasks, batches, encoder, heads, variants, teachers, training,
prediction, save and load. How files are read, how a run is kept, and what makes a CPU faster stands
in support/.

Shapes: B examples, T tokens, D hidden size, H heads of attention, C classes, N rows of a data set.
"""

import math
import sys
from array import array
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn as nn
import torch.nn.functional as F

from support import bounds, cpu, former, huggingface, linear, metrics, processes, report, runs
from support.columns import Column, each, rows_of_texts
from support.errors import Diverged, InputError, input_errors, listed, printable
from support.huggingface import EncoderConfig, TransformersEncoder
from support.script import note

# --------------------------------------------------------------------------------------------------
# Tasks. A kind of task is a class. All have the same methods, so that the rest of the code never
# asks for the kind. Tasks are made from columns of labels (support/columns.py).


@dataclass
class Classification:
    """One of C classes a text: a softmax over C logits, and cross-entropy."""

    name: str
    labels: list  # all str or all int, in the order of the logits
    counts: list  # the training rows of each class
    label_names: dict  # str(label) -> a name for people
    temperature: float = 1.0  # divides the logits before the softmax

    kind = "classification"
    fitted = ("temperature",)  # the fields that are fitted on validation rows

    @classmethod
    def from_column(cls, column):
        return cls(column.name, column.labels, column.counts, column.label_names)

    def column(self):
        """How labels of this task are read from files."""
        return column_of_labels(self)

    def check(self):
        """Raise ValueError, KeyError or TypeError for what cannot be a task."""
        check_labels(self)
        check_number(self.temperature, low=0.0)

    @property
    def num_logits(self):
        return len(self.labels)

    def to_array(self, labels):
        """A list of labels, None where there is none -> (N,) int64 numbers of classes.

        No label is NO_CLASS; a label that no training row has is C.
        """
        number_of = {label: number for number, label in enumerate(self.labels)}
        numbers = np.full(len(labels), NO_CLASS, np.int64)
        for i, label in enumerate(labels):
            if label is not None:
                numbers[i] = number_of.get(label, len(self.labels))
        return numbers

    def soft_array(self, labels, soft):
        """As `to_array`, with probabilities: lists of N labels and of N soft labels -> (N, C).

        A soft label is {label: probability}, or None: then the label has all of it. What no
        training row has is left out, and the rest sums to 1. A row of which nothing is left is NaN.
        """
        number_of = {label: number for number, label in enumerate(self.labels)}
        p = np.zeros((len(labels), len(self.labels)), np.float32)
        for i, label in enumerate(labels):
            found = soft[i]
            if found is None:
                found = {label: 1.0}
            for part, probability in found.items():
                if part in number_of:
                    p[i, number_of[part]] = probability
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
            return p / p.sum(1, keepdims=True)

    def loss(self, logits, labels, balanced=False):
        """The sum of the cross-entropy over the labelled rows, of (B, C) logits.

        labels: (B,) numbers of classes, or (B, C) probabilities; then a row weighs, if `balanced`,
        as its likeliest class.
        """
        weight = balanced_weights(self.counts, logits) if balanced else None
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, weight, ignore_index=NO_CLASS, reduction="sum")
        p = labels.nan_to_num()  # a row without a label adds 0
        losses = F.cross_entropy(logits, p, reduction="none")  # (B,)
        if balanced:
            losses = losses * weight[p.argmax(1)]
        return losses.sum()

    def probabilities(self, logits, temperature):
        """(N, C) logits -> (N, C) probabilities."""
        return metrics.softmax(logits / temperature)

    def calibrate(self, labels, logits):
        """Fit the temperature on the (N,) labels and (N, C) logits of validation rows."""
        known = labels < len(self.labels)
        if known.any():

            def probabilities(temperature):
                return self.probabilities(logits[known], temperature)

            self.temperature = metrics.fit_temperature(probabilities, labels[known])

    def metrics(self, labels, logits):
        """{metric: value}; docs/runs.md says what each of them is."""
        p = self.probabilities(logits, self.temperature)
        names = [str(label) for label in self.labels]
        result = metrics.class_metrics(names, self.counts, labels, p.argmax(1))
        uncalibrated = self.probabilities(logits, 1.0)
        return result | metrics.calibration_metrics(p, uncalibrated, labels)

    def intervals(self, labels, logits):
        """{metric: [low, high] or None}: 95 % intervals over rows of some of the `metrics`."""
        predicted = self.probabilities(logits, self.temperature).argmax(1)
        return metrics.class_intervals(len(self.labels), labels, predicted)

    def selection_score(self, result):
        """The one number of `metrics` that the best epoch is chosen by."""
        return result["macro_f1"]

    def predictions(self, logits):
        """A prediction, a dict, for each of N rows of logits."""
        result = []
        for p in self.probabilities(logits, self.temperature).tolist():
            best = int(np.argmax(p))
            label = self.labels[best]
            result.append(
                {
                    "label": label,
                    "name": self.label_names[str(label)],
                    "probability": p[best],
                    "probabilities": dict(zip(self.labels, p, strict=True)),
                }
            )
        return result

    def linear_fit(self, states, labels, balanced=False):
        """The head that a linear fit to (N, D) states and (N,) labels gives, none of them missing.

        -> weight (C, D), bias (C,); or None for a kind that has no such fit.
        """
        return linear.fit_classes(states, labels, len(self.labels), balanced)

    def copy_head(self, head, former_task, former_head):
        """Let `head` start from that of a task of the same name.

        -> a list of the labels for which there is nothing to start from; None where none fits.
        """
        return copy_linear(self, head, former_task, former_head)

    # What tables show of it

    def summary(self):
        return f"{len(self.labels)} classes"

    def typical(self, num_labelled):
        """The share of the labelled training rows that have the most frequent class."""
        return f"{max(self.counts) / num_labelled:.3f}"

    def describe_label(self, label):
        return self.label_names.get(str(label), str(label))

    def describe(self, prediction, names_only=False):
        name = prediction["name"]
        if not names_only:
            name = report.name_class(prediction["label"], name)
        return report.guess(name, prediction["probability"])

    def is_wrong(self, label, prediction):
        return label != prediction["label"]

    def bars(self, prediction):
        """The three likeliest classes: [(name, probability)]."""
        ranked = sorted(prediction["probabilities"].items(), key=lambda item: -item[1])
        bars = []
        for i, (label, p) in enumerate(ranked[:3]):
            name = self.label_names[str(label)]
            if i == 0:
                name += report.guess_mark(p)
            bars.append((name, p))
        return bars

    def table_columns(self, separator):
        """What follows the task's name in the heads of its columns of a table."""
        return ["", "_probability"]

    def table_cells(self, prediction, separator):
        return [prediction["label"], prediction["probability"]]

    def as_label(self, prediction):
        """A label as rows of JSON have it, from which the prediction can be learned."""
        return prediction["probabilities"]


@dataclass
class MultiLabel:
    """Any number of C labels a text: a sigmoid for each, and the sum of their cross-entropies."""

    name: str
    labels: list
    counts: list
    label_names: dict
    temperature: float = 1.0
    threshold: float = 0.5  # a text has the labels whose probability reaches it

    kind = "multi_label"
    fitted = ("temperature", "threshold")

    @classmethod
    def from_column(cls, column):
        return cls(column.name, column.labels, column.counts, column.label_names)

    def column(self):
        return column_of_labels(self)

    def check(self):
        check_labels(self)
        check_number(self.temperature, low=0.0)
        check_number(self.threshold, low=0.0, high=1.0)

    @property
    def num_logits(self):
        return len(self.labels)

    def to_array(self, labels):
        """A list of tuples of labels, None where there is none -> (N, C + 1) float32 of 0 and 1.

        A row without labels is NaN. The last column is for labels that no training row has.
        """
        number_of = {label: number for number, label in enumerate(self.labels)}
        numbers = np.full((len(labels), len(self.labels) + 1), math.nan, np.float32)
        for i, row in enumerate(labels):
            if row is not None:
                numbers[i] = 0
                for label in row:
                    numbers[i, number_of.get(label, len(self.labels))] = 1
        return numbers

    def soft_array(self, labels, soft):
        """As `to_array`, with probabilities where a row's soft label, {label: p}, is not None."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        p = self.to_array(labels)
        for i, found in enumerate(soft):
            if found is not None:
                p[i] = 0
                for label, probability in found.items():
                    p[i, number_of.get(label, len(self.labels))] = probability
        return p

    def loss(self, logits, labels, balanced=False):
        """The sum over labelled rows and labels, of (B, C) logits and (B, C + 1) labels."""
        weight = balanced_weights(self.counts, logits) if balanced else None
        labelled = ~labels[:, :1].isnan()  # (B, 1)
        return F.binary_cross_entropy_with_logits(
            logits,
            labels[:, :-1].nan_to_num(),
            labelled.float(),
            pos_weight=weight,
            reduction="sum",
        )

    def probabilities(self, logits, temperature):
        return metrics.sigmoid(logits / temperature)

    def calibrate(self, labels, logits):
        """Fit the temperature, on N * C decisions between yes and no, and then the threshold."""
        decisions = labels[:, :-1].astype(int).ravel()

        def probabilities(temperature):
            return metrics.no_and_yes(self.probabilities(logits, temperature))

        self.temperature = metrics.fit_temperature(probabilities, decisions)
        p = self.probabilities(logits, self.temperature)
        self.threshold = metrics.best_threshold(labels, p)

    def metrics(self, labels, logits):
        p = self.probabilities(logits, self.temperature)
        names = [str(label) for label in self.labels]
        result = metrics.multi_label_metrics(names, self.counts, labels, p >= self.threshold)
        decisions = labels[:, :-1].astype(int).ravel()
        uncalibrated = metrics.no_and_yes(self.probabilities(logits, 1.0))
        p = metrics.no_and_yes(p)
        return result | metrics.calibration_metrics(p, uncalibrated, decisions)

    def intervals(self, labels, logits):
        p = self.probabilities(logits, self.temperature)
        return metrics.multi_label_intervals(labels, p >= self.threshold)

    def selection_score(self, result):
        return result["macro_f1"]

    def predictions(self, logits):
        result = []
        for p in self.probabilities(logits, self.temperature).tolist():
            probabilities = dict(zip(self.labels, p, strict=True))
            labels = [label for label in self.labels if probabilities[label] >= self.threshold]
            names = [self.label_names[str(label)] for label in labels]
            result.append({"labels": labels, "names": names, "probabilities": probabilities})
        return result

    def linear_fit(self, states, labels, balanced=False):
        weights = None
        if balanced:
            weights = balanced_weights(self.counts, torch.empty(0)).tolist()
        return linear.fit_labels(states, labels[:, :-1], weights)

    def copy_head(self, head, former_task, former_head):
        return copy_linear(self, head, former_task, former_head)

    def summary(self):
        return f"{len(self.labels)} labels"

    def typical(self, num_labelled):
        return f"{max(self.counts) / num_labelled:.3f}"

    def describe_label(self, label):
        names = [self.label_names.get(str(part), str(part)) for part in each(label)]
        return report.shorten(", ".join(names) or "none", 40)

    def describe(self, prediction, names_only=False):
        words = []
        for label, name in zip(prediction["labels"], prediction["names"], strict=True):
            if not names_only:
                name = report.name_class(label, name)
            words.append(report.guess(name, prediction["probabilities"][label]))
        return ", ".join(words) or "none"

    def is_wrong(self, label, prediction):
        return label != tuple(prediction["labels"])

    def bars(self, prediction):
        if not prediction["labels"]:
            return [("none", None)]
        bars = []
        for label, name in zip(prediction["labels"], prediction["names"], strict=True):
            p = prediction["probabilities"][label]
            bars.append((name + report.guess_mark(p), p))
        return bars

    def table_columns(self, separator):
        """Raises ValueError where joined labels could not be told apart again."""
        for label in map(str, self.labels):
            if separator in label or label != label.strip():
                raise ValueError(
                    f"the label {label!r} of {self.name!r} cannot be joined by {separator!r} "
                    "and told apart again"
                )
        return ["", "_probability"]

    def table_cells(self, prediction, separator):
        """Without labels the separator alone: an empty cell would mean that nothing is known."""
        labels = prediction["labels"]
        p = [str(prediction["probabilities"][label]) for label in labels]
        return [separator.join(map(str, labels)) or separator, separator.join(p)]

    def as_label(self, prediction):
        return prediction["probabilities"]


@dataclass
class Regression:
    """A number a text: one output, and the squared error of the standardised number."""

    name: str
    mean: float  # of the training labels: what is learned is (number - mean) / std
    std: float
    decimal: str = "."  # the decimal mark of the labels in tables

    kind = "regression"
    fitted = ()

    @classmethod
    def from_column(cls, column):
        return cls(column.name, column.mean, column.std, column.decimal)

    def column(self):
        column = Column(self.name, self.kind, float, decimal=self.decimal)
        column.mean = self.mean
        column.std = self.std
        return column

    def check(self):
        if not isinstance(self.name, str):
            raise ValueError("the name of a task must be a string")
        if self.decimal not in (".", ","):
            raise ValueError("the decimal mark must be a point or a comma")
        check_number(self.mean, low=-math.inf)
        check_number(self.std, low=0.0)

    @property
    def num_logits(self):
        return 1

    def to_array(self, labels):
        """A list of numbers, None where there is none -> (N,) float32 z-scores; none is NaN."""
        numbers = np.full(len(labels), math.nan, np.float32)
        for i, label in enumerate(labels):
            if label is not None:
                numbers[i] = (label - self.mean) / self.std
        return numbers

    def soft_array(self, labels, soft):
        """As `to_array`: a number has no probabilities, and can be anything between two others."""
        return self.to_array(labels)

    def loss(self, logits, labels, balanced=False):
        """The sum of the squared errors over the labelled rows, of (B, 1) outputs, (B,) labels."""
        errors = logits.squeeze(1) - labels.nan_to_num()
        return (errors.square() * ~labels.isnan()).sum()

    def calibrate(self, labels, logits):
        """There is nothing to calibrate."""

    def metrics(self, labels, logits):
        return metrics.number_metrics(labels, logits[:, 0], self.std)

    def intervals(self, labels, logits):
        return metrics.number_intervals(labels, logits[:, 0], self.std)

    def selection_score(self, result):
        return result["pearson"]

    def predictions(self, logits):
        return [{"value": value * self.std + self.mean} for value in logits[:, 0].tolist()]

    def linear_fit(self, states, labels, balanced=False):
        return linear.fit_numbers(states, labels)

    def copy_head(self, head, former_task, former_head):
        """The head predicts z-scores: it is rescaled to the mean and spread of today's labels."""
        if former_task.kind != self.kind:
            return None
        weight = former_head.weight * (former_task.std / self.std)
        bias = (former_head.bias * former_task.std + former_task.mean - self.mean) / self.std
        head.weight.data.copy_(weight)
        head.bias.data.copy_(bias)
        return []

    def summary(self):
        return "a number"

    def typical(self, num_labelled):
        return f"{self.mean:.2f} ± {self.std:.2f}"

    def describe_label(self, label):
        return f"{label:.2f}"

    def describe(self, prediction, names_only=False):
        return f"{prediction['value']:.2f}"

    def is_wrong(self, label, prediction):
        return False

    def bars(self, prediction):
        return [(self.describe(prediction), None)]

    def table_columns(self, separator):
        return [""]

    def table_cells(self, prediction, separator):
        return [prediction["value"]]

    def as_label(self, prediction):
        return prediction["value"]


# The name of a kind, as config.json and --kinds have it, and its class. A fork adds its own here.
KINDS = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
}
NO_CLASS = -100  # the number of no class, which F.cross_entropy leaves out


def is_labelled(labels):
    """(N,) bool: which rows of what `to_array` returned have a label.

    In float arrays NaN marks a row without one, in integer ones NO_CLASS; in two-dimensional arrays
    the first column counts.
    """
    first = labels[:, 0] if labels.ndim > 1 else labels
    if first.dtype.kind == "f":
        return ~np.isnan(first)
    return first != NO_CLASS


def balanced_weights(counts, like):
    """Weights of classes as scikit-learn's "balanced": rows / (classes * rows of the class).

    A class that is the likeliest of no row, in soft labels, weighs as one of a single row.
    """
    counts = like.new_tensor(counts).clamp(min=1)
    return counts.sum() / (len(counts) * counts)


@torch.no_grad()
def copy_linear(task, head, former_task, former_head):
    """Copy the rows of the labels that both tasks have. Arguments and result: `copy_head`."""
    if former_task.kind != task.kind or not set(former_task.labels) & set(task.labels):
        return None
    new_labels = []
    for number, label in enumerate(task.labels):
        if label not in former_task.labels:
            new_labels.append(label)
            continue
        former_number = former_task.labels.index(label)
        head.weight[number] = former_head.weight[former_number]
        head.bias[number] = former_head.bias[former_number]
    return new_labels


def column_of_labels(task):
    label_type = type(task.labels[0])
    return Column(task.name, task.kind, label_type, task.labels, task.counts, task.label_names)


def check_labels(task):
    texts = [task.name]
    for label in task.labels:
        texts.append(task.label_names[str(label)])
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the names of a task and of its labels must be strings")
    label_types = {type(label) for label in task.labels}
    if label_types not in ({str}, {int}) or len(set(task.labels)) < len(task.labels):
        raise ValueError(f"the labels of {task.name!r:.40} must be different strings or integers")
    if [type(count) for count in task.counts] != [int] * len(task.labels):
        raise ValueError(f"the counts of {task.name!r:.40} must be an integer for each label")


def check_number(value, low, high=math.inf):
    if type(value) not in (int, float) or not low < value < high:
        raise ValueError(f"{value!r:.40} is not a number between {low} and {high}")


# --------------------------------------------------------------------------------------------------
# Batches. Rows (support/columns.py) are encoded once, and batches are made of them in each epoch.


@dataclass
class Dataset:
    """N encoded rows, end to end in flat arrays: row i is at [offsets[i]:offsets[i + 1]]."""

    input_ids: np.ndarray  # int32
    token_type_ids: np.ndarray  # uint8
    offsets: np.ndarray  # (N + 1,) int64
    labels: dict  # task name -> what its to_array returns
    num_truncated: int = 0  # rows that were longer than the maximum
    unknown_rate: float = 0.0  # share of the tokens that the tokenizer does not know
    # What is learned in place of the labels: task name -> what its soft_array returns
    soft: dict = field(default_factory=dict)
    # What a teacher says of each row, in the same form; NaN where it says nothing. A task that is
    # in `teachers` is in `soft` too.
    teachers: dict = field(default_factory=dict)
    gold_share: float = 0.0  # how much labels count where there is a teacher as well

    def __len__(self):
        return len(self.offsets) - 1

    def targets(self, name, rows):
        """What the loss of a task learns of these rows: their labels, or probabilities."""
        if name not in self.soft:
            return self.labels[name][rows]
        gold = self.soft[name][rows]
        if name not in self.teachers:
            return gold
        teacher = self.teachers[name][rows]
        mixed = (1 - self.gold_share) * teacher + self.gold_share * gold
        mixed = np.where(np.isnan(gold), teacher, mixed)
        return np.where(np.isnan(teacher), gold, mixed)

    def learned(self):
        """{task name: the `targets` of all rows}: which rows the loss of each task learns from."""
        rows = np.arange(len(self))
        return {name: self.targets(name, rows) for name in self.labels}

    @cached_property
    def lengths(self):
        return np.diff(self.offsets)


# The choices of --truncation, and what a note says of the texts
TRUNCATION = {"head": "were truncated", "head+tail": "were truncated in the middle (head+tail)"}


def encode(tokenizer, rows, tasks=(), max_length=None, empty=None):
    """Tokenize rows -> Dataset.

    A tokenizer that does not truncate is for "head+tail": then this truncates, at `max_length`.
    Raises InputError for a row without a token, or adds its number to the list `empty`.
    """
    input_ids = array("i")
    token_type_ids = bytearray()
    offsets = array("q", [0])
    num_truncated = 0
    for start in range(0, len(rows), 1000):
        chunk = rows[start : start + 1000]
        texts = []
        for row in chunk:
            texts.append(row.text if row.text_pair is None else (row.text, row.text_pair))
        encodings = huggingface.encode_batch(tokenizer, texts)
        for row, encoding in zip(chunk, encodings, strict=True):
            num_special = tokenizer.num_special_tokens_to_add(row.text_pair is not None)
            if len(encoding.ids) <= num_special:
                if empty is None:
                    raise InputError(f"{row.where}: no token is left of the text {row.text[:40]!r}")
                empty.append(len(offsets) - 1)
            ids, type_ids, was_truncated = huggingface.truncate(encoding, tokenizer, max_length)
            try:
                input_ids.extend(ids)
                token_type_ids.extend(type_ids)
            except (ValueError, OverflowError):
                raise InputError("the tokenizer does not fit the encoder") from None
            offsets.append(len(input_ids))
            num_truncated += was_truncated

    labels = {}
    soft = {}
    for task in tasks:
        labels[task.name] = task.to_array([row.labels.get(task.name) for row in rows])
        if any(task.name in row.soft for row in rows):
            soft[task.name] = soft_labels(task, rows)
    input_ids = np.frombuffer(input_ids, np.int32)
    token_type_ids = np.frombuffer(token_type_ids, np.uint8)
    offsets = np.frombuffer(offsets, np.int64)
    unknown_id = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "[UNK]")
    unknown_rate = 0.0
    if unknown_id is not None and len(rows) > 0:
        unknown_rate = float(np.mean(input_ids == unknown_id))
    return Dataset(input_ids, token_type_ids, offsets, labels, num_truncated, unknown_rate, soft)


def soft_labels(task, rows):
    """What the task's soft_array returns for the labels of rows, soft or not."""
    labels = []
    soft = []
    for row in rows:
        label = row.labels.get(task.name)
        labels.append(label)
        soft.append(None if label is None else row.soft.get(task.name))
    return task.soft_array(labels, soft)


def select(data, rows):
    """The Dataset of the rows with these numbers, in this order, with their hard labels alone."""
    input_ids = []
    token_type_ids = []
    for start, end in zip(data.offsets[rows], data.offsets[rows + 1], strict=True):
        input_ids.append(data.input_ids[start:end])
        token_type_ids.append(data.token_type_ids[start:end])
    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum(data.lengths[rows])
    labels = {name: values[rows] for name, values in data.labels.items()}
    return Dataset(np.concatenate(input_ids), np.concatenate(token_type_ids), offsets, labels)


def expected_draws(labels, power, repeats=1, most=8):
    """How often an epoch draws each row on average, (N,), for the labels of a Dataset.

    Tasks are drawn in proportion to (number of labels) ** power (Stickland & Murray 2019,
    arXiv:1902.02671). A row is drawn for each of its labels, at most `most` times an epoch, and
    brings them all. Where every row has every label, each is drawn once, or `repeats` times.
    """
    labelled = [is_labelled(values) for values in labels.values()]
    total = sum(mask.sum() ** power for mask in labelled)
    draws = np.zeros(len(labelled[0]))
    for mask in labelled:
        task_rate = mask.sum() ** power / total
        draws += mask * len(mask) * task_rate / mask.sum()
    draws = np.minimum(draws, most)
    draws *= math.floor(draws.sum() + 1e-6) / draws.sum()  # the same number in each epoch
    return draws * repeats


def label_rates(draws, labels):
    """{task: share of the draws that bring a label of it}."""
    rates = {}
    for name, values in labels.items():
        rates[name] = float((draws * is_labelled(values)).sum() / draws.sum())
    return rates


def count_rows(labels):
    """{task: number of labelled rows}."""
    return {name: int(is_labelled(values).sum()) for name, values in labels.items()}


STEPS = 250  # of a training on few rows: fewer lack some, more gain nothing
MOST_EPOCHS = 20


def choose_steps(args, num_draws):
    """Put a batch size and a number of epochs into the flags `args` where they name none."""
    if args.batch_size is None:
        args.batch_size = default_batch_size(num_draws, args.epochs)
    if args.epochs is None:
        args.epochs = default_epochs(num_draws, args.batch_size)


def default_batch_size(num_draws, epochs):
    """The fewest of 8, 16, 24 and 32 rows in a step with which a training has STEPS steps at most.

    Where 32 have more, they are taken. num_draws: of an epoch. epochs: None where their number is
    open as well; it is then MOST_EPOCHS.
    """
    num_rows = (epochs or MOST_EPOCHS) * round(num_draws) / STEPS
    return min(8 * math.ceil(num_rows / 8), 32)


def default_epochs(num_draws, batch_size):
    """The epochs of so many draws that make about STEPS steps, from 3 to MOST_EPOCHS."""
    return min(max(round(STEPS * batch_size / num_draws), 3), MOST_EPOCHS)


def draw_rows(draws, rng):
    """How often one epoch draws each row: `draws` rounded down or up.

    Systematic sampling along a random order, so that the sum is the same in each epoch.
    """
    order = rng.permutation(len(draws))
    offset = rng.uniform(0.25, 0.75)  # away from whole numbers, where rounding errors would count
    ends = np.floor(np.cumsum(draws[order]) + offset)
    counts = np.empty(len(draws), int)
    counts[order] = np.diff(ends, prepend=0)
    return counts


def length_grouped_batches(lengths, batch_size, rng, counts=None):
    """Batches of row numbers for one epoch, in each of them rows of similar length.

    Rows are shuffled, sorted by length within blocks, and the batches are shuffled again. Row i
    comes counts[i] times (by default once). Copies of a row are spread out, so that a batch rarely
    holds two.
    """
    rows = rng.permutation(len(lengths))
    times = np.ones(len(rows), int)
    if counts is not None:
        times = counts[rows]

    # The copies of a row stand at equal distances from each other on a circle.
    copies = np.repeat(rows, times)
    first_copy = np.repeat(np.cumsum(times) - times, times)
    number_of_copy = np.arange(len(copies)) - first_copy  # 0, 1, ... for each row
    start = np.repeat(np.arange(len(rows)) / len(rows), times)
    place = (start + number_of_copy / np.repeat(times, times)) % 1
    order = copies[np.argsort(place, kind="stable")]

    batches_in_block = min(32, math.ceil(len(order) / times.max() / batch_size))
    block_size = batches_in_block * batch_size
    sorted_blocks = []
    for i in range(0, len(order), block_size):
        block = order[i : i + block_size]
        sorted_blocks.append(block[np.argsort(lengths[block], kind="stable")])
    order = np.concatenate(sorted_blocks)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def collate(data, rows, config, device):
    """The batch of the given row numbers, padded to its longest: the arguments of MTBert.forward.

    `config` is the encoder's. Raises InputError where the tokenizer does not fit the encoder.
    """
    lengths = data.lengths[rows]
    longest = int(lengths.max())
    if torch.device(device).type != "cpu":  # GPUs multiply matrices faster in multiples of 8
        longest = min(math.ceil(longest / 8) * 8, config.max_length)
    positions = np.arange(longest)
    attention_mask = positions < lengths[:, None]  # (B, T)
    source = (data.offsets[rows][:, None] + positions)[attention_mask]
    input_ids = np.full(attention_mask.shape, config.pad_token_id, np.int64)
    input_ids[attention_mask] = data.input_ids[source]
    token_type_ids = np.zeros(attention_mask.shape, np.int64)
    token_type_ids[attention_mask] = data.token_type_ids[source]
    if (
        longest > config.max_length
        or input_ids.max() >= config.vocab_size
        or token_type_ids.max() >= max(2, config.type_vocab_size)  # one type reads 1 as 0
    ):
        raise InputError("the tokenizer does not fit the encoder")
    labels = {}
    for name in data.labels:
        labels[name] = torch.from_numpy(data.targets(name, rows)).to(device)
    return {
        "input_ids": torch.from_numpy(input_ids).to(device),
        "attention_mask": torch.from_numpy(attention_mask).to(device),
        "token_type_ids": torch.from_numpy(token_type_ids).to(device),
        "labels": labels,
    }


# --------------------------------------------------------------------------------------------------
# Encoder: BERT (Devlin et al. 2018, arXiv:1810.04805), after Vaswani et al. 2017, arXiv:1706.03762

ACTIVATIONS = {
    "gelu": lambda: nn.GELU(),
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": lambda: nn.ReLU(),
}


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, num_heads, dropout):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)

    def forward(self, qkv, mask):
        """(B, T, 3 * D) queries, keys and values, and a (B, 1, 1, T) mask -> (B, T, D)."""
        B, T, _ = qkv.shape
        heads = qkv.view(B, T, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        rate = self.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return context.transpose(1, 2).reshape(B, T, -1)


class Layer(nn.Module):
    """Self-attention and a feed-forward network; a residual sum and a layer norm follow each."""

    def __init__(self, config, dropout):
        super().__init__()
        D = config.hidden_size
        self.qkv = nn.Linear(D, 3 * D)
        self.attention = Attention(config.num_attention_heads, dropout)
        self.attention_output = nn.Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(D, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.output = nn.Linear(config.intermediate_size, D)
        self.output_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        context = self.attention(self.qkv(x), mask)
        x = self.attention_norm(x + self.dropout(self.attention_output(context)))
        hidden = self.activation(self.intermediate(x))
        return self.output_norm(x + self.dropout(self.output(hidden)))


class Encoder(nn.Module):
    """BERT's embeddings and layers. Weights are random until they are loaded."""

    def __init__(self, config, dropout=0.1):
        super().__init__()
        self.config = config
        E = config.embedding_size
        D = config.hidden_size
        self.word_embeddings = make_embedding(config.vocab_size, E)
        self.position_embeddings = make_embedding(config.max_position_embeddings, E)
        self.token_type_embeddings = None
        if config.type_vocab_size > 0:
            self.token_type_embeddings = make_embedding(config.type_vocab_size, E)
        self.embedding_norm = nn.LayerNorm(E, eps=config.layer_norm_eps)
        self.embedding_projection = nn.Identity()
        if E != D:
            self.embedding_projection = nn.Linear(E, D)
        self.layers = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            self.layers.append(Layer(config, dropout))
        self.dropout = nn.Dropout(dropout)
        self.apply(init_weights)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """The last hidden states, (B, T, D), of three (B, T) tensors.

        The mask is true or 1 on tokens, and false or 0 on padding, which follows the tokens.
        """
        if token_type_ids is None or self.config.type_vocab_size == 1:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids)  # (B, T, E)
        x = x + self.position_embeddings(positions + self.config.position_offset)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings(token_type_ids)
        x = self.dropout(self.embedding_norm(x))
        x = self.embedding_projection(x)  # (B, T, D)
        mask = attention_mask.bool()[:, None, None, :]  # the same for all heads and queries
        return self.run_layers(x, mask)

    def run_layers(self, x, mask):
        for layer in self.layers:
            x = layer(x, mask)
        return x


def make_embedding(num_embeddings, size):
    """An nn.Embedding whose weights are still to be drawn, by `init_weights`."""
    return nn.Embedding.from_pretrained(torch.empty(num_embeddings, size), freeze=False)


def init_weights(module):
    """As BERT is initialised: normally distributed weights, deviation 0.02; biases zero."""
    if not isinstance(module, (nn.Linear, nn.Embedding)) or module.weight.is_meta:
        return  # `load` makes models on the meta device, which has shapes only
    nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


# --------------------------------------------------------------------------------------------------
# Heads


class MeanPooling(nn.Module):
    """The mean of the tokens' hidden states."""

    def __init__(self, hidden_size):
        super().__init__()

    def forward(self, hidden, attention_mask):
        """(B, T, D) hidden states, (B, T) mask -> (B, D)."""
        mask = attention_mask[:, :, None].float()  # (B, T, 1)
        return (hidden * mask).sum(1) / mask.sum(1)


class ClsPooling(nn.Module):
    """The hidden state of the first token, [CLS]."""

    def __init__(self, hidden_size):
        super().__init__()

    def forward(self, hidden, attention_mask):
        return hidden[:, 0]


POOLING = {"mean": MeanPooling, "cls": ClsPooling}


class MTBert(nn.Module):
    """An encoder that runs once for all tasks, pooling, and a linear head for each task."""

    def __init__(self, encoder, tasks, tokenizer, pooling="mean", dropout=0.1):
        super().__init__()
        D = encoder.config.hidden_size
        self.encoder = encoder
        self.pool = POOLING[pooling](D)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict()
        for task in tasks:
            self.heads[head_key(task)] = nn.Linear(D, task.num_logits)

        self.tasks = tasks
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.truncation = "head"  # what is kept of texts that are longer than max_length tokens
        self.max_length = encoder.config.max_length
        self.balanced = False  # whether each class weighs the same in the loss, however rare it is
        self.compute_dtype = torch.float32  # of the encoder in training; its weights are in float32
        self.max_tokens = math.inf  # of a training batch that are computed at a time
        self.prediction_dtype = "float32"
        self.metadata = {}  # what config.json says of the run besides: flags, versions, data

    def embed(self, input_ids, attention_mask, token_type_ids=None):
        """The pooled hidden states, (B, D), which the heads share."""
        mixed_precision = self.compute_dtype != torch.float32
        with torch.autocast(input_ids.device.type, self.compute_dtype, enabled=mixed_precision):
            hidden = self.encoder(input_ids, attention_mask, token_type_ids)  # (B, T, D)
        return self.pool(hidden.float(), attention_mask)

    def forward(self, input_ids, attention_mask, token_type_ids=None, labels=None):
        """-> {task: (B, C) logits} and, where `labels` are given, {task: loss}, else {}.

        `labels` is what Dataset.targets returns for each task. The loss of a task is the sum over
        its labelled rows, divided by B: a row counts the same in every batch, and a batch without a
        label of the task adds nothing.
        """
        pooled = self.dropout(self.embed(input_ids, attention_mask, token_type_ids))
        logits = {}
        losses = {}
        for task in self.tasks:
            logits[task.name] = self.heads[head_key(task)](pooled)  # (B, C)
            if labels:
                loss = task.loss(logits[task.name], labels[task.name], self.balanced)
                losses[task.name] = loss / len(pooled)
        return logits, losses


def head_key(task):
    """The key of a task's head. A ModuleDict refuses dots, and names of its own such as "type"."""
    return "head_" + task.name.replace("%", "%25").replace(".", "%2E")


FIT_ROWS = 2000  # as many labelled rows of a task its head is fitted to, at most


@torch.no_grad()
def fit_heads(model, data, names, seed, balanced=False):
    """Let the heads of the tasks `names` start where linear fits to the encoder's states end.

    The encoder stays as it is: it computes the pooled states of at most FIT_ROWS rows of each task,
    drawn by `seed`, and each head becomes a logistic or ridge regression on them. Training then
    changes the encoder less than where heads start at random (Kumar et al. 2022, arXiv:2202.10054).
    -> {task: rows it was fitted to}, without the tasks whose kind has no such fit.
    """
    if not names:
        return {}
    order = np.random.default_rng(seed).permutation(len(data))
    chosen = {}  # name -> whether each row is one of those that the head is fitted to
    for name in names:
        labelled = order[is_labelled(data.labels[name])[order]]
        chosen[name] = np.zeros(len(data), bool)
        chosen[name][labelled[:FIT_ROWS]] = True
    rows = np.flatnonzero(np.any(list(chosen.values()), axis=0))
    states = embed_encoded(model, select(data, rows)).astype(np.float64)
    fitted = {}
    for task in model.tasks:
        if task.name not in chosen:
            continue
        mine = chosen[task.name][rows]
        labels = data.labels[task.name][rows[mine]]
        fit = task.linear_fit(states[mine], labels, balanced)
        if fit is None:
            continue
        head = model.heads[head_key(task)]
        for parameter, values in zip((head.weight, head.bias), fit, strict=True):
            parameter.copy_(torch.from_numpy(values))
        fitted[task.name] = len(labels)
    return fitted


# --------------------------------------------------------------------------------------------------
# Variants and parameter groups

# all_tasks: whether all tasks are learned, or the first alone.
# head_lr: the default of --head-lr; None: the heads learn at --lr, as the encoder does.
VARIANTS = {
    "single": {"all_tasks": False, "head_lr": None},
    "shared": {"all_tasks": True, "head_lr": None},
    "separate-lr": {"all_tasks": True, "head_lr": 5e-3},
}


def parameter_groups(model, lr, head_lr, layer_decay, weight_decay):
    """AdamW's groups: the encoder, and pooling and heads, each with and without weight decay.

    Biases and layer norms, which are vectors, do not decay. With `layer_decay` below 1 each layer
    of the encoder is a group of its own, and learns at `layer_decay` times the rate of the layer
    above it; the embeddings are the lowest layer.
    """
    num_layers = len(model.encoder.layers)
    level = 0
    groups = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder."):
            part = "heads"
            rate = head_lr
        elif layer_decay == 1:
            part = "encoder"
            rate = lr
        else:
            level = layer_level(name, num_layers, level)
            part = f"layer {level}" if level > 0 else "embeddings"
            rate = lr * layer_decay ** (num_layers - level)
        decay = weight_decay if parameter.ndim > 1 else 0.0
        if (part, decay) not in groups:
            groups[part, decay] = {"name": part, "lr": rate, "weight_decay": decay, "params": []}
        groups[part, decay]["params"].append(parameter)
    return list(groups.values())


def layer_level(name, num_layers, level_before):
    """The layer, from 1, that a parameter of the encoder belongs to; 0 for the embeddings."""
    for part in name.split("."):
        if part.isdigit():
            return min(int(part) + 1, num_layers)
    if "embed" in name:
        return 0
    return level_before  # such as a final norm: it belongs to the layer before it


class AdamW(torch.optim.AdamW):
    def clip_gradients(self, max_norm):
        """Scale the gradients down to a norm of at most `max_norm` -> their norm before."""
        parameters = []
        for group in self.param_groups:
            parameters += group["params"]
        return nn.utils.clip_grad_norm_(parameters, max_norm).item()


# --------------------------------------------------------------------------------------------------
# Teachers: finished runs, whose predictions for the training rows are learned beside the labels
# (born-again multi-task networks, BAM, Clark et al. 2019, arXiv:1907.04829)


def gold_share(step, num_steps, annealing):
    """How much labels count in a step, from 1 to `num_steps`, where there is a teacher as well.

    With annealing the teacher counts most at first, and the labels alone at the end, as in BAM.
    Without it both count half, as in the published code of BAM.
    """
    if annealing:
        return step / num_steps
    return 0.5


def find_lessons(folder, tasks):
    """Which of `tasks` the finished run in `folder` can teach: [(task, the same task of the run)].

    Both have the same name and kind. Raises InputError where there is none, and where the run knows
    a label that the training rows do not have.
    """
    lessons = []
    for teacher in read_model_config(Path(folder))["tasks"]:
        for task in tasks:
            if teacher.name == task.name and type(teacher) is type(task):
                lessons.append((task, teacher))
    if not lessons:
        names = listed(task.name for task in tasks)
        raise InputError(f"teacher {folder}: it has none of the tasks {names}, of the same kinds")
    for task, teacher in lessons:
        labels = task.column().labels  # [] for numbers
        unknown = [label for label in teacher.column().labels if label not in labels]
        if unknown:
            which = f"{listed(unknown)} of {task.name!r}"
            raise InputError(f"teacher {folder}: no training row has its labels {which}")
    return lessons


def answers_of_teacher(folder, lessons, rows, device):
    """{task name: what the run in `folder` says of N rows, in the form of Dataset.soft}.

    NaN: it says nothing, because no token is left of a text, or because it learned from pairs and
    a row has one text. Labels that it does not know have the probability 0.
    """
    model = load(folder, device)
    silent = []
    data = encode(model.tokenizer, rows, max_length=model.max_length, empty=silent)
    if model.metadata.get("pairs"):
        silent += [number for number, row in enumerate(rows) if row.text_pair is None]
    answered = np.setdiff1d(np.arange(len(rows)), silent)
    if len(answered) == 0:
        raise InputError(f"teacher {folder}: it can read no training row")
    logits = compute_logits(model, select(data, answered))
    answers = {}
    for task, teacher in lessons:
        values = []
        probabilities = []
        for prediction in teacher.predictions(logits[task.name]):
            values.append(prediction.get("value"))
            probabilities.append(prediction.get("probabilities"))
        found = task.soft_array(values, probabilities)
        answers[task.name] = np.full((len(rows), *found.shape[1:]), math.nan, np.float32)
        answers[task.name][answered] = found
    return answers


def teach(data, tasks, rows, folders, device):
    """Fill data.teachers with what the finished runs in `folders` say of its rows.

    Several teachers of a task count the same: their mean is learned. `rows` are those that `data`
    was encoded from. -> {task name: the folders of its teachers}. Raises InputError.
    """
    lessons_by_folder = {}
    for folder in folders:
        lessons_by_folder[folder] = find_lessons(folder, tasks)
    teachers = {}
    answers = {}
    for folder, lessons in lessons_by_folder.items():
        for name, found in answers_of_teacher(folder, lessons, rows, device).items():
            teachers.setdefault(name, []).append(folder)
            answers.setdefault(name, []).append(found)
    for task in tasks:
        if task.name in answers:
            data.soft[task.name] = soft_labels(task, rows)
            data.teachers[task.name] = mean_of_known(np.stack(answers[task.name]))
    return teachers


def mean_of_known(values):
    """The mean over the first axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return np.nansum(values, 0) / known.sum(0, dtype=np.float32)


# --------------------------------------------------------------------------------------------------
# Training


def forward_backward(model, data, rows, weights, accumulation=1):
    """Add the gradient of the batch `rows` to the parameters -> {task: loss}.

    `model` is an MTBert, or it in a DistributedDataParallel. The batch is computed in
    `accumulation` parts, or in more where a part would have more than `max_tokens` tokens. Of
    several processes each computes its share of the rows; losses and gradients are those of the
    whole batch.
    """
    inner = getattr(model, "module", model)
    device = next(inner.parameters()).device
    num_processes = processes.count()
    mine = rows[processes.rank() :: num_processes]
    size = len(rows)
    if len(mine) == 0:  # fewer rows than processes: take part, but count for nothing
        mine = rows[:1]
        size = math.inf

    num_tokens = len(mine) * data.lengths[mine].max()
    num_parts = max(accumulation, math.ceil(num_tokens / inner.max_tokens))
    parts = np.array_split(mine, min(num_parts, len(mine)))
    losses = dict.fromkeys(weights, 0.0)
    for part in parts:
        share = len(part) / size
        synchronize = nullcontext()
        if num_processes > 1 and part is not parts[-1]:
            synchronize = model.no_sync()  # processes exchange gradients once, with the last part
        with synchronize:
            _, task_losses = model(**collate(data, part, inner.encoder.config, device))
            loss = 0.0
            for name, value in task_losses.items():
                loss = loss + weights[name] * value
                losses[name] += share * value.item()
            (num_processes * share * loss).backward()  # times, since the processes take the mean
    sums = processes.sum_over_processes(torch.tensor(list(losses.values())), device)
    return dict(zip(losses, sums.tolist(), strict=True))


def seed_step(seed, step):
    """Give dropout a seed that depends on the step alone, so that a resumed run repeats it."""
    rng = np.random.default_rng([seed, processes.rank(), step])
    torch.manual_seed(int(rng.integers(2**63)))


def check_finite(losses, step):
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise Diverged(f"the loss of task {name!r} is {loss} in step {step}; try a lower --lr")


def train(model, data, args, folder):
    """Train on data["train"] with the flags of train.py, or go on from the folder's snapshot.

    `args` names a number of epochs and a batch size; `choose_steps` puts them in.

    -> the runs.Run. Its `best` is the state dict of the epoch that is best on data["validation"],
    by the mean of the selection score over the tasks that judge (`tasks_that_judge`), or of the
    last epoch where none does; `state` has its metrics. Raises Diverged when a loss is not finite,
    KeyboardInterrupt(exit status, what to do) when a signal stops it.
    """
    from transformers import get_linear_schedule_with_warmup

    train_data = data["train"]
    learned = train_data.learned()
    draws = expected_draws(learned, args.task_sampling, args.repeats)
    rates = label_rates(draws, learned)
    # A task's loss is divided by the share of rows that have its label: each label counts the same,
    # however rare labels are. Then tasks are added up as they are (Kurin et al. 2022,
    # arXiv:2201.04122), or by --task-weights.
    weights = {}
    for task in model.tasks:
        weights[task.name] = args.task_weights.get(task.name, 1.0) / rates[task.name]
    model.balanced = args.class_weights == "balanced"
    judges = tasks_that_judge(model.tasks, data["validation"].labels)

    groups = parameter_groups(model, args.lr, args.head_lr, args.layer_decay, args.weight_decay)
    device = next(model.parameters()).device
    optimizer = AdamW(groups, fused=device.type in ("cpu", "cuda"))
    num_steps = args.epochs * math.ceil(round(draws.sum()) / args.batch_size)
    warmup_steps = round(args.warmup_ratio * num_steps)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps, num_steps)
    cpu.speed_up_training(model, optimizer)
    parallel = processes.in_parallel(model, unused=isinstance(model.encoder, TransformersEncoder))

    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    state = {"best_epoch": 0, "best_score": -math.inf, "validation": None}
    state |= {"losses": {}, "rows": 0}  # of the epoch's steps, added up
    state |= {"rows_trained": 0}  # in all epochs
    with runs.Run(folder, parts, state, args.save_every) as run:
        for epoch in range(run.epoch, args.epochs + 1):
            if args.patience and epoch - run.state["best_epoch"] > args.patience:
                print(f"stopped: no epoch was better than epoch {run.state['best_epoch']}")
                break
            counts = draw_rows(draws, np.random.default_rng([args.seed, epoch, 1]))
            rng = np.random.default_rng([args.seed, epoch])
            batches = length_grouped_batches(train_data.lengths, args.batch_size, rng, counts)

            model.train()
            for batch in run.steps(batches, f"epoch {epoch}/{args.epochs}"):
                seed_step(args.seed, run.step)
                train_data.gold_share = gold_share(run.step, num_steps, args.teacher_annealing)
                losses = forward_backward(
                    parallel, train_data, batch, weights, args.gradient_accumulation
                )
                check_finite(losses, run.step)
                grad_norm = optimizer.clip_gradients(args.max_grad_norm or math.inf)
                learning_rates = schedule.get_last_lr()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                log_step(run, losses, rates, len(batch), learning_rates, grad_norm)

            validation = validate(model, data["validation"])
            scores = {}
            for task in model.tasks:
                if task.name in validation:
                    scores[task.name] = task.selection_score(validation[task.name])
            score = mean_score(scores, judges)
            is_best = not judges or score > run.state["best_score"]
            run.log({"epoch": epoch, "step": run.step, "scores": scores, "validation": validation})
            report.print_epoch(epoch, args.epochs, epoch_losses(run), scores, judges and is_best)
            if epoch == 1:
                report.warn_constant(metrics.constant_tasks(validation))
            if is_best:
                run.state.update(best_epoch=epoch, best_score=score, validation=validation)
                run.best = copy_to_cpu(model.state_dict())
            run.state.update(losses={}, rows=0)
            run.end_epoch()
    return run


def log_step(run, losses, rates, num_rows, learning_rates, grad_norm):
    """Write a line of log.jsonl. A loss that is shown is the mean over the rows with a label."""
    shown = {}
    totals = run.state["losses"]
    for name, loss in losses.items():
        shown[name] = loss / rates[name]
        totals[name] = totals.get(name, 0.0) + shown[name] * num_rows
    run.state["rows"] += num_rows
    run.state["rows_trained"] += num_rows
    run.log({"step": run.step, "lr": learning_rates, "grad_norm": grad_norm, "loss": shown})
    run.show({printable(name): f"{loss:.3f}" for name, loss in shown.items()})


def epoch_losses(run):
    """{task: mean loss of the epoch's steps}."""
    losses = {}
    for name, total in run.state["losses"].items():
        losses[name] = total / run.state["rows"]
    return losses


def mean_score(scores, names):
    """The mean of {task: score} over the tasks `names`; 0 where there are none."""
    total = 0.0
    for name in names:
        total += scores[name]
    return total / max(len(names), 1)


def validate(model, data):
    """Calibrate the tasks on the rows of `data` -> {task: metrics}."""
    logits = compute_logits(model, data)
    calibrate(model.tasks, data.labels, logits)
    return evaluate(model.tasks, data.labels, logits)


def copy_to_cpu(state):
    return {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}


MIN_TO_JUDGE = 100  # validation rows of a task: fewer do not tell two epochs apart
MIN_TO_CALIBRATE = 30  # the same: fewer say nothing of a temperature or a threshold


def tasks_that_judge(tasks, labels):
    """The names of the tasks with enough validation rows to choose an epoch.

    Where no task has them, the last epoch is taken. Arguments: `evaluate`.
    """
    counts = count_rows(labels)
    return [task.name for task in tasks if counts[task.name] >= MIN_TO_JUDGE]


def calibrate(tasks, labels, logits):
    """Fit what each task fits on validation rows: temperature, threshold. Arguments: `evaluate`."""
    for task in tasks:
        rows = is_labelled(labels[task.name])
        if rows.sum() >= MIN_TO_CALIBRATE:
            task.calibrate(labels[task.name][rows], logits[task.name][rows])


def evaluate(tasks, labels, logits, intervals=False):
    """{task: metrics} over the rows labelled for the task; a task without any is absent.

    `labels` is as in Dataset.labels, `logits` {task: (N, C)}. With `intervals` the metrics have an
    entry "intervals" as well, if the kind of task has any: that of a fork need not.
    """
    result = {}
    for task in tasks:
        rows = is_labelled(labels[task.name])
        if not rows.any():
            continue
        labelled = (labels[task.name][rows], logits[task.name][rows])
        result[task.name] = task.metrics(*labelled)
        if intervals and hasattr(task, "intervals"):
            result[task.name]["intervals"] = task.intervals(*labelled)
    return result


# --------------------------------------------------------------------------------------------------
# Prediction

MAX_TOKENS_ON_GPU = 2**15  # of a batch that is predicted, unless 32 rows have more


def prediction_batches(lengths, device, batch_size=None):
    """Row numbers in batches of similar lengths, the longest first: a lack of memory shows at once.

    lengths: the number of tokens of each row. batch_size: None leaves it to the device. 32 short
    texts leave a GPU idle, so it gets more of them; memory limits long ones.
    """
    order = np.argsort(lengths, kind="stable")[::-1].copy()
    share = math.ceil(len(order) / processes.count())  # so that each process gets some
    batches = []
    start = 0
    while start < len(order):
        size = batch_size or 32
        if batch_size is None and device.type != "cpu":
            longest = max(1, lengths[order[start]])
            size = max(32, min(MAX_TOKENS_ON_GPU // longest, share))
        batches.append(order[start : start + size])
        start += size
    return batches


def compute_logits(model, data, batch_size=None):
    """{task: (N, C) float32 array} for a Dataset of N rows, in its order.

    batch_size: rows that are computed at a time; None leaves it to the device.
    """

    def compute(batch):
        logits, _ = model(**batch)
        return logits

    sizes = {task.name: task.num_logits for task in model.tasks}
    logits = compute_in_batches(compute, sizes, model, data, batch_size)
    for name, values in logits.items():
        if not np.isfinite(values).all():
            raise Diverged(
                f"the model gives {name!r} no finite value: its training diverged; "
                "train it with a lower --lr"
            )
    return logits


@torch.inference_mode()
def compute_in_batches(compute, sizes, model, data, batch_size=None):
    """What compute(batch) gives for the rows of a Dataset, in order: {name: (N, C) float32 array}.

    sizes: {name: C}. batch_size: as for `compute_logits`. Nothing that several threads share is
    changed, and no autocast around the call counts.
    """
    model.eval()
    device = next(model.parameters()).device
    found = {}
    for name, size in sizes.items():
        found[name] = torch.zeros(len(data), size, dtype=torch.float32)
    batches = prediction_batches(data.lengths, device, batch_size)
    for rows in batches[processes.rank() :: processes.count()]:  # each process takes its share
        batch = collate(data, rows, model.encoder.config, device)
        del batch["labels"]
        with torch.autocast(device.type, enabled=False):
            values_of = compute(batch)
        for name, values in values_of.items():
            found[name][rows] = values.float().cpu()
    result = {}
    for name, values in found.items():
        result[name] = processes.sum_over_processes(values, device).numpy()
    return result


def predict_encoded(model, data):
    """As `predict`, for a Dataset."""
    return predictions_of(model.tasks, compute_logits(model, data))


def predictions_of(tasks, logits):
    """The predictions that logits, {task: (N, C)}, stand for: a list of {task: prediction}."""
    by_task = {}
    for task in tasks:
        by_task[task.name] = task.predictions(logits[task.name])
    result = []
    for row in zip(*by_task.values(), strict=True):
        result.append(dict(zip(by_task, row, strict=True)))
    return result


def predict(model, texts, empty=None):
    """A list of {task: prediction}, one for each text, in order.

    texts: a list of texts, of pairs (text, text_pair), or of rows, which are dicts as in a file;
    one such dict; or a pandas.DataFrame. empty="mask": an empty text is predicted as the mask token
    is, for explainers that leave words out; by default it is an error.

    A prediction is {"label", "name", "probability", "probabilities": {label: p}} of a class,
    {"labels", "names", "probabilities"} of any number of labels, {"value"} of a number.
    Probabilities are calibrated on the validation rows. Raises InputError for a text that has no
    tokens. Threads may share a model.
    """
    return predict_encoded(model, encode_texts(model, texts, empty))


def embed(model, texts, empty=None):
    """The pooled hidden states of N texts: a float32 array (N, D). Arguments: `predict`."""
    return embed_encoded(model, encode_texts(model, texts, empty))


def embed_encoded(model, data):
    """As `embed`, for a Dataset."""

    def compute(batch):
        return {"pooled": model.embed(**batch)}

    sizes = {"pooled": model.encoder.config.hidden_size}
    return compute_in_batches(compute, sizes, model, data)["pooled"]


def encode_texts(model, texts, empty):
    """The Dataset of what `predict` takes. Raises InputError."""
    flags = model.metadata.get("flags") or {}
    needs_pairs = model.metadata.get("pairs")
    mask = None
    if empty == "mask":
        mask = huggingface.mask_token(model.tokenizer)
    rows = rows_of_texts(texts, flags, needs_pairs, mask)
    return encode(model.tokenizer, rows, max_length=model.max_length)


# --------------------------------------------------------------------------------------------------
# Save and load


def describe_model(model):
    """What config.json says of a model, before there are weights."""
    tasks = []
    fitted = {}
    for task in model.tasks:
        values = asdict(task)
        fitted[task.name] = {name: values.pop(name) for name in task.fitted}
        tasks.append({"kind": task.kind, **values})
    return {
        "encoder": asdict(model.encoder.config),
        "tasks": tasks,
        "fitted": fitted,  # on validation rows, at the end; the rest is known when a run begins
        "pooling": model.pooling,
        "truncation": model.truncation,
        "max_length": model.max_length,
        **model.metadata,
        "tokenizer_sha256": sha256(model.tokenizer.to_str().encode()).hexdigest(),
        "weights_sha256": None,
    }


def save(model, folder, finished=True):
    """Write what prediction needs: tokenizer.json, model.safetensors and config.json.

    config.json is written last, and makes the others count. With `finished=False` the weights are
    left out: it is what there is of a run when it begins.
    """
    folder = Path(folder)
    check_trainable(model)
    config = describe_model(model)
    runs.write(folder / "tokenizer.json", model.tokenizer.to_str().encode())
    if finished:
        weights = folder / "model.safetensors"
        digest = runs.write_tensors(weights, safetensors.torch.save_file, model.state_dict())
        config["weights_sha256"] = digest
    runs.write_record(folder / "config.json", config)


def check_trainable(model):
    for tensor in model.parameters():
        if tensor.dtype != torch.float32 or tensor.is_mkldnn:
            raise InputError(
                "this model is for prediction; to save it, load it with trainable=True"
            )


def load(folder, device="auto", dtype="auto", trainable=False):
    """The model that `save` wrote to `folder`, in evaluation mode. Raises InputError.

    It is for prediction, its encoder in `dtype`; "auto" is the fastest here. With `trainable` it is
    plain float32, and can be trained, saved and exported. Nothing in the files is trusted: shapes
    are compared before anything is allocated, and contents with their SHA-256.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    if "transformers" in config["encoder"] and "transformers" not in sys.modules:
        note("the encoder is computed by transformers, which is imported now")
    mistake = f"{folder} cannot be loaded"
    with bounds.shapes_only(folder / "model.safetensors", config["encoder"], mistake):
        encoder = make_encoder(config["encoder"], mistake=mistake)
        model = MTBert(encoder, config["tasks"], None, config["pooling"])
    with input_errors(mistake):
        if asdict(encoder.config) != config["encoder"]:
            raise ValueError("the configuration of its encoder contradicts itself")
        check_weights(folder / "model.safetensors", model.state_dict())
        runs.check_sha256(folder / "tokenizer.json", config["tokenizer_sha256"])
        runs.check_sha256(folder / "model.safetensors", config["weights_sha256"])
        state = safetensors.torch.load_file(folder / "model.safetensors")
        model.tokenizer = huggingface.read_tokenizer_file(folder / "tokenizer.json")
    if isinstance(encoder, TransformersEncoder):
        model.encoder = make_encoder(config["encoder"])  # for its buffers, which are in no file
    for name, tensor in state.items():
        state[name] = tensor.clone()  # out of the mapped file, into aligned memory
    model.load_state_dict(state, assign=True)
    model.eval()
    if isinstance(encoder, TransformersEncoder):
        with input_errors(mistake):
            model.encoder.check_cost()
    model.truncation = config["truncation"]
    model.max_length = min(config["max_length"], encoder.config.max_length)
    huggingface.set_truncation(model.tokenizer, model.truncation, model.max_length)
    model.metadata = config["metadata"]
    processes.survive_forks()
    model.to(processes.pick_device(device))
    if not trainable:
        model.prediction_dtype = cpu.speed_up_prediction(model, dtype)
    return model


def read_model_config(folder):
    """config.json of a finished run, checked, with tasks in place of what it says of them."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no trained model there; train one with: python train.py")
    with input_errors(f"{folder} cannot be loaded"):
        if not runs.is_run(folder):
            raise ValueError("it is no run of train.py; a checkpoint is where one starts from")
        saved = former.upgrade(runs.read_record(path), folder)
        if saved["weights_sha256"] is None:
            raise ValueError(f"its training is not finished; {runs.how_to_resume(folder)}")
        config = {}
        for name in ("encoder", "pooling", "truncation", "max_length"):
            config[name] = saved.pop(name)
        for name in ("tokenizer_sha256", "weights_sha256"):
            config[name] = saved.pop(name)
        config["tasks"] = read_tasks(saved.pop("tasks"), saved.pop("fitted"))
        config["metadata"] = saved
        if not isinstance(config["encoder"], dict):
            raise ValueError("its encoder is not described")
        if config["pooling"] not in POOLING or config["truncation"] not in TRUNCATION:
            raise ValueError("its pooling is not known here; import the fork that adds it first")
        if type(config["max_length"]) is not int or config["max_length"] < 4:
            raise ValueError("its max_length must be an integer, 4 or more")
        return config


def read_tasks(saved, fitted):
    """The tasks that config.json describes. Raises ValueError, KeyError, TypeError."""
    tasks = []
    for values in saved:
        kind = values.pop("kind")
        if kind not in KINDS:
            raise ValueError(
                f"the kind of task {kind!r:.40} is not known here; "
                "import the fork that adds it first"
            )
        task = KINDS[kind](**values, **fitted[values["name"]])
        task.check()
        tasks.append(task)
    names = {task.name for task in tasks}
    if not tasks or len(names) < len(tasks):
        raise ValueError("its tasks must be one or more, of different names")
    return tasks


def check_weights(path, state):
    """Raise ValueError unless the file has the tensors of `state`, all in float32."""
    expected = {name: ("F32", list(tensor.shape)) for name, tensor in state.items()}
    found = {}
    with safetensors.safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            found[name] = (part.get_dtype(), part.get_shape())
    if found != expected:
        raise ValueError("its weights do not fit its configuration")


def make_encoder(config, dropout=0.1, mistake="the encoder cannot be made"):
    """The encoder that config.json describes, its weights still to be loaded.

    A configuration that is not valid is an InputError that begins with `mistake`.
    """
    with input_errors(mistake):
        if "transformers" in config:
            return TransformersEncoder(config["transformers"], dropout)
        encoder_config = EncoderConfig(**config)
        encoder_config.check()
    return Encoder(encoder_config, dropout)


def load_encoder(name_or_folder, dropout=0.1):
    """The encoder of a checkpoint on the Hugging Face Hub or in a folder, or of a finished run.

    It is an Encoder, or a TransformersEncoder where transformers has to compute it. Raises
    InputError unless every tensor of the checkpoint, but for its heads, has its place and shape.
    """
    if runs.is_run(name_or_folder):
        former_encoder = load(name_or_folder, "cpu", trainable=True).encoder
        encoder = make_encoder(asdict(former_encoder.config), dropout)
        encoder.load_state_dict(former_encoder.state_dict())
        digest = runs.file_sha256(Path(name_or_folder) / "model.safetensors")
        encoder.source = f"the run {name_or_folder}, weights {digest[:12]}"
        return encoder
    checkpoint = huggingface.read_checkpoint(name_or_folder)
    mistake = f"encoder {str(name_or_folder)!r} cannot be loaded"
    encoder = make_encoder(checkpoint.config, dropout, mistake)
    huggingface.load_weights(encoder, checkpoint, name_or_folder)
    check_finite_weights(encoder, name_or_folder)
    if isinstance(encoder, TransformersEncoder):
        with input_errors(f"encoder {str(name_or_folder)!r} is no encoder of texts"):
            encoder.check()
    encoder.source = checkpoint.source
    return encoder


def check_finite_weights(encoder, name):
    for parameter_name, parameter in encoder.named_parameters():
        if not parameter.isfinite().all():
            tensors = huggingface.transformers_names(parameter_name, encoder.config.model_type)
            found = f"{' or '.join(tensors)} holds NaN or infinity"
            raise InputError(f"encoder {name!r}: its weights are damaged: {found}")


def load_tokenizer(name_or_folder, max_length, vocab_size, truncation="head"):
    """The tokenizer of a checkpoint or a run: a tokenizers.Tokenizer that does not pad.

    Raises InputError where its size is far from the encoder's `vocab_size`: transformers makes an
    empty one, and says nothing, for a folder that has none.
    """
    with input_errors(f"the tokenizer of encoder {name_or_folder!r} cannot be loaded"):
        if runs.is_run(name_or_folder):
            tokenizer = huggingface.read_tokenizer_file(Path(name_or_folder) / "tokenizer.json")
        else:
            tokenizer = huggingface.read_tokenizer(name_or_folder)
        size = tokenizer.get_vocab_size()
        if not vocab_size / 2 < size <= vocab_size:
            raise ValueError(f"it has {size} tokens, and the encoder {vocab_size}")
    huggingface.set_truncation(tokenizer, truncation, max_length)
    return tokenizer


def take_heads(model, folder):
    """Let `model` start from those heads of the run in `folder` that fit its tasks.

    -> {task: a list of its labels that the run does not have}, or None where the run pools
    otherwise.
    """
    former_model = load(folder, "cpu", trainable=True)
    if former_model.pooling != model.pooling:
        return None
    model.pool.load_state_dict(former_model.pool.state_dict())
    former_tasks = {task.name: task for task in former_model.tasks}
    taken = {}
    for task in model.tasks:
        if task.name not in former_tasks:
            continue
        head = model.heads[head_key(task)]
        former_head = former_model.heads[head_key(task)]
        new_labels = task.copy_head(head, former_tasks[task.name], former_head)
        if new_labels is not None:
            taken[task.name] = new_labels
    return taken


def to_transformers(model, folder):
    """Write the encoder and its tokenizer to a new folder, as AutoModel, AutoTokenizer read them.

    The heads stay behind, and how texts are truncated and pooled; a BERT has no pooler. Raises
    InputError.
    """
    check_trainable(model)
    config = asdict(model.encoder.config)
    state = model.encoder.state_dict()
    huggingface.write_checkpoint(Path(folder), config, state, model.tokenizer, model.max_length)
