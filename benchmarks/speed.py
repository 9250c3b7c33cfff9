"""What people would use instead, and mtbert, side by side: training, prediction, one sentence.

pip install -r benchmarks/requirements.txt
python benchmarks/speed.py --data train.jsonl --val dev.jsonl --test test.jsonl --tasks sentiment
python benchmarks/speed.py ... --parts train predict compile --device cuda --shape base
python benchmarks/speed.py ... --parts learn       # test accuracy, and seconds until 68 % are right
python benchmarks/speed.py --parts agree --model RUN ... --val FILE ... --test FILE ...
python benchmarks/speed.py ... --against ../former # this checkout beside another one

The contenders (contenders.py) alternate in one process, with the same weights and rows, in batches
of 32. Texts are tokenized before training, and within the time of prediction. The first round is
shown apart: it pays for the kernels of each shape.
"""

import argparse
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

import checkouts
import contenders  # before torch: it sets the environment
import numpy as np
import torch
import torch.nn as nn
import transformers
from contenders import BATCH, SECOND, Start

import mtbert
from support import cpu, runs
from support.columns import convert_labels, parse_row
from support.files import read_rows
from support.huggingface import DEFAULT_ENCODER
from support.script import Parser, number, run_script

TABLES = {
    "train": "Training: rows per second",
    "predict": "Prediction: sentences per second",
    "one": "One sentence, whole process: seconds",
}


# --------------------------------------------------------------------------------------------------
# Time


def quietly(run):
    with redirect_stdout(StringIO()):
        return run()


def timed(start, run, *arguments):
    """-> a function that calls run(*arguments), and returns its seconds."""

    def time_it():
        begin = start.now()
        run(*arguments)
        return start.now() - begin

    return time_it


def alternate(functions, rounds):
    """Call {name: function that returns its seconds} in turn -> {name: [seconds of each round]}."""
    seconds = {name: [] for name in functions}
    for i in range(rounds):
        for name, function in functions.items():
            seconds[name].append(quietly(function))
            print(f"round {i + 1}/{rounds}  {name:40}{seconds[name][-1]:8.2f} s", flush=True)
    return seconds


def matmul_rate(start, dtype, seconds=1.0):
    """Operations a second of the plain matrix products of a layer: the limit of what is possible.

    On a CPU they are of as many tokens as mtbert trains on at a time, on a GPU of as many as keep
    it busy. Products of bytes are those of support/cpu.py without its rounding.
    """
    num_tokens = cpu.MAX_TOKENS if start.on_cpu else 2**17
    D = start.config.hidden_size
    wide = start.config.intermediate_size
    products = []
    for inputs, outputs in ((D, 3 * D), (D, D), (D, wide), (wide, D)):
        products.append(matrix_product(start, dtype, num_tokens, inputs, outputs))
    num_done = 0
    begin = start.now()
    spent = 0.0
    with torch.inference_mode():
        while spent < seconds:
            for product in products:
                product()
            num_done += 1
            spent = start.now() - begin
    operations = 2 * num_tokens * (4 * D * D + 2 * D * wide)
    return num_done * operations / spent


def matrix_product(start, dtype, num_tokens, inputs, outputs):
    if dtype == "int8":
        tokens = torch.randint(256, (num_tokens, inputs), dtype=torch.uint8)
        layer = cpu.Int8Linear(nn.Linear(inputs, outputs))
        return partial(cpu.int8_product, tokens, layer.weight, layer.scale)
    settings = {"dtype": getattr(torch, dtype), "device": start.device}
    tokens = torch.randn(num_tokens, inputs, **settings)
    weight = torch.randn(outputs, inputs, **settings)
    return partial(nn.functional.linear, tokens, weight)


# --------------------------------------------------------------------------------------------------
# The parts: each returns what speed.json keeps of it


