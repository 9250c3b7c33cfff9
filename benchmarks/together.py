"""Several at work at once: threads and forks with one model, two runs on one folder, two
predictions into one file, and runs that go on with another number of processes.

Parts of faults.py, which says how often. Each function takes a folder in which the inputs of
tiny_runs.py are, the number of tries, and a random generator; it returns {what: [tried, broken]}.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import configurations
import safetensors.torch
import torch
from tiny_runs import (
    FLAGS,
    KINDS_OF_RUNS,
    MOST_SECONDS,
    ends_as,
    is_one_line,
    run_undisturbed,
    start,
    wait,
)
from tqdm import tqdm

import mtbert
import predict

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["great movie", "a", "long and thin " * 9, "the end was good"]
DTYPES = ("float32", "bfloat16", "int8")
CLOSE = 1e-4  # probabilities and weights of other numbers of threads or processes


# --------------------------------------------------------------------------------------------------
# Threads and forks. Each try is a process of its own, since what computes cannot be forked.


def make_runs(parent):
    """The folders of a run that mtbert computes, and of one that transformers computes."""
    native = run_undisturbed(parent / "native", [*FLAGS, *KINDS_OF_RUNS["texts"]]).folder / "run"
    configurations.in_child(make_albert, parent)
    return [native, parent / "albert-run"]


def make_albert(parent):
    configurations.make_checkpoint(parent / "albert", "albert")
    configurations.make_run(parent / "albert-run", parent / "albert")
    return 0


def share_models(parent, count, rng):
    """Eight threads predict with one model, and eight load and predict, in each arithmetic."""
    folders = make_runs(parent)
    table = {}
    for i in tqdm(range(count), "threads", disable=None):
        folder = folders[i % 2]
        dtype = DTYPES[i // 2 % 3]
        if dtype == "int8" and folder == folders[1]:
            dtype = "float32"  # what transformers computes is never in int8
        entry = table.setdefault(f"8 threads with a model, {dtype}", [0, 0])
        entry[0] += 1
        pid = fork_to(use_threads, folder, dtype, rng.randrange(2**32))
        entry[1] += wait(pid, 60 + MOST_SECONDS) != 0
    return table


def fork_to(function, *arguments):
    """Fork a process that calls a function -> its id. It ends with 0 where this returns true."""
    sys.stdout.flush()
    pid = os.fork()
    if pid > 0:
        return pid
    status = 1
    try:
        status = 0 if function(*arguments) else 1
    except BaseException as error:
        print(f"broken: {function.__name__}{arguments}: {error!r}", flush=True)
    finally:
        os._exit(status)


def use_threads(folder, dtype, seed):
    os.environ["MTBERT_ARITHMETIC"] = dtype
    model = mtbert.load(folder, dtype=dtype)
    calls = [[text, *TEXTS] for text in TEXTS] * 5
    expected = [mtbert.predict(model, texts) for texts in calls]

    def with_the_same(texts):
        return mtbert.predict(model, texts)

    def with_its_own(texts):
        return mtbert.predict(mtbert.load(folder, dtype=dtype), texts)

    torch.manual_seed(seed)
    with ThreadPoolExecutor(8) as pool:
        same = pool.map(with_the_same, calls)
        own = pool.map(with_its_own, calls[: len(TEXTS)])
        return list(same) == expected and list(own) == expected[: len(TEXTS)]


def fork_with_models(parent, count, rng):
    """Processes forked off one that has loaded a model, before and after it has predicted."""
    table = {}
    rounds = 10
    for folder in make_runs(parent):
        for has_predicted in (False, True):
            when = "after" if has_predicted else "before"
            what = f"a process forked {when} the first prediction, {folder.parent.name}"
            if folder.name == "albert-run":
                what = f"a process forked {when} the first prediction, of transformers"
            num_forks = count // 4
            result = parent / "broken.json"
            pid = fork_to(fork_predictions, folder, has_predicted, num_forks, result)
            status = wait(pid, rounds * MOST_SECONDS + num_forks)
            broken = num_forks
            if status == 0:
                broken = json.loads(result.read_text())
            table[what] = [num_forks, broken]
    return table


def fork_predictions(folder, has_predicted, count, result):
    """Write to `result` how many of `count` forks failed. Two threads compute in this process."""
    torch.set_num_threads(2)
    model = mtbert.load(folder, dtype="float32")
    expected = []
    if has_predicted:
        expected = mtbert.predict(model, TEXTS * 10)
    broken = 0
    for _ in range(count):
        pid = fork_to(predicts_the_same, model, expected)
        broken += wait(pid, MOST_SECONDS) != 0
    result.write_text(json.dumps(broken))
    return True


def predicts_the_same(model, expected):
    """Whether a fork predicts what its parent did, where that has predicted."""
    found = mtbert.predict(model, TEXTS * 10)
    if not expected:
        return len(found) == len(TEXTS) * 10
    return all(is_close(row, other) for row, other in zip(found, expected, strict=True))


def is_close(value, other):
    """Whether two predictions are the same, but for rounding errors in their numbers."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(is_close(value[k], other[k]) for k in value)
    if isinstance(value, float):
        return abs(value - other) <= CLOSE * max(1, abs(other))
    return value == other


