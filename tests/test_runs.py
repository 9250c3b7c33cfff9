"""Properties of support/runs.py: what is stopped, killed or short of disk loses nothing."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from support import runs
from support.errors import InputError

ROOT = Path(__file__).parents[1]
EPOCHS = 2
STEPS = 3  # in an epoch

# --------------------------------------------------------------------------------------------------
# A training of a single layer, and what may happen to it


def nothing(run):
    """What happens in an undisturbed training."""


def train(folder, happens=nothing, save_every=None):
    """Train a linear layer -> its Run. happens(run) is called in each step and each evaluation."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    with runs.Run(folder, parts, {"lowest": 9.0}, save_every) as run:
        for epoch in range(run.epoch, EPOCHS + 1):
            generator = torch.Generator().manual_seed(epoch)
            batches = torch.randn(STEPS, 4, 3, generator=generator)
            for batch in run.steps(batches, f"epoch {epoch}/{EPOCHS}"):
                happens(run)
                torch.manual_seed(run.step)
                output = torch.nn.functional.dropout(model(batch))
                loss = output.square().mean()
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                run.log({"step": run.step, "loss": loss.item()})
                run.show({"loss": f"{loss.item():.3f}"})
            happens(run)
            with torch.inference_mode():
                validation = model(torch.ones(1, 3)).square().mean().item()
            run.log({"epoch": epoch, "validation": validation})
            if validation < run.state["lowest"]:
                run.state["lowest"] = validation
                run.best = {name: value.clone() for name, value in model.state_dict().items()}
            run.end_epoch()
    return run


def equal(one, other):
    """Whether two dicts of tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_end(run, other):
    """Two trainings end with the same weights, best weights, state and log."""
    assert equal(run.parts["model"].state_dict(), other.parts["model"].state_dict())
    assert equal(run.best, other.best)
    assert run.state == other.state
    assert (run.epoch, run.step) == (other.epoch, other.step) == (EPOCHS + 1, EPOCHS * STEPS)
    logs = [(each.folder / "log.jsonl").read_bytes() for each in (run, other)]
    assert logs[0] == logs[1]


def interrupt(run):
    os.kill(os.getpid(), signal.SIGINT)


def stop_at(step):
    def happens(run):
        if run.step == step:
            interrupt(run)

    return happens


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_in_every_step_ends_as_an_undisturbed_one(tmp_path, number):
    whole = train(tmp_path / "whole")
    stops = []
    disturbed = None
    while disturbed is None:
        try:
            disturbed = train(tmp_path / "a", lambda run: os.kill(os.getpid(), number))
        except KeyboardInterrupt as stop:
            status, message = stop.args
            assert status == 128 + number
            assert message.endswith(f"go on with: python train.py --resume {tmp_path / 'a'}")
            stops.append(int(re.search(r"after step (\d+)", message)[1]))
    assert stops == [1, 2, 3, 3, 4, 5, 6, 6]  # also in both evaluations
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert_same_end(disturbed, whole)
    assert len(list((tmp_path / "a").glob("*.pt"))) == 1


def test_a_second_signal_stops_at_once(tmp_path):
    def twice(run):
        interrupt(run)
        interrupt(run)

    with pytest.raises(KeyboardInterrupt) as stop:
        train(tmp_path / "a", twice)
    assert stop.value.args == (130, "interrupted")
    assert not (tmp_path / "a/snapshot.json").exists()


def test_an_ignored_signal_stays_ignored(tmp_path):
    """As nohup and the shell's & set it."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(tmp_path / "a", interrupt)
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_killed_run_goes_on_from_its_last_snapshot(tmp_path):
    """Steps that were logged after the snapshot are done and logged again."""

    class Killed(Exception):
        pass

    def killed(run):
        if run.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "a", killed, save_every=2)
    assert (tmp_path / "a/snapshot-2-1.pt").exists()
    with open(tmp_path / "a/log.jsonl", "a") as log:
        log.write('{"step": 5, "lo')
    steps = []
    resumed = train(tmp_path / "a", lambda run: steps.append(run.step), save_every=2)
    assert steps == [5, 6, 6]
    assert_same_end(resumed, train(tmp_path / "whole"))


def snapshots_of(folder, monkeypatch, minutes, writing=0.0):
    """Train with a clock that each step moves on -> the steps after which snapshots were written.

    writing: the minutes that it takes to write a snapshot.
    """
    clock = [0.0]
    written = []

    def write(folder, progress, tensors):
        written.append(progress["step"])
        clock[0] += 60 * writing

    def tick(run):
        clock[0] += 60 * minutes

    with monkeypatch.context() as patch:
        patch.setattr(runs.time, "monotonic", lambda: clock[0])
        patch.setattr(runs, "save_snapshot", write)
        train(folder, tick)
    return written


