"""Kill training runs, fail their writes, damage their models, and count what is lost.

python benchmarks/faults.py                      # all parts
python benchmarks/faults.py --kills 100          # one of them, with its number of tries
python benchmarks/faults.py --damages 1000 --configurations 1000 --seed 1

Each part takes at most 15 minutes on two cores, but all faults of --writes take half an hour.
tiny_runs.py has the runs, configurations.py the hostile configurations, together.py what happens
where several work at once. What is left of a run that was killed, or whose write failed, must go on
to the same files, to the bit, as those of a run that nothing befell. Nothing may end with a
traceback, or take ten seconds more than usual.
"""

import errno
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import safetensors.torch
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import configurations
import together
from tiny_runs import (
    FLAGS,
    KINDS_OF_RUNS,
    ends_as,
    import_everything,
    is_equal,
    is_one_line,
    read_result,
    run_undisturbed,
    start,
    start_or_resume,
    wait,
    write_inputs,
)

import mtbert
import train
from support import runs
from support.errors import InputError
from support.script import Parser, number, run_script

# The number of tries of each part, where the command line names none
USUAL = {
    "kills": 100,
    "writes": 1000,
    "damages": 1000,
    "configurations": 1000,
    "threads": 20,
    "forks": 100,
    "folders": 50,
    "outputs": 50,
    "processes": 6,
}
# Everything through which a run writes or deletes files
WRITING_CALLS = (
    (os, "fsync"),
    (os, "replace"),
    (os, "chmod"),
    (os, "mkdir"),
    (os, "unlink"),
    (torch, "save"),
    (safetensors.torch, "save_file"),
    (Path, "write_bytes"),
    (Path, "touch"),
    (runs, "open_to_append"),
)
MODEL_FILES = ("config.json", "tokenizer.json", "model.safetensors")
TEXTS = ["great movie", "The score does all the feeling.", "no"]


def before_each_write(action):
    """Let action(name) be called before each writing call of this process."""

    def watched(name, function):
        def call(*arguments, **named):
            action(name)
            return function(*arguments, **named)

        return call

    for place, name in WRITING_CALLS:
        setattr(place, name, watched(name, getattr(place, name)))


# --------------------------------------------------------------------------------------------------
# Kills. A run is in a phase from the call of one of these functions until that of another one.

PHASES = (
    ("reading", train, "prepare"),
    ("removal", runs, "remove"),
    ("save", mtbert, "save"),
    ("heads", train, "start_heads"),
    ("steps", mtbert, "forward_backward"),
    ("snapshot", runs, "save_snapshot"),
    ("validation", mtbert, "compute_logits"),
    ("calibration", mtbert, "calibrate"),
    ("epoch end", runs.Run, "end_epoch"),
    ("test", mtbert, "load"),
    ("metrics", train, "write_test_predictions"),
    ("picture", train, "draw"),
)


class Moment(NamedTuple):
    """When a run is killed: in a visit of a phase, after a delay or before one of its writes."""

    phase: str
    visit: int  # from 1
    delay: float | None  # seconds
    write: int | None  # the number of the writing call of this visit, from 1


class Watch:
    """Follows the process that it is made in from phase to phase, and kills it at a moment."""

    def __init__(self, moment=None):
        self.moment = moment
        self.visits = []  # [phase, when it began, how many writing calls it made]
        self.has_come = False  # the moment's visit
        for phase, place, name in PHASES:
            setattr(place, name, self.watched(phase, getattr(place, name)))
        before_each_write(self.write)

    def watched(self, phase, function):
        def call(*arguments, **named):
            self.enter(phase)
            return function(*arguments, **named)

        return call

    def enter(self, phase):
        if self.has_come:  # the phase was shorter than usual: this is its end
            die()
        self.visits.append([phase, time.time(), 0])
        if self.moment is None or phase != self.moment.phase:
            return
        number = sum(visit[0] == phase for visit in self.visits)
        if number == self.moment.visit:
            self.has_come = True
            if self.moment.delay is not None:
                # This signal, for which there is no handler, ends the process as SIGKILL does
                signal.setitimer(signal.ITIMER_REAL, max(self.moment.delay, 1e-6))

    def write(self, name):
        if not self.visits:
            return
        self.visits[-1][2] += 1
        if self.has_come and self.visits[-1][2] == self.moment.write:
            die()

    def end(self):
        """To be called at the end: writes down what the phases took."""
        self.enter("end")
        visits = []
        for visit, following in zip(self.visits, self.visits[1:], strict=False):
            phase, begin, num_writes = visit
            visits.append([phase, following[1] - begin, num_writes])
        Path("visits.json").write_text(json.dumps(visits))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch(moment=None):
    """Watch this process -> a function to be called at its end."""
    global watching
    watching = Watch(moment)


def end_watch():
    watching.end()


