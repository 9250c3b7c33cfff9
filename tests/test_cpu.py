"""Prediction with packed weights and in 8-bit integers, and embeddings that stay as they are."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn as nn

import arithmetic
import mtbert
from conftest import ROOT, make_rows, tiny_checkpoint
from data import InputError

with_vnni = pytest.mark.skipif(not arithmetic.has_int8(), reason="takes a processor with VNNI")
TEXTS = ["great movie", "a film that is bad " * 8, "no", ("a pair", "of texts")]


def write_rows(path):
    lines = [f"film {i} is {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'}" for i in range(40)]
    path.write_text("\n".join(["text,liked", *lines]))
    return path


def capabilities(monkeypatch, *features, **others):
    """Let torch say that the processor has these alone."""
    known = {"cpu_name": "Some", "avx512_bf16": False, "amx_bf16": False} | dict.fromkeys(features, True) | others
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)


def kinds_of(model):
    return Counter(type(layer) for layer in model.encoder.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer_with_its_activation(dtype, bias):
    if not arithmetic.has_packed(torch.empty(0, dtype=dtype)):
        pytest.skip("takes an x86 processor that oneDNN computes on in this dtype")
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 40, bias=bias).to(dtype), torch.randn(3, 700, 48, dtype=dtype)
    error = 1e-5 if dtype == torch.float32 else 0.02
    packed = arithmetic.PackedLinear(linear)
    for name, activation in ({None: lambda y: y} | mtbert.ACTIVATIONS).items():
        packed.activation = name
        for part in (x, x[:, :1], x.transpose(0, 1), x[:0]):
            expected, found = activation(linear(part)), packed(part)
            assert found.dtype == dtype and not found.requires_grad
            torch.testing.assert_close(found, expected, rtol=error, atol=error)
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert other(x).equal(packed(x))


@with_vnni
def test_a_layer_is_the_exact_product_of_its_rounded_inputs_and_weights():
    torch.manual_seed(0)
    linear, x = nn.Linear(384, 40), torch.randn(3, 5, 384) * torch.logspace(-3, 3, 5)[:, None]  # tokens of many sizes
    x[0, 0], x[1, 1] = 0, 1  # and the largest products that there are
    of_x, of_weight = x.abs().amax(-1, keepdim=True) / 127, linear.weight.abs().amax(1, keepdim=True) / 127
    inputs, weights = (x * (1 / of_x.clamp_min(1e-38)) + 0.5).floor(), (linear.weight / of_weight).round()
    exact = inputs.double() @ weights.double().T * of_x * of_weight[:, 0] + linear.bias
    found = arithmetic.Int8Linear(linear)(x)
    assert found.dtype == torch.float32 and (found - exact).abs().max() <= 1e-6 * exact.abs().max()
    error = (found - linear(x)).norm(dim=-1) / linear(x).norm(dim=-1)
    assert error.max() < 0.02 and found[0, 0].equal(linear.bias)  # each token has a scale of its own


@with_vnni
def test_a_model_in_int8_answers_nearly_as_in_float32_whatever_is_beside_a_text(finished):
    exact, model = mtbert.load(finished, dtype="float32"), mtbert.load(finished, dtype="int8")
    kinds = kinds_of(model)
    assert kinds[arithmetic.Int8Linear] == 8 and nn.Linear not in kinds  # of two layers
    together = mtbert.predict(model, TEXTS)
    for text, found, expected in zip(TEXTS, together, mtbert.predict(exact, TEXTS), strict=True):
        [alone] = mtbert.predict(model, [text])
        for task in ("liked", "stars"):
            numbers = [np.array(list(p[task].get("probabilities", p[task]).values())) for p in (found, expected, alone)]
            assert np.abs(numbers[0] - numbers[1]).max() < 0.05
            assert np.abs(numbers[0] - numbers[2]).max() < 0.01  # sums that differ in a last bit may be rounded apart


@with_vnni
def test_another_encoder_takes_int8_when_asked_and_not_by_itself(tmp_path, script, monkeypatch):
    encoder = tiny_checkpoint(tmp_path / "encoder", "mpnet")
    rows, out = write_rows(tmp_path / "rows.csv"), tmp_path / "run"
    assert script("train.py", "--encoder", encoder, "--data", rows, "--epochs", 1, "--out", out)[0] == 0
    model, exact = mtbert.load(out, dtype="int8"), mtbert.load(out, dtype="float32")
    assert any(isinstance(layer, arithmetic.Int8Linear) for layer in model.encoder.modules())
    found, expected = (mtbert.predict(m, TEXTS[:3]) for m in (model, exact))
    for one, other in zip(found, expected, strict=True):
        assert one["liked"]["probabilities"] == pytest.approx(other["liked"]["probabilities"], abs=0.05)
    capabilities(monkeypatch, "avx512_vnni")
    assert not any(isinstance(layer, arithmetic.Int8Linear) for layer in mtbert.load(out).encoder.modules())


def test_a_model_is_packed_to_predict_and_not_to_be_trained(finished, tmp_path, monkeypatch):
    """Here and on a processor without bfloat16 and VNNI, where "auto" is float32."""
    exact = mtbert.load(finished, dtype="float32")
    assert kinds_of(exact)[nn.Linear] == 8 and all(p.requires_grad for p in exact.parameters())
    models = [mtbert.pack(mtbert.load(finished, dtype="float32"))]
    capabilities(monkeypatch, architecture=torch.cpu.get_capabilities()["architecture"])
    models.append(mtbert.load(finished))
    for model in models:
        assert kinds_of(model)[arithmetic.PackedLinear] == 8 and kinds_of(model)[nn.Linear] == 0
        assert mtbert.pack(model) is model and kinds_of(model)[arithmetic.PackedLinear] == 8
        for found, expected in zip(mtbert.predict(model, TEXTS), mtbert.predict(exact, TEXTS), strict=True):
            assert found["stars"]["value"] == pytest.approx(expected["stars"]["value"], abs=1e-5)
            assert found["liked"]["probabilities"] == pytest.approx(expected["liked"]["probabilities"], abs=1e-5)
        for write in (mtbert.save, mtbert.to_transformers):
            with pytest.raises(InputError, match='load it with dtype="float32"'):
                write(model, tmp_path / "out")
    capabilities(monkeypatch, architecture="aarch64")
    assert kinds_of(mtbert.load(finished))[nn.Linear] == 8


def test_weights_are_packed_only_where_onednn_does_it(monkeypatch):
    half = torch.empty(0, dtype=torch.bfloat16)
    capabilities(monkeypatch, architecture="x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert arithmetic.has_packed(half.float()) and not arithmetic.has_packed(half)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert arithmetic.has_packed(half) and not arithmetic.has_packed(half.half())
    assert not arithmetic.has_packed(half.to("meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not arithmetic.has_packed(half) and not arithmetic.has_packed(half.float())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, pytest.param("int8", marks=with_vnni)])
def test_a_model_has_as_many_parameters_in_each_dtype(finished, dtype):
    models = [mtbert.load(finished, dtype=name) for name in ("float32", torch.float32, dtype)]
    assert [kinds_of(model)[nn.Linear] for model in models[:2]] == [8, 8]
    assert len({sum(p.numel() for p in model.parameters()) for model in models}) == 1
    assert models[0].state_dict().keys() == models[2].state_dict().keys()


def test_long_texts_in_bfloat16_are_answered_as_in_float32(finished):
    """From 96 tokens on attention is another."""
    exact, half = (mtbert.load(finished, dtype=name) for name in ("float32", "bfloat16"))
    text = "great " * 200
    for found, expected in zip(mtbert.predict(half, ["no", text]), mtbert.predict(exact, ["no", text]), strict=True):
        assert found["liked"]["probabilities"] == pytest.approx(expected["liked"]["probabilities"], abs=0.02)


@with_vnni
def test_packing_leaves_a_model_in_int8_as_it_is(finished):
    model = mtbert.load(finished, dtype="int8")
    expected, kinds = mtbert.predict(model, TEXTS), kinds_of(model)
    assert mtbert.predict(mtbert.pack(model), TEXTS) == expected and kinds_of(model) == kinds


@with_vnni
def test_a_model_in_int8_is_neither_saved_nor_exported(finished, tmp_path):
    model = mtbert.load(finished, dtype="int8")
    for write in (mtbert.save, mtbert.to_transformers):
        with pytest.raises(InputError, match='load it with dtype="float32"'):
            write(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@with_vnni
def test_a_model_in_int8_is_copied_and_takes_no_gradient(finished):
    model = mtbert.load(finished, dtype="int8")
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert mtbert.predict(model, TEXTS) == mtbert.predict(copies[0], TEXTS) == mtbert.predict(copies[1], TEXTS)
    batch = mtbert.collate(mtbert.encode(model.tokenizer, make_rows({})), np.array([0]), model.encoder.config, "cpu")
    batch["labels"] = None
    model(**batch)[0]["liked"].sum().backward()
    taken = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert taken == {"heads.head_liked.weight", "heads.head_liked.bias"}


@with_vnni
def test_int8_is_taken_only_where_its_products_are_exact():
    """oneDNN without VNNI, as on an older processor: products of bytes overflow."""
    for name, expected in (("AVX512_CORE_VNNI", "True"), ("AVX2", "False")):
        command = [sys.executable, "-c", "import arithmetic; print(arithmetic.has_int8())"]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": name}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == f"{expected}\n"


def test_int8_without_vnni_is_one_line(finished, script, monkeypatch):
    capabilities(monkeypatch, "avx512_f", "avx512_bf16")
    status, out, err = script("predict.py", "--model", finished, "--dtype", "int8", "great movie")
    assert (status, out, err) == (2, "", "predict.py: error: int8 takes a processor with VNNI, and this has none\n")


@with_vnni
def test_a_run_is_tested_in_the_arithmetic_that_it_learned_in(tiny, tmp_path, script, monkeypatch):
    capabilities(monkeypatch, "avx512_vnni")
    rows = write_rows(tmp_path / "rows.csv")
    command = ("--encoder", tiny, "--data", rows, "--test", rows, "--epochs", 1, "--out", tmp_path / "run")
    assert script("train.py", *command)[0] == 0
    tested = [json.loads(line) for line in (tmp_path / "run" / "test_predictions.jsonl").read_text().splitlines()]
    texts = [line.partition(",")[0] for line in rows.read_text().splitlines()[1:]]
    exact, fast = (mtbert.predict(mtbert.load(tmp_path / "run", dtype=name), texts) for name in ("float32", "auto"))
    assert [line["predictions"] for line in tested] == json.loads(json.dumps(exact)) != json.loads(json.dumps(fast))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("limit", [0.5, 100.0, math.inf])
def test_gradients_are_clipped_as_torch_clips_them(fused, limit):
    torch.manual_seed(0)
    gradients, found = [torch.randn(3, 4), torch.randn(4)], []
    for clipped in (True, False):
        parameters = [nn.Parameter(torch.ones_like(g)) for g in gradients] + [nn.Parameter(torch.ones(2))]
        optimizer = torch.optim.AdamW(parameters, eps=1.0, fused=fused)  # so that the size of a gradient counts
        for _ in range(2):
            for parameter, gradient in zip(parameters, gradients, strict=False):
                parameter.grad = gradient.clone()
            if clipped:
                norm = arithmetic.clip_gradients(optimizer, limit)
            else:
                norm = nn.utils.clip_grad_norm_(parameters, limit).item()
            optimizer.step()
        found.append([norm, *(p.detach() for p in parameters)])
    assert found[0][0] == pytest.approx(found[1][0]) and (found[0][1] != 1).all()
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_frozen_embeddings_stay_and_all_else_learns(tiny, tmp_path, script):
    rows, out = write_rows(tmp_path / "rows.csv"), tmp_path / "run"
    command = ("--encoder", tiny, "--data", rows, "--epochs", 1, "--out", out, "--freeze-embeddings")
    assert script("train.py", *command)[0] == 0
    before = mtbert.Encoder.from_pretrained(tiny).state_dict()
    after = mtbert.load(out, dtype="float32").encoder.state_dict()
    same = {name for name, value in before.items() if value.equal(after[name])}
    assert same == {name for name in before if "embed" in name} and len(same) == 5


def test_freezing_changes_only_whose_gradient_is_taken(tiny):
    model = mtbert.MTBert(mtbert.Encoder.from_pretrained(tiny), [], None)
    every = {p for group in mtbert.parameter_groups(model, 1, 1, 0.5, 0) for p in group["params"]}
    mtbert.freeze_embeddings(model.encoder)
    kept = {p for group in mtbert.parameter_groups(model, 1, 1, 0.5, 0) for p in group["params"]}
    assert every - kept == {p for name, p in model.named_parameters() if "embed" in name}
    assert "embeddings" not in {group["name"] for group in mtbert.parameter_groups(model, 1, 1, 0.5, 0)}
