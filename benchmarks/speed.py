"""What people would use instead, and mtbert, side by side: training, prediction, one sentence.

pip install -r benchmarks/requirements.txt
python benchmarks/speed.py --data train.jsonl --val dev.jsonl --test test.jsonl --tasks sentiment
python benchmarks/speed.py ... --parts train --rounds 5 --train-rows 640
python benchmarks/speed.py ... --parts learn                            # test accuracy, and seconds until 68 % on validation
python benchmarks/speed.py ... --parts profile                          # which operators mtbert's time goes to
python benchmarks/speed.py ... --parts agree --model runs/shared-1      # labels in bfloat16 and int8 against float32's

The contenders alternate in one process. Writes speed.json and speed.png to --out. All start from the same weights and
take the same rows, in batches of 32; texts are tokenized beforehand in training, and within the time in prediction.
"""

import copy
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as mtbert's scripts set it, here for all contenders
HERE = Path(__file__).parent.parent
sys.path.insert(0, str(HERE))
import mtbert
import runs
import train
from data import Row, Task, read_data

FOLDER = mtbert.find_encoder(mtbert.DEFAULT_ENCODER)[0]
BATCH = 32
PARTS = ("train", "predict", "one", "learn", "agree", "profile")


def load_tokenizer():
    return mtbert.load_tokenizer(mtbert.DEFAULT_ENCODER, 512, 30522)


@cache
def load_config():
    return mtbert.Encoder.from_pretrained(mtbert.DEFAULT_ENCODER).config


def load_mtbert(tasks):
    model = mtbert.MTBert(mtbert.Encoder.from_pretrained(mtbert.DEFAULT_ENCODER), tasks, load_tokenizer())
    model.compute_dtype = mtbert.pick_dtype("auto", torch.device("cpu"))
    return model


class Mean(nn.Module):
    """transformers' BertModel with mean pooling and a linear head, with the weights of an MTBert."""

    def __init__(self, model):
        super().__init__()
        self.bert = transformers.AutoModel.from_pretrained(FOLDER, add_pooling_layer=False, attn_implementation="eager")
        state = {}
        for name, parameter in model.encoder.named_parameters():
            parts = mtbert.transformers_names(name, "bert")
            state |= zip(parts, parameter.chunk(len(parts)), strict=True)
        self.bert.load_state_dict(state)
        self.head = copy.deepcopy(next(iter(model.heads.values())))

    def forward(self, input_ids, attention_mask, token_type_ids):
        hidden = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        mask = attention_mask[:, :, None].float()
        return self.head((hidden * mask).sum(1) / mask.sum(1))


# ---------------------------------------------------------------------------------------------------------------------
# Training: each returns seconds for one epoch over the rows


