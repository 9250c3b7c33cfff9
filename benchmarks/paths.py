"""The real encoder in several of the ways that train.py can take it: what its model scores, how fast it learns.

python benchmarks/paths.py --data DATA --out OUT          # DATA holds rest14/{train,test}.jsonl (benchmarks/README.md)

The bundled weights are written anew as checkpoints of other types that compute the same: as a DistilBERT, its token
type added to the positions, and as an MPNet with relative positions of zero, which transformers computes. So scores
differ by chance only, and the seconds are the price of the way.
"""

import json
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
import transformers

import mtbert
import runs
import train
from checkpoints import transformers_names, write_checkpoint
from data import Task, read_rows

TEXTS = ["The food was great, but the staff was rude to us.", "Never again.", "prices are fair " * 20]
TOPICS = ("miscellaneous", "ambience", "food", "price", "service")
TASKS = [Task("mood", ["bad", "good"], [1, 1], {"bad": "bad", "good": "good"})]


def bundled():
    encoder = mtbert.Encoder.from_pretrained(mtbert.DEFAULT_ENCODER)
    tokenizer = mtbert.load_tokenizer(mtbert.DEFAULT_ENCODER, encoder.config.max_length, encoder.config.vocab_size)
    return encoder.eval(), tokenizer


def as_distilbert(folder):
    encoder, tokenizer = bundled()
    encoder.position_embeddings.weight.data += encoder.token_type_embeddings.weight.data[0]
    encoder.token_type_embeddings = None
    encoder.config = replace(encoder.config, model_type="distilbert", type_vocab_size=0)
    mtbert.to_transformers(mtbert.MTBert(encoder, TASKS, tokenizer), folder)


def as_mpnet(folder):
    encoder, tokenizer = bundled()
    c, state = encoder.config, {}
    for name, tensor in encoder.state_dict().items():
        parts = transformers_names(name, "bert")
        for part, value in zip(parts, tensor.chunk(len(parts)), strict=True):
            for theirs, ours in (("self.query", "attn.q"), ("self.key", "attn.k"), ("self.value", "attn.v"),
                                 ("attention.output.dense", "attention.attn.o"), ("attention.output.", "attention.")):  # fmt: skip
                part = part.replace(theirs, ours)
            state[part] = value
    types = state.pop("embeddings.token_type_embeddings.weight")
    positions = state["embeddings.position_embeddings.weight"] + types[0]
    state["embeddings.position_embeddings.weight"] = torch.cat([positions[:2], positions])  # it counts from two
    state["encoder.relative_attention_bias.weight"] = torch.zeros(32, c.num_attention_heads)
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "pad_token_id")
    values = {name: getattr(c, name) for name in (*same, "hidden_act", "layer_norm_eps")}
    values |= {"model_type": "mpnet", "max_position_embeddings": len(positions) + 2, "relative_attention_num_buckets": 32}
    write_checkpoint(folder, values, state, tokenizer, replace(c, type_vocab_size=1))


@torch.no_grad()
def hidden_states(encoder, folder):
    """(3, T, D) of TEXTS, zero on padding; `encoder` is one of ours or of transformers."""
    batch = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    hidden = encoder.eval()(batch["input_ids"], batch["attention_mask"], torch.zeros_like(batch["input_ids"]))
    return getattr(hidden, "last_hidden_state", hidden) * batch["attention_mask"][:, :, None]


def learn(name, out, *flags):
    """Train on rest14 in the folder OUT/NAME -> its metrics; print them and the seconds of training."""
    folder, start = out / name, time.perf_counter()
    with redirect_stdout(StringIO()):
        train.main([*map(str, flags), "--out", str(folder), "--overwrite"])
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = [f"{task} macro-F1 {100 * m['macro_f1']:.1f}" for task, m in metrics["test"].items()]
    scores += [f"exact match {100 * m['exact_match']:.1f}" for m in metrics["test"].values() if "exact_match" in m]
    print(f"{name:22}{', '.join(scores)}; {metrics['train_seconds']:.1f} of {time.perf_counter() - start:.1f} s", flush=True)
    return folder


def write_tags(source, path):
    """rest14 with both labels as one list."""
    lines = []
    for _, _, row, _ in read_rows(source):
        tags = [row["sentiment"], TOPICS[row["category"]]]
        lines.append(json.dumps({"text": row["text"], "tags": tags}) + "\n")
    path.write_text("".join(lines))


def main():
    parser = runs.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder that holds rest14")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    exact = hidden_states(bundled()[0], mtbert.find_encoder(mtbert.DEFAULT_ENCODER)[0])
    epochs = ["--epochs", args.epochs]
    rest14 = ["--data", args.data / "rest14/train.jsonl", "--test", args.data / "rest14/test.jsonl", *epochs]

    first = learn("bert", args.out, *rest14)
    for name, write in (("distilbert", as_distilbert), ("mpnet", as_mpnet)):
        folder = args.out / f"{name}-checkpoint"
        if not folder.exists():
            write(folder)
        encoder = mtbert.Encoder.from_pretrained(folder)
        found = hidden_states(encoder, folder)
        print(f"{name}: a {type(encoder).__name__}; hidden states differ by {(found - exact).abs().max():.1e} at most")
        learn(name, args.out, *rest14, "--encoder", folder)
    for long in ("head", "head+tail"):
        learn(f"16 tokens, {long}", args.out, *rest14, "--max-length", 16, "--long", long)
    learn("from the run bert", args.out, *rest14, "--encoder", first)
    for split in ("train", "test"):
        write_tags(args.data / f"rest14/{split}.jsonl", args.out / f"tags-{split}.jsonl")
    tags = ["--data", args.out / "tags-train.jsonl", "--test", args.out / "tags-test.jsonl", *epochs]
    learn("several labels", args.out, *tags)

    folder, model = args.out / "exported", mtbert.load(first, dtype="float32")
    if not folder.exists():
        mtbert.to_transformers(model, folder)
    theirs, ours = transformers.AutoModel.from_pretrained(folder), model.encoder
    difference = (hidden_states(theirs, folder) - hidden_states(ours, folder)).abs().max()
    print(f"to_transformers: hidden states differ by {difference:.1e} at most")


if __name__ == "__main__":
    runs.run_script(main)
