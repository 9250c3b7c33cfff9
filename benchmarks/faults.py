"""Kill training runs, fail their writes, damage their models, and count what is lost.

python benchmarks/faults.py                # about 20 minutes on two cores
python benchmarks/faults.py --kills 5 --damages 20
python benchmarks/faults.py --kills 0 --configurations 1000 --seed 0     # about 10 minutes

A run learns a task of each kind. It is a process of its own, forked off this one, which has
imported everything and computed nothing. What is left of a run that was killed, or whose write
failed, must go on to the same files, to the bit, as those of a run that nothing befell.
"""

import errno
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"

import safetensors.torch
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import configurations

import mtbert
import train
from support.errors import InputError
from support.script import Parser, number, run_script

for module in ("transformers", "sklearn.metrics", "scipy.optimize", "matplotlib.figure"):
    importlib.import_module(module)  # once, and not in each run

FLAGS = ["--data", "../rows.json", "--epochs", "2", "--batch-size", "16", "--out", "run"]
# Everything through which a run writes or deletes files
WRITING_CALLS = (
    (os, "fsync"),
    (os, "replace"),
    (torch, "save"),
    (safetensors.torch, "save_file"),
    (Path, "write_bytes"),
    (Path, "unlink"),
)
MODEL_FILES = ("config.json", "tokenizer.json", "model.safetensors")
TEXTS = ["great movie", "The score does all the feeling.", "no"]


def write_data(path):
    """An eighth of the sample, with a class, any number of labels, and a number for each text."""
    sample = json.loads(train.SAMPLE.read_text("utf-8"))
    content = {}
    for split in ("train", "validation", "test"):
        content[split] = []
        for row in sample[split][::8]:
            words = row["text"].lower().split()
            values = {"text": row["text"], "sentiment": row["sentiment"]}
            values["words"] = [word for word in ("the", "a", "and") if word in words]
            values["length"] = len(row["text"]) / 10
            content[split].append(values)
    path.write_text(json.dumps(content), encoding="utf-8")


# --------------------------------------------------------------------------------------------------
# Runs


