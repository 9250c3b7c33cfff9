"""Few labels: mtbert beside logistic regression on the frozen encoder, and beside SetFit.

python benchmarks/fewshot.py --data DATA --sets rest14:sentiment --sizes 8 --draws 3
python benchmarks/fewshot.py --data DATA --setfit-python SETFIT/bin/python \
    --sets sst:fine sst:sentiment trec:coarse rest14:sentiment
python benchmarks/fewshot.py --data DATA --sets rest14:sentiment --methods \
    --beside rest14:category sst:fine

SETFIT is a virtual environment with benchmarks/requirements-setfit.txt. Each method learns from the
same few rows of each class, with the same encoder, in a process of its own and on the CPU. Finished
runs are kept in OUT/results.jsonl: the same command goes on where it was stopped. This file never
knows how a method works.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import write_rows
from support.errors import InputError, input_errors
from support.huggingface import DEFAULT_ENCODER, find_encoder
from support.script import Parser, number, run_script

HERE = Path(__file__).resolve().parent


class Source(NamedTuple):
    """A task of a set of texts."""

    name: str  # SET:TASK
    task: str
    train: list  # the rows of the file: dicts, some of which may have no label of this task
    test: list  # rows that have one


class Job(NamedTuple):
    """One method, trained on one draw of rows."""

    source: Source
    size: int  # rows of a class
    draw: int
    method: str  # a key of METHODS
    beside: Source | None = None  # another task, whose rows are all learned as well


def parse_args(argv=None):
    parser = Parser(
        description="Few labels: mtbert beside logistic regression and beside SetFit.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--data", type=Path, required=True, help="the folder that holds a folder for each set")
    flag("--sets", nargs="+", required=True, metavar="SET:TASK", help="what is learned")
    flag(
        "--sizes",
        nargs="+",
        type=number(int, 2, 10**6),
        default=[8, 64],
        metavar="N",
        help="training rows of a class; all of a class that has fewer (default: 8 64)",
    )
    flag("--draws", type=number(int, 1, 1000), default=10, metavar="N", help="(default: 10)")
    flag(
        "--methods",
        nargs="*",
        choices=("mtbert", "logistic", "setfit"),
        metavar="METHOD",
        help="mtbert, logistic, setfit (default: mtbert logistic; setfit with --setfit-python)",
    )
    flag(
        "--beside",
        nargs="+",
        default=[],
        metavar="SET:TASK",
        help="mtbert also learns the few rows of each of --sets beside all rows of each of these",
    )
    flag("--setfit-python", metavar="FILE", help="python of an environment that has SetFit")
    flag(
        "--setfit-iterations",
        type=number(int, 1),
        metavar="N",
        help="2 N pairs for each row, in SetFit (default: its own, all pairs)",
    )
    flag("--test-rows", type=number(int, 1), metavar="N", help="a part of them (default: all)")
    flag("--out", type=Path, default=Path("runs/fewshot"), help="(default: %(default)s)")
    args = parser.parse_args(argv)

    if args.methods is None:
        args.methods = ["mtbert", "logistic"]
        if args.setfit_python is not None:
            args.methods.append("setfit")
    if "setfit" in args.methods:
        check_setfit_python(args.setfit_python)
    if not args.methods and not args.beside:
        raise InputError("nothing is trained: name a method with --methods, or --beside")
    return args


def check_setfit_python(path):
    if path is None:
        where = "a virtual environment with benchmarks/requirements-setfit.txt"
        raise InputError(f"the method setfit takes --setfit-python, the python of {where}")
    if not os.access(path, os.X_OK) or Path(path).is_dir():
        raise InputError(f"--setfit-python {path} is no program")


# --------------------------------------------------------------------------------------------------
# Rows


def read_source(data, name, test_rows=None):
    """The Source SET:TASK of the folder `data`, with at most `test_rows` test rows, if given."""
    set_name, _, task = name.partition(":")
    if not set_name or not task:
        raise InputError(f"{name} is not like SET:TASK")
    train = read_rows(data / set_name / "train.jsonl", task)
    test = read_rows(data / set_name / "test.jsonl", task)
    test = [row for row in test if task in row]
    if test_rows is not None and test_rows < len(test):
        test = Random(0).sample(test, test_rows)  # the same ones for each draw and each method
    return Source(name, task, train, test)


def read_rows(path, task):
    """The rows of a file. Raises InputError if none of them has a label of this task."""
    with input_errors(f"{path} cannot be read"), open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if not all("text" in row for row in rows):
        raise InputError(f"{path}: a row has no 'text'")
    if not any(task in row for row in rows):
        raise InputError(f"{path}: no row has a label of {task!r}")
    if any("text_pair" in row for row in rows):
        raise InputError(f"{path} holds pairs of texts; SetFit takes single ones only")
    return rows


def draw_rows(source, size, draw):
    """The numbers of `size` training rows of each class, in order.

    Of a class with fewer rows all are taken. The same draw is the same rows, in each process.
    """
    numbers_of = {}  # label -> the numbers of its rows
    for i, row in enumerate(source.train):
        if source.task in row:
            numbers_of.setdefault(str(row[source.task]), []).append(i)
    random = Random(f"{source.name}, {size} a class, draw {draw}")
    drawn = []
    for label in sorted(numbers_of):
        numbers = numbers_of[label]
        drawn += random.sample(numbers, min(size, len(numbers)))
    return sorted(drawn)


def training_rows(job):
    """The rows that a job learns from, with no other columns than those of its tasks."""
    source = job.source
    drawn = draw_rows(source, job.size, job.draw)
    rows = []
    if job.beside is None or set_of(job.beside) != set_of(source):
        for i in drawn:
            rows.append(with_columns(source.train[i], source.task))
        if job.beside is not None:
            for row in job.beside.train:
                rows.append(with_columns(row, job.beside.task))
    else:  # the same texts: all keep the label of the other task, and those drawn keep both
        for i, row in enumerate(source.train):
            tasks = [job.beside.task]
            if i in drawn:
                tasks.append(source.task)
            rows.append(with_columns(row, *tasks))
    return [row for row in rows if len(row) > 1]  # without those that have no label


def set_of(source):
    return source.name.partition(":")[0]


def with_columns(row, *tasks):
    """The text of a row, and its labels of these tasks, as far as it has them."""
    kept = {"text": row["text"]}
    for task in tasks:
        if task in row:
            kept[task] = row[task]
    return kept


# --------------------------------------------------------------------------------------------------
# Methods. Each is called in a folder that holds data.jsonl and test.jsonl, and returns a label for
# each test row, and the seconds of training.


def mtbert(job, args, folder):
    return train_mtbert(job, folder, "--variant", "single", "--tasks", job.source.task)


def mtbert_beside(job, args, folder):
    tasks = [job.source.task, job.beside.task]
    return train_mtbert(job, folder, "--variant", "shared", "--tasks", *tasks)


def train_mtbert(job, folder, *flags):
    """train.py with its defaults. The seconds are those in training steps."""
    files = ["--data", "data.jsonl", "--test", "test.jsonl", "--out", "run"]
    run(folder, sys.executable, HERE.parent / "train.py", *files, *flags)
    metrics = json.loads((folder / "run/metrics.json").read_text("utf-8"))
    labels = []
    for line in (folder / "run/test_predictions.jsonl").read_text("utf-8").splitlines():
        labels.append(json.loads(line)["predictions"][job.source.task]["label"])
    return labels, metrics["train_seconds"]


def logistic(job, args, folder):
    return run_arm(job, folder, sys.executable, HERE / "logistic_arm.py")


def setfit(job, args, folder):
    flags = ["--encoder", find_encoder(DEFAULT_ENCODER)[0]]
    if args.setfit_iterations is not None:
        flags += ["--iterations", args.setfit_iterations]
    return run_arm(job, folder, os.path.abspath(args.setfit_python), HERE / "setfit_arm.py", *flags)


METHODS = {
    "mtbert": mtbert,
    "logistic": logistic,
    "setfit": setfit,
    "beside": mtbert_beside,
}


def run_arm(job, folder, *command):
    """Run a script that writes its predictions to a file and prints, last, a line of JSON."""
    files = ["--data", "data.jsonl", "--test", "test.jsonl", "--out", "predictions.json"]
    printed = run(folder, *command, "--task", job.source.task, *files)
    last = json.loads(printed.splitlines()[-1])
    labels = json.loads((folder / last["predictions"]).read_text("utf-8"))
    return labels, last["train_seconds"]


def run(folder, *command):
    """Run a command in a folder, on the CPU and without a network -> what it printed."""
    command = [str(word) for word in command]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    if done.returncode != 0:
        (folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise InputError(f"{Path(command[1]).name} failed ({last}); see {folder / 'stderr.txt'}")
    return done.stdout


# --------------------------------------------------------------------------------------------------
# Runs


def make_jobs(args):
    """What the flags ask for, in order: a draw of everything, then the next draw."""
    sources = [read_source(args.data, name, args.test_rows) for name in args.sets]
    others = [read_source(args.data, name) for name in args.beside]
    for source in sources:
        for other in others:
            if source.task == other.task:
                raise InputError(f"{source.name} beside {other.name}: two columns of one name")
    jobs = []
    for draw in range(args.draws):
        for source in sources:
            for size in args.sizes:
                for method in args.methods:
                    jobs.append(Job(source, size, draw, method))
                for other in others:
                    jobs.append(Job(source, size, draw, "beside", other))
    return jobs


def in_words(job, args):
    """The method of a job, with its setting. Results of other settings are other results."""
    if job.method == "beside":
        return f"mtbert shared, beside {job.beside.name}"
    if job.method == "setfit":
        if args.setfit_iterations is None:
            return "SetFit, all pairs"
        return f"SetFit, {args.setfit_iterations} iterations"
    return {"mtbert": "mtbert single", "logistic": "logistic regression"}[job.method]


def key_of(job, args):
    """What a result is found by in results.jsonl."""
    return {
        "set": job.source.name,
        "size": job.size,
        "draw": job.draw,
        "method": in_words(job, args),
        "test_rows": len(job.source.test),
    }


def finish(job, args):
    """Train and test -> the job's result."""
    key = key_of(job, args)
    name = "-".join(map(str, key.values()))
    folder = args.out / re.sub(r"\W+", "-", name)
    if folder.exists():
        shutil.rmtree(folder)  # of a run that was stopped
    folder.mkdir(parents=True)
    rows = training_rows(job)
    write_rows(folder / "data.jsonl", rows)
    test = [with_columns(row, job.source.task) for row in job.source.test]
    write_rows(folder / "test.jsonl", test)
    start = time.perf_counter()
    predictions, train_seconds = METHODS[job.method](job, args, folder.resolve())
    seconds = time.perf_counter() - start
    labels = [row[job.source.task] for row in test]
    accuracy, macro_f1 = score(labels, predictions)
    shutil.rmtree(folder)  # it holds a model
    return key | {
        "train_rows": len(rows),
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "train_seconds": train_seconds,
        "seconds": seconds,
    }