def train_notebook(rows, task):
    """The loop of the notebooks: every text padded to 128, float32, plain AdamW, random batches."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    encoded = tokenizer([row.text for row in rows], truncation=True, max_length=128, padding="max_length", return_tensors="pt")
    labels = torch.tensor([task.labels.index(row.labels[task.name]) for row in rows])
    bert = transformers.BertModel.from_pretrained(FOLDER).train()
    head, dropout = nn.Linear(384, len(task.labels)), nn.Dropout(0.1)
    optimizer = torch.optim.AdamW([*bert.parameters(), *head.parameters()], lr=2e-5)
    start = time.perf_counter()
    for batch in torch.randperm(len(rows)).split(BATCH):
        output = bert(**{name: values[batch] for name, values in encoded.items()})
        loss = F.cross_entropy(head(dropout(output.pooler_output)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def train_trainer(rows, task, epochs=1, seed=0, **settings):
    transformers.set_seed(seed)  # the head is drawn before Trainer sets it
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=len(task.labels))
    encoded = [tokenizer(row.text, truncation=True) | {"labels": task.labels.index(row.labels[task.name])} for row in rows]
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=BATCH, num_train_epochs=epochs, report_to="none", save_strategy="no",
        disable_tqdm=True, seed=seed, **settings,
    )  # fmt: skip
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model, arguments, train_dataset=encoded, data_collator=collator)
    start = time.perf_counter()
    WATCHED.append((model, lambda batch: model(**batch).logits))
    trainer.train()
    return time.perf_counter() - start


def train_best_trainer(rows, task, **settings):
    bf16 = mtbert.pick_dtype("auto", torch.device("cpu")) == torch.bfloat16
    best = {"use_cpu": True, "bf16": bf16, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
    return train_trainer(rows, task, **best, **settings)


def train_mtbert(rows, *tasks, epochs=1, seed=0):
    """Seconds in training steps: without the evaluation and the snapshot at the end of the epoch."""
    torch.manual_seed(seed)  # for the heads
    model = load_mtbert(tasks)
    WATCHED.append((model, lambda batch: model(**batch)[0][tasks[0].name]))
    data = {"train": mtbert.encode(model.tokenizer, rows, tasks), "validation": mtbert.encode(model.tokenizer, rows[:32], tasks)}
    flags = train.parse_args(["--epochs", str(epochs), "--seed", str(seed)])
    return mtbert.train(model, data, flags, tempfile.mkdtemp())[2]


WATCHED = []  # the model that trains, and a function of its logits


def accuracy(data, task):
    """Of the watched model on a Dataset, in float32."""
    model, logits = WATCHED[-1]
    training, right = model.training, 0
    compute_dtype, model.compute_dtype = getattr(model, "compute_dtype", None), torch.float32
    model.eval()
    order = np.argsort(data.lengths)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            batch = mtbert.collate(data, order[start : start + BATCH], load_config(), "cpu")
            labels = batch.pop("labels")[task.name]
            right += int((logits(batch).argmax(1) == labels).sum())
    model.train(training)
    model.compute_dtype = compute_dtype
    return right / len(order)


def learning_curve(run, rows, task, reach, every=20, **settings):
    """[[seconds of training, validation accuracy] every so many steps until it is `reach`], accuracy at the end."""
    data = {split: mtbert.encode(load_tokenizer(), rows[split], [task]) for split in ("validation", "test")}
    curve, step, start = [], 0, None

    def watch(*_):
        nonlocal step, start
        now, step = time.perf_counter(), step + 1
        start = now if start is None else start  # behind the first step, whose one is missing for both
        if step % every == 0 and not (curve and curve[-1][1] >= reach):
            curve.append([now - start, accuracy(data["validation"], task)])
            print(f"  step {step}: {curve[-1][0]:.0f} s, validation {curve[-1][1]:.3f}", file=sys.stderr, flush=True)
            start += time.perf_counter() - now  # the clock stands still while we look

    hook = register_optimizer_step_post_hook(watch)
    try:
        run(rows["train"], task, **settings)
    finally:
        hook.remove()
    return {"curve": curve, "validation": accuracy(data["validation"], task), "test": accuracy(data["test"], task)}


# ---------------------------------------------------------------------------------------------------------------------
# Prediction: each returns a function of texts, to be timed, that gives the class of each


def predict_pipeline(model, texts):
    """transformers' pipeline, at the best of four batch sizes; it pads each batch to its longest text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=3)
    pipeline = transformers.pipeline("text-classification", theirs, tokenizer=tokenizer)
    times = {}
    for size in (1, 8, 32, 128):
        start = time.perf_counter()
        pipeline(texts[:256], batch_size=size)
        times[size] = time.perf_counter() - start
    best = min(times, key=times.get)
    print(f"pipeline: the best batch size is {best}: {times}")
    return lambda texts: pipeline(texts, batch_size=best) and None  # its head is another: no classes to compare


def predict_sentence_transformers(model, texts):
    from sentence_transformers import SentenceTransformer

    theirs, head = SentenceTransformer(str(FOLDER), device="cpu"), model.heads["head_sentiment"]
    theirs[-1] = nn.Identity() if type(theirs[-1]).__name__ == "Normalize" else theirs[-1]

    @torch.inference_mode()
    def run(texts):
        return head(theirs.encode(texts, batch_size=BATCH, convert_to_tensor=True)).argmax(1).numpy()

    return run


