"""Kill training runs, fail their writes, damage their models, and count what is lost.

python benchmarks/faults.py                # about 20 minutes on two cores
python benchmarks/faults.py --kills 5 --damages 20

Each run is a process of its own, forked off this one, which has imported everything and computed nothing.
"""

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import safetensors.torch
import torch
import transformers  # noqa: F401, imported here once
from sklearn import metrics  # noqa: F401
from tqdm import tqdm

import mtbert
import runs
import train
from data import InputError

FLAGS = ["--epochs", "2", "--save-every", "10", "--out", "run"]
CALLS = ((os, "fsync"), (os, "replace"), (torch, "save"), (safetensors.torch, "save_file"), (Path, "write_bytes"), (Path, "unlink"))


def start(folder, flags, fault=lambda: None):
    """Fork a process that runs train.py in `folder`, after fault() -> its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        with open("output", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.argv = ["train.py", *flags]
        fault()
        runs.run_script(train.main)
        os._exit(0)
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code or 0)
    finally:
        os._exit(99)  # an exception that nobody caught


def flags_of(folder, flags):
    return ["--resume", "run"] if (folder / "run/config.json").exists() else flags


def finish(folder, flags):
    _, status = os.waitpid(start(folder, flags_of(folder, flags)), 0)
    assert status == 0, (folder / "output").read_text()


def result(folder):
    """All files of a finished run that must not depend on what befell it."""
    files = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    found = json.loads(files.pop("metrics.json"))
    return files | {"validation": found["validation"], "test": found["test"]}


def kill_runs(parent, count, random):
    """-> kills, runs, runs lost. Every second kill is aimed at the writing of a file."""
    kills, runs, lost = 0, 0, 0
    bar = tqdm(total=count, desc="kills", disable=None)
    while kills < count:
        seed = runs % 3  # three undisturbed runs to compare with
        flags = [*FLAGS, "--seed", str(seed)]
        whole, killed = parent / f"whole-{seed}", parent / "killed"
        killed.mkdir()
        if not whole.exists():
            whole.mkdir()
            begin = time.perf_counter()
            finish(whole, flags)
            duration = time.perf_counter() - begin
        runs += 1
        while not (killed / "run/metrics.json").exists():
            pid = start(killed, flags_of(killed, flags))
            end, status = time.perf_counter() + random.uniform(0, duration), 0
            aimed, writes, former = random.random() < 0.5, random.randint(1, 4), None
            while not os.waitpid(pid, os.WNOHANG)[0]:
                writing = next((path.name for path in (killed / "run").glob("*.partial")), None)
                writes -= writing is not None and writing != former
                former = writing
                if writes < 0 if aimed else time.perf_counter() > end:
                    time.sleep(random.uniform(0, 0.1) if aimed else 0)
                    os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                    break
                time.sleep(0.0005)
            if status != signal.SIGKILL:
                break
            kills += 1
            bar.update()
        finish(killed, flags)  # a finished run says so, and clears away what a kill behind its last step left
        ours, theirs = result(killed), result(whole)
        if ours != theirs:
            print({name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name)}, "differ")
            lost += 1
        print(f"{kills} kills in {runs} runs, {lost} lost", flush=True)
        shutil.rmtree(killed)
    bar.close()
    return kills, runs, lost, whole


def fail_writes(parent, whole, flags, random):
    """Fail each call that writes in turn, then writes beyond random sizes -> (faults, lost) of both."""

    def fail_call(n):
        def failing(function):
            def call(*arguments, **named):
                calls.append(1)
                if len(calls) == n:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return function(*arguments, **named)

            return call

        calls = []
        for module, name in CALLS:
            setattr(module, name, failing(getattr(module, name)))

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def lost(name, fault):
        """True if the run is lost, None if the fault never came."""
        folder = parent / name
        folder.mkdir()
        _, status = os.waitpid(start(folder, flags, fault), 0)
        if status == 0:
            return None
        output = (folder / "output").read_text()
        clear = os.waitstatus_to_exitcode(status) == 2 and output.splitlines()[-1].startswith("train.py: error: ")
        finish(folder, flags)
        survived = clear and result(folder) == whole
        if not survived:
            print(f"{name}: {output}")
        shutil.rmtree(folder)
        return not survived

    calls = []
    with tqdm(desc="failed calls", disable=None) as bar:
        while (found := lost(f"call-{len(calls)}", lambda: fail_call(len(calls) + 1))) is not None:
            calls.append(found)
            bar.update()
    sizes = [int(10 ** random.uniform(4, 8.5)) for _ in range(12)]
    limits = [lost(f"limit-{size}", lambda: limit(size)) for size in tqdm(sizes, "limits", disable=None)]  # noqa: B023
    limits = [found for found in limits if found is not None]
    return (len(calls), sum(calls)), (len(limits), sum(limits))


def damage_models(parent, folder, other, count, random):
    """-> {kind of damage: [refused, predicted as before, lost]} over `count` copies of the model in `folder`."""
    texts = ["great movie", "The score does all the feeling.", "no"]
    expected = mtbert.predict(mtbert.load(folder), texts)
    kinds = {kind: [0, 0, 0] for kind in ("bit flipped", "truncated", "file missing", "file of another model")}
    copy = parent / "copy"
    for i in tqdm(range(count), "damages", disable=None):
        shutil.copytree(folder, copy, copy_function=os.link)
        kind = list(kinds)[i % 4]
        path = copy / ("config.json", "tokenizer.json", "model.safetensors")[i // 4 % 3]
        path.unlink()
        if kind == "file of another model":
            shutil.copy(other / path.name, path)
        elif kind != "file missing":
            shutil.copy(folder / path.name, path)
            with open(path, "rb+") as file:
                place = random.randrange(path.stat().st_size)
                if kind == "truncated":
                    file.truncate(place)
                else:
                    file.seek(place)
                    byte = file.read(1)[0]
                    file.seek(place)
                    file.write(bytes([byte ^ 1 << random.randrange(8)]))
        try:
            kinds[kind][1 if mtbert.predict(mtbert.load(copy), texts) == expected else 2] += 1
        except InputError:
            kinds[kind][0] += 1
        except Exception as error:
            print(f"{kind}, {path.name}: {error!r}")
            kinds[kind][2] += 1
        shutil.rmtree(copy)
    return kinds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--damages", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    random = Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        kills, runs, lost, whole = kill_runs(Path(folder), args.kills, random)
        small, flags = Path(folder) / "small", [*FLAGS[:2], *FLAGS[4:], "--data", "../rows.json"]
        small.mkdir()
        rows = json.loads(train.SAMPLE.read_text())["train"]
        (Path(folder) / "rows.json").write_text(json.dumps(rows[::8]))
        finish(small, flags)
        calls, limits = fail_writes(Path(folder), result(small), flags, random)
        kinds = damage_models(Path(folder), whole / "run", small / "run", args.damages, random)
    print(f"{'fault':60}{'tried':>8}{'survived':>10}{'lost':>6}")
    print(f"{f'SIGKILL, in {runs} runs (lost: runs)':60}{kills:8}{kills - lost:10}{lost:6}")
    for name, (tried, lost) in (("a writing call fails: no space left", calls), ("file-size limit", limits)):
        print(f"{name:60}{tried:8}{tried - lost:10}{lost:6}")
    for kind, (refused, same, lost) in kinds.items():
        name = f"model: {kind} ({refused} refused, {same} predict as before)"
        print(f"{name:60}{refused + same + lost:8}{refused + same:10}{lost:6}")


if __name__ == "__main__":
    main()
