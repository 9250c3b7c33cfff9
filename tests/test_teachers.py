"""Teachers: what finished runs say of training rows, what is learned of it, and what resumes it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MOOD, ROOT, STARS, TAGS, TWO, make_rows, tiny_model

import mtbert
import train
from support.errors import InputError

# --------------------------------------------------------------------------------------------------
# What teachers say


def save_teacher(tiny, folder, tasks, **settings):
    """A finished run with random heads, in a new folder."""
    folder.mkdir()
    model = tiny_model(tiny, tasks)
    for name, value in settings.items():
        setattr(model, name, value)
    mtbert.save(model, folder)
    return str(folder)


def taught(tiny, tasks, rows, *folders):
    """A Dataset of the rows, taught by the runs in the folders."""
    data = mtbert.encode(tiny_model(tiny, tasks).tokenizer, rows, tasks)
    mtbert.teach(data, tasks, rows, folders, "cpu")
    return data


def test_a_teacher_says_what_predict_says_in_the_labels_and_units_of_the_run(tiny, tmp_path):
    mood = replace(MOOD, labels=["good", "bad"], counts=[1, 1], temperature=2.0)  # another order
    tags = replace(TAGS, labels=[1, 3], counts=[3, 1], label_names={"1": "one", "3": "three"})
    stars = replace(STARS, mean=10.0, std=4.0)
    cut = {"max_length": 8, "truncation": "head+tail"}
    folder = save_teacher(tiny, tmp_path / "a", [tags, stars, mood], **cut)
    rows = make_rows({"mood": "bad", "tags": (1,), "stars": 2.0}, {}, {}, {"stars": 1.0})
    data = taught(tiny, [MOOD, STARS, TAGS], rows, folder)

    predictions = mtbert.predict(mtbert.load(folder, "cpu"), [row.text for row in rows])
    for i, prediction in enumerate(predictions):
        p = prediction["mood"]["probabilities"]
        assert data.teachers["mood"][i] == pytest.approx([p["bad"], p["good"]], rel=1e-5)
        p = prediction["tags"]["probabilities"]
        assert data.teachers["tags"][i] == pytest.approx([p[1], 0, p[3], 0], rel=1e-5)
        z = (prediction["stars"]["value"] - STARS.mean) / STARS.std
        assert data.teachers["stars"][i] == pytest.approx(z, rel=1e-5)
    assert len({tuple(p) for p in data.teachers["mood"]}) == 4


def test_of_two_teachers_of_a_task_the_mean_is_learned(tiny, tmp_path):
    one = save_teacher(tiny, tmp_path / "one", [MOOD])
    sharp = replace(MOOD, temperature=0.2)
    other = save_teacher(tiny, tmp_path / "other", [sharp, STARS])
    rows = make_rows({"mood": "bad"}, {"stars": 1.0})
    both = taught(tiny, TWO, rows, one, other).teachers
    alone = [taught(tiny, TWO, rows, folder).teachers for folder in (one, other)]
    assert both["mood"] == pytest.approx((alone[0]["mood"] + alone[1]["mood"]) / 2)
    assert abs(alone[0]["mood"] - alone[1]["mood"]).max() > 0.01
    assert both["stars"].tolist() == alone[1]["stars"].tolist()
    assert "stars" not in alone[0]


def test_a_teacher_of_pairs_says_nothing_of_a_row_with_one_text(tiny, tmp_path):
    folder = save_teacher(tiny, tmp_path / "a", [MOOD], metadata={"pairs": True})
    rows = make_rows({"mood": "bad"}, {"mood": "good"}, {})
    rows[1] = rows[1]._replace(text_pair="a second text")
    data = taught(tiny, [MOOD], rows, folder)
    assert np.isnan(data.teachers["mood"][:, 0]).tolist() == [True, False, True]
    assert data.targets("mood", np.arange(3))[0].tolist() == [1, 0]  # its label
    assert mtbert.count_rows(data.learned()) == {"mood": 2}
    with pytest.raises(InputError, match="it can read no training row"):
        taught(tiny, [MOOD], rows[:1], folder)


def test_a_teacher_must_have_a_task_of_the_run_and_no_label_that_the_run_lacks(tiny, tmp_path):
    rows = make_rows({"mood": "bad", "stars": 1.0})
    other_kind = replace(STARS, name="mood")
    folder = save_teacher(tiny, tmp_path / "a", [other_kind, TAGS])
    with pytest.raises(InputError, match="none of the tasks 'mood', 'stars', of the same kinds"):
        taught(tiny, TWO, rows, folder)
    names = {"bad": "bad", "good": "good", "so so": "so so"}
    more = replace(MOOD, labels=["bad", "good", "so so"], counts=[1, 1, 1], label_names=names)
    folder = save_teacher(tiny, tmp_path / "b", [more])
    with pytest.raises(InputError, match="no training row has its labels 'so so' of 'mood'"):
        taught(tiny, TWO, rows, folder)


# --------------------------------------------------------------------------------------------------
# What is learned


def test_labels_count_half_or_more_and_more():
    assert [mtbert.gold_share(step, 4, annealing=False) for step in (1, 4)] == [0.5, 0.5]
    shares = [mtbert.gold_share(step, 4, annealing=True) for step in (1, 2, 3, 4)]
    assert shares == [0.25, 0.5, 0.75, 1.0]


def some_rows():
    """Rows of which each is labelled for one task of TWO, or for none."""
    labels = []
    for i in range(22):
        if i % 3 == 0:
            labels.append({"stars": i / 4})
        elif i % 3 == 1:
            labels.append({"mood": ["bad", "good"][i % 2]})
        else:
            labels.append({})
    return make_rows(*labels)


def train_taught(tiny, folder, teachers, *flags):
    """Train a tiny model on `some_rows` with teachers -> the log of its steps, the Dataset."""
    folder.mkdir()
    flags = ["--epochs", "2", "--batch-size", "4", "--dropout", "0", "--max-grad-norm", "0", *flags]
    args = train.parse_args([*flags, "--teachers", *teachers])
    model = tiny_model(tiny, TWO)
    tasks = model.tasks
    rows = some_rows()
    data = {
        "train": mtbert.encode(model.tokenizer, rows, tasks),
        "validation": mtbert.encode(model.tokenizer, rows, tasks),
    }
    mtbert.teach(data["train"], tasks, rows, args.teachers, "cpu")
    mtbert.train(model, data, args, folder)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line], data["train"]


@pytest.mark.parametrize("annealing", [False, True])
def test_the_loss_is_of_labels_and_teachers_and_a_row_with_either_counts_as_labelled(
    tiny, tmp_path, monkeypatch, annealing
):
    """Each row is drawn once; the logged loss of a task is the mean over the batch by hand."""
    folder = save_teacher(tiny, tmp_path / "teacher", [MOOD, replace(STARS, mean=1.0)])
    batches = []
    forward_backward = mtbert.forward_backward

    def watched(model, data, rows, *others):
        batches.append(rows)
        return forward_backward(model, data, rows, *others)

    monkeypatch.setattr(mtbert, "forward_backward", watched)
    flags = ["--lr", "0", *["--teacher-annealing"][:annealing]]
    log, data = train_taught(tiny, tmp_path / "run", [folder], *flags)
    assert len(log) == len(batches) == 12
    assert sorted(np.concatenate(batches[:6])) == list(range(22))

    model = tiny_model(tiny, TWO)
    logits = mtbert.compute_logits(model, data)
    p = np.eye(2)[np.maximum(data.labels["mood"], 0)]
    for step, (rows, entry) in enumerate(zip(batches, log, strict=True), 1):
        t = step / 12 if annealing else 0.5
        losses = {"mood": [], "stars": []}
        for row in rows:
            target = data.teachers["mood"][row]
            if data.labels["mood"][row] != mtbert.NO_CLASS:
                target = t * p[row] + (1 - t) * target
            log_p = torch.from_numpy(logits["mood"][row]).log_softmax(0).numpy()
            losses["mood"].append(-(target * log_p).sum())
            number = data.teachers["stars"][row]
            if not math.isnan(data.labels["stars"][row]):
                number = t * data.labels["stars"][row] + (1 - t) * number
            losses["stars"].append((logits["stars"][row, 0] - number) ** 2)
        for name, values in losses.items():
            assert entry["loss"][name] == pytest.approx(np.mean(values), rel=1e-3)


def test_metrics_and_counts_go_by_labels_and_parts_of_a_batch_change_nothing(tiny, tmp_path):
    folder = save_teacher(tiny, tmp_path / "teacher", TWO)
    flags = ["--teacher-annealing", "--lr", "1e-3"]
    log, data = train_taught(tiny, tmp_path / "a", [folder], *flags)
    parts, _ = train_taught(tiny, tmp_path / "b", [folder], *flags, "--gradient-accumulation", "3")
    for one, other in zip(log, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert mtbert.count_rows(data.labels) == {"mood": 7, "stars": 8}
    assert mtbert.count_rows(data.learned()) == {"mood": 22, "stars": 22}


# --------------------------------------------------------------------------------------------------
# The command line


def write_rows():
    """rows.csv: 40 rows, of which each has a class or a number; four have both."""
    lines = ["text,liked,stars"]
    for i in range(40):
        mood, liked = [("bad", "no"), ("good", "yes")][i % 2]
        number = i / 4
        if i % 10 and i % 4 < 2:
            number = ""
        elif i % 10:
            liked = ""
        lines.append(f"film {i} is {mood},{liked},{number}")
    Path("rows.csv").write_text("\n".join(lines))


FLAGS = ["--data", "rows.csv", "--epochs", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def runs_folder(tiny, tmp_path_factory):
    """A folder with rows.csv, the teachers "liked" and "stars", and "taught", taught by both."""
    folder = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows()
        flags = [*FLAGS, "--encoder", str(tiny)]
        for name in ("liked", "stars"):
            train.main([*flags, "--variant", "single", "--tasks", name, "--out", name])
        teachers = ["--teachers", "liked", "stars", "--teacher-annealing"]
        train.main([*flags, *teachers, "--out", "taught"])
    return folder


def copy_of(folder, tmp_path, monkeypatch):
    subprocess.run(["cp", "-r", folder, tmp_path / "copy"], check=True)
    monkeypatch.chdir(tmp_path / "copy")


def test_train_says_who_teaches_what_and_refuses_mistakes_in_one_line(
    script, tiny, runs_folder, tmp_path, monkeypatch
):
    copy_of(runs_folder, tmp_path, monkeypatch)
    flags = [*FLAGS, "--encoder", str(tiny)]
    status, out, err = script("train.py", *flags, "--out", "a", "--teachers", "liked")
    assert status == 0, err
    [num_rows] = re.findall(r"^liked is taught by liked, on (\d+) of \1 training rows$", out, re.M)
    assert "stars is taught" not in out
    [cells] = re.findall(r"^liked  .*$", out, re.M)
    assert cells.split()[-2:] == ["1.000", f"{draws_of(out) / int(num_rows):.2f}"]

    with open("rows.csv", "a") as file:
        file.write("\nfilm,so so,\nfilm,so so,")
    script("train.py", *flags, "--variant", "single", "--tasks", "liked", "--out", "more")
    write_rows()
    mistakes = {
        "--teachers nowhere": "--teachers nowhere: no trained model there",
        "--teachers liked liked": "twice",
        "--teachers liked --out liked --overwrite": "--out liked is one of the --teachers",
        "--teacher-annealing": "--teacher-annealing takes --teachers",
        "--teachers stars --tasks liked": "it has none of the tasks 'liked'",
        "--teachers more": "no training row has its labels 'so so' of 'liked'",
    }
    for wrong, message in mistakes.items():
        status, _, err = script("train.py", *flags, "--out", "b", *wrong.split())
        assert status == 2 and message in err and err.count("\n") == 1, err
    assert not Path("b").exists() and Path("liked/metrics.json").exists()


def draws_of(out):
    return int(re.search(r"epochs of (\d+) draws", out)[1])


def files_of(folder):
    """The content of a run's files, without times."""
    found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    for name in ("metrics.json", "report.png"):
        del found[name]
    return found


