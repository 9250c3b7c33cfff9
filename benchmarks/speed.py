"""What people would use instead, and mtbert, side by side: training, prediction, one sentence.

pip install -r benchmarks/requirements.txt
python benchmarks/speed.py --data train.jsonl --val dev.jsonl --test test.jsonl --tasks sentiment
python benchmarks/speed.py ... --parts train predict compile --device cuda --shape base
python benchmarks/speed.py ... --parts learn                            # test accuracy, and seconds until 68 % on validation
python benchmarks/speed.py --parts agree --model runs/sst runs/trec --test sst.jsonl trec.jsonl   # labels, dtype by dtype

The contenders alternate in one process, with the same weights and rows, in batches of 32. Texts are tokenized before
training, and within the time of prediction. The first round, which pays for kernels of each shape, is shown apart.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would take all GPUs that it sees

import numpy as np
import torch
import torch.nn as nn
import transformers
from matplotlib.figure import Figure
from torch.optim.optimizer import register_optimizer_step_post_hook

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as mtbert's scripts set it, here for all contenders
HERE = Path(__file__).parent.parent
sys.path.insert(0, str(HERE))
import arithmetic
import mtbert
import runs
import train
from data import Row, Task, convert_labels, parse_row, read_data, read_rows

BATCH = 32
WATCHED = {}  # the model that trains, and its function of a batch that gives logits
SECOND = Task("second", [0, 1], [1, 1], {"0": "0", "1": "1"})  # a task that every other row has a 1 for
TABLES = {"train": "Training: rows per second", "predict": "Prediction: sentences per second", "one": "One sentence, whole process: seconds"}
PEAKS = dict.fromkeys(["NVIDIA H100 80GB HBM3", "NVIDIA H200"], 989e12)  # of dense bfloat16, by NVIDIA's data sheets
PEAKS |= dict.fromkeys(["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"], 312e12)


class Start:
    """What all contenders start from: a checkpoint, the device that they compute on, and the rows."""

    def __init__(self, encoder=mtbert.DEFAULT_ENCODER, device="cpu"):
        self.encoder, self.device, self.cpu = encoder, mtbert.pick_device(device), device == "cpu"
        self.folder, ours, self.int8 = mtbert.find_encoder(encoder)[0], mtbert.Encoder.from_pretrained(encoder), self.cpu and arithmetic.has_int8()
        self.config, self.parameters = ours.config, sum(parameter.numel() for parameter in ours.layers.parameters())
        self.tokenizer = mtbert.load_tokenizer(encoder, self.config.max_length, self.config.vocab_size)
        self.dtype = str(mtbert.pick_dtype("auto", self.device)).removeprefix("torch.")

    def theirs(self, classes=3, **settings):
        """-> transformers' tokenizer, and its model with a head."""
        model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder, num_labels=classes, **settings)
        return transformers.AutoTokenizer.from_pretrained(self.folder), model

    def now(self):
        """Seconds, behind all that the device was told to compute."""
        if not self.cpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def read(self, args):
        [self.task], self.splits = read_data(args.data, args.val, args.test, args.tasks)
        every, rng = [row for part in self.splits.values() for row in part], np.random.default_rng(0)
        self.rows = [self.splits["train"][i] for i in rng.permutation(len(self.splits["train"]))[: args.train_rows]]
        self.texts = [Row("", every[i].text, None, {}) for i in rng.permutation(len(every))[: args.predict_rows]]

    def operations(self, rows):
        """Of a forward pass, of the layers: two for each parameter and token."""
        tokens = mtbert.encode(self.tokenizer, [row._replace(text_pair=None) for row in rows]).lengths.sum()
        return 2 * int(tokens) * self.parameters


def load_mtbert(tasks, start=None):
    start = start or Start()
    model = mtbert.MTBert(mtbert.Encoder.from_pretrained(start.encoder), tasks, start.tokenizer)
    model.compute_dtype = getattr(torch, start.dtype)
    return model


