"""What must last: files that are written whole or not at all, records that notice damage, a folder
that only one process writes to, and a training that is stopped and goes on to the same end.

This file never knows a model or a task: it keeps their states and records, and looks into neither.
"""

import errno
import hashlib
import itertools
import json
import os
import shlex
import signal
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from .errors import InputError, input_errors
from .processes import count, from_rank_0, is_first, launched, sum_over_processes

# --------------------------------------------------------------------------------------------------
# Files


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path, digest):
    """Raise ValueError where the file's SHA-256 is another one."""
    if file_sha256(path) != digest:
        raise ValueError(f"{Path(path).name} is not as it was written")


@contextmanager
def naming(path):
    """Name the file in an OSError that names none, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if not error.filename:
            error.filename = str(path)
        raise


def remove(folder, *patterns):
    """Delete the files in the folder that match one of the patterns."""
    for pattern in patterns:
        for path in Path(folder).glob(pattern):
            path.unlink(missing_ok=True)


# What a file system answers that lacks a service: blob storage, Lustre, NFS, DBFS
NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def flush_to_disk(file):
    """Wait until what was written to an open file is on the disk, where there is such a thing."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


@contextmanager
def replacing(path):
    """Give a path beside `path` to write to. At the end, that file takes the place of `path`.

    So `path` is written as a whole and is on the disk, or it stays as it was.
    """
    beside = Path(f"{path}.partial")
    try:
        with naming(path):
            beside.touch()
            mode = beside.stat().st_mode
            yield beside
            with open(beside, "rb+") as file:
                flush_to_disk(file)
            with suppress(OSError):  # some file systems have no modes
                beside.chmod(mode)  # safetensors makes its files private
            os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write(path, content):
    """Replace a file as a whole. `content`: bytes, or what becomes JSON."""
    if not isinstance(content, bytes):
        content = json.dumps(content, indent=1).encode()
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_tensors(path, save_file, tensors):
    """Replace a file by what save_file(tensors, path) writes -> its SHA-256. Raises InputError."""
    with input_errors(f"{path}: cannot be written"), replacing(path) as beside:
        save_file(tensors, beside)
        return file_sha256(beside)


