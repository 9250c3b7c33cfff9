"""How time and memory grow: with the rows of prediction, training and encoding, and with the length of a text.

python benchmarks/growth.py --data train.jsonl
python benchmarks/growth.py --data train.jsonl --parts length --lengths 16 64

Writes growth.json and growth.png to --out, where parts measured before stay. Takes the first task of the rows. Each
count of rows cycles the same 1,000 of --data, picked at equal distances by length, so that all have the same lengths.
What is measured by rows is a process of its own; everything computes on the processor. For Linux.
"""

import copy
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import redirect_stdout
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from speed import HERE, Mean, alternate, load_mtbert, timed  # puts mtbert on the path
from tokenizers import Tokenizer

import mtbert
import runs
from data import InputError, Row, parse_row, read_data, read_rows

TOKENS, ROUNDS = 8192, 5  # tokens of a batch, at every length
LAUNCHER = """import os, subprocess, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss / 1024)
sys.exit(status != 0)"""


def measure(*command):
    """Run Python with `command` -> what it printed, seconds, peak memory in MiB.

    A small process starts it: Linux counts the memory of whoever starts a program to the program's peak.
    """
    command = [sys.executable, "-c", LAUNCHER, sys.executable, *map(str, command)]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise InputError(f"{command[4]} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    printed, _, figures = done.stdout.rstrip().rpartition("\n")
    return printed, *map(float, figures.split())


def write_rows(path, rows, count):
    lines = [json.dumps({"text": row.text} | row.labels) + "\n" for row in rows]
    with open(path, "w") as file:
        file.writelines(islice(cycle(lines), count))
    return path


def by_rows(part, run, most):
    """Call run(count) -> seconds, peak MiB for powers of ten up to `most`, and print how far from linear they are."""
    rows, measured = [10**k for k in range(3, 8) if 10**k < most] + [most], []
    for count in rows:
        runs.say(f"{part}, {count:,} rows")
        measured.append([float(value) for value in run(count)])
    seconds, peaks = zip(*measured, strict=True)
    each, middle = np.array(seconds) / rows, (len(rows) - 1) // 2
    print(f"\n{part:10}{'rows':>10}{'seconds':>10}{'ms a row':>10}{f'/ at {rows[middle]:,}':>14}{'peak MiB':>10}")
    for line in zip(rows, seconds, 1000 * each, each / each[middle], peaks, strict=True):
        print("{:20,}{:10.1f}{:10.3f}{:14.3f}{:10.0f}".format(*line), flush=True)
    linear = [float(each[middle]) * count for count in rows]
    return {"rows": rows, "seconds": seconds, "linear": linear, "peak_mib": peaks}


def predict(task, rows, folder, args):
    """predict.py, without the seconds that it takes for one line; of few rows the medians of three."""

    def run(count):
        files = ("--input", write_rows(folder / "rows.jsonl", rows, count), "--output", folder / "out.jsonl")
        command = (HERE / "predict.py", "--model", folder / "model", "--device", "cpu", *files)
        return np.median([measure(*command)[1:] for _ in range(3 if count <= 10_000 else 1)], axis=0)

    start = float(run(1)[0])
    print(f"\npredict.py: {start:.2f} s for one line, subtracted below")
    return {"start": start} | by_rows("predict", lambda count: run(count) - (start, 0), args.max_predict)


def train(task, rows, folder, args):
    """train.py, one epoch: its seconds in training steps, and the peak of the whole."""

    def run(count):
        files = ("--data", write_rows(folder / "rows.jsonl", rows, count), "--val", folder / "val.jsonl")
        flags = ("--variant", "single", "--epochs", 1, "--device", "cpu", "--out", folder / "run", "--overwrite")
        *_, peak = measure(HERE / "train.py", *files, *flags, "--tasks", task.name)
        return json.loads((folder / "run" / "metrics.json").read_text())["train_seconds"], peak

    write_rows(folder / "val.jsonl", rows, 100)
    return by_rows("train", run, args.max_train)


def length(task, rows, folder, args):
    """Microseconds a token, of a batch without padding: prediction forward, training forward and backward.

    transformers' BertModel, with its default attention, takes a batch whole, mtbert in training in its usual parts. It
    is in bfloat16 too where the processor computes in it; elsewhere that is only emulated, and many times slower.
    """
    ours, predictor = load_mtbert([task]), mtbert.load(folder / "model", "cpu")
    theirs = Mean(mtbert.load(folder / "model", "cpu", "float32"))
    tokenizer, result = predictor.tokenizer, defaultdict(list)
    theirs.bert.set_attn_implementation("sdpa")
    half = copy.deepcopy(theirs)
    half.bert.bfloat16()
    words = sorted({word for row in rows for word in row.text.split()})
    words = [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1]

    def our_step():
        mtbert.forward_backward(ours.train(), data, order, {task.name: 1.0}, 1)
        ours.zero_grad()

    def run_theirs(model, training, dtype):
        batch = mtbert.collate(data, order, ours.encoder.config, "cpu")
        labels = batch.pop("labels")[task.name]
        autocast = torch.autocast("cpu", dtype, enabled=training and dtype != torch.float32)
        with torch.inference_mode(not training), autocast:
            logits = model.train(training)(**batch)
        if training:
            (mtbert.loss_sum(task, logits.float(), labels) / len(order)).backward()
            model.zero_grad()
        return logits

    for T in args.lengths:
        drawn, order = random.Random(T), np.arange(max(1, TOKENS // T))
        texts = [" ".join(drawn.choices(words, k=T - tokenizer.num_special_tokens_to_add(False))) for _ in order]
        labelled = [row._replace(text=text) for text, row in zip(texts, cycle(rows), strict=False)]
        data = mtbert.encode(tokenizer, labelled, [task])
        logits = mtbert.compute_logits(predictor, data)[task.name]
        if set(data.lengths) != {T} or not np.allclose(logits, run_theirs(theirs, False, torch.float32), atol=0.1):
            raise InputError(f"{T} tokens: the texts have another length, or transformers other logits")
        dtype = str(ours.compute_dtype).removeprefix("torch.")
        runs = {
            f"predict, mtbert, {dtype}": timed(mtbert.compute_logits, predictor, data, len(order)),
            "predict, transformers, float32": timed(run_theirs, theirs, False, torch.float32),
            f"train, mtbert, {dtype}": timed(our_step),
            "train, transformers, float32": timed(run_theirs, theirs, True, torch.float32),
        }
        if dtype == "bfloat16":
            runs["predict, transformers, bfloat16"] = timed(run_theirs, half, False, torch.bfloat16)
            runs["train, transformers, bfloat16"] = timed(run_theirs, theirs, True, torch.bfloat16)
        runs.say(f"length, {T} tokens")
        with redirect_stdout(sys.stderr):
            for name, seconds in alternate(runs, ROUNDS + 1).items():  # the first warms up
                result[name].append([1e6 * s / data.lengths.sum() for s in seconds[1:]])
    print(f"\n{'length: microseconds a token':40}" + "".join(f"{T:10}" for T in args.lengths))
    for name, values in result.items():
        print(f"{name:40}" + "".join(f"{np.median(each):10.1f}" for each in values), flush=True)
    return {"lengths": args.lengths, "microseconds": result}


def encode(task, rows, folder, args):
    """mtbert.encode: the memory that it adds, at its peak, to that of the rows, and what is left in the Dataset."""
    files = str(write_rows(folder / "rows.jsonl", rows, 1000)), str(folder / "model" / "tokenizer.json")
    code = f"import sys; sys.path.insert(0, {str(HERE / 'benchmarks')!r}); import growth; growth.encode_here"
    entry = json.loads(measure("-c", f"{code}{(*files, args.max_predict)}")[0])
    print(f"\n{'encode':10}{'rows':>10}{'seconds':>10}{'peak grows by':>18}{'Dataset':>12}{'promised':>12}")
    entry["promised_mb"] = 200 * args.max_predict / 1e6
    line = "{rows:20,}{seconds:10.1f}{growth_mb:15.1f} MB{arrays_mb:9.1f} MB{promised_mb:9.1f} MB"
    print(line.format(**entry), flush=True)
    return entry


def encode_here(path, tokenizer, count):
    """What `encode` runs in a process of its own."""
    some = [parse_row(where, row) for where, _, row, _ in read_rows(path)]
    rows, tokenizer = list(islice(cycle(some), count)), Tokenizer.from_file(tokenizer)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    start = time.perf_counter()
    data = mtbert.encode(tokenizer, rows)
    seconds = time.perf_counter() - start
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
    arrays = data.input_ids.nbytes + data.token_type_ids.nbytes + data.offsets.nbytes
    print(json.dumps({"rows": count, "seconds": seconds, "growth_mb": growth / 1e6, "arrays_mb": arrays / 1e6}))


def draw(result, path):
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    panels = defaultdict(list)  # (title, x, y): lines
    for part, color in (("predict", "#0072B2"), ("train", "#D55E00")):
        if entry := result.get(part):
            name = {"predict": "predict.py, without start-up", "train": "train.py, steps of one epoch"}[part]
            rows = entry["rows"]
            panels["Time (dotted: linear)", "rows", "seconds"].append((rows, entry["linear"], ":", "#666666", None))
            panels["Time (dotted: linear)", "rows", "seconds"].append((rows, entry["seconds"], "o-", color, name))
            panels["Peak memory", "rows", "MiB"].append((rows, entry["peak_mib"], "o-", color, f"{part}.py"))
    if entry := result.get("length"):
        looks = {"mtbert": ("o-", "#0072B2"), "float32": ("s-", "#E69F00"), "bfloat16": ("^-", "#009E73")}
        titles = {"predict": "Prediction (forward)", "train": "Training (forward and backward)"}
        for name, values in entry["microseconds"].items():
            part, who = name.split(", ", 1)
            look = next(look for key, look in looks.items() if key in who)
            line = (entry["lengths"], np.median(values, 1), *look, who)
            panels[titles[part], "tokens of a text", "microseconds a token"].append(line)
    if not panels:
        return
    rcParams.update({"font.size": 14, "axes.titlesize": 16, "lines.linewidth": 2, "lines.markersize": 8})
    figure = Figure(figsize=(14, 2.8 * len(panels)), layout="constrained")
    for i, ((title, x, y), lines) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(len(panels) // 2, 2, i, title=title, xlabel=x, ylabel=y)
        axis.set_xscale("log", base=10 if x == "rows" else 2)
        for xs, ys, style, color, label in lines:
            axis.plot(xs, ys, style, color=color, label=label)
        if y == "seconds":
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
        if x != "rows":
            axis.set_xticks(xs, xs)
        axis.legend(frameon=False, loc="lower right" if y == "seconds" else "upper left")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def main():
    parts = {"predict": predict, "train": train, "length": length, "encode": encode}
    parser = runs.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--max-predict", type=int, default=1_000_000, help="rows; encode takes as many")
    parser.add_argument("--max-train", type=int, default=100_000, help="rows")
    parser.add_argument("--lengths", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512], help="tokens")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    args = parser.parse_args()
    torch.manual_seed(0)
    [task], splits = read_data(args.data, all_tasks=False)
    rows = sorted(splits["train"] + splits["validation"], key=lambda row: len(row.text))
    rows = [rows[i * len(rows) // 1000] for i in range(1000)]
    rows = [Row("", row.text, None, {task.name: row.labels[task.name]}) for row in rows]
    random.Random(0).shuffle(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "growth.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").mkdir()
        mtbert.save(load_mtbert([task]), Path(folder) / "model")
        for part in args.parts:
            result[part] = parts[part](task, rows, Path(folder), args)
            result[part] |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
            runs.write(path, result)
    draw(result, args.out / "growth.png")


if __name__ == "__main__":
    runs.run_script(main)
