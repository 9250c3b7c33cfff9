"""What must last: files that are written whole or not at all, records that notice damage, one run a folder, the
snapshots from which a stopped run goes on, the processes of torchrun, and how a script ends.

It knows files, signals and processes. It never knows a model or a task: states, records and names are opaque here.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import InputError, input_errors, printable


class Diverged(InputError):
    """A loss or a logit is not finite."""


# ---------------------------------------------------------------------------------------------------------------------
# Files


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path, digest):
    if file_sha256(path) != digest:
        raise ValueError(f"{path.name} is not as it was written")


@contextmanager
def naming(path):
    """Name the file in an OSError that does not, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


LEFTOVERS = ("*.partial", ".tmp??????")  # of a write that was killed: ours, safetensors' own


def remove(folder, *patterns):
    for pattern in patterns:
        for path in Path(folder).glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def replacing(path):
    """A path beside `path` to write to; then that file takes its place, whole and flushed to disk, or not at all."""
    beside = Path(f"{path}.partial")
    try:
        with naming(path):
            beside.touch()
            mode = beside.stat().st_mode
            yield beside
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            beside.chmod(mode)  # safetensors makes it private
            os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write(path, content):
    """Replace a file as a whole: bytes, or what becomes JSON."""
    with replacing(path) as beside:
        beside.write_bytes(content if isinstance(content, bytes) else json.dumps(content, indent=1).encode())


def write_tensors(path, save_file, tensors):
    """Replace a file by what save_file(tensors, path) writes -> its SHA-256. Raises InputError."""
    with input_errors(f"{path}: cannot be written"), replacing(path) as beside:
        save_file(tensors, beside)
        return file_sha256(beside)