def measure(start, rows_of, dtype_of, functions, rounds, passes):
    """Time functions by name -> {name: what speed.json says of it}.

    rows_of: {name: its rows}; dtype_of: {name: its dtype}; passes: 1 for a forward pass, 3 for one
    forward and one backward.
    """
    result = {}
    for name, seconds in alternate(functions, rounds).items():
        result[name] = {
            "dtype": dtype_of[name],
            "rows": len(rows_of[name]),
            "operations": passes * start.count_operations(rows_of[name]),
            "seconds": seconds,
        }
    return result


def part_train(start, args):
    """An epoch; the slow contenders take a part of the rows."""
    quarter = start.rows[::4]
    eighth = start.rows[::8]
    both = (start.task, SECOND)
    trainings = {
        "notebooks: padded to 128": ("float32", contenders.train_notebook, eighth, [start.task]),
        "Trainer, default arguments": ("float32", contenders.train_trainer, quarter, [start.task]),
        "Trainer at its best": (
            *(start.dtype, contenders.train_best_trainer),
            *(start.rows, [start.task]),
        ),
        "mtbert": (start.dtype, contenders.train_mtbert, start.rows, [start.task]),
        "mtbert, two tasks": (start.dtype, contenders.train_mtbert, start.rows, both),
    }
    functions = {}
    rows_of = {}
    dtype_of = {}
    for name, (dtype, function, rows, tasks) in trainings.items():
        functions[name] = partial(first_epoch, function, start, rows, *tasks)
        rows_of[name] = rows
        dtype_of[name] = dtype
    return measure(start, rows_of, dtype_of, functions, args.rounds, passes=3)


def first_epoch(function, *arguments):
    return function(*arguments)[0]


def part_predict(start, args):
    model = start.make_model(start.task)
    best = contenders.dtype_name(cpu.pick_dtype("auto", start.device, predict=True))
    dtypes = [start.dtype]
    if start.on_cpu and start.dtype != "float32":
        dtypes.insert(0, "float32")
    predictions = {}  # name -> (dtype, function of rows)
    for dtype in dtypes:
        predictions |= contenders.predict_with_pipeline(start, dtype)
        predictions |= contenders.predict_with_sentence_transformers(start, model, dtype)
    if start.on_cpu:
        predictions |= contenders.predict_with_engines(model, start.calibration)
    if start.has_int8:
        dtypes.append("int8")
    for dtype in dtypes:
        name = "mtbert" if dtype == best else f"mtbert, {dtype}"
        function = contenders.predict_with_mtbert(model, dtype, start.device)
        predictions[name] = (dtype, function)
    if not start.on_cpu:
        for size in (32, 128, 512, 2048):
            function = contenders.predict_with_mtbert(model, best, start.device, batch_size=size)
            predictions[f"mtbert, batches of {size}"] = (best, function)
    two_tasks = mtbert.MTBert(model.encoder, [start.task, SECOND], model.tokenizer)
    function = contenders.predict_with_mtbert(two_tasks, best, start.device)
    predictions["mtbert, two tasks"] = (best, function)

    functions = {}
    dtype_of = {}
    for name, (dtype, function) in predictions.items():
        functions[name] = timed(start, function, start.texts)
        dtype_of[name] = dtype
    rows_of = dict.fromkeys(functions, start.texts)
    return measure(start, rows_of, dtype_of, functions, min(args.rounds, 4), passes=1)


def part_one(start, args):
    """One sentence, from the start of a process to its end."""
    folder = Path(tempfile.mkdtemp())
    mtbert.save(start.make_model(start.task), folder)
    for part in start.make_theirs():
        part.save_pretrained(folder / "theirs")
    theirs = f"{str(folder / 'theirs')!r}, device='{start.device}'"
    pipeline = f"transformers.pipeline('text-classification', {theirs})('great movie')"
    ours = ["predict.py", "--device", str(start.device), "--model", str(folder), "great movie"]
    commands = {
        "transformers' pipeline": ["-c", f"import transformers; print({pipeline})"],
        "predict.py": ours,
        "import torch": ["-c", "import torch"],
    }
    functions = {}
    for name, command in commands.items():
        call = partial(subprocess.run, check=True, capture_output=True, cwd=checkouts.HERE)
        functions[name] = timed(start, call, [sys.executable, *command])
    seconds = alternate(functions, args.rounds)
    return {name: {"seconds": values} for name, values in seconds.items()}


