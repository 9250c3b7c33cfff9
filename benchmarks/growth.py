"""How time and memory grow, with the rows of prediction and training and with the length of texts.

python benchmarks/growth.py --data train.jsonl
python benchmarks/growth.py --data train.jsonl --parts length --lengths 16 64

Writes growth.json and growth.png to --out, where parts that were measured before stay. Takes the
first task of the rows. Each number of rows repeats the same 1,000 rows, chosen at equal distances
by length, so that all have the same lengths. What is measured by rows is a process of its own.
Everything computes on the CPU. For Linux.
"""

import copy
import json
import random
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from checkouts import HERE
from contenders import Start, TheirBert, write_rows
from speed import alternate, timed

import mtbert
import train
from support import cpu, runs
from support.columns import Row, read_data
from support.errors import InputError
from support.script import Parser, run_script, say

TOKENS = 8192  # of a batch, at every length
ROUNDS = 5
# A small process starts what is measured: Linux counts the memory of whoever starts a program to
# the program's peak.
LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss / 1024)
sys.exit(status != 0)
"""


def run_python(*command):
    """Run a command -> its seconds, and its peak memory in MiB."""
    command = [sys.executable, *map(str, command)]
    launcher = [sys.executable, "-c", LAUNCHER]
    done = subprocess.run(launcher + command, text=True, capture_output=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["killed"]
        raise InputError(f"{command[1]} failed: {lines[-1]}")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def repeat_rows(path, rows, count, task):
    """Write `count` rows, which repeat `rows`."""
    write_rows(path, islice(cycle(rows), count), [task])
    return path


# --------------------------------------------------------------------------------------------------
# By the number of rows


def measure_by_rows(part, run, most):
    """Call run(count) -> seconds, peak MiB for powers of ten up to `most` -> what growth.json says.

    `linear` is what it would take if it took as long a row as in the middle.
    """
    counts = [10**k for k in range(3, 8) if 10**k < most]
    counts.append(most)
    seconds = []
    peaks = []
    for count in counts:
        say(f"{part}, {count:,} rows")
        spent, peak = run(count)
        seconds.append(float(spent))
        peaks.append(float(peak))
    each = np.array(seconds) / counts
    middle = (len(counts) - 1) // 2
    print(f"\n{part:10}{'rows':>10}{'seconds':>10}{'ms a row':>10}", end="")
    print(f"{f'/ at {counts[middle]:,}':>14}{'peak MiB':>10}")
    for i, count in enumerate(counts):
        print(f"{count:20,}{seconds[i]:10.1f}{1000 * each[i]:10.3f}", end="")
        print(f"{each[i] / each[middle]:14.3f}{peaks[i]:10.0f}", flush=True)
    linear = [float(each[middle]) * count for count in counts]
    return {"rows": counts, "seconds": seconds, "linear": linear, "peak_mib": peaks}


def measure_prediction(task, rows, folder, args):
    """predict.py, without the seconds that it takes for one line; of few rows the medians of 3."""

    def run(count):
        repeat_rows(folder / "rows.jsonl", rows, count, task)
        command = [HERE / "predict.py", "--model", folder / "model", "--device", "cpu"]
        command += ["--input", folder / "rows.jsonl", "--output", folder / "out.jsonl"]
        repeats = 3 if count <= 10_000 else 1
        return np.median([run_python(*command) for _ in range(repeats)], axis=0)

    def run_without_start(count):
        seconds, peak = run(count)
        return seconds - start, peak

    start, _ = run(1)
    print(f"\npredict.py: {start:.2f} s for one line, subtracted below")
    result = measure_by_rows("predict", run_without_start, args.max_predict)
    return {"start": float(start)} | result


def measure_training(task, rows, folder, args):
    """train.py, one epoch: its seconds in training steps, and the peak of the whole."""

    def run(count):
        repeat_rows(folder / "rows.jsonl", rows, count, task)
        command = [HERE / "train.py", "--variant", "single", "--tasks", task.name]
        command += ["--data", folder / "rows.jsonl", "--val", folder / "val.jsonl"]
        command += ["--epochs", 1, "--batch-size", 32, "--device", "cpu"]
        command += ["--out", folder / "run", "--overwrite"]
        _, peak = run_python(*command)
        metrics = json.loads((folder / "run" / "metrics.json").read_text("utf-8"))
        return metrics["train_seconds"], peak

    repeat_rows(folder / "val.jsonl", rows, 100, task)
    return measure_by_rows("train", run, args.max_train)


# --------------------------------------------------------------------------------------------------
# By the length of a text


class Batches:
    """Computes a batch without padding in mtbert and in transformers' BertModel.

    transformers takes a batch whole, mtbert trains on it in its usual parts.
    """

    def __init__(self, task, folder):
        self.task = task
        self.ours = Start().make_model(task)
        groups = mtbert.parameter_groups(self.ours, 1e-4, 1e-4, 1.0, 0.0)
        cpu.speed_up_training(self.ours, mtbert.AdamW(groups, fused=True))
        self.ours.train()
        self.predictor = mtbert.load(folder / "model", "cpu")
        self.theirs = TheirBert(mtbert.load(folder / "model", "cpu", trainable=True))
        self.theirs.bert.set_attn_implementation("sdpa")
        self.theirs_bfloat16 = copy.deepcopy(self.theirs)
        self.theirs_bfloat16.bert.bfloat16()
        self.dtype = str(self.ours.compute_dtype).removeprefix("torch.")

    def encode(self, texts, rows):
        labelled = []
        for text, row in zip(texts, cycle(rows), strict=False):
            labelled.append(row._replace(text=text))
        self.data = mtbert.encode(self.predictor.tokenizer, labelled, [self.task])
        self.order = np.arange(len(texts))

    def predict_ours(self):
        logits = mtbert.compute_logits(self.predictor, self.data, len(self.order))
        return logits[self.task.name]

    def train_ours(self):
        weights = {self.task.name: 1.0}
        mtbert.forward_backward(self.ours, self.data, self.order, weights)
        self.ours.zero_grad()

    def batch(self):
        batch = mtbert.collate(self.data, self.order, self.ours.encoder.config, "cpu")
        labels = batch.pop("labels")[self.task.name]
        return batch, labels

    @torch.inference_mode()
    def predict_theirs(self, model):
        batch, _ = self.batch()
        return model.eval()(**batch)

    def train_theirs(self, dtype):
        batch, labels = self.batch()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = self.theirs.train()(**batch)
        loss = self.task.loss(logits.float(), labels) / len(labels)
        loss.backward()
        self.theirs.zero_grad()

    def check(self, num_tokens):
        """Raise InputError unless the texts have this length, and both models the same logits."""
        difference = np.abs(self.predict_ours() - self.predict_theirs(self.theirs).numpy()).max()
        if set(self.data.lengths) != {num_tokens} or difference > 0.1:
            raise InputError(f"{num_tokens} tokens: other lengths, or logits {difference} apart")

    def functions(self):
        """What is timed, by name. Without a CPU that computes in bfloat16 it is left out."""
        functions = {
            f"predict, mtbert, {self.predictor.prediction_dtype}": self.predict_ours,
            "predict, transformers, float32": partial(self.predict_theirs, self.theirs),
            f"train, mtbert, {self.dtype}": self.train_ours,
            "train, transformers, float32": partial(self.train_theirs, torch.float32),
        }
        if self.dtype == "bfloat16":
            functions |= {
                "predict, transformers, bfloat16": partial(
                    self.predict_theirs, self.theirs_bfloat16
                ),
                "train, transformers, bfloat16": partial(self.train_theirs, torch.bfloat16),
            }
        return functions


def measure_length(task, rows, folder, args):
    """Microseconds a token: prediction forward, training forward and backward."""
    batches = Batches(task, folder)
    start = Start()
    tokenizer = batches.predictor.tokenizer
    words = words_of_one_token(tokenizer, rows)
    num_special = tokenizer.num_special_tokens_to_add(False)
    result = {}
    for length in args.lengths:
        rng = random.Random(length)
        texts = []
        for _ in range(max(1, TOKENS // length)):
            texts.append(" ".join(rng.choices(words, k=length - num_special)))
        batches.encode(texts, rows)
        batches.check(length)
        say(f"length, {length} tokens")
        functions = batches.functions()
        timers = {name: timed(start, function) for name, function in functions.items()}
        with redirect_stdout(sys.stderr):
            seconds = alternate(timers, ROUNDS + 1)  # the first warms up
        num_tokens = int(batches.data.lengths.sum())
        for name, values in seconds.items():
            each = [1e6 * value / num_tokens for value in values[1:]]
            result.setdefault(name, []).append(each)
    print(f"\n{'length: microseconds a token':40}", end="")
    print("".join(f"{length:10}" for length in args.lengths))
    for name, values in result.items():
        medians = [f"{np.median(each):10.1f}" for each in values]
        print(f"{name:40}" + "".join(medians), flush=True)
    return {"lengths": args.lengths, "microseconds": result}


def words_of_one_token(tokenizer, rows):
    words = set()
    for row in rows:
        words.update(row.text.split())
    chosen = []
    for word in sorted(words):
        if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1:
            chosen.append(word)
    return chosen


# --------------------------------------------------------------------------------------------------
# The picture


def draw(result, path):
    """Two panels by rows, and two by length, as far as they were measured."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    by_rows = [part for part in ("predict", "train") if part in result]
    num_lines = bool(by_rows) + ("length" in result)
    with rc_context({"font.size": 14, "lines.linewidth": 2, "lines.markersize": 8}):
        figure = Figure(figsize=(14, 5.6 * num_lines), layout="constrained")
        axes = figure.subplots(num_lines, 2, squeeze=False)
        if by_rows:
            draw_rows(*axes[0], result, by_rows)
        if "length" in result:
            draw_lengths(*axes[-1], result["length"])
        for axis in axes.flat:
            axis.legend(frameon=False)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=100)


