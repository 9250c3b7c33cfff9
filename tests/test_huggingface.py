"""Encoders of other types, runs that start from runs, long texts, and the way out to transformers.

All are tiny and random. What is said of an encoder here holds for the bundled one in test_mtbert.py.
"""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mtbert
import runs
from checkpoints import Wrapped
from conftest import BUNDLED, ROOT, TWO, tiny_checkpoint, tiny_model, train_tiny
from data import InputError, Row, Task

DEBERTA = {  # as DeBERTa-v3 has it: relative positions only, no token types
    "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
    "norm_rel_ebd": "layer_norm", "position_buckets": 16, "type_vocab_size": 0,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102}
OTHERS = {  # what transformers computes
    "modernbert": SPECIAL | {"local_attention": 8}, "deberta-v2": DEBERTA, "mpnet": {}, "albert": {},
    "roformer": {}, "bert": {"hidden_act": "silu"},
}  # fmt: skip
TEXTS = ["great movie", "a", "long and thin " * 30, ("is it good", "it is")]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """model type -> the folder of its checkpoint, made once."""
    made = {}

    def make(model_type):
        if model_type not in made:
            folder = tmp_path_factory.mktemp(model_type)
            made[model_type] = tiny_checkpoint(folder, model_type, **OTHERS.get(model_type, {}))
        return made[model_type]

    return make


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """The folder of a model, as of a finished run, of the tasks `liked` and `stars`."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model(tiny, [Task("liked", ["no", "yes"], [20, 20], {"no": "no", "yes": "yes"}), TWO[1]])
    mtbert.save(model, folder)
    return folder


def hidden_states(encoder, ids, mask, types):
    """Those of our encoder, or of transformers' module, on tokens."""
    if isinstance(encoder, transformers.PreTrainedModel):
        named = {"token_type_ids": types} if getattr(encoder.config, "type_vocab_size", 0) > 1 else {}
        return encoder(input_ids=ids, attention_mask=mask, **named).last_hidden_state[mask.bool()]
    return encoder(ids, mask, types)[mask.bool()]


