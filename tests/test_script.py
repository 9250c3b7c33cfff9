"""Properties of support/script.py: however a script ends, its user gets one line and a status."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import script
from support.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ends(capsys, monkeypatch):
    """Call run_script with a main() that raises an error -> (exit status, standard error)."""
    monkeypatch.setattr(sys, "argv", ["folder/some.py"])

    def end(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as stop:
            script.run_script(main)
        return stop.value.code, capsys.readouterr().err

    return end


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a.csv, row 3: wrong"), 2, "error: a.csv, row 3: wrong"),
        (InputError("of a\x1b[31m file"), 2, "error: of a\N{REPLACEMENT CHARACTER}[31m file"),
        (FileNotFoundError(2, "No such file", "a.csv"), 2, "error: a.csv: No such file"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt(143, "stopped; go on"), 143, "stopped; go on"),
    ],
)
def test_each_end_is_one_line_and_a_status(ends, error, status, line):
    assert ends(error) == (status, f"some.py: {line}\n")


def test_an_error_in_the_code_keeps_its_traceback(monkeypatch):
    for error in (RuntimeError("a bug"), KeyError("a bug")):

        def main(error=error):
            raise error

        with pytest.raises(type(error)):
            script.run_script(main)


PRINTS = """
from support import script


def main():
    for n in range(100000):
        print(n, "\\N{SNOWMAN}")


script.run_script(main)
"""


def test_a_closed_pipe_is_quiet_and_a_full_disk_is_one_line(tmp_path):
    program = tmp_path / "prints.py"
    program.write_text(PRINTS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} {program} | head -1"
    closed = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert (closed.stdout, closed.stderr) == ("0 \N{SNOWMAN}\n", "")
    with open("/dev/full", "w") as full:
        pipes = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, program], env=environment, **pipes)
        neither = subprocess.run(
            [sys.executable, program], env=environment, stdout=full, stderr=full
        )
    assert done.returncode == 2
    assert done.stderr == "prints.py: error: No space left on device\n"
    assert neither.returncode == 2  # where nothing can be said, the status says it


def test_a_character_that_the_terminal_lacks_is_escaped(tmp_path):
    program = tmp_path / "prints.py"
    program.write_text(PRINTS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True)
    assert done.returncode == 0
    assert done.stdout.startswith(b"0 \\u2603\n")


def test_a_mistake_in_a_flag_is_an_input_error():
    parser = script.Parser()
    parser.add_argument("--epochs", type=script.number(int, 1, 9))
    assert parser.parse_args(["--epochs", "3"]).epochs == 3
    mistakes = [
        ("0", "argument --epochs: 0 is not between 1 and 9; see --help"),
        ("1.5", "argument --epochs: invalid int value: '1.5'; see --help"),
    ]
    for text, message in mistakes:
        with pytest.raises(InputError) as error:
            parser.parse_args(["--epochs", text])
        assert str(error.value) == message
    for text in ("nan", "inf", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not between 0 and"):
            script.number(float, 0)(text)


def test_notes_go_to_standard_error_on_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["some.py"])
    script.note("two\nlines")
    script.warn("careful")
    assert capsys.readouterr() == ("", "some.py: two lines\nsome.py: warning: careful\n")
