"""Properties of runs.py: what is stopped, killed, or short of disk loses nothing; several processes do what one does.

And the rooms of this codebase: imports run one way, and do nothing else.
"""

import ast
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import mtbert
import runs
from conftest import ROOT, train_tiny
from data import InputError

# ---------------------------------------------------------------------------------------------------------------------
# A run that is stopped ends as one that is not


def equal(one, other):
    """Whether two state dicts are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_in_every_step_ends_with_the_weights_and_log_of_an_undisturbed_one(
    tiny, tmp_path, monkeypatch, number
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    undisturbed, collate, stops = train_tiny(tiny, whole, "--lr", "1e-3"), mtbert.collate, []
    monkeypatch.setattr(mtbert, "collate", lambda *a: (os.kill(os.getpid(), number), collate(*a))[1])
    while True:
        try:
            disturbed = train_tiny(tiny, stopped, "--lr", "1e-3")
            break
        except KeyboardInterrupt as stop:
            status, how = stop.args
            assert status == 128 + number and how.endswith(f"go on with: python train.py --resume {stopped}")
            stops.append(int(re.search(r"after step (\d+)", how)[1]))
    assert stops == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12]  # and in both evaluations
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert equal(disturbed.weights, undisturbed.weights) and equal(disturbed.best, undisturbed.best)
    assert (whole / "log.jsonl").read_bytes() == (stopped / "log.jsonl").read_bytes()
    assert len(list(stopped.glob("*.pt"))) == 1


def test_a_second_signal_stops_at_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(mtbert, "collate", lambda *a: [os.kill(os.getpid(), signal.SIGINT) for _ in "12"])
    with pytest.raises(KeyboardInterrupt) as stop:
        train_tiny(tiny, tmp_path / "a")
    assert stop.value.args == (130, "interrupted") and not (tmp_path / "a/snapshot.json").exists()


def test_a_write_that_fails_at_any_point_loses_nothing(tiny, tmp_path, monkeypatch):
    best = train_tiny(tiny, tmp_path / "whole").best
    writing = ((os, "fsync"), (os, "replace"), (torch, "save"), (Path, "write_bytes"), (Path, "unlink"))
    failures, calls = 0, Counter()

    def failing(function):
        def call(*arguments, **named):
            calls["all"] += 1
            if calls["all"] == failures + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **named)

        return call

    for _ in range(100):
        calls.clear()
        with monkeypatch.context() as patch:
            for where, name in writing:
                patch.setattr(where, name, failing(getattr(where, name)))
            try:
                train_tiny(tiny, tmp_path / str(failures))
                break
            except (InputError, OSError) as error:
                assert "No space left" in str(error)
        assert not list((tmp_path / str(failures)).glob("*.partial"))
        assert equal(train_tiny(tiny, tmp_path / str(failures)).best, best), failures
        logs = [(tmp_path / folder / "log.jsonl").read_bytes() for folder in ("whole", str(failures))]
        assert logs[0] == logs[1], failures
        failures += 1
    assert failures >= 12  # two snapshots, of six calls each and more


def run_files(folder):
    """What must be equal in two runs: all but the times, and which torchrun began it."""
    metrics, config = json.loads((folder / "metrics.json").read_text()), runs.read_record(folder / "config.json")
    names = ("tokenizer.json", "model.safetensors", "log.jsonl")
    contents = [(folder / name).read_bytes() for name in names]
    return [metrics["validation"], metrics["test"], config | {"launcher": None}, *contents]


def test_a_killed_run_resumes_to_the_same_files_and_guards_its_flags_and_data(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,a\n" + "".join(f"film {i} {'so ' * (i % 9)},{'xy'[i % 2]}\n" for i in range(90)))
    Path("test.csv").write_text("text,a\none,x\nanother,y\n")
    flags = ["--data", "rows.csv", "--test", "test.csv", "--encoder", tiny, "--save-every", "2", "--batch-size", "4"]
    assert script("train.py", *flags, "--out", "run")[0] == 0
    whole = run_files(Path("run"))
    Path("run").rename("whole")
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *flags, "--out", "run"], stdout=subprocess.DEVNULL)
    log = Path("run/log.jsonl")
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 33):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("run/metrics.json").exists() and Path("run/snapshot.json").exists()

    def refused(message, *arguments):
        status, _, err = script("train.py", *arguments)
        assert status == 2 and message in err and err.count("\n") == 1, err

    Path("run/run.lock").unlink(missing_ok=True)  # of a dead process, and no obstacle: it is seen below
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    refused("--out run is in use", *flags, "--out", "run")
    refused("--lr 0.5 contradicts --lr 0.0001 of the run in run", "--resume", "run", "--lr", "0.5")
    refused("--variant single contradicts --variant shared", "--resume", "run", "--variant", "single")
    refused("nowhere: no run to resume", "--resume", "nowhere")
    with runs.locked("run/run.lock", "run"):
        refused("run: another process is writing there", "--resume", "run")
    rows = Path("rows.csv").read_text()
    Path("rows.csv").write_text(rows + "one more,x\n")
    refused("rows.csv has changed since the run in run began", "--resume", "run")
    Path("rows.csv").write_text(rows)
    status, _, err = script("predict.py", "--model", "run", "great movie")
    assert status == 2 and "its training is not finished; go on with: python train.py --resume run" in err
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before

    for name in ("run.lock", "model.safetensors.partial", ".tmpAbC123"):
        (Path("run") / name).write_text("left by a kill")
    status, _, err = script("train.py", "--resume", "run", "--save-every", "2")
    assert status == 0 and not err.strip()
    assert run_files(Path("run")) == whole
    assert {path.name for path in Path("run").iterdir()} == {path.name for path in Path("whole").iterdir()}
    assert script("train.py", "--resume", "run") == (0, "the run in run is finished\n", "")


# ---------------------------------------------------------------------------------------------------------------------
# Several processes do what one does

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

GRADIENTS = """
import sys, torch
from pathlib import Path
import arithmetic, conftest, runs
gradients, clip = [], arithmetic.clip_gradients
def record(optimizer, limit):
    gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])
    return clip(optimizer, limit)