def tensors_sha256(state):
    """A SHA-256 of {name: tensor}: of the names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def record_sha256(record):
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def write_record(path, record):
    """Write a dict as JSON, with a SHA-256 by which `read_record` notices damage."""
    write(path, record | {"sha256": record_sha256(record)})


def read_record(path):
    """What `write_record` wrote. Raises ValueError, KeyError or OSError."""
    record = json.loads(Path(path).read_text("utf-8"))
    if record.pop("sha256") != record_sha256(record):
        raise ValueError(f"{Path(path).name} is not as it was written")
    return record


@contextmanager
def locked(lock_file, what):
    """Let no other process write to `what` meanwhile. Raises InputError where one does already.

    The lock ends with its process, in whatever way that ends. Where the file system has no such
    locks, a file stands for the lock, and a killed process on another machine leaves it there.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    Path(lock_file).touch()  # where this cannot be, FileLock would say that it is locked
    message = f"{what}: another process is writing there"
    if has_locks(lock_file):
        lock = FileLock(lock_file, timeout=0)  # it gives up at once
    else:
        soft = f"{lock_file}.soft"
        message += f", or was killed; if none is, delete {soft} (this file system has no locks)"
        lock = SoftFileLock(soft, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(message) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not delete an open file
            os.unlink(lock_file)
        lock.release()


def has_locks(path):
    """Whether the file system of an existing file has locks that end with their process."""
    try:
        import fcntl
    except ImportError:  # Windows has others
        return True
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the file's closing
        except OSError as error:
            return error.errno not in NOT_SUPPORTED
    return True


# --------------------------------------------------------------------------------------------------
# The folder of a run: a new one, or that of a run which was stopped

RUN_FILES = (
    "metrics.json",
    "config.json",
    "snapshot*",
    "model.safetensors",
    "log.jsonl",
    "test_predictions.jsonl",
    "train_rows.bin",
    "report.png",
)
# What a killed write leaves: the first is our own name, the second that of safetensors
LEFTOVERS = ("*.partial", ".tmp??????")
# What a run leaves that is killed before it has begun, that is before config.json is there
BEFORE_BEGIN = {"config.json.partial", "tokenizer.json.partial", "tokenizer.json"}
BEFORE_BEGIN |= {"run.lock", "run.lock.soft"}


def is_run(folder):
    """Whether the folder holds a run, finished or not."""
    config = Path(folder) / "config.json"
    return config.is_file() and b'"weights_sha256"' in config.read_bytes()


def how_to_resume(folder):
    return f"go on with: python train.py --resume {shlex.quote(str(folder))}"


def read_config(folder):
    """The record that a run began with. Raises InputError where there is none that can go on."""
    with input_errors(f"{folder}: no run to resume"):
        config = read_record(Path(folder) / "config.json")
        for argument in config["flags"]["argv"]:
            if not isinstance(argument, str):
                raise ValueError("its flags are damaged")
    if not {"fitted", "encoder_sha256"} <= config.keys():
        reason = "it was begun with a former version of mtbert; start it again"
        raise InputError(f"{folder}: {reason}")
    return config


def make_folder(out, variant):
    """Make the folder `out`, or without it the first of runs/`variant`-N that is free.

    -> its path, and a list of all folders that were made for it, innermost first.
    """
    if out is not None:
        folder = Path(out)
        made = missing_folders(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{folder} is a file; --out names a folder") from None
        return folder, made
    for n in itertools.count(1):
        folder = Path("runs") / f"{variant}-{n}"
        made = missing_folders(folder)
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder, made


def missing_folders(folder):
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders):
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def open_run(out, resume, overwrite, variant, device, go_on=False):
    """Decide where a run is kept and whether it is new. Meanwhile no other process writes there.

    -> folder, the record that the run began with (None: it is new), and whether it is finished.
    A run goes on where `resume` names its folder, where torchrun restarts processes that it has
    started with this `out` before, and with `go_on` where a run has begun in `out`. Otherwise it
    is new, in `out` or a new folder under runs/.
    Raises InputError where the folder is in use. What was made for a mistake is removed.
    """
    launch = launched()
    if launch.max_restarts > 0 and resume is None and (out is None or overwrite):
        raise InputError(
            "torchrun --max-restarts takes --out FOLDER, to find the run again, and no --overwrite"
        )
    # Each machine counts its own restarts
    restarts = sum_over_processes(torch.tensor(launch.restarts), device).item()
    with ExitStack() as held:
        opened = None
        if is_first():
            if resume is None and is_begun(out) and (go_on or is_restart(restarts, launch, out)):
                resume = out
            opened = enter_folder(held, out, resume, overwrite, variant)
        folder, record, finished = from_rank_0(opened)
        try:
            yield folder, record, finished
        except KeyboardInterrupt as stop:
            status, message = stop.args or (130, "interrupted")
            # With --overwrite, config.json may still be that of the run to be overwritten
            begun = is_begun(folder) and (record is not None or not overwrite)
            if begun and "--resume" not in message:
                message += f"; {how_to_resume(folder)}"
            raise KeyboardInterrupt(status, message) from None


def is_begun(folder):
    return folder is not None and (Path(folder) / "config.json").exists()


def is_restart(restarts, launch, out):
    """Whether this call of torchrun has begun the run in the folder `out`, before a restart."""
    return restarts > 0 and read_config(out)["launcher"] == launch.name


def enter_folder(held, out, resume, overwrite, variant):
    """Find or make the folder of a run and lock it, until the ExitStack `held` ends.

    -> folder, record and finished, as `open_run` gives them.
    """
    if resume is None:
        record = None
        folder, made = make_folder(out, variant)
        held.callback(remove_empty, made)
    else:
        record = read_config(resume)
        folder = Path(resume)
    held.enter_context(locked(folder / "run.lock", folder))
    if record is None and not overwrite:
        check_unused(folder)
    finished = record is not None and (folder / "metrics.json").exists()
    if finished:
        remove(folder, "snapshot*")  # it may have been killed just before it did so itself
    return folder, record, finished


def check_unused(folder):
    """Raise InputError where something is in the folder that a new run would overwrite."""
    names = {path.name for path in folder.iterdir()}
    if names <= BEFORE_BEGIN:
        return
    hint = "name another folder, or add --overwrite"
    if "config.json" in names:
        hint += f", or go on with --resume {shlex.quote(str(folder))}"
    raise InputError(f"--out {folder} is in use; {hint}")


def begin(folder):
    """Clear the folder of a new run of what a former one left there."""
    remove(folder, *RUN_FILES, *LEFTOVERS)


def check_resume(folder, saved, current):
    """Raise InputError unless a run that began with the record `saved` can go on as `current`.

    Compared are the keys on which the result depends.
    -> a sentence where library versions differ, else None.
    """
    keys = ("encoder", "tasks", "pooling", "truncation", "max_length")
    for key in (*keys, "encoder_sha256", "tokenizer_sha256"):
        if saved[key] != current[key]:
            reason = f"its {key} is not what it was when the run began: {current[key]}"
            raise InputError(f"{folder}: {reason}"[:300])
    remove(folder, *LEFTOVERS)
    then, now = saved["versions"], current["versions"]
    if then == now:
        return None
    return f"the run began with {then}; now, with {now}, it will not repeat to the bit"


# --------------------------------------------------------------------------------------------------
# A training that can be stopped: its signals, its snapshots, and where it stands


# A snapshot is due so many seconds after the last one, but not before 20 times what writing that
# one took: so snapshots take a twentieth of the time at most.
SNAPSHOT_SECONDS = 60
# Ctrl-C, kill, a terminal that is closed, and what clusters are asked to send before time is up
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


@contextmanager
def stop_signals():
    """A list that gets the number of each signal that asks to stop: Ctrl-C, and STOP_SIGNALS.

    A second one raises KeyboardInterrupt at once. Not under torchrun: it passes on a Ctrl-C that
    the terminal has already sent to each process, so there two of them are one.
    Only the main thread can receive signals; in any other the list stays empty.
    """
    received = []

    def receive(number, frame):
        if received and count() == 1:
            raise KeyboardInterrupt(128 + number, "interrupted")
        received.append(number)

    former = {}
    if threading.current_thread() is threading.main_thread():
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)
            if number is None:  # Windows has two of them
                continue
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores signals, and so do we
                former[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def save_snapshot(folder, progress, tensors):
    """Replace the folder's snapshot. `progress` is for JSON; `tensors` for torch.save.

    The tensors have a file of their own. They count once snapshot.json names them.
    """
    folder = Path(folder)
    path = folder / f"snapshot-{progress['epoch']}-{progress['batch']}.pt"
    digest = write_tensors(path, torch.save, tensors)
    record = {"file": path.name, "file_sha256": digest, "progress": progress}
    write_record(folder / "snapshot.json", record)
    for former in folder.glob("snapshot-*"):
        if former != path:
            former.unlink()


def load_snapshot(folder):
    """-> progress, tensors, as given to `save_snapshot`.

    Raises ValueError where a file is damaged, and what torch.load raises.
    """
    record = read_record(Path(folder) / "snapshot.json")
    path = Path(folder) / Path(record["file"]).name
    check_sha256(path, record["file_sha256"])
    return record["progress"], torch.load(path, map_location="cpu", weights_only=True)


def has_snapshot(folder):
    return (Path(folder) / "snapshot.json").exists()


@contextmanager
def open_log(path, size):
    """The log, open to append to, without what follows its first `size` bytes.

    The steps behind these come after the snapshot, so they are done and logged again.
    """
    if not is_first():
        path = os.devnull
    with naming(path), open_to_append(path) as file:
        if is_first():
            if os.fstat(file.fileno()).st_size < size:
                raise InputError(f"{path} is shorter than when its snapshot was written")
            file.truncate(size)
        yield file


def open_to_append(path):
    try:
        return open(path, "a", buffering=1)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    reason = "this file system cannot append to a file"
    raise InputError(f"{path}: {reason}; name an --out on a local disk, and copy the run later")


class Run:
    """A training that can be stopped after any step, and goes on to the same end, to the bit.

    with Run(folder, parts, state) as run:
        for epoch in range(run.epoch, epochs + 1):
            for batch in run.steps(batches, f"epoch {epoch}"):
                ...  # one step
                run.log({"step": run.step, "loss": loss})
            run.end_epoch()

    parts: {"model": ..., "optimizer": ..., and others with a state_dict and a load_state_dict}.
    state: a dict of JSON values, for whatever the caller must remember; run.state from then on.

    A snapshot holds the parts' states, run.state, run.best and the place in the epoch. It is
    written when SNAPSHOT_SECONDS have passed since the last one, after every `save_every` steps,
    and after the step in which a signal arrives. That signal then raises
    KeyboardInterrupt(exit status, how to resume). Where the folder has a snapshot, the training
    goes on from there, so the batches of an epoch and the randomness in a step must depend on
    nothing but run.epoch, run.step and what is in the snapshot.
    Of several processes each takes the same steps; process 0 writes.
    Raises InputError where the snapshot or the log is damaged.
    """

    def __init__(self, folder, parts, state, save_every=None):
        self.folder = Path(folder)
        self.parts = parts
        self.save_every = save_every
        self.device = next(parts["model"].parameters()).device
        self.epoch = 1  # the number of the epoch that is on
        self.batch = 0  # how many of its batches are done
        self.step = 0  # the number of the step that is on, over all epochs
        self.seconds = 0.0  # spent in steps, so without evaluation
        self.state = state
        self.best = {}  # tensors on the CPU, by name
        self.log_size = 0  # bytes of the log that the snapshot knows
        self.next_snapshot = time.monotonic() + SNAPSHOT_SECONDS
        if has_snapshot(self.folder):
            with input_errors(f"{folder}: its snapshot cannot be used"):
                self.restore()

    def restore(self):
        progress, tensors = load_snapshot(self.folder)
        self.epoch = progress["epoch"]
        self.batch = progress["batch"]
        self.step = progress["step"]
        self.seconds = progress["seconds"]
        self.state = progress["state"]
        self.log_size = progress["log_size"]
        self.best = tensors["best"]
        for name, part in self.parts.items():
            part.load_state_dict(tensors["parts"][name])

    def save(self):
        if is_first():
            flush_to_disk(self.file)
            self.log_size = os.fstat(self.file.fileno()).st_size
            progress = {
                "epoch": self.epoch,
                "batch": self.batch,
                "step": self.step,
                "seconds": self.seconds,
                "state": self.state,
                "log_size": self.log_size,
            }
            states = {name: part.state_dict() for name, part in self.parts.items()}
            start = time.monotonic()
            save_snapshot(self.folder, progress, {"parts": states, "best": self.best})
            end = time.monotonic()
            self.next_snapshot = end + max(SNAPSHOT_SECONDS, 20 * (end - start))
        # No process goes on, or ends, before the snapshot is written
        sum_over_processes(torch.zeros(1), self.device)

    def __enter__(self):
        with ExitStack() as held:
            log = open_log(self.folder / "log.jsonl", self.log_size)
            self.file = held.enter_context(log)
            self.signals = held.enter_context(stop_signals())
            self.held = held.pop_all()
        return self

    def __exit__(self, *error):
        return self.held.__exit__(*error)

    def steps(self, batches, name):
        """Yield the batches of the epoch that are not done yet, under a progress bar `name`."""
        self.bar = tqdm(
            batches[self.batch :],
            name,
            total=len(batches),
            initial=self.batch,
            leave=False,
            disable=None if is_first() else True,  # None: only where it is no terminal
        )
        for batch in self.bar:
            start = time.perf_counter()
            self.step += 1
            yield batch
            self.batch += 1
            self.seconds += time.perf_counter() - start
            self.save_or_stop(due=self.save_every and self.step % self.save_every == 0)

    def log(self, entry):
        """Append a line of JSON to log.jsonl."""
        self.file.write(json.dumps(entry) + "\n")

    def show(self, values):
        """Show {name: text} behind the progress bar."""
        self.bar.set_postfix(values, refresh=False)

    def end_epoch(self):
        """Turn to the next epoch."""
        self.epoch += 1
        self.batch = 0
        self.save_or_stop()

    def save_or_stop(self, due=False):
        """Write a snapshot if it is due, by steps or by time. Write one and stop after a signal.

        The clock of process 0 counts, and a signal to any process.
        """
        late = is_first() and time.monotonic() > self.next_snapshot
        news = torch.tensor([len(self.signals), int(late)])
        signals, late = sum_over_processes(news, self.device).tolist()
        told_to_stop = signals > 0
        if due or late or told_to_stop:
            self.save()
        if told_to_stop:
            number = signal.SIGTERM  # where only another process got one
            if self.signals:
                number = self.signals[0]
            message = f"stopped after step {self.step}; {how_to_resume(self.folder)}"
            raise KeyboardInterrupt(128 + number, message)
