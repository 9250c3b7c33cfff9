"""Properties of benchmarks/fewshot.py: what is drawn, the table, and how it goes on when stopped.

The methods are replaced by stubs: nothing is trained here.
"""

import json
import re
import sys
from collections import Counter

import pytest

from benchmarks import fewshot
from support.errors import InputError


@pytest.fixture
def data(tmp_path):
    """A folder of two sets: `shop` with three classes of few or many rows, and `film`."""
    folder = tmp_path / "data"
    labels = ["good"] * 20 + ["bad"] * 5 + ["so so"] * 3
    shop = [{"text": f"shop {i}", "mood": label, "topic": i % 2} for i, label in enumerate(labels)]
    shop.append({"text": "shop 28", "topic": 1})
    film = [{"text": f"film {i}", "fine": i % 3, "mood": "good"} for i in range(6)]
    for name, rows in (("shop", shop), ("film", film)):
        (folder / name).mkdir(parents=True)
        for split in ("train", "test"):
            lines = [json.dumps(row) + "\n" for row in rows]
            (folder / name / f"{split}.jsonl").write_text("".join(lines))
    return folder


# --------------------------------------------------------------------------------------------------
# Rows


def test_each_draw_has_so_many_rows_of_each_class_and_is_the_same_each_time(data):
    source = fewshot.read_source(data, "shop:mood")
    drawn = fewshot.draw_rows(source, 4, 0)
    counts = Counter(source.train[i]["mood"] for i in drawn)
    assert counts == {"good": 4, "bad": 4, "so so": 3}
    assert len(set(drawn)) == 11
    assert fewshot.draw_rows(source, 4, 0) == drawn
    assert fewshot.draw_rows(source, 4, 1) != drawn


def test_a_job_learns_from_nothing_but_what_was_drawn(data):
    source = fewshot.read_source(data, "shop:mood")
    rows = fewshot.training_rows(fewshot.Job(source, 4, 0, "mtbert"))
    assert len(rows) == 11
    assert all(row.keys() == {"text", "mood"} for row in rows)


def test_beside_another_task_of_the_same_texts_only_the_drawn_ones_keep_both_labels(data):
    source = fewshot.read_source(data, "shop:mood")
    job = fewshot.Job(source, 4, 0, "beside", fewshot.read_source(data, "shop:topic"))
    rows = fewshot.training_rows(job)
    assert len(rows) == 29 and all("topic" in row for row in rows)
    with_mood = [row["text"] for row in rows if "mood" in row]
    assert with_mood == [source.train[i]["text"] for i in fewshot.draw_rows(source, 4, 0)]


def test_beside_a_task_of_other_texts_all_of_its_rows_are_learned(data):
    source = fewshot.read_source(data, "shop:mood")
    job = fewshot.Job(source, 4, 0, "beside", fewshot.read_source(data, "film:fine"))
    keys = Counter(tuple(row) for row in fewshot.training_rows(job))
    assert keys == {("text", "mood"): 11, ("text", "fine"): 6}


def test_a_part_of_the_test_rows_is_the_same_each_time(data):
    part = fewshot.read_source(data, "shop:mood", test_rows=9).test
    assert len(part) == 9
    assert fewshot.read_source(data, "shop:mood", test_rows=9).test == part
    assert len(fewshot.read_source(data, "shop:mood", test_rows=99).test) == 28  # labelled ones


# --------------------------------------------------------------------------------------------------
# Runs


def flags(data, tmp_path, *more):
    own = ["--data", data, "--sets", "shop:mood", "--sizes", "4", "--draws", "2"]
    return [*map(str, own), "--out", str(tmp_path / "out"), *more]


@pytest.fixture
def calls(monkeypatch):
    """Stubs in place of the methods -> the list of (method, draw) that they were called for.

    The first one is right for every test row, the others always say "good".
    """
    calls = []

    def mtbert(job, args, folder):
        calls.append((job.method, job.draw))
        (folder / "model").write_text("large")
        return [row["mood"] for row in job.source.test], 1.0

    def other(job, args, folder):
        calls.append((job.method, job.draw))
        return ["good" for _ in job.source.test], 1.0

    monkeypatch.setattr(fewshot, "METHODS", dict.fromkeys(fewshot.METHODS, other))
    monkeypatch.setitem(fewshot.METHODS, "mtbert", mtbert)
    return calls


def test_a_stopped_command_goes_on_where_it_was_stopped(data, tmp_path, calls, monkeypatch):
    whole = fewshot.METHODS["logistic"]

    def stopped(job, args, folder):
        if job.draw == 1:
            raise KeyboardInterrupt
        return whole(job, args, folder)

    monkeypatch.setitem(fewshot.METHODS, "logistic", stopped)
    argv = flags(data, tmp_path, "--beside", "shop:topic")
    with pytest.raises(KeyboardInterrupt):
        fewshot.main(argv)
    done = [("mtbert", 0), ("logistic", 0), ("beside", 0), ("mtbert", 1)]
    assert calls == done
    monkeypatch.setitem(fewshot.METHODS, "logistic", whole)
    fewshot.main(argv)
    assert calls == [*done, ("logistic", 1), ("beside", 1)]
    fewshot.main(argv)  # all is done
    assert len(calls) == 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.jsonl"]


