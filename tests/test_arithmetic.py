"""Whatever arithmetic predicts fastest on this machine, one run has one set of numbers.

metrics.json, test_predictions.jsonl, predict.py --output and --score agree to the last digit.
"""

import json
from pathlib import Path

import mtbert
from support import cpu


def train(script, tiny):
    """Train on rows.csv with a class, a list of labels and a number, and test on test.csv."""
    for name, count in (("rows.csv", 32), ("test.csv", 13)):
        lines = ["text,liked,tags,stars"]
        for i in range(count):
            words = f"{name[:4]} film {i} is {['bad', 'good'][i % 2]} " + "so " * (i * 5 % 11)
            tags = "|".join(["long", "loud", "new"][: i % 3 + 1])
            lines.append(f"{words},{'yn'[i % 2]},{tags},{i / 8}")
        Path(name).write_text("\n".join(lines) + "\n")
    flags = ["--multi-label", "tags=|", "--epochs", "1", "--lr", "1e-3", "--out", "run"]
    flags += ["--data", "rows.csv", "--test", "test.csv", "--encoder", tiny]
    status, _, err = script("train.py", *flags)
    assert status == 0, err
    return json.loads(Path("run/metrics.json").read_text())


def read_lines(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_a_run_and_its_predictions_agree_to_the_last_digit(
    script, tiny, tmp_path, monkeypatch, arithmetic
):
    monkeypatch.chdir(tmp_path)
    metrics = train(script, tiny)
    assert metrics["dtype"] == arithmetic
    assert mtbert.load("run").prediction_dtype == arithmetic

    command = ["--model", "run", "--input", "test.csv"]
    status, _, err = script("predict.py", *command, "--output", "p.jsonl")
    assert status == 0 and not err
    tested = [row["predictions"] for row in read_lines("run/test_predictions.jsonl")]
    assert [row["predictions"] for row in read_lines("p.jsonl")] == tested
    status, _, err = script("predict.py", *command, "--score", "--output", "score.json")
    assert status == 0 and not err
    assert json.loads(Path("score.json").read_text()) == metrics["test"]


def test_a_run_is_scored_in_the_arithmetic_that_it_was_tested_in(
    script, tiny, tmp_path, monkeypatch, arithmetic
):
    """Where the machine takes another one by itself; --dtype still decides."""
    monkeypatch.chdir(tmp_path)
    metrics = train(script, tiny)
    other = "bfloat16" if arithmetic != "bfloat16" else "float32"
    monkeypatch.setenv("MTBERT_ARITHMETIC", other)
    taken = []
    load = mtbert.load

    def watched(*arguments):
        model = load(*arguments)
        taken.append(model.prediction_dtype)
        return model

    monkeypatch.setattr(mtbert, "load", watched)
    monkeypatch.setattr(cpu, "has_int8", lambda: False)
    command = ["--model", "run", "--input", "test.csv", "--score", "--output", "score.json"]
    status, _, err = script("predict.py", *command)
    score = json.loads(Path("score.json").read_text())
    assert status == 0
    if arithmetic == "int8":  # without VNNI
        said = f"the run was tested in int8, which cannot be had here; {other} is taken"
        assert err == f"predict.py: {said}\n" and taken == [other]
    else:
        assert not err and taken == [arithmetic]
        assert score == metrics["test"]
    assert script("predict.py", *command, "--dtype", other)[0] == 0
    assert taken[-1] == other
    assert script("predict.py", "--model", "run", "good")[0] == 0
    assert taken[-1] == other