# --------------------------------------------------------------------------------------------------
# Two on one folder or file


def share_folders(parent, count, rng):
    """Two runs begin in one folder, or go on in it, the second a little after the first."""
    flags = [*FLAGS, *KINDS_OF_RUNS["texts, a snapshot every 3 steps"], "--seed", "4"]
    begun = run_undisturbed(parent / "begun", flags)
    continued = run_undisturbed(parent / "continued", [*flags, "--continue"])
    table = {"two runs begin in one folder": [0, 0], "two go on with one run": [0, 0]}
    table["two with --continue in one folder"] = [0, 0]
    for i in tqdm(range(count), "folders", disable=None):
        what = list(table)[i % 3]
        folder = parent / "shared"
        folder.mkdir()
        whole = begun
        argv = flags
        if what == "two go on with one run":
            stop_on_the_way(folder, whole, rng)
            argv = ["--resume", "run"]
        elif what == "two with --continue in one folder":
            whole = continued
            argv = whole.flags
        pids = []
        for n in range(2):
            pids.append(start(folder, argv, output=f"output-{n}"))
            time.sleep(rng.choice([0, rng.uniform(0, 0.1), rng.uniform(0, whole.seconds)]))
        statuses = [wait(pid, 2 * whole.limit) for pid in pids]
        is_whole = sorted(statuses, key=str) in ([0, 2], [0, 0])
        for n in range(2):
            if statuses[n] == 2:
                is_whole = is_whole and is_one_line(folder, output=f"output-{n}")
        if what == "two runs begin in one folder":
            is_whole = is_whole and 2 in statuses
        is_whole = ends_as(folder, whole) and is_whole
        table[what][0] += 1
        table[what][1] += not is_whole
        if not is_whole:
            print(f"broken: {what}: {statuses}", flush=True)
            for n in range(2):
                print((folder / f"output-{n}").read_text(), flush=True)
        shutil.rmtree(folder)
    return table


def stop_on_the_way(folder, whole, rng):
    """Begin a run like `whole`, and stop it by a signal while it trains."""
    pid = start(folder, whole.flags)
    while not (folder / "run/snapshot.json").exists():
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError(f"it did not begin: {(folder / 'output').read_text()}")
        time.sleep(0.002)
    os.kill(pid, rng.choice([signal.SIGTERM, signal.SIGKILL]))
    wait(pid, whole.limit)


