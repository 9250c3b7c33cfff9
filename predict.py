"""Predict all tasks for texts with a trained model, or score it on labelled rows.

python predict.py "great movie"
python predict.py "a text" --pair "and the one that it is compared with"
python predict.py --input reviews.csv --output predictions.csv
python predict.py --input labelled.csv --score
python predict.py --input rows.jsonl --output soft.jsonl --as-labels

This file holds the flags, and what happens in which order. How rows are read, how predictions are
computed and how they are written stands elsewhere.
"""

import json
import queue
import sys
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

from support.versions import are_new_enough

if not are_new_enough("predict.py"):
    sys.exit(2)

import numpy as np
from tqdm import tqdm

import mtbert
from support import cpu, processes, report, runs, writers
from support.columns import (
    SPLITS,
    check_pair_column,
    check_text_column,
    convert_labels,
    find_split_column,
    name_of_pair,
    parse_row,
    row_hash,
    split_called,
    unseen_labels,
)
from support.errors import InputError, input_errors, listed
from support.files import RawRow, format_flags, format_of, read_rows
from support.script import Parser, note, run_script, warn

WINDOW = 4096  # rows in memory at a time; they are sorted by length
PAUSE = 0.1  # seconds to wait for one more row of standard input before predicting
LONGEST_WAIT = 0.5  # seconds for which more rows are waited for, however they come
STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
DTYPES = ("auto", "float32", "bfloat16", "int8")
AS_LABELS_HELP = "write rows for train.py --data: the texts, with predictions in place of labels"
SPLIT_HELP = "rows of a file with splits (default: test with --score, train with --as-labels)"
DTYPE_HELP = "auto: the fastest here (the default; with --score that of the run's own test)"


