"""mtbert: several labels from one text, in one pass of one BERT.

    python train.py --variant shared           # learn all tasks of sample_data.json
    python predict.py "great movie"            # one pass of the encoder, one label per task

    model = mtbert.load("runs/shared-1")       # the same from Python
    mtbert.predict(model, ["great movie"])

Read from top to bottom: batches, encoder, heads and loss, variants, training, save and load, prediction. A task is a
key of the rows (data.py). This file never knows a format of theirs, or how a flag is spelled; what must last is in
runs.py, how good it is in metrics.py. Shapes: B examples, T tokens, D hidden size, H heads, C classes.
"""

import itertools
import math
import sys
from array import array
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer

import arithmetic
import checkpoints
import runs
from arithmetic import pick_device, pick_dtype
from checkpoints import DEFAULT_ENCODER, Wrapped, find_encoder, transformers_names
from data import InputError, Task, input_errors, parse_row
from metrics import choose_thresholds, evaluate, is_labelled, label_array, one_answer, score, sigmoid, softmax

# transformers is imported where it is used: prediction does not need it, and starts in a third of the time without.

# ---------------------------------------------------------------------------------------------------------------------
# From text to batches


@dataclass
class Dataset:
    """N encoded rows, end to end in flat arrays: row i is at [offsets[i]:offsets[i + 1]]."""

    input_ids: np.ndarray  # int32
    token_type_ids: np.ndarray  # uint8
    offsets: np.ndarray  # (N + 1,) int64
    labels: dict  # task name -> metrics.label_array: (N,), or (N, C + 1) for several labels a text
    cut: int = 0  # rows that were longer than the tokenizer's maximum
    unknown: float = 0.0  # share of the tokens that the tokenizer does not know

    def __len__(self):
        return len(self.offsets) - 1

    @cached_property
    def lengths(self):
        return np.diff(self.offsets)


LONG = {"head": "were cut", "head+tail": "were cut in the middle (head+tail)"}  # longer texts: what is kept, and said