class Mean(nn.Module):
    """transformers' BertModel with mean pooling and a linear head, with the weights of an MTBert's first task."""

    def __init__(self, model):
        super().__init__()
        mtbert.to_transformers(model, folder := f"{tempfile.mkdtemp()}/encoder")
        self.bert = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
        self.head = copy.deepcopy(next(iter(model.heads.values())))

    def forward(self, input_ids, attention_mask, token_type_ids):
        hidden = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        mask = attention_mask[:, :, None].float()
        return self.head((hidden * mask).sum(1) / mask.sum(1))


# ---------------------------------------------------------------------------------------------------------------------
# Training: each returns the seconds of each epoch over the rows


def train_notebook(start, rows, task):
    """The loop of the notebooks: every text padded to 128, float32, plain AdamW, random batches."""
    tokenizer, model = start.theirs(len(task.labels))
    batches = tokenizer([row.text for row in rows], truncation=True, max_length=128, padding="max_length", return_tensors="pt")
    batches["labels"] = torch.tensor([task.labels.index(row.labels[task.name]) for row in rows])
    optimizer = torch.optim.AdamW(model.train().to(start.device).parameters(), lr=2e-5)
    begin = start.now()
    for batch in torch.randperm(len(rows)).split(BATCH):
        loss = model(**{name: values[batch].to(start.device) for name, values in batches.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [start.now() - begin]


def train_trainer(start, rows, task, epochs=1, seed=0, attention="sdpa", **settings):
    transformers.set_seed(seed)  # the head is drawn before Trainer sets it
    tokenizer, model = start.theirs(len(task.labels), attn_implementation=attention)
    encoded = [tokenizer(row.text, truncation=True) | {"labels": task.labels.index(row.labels[task.name])} for row in rows]
    settings |= {"num_train_epochs": epochs, "seed": seed, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(tempfile.mkdtemp(), per_device_train_batch_size=BATCH, use_cpu=start.cpu, **settings)
    times, clock, collator = [], transformers.TrainerCallback(), transformers.DataCollatorWithPadding(tokenizer)
    clock.on_train_begin = clock.on_epoch_end = lambda *_, **__: times.append(start.now())
    trainer = transformers.Trainer(model, arguments, train_dataset=encoded, data_collator=collator, callbacks=[clock])
    WATCHED.update(model=model, logits=lambda batch: model(**batch).logits)
    trainer.train()
    return np.diff(times).tolist()


def train_best_trainer(start, rows, task, **settings):
    """With every flag that makes it faster. On a processor the attention of "eager" was faster than that of "sdpa", and
    batches padded to a multiple of 8 were slower."""
    best = {"attention": "eager" if start.cpu else "sdpa", "bf16": start.dtype == "bfloat16", "optim": "adamw_torch_fused"}
    best |= {"train_sampling_strategy": "group_by_length", "logging_strategy": "no", "logging_nan_inf_filter": False}
    return train_trainer(start, rows, task, **best, **settings)


def train_mtbert(start, rows, *tasks, epochs=1, seed=0, flags=(), repeats=1):
    """train.py, with its flags: seconds in training steps, without evaluation and snapshot. Each repeat goes on."""
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("train", rows), ("val", start.splits["validation"][:BATCH])):
            lines = [{"text": row.text} | {task.name: row.labels.get(task.name, i % 2) for task in tasks} for i, row in enumerate(part)]
            Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        argv = ["--data", f"{folder}/train.jsonl", "--val", f"{folder}/val.jsonl", "--tasks", *(task.name for task in tasks)]
        args = train.parse_args([*argv, "--encoder", str(start.encoder), "--device", str(start.device), "--epochs", str(epochs), "--seed", str(seed), *flags])
        model, _, data = train.prepare(args, start.device, None)
        WATCHED.update(model=model, logits=lambda batch: model(**batch)[0][tasks[0].name])
        return [mtbert.train(model, data, args, tempfile.mkdtemp(dir=folder))[2] for _ in range(repeats)]


def learning_curve(run, start, reach, every=20, **settings):
    """[[seconds of training, validation accuracy] every so many steps until it is `reach`], accuracy at the end."""
    data = {split: mtbert.encode(start.tokenizer, start.splits[split], [start.task]) for split in ("validation", "test")}
    curve, step, begin = [], 0, None

    @torch.inference_mode()
    def accuracy(split):  # in float32
        model, order, right = WATCHED["model"], np.argsort(data[split].lengths), 0
        training, dtype = model.training, getattr(model, "compute_dtype", None)
        model.eval().compute_dtype = torch.float32
        for i in range(0, len(order), BATCH):
            batch = mtbert.collate(data[split], order[i : i + BATCH], start.config, start.device)
            labels = batch.pop("labels")[start.task.name]
            right += int((WATCHED["logits"](batch).argmax(1) == labels).sum())
        model.train(training).compute_dtype = dtype
        return right / len(order)

    def watch(*_):
        nonlocal step, begin
        now, step = start.now(), step + 1
        begin = now if begin is None else begin  # behind the first step, whose one is missing for both
        if step % every == 0 and not (curve and curve[-1][1] >= reach):
            curve.append([now - begin, accuracy("validation")])
            begin += start.now() - now  # the clock stands still while we look

    hook = register_optimizer_step_post_hook(watch)
    run(start, start.splits["train"], start.task, **settings)
    hook.remove()
    return {"curve": curve, "validation": accuracy("validation"), "test": accuracy("test")}


# ---------------------------------------------------------------------------------------------------------------------
# Prediction: functions of rows, to be timed; those of predict_engines and predict_mtbert give {task: (N,) classes}


def predict_theirs(start, model, dtype):
    """transformers' pipeline, which pads each batch to its longest text, at the best of its batch sizes; and
    sentence-transformers' encoder with a linear head."""
    from sentence_transformers import SentenceTransformer

    (tokenizer, theirs), times = start.theirs(dtype=getattr(torch, dtype)), {}
    pipeline = transformers.pipeline("text-classification", theirs, tokenizer=tokenizer, device=start.device)
    encoder = SentenceTransformer(str(start.folder), device=str(start.device), model_kwargs={"dtype": getattr(torch, dtype)})
    encoder[-1] = nn.Identity() if type(encoder[-1]).__name__ == "Normalize" else encoder[-1]
    head = copy.deepcopy(next(iter(model.heads.values()))).to(start.device)

    def classify(rows, size):
        pipeline([row.text for row in rows], batch_size=size)

    @torch.inference_mode()
    def embed(rows):
        embeddings = encoder.encode([row.text for row in rows], batch_size=BATCH, convert_to_tensor=True)
        head(embeddings.float()).argmax(1).cpu()

    for size in (1, 8, 32, 128) if start.cpu else (32, 128, 512):
        classify(start.texts[:size], size)
        times[size] = timed(classify, start.texts[: 256 if start.cpu else 2048], size, now=start.now)()
    print(f"pipeline, {dtype}: seconds by batch size {times}")
    best = partial(classify, size=min(times, key=times.get))
    return {f"transformers' pipeline, {dtype}": (dtype, best), f"sentence-transformers, {dtype}": (dtype, embed)}


def predict_engines(model):
    """-> {name: (dtype, function)} of ONNX Runtime behind its optimizer for BERT, and OpenVINO, which computes by default
    in bfloat16 where the processor has it. Both get batches by length, padded as ours are, and give the first task."""
    import onnx
    import onnxruntime
    import openvino
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    folder, names, config = tempfile.mkdtemp(), ["input_ids", "attention_mask", "token_type_ids"], model.encoder.config
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"logits": {0: "batch"}}
    settings = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "opset_version": 17, "dynamo": False}
    torch.onnx.export(Mean(model).eval(), (torch.ones(2, 8, dtype=torch.long),) * 3, f"{folder}/model.onnx", **settings)
    optimized = optimize_model(f"{folder}/model.onnx", "bert", config.num_attention_heads, config.hidden_size)
    optimized.save_model_to_file(f"{folder}/float32.onnx")
    quantize_dynamic(f"{folder}/float32.onnx", f"{folder}/int8.onnx", extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})

    @torch.inference_mode()
    def by_length(infer, rows):
        data = mtbert.encode(model.tokenizer, rows, long=model.long)
        classes, order = np.empty(len(rows), int), np.argsort(data.lengths, kind="stable")[::-1]
        for i in range(0, len(order), BATCH):
            batch = mtbert.collate(data, order[i : i + BATCH], config, "cpu")
            classes[order[i : i + BATCH]] = infer({name: batch[name].long().numpy() for name in names})[0].argmax(1)
        return {model.tasks[0].name: classes}

    options, engines = onnxruntime.SessionOptions(), {}
    options.intra_op_num_threads = torch.get_num_threads()
    for dtype, what in (("float32", "float32"), ("int8", "dynamic int8")):
        session = onnxruntime.InferenceSession(f"{folder}/{dtype}.onnx", options, providers=["CPUExecutionProvider"])
        engines[f"ONNX Runtime, {what}"] = dtype, partial(by_length, partial(session.run, ["logits"]))
    for what, settings in (("by default", {}), ("float32", {"INFERENCE_PRECISION_HINT": "f32"})):
        settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        compiled = openvino.Core().compile_model(f"{folder}/model.onnx", "CPU", settings)
        dtype = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        print(f"OpenVINO {what}: its INFERENCE_PRECISION_HINT is {dtype}")
        engines[f"OpenVINO, {what}"] = {"bf16": "bfloat16", "f32": "float32"}.get(dtype, dtype), partial(by_length, compiled.create_infer_request().infer)
    return engines