def parse_args(argv):
    parser = Parser(
        description="Predict all tasks for texts, or score a model on labelled rows.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("texts", nargs="*", metavar="TEXT", help="texts to predict")
    flag("--pair", action="append", metavar="TEXT", help="the second text; once for each text")
    flag("--model", metavar="FOLDER", help="a run (default: the newest finished one in runs/)")
    flag("--input", metavar="FILE", help=".txt, .csv, .tsv, .json, .jsonl; -: a text a line, stdin")
    flag("--output", metavar="FILE", help=".jsonl, .csv or .tsv, written whole or not at all")
    flag("--json", action="store_true", help="print JSON Lines in place of a table")
    flag("--as-labels", action="store_true", help=AS_LABELS_HELP)
    flag("--score", action="store_true", help="compare with --input's labels, and print metrics")
    flag("--split", choices=(*SPLITS, "all"), help=SPLIT_HELP)
    format_flags(flag)
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    flag("--dtype", choices=DTYPES, help=DTYPE_HELP)
    try:
        args = parser.parse_args(argv)
    except InputError as error:
        if "unrecognized arguments: -" not in str(error):
            raise
        hint = "texts that begin with - follow after --, as in: predict.py -- '-5 degrees'"
        raise InputError(f"{error}; {hint}") from None
    if bool(args.texts) == bool(args.input):
        raise InputError("give texts, or --input FILE; see --help")
    if args.input in STDIN:
        args.input = "-"
    if args.pair and len(args.pair) != len(args.texts):
        raise InputError(f"{len(args.texts)} texts, but {len(args.pair)} times --pair TEXT")
    picks_rows = args.score or (args.as_labels and args.input not in (None, "-"))
    if args.split and not picks_rows:
        raise InputError("--split picks the rows for --score or --as-labels with --input FILE")
    if args.score and (args.json or not args.input or args.input == "-"):
        raise InputError("--score takes --input FILE with labels, and no --json")
    if args.input == "-" and processes.launched().processes > 1:
        raise InputError("standard input cannot be shared out among processes; name a file")
    if args.as_labels and args.score:
        raise InputError("--as-labels writes predictions, and --score compares them: name one")
    if args.as_labels and not args.output and not args.json:
        raise InputError("--as-labels takes --output NAME.jsonl, or --json to print")
    if args.output:
        check_output(args)
    return args


def check_output(args):
    output = Path(args.output)
    if output.is_dir():
        raise InputError(f"--output {output} is a folder")
    if not output.parent.is_dir():
        raise InputError(f"--output {output} is in no folder that exists")
    known = (".jsonl", ".csv", ".tsv")
    if args.score:
        known = (".json",)
    if args.as_labels and output.suffix.lower() != ".jsonl":
        raise InputError(f"--output {output}: with --as-labels it is a .jsonl")
    if output.suffix.lower() not in ("", *known):
        raise InputError(f"--output {output}: known are {', '.join(known)}")
    both_exist = args.input and output.exists() and Path(args.input).exists()
    if both_exist and output.samefile(args.input):
        raise InputError(f"--output {output} is the input, which would be lost; name another file")
    if args.json and writers.is_table(args.output):
        raise InputError(f"--json writes JSON Lines, and --output {output} is none")


def newest_run():
    finished = list(Path("runs").glob("*/metrics.json"))
    if not finished:
        raise InputError(
            "no finished run under runs/; train one (python train.py), or name one (--model FOLDER)"
        )
    newest = max(finished, key=lambda path: path.stat().st_mtime)
    print(f"model: {newest.parent}", file=sys.stderr)
    return newest.parent


def choose_dtype(args, folder, device):
    """The name of the dtype to compute in.

    Unless --dtype says otherwise, --score takes the one that the run was tested in, so that its
    numbers can be compared with those of the run.
    """
    if args.dtype is not None:
        return args.dtype
    if not args.score:
        return "auto"
    tested_in = None
    path = Path(folder) / "metrics.json"
    if path.is_file():
        with input_errors(f"{path} cannot be read"):
            tested_in = json.loads(path.read_text("utf-8")).get("dtype")
    if tested_in not in DTYPES:
        return "auto"
    try:
        cpu.pick_dtype(tested_in, device, predict=True)
    except InputError:
        dtype = cpu.pick_dtype("auto", device, predict=True)
        taken = str(dtype).removeprefix("torch.")
        note(f"the run was tested in {tested_in}, which cannot be had here; {taken} is taken")
        return "auto"
    return tested_in


# --------------------------------------------------------------------------------------------------
# Rows in windows


class Window(NamedTuple):
    """Rows that are in memory together."""

    raw_rows: list  # RawRow
    errors: list  # for each of them why it cannot be predicted, in words, or None
    rows: list  # Row of those that can
    data: mtbert.Dataset  # of `rows`


def read_windows(model, raw_rows, format, args):
    """Yield the rows as Windows, with their labels for --score.

    With --strict, and for texts on the command line, a row that cannot be predicted raises
    InputError instead.
    """
    strict = args.strict or not args.input
    tasks = model.tasks if args.score else []
    columns = [task.column() for task in tasks]
    is_first = True
    for chunk in chunks(raw_rows, hurry=args.input == "-"):
        if is_first and args.input:
            check_text_column(args.input, chunk, format)
            check_pairs(model, chunk, format, args)
        is_first = False
        errors = [None] * len(chunk)
        parsed = {}  # place in the chunk -> Row
        for i, raw in enumerate(chunk):
            try:
                parsed[i] = convert_labels([parse_row(raw, format)], columns)[0]
            except InputError as error:
                if strict:
                    raise
                errors[i] = without_place(raw, str(error))
        data = encode(model, parsed, tasks, None if strict else errors)
        yield Window(chunk, errors, list(parsed.values()), data)


def chunks(rows, hurry):
    """Lists of at most WINDOW rows; with `hurry` shorter ones, where no row follows at once."""
    if not hurry:
        while chunk := list(islice(rows, WINDOW)):
            yield chunk
        return
    waiting = queue.Queue(WINDOW)  # of (row, None); at the end (None, an exception or None)
    threading.Thread(target=read_ahead, args=(rows, waiting), daemon=True).start()
    while True:
        chunk = [waiting.get()]
        end = time.monotonic() + LONGEST_WAIT
        while len(chunk) < WINDOW and chunk[-1][0] is not None and time.monotonic() < end:
            try:
                chunk.append(waiting.get(timeout=PAUSE))
            except queue.Empty:
                break
        is_end = chunk[-1][0] is None
        found = [row for row, _ in chunk if row is not None]
        if found:
            yield found
        if is_end:
            error = chunk[-1][1]
            if error is not None:
                raise error
            return


def read_ahead(rows, waiting):
    try:
        for row in rows:
            waiting.put((row, None))
        waiting.put((None, None))
    except Exception as error:
        waiting.put((None, error))


def check_pairs(model, raw_rows, format, args):
    """Raise InputError for a file without second texts if the model learned from pairs."""
    if format.pair_column == "":
        return
    columns = {}
    for raw in raw_rows:
        if isinstance(raw.values, dict):
            columns.update(raw.values)
    if learned_from_pairs(model):
        check_pair_column(args.input, columns, format)
    elif model.metadata.get("pairs") is False and name_of_pair(format) in columns:
        what = f"{name_of_pair(format)!r} is read as a second text, and the model saw none"
        note(f'{what}; --pair-column "" leaves it out')


def learned_from_pairs(model):
    return model.metadata.get("pairs") is True


def encode(model, parsed, tasks, errors):
    """The Dataset of the Rows in `parsed`, {place: Row}.

    A row without a token is taken out and noted in `errors`; without such a list it raises
    InputError.
    """
    rows = list(parsed.values())
    empty = None if errors is None else []
    data = mtbert.encode(model.tokenizer, rows, tasks, model.max_length, empty)
    if not empty:
        return data
    places = list(parsed)
    for number in empty:
        errors[places[number]] = "no token is left of the text"
        del parsed[places[number]]
    return mtbert.encode(model.tokenizer, list(parsed.values()), tasks, model.max_length)


def without_place(raw, message):
    """An error's words without "FILE, line N: ", where the row stands beside them anyway."""
    if isinstance(raw.values, dict):
        return message.removeprefix(f"{raw.where}: ")
    return message


# --------------------------------------------------------------------------------------------------
# What is done with them


def score(model, folder, format, args):
    """Print the metrics of the labelled rows, as training does, and write them to --output."""
    raw_rows = choose_rows(model, format, args)
    logits = {task.name: [] for task in model.tasks}
    labels = {task.name: [] for task in model.tasks}
    rows = []
    found = {}  # its keys are the columns of the input, in order
    failures = []
    trained = read_hashes(folder)
    num_trained = 0
    for window in read_windows(model, raw_rows, format, args):
        window_logits = mtbert.compute_logits(model, window.data)
        for task in model.tasks:
            logits[task.name].append(window_logits[task.name])
            labels[task.name].append(window.data.labels[task.name])
        for row in window.rows:
            num_trained += row_hash(row) in trained
            rows.append(row._replace(text="", text_pair=None))  # saves memory
        for raw, error in zip(window.raw_rows, window.errors, strict=True):
            if isinstance(raw.values, dict):
                found.update(dict.fromkeys(raw.values))
            if error is not None:
                failures.append(f"{raw.where}: {error.removeprefix(f'{raw.where}: ')}")
    for task in model.tasks:
        logits[task.name] = np.concatenate(logits[task.name])
        labels[task.name] = np.concatenate(labels[task.name])

    metrics = mtbert.evaluate(model.tasks, labels, logits, intervals=True)
    if not metrics:
        names = listed(task.name for task in model.tasks)
        message = f"{args.input}: no row has a label of {names}; its columns are {listed(found)}"
        if failures:
            message += f"; {len(failures)} rows were left out, the first: {failures[0]}"
        raise InputError(message)
    for task in model.tasks:
        if task.name not in metrics:
            warn(f"no row has a label of {task.name!r}; the columns are {listed(found)}")
        for sentence in unseen_labels(task.column(), "given", rows):
            warn(sentence)
    if num_trained:
        warn(f"{num_trained} of {len(rows)} rows are training rows of this run, and no test of it")
    if failures:
        warn(f"{len(failures)} rows were left out; the first: {failures[0]}")
    report.print_metrics(model.tasks, metrics, Path(args.input).name)
    if args.output and processes.is_first():
        runs.write(args.output, metrics)


def choose_rows(model, format, args):
    """The rows of a file; of one with splits those that --split names.

    By default these are the test rows, or with --as-labels, from which is learned, training rows.
    """
    asked = [task.name for task in model.tasks]
    column = format.split_column
    if column is None:
        column = find_split_column(readable_rows(format, args), asked)
    counts = Counter()
    for raw in read_rows(args.input, format):
        counts[split_of(raw, column)] += 1
    has_splits = any(counts[split] for split in SPLITS)
    if args.split not in (None, "all") and not has_splits:
        raise InputError(f"--split {args.split}: {args.input} has no splits")
    if args.split == "all" or not has_splits:
        return read_rows(args.input, format)
    default = "test"
    what_for = "scored"
    if args.as_labels:
        default = "train"
        what_for = "written"
    split = args.split or default
    known = ", ".join(f"{counts[name]} {name}" for name in SPLITS)
    if not counts[split]:
        raise InputError(f"{args.input}: no {split} rows ({known}); see --split")
    note(f"{args.input}: the {split} rows are {what_for} ({known}); --split names others, or all")
    return rows_of_split(read_rows(args.input, format), split, column)


def rows_of_split(raw_rows, split, column):
    for raw in raw_rows:
        is_broken = not isinstance(raw.values, dict)  # it is said, whatever its split
        if is_broken or split_of(raw, column) == split:
            yield raw


def readable_rows(format, args):
    for raw in read_rows(args.input, format):
        try:
            yield parse_row(raw, format)
        except InputError:  # it is said when it is to be scored
            continue


def split_of(raw, column):
    """The split of a row, as its file or its column `column` says; or None."""
    if raw.split is not None or not isinstance(raw.values, dict):
        return raw.split
    return split_called(raw.values.get(column))


def read_hashes(folder):
    """The hashes of the rows that the run in `folder` was trained on."""
    path = Path(folder) / "train_rows.bin"
    if not path.is_file():  # of a former version
        return set()
    content = path.read_bytes()
    return {content[i : i + 8] for i in range(0, len(content), 8)}


def predict(model, raw_rows, format, args):
    """Write each row's predictions to --output, or print them."""
    num_rows = 0
    failures = []
    where_failed = []
    num_truncated = 0
    num_single = 0  # texts without a second one
    with writers.opened(args.output) as file, tqdm(unit=" rows", disable=hide_bar(args)) as bar:
        writer = make_writer(model, file, format, args)
        for window in read_windows(model, raw_rows, format, args):
            predictions = iter(mtbert.predict_encoded(model, window.data))
            for raw, error in zip(window.raw_rows, window.errors, strict=True):
                if error is None:
                    writer.write(raw, next(predictions), None)
                else:
                    writer.write(raw, None, error)
                    failures.append(error)
                    where_failed.append(raw.where)
            num_rows += len(window.raw_rows)
            num_truncated += window.data.num_truncated
            num_single += sum(row.text_pair is None for row in window.rows)
            if args.input == "-":
                writer.finish()  # someone may be waiting for it
            bar.update(len(window.raw_rows))
        writer.finish()
    if num_truncated:
        what = f"{num_truncated} texts are longer than {model.max_length} tokens"
        note(f"{what} and {mtbert.TRUNCATION[model.truncation]}")
    if num_single and learned_from_pairs(model):
        note(f"{num_single} rows have no second text, and the model learned from pairs")
    if failures and len(failures) == num_rows:
        raise InputError(f"none of {num_rows} rows could be predicted; the first: {failures[0]}")
    if failures:
        what = f"{len(failures)} rows could not be predicted"
        reasons = "their lines say why"
        if args.as_labels:
            where = where_failed[0]
            first = failures[0].removeprefix(f"{where}: ")
            reasons = f"they are left out, the first is {where}: {first}"
        note(f"{what}; {reasons}, and --strict stops at the first")


def hide_bar(args):
    """Whether there is no progress bar; None: only where standard error is no terminal."""
    into_table = sys.stdout.isatty() and not args.output  # it would stand amid the predictions
    if into_table or not processes.is_first():
        return True
    return None


def make_writer(model, file, format, args):
    if args.as_labels:
        return writers.LabelsWriter(file, model.tasks, format)
    if args.json or (args.output and not writers.is_table(args.output)):
        return writers.JsonLinesWriter(file, args.input, format)
    if args.output:
        return writers.TableWriter(file, args.output, model.tasks, args.input, format)
    if args.input:
        return writers.TextTableWriter(model.tasks, format.text_column)
    return writers.BarsWriter(model.tasks, format.text_column)


def find_format(model, args):
    """How to read the rows: as the flags say, else as those that the model learned from."""
    flags = model.metadata.get("flags")
    if not args.input or not isinstance(flags, dict):
        flags = None
    return format_of(args, flags)


def rows_of_texts(texts, format, pairs=None):
    for number, text in enumerate(texts, 1):
        values = {format.text_column: text}
        if pairs:
            values[name_of_pair(format)] = pairs[number - 1]
        yield RawRow(f"text {number}", None, values, None, is_text=True)


def main(argv=None):
    cpu.use_huge_pages()
    args = parse_args(sys.argv[1:] if argv is None else argv)
    device = processes.join_processes(processes.pick_device(args.device))
    folder = args.model
    if folder is None:
        found = newest_run() if processes.is_first() else None
        folder = processes.from_rank_0(found)
    model = mtbert.load(folder, device, choose_dtype(args, folder, device))
    format = find_format(model, args)
    if args.score:
        score(model, folder, format, args)
        return
    if args.as_labels and args.input not in (None, "-"):
        raw_rows = choose_rows(model, format, args)
    elif args.input:
        raw_rows = read_rows(args.input, format)
    else:
        if learned_from_pairs(model) and not args.pair and format.pair_column != "":
            raise InputError("the model learned from pairs of texts: --pair TEXT gives the second")
        raw_rows = rows_of_texts(args.texts, format, args.pair)
    predict(model, raw_rows, format, args)


if __name__ == "__main__":
    run_script(main)