def choose_moment(visits, phase, is_first, rng):
    """A moment in a phase, of which an undisturbed run has these visits: (phase, seconds, writes).

    With `is_first` in its first visit, since what goes on may have no other.
    """
    found = [visit for visit in visits if visit[0] == phase]
    n = rng.randint(1, len(found))
    _, seconds, num_writes = found[n - 1]
    if is_first:
        n = 1
    if num_writes > 0 and rng.random() < 0.5:
        return Moment(phase, n, None, rng.randint(1, num_writes))
    return Moment(phase, n, rng.uniform(0, seconds), None)


def kill_runs(parent, count, rng):
    """Kill runs `count` times -> {phase: [kills, of these of a run that goes on, broken]}."""
    wholes = []
    visits_of = []
    for n, flags in enumerate(KINDS_OF_RUNS.values()):
        flags = [*FLAGS, *flags, "--seed", str(n)]
        folder = parent / f"whole-{n}"
        wholes.append(run_undisturbed(folder, flags, watch, end_watch))
        visits_of.append(json.loads((folder / "visits.json").read_text()))
    table = {phase: [0, 0, 0] for phase, _, _ in PHASES}
    num_kills = 0
    num_resumed = 0
    num_runs = 0
    folder = parent / "killed"
    with tqdm(total=count, desc="kills", disable=None) as bar:
        while num_kills < count:
            kind = num_runs % len(wholes)
            whole = wholes[kind]
            num_runs += 1
            folder.mkdir()
            moments = []
            for is_resumed in (False, True):
                is_often_enough = is_resumed and 5 * num_resumed >= num_kills
                if is_often_enough or num_kills == count:
                    break
                phases = sorted({visit[0] for visit in visits_of[kind]})
                phase = min(phases, key=lambda phase: table[phase][0])
                if is_resumed:
                    phase = rng.choice(phases)
                moment = choose_moment(visits_of[kind], phase, is_resumed, rng)
                pid = start_or_resume(folder, whole.flags, partial(watch, moment))
                status = wait(pid, whole.limit)
                if status not in (-signal.SIGKILL, -signal.SIGALRM):
                    break  # this phase did not come
                moments.append(moment)
                table[phase][0] += 1
                table[phase][1] += is_resumed
                num_kills += 1
                num_resumed += is_resumed
                bar.update()
            if not ends_as(folder, whole):
                print(f"broken: {list(KINDS_OF_RUNS)[kind]}, killed at {moments}", flush=True)
                for moment in moments:
                    table[moment.phase][2] += 1
            shutil.rmtree(folder)
            print(f"{num_kills} kills of {num_runs} runs", flush=True)
    return table


# --------------------------------------------------------------------------------------------------
# Writes that fail. Each fault is a function that is called in the run's process.


def fail_from(code, first, last):
    """Let the writing calls from the first-th to the last-th fail."""
    num_calls = 0

    def fail(name):
        nonlocal num_calls
        num_calls += 1
        if first <= num_calls <= last:
            raise OSError(code, os.strerror(code))

    before_each_write(fail)


def fail_always(code, name):
    """Let each call of that name fail, as on file systems that lack it."""

    def fail(called):
        if called == name:
            raise OSError(code, os.strerror(code))

    before_each_write(fail)


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def count_writes():
    global num_writes
    num_writes = 0

    def add(name):
        global num_writes
        num_writes += 1

    before_each_write(add)


def note_writes():
    Path("writes.json").write_text(json.dumps(num_writes))


def survives(folder, whole, fault, must_end_well=False):
    """Whether a run survives a fault: it goes on to the files of an undisturbed one.

    It may end with one line for the user; it may end well if only its picture could not be drawn.
    """
    folder.mkdir()
    status = wait(start(folder, whole.flags, fault), whole.limit)
    is_clear = status == 0 or (status == 2 and is_one_line(folder) and not must_end_well)
    output = (folder / "output").read_text()
    is_whole = is_clear and "Traceback" not in output
    if is_whole and status == 0 and must_end_well:
        is_whole = is_equal(read_result(folder), whole.result)
    is_whole = ends_as(folder, whole) and is_whole
    if not is_whole:
        print(f"broken: {folder.name}, status {status}: {output}", flush=True)
    shutil.rmtree(folder)
    return is_whole