def predict_mtbert(model, dtype, device="cpu", compile=False):
    """Its encoder as mtbert.load gives it, but not packed where it is compiled."""
    model = copy.deepcopy(model).eval().to(device)
    model.compute_dtype = torch.float32  # so that the dtype is that of the weights
    if dtype != "int8":
        model.encoder.to(getattr(torch, dtype))
    if compile:
        model.compile(dynamic=True)
    else:
        mtbert.pack(model, int8=dtype == "int8")
    logits = lambda rows: mtbert.compute_logits(model, mtbert.encode(model.tokenizer, rows, long=model.long))  # noqa: E731
    return lambda rows: {name: values.argmax(1) for name, values in logits(rows).items()}


# ---------------------------------------------------------------------------------------------------------------------
# The limit, time, table and picture


def matmul_rate(start, dtype, seconds=1.0):
    """Operations a second of the plain matrix products of a layer: on a processor on as many tokens as mtbert trains on
    at a time, on a GPU on as many as keep it busy. Of bytes, they are those of arithmetic.py without its rounding."""
    tokens = mtbert.CPU_TOKENS if start.cpu else 2**17
    D, wide, products = start.config.hidden_size, start.config.intermediate_size, []
    for i, o in [(D, 3 * D), (D, D), (D, wide), (wide, D)]:
        if dtype == "int8":
            x, layer = torch.randint(256, (tokens, i), dtype=torch.uint8), arithmetic.Int8Linear(nn.Linear(i, o))
            products.append(partial(arithmetic.int8_product, x, layer.weight, layer.scale))
        else:
            products.append(partial(nn.functional.linear, *(torch.randn(n, i, dtype=getattr(torch, dtype), device=start.device) for n in (tokens, o))))
    done, begin = 0, start.now()
    with torch.inference_mode():
        while (spent := start.now() - begin) < seconds:
            for product in products:
                product()
            done += 1
    return done * 2 * tokens * (4 * D * D + 2 * D * wide) / spent


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


