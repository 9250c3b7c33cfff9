"""Hostile configurations: what becomes of checkpoints and run folders that ask for too much.

A part of faults.py, which says how often. Of each type of encoder that transformers trains on
masked words there is a tiny checkpoint, and a run folder where mtbert can take it. In their
config.json one field is changed: an integer to 10**5, 2**31 or 2**62, a list to a million entries,
a text to a path. It must be refused in one line, or compute as before, in a process of its own
that takes two seconds of a CPU and 200 MiB at most beyond what the unchanged one takes.
"""

import json
import os
import resource
import traceback
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import transformers
from tqdm import tqdm
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

import mtbert
from support import huggingface, runs
from support.errors import InputError

SIZES = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "n_heads": 4,
    "n_head": 4,
    "head_dim": 8,
    "d_head": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "hidden_dim": 48,
    "d_inner": 48,
    "feed_forward_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 101,
    "cls_token_id": 101,
    "eos_token_id": 102,
    "sep_token_id": 102,
    "mask_token_id": 103,
}
OWN_SIZES = {
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 64,
        "attention_head_size": 8,
    },
    "longformer": {"attention_window": 8},
    "modernbert": {"local_attention": 8},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 32},
    "roc_bert": {"pronunciation_embed_dim": 32, "shape_embed_dim": 32, "shape_vocab_size": 20},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
}
TEXTS = ["great movie", "no"]
MAX_SECONDS = 2  # of a CPU
MAX_MEMORY = 200 * 2**10  # KiB
OUTCOMES = {0: "as before", 1: "otherwise", 2: "refused"}


# --------------------------------------------------------------------------------------------------
# Checkpoints and run folders


def import_modules(model_types=tuple(MODEL_FOR_MASKED_LM_MAPPING_NAMES)):
    """Once here, and not in each process."""
    huggingface.import_transformers()
    for model_type in model_types:
        config_class = transformers.CONFIG_MAPPING[model_type]
        if config_class in transformers.MODEL_MAPPING:
            transformers.MODEL_MAPPING[config_class]  # imported only now