def draw_rows(time_axis, memory_axis, result, parts):
    names = {"predict": "predict.py, without start-up", "train": "train.py, steps of one epoch"}
    colors = {"predict": "#0072B2", "train": "#D55E00"}
    for part in parts:
        entry = result[part]
        style = {"marker": "o", "color": colors[part]}
        time_axis.plot(entry["rows"], entry["linear"], ":", color="#666666")
        time_axis.plot(entry["rows"], entry["seconds"], label=names[part], **style)
        memory_axis.plot(entry["rows"], entry["peak_mib"], label=f"{part}.py", **style)
    time_axis.set(title="Time (dotted: linear)", ylabel="seconds", yscale="log")
    memory_axis.set(title="Peak memory", ylabel="MiB")
    for axis in (time_axis, memory_axis):
        axis.set(xlabel="rows", xscale="log")
    leave_room_for_legend(memory_axis)


def draw_lengths(predict_axis, train_axis, entry):
    styles = {
        "mtbert": {"marker": "o", "color": "#0072B2"},
        "transformers, float32": {"marker": "s", "color": "#E69F00"},
        "transformers, bfloat16": {"marker": "^", "color": "#009E73"},
    }
    for name, values in entry["microseconds"].items():
        part, contender = name.split(", ", 1)
        axis = predict_axis if part == "predict" else train_axis
        style = styles.get(contender, styles["mtbert"])
        axis.plot(entry["lengths"], np.median(values, axis=1), label=contender, **style)
    predict_axis.set_title("Prediction (forward)")
    train_axis.set_title("Training (forward and backward)")
    for axis in (predict_axis, train_axis):
        axis.set_xscale("log", base=2)
        axis.set_xticks(entry["lengths"], entry["lengths"])
        axis.set(xlabel="tokens of a text", ylabel="microseconds a token")
        leave_room_for_legend(axis)


