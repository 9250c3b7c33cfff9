"""What the methods of fewshot.py that are scripts of their own share. It needs Python alone."""

import argparse
import json
from pathlib import Path


def make_parser():
    """The flags that each of these scripts is run with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def read_columns(path, task):
    """The texts of a file, and their labels of this task."""
    texts = []
    labels = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        texts.append(row["text"])
        labels.append(row[task])
    return texts, labels


def write_rows(path, rows):
    """Write a line of JSON for each row."""
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def write_result(path, predictions, seconds):
    """Write a label for each test row. Print, last, where they are, and the seconds of training."""
    path.write_text(json.dumps(predictions), encoding="utf-8")
    print(json.dumps({"predictions": str(path), "train_seconds": seconds}))