def write_record(path, record):
    """`write`, with a SHA-256 of what is written, so that `read_record` knows a damaged file."""
    write(path, record | {"sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()})


def read_record(path):
    """What `write_record` wrote. Raises ValueError, KeyError, OSError."""
    record = json.loads(Path(path).read_text("utf-8"))
    if record.pop("sha256") != hashlib.sha256(json.dumps(record).encode()).hexdigest():
        raise ValueError(f"{Path(path).name} is not as it was written")
    return record


@contextmanager
def locked(lock_file, what):
    """Refuse, with InputError, to write where another process does. The lock ends with its process, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file, blocking=False)
    Path(lock_file).touch()  # raises what FileLock would take for a lock
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{what}: another process is writing there") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove what is open
            os.unlink(lock_file)
        lock.release()


# ---------------------------------------------------------------------------------------------------------------------
# The processes of torchrun. Process 0 prints and writes.


class Launch(NamedTuple):
    """What the launcher says of this process; the defaults are those of a process that nobody launched."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0  # on its machine
    local_processes: int = 1
    restarts: int = 0
    max_restarts: int = 0
    name: str | None = None  # tells one call of torchrun from another, and is the same after a restart


def launched():
    """Read the variables that torchrun sets, the only place that does -> Launch. A few of them are no launcher."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return Launch()
    with input_errors("what the launcher says in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE is no number"):
        counts = [int(os.environ[name]) for name in names[:4]]
        counts += [int(os.environ.get(f"TORCHELASTIC_{name}", 0)) for name in ("RESTART_COUNT", "MAX_RESTARTS")]
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return Launch(*counts, f"{socket.gethostname()}, process {os.getppid()}" if name == "none" else name)


def join_processes(device):
    """Join the other processes that were launched, if any -> the torch.device of this one."""
    launch = launched()
    if launch.processes > 1:
        if device.type == "cuda":
            if torch.cuda.device_count() < launch.local_processes:
                raise InputError(f"more processes were started here than there are GPUs, {torch.cuda.device_count()}")
            device = torch.device("cuda", launch.local_rank) if device.index is None else device
            torch.cuda.set_device(device)
        with input_errors("the processes cannot reach each other"):
            store, rank, processes = next(dist.rendezvous("env://"))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # it outlives a restart, with what is in it
                store = dist.PrefixStore(f"start {launch.restarts}", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
        if rank > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return device


def leave_processes():
    """Without it gloo's threads abort a process at its exit, now and then (pytorch issue 190489)."""
    if dist.is_initialized():
        dist.destroy_process_group()


def processes():
    """-> the number of this process, and how many have joined; 0 and 1 where it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(tensor, device="cpu"):
    """The sum of every process's `tensor`, which lies on the processor; each waits for all."""
    if dist.is_initialized():
        tensor = tensor.to(device)
        dist.all_reduce(tensor)
    return tensor.cpu()


def in_parallel(model, unused):
    """`model`, so that its gradient is the mean over the processes; `unused`: it has parameters that have none."""
    if processes()[1] == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)


def from_rank_0(value):
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


# ---------------------------------------------------------------------------------------------------------------------
# The life of a run: a folder that is new, or that of a run which was stopped


def read_config(folder):
    """The record that a run began with. Raises InputError where there is none."""
    with input_errors(f"{folder}: no run to resume"):
        config = read_record(Path(folder) / "config.json")
        if not all(isinstance(argument, str) for argument in config["flags"]["argv"]):
            raise ValueError("its flags are damaged")
        return config


def make_folder(out, variant):
    """Make the folder `out`, else the first of runs/`variant`-N that is free -> it, and all folders made for it."""
    for n in itertools.count(1):
        folder = Path(out if out is not None else f"runs/{variant}-{n}")
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        with suppress(FileExistsError):
            folder.mkdir(parents=True, exist_ok=out is not None)
            return folder, made
        if out is not None:
            raise InputError(f"{folder} is a file; --out names a folder")


def remove_empty(folders):
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def is_run(folder):
    config = Path(folder) / "config.json"
    return config.is_file() and b'"weights_sha256"' in config.read_bytes()


def how_to_go_on(folder):
    return f"go on with: python train.py --resume {folder}"


@contextmanager
def open_run(out, resume, overwrite, variant, device):
    """Decide where a run is kept and whether it is new, and keep other processes out of its folder meanwhile.

    -> (folder, the record that it began with or None for a new one, whether it is finished). A run goes on where
    `resume` names its folder, or where torchrun has restarted the processes that began it in `out`. Else it is new,
    in `out` or a new folder under runs/. Raises InputError where the folder is in use. A mistake leaves no trace.
    """
    launch, (rank, _) = launched(), processes()
    if launch.max_restarts and resume is None and (out is None or overwrite):
        raise InputError("torchrun --max-restarts takes --out FOLDER, to find the run again, and no --overwrite")
    restarted = sum_over_processes(torch.tensor(launch.restarts), device) > 0  # each machine counts its own
    folder = record = finished = None
    with ExitStack() as held:
        if rank == 0:
            if resume is None and restarted and (Path(out) / "config.json").exists():
                resume = out if read_config(out)["launcher"] == launch.name else None
            if resume is not None:
                folder, record = Path(resume), read_config(resume)
            else:
                folder, made = make_folder(out, variant)
                held.callback(remove_empty, made)
            held.enter_context(locked(folder / "run.lock", folder))
            found = {path.name for path in folder.iterdir()}
            finished = record is not None and "metrics.json" in found
            killed_early = {"run.lock", "config.json.partial", "tokenizer.json.partial", "tokenizer.json"}
            if record is None and found - killed_early and not overwrite:
                hint = f", or go on with --resume {folder}" if "config.json" in found else ""
                raise InputError(f"--out {folder} is in use; name another folder, or add --overwrite{hint}")
            if finished:
                remove(folder, "snapshot*")  # where the run was killed behind its last write
        folder, record, finished = from_rank_0((folder, record, finished))
        try:
            yield folder, record, finished
        except KeyboardInterrupt as stop:
            status, how = stop.args or (130, "interrupted")
            begun = (folder / "config.json").exists() and (record is not None or not overwrite)
            if begun and "--resume" not in how:
                how += f"; {how_to_go_on(folder)}"
            raise KeyboardInterrupt(status, how) from None


def begin(folder):
    """Clear a new run's folder of what a former one left."""
    former = ("metrics.json", "config.json", "snapshot*", "model.safetensors", "log.jsonl",
              "test_predictions.jsonl", "report.png")  # fmt: skip
    remove(folder, *former, *LEFTOVERS)


def go_on(folder, then, now):
    """Raises InputError unless the run that began with the record `then` can go on as `now` -> what differs in words.

    Of both records those keys are compared on which the result depends.
    """
    for task in then["tasks"]:
        task["temperature"] = 1.0  # it is fitted at the end, behind which the run may have been killed
    for key in ("encoder", "tasks", "pooling", "encoder_source", "tokenizer_sha256"):
        if then[key] != now[key]:
            raise InputError(f"{folder}: its {key} is not what it was when the run began: {now[key]}"[:300])
    remove(folder, *LEFTOVERS)
    if then["versions"] != now["versions"]:
        return f"the run began with {then['versions']}; now, with {now['versions']}, it will not repeat to the bit"


# ---------------------------------------------------------------------------------------------------------------------
# Where a run stands: its steps, its log, its snapshots, and the signals that stop it


@contextmanager
def stop_signals():
    """A list that gets the number of the first SIGINT (Ctrl-C) or SIGTERM; the second raises KeyboardInterrupt.
    In a thread that is not the main one, which cannot have handlers, it stays empty.

    Under torchrun, which passes on what the terminal has sent to all processes already, the second does nothing.
    """
    received = []

    def receive(number, _):
        if received and processes()[1] == 1:
            raise KeyboardInterrupt(128 + number, "interrupted")
        received.append(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, signal.SIGTERM] if main else []
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as behind nohup
    former = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def save_snapshot(folder, progress, state):
    """Replace the folder's snapshot: first `state`, tensors in lists and dicts, in a file of its own; then
    snapshot.json, which names it and makes it count."""
    path = Path(folder) / f"snapshot-{progress['epoch']}-{progress['batch']}.pt"
    digest = write_tensors(path, torch.save, state)
    write_record(path.with_name("snapshot.json"), {"file": path.name, "file_sha256": digest, "progress": progress})
    for former in set(path.parent.glob("snapshot-*")) - {path}:
        former.unlink()


def load_snapshot(folder):
    """-> progress, state, as given to `save_snapshot`. Raises ValueError and what torch.load raises."""
    record = read_record(Path(folder) / "snapshot.json")
    path = Path(folder) / Path(record["file"]).name
    check_sha256(path, record["file_sha256"])
    return record["progress"], torch.load(path, map_location="cpu", weights_only=True)


class Run:
    """A training that can be stopped after any step, and goes on from there to the same end, equal to the bit.

    with Run(folder, seed, model, optimizer, schedule) as run:
        for epoch in run.epochs(count):
            for batch in run.steps(batches):           # all batches of the epoch; those that are done are left out
                run.log(losses, len(batch), lr, grad_norm)
            run.end_epoch(metrics, scores)

    All that the rest depends on is in `at` and in the states of the three; randomness is a function of seed, process,
    and step, so that no generator has a state that could be lost. A snapshot of them is written at each epoch's end,
    every `save_every` steps, and where a signal stops the run, which then raises KeyboardInterrupt(exit status, how
    to go on). Of several processes each runs the same steps; process 0 writes.
    """

    def __init__(self, folder, seed, model, optimizer, schedule, save_every=None):
        self.folder, self.seed, self.save_every = Path(folder), seed, save_every
        self.model, self.parts = model, (model, optimizer, schedule)
        self.device, (self.rank, _) = next(model.parameters()).device, processes()
        self.at = {"epoch": 1, "batch": 0, "step": 0, "rows": 0, "losses": {}, "seconds": 0.0, "trained": 0, "log": 0}
        self.at |= {"score": -2.0, "validation": None, "best_epoch": 0}  # the best epoch, whose weights are
        self.best = {}
        if (self.folder / "snapshot.json").exists():
            with input_errors(f"{folder}: its snapshot cannot be used"):
                self.at, state = load_snapshot(folder)
                for part, values in zip(self.parts, state["states"], strict=True):
                    part.load_state_dict(values)
                self.best = state["best"]

    def __enter__(self):
        path = self.folder / "log.jsonl" if self.rank == 0 else os.devnull
        with ExitStack() as held:
            held.enter_context(naming(path))
            self.file = held.enter_context(open(path, "a", buffering=1))
            if self.rank == 0:
                if os.fstat(self.file.fileno()).st_size < self.at["log"]:
                    raise InputError(f"{path} is shorter than it was")
                self.file.truncate(self.at["log"])  # the steps behind the snapshot are done again
            self.signals, self.stop = held.enter_context(stop_signals()), False  # here; known to all processes
            self.held = held.pop_all()
        return self

    def __exit__(self, *error):
        return self.held.__exit__(*error)

    step = property(lambda self: self.at["step"])  # the number of the step that is on
    seconds = property(lambda self: self.at["seconds"])  # spent in steps, that is without evaluation
    trained = property(lambda self: self.at["trained"])  # rows of all steps
    validation = property(lambda self: self.at["validation"])  # the metrics of the best epoch

    def epochs(self, count, patience=None):
        """Yield the numbers of the epochs to come, at most `count`, until `patience` of them brought nothing better."""
        for epoch in range(self.at["epoch"], count + 1):
            if patience and epoch - self.at["best_epoch"] > patience:
                print(f"stopped: nothing better than epoch {self.at['best_epoch']} in {patience} more")
                break
            self.name = f"epoch {epoch}/{count}"
            yield epoch

    def steps(self, batches):
        at, total = self.at, len(batches)
        left = batches[at["batch"] :]
        self.bar = tqdm(left, self.name, total, leave=False, initial=at["batch"], disable=self.rank or None)
        for batch in self.bar:
            start = time.perf_counter()
            torch.manual_seed(int(np.random.default_rng([self.seed, self.rank, at["step"]]).integers(2**63)))
            at["step"] += 1
            yield batch
            at["batch"] += 1
            at["seconds"] += time.perf_counter() - start
            if self.stop or (self.save_every and at["step"] % self.save_every == 0):
                self.snapshot()

    def log(self, losses, rows, lr, grad_norm, **more):
        """Note the losses of a step, {name: this process's share of it}, summed over the processes, and whether any
        process was told to stop. Raises Diverged where a loss is not finite."""
        sums = torch.tensor([*losses.values(), bool(self.signals)], dtype=torch.float64)
        *sums, self.stop = sum_over_processes(sums, self.device).tolist()
        losses = dict(zip(losses, sums, strict=True))
        for name, value in losses.items():
            if not math.isfinite(value):
                raise Diverged(f"the loss of task {name!r} is {value} in step {self.at['step']}; try a lower --lr")
            self.at["losses"][name] = self.at["losses"].get(name, 0.0) + value * rows
        self.at["rows"] += rows
        self.at["trained"] += rows
        entry = {"step": self.at["step"], "lr": lr, "grad_norm": grad_norm, "loss": losses, **more}
        self.file.write(json.dumps(entry) + "\n")
        self.bar.set_postfix({printable(name): f"{value:.3f}" for name, value in losses.items()}, refresh=False)

    def end_epoch(self, metrics, scores, one_answer=()):
        """Note and print how good the epoch is: `metrics` for the log, `scores` {name: the higher the better}; keep
        the weights if their mean is the highest so far. `one_answer` names what had the same answer for all rows."""
        at, epoch = self.at, self.at["epoch"]
        self.file.write(json.dumps({"epoch": epoch, "step": at["step"], "validation": metrics}) + "\n")
        mean = sum(scores.values()) / len(scores)
        losses = {name: total / at["rows"] for name, total in at["losses"].items()}
        line = [f"{printable(name)}: loss {losses[name]:.3f}, validation {scores[name]:.3f}" for name in scores]
        print(self.name, *line, *["best"] * (mean > at["score"]), sep="  ")
        if epoch == 1 and one_answer:
            names = ", ".join(map(repr, one_answer))
            warn(f"one class is the answer to every validation row of {names}; if this stays, try another --lr")
        if mean > at["score"]:
            at.update(score=mean, validation=metrics, best_epoch=epoch)
            self.best = {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        at.update(epoch=epoch + 1, batch=0, rows=0, losses={})
        self.stop = sum_over_processes(torch.tensor(len(self.signals)), self.device).item()
        self.snapshot()

    def snapshot(self):
        if self.rank == 0:
            os.fsync(self.file.fileno())
            self.at["log"] = os.fstat(self.file.fileno()).st_size
            states = [part.state_dict() for part in self.parts]
            save_snapshot(self.folder, self.at, {"states": states, "best": self.best})
        sum_over_processes(torch.zeros(1), self.device)  # none goes on, or ends, before it is written
        if self.stop:
            how = f"stopped after step {self.at['step']}; {how_to_go_on(self.folder)}"
            raise KeyboardInterrupt(128 + (self.signals or [signal.SIGTERM])[0], how)


# ---------------------------------------------------------------------------------------------------------------------
# How a script ends


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an InputError, and so one line."""

    def error(self, message):
        raise InputError(f"{message}; see --help")


def say(message):
    """Print a line on standard error, once a machine."""
    launch = launched()
    if launch.local_rank == 0:
        where = f"rank {launch.rank}: " if launch.rank else ""
        print(f"{Path(sys.argv[0]).name}: {where}{message}", file=sys.stderr)


def note(message):
    """Say something once a run, whatever characters a user's file brings into it."""
    if processes()[0] == 0:
        say(printable(message))


def warn(message):
    if processes()[0] == 0:
        mark = "\033[1;33mwarning:\033[0m" if sys.stderr.isatty() else "warning:"  # bold and yellow
        say(f"{mark} {printable(message)}")


def run_script(main):
    """Call main(); a user's mistake is one line on stderr and exit status 2, Ctrl-C 130, a closed pipe a quiet 141."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has none
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal's encoding lacks a character
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's large tensors in huge pages: 7 % of a step on Linux
    try:
        main()
        leave_processes()
        sys.stdout.flush()
    except (InputError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            if not dist.is_initialized() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            error = f"another process of this run ended or failed ({str(error).splitlines()[0]})"
        name = getattr(error, "filename", "")
        if name is None or isinstance(error, BrokenPipeError):  # standard output, which the flush at exit would meet
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        reason = f"{name}: {error.strerror}" if name else getattr(error, "strerror", None) or error
        say(f"error: {printable(str(reason))}")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        status, how = stop.args or (130, "interrupted")
        say(how)
        leave_processes()
        sys.exit(status)
