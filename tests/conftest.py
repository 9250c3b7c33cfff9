"""What the tests of several rooms use: small models, a training of them, and the real command lines."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it once
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # on the processor; benchmarks/gpu.sh gives them a GPU
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait do not spin: much faster on a busy machine

import pytest
import torch
import transformers

import mtbert
import train
from checkpoints import DISTILBERT
from data import Row, Task

ROOT = Path(__file__).parent
SAMPLE = ROOT / "sample_data.json"
BUNDLED = mtbert.find_encoder(mtbert.DEFAULT_ENCODER)[0]
TWO = [Task("mood", ["bad", "good"], [1, 1], {"bad": "bad", "good": "good"}), Task("stars", None, mean=2.0, std=0.5)]


def tiny_checkpoint(folder, model_type, masked_lm=False, **changes):
    """A random checkpoint of transformers' own with every parameter, biases too, far from its initial value."""
    values = {
        "vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 66, "layer_norm_eps": 1e-3,
        **({"embedding_size": 16} if model_type in ("electra", "albert") else {}), **changes,
    }  # fmt: skip
    names = DISTILBERT if model_type == "distilbert" else {}
    config = transformers.CONFIG_MAPPING[model_type](**{names.get(name, name): values[name] for name in values})
    torch.manual_seed(0)
    make = transformers.AutoModelForMaskedLM if masked_lm else transformers.AutoModel
    model = make.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0.1, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a `tiny_checkpoint` of BERT."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "bert")


def tiny_model(tiny, tasks, **settings):
    """An MTBert on the encoder in the folder `tiny`, without dropout."""
    torch.manual_seed(1)
    encoder = mtbert.Encoder.from_pretrained(tiny, dropout=0.0)
    return mtbert.MTBert(encoder, tasks, mtbert.load_tokenizer(tiny, 64, 30522), dropout=0.0, **settings).eval()


def make_rows(*labels):
    """A Row for each {task: label}."""
    texts = ("a fine film", "the plot is thin, and the ending thinner still", "no", "who wrote this", "loud and long")
    return [Row(f"row {i}", texts[i % len(texts)], None, row) for i, row in enumerate(labels)]


def partly_labelled_rows():
    """Rows of which each is labelled for one task of TWO."""
    return make_rows(*({"mood": ["bad", "good"][i % 2]} if i % 3 else {"stars": i / 4} for i in range(22)))


class Trained(NamedTuple):
    weights: dict  # after the last epoch
    best: dict  # after the best epoch
    log: list  # of the steps


def train_tiny(tiny, folder, *flags):
    """Train a `tiny_model` on `partly_labelled_rows` in float32, with flags of train.py -> Trained."""
    folder.mkdir(exist_ok=True)
    args = train.parse_args(["--epochs", "2", "--batch-size", "4", *flags])
    model = tiny_model(tiny, TWO)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = args.dropout
    data = {split: mtbert.encode(model.tokenizer, partly_labelled_rows(), TWO) for split in ("train", "validation")}
    torch.manual_seed(args.seed)
    best = mtbert.train(model, data, args, folder)[0]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return Trained(model.state_dict(), best, [entry for entry in log if "loss" in entry])


@pytest.fixture
def script(capsys, monkeypatch):
    """Run a script's real file with a command line -> (exit status, stdout, stderr)."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def signal_at(monkeypatch):
    """Send this process a signal at the n-th call of a function of a module -> the list that grows with each call."""

    def arrange(module, name, n, number):
        calls, function = [], getattr(module, name)

        def stopped(*arguments):
            calls.append(name)
            if len(calls) == n:
                os.kill(os.getpid(), number)
            return function(*arguments)

        monkeypatch.setattr(module, name, stopped)
        return calls

    return arrange


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The folder of a run on two tasks: classes out of a CSV file, and a number."""
    folder = tmp_path_factory.mktemp("finished")
    lines = [f"film {i} is {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'},{i / 4}" for i in range(40)]
    (folder / "rows.csv").write_text("\n".join(["text,liked,stars", *lines]))
    command = [sys.executable, ROOT / "train.py", "--encoder", tiny, "--data", folder / "rows.csv"]
    subprocess.run([*command, "--epochs", "2", "--out", folder / "run"], check=True, cwd=folder, capture_output=True)
    return folder / "run"
