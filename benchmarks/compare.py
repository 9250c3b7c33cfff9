"""Does sharing an encoder help? Train one model for each task, and one for all, and compare them.

python benchmarks/compare.py --seeds 5
python benchmarks/compare.py --data train.csv --test test.csv --tune --epochs 3
python benchmarks/compare.py --labels sentiment=5      # with 5 % of the training labels of a task

Each model is trained once for each seed. All take about as many steps in as many epochs, so a model
of a task with few labels repeats its rows within an epoch. This file never knows how a model is
trained, or what differs between kinds of tasks.
"""

import argparse
import copy
import json
import math
import random
import re
import sys
import time
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mtbert
import train
from support import processes, report, runs
from support.columns import describe, each
from support.errors import Diverged, InputError, input_errors, printable
from support.script import Parser, number, run_script

VARIANTS = tuple(mtbert.VARIANTS)  # single, shared, separate-lr
PAIRS = (("shared", "single"), ("separate-lr", "shared"), ("separate-lr", "single"))
# --tune: each variant has as many trials, with seeds that no result has.
TUNE_SEEDS = (1000, 1001)
RATES = (
    ["--lr", "5e-5"],
    ["--lr", "1e-4"],
    ["--lr", "2e-4"],
    ["--lr", "4e-4"],
)
RATE_PAIRS = (
    ["--lr", "5e-5", "--head-lr", "5e-3"],
    ["--lr", "1e-4", "--head-lr", "1e-3"],
    ["--lr", "1e-4", "--head-lr", "5e-3"],
    ["--lr", "2e-4", "--head-lr", "5e-3"],
)
# Flags of train.py that say how files are read. The runs read OUT/data.json instead.
FILE_FLAGS = (
    *("--data", "--val", "--test", "--tasks", "--kinds", "--regression", "--multi-label"),
    *("--text-column", "--pair-column", "--text-encoding", "--missing"),
    *("--classification", "--header", "--separator", "--split-column", "--strict"),
)
# The metrics that are compared, as far as a task has them, and those that are only shown
COMPARED = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "pearson": "Pearson",
}
SHOWN = {"ece": "calibr. error", "ece_uncalibrated": "uncalibrated"}


