"""Time this checkout beside another one, by their command lines: `speed.py --against FOLDER`.

Each measurement is a process of its own, which takes everything from one checkout. Run as a script,
this file is that process: it calls the main of train.py or predict.py again and again, so that what
happens once (imports, kernels that are compiled for a shape) is left out. It never knows what else
is in a checkout, and imports nothing of it at the top.
"""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent.parent
CALLS = 2  # of main in a process; the first is not counted


def call_main(folder, script, out, argv):
    """Call the main of a checkout's script, and print the seconds of the calls that count.

    Those of training are the seconds in steps, as OUT/metrics.json has them.
    """
    sys.path.insert(0, folder)
    module = importlib.import_module(script)
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        module.main(argv)
        seconds.append(time.perf_counter() - start)
        if script == "train":
            metrics = json.loads(Path(out, "metrics.json").read_text("utf-8"))
            seconds[-1] = metrics["train_seconds"]
    print(json.dumps(seconds[1:]))


def run(checkout, *command):
    """Run Python in a checkout -> what it printed, and how long it took."""
    start = time.perf_counter()
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=checkout, text=True, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed in {checkout}:\n{done.stderr}")
    return done.stdout, time.perf_counter() - start


def seconds_of_main(checkout, script, out, argv):
    """The mean seconds of a call of main(argv)."""
    printed, _ = run(checkout, Path(__file__).resolve(), checkout, script, out, *argv)
    return float(np.mean(json.loads(printed.splitlines()[-1])))


def measure_round(checkout, folder, device, dtypes):
    """{what: seconds} of a checkout, which keeps its run in `folder`."""
    out = folder / "run"
    argv = ["--data", folder / "train.jsonl", "--val", folder / "val.jsonl"]
    argv += ["--variant", "single", "--epochs", "1", "--batch-size", "32", "--device", device]
    argv += ["--out", out, "--overwrite"]
    seconds = {"training, an epoch": seconds_of_main(checkout, "train", out, argv)}
    for dtype in dtypes:
        argv = ["--model", out, "--device", device, "--dtype", dtype]
        argv += ["--input", folder / "texts.txt", "--output", folder / "predictions.jsonl"]
        seconds[f"prediction, {dtype}"] = seconds_of_main(checkout, "predict", out, argv)
    command = ["predict.py", "--model", out, "--device", device, "great movie"]
    _, seconds["one sentence, whole process"] = run(checkout, *command)
    return seconds


def measure(other, write_files, device, dtypes, rounds):
    """Measure this checkout and the one in the folder `other` in turn.

    `write_files` writes train.jsonl, val.jsonl and texts.txt to a folder, which it makes.
    -> {what: {"here": [seconds of each round], "there": the same}}
    """
    checkouts = {"here": HERE, "there": Path(other).resolve()}
    folders = {name: write_files(name) for name in checkouts}
    result = {}
    for number in range(rounds):
        for name, checkout in checkouts.items():
            print(f"round {number + 1}/{rounds}, {checkout}", file=sys.stderr)
            measured = measure_round(checkout, folders[name], device, dtypes)
            for what, seconds in measured.items():
                entry = result.setdefault(what, {"here": [], "there": []})
                entry[name].append(seconds)
    return result


def print_result(other, result):
    rounds = len(next(iter(result.values()))["here"])
    print(f"\nmedian seconds of {rounds} rounds, and their ratio to those of {other}")
    print(f"{'':32}{'here':>10}{'there':>10}{'here / there':>15}")
    for what, entry in result.items():
        here = np.median(entry["here"])
        there = np.median(entry["there"])
        print(f"{what:32}{here:10.2f}{there:10.2f}{here / there:15.3f}")


if __name__ == "__main__":
    call_main(*sys.argv[1:4], sys.argv[4:])