def part_compile(start, args):
    """With and without torch.compile, each twice in a row.

    What the first takes longer is compilation, and kernels that are made once.
    """
    model = start.make_model(start.task)

    def predict_twice(compiled):
        function = contenders.predict_with_mtbert(model, start.dtype, start.device, compiled)
        run = timed(start, function, start.texts)
        return [run(), run()]

    def train_twice(*flags):
        return contenders.train_mtbert(start, start.rows, start.task, flags=flags, times=2)

    def trainer_twice(**settings):
        return contenders.train_best_trainer(start, start.rows, start.task, epochs=2, **settings)

    functions = {
        "train, mtbert": (start.rows, train_twice),
        "train, mtbert --compile": (start.rows, partial(train_twice, "--compile")),
        "predict, mtbert": (start.texts, partial(predict_twice, False)),
        "predict, mtbert with torch.compile": (start.texts, partial(predict_twice, True)),
        "train, Trainer at its best": (start.rows, trainer_twice),
        "train, the same with torch_compile": (
            start.rows,
            partial(trainer_twice, torch_compile=True),
        ),
    }
    head = f"compile, {start.dtype}"
    print(f"\n{head:40}{'first, s':>10}{'second, s':>11}{'difference, s':>15}{'rows a second':>15}")
    result = {}
    for name, (rows, run) in functions.items():
        torch.compiler.reset()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # nothing is compiled already
        first, second = quietly(run)
        result[name] = {"rows": len(rows), "seconds": [first, second]}
        rate = len(rows) / second
        print(f"{name:40}{first:10.2f}{second:11.2f}{first - second:15.2f}{rate:15.1f}", flush=True)
    return result


def part_learn(start, args):
    """How well, and how fast, all training rows are learned."""
    functions = {
        "Trainer, default arguments": contenders.train_trainer,
        "mtbert": contenders.train_mtbert,
    }
    result = {name: [] for name in functions}
    for seed in range(args.seeds):
        for name, train in functions.items():
            print(f"seed {seed}, {name}", file=sys.stderr, flush=True)
            watch = contenders.Watch(start, args.reach)
            rows = start.splits["train"]
            settings = {"epochs": args.epochs, "seed": seed, "watch": watch}
            quietly(partial(train, start, rows, start.task, **settings))
            watch.end()
            result[name].append(
                {
                    "curve": watch.curve,
                    "seconds": watch.seconds(),
                    "validation": watch.accuracy("validation"),
                    "test": watch.accuracy("test"),
                }
            )
    print(f"\n{args.epochs} epochs{'':32}{'test accuracy':>16}", end="")
    print(f"   seconds of training until validation {args.reach:.0%}")
    for name, seeds in result.items():
        tests = [entry["test"] for entry in seeds]
        spread = np.std(tests, ddof=1) if len(tests) > 1 else 0.0
        seconds = " ".join(f"{entry['seconds']:.0f}" for entry in seeds)
        print(f"{name:40}{np.mean(tests):8.4f} ± {spread:.4f}   {seconds}")
    return result


