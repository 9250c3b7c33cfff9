"""mtbert as a guest: in servers and notebooks, on other people's disks, in folders that move.

Whatever is around it, a call gives what it gives elsewhere, or one line that says what to do.
"""

import ast
import errno
import fcntl
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MOOD, ROOT, STARS, TAGS, TWO, tiny_checkpoint, tiny_model
from safetensors.torch import load_file, save_file

import mtbert
import train
from mtbert import Classification, MultiLabel, Regression
from support import bounds, cpu, huggingface, plots, processes, runs, script
from support.errors import InputError

TEXTS = ["great movie", "a", "long and thin " * 9, "the end was good"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(model, folder):
    Path(folder).mkdir()
    mtbert.save(model, folder)


@pytest.fixture
def saved(tiny):
    """The folder of a model of each kind of task."""
    save(tiny_model(tiny, [MOOD, TAGS, STARS]), "saved")
    return Path("saved").resolve()


# --------------------------------------------------------------------------------------------------
# Threads and forks


@pytest.mark.parametrize("truncation", ["head", "head+tail"])
def test_eight_threads_predict_what_one_predicts(tiny, arithmetic, truncation):
    model = tiny_model(tiny, TWO)
    model.truncation = truncation
    model.max_length = 12
    save(model, "run")
    model = mtbert.load("run")
    calls = [[text, *TEXTS] for text in TEXTS] * 10
    expected = [mtbert.predict(model, texts) for texts in calls]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda texts: mtbert.predict(model, texts), calls))
    assert found == expected