def timed(run, *arguments, now=time.perf_counter):
    def time_it():
        begin = now()
        run(*arguments)
        return now() - begin

    return time_it


def values_of(entry):
    """Rows a second in each round, of whole processes their seconds -> those that count, that of the first round."""
    values = entry["rows"] / np.array(entry["seconds"]) if "rows" in entry else np.array(entry["seconds"])
    return values[len(values) > 1 :], values[0]


def print_table(part, result):
    ours, _ = values_of(result[part]["predict.py" if part == "one" else "mtbert"])
    print(f"\n{part + (', seconds' if part == 'one' else ', rows a second'):44}{'dtype':10}{'median':>10}{'min':>10}{'max':>10}", end="")
    print(f"{'1st round':>11}{'time of mtbert / its':>22}{'of the limit':>14}{'of the peak':>13}")
    for name, entry in result[part].items():
        values, first = values_of(entry)
        ratio = np.median(ours / values if part == "one" else values / ours)
        print(f"{name:44}{entry.get('dtype') or '':10}{np.median(values):10.2f}{values.min():10.2f}{values.max():10.2f}{first:11.2f}{ratio:22.3f}", end="")
        rate = np.median(values) * entry["operations"] / entry["rows"] if part != "one" else None
        for limit, width in ((result["matmul"].get(entry.get("dtype")), 14), (result["peak"], 13)):
            print(f"{rate / limit:{width}.1%}" if rate and limit else f"{'-':>{width}}", end="")
        print()