def start(folder, flags, fault=None):
    """Fork a process that runs train.py in `folder`, after fault() -> its id."""
    pid = os.fork()
    if pid > 0:
        return pid
    try:
        os.chdir(folder)
        with open("output", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.argv = ["train.py", *flags]
        if fault is not None:
            fault()
        run_script(train.main)
        os._exit(0)
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
    os._exit(99)


def start_or_resume(folder, flags):
    if (folder / "run/config.json").exists():
        flags = ["--resume", "run"]
    return start(folder, flags)


def finish(folder, flags):
    """Let the run in `folder` come to its end. A finished one clears away what a kill left."""
    _, status = os.waitpid(start_or_resume(folder, flags), 0)
    if status != 0:
        raise RuntimeError((folder / "output").read_text())


def read_result(folder):
    """All files of a finished run, but for the times in metrics.json."""
    files = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    found = json.loads(files["metrics.json"])
    del found["train_seconds"], found["examples_per_second"]
    files["metrics.json"] = found
    return files


@dataclass
class Undisturbed:
    """A run that nothing befell, to compare with."""

    folder: Path
    seconds: float  # of its whole life
    seconds_after_training: float  # of these, from its saved weights to its end
    result: dict


def run_undisturbed(folder, flags):
    folder.mkdir()
    begin = time.time()
    finish(folder, flags)
    end = time.time()
    saved = (folder / "run/model.safetensors").stat().st_mtime
    return Undisturbed(folder, end - begin, end - saved, read_result(folder))


# --------------------------------------------------------------------------------------------------
# Kills. Each moment is a function of the run's folder, the undisturbed run and a random generator;
# it gives a function that says whether it has come.


def at_any_time(run, undisturbed, rng):
    end = time.time() + rng.uniform(0, undisturbed.seconds)
    return lambda: time.time() > end


def while_writing(run, undisturbed, rng):
    """Soon after the run begins to write one of its next files."""
    left = rng.randint(1, 5)
    former = None

    def is_there():
        nonlocal left, former
        writing = next((path.name for path in run.glob("*.partial")), None)
        if writing is not None and writing != former:
            left -= 1
        former = writing
        if left > 0:
            return False
        time.sleep(rng.uniform(0, 0.1))
        return True

    return is_there


def after_training(run, undisturbed, rng):
    """While the best epoch is saved and tested, and the results are written."""
    begin = time.time()
    delay = rng.uniform(0, undisturbed.seconds_after_training)

    def is_there():
        try:
            saved = (run / "model.safetensors").stat().st_mtime
        except FileNotFoundError:
            return False
        return saved > begin and time.time() > saved + delay

    return is_there


MOMENTS = {
    "SIGKILL at any time": at_any_time,
    "SIGKILL while a file is written": while_writing,
    "SIGKILL between training and the end": after_training,
}


def kill_at(pid, moment_has_come):
    """Kill a process at a moment -> whether that came before the process ended."""
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if moment_has_come():
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            return status == signal.SIGKILL
        time.sleep(0.0005)
    return False


def kill_runs(parent, count, rng):
    """Kill runs `count` times, each again and again -> {moment: [kills, runs lost]}, one run."""
    table = {name: [0, 0] for name in MOMENTS}
    whole = {}
    num_kills = 0
    num_runs = 0
    bar = tqdm(total=count, desc="kills", disable=None)
    while num_kills < count:
        seed = num_runs % 3
        flags = [*FLAGS, "--save-every", "5", "--seed", str(seed)]
        if seed not in whole:
            whole[seed] = run_undisturbed(parent / f"whole-{seed}", flags)
        num_runs += 1
        killed = parent / "killed"
        killed.mkdir()
        moments = []  # at which this run was killed
        while not (killed / "run/metrics.json").exists() and num_kills < count:
            name = list(MOMENTS)[num_kills % len(MOMENTS)]
            pid = start_or_resume(killed, flags)
            moment = MOMENTS[name](killed / "run", whole[seed], rng)
            if not kill_at(pid, moment):
                break
            moments.append(name)
            table[name][0] += 1
            num_kills += 1
            bar.update()
        finish(killed, flags)
        if not is_equal(read_result(killed), whole[seed].result):
            for name in set(moments):
                table[name][1] += 1
        print(f"{num_kills} kills in {num_runs} runs", flush=True)
        shutil.rmtree(killed)
    bar.close()
    return table, whole[0]


def is_equal(files, expected):
    """Whether both are the same files; says which are not."""
    different = []
    for name in sorted(files.keys() | expected.keys()):
        if files.get(name) != expected.get(name):
            different.append(name)
    if different:
        print(f"different: {', '.join(different)}", flush=True)
    return not different


# --------------------------------------------------------------------------------------------------
# Writes that fail


def fail_call(n):
    """Let the n-th call that writes fail, as on a full disk."""
    num_calls = 0

    def failing(function):
        def call(*arguments, **named):
            nonlocal num_calls
            num_calls += 1
            if num_calls == n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **named)

        return call

    for module, name in WRITING_CALLS:
        setattr(module, name, failing(getattr(module, name)))


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def is_lost(folder, flags, fault, expected):
    """Whether a run is lost after fault(); None if the fault never came.

    It is not lost if it ended with one line for the user, and goes on to the expected files. If
    only its picture could not be drawn, it ends well.
    """
    folder.mkdir()
    _, status = os.waitpid(start(folder, flags, fault), 0)
    status = os.waitstatus_to_exitcode(status)
    if status == 0 and (folder / "run/report.png").exists():
        shutil.rmtree(folder)
        return None
    output = (folder / "output").read_text()
    is_clear = status == 0
    if status == 2:
        is_clear = output.splitlines()[-1].startswith("train.py: error: ")
    finish(folder, flags)
    survived = is_clear and is_equal(read_result(folder), expected)
    if not survived:
        print(f"{folder.name}: {output}", flush=True)
    shutil.rmtree(folder)
    return not survived