def test_snapshots_are_written_once_a_minute(tmp_path, monkeypatch):
    assert snapshots_of(tmp_path / "a", monkeypatch, minutes=0.01) == []
    assert snapshots_of(tmp_path / "b", monkeypatch, minutes=0.4) == [3, 5]  # and evaluations
    assert snapshots_of(tmp_path / "c", monkeypatch, minutes=1.1) == [1, 2, 3, 3, 4, 5, 6, 6]


def test_where_writing_is_slow_snapshots_take_a_twentieth_of_the_time(tmp_path, monkeypatch):
    assert snapshots_of(tmp_path / "a", monkeypatch, minutes=1.1, writing=0.1) == [1, 3, 4, 6]


def test_the_seconds_of_all_steps_are_counted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", stop_at(2))
    progress, _ = runs.load_snapshot(tmp_path / "a")
    resumed = train(tmp_path / "a")
    assert 0 < progress["seconds"] < resumed.seconds


@pytest.mark.parametrize("name", ["snapshot.json", "snapshot-1-2.pt", "log.jsonl"])
def test_a_damaged_snapshot_or_log_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", stop_at(2))
    path = tmp_path / "a" / name
    content = path.read_bytes()
    if name == "log.jsonl":
        path.write_bytes(content[:-1])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"7" + content[middle + 1 :])
    with pytest.raises(InputError) as error:
        train(tmp_path / "a")
    message = str(error.value)
    assert "snapshot" in message and str(tmp_path / "a") in message and "\n" not in message
    path.write_bytes(content)
    train(tmp_path / "a")


def test_a_snapshot_of_a_former_version_is_refused_in_one_line(tmp_path):
    (tmp_path / "a").mkdir()
    progress = {"epoch": 1, "batch": 2, "step": 2, "rows": 8, "losses": {}, "log": 0}
    runs.save_snapshot(tmp_path / "a", progress, {"states": [], "best": {}})
    with pytest.raises(InputError, match="its snapshot cannot be used"):
        train(tmp_path / "a")


def test_a_write_that_fails_at_any_point_loses_nothing(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    writing = [
        (os, "fsync"),
        (os, "replace"),
        (torch, "save"),
        (Path, "write_bytes"),
        (Path, "unlink"),
    ]
    failures = 0
    calls = Counter()

    def failing(function):
        def call(*arguments, **named):
            calls["all"] += 1
            if calls["all"] == failures + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **named)

        return call

    while True:
        folder = tmp_path / str(failures)
        calls.clear()
        with monkeypatch.context() as patch:
            for where, name in writing:
                patch.setattr(where, name, failing(getattr(where, name)))
            try:
                train(folder, save_every=STEPS)
                break
            except (InputError, OSError) as error:
                assert "No space left" in str(error)
        assert not list(folder.glob("*.partial"))
        assert_same_end(train(folder), whole)
        failures += 1
    assert failures >= 12  # two snapshots, of six calls each and more


TWO_PROCESSES = """
import os, signal, sys
from pathlib import Path

import torch

import test_runs
from support import processes, script


def happens(run):
    if run.step == 2 and processes.launched().restarts == 0 and processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def main():
    processes.join_processes(torch.device("cpu"))
    test_runs.train(Path(sys.argv[1]), happens)
    print("finished")


script.run_script(main)
"""


def test_a_signal_to_one_process_stops_all_and_torchrun_restarts_them(tmp_path):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--max-restarts=1", tmp_path / "two.py", tmp_path / "a"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "finished\n", done.stderr
    assert done.stderr.count("stopped after step 2; go on with") == 1
    train(tmp_path / "whole")
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("a", "whole")]
    assert logs[0] == logs[1]


# --------------------------------------------------------------------------------------------------
# Files, and the folder of a run


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "file"
    runs.write(path, b"former")
    path.chmod(0o640)
    with pytest.raises(InputError, match="file: cannot be written: no"):

        def fail(tensors, beside):
            beside.write_bytes(b"half")
            raise ValueError("no")

        runs.write_tensors(path, fail, {})
    assert path.read_bytes() == b"former"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_record_notices_damage(tmp_path):
    path = tmp_path / "record.json"
    runs.write_record(path, {"name": "tâche", "values": [1, 2.5, None]})
    assert runs.read_record(path) == {"name": "tâche", "values": [1, 2.5, None]}
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(ValueError, match=r"record\.json is not as it was written"):
        runs.read_record(path)


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path):
    lock_file = tmp_path / "run.lock"
    lock_file.write_text("left by a killed process")
    refused = pytest.raises(InputError, match="run: another process is writing there")
    with runs.locked(lock_file, "run"), refused:
        runs.locked(lock_file, "run").__enter__()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No such file"):
        runs.locked(tmp_path / "nowhere/run.lock", "run").__enter__()


CONFIG = {
    "flags": {"argv": ["--lr", "1e-3"]},
    "launcher": None,
    "fitted": None,
    "weights_sha256": None,
    "encoder": {"hidden_size": 8},
    "tasks": [{"name": "mood"}],
    "pooling": "mean",
    "truncation": "head",
    "max_length": 64,
    "encoder_sha256": "0",
    "tokenizer_sha256": "0",
    "versions": {"torch": "2"},
}


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """The folder "run", in the current folder, of a run that has begun."""
    monkeypatch.chdir(tmp_path)
    folder = Path("run")
    folder.mkdir()
    runs.write_record(folder / "config.json", CONFIG)
    return folder


