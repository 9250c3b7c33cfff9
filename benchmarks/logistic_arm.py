"""Logistic regression on what the frozen encoder says: one of the methods of fewshot.py.

Prints, last, a line of JSON: the file with a label for each test row, and the seconds of training.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sklearn.linear_model import LogisticRegression

import mtbert
from support.huggingface import DEFAULT_ENCODER


def load_frozen():
    """A model without tasks, whose pooled states are the mean of the tokens' states."""
    encoder = mtbert.load_encoder(DEFAULT_ENCODER)
    config = encoder.config
    tokenizer = mtbert.load_tokenizer(DEFAULT_ENCODER, config.max_length, config.vocab_size)
    return mtbert.MTBert(encoder, [], tokenizer, pooling="mean")


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
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    texts, labels = read_columns(args.data, args.task)
    test_texts, _ = read_columns(args.test, args.task)
    model = load_frozen()

    start = time.perf_counter()
    states = mtbert.embed(model, texts)
    head = LogisticRegression().fit(states, labels)
    seconds = time.perf_counter() - start

    predictions = head.predict(mtbert.embed(model, test_texts)).tolist()
    args.out.write_text(json.dumps(predictions), encoding="utf-8")
    print(json.dumps({"predictions": str(args.out), "train_seconds": seconds}))


if __name__ == "__main__":
    main()
