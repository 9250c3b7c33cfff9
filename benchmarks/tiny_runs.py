"""Small runs that faults.py disturbs: their rows, their encoder, and processes of their own.

A run learns a task of each kind, of which some rows have no label, from texts or from pairs. Its
encoder is a random BERT of two layers. It is a process that is forked off this one, which has
imported everything and computed nothing. So a whole run takes about two seconds.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import configurations

import train
from support.script import run_script

FLAGS = ["--encoder", "../encoder", "--epochs", "2", "--batch-size", "16", "--lr", "1e-3"]
FLAGS += ["--out", "run"]
KINDS_OF_RUNS = {
    "texts": ["--data", "../texts.json"],
    "texts, a snapshot every 3 steps": ["--data", "../texts.json", "--save-every", "3"],
    "pairs, a snapshot every 4 steps": ["--data", "../pairs.json", "--save-every", "4"],
}
MOST_SECONDS = 10  # that anything may take beyond what is usual


def import_everything():
    """Once here, and not in each run."""
    for module in ("transformers", "sklearn.metrics", "scipy.optimize", "matplotlib.figure"):
        importlib.import_module(module)
    configurations.import_modules(["bert", "albert"])


def write_inputs(parent):
    """texts.json, pairs.json and a random encoder, in the folder in which the runs' folders are."""
    sample = json.loads(train.SAMPLE.read_text("utf-8"))
    texts = {}
    pairs = {}
    for split in ("train", "validation", "test"):
        texts[split] = []
        pairs[split] = []
        rows = sample[split][::8]
        if split == "validation":
            rows = sample[split][::2]  # with fewer than 30 labels nothing would be calibrated
        for number, row in enumerate(rows):
            values = {"text": row["text"]} | make_labels(row, number)
            texts[split].append(values)
            pairs[split].append(values | {"text_pair": rows[number - 1]["text"]})
    (parent / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    (parent / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    outcome = configurations.in_child(make_encoder, parent / "encoder")
    if not (parent / "encoder").is_dir():
        raise RuntimeError(f"there is no encoder: {outcome.what}")


def make_labels(row, number):
    """A class, any number of labels and a number for a text; here and there one is missing."""
    labels = {}
    if number % 3 != 0:
        labels["sentiment"] = row["sentiment"]
    if number % 4 != 0:
        words = row["text"].lower().split()
        labels["words"] = [word for word in ("the", "a", "and") if word in words]
    if number % 5 != 0 or not labels:
        labels["length"] = len(row["text"]) / 10
    return labels


def make_encoder(folder):
    configurations.make_checkpoint(folder, "bert")
    return 0


# --------------------------------------------------------------------------------------------------
# Processes


def start(folder, argv, before=None, after=None, script=train, output="output"):
    """Fork a process that runs `script` in `folder` with the flags `argv` -> its id.

    before() and after() are called in it. It prints into the file `output`.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid > 0:
        return pid
    status = 99
    try:
        os.chdir(folder)
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = [f"{script.__name__}.py", *argv]
        if before is not None:
            before()
        run_script(script.main)
        if after is not None:
            after()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid, seconds):
    """The exit status of a process, negative where a signal ended it.

    None where it did not end within `seconds` and was killed.
    """
    end = time.time() + seconds
    while time.time() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def is_one_line(folder, script=train, output="output"):
    """Whether a process that ended with status 2 said why, in one line, and shows no traceback."""
    text = (folder / output).read_text()
    lines = text.splitlines() or [""]
    return lines[-1].startswith(f"{script.__name__}.py: error: ") and "Traceback" not in text


def start_or_resume(folder, flags, before=None, after=None):
    if (folder / "run/config.json").exists():
        flags = ["--resume", "run"]
    return start(folder, flags, before, after)


@dataclass
class Undisturbed:
    """A run that nothing befell, to compare with."""

    flags: list
    folder: Path
    seconds: float  # of its whole life
    result: dict

    @property
    def limit(self):
        """The seconds after which such a run hangs; the machine may have other work to do."""
        return 2 * self.seconds + MOST_SECONDS


def run_undisturbed(folder, flags, before=None, after=None):
    folder.mkdir()
    begin = time.time()
    status = wait(start(folder, flags, before, after), 600)
    if status != 0:
        raise RuntimeError(f"an undisturbed run failed: {(folder / 'output').read_text()}")
    return Undisturbed(flags, folder, time.time() - begin, read_result(folder))


def read_result(folder):
    """All files of a finished run, but for the times in metrics.json."""
    files = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    found = json.loads(files["metrics.json"])
    del found["train_seconds"], found["examples_per_second"]
    files["metrics.json"] = found
    return files


def ends_as(folder, whole):
    """Whether the run in `folder`, started again, ends in time with the files of another one.

    A finished one clears away what a kill left. What is wrong is printed.
    """
    status = wait(start_or_resume(folder, whole.flags), whole.limit)
    if status != 0:
        print(f"its end has the status {status}: {(folder / 'output').read_text()}", flush=True)
        return False
    return is_equal(read_result(folder), whole.result)


def is_equal(files, expected):
    """Whether both are the same files; says which are not."""
    different = []
    for name in sorted(files.keys() | expected.keys()):
        if files.get(name) != expected.get(name):
            different.append(name)
    if different:
        print(f"different: {', '.join(different)}", flush=True)
    return not different