FORKS = """
import multiprocessing
import sys

import torch

torch.set_num_threads(2)
import mtbert

model = mtbert.load(sys.argv[1], "cpu")  # CUDA is not forked


def work(number):
    return len(mtbert.predict(model, [f"great movie {number} " * 20] * 40))


def fork():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map_async(work, range(2)).get(60), torch.get_num_threads())


fork()  # before the parent has computed anything, and after
mtbert.predict(model, ["great movie"] * 40)
fork()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no forks")
def test_a_model_works_in_processes_that_are_forked_from_its_own(saved):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", FORKS, saved]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[40, 40] 2\n" * 2, done.stderr


def test_two_threads_load_wrapped_encoders_and_leave_torch_as_it_is():
    checkpoint = tiny_checkpoint(Path("albert"), "albert")
    save(tiny_model(checkpoint, TWO), "run")
    before = dict(vars(torch.nn.init))
    expected = mtbert.predict(mtbert.load("run"), TEXTS)
    stop = threading.Event()
    layers = []

    def make_layers():
        while not stop.wait(0.01):
            layers.append(torch.nn.Linear(64, 64))

    with ThreadPoolExecutor(3) as pool:
        pool.submit(make_layers)
        try:
            models = list(pool.map(mtbert.load, ["run"] * 2))
        finally:
            stop.set()
    for model in models:
        assert mtbert.predict(model, TEXTS) == expected
    assert vars(torch.nn.init) == before
    assert torch.get_default_dtype() == torch.float32
    for layer in layers:
        assert layer.weight.device.type == "cpu"
        assert 0.05 < layer.weight.std() < 0.1  # uniform up to 1 / 8


def test_what_other_threads_make_does_not_count_as_a_part_of_a_model():
    sizes = bounds.sizes_of({})
    with bounds.bounded(sizes):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.nn.Linear, 2048, 1024).result()
        with pytest.raises(bounds.TooLarge):
            torch.nn.Linear(2048, 1024)


# --------------------------------------------------------------------------------------------------
# What is around a call


def test_neither_autocast_nor_a_default_dtype_changes_a_prediction(saved, arithmetic):
    model = mtbert.load(saved)
    expected = mtbert.predict(model, TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        assert mtbert.predict(model, TEXTS) == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert mtbert.predict(model, TEXTS) == expected
        assert mtbert.predict(mtbert.load(saved), TEXTS) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("activation", huggingface.NATIVE_ACTIVATIONS)
def test_a_model_is_pickled(activation, arithmetic):
    save(tiny_model(tiny_checkpoint(Path("a"), "bert", hidden_act=activation), TWO), "run")
    model = mtbert.load("run")
    again = pickle.loads(pickle.dumps(model))
    assert mtbert.predict(again, TEXTS) == mtbert.predict(model, TEXTS)


def test_an_unknown_dtype_is_one_line(saved):
    for name in ("fp16", "int32", "nn"):
        with pytest.raises(InputError, match=f"there is no dtype '{name}' here; take auto, float"):
            mtbert.load(saved, dtype=name)
    assert mtbert.load(saved, dtype=torch.float32).prediction_dtype == "float32"


def test_scripts_work_with_closed_streams(saved):
    predict = [sys.executable, str(ROOT / "predict.py"), "--model", str(saved), "great movie"]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *predict, "--output", "out.jsonl"]
    assert subprocess.run(closed).returncode == 0
    assert json.loads(Path("out.jsonl").read_text())["text"] == "great movie"
    only_stderr = ["sh", "-c", 'exec "$@" 2>&-', "sh", *predict, "--json"]
    printed = subprocess.run(only_stderr, capture_output=True, text=True).stdout
    assert json.loads(printed)["text"] == "great movie"


@pytest.mark.parametrize(
    ("variables", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colors_are_shown_where_they_are_wanted(monkeypatch, variables, colored):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert script.has_colors(SimpleNamespace(isatty=lambda: True)) == colored
    assert not script.has_colors(SimpleNamespace(isatty=lambda: False))


def test_ranks_of_another_launcher_than_torchrun_are_said(monkeypatch, capsys):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    for processes_counted, times in (("4", 1), ("1", 0), ("many", 0)):
        monkeypatch.setenv("WORLD_SIZE", processes_counted)
        script.run_script(lambda: None)
        assert capsys.readouterr().err.count("this process works alone") == times


def test_a_missing_compiler_is_said_before_training(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(InputError, match=r"needs the C\+\+ compiler /nowhere/g\+\+, which is miss"):
        cpu.check_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", sys.executable)
    cpu.check_compiler(torch.device("cpu"))


# --------------------------------------------------------------------------------------------------
# Drawing


def test_a_picture_is_drawn_whatever_matplotlib_is_told(finished):
    shutil.copytree(finished, "run")
    Path("run/report.png").unlink()
    Path("matplotlibrc").write_text("text.usetex: True\nbackend: QtAgg\n")
    environment = dict(os.environ, MPLBACKEND="nosuch", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "support.plots", "run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("run/report.png").read_bytes() == (finished / "report.png").read_bytes()


def test_whatever_goes_wrong_in_drawing_is_one_warning(finished, monkeypatch, capsys):
    shutil.copytree(finished, "run")
    Path("run/report.png").unlink()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert train.main(["--resume", "run"]) == json.loads(Path("run/metrics.json").read_text())
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "warning: run/report.png could not be drawn: import of" in err

    def fail(*arguments):
        raise RuntimeError("latex was not found\nand more")

    monkeypatch.setattr(plots, "draw_grid", fail)
    train.draw(Path("run"), train.read_metrics(Path("run")))
    assert capsys.readouterr().err.endswith("could not be drawn: latex was not found\n")
    assert not Path("run/report.png").exists()


# --------------------------------------------------------------------------------------------------
# File systems that lack a service


def refuse(code):
    def refused(*arguments, **named):
        raise OSError(code, os.strerror(code))

    return refused


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_of_the_system_a_file_stands_for_the_lock(monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", refuse(code))
    refused = pytest.raises(InputError, match=r"or was killed; if none is, delete run\.lock\.soft")
    with runs.locked("run.lock", "run"), refused:
        runs.locked("run.lock", "run").__enter__()
    assert not list(Path().iterdir())


def test_a_run_is_written_where_modes_and_flushing_are_refused(monkeypatch):
    monkeypatch.setattr(Path, "chmod", refuse(errno.EPERM))
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    runs.write("a", b"content")
    assert Path("a").read_bytes() == b"content"
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        runs.write("a", b"other")
    assert Path("a").read_bytes() == b"content"


def test_a_file_system_that_cannot_append_is_said_with_the_cure(monkeypatch):
    monkeypatch.setattr(runs, "open", refuse(errno.EOPNOTSUPP), raising=False)
    message = "log.jsonl: this file system cannot append .* name an --out on a local disk"
    with pytest.raises(InputError, match=message):
        runs.open_to_append("log.jsonl")
    monkeypatch.setattr(runs, "open", refuse(errno.EACCES), raising=False)
    with pytest.raises(PermissionError):
        runs.open_to_append("log.jsonl")


# --------------------------------------------------------------------------------------------------
# What is given to predict


class Frame:
    """What mtbert takes a pandas.DataFrame to be."""

    columns = ("text", "stars")

    def to_dict(self, orient):
        assert orient == "records"
        return [{"text": text, "stars": float("nan")} for text in TEXTS]


def test_a_dict_is_a_row_and_a_frame_is_rows(saved):
    model = mtbert.load(saved)
    expected = mtbert.predict(model, TEXTS)
    one = mtbert.predict(model, TEXTS[:1])
    assert mtbert.predict(model, {"text": TEXTS[0], "mood": "good"}) == one
    assert mtbert.predict(model, [{"text": text, "mood": None} for text in TEXTS]) == expected
    assert mtbert.predict(model, Frame()) == expected
    assert mtbert.predict(model, np.array(TEXTS)) == expected
    assert mtbert.predict(model, (text for text in TEXTS)) == expected
    model.metadata["flags"] = {"text_column": "review"}
    assert mtbert.predict(model, [{"review": text} for text in TEXTS]) == expected
    refused = [
        ("great movie", "texts must be a list of texts, not str"),
        (b"great movie", "not bytes"),
        (None, "not NoneType"),
        ([{"text": "great movie"}], "text 1: no 'review' among the keys 'text'"),
        (["great movie", 3], "text 2: the text must be a string"),
        (["great movie", ""], "text 2: the text must be a string that is not empty"),
        ([("a", "b", "c")], "text 1: the text must be a string"),
    ]
    for texts, message in refused:
        with pytest.raises(InputError, match=message):
            mtbert.predict(model, texts)


def test_a_frame_of_pandas_is_rows(saved):
    pandas = pytest.importorskip("pandas")
    model = mtbert.load(saved)
    frame = pandas.DataFrame({"text": TEXTS, "mood": [None] * len(TEXTS)})
    expected = mtbert.predict(model, TEXTS)
    assert mtbert.predict(model, frame) == expected
    assert mtbert.predict(model, frame["text"]) == expected


def test_a_model_of_pairs_refuses_single_texts(saved):
    model = mtbert.load(saved)
    model.metadata["pairs"] = True
    for texts in (["great movie"], [("great movie", None)], {"text": "great movie"}):
        with pytest.raises(InputError, match="text 1: the model learned from pairs; give"):
            mtbert.predict(model, texts)
    pair = {"text": "great movie", "text_pair": "it is"}
    assert mtbert.predict(model, [("great movie", "it is")]) == mtbert.predict(model, pair)


def test_an_empty_text_is_predicted_as_the_mask_token_when_asked(saved):
    model = mtbert.load(saved)
    found = mtbert.predict(model, ["", " ", *TEXTS], empty="mask")
    assert found == mtbert.predict(model, ["[MASK]", "[MASK]", *TEXTS])
    with pytest.raises(InputError, match="not empty"):
        mtbert.predict(model, [""])


def test_embeddings_are_the_pooled_states_that_the_heads_get(saved, arithmetic):
    model = mtbert.load(saved)
    pooled = mtbert.embed(model, TEXTS)
    assert pooled.shape == (len(TEXTS), 32) and pooled.dtype == np.float32
    head = model.heads["head_mood"]
    weight, bias = head.weight.numpy(force=True), head.bias.numpy(force=True)
    data = mtbert.encode_texts(model, TEXTS, None)
    logits = mtbert.compute_logits(model, data)["mood"]
    np.testing.assert_allclose(pooled @ weight.T + bias, logits, atol=1e-5)
    assert mtbert.embed(model, []).shape == (0, 32)


# --------------------------------------------------------------------------------------------------
# Runs that are stopped, moved and started again


def write_rows(path):
    lines = ["text,liked"]
    for i in range(40):
        lines.append(f"film {i} {'so ' * (i % 7)},{'xy'[i % 2]}")
    path.write_text("\n".join(lines) + "\n")


def flags_of(folder, tiny, *others):
    flags = ["--encoder", str(tiny), "--epochs", "2", "--batch-size", "8"]
    return [*flags, "--data", "rows.csv", "--out", folder, *others]


@pytest.fixture
def whole(tiny):
    """The metrics and weights of a run that nothing disturbed."""
    write_rows(Path("rows.csv"))
    return train.main(flags_of("whole", tiny)), load_file("whole/model.safetensors")


def check_equal(result, folder, whole):
    metrics, weights = whole
    for key in ("validation", "test", "best_epoch", "dtype"):
        assert result[key] == metrics[key]
    for name, weight in load_file(f"{folder}/model.safetensors").items():
        assert torch.equal(weight, weights[name])


def test_each_signal_that_asks_to_stop_is_received_and_given_back():
    for name in runs.STOP_SIGNALS:
        number = getattr(signal, name)
        before = signal.getsignal(number)
        with runs.stop_signals() as received:
            os.kill(os.getpid(), number)
            assert received == [number]
        assert signal.getsignal(number) == before


def test_a_command_with_continue_starts_a_run_goes_on_with_it_and_says_when_it_is_finished(
    tiny, whole, signal_at, capsys
):
    number = signal.SIGUSR1
    signal_at(mtbert, "forward_backward", 3, number)
    command = flags_of("my run", tiny, "--continue")
    with pytest.raises(KeyboardInterrupt) as stop:
        train.main(command)
    status, message = stop.value.args
    assert status == 128 + number
    assert message == "stopped after step 3; go on with: python train.py --resume 'my run'"
    result = train.main(command)
    check_equal(result, "my run", whole)
    capsys.readouterr()
    assert train.main(command) == json.loads(json.dumps(result))
    assert capsys.readouterr().out == "the run in my run is finished\n"
    with pytest.raises(InputError, match=r"--lr 0\.5 contradicts --lr 0\.0001 of the run in my r"):
        train.main([*command, "--lr", "0.5"])


def test_a_run_goes_on_in_another_folder_from_other_paths_with_other_machine_flags(
    tiny, whole, signal_at
):
    signal_at(mtbert, "forward_backward", 3, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train.main(flags_of("run", tiny))
    for place in ("moved", "elsewhere"):
        Path(place).mkdir()
    Path("run").rename("moved/run")
    Path("rows.csv").rename("elsewhere/data.csv")
    shutil.copytree(tiny, "elsewhere/encoder")
    resume = ["--resume", "moved/run", "--encoder", "elsewhere/encoder"]
    resume += ["--device", processes.pick_device().type]
    resume += ["--save-every", "1", "--verbose", "--out", "moved/run"]
    result = train.main([*resume, "--data", "elsewhere/data.csv"])
    check_equal(result, "moved/run", whole)


def test_a_run_does_not_go_on_with_other_data_or_another_encoder(tiny, signal_at):
    write_rows(Path("rows.csv"))
    signal_at(mtbert, "forward_backward", 1, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train.main(flags_of("run", tiny))
    other = tiny_checkpoint(Path("other"), "bert")
    state = load_file(other / "model.safetensors")
    state["embeddings.LayerNorm.bias"] += 1
    save_file(state, other / "model.safetensors", {"format": "pt"})
    Path("more.csv").write_text(Path("rows.csv").read_text() + "one more,x\n")
    refused = [
        (["--data", "more.csv"], "more.csv has changed since the run in run began, or is another"),
        (["--val", "rows.csv"], "--val named 0 files when the run began"),
        (["--encoder", "other"], "its encoder_sha256 is not what it was when the run began"),
        (["--out", "else"], "--resume goes on in run; leave out --out else"),
    ]
    for flags, message in refused:
        with pytest.raises(InputError, match=message):
            train.main(["--resume", "run", *flags])
    for flags in (["--continue"], ["--continue", "--out", "run", "--overwrite"]):
        with pytest.raises(InputError, match="--continue takes --out FOLDER"):
            train.main(flags)


def test_the_sample_is_the_same_in_a_repository_of_another_name(tiny, monkeypatch, signal_at):
    for place in ("before", "after"):
        Path(place).mkdir()
        write_rows(Path(place) / "rows.csv")
    signal_at(mtbert, "forward_backward", 1, signal.SIGTERM)
    monkeypatch.setattr(train, "SAMPLE", Path("before/rows.csv"))
    with pytest.raises(KeyboardInterrupt):
        train.main(["--encoder", str(tiny), "--epochs", "1", "--out", "run"])
    monkeypatch.setattr(train, "SAMPLE", Path("after/rows.csv"))
    shutil.rmtree("before")
    assert train.main(["--resume", "run"])["best_epoch"] == 1


def test_weights_of_zero_for_all_tasks_are_refused(tiny):
    write_rows(Path("rows.csv"))
    with pytest.raises(InputError, match="--task-weights: all of them are zero"):
        train.main(flags_of("run", tiny, "--task-weights", "liked=0"))


# --------------------------------------------------------------------------------------------------
# From run to run


def classes(kind, *labels):
    return kind("mood", list(labels), [1] * len(labels), {str(label): "" for label in labels})


@pytest.mark.parametrize("kind", [Classification, MultiLabel])
def test_a_head_that_grows_or_shrinks_keeps_the_rows_of_labels_that_it_had(tiny, kind, capsys):
    save(tiny_model(tiny, [classes(kind, "bad", "good", "so"), STARS]), "run")
    former = mtbert.load("run", "cpu", trainable=True).heads["head_mood"]
    model = tiny_model(tiny, [classes(kind, "awful", "bad", "so")])
    head = model.heads["head_mood"]
    head.weight.data.fill_(7.0)
    train.heads_of_run(model, "run")
    for number, former_number in ((1, 0), (2, 2)):
        assert torch.equal(head.weight[number], former.weight[former_number])
        assert torch.equal(head.bias[number], former.bias[former_number])
    assert (head.weight[0] == 7).all()
    assert capsys.readouterr().out == (
        "heads that start from run, too: 'mood'\n"
        "labels of 'mood' that start anew: 'awful'\n"
        "tasks of run that are left behind: 'stars'\n"
    )
    for task in (classes(kind, 1, 2), Regression("mood", 0.0, 1.0)):
        assert mtbert.take_heads(tiny_model(tiny, [task]), "run") == {}


# --------------------------------------------------------------------------------------------------
# Encoders as people have them


def rename_tensors(folder, rename):
    state = load_file(folder / "model.safetensors")
    renamed = {rename(name): tensor for name, tensor in state.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "0.auto_model."])
def test_a_prefix_of_all_tensors_is_named(prefix):
    checkpoint = tiny_checkpoint(Path("prefixed"), "bert")
    rename_tensors(checkpoint, lambda name: prefix + name)
    message = f"the names of its tensors begin with '{re.escape(prefix)}'"
    with pytest.raises(InputError, match=message):
        mtbert.load_encoder(checkpoint)


def test_matrices_of_lora_are_named():
    checkpoint = tiny_checkpoint(Path("lora"), "bert")
    rename_tensors(checkpoint, lambda name: name.replace("query.weight", "query.lora_A.weight"))
    with pytest.raises(InputError, match=r"holds matrices of LoRA, such as .*merge_and_unload"):
        mtbert.load_encoder(checkpoint)


def test_weights_that_are_no_numbers_are_said():
    checkpoint = tiny_checkpoint(Path("damaged"), "bert")
    state = load_file(checkpoint / "model.safetensors")
    state["encoder.layer.1.output.dense.weight"][3, 4] = float("nan")
    save_file(state, checkpoint / "model.safetensors", {"format": "pt"})
    message = r"damaged: encoder\.layer\.1\.output\.dense\.weight holds NaN"
    with pytest.raises(InputError, match=message):
        mtbert.load_encoder(checkpoint)


def test_what_sentence_transformers_says_of_an_encoder_is_said(capsys):
    checkpoint = tiny_checkpoint(Path("sentences"), "bert")
    assert huggingface.sentence_settings(checkpoint) is None
    modules = []
    for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")):
        modules.append({"type": f"sentence_transformers.models.{kind}", "path": path})
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (checkpoint / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (checkpoint / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    train.print_sentence_settings(checkpoint, "mean", 64)
    assert capsys.readouterr().out == (
        "sentence-transformers uses this encoder with cls pooling, Normalize, at most 32 tokens; "
        "here: mean pooling, at most 64 tokens\n"
    )
    Path("old").mkdir()
    checkpoint.rename("old/0_Transformer")
    with pytest.raises(InputError, match="an old folder of sentence-transformers; take old/0_Tran"):
        mtbert.load_encoder("old")


def test_packages_that_a_sentencepiece_tokenizer_takes_are_named(monkeypatch):
    checkpoint = tiny_checkpoint(Path("deberta"), "bert")
    (checkpoint / "spm.model").write_bytes(b"")
    mtbert.load_tokenizer(checkpoint, 64, 30522)  # tokenizer.json is enough
    (checkpoint / "tokenizer.json").unlink()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
    message = r"its tokenizer is spm\.model, and .*: pip install sentencepiece protobuf"
    with pytest.raises(InputError, match=message):
        mtbert.load_tokenizer(checkpoint, 64, 30522)


# --------------------------------------------------------------------------------------------------
# What docs/runs.md shows


def example_with(word):
    """The block of Python in docs/runs.md that has the word in it."""
    text = (ROOT / "docs/runs.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    [block] = [block for block in blocks if word in block]
    return block


def test_another_project_imports_mtbert_as_documented(saved):
    Path("mtbert").symlink_to(ROOT)
    for name in ("data.py", "metrics.py", "runs.py", "train.py"):
        Path(name).write_text("raise SystemError('the project imports its own module')")
    Path("app.py").write_text(example_with("sys.path"))
    shutil.copytree(saved, "runs/shared-1")
    done = subprocess.run([sys.executable, "app.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lime_explains_as_documented(saved):
    pytest.importorskip("lime")
    block = example_with("lime")
    shutil.copytree(saved, "runs/shared-1")
    exec(block.replace("sentiment", "mood"), {})


def test_a_model_is_exported_to_onnx_as_documented(saved):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    shutil.copytree(saved, "runs/shared-1")
    exec(example_with("onnx"), {})
    onnx = importlib.import_module("onnx")
    outputs = [output.name for output in onnx.load("model.onnx").graph.output]
    assert outputs == ["mood", "tags", "stars"]


def test_examples_in_docs_are_python():
    for block in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/runs.md").read_text("utf-8"), re.S
    ):
        ast.parse(block)