def part_agree(start, args):
    """How many labels of each model are as in float32, and how many are right.

    -> {model: {task: {contender: its entry}}}
    """
    result = {}
    groups = {}  # (test files, task) -> {contender: [an entry of each model]}
    for i, folder in enumerate(args.model):
        files = files_of_model(args.test, i, args)
        model = mtbert.load(folder, "cpu", trainable=True)
        rows = read_labelled(model, files)
        others = read_labelled(model, files_of_model(args.val, i, args))
        calibration = contenders.draw_calibration(contenders.not_among(others, rows))
        functions = {
            "mtbert, float32": contenders.predict_with_mtbert(model, "float32"),
            "mtbert, bfloat16": contenders.predict_with_mtbert(model, "bfloat16"),
        }
        if cpu.has_int8():
            functions["mtbert, int8"] = contenders.predict_with_mtbert(model, "int8")
        if model.pooling == "mean" and isinstance(model.encoder, mtbert.Encoder):
            engines = contenders.predict_with_engines(model, calibration)
            for name, (_, function) in engines.items():
                functions[name] = function
        logits = {}
        seconds = {}
        for name, function in functions.items():
            function(rows)  # it pays for the kernels of each shape
            begin = time.perf_counter()
            logits[name] = function(rows)
            seconds[name] = time.perf_counter() - begin
        result[folder] = {}
        for task in model.tasks:
            result[folder][task.name] = agreement(task, rows, logits)
            for name, entry in result[folder][task.name].items():
                entry["rows_a_second"] = len(rows) / seconds[name]
                same = f"{entry['same_as_float32']:9.2%} of {entry['rows']} labels as in float32"
                print(f"{folder}  {task.name:16}{name:28}{same}, accuracy {entry['accuracy']:.2%}")
                group = groups.setdefault((" ".join(files), task.name), {})
                group.setdefault(name, []).append(entry)
    print_agreement(groups)
    return result


def files_of_model(files, i, args):
    """Of as many files as there are models the one of the i-th, else all of them."""
    if len(files) == len(args.model):
        return [files[i]]
    return files


def print_agreement(groups):
    """A Markdown table of {(files, task): {contender: [an entry of each model]}}.

    Numbers are means over models; in brackets is the least.
    """
    titles = []
    names = {}  # of all contenders, in order
    for (files, task), entries_of in groups.items():
        num_models = len(entries_of["mtbert, float32"])
        titles.append(f"{files}, {num_models} models: rows a second")
        titles += [f"{task}: labels as in float32, %", "accuracy, %"]
        names |= dict.fromkeys(entries_of)
    print(f"\n| | {' | '.join(titles)} |")
    print(f"|---|{'---|' * len(titles)}")
    for name in names:
        cells = []
        for entries_of in groups.values():
            entries = entries_of.get(name)
            if entries is None:  # the engines have the first task alone
                cells += ["-"] * 3
                continue
            cells.append(mean_and_least(entries, "rows_a_second"))
            cells.append(mean_and_least(entries, "same_as_float32", 100))
            cells.append(mean_and_least(entries, "accuracy", 100))
        print(f"| {name} | {' | '.join(cells)} |")


def mean_and_least(entries, key, factor=1):
    values = [factor * entry[key] for entry in entries]
    return f"{np.mean(values):.2f} ({min(values):.2f})"


def read_labelled(model, files):
    rows = []
    for file in files:
        for raw in read_rows(file):
            rows.append(parse_row(raw))
    return convert_labels(rows, [task.column() for task in model.tasks])


def agreement(task, rows, logits):
    """{contender: {"same_as_float32", "accuracy", "rows"}} of a task that predicts one label."""
    labels = {}
    for name, logits_of in logits.items():
        if task.name in logits_of:  # the engines have the first task alone
            predictions = task.predictions(logits_of[task.name])
            labels[name] = [prediction.get("label") for prediction in predictions]
    reference = labels["mtbert, float32"]
    numbers = [i for i, row in enumerate(rows) if task.name in row.labels]
    result = {}
    if not numbers or None in reference:
        return result
    for name, found in labels.items():
        same = [found[i] == reference[i] for i in numbers]
        right = [found[i] == rows[i].labels[task.name] for i in numbers]
        result[name] = {
            "same_as_float32": float(np.mean(same)),
            "accuracy": float(np.mean(right)),
            "rows": len(numbers),
        }
    return result


PARTS = {
    "train": part_train,
    "predict": part_predict,
    "one": part_one,
    "compile": part_compile,
    "learn": part_learn,
    "agree": part_agree,
}