def predict_onnx(model, texts, int8=False):
    """ONNX Runtime, its own optimizer for BERT, batches by length as ours."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    path = f"{tempfile.mkdtemp()}/model.onnx"
    example = torch.ones(2, 8, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"logits": {0: "batch"}}
    torch.onnx.export(
        Mean(model).eval(), (example,) * 3, path, input_names=names, output_names=["logits"],
        dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    optimize_model(path, model_type="bert", num_heads=12, hidden_size=384).save_model_to_file(path)
    if int8:
        quantize_dynamic(path, path, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    config = model.encoder.config

    def run(texts):
        data = mtbert.encode(model.tokenizer, [Row("", text, None, {}) for text in texts])
        classes, order = np.empty(len(texts), int), np.argsort(data.lengths, kind="stable")[::-1]
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = mtbert.collate(data, rows, config, "cpu")
            classes[rows] = session.run(["logits"], {name: batch[name].long().numpy() for name in names})[0].argmax(1)
        return classes

    return run


def predict_mtbert(model, texts, dtype="auto"):
    model = copy.deepcopy(model).eval()  # its encoder as mtbert.load gives it
    model.encoder.to(mtbert.pick_dtype(dtype, torch.device("cpu")))

    def run(texts):
        data = mtbert.encode(model.tokenizer, [Row("", text, None, {}) for text in texts])
        return mtbert.compute_logits(model, data)["sentiment"].argmax(1)

    return run


# ---------------------------------------------------------------------------------------------------------------------
# The limit, and one sentence


def matmul_rate(dtype, tokens=1024, seconds=2.0):
    """Floating-point operations a second of the plain matrix products of a layer, on batches as mtbert computes them."""
    shapes = [(384, 1152), (384, 384), (384, 1536), (1536, 384)]
    pairs = [(torch.randn(tokens, i, dtype=dtype), torch.randn(o, i, dtype=dtype)) for i, o in shapes]
    done, start = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - start < seconds:
            for x, w in pairs:
                F.linear(x, w)
                done += 2 * x.numel() * len(w)
    return done / (time.perf_counter() - start)


def profile(what, run, most=12):
    """Print the operators that take most of run()'s time, and return their shares."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    shares = {event.key: event.self_cpu_time_total / total for event in events[:most]}
    print(f"\n{what}: share of the operators' time")
    for name, share in shares.items():
        print(f"  {name[:60]:60}{share:8.1%}")
    return shares


def whole_process(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=HERE)
    return time.perf_counter() - start


def save_model(model, folder):
    mtbert.save(model, folder)
    runs.write(folder / "metrics.json", {})
    heads = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=3)
    heads.save_pretrained(folder / "theirs")
    transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(folder / "theirs")


# ---------------------------------------------------------------------------------------------------------------------


def alternate(contenders, rounds):
    """{name: function} -> {name: [seconds of each round]}."""
    seconds = {name: [] for name in contenders}
    for i in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(redirected(run))
            print(f"round {i + 1}/{rounds}  {name:40}{seconds[name][-1]:8.2f} s", flush=True)
    return seconds


def redirected(run, *arguments, **named):
    with redirect_stdout(StringIO()):
        return run(*arguments, **named)


def timed(run, *arguments):
    def time_it():
        start = time.perf_counter()
        run(*arguments)
        return time.perf_counter() - start

    return time_it


