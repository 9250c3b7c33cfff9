"""Does sharing an encoder help? Train one model a task, and one for all, over several seeds, and compare them.

Every model takes about as many steps, in as many epochs: one for a task with few labels passes over them more often.

python compare.py --seeds 5
python compare.py --data train.csv --test test.csv --tune --epochs 3
"""

import json
import math
import re
import sys
import time
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

import mtbert
import report
import runs
import train
from data import InputError, Notes, format_of, input_errors, printable, read_data
from metrics import choose_thresholds, correlation, evaluate, label_array, score

VARIANTS = tuple(mtbert.VARIANTS)  # single, shared, separate-lr
PAIRS = (("shared", "single"), ("separate-lr", "shared"), ("separate-lr", "single"))
# --tune: as many trials for each variant, on validation, over seeds that no result has
TUNE_SEEDS = (1000, 1001)
RATES = (["--lr", "5e-5"], ["--lr", "1e-4"], ["--lr", "2e-4"], ["--lr", "4e-4"])
RATE_PAIRS = [["--lr", lr, "--head-lr", head_lr] for lr, head_lr in
              (("5e-5", "5e-3"), ("1e-4", "1e-3"), ("1e-4", "5e-3"), ("2e-4", "5e-3"))]  # fmt: skip
SOURCES = ("--data", "--val", "--test", "--tasks", "--regression", "--text-column", "--pair-column", "--text-encoding",
           "--missing", "--multi-label")  # train.py's flags that OUT/data.json replaces
# The metrics that are compared
METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "exact_match": "exact match", "pearson": "Pearson"}
OTHERS = {"ece": "calibr. error", "ece_uncalibrated": "uncalibrated"}


