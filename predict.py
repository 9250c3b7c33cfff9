"""Predict all tasks for texts with a trained model, or score it on labelled rows.

python predict.py "great movie"
python predict.py --input reviews.csv --output predictions.csv
python predict.py --input labelled.csv --score

This file holds the flags, and how predictions are written. It never knows how they are computed.
"""

import csv
import itertools
import json
import sys
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import mtbert
import report
import runs
from data import (
    InputError,
    check_text_column,
    convert_labels,
    format_flags,
    format_of,
    listed,
    parse_row,
    printable,
    read_rows,
    read_table,
    unseen_labels,
)
from metrics import evaluate

WINDOW = 4096  # rows in memory at a time; they are sorted by length


def parse_args(argv):
    parser = runs.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    flag = parser.add_argument
    flag("texts", nargs="*", metavar="TEXT", help="texts to predict")
    flag("--model", metavar="FOLDER", help="a run folder (default: the newest finished one under runs/)")
    flag("--input", metavar="FILE", help=".txt (a text a line), .csv, .tsv, .json, .jsonl, or - for texts on stdin")
    flag("--output", metavar="FILE", help=".jsonl, .csv or .tsv, written as a whole or not at all")
    flag("--json", action="store_true", help="print JSON Lines in place of a table")
    flag("--score", action="store_true", help="compare with the labels of --input, and print the metrics")
    flag("--strict", action="store_true", help="stop at a row that cannot be predicted")
    format_flags(flag)
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    flag("--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="auto: the fastest here")
    args = parser.parse_args(argv)
    if bool(args.texts) == bool(args.input):
        raise InputError("give texts, or --input FILE; see --help")
    if args.score and (args.json or not args.input or args.input == "-"):
        raise InputError("--score takes --input FILE with labels, and no --json")
    if args.input == "-" and runs.launched().processes > 1:
        raise InputError("standard input cannot be shared out among processes; name a file")
    if args.output:
        output, kinds = Path(args.output), (".json",) if args.score else (".jsonl", ".csv", ".tsv")
        if output.is_dir() or not output.parent.is_dir():
            raise InputError(f"--output {output} {'is a folder' if output.is_dir() else 'is in no folder that exists'}")
        if output.suffix.lower() not in ("", *kinds):
            raise InputError(f"--output {output}: known are {', '.join(kinds)}")
        if args.input and output.exists() and Path(args.input).exists() and output.samefile(args.input):
            raise InputError(f"--output {output} is the input, which would be lost; name another file")
        if args.json and is_table(args.output):
            raise InputError(f"--json writes JSON Lines, and --output {output} is none")
    return args


def newest_run():
    found = sorted(Path("runs").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError("no finished run under runs/; train one (python train.py), or name one (--model FOLDER)")
    print(f"model: {found[-1].parent}", file=sys.stderr)
    return found[-1].parent


# ---------------------------------------------------------------------------------------------------------------------
# How predictions are written: a table for people, JSON Lines, or a table for programs


@contextmanager
def opened(path):
    """A file to write to: `path` as a whole or not at all, by one process at a time; standard output for None."""
    if not path or runs.processes()[0] > 0:  # beyond rank 0 it goes nowhere
        yield sys.stdout
    elif (output := Path(path)).is_file() or not output.exists():
        output = output.resolve()  # a link stays one
        with runs.locked(f"{output}.lock", output), runs.replacing(output) as beside, \
                open(beside, "w", encoding="utf-8", newline="") as file:  # fmt: skip
            yield file
    else:  # a pipe or a device, which cannot be replaced
        with open(output, "w", encoding="utf-8", newline="") as file:
            yield file


def is_table(path):
    return path is not None and path.lower().endswith((".csv", ".tsv"))


def bars_writer(model, args, _):
    def write(row, _, predictions, error):
        report.print_bars(model.tasks, *row.values(), predictions)

    return write


def table_writer(model, args, _):
    tasks, column = model.tasks, form_of(model, args).text_column
    names = [[report.describe_class(*item) for item in task.names.items()] for task in tasks]
    cells = [[f"{x}? 0.00" + ", " * task.several for x in some] for task, some in zip(tasks, names, strict=True)]
    widths = [max(map(len, [t.name, *some])) * (1 + t.several) for t, some in zip(tasks, cells, strict=True)]
    left = max(24, report.terminal_width() - sum(widths) - 2 * len(tasks))

    def print_row(text, cells):
        print("  ".join([f"{report.shorten(text, left):{left}}", *cells]).rstrip())

    def write(row, _, predictions, error):
        text = str(row.get(column, "")) if isinstance(row, dict) else ""
        shown = [printable(report.describe(p)) for p in predictions.values()] if predictions else [error]
        print_row(text, [f"{cell:{width}}" for cell, width in zip(shown, widths, strict=False)])

    print_row("text", [f"{printable(task.name):{width}}" for task, width in zip(tasks, widths, strict=True)])
    return write


def json_writer(model, args, out):
    def check(columns):
        if taken := {"predictions", "error"} & set(columns):
            raise InputError(f"{args.input} has {min(taken)!r} already, which would be lost; rename it")

    def write(row, cells, predictions, error):
        row = row if isinstance(row, dict) else {"row": cells or row}  # what cannot be read is kept as it is
        print(json.dumps(row | {"predictions": predictions} | ({"error": error} if error else {})), file=out)

    if is_table(args.input):
        check(read_table(args.input, args.text_encoding)[0])
    elif args.input and args.input != "-":
        for _, _, row, _ in read_rows(args.input, form_of(model, args)):
            check(row if isinstance(row, dict) else ())
    return write


def csv_writer(model, args, out):
    """The input's columns, then TASK and TASK_probability for each task, and `error`; written as the input is.
    Several labels of a text are joined as the columns were that the model learned from, else by "|"."""
    tasks, form, joined = model.tasks, form_of(model, args), {}
    header, separator, mark = [form.text_column], ",", ""
    if is_table(args.input):
        header, separator, _ = read_table(args.input, args.text_encoding)
        with open(args.input, "rb") as file:
            mark = "\ufeff" if file.read(3) == b"\xef\xbb\xbf" else ""
    elif args.input and args.input != "-" and not args.input.lower().endswith(".txt"):  # its rows have other keys
        raise InputError(f"--output {args.output} takes a .csv, .tsv or .txt as input; for {args.input}, name a .jsonl")
    tsv = args.output.lower().endswith(".tsv")
    separator = "\t" if tsv else "," if separator == "\t" else separator
    names, added = [name.strip() for name in header], []
    for task in tasks:
        name = f"{task.name}_predicted" if task.name in names else task.name  # a labelled file keeps its labels
        added += [name, f"{task.name}_probability"] if task.labels else [name]
        by = joined[task.name] = form.multi_label.get(task.name, "|")
        for label in map(str, task.labels) if task.several else ():
            if by in label or label != label.strip():
                what = f"the label {label!r} of {task.name!r} cannot be joined by {by!r} and told apart again"
                raise InputError(f"--output {args.output}: {what}; name a .jsonl")
    added.append("error")
    if taken := [name for name, count in Counter([*set(names), *added]).items() if count > 1]:
        raise InputError(f"--output {args.output} would have two columns {taken[0]!r}; rename one, or name a .jsonl")
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    out.write(mark)
    writer.writerow(header + added)

    def write(row, cells, predictions, error):
        values = []
        for task in tasks:
            p = predictions[task.name] if predictions else {"label": "", "probability": "", "value": ""}
            if "labels" in p:
                by = joined[task.name]  # alone where there is no label; an empty cell would be no answer
                values.append(by.join(map(str, p["labels"])) or by)
                values.append(by.join(str(p["probabilities"][label]) for label in p["labels"]))
            else:
                values += [p["label"], p["probability"]] if task.labels else [p["value"]]
        if cells is None:
            cells = [row[header[0]]]
        elif len(cells) != len(header):
            error += f"; the row is {separator.join(cells)}"
            cells = (cells + [""] * len(header))[: len(header)]
        writer.writerow(cells + values + [error or ""])

    return write


# ---------------------------------------------------------------------------------------------------------------------


def read_windows(model, rows, args):
    """Yield (window, errors, data, parsed) for WINDOW rows at a time: the rows as read; for each None, or why it cannot
    be predicted; the others as a Dataset, and as Rows, with their labels for --score. With --strict InputError is
    raised instead."""
    form, strict = form_of(model, args), args.strict or not args.input
    tasks = model.tasks if args.score else []
    kinds = {task.name: task.kind for task in tasks}
    for n in itertools.count():
        window = list(islice(rows, WINDOW))
        if n == 0:
            check_text_column(args.input, [row for _, _, row, _ in window], form)
        if not window:
            return
        parsed, errors = {}, [None] * len(window)
        for i, (where, _, row, cells) in enumerate(window):
            try:
                [parsed[i]] = convert_labels([parse_row(where, row, form, cells)], kinds)
            except InputError as error:
                if strict:
                    raise
                errors[i] = str(error).removeprefix(f"{where}: ") if isinstance(row, dict) else str(error)
        empty = None if strict else []
        data = mtbert.encode(model.tokenizer, list(parsed.values()), tasks, empty, model.long)
        if empty:
            places = list(parsed)
            for i in empty:
                errors[places[i]] = "no token is left of the text"
                del parsed[places[i]]
            data = mtbert.encode(model.tokenizer, list(parsed.values()), tasks, long=model.long)
        yield window, errors, data, list(parsed.values())


def form_of(model, args):
    """How to read the rows: as the flags say, else as those were read that the model learned from."""
    flags = model.record.get("flags")
    return format_of(args, flags if isinstance(flags, dict) and args.input else None)


def score(model, rows, args):
    """Print the metrics of the labelled rows, as training does, and write them to --output as JSON."""
    logits, labels, columns, labelled, failures = [], [], {}, [], []
    for window, errors, data, parsed in read_windows(model, rows, args):
        logits.append(mtbert.compute_logits(model, data))
        labels.append(data.labels)
        columns |= dict.fromkeys(name for _, _, row, _ in window if isinstance(row, dict) for name in row)
        labelled += [row._replace(text="") for row in parsed]
        places = zip(window, errors, strict=True)
        failures += [f"{where}: {error.removeprefix(f'{where}: ')}" for (where, *_), error in places if error]
    names = [task.name for task in model.tasks]
    logits, labels = (
        {name: np.concatenate([part[name] for part in parts]) for name in names} for parts in (logits, labels)
    )
    metrics = evaluate(model.tasks, labels, logits)
    if not metrics:
        why = f"; the first of {len(failures)} rows left out: {failures[0]}" if failures else ""
        raise InputError(f"{args.input}: no row has a label of {listed(names)}; its columns are {listed(columns)}{why}")
    for sentence in [sentence for task in model.tasks for sentence in unseen_labels(task, "given", labelled)]:
        runs.warn(sentence)
    if failures:
        runs.warn(f"{len(failures)} rows were left out; the first: {failures[0]}")
    report.print_metrics(model.tasks, metrics, Path(args.input).name)
    if args.output and runs.processes()[0] == 0:
        runs.write(args.output, metrics)


def predict(model, rows, args):
    as_json = args.json or (args.output and not is_table(args.output))
    quiet = runs.processes()[0] > 0 or (sys.stdout.isatty() and not args.output) or None  # no bar in a table's midst
    failed = cut = 0
    with opened(args.output) as out, tqdm(unit=" rows", disable=quiet) as bar:
        people = table_writer if args.input else bars_writer
        write = (json_writer if as_json else csv_writer if args.output else people)(model, args, out)
        for window, errors, data, _ in read_windows(model, rows, args):
            predictions = iter(mtbert.predict_encoded(model, data))
            for (_, _, row, cells), error in zip(window, errors, strict=True):
                write(row, cells, None if error else next(predictions), error)
            failed += sum(error is not None for error in errors)
            cut += data.cut
            bar.update(len(window))
    if cut:
        runs.note(f"{cut} texts are longer than the model's maximum and {mtbert.LONG[model.long]}")
    if failed:
        runs.note(f"{failed} rows could not be predicted; their lines say why, and --strict stops at the first")


def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)
    runs.join_processes(mtbert.pick_device(args.device))
    folder = args.model or runs.from_rank_0(newest_run() if runs.processes()[0] == 0 else None)
    model = mtbert.load(folder, args.device, args.dtype)
    if args.dtype == "float32":
        mtbert.pack(model)
    form = form_of(model, args)
    if args.input:
        rows = read_rows(args.input, form)
    else:
        rows = ((f"text {i}", None, {form.text_column: text}, None) for i, text in enumerate(args.texts, 1))
    (score if args.score else predict)(model, rows, args)


if __name__ == "__main__":
    runs.run_script(main)