arithmetic.clip_gradients = record
runs.join_processes(torch.device("cpu"))
tiny, folder = map(Path, sys.argv[1:])
conftest.train_tiny(tiny, folder, "--dropout", "0", "--batch-size", "3", "--lr", "0")
torch.save(gradients, folder / f"gradients-{runs.processes()[0]}.pt")
"""


def test_gradients_of_two_processes_equal_those_of_one(tiny, tmp_path):
    """Labels of a task are often in one process's share only, and the last batch, of one row, leaves one without."""
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command, name in (([sys.executable], "one"), (TORCHRUN, "two")):
        command = [*command, tmp_path / "gradients.py", tiny, tmp_path / name]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    names = ("one/gradients-0.pt", "two/gradients-0.pt", "two/gradients-1.pt")
    one, zero, other = (torch.load(tmp_path / name) for name in names)
    assert len(one) == 16
    for step in range(16):
        for expected, *found in zip(one[step], zero[step], other[step], strict=True):
            for gradient in found:
                torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    for lines in zip(*logs, strict=True):
        ours, theirs = map(json.loads, lines)
        assert ours.get("loss") == pytest.approx(theirs.get("loss"), abs=1e-6)
        assert ours.get("validation") == theirs.get("validation")


def test_torchrun_restarts_a_killed_run_by_itself_and_predicts_as_one_process(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,a\n" + "".join(f"film {i} {'so ' * (i % 9)},{'xy'[i % 2]}\n" for i in range(90)))
    flags = ["--data", "rows.csv", "--encoder", tiny, "--save-every", "2", "--batch-size", "4", "--out", "run"]
    subprocess.run([*TORCHRUN, ROOT / "train.py", *flags], check=True, capture_output=True)
    whole = run_files(Path("run"))
    Path("run").rename("whole")
    process = subprocess.Popen([*TORCHRUN, "--max-restarts=3", ROOT / "train.py", *flags], stdout=subprocess.PIPE)
    log, killed = Path("run/log.jsonl"), 0
    while process.poll() is None and not killed:
        time.sleep(0.002)
        if log.exists() and log.read_bytes().count(b"\n") > 9:
            for path in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    here = os.readlink(path / "cwd") == str(tmp_path)
                    if here and b"RANK=1" in (path / "environ").read_bytes().split(b"\0"):
                        os.kill(int(path.name), signal.SIGKILL)
                        killed += 1
    out = process.communicate(timeout=120)[0].decode()
    assert killed == 1 and process.returncode == 0 and out.count("saved in run") == 1
    assert run_files(Path("run")) == whole

    command = ["--model", "run", "--input", "rows.csv", "--output"]
    assert script("predict.py", *command, "one")[0] == 0
    subprocess.run([*TORCHRUN, ROOT / "predict.py", *command, "two"], check=True, capture_output=True)
    ours, theirs = ([json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("one", "two"))
    assert [row["text"] for row in ours] == [row["text"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        one, other = (row["predictions"]["a"]["probabilities"] for row in (one, other))
        assert one == pytest.approx(other, abs=1e-6)


def test_two_processes_do_not_write_one_output_and_a_full_disk_is_one_line(script, finished, tmp_path):
    output = tmp_path / "out"
    with runs.locked(f"{output}.lock", output):
        status, _, err = script("predict.py", "--model", finished, "great movie", "--output", output)
    assert status == 2 and err == f"predict.py: error: {output}: another process is writing there\n"
    assert script("predict.py", "--model", finished, "great movie", "--output", output)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with open("/dev/full", "w") as full:
        command = [sys.executable, ROOT / "predict.py", "--model", finished, "great movie"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (2, "predict.py: error: No space left on device\n")


# ---------------------------------------------------------------------------------------------------------------------
# The rooms of this codebase

ROOMS = {  # and the others that each may import
    "data": "",
    "metrics": "",
    "runs": "data",
    "checkpoints": "data",
    "arithmetic": "data",
    "mtbert": "data metrics runs checkpoints arithmetic",
    "report": "data metrics runs",
    "predict": "data metrics runs mtbert report",
    "train": "data metrics runs mtbert report",
    "compare": "data metrics runs mtbert report train",
}
WATCH = """
import os, sys
folder, room = sys.argv[1:]
noticed = []

def notice(what):
    frame = sys._getframe(2)
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):  # what libraries do is their own
        if os.path.dirname(frame.f_code.co_filename) == folder:
            return noticed.append(what)
        frame = frame.f_back

def reading(method):
    return lambda *arguments: (notice(f"read {arguments[1:]}"), method(*arguments))[1]

def audit(event, arguments):
    if event.startswith(("open", "os.", "subprocess.", "socket.")):
        notice(f"{event} {arguments}")

os._Environ.__getitem__ = reading(os._Environ.__getitem__)  # which get, in, and os.getenv call as well
os._Environ.__iter__ = reading(os._Environ.__iter__)
sys.addaudithook(audit)  # of files, folders, processes, connections, and changes of the environment
sys.path.insert(0, folder)
__import__(room)
print(noticed)
"""


def import_watched(folder, room):
    """Import a room in a fresh interpreter -> all that is printed, and a list of what it did beside."""
    command = [sys.executable, "-c", WATCH, folder, room]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_reads_and_changes_no_variable_prints_nothing_and_touches_no_file(room):
    assert import_watched(ROOT, room) == "[]\n"


def test_the_watch_on_imports_notices_each_effect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    effects = {
        "os.environ['PATH']": "read ('PATH',)",
        "os.environ.get('A')": "read ('A',)",
        "'B' in os.environ": "read ('B',)",
        "os.getenv('C')": "read ('C',)",
        "list(os.environ)": "read ()",
        "os.environ['D'] = 'd'": "os.putenv (b'D', b'd')",
        "open('e', 'w')": "open ('e', 'w', ",
        "os.mkdir('f')": "os.mkdir ('f', ",
        "print('printed')": "printed\n",
    }
    for effect, noticed in effects.items():
        Path("room.py").write_text(f"import os\n{effect}")
        assert noticed in import_watched(tmp_path, "room")


def test_imports_run_one_way():
    """Those within functions too: data and metrics import none of ours, runs, checkpoints and arithmetic only data."""
    for room, others in ROOMS.items():
        nodes = list(ast.walk(ast.parse((ROOT / f"{room}.py").read_text())))
        names = {part.name for node in nodes if isinstance(node, ast.Import) for part in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert names & ROOMS.keys() <= set(others.split()), room
