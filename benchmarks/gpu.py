"""What gpu.sh needs of Python.

python benchmarks/gpu.py card DEVICE            # the versions and the card
python benchmarks/gpu.py dry OUT                # a small sample and a tiny encoder, for a dry run
python benchmarks/gpu.py loss FOLDER ONE OTHER  # exit status 1: two runs begin with other losses
python benchmarks/gpu.py equal FOLDER ONE OTHER # exit status 1: their validation metrics differ
python benchmarks/gpu.py group ...              # train.py in a group of one process
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from support import huggingface, processes, script


def print_card(device):
    versions = f"torch {torch.__version__} | CUDA {torch.version.cuda}"
    print(f"{versions} | transformers {transformers.__version__}")
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        nccl = torch.cuda.nccl.version()
        print(f"{torch.cuda.get_device_name()} | capability {capability} | NCCL {nccl}")


def prepare_dry_run(out):
    """Write OUT/sample.json, with 32 rows a split, and the encoder OUT/tiny."""
    content = json.loads(train.SAMPLE.read_text("utf-8"))
    for split in ("train", "validation", "test"):
        content[split] = content[split][:32]
    Path(out, "sample.json").write_text(json.dumps(content), encoding="utf-8")
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    transformers.BertModel(config).save_pretrained(f"{out}/tiny")
    folder, _ = huggingface.find_encoder(huggingface.DEFAULT_ENCODER)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(f"{out}/tiny")


def numbers_in(value):
    """All floats in a value of JSON, in order."""
    if isinstance(value, float):
        return [value]
    numbers = []
    if isinstance(value, dict):
        for part in value.values():
            numbers += numbers_in(part)
    return numbers


def losses(folder):
    """The sum over tasks in each step."""
    sums = []
    for line in (folder / "log.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            sums.append(sum(entry["loss"].values()))
    return sums


def validation(folder):
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return numbers_in(metrics["validation"])


def metrics_difference(one, other):
    pairs = zip(validation(one), validation(other), strict=True)
    return max((abs(x - y) for x, y in pairs), default=0.0)


def compare_runs(one, other):
    """Print how two runs differ -> the relative difference of the first losses."""
    weights = load_file(one / "model.safetensors")
    others = load_file(other / "model.safetensors")
    of_weights = max((weights[name] - others[name]).abs().max().item() for name in weights)
    of_metrics = metrics_difference(one, other)
    of_losses = []
    for x, y in zip(losses(one), losses(other), strict=True):
        of_losses.append(abs(x - y) / x)
    print(f"{one.name} and {other.name}, largest differences: ", end="")
    print(f"validation metrics {of_metrics:.2g}, weights {of_weights:.2g}, ", end="")
    print(f"loss of the first step {of_losses[0]:.2g} of it, of the last {of_losses[-1]:.2g}")
    return of_losses[0]


def train_in_group():
    """torchrun with one process makes no group; this does, so that the backend is used."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(0)
        backend = "nccl"
    torch.distributed.init_process_group(backend)

    def in_parallel(model, unused):
        parallel = torch.nn.parallel.DistributedDataParallel
        return parallel(model, find_unused_parameters=unused)

    processes.in_parallel = in_parallel
    script.run_script(train.main)


def main():
    what = sys.argv.pop(1)
    if what == "card":
        print_card(sys.argv[1])
    elif what == "dry":
        prepare_dry_run(sys.argv[1])
    elif what == "group":
        train_in_group()
    else:
        folder = Path(sys.argv[1])
        one = folder / sys.argv[2]
        other = folder / sys.argv[3]
        loss_difference = compare_runs(one, other)
        if what == "loss":
            sys.exit(loss_difference > 1e-4)
        sys.exit(metrics_difference(one, other) > 0)


if __name__ == "__main__":
    main()
