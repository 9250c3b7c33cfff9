"""Properties of benchmarks/phases.py: every second of a run counts once, for one phase."""

import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from benchmarks.clocks import HOOKS, REST, STEPS, Clock


def test_time_counts_once_and_for_the_phase_that_it_belongs_to():
    clock = Clock()
    evaluate = clock.around(lambda: time.sleep(0.03), "evaluation")
    save = clock.around(evaluate, "saving")
    train = clock.around(lambda: (time.sleep(0.02), evaluate(), save()), STEPS)
    begin = time.perf_counter()
    train()
    clock.count()
    whole = time.perf_counter() - begin
    assert clock.phases == [REST]
    assert clock.seconds["evaluation"] >= 0.03 and clock.seconds["saving"] >= 0.03
    assert clock.seconds[STEPS] >= 0.02
    assert sum(clock.seconds.values()) == pytest.approx(whole, abs=0.01)


def test_a_function_that_is_gone_is_an_error():
    with pytest.raises(AttributeError, match="gone"):
        Clock().put_around("train:gone", STEPS)


def test_the_table_has_every_phase_and_their_sum(tiny):
    command = [sys.executable, "benchmarks/phases.py", "--rows", "40"]
    command += ["--flags", "--encoder", str(tiny), "--epochs", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = {}
    for name, value in re.findall(r"^\| (.+?) \| +([\d.]+) \|", result.stdout, re.MULTILINE):
        seconds[name] = float(value)
    whole = seconds.pop("whole process")
    assert sum(seconds.values()) == pytest.approx(whole, abs=0.1), result.stderr
    assert set(HOOKS) - set(seconds) <= {"snapshots, best weights"}, result.stdout
