"""Predict all tasks for texts with a trained model.

python predict.py "great movie"
python predict.py --input reviews.csv --output predictions.jsonl
"""

import json
import sys
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

from tqdm import tqdm

import mtbert
import runs
from data import InputError, parse_row, printable, read_rows

WINDOW = 4096  # rows in memory at a time; they are sorted by length


def parse_args():
    parser = runs.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    flag = parser.add_argument
    flag("texts", nargs="*", metavar="TEXT", help="texts to predict")
    flag("--model", metavar="FOLDER", help="a run folder (default: the newest finished one under runs/)")
    flag("--input", metavar="FILE", help=".txt (a text a line), .csv, .tsv, .json, .jsonl, or - for texts on stdin")
    flag("--output", metavar="FILE", help="where to write JSON Lines, as a whole or not at all")
    flag("--json", action="store_true", help="print JSON Lines in place of a table")
    flag("--text-column", default="text", metavar="NAME", help="the key of the text")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 where faster")
    args = parser.parse_args()
    if bool(args.texts) == bool(args.input):
        raise InputError("give texts, or --input FILE; see --help")
    if args.input == "-" and runs.launched().processes > 1:
        raise InputError("standard input cannot be shared out among processes; name a file")
    if args.output and (Path(args.output).is_dir() or not Path(args.output).parent.is_dir()):
        raise InputError(f"--output {args.output} is a folder, or in none that exists; name a file")
    return args


def newest_run():
    found = sorted(Path("runs").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError("no finished run under runs/; train one (python train.py), or name one (--model FOLDER)")
    print(f"model: {found[-1].parent}", file=sys.stderr)
    return found[-1].parent


@contextmanager
def output_file(path):
    """`path`, to be written as a whole or not at all, and by one process at a time."""
    with runs.locked(f"{path}.lock", path), runs.replacing(path) as beside, open(beside, "w") as file:
        yield file


def main():
    args = parse_args()
    runs.join_processes(mtbert.pick_device(args.device))
    rank = runs.processes()[0]
    folder = args.model or runs.from_rank_0(newest_run() if rank == 0 else None)
    model = mtbert.load(folder, args.device, args.dtype)
    if args.input:
        rows = read_rows(args.input)
    else:
        rows = ((f"text {i}", None, {args.text_column: text}) for i, text in enumerate(args.texts, 1))

    as_json, cut = args.json or args.output, 0
    if not args.output or rank > 0:  # beyond rank 0 it goes nowhere
        opened = nullcontext(sys.stdout)
    elif (output := Path(args.output)).is_file() or not output.exists():
        opened = output_file(output.resolve())  # a link stays one
    else:  # a pipe or a device, which cannot be replaced
        opened = open(output, "w")  # noqa: SIM115
    quiet = rank > 0 or (sys.stdout.isatty() and not args.output) or None  # no bar in the midst of a table
    if not as_json:
        print(f"{'text':60}", *(f"{printable(task.name)[:20]:20}" for task in model.tasks))
    with opened as out, tqdm(unit=" rows", disable=quiet) as bar:
        while window := list(islice(rows, WINDOW)):
            parsed = [parse_row(where, row, args.text_column) for where, _, row in window]
            data = mtbert.encode(model.tokenizer, parsed)
            for (_, _, row), predictions in zip(window, mtbert.predict_encoded(model, data), strict=True):
                if as_json:
                    print(json.dumps(row | {"predictions": predictions}), file=out)
                else:
                    text = printable(row[args.text_column])
                    text = text if len(text) <= 60 else text[:57] + "..."
                    print(f"{text:60}", *(f"{printable(mtbert.describe(p))[:20]:20}" for p in predictions.values()))
            cut += data.cut
            bar.update(len(window))
    if cut and rank == 0:
        print(f"{cut} texts are longer than the model's maximum and were cut", file=sys.stderr)


if __name__ == "__main__":
    runs.run_script(main)
