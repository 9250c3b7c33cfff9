"""Runs that are stopped, killed or short of disk, and go on: they end as undisturbed ones.

And several processes do what one does. How support/runs.py does its part is tested in test_runs.py.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, train_tiny

import mtbert
import predict
import train
from support import cpu, processes, runs
from support.errors import InputError

# --------------------------------------------------------------------------------------------------
# A training that is stopped


def equal(one, other):
    """Whether two state dicts are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_stopped_in_every_step_ends_with_the_weights_and_log_of_an_undisturbed_one(
    tiny, tmp_path, monkeypatch
):
    whole = train_tiny(tiny, tmp_path / "whole", "--lr", "1e-3")
    collate = mtbert.collate

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return collate(*arguments)

    monkeypatch.setattr(mtbert, "collate", stopped)
    folder = tmp_path / "stopped"
    stops = []
    disturbed = None
    while disturbed is None:
        try:
            disturbed = train_tiny(tiny, folder, "--lr", "1e-3")
        except KeyboardInterrupt as stop:
            status, message = stop.args
            assert status == 128 + signal.SIGTERM
            assert message.endswith(f"go on with: python train.py --resume {folder}")
            stops.append(int(re.search(r"after step (\d+)", message)[1]))
    assert stops == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12]  # and in both evaluations
    assert equal(disturbed.weights, whole.weights)
    assert equal(disturbed.best, whole.best)
    assert (tmp_path / "whole/log.jsonl").read_bytes() == (folder / "log.jsonl").read_bytes()
    assert len(list(folder.glob("*.pt"))) == 1


