"""How much memory a process takes that loads and predicts for a long time.

python benchmarks/memory.py                       # a run on the sample is made first
python benchmarks/memory.py --run runs/shared-1 --dtypes float32 --parts loads --loads 300
python benchmarks/memory.py --dtypes bfloat16 --parts predictions --predictions 20000

Parts: "loads" loads a model, predicts a text and lets the model go, again and again; "predictions"
predicts single texts of changing lengths, as a server does. After each tenth the memory that the
process has (its resident set) is printed. It is level if the highest of the second half is at most
2 % above that of the first: a model's copies come and go. Each dtype and part is a process of its
own. int8 on a CPU without VNNI is slow, and is only measured where --dtypes names it.
"""

import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mtbert
import train
from support import cpu
from support.script import Parser, number, run_script

DTYPES = ("float32", "bfloat16", "int8")
MOST_WORDS = 250
MOST_GROWTH = 0.02  # of the highest of the first half
WORDS = "the film is long and its second half never finds a story that one would want to hear"


def resident():
    """The memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def make_text(rng):
    """A text of 1 to MOST_WORDS words: as many have 1 to 5 as 5 to 25, or 50 to 250."""
    num_words = round(MOST_WORDS ** rng.random())
    return " ".join(rng.choice(WORDS.split()) for _ in range(num_words))


def load_often(folder, dtype, rng):
    """A function that loads a model, predicts with it, and lets it go.

    Always the same text: what oneDNN keeps for each length is a matter of the other part.
    """
    text = make_text(rng)

    def turn():
        model = mtbert.load(folder, dtype=dtype)
        mtbert.predict(model, [text])
        del model
        gc.collect()

    return turn


def predict_often(folder, dtype, rng):
    """A function that predicts a single text."""
    model = mtbert.load(folder, dtype=dtype)

    def turn():
        mtbert.predict(model, [make_text(rng)])

    return turn


PARTS = {"loads": load_often, "predictions": predict_often}


def measure(folder, part, dtype, count, seed):
    """Print the memory after each tenth of `count` turns, and whether it is level."""
    os.environ["MTBERT_ARITHMETIC"] = dtype  # int8 also without VNNI
    begin = time.time()
    sizes = [resident()]
    rng = Random(seed)
    turn = PARTS[part](folder, dtype, rng)
    done = 0
    for tenth in range(1, 11):
        while done < count * tenth // 10:
            turn()
            done += 1
        sizes.append(resident())
    highest = max(sizes[1:6])  # of the first half
    growth = max(sizes[6:]) - highest
    verdict = "grows"
    if growth <= MOST_GROWTH * highest:
        verdict = "level"
    shown = " ".join(f"{size:.0f}" for size in sizes)
    print(f"{dtype:9} {count:6} {part:12} MiB: {shown}", flush=True)
    seconds = time.time() - begin
    print(f"{'':9} highest of the second half: {growth:+.1f} MiB, {verdict}; {seconds:.0f} s")


def make_run(folder):
    """A run of the default encoder on the sample, trained for a few steps."""
    argv = ["--epochs", "1", "--batch-size", "256", "--max-length", "64", "--out", str(folder)]
    train.main(argv)


def main():
    parser = Parser(description="Measure the memory of a process that loads or predicts for long.")
    count = number(int, 10)
    flag = parser.add_argument
    flag("--run", metavar="FOLDER", help="a finished run (default: a short one is made)")
    flag("--dtypes", nargs="+", choices=DTYPES, help="(default: those that the CPU has)")
    flag("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: both)")
    flag("--loads", type=count, default=300, metavar="N", help="(default: %(default)s)")
    flag("--predictions", type=count, default=20000, metavar="N", help="(default: %(default)s)")
    flag("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    dtypes = args.dtypes
    if dtypes is None:
        dtypes = [dtype for dtype in DTYPES if dtype != "int8" or cpu.has_int8()]
    if args.run is not None and len(dtypes) == len(args.parts) == 1:
        measure(args.run, args.parts[0], dtypes[0], getattr(args, args.parts[0]), args.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = args.run
        if run is None:
            run = f"{folder}/run"
            make_run(run)
            print(flush=True)
        for dtype in dtypes:
            for part in args.parts:
                command = [sys.executable, __file__, "--run", run, "--parts", part]
                command += ["--dtypes", dtype, "--seed", str(args.seed)]
                command += [f"--{part}", str(getattr(args, part))]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    run_script(main)
