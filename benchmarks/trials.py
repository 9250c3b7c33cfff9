"""Compare settings of train.py on small and large parts of data sets, on rows that no test has.

python benchmarks/trials.py --data FOLDER --cells sst:fine:8 rest14:sentiment+category:5% \
    --settings "fit=--head-init fit" "random=--head-init random" --seeds 5

A cell is SET:TASKS:SIZE[:EPOCHS]. SET names a folder of FOLDER with a train.jsonl. Of its rows, 400
are put aside to be scored (those of dev.jsonl where there is one). SIZE is how many of the others
are learned from: 8 (of each class of the first task), 5% or all. One task is --variant single, more
are shared. Seed, rows and order are the same for all settings. A result is a line of
OUT/results.jsonl; a command that was stopped goes on from there.

Three choices of the weights are scored after each run: the epoch that the run keeps, the last one,
and the mean of the three best epochs' weights (Wortsman et al. 2022, arXiv:2203.05482).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import write_rows
from support.errors import InputError
from support.script import Parser, number, run_script

NUM_SCORED = 400
SCORES = ("accuracy", "macro_f1", "pearson")
CHOICES = ("kept", "last", "mean of 3")


def parse_args():
    parser = Parser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--data", type=Path, metavar="FOLDER", help="with a folder for each set")
    flag("--cells", nargs="+", default=[], metavar="SET:TASKS:SIZE[:EPOCHS]")
    flag("--settings", nargs="+", default=[], metavar="NAME=FLAGS", help="the first is the base")
    flag("--seeds", type=number(int, 2), default=5, metavar="N", help="(default: 5)")
    jobs_help = "runs beside each other, a thread each (default: 2)"
    flag("--jobs", type=number(int, 1), default=2, metavar="N", help=jobs_help)
    flag("--out", type=Path, default=Path("runs/trials"), metavar="FOLDER")
    flag("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is None and not (args.data and args.cells and args.settings):
        raise InputError("trials.py takes --data, --cells and --settings")
    return args


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def draw(rows, size, task, rng):
    """The rows to learn from: so many of each class of `task`, a share of them, or all."""
    order = rng.permutation(len(rows))
    if size == "all":
        return [rows[i] for i in order]
    if size.endswith("%"):
        return [rows[i] for i in order[: round(len(rows) * float(size[:-1]) / 100)]]
    counts = {}
    drawn = []
    for i in order:
        if task not in rows[i]:
            continue
        label = rows[i][task]
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= int(size):
            drawn.append(rows[i])
    return drawn


def make_files(data, cell, seed, folder):
    """Write the rows of a cell: train.jsonl and scored.jsonl in `folder`."""
    name, tasks, size = cell.split(":")[:3]
    tasks = tasks.split("+")
    rng = np.random.default_rng(seed)
    rows = read_rows(data / name / "train.jsonl")
    has_dev = (data / name / "dev.jsonl").exists()
    others = read_rows(data / name / "dev.jsonl") if has_dev else rows
    order = np.random.default_rng(12345).permutation(len(others))
    scored = [others[i] for i in order[:NUM_SCORED]]
    if not has_dev:
        rows = [rows[i] for i in order[NUM_SCORED:]]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", draw(rows, size, tasks[0], rng))
    write_rows(folder / "scored.jsonl", scored)


def run_job(job):
    """Train once, in this process, and print the scores of each choice of the weights."""
    import torch

    import mtbert
    import train

    folder = Path(job["folder"])
    parts = job["cell"].split(":")
    tasks = parts[1].split("+")
    argv = ["--data", str(folder / "train.jsonl"), "--test", str(folder / "scored.jsonl")]
    argv += ["--tasks", *tasks, "--variant", "single" if len(tasks) == 1 else "shared"]
    argv += ["--seed", str(job["seed"]), *job["flags"]]
    if len(parts) == 4:
        argv += ["--epochs", parts[3]]
    start = time.perf_counter()
    args = train.parse_args(argv)
    model, _, data = train.prepare(args, torch.device("cpu"), None)
    train.start_heads(args, model, data)

    states = []
    validate = mtbert.validate

    def validate_and_keep(model, data):
        states.append(mtbert.copy_to_cpu(model.state_dict()))
        return validate(model, data)

    mtbert.validate = validate_and_keep
    for path in [*folder.glob("log.jsonl"), *folder.glob("snapshot*")]:
        path.unlink()  # of a trial that was stopped
    run = mtbert.train(model, data, args, folder)
    mtbert.validate = validate
    seconds = time.perf_counter() - start

    judges = mtbert.tasks_that_judge(model.tasks, data["validation"].labels)
    epoch_scores = []
    for entry in read_rows(folder / "log.jsonl"):
        if "scores" in entry:
            epoch_scores.append(mtbert.mean_score(entry["scores"], judges))
    order = np.arange(len(states))[::-1]
    if judges:  # as the run chooses its epoch
        order = np.argsort(-np.array(epoch_scores), kind="stable")  # of equal ones the first
    mean = {}
    for key, tensor in states[0].items():
        chosen = torch.stack([states[i][key] for i in order[:3]])
        mean[key] = chosen.mean(0) if tensor.is_floating_point() else tensor

    scores = {}
    for choice, state in zip(CHOICES, (run.best, states[-1], mean), strict=True):
        model.load_state_dict(state)
        mtbert.validate(model, data["validation"])
        logits = mtbert.compute_logits(model, data["test"])
        metrics = mtbert.evaluate(model.tasks, data["test"].labels, logits)
        scores[choice] = {}
        for task, values in metrics.items():
            for key in SCORES:
                if key in values:
                    scores[choice][f"{task} {key}"] = values[key]
    print(json.dumps({"scores": scores, "seconds": seconds}))


def all_jobs(args):
    """Every run of the comparison, the seeds outermost."""
    jobs = []
    for seed in range(args.seeds):
        for cell in args.cells:
            for setting in args.settings:
                name, _, flags = setting.partition("=")
                folder = args.out / f"{cell.replace(':', '-')}-{name}-{seed}"
                job = {"cell": cell, "setting": name, "seed": seed, "flags": flags.split()}
                jobs.append(job | {"folder": str(folder)})
    return jobs


def run_all(args, jobs):
    """Run what results.jsonl does not have yet, `--jobs` at a time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    results = args.out / "results.jsonl"
    running = []
    while jobs or running:
        while jobs and len(running) < args.jobs:
            job = jobs.pop(0)
            make_files(args.data, job["cell"], job["seed"], Path(job["folder"]))
            command = [sys.executable, __file__, "--job", json.dumps(job)]
            output = open(Path(job["folder"]) / "output.txt", "w+")  # noqa: SIM115
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            running.append((job, process, output))
        time.sleep(0.2)
        for item in list(running):
            job, process, output = item
            if process.poll() is None:
                continue
            running.remove(item)
            output.seek(0)
            text = output.read()
            output.close()
            if process.returncode != 0:
                for _, other, _ in running:
                    other.kill()
                raise InputError(f"{job} failed; see {output.name}")
            result = json.loads(text.splitlines()[-1])
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps(job | result) + "\n")
            for path in Path(job["folder"]).glob("snapshot*"):
                path.unlink()


