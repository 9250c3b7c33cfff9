"""Where the time of a small run goes, from the start of its process to its end.

python benchmarks/phases.py                      # the first command, and a run of 60 rows
python benchmarks/phases.py --rows 60 --flags --epochs 3 --head-init random

Each run is a process of its own (clocks.py), which calls train.main with clocks around functions.
The product knows nothing of them. A function that is gone is an error; a phase none of whose
functions was called has a "-".
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clocks import HERE, HOOKS, IMPORTS, REST, STEPS

sys.path.insert(0, str(HERE))

from support.errors import InputError
from support.script import Parser, number, run_script

CLOCKS = Path(__file__).with_name("clocks.py")
PYTHON = "Python's start and end"
MAY_BE_LONG = {IMPORTS, STEPS, "evaluation"}
MOST = 0.05  # the share of the time that any other phase should have at most


def measure(argv, folder):
    """{phase: seconds} of a run with the flags `argv`, which is kept in a new folder."""
    folder.mkdir()
    record = folder / "seconds.json"
    command = [sys.executable, CLOCKS, record, *argv, "--out", folder / "run"]
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True)
    whole = time.perf_counter() - begin
    if done.returncode != 0:
        reason = (done.stderr.strip() or "killed").splitlines()[-1]
        raise InputError(f"the run that was measured failed: {reason}")
    seconds = json.loads(record.read_text("utf-8"))
    seconds[PYTHON] = whole - sum(seconds.values())
    return seconds


def write_rows(path, num_rows):
    """Write a part of the sample: `num_rows` training rows, and half as many test rows."""
    sample = json.loads((HERE / "sample_data.json").read_text("utf-8"))
    part = {"label_names": sample["label_names"]}
    for split, size in (("train", num_rows), ("test", num_rows // 2)):
        rows = sample[split]
        if size > len(rows):
            raise InputError(f"--rows {num_rows}: the sample has {len(rows)} {split} rows")
        every = len(rows) // size
        part[split] = rows[::every][:size]
    path.write_text(json.dumps(part), encoding="utf-8")


def print_table(runs):
    """A Markdown table of {name: {phase: seconds}}, and the phases that are too long."""
    titles = []
    wholes = []
    for name, seconds in runs.items():
        titles += [f"{name}, s", "share"]
        wholes.append(f"{sum(seconds.values()):.2f} | 100 %")
    print(f"| | {' | '.join(titles)} |")
    print(f"|---|{'---|' * len(titles)}")
    for phase in (*HOOKS, REST, PYTHON):
        cells = []
        for seconds in runs.values():
            if phase in seconds:
                share = 100 * seconds[phase] / sum(seconds.values())
                cells.append(f"{seconds[phase]:.2f} | {share:.1f} %")
            else:
                cells.append("- | -")
        print(f"| {phase} | {' | '.join(cells)} |")
    print(f"| whole process | {' | '.join(wholes)} |\n")
    for name, seconds in runs.items():
        found = ", ".join(too_long(seconds)) or "nothing but what may be"
        print(f"{name}: longer than {MOST:.0%} of the time: {found}")


def too_long(seconds):
    """The phases that take more than MOST of the time, but for MAY_BE_LONG."""
    most = MOST * sum(seconds.values())
    return [phase for phase in seconds if phase not in MAY_BE_LONG and seconds[phase] > most]


def main():
    parser = Parser(description="Where the time of a small run goes, from its start to its end.")
    rows = {"nargs": "+", "type": number(int, 20), "metavar": "N"}
    rows_help = "training rows of each run (default: the first command, and 60 rows)"
    parser.add_argument("--rows", **rows, help=rows_help)
    flags_help = "all that follows: flags of train.py"
    parser.add_argument("--flags", nargs="...", default=[], help=flags_help)
    args = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.rows is None:
            argv = ["--variant", "shared", *args.flags]
            runs["the first command"] = measure(argv, folder / "first")
        for num_rows in args.rows or [60]:
            rows_file = folder / f"{num_rows}.json"
            write_rows(rows_file, num_rows)
            argv = ["--data", rows_file, *args.flags]
            runs[f"{num_rows} rows"] = measure(argv, folder / f"run-{num_rows}")
    print_table(runs)


if __name__ == "__main__":
    run_script(main)