def parse_args(argv=None):
    """-> our flags, train.py's flags parsed, and as they were given."""
    epilog = "all other flags are those of train.py"
    parser = runs.Parser(description=__doc__.splitlines()[0], epilog=epilog, allow_abbrev=False)
    flag = parser.add_argument
    flag("--seeds", type=train.number(int, 2, 1000), default=5, metavar="N", help="(default: %(default)s)")
    flag("--margin", type=train.number(float, 0), default=1.0, metavar="POINTS",
         help="a difference that does not matter (default: %(default)s)")  # fmt: skip
    flag("--tune", action="store_true", help="choose learning rates on validation rows, four trials for each variant")
    flag("--out", default="runs/compare", metavar="FOLDER", help="of runs and results (default: %(default)s)")
    flag("--head-lr", metavar="LR", help="of separate-lr")
    flag("--layer-decay", metavar="X", help="of separate-lr")
    flag("--task-weights", nargs="+", default=[], metavar="NAME=W", help="of shared and separate-lr")
    args, rest = parser.parse_known_args(argv)
    args.own = [("--head-lr", args.head_lr), ("--layer-decay", args.layer_decay)]
    args.own = [word for pair in args.own if pair[1] is not None for word in pair]
    args.weights = ["--task-weights", *args.task_weights] if args.task_weights else []
    for name in ("variant", "seed", "resume", "overwrite", "no-test", *(["lr"] if args.tune else ())):
        if any(word.split("=")[0] == f"--{name}" for word in rest):
            raise InputError(f"compare.py chooses --{name} itself")
    if args.tune and args.head_lr:
        raise InputError("compare.py --tune chooses --head-lr itself")
    return args, train.parse_args([*rest, "--variant", "separate-lr", *args.own, *args.weights]), rest


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def paired_difference(first, second, margin=1.0):
    """Of two lists of scores, paired by seed, in points -> {"mean", "low", "high", "verdict", "seeds"}.

    `low` to `high` is the 95 % interval of the mean of first - second (paired t). The verdict: "equivalent" where the
    interval lies within ± margin, else "better" or "worse" where it excludes zero, else "undecided"; `seeds` is then
    how many would decide it with a probability of 80 %, if mean and spread are as they were measured.
    """
    difference = np.subtract(first, second)
    n, mean, spread = len(difference), float(np.mean(difference)), float(np.std(difference, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * spread / n**0.5
    result = {"mean": mean, "low": mean - half, "high": mean + half, "seeds": None}
    if max(abs(result["low"]), abs(result["high"])) <= margin:
        return result | {"verdict": "equivalent"}
    if result["low"] > 0 or result["high"] < 0:
        return result | {"verdict": "better" if mean > 0 else "worse"}
    many = np.arange(n + 1, 1001)
    error, width, cdf = spread / np.sqrt(many), stats.t.ppf(0.975, many - 1), stats.t(many - 1).cdf
    # The probabilities that the interval excludes zero, and that it lies within ± margin
    apart = cdf(abs(mean) / error - width)
    inside = cdf((margin - abs(mean)) / error - width) - cdf(width - (margin + abs(mean)) / error)
    # They exclude each other, but where the interval is so narrow that one of them is certain
    enough = np.where(width * error <= margin / 2, 1.0, apart + np.maximum(inside, 0)) >= 0.8
    return result | {"verdict": "undecided", "seeds": int(many[enough][0]) if enough.any() else None}


def in_words(difference):
    if difference["verdict"] == "undecided":
        return f"undecided; about {difference['seeds'] or 'a thousand or more'} seeds would probably decide it"
    return difference["verdict"]


def baselines(task, rows):
    """Test metrics of the most frequent class (or the mean), and of a linear model on TF-IDF of words and word pairs
    whose regularisation is chosen on the validation rows. For several labels a text it is one model a label, whose
    common threshold is chosen as ours is."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    def measure(model, split):
        if task.several:
            own, usual = replace(task), np.full(len(task.labels), -100.0)  # by all thresholds no, but for one label
            usual[np.argmax(task.counts)] = 100.0
            logits = {}
            for s in {"validation", split}:
                logits[s] = model.decision_function(x[s]) if model else np.tile(usual, (len(x[s]), 1))
            choose_thresholds([own], {task.name: y["validation"]}, {task.name: logits["validation"]})
            return evaluate([own], {task.name: y[split]}, {task.name: logits[split]})[task.name]
        guess = model.predict(x[split]) if model else [max(task.labels, key=y["train"].count)] * len(y[split])
        if task.labels is None:
            return {"pearson": correlation(y[split], guess)}
        macro_f1 = float(f1_score(y[split], guess, average="macro", zero_division=0.0))
        return {"accuracy": float(accuracy_score(y[split], guess)), "macro_f1": macro_f1}

    labelled = {split: [row for row in part if task.name in row.labels] for split, part in rows.items()}
    x = {split: [" ".join(filter(None, (row.text, row.text_pair))) for row in part] for split, part in labelled.items()}
    y = {split: [row.labels[task.name] for row in part] for split, part in labelled.items()}
    y = {split: label_array(task, labels) for split, labels in y.items()} if task.several else y
    strengths = (0.1, 0.3, 1, 3, 10, 30, 100)
    models = [Ridge(alpha=1 / c) if task.labels is None else LogisticRegression(C=c, max_iter=5000) for c in strengths]
    tfidf = {"ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": r"\w+|[^\w\s]"}
    models = [OneVsRestClassifier(model) for model in models] if task.several else models
    target = y["train"][:, :-1] if task.several else y["train"]
    models = [make_pipeline(TfidfVectorizer(**tfidf), model).fit(x["train"], target) for model in models]
    best = max(models, key=lambda model: score(measure(model, "validation")))
    first = {"pearson": 0.0} if task.labels is None else measure(None, "test")
    what = "majority label" if task.several else "majority class" if task.labels else "the mean"
    return {what: first, "TF-IDF, linear": measure(best, "test")}


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def write_splits(flags, out, notes=None):
    """Read the rows and write the splits to OUT/data.json, which every run reads -> tasks, rows."""
    files = (flags.data, flags.val, flags.test)
    tasks, rows = read_data(*files, flags.tasks, True, flags.seed, format_of(flags), flags.regression, notes)
    if len(tasks) < 2:
        raise InputError(f"a comparison takes two tasks or more; the rows have only {tasks[0].name!r}")
    for task in tasks:
        if not any(task.name in row.labels for row in rows["test"]):
            raise InputError(f"no test row is labelled for {task.name!r}; --test gives rows")
    names = [task.name for task in tasks]
    content = {"label_names": {task.name: task.names for task in tasks if task.labels}}
    for split, part in rows.items():
        content[split] = [
            {"text": row.text} | ({"text_pair": row.text_pair} if row.text_pair else {})
            | {name: row.labels[name] for name in names if name in row.labels} for row in part
        ]  # fmt: skip
    content, path = json.dumps(content, indent=0).encode(), out / "data.json"
    if path.exists() and path.read_bytes() != content:
        raise InputError(f"{out} holds a comparison of other rows; name another folder with --out")
    runs.write(path, content)
    return tasks, rows


def keep_flags(out, flags):
    """Refuse, before anything is trained, to go on in `out` with other flags than it began with."""
    path = out / "flags.json"
    if path.exists() and path.read_bytes() != json.dumps(flags, indent=1).encode():
        raise InputError(f"{out} holds a comparison with other flags; name another folder with --out")
    runs.write(path, flags)


def train_once(folder, argv):
    """The metrics of the run in `folder`, which is trained, or gone on with, unless it is finished."""
    argv = [*argv, "--out", str(folder)]
    folder.parent.mkdir(exist_ok=True)
    if (folder / "config.json").exists():
        if runs.read_config(folder)["flags"]["argv"] != argv:
            raise InputError(f"{folder} is a run with other flags; name another folder with --out")
        argv = ["--resume", str(folder)]
    if not (folder / "metrics.json").exists():
        try:
            with open(f"{folder}.txt", "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
                train.main(argv)
        except InputError as error:
            raise type(error)(f"{folder}: {error}") from None
    with input_errors(f"{folder} is damaged; delete it, and it is trained again"):
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        return {key: metrics[key] for key in ("validation", "test", "train_seconds")}


def folder_name(variant, tasks, task, *what):
    """Of a run: unique for each task whatever its name, and readable where that is ASCII."""
    position = [str([t.name for t in tasks].index(task) + 1), re.sub(r"[^A-Za-z0-9_]+", "-", task)[:30]] if task else []
    return "-".join([variant, *position, *map(str, what)])


def equal_steps(tasks, labels, flags):
    """The epochs of a model of all tasks on rows with these `labels`, each a set of task names, its steps, and the
    passes in an epoch that make as many -> epochs, steps, {"": of that model, task: of one for the task alone}."""
    given = {task.name: np.array([0 if task.name in row else -100 for row in labels]) for task in tasks}
    draws = mtbert.mixture(given, flags.task_sampling, flags.passes)[0].sum()
    epochs = flags.epochs or mtbert.default_epochs(draws, flags.batch_size)
    passes = {name: max(1, round(draws / (values == 0).sum())) for name, values in given.items()}
    return epochs, epochs * math.ceil(round(draws) / flags.batch_size), {"": flags.passes} | passes


class Progress:
    """Lines on standard error: which of `count` runs, all of as many steps, is on, and for how long still."""

    def __init__(self, count):
        self.count, self.done, self.number, self.start = count, 0, 0, time.perf_counter()

    def run(self, what, folder, argv):
        self.number += 1
        fresh, left = not (folder / "metrics.json").exists(), "time left: not known yet"
        if self.done:
            minutes = (time.perf_counter() - self.start) / self.done * (self.count - self.number + 1) / 60
            left = f"about {minutes:.0f} min left" if minutes >= 1.5 else f"about {60 * minutes:.0f} s left"
        if fresh:
            print(f"run {self.number} of {self.count}: {printable(what)}; {left}", file=sys.stderr)
        metrics = train_once(folder, argv)
        self.done += fresh
        return metrics


def train_all(args, tasks, passes, rest, out):
    """`passes` are those of `equal_steps` -> {variant: {task, or "" for all: [metrics of each seed]}}, {what: the rates
    that --tune chose for it}."""
    data = ["--data", str(out / "data.json")]
    models = []  # what is trained: (variant, task or "", flags)
    for task in tasks:
        number = [] if task.labels else [f"--regression={task.name}"]
        models.append(("single", task.name, ["--variant", "single", f"--tasks={task.name}", *number]))
    named = {"--tasks": tasks, "--regression": [task for task in tasks if task.labels is None]}
    named = [[flag, *(task.name for task in some)] for flag, some in named.items() if some]
    both = [word for words in named if not any(name.startswith("-") for name in words[1:]) for word in words]
    models.append(("shared", "", ["--variant", "shared", *both, *args.weights]))
    models.append(("separate-lr", "", ["--variant", "separate-lr", *both, *args.weights, *args.own]))

    trials = {variant: RATE_PAIRS if variant == "separate-lr" else RATES for variant in VARIANTS} if args.tune else {}
    repeats = args.seeds + (len(TUNE_SEEDS) * len(RATES) if args.tune else 0)
    progress = Progress(repeats * len(models))
    result, chosen = {variant: {} for variant in VARIANTS}, {}
    for variant, task, flags in models:
        flags += ["--passes", str(passes[task])]
        what = f"{variant} {task}".strip()
        scores = []
        for rates in trials.get(variant, ()):
            scores.append(0.0)
            for seed in TUNE_SEEDS:
                folder = out / "tune" / folder_name(variant, tasks, task, *rates[1::2], seed)
                argv = [*rest, *data, *flags, *rates, "--seed", str(seed), "--no-test"]
                trial = f"{what}, trial {' '.join(rates)}, seed {seed}"
                try:
                    validation = progress.run(trial, folder, argv)["validation"]
                    scores[-1] += np.mean([score(m) for m in validation.values()]) / len(TUNE_SEEDS)
                except runs.Diverged:
                    scores[-1] -= 1
                runs.remove(folder, "model.safetensors", "snapshot*")
        rates = trials[variant][int(np.argmax(scores))] if scores else []
        if scores:
            tried = [" ".join(trial) for trial in trials[variant]]
            chosen[what] = {"chosen": " ".join(rates), "validation": dict(zip(tried, scores, strict=True))}
        result[variant][task] = []
        for seed in range(args.seeds):
            folder = out / folder_name(variant, tasks, task, seed)
            argv = [*rest, *data, *flags, *rates, "--seed", str(seed)]
            result[variant][task].append(progress.run(f"{what}, seed {seed}", folder, argv) | {"folder": folder})
    return result, chosen


def measure_cost(trained, rows, device, dtype):
    """{variant: {"train_seconds", "parameters", "seconds_per_text"}}, of as many models as it takes for all tasks; the
    times of prediction are medians of three, alternating, of the first seed's models on the first 500 test rows,
    tokenized."""
    folders = {variant: [seeds[0]["folder"] for seeds in trained[variant].values()] for variant in VARIANTS}
    models = {variant: [mtbert.load(folder, device, dtype) for folder in parts] for variant, parts in folders.items()}
    data = mtbert.encode(models["shared"][0].tokenizer, rows["test"][:500], long=models["shared"][0].long)
    seconds = {variant: [] for variant in VARIANTS}
    for _ in range(3):
        for variant, parts in models.items():
            start = time.perf_counter()
            for model in parts:
                mtbert.compute_logits(model, data)
            seconds[variant].append((time.perf_counter() - start) / len(data))
    return {
        variant: {
            "train_seconds": sum(np.mean([run["train_seconds"] for run in each]) for each in trained[variant].values()),
            "parameters": sum(p.numel() for model in parts for p in model.parameters()),
            "seconds_per_text": float(np.median(seconds[variant])),
        }
        for variant, parts in models.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Results


def summarise(args, tasks, linear, trained):
    """{task: {"rows", "baselines", "scores": {metric: {variant: [points]}}, "differences", "gold", "predictions"}}"""
    result = {}
    for task in tasks:
        part = {variant: seeds.get(task.name) or seeds[""] for variant, seeds in trained.items()}
        names = ("macro_f1", "exact_match" if task.several else "accuracy", *OTHERS) if task.labels else ("pearson",)
        test = {variant: [run["test"][task.name] for run in seeds] for variant, seeds in part.items()}
        scores = {name: {variant: [100 * m[name] for m in test[variant]] for variant in VARIANTS} for name in names}
        differences = {
            name: {f"{a} - {b}": paired_difference(scores[name][a], scores[name][b], args.margin) for a, b in PAIRS}
            for name in names if name in METRICS
        }  # fmt: skip
        read = {v: [report.predictions_of(run["folder"], task.name) for run in seeds] for v, seeds in part.items()}
        key = "labels" if task.several else "label" if task.labels else "value"
        predictions = {variant: [[p[key] for _, p in rows] for rows in seeds] for variant, seeds in read.items()}
        gold = [label for label, _ in read["shared"][0]]
        first = {what: {m: 100 * values[m] for m in names if m in values} for what, values in linear[task.name].items()}
        result[task.name] = {"rows": len(gold), "baselines": first, "scores": scores, "differences": differences,
                             "gold": gold, "predictions": predictions}  # fmt: skip
    return result


def print_results(result, cost, chosen, seeds, steps, passes):
    print(f"every model took about {steps} steps; passes over a task's rows in an epoch of its own model: ", end="")
    print(", ".join(f"{printable(name)} {n}" for name, n in passes.items() if name))
    tuned = f"chosen on validation, seeds {TUNE_SEEDS}" if chosen else "not tuned (--tune)"
    print(f"{seeds} seeds: mean ± standard deviation, in %; learning rates {tuned}")
    for what, trial in chosen.items():
        print(f"  {printable(what)}: {trial['chosen']}")
    for name, task in result.items():
        heads = [(METRICS | OTHERS)[m] for m in task["scores"]]
        title = f"{printable(name)}, {task['rows']} test rows"
        print(f"\n{title:30}" + "".join(f"{head:>18}" for head in heads))
        for what, values in task["baselines"].items():
            print(f"  {what:28}" + "".join(f"{values[m]:18.1f}" for m in task["differences"]))
        for variant in VARIANTS:
            scores = [score[variant] for score in task["scores"].values()]
            cells = (f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" for values in scores)
            print(f"  {variant:28}" + "".join(f"{cell:>18}" for cell in cells))
        for metric, differences in task["differences"].items():
            for pair, d in differences.items():
                interval = f"{d['mean']:+6.2f} ({d['low']:+.2f} to {d['high']:+.2f})"
                print(f"  {METRICS[metric]:12}{pair:24}{interval:26} {in_words(d)}")
    print(f"\n{'cost of all tasks':28}{'training':>12}{'parameters':>16}{'prediction of a text':>24}")
    for variant, c in cost.items():
        print(f"  {variant:26}{c['train_seconds']:10.1f} s{c['parameters']:16,}{1000 * c['seconds_per_text']:21.2f} ms")


def draw(result, path):
    """For each task the score of each seed under each variant, joined by lines, and the mean's 95 % interval."""
    from matplotlib.figure import Figure

    columns = min(3, len(result))
    lines = -(-len(result) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * lines), layout="constrained")
    for i, (name, task) in enumerate(result.items(), 1):
        metric = next(iter(task["differences"]))
        scores = np.array([task["scores"][metric][variant] for variant in VARIANTS])  # (variants, seeds)
        axes = figure.add_subplot(lines, columns, i)
        axes.plot(range(len(VARIANTS)), scores, "-", color="#BBBBBB", linewidth=1, zorder=1)
        for x, values in enumerate(scores):
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            axes.plot([x] * len(values), values, "o", color="#0072B2", alpha=0.7, zorder=2, label="a seed")
            bar = {"color": "#D55E00", "capsize": 6, "markersize": 9, "linewidth": 2, "zorder": 3}
            axes.errorbar(x + 0.18, np.mean(values), half, fmt="D", label="mean, 95 % interval", **bar)
        axes.set_xticks(range(len(VARIANTS)), VARIANTS)
        axes.set_xlim(-0.4, len(VARIANTS) - 0.4)
        axes.set(title=report.short(name, 30), ylabel=f"test {METRICS[metric]} (%)")
        axes.spines[["top", "right"]].set_visible(False)
        if i == 1:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles[:: len(VARIANTS)], labels[:: len(VARIANTS)], loc="outside lower center", ncols=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks
        figure.savefig(path, dpi=130, format="png")


@contextmanager
def kept_in(out):
    """The folder of a comparison, made and held by us alone; once stopped, the same command goes on."""
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if (found and not found & {"data.json", "data.json.partial", "compare.lock"}) or out.is_file():
        raise InputError(f"{out} is in use, and by no comparison; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with runs.locked(out / "compare.lock", out):
        try:
            yield
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt((stop.args or [130])[0], "stopped; the same command goes on") from None


def main(argv=None):
    args, flags, rest = parse_args(argv)
    if runs.launched().processes > 1:
        raise InputError("compare.py runs in one process")
    out = Path(args.out)
    with kept_in(out):
        notes = Notes()
        tasks, rows = write_splits(flags, out, notes)
        if unknown := set(flags.task_weights) - {task.name for task in tasks}:
            raise InputError(f"--task-weights: there is no task {min(unknown)!r}")
        keep_flags(out, [*without(rest, SOURCES), *args.own, *args.weights, *["--tune"] * args.tune])
        data = {path: runs.file_sha256(path) for path in flags.data + flags.val + flags.test}
        report.print_data(tasks, rows, notes)
        linear = {task.name: baselines(task, rows) for task in tasks}
        epochs, steps, passes = equal_steps(tasks, [row.labels for row in rows["train"]], flags)
        again = [*without(rest, (*SOURCES, "--epochs", "--passes")), "--epochs", str(epochs)]
        trained, chosen = train_all(args, tasks, passes, again, out)
        cost = measure_cost(trained, rows, flags.device, flags.dtype)
        result = summarise(args, tasks, linear, trained)
        config = runs.read_config(trained["shared"][""][0]["folder"])
        record = {"flags": vars(args) | vars(flags) | {"out": args.out, "argv": rest}, "data_sha256": data}
        record |= {key: config[key] for key in ("versions", "encoder_source")}
        runs.write(out / "compare.json", record | {"steps": steps, "passes": passes, "tuned": chosen, "cost": cost,
                                                   "tasks": result})  # fmt: skip
        with runs.replacing(out / "compare.png") as beside:
            draw(result, beside)
        print_results(result, cost, chosen, args.seeds, steps, passes)
        print(f"\nkept in {out}: compare.json, compare.png, and a folder for each run")


def without(argv, flags):
    """argv without these flags and their values."""
    kept, drop = [], False
    for word in argv:
        drop = word.split("=")[0] in flags or (drop and not word.startswith("--"))
        if not drop:
            kept.append(word)
    return kept


if __name__ == "__main__":
    runs.run_script(main)