def random_batch(config):
    """Rows of many lengths, the longest the encoder takes, as pairs where it knows these; padding behind each."""
    lengths = torch.tensor([config.max_length, 1, 2, 7, config.max_length // 2])
    mask = torch.arange(config.max_length) < lengths[:, None]
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=torch.Generator().manual_seed(0))
    types = (torch.arange(config.max_length) >= lengths[:, None] // 2) & mask & (config.type_vocab_size > 1)
    return torch.where(mask, ids, config.pad_token_id), mask.long(), types.long()


# ---------------------------------------------------------------------------------------------------------------------
# Encoders that transformers computes


@pytest.mark.parametrize("model_type", OTHERS)
def test_any_encoder_computes_what_transformers_computes_and_is_saved_loaded_and_taken_out(
    model_type, checkpoint, tmp_path
):
    theirs = transformers.AutoModel.from_pretrained(checkpoint(model_type)).eval()
    model = tiny_model(checkpoint(model_type), TWO)
    assert isinstance(model.encoder, Wrapped)
    batch = random_batch(model.encoder.config)
    with torch.no_grad():
        expected = hidden_states(theirs, *batch)
        torch.testing.assert_close(hidden_states(model.encoder, *batch), expected, rtol=0, atol=1e-5)
    mtbert.save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    loaded = mtbert.load(tmp_path, dtype="float32")
    assert mtbert.predict(loaded, TEXTS) == mtbert.predict(model, TEXTS)
    half = mtbert.predict(mtbert.load(tmp_path, dtype="bfloat16"), TEXTS)
    for one, other in zip(half, mtbert.predict(model, TEXTS), strict=True):
        assert one["mood"]["probability"] == pytest.approx(other["mood"]["probability"], abs=0.1)

    mtbert.to_transformers(loaded, tmp_path / "out")
    back = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(hidden_states(back, *batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", [*OTHERS, "distilbert"])
def test_any_encoder_learns_in_all_its_parameters_and_resumes_to_the_bit(model_type, checkpoint, tmp_path, monkeypatch):
    flags = ["--variant", "separate-lr", "--layer-decay", "0.5", "--dropout", "0.2", "--conflict-every", "4"]
    whole = train_tiny(checkpoint(model_type), tmp_path / "whole", *flags)
    for name, before in tiny_model(checkpoint(model_type), TWO).named_parameters():
        fixed = not before.requires_grad  # RoFormer's positions
        assert torch.equal(before, whole.weights[name]) == fixed == ("embed_positions" in name), name

    def end_epoch(run, *arguments, end_epoch=runs.Run.end_epoch):
        end_epoch(run, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Run, "end_epoch", end_epoch)
        train_tiny(checkpoint(model_type), tmp_path / "part", *flags)
    resumed = train_tiny(checkpoint(model_type), tmp_path / "part", *flags)
    assert resumed.log == whole.log and len(whole.log) == 12
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_dropout_is_that_of_the_flag_in_every_encoder_and_none_in_evaluation(checkpoint):
    for model_type in OTHERS:
        batch = random_batch(tiny_model(checkpoint(model_type), TWO).encoder.config)
        for rate in (0.0, 0.3):
            encoder = mtbert.Encoder.from_pretrained(checkpoint(model_type), rate)
            assert {part.p for part in encoder.modules() if isinstance(part, torch.nn.Dropout)} <= {rate}
            with torch.no_grad():
                twice = [hidden_states(encoder.train(), *batch) for _ in range(2)]
                assert torch.equal(*twice) == (rate == 0)
                assert torch.equal(*[hidden_states(encoder.eval(), *batch) for _ in range(2)])


def test_layers_learn_slower_from_top_to_bottom_whatever_they_are_called(checkpoint):
    rates = {"embeddings": 0.25, "layer 1": 0.5, "layer 2": 1.0}
    for model_type in ("modernbert", "deberta-v2", "mpnet", "albert"):
        model = tiny_model(checkpoint(model_type), TWO)
        groups = mtbert.parameter_groups(model, 1.0, 1.0, 0.5, 0.01)
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        rate = {id(p): group["lr"] for group in groups for p in group["params"]}
        layers = rates if model_type != "albert" else {"embeddings": 0.5, "layer 1": 1.0}  # its layers are one
        assert {group["name"]: group["lr"] for group in groups} == layers | {"heads": 1.0}
        for layer, name in zip(model.encoder.layers, list(layers)[1:], strict=True):
            assert {rate[id(p)] for p in layer.parameters()} == {layers[name]}
        if model_type == "modernbert":
            assert rate[id(model.encoder.module.final_norm.weight)] == 1.0
        if model_type == "deberta-v2":
            assert rate[id(model.encoder.module.encoder.rel_embeddings.weight)] == 0.25


def test_a_checkpoint_that_does_not_fit_is_refused_naming_the_tensor(checkpoint, tmp_path):
    for model_type, part in (("modernbert", "layers.1.mlp.Wo"), ("distilbert", "transformer.layer.1.ffn.lin2")):
        folder = tmp_path / model_type
        shutil.copytree(checkpoint(model_type), folder)
        state, name = load_file(folder / "model.safetensors"), f"{part}.weight"
        for damaged in ({k: v for k, v in state.items() if k != name}, state | {name: state[name][:, 1:].contiguous()}):
            save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(InputError, match=f"not fitting: {part}.weight$".replace(".", r"\.")):
                mtbert.Encoder.from_pretrained(folder)


HOSTILE = [
    {"num_hidden_layers": 10**9}, {"num_hidden_layers": 3}, {"num_hidden_groups": 10**9}, {"inner_group_num": 10**6},
    {"hidden_size": 10**30}, {"hidden_size": 10**9}, {"vocab_size": 10**12}, {"max_position_embeddings": 10**12},
    {"model_type": "gpt2"}, {"model_type": None}, {"hidden_act": "exec"}, {"num_attention_heads": 5}, {"_x": 1},
    {"num_labels": 10**9}, {"num_hidden_layers": 9999}, {"model_type": "detr", "backbone": "someone/model"},
    {"text_config": {"model_type": "bert", "num_hidden_layers": 10**6}},
    {"auto_map": {"AutoModel": "evil.Model"}}, {"attn_implementation": "someone/kernel"}, {"dtype": "float16"},
]  # fmt: skip


def test_a_hostile_configuration_of_transformers_is_refused_at_once(checkpoint, tmp_path):
    mtbert.save(tiny_model(checkpoint("albert"), TWO), tmp_path)
    config = runs.read_record(tmp_path / "config.json")
    mtbert.load(tmp_path)
    changed = [{"transformers": config["encoder"]["transformers"] | change} for change in HOSTILE]
    changed += [{"transformers": change} for change in (None, [], {}, "bert")]
    changed += [{"max_length": 10**6}, {"pad_token_id": -1}, {"type_vocab_size": 10**6}, {"unknown": 1}]
    for change in changed:
        runs.write_record(tmp_path / "config.json", config | {"encoder": config["encoder"] | change})
        with pytest.raises(InputError, match="cannot be loaded") as error:
            mtbert.load(tmp_path)
        assert "\n" not in str(error.value)
    runs.write_record(tmp_path / "config.json", config | {"long": "tail"})
    with pytest.raises(InputError, match="cannot be loaded"):
        mtbert.load(tmp_path)


def test_prediction_says_once_that_it_imports_transformers_and_only_for_encoders_that_need_it(
    checkpoint, saved, tmp_path
):
    mtbert.save(tiny_model(checkpoint("modernbert"), TWO), tmp_path)
    code = "import sys, predict\n"
    for folder in (saved, tmp_path, tmp_path):
        code += f"predict.main(['--model', {str(folder)!r}, 'great movie', '--json'])\n"
        code += "print('transformers' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.count("the encoder is a modernbert; transformers computes it, and is imported\n") == 1
    assert done.stderr.count("\n") == 1 and done.stdout.splitlines()[1::2] == ["False", "True", "True"]


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that cannot be taken as they are


def test_a_pickle_is_refused_with_the_lines_that_convert_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_file(tiny_checkpoint(tmp_path, "bert") / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError) as error:
        mtbert.Encoder.from_pretrained(str(tmp_path))
    message, lines = str(error.value).split("convert it: ")
    assert "a pickle (pytorch_model.bin) can run any code" in message and "\n" not in lines
    exec(lines)
    mtbert.load_tokenizer("converted", 64, 30522)
    names = mtbert.transformers_names("layers.1.output.weight", "bert")
    assert torch.equal(mtbert.Encoder.from_pretrained("converted").layers[1].output.weight, state[names[0]])


def test_a_tokenizer_without_a_fast_version_is_refused_in_one_line(tmp_path):
    tiny_checkpoint(tmp_path, "bert")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(InputError, match="it has no fast version, and mtbert uses no other; take an encoder") as error:
        mtbert.load_tokenizer(tmp_path, 64, 30522)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Long texts


def test_head_and_tail_are_the_first_128_and_the_last_382_of_510_tokens():
    tokenizer = mtbert.load_tokenizer(BUNDLED, 512, 30522)
    words = [chr(97 + i % 26) for i in range(1000)]
    whole = [tokenizer.token_to_id(word) for word in words]
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    texts = [" ".join(words), " ".join(words[:510]), "a"]
    cut, fits, short = mtbert.encode_texts(tokenizer, texts, "head+tail")
    assert cut == ([cls, *whole[:128], *whole[-382:], sep], [0] * 512, True)
    assert fits[0] == [cls, *whole[:510], sep] and not fits[2] and not short[2]
    assert mtbert.encode_texts(tokenizer, texts, "head")[1:] == [fits, short]
    for size in (4, 5, 64):
        tokenizer.enable_truncation(size)
        [(ids, _, was_cut)] = mtbert.encode_texts(tokenizer, texts[:1], "head+tail")
        head = round((size - 2) * 128 / 510)
        assert was_cut and ids == [cls, *whole[:head], *whole[1000 - (size - 2 - head) :], sep]
    for sizes, kept in (((50, 5), (11, 5)), ((5, 50), (5, 11)), ((50, 50), (8, 8))):  # of a pair the longer is cut
        tokenizer.enable_truncation(19)
        pair = tuple(" ".join(words[:size]) for size in sizes)
        [(ids, types, was_cut)] = mtbert.encode_texts(tokenizer, [pair], "head+tail")
        expected = []
        for size, n in zip(sizes, kept, strict=True):
            head = round(n * 128 / 510) if n < size else n
            expected.append([*whole[:head], *whole[size - (n - head) : size], sep])
        assert was_cut and ids == [cls, *expected[0], *expected[1]]
        assert types == [0] * (1 + len(expected[0])) + [1] * len(expected[1])
    assert tokenizer.truncation["max_length"] == 19


def test_what_is_kept_of_long_texts_is_kept_in_the_run_and_said(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end = {"good": "hurray", "bad": "never again"}
    labels = ["good", "bad"] * 20
    rows = [{"text": f"film {i} " + "so " * 90 + end[label], "a": label} for i, label in enumerate(labels)]
    Path("rows.json").write_text(json.dumps(rows))
    flags = ["--data", "rows.json", "--encoder", tiny, "--epochs", "1", "--max-length", "12"]
    status, out, _ = script("train.py", *flags, "--long", "head+tail", "--out", "both")
    assert status == 0 and "40 texts are longer than 12 tokens and were cut in the middle (head+tail)\n" in out
    assert script("train.py", *flags, "--out", "head")[0] == 0
    assert mtbert.load("both").long == "head+tail" and mtbert.load("head").long == "head"
    texts = ["film " + "so " * 90 + word for word in end.values()]
    for name, differ in (("both", True), ("head", False)):
        one, other = mtbert.predict(mtbert.load(name, dtype="float32"), texts)
        assert (one != other) == differ
        _, _, err = script("predict.py", "--model", name, "--input", "rows.json", "--output", "p.jsonl")
        assert f"were cut{' in the middle (head+tail)' * differ}\n" in err


# ---------------------------------------------------------------------------------------------------------------------
# From run to run


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert"])
def test_a_run_starts_from_a_runs_encoder_and_from_its_heads_of_the_same_tasks(model_type, checkpoint, tmp_path):
    folder = tmp_path
    first = tiny_model(checkpoint(model_type), TWO)
    first.record = {"encoder_source": "somewhere"}
    mtbert.save(first, folder)
    encoder = mtbert.Encoder.from_pretrained(str(folder), dropout=0.3)
    assert encoder.source.startswith(f"the run {folder}, weights ")
    state = first.encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert {part.p for part in encoder.modules() if isinstance(part, torch.nn.Dropout)} == {0.3}
    tokenizer = mtbert.load_tokenizer(folder, 64, 30522)
    assert tokenizer.to_str() == first.tokenizer.to_str()

    again = Task("stars", None, mean=3.0, std=2.0)  # the same numbers, of other rows
    tasks = [Task("new", ["a", "b"], [1, 1], {"a": "a", "b": "b"}), again, TWO[0]]
    model = mtbert.MTBert(encoder, tasks, tokenizer).eval()
    assert mtbert.take_heads(model, folder) == ["stars", "mood"]
    assert mtbert.take_heads(model, checkpoint(model_type)) == []
    for one, other in zip(mtbert.predict(model, TEXTS), mtbert.predict(first, TEXTS), strict=True):
        assert one["mood"] == other["mood"]
        assert one["stars"]["value"] == pytest.approx(other["stars"]["value"], rel=1e-4)
    for changes in ({"tasks": [Task("mood", ["bad", "fine"], [1, 1])]}, {"pooling": "cls"}):
        model = mtbert.MTBert(**{"encoder": encoder, "tasks": TWO[:1], "tokenizer": tokenizer} | changes)
        assert not mtbert.take_heads(model, folder)


def test_the_command_starts_from_a_run_and_says_which_heads_come_along(script, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"film {i} is {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'},{'xy'[i % 2]}" for i in range(40)]
    Path("rows.csv").write_text("\n".join(["text,liked,kind", *lines]))
    flags = ["--data", "rows.csv", "--encoder", saved, "--epochs", "1"]
    status, out, _ = script("train.py", *flags, "--out", "second", "--lr", "0")
    assert status == 0 and out.startswith(f"encoder: {saved}, from the run {saved}, weights ")
    assert out.count(f"heads that start from {saved}, too: 'liked'\n") == 1
    first, second = (load_file(folder / "model.safetensors") for folder in (saved, Path("second")))
    kept = [name for name in second if name != "heads.head_kind.weight" and name != "heads.head_kind.bias"]
    assert all(torch.equal(first[name], second[name]) for name in kept)
    assert "heads.head_stars.weight" in first and "heads.head_stars.weight" not in second
    (tmp_path / "third").mkdir()
    config = runs.read_record(saved / "config.json")
    runs.write_record(tmp_path / "third/config.json", config | {"weights_sha256": None})
    status, _, err = script("train.py", "--data", "rows.csv", "--encoder", "third")
    assert status == 2 and "third cannot be loaded: its training is not finished" in err and err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# The way out


@pytest.mark.parametrize("model_type", mtbert.MODEL_TYPES)
def test_transformers_takes_what_was_written_for_it_and_computes_the_same(model_type, checkpoint, tmp_path):
    model = tiny_model(checkpoint(model_type), TWO)
    mtbert.to_transformers(model, tmp_path / "out")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.model_type == model_type
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["great movie", "long and thin " * 30, "a film"]
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    data = mtbert.encode(model.tokenizer, [Row("", text, None, {}) for text in texts])
    with torch.inference_mode():
        batch = mtbert.collate(data, np.arange(3), model.encoder.config, "cpu")
        assert torch.equal(batch["input_ids"], inputs["input_ids"])
        mask = batch["attention_mask"]
        assert torch.equal(mask, inputs["attention_mask"].bool())
        expected = model.encoder(batch["input_ids"], mask, batch["token_type_ids"])[mask]
        torch.testing.assert_close(theirs(**inputs).last_hidden_state[mask], expected, rtol=0, atol=1e-5)
    again = mtbert.Encoder.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.encoder.state_dict().items())


def test_the_way_out_writes_to_a_new_folder_only_and_nothing_in_bfloat16(saved, tmp_path):
    with pytest.raises(InputError, match="is in use; name another folder"):
        mtbert.to_transformers(mtbert.load(saved, dtype="float32"), saved)
    with pytest.raises(InputError, match='load it with dtype="float32"'):
        mtbert.to_transformers(mtbert.load(saved, dtype="bfloat16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert"])
def test_a_loaded_model_is_exported_for_any_number_of_texts_and_tokens(model_type, checkpoint, tmp_path):
    mtbert.save(tiny_model(checkpoint(model_type), TWO), tmp_path)
    model = mtbert.load(tmp_path, dtype="float32")

    def batch(*texts):
        data = mtbert.encode(model.tokenizer, [Row("", text, None, {}) for text in texts])
        return mtbert.collate(data, np.arange(len(texts)), model.encoder.config, "cpu") | {"labels": None}

    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    names = ("input_ids", "attention_mask", "token_type_ids")
    shapes = dict.fromkeys(names, dims) | {"labels": None}
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        exported = torch.export.export(model, (), batch("a", "b", "c"), dynamic_shapes=shapes).module()
        for texts in (("a", "b", "c"), ("a fine film", "no"), TEXTS[:3]):
            expected, given = model(**batch(*texts))[0], exported(**batch(*texts))[0]
            for name in expected:
                torch.testing.assert_close(given[name], expected[name], rtol=0, atol=1e-5)


def test_an_encoder_whose_answers_depend_on_padding_is_refused(tmp_path):
    with pytest.raises(InputError, match="what it says of a text depends on its padding"):
        mtbert.Encoder.from_pretrained(tiny_checkpoint(tmp_path, "fnet"))


def test_the_run_that_an_encoder_comes_from_is_not_overwritten(script, saved):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    status, _, err = script("train.py", "--encoder", saved, "--out", saved, "--overwrite")
    assert status == 2 and "is the run that --encoder starts from; name another folder" in err
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