def key_of(job):
    return job["cell"], job["setting"], job["seed"]


def scores_of(results, cell, setting, choice):
    """{task and metric: {seed: score in %}}."""
    found = {}
    for result in results:
        if (result["cell"], result["setting"]) == (cell, setting):
            for name, score in result["scores"][choice].items():
                found.setdefault(name, {})[result["seed"]] = 100 * score
    return found


def print_table(args, results):
    """Scores by cell, setting and choice, and the difference from the first setting's."""
    from benchmarks.compare import difference_in_words, mean_and_spread

    base = args.settings[0].partition("=")[0]
    print("| rows | score | setting | kept | last | mean of 3 | kept - base | mean of 3 - kept |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in args.cells:
        for setting in args.settings:
            name = setting.partition("=")[0]
            by_choice = {choice: scores_of(results, cell, name, choice) for choice in CHOICES}
            base_scores = scores_of(results, cell, base, "kept")
            for score, kept in by_choice["kept"].items():
                words = [cell, score, name]
                for choice in CHOICES:
                    values = list(by_choice[choice][score].values())
                    words.append(mean_and_spread(values))
                words.append(difference_in_words(kept, base_scores.get(score, {})))
                words.append(difference_in_words(by_choice["mean of 3"][score], kept))
                print(f"| {' | '.join(words)} |")


def main():
    args = parse_args()
    if args.job:
        run_job(json.loads(args.job))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    done = {}
    if results.exists():
        for result in read_rows(results):
            done[key_of(result)] = result["flags"]
    jobs = []
    for job in all_jobs(args):
        if key_of(job) not in done:
            jobs.append(job)
        elif done[key_of(job)] != job["flags"]:
            what = f"{args.out} holds the setting {job['setting']!r} with other flags"
            raise InputError(f"{what}; name it otherwise, or name another folder with --out")
    run_all(args, jobs)
    print_table(args, read_rows(results))


if __name__ == "__main__":
    run_script(main)