def fail_writes(parent, count, rng):
    """Try `count` faults at most -> {fault: [tried, broken]}."""
    flags = [*FLAGS, *list(KINDS_OF_RUNS.values())[1], "--seed", "3"]
    whole = run_undisturbed(parent / "written", flags, count_writes, note_writes)
    num_calls = json.loads((parent / "written/writes.json").read_text())
    faults = []
    for n in range(1, num_calls + 1):
        faults.append(("no space left for one write", partial(fail_from, errno.ENOSPC, n, n)))
        read_only = partial(fail_from, errno.EROFS, n, num_calls + 100)
        faults.append(("read-only from one write on", read_only))
    for _ in range(12):
        size = int(10 ** rng.uniform(4.3, 7.2))  # more than the run prints, and says at last
        faults.append(("a limit of the size of files", partial(limit_file_size, size)))
    rng.shuffle(faults)
    unsupported = []
    for code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        unsupported.append(("fsync is not supported", partial(fail_always, code, "fsync")))
    for code in (errno.EPERM, errno.ENOTSUP):
        unsupported.append(("chmod is not permitted", partial(fail_always, code, "chmod")))
    faults = [*unsupported, *faults][:count]
    table = {}
    for i, (name, fault) in enumerate(tqdm(faults, "writes", disable=None)):
        entry = table.setdefault(name, [0, 0])
        entry[0] += 1
        must_end_well = i < len(unsupported)
        entry[1] += not survives(parent / f"fault-{i}", whole, fault, must_end_well)
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


def damage_models(parent, count, rng):
    """-> {damage: [tried, broken, refused]} over `count` damaged copies of a model.

    Broken is a model that predicts something else, or fails without a message for the user.
    """
    folders = []
    for n in range(2):
        flags = [*FLAGS, *KINDS_OF_RUNS["texts"], "--seed", str(n)]
        folders.append(run_undisturbed(parent / f"model-{n}", flags).folder / "run")
    folder, other = folders
    expected = mtbert.predict(mtbert.load(folder), TEXTS)
    table = {name: [0, 0, 0] for name in DAMAGES}
    copy = parent / "copy"
    for i in tqdm(range(count), "damages", disable=None):
        name = list(DAMAGES)[i % len(DAMAGES)]
        path = copy / MODEL_FILES[i // len(DAMAGES) % len(MODEL_FILES)]
        copy.mkdir()
        for file_name in MODEL_FILES:
            shutil.copy(folder / file_name, copy)
        DAMAGES[name](path, other, rng)
        entry = table[name]
        entry[0] += 1
        try:
            entry[1] += mtbert.predict(mtbert.load(copy), TEXTS) != expected
        except InputError:
            entry[2] += 1
        except Exception as error:
            print(f"broken: {name}, {path.name}: {error!r}", flush=True)
            entry[1] += 1
        shutil.rmtree(copy)
    return table


# --------------------------------------------------------------------------------------------------
# All parts


def print_count(what, tried, broken):
    print(f"{what:60}{tried:>8}{broken:>8}", flush=True)


def print_kills(table):
    for phase, (kills, resumed, broken) in table.items():
        print_count(f"kill, {phase} ({resumed} of runs that go on)", kills, broken)
    total = [sum(column) for column in zip(*table.values(), strict=True)]
    print_count(f"kills in all ({total[1]} of runs that go on)", total[0], total[2])


def print_pairs(table):
    for what, (tried, broken) in table.items():
        print_count(what, tried, broken)


def print_damages(table):
    for what, (tried, broken, refused) in table.items():
        print_count(f"model: {what} ({refused} refused)", tried, broken)


PARTS = {  # those that compute in this process are the last: what computes cannot be forked
    "kills": (kill_runs, print_kills),
    "writes": (fail_writes, print_pairs),
    "threads": (together.share_models, print_pairs),
    "forks": (together.fork_with_models, print_pairs),
    "folders": (together.share_folders, print_pairs),
    "outputs": (together.share_outputs, print_pairs),
    "processes": (together.change_processes, print_pairs),
    "configurations": (configurations.try_configurations, configurations.print_outcomes),
    "damages": (damage_models, print_damages),
}


def main():
    parser = Parser(description="Kill runs, fail writes, damage models, and count what is lost.")
    flag = parser.add_argument
    tries = {"type": number(int, 0), "metavar": "N"}
    flag("--kills", **tries, help="kills, a fifth of them of a run that goes on after one")
    flag("--writes", **tries, help="runs of which a write fails, at most: each call in each way")
    flag("--damages", **tries, help="damaged models")
    flag("--configurations", **tries, help="hostile configurations")
    flag("--threads", **tries, help="rounds of threads that share a model, and load models at once")
    flag("--forks", **tries, help="processes forked from one that has a model")
    flag("--folders", **tries, help="pairs of runs on one folder")
    flag("--outputs", **tries, help="pairs of predictions into one file")
    flag("--processes", **tries, help="runs that go on with another number of processes")
    flag("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    counts = {part: getattr(args, part) for part in PARTS}
    if all(count is None for count in counts.values()):
        counts = USUAL
    import_everything()
    for part, (attempt, print_table) in PARTS.items():
        if not counts[part]:
            continue
        begin = time.time()
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(Path(folder))
            table = attempt(Path(folder), counts[part], Random(args.seed))
        minutes = (time.time() - begin) / 60
        print_count(f"\n{part}, {minutes:.1f} minutes, seed {args.seed}:", "tried", "broken")
        print_table(table)


if __name__ == "__main__":
    run_script(main)
