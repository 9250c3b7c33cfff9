"""Is the sample like real reviews, and what does the README's first command reach on it?

python benchmarks/sample.py DATA --out runs/sample        # DATA/sst/train.jsonl, dev.jsonl, test.jsonl

Prints: how often a model trained on SST tells the sample's positive and negative test rows apart; how often models
trained on the sample tell SST's apart; and the sample's own test scores, beside TF-IDF and a linear model. To tell
apart is to give the right one of the two the higher probability. Finished runs are kept.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
import mtbert
import runs
import train
from data import read_data


def trained(folder, *flags):
    if not (folder / "metrics.json").exists():
        with open(f"{folder}.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            train.main([*flags, "--out", str(folder), "--overwrite"])
    return folder


def told_apart(folder, rows):
    """In %, of the rows that are positive or negative, those of which the model finds the right one likelier."""
    rows = [row for row in rows if row.labels["sentiment"] != "neutral"]
    found = [p["sentiment"]["probabilities"] for p in mtbert.predict(mtbert.load(folder), [row.text for row in rows])]
    signs = {"positive": 1, "negative": -1}
    right = [signs[row.labels["sentiment"]] * (p["positive"] - p["negative"]) > 0 for row, p in zip(rows, found, strict=True)]
    return 100 * float(np.mean(right)), len(rows)


def summary(values):
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main():
    parser = runs.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that holds sst/")
    parser.add_argument("--out", type=Path, default=Path("runs/sample"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sst = [str(args.data / f"sst/{split}.jsonl") for split in ("train", "dev", "test")]
    tasks, sample = read_data([str(train.SAMPLE)])
    _, review = read_data(sst[:1], sst[1:2], sst[2:], ["sentiment"])

    files = ["--data", sst[0], "--val", sst[1], "--tasks", "sentiment"]
    folder = trained(args.out / "sst", *files, "--variant", "single", "--epochs", "2")
    percent, count = told_apart(folder, sample["test"])
    print(f"trained on SST: {percent:.1f} % of {count} test rows of the sample told apart (seed 0)", flush=True)

    folders = [trained(args.out / f"shared-{seed}", "--seed", str(seed)) for seed in range(args.seeds)]
    apart = [told_apart(folder, review["test"]) for folder in folders]
    print(f"trained on the sample: {summary([p for p, _ in apart])} % of {apart[0][1]} test rows of SST told apart", end="")
    print(f" ({args.seeds} seeds: {', '.join(f'{p:.1f}' for p, _ in apart)})")
    test = [json.loads((folder / "metrics.json").read_text())["test"] for folder in folders]
    for task in tasks:
        linear = compare.baselines(task, sample)["TF-IDF, linear"]
        for key in ("accuracy", "macro_f1"):
            ours = summary([100 * metrics[task.name][key] for metrics in test])
            print(f"{task.name}, {key}: {ours} % of the sample's test rows; TF-IDF, linear: {100 * linear[key]:.1f}")


if __name__ == "__main__":
    runs.run_script(main)