# --------------------------------------------------------------------------------------------------
# Table and picture


def rates(entry):
    """Rows a second in each round; of whole processes their seconds."""
    seconds = np.array(entry["seconds"])
    if "rows" in entry:
        return entry["rows"] / seconds
    return seconds


def later_rounds(entry):
    values = rates(entry)
    if len(values) == 1:
        return values
    return values[1:]


def print_table(part, result):
    unit = "rows a second"
    ours = later_rounds(result[part].get("mtbert") or result[part]["predict.py"])
    if part == "one":
        unit = "seconds"
    print(f"\n{f'{part}, {unit}':44}{'dtype':10}{'median':>10}{'min':>10}{'max':>10}", end="")
    print(f"{'1st round':>11}{'time of mtbert / its':>22}{'of the limit':>14}")
    for name, entry in result[part].items():
        values = later_rounds(entry)
        ratio = np.median(values / ours)
        if part == "one":
            ratio = 1 / ratio
        print(f"{name:44}{entry.get('dtype', ''):10}{np.median(values):10.2f}", end="")
        print(f"{values.min():10.2f}{values.max():10.2f}{rates(entry)[0]:11.2f}", end="")
        print(f"{ratio:22.3f}{share_of_limit(entry, result['matmul']):>14}")


def share_of_limit(entry, limits):
    """The operations a second, of those of plain products in the same dtype."""
    limit = limits.get(entry.get("dtype"))
    if limit is None:
        return "-"
    rate = np.median(later_rounds(entry)) * entry["operations"] / entry["rows"]
    return f"{rate / limit:.1%}"


def draw(result, path):
    from matplotlib.figure import Figure

    parts = [part for part in TABLES if part in result]
    heights = [len(result[part]) + 2 for part in parts]
    figure = Figure(figsize=(9, 0.36 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)
    for axis, part in zip(axes[:, 0], parts, strict=True):
        draw_bars(axis, result[part])
        axis.set_title(TABLES[part], loc="left", fontsize=11)
    figure.savefig(path, dpi=130)


def draw_bars(axis, entries):
    names = []
    widest = 0.0
    for i, (name, entry) in enumerate(entries.items()):
        values = later_rounds(entry)
        median = np.median(values)
        spread = [[median - values.min()], [values.max() - median]]
        color = "#999999"
        if "mtbert" in name or name == "predict.py":
            color = "#0072B2"
        axis.barh(i, median, xerr=spread, color=color, capsize=3)
        text = f"{median:,.1f}" if median < 100 else f"{median:,.0f}"
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axis.annotate(text, (values.max(), i), **place)
        widest = max(widest, values.max())
        dtype = entry.get("dtype", "")
        if dtype not in name:
            name = f"{name} ({dtype})"
        names.append(name)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlim=(0, 1.15 * widest), ylim=(len(names) - 0.4, -0.6))
    axis.spines[["top", "right"]].set_visible(False)


# --------------------------------------------------------------------------------------------------
# The command