def share_outputs(parent, count, rng):
    """Two predictions into one file, the second a little after the first."""
    run = run_undisturbed(parent / "model", [*FLAGS, *KINDS_OF_RUNS["texts"]])
    lines = []
    for number in range(2000):
        lines.append(f"film {number} is " + "so " * rng.randint(0, 20) + "good")
    (run.folder / "input.txt").write_text("\n".join(lines))
    argv = ["--model", "run", "--input", "input.txt", "--output", "found.jsonl"]
    found = run.folder / "found.jsonl"
    begin = time.time()
    if wait(start(run.folder, argv, script=predict), 600) != 0:
        raise RuntimeError((run.folder / "output").read_text())
    seconds = time.time() - begin
    expected = found.read_bytes()
    names = sorted(path.name for path in run.folder.iterdir())
    names += ["output-0", "output-1"]
    what = "two predictions into one file"
    table = {what: [0, 0]}
    for _ in tqdm(range(count), "outputs", disable=None):
        found.unlink()
        pids = []
        for n in range(2):
            pids.append(start(run.folder, argv, script=predict, output=f"output-{n}"))
            time.sleep(rng.choice([0, rng.uniform(0, 0.1), rng.uniform(0, seconds)]))
        statuses = [wait(pid, 4 * seconds + MOST_SECONDS) for pid in pids]
        is_whole = sorted(statuses, key=str) in ([0, 2], [0, 0])
        for n in range(2):
            if statuses[n] == 2:
                is_whole = is_whole and is_one_line(run.folder, predict, f"output-{n}")
        is_whole = is_whole and found.read_bytes() == expected
        is_whole = is_whole and sorted(path.name for path in run.folder.iterdir()) == sorted(names)
        table[what][0] += 1
        table[what][1] += not is_whole
        if not is_whole:
            print(f"broken: {what}: {statuses}", flush=True)
            for n in range(2):
                print((run.folder / f"output-{n}").read_text(), flush=True)
    return table


# --------------------------------------------------------------------------------------------------
# Another number of processes


def change_processes(parent, count, rng):
    """A run begun by one process goes on with two, and one begun by two goes on with one.

    Without dropout, whose random numbers differ, it ends with the same weights but for rounding.
    """
    flags = [*FLAGS, *KINDS_OF_RUNS["texts, a snapshot every 3 steps"], "--dropout", "0"]
    whole = run_undisturbed(parent / "whole", flags)
    table = {"a run of one process goes on with two": [0, 0]}
    table["a run of two processes goes on with one"] = [0, 0]
    for i in tqdm(range(count), "processes", disable=None):
        what = list(table)[i % 2]
        folder = parent / "changing"
        folder.mkdir()
        if i % 2 == 0:
            stop_on_the_way(folder, whole, rng)
            status = launch(folder, ["--resume", "run"], None)
        else:
            launch(folder, flags, folder / "run/snapshot.json")
            status = wait(start(folder, ["--resume", "run"]), whole.limit)
        output = (folder / "output").read_text()
        is_whole = status == 0 and "Traceback" not in output and "will not repeat" in output
        is_whole = is_whole and have_same_end(folder / "run", whole.folder / "run")
        table[what][0] += 1
        table[what][1] += not is_whole
        if not is_whole:
            print(f"broken: {what}: {status}: {output}", flush=True)
        shutil.rmtree(folder)
    return table


def launch(folder, flags, stop_when):
    """train.py in two processes by torchrun -> its status; stopped once the file stop_when is."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(ROOT / "train.py"), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
    end = time.time() + 120
    while process.poll() is None and time.time() < end:
        if stop_when is not None and stop_when.exists():
            process.send_signal(signal.SIGTERM)
            stop_when = None
        time.sleep(0.002)
    if process.poll() is None:
        process.kill()
        return None
    return process.returncode


def have_same_end(folder, other):
    """Whether two finished runs have the same files, and weights that differ by CLOSE at most."""
    names = sorted(path.name for path in folder.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        print(f"it left {names}", flush=True)
        return False
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    others = safetensors.torch.load_file(other / "model.safetensors")
    largest = 0.0
    for name, tensor in weights.items():
        largest = max(largest, (tensor - others[name]).abs().max().item())
    if largest > CLOSE:
        print(f"the weights differ by {largest}", flush=True)
    return largest <= CLOSE