def test_a_stopped_run_resumes_to_the_bit_with_teachers_that_have_moved(
    script, tiny, runs_folder, tmp_path, monkeypatch
):
    copy_of(runs_folder, tmp_path, monkeypatch)
    whole = files_of("taught")
    Path("taught").rename("whole")
    flags = [*FLAGS, "--encoder", str(tiny), "--teachers", "liked", "stars", "--teacher-annealing"]
    forward_backward = mtbert.forward_backward
    calls = []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward_backward(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mtbert, "forward_backward", stopped)
        status, _, err = script("train.py", *flags, "--out", "taught")
    assert status == 128 + signal.SIGTERM, err
    Path("liked").rename("moved")
    mistakes = {
        "": "--teachers liked: no trained model there",
        "--teachers moved": "--teachers named 2 runs when the run began",
        "--teachers stars moved": "--teachers stars has changed since the run in taught began",
    }
    for wrong, message in mistakes.items():
        status, _, err = script("train.py", "--resume", "taught", *wrong.split())
        assert status == 2 and message in err and err.count("\n") == 1, err
    teachers = ["--teachers", "moved", "stars"]
    status, _, err = script("train.py", "--resume", "taught", *teachers)
    assert status == 0 and "will not repeat" not in err, err
    again = files_of("taught")
    config = json.loads(again.pop("config.json"))
    assert json.loads(whole.pop("config.json"))["weights_sha256"] == config["weights_sha256"]
    assert len(config["teachers_sha256"]) == 2
    assert again == whole


def test_two_processes_are_taught_as_one(tiny, runs_folder, tmp_path, monkeypatch):
    copy_of(runs_folder, tmp_path, monkeypatch)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "train.py", *FLAGS, "--encoder", tiny, "--dropout", "0"]
    command += ["--teachers", "liked", "stars", "--device", "cpu", "--dtype", "float32"]
    done = subprocess.run([*command, "--out", "two"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("liked is taught by liked") == 1
    alone = [str(part) for part in command[command.index(ROOT / "train.py") + 1 :]]
    train.main([*alone, "--out", "one"])
    logs = []
    for name in ("one", "two"):
        lines = Path(name, "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for one, two in zip(*logs, strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
