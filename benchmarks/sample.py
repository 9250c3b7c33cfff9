"""Is the sample like real reviews, and what does the README's first command reach on it?

python benchmarks/sample.py DATA --out runs/sample     # DATA/sst/train.jsonl, dev.jsonl, test.jsonl

Prints how often a model of SST tells the sample's positive and negative test rows apart, how often
models of the sample tell SST's apart, and the scores of the sample's test rows, beside those of a
linear model on TF-IDF. To tell apart is to find the right one of the two more probable.
Finished runs are kept.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare

import mtbert
import train
from support.columns import read_data
from support.script import Parser, run_script


def train_once(folder, *flags):
    """Train a model in `folder`, unless it is there already -> the folder."""
    if not (folder / "metrics.json").exists():
        with open(f"{folder}.txt", "w", encoding="utf-8") as log, redirect_stdout(log):
            train.main([*flags, "--out", str(folder), "--overwrite"])
    return folder


def polar_rows(rows):
    return [row for row in rows if row.labels["sentiment"] != "neutral"]


def tell_apart(folder, rows):
    """The share in % of positive and negative rows whose label the model finds more probable."""
    texts = [row.text for row in rows]
    num_right = 0
    predictions = mtbert.predict(mtbert.load(folder), texts)
    for row, prediction in zip(rows, predictions, strict=True):
        probabilities = prediction["sentiment"]["probabilities"]
        found = "negative"
        if probabilities["positive"] > probabilities["negative"]:
            found = "positive"
        num_right += found == row.labels["sentiment"]
    return 100 * num_right / len(rows)


def main():
    parser = Parser(description="Is the sample like real reviews, and what is reached on it?")
    parser.add_argument("data", type=Path, help="the folder that holds sst/")
    parser.add_argument("--out", type=Path, default=Path("runs/sample"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train_file = str(args.data / "sst/train.jsonl")
    dev_file = str(args.data / "sst/dev.jsonl")
    test_file = str(args.data / "sst/test.jsonl")
    columns, sample = read_data([str(train.SAMPLE)])
    _, reviews = read_data([train_file], [dev_file], [test_file], ["sentiment"])

    rows = polar_rows(sample["test"])
    files = ["--data", train_file, "--val", dev_file, "--tasks", "sentiment"]
    folder = train_once(args.out / "sst", *files, "--variant", "single", "--epochs", "2")
    share = tell_apart(folder, rows)
    print(
        f"trained on SST: {share:.1f} % of {len(rows)} test rows of the sample told apart (seed 0)"
    )

    rows = polar_rows(reviews["test"])
    folders = []
    for seed in range(args.seeds):
        folders.append(train_once(args.out / f"shared-{seed}", "--seed", str(seed)))
    shares = [tell_apart(folder, rows) for folder in folders]
    each = ", ".join(f"{share:.1f}" for share in shares)
    found = compare.mean_and_spread(shares)
    print(f"trained on the sample: {found} % of {len(rows)} test rows of SST told apart")
    print(f"  {args.seeds} seeds: {each}")
    print_scores(train.make_tasks(columns), sample, folders)


def print_scores(tasks, sample, folders):
    tested = []  # the test metrics of each seed
    for folder in folders:
        tested.append(json.loads((folder / "metrics.json").read_text("utf-8"))["test"])
    for task in tasks:
        linear = compare.baselines(task, sample)["TF-IDF, linear"]
        for key in ("accuracy", "macro_f1"):
            scores = []
            for metrics in tested:
                scores.append(100 * metrics[task.name][key])
            ours = compare.mean_and_spread(scores)
            what = f"{task.name}, {key}: {ours} % of the sample's test rows"
            print(f"{what}; TF-IDF, linear: {100 * linear[key]:.1f}")


if __name__ == "__main__":
    run_script(main)