def tiny_values(model_type):
    """All fields of a small configuration of a type; of the usual one if there is no small one."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    usual = json.loads(config_class().to_json_string(use_diff=False))
    changes = {}
    for name, value in (SIZES | OWN_SIZES.get(model_type, {})).items():
        if name in usual:
            changes[name] = value
    try:
        return json.loads(config_class(**changes).to_json_string(use_diff=False))
    except Exception:  # each type has its own conditions
        return usual


def make_checkpoint(folder, model_type):
    """A random checkpoint; hardly any weights if it is refused anyway."""
    values = tiny_values(model_type)
    state = {"weight": torch.zeros(100, 32)}
    try:
        huggingface.check_values(values)
        with torch.device("meta"):
            module = huggingface.make_module(huggingface.describing(values))
        if sum(parameter.numel() for parameter in module.parameters()) < 2**23:
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(**values)
            module = transformers.AutoModel.from_config(config)
            state = module.state_dict()
    except Exception:
        pass
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    bundled, _ = huggingface.find_encoder(huggingface.DEFAULT_ENCODER)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bundled / name).read_bytes())


def make_run(folder, checkpoint):
    """A run folder with the encoder of a checkpoint, if mtbert can take it."""
    try:
        encoder = mtbert.load_encoder(checkpoint)
    except InputError:
        return
    tokenizer = mtbert.load_tokenizer(checkpoint, 64, encoder.config.vocab_size)
    task = mtbert.Classification("liked", ["no", "yes"], [20, 20], {"no": "no", "yes": "yes"})
    model = mtbert.MTBert(encoder, [task], tokenizer)
    model.max_length = 64
    folder.mkdir()
    mtbert.save(model.eval(), folder)


def read_values(folder):
    """What config.json says of the encoder."""
    if not runs.is_run(folder):
        return json.loads((folder / "config.json").read_text())
    encoder = runs.read_record(folder / "config.json")["encoder"]
    return encoder.get("transformers", encoder)


def write_values(folder, values):
    if not runs.is_run(folder):
        (folder / "config.json").write_text(json.dumps(values))
        return
    config = runs.read_record(folder / "config.json")
    if "transformers" in config["encoder"]:
        config["encoder"]["transformers"] = values
    else:
        config["encoder"] = values
    runs.write_record(folder / "config.json", config)


def compute(folder):
    """What the model in a folder computes for TEXTS, as JSON. Raises InputError."""
    if runs.is_run(folder):
        return json.dumps(mtbert.predict(mtbert.load(folder), TEXTS))
    encoder = mtbert.load_encoder(folder).eval()
    mtbert.load_tokenizer(folder, 64, encoder.config.vocab_size)
    ids = torch.arange(16).view(2, 8) + 100
    with torch.no_grad():
        hidden = encoder(ids, torch.ones_like(ids))
    return json.dumps(hidden.tolist())


# --------------------------------------------------------------------------------------------------
# Changes


def hostile_values(value):
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [10**5, 2**31, 2**62]
    if isinstance(value, list):
        return [[*value, 0][:1] * 10**6]
    if isinstance(value, str):
        return ["/etc/passwd"]
    return []


def list_changes(folders):
    """All (folder, field, value) there are."""
    changes = []
    for folder in folders:
        for name, value in read_values(folder).items():
            for hostile in hostile_values(value):
                changes.append((folder, name, hostile))
    return changes


class Outcome(NamedTuple):
    what: str  # one of OUTCOMES, or what went wrong
    seconds: float
    memory: int  # KiB, beyond that of the process it was forked off


def in_child(function, *arguments):
    """Call a function in a process of its own, with limits -> Outcome by its return value."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
            resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
            status = function(*arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    what = OUTCOMES.get(code, f"it ends with {code}")
    memory = usage.ru_maxrss - pages * resource.getpagesize() // 1024
    return Outcome(what, usage.ru_utime + usage.ru_stime, memory)


def make_both(parent, model_type):
    make_checkpoint(parent / f"{model_type}-checkpoint", model_type)
    make_run(parent / f"{model_type}-run", parent / f"{model_type}-checkpoint")
    return 0


def try_folder(folder, expected):
    """A key of OUTCOMES. What is computed goes to the file `expected` if it is not there yet."""
    try:
        computed = compute(folder)
    except InputError as error:
        if "\n" in str(error):
            raise
        return 2
    if not expected.exists():
        expected.write_text(computed)
    return int(computed != expected.read_text())


def try_change(folder, name, hostile):
    original = (folder / "config.json").read_bytes()
    write_values(folder, read_values(folder) | {name: hostile})
    outcome = in_child(try_folder, folder, folder / "expected")
    (folder / "config.json").write_bytes(original)
    return outcome


def try_configurations(parent, count, rng):
    """Try `count` of all changes -> {"checkpoint" or "run": {outcome: how many}}."""
    import_modules()
    folders = []
    usual = {}
    for model_type in tqdm(MODEL_FOR_MASKED_LM_MAPPING_NAMES, "checkpoints", disable=None):
        in_child(make_both, parent, model_type)
        for folder in sorted(parent.glob(f"{model_type}-*")):
            folders.append(folder)
            usual[folder] = in_child(try_folder, folder, folder / "expected")
    changes = list_changes(folders)
    print(f"{len(folders)} folders, {len(changes)} changes", flush=True)
    rng.shuffle(changes)
    table = {"checkpoint": {}, "run": {}}
    for folder, name, hostile in tqdm(changes[:count], "configurations", disable=None):
        outcome = try_change(folder, name, hostile)
        what = outcome.what
        memory = outcome.memory - usual[folder].memory
        if outcome.seconds > usual[folder].seconds + MAX_SECONDS or memory > MAX_MEMORY:
            what = "too much"
        if what not in ("as before", "refused"):
            cost = f"{outcome.seconds:.1f} s, {memory // 1024} MiB more"
            print(f"{folder.name}, {name} = {str(hostile)[:40]}: {what}, {cost}", flush=True)
        counts = table[folder.name.rsplit("-", 1)[1]]
        counts[what] = counts.get(what, 0) + 1
    return table


def print_outcomes(table):
    for kind, counts in table.items():
        for what, count in sorted(counts.items()):
            print(f"hostile configuration of a {kind}: {what:30}{count:8}")
