"""Does sharing an encoder help? Train one model for each task, and one for all, and compare them.

python benchmarks/compare.py --seeds 5
python benchmarks/compare.py --data train.csv --test test.csv --tune --epochs 3
python benchmarks/compare.py --labels sentiment=5      # with 5 % of the training labels of a task
python benchmarks/compare.py --arms single shared distilled
python benchmarks/compare.py --data three.json --pairs # which task helps which

Each model is trained once for each seed. All take about as many steps in as many epochs, so a model
of a task with few labels repeats its rows within an epoch. This file never knows how a model is
trained, or what differs between kinds of tasks.
"""

import argparse
import copy
import itertools
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
from support.errors import Diverged, InputError, input_errors, listed, printable
from support.script import Parser, number, run_script

VARIANTS = tuple(mtbert.VARIANTS)  # single, shared, separate-lr
# What is compared: the variants, and shared with the single models of the same seed as teachers
ARMS = (*VARIANTS, "distilled")
ARM_PAIRS = (
    ("shared", "single"),
    ("separate-lr", "shared"),
    ("separate-lr", "single"),
    ("distilled", "single"),
    ("distilled", "shared"),
)
# --tune: each arm has as many trials, with seeds that no result has; distilled takes the rates that
# shared chose.
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
    arms = " ".join(VARIANTS)
    flag("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"{', '.join(ARMS)} ({arms})")
    flag("--pairs", action="store_true", help="instead, train each pair of three tasks or more")
    flag("--tune", action="store_true", help="choose learning rates on validation rows")
    flag("--out", default="runs/compare", metavar="FOLDER", help="(default: %(default)s)")
    flag("--head-lr", metavar="LR", help="of separate-lr")
    flag("--layer-decay", metavar="X", help="of separate-lr")
    flag("--task-weights", nargs="+", metavar="NAME=W", help="of all models of several tasks")
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
    args.arms = chosen_arms(args)
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
    own += ["--teachers", "--teacher-annealing"]
    if args.tune:
        own.append("--lr")
    for word in rest:
        name = word.split("=")[0]
        if name in own:
            raise InputError(f"compare.py chooses {name} itself")
    if args.tune and args.head_lr is not None:
        raise InputError("compare.py --tune chooses --head-lr itself")


def chosen_arms(args):
    """The arms to compare, in the order of ARMS. Raises InputError."""
    if args.pairs:
        if args.arms is not None or args.task_weights is not None:
            raise InputError("--pairs takes no --arms and no --task-weights")
        if args.rate_flags:
            raise InputError("--pairs trains no separate-lr, so it takes no rates of it")
        return ["single"]
    arms = [arm for arm in ARMS if arm in (args.arms or VARIANTS)]
    if len(arms) < 2:
        raise InputError("--arms: a comparison takes two or more")
    if "distilled" in arms and "single" not in arms:
        raise InputError("--arms: the teachers of distilled are the models of single; name it, too")
    if "distilled" in arms and "shared" not in arms and args.tune:
        raise InputError("--arms: with --tune distilled takes the rates of shared; name it, too")
    if args.rate_flags and "separate-lr" not in arms:
        raise InputError("--head-lr and --layer-decay are of separate-lr, which --arms leaves out")
    return arms


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
    """The mean and, of two or more values, their standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def difference_in_words(first, second):
    """The mean of first - second and its 95 % interval. Both are {seed: score}, paired by seed."""
    seeds = sorted(set(first) & set(second))
    if len(seeds) < 2:
        return "-"
    found = paired_difference([first[seed] for seed in seeds], [second[seed] for seed in seeds])
    return f"{found['mean']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"


# --------------------------------------------------------------------------------------------------
# Baselines


def baselines(task, rows):
    """{name: test metrics} of what any model should beat.

    These are the most frequent label (or the mean), and a linear model on the TF-IDF of words and
    pairs of words, whose regularisation is chosen on the validation rows, if any. Both are written
    as logits, so that the task calibrates and scores them as it does those of a model.
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
    if not texts["validation"]:  # there is nothing to choose by
        return task, fit_linear_model(task, texts["train"], labels["train"], 1)
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
    """One arm, of all tasks or of some: a model to be trained with each seed."""

    arm: str
    name: str  # for people
    folder_name: str  # without the seed
    tasks: list  # the names of its tasks
    flags: list  # of train.py
    repeats: float  # how often an epoch draws a row
    # Of each seed: a part of metrics.json, and "folder"
    results: list = field(default_factory=list)
    teachers: list = field(default_factory=list)  # contenders that are trained before


def make_contenders(args, columns, num_draws, rows):
    """Those of args.arms: one for each task alone, and one of all tasks for each other arm.

    `num_draws` is of an epoch, in all of them. With teachers each row is labelled for each task, so
    an epoch would draw each of them once.
    """
    contenders = []
    for position, column in enumerate(columns, 1):
        name = column.name
        num_labelled = sum(name in row.labels for row in rows["train"])
        contenders.append(
            Contender(
                arm="single",
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
    flags = [*flags_of_columns(columns), *args.weight_flags]
    shared = ["--variant", "shared", *flags]
    separate = ["--variant", "separate-lr", *flags, *args.rate_flags]
    teachers = list(contenders)
    contenders.append(Contender("shared", "shared", "shared", names, shared, repeats=1))
    contenders.append(
        Contender("separate-lr", "separate-lr", "separate-lr", names, separate, repeats=1)
    )
    repeats = num_draws / len(rows["train"])
    distilled = Contender("distilled", "distilled", "distilled", names, shared, repeats)
    distilled.teachers = teachers
    contenders.append(distilled)
    return [contender for contender in contenders if contender.arm in args.arms]


def make_pairs(args, columns, num_draws, rows, flags):
    """One contender for each task alone, and one for each two tasks.

    In an epoch each draws exactly `num_draws` rows, so that what a task gains beside another one is
    not due to steps. Raises InputError for a name that --tasks cannot take.
    """
    contenders = make_contenders(args, columns, num_draws, rows)
    for contender, column in zip(contenders, columns, strict=True):
        contender.repeats = num_draws / len(labelled_rows(rows["train"], [column]))
    for (i, one), (j, other) in itertools.combinations(enumerate(columns, 1), 2):
        pair = [one, other]
        column_flags = flags_of_columns(pair)
        if not column_flags:
            raise InputError(f"--pairs: a name cannot begin with a dash: {one.name}, {other.name}")
        tasks = train.make_tasks(pair)
        draws = count_draws(tasks, {"train": labelled_rows(rows["train"], pair)}, flags)
        contenders.append(
            Contender(
                arm="pair",
                name=f"{one.name} and {other.name}",
                folder_name=f"pair-{i}-{j}-{ascii_name(one.name)}-{ascii_name(other.name)}",
                tasks=[one.name, other.name],
                flags=["--variant", "shared", *column_flags],
                repeats=num_draws / draws,
            )
        )
    return contenders


def labelled_rows(rows, columns):
    """The rows that have a label of one of the columns."""
    names = {column.name for column in columns}
    found = []
    for row in rows:
        if names & row.labels.keys():
            found.append(row)
    return found


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
            values[name] = row.soft.get(name, row.labels[name])
    return values


def check_splits(args, tasks, rows):
    if args.pairs and len(tasks) < 3:
        names = listed(task.name for task in tasks)
        raise InputError(f"--pairs takes three tasks or more; the rows have only {names}")
    if len(tasks) < 2:
        only = f"the rows have only {tasks[0].name!r}"
        raise InputError(f"a comparison takes two tasks or more; {only}")
    for task in tasks:
        if not any(task.name in row.labels for row in rows["test"]):
            raise InputError(f"no test row is labelled for {task.name!r}; --test gives rows")
        if args.tune and not any(task.name in row.labels for row in rows["validation"]):
            what = f"--tune has no validation rows of {task.name!r} to choose by"
            raise InputError(f"{what}; --val gives rows")


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
    num_runs = args.seeds * len(contenders)
    if args.tune:
        num_tuned = sum(not contender.teachers for contender in contenders)
        num_runs += len(TUNE_SEEDS) * len(RATES) * num_tuned
    progress = Progress(num_runs)
    tuned = {}
    for contender in contenders:
        rates = []
        if args.tune and contender.teachers:
            rates = tuned["shared"]["chosen"].split()
        elif args.tune:
            rates, scores = choose_rates(contender, progress, argv, tasks, out)
            tuned[contender.name] = {"chosen": " ".join(rates), "validation": scores}
        for seed in range(args.seeds):
            folder = out / f"{contender.folder_name}-{seed}"
            flags = [*argv, *contender.flags, *rates, "--seed", str(seed)]
            flags += teacher_flags(contender, seed)
            name = f"{contender.name}, seed {seed}"
            result = progress.train(name, folder, flags, contender.repeats)
            contender.results.append(result | {"folder": folder})
    return tuned


def teacher_flags(contender, seed):
    """Those that name the models of this seed of its teachers, if it has any."""
    if not contender.teachers:
        return []
    folders = [str(teacher.results[seed]["folder"]) for teacher in contender.teachers]
    return ["--teachers", *folders, "--teacher-annealing"]


def choose_rates(contender, progress, argv, tasks, out):
    """-> the flags of the learning rates that are best on validation rows, {flags: score}."""
    trials = RATES
    if contender.arm == "separate-lr":
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
    """{arm: {"train_seconds", "parameters", "seconds_per_text"}} of all its models together.

    The time of training includes that of teachers. The times of prediction are medians of three
    alternating rounds, of the first seed's models on the first 500 test rows, which are tokenized
    already.
    """
    models = {}
    cost = {}
    for contender in contenders:
        folder = contender.results[0]["folder"]
        model = mtbert.load(folder, device)
        models.setdefault(contender.arm, []).append(model)
        entry = cost.setdefault(contender.arm, {"train_seconds": 0.0, "parameters": 0})
        for trained in (contender, *contender.teachers):
            seconds = [result["train_seconds"] for result in trained.results]
            entry["train_seconds"] += float(np.mean(seconds))
        entry["parameters"] += sum(parameter.numel() for parameter in model.parameters())

    data = mtbert.encode(model.tokenizer, rows["test"][:500], max_length=model.max_length)
    seconds = {arm: [] for arm in models}
    for _ in range(3):
        for arm in models:
            start = time.perf_counter()
            for model in models[arm]:
                mtbert.compute_logits(model, data)
            seconds[arm].append(time.perf_counter() - start)
    for arm in models:
        cost[arm]["seconds_per_text"] = float(np.median(seconds[arm])) / len(data)
    return cost


# --------------------------------------------------------------------------------------------------
# Results


def summarise(args, task, baseline_metrics, contenders):
    """What compare.json says of a task.

    -> {"rows", "baselines": {name: {metric: points}}, "scores": {metric: {arm: [points of each
    seed]}}, "differences": {metric: {pair: paired_difference}}, "gold", "predictions"}
    """
    of_task = {}
    for contender in contenders:
        if task.name in contender.tasks:
            of_task[contender.arm] = contender
    first = next(iter(of_task.values()))
    metrics = contenders_metrics(first, task)[0]
    names = [name for name in (*COMPARED, *SHOWN) if name in metrics]

    scores = {}
    for name in names:
        scores[name] = {}
        for arm, contender in of_task.items():
            metrics = contenders_metrics(contender, task)
            scores[name][arm] = [100 * values[name] for values in metrics]
    differences = {}
    for name in names:
        if name in COMPARED:
            differences[name] = compare_arms(scores[name], args.margin)
    points = {}
    for name, metrics in baseline_metrics.items():
        points[name] = {metric: 100 * metrics[metric] for metric in differences}

    gold = []
    predictions = {}
    for arm, contender in of_task.items():
        predictions[arm] = []
        for result in contender.results:
            gold, predicted = read_predictions(result["folder"], task.name)
            predictions[arm].append(predicted)
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


def compare_arms(scores, margin):
    differences = {}
    for one, other in ARM_PAIRS:
        if one in scores and other in scores:
            pair = f"{one} - {other}"
            differences[pair] = paired_difference(scores[one], scores[other], margin)
    return differences


def measure_gains(args, tasks, contenders):
    """What each task gains beside each other one, in points of its first metric of COMPARED.

    -> {task: {"metric", "single": [points of each seed], "beside": {other: {"scores": [points of
    each seed], and what `paired_difference` returns}}}}
    """
    gains = {}
    for task in tasks:
        scores = {}
        for contender in contenders:
            if task.name in contender.tasks:
                metrics = contenders_metrics(contender, task)
                metric = next(name for name in COMPARED if name in metrics[0])
                others = [name for name in contender.tasks if name != task.name]
                beside = others[0] if others else None
                scores[beside] = [100 * values[metric] for values in metrics]
        alone = scores.pop(None)
        gain = {"metric": metric, "single": alone, "beside": {}}
        for other, values in scores.items():
            difference = paired_difference(values, alone, args.margin)
            gain["beside"][other] = {"scores": values, **difference}
        gains[task.name] = gain
    return gains


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
        if contender.arm == "single":
            print(f"  {printable(contender.name)}: {contender.repeats:.4g} times")


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
    for arm in result["predictions"]:
        print(f"  {arm:28}", end="")
        for scores in result["scores"].values():
            print(f"{mean_and_spread(scores[arm]):>18}", end="")
        print()
    for metric, differences in result["differences"].items():
        for pair, d in differences.items():
            print(f"  {COMPARED[metric]:12}{pair:24}{interval(d):26} {verdict_in_words(d)}")


def interval(difference):
    d = difference
    return f"{d['mean']:+6.2f} ({d['low']:+.2f} to {d['high']:+.2f})"


def print_gains(gains):
    """A square table: what each task, in a line, gains beside each other one, in a column."""
    print("\ntest score beside another task - alone, in points, with 95 % intervals")
    header = ["", "alone"]
    for name in gains:
        header.append(f"beside {name}")
    table = [header]
    for name, gain in gains.items():
        line = [f"{name}, {COMPARED[gain['metric']]}", mean_and_spread(gain["single"])]
        for other in gains:
            cell = "-"
            if other != name:
                cell = interval(gain["beside"][other]).strip()
            line.append(cell)
        table.append(line)
    report.print_table(table, widest=40)


def print_cost(cost):
    print(
        f"\n{'cost of all tasks':28}{'training':>12}{'parameters':>16}{'prediction of a text':>24}"
    )
    for arm, entry in cost.items():
        milliseconds = 1000 * entry["seconds_per_text"]
        print(f"  {arm:26}{entry['train_seconds']:10.1f} s", end="")
        print(f"{entry['parameters']:16,}{milliseconds:21.2f} ms")


def draw(results, path):
    """For each task a panel with the score of each seed under each arm, and the means."""
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
    arms = list(result["scores"][metric])
    scores = np.array([result["scores"][metric][arm] for arm in arms])
    axes.plot(range(len(arms)), scores, "-", color="#BBBBBB", linewidth=1, zorder=1)
    style = {"color": "#D55E00", "capsize": 6, "markersize": 9, "linewidth": 2, "zorder": 3}
    for x, values in enumerate(scores):
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        places = np.full(len(values), x)
        axes.plot(places, values, "o", color="#0072B2", alpha=0.7, zorder=2, label="a seed")
        label = "mean, 95 % interval"
        axes.errorbar(x + 0.18, np.mean(values), half, fmt="D", label=label, **style)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_xlim(-0.4, len(arms) - 0.4)
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
    check_splits(args, tasks, rows)
    write_splits(out, columns, rows)
    kept = [*without(rest, FILE_FLAGS), *args.rate_flags, *args.weight_flags]
    if args.tune:
        kept.append("--tune")
    if args.pairs:
        kept.append("--pairs")
    keep_flags(out, kept)
    report.print_data(tasks, columns, rows, notes)

    num_draws = count_draws(tasks, rows, flags)
    mtbert.choose_steps(flags, num_draws)
    num_steps = flags.epochs * math.ceil(num_draws / flags.batch_size)
    argv = without(rest, (*FILE_FLAGS, "--epochs", "--batch-size"))
    argv += ["--epochs", str(flags.epochs), "--batch-size", str(flags.batch_size)]
    argv += ["--data", str(out / "data.json")]
    if args.pairs:
        contenders = make_pairs(args, columns, num_draws, rows, flags)
    else:
        baseline_metrics = {task.name: baselines(task, rows) for task in tasks}
        contenders = make_contenders(args, columns, num_draws, rows)
    tuned = train_all(args, contenders, argv, tasks, out)
    config = runs.read_config(contenders[-1].results[0]["folder"])
    record = {
        "flags": vars(args) | vars(flags) | {"out": args.out, "argv": rest},
        "data_sha256": digests,
        "versions": config["versions"],
        "encoder_source": config["encoder_source"],
        "steps": num_steps,
        "repeats": {contender.name: contender.repeats for contender in contenders},
        "tuned": tuned,
    }
    if args.pairs:
        record["gains"] = measure_gains(args, tasks, contenders)
        runs.write(out / "compare.json", record)
        print_steps(contenders, num_steps)
        print_rates(args, tuned)
        print_gains(record["gains"])
        print(f"\nkept in {out}: compare.json, and a folder for each run")
        return

    cost = measure_cost(contenders, rows, flags.device)
    results = {}
    for task in tasks:
        results[task.name] = summarise(args, task, baseline_metrics[task.name], contenders)
    runs.write(out / "compare.json", record | {"cost": cost, "tasks": results})
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