def encode_texts(tokenizer, texts, long):
    """-> [(ids, type ids, whether it was cut)] of texts and pairs. "head+tail" keeps the first 128 and the last 382 of
    510 tokens of a text (Sun et al. 2019, arXiv:1905.05583), of fewer the same shares; of a pair the longer is cut."""
    if long == "head":
        return [(e.ids, e.type_ids, bool(e.overflowing)) for e in tokenizer.encode_batch_fast(texts)]
    max_length, encoded = tokenizer.truncation["max_length"], []
    tokenizer.no_truncation()
    try:
        encodings = tokenizer.encode_batch_fast(texts)
    finally:
        tokenizer.enable_truncation(max_length)
    for encoding in encodings:
        ids, types, cut = encoding.ids, encoding.type_ids, len(encoding.ids) > max_length
        if cut:
            of = np.array([-1 if n is None else n for n in encoding.sequence_ids])  # 0, 1, or -1 for special tokens
            keep, places = of < 0, [np.flatnonzero(of == n) for n in (0, 1)]
            room = max_length - keep.sum()
            for here, other in (places, places[::-1]):
                n = min(len(here), max(room // 2, room - len(other)))
                head = round(n * 128 / 510) if n < len(here) else n
                keep[here[:head]] = keep[here[len(here) - (n - head) :]] = True
            ids, types = np.array(ids)[keep].tolist(), np.array(types)[keep].tolist()
        encoded.append((ids, types, cut))
    return encoded


def encode(tokenizer, rows, tasks=(), empty=None, long="head"):
    """Tokenize rows -> Dataset. Raises InputError for a row without a token, or adds its number to the list `empty`."""
    input_ids, token_type_ids, offsets, cut = array("i"), bytearray(), array("q", [0]), 0
    for start in range(0, len(rows), 1000):
        chunk = rows[start : start + 1000]
        texts = [row.text if row.text_pair is None else (row.text, row.text_pair) for row in chunk]
        for row, (ids, types, was_cut) in zip(chunk, encode_texts(tokenizer, texts, long), strict=True):
            if len(ids) <= tokenizer.num_special_tokens_to_add(row.text_pair is not None):
                if empty is None:
                    raise InputError(f"{row.where}: no token is left of the text {row.text[:40]!r}")
                empty.append(len(offsets) - 1)
            try:
                input_ids.extend(ids)
                token_type_ids.extend(types)
            except (ValueError, OverflowError):
                raise InputError("the tokenizer does not fit the encoder") from None
            offsets.append(len(input_ids))
            cut += was_cut
    labels = {task.name: label_array(task, [row.labels.get(task.name) for row in rows]) for task in tasks}
    input_ids, offsets = np.frombuffer(input_ids, np.int32), np.frombuffer(offsets, np.int64)
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "[UNK]")
    unknown = float(np.mean(input_ids == unknown)) if unknown is not None and len(rows) else 0.0
    return Dataset(input_ids, np.frombuffer(token_type_ids, np.uint8), offsets, labels, cut, unknown)


def mixture(labels, power, passes=1, most=8):
    """-> how often an epoch draws each row, (N,), on average; {task: the share of these draws that have its label}.

    Tasks are drawn in proportion to labels ** power (Stickland & Murray 2019, arXiv:1902.02671), a row for each of its
    labels, and it brings them all. So rows that have every label are drawn once each, or `passes` times.
    """
    labelled = {name: is_labelled(values) for name, values in labels.items()}
    total = sum(mask.sum() ** power for mask in labelled.values())
    draws = np.minimum(sum(mask * len(mask) * mask.sum() ** (power - 1) / total for mask in labelled.values()), most)
    draws *= math.floor(draws.sum() + 1e-6) / draws.sum() * passes  # the same number in each epoch
    return draws, {name: float((draws * mask).sum() / draws.sum()) for name, mask in labelled.items()}


def default_epochs(draws, batch_size):
    """Epochs of so many draws that make about 250 steps, but at least 3 and at most 20."""
    return min(max(round(250 * batch_size / draws), 3), 20)


def draw_rows(draws, rng):
    """How often one epoch draws each row: `draws` rounded down or up, by systematic sampling along a random order."""
    order, counts = rng.permutation(len(draws)), np.empty(len(draws), int)
    ends = np.floor(np.cumsum(draws[order]) + rng.uniform(0.25, 0.75))  # away from where rounding errors would count
    counts[order] = np.diff(ends, prepend=0)
    return counts


def length_grouped_batches(lengths, batch_size, rng, counts=None):
    """Batches of row numbers for one epoch: shuffled, sorted by length in blocks, shuffled again as batches. Row i
    comes counts[i] times (default: once), at equal distances, in blocks so short that hardly a batch has it twice."""
    rows = rng.permutation(len(lengths))
    times = np.ones(len(rows), int) if counts is None else counts[rows]
    copy = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)  # 0, 1, ... of each row
    place = np.repeat(np.arange(len(rows)) / len(rows), times) + copy / np.repeat(times, times)
    order = np.repeat(rows, times)[np.argsort(place % 1, kind="stable")]
    block = min(32, math.ceil(len(order) / times.max() / batch_size)) * batch_size
    blocks = [order[i : i + block] for i in range(0, len(order), block)]
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in blocks])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def collate(data, rows, config, device):
    """The batch of the given row numbers, padded to its longest or a little more: the arguments of MTBert.forward."""
    starts, lengths = data.offsets[rows], data.lengths[rows]
    # Up to a multiple of 4 in training: oneDNN keeps compiled kernels for each shape, by the hundred megabytes. In
    # prediction these are few, and what padding costs is more. GPUs like multiples of 8.
    multiple = 8 if torch.device(device).type != "cpu" else 4 if torch.is_grad_enabled() else 1
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

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


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
    type_vocab_size: int  # DistilBERT's is 0
    pad_token_id: int
    layer_norm_eps: float
    hidden_act: str
    embedding_size: int  # ELECTRA's; the others have none, and it is hidden_size

    def check(self):
        """Raise ValueError or TypeError for what is no encoder; a file may say anything."""
        others = ("model_type", "hidden_act", "layer_norm_eps", "pad_token_id", "type_vocab_size")
        sizes = [value for name, value in asdict(self).items() if name not in others]
        if not (
            all(type(value) is int and value > 0 for value in sizes)
            and self.num_hidden_layers <= 1000
            and self.hidden_size % self.num_attention_heads == 0
            and type(self.pad_token_id) is type(self.type_vocab_size) is int
            and self.type_vocab_size >= 0
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
        return 0 if self.model_type in ("bert", "electra", "distilbert") else self.pad_token_id + 1

    @property
    def max_length(self):
        return self.max_position_embeddings - self.position_offset


class Dropout(nn.Dropout):
    """nn.Dropout, but on a processor in a third of its time: the mask is made of 16 random bits an element. The scale,
    1 / (1 - p), is rounded to the dtype of x, and the rate fits it: in bfloat16 it is p to within 0.002."""

    def forward(self, x):
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        scale = torch.tensor(1 / (1 - self.p), dtype=x.dtype).item()
        numbers = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = torch.empty(x.shape, dtype=x.dtype)  # in the dtype of x: a bool would be converted there and back again
        torch.ge(numbers[: x.numel()].view(x.shape), round((1 - 1 / scale) * 2**16) - 2**15, out=keep)
        return x * keep.mul_(scale)


class Gather(torch.autograd.Function):
    """x (N, D) -> its rows x[index], (M, D). The gradient's rows are gathered as well, gradient[inverse]: each row of x
    that counts is taken once. (index_select would add up rows one by one.)"""

    @staticmethod
    def forward(ctx, x, index, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


def without_padding(mask):
    """For the (B, T) mask of a batch -> two functions: from all places, (B, T, D), to its tokens, (N, D), and back.

    N is a multiple of 32, filled up with padding, since oneDNN compiles kernels for each N. Padding that is left out
    comes back as other padding, so the loss must not depend on it."""
    count = int(mask.sum())
    to_place = mask.flatten().int().argsort(descending=True, stable=True)[: -(-(count + 1) // 32) * 32]  # (N,)
    to_token = torch.full((mask.numel(),), count)  # (B * T,), its inverse
    to_token[to_place] = torch.arange(len(to_place))
    return (
        lambda x: Gather.apply(x.flatten(0, 1), to_place, to_token),
        lambda x: Gather.apply(x, to_token, to_place).unflatten(0, mask.shape),
    )


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

    def forward(self, x, mask, unpad, pad):
        # x is (B, T, D), or (N, D) between an `unpad` and a `pad` of without_padding
        (B, _, _, T), D, H = mask.shape, x.shape[-1], self.num_heads
        qkv = pad(self.qkv(x)).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D / H)
        if x.device.type == "cpu" and (self.training or (qkv.dtype == torch.bfloat16 and T < 96)):
            # Plain products: in bfloat16 the fused kernel takes twice their time for short texts, and its dropout is
            # slow. Sum and softmax are in float32: exact, and three times as fast as the softmax of bfloat16.
            (q, k, v), bias = qkv.contiguous(), torch.where(mask, 0.0, -math.inf)
            scores = torch.add(bias, q @ k.transpose(-1, -2), alpha=(D // H) ** -0.5)  # (B, H, T, T)
            attention = self.dropout(scores.softmax(-1).to(v.dtype)) @ v
        else:
            (q, k, v), dropout = qkv, self.dropout.p if self.training else 0.0
            attention = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        attention = unpad(attention.transpose(1, 2).reshape(B, T, D))  # from (B, H, T, D / H)
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
        self.token_type_embeddings = table(config.type_vocab_size) if config.type_vocab_size else None
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
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings(token_type_ids)
        mask = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T), the same for all heads and queries
        unpad, pad = nn.Identity(), nn.Identity()
        if self.training and x.device.type == "cpu" and not torch.compiler.is_compiling():
            unpad, pad = without_padding(mask[:, 0, 0])  # prediction has hardly any, and GPUs would wait for N
        x = self.embedding_projection(self.dropout(self.embedding_norm(unpad(x))))  # E -> D
        for layer in self.layers:
            x = layer(x, mask, unpad, pad)
        return pad(x)

    @classmethod
    def from_pretrained(cls, name_or_folder, dropout=0.1):
        """The encoder of a checkpoint on the Hugging Face Hub or in a folder, read through transformers, or that of a
        finished run. It is an Encoder, or a Wrapped one where transformers has to compute it.

        Every tensor of the checkpoint must have its place and its shape here, but for the heads that it was trained
        with; else InputError is raised.
        """
        if runs.is_run(name_or_folder):
            former = load(name_or_folder, "cpu", "float32").encoder
            encoder = make_encoder(asdict(former.config), dropout)
            encoder.load_state_dict(former.state_dict())
            digest = runs.file_sha256(Path(name_or_folder) / "model.safetensors")
            encoder.source = f"the run {name_or_folder}, weights {digest[:12]}"
            return encoder
        folder, source = find_encoder(name_or_folder)
        with input_errors(f"encoder {name_or_folder!r} cannot be loaded (from {source})"):
            config, state, wrong, revision = checkpoints.read_checkpoint(folder)
            model_type = config["model_type"]
            if model_type in MODEL_TYPES and config.get("hidden_act") in ACTIVATIONS:
                config = {"embedding_size": config["hidden_size"]} | config
                config = {name: config[name] for name in EncoderConfig.__dataclass_fields__}
            else:
                config = {"transformers": config}
            encoder = make_encoder(config, dropout)
            bundled = name_or_folder == DEFAULT_ENCODER
            if bundled and runs.file_sha256(folder / "model.safetensors") != checkpoints.DEFAULT_ENCODER_SHA256:
                raise ValueError("these are not the published weights; install it again")
        encoder.source = f"{source}, revision {revision}" if revision else source
        for name, parameter in encoder.named_parameters():
            parts = transformers_names(name, model_type)
            tensors = [state.pop(part) for part in parts if part in state]
            if tensors and torch.cat(tensors).shape == parameter.shape:
                parameter.data.copy_(torch.cat(tensors))
            else:
                wrong |= set(parts)
        if wrong := wrong | set(state):
            wrong = ", ".join(sorted(wrong)[:5])
            raise InputError(f"encoder {name_or_folder!r}: tensors missing or not fitting: {wrong}")
        if isinstance(encoder, Wrapped):
            with input_errors(f"encoder {name_or_folder!r}, a {model_type}, is no encoder of texts"):
                encoder.check()
        return encoder


def make_encoder(config, dropout=0.1):
    """The encoder that config.json describes, its weights still to be loaded. Raises ValueError, TypeError and more."""
    if "transformers" in config:
        return Wrapped(config["transformers"], dropout)
    config = EncoderConfig(**config)
    config.check()
    return Encoder(config, dropout)


def load_tokenizer(name_or_folder, max_length, vocab_size):
    """The checkpoint's tokenizer, as a tokenizers.Tokenizer that cuts at `max_length` tokens and does not pad.

    Raises InputError where its size is far from the encoder's `vocab_size`: transformers makes an empty one, without
    a word, for a folder that has none.
    """
    with input_errors(f"the tokenizer of encoder {name_or_folder!r} cannot be loaded"):
        if runs.is_run(name_or_folder):
            tokenizer = Tokenizer.from_file(str(Path(name_or_folder) / "tokenizer.json"))
        else:
            tokenizer = checkpoints.read_tokenizer(find_encoder(name_or_folder)[0])
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
        self.long = "head"  # what is kept of a text that is longer than the tokenizer's maximum
        self.balanced = False  # whether each class weighs the same in the loss, however rare it is
        self.record = {}  # what config.json says of the run besides: flags, versions, data
        self.dropout = Dropout(dropout)
        D = encoder.config.hidden_size
        self.heads = nn.ModuleDict({head(task): nn.Linear(D, len(task.labels or [0])) for task in tasks})

    def forward(self, input_ids, attention_mask, token_type_ids=None, labels=None):
        """-> {task: (B, C) logits} and, where `labels` are given, {task: loss}, else {}.

        `labels` is as in Dataset.labels. The loss of a task is the sum over its labelled rows (of cross-entropy, of
        several labels a text the sum of each one's, or of the squared error of the z-score) divided by B: every row
        counts the same wherever it falls, and a batch without a label for a task adds nothing.
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
        return logits, {t.name: loss_sum(t, logits[t.name], labels[t.name], self.balanced) / len(pooled) for t in tasks}


def head(task):
    """The key of a task's head: ModuleDict refuses dots, and names of its own such as "type"."""
    return "head_" + task.name.replace("%", "%25").replace(".", "%2E")


def take_heads(model, folder):
    """Where `folder` is a run, let `model` start from its heads of tasks with the same name and labels -> their names,
    or None where the run pools otherwise."""
    former = load(folder, "cpu", "float32") if runs.is_run(folder) else None
    if former is None or former.pooling != model.pooling:
        return None if former else []
    then = {task.name: task for task in former.tasks}
    taken = [task for task in model.tasks if task.name in then and then[task.name].labels == task.labels]
    taken = [task for task in taken if then[task.name].several == task.several]
    for task in taken:
        old, former_head, new = then[task.name], former.heads[head(task)], model.heads[head(task)]
        new.weight.data.copy_(former_head.weight * (old.std / task.std))  # both are 1 for classes
        new.bias.data.copy_((former_head.bias * old.std + old.mean - task.mean) / task.std)
    return [task.name for task in taken]


def loss_sum(task, logits, labels, balanced=False):
    if not task.labels:
        return ((logits.squeeze(1) - labels.nan_to_num()).square() * ~labels.isnan()).sum()
    # balanced as in scikit-learn: rows / (classes * rows of the class)
    weight = sum(task.counts) / len(task.counts) / logits.new_tensor(task.counts) if balanced else None
    if not task.several:
        return F.cross_entropy(logits, labels, weight, ignore_index=-100, reduction="sum")
    yes, known = labels[:, :-1].nan_to_num(), ~labels[:, :1].isnan()  # (B, C), (B, 1)
    return F.binary_cross_entropy_with_logits(logits, yes, known.float(), pos_weight=weight, reduction="sum")


# ---------------------------------------------------------------------------------------------------------------------
# Variants and parameter groups

VARIANTS = {  # head_lr: the default of --head-lr; None, and the heads learn at --lr as well
    "single": {"all_tasks": False, "head_lr": None},
    "shared": {"all_tasks": True, "head_lr": None},
    "separate-lr": {"all_tasks": True, "head_lr": 5e-3},
}


def freeze_embeddings(encoder):
    """Leave as they are: the embeddings of tokens, positions and types, their norm and projection. No gradient."""
    for name, parameter in encoder.named_parameters():
        if "embed" in name:
            parameter.requires_grad_(False)


def parameter_groups(model, lr, head_lr, layer_decay, weight_decay):
    """AdamW's groups: the encoder (with `layer_decay` below 1 one part a layer, each learning slower than the one
    above it, the embeddings slowest) and the heads. Biases and layer norms, the vectors, do not decay."""
    layers, level, groups = len(model.encoder.layers), 0, {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("heads."):
            part, rate = "heads", head_lr
        elif layer_decay == 1:
            part, rate = "encoder", lr
        else:
            numbers = [int(part) + 1 for part in name.split(".") if part.isdigit()]
            if numbers or "embed" in name:  # what has neither, such as a final norm, belongs to the layer before it
                level = min(numbers[0], layers) if numbers else 0
            part, rate = f"layer {level}" if level else "embeddings", lr * layer_decay ** (layers - level)
        decay = weight_decay if parameter.ndim > 1 else 0.0
        group = {"name": part, "lr": rate, "weight_decay": decay, "params": []}
        groups.setdefault((part, decay), group)["params"].append(parameter)
    return list(groups.values())


# ---------------------------------------------------------------------------------------------------------------------
# Training


CPU_TOKENS = 2048  # of a training batch are computed at a time on a processor


def forward_backward(model, data, rows, weights, accumulate):
    """Add the gradient of the batch `rows` to the parameters -> {task: loss}, of this process's share of the rows.

    `model` is an MTBert, or it in a DistributedDataParallel, which takes the mean over the processes. The share is
    computed in `accumulate` parts, or on a processor in as many as bound the memory of long texts, at equal speed.
    """
    inner = getattr(model, "module", model)
    device = next(inner.parameters()).device
    rank, processes = runs.processes()
    mine, size = rows[rank::processes], len(rows)
    if not len(mine):  # fewer rows than processes: take part, but count for nothing
        mine, size = rows[:1], math.inf
    if device.type == "cpu":
        accumulate = max(accumulate, math.ceil(len(mine) * data.lengths[mine].max() / CPU_TOKENS))
    parts, losses = np.array_split(mine, min(accumulate, len(mine))), Counter()
    for part in parts:
        with nullcontext() if part is parts[-1] or processes == 1 else model.no_sync():
            _, loss = model(**collate(data, part, inner.encoder.config, device))
            share = len(part) / size
            (processes * share * sum(weights[name] * loss[name] for name in loss)).backward()
        losses.update({name: share * value.item() for name, value in loss.items()})
    return losses


def conflict(model, data, rows, weights, accumulate):
    """How the tasks' gradients for the batch `rows` agree, all under the dropout masks of the step that follows ->
    {"norms": {task: [of each layer]}, "cosines": {task: {task: [of each layer]}}}; a cosine is None where a gradient is
    zero. The model's own gradient is cleared."""
    layers, seed, gradients = getattr(model, "module", model).encoder.layers, torch.initial_seed(), {}
    for task in weights:
        forward_backward(model, data, rows, {name: w * (name == task) for name, w in weights.items()}, accumulate)
        gradients[task] = [torch.cat([p.grad.flatten() for p in layer.parameters()]) for layer in layers]
        model.zero_grad()
        torch.manual_seed(seed)
    norms = {task: [g.norm().item() for g in by_layer] for task, by_layer in gradients.items()}
    cosines = {task: {} for task in weights}
    for one, other in itertools.combinations(weights, 2):
        both = zip(gradients[one], gradients[other], norms[one], norms[other], strict=True)
        cosines[one][other] = [(g @ h).item() / (a * b) if a * b else None for g, h, a, b in both]
    return {"norms": norms, "cosines": cosines}


def train(model, data, args, folder):
    """Train on data["train"] with the flags of train.py, from the folder's snapshot on where there is one.

    -> the weights of the epoch that is best on data["validation"] (a state dict on the processor), its validation
    metrics, seconds spent in training steps, rows in these. Best is the highest mean over tasks of macro-F1 (of several
    labels a text that under the threshold that makes it highest) or Pearson.
    Raises InputError when a loss is not finite, KeyboardInterrupt(exit status, what to do) once stopped by a signal.
    Of several processes each computes its share of a gradient; all take the steps that one would take.
    """
    from transformers import get_linear_schedule_with_warmup

    rows, (draws, shares) = data["train"], mixture(data["train"].labels, args.task_sampling, args.passes)
    # Sums over labelled rows are divided by the number of these that a batch holds on average, a constant, so that each
    # draw counts the same; then the tasks are added up as they are (Kurin et al. 2022, arXiv:2201.04122).
    weights = {task.name: args.task_weights.get(task.name, 1.0) / shares[task.name] for task in model.tasks}
    model.balanced = args.class_weights == "balanced"
    groups = parameter_groups(model, args.lr, args.head_lr, args.layer_decay, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, fused=next(model.parameters()).device.type in ("cpu", "cuda"))
    steps = args.epochs * math.ceil(round(draws.sum()) / args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(args.warmup_ratio * steps), steps)
    parallel = runs.in_parallel(model, unused=isinstance(model.encoder, Wrapped))  # some of theirs have such parameters

    with runs.Run(folder, args.seed, model, optimizer, schedule, args.save_every) as run:
        for epoch in run.epochs(args.epochs, args.patience):
            counts = draw_rows(draws, np.random.default_rng([args.seed, epoch, 1]))
            rng = np.random.default_rng([args.seed, epoch])
            model.train()
            for batch in run.steps(length_grouped_batches(rows.lengths, args.batch_size, rng, counts)):
                more = {}
                if args.conflict_every and run.step % args.conflict_every == 0:
                    more["conflict"] = conflict(parallel, rows, batch, weights, args.accumulate)
                losses = forward_backward(parallel, rows, batch, weights, args.accumulate)
                norm = arithmetic.clip_gradients(optimizer, args.clip or math.inf)
                rates = schedule.get_last_lr()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                run.log({task: loss / shares[task] for task, loss in losses.items()}, len(batch), rates, norm, **more)
            logits = compute_logits(model, data["validation"])
            choose_thresholds(model.tasks, data["validation"].labels, logits)
            metrics = evaluate(model.tasks, data["validation"].labels, logits)
            run.end_epoch(metrics, {task: score(result) for task, result in metrics.items()}, one_answer(metrics))
    return run.best, run.validation, run.seconds, run.trained


@torch.inference_mode()
def compute_logits(model, data, batch_size=32):
    """{task: (N, C) float32 array} for a Dataset of N rows, in its order; batches are made by length."""
    model.eval()
    device, (rank, processes) = next(model.parameters()).device, runs.processes()
    logits = {task.name: torch.zeros(len(data), len(task.labels or [0])) for task in model.tasks}
    order = np.argsort(data.lengths, kind="stable")[::-1].copy()  # the longest first: a lack of memory shows at once
    for start in range(rank * batch_size, len(order), processes * batch_size):  # every process its share of the batches
        rows = order[start : start + batch_size]
        batch = collate(data, rows, model.encoder.config, device) | {"labels": None}  # it needs no loss
        for name, values in model(**batch)[0].items():
            logits[name][rows] = values.cpu()
    logits = {name: runs.sum_over_processes(values, device).numpy() for name, values in logits.items()}
    for name, values in logits.items():
        if not np.isfinite(values).all():
            raise runs.Diverged(f"the model gives {name!r} no finite value: its training diverged; try a lower rate")
    return logits


# ---------------------------------------------------------------------------------------------------------------------
# Save and load


def describe_model(model):
    """What config.json says of a model, before there are weights to speak of."""
    return {
        "encoder": asdict(model.encoder.config),
        "tasks": [asdict(task) for task in model.tasks],
        "pooling": model.pooling,
        "long": model.long,
        **model.record,
        "tokenizer_sha256": sha256(model.tokenizer.to_str().encode()).hexdigest(),
        "weights_sha256": None,
    }


def save(model, folder, finished=True):
    """Write what prediction needs: tokenizer.json, model.safetensors, and config.json, which makes the others count.

    With `finished=False` all but the weights: what there is of a run at its start.
    """
    folder, config = Path(folder), describe_model(model)
    check_float32(model)
    runs.write(folder / "tokenizer.json", model.tokenizer.to_str().encode())
    if finished:
        weights = folder / "model.safetensors"
        config["weights_sha256"] = runs.write_tensors(weights, safetensors.torch.save_file, model.state_dict())
    runs.write_record(folder / "config.json", config)


def check_float32(model):
    if any(tensor.dtype != torch.float32 or tensor.is_mkldnn for tensor in model.parameters()):
        raise InputError('a model is saved in float32; load it with dtype="float32"')


def to_transformers(model, folder):
    """Write the encoder and its tokenizer to a new folder as transformers has them, for AutoModel and all that builds
    on it. The heads stay behind, and how texts are cut and pooled; a BERT has no pooler. Raises InputError."""
    check_float32(model)
    config, state = asdict(model.encoder.config), {}
    for name, tensor in model.encoder.state_dict().items():
        parts = transformers_names(name, config["model_type"])
        state |= zip(parts, tensor.chunk(len(parts)), strict=True)
    names = checkpoints.DISTILBERT if config["model_type"] == "distilbert" else {}
    values = config.get("transformers") or {names.get(name, name): value for name, value in config.items()}
    checkpoints.write_checkpoint(Path(folder), values, state, model.tokenizer, model.encoder.config)


def load(folder, device="auto", dtype="auto"):
    """The model that `save` wrote to `folder`, in evaluation mode, its encoder in `dtype`. Raises InputError. It is
    for prediction alone, unless dtype is "float32": then it can be trained, saved and exported as well.

    Nothing in the files is trusted: shapes are compared before anything is allocated, contents with their SHA-256.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no trained model there; train one with: python train.py")
    with input_errors(f"{folder} cannot be loaded"):
        if not runs.is_run(folder):
            raise ValueError("it is no run of train.py; a checkpoint is where one starts from")
        config = runs.read_record(folder / "config.json")
        if config["weights_sha256"] is None:
            raise ValueError(f"its training is not finished; {runs.how_to_go_on(folder)}")
        encoder, long = config.pop("encoder"), config.pop("long", "head")  # runs of before had no other
        if "transformers" in encoder and "transformers" not in sys.modules:
            runs.note(f"the encoder is a {encoder['model_type']}; transformers computes it, and is imported")
        tasks = [Task(**task) for task in config.pop("tasks")]
        for task in tasks:
            task.check()
        if not tasks or len({task.name for task in tasks}) < len(tasks):
            raise ValueError("its tasks are not valid")
        if config["pooling"] not in POOLING or long not in LONG:
            raise ValueError("its pooling, or what it keeps of long texts, is not valid")
        with torch.device("meta"):  # shapes without memory
            model = MTBert(make_encoder(encoder), tasks, None, config.pop("pooling"))
        if asdict(model.encoder.config) != encoder or sum(buffer.numel() for buffer in model.buffers()) > 2**24:
            raise ValueError("its configuration is not valid")
        with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
            found = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if found != {name: ("F32", list(tensor.shape)) for name, tensor in model.state_dict().items()}:
            raise ValueError("its weights do not fit its configuration")
        for name, key in (("tokenizer.json", "tokenizer_sha256"), ("model.safetensors", "weights_sha256")):
            runs.check_sha256(folder / name, config.pop(key))
        state = safetensors.torch.load_file(folder / "model.safetensors")
        state = {name: tensor.clone() for name, tensor in state.items()}  # in aligned memory, not in the file
        if isinstance(model.encoder, Wrapped):
            model.encoder = make_encoder(encoder)  # for its buffers, which are in no file
        model.load_state_dict(state, assign=True)
        model.long, model.record = long, config
        model.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        longest = model.encoder.config.max_length
        model.tokenizer.enable_truncation(min((model.tokenizer.truncation or {}).get("max_length", longest), longest))
        model.tokenizer.no_padding()
    device = pick_device(device)
    picked = pick_dtype(dtype, device, predict=isinstance(model.encoder, Encoder))  # others were not measured in int8
    for parameter in model.encoder.parameters():  # no buffers: a rotary encoder would lose its positions
        parameter.data = parameter.data.to(picked if picked != torch.int8 else torch.float32)
    model.to(device).eval()
    return model if str(dtype).endswith("float32") else pack(model, int8=picked == torch.int8)


def pack(model, int8=False):
    """Let a model that was loaded with dtype="float32" predict faster, where the processor can, and do nothing else ->
    the same model. `load` does it for the other dtypes."""
    encoder = model.encoder
    if int8:
        arithmetic.replace_linear(encoder.layers, arithmetic.Int8Linear)
    elif isinstance(encoder, Encoder) and arithmetic.has_packed(encoder.word_embeddings.weight):
        for layer in encoder.layers:
            arithmetic.replace_linear(layer, arithmetic.PackedLinear)
            if isinstance(layer.intermediate, arithmetic.PackedLinear):
                layer.intermediate.activation, layer.activation = encoder.config.hidden_act, nn.Identity()
    encoder.requires_grad_(False)  # gradients would leave out the packed layers, and be wrong
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Prediction


def predict(model, texts):
    """A list of {task: prediction}, one for each text or (text, text_pair), in order.

    A prediction is {"label", "name", "probability", "probabilities": {label: p}}, of several labels a text {"labels",
    "names", "probabilities"}, or {"value"} for a number. Raises InputError for a text without tokens. Probabilities are
    calibrated on the validation rows.
    """
    if isinstance(texts, str):
        raise InputError("predict takes a list of texts")
    pairs = [text if isinstance(text, (tuple, list)) and len(text) == 2 else (text, None) for text in texts]
    rows = [parse_row(f"text {i}", {"text": text, "text_pair": pair}) for i, (text, pair) in enumerate(pairs, 1)]
    return predict_encoded(model, encode(model.tokenizer, rows, long=model.long))


def predict_encoded(model, data):
    """As `predict`, for a Dataset."""
    return decode(model.tasks, compute_logits(model, data))


def decode(tasks, logits):
    """The predictions that logits, {task: (N, C)}, stand for: a list of {task: prediction}."""
    by_task = [[decode_one(task, row) for row in logits[task.name]] for task in tasks]
    return [dict(zip([task.name for task in tasks], row, strict=True)) for row in zip(*by_task, strict=True)]


def decode_one(task, logits):
    if not task.labels:
        return {"value": float(logits[0]) * task.std + task.mean}
    p = (sigmoid if task.several else softmax)(logits / task.temperature).tolist()
    probabilities = dict(zip(task.labels, p, strict=True))
    if task.several:
        labels = [label for label in task.labels if probabilities[label] >= task.threshold]
        return {"labels": labels, "names": [task.names[str(x)] for x in labels], "probabilities": probabilities}
    best = int(np.argmax(p))
    label = task.labels[best]
    return {"label": label, "name": task.names[str(label)], "probability": p[best], "probabilities": probabilities}