def parse_args(argv=None):
    """-> our flags, train.py's flags parsed, and train.py's flags as they were given."""
    parser = Parser(
        description="Does sharing an encoder help? Compare models of one task and of all.",
        epilog="all other flags are those of train.py",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--seeds", type=number(int, 2, 1000), default=5, metavar="N", help="(default: 5)")
    flag(
        "--margin",
        type=number(float, 0),
        default=1.0,
        metavar="POINTS",
        help="a difference that does not matter (default: 1)",
    )
    flag(
        "--labels",
        nargs="+",
        type=label_share,
        default=[],
        metavar="NAME=PERCENT",
        help="learn from so many of a task's training labels only (default: all)",
    )
    flag("--tune", action="store_true", help="choose learning rates on validation rows")
    flag("--out", default="runs/compare", metavar="FOLDER", help="(default: %(default)s)")
    flag("--head-lr", metavar="LR", help="of separate-lr")
    flag("--layer-decay", metavar="X", help="of separate-lr")
    flag("--task-weights", nargs="+", metavar="NAME=W", help="of shared and separate-lr")
    args, rest = parser.parse_known_args(argv)

    args.rate_flags = []
    if args.head_lr is not None:
        args.rate_flags += ["--head-lr", args.head_lr]
    if args.layer_decay is not None:
        args.rate_flags += ["--layer-decay", args.layer_decay]
    args.weight_flags = []
    if args.task_weights is not None:
        args.weight_flags = ["--task-weights", *args.task_weights]
    check_own_flags(args, rest)
    flags = train.parse_args(
        [*rest, "--variant", "separate-lr", *args.rate_flags, *args.weight_flags]
    )
    return args, flags, rest


def label_share(text):
    name, equals, percent = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not like NAME=PERCENT")
    return name, number(float, 0, 100)(percent)


def check_own_flags(args, rest):
    """Raise InputError where a flag of train.py is given that the comparison decides itself."""
    own = ["--variant", "--seed", "--resume", "--overwrite", "--no-test"]
    if args.tune:
        own.append("--lr")
    for word in rest:
        name = word.split("=")[0]
        if name in own:
            raise InputError(f"compare.py chooses {name} itself")
    if args.tune and args.head_lr is not None:
        raise InputError("compare.py --tune chooses --head-lr itself")


def without(argv, flags):
    """argv without these flags and their values."""
    kept = []
    leave_out = False
    for word in argv:
        if word.startswith("--"):
            leave_out = word.split("=")[0] in flags
        if not leave_out:
            kept.append(word)
    return kept


# --------------------------------------------------------------------------------------------------
# Statistics


def paired_difference(first, second, margin=1.0):
    """Compare two lists of scores in points, paired by seed.

    -> {"mean", "low", "high", "verdict", "seeds"}. `low` to `high` is the 95 % interval of the mean
    of first - second (paired t). The verdict is "equivalent" where the interval lies within
    ± margin, else "better" or "worse" where it leaves out zero, else "undecided". `seeds` is then
    how many seeds would probably decide it, None for more than a thousand.
    """
    from scipy import stats

    difference = np.subtract(first, second)
    n = len(difference)
    mean = float(np.mean(difference))
    spread = float(np.std(difference, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    low = mean - half
    high = mean + half
    seeds = None
    if -margin <= low and high <= margin:
        verdict = "equivalent"
    elif low > 0:
        verdict = "better"
    elif high < 0:
        verdict = "worse"
    else:
        verdict = "undecided"
        seeds = seeds_to_decide(mean, spread, n, margin)
    return {"mean": mean, "low": low, "high": high, "verdict": verdict, "seeds": seeds}


def seeds_to_decide(mean, spread, n, margin):
    """The least number of seeds above `n` that decides with a probability of 80 %.

    It takes `mean` and `spread` of the differences as they were measured. None: more than 1000.
    """
    from scipy import stats

    counts = np.arange(n + 1, 1001)
    error = spread / np.sqrt(counts)  # of the mean
    width = stats.t.ppf(0.975, counts - 1)  # of half an interval, in errors
    cdf = stats.t(counts - 1).cdf
    effect = abs(mean)
    leaves_out_zero = cdf(effect / error - width)
    below_margin = cdf((margin - effect) / error - width)
    above_margin = cdf(width - (margin + effect) / error)  # the margin on the other side
    within_margin = np.maximum(below_margin - above_margin, 0)
    # The two exclude each other, unless the interval is so narrow that one of them is certain.
    probability = leaves_out_zero + within_margin
    probability[2 * width * error <= margin] = 1.0
    enough = np.flatnonzero(probability >= 0.8)
    if len(enough) == 0:
        return None
    return int(counts[enough[0]])


def verdict_in_words(difference):
    if difference["verdict"] != "undecided":
        return difference["verdict"]
    seeds = difference["seeds"] or "a thousand or more"
    return f"undecided; about {seeds} seeds would probably decide it"


def mean_and_spread(values):
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


# --------------------------------------------------------------------------------------------------
# Baselines


def baselines(task, rows):
    """{name: test metrics} of what any model should beat.

    These are the most frequent label (or the mean), and a linear model on the TF-IDF of words and
    pairs of words, whose regularisation is chosen on the validation rows. Both are written as
    logits, so that the task calibrates and scores them as it does those of a model.
    """
    counts = task.column().counts  # [] where labels are numbers
    if task.num_logits != max(1, len(counts)):
        return {}  # a kind of a fork, with logits of another meaning
    texts = {}
    labels = {}
    for split, part in rows.items():
        part = [row for row in part if task.name in row.labels]
        texts[split] = [both_texts(row) for row in part]
        labels[split] = task.to_array([row.labels[task.name] for row in part])

    constant = np.zeros((len(texts["test"]), task.num_logits))
    name = "the mean"
    if counts:
        name = "most frequent label"
        constant[:] = -100.0
        constant[:, np.argmax(counts)] = 100.0
    linear_task, linear = best_linear_model(task, texts, labels)
    return {
        name: task.metrics(labels["test"], constant),
        "TF-IDF, linear": linear_task.metrics(labels["test"], linear(texts["test"])),
    }


def both_texts(row):
    if row.text_pair is None:
        return row.text
    return f"{row.text} {row.text_pair}"


def best_linear_model(task, texts, labels):
    """-> the task, calibrated to the best linear model, and a function from texts to logits."""
    best = None
    best_score = -math.inf
    for strength in (0.1, 0.3, 1, 3, 10, 30, 100):
        logits = fit_linear_model(task, texts["train"], labels["train"], strength)
        own_task = copy.copy(task)
        validation = logits(texts["validation"])
        own_task.calibrate(labels["validation"], validation)
        metrics = own_task.metrics(labels["validation"], validation)
        score = own_task.selection_score(metrics)
        if score > best_score:
            best = own_task, logits
            best_score = score
    return best


def fit_linear_model(task, texts, labels, strength):
    """-> a function from N texts to (N, num_logits) logits."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    model = LogisticRegression(C=strength, max_iter=5000)
    if task.num_logits == 1:
        model = Ridge(alpha=1 / strength)  # z-scores
    elif labels.ndim == 2:
        model = OneVsRestClassifier(model)  # a model for each label
        labels = labels[:, :-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a label that all rows have
        pipeline = make_pipeline(words, model).fit(texts, labels)

    def logits(texts):
        if task.num_logits == 1:
            return pipeline.predict(texts)[:, None]
        scores = pipeline.decision_function(texts)
        if scores.ndim == 1:  # of two classes, in which sigmoid(scores) is the second's probability
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        return scores

    return logits


# --------------------------------------------------------------------------------------------------
# What is trained


@dataclass
class Contender:
    """One variant, of all tasks or of one alone: a model to be trained with each seed."""

    variant: str
    name: str  # for people
    folder_name: str  # without the seed
    tasks: list  # the names of its tasks
    flags: list  # of train.py
    repeats: int  # how often an epoch draws a row
    results: list = field(
        default_factory=list
    )  # of each seed: a part of metrics.json, and "folder"


def make_contenders(args, columns, num_draws, rows):
    """One for each task alone, and two of all tasks. `num_draws` is of an epoch, in all of them."""
    contenders = []
    for position, column in enumerate(columns, 1):
        name = column.name
        num_labelled = sum(name in row.labels for row in rows["train"])
        contenders.append(
            Contender(
                variant="single",
                name=f"single {name}",
                folder_name=f"single-{position}-{ascii_name(name)}",
                tasks=[name],
                flags=[
                    "--variant",
                    "single",
                    f"--tasks={name}",
                    f"--kinds={name_and_kind(column)}",
                ],
                repeats=max(1, round(num_draws / num_labelled)),
            )
        )
    names = [column.name for column in columns]
    all_flags = {
        "shared": args.weight_flags,
        "separate-lr": args.weight_flags + args.rate_flags,
    }
    for variant, flags in all_flags.items():
        flags = ["--variant", variant, *flags_of_columns(columns), *flags]
        contenders.append(Contender(variant, variant, variant, names, flags, repeats=1))
    return contenders


def name_and_kind(column):
    return f"{column.name}={column.kind}"


def flags_of_columns(columns):
    names = [column.name for column in columns]
    if any(name.startswith("-") for name in names):
        return []  # they would be taken for flags; train.py finds the columns itself
    return ["--tasks", *names, "--kinds", *map(name_and_kind, columns)]


def ascii_name(name):
    """A short piece of a folder's name that works everywhere."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)[:30]


def keep_labels(columns, rows, name, percent):
    """Leave out all but `percent` of the training labels of a task; each class keeps one or more.

    The labels of a lower percentage are among those of a higher one.
    """
    column = next((column for column in columns if column.name == name), None)
    if column is None:
        raise InputError(f"--labels: there is no task {name!r}")
    labelled = [i for i, row in enumerate(rows["train"]) if name in row.labels]
    random.Random(0).shuffle(labelled)
    count = max(1, round(len(labelled) * percent / 100))
    kept = set(labelled[:count])
    found = set()
    for i in labelled:
        for label in each(rows["train"][i].labels[name]):
            if column.labels and label not in found:
                kept.add(i)
                found.add(label)

    remaining = []
    for i, row in enumerate(rows["train"]):
        labels = dict(row.labels)
        if i not in kept:
            labels.pop(name, None)
        if labels:
            remaining.append(row._replace(labels=labels))
    rows["train"] = remaining
    describe(column, remaining, column.label_names)


def write_splits(out, columns, rows):
    """Write the rows to OUT/data.json, which every run reads."""
    names = [column.name for column in columns]
    label_names = {}
    for column in columns:
        if column.label_names:
            label_names[column.name] = column.label_names
    content = {"label_names": label_names}
    for split, part in rows.items():
        content[split] = [row_values(row, names) for row in part]
    encoded = json.dumps(content, indent=0).encode()
    path = out / "data.json"
    if path.exists() and path.read_bytes() != encoded:
        raise InputError(f"{out} holds a comparison of other rows; name another folder with --out")
    runs.write(path, encoded)


def row_values(row, names):
    values = {"text": row.text}
    if row.text_pair:
        values["text_pair"] = row.text_pair
    for name in names:
        if name in row.labels:
            values[name] = row.labels[name]
    return values


def check_splits(tasks, rows):
    if len(tasks) < 2:
        only = f"the rows have only {tasks[0].name!r}"
        raise InputError(f"a comparison takes two tasks or more; {only}")
    for task in tasks:
        if not any(task.name in row.labels for row in rows["test"]):
            raise InputError(f"no test row is labelled for {task.name!r}; --test gives rows")


def keep_flags(out, flags):
    """Refuse, before anything is trained, to go on in `out` with other flags."""
    path = out / "flags.json"
    if path.exists() and path.read_bytes() != json.dumps(flags, indent=1).encode():
        where = f"{out} holds a comparison with other flags"
        raise InputError(f"{where}; name another folder with --out")
    runs.write(path, flags)


# --------------------------------------------------------------------------------------------------
# Runs


class Progress:
    """Says on standard error which of the runs is on, and how long the rest will take."""

    def __init__(self, num_runs):
        self.num_runs = num_runs
        self.number = 0  # of the run that is on
        self.num_trained = 0  # in this process
        self.start = time.perf_counter()

    def train(self, name, folder, argv, repeats):
        """As `train_once`."""
        self.number += 1
        is_new = not (folder / "metrics.json").exists()
        if is_new:
            what = f"run {self.number} of {self.num_runs}: {printable(name)}"
            print(f"{what}; {self.time_left()}", file=sys.stderr)
        metrics = train_once(folder, argv, repeats)
        self.num_trained += is_new
        return metrics

    def time_left(self):
        if self.num_trained == 0:
            return "time left: not known yet"
        seconds_each = (time.perf_counter() - self.start) / self.num_trained
        seconds = seconds_each * (self.num_runs - self.number + 1)
        if seconds < 90:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left"


@contextmanager
def redirected(file):
    with redirect_stdout(file), redirect_stderr(file):
        yield


def train_once(folder, argv, repeats):
    """The metrics of the run in `folder`. It is trained first, or resumed, if need be."""
    argv = [*argv, "--out", str(folder)]
    folder.parent.mkdir(exist_ok=True)
    command = argv
    if (folder / "config.json").exists():
        flags = runs.read_config(folder)["flags"]
        if (flags["argv"], flags["repeats"]) != (argv, repeats):
            raise InputError(f"{folder} is a run with other flags; name another folder with --out")
        command = ["--resume", str(folder)]
    if not (folder / "metrics.json").exists():
        try:
            with open(f"{folder}.txt", "a", encoding="utf-8") as file, redirected(file):
                train.main(command, repeats=repeats)
        except InputError as error:
            raise type(error)(f"{folder}: {error}") from None
    with input_errors(f"{folder} is damaged; delete it, and it is trained again"):
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        keys = ("validation", "test", "train_seconds")
        return {key: metrics[key] for key in keys}


def train_all(args, contenders, argv, tasks, out):
    """Train each contender with each seed; `argv` is of all of them. Fills their `results`.

    -> {contender's name: the rates that --tune chose, and the scores of all that it tried}
    """
    runs_each = args.seeds
    if args.tune:
        runs_each += len(TUNE_SEEDS) * len(RATES)
    progress = Progress(runs_each * len(contenders))
    tuned = {}
    for contender in contenders:
        rates = []
        if args.tune:
            rates, scores = choose_rates(contender, progress, argv, tasks, out)
            tuned[contender.name] = {"chosen": " ".join(rates), "validation": scores}
        for seed in range(args.seeds):
            folder = out / f"{contender.folder_name}-{seed}"
            flags = [*argv, *contender.flags, *rates, "--seed", str(seed)]
            name = f"{contender.name}, seed {seed}"
            result = progress.train(name, folder, flags, contender.repeats)
            contender.results.append(result | {"folder": folder})
    return tuned


def choose_rates(contender, progress, argv, tasks, out):
    """-> the flags of the learning rates that are best on validation rows, {flags: score}."""
    trials = RATES
    if contender.variant == "separate-lr":
        trials = RATE_PAIRS
    scores = {}
    for rates in trials:
        values = []
        for seed in TUNE_SEEDS:
            folder = out / "tune" / "-".join([contender.folder_name, *rates[1::2], str(seed)])
            flags = [*argv, *contender.flags, *rates, "--seed", str(seed), "--no-test"]
            name = f"{contender.name}, trial {' '.join(rates)}, seed {seed}"
            try:
                result = progress.train(name, folder, flags, contender.repeats)
                values.append(validation_score(tasks, result["validation"]))
            except Diverged:
                values.append(-1.0)
            runs.remove(folder, "model.safetensors", "snapshot*")
        scores[" ".join(rates)] = float(np.mean(values))
    best = max(scores, key=scores.get)
    return best.split(), scores


def validation_score(tasks, metrics):
    """The mean over the tasks of the score by which epochs are chosen."""
    scores = []
    for task in tasks:
        if task.name in metrics:
            scores.append(task.selection_score(metrics[task.name]))
    return np.mean(scores)


def measure_cost(contenders, rows, device):
    """{variant: {"train_seconds", "parameters", "seconds_per_text"}} of all its models together.

    The times of prediction are medians of three alternating rounds, of the first seed's models on
    the first 500 test rows, which are tokenized already.
    """
    models = {variant: [] for variant in VARIANTS}
    cost = {}
    for variant in VARIANTS:
        cost[variant] = {"train_seconds": 0.0, "parameters": 0}
    for contender in contenders:
        folder = contender.results[0]["folder"]
        model = mtbert.load(folder, device)
        models[contender.variant].append(model)
        seconds = [result["train_seconds"] for result in contender.results]
        entry = cost[contender.variant]
        entry["train_seconds"] += float(np.mean(seconds))
        entry["parameters"] += sum(parameter.numel() for parameter in model.parameters())

    model = models["shared"][0]
    data = mtbert.encode(model.tokenizer, rows["test"][:500], max_length=model.max_length)
    seconds = {variant: [] for variant in VARIANTS}
    for _ in range(3):
        for variant in VARIANTS:
            start = time.perf_counter()
            for model in models[variant]:
                mtbert.compute_logits(model, data)
            seconds[variant].append(time.perf_counter() - start)
    for variant in VARIANTS:
        cost[variant]["seconds_per_text"] = float(np.median(seconds[variant])) / len(data)
    return cost


# --------------------------------------------------------------------------------------------------
# Results


def summarise(args, task, baseline_metrics, contenders):
    """What compare.json says of a task.

    -> {"rows", "baselines": {name: {metric: points}}, "scores": {metric: {variant: [points of each
    seed]}}, "differences": {metric: {pair: paired_difference}}, "gold", "predictions"}
    """
    of_task = {}
    for contender in contenders:
        if task.name in contender.tasks:
            of_task[contender.variant] = contender
    first = contenders_metrics(of_task["shared"], task)[0]
    names = [name for name in (*COMPARED, *SHOWN) if name in first]

    scores = {}
    for name in names:
        scores[name] = {}
        for variant in VARIANTS:
            metrics = contenders_metrics(of_task[variant], task)
            scores[name][variant] = [100 * values[name] for values in metrics]
    differences = {}
    for name in names:
        if name in COMPARED:
            differences[name] = compare_pairs(scores[name], args.margin)
    points = {}
    for name, metrics in baseline_metrics.items():
        points[name] = {metric: 100 * metrics[metric] for metric in differences}

    gold = []
    predictions = {}
    for variant in VARIANTS:
        predictions[variant] = []
        for result in of_task[variant].results:
            gold, predicted = read_predictions(result["folder"], task.name)
            predictions[variant].append(predicted)
    return {
        "rows": len(gold),
        "baselines": points,
        "scores": scores,
        "differences": differences,
        "gold": gold,
        "predictions": predictions,
    }


def contenders_metrics(contender, task):
    """The test metrics of each seed."""
    return [result["test"][task.name] for result in contender.results]


def compare_pairs(scores, margin):
    differences = {}
    for one, other in PAIRS:
        pair = f"{one} - {other}"
        differences[pair] = paired_difference(scores[one], scores[other], margin)
    return differences


def read_predictions(folder, name):
    """-> the labels and the predicted labels of the test rows that are labelled for a task."""
    gold = []
    predicted = []
    with open(folder / "test_predictions.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["labels"][name] is None:
                continue
            prediction = row["predictions"][name]
            key = next(key for key in ("label", "labels", "value") if key in prediction)
            gold.append(row["labels"][name])
            predicted.append(prediction[key])
    return gold, predicted


def print_steps(contenders, num_steps):
    print(f"every model took about {num_steps} steps; an epoch draws each row")
    for contender in contenders:
        if contender.variant == "single":
            print(f"  {printable(contender.name)}: {contender.repeats} times")


def print_rates(args, tuned):
    chosen = "not tuned (--tune)"
    if tuned:
        chosen = f"chosen on validation rows, with seeds {TUNE_SEEDS}"
    print(f"{args.seeds} seeds: mean ± standard deviation, in %; learning rates {chosen}")
    for name, trial in tuned.items():
        print(f"  {printable(name)}: {trial['chosen']}")


def print_task(name, result):
    title = f"{printable(name)}, {result['rows']} test rows"
    heads = COMPARED | SHOWN
    print(f"\n{title:30}", end="")
    for metric in result["scores"]:
        print(f"{heads[metric]:>18}", end="")
    print()
    for baseline, points in result["baselines"].items():
        cells = [f"{value:18.1f}" for value in points.values()]
        print(f"  {baseline:28}" + "".join(cells))
    for variant in VARIANTS:
        print(f"  {variant:28}", end="")
        for scores in result["scores"].values():
            print(f"{mean_and_spread(scores[variant]):>18}", end="")
        print()
    for metric, differences in result["differences"].items():
        for pair, d in differences.items():
            interval = f"{d['mean']:+6.2f} ({d['low']:+.2f} to {d['high']:+.2f})"
            print(f"  {COMPARED[metric]:12}{pair:24}{interval:26} {verdict_in_words(d)}")


def print_cost(cost):
    print(
        f"\n{'cost of all tasks':28}{'training':>12}{'parameters':>16}{'prediction of a text':>24}"
    )
    for variant, entry in cost.items():
        milliseconds = 1000 * entry["seconds_per_text"]
        print(f"  {variant:26}{entry['train_seconds']:10.1f} s", end="")
        print(f"{entry['parameters']:16,}{milliseconds:21.2f} ms")


def draw(results, path):
    """For each task a panel with the score of each seed under each variant, and the means."""
    from matplotlib.figure import Figure

    num_columns = min(3, len(results))
    num_lines = math.ceil(len(results) / num_columns)
    size = (4.6 * num_columns, 4.2 * num_lines)
    figure = Figure(figsize=size, layout="constrained")
    for position, (name, result) in enumerate(results.items(), 1):
        axes = figure.add_subplot(num_lines, num_columns, position)
        draw_task(axes, name, result)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside lower center", ncols=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks
        figure.savefig(path, dpi=130, format="png")


def draw_task(axes, name, result):
    from scipy import stats

    metric = next(iter(result["differences"]))
    scores = np.array([result["scores"][metric][variant] for variant in VARIANTS])
    axes.plot(range(len(VARIANTS)), scores, "-", color="#BBBBBB", linewidth=1, zorder=1)
    style = {"color": "#D55E00", "capsize": 6, "markersize": 9, "linewidth": 2, "zorder": 3}
    for x, values in enumerate(scores):
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        places = np.full(len(values), x)
        axes.plot(places, values, "o", color="#0072B2", alpha=0.7, zorder=2, label="a seed")
        label = "mean, 95 % interval"
        axes.errorbar(x + 0.18, np.mean(values), half, fmt="D", label=label, **style)
    axes.set_xticks(range(len(VARIANTS)), VARIANTS)
    axes.set_xlim(-0.4, len(VARIANTS) - 0.4)
    axes.set_title(report.shorten(name, 30).replace("$", r"\$"))
    axes.set_ylabel(f"test {COMPARED[metric]} (%)")
    axes.spines[["top", "right"]].set_visible(False)


# --------------------------------------------------------------------------------------------------
# The command


@contextmanager
def hold_folder(out):
    """Make the folder of a comparison, and let no other process write there meanwhile."""
    if out.is_file() or not is_free(out):
        where = f"{out} is in use, and by no comparison"
        raise InputError(f"{where}; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with runs.locked(out / "compare.lock", out):
        try:
            yield
        except KeyboardInterrupt as stop:
            status = 130
            if stop.args:
                status = stop.args[0]
            raise KeyboardInterrupt(status, "stopped; the same command goes on") from None


def is_free(out):
    """Whether the folder is new, empty, or that of a comparison."""
    if not out.is_dir():
        return True
    names = {path.name for path in out.iterdir()}
    return not names or bool(names & {"data.json", "data.json.partial", "compare.lock"})


def main(argv=None):
    args, flags, rest = parse_args(argv)
    if processes.launched().processes > 1:
        raise InputError("compare.py runs in one process")
    out = Path(args.out)
    with hold_folder(out):
        compare(args, flags, rest, out)


def compare(args, flags, rest, out):
    _, columns, rows, notes, digests = train.read_rows(flags, None)
    for name, percent in args.labels:
        keep_labels(columns, rows, name, percent)
    tasks = train.make_tasks(columns)
    check_splits(tasks, rows)
    write_splits(out, columns, rows)
    kept = [*without(rest, FILE_FLAGS), *args.rate_flags, *args.weight_flags]
    if args.tune:
        kept.append("--tune")
    keep_flags(out, kept)
    report.print_data(tasks, columns, rows, notes)
    baseline_metrics = {task.name: baselines(task, rows) for task in tasks}

    num_draws = count_draws(tasks, rows, flags)
    epochs = flags.epochs
    if epochs is None:
        epochs = mtbert.default_epochs(num_draws, flags.batch_size)
    num_steps = epochs * math.ceil(num_draws / flags.batch_size)
    argv = without(rest, (*FILE_FLAGS, "--epochs"))
    argv += ["--epochs", str(epochs), "--data", str(out / "data.json")]
    contenders = make_contenders(args, columns, num_draws, rows)
    tuned = train_all(args, contenders, argv, tasks, out)
    cost = measure_cost(contenders, rows, flags.device)
    results = {}
    for task in tasks:
        results[task.name] = summarise(args, task, baseline_metrics[task.name], contenders)

    shared = next(contender for contender in contenders if contender.variant == "shared")
    config = runs.read_config(shared.results[0]["folder"])
    record = {
        "flags": vars(args) | vars(flags) | {"out": args.out, "argv": rest},
        "data_sha256": digests,
        "versions": config["versions"],
        "encoder_source": config["encoder_source"],
        "steps": num_steps,
        "repeats": {contender.name: contender.repeats for contender in contenders},
        "tuned": tuned,
        "cost": cost,
        "tasks": results,
    }
    runs.write(out / "compare.json", record)
    with runs.replacing(out / "compare.png") as path:
        draw(results, path)
    print_steps(contenders, num_steps)
    print_rates(args, tuned)
    for name, result in results.items():
        print_task(name, result)
    print_cost(cost)
    print(f"\nkept in {out}: compare.json, compare.png, and a folder for each run")


def count_draws(tasks, rows, flags):
    """How many rows an epoch of all tasks draws."""
    labels = {}
    for task in tasks:
        labels[task.name] = task.to_array([row.labels.get(task.name) for row in rows["train"]])
    return round(mtbert.expected_draws(labels, flags.task_sampling).sum())


if __name__ == "__main__":
    run_script(main)
