"""SetFit with its defaults: one of the methods of fewshot.py.

It runs in an environment of its own (requirements-setfit.txt), and imports nothing of this project.
Prints, last, a line of JSON: the file with a label for each test row, and the seconds of training.
"""

import argparse
import json
import time
from pathlib import Path

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments


def read_columns(path, task):
    """The texts of a file, and their labels of this task."""
    texts = []
    labels = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        texts.append(row["text"])
        labels.append(row[task])
    return texts, labels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder", required=True, help="a folder of sentence-transformers")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, help="(default: all pairs, as SetFit's default)")
    args = parser.parse_args()
    texts, labels = read_columns(args.data, args.task)
    test_texts, _ = read_columns(args.test, args.task)
    model = SetFitModel.from_pretrained(args.encoder, device="cpu")
    dataset = Dataset.from_dict({"text": texts, "label": labels})
    flags = TrainingArguments(num_iterations=args.iterations)  # None is the default
    trainer = Trainer(model=model, args=flags, train_dataset=dataset)

    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start

    predictions = model.predict(test_texts).tolist()
    args.out.write_text(json.dumps(predictions), encoding="utf-8")
    print(json.dumps({"predictions": str(args.out), "train_seconds": seconds}))


if __name__ == "__main__":
    main()
