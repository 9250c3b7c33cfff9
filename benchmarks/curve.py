"""Where sharing should show: few labels of one task, all of the other's. `single` against `shared`, over seeds.

python benchmarks/curve.py --data train.jsonl --test test.jsonl --out runs/curve --seeds 3 [flags of train.py]

For each task in turn, or those of --of, 5, 10, 25, 50 and 100 % (--percent) of its training labels are kept, the first
of one shuffled order, and all of the other tasks'; validation and test rows stay whole. `single` gets as many epochs as
make the steps of `shared`; `weighted` is `shared` with a weight that makes up for the labels that are missing, which
the loss counts one by one. Finished runs are kept. Writes curve.json and curve.png.
"""

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
import report
import runs
import train
from data import InputError, printable

ARMS = ("single", "shared", "weighted")


def keep_labels(content, task, percent, path):
    """Write to `path` the splits of data.json with `percent` of the training labels of `task`; every class keeps one."""
    order = [i for i, row in enumerate(content["train"]) if task in row]
    random.Random(0).shuffle(order)
    kept = set(order[: max(1, round(len(order) * percent / 100))])
    for label in {content["train"][i][task] for i in order} if task in content["label_names"] else ():
        kept.add(next(i for i in order if content["train"][i][task] == label))
    train_rows = [
        {key: value for key, value in row.items() if key != task or i in kept} for i, row in enumerate(content["train"])
    ]
    runs.write(path, content | {"train": train_rows})
    return len(kept)


def draw(result, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(result), 4.6), layout="constrained")
    for i, (task, points) in enumerate(result.items(), 1):
        axes = figure.add_subplot(1, len(result), i)
        x = [point["labels"] for point in points]
        for arm, color, marker in zip(ARMS, ("#D55E00", "#0072B2", "#009E73"), "os^", strict=True):
            means = [np.mean(point[arm]) for point in points]
            spread = [np.std(point[arm], ddof=1) for point in points]
            axes.errorbar(x, means, spread, color=color, marker=marker, capsize=4, label=arm)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{point['percent']} %\n{point['labels']}" for point in points])
        axes.minorticks_off()
        xlabel = "training labels of this task, all of the other's"
        axes.set(title=report.short(task, 30), xlabel=xlabel, ylabel=f"test {points[0]['metric']} (%)")
        axes.spines[["top", "right"]].set_visible(False)
    legend = {"loc": "outside lower center", "ncols": len(ARMS), "title": "mean ± standard deviation"}
    figure.legend(*axes.get_legend_handles_labels(), **legend)
    figure.savefig(path, dpi=130, format="png")


def main():
    epilog = "--seeds, --margin and --out are those of compare.py, all others those of train.py"
    parser = runs.Parser(description=__doc__.splitlines()[0], epilog=epilog, allow_abbrev=False)
    percent = {"type": train.number(int, 1, 100), "default": [5, 10, 25, 50, 100], "help": "(default: %(default)s)"}
    parser.add_argument("--percent", nargs="+", metavar="N", **percent)
    parser.add_argument("--of", nargs="+", metavar="TASK", help="whose labels are left out (default: each in turn)")
    mine, argv = parser.parse_known_args()
    args, flags, rest = compare.parse_args(argv)
    if args.tune or args.own or args.weights:
        raise InputError("the curve takes no --tune, --head-lr, --layer-decay or --task-weights")
    out = Path(args.out)
    with compare.kept_in(out):
        result = measure(mine, args, flags, rest, out)
        runs.write(out / "curve.json", {"flags": vars(args) | vars(flags) | vars(mine) | {"out": args.out}, "tasks": result})
        with runs.replacing(out / "curve.png") as beside:
            draw(result, beside)


def measure(mine, args, flags, rest, out):
    """Train all, and print a table a task -> {task: [a point for each share of labels]}."""
    result = {}
    tasks, rows = compare.write_splits(flags, out)
    rest = compare.without(rest, compare.SOURCES)
    content = json.loads((out / "data.json").read_text("utf-8"))
    tasks = {task.name: (i, task) for i, task in enumerate(tasks, 1)}
    if unknown := set(mine.of or ()) - set(tasks):
        raise InputError(f"--of: there is no task {min(unknown)!r}")
    measured = [tasks[name] for name in mine.of or tasks]
    count = len(ARMS) * args.seeds * len(mine.percent) * len(measured)
    progress = compare.Progress(count, count)
    for i, task in measured:
        name, result[task.name] = "macro_f1" if task.labels else "pearson", []
        for percent in mine.percent:
            folder = out / f"task-{i}-{percent}"
            folder.mkdir(exist_ok=True)
            count = keep_labels(content, task.name, percent, folder / "data.json")
            point = {"percent": percent, "labels": count, "metric": compare.METRICS[name], **{arm: [] for arm in ARMS}}
            times = len(rows["train"]) / count
            flags_of = {
                "single": ["--variant", "single", f"--tasks={task.name}", "--epochs", str(round(flags.epochs * times))],
                "shared": ["--variant", "shared"],
                "weighted": ["--variant", "shared", f"--task-weights={task.name}={times:.3g}"],
            }
            for seed, arm in itertools.product(range(args.seeds), ARMS):
                argv = [*rest, "--data", str(folder / "data.json"), *flags_of[arm], "--seed", str(seed)]
                what = f"{task.name}, {percent} %, {arm}, seed {seed}"
                metrics = progress.run(what, 1, folder / f"{arm}-{seed}", argv)
                point[arm].append(100 * metrics["test"][task.name][name])
            result[task.name].append(point)
    for task, points in result.items():
        print(f"\n{printable(task)}, test {points[0]['metric']} in %: mean ± standard deviation of {args.seeds} seeds")
        print(f"{'labels':>12}" + "".join(f"{arm:>16}" for arm in ARMS) + "   95 % interval of")
        for point in points:
            print(f"{point['labels']:5} ({point['percent']:3} %)", end="")
            for arm in ARMS:
                print(f"{f'{np.mean(point[arm]):.1f} ± {np.std(point[arm], ddof=1):.1f}':>16}", end="")
            for arm in ARMS[1:]:
                d = point[f"{arm} - single"] = compare.paired_difference(point[arm], point["single"], args.margin)
                print(f"   {arm} - single: {d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f}), {d['verdict']}", end="")
            print()
    return result


if __name__ == "__main__":
    runs.run_script(main)
