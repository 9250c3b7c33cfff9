"""Runs of the former version of mtbert: they predict as before, and are not resumed."""

import json
from pathlib import Path

import pytest
import torch
from conftest import MOOD, STARS, TAGS, tiny_checkpoint, tiny_model

import mtbert
from support import former, huggingface, runs
from support.errors import InputError

TEXTS = ["great movie", "a", "long and thin " * 30, ("is it good", "it is")]
TASK_FIELDS = {"labels": None, "counts": None, "names": None, "mean": 0.0, "std": 1.0}
TASK_FIELDS |= {"temperature": 1.0, "threshold": None}


def former_task(task, fitted):
    """A task of config.json as it was: all kinds in one form, what was fitted among it."""
    values = {name: value for name, value in task.items() if name != "kind"}
    if "label_names" in values:
        values["names"] = values.pop("label_names")
    return {"name": None} | TASK_FIELDS | values | fitted


def make_former(folder, max_length=64, truncation="head", **changes):
    """Rewrite a run that mtbert.save wrote as the former version did."""
    config = runs.read_record(folder / "config.json")
    fitted = config.pop("fitted")
    tasks = [former_task(task, fitted[task["name"]]) for task in config["tasks"]]
    encoder = dict(config["encoder"])
    encoder.pop("position_offset", None)
    old = {"encoder": encoder, "tasks": tasks, "pooling": config["pooling"], "long": truncation}
    for name in config:
        if name not in (*old, "truncation", "max_length"):
            old[name] = config[name]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": max_length}
    tokenizer["truncation"] |= {"strategy": "LongestFirst", "stride": 0}
    runs.write(folder / "tokenizer.json", json.dumps(tokenizer).encode())
    old["tokenizer_sha256"] = runs.file_sha256(folder / "tokenizer.json")
    runs.write_record(folder / "config.json", old | changes)


def fitted_tasks():
    mood = mtbert.Classification(**vars(MOOD) | {"temperature": 1.5})
    tags = mtbert.MultiLabel(**vars(TAGS) | {"temperature": 0.5, "threshold": 0.3})
    return [mood, STARS, tags]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
def test_a_former_run_of_each_kind_of_task_predicts_as_before(model_type, tmp_path):
    changes = {}
    if model_type == "modernbert":  # computed by transformers
        changes = {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102}
        changes |= {"bos_token_id": 101, "eos_token_id": 102}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "run").mkdir()
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", model_type, **changes)
    model = tiny_model(checkpoint, fitted_tasks())
    mtbert.save(model, tmp_path / "run")
    expected = mtbert.predict(model, TEXTS)
    make_former(tmp_path / "run")
    loaded = mtbert.load(tmp_path / "run", "cpu", trainable=True)
    assert loaded.tasks == model.tasks
    assert (loaded.truncation, loaded.max_length) == ("head", 64)
    assert loaded.encoder.config == model.encoder.config
    assert mtbert.predict(loaded, TEXTS) == expected
    encoder = mtbert.load_encoder(tmp_path / "run")  # a new run starts from it
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], weight)


def test_a_former_runs_long_texts_are_truncated_as_it_was_told(tiny, tmp_path):
    model = tiny_model(tiny, [MOOD])
    model.truncation = "head+tail"
    model.max_length = 12
    huggingface.set_truncation(model.tokenizer, "head+tail", 12)
    mtbert.save(model, tmp_path)
    expected = mtbert.predict(model, TEXTS)
    make_former(tmp_path, 12, "head+tail")
    loaded = mtbert.load(tmp_path, "cpu", trainable=True)
    assert (loaded.truncation, loaded.max_length) == ("head+tail", 12)
    assert mtbert.predict(loaded, TEXTS) == expected


@pytest.fixture
def former_run(tiny, tmp_path, monkeypatch):
    """The folder "run", in the current folder, of a former run that was tested in float32."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    model = tiny_model(tiny, fitted_tasks())
    argv = ["--data", "rows.jsonl", "--multi-label", "tags"]
    flags = {"argv": argv, "resume": None, "text_column": "text", "pair_column": None}
    model.metadata = {"flags": flags, "data_sha256": {}, "launcher": None}
    mtbert.save(model, "run")
    make_former(Path("run"))
    metrics = {"validation": {}, "test": {}, "train_seconds": 1.0, "examples_per_second": 1.0}
    runs.write("run/metrics.json", metrics)
    rows = []
    for i in range(12):
        row = {"text": f"film {i}", "mood": ["bad", "good"][i % 2], "stars": i / 4}
        rows.append(row | {"tags": [1, 2, 3][: i % 4]})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path("run")


def test_a_former_run_predicts_and_scores_on_the_command_line(script, former_run):
    status, out, err = script("predict.py", "--model", "run", "great movie", "--json")
    assert status == 0 and not err
    assert json.loads(out)["predictions"].keys() == {"mood", "stars", "tags"}
    command = ["--model", "run", "--input", "rows.jsonl", "--score", "--output", "s.json"]
    status, _, err = script("predict.py", *command)
    assert status == 0 and not err
    score = json.loads(Path("s.json").read_text())
    assert score["mood"]["macro_f1"] >= 0 and score["tags"]["macro_f1"] >= 0
    assert "pearson" in score["stars"]


def test_a_former_run_that_is_not_finished_is_not_resumed(script, former_run):
    config = runs.read_record("run/config.json")
    runs.write_record("run/config.json", config | {"weights_sha256": None})
    for name in ("metrics.json", "model.safetensors"):
        (former_run / name).unlink()
    before = {path: path.read_bytes() for path in former_run.iterdir()}
    status, _, err = script("train.py", "--resume", "run")
    assert status == 2
    said = "run: it was begun with a former version of mtbert; start it again"
    assert err == f"train.py: error: {said}\n"
    status, _, err = script("predict.py", "--model", "run", "great movie")
    assert status == 2 and "its training is not finished" in err and err.count("\n") == 1
    assert {path: path.read_bytes() for path in former_run.iterdir()} == before


@pytest.mark.parametrize(
    "changes",
    [{"tasks": None}, {"tasks": [{}]}, {"tasks": [3]}, {"encoder": None}, {"encoder": {}}],
)
def test_a_damaged_former_run_is_refused_in_one_line(tiny, tmp_path, changes):
    mtbert.save(tiny_model(tiny, fitted_tasks()), tmp_path)
    make_former(tmp_path, **changes)
    with pytest.raises(InputError, match="cannot be loaded: ") as error:
        mtbert.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_former_run_without_its_tokenizer_or_its_truncation_is_refused(tiny, tmp_path):
    mtbert.save(tiny_model(tiny, fitted_tasks()), tmp_path)
    make_former(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for text in (json.dumps(content | {"truncation": None}), "{"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(InputError, match="cannot be loaded: "):
            mtbert.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="cannot be loaded: "):
        mtbert.load(tmp_path)


def test_a_run_of_this_version_is_left_as_it_is(tmp_path):
    config = {"fitted": {}, "tasks": []}
    assert former.upgrade(config, tmp_path) is config