def draw(result, path):
    from matplotlib.figure import Figure

    parts = [part for part in ("train", "predict", "one") if part in result]
    figure = Figure(figsize=(9, 0.6 + 2.9 * len(parts)), layout="constrained")
    axes = figure.subplots(len(parts), 1, squeeze=False)
    titles = {"train": "Training: rows per second", "predict": "Prediction: sentences per second", "one": "One sentence, whole process: seconds"}
    for axis, part in zip(axes[:, 0], parts, strict=True):
        entry = result[part]
        rates = {n: np.array(s) if part == "one" else entry["rows"] / np.array(s) for n, s in entry["seconds"].items()}
        names, medians = list(rates), [np.median(rate) for rate in rates.values()]
        spread = [[m - r.min() for m, r in zip(medians, rates.values(), strict=True)], [r.max() - m for m, r in zip(medians, rates.values(), strict=True)]]
        colors = ["#0072B2" if "mtbert" in name or "predict.py" in name else "#999999" for name in names]
        axis.barh(names, medians, xerr=spread, color=colors, capsize=3)
        for i, m in enumerate(medians):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the line of a limit
            axis.annotate(f"{m:.1f}", (m + spread[1][i], i), (6, 0), textcoords="offset points", va="center", fontsize=9, bbox=box)
        for dtype, style in (("bfloat16", "--"), ("float32", ":")):
            if part != "one" and dtype in result["matmul"]:
                limit = entry["rows"] * result["matmul"][dtype] / entry["flops"]
                axis.axvline(limit, color="#D55E00", linestyle=style, label=f"matrix products alone, {dtype}")
        if part != "one":
            axis.legend(fontsize=8, loc="upper right")
        axis.set_xlim(0, axis.get_xlim()[1] * 1.12)
        axis.invert_yaxis()
        axis.set_title(titles[part], loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main():
    parser = runs.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--val", nargs="+", default=[])
    parser.add_argument("--test", nargs="+", default=[])
    parser.add_argument("--tasks", nargs=1, default=["sentiment"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:3])
    parser.add_argument("--model", help="of part agree: a run folder whose first task is that of --tasks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="of part learn, the whole training set and test's accuracy")
    parser.add_argument("--epochs", type=int, default=3, help="of part learn")
    parser.add_argument("--reach", type=float, default=0.68, help="of part learn: validation accuracy to be reached")
    parser.add_argument("--train-rows", type=int, default=640)
    parser.add_argument("--predict-rows", type=int, default=10000)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    [task], rows = read_data(args.data, args.val, args.test, args.tasks)
    everything = [row for part in rows.values() for row in part]
    rng = np.random.default_rng(0)
    some = [rows["train"][i] for i in rng.permutation(len(rows["train"]))[: args.train_rows]]
    texts = [everything[i].text for i in rng.permutation(len(everything))[: args.predict_rows]]
    model = load_mtbert([task])
    model.compute_dtype = torch.float32
    inner = sum(p.numel() for n, p in model.encoder.named_parameters() if "layers." in n)
    result = {"matmul": {}, "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in dict.fromkeys(("float32", str(mtbert.pick_dtype("auto", torch.device("cpu"))).removeprefix("torch."))):
        result["matmul"][name] = float(np.median([matmul_rate(getattr(torch, name)) for _ in range(5)]))
        print(f"matrix products, {name}: {result['matmul'][name] / 1e9:.0f} GFLOP/s", flush=True)

    def tokens(texts):
        return int(mtbert.encode(model.tokenizer, [Row("", text, None, {}) for text in texts]).lengths.sum())

    if "train" in args.parts:
        second = Task("second", [0, 1], [1, 1], {"0": "0", "1": "1"})
        two = [row._replace(labels=row.labels | {"second": i % 2}) for i, row in enumerate(some)]
        seconds = alternate({
            "notebooks: padded to 128, float32": lambda: train_notebook(some, task),
            "Trainer, default arguments": lambda: train_trainer(some, task),
            "Trainer at its best (by length, fused)": lambda: train_best_trainer(some, task),
            "mtbert": lambda: train_mtbert(some, task),
            "mtbert, two tasks": lambda: train_mtbert(two, task, second),
        }, args.rounds)  # fmt: skip
        result["train"] = {"rows": len(some), "flops": 6 * inner * tokens([row.text for row in some]), "seconds": seconds}
    if "predict" in args.parts:
        second = mtbert.MTBert(model.encoder, [task, Task("second", [0, 1], [1, 1])], model.tokenizer).eval()
        contenders = {
            "transformers' pipeline": predict_pipeline(model, texts),
            "sentence-transformers and a head": predict_sentence_transformers(model, texts),
            "ONNX Runtime, float32": predict_onnx(model, texts),
            "ONNX Runtime, dynamic int8": predict_onnx(model, texts, int8=True),
            "mtbert, float32": predict_mtbert(model, texts, "float32"),
            "mtbert": predict_mtbert(model, texts),
            "mtbert, two tasks": predict_mtbert(second, texts),
        }
        for run in contenders.values():
            run(texts[:512])
        seconds = alternate({name: timed(run, texts) for name, run in contenders.items()}, min(args.rounds, 3))
        result["predict"] = {"rows": len(texts), "flops": 2 * inner * tokens(texts), "seconds": seconds}
    if "one" in args.parts:
        folder = Path(tempfile.mkdtemp())
        save_model(model, folder)
        pipeline = "import transformers; print(transformers.pipeline('text-classification', '{}')('great movie'))"
        commands = {
            "transformers' pipeline": ["-c", pipeline.format(folder / "theirs")],
            "predict.py": ["predict.py", "--model", str(folder), "great movie"],
            "import torch": ["-c", "import torch"],
        }
        one = {name: lambda command=command: whole_process([sys.executable, *command]) for name, command in commands.items()}
        result["one"] = {"seconds": alternate(one, args.rounds)}

    if "learn" in args.parts:
        contenders = {"Trainer, default arguments": train_trainer, "mtbert": train_mtbert}
        result["learn"] = {name: [] for name in contenders}
        for seed in range(args.seeds):
            for name, run in contenders.items():
                print(f"seed {seed}, {name}", file=sys.stderr, flush=True)
                entry = redirected(learning_curve, run, rows, task, args.reach, seed=seed, epochs=args.epochs)
                result["learn"][name].append(entry)
        print(f"\n{args.epochs} epochs{'':32}{'test accuracy':>16}   seconds of training until validation {args.reach:.0%}")
        for name, seeds in result["learn"].items():
            reached = [run["curve"][-1][0] if run["curve"][-1][1] >= args.reach else np.inf for run in seeds]
            test = [run["test"] for run in seeds]
            print(f"{name:40}{np.mean(test):8.4f} ± {np.std(test, ddof=min(1, len(test) - 1)):.4f}   {' '.join(f'{s:.0f}' for s in reached)}")

    if "profile" in args.parts:
        redirected(train_mtbert, some[:64], task)  # compiles what is compiled once
        predict = predict_mtbert(model, texts)
        predict(texts[:512])
        result["profile"] = {
            "training": profile("training", lambda: redirected(train_mtbert, some, task)),
            "prediction": profile("prediction", lambda: predict(texts)),
        }
    if "agree" in args.parts:
        trained, texts = mtbert.load(args.model, dtype="float32"), [row.text for row in rows["test"]]
        gold = np.array([trained.tasks[0].labels.index(row.labels[task.name]) for row in rows["test"]])
        contenders = {
            "mtbert, float32": predict_mtbert(trained, texts, "float32"),
            "mtbert, bfloat16": predict_mtbert(trained, texts, "bfloat16"),
            "ONNX Runtime, float32": predict_onnx(trained, texts),
            "ONNX Runtime, dynamic int8": predict_onnx(trained, texts, int8=True),
        }
        guesses = {name: run(texts) for name, run in contenders.items()}
        result["agree"] = {}
        for name, guess in guesses.items():
            same, right = np.mean(guess == guesses["mtbert, float32"]), np.mean(guess == gold)
            result["agree"][name] = {"same_as_float32": float(same), "accuracy": float(right)}
            print(f"{name:40}{same:8.2%} of {len(gold)} labels as in float32, accuracy {right:.2%}")

    for part in (part for part in args.parts if part in PARTS[:3]):
        entry = result[part]
        reference = np.array(entry["seconds"]["predict.py" if part == "one" else "mtbert"])
        print(f"\n{part:40}{'median':>10}{'min':>10}{'max':>10}{'time of mtbert / its':>22}{'of the limit':>14}")
        for name, seconds in entry["seconds"].items():
            values = np.array(seconds) if part == "one" else entry["rows"] / np.array(seconds)
            ratio = np.median(reference / np.array(seconds))
            print(f"{name:40}{np.median(values):10.2f}{values.min():10.2f}{values.max():10.2f}{ratio:22.3f}", end="")
            fp32 = "bfloat16" not in result["matmul"] or any(word in name for word in ("float32", "default", "transformers"))
            limit = result["matmul"]["float32" if fp32 else "bfloat16"]
            print("" if part == "one" else f"{entry['flops'] / np.median(seconds) / limit:14.1%}")
    args.out.mkdir(parents=True, exist_ok=True)
    runs.write(args.out / "speed.json", result)
    if set(args.parts) & set(PARTS[:3]):
        draw(result, args.out / "speed.png")


if __name__ == "__main__":
    runs.run_script(main)