def score(labels, predictions):
    """Accuracy and macro-F1, in the same way for all methods."""
    from sklearn.metrics import accuracy_score, f1_score

    labels = list(map(str, labels))
    predictions = list(map(str, predictions))
    if len(predictions) != len(labels):
        raise InputError(f"{len(predictions)} predictions for {len(labels)} test rows")
    accuracy = float(accuracy_score(labels, predictions))
    return accuracy, float(f1_score(labels, predictions, average="macro"))


def read_results(path):
    """The results of a file, which may be missing: a dict for each line."""
    if not path.exists():
        return []
    results = []
    for i, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        with input_errors(f"{path}, line {i} is damaged; delete it"):
            results.append(json.loads(line))
    return results


def result_of(key, results):
    """The result that has these values, or None."""
    for result in results:
        if key.items() <= result.items():
            return result
    return None


def run_jobs(jobs, args):
    """Do what is not done yet -> the results of all jobs, in order."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.jsonl"
    results = []
    for i, job in enumerate(jobs, 1):
        key = key_of(job, args)
        result = result_of(key, read_results(path))
        if result is None:
            what = f"{key['set']}, {key['size']} a class, draw {key['draw']}, {key['method']}"
            print(f"run {i} of {len(jobs)}: {what}", file=sys.stderr)
            result = finish(job, args)
            # A line is written at once, so two commands with other methods may share the folder.
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        results.append(result)
    return results


# --------------------------------------------------------------------------------------------------
# The table


def group_results(results):
    """{(set, rows of a class): {method: its results}}, in the order of the results."""
    groups = {}
    for result in results:
        methods = groups.setdefault((result["set"], result["size"]), {})
        methods.setdefault(result["method"], []).append(result)
    return groups


def table(results):
    """The lines of a Markdown table, with a line for each set, size and method."""
    from benchmarks.compare import mean_and_spread

    lines = [
        "| set | rows a class | method | draws | accuracy | macro-F1 | training, s | in all, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, size), methods in group_results(results).items():
        for method, group in methods.items():
            cells = [name, str(size), method, str(len(group))]
            for metric in ("accuracy", "macro_f1"):
                cells.append(mean_and_spread([100 * result[metric] for result in group]))
            for metric in ("train_seconds", "seconds"):
                median = np.median([result[metric] for result in group])
                cells.append(f"{median:.1f}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_of_differences(results):
    """The lines of a Markdown table: the accuracy of the first method minus that of each other."""
    from benchmarks.compare import difference_in_words

    lines = ["| set | rows a class | difference | accuracy |", "|---|---|---|---|"]
    for (name, size), methods in group_results(results).items():
        accuracy = {}
        for method, group in methods.items():
            accuracy[method] = {result["draw"]: 100 * result["accuracy"] for result in group}
        first = next(iter(methods))
        for method in list(methods)[1:]:
            difference = difference_in_words(accuracy[first], accuracy[method])
            lines.append(f"| {name} | {size} | {first} - {method} | {difference} |")
    return lines


def main(argv=None):
    args = parse_args(argv)
    results = run_jobs(make_jobs(args), args)
    rows = sorted({result["test_rows"] for result in results})
    print(f"test scores in %, of {' or '.join(map(str, rows))} rows: mean ± standard deviation")
    print("seconds: medians; in all: with the imports and with the predictions of the test rows")
    print()
    print("\n".join(table(results)))
    print()
    print("accuracy of methods compared by draw: mean difference and its 95 % interval")
    print()
    print("\n".join(table_of_differences(results)))


if __name__ == "__main__":
    run_script(main)