def opened(out=None, resume=None, overwrite=False):
    return runs.open_run(out, resume, overwrite, "shared", torch.device("cpu"))


def test_a_run_is_new_begun_or_finished(run_folder):
    with opened() as found:
        assert found == (Path("runs/shared-1"), None, False)
        Path("runs/shared-1/config.json").touch()
    with opened() as found:
        assert found == (Path("runs/shared-2"), None, False)
    with opened("a/b") as found:
        assert found == (Path("a/b"), None, False)
    with opened(resume="run") as found:
        assert found == (run_folder, CONFIG, False)
        assert runs.is_run(run_folder)
    (run_folder / "snapshot.json").touch()
    (run_folder / "metrics.json").touch()
    with opened(resume="run") as found:
        assert found == (run_folder, CONFIG, True)
    assert sorted(path.name for path in run_folder.iterdir()) == ["config.json", "metrics.json"]


def test_a_mistake_in_opening_a_run_is_one_line_and_leaves_no_trace(run_folder):
    Path("file").touch()
    before = sorted(Path().rglob("*"))
    mistakes = [
        ({"out": "run"}, "--out run is in use; .* or go on with --resume run"),
        ({"out": "file"}, "file is a file; --out names a folder"),
        ({"resume": "nowhere"}, "nowhere: no run to resume"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(InputError, match=message), opened(**arguments):
            pass
    with pytest.raises(InputError), opened("a/b/c"):
        raise InputError("a mistake that is found later")
    with opened("run", overwrite=True), pytest.raises(InputError, match="another process"):
        opened(resume="run").__enter__()
    assert sorted(Path().rglob("*")) == before


def test_what_a_run_leaves_that_is_killed_before_it_begins_is_no_obstacle(tmp_path):
    for name in runs.BEFORE_BEGIN:
        (tmp_path / name).touch()
    with opened(tmp_path) as found:
        assert found == (tmp_path, None, False)


def test_begin_clears_what_a_former_run_left(run_folder):
    for name in ("snapshot.json", "snapshot-1-2.pt", "x.partial", ".tmpAbC123", "mine.txt"):
        (run_folder / name).touch()
    runs.begin(run_folder)
    assert [path.name for path in run_folder.iterdir()] == ["mine.txt"]


def test_ctrl_c_says_how_to_resume_a_run_that_has_begun(run_folder):
    cases = [
        ({"resume": "run"}, "interrupted; go on with: python train.py --resume run"),
        ({"out": "run", "overwrite": True}, "interrupted"),  # its record is of the former run
        ({"out": "new"}, "interrupted"),
    ]
    for arguments, message in cases:
        with pytest.raises(KeyboardInterrupt) as stop, opened(**arguments):
            raise KeyboardInterrupt
        assert stop.value.args == (130, message)


@pytest.mark.parametrize(("name", "goes_on"), [("call 1", True), ("call 2", False)])
def test_after_a_restart_torchrun_finds_the_run_that_it_began(
    run_folder, monkeypatch, name, goes_on
):
    runs.write_record(run_folder / "config.json", CONFIG | {"launcher": "call 1"})
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 1, "TORCHELASTIC_RUN_ID": name}
    variables |= {"TORCHELASTIC_RESTART_COUNT": 1, "TORCHELASTIC_MAX_RESTARTS": 3}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, str(value))
    with pytest.raises(InputError, match="--max-restarts takes --out FOLDER"), opened():
        pass
    if goes_on:
        with opened("run") as (_, record, finished):
            assert record["launcher"] == "call 1" and not finished
    else:
        with pytest.raises(InputError, match="--out run is in use"), opened("run"):
            pass


def test_a_run_goes_on_only_as_what_it_began_as():
    fitted = {"temperature": 1.3}
    assert runs.check_resume("run", CONFIG, CONFIG | {"fitted": fitted}) is None
    versions = runs.check_resume("run", CONFIG, CONFIG | {"versions": {"torch": "3"}})
    assert "the run began with {'torch': '2'}; now, with {'torch': '3'}" in versions
    with pytest.raises(InputError, match=r"its max_length is not what it was .*: 32"):
        runs.check_resume("run", CONFIG, CONFIG | {"max_length": 32})


def test_a_run_of_a_former_version_or_with_damaged_flags_is_refused(run_folder):
    former = dict(CONFIG)
    del former["fitted"]
    runs.write_record(run_folder / "config.json", former)
    with pytest.raises(InputError, match="run: it was begun with a former version of mtbert"):
        runs.read_config(run_folder)
    runs.write_record(run_folder / "config.json", CONFIG | {"flags": {"argv": [1]}})
    with pytest.raises(InputError, match="run: no run to resume: its flags are damaged"):
        runs.read_config(run_folder)
