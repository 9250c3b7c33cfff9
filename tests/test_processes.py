"""Properties of support/processes.py: several processes agree, and one alone needs no launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import processes
from support.errors import InputError

ROOT = Path(__file__).parents[1]
LAUNCHED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    """Set these variables of a launcher, and none of its others."""

    def change(variables):
        for name in (*LAUNCHED, "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


def test_a_device_that_cannot_be_used_is_the_users_mistake():
    assert processes.pick_device("cpu") == torch.device("cpu")
    assert processes.pick_device().type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(InputError, match=f"device '{name}' cannot be used here"):
            processes.pick_device(name)


def test_what_the_launcher_says(environment):
    environment({"RANK": "3", "WORLD_SIZE": "4"})  # as some clusters set them for any job
    assert processes.launched() == processes.Launch()
    environment(LAUNCHED)
    assert processes.launched()[:6] == (3, 4, 1, 2, 0, 0)
    environment(LAUNCHED | {"TORCHELASTIC_RUN_ID": "experiment 7"})
    assert processes.launched().name == "experiment 7"
    environment(LAUNCHED | {"TORCHELASTIC_RUN_ID": "none"})
    assert f"process {os.getppid()}" in processes.launched().name
    environment(LAUNCHED | {"RANK": "first"})
    with pytest.raises(InputError, match=r"is not a number: .*first"):
        processes.launched()


def test_a_process_alone_is_the_first_and_only_one(environment):
    environment({})
    cpu = torch.device("cpu")
    assert processes.join_processes(cpu) == cpu
    assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.sum_over_processes(torch.tensor([1, 2])).tolist() == [1, 2]
    assert processes.from_rank_0("value") == "value"
    model = torch.nn.Linear(1, 1)
    assert processes.in_parallel(model, unused=False) is model
    processes.leave_processes()


TWO = """
import torch

from support import processes, script


def main():
    device = processes.join_processes(torch.device("cpu"))
    rank = processes.rank()
    assert device.type == "cpu" and processes.count() == 2 and processes.is_first() == (rank == 0)
    mine = torch.tensor([1.0, rank])
    assert processes.sum_over_processes(mine).tolist() == [2, 1] and mine.tolist() == [1, rank]
    assert processes.from_rank_0(f"of {rank}") == "of 0"
    model = torch.nn.Linear(1, 1)
    parallel = processes.in_parallel(model, unused=False)
    parallel(torch.tensor([[2.0 * rank]])).backward()
    assert model.weight.grad.item() == 1  # the mean of 0 and 2
    print("one line")
    script.note("one note")


script.run_script(main)
"""


def test_two_processes_agree_and_one_of_them_prints(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command.append(tmp_path / "two.py")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "one line\n"
    assert done.stderr.count("one note") == 1


LOST = """
import os

import torch

from support import processes, script


def main():
    processes.join_processes(torch.device("cpu"))
    if processes.rank() == 1:
        os._exit(0)
    processes.sum_over_processes(torch.zeros(1))


script.run_script(main)
"""


def test_a_process_that_is_lost_is_said_in_one_line(tmp_path):
    (tmp_path / "lost.py").write_text(LOST)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command.append(tmp_path / "lost.py")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "lost.py: error: another process of this run ended or failed" in done.stderr
