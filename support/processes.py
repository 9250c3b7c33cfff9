"""The processes that torchrun starts: join them, count them, add up tensors over them.

Process 0 prints and writes. Everything here also works in a process that nobody launched.
This file never knows a task or a file.
"""

import os
import socket
import sys
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist

from .errors import InputError, input_errors


def pick_device(name="auto"):
    """The torch.device of that name; "auto" is a GPU where there is one, else the CPU.

    Raises InputError where it cannot be used.
    """
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    with input_errors(f"device {name!r} cannot be used here"):
        torch.empty(0, device=name).cpu()
    return torch.device(name)


class Launch(NamedTuple):
    """What the launcher says about this process. The defaults: nobody launched it."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0  # among the processes of its machine
    local_processes: int = 1
    restarts: int = 0
    max_restarts: int = 0
    name: str | None = None  # of this call of torchrun; a restart keeps it


def launched():
    """Read the variables that torchrun sets -> Launch. Nothing else in the project reads them."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    for variable in (*ranks, "MASTER_ADDR", "MASTER_PORT"):
        if variable not in os.environ:  # some clusters set a few of them without launching anything
            return Launch()
    restarts = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
    with input_errors(f"one of the launcher's variables {', '.join(ranks)} is not a number"):
        numbers = [int(os.environ.get(variable, 0)) for variable in (*ranks, *restarts)]
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name == "none":  # torchrun's default, the same for every call
        name = f"{socket.gethostname()}, process {os.getppid()}"
    return Launch(*numbers, name)


def is_half_launched():
    """Whether a launcher other than torchrun, such as srun, counts several processes."""
    try:
        several = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    except ValueError:
        return False
    return several and launched().processes == 1


def join_processes(device):
    """Join the other processes that were launched, if any -> the torch.device of this one.

    From then on, only process 0 prints on standard output.
    """
    launch = launched()
    if launch.processes == 1:
        return device
    if not dist.is_available():
        raise InputError("this build of torch has no torch.distributed: start one process")
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if gpus < launch.local_processes:
            raise InputError(f"more processes were started here than there are GPUs, {gpus}")
        if device.index is None:
            device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
    with input_errors("the processes cannot reach each other"):
        store, rank, processes = next(dist.rendezvous("env://"))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # This store outlives a restart, and so does what the killed processes left in it
            store = dist.PrefixStore(f"start {launch.restarts}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
    if not is_first():
        discard(sys.stdout)
    return device


def leave_processes():
    """Leave the group. Without this, gloo's threads sometimes abort a process at its exit.

    See https://github.com/pytorch/pytorch/issues/190489
    """
    if has_joined():
        dist.destroy_process_group()


def discard(stream):
    """Let everything that is printed on a standard stream from now on go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def has_joined():
    """Whether this process has joined others. There are builds of torch in which none can."""
    return dist.is_available() and dist.is_initialized()


def rank():
    """The number of this process among those that joined; 0 where it is alone."""
    if has_joined():
        return dist.get_rank()
    return 0


def count():
    """How many processes have joined; 1 where this one is alone."""
    if has_joined():
        return dist.get_world_size()
    return 1


def is_first():
    """Whether this is the process that prints and writes."""
    return rank() == 0


@cache
def survive_forks():
    """Let a process that is forked from this one compute, with one thread, instead of hanging.

    OpenMP's threads do not live on in it, and it would wait for them for ever. One thread waits for
    no other. The tokenizer does the same by itself, and would warn of it.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=use_one_thread)


def use_one_thread():
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def sum_over_processes(tensor, device="cpu"):
    """The sum of every process's `tensor`, on the CPU. Each process waits for all others.

    `device`: where the processes exchange it; a GPU where they joined with one.
    """
    if has_joined():
        tensor = tensor.to(device, copy=True)
        dist.all_reduce(tensor)
    return tensor.cpu()


def in_parallel(model, unused):
    """The model, wrapped so that its gradient is the mean over the processes.

    `unused`: whether some of its parameters may get no gradient in a step.
    """
    if count() == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)


def from_rank_0(value):
    """What process 0 gave as `value`, in every process. The others wait for it."""
    values = [value]
    if has_joined():
        dist.broadcast_object_list(values)
    return values[0]
