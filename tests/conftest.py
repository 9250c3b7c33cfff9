"""What the tests of several rooms use: small models, a training of them, and the command lines."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest

from test_mtbert import (  # it sets the environment, so it comes first
    BUNDLED,
    MOOD,
    STARS,
    TAGS,
    TWO,
    batch_of,
    dropouts,
    make_rows,
    partly_labelled_rows,
    tiny,
    tiny_checkpoint,
    tiny_model,
    train_tiny,
)

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "sample_data.json"
__all__ = [
    "BUNDLED",
    "MOOD",
    "ROOT",
    "SAMPLE",
    "STARS",
    "TAGS",
    "TWO",
    "batch_of",
    "dropouts",
    "make_rows",
    "partly_labelled_rows",
    "tiny",
    "tiny_checkpoint",
    "tiny_model",
    "train_tiny",
]


@pytest.fixture
def script(capsys, monkeypatch):
    """Run a script's real file with a command line -> (exit status, stdout, stderr)."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def signal_at(monkeypatch):
    """Send this process a signal at the n-th call of a function of a module.

    -> the list that grows with each call.
    """

    def arrange(module, name, n, number):
        calls = []
        function = getattr(module, name)

        def stopped(*arguments, **named):
            calls.append(name)
            if len(calls) == n:
                os.kill(os.getpid(), number)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, stopped)
        return calls

    return arrange


@pytest.fixture
def without_gpu(monkeypatch):
    """Compute on the CPU where there is a GPU, too; not in processes that the test starts."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.fixture(params=["float32", "bfloat16", "int8"])
def arithmetic(request, monkeypatch, without_gpu):
    """Run the test as on CPUs that predict fastest in float32, in bfloat16, and in int8."""
    monkeypatch.setenv("MTBERT_ARITHMETIC", request.param)
    return request.param


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The folder of a run on two tasks: classes out of a CSV file, and a number."""
    folder = tmp_path_factory.mktemp("finished")
    lines = ["text,liked,stars"]
    for i in range(40):
        mood, liked = ("good", "yes") if i % 2 else ("bad", "no")
        lines.append(f"film {i} is {mood},{liked},{i / 4}")
    (folder / "rows.csv").write_text("\n".join(lines[:37]))
    (folder / "val.csv").write_text("\n".join([lines[0], *lines[37:]]))
    command = [sys.executable, ROOT / "train.py", "--encoder", tiny, "--epochs", "2"]
    command += ["--data", folder / "rows.csv", "--val", folder / "val.csv", "--out", folder / "run"]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return folder / "run"