def leave_room_for_legend(axis):
    axis.set_ylim(0, 1.35 * axis.get_ylim()[1])


# --------------------------------------------------------------------------------------------------
# The command

PARTS = {"predict": measure_prediction, "train": measure_training, "length": measure_length}


def choose_rows(args):
    """-> the first task, and 1,000 rows at equal distances by length, shuffled."""
    columns, splits = read_data(args.data, all_tasks=False)
    task = train.make_tasks(columns)[0]
    rows = sorted(splits["train"] + splits["validation"], key=lambda row: len(row.text))
    chosen = []
    for i in range(1000):
        row = rows[i * len(rows) // 1000]
        chosen.append(Row("", row.text, None, {task.name: row.labels[task.name]}))
    random.Random(0).shuffle(chosen)
    return task, chosen


def main():
    parser = Parser(description="How time and memory grow with rows and with lengths.")
    flag = parser.add_argument
    flag("--data", nargs="+", required=True)
    flag("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    flag("--max-predict", type=int, default=1_000_000, help="rows")
    flag("--max-train", type=int, default=100_000, help="rows")
    flag("--lengths", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512], help="tokens")
    flag("--out", type=Path, default=Path("runs/growth"))
    args = parser.parse_args()
    torch.manual_seed(0)
    task, rows = choose_rows(args)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "growth.json"
    result = {}
    if path.exists():
        result = json.loads(path.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "model").mkdir()
        mtbert.save(Start().make_model(task), folder / "model")
        for part in args.parts:
            result[part] = PARTS[part](task, rows, folder, args)
            result[part] |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
            runs.write(path, result)
    draw(result, args.out / "growth.png")


if __name__ == "__main__":
    run_script(main)