def test_the_table_has_means_and_spreads_over_the_draws(data, tmp_path, calls, capsys):
    fewshot.main(flags(data, tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"test scores in %, of 28 rows", lines[0])
    start = "| shop:mood | 4 | {} | 2 | {} | {} | 1.0 | "
    assert lines[5].startswith(start.format("mtbert single", "100.0 ± 0.0", "100.0 ± 0.0"))
    # 20 of 28 are right; F1 of the three classes: 40/48, 0, 0
    assert lines[6].startswith(start.format("logistic regression", "71.4 ± 0.0", "27.8 ± 0.0"))
    assert lines[-1].startswith("| shop:mood | 4 | mtbert single - logistic regression | +28.6 ")


def test_methods_are_compared_by_draw():
    results = []
    for method, accuracies in {"a": [0.7, 0.8, 0.9], "b": [0.6, 0.6, 0.9], "c": [0.5]}.items():
        for draw, accuracy in enumerate(accuracies):
            result = {"set": "shop:mood", "size": 4, "method": method, "draw": draw}
            results.append(result | {"accuracy": accuracy})
    lines = fewshot.table_of_differences(results)
    # differences of 10, 20 and 0: a spread of 10, t of 4.303, so 10 ± 4.303 * 10 / sqrt(3)
    assert lines[2] == "| shop:mood | 4 | a - b | +10.0 (-14.8 to +34.8) |"
    assert lines[3] == "| shop:mood | 4 | a - c | - |"


def test_results_of_other_settings_are_not_taken(data, tmp_path, calls):
    python = ["--methods", "setfit", "--setfit-python", sys.executable]
    fewshot.main(flags(data, tmp_path, *python))
    fewshot.main(flags(data, tmp_path, *python, "--setfit-iterations", "20"))
    fewshot.main(flags(data, tmp_path, *python, "--test-rows", "9"))
    assert calls == [("setfit", 0), ("setfit", 1)] * 3
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    methods = {json.loads(line)["method"] for line in lines}
    assert methods == {"SetFit, all pairs", "SetFit, 20 iterations"}


def test_what_is_run_takes_the_default_flags_of_train(data, tmp_path, monkeypatch):
    commands = []

    def run(folder, *command):
        commands.append([str(word) for word in command[2:]])
        (folder / "run").mkdir()
        (folder / "run/metrics.json").write_text('{"train_seconds": 2.5}')
        with open(folder / "run/test_predictions.jsonl", "w") as file:
            for line in (folder / "test.jsonl").read_text().splitlines():
                predictions = {"mood": {"label": json.loads(line)["mood"]}}
                file.write(json.dumps({"predictions": predictions}) + "\n")
        return ""

    monkeypatch.setattr(fewshot, "run", run)
    fewshot.main(flags(data, tmp_path, "--methods", "mtbert", "--beside", "film:fine"))
    files = ["--data", "data.jsonl", "--test", "test.jsonl", "--out", "run"]
    assert commands[0] == [*files, "--variant", "single", "--tasks", "mood"]
    assert commands[1] == [*files, "--variant", "shared", "--tasks", "mood", "fine"]
    results = fewshot.read_results(tmp_path / "out/results.jsonl")
    assert [result["accuracy"] for result in results] == [1.0] * 4
    assert results[0]["train_seconds"] == 2.5


# --------------------------------------------------------------------------------------------------
# Mistakes


def test_a_method_that_fails_is_one_line_and_its_output_stays(tmp_path):
    with pytest.raises(InputError, match="no such module"):
        fewshot.run(tmp_path, sys.executable, "-c", "raise SystemExit('no such module')")
    assert (tmp_path / "stderr.txt").read_text() == "no such module\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "setfit"], "takes --setfit-python"),
        (["--setfit-python", "/no/such"], "/no/such is no program"),
        (["--methods"], "nothing is trained"),
        (["--sets", "shop"], "shop is not like SET:TASK"),
        (["--sets", "shop:size"], "no row has a label of 'size'"),
        (["--sets", "book:size"], "train.jsonl cannot be read"),
        (["--beside", "film:mood"], "two columns of one name"),
    ],
)
def test_a_mistake_is_one_line(script, data, tmp_path, more, message):
    status, _, err = script("benchmarks/fewshot.py", *flags(data, tmp_path, *more))
    assert status == 2
    assert message in err and err.count("\n") == 1


def test_a_damaged_result_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"set": "shop:mood"}\n{"set": "sh')
    with pytest.raises(InputError, match="line 2 is damaged; delete it"):
        fewshot.read_results(path)
