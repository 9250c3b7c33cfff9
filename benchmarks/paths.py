"""The real encoder in the other ways that train.py can take it: what it scores, how fast it learns.

python benchmarks/paths.py --data DATA --out OUT       # DATA/rest14/train.jsonl and test.jsonl

The default weights are written anew as checkpoints of other types that compute the same: as a
DistilBERT, whose positions include the token type, and as an MPNet with relative positions of zero,
which transformers computes. So scores differ by chance only, and the seconds are the price of the
way.
"""

import json
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mtbert
import train
from support import huggingface
from support.files import read_rows
from support.script import Parser, run_script

DEFAULT_ENCODER = huggingface.DEFAULT_ENCODER
TEXTS = ["The food was great, but the staff was rude to us.", "Never again.", "fair prices " * 20]
TOPICS = ("miscellaneous", "ambience", "food", "price", "service")
# The modules of BERT, and what MPNet calls them; the longer names first
MPNET = {
    "attention.self.query": "attention.attn.q",
    "attention.self.key": "attention.attn.k",
    "attention.self.value": "attention.attn.v",
    "attention.output.dense": "attention.attn.o",
    "attention.output.LayerNorm": "attention.LayerNorm",
}


def load_default():
    """-> the default encoder and its tokenizer."""
    encoder = mtbert.load_encoder(DEFAULT_ENCODER).eval()
    config = encoder.config
    return encoder, mtbert.load_tokenizer(DEFAULT_ENCODER, config.max_length, config.vocab_size)


def write_distilbert(folder):
    encoder, tokenizer = load_default()
    state = encoder.state_dict()
    token_types = state.pop("token_type_embeddings.weight")
    state["position_embeddings.weight"] += token_types[0]
    config = replace(encoder.config, model_type="distilbert", type_vocab_size=0)
    huggingface.write_checkpoint(folder, asdict(config), state, tokenizer, config.max_length)


def write_mpnet(folder):
    encoder, tokenizer = load_default()
    config = encoder.config
    state = mpnet_state(encoder.state_dict(), config)
    values = asdict(config)
    for field in ("type_vocab_size", "embedding_size", "position_offset"):
        del values[field]
    values["model_type"] = "mpnet"
    values["max_position_embeddings"] = config.max_position_embeddings + 2
    values["relative_attention_num_buckets"] = 32
    transformers_config = {"transformers": values, "model_type": "mpnet", "type_vocab_size": 0}
    transformers_config["pad_token_id"] = config.pad_token_id
    huggingface.write_checkpoint(folder, transformers_config, state, tokenizer, config.max_length)


def mpnet_state(state, config):
    """The tensors of an MPNet with the names that a TransformersEncoder has for them."""
    result = {}
    for name, tensor in state.items():
        parts = huggingface.transformers_names(name, "bert")
        for part, values in zip(parts, tensor.chunk(len(parts)), strict=True):
            for bert_name, mpnet_name in MPNET.items():
                part = part.replace(bert_name, mpnet_name)
            result[f"module.{part}"] = values
    token_types = result.pop("module.embeddings.token_type_embeddings.weight")
    positions = result["module.embeddings.position_embeddings.weight"] + token_types[0]
    # It counts positions from two.
    positions = torch.cat([positions[:2], positions])
    result["module.embeddings.position_embeddings.weight"] = positions
    bias = torch.zeros(32, config.num_attention_heads)
    result["module.encoder.relative_attention_bias.weight"] = bias
    return result


@torch.no_grad()
def hidden_states(encoder, folder):
    """(3, T, D) of TEXTS, zero on padding; `encoder` is one of ours or of transformers."""
    from transformers import AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    input_ids = batch["input_ids"]
    attention_mask = batch["attention_mask"]
    hidden = encoder.eval()(input_ids, attention_mask, torch.zeros_like(input_ids))
    hidden = getattr(hidden, "last_hidden_state", hidden)
    return hidden * attention_mask[:, :, None]


def largest_difference(one, other):
    return f"{(one - other).abs().max():.1e}"


def learn(name, out, *flags):
    """Train in the folder OUT/NAME, and print scores and seconds -> the folder."""
    folder = out / name
    start = time.perf_counter()
    with redirect_stdout(StringIO()):
        train.main([*map(str, flags), "--out", str(folder), "--overwrite"])
    seconds = time.perf_counter() - start
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    scores = []
    for task, result in metrics["test"].items():
        scores.append(f"{task} macro-F1 {100 * result['macro_f1']:.1f}")
        if "exact_match" in result:
            scores.append(f"exact match {100 * result['exact_match']:.1f}")
    times = f"{metrics['train_seconds']:.1f} of {seconds:.1f} s"
    print(f"{name:22}{', '.join(scores)}; {times}", flush=True)
    return folder


def write_tags(source, path):
    """rest14 with both labels of a text as one list."""
    lines = []
    for raw in read_rows(source):
        tags = [raw.values["sentiment"], TOPICS[raw.values["category"]]]
        lines.append(json.dumps({"text": raw.values["text"], "tags": tags}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def main():
    parser = Parser(description="The real encoder in the other ways that train.py can take it.")
    parser.add_argument("--data", type=Path, required=True, help="a folder that holds rest14")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    sources = {split: args.data / f"rest14/{split}.jsonl" for split in ("train", "test")}
    epochs = ["--epochs", args.epochs]
    rest14 = ["--data", sources["train"], "--test", sources["test"], *epochs]

    first = learn("bert", out, *rest14)
    exact = hidden_states(load_default()[0], huggingface.find_encoder(DEFAULT_ENCODER)[0])
    for name, write in (("distilbert", write_distilbert), ("mpnet", write_mpnet)):
        folder = out / f"{name}-checkpoint"
        if not folder.exists():
            write(folder)
        encoder = mtbert.load_encoder(folder)
        difference = largest_difference(hidden_states(encoder, folder), exact)
        kind = type(encoder).__name__
        print(f"{name}: a {kind}; hidden states differ by {difference} at most")
        learn(name, out, *rest14, "--encoder", folder)
    for truncation in mtbert.TRUNCATION:
        flags = ["--max-length", 16, "--truncation", truncation]
        learn(f"16 tokens, {truncation}", out, *rest14, *flags)
    learn("from the run bert", out, *rest14, "--encoder", first)
    for split, source in sources.items():
        write_tags(source, out / f"tags-{split}.jsonl")
    tags = ["--data", out / "tags-train.jsonl", "--test", out / "tags-test.jsonl"]
    learn("multi-label", out, *tags, *epochs)
    check_export(first, out / "exported")


def check_export(run, folder):
    """Export the encoder of a run, and compare what transformers computes with it."""
    from transformers import AutoModel

    model = mtbert.load(run, "cpu", trainable=True)
    if not folder.exists():
        mtbert.to_transformers(model, folder)
    theirs = hidden_states(AutoModel.from_pretrained(folder), folder)
    ours = hidden_states(model.encoder, folder)
    print(f"to_transformers: hidden states differ by {largest_difference(theirs, ours)} at most")


if __name__ == "__main__":
    run_script(main)