def parse_args():
    style = argparse.ArgumentDefaultsHelpFormatter
    description = "What people would use instead, and mtbert, side by side."
    parser = Parser(description=description, formatter_class=style, allow_abbrev=False)
    flag = parser.add_argument
    files = {"nargs": "+", "metavar": "FILE", "default": []}
    count = number(int, 1)
    flag("--data", **files, help="training rows, for all parts but agree")
    val_help = (
        "validation rows; empty: a tenth of --data; of agree, as --test, the rows that static "
    )
    val_help += "int8 is calibrated on: some that were not measured, such as training rows"
    flag("--val", **files, help=val_help)
    flag("--test", **files, help="test rows; of agree a file for each model, or files for all")
    flag("--tasks", nargs=1, default=["sentiment"], metavar="NAME", help="the column to learn")
    flag("--parts", nargs="+", choices=PARTS, default=list(TABLES), help="what is measured")
    flag("--against", metavar="FOLDER", help="measure this checkout and another one, no parts")
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="of all parts but agree")
    flag("--encoder", default=DEFAULT_ENCODER, help="a BERT that all start from")
    flag("--shape", choices=("base",), help="in place of it: random weights of BERT-base's shape")
    flag("--model", nargs="+", default=[], metavar="FOLDER", help="of agree: runs of train.py")
    flag("--rounds", type=count, default=5, help="of train, predict (at most 4), one, --against")
    flag("--train-rows", type=count, default=2560, help="of train, compile and --against")
    flag("--predict-rows", type=count, default=10000, help="of predict, compile and --against")
    flag("--seeds", type=count, default=3, help="of learn: how many, on all training rows")
    flag("--epochs", type=count, default=3, help="of learn")
    flag("--reach", type=float, default=0.68, help="of learn: the validation accuracy to reach")
    flag("--out", type=Path, default=Path("runs/speed"), metavar="FOLDER", help="of the results")
    args = parser.parse_args()
    agrees = args.against is None and "agree" in args.parts
    if agrees and not (args.model and args.test and args.val):
        parser.error("agree takes --model, --test and --val")
    if (args.against is not None or set(args.parts) != {"agree"}) and not args.data:
        parser.error("all parts but agree take --data")
    return args


def make_base_encoder():
    """A folder with random weights of BERT-base's shape."""
    folder = tempfile.mkdtemp()
    transformers.BertModel(transformers.BertConfig()).save_pretrained(folder)
    tokenizer, _ = Start().make_theirs()
    tokenizer.save_pretrained(folder)
    return folder


def measure_parts(start, args):
    result = {
        "device": "cpu" if start.on_cpu else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul": {},
    }
    if not start.on_cpu:
        print("left out: ONNX Runtime, OpenVINO and int8, which are for CPUs")
    elif not start.has_int8:
        print("left out: mtbert in int8, which takes a CPU with VNNI")
    if {"train", "predict"} & set(args.parts):
        for dtype in list_dtypes(start):
            rate = float(np.median([matmul_rate(start, dtype) for _ in range(5)]))
            result["matmul"][dtype] = rate
            print(f"matrix products, {dtype}: {rate / 1e9:,.0f} GFLOP/s", flush=True)
    for part in args.parts:
        result[part] = PARTS[part](start, args)
    for part in args.parts:
        if part in TABLES:
            print_table(part, result)
    return result


def list_dtypes(start):
    dtypes = ["float32"]
    if start.dtype != "float32":
        dtypes.append(start.dtype)
    if start.has_int8:
        dtypes.append("int8")
    return dtypes


def measure_against(start, args):
    def write_files(name):
        folder = Path(tempfile.mkdtemp()) / name
        folder.mkdir()
        validation = start.splits["validation"][:BATCH]
        contenders.write_rows(folder / "train.jsonl", start.rows, [start.task])
        contenders.write_rows(folder / "val.jsonl", validation, [start.task])
        lines = [" ".join(row.text.split()) + "\n" for row in start.texts]
        (folder / "texts.txt").write_text("".join(lines), encoding="utf-8")
        return folder

    dtypes = list_dtypes(start)
    result = checkouts.measure(args.against, write_files, args.device, dtypes, args.rounds)
    checkouts.print_result(args.against, result)
    return {"against": str(args.against), "seconds": result}


def main():
    args = parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # what mkdtemp makes goes with it
        if args.shape is not None:
            args.encoder = make_base_encoder()
        start = Start(args.encoder, args.device)
        if args.data:
            files = (args.data, args.val, args.test, args.tasks)
            start.read(*files, args.train_rows, args.predict_rows)
        if args.against is not None:
            runs.write(args.out / "against.json", measure_against(start, args))
            return
        result = measure_parts(start, args)
    runs.write(args.out / "speed.json", result)
    if set(args.parts) & set(TABLES):
        draw(result, args.out / "speed.png")


if __name__ == "__main__":
    run_script(main)
