"""SetFit with its defaults: one of the methods of fewshot.py.

It runs in an environment of its own (requirements-setfit.txt), and imports nothing of this project
but arms.py.
"""

import time

from arms import make_parser, read_columns, write_result
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments


def main():
    parser = make_parser()
    parser.add_argument("--encoder", required=True, help="a folder of sentence-transformers")
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
    write_result(args.out, predictions, seconds)


if __name__ == "__main__":
    main()