def fail_writes(parent, flags, expected, rng):
    """Fail each writing call in turn, then writes beyond random sizes -> {fault: [tried, lost]}."""
    table = {"a writing call fails: no space left": [0, 0], "a limit of the file size": [0, 0]}
    calls, limits = table.values()
    with tqdm(desc="failed calls", disable=None) as bar:
        while True:
            n = calls[0] + 1
            lost = is_lost(parent / f"call-{n}", flags, partial(fail_call, n), expected)
            if lost is None:
                break
            calls[0] += 1
            calls[1] += lost
            bar.update()
    for _ in tqdm(range(12), "limits", disable=None):
        size = int(10 ** rng.uniform(4, 8.5))
        lost = is_lost(parent / f"limit-{size}", flags, partial(limit_file_size, size), expected)
        if lost is not None:
            limits[0] += 1
            limits[1] += lost
    return table


# --------------------------------------------------------------------------------------------------
# Damaged models


def flip_bit(path, other, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, other, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def leave_out(path, other, rng):
    path.unlink()


def exchange(path, other, rng):
    shutil.copy(other / path.name, path)


DAMAGES = {
    "a bit flipped": flip_bit,
    "a file truncated": truncate,
    "a file missing": leave_out,
    "a file of another model": exchange,
}


def damage_models(parent, folder, other, count, rng):
    """-> {damage: [tried, lost, refused]} over `count` damaged copies of the model in `folder`.

    Lost is a model that predicts something else, or fails without a message for the user.
    """
    expected = mtbert.predict(mtbert.load(folder), TEXTS)
    table = {name: [0, 0, 0] for name in DAMAGES}
    copy = parent / "copy"
    for i in tqdm(range(count), "damages", disable=None):
        name = list(DAMAGES)[i % len(DAMAGES)]
        path = copy / MODEL_FILES[i // len(DAMAGES) % len(MODEL_FILES)]
        shutil.copytree(folder, copy, copy_function=os.link)
        path.unlink()  # it is a link to the original
        shutil.copy(folder / path.name, path)
        DAMAGES[name](path, other, rng)
        entry = table[name]
        entry[0] += 1
        try:
            entry[1] += mtbert.predict(mtbert.load(copy), TEXTS) != expected
        except InputError:
            entry[2] += 1
        except Exception as error:
            print(f"{name}, {path.name}: {error!r}", flush=True)
            entry[1] += 1
        shutil.rmtree(copy)
    return table


def print_table(kills, failures, damages):
    print(f"\n{'fault':50}{'tried':>8}{'lost':>8}")
    for name, (tried, lost) in (kills | failures).items():
        print(f"{name:50}{tried:8}{lost:8}")
    for name, (tried, lost, refused) in damages.items():
        words = f"model: {name} ({refused} refused)"
        print(f"{words:50}{tried:8}{lost:8}")


def main():
    parser = Parser(description="Kill runs, fail writes, damage models, and count what is lost.")
    count = number(int, 0)
    parser.add_argument("--kills", type=count, default=100, help="(default: %(default)s)")
    parser.add_argument("--damages", type=count, default=1000, help="(default: %(default)s)")
    parser.add_argument(
        "--configurations", type=count, default=0, help="hostile ones (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    rng = Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder)
        if args.configurations > 0:
            table = configurations.try_configurations(parent, args.configurations, rng)
            configurations.print_outcomes(table)
        if args.kills == 0:
            return
        write_data(parent / "rows.json")
        kills, whole = kill_runs(parent, args.kills, rng)
        flags = [*FLAGS, "--seed", "3"]
        other = run_undisturbed(parent / "other", flags)
        failures = fail_writes(parent, flags, other.result, rng)
        run = whole.folder / "run"
        damages = damage_models(parent, run, other.folder / "run", args.damages, rng)
    print_table(kills, failures, damages)


if __name__ == "__main__":
    run_script(main)
