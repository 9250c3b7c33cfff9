"""Where sharing should show: few labels of one task, all of the other's. `single` against `shared`, over seeds.

python benchmarks/curve.py --data train.jsonl --test test.jsonl --out runs/curve --seeds 3 [flags of train.py]
python benchmarks/curve.py --join runs/curve-1 runs/curve-2 --out runs/curves   # one picture of both

For each task in turn, or those of --of, 5, 10, 25, 50 and 100 % (--percent) of its training labels are kept, the first
of one shuffled order, and all of the other tasks'; validation and test rows stay whole. `single` passes over its
rows as often in an epoch as makes the steps of `shared`. Finished runs are kept. Writes curve.json and curve.png.
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

ARMS = ("single", "shared")


def keep_labels(content, task, percent, path):
    """Write to `path` the splits of data.json with `percent` of the training labels of `task`; every class keeps one
    -> how many these are, the training rows."""
    order = [i for i, row in enumerate(content["train"]) if task in row]
    random.Random(0).shuffle(order)
    kept = set(order[: max(1, round(len(order) * percent / 100))])
    for label in {content["train"][i][task] for i in order} if task in content["label_names"] else ():
        kept.add(next(i for i in order if content["train"][i][task] == label))
    train_rows = [
        {key: value for key, value in row.items() if key != task or i in kept} for i, row in enumerate(content["train"])
    ]
    runs.write(path, content | {"train": train_rows})
    return len(kept), train_rows


def draw(result, path):
    """A panel for each (task, points) of `result`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(result), 4.6), layout="constrained")
    for i, (task, points) in enumerate(result, 1):
        axes = figure.add_subplot(1, len(result), i)
        x = [point["labels"] for point in points]
        for arm, color, marker in zip(ARMS, ("#D55E00", "#0072B2"), "os", strict=True):
            means = [np.mean(point[arm]) for point in points]
            spread = [np.std(point[arm], ddof=1) for point in points]
            axes.errorbar(x, means, spread, color=color, marker=marker, capsize=4, label=arm)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{point['percent']} %\n{point['labels']}" for point in points])
        axes.minorticks_off()
        xlabel = f"training labels of {report.short(task)}, and all of {', '.join(map(report.short, points[0]['beside']))}"
        axes.set(title=report.short(task, 30), xlabel=xlabel, ylabel=f"test {points[0]['metric']} (%)")
        axes.spines[["top", "right"]].set_visible(False)
    legend = {"loc": "outside lower center", "ncols": len(ARMS), "title": "mean ± standard deviation"}
    figure.legend(*axes.get_legend_handles_labels(), **legend)
    figure.savefig(path, dpi=130, format="png")


def join(folders, out):
    """One picture of the curves in `folders`; those of the same tasks are points of one."""
    panels = {}
    for folder in folders:
        for task, points in json.loads((Path(folder) / "curve.json").read_text("utf-8"))["tasks"].items():
            panels.setdefault((task, *points[0]["beside"]), []).extend(points)
    out.mkdir(parents=True, exist_ok=True)
    panels = [(task, sorted(points, key=lambda point: point["labels"])) for (task, *_), points in panels.items()]
    draw(panels, out / "curve.png")


def main():
    epilog = "--seeds, --margin and --out are those of compare.py, all others those of train.py"
    parser = runs.Parser(description=__doc__.splitlines()[0], epilog=epilog, allow_abbrev=False)
    percent = {"type": train.number(int, 1, 100), "default": [5, 10, 25, 50, 100], "help": "(default: %(default)s)"}
    parser.add_argument("--percent", nargs="+", metavar="N", **percent)
    parser.add_argument("--join", nargs="+", metavar="FOLDER", help="draw the curves in these folders beside each other")
    parser.add_argument("--of", nargs="+", metavar="TASK", help="whose labels are left out (default: each in turn)")
    mine, argv = parser.parse_known_args()
    args, flags, rest = compare.parse_args(argv)
    if args.tune or args.own or args.weights:
        raise InputError("the curve takes no --tune, --head-lr, --layer-decay or --task-weights")
    out = Path(args.out)
    if mine.join:
        return join(mine.join, out)
    with compare.kept_in(out):
        result = measure(mine, args, flags, rest, out)
        runs.write(out / "curve.json", {"flags": vars(args) | vars(flags) | vars(mine) | {"out": args.out}, "tasks": result})
        with runs.replacing(out / "curve.png") as beside:
            draw(list(result.items()), beside)


def measure(mine, args, flags, rest, out):
    """Train all, and print a table a task -> {task: [a point for each share of labels]}."""
    result = {}
    tasks, _ = compare.write_splits(flags, out)
    rest = compare.without(rest, (*compare.SOURCES, "--epochs", "--passes"))
    content = json.loads((out / "data.json").read_text("utf-8"))
    tasks = {task.name: (i, task) for i, task in enumerate(tasks, 1)}
    if unknown := set(mine.of or ()) - set(tasks):
        raise InputError(f"--of: there is no task {min(unknown)!r}")
    measured = [tasks[name] for name in mine.of or tasks]
    progress = compare.Progress(len(ARMS) * args.seeds * len(mine.percent) * len(measured))
    for i, task in measured:
        name, result[task.name] = "macro_f1" if task.labels else "pearson", []
        for percent in mine.percent:
            folder = out / (f"task-{i}-{percent}" if percent < 100 else "all")
            folder.mkdir(exist_ok=True)
            count, kept = keep_labels(content, task.name, percent, folder / "data.json")
            kept = [labels for row in kept if (labels := row.keys() & tasks.keys())]
            epochs, steps, passes = compare.equal_steps([task for _, task in tasks.values()], kept, flags)
            point = {"percent": percent, "labels": count, "steps": steps, "beside": [t for t in tasks if t != task.name]}
            point |= {"metric": compare.METRICS[name], **{arm: [] for arm in ARMS}}
            flags_of = {
                "single": ["--variant", "single", f"--tasks={task.name}", "--passes", str(passes[task.name])],
                "shared": ["--variant", "shared", "--passes", str(passes[""])],
            }
            for seed, arm in itertools.product(range(args.seeds), ARMS):
                argv = [*rest, "--epochs", str(epochs), "--data", str(folder / "data.json"), *flags_of[arm], "--seed", str(seed)]
                what = f"{task.name}, {percent} %, {arm}, seed {seed}"
                metrics = progress.run(what, folder / (f"single-{i}-{seed}" if arm == "single" else f"shared-{seed}"), argv)
                point[arm].append(100 * metrics["test"][task.name][name])
            result[task.name].append(point)
    for task, points in result.items():
        print(f"\n{printable(task)}, test {points[0]['metric']} in %: mean ± standard deviation of {args.seeds} seeds")
        print(f"{'labels':>12}{'steps':>8}" + "".join(f"{arm:>16}" for arm in ARMS) + "   shared - single, 95 % interval")
        for point in points:
            print(f"{point['labels']:5} ({point['percent']:3} %){point['steps']:8}", end="")
            for arm in ARMS:
                print(f"{f'{np.mean(point[arm]):.1f} ± {np.std(point[arm], ddof=1):.1f}':>16}", end="")
            d = point["shared - single"] = compare.paired_difference(point["shared"], point["single"], args.margin)
            print(f"   {d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f}), {d['verdict']}")
    return result


if __name__ == "__main__":
    runs.run_script(main)
