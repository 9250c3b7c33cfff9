"""Training time of transformers' Trainer with default arguments and of train.py, alternating in one process.

pip install -r benchmarks/requirements.txt
python benchmarks/speed.py --rounds 3 --data train.jsonl --val dev.jsonl --tasks sentiment --epochs 1

Both take the same rows, encoder, batch size and epochs. Trainer's time is that of Trainer.train(), without evaluation;
ours is that of mtbert.train(), with its evaluation of each epoch and its writing of the model.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import mtbert
import train


def time_trainer(args, rows, task, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(task.labels))
    index = {label: i for i, label in enumerate(task.labels)}
    labels = [index[row.labels[task.name]] for row in rows["train"]]
    encoded = [tokenizer(row.text, truncation=True) | {"labels": label} for row, label in zip(rows["train"], labels, strict=True)]
    settings = transformers.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=args.batch_size, num_train_epochs=args.epochs, report_to="none"
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model, settings, train_dataset=encoded, data_collator=collator)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def time_mtbert(args, rows, task):
    encoder = mtbert.Encoder.from_pretrained(args.encoder, args.dropout)
    tokenizer = mtbert.load_tokenizer(args.encoder, encoder.config.max_length, encoder.config.vocab_size)
    data = {split: mtbert.encode(tokenizer, part, [task]) for split, part in rows.items()}
    model = mtbert.MTBert(encoder, [task], tokenizer, args.pooling, args.dropout)
    model.compute_dtype = mtbert.pick_dtype(args.dtype, torch.device("cpu"))
    start = time.perf_counter()
    mtbert.train(model, data, args, tempfile.mkdtemp())
    return time.perf_counter() - start


def main():
    if "--rounds" not in sys.argv[1:2]:
        raise mtbert.InputError("usage: speed.py --rounds N [flags of train.py]")
    rounds, args = int(sys.argv[2]), train.parse_args(sys.argv[3:])
    [task], rows = mtbert.read_data(args.data, args.val, args.test, args.tasks, False, args.text_column, args.seed)
    folder = mtbert.find_encoder(args.encoder)[0]
    trainer, ours = [], []
    for _ in range(rounds):
        trainer.append(time_trainer(args, rows, task, folder))
        ours.append(time_mtbert(args, rows, task))
        print(f"Trainer {trainer[-1]:.1f} s, mtbert {ours[-1]:.1f} s", flush=True)
    ratio = np.median(np.array(ours) / np.array(trainer))
    count = args.epochs * len(rows["train"])
    print(f"median: Trainer {count / np.median(trainer):.1f} rows/s, mtbert {count / np.median(ours):.1f} rows/s, ", end="")
    print(f"mtbert takes {ratio:.1%} of the time")


if __name__ == "__main__":
    mtbert.run_script(main)