def draw(result, path):
    heights = {part: len(result[part]) + 2 for part in TABLES if part in result}
    figure = Figure(figsize=(9, 0.36 * sum(heights.values())), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=list(heights.values()))
    for axis, part in zip(axes[:, 0], heights, strict=True):
        values = [values_of(entry)[0] for entry in result[part].values()]
        low, medians, high = (np.array([f(v) for v in values]) for f in (np.min, np.median, np.max))
        colors = ["#0072B2" if "mtbert" in name or "predict.py" in name else "#999999" for name in result[part]]
        names = [name if part == "one" or entry["dtype"] in name else f"{name} ({entry['dtype']})" for name, entry in result[part].items()]
        axis.barh(names, medians, xerr=[medians - low, high - medians], color=colors, capsize=3)
        for i, m in enumerate(medians):
            axis.annotate(f"{m:,.{1 if m < 100 else 0}f}", (high[i], i), (6, 0), textcoords="offset points", va="center", fontsize=9)
        axis.set(xlim=(0, high.max() * 1.15), ylim=(len(names) - 0.4, -0.6))
        axis.set_title(TABLES[part], loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


# ---------------------------------------------------------------------------------------------------------------------
# The parts: each returns what speed.json keeps of it


def measure(contenders, rounds, operations):
    """{name: (dtype, rows, function -> its seconds)}, and a function of rows -> {name: what speed.json says of it}."""
    seconds, result = alternate({name: run for name, (_, _, run) in contenders.items()}, rounds), {}
    for name, (dtype, rows, _) in contenders.items():
        result[name] = {"dtype": dtype, "rows": len(rows), "operations": operations(rows), "seconds": seconds[name]}
    return result


def part_train(start, args):
    task, rows, quarter, eighth = start.task, start.rows, start.rows[::4], start.rows[::8]  # parts for the slow ones
    contenders = {
        "notebooks: padded to 128": ("float32", eighth, lambda: train_notebook(start, eighth, task)[0]),
        "Trainer, default arguments": ("float32", quarter, lambda: train_trainer(start, quarter, task)[0]),
        "Trainer at its best": (start.dtype, rows, lambda: train_best_trainer(start, rows, task)[0]),
        "mtbert": (start.dtype, rows, lambda: train_mtbert(start, rows, task)[0]),
        "mtbert --freeze-embeddings": (start.dtype, rows, lambda: train_mtbert(start, rows, task, flags=["--freeze-embeddings"])[0]),
        "mtbert, two tasks": (start.dtype, rows, lambda: train_mtbert(start, rows, task, SECOND)[0]),
    }
    return measure(contenders, args.rounds, lambda rows: 3 * start.operations(rows))


def part_predict(start, args):
    model = load_mtbert([start.task], start)
    best = str(mtbert.pick_dtype("auto", start.device, predict=True)).removeprefix("torch.")
    dtypes, functions = list(dict.fromkeys(["float32"] * start.cpu + [start.dtype])), {}
    for dtype in dtypes:
        functions |= predict_theirs(start, model, dtype)
    functions |= predict_engines(model) if start.cpu else {}
    for dtype in dtypes + ["int8"] * start.int8:
        functions["mtbert" if dtype == best else f"mtbert, {dtype}"] = dtype, predict_mtbert(model, dtype, start.device)
    functions["mtbert, two tasks"] = best, predict_mtbert(mtbert.MTBert(model.encoder, [start.task, SECOND], model.tokenizer), best, start.device)
    contenders = {name: (dtype, start.texts, timed(run, start.texts, now=start.now)) for name, (dtype, run) in functions.items()}
    return measure(contenders, min(args.rounds, 4), start.operations)


def part_one(start, args):
    mtbert.save(load_mtbert([start.task], start), folder := Path(tempfile.mkdtemp()))
    runs.write(folder / "metrics.json", {})
    for part in start.theirs():
        part.save_pretrained(folder / "theirs")
    pipeline = f"transformers.pipeline('text-classification', {str(folder / 'theirs')!r}, device='{start.device}')"
    commands = {
        "transformers' pipeline": ["-c", f"import transformers; print({pipeline}('great movie'))"],
        "predict.py": ["predict.py", "--device", str(start.device), "--model", str(folder), "great movie"],
        "import torch": ["-c", "import torch"],
    }
    call = partial(subprocess.run, check=True, capture_output=True, cwd=HERE)
    one = {name: timed(call, [sys.executable, *command]) for name, command in commands.items()}
    return {name: {"seconds": seconds} for name, seconds in alternate(one, args.rounds).items()}


def part_compile(start, args):
    """Each twice in a row; what the first takes longer is compilation, and kernels that are made once."""
    train, model, result = (start, start.rows, start.task), load_mtbert([start.task], start), {}

    def predict(compile):
        run = timed(predict_mtbert(model, start.dtype, start.device, compile), start.texts, now=start.now)
        return [run(), run()]

    contenders = {
        "train, mtbert": (start.rows, lambda: train_mtbert(*train, repeats=2)),
        "train, mtbert --compile": (start.rows, lambda: train_mtbert(*train, flags=["--compile"], repeats=2)),
        "predict, mtbert": (start.texts, lambda: predict(False)),
        "predict, mtbert with torch.compile": (start.texts, lambda: predict(True)),
        "train, Trainer at its best": (start.rows, lambda: train_best_trainer(*train, epochs=2)),
        "train, the same with torch_compile": (start.rows, lambda: train_best_trainer(*train, epochs=2, torch_compile=True)),
    }
    print(f"\n{'compile, ' + start.dtype:40}{'first, s':>10}{'second, s':>11}{'difference, s':>15}{'rows a second':>15}")
    for name, (rows, run) in contenders.items():
        torch.compiler.reset()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # so that nothing is compiled already
        first, second = redirected(run)
        result[name] = {"rows": len(rows), "seconds": [first, second]}
        print(f"{name:40}{first:10.2f}{second:11.2f}{first - second:15.2f}{len(rows) / second:15.1f}", flush=True)
    return result


def part_learn(start, args):
    contenders = {"Trainer, default arguments": train_trainer, "mtbert": train_mtbert}
    result = {name: [] for name in contenders}
    for seed in range(args.seeds):
        for name, run in contenders.items():
            print(f"seed {seed}, {name}", file=sys.stderr, flush=True)
            result[name].append(redirected(learning_curve, run, start, args.reach, seed=seed, epochs=args.epochs))
    print(f"\n{args.epochs} epochs{'':32}{'test accuracy':>16}   seconds of training until validation {args.reach:.0%}")
    for name, seeds in result.items():
        reached = [run["curve"][-1][0] if run["curve"] and run["curve"][-1][1] >= args.reach else np.inf for run in seeds]
        mean, std = np.mean(tests := [run["test"] for run in seeds]), np.std(tests, ddof=min(1, len(tests) - 1))
        print(f"{name:40}{mean:8.4f} ± {std:.4f}   {' '.join(f'{seconds:.0f}' for seconds in reached)}")
    return result


def part_agree(start, args):
    """Of each model and each of its tasks with one class a text: how many labels are as in float32, and the accuracy."""
    result = {}
    for i, folder in enumerate(args.model):
        model, files = mtbert.load(folder, "cpu", "float32"), args.test[i : i + 1] if len(args.test) == len(args.model) else args.test
        rows = [parse_row(where, row, cells=cells) for file in files for where, _, row, cells in read_rows(file)]
        rows = convert_labels(rows, {task.name: task.kind for task in model.tasks})
        classes = {f"mtbert, {dtype}": predict_mtbert(model, dtype)(rows) for dtype in ["float32", "bfloat16"] + ["int8"] * arithmetic.has_int8()}
        if model.pooling == "mean" and isinstance(model.encoder, mtbert.Encoder):
            classes |= {name: run(rows) for name, (_, run) in predict_engines(model).items()}
        for task in (task for task in model.tasks if task.labels and not task.several):
            which = [n for n, row in enumerate(rows) if task.name in row.labels]
            for name, guess in classes.items():
                if which and task.name in guess:  # the engines have the first task alone
                    same = float(np.mean((guess[task.name] == classes["mtbert, float32"][task.name])[which]))
                    right = float(np.mean([task.labels[guess[task.name][n]] == rows[n].labels[task.name] for n in which]))
                    result.setdefault(folder, {}).setdefault(task.name, {})[name] = {"same_as_float32": same, "accuracy": right}
                    print(f"{folder}  {task.name:16}{name:28}{same:9.2%} of {len(which)} labels as in float32, accuracy {right:.2%}")
    return result


PARTS = {"train": part_train, "predict": part_predict, "one": part_one, "compile": part_compile, "learn": part_learn, "agree": part_agree}


def measure_parts(args):
    torch.manual_seed(0)
    if args.shape:
        args.encoder = tempfile.mkdtemp()
        transformers.BertModel(transformers.BertConfig()).save_pretrained(args.encoder)  # random, of BERT-base's shape
        Start().theirs()[0].save_pretrained(args.encoder)
    start = Start(args.encoder, args.device)
    result = {"device": "cpu" if start.cpu else torch.cuda.get_device_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result |= {"peak": PEAKS.get(result["device"]), "matmul": {}}
    if not start.int8:
        print("left out:", "mtbert in int8, which takes a processor with VNNI" if start.cpu else "ONNX Runtime, OpenVINO and int8, which are for processors")
    if args.data:
        start.read(args)
    for dtype in dict.fromkeys(["float32", start.dtype, *["int8"] * start.int8]) if {"train", "predict"} & set(args.parts) else ():
        result["matmul"][dtype] = float(np.median([matmul_rate(start, dtype) for _ in range(5)]))
        print(f"matrix products, {dtype}: {result['matmul'][dtype] / 1e9:,.0f} GFLOP/s", flush=True)
    result |= {part: PARTS[part](start, args) for part in args.parts}
    for part in (part for part in TABLES if part in result):
        print_table(part, result)
    return result


def main():
    parser = runs.Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    count, flag = train.number(int, 1), parser.add_argument
    flag("--data", nargs="+", metavar="FILE", help="training rows, for all parts but agree")
    flag("--val", nargs="+", default=[], metavar="FILE", help="validation rows; empty: a tenth of --data")
    flag("--test", nargs="+", default=[], metavar="FILE", help="test rows; of agree one file for each model, or files for all")
    flag("--tasks", nargs=1, default=["sentiment"], metavar="NAME", help="the column to learn")
    flag("--parts", nargs="+", choices=PARTS, default=list(TABLES), help="what is measured")
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="where the contenders compute; agree is on the processor")
    flag("--encoder", default=mtbert.DEFAULT_ENCODER, help="a BERT that all start from: a Hub name or a folder")
    flag("--shape", choices=("base",), help="in place of --encoder: random weights of BERT-base's shape")
    flag("--model", nargs="+", default=[], metavar="FOLDER", help="of agree: runs of train.py")
    flag("--rounds", type=count, default=5, help="of train, predict (at most 4) and one; the first is shown apart")
    flag("--train-rows", type=count, default=2560, help="of train and compile; the slow ones take a part")
    flag("--predict-rows", type=count, default=10000, help="of predict and compile")
    flag("--seeds", type=count, default=3, help="of learn: how many, on the whole training set")
    flag("--epochs", type=count, default=3, help="of learn")
    flag("--reach", type=float, default=0.68, help="of learn: the validation accuracy to be reached")
    flag("--out", type=Path, default=Path("runs/speed"), metavar="FOLDER", help="where speed.json and speed.png are written")
    args = parser.parse_args()
    if ("agree" in args.parts and not (args.model and args.test)) or (set(args.parts) != {"agree"} and not args.data):
        parser.error("agree takes --model and --test, and the other parts take --data")
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tempfile.tempdir:  # what mkdtemp makes goes with it
        result = measure_parts(args)
    runs.write(args.out / "speed.json", result)
    if set(args.parts) & set(TABLES):
        draw(result, args.out / "speed.png")


if __name__ == "__main__":
    runs.run_script(main)
