"""Logistic regression on what the frozen encoder says: one of the methods of fewshot.py."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arms import make_parser, read_columns, write_result
from sklearn.linear_model import LogisticRegression

import mtbert
from support.huggingface import DEFAULT_ENCODER


def load_frozen():
    """A model without tasks, whose pooled states are the mean of the tokens' states."""
    encoder = mtbert.load_encoder(DEFAULT_ENCODER)
    config = encoder.config
    tokenizer = mtbert.load_tokenizer(DEFAULT_ENCODER, config.max_length, config.vocab_size)
    return mtbert.MTBert(encoder, [], tokenizer, pooling="mean")


def main():
    args = make_parser().parse_args()
    texts, labels = read_columns(args.data, args.task)
    test_texts, _ = read_columns(args.test, args.task)
    model = load_frozen()

    start = time.perf_counter()
    states = mtbert.embed(model, texts)
    head = LogisticRegression().fit(states, labels)
    seconds = time.perf_counter() - start

    predictions = head.predict(mtbert.embed(model, test_texts)).tolist()
    write_result(args.out, predictions, seconds)


if __name__ == "__main__":
    main()