def test_a_second_signal_stops_at_once(tiny, tmp_path, monkeypatch):
    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(mtbert, "collate", stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        train_tiny(tiny, tmp_path / "a")
    assert stop.value.args == (130, "interrupted")
    assert not (tmp_path / "a/snapshot.json").exists()


# --------------------------------------------------------------------------------------------------
# A run of each kind of task that ends while it writes its files

FILES = ["model.safetensors", "config.json", "test_predictions.jsonl", "metrics.json", "report.png"]


def write_rows():
    """rows.json, with a class, a list of labels and a number in each row."""
    rows = []
    for i in range(40):
        text = f"film {i} is {['bad', 'good'][i % 2]} " + "so " * (i % 7)
        tags = ["long", "loud", "new"][: i % 4]
        rows.append({"text": text, "liked": "yn"[i % 2], "tags": tags, "stars": i / 4})
    splits = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    Path("rows.json").write_text(json.dumps(splits))


def start(tiny):
    flags = ["--data", "rows.json", "--epochs", "2", "--batch-size", "8", "--out", "run"]
    train.main(["--encoder", str(tiny), *flags, "--save-every", "3"])


def contents(folder):
    """{name: content} of all files of a run, without the times in metrics.json."""
    found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    metrics = json.loads(found["metrics.json"])
    assert metrics.pop("train_seconds") > 0
    assert metrics.pop("examples_per_second") > 0
    found["metrics.json"] = metrics
    return found


@contextmanager
def writing_calls(monkeypatch, action):
    """Call action(name) before each file of FILES takes its place, its content already beside it.

    config.json is also written when a run begins: that one is left alone.
    """
    replacing = runs.replacing

    @contextmanager
    def watched(path):
        path = Path(path)
        with replacing(path) as beside:
            yield beside
            at_the_end = (path.parent / "model.safetensors").exists()
            if path.name in FILES and (at_the_end or path.name != "config.json"):
                action(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "replacing", watched)
        yield


@pytest.fixture(scope="module")
def killed(tiny, tmp_path_factory):
    """A folder with what a kill leaves of the run "run", in NAME/run: just before the file NAME.

    In "whole" it is the finished run; in "snapshots" all is done but to remove the snapshots.
    """
    folder = tmp_path_factory.mktemp("killed")
    remove = runs.remove

    def keep(name):
        (folder / name).mkdir()
        shutil.copytree("run", folder / name / "run")
        shutil.copy("rows.json", folder / name)

    def keep_and_remove(run, *patterns):
        if (run / "report.png").exists():
            keep("snapshots")
        remove(run, *patterns)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        write_rows()
        with writing_calls(patch, keep):
            patch.setattr(runs, "remove", keep_and_remove)
            start(tiny)
        keep("whole")
    return folder


def go_to_copy(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


@pytest.mark.parametrize("name", [*FILES, "snapshots"])
def test_a_run_of_each_kind_of_task_that_is_killed_before_a_file_is_finished_with_the_same_files(
    name, killed, tmp_path, monkeypatch
):
    whole = contents(killed / "whole/run")
    assert whole.keys() == {"log.jsonl", "tokenizer.json", "train_rows.bin", *FILES}
    go_to_copy(killed / name, tmp_path, monkeypatch)
    left = {path.name for path in Path("run").iterdir()}
    assert "run.lock" in left and any(file.startswith("snapshot-") for file in left)
    if name in FILES:
        assert f"{name}.partial" in left
        assert left.issuperset(FILES[: FILES.index(name)])
        assert left.isdisjoint(set(FILES[FILES.index(name) :]) - {"config.json"})
    train.main(["--resume", "run"])
    assert contents("run") == whole


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json"])
def test_a_run_that_is_killed_in_its_first_minute_begins_again(name, killed, tmp_path, monkeypatch):
    """It has no snapshot then, whatever files it has finished."""
    go_to_copy(killed / name, tmp_path, monkeypatch)
    for path in Path("run").glob("snapshot*"):
        path.unlink()
    train.main(["--resume", "run"])
    assert contents("run") == contents(killed / "whole/run")


def test_a_run_on_a_full_disk_names_the_file_and_goes_on(killed, tmp_path, monkeypatch, capsys):
    """At each of its files in turn. Without its picture it is finished, and resume draws it."""
    whole = contents(killed / "whole/run")
    go_to_copy(killed / "model.safetensors", tmp_path, monkeypatch)
    for full in FILES:

        def fail(name, full=full):
            if name == full:
                raise OSError(errno.ENOSPC, "No space left on device")

        with writing_calls(monkeypatch, fail):
            if full == "report.png":
                train.main(["--resume", "run"])
                said = capsys.readouterr().err
            else:
                with pytest.raises((InputError, OSError)) as error:
                    train.main(["--resume", "run"])
                said = f"{error.value} {getattr(error.value, 'filename', '')}"
        assert "No space left on device" in said and f"run/{full}" in said
        assert not list(Path("run").glob("*.partial"))
    assert contents("run") == {name: whole[name] for name in whole if name != "report.png"}
    train.main(["--resume", "run"])
    assert capsys.readouterr().out == "the run in run is finished\n"
    assert contents("run") == whole


def test_a_resume_under_other_versions_warns_and_keeps_what_the_run_began_with(
    killed, tmp_path, monkeypatch, capsys
):
    go_to_copy(killed / "config.json", tmp_path, monkeypatch)
    config = runs.read_record("run/config.json")
    config["versions"]["torch"] = "1.0"
    runs.write_record("run/config.json", config)
    train.main(["--resume", "run"])
    err = capsys.readouterr().err
    assert "the run began with {'torch': '1.0'" in err and "will not repeat to the bit" in err
    assert runs.read_record("run/config.json")["versions"]["torch"] == "1.0"


def test_a_resumed_run_keeps_its_steps_where_another_version_would_choose_others(
    tiny, tmp_path, monkeypatch, signal_at
):
    monkeypatch.chdir(tmp_path)
    write_rows()
    with monkeypatch.context() as patch:
        patch.setattr(mtbert, "default_batch_size", lambda draws, epochs: 6)
        patch.setattr(mtbert, "default_epochs", lambda draws, size: 2)
        signal_at(mtbert, "forward_backward", 5, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            train.main(["--data", "rows.json", "--encoder", str(tiny), "--out", "run"])
    with pytest.raises(InputError, match="--batch-size 8 contradicts --batch-size 6"):
        train.main(["--resume", "run", "--batch-size", "8"])
    train.main(["--resume", "run", "--batch-size", "6"])
    steps = []
    for line in Path("run/log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            steps.append(entry["step"])
    assert steps == list(range(1, 9))  # 24 rows in batches of 6, twice


# --------------------------------------------------------------------------------------------------
# The command line, killed and resumed

FLAGS = ["--data", "rows.csv", "--epochs", "2", "--batch-size", "4"]
FLAGS += ["--save-every", "2", "--out", "run"]


def write_table():
    lines = ["text,a"]
    for i in range(60):
        lines.append(f"film {i} {'so ' * (i % 9)},{'xy'[i % 2]}")
    Path("rows.csv").write_text("\n".join(lines) + "\n")


def run_files(folder):
    """What must be equal in two runs: all but the times, and which torchrun began it."""
    metrics = json.loads((folder / "metrics.json").read_text())
    config = runs.read_record(folder / "config.json")
    del metrics["train_seconds"], metrics["examples_per_second"], config["launcher"]
    names = ("tokenizer.json", "model.safetensors", "log.jsonl", "report.png")
    return [metrics, config, [(folder / name).read_bytes() for name in names]]


def wait_for_log(process, lines):
    """Wait until the run has logged so many lines."""
    log = Path("run/log.jsonl")
    while process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") > lines:
            return
        time.sleep(0.002)
    pytest.fail("the run ended before it was killed")


def test_a_killed_run_resumes_to_the_same_files_and_guards_its_flags_and_data(
    script, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_table()
    Path("test.csv").write_text("text,a\none,x\nanother,y\n")
    flags = [*FLAGS, "--test", "test.csv", "--encoder", str(tiny)]
    assert script("train.py", *flags)[0] == 0
    Path("run").rename("whole")
    command = [sys.executable, ROOT / "train.py", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for_log(process, 9)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("run/metrics.json").exists() and Path("run/snapshot.json").exists()

    def refused(message, *arguments):
        status, _, err = script("train.py", *arguments)
        assert status == 2 and message in err and err.count("\n") == 1, err

    Path("run/run.lock").unlink(missing_ok=True)  # of a dead process, and no obstacle: see below
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    refused("--out run is in use", *flags)
    refused("--lr 0.5 contradicts --lr 0.0001 of the run in run", "--resume", "run", "--lr", "0.5")
    other_variant = ["--resume", "run", "--variant", "single"]
    refused("--variant single contradicts --variant shared", *other_variant)
    refused("nowhere: no run to resume", "--resume", "nowhere")
    with runs.locked("run/run.lock", "run"):
        refused("run: another process is writing there", "--resume", "run")
    rows = Path("rows.csv").read_text()
    Path("rows.csv").write_text(rows + "one more,x\n")
    refused("rows.csv has changed since the run in run began", "--resume", "run")
    Path("rows.csv").write_text(rows)
    status, _, err = script("predict.py", "--model", "run", "great movie")
    assert status == 2
    assert "its training is not finished; go on with: python train.py --resume run" in err
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before

    for name in ("run.lock", "model.safetensors.partial", ".tmpAbC123"):
        (Path("run") / name).write_text("left by a kill")
    status, _, err = script("train.py", "--resume", "run", "--save-every", "2")
    assert status == 0 and "error" not in err and "will not repeat" not in err
    assert run_files(Path("run")) == run_files(Path("whole"))
    names = [{path.name for path in Path(folder).iterdir()} for folder in ("run", "whole")]
    assert names[0] == names[1]
    assert script("train.py", "--resume", "run") == (0, "the run in run is finished\n", "")


# --------------------------------------------------------------------------------------------------
# Several processes do what one does

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ON_CPU = ["--device", "cpu"]  # a GPU for each process is rarely there
PREDICT = ["--model", "whole", "--input", "rows.csv", "--output"]

TOGETHER = """
import sys

import torch

import test_resume
from support import processes

processes.join_processes(torch.device("cpu"))
test_resume.work_together(sys.argv[1])
processes.leave_processes()
"""


def keep_gradients(tiny, folder):
    """Train, and write the gradients of each step to gradients-RANK.pt."""
    gradients = []
    clip = cpu.clip_within_step

    def keep(optimizer, max_norm):
        step = []
        for group in optimizer.param_groups:
            step += [parameter.grad.clone() for parameter in group["params"]]
        gradients.append(step)
        return clip(optimizer, max_norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "clip_within_step", keep)
        train_tiny(tiny, folder, "--dropout", "0", "--batch-size", "3", "--lr", "0")
    torch.save(gradients, folder / f"gradients-{processes.rank()}.pt")


def work_together(tiny):
    """What two processes do in one call of torchrun, which is slow to start."""
    keep_gradients(Path(tiny), Path("two"))
    processes.join_processes = lambda device: device  # they have
    train.main([*FLAGS, *ON_CPU, "--encoder", tiny])
    if processes.is_first():
        Path("run").rename("whole")
    processes.from_rank_0(None)
    predict.main([*PREDICT, "two.jsonl", *ON_CPU])


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory):
    """The folder in which two processes did what `work_together` says."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_table()
    (folder / "together.py").write_text(TOGETHER)
    places = [str(ROOT), str(ROOT / "tests")]
    if "PYTHONPATH" in os.environ:
        places.append(os.environ["PYTHONPATH"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    command = [*TORCHRUN, "together.py", tiny]
    pipes = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **pipes)
    assert done.returncode == 0, done.stderr
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_gradients_of_two_processes_equal_those_of_one(tiny, together):
    """Often only one process has labels of a task, and one gets none of the last batch's 1 row."""
    keep_gradients(tiny, together / "one")
    one = torch.load(together / "one/gradients-0.pt")
    assert len(one) == 16
    for rank in (0, 1):
        found = torch.load(together / f"two/gradients-{rank}.pt")
        for step, expected in zip(found, one, strict=True):
            for gradient, other in zip(step, expected, strict=True):
                torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6)
    logs = [read_lines(together / name / "log.jsonl") for name in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.get("validation") == theirs.get("validation")
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6, abs=1e-6)


def test_two_processes_predict_as_one(together, monkeypatch):
    monkeypatch.chdir(together)
    predict.main([*PREDICT, "one.jsonl", *ON_CPU])
    predictions = [read_lines(Path(name)) for name in ("one.jsonl", "two.jsonl")]
    assert len(predictions[0]) == 60
    for ours, theirs in zip(*predictions, strict=True):
        assert ours["text"] == theirs["text"]
        p = [row["predictions"]["a"]["probabilities"] for row in (ours, theirs)]
        assert p[0] == pytest.approx(p[1], abs=1e-6)


def kill_rank_1(folder):
    """Kill the process of this rank that works in the folder -> how many were killed."""
    killed = 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = os.readlink(path / "cwd") == str(folder)
            if here and b"RANK=1" in (path / "environ").read_bytes().split(b"\0"):
                os.kill(int(path.name), signal.SIGKILL)
                killed += 1
    return killed


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process to kill in /proc")
def test_torchrun_restarts_a_killed_run_by_itself(tiny, together, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table()
    command = [*TORCHRUN, "--max-restarts=3", ROOT / "train.py", *FLAGS, *ON_CPU]
    command += ["--encoder", str(tiny)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    wait_for_log(process, 9)
    assert kill_rank_1(tmp_path) == 1
    out = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0 and out.count("saved in run") == 1
    assert run_files(Path("run")) == run_files(together / "whole")


def test_two_processes_do_not_write_one_output_and_a_full_disk_is_one_line(
    script, finished, tmp_path
):
    output = tmp_path / "out"
    command = ["predict.py", "--model", finished, "great movie"]
    with runs.locked(f"{output}.lock", output):
        status, _, err = script(*command, "--output", output)
    assert status == 2
    assert err == f"predict.py: error: {output}: another process is writing there\n"
    assert script(*command, "--output", output)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    command = [sys.executable, ROOT / "predict.py", "--model", finished, "great movie"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr == "predict.py: error: No space left on device\n"
