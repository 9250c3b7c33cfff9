"""What is computed faster on a CPU stays what it is: in training, in prediction, in a fork."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter

import pytest
import torch
import torch.nn as nn
from conftest import ROOT, TWO, batch_of, dropouts, make_rows, tiny_checkpoint, tiny_model

import mtbert
from support import cpu
from support.errors import InputError

with_vnni = pytest.mark.skipif(not cpu.has_int8(), reason="needs a CPU with VNNI")
with_int8 = pytest.mark.usefixtures("int8")
pytestmark = pytest.mark.usefixtures("without_gpu")
ACTIVATIONS = [nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU()]
TEXTS = ["great movie", "a film that is bad " * 8, "no", ("a pair", "of texts")]
SPLIT = make_rows(*({"mood": "bad", "stars": i / 4} for i in range(6)))


@pytest.fixture
def int8(monkeypatch):
    """Let int8 be computed on any CPU: fast where there is VNNI, else slowly and as exactly."""
    monkeypatch.setenv("MTBERT_ARITHMETIC", "int8")


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """The folder of a model on two tasks, saved as it was made."""
    folder = tmp_path_factory.mktemp("saved")
    mtbert.save(tiny_model(tiny, TWO), folder)
    return folder


@pytest.fixture
def own_choice(monkeypatch):
    monkeypatch.delenv("MTBERT_ARITHMETIC", raising=False)


def capabilities(monkeypatch, *features, **others):
    """Let the CPU have these alone."""
    known = {"cpu_name": "Some", "avx512_bf16": False, "amx_bf16": False}
    known |= dict.fromkeys(features, True) | others
    monkeypatch.setattr(cpu, "cpu_features", lambda: known)


def kinds_of(model):
    return Counter(type(module) for module in model.modules())


def num_weights(model):
    return sum(parameter.numel() for parameter in model.parameters())


def made_fast(model):
    """The model, made ready for training -> (model, optimizer)."""
    optimizer = mtbert.AdamW(model.parameters(), lr=1e-3, fused=True)
    cpu.speed_up_training(model, optimizer)
    return model, optimizer


def probabilities(prediction):
    """All numbers of a text's prediction on TWO."""
    return [*prediction["mood"]["probabilities"].values(), prediction["stars"]["value"]]


def results_of(model, batch):
    """Logits, losses and gradients by name."""
    model.zero_grad()
    logits, losses = model(**batch)
    sum(losses.values()).backward()
    results = {f"logits of {name}": value for name, value in logits.items()}
    results |= {f"loss of {name}": value for name, value in losses.items()}
    results |= {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return results


# --------------------------------------------------------------------------------------------------
# The choice of a dtype


@pytest.mark.parametrize(
    ("name", "features", "training", "prediction"),
    [
        ("AMD EPYC", {"avx512_bf16", "avx512_vnni"}, "bfloat16", "bfloat16"),
        ("Intel Xeon", {"avx512_bf16", "avx512_vnni"}, "float32", "int8"),
        ("Intel Xeon", {"avx512_bf16", "amx_bf16", "avx512_vnni"}, "bfloat16", "bfloat16"),
        ("Intel Core", {"avx_vnni"}, "float32", "int8"),
        ("AMD EPYC", {"avx512_f"}, "float32", "float32"),
    ],
)
def test_auto_takes_what_the_cpu_is_fast_in(
    name, features, training, prediction, monkeypatch, own_choice
):
    capabilities(monkeypatch, *features, cpu_name=name)
    monkeypatch.setattr(cpu, "has_int8", lambda: bool(features & {"avx512_vnni", "avx_vnni"}))
    assert cpu.pick_dtype("auto", torch.device("cpu")) == getattr(torch, training)
    assert cpu.pick_dtype("auto", torch.device("cpu"), True) == getattr(torch, prediction)
    assert cpu.pick_dtype("auto", torch.device("mps"), True) == torch.float32


@pytest.mark.parametrize("forced", ["float32", "bfloat16", "int8"])
def test_the_environment_replaces_what_auto_takes_and_nothing_else(forced, monkeypatch):
    monkeypatch.setenv("MTBERT_ARITHMETIC", forced)
    training = "float32" if forced == "int8" else forced
    assert cpu.pick_dtype("auto", torch.device("cpu")) == getattr(torch, training)
    assert cpu.pick_dtype("auto", torch.device("cpu"), True) == getattr(torch, forced)
    assert cpu.pick_dtype("auto", torch.device("cuda"), True) == getattr(torch, training)
    for asked in ("float32", torch.bfloat16):
        dtype = cpu.pick_dtype(asked, torch.device("cpu"), True)
        assert dtype == {"float32": torch.float32}.get(asked, asked)


def test_int8_is_refused_where_it_would_be_wrong(monkeypatch, own_choice):
    capabilities(monkeypatch, "avx512_f", "avx512_bf16")
    with pytest.raises(InputError, match="needs a CPU with VNNI"):
        cpu.pick_dtype("int8", torch.device("cpu"))
    with pytest.raises(InputError, match="is for CPUs only, not for cuda"):
        cpu.pick_dtype("int8", torch.device("cuda"))


def test_int8_without_vnni_is_one_line(finished, script, monkeypatch, own_choice):
    capabilities(monkeypatch, "avx512_f", "avx512_bf16")
    command = ("predict.py", "--model", finished, "--dtype", "int8", "great movie")
    status, out, err = script(*command)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("predict.py: error: int8 needs a CPU with VNNI")


@with_vnni
def test_int8_is_taken_only_where_its_products_are_exact():
    """oneDNN without VNNI, as on an older CPU: products of bytes overflow."""
    for name, expected in (("AVX512_CORE_VNNI", "True"), ("AVX2", "False")):
        command = [sys.executable, "-c", "from support import cpu; print(cpu.has_int8())"]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": name}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == f"{expected}\n"


def test_weights_are_packed_only_where_onednn_does_it(monkeypatch):
    half = torch.empty(0, dtype=torch.bfloat16)
    supported = {"raising": False, "value": lambda: False}
    capabilities(monkeypatch, architecture="x86_64")
    monkeypatch.setattr(cpu, "packed_product_is_right", lambda dtype: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", **supported)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert cpu.can_pack(half.float())
    assert not cpu.can_pack(half)
    supported["value"] = lambda: True
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", **supported)
    assert cpu.can_pack(half)
    assert not cpu.can_pack(half.half())
    assert not cpu.can_pack(half.to("meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not cpu.can_pack(half)
    assert not cpu.can_pack(half.float())
    monkeypatch.undo()
    capabilities(monkeypatch, architecture="aarch64")
    assert not cpu.can_pack(half.float())


def test_a_product_that_is_not_right_is_not_trusted(monkeypatch):
    if not cpu.can_pack(torch.empty(0)):
        pytest.skip("needs an x86 CPU on which oneDNN computes")
    product = cpu.packed_product
    monkeypatch.setattr(cpu, "packed_product", lambda *given: product(*given) + 1)
    assert not cpu.can_pack(torch.empty(0))


@pytest.mark.parametrize(
    ("lines", "name", "fast"),
    [
        ("model name\t: Intel(R) Xeon(R)\nflags\t: sse avx512_bf16 amx_bf16\n", "Intel", True),
        ("model name\t: Intel(R) Xeon(R)\nflags\t: sse avx512_bf16\n", "Intel", False),
        ("model name\t: AMD EPYC\nflags\t: sse avx512_bf16\n", "AMD", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "", True),
        ("", "", False),
    ],
)
def test_where_torch_does_not_say_what_the_cpu_can_do_linux_does(
    lines, name, fast, monkeypatch, tmp_path, own_choice
):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu.cpu_features()["architecture"]
    path = tmp_path / "cpuinfo"
    assert not cpu.read_cpu_features(path).get("avx512_bf16")  # there is none on other systems
    path.write_text(lines)
    features = cpu.read_cpu_features(path)
    assert name in features["cpu_name"]
    monkeypatch.setattr(cpu, "cpu_features", lambda: features)
    assert cpu.has_fast_bfloat16(torch.device("cpu")) == fast


# --------------------------------------------------------------------------------------------------
# Dropout


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_promised_share_scaled_at_random_places(p):
    dropout = cpu.Dropout(p)
    x = torch.ones(1001, 999)
    torch.manual_seed(0)
    first = dropout(x)
    second = dropout(x)
    for y in (first, second):
        assert set(y.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}
        error = 5 * (p * (1 - p) / 1e6) ** 0.5
        assert (y == 0).float().mean().item() == pytest.approx(p, abs=error)
        for axis in (0, 1):
            spread = (y == 0).float().mean(axis).std()
            assert (spread - (p * (1 - p) / 1000) ** 0.5).abs() < 0.002
    both = ((first == 0) & (second == 0)).float().mean().item()
    assert both == pytest.approx(p * p, abs=5 * (p * p / 1e6) ** 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_in_bfloat16_keeps_the_mean_though_its_scale_is_rounded(p):
    torch.manual_seed(0)
    y = cpu.Dropout(p)(torch.ones(2000, 2000, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.002 + 1e-3)
    assert y.float().mean().item() == pytest.approx(1, abs=5 * (p / (1 - p) / 4e6) ** 0.5)


def test_dropout_of_everything_leaves_nothing():
    assert cpu.Dropout(1.0)(torch.ones(3, 5)).count_nonzero() == 0


def test_each_dropout_is_swapped_where_it_acts_and_others_are_not(tiny):
    class Alpha(nn.Dropout):
        """A fork's own."""

    model = tiny_model(tiny, TWO)
    model.encoder.layers[1].dropout = Alpha(0.0)
    model, _ = made_fast(model)
    kinds = kinds_of(model)
    assert kinds[Alpha] == 1
    assert kinds[nn.Dropout] == 0
    assert kinds[cpu.Dropout] == len(dropouts(model)) - 1 == 5
    batch = batch_of(model, SPLIT)
    layer = model.encoder.layers[0]
    places = [model.dropout, model.encoder.dropout, layer.dropout, layer.attention.original.dropout]
    expected = model.eval()(**batch)[0]["mood"]
    for place in places:
        place.p = 0.5
        assert not model.train()(**batch)[0]["mood"].allclose(expected, atol=1e-3)
        assert model.eval()(**batch)[0]["mood"].equal(expected)
        place.p = 0.0
    assert model.train()(**batch)[0]["mood"].allclose(expected, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_training_computes_the_same_without_what_makes_it_fast(tiny, pooling):
    model = tiny_model(tiny, TWO, pooling=pooling).train()
    batch = batch_of(model, SPLIT)
    expected = results_of(model, batch)
    fast, _ = made_fast(copy.deepcopy(model))
    found = results_of(fast, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1, value.abs().max().item())
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("lengths", [[5, 1, 12], [9, 9], [30, 2], [30, 2, 2, 2, 40], [61] * 4, [1]])
def test_training_computes_no_linear_layer_for_padding_and_changes_nothing(tiny, lengths):
    model, _ = made_fast(tiny_model(tiny, TWO))
    encoder = model.encoder
    generator = torch.Generator().manual_seed(0)
    T = max(lengths) + 3
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 100, mask.shape, generator=generator) * mask
    weights = torch.randn(*mask.shape, encoder.config.hidden_size, generator=generator)
    seen = []
    linear = encoder.layers[0].output
    linear.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2).shape[0]))
    results = []
    for training in (False, True):
        hidden = encoder.train(training)(ids, mask)
        assert hidden.shape == weights.shape
        assert hidden.isfinite().all()
        encoder.zero_grad()
        (hidden * weights)[mask].sum().backward()
        results.append([hidden[mask].detach(), *(p.grad for p in encoder.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    places = len(lengths) * math.ceil(T / 4) * 4
    assert seen == [mask.numel(), min(places, sum(lengths) // 32 * 32 + 32)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_as_plain_products_equals_the_fused_kernel_in_values_and_gradients(dtype):
    torch.manual_seed(0)
    qkv = torch.randn(3, 9, 96, dtype=dtype, requires_grad=True)
    mask = torch.arange(9) < torch.tensor([9, 1, 4])[:, None]
    mask = mask[:, None, None, :]
    weights = torch.randn(3, 9, 32)
    attention = mtbert.Attention(num_heads=4, dropout=0.0)
    results = []
    for module in (attention, cpu.FastAttention(attention).train()):
        context = module(qkv, mask)
        [gradient] = torch.autograd.grad((context * weights).sum(), qkv)
        results.append((context, gradient))
    error = 1e-5 if dtype == torch.float32 else 0.05
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=error, atol=error)


def test_a_model_ready_for_training_evaluates_and_is_stored_as_before(tiny):
    model = tiny_model(tiny, TWO)
    batch = batch_of(model, SPLIT)
    expected = model(**batch)[0]["mood"]
    names = list(model.state_dict())
    fast, optimizer = made_fast(model)
    kinds = kinds_of(fast)
    cpu.speed_up_training(fast, optimizer)  # once more does no harm
    assert kinds_of(fast) == kinds
    assert fast.max_tokens == cpu.MAX_TOKENS
    assert list(fast.state_dict()) == names
    assert fast.train().eval()(**batch)[0]["mood"].equal(expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_model_ready_for_training_stands_alone(tiny, copied):
    model, _ = made_fast(tiny_model(tiny, TWO).train())
    batch = batch_of(model, SPLIT)
    before = model(**batch)[0]["mood"].detach()
    other = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other(**batch)[0]["mood"].equal(before)
    assert not model(**batch)[0]["mood"].equal(before)
    assert other.encoder.run_layers.args == (other.encoder,)


def test_training_in_bfloat16_is_near_training_in_float32(tiny):
    model, _ = made_fast(tiny_model(tiny, TWO).train())
    batch = batch_of(model, SPLIT)
    exact = results_of(model, batch)
    model.compute_dtype = torch.bfloat16
    for name, found in results_of(model, batch).items():
        assert found.dtype == torch.float32
        assert (found - exact[name]).norm() <= 0.1 * exact[name].norm() + 1e-3, name


def test_only_the_heads_dropout_is_swapped_around_an_encoder_of_transformers(tmp_path):
    folder = tiny_checkpoint(tmp_path / "encoder", "mpnet")
    model = tiny_model(folder, TWO)
    inside = kinds_of(model.encoder)
    made_fast(model)
    assert kinds_of(model.encoder) == inside
    assert type(model.dropout) is cpu.Dropout
    batch = batch_of(model, SPLIT)
    assert model.train()(**batch)[0]["mood"].isfinite().all()


def test_nothing_is_swapped_on_another_device(tiny):
    model = tiny_model(tiny, TWO).to("meta")
    kinds = kinds_of(model)
    made_fast(model)
    assert kinds_of(model) == kinds
    assert model.max_tokens == math.inf


# --------------------------------------------------------------------------------------------------
# Forks: what they change keeps its effect, with what makes a CPU fast and without


class Window(mtbert.Attention):
    """Each token attends to itself and its neighbours."""

    def forward(self, qkv, mask):
        places = torch.arange(qkv.shape[1])
        near = (places[:, None] - places).abs() <= 1
        return super().forward(qkv, mask & near)


class Gated(mtbert.Layer):
    """The activation does not stand behind `intermediate`."""

    def forward(self, x, mask):
        x = self.attention_norm(x + self.attention_output(self.attention(self.qkv(x), mask)))
        inner = self.intermediate(x)
        return self.output_norm(x + self.output(inner * self.activation(inner - 1)))


class Shifted(mtbert.Layer):
    """A layer that mixes tokens otherwise than in its attention."""

    def forward(self, x, mask):
        return super().forward(x + x.roll(1, dims=-2), mask)


class Masked(mtbert.Layer):
    """A layer that multiplies by the mask itself."""

    def forward(self, x, mask):
        return super().forward(x * mask[:, 0, 0, :, None], mask)


def fork_of(tiny, change):
    """A model whose layers are changed, and whose tokens differ much from each other."""
    model = tiny_model(tiny, TWO)
    for parameter in model.encoder.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, 0.3)
        else:
            parameter.data.fill_(0.5)
    for layer in model.encoder.layers:
        if change is Window:
            layer.attention.__class__ = Window
        elif change is not None:
            layer.__class__ = change
    return model


@pytest.mark.parametrize("change", [Window, Gated, Shifted, Masked])
def test_a_forks_own_layer_trains_the_same(tiny, change):
    model = fork_of(tiny, change).train()
    batch = batch_of(model, SPLIT)
    expected = results_of(model, batch)
    fast, _ = made_fast(model)
    assert ("run_layers" in vars(fast.encoder)) == (change is Gated)
    for name, found in results_of(fast, batch).items():
        scale = max(1, expected[name].abs().max().item())
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("change", [Window, Gated, Shifted])
@with_int8
def test_a_forks_own_layer_predicts_the_same(tiny, change, dtype):
    model = fork_of(tiny, change)
    batch = batch_of(model, SPLIT)
    del batch["labels"]
    tokens = batch["attention_mask"]
    plain = fork_of(tiny, None).encoder(**batch)[tokens]
    expected = model.encoder(**batch)[tokens]
    assert cpu.speed_up_prediction(model, dtype) == dtype
    found = model.encoder(**batch)[tokens].float()
    size = expected.norm()
    error = 1e-5 if dtype == "float32" else 0.02
    assert (found - expected).norm() < error * size
    assert (plain - expected).norm() > 0.05 * size  # the change does change something


# --------------------------------------------------------------------------------------------------
# Clipping


def adamw(parameters, fused):
    optimizer = mtbert.AdamW(parameters, eps=1.0, fused=fused)  # so a gradient's size counts
    model = nn.Linear(1, 1)
    model.encoder = model
    cpu.speed_up_training(model, optimizer)
    return optimizer


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("limit", [0.5, 100.0, math.inf])
def test_gradients_are_clipped_as_torch_clips_them(fused, limit):
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4), torch.randn(4)]
    results = []
    for clipped in (True, False):
        parameters = [nn.Parameter(torch.ones_like(gradient)) for gradient in gradients]
        parameters.append(nn.Parameter(torch.ones(2)))  # which has no gradient
        optimizer = adamw(parameters, fused)
        for _ in range(2):
            for parameter, gradient in zip(parameters, gradients, strict=False):
                parameter.grad = gradient.clone()
            if clipped:
                norm = optimizer.clip_gradients(limit)
            else:
                norm = nn.utils.clip_grad_norm_(parameters, limit).item()
            optimizer.step()
        results.append((norm, parameters))
    (norm, found), (expected_norm, expected) = results
    assert norm == pytest.approx(expected_norm)
    assert (found[0] != 1).all()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_steps_scale_does_not_last_for_the_next():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    once = adamw(parameters[:1], fused=True)
    never = adamw(parameters[1:], fused=True)
    for parameter in parameters:
        parameter.grad = torch.full((3,), 0.5)
    assert once.clip_gradients(0.1) == pytest.approx(0.5 * 3**0.5)
    assert once.grad_scale is not None
    once.step()
    assert once.grad_scale is None
    parameters[1].grad = parameters[0].grad.clone()  # as it was clipped
    never.step()
    for optimizer, parameter in zip((once, never), parameters, strict=True):
        parameter.grad = torch.full((3,), 2.0)
        optimizer.step()  # without a call of clip_gradients
    torch.testing.assert_close(parameters[0], parameters[1])


# --------------------------------------------------------------------------------------------------
# Prediction


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer_with_its_activation(dtype, bias):
    if not cpu.can_pack(torch.empty(0, dtype=dtype)):
        pytest.skip("needs an x86 CPU on which oneDNN computes in this dtype")
    torch.manual_seed(0)
    linear = nn.Linear(48, 40, bias=bias).to(dtype)
    x = torch.randn(3, 700, 48, dtype=dtype)
    error = 1e-5 if dtype == torch.float32 else 0.02
    pairs = [(nn.Identity(), cpu.PackedLinear(linear))]
    for activation in ACTIVATIONS:
        pairs.append((activation, cpu.PackedLinear(linear, cpu.fused_name(activation))))
    for activation, packed in pairs:
        for part in (x, x[:, :1], x.transpose(0, 1), x[:0]):
            found = packed(part)
            assert found.dtype == dtype
            assert not found.requires_grad
            torch.testing.assert_close(found, activation(linear(part)), rtol=error, atol=error)
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert other(x).equal(packed(x))


def test_an_activation_that_onednn_has_not_stays_a_module():
    assert cpu.fused_name(nn.SiLU()) is None
    assert cpu.fused_name(nn.Identity()) is None


@pytest.mark.parametrize("bias", [True, False])
@with_int8
def test_a_layer_in_int8_is_the_exact_product_of_its_rounded_inputs_and_weights(bias):
    torch.manual_seed(0)
    linear = nn.Linear(384, 40, bias=bias)
    x = torch.randn(3, 5, 384) * torch.logspace(-3, 3, 5)[:, None]  # tokens of many sizes
    x[0, 0] = 0
    x[1, 1] = 1  # the largest products that there are
    input_scale = x.abs().amax(-1, keepdim=True) / 127
    weight_scale = linear.weight.abs().amax(1, keepdim=True) / 127
    inputs = (x * (1 / input_scale.clamp_min(1e-38)) + 0.5).floor()
    weights = (linear.weight / weight_scale).round()
    exact = inputs.double() @ weights.double().T * input_scale * weight_scale[:, 0]
    expected_bias = torch.zeros(40)
    if bias:
        expected_bias = linear.bias
    exact = exact + expected_bias
    layer = cpu.Int8Linear(linear)
    found = layer(x)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= 1e-6 * exact.abs().max()
    assert found[0, 0].equal(expected_bias)
    error = (found - linear(x)).norm(dim=-1) / linear(x).norm(dim=-1).clamp_min(1e-6)
    assert error.max() < 0.02  # as each token has a scale of its own
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other(x).equal(found)


@with_int8
def test_a_model_in_int8_predicts_nearly_as_in_float32_whatever_is_beside_a_text(saved):
    exact = mtbert.load(saved, trainable=True)
    model = mtbert.load(saved, dtype="int8")
    kinds = kinds_of(model.encoder)
    assert kinds[cpu.Int8Linear] == 8  # of two layers
    assert kinds[nn.Linear] == 0
    together = mtbert.predict(model, TEXTS)
    for text, found, expected in zip(TEXTS, together, mtbert.predict(exact, TEXTS), strict=True):
        [alone] = mtbert.predict(model, [text])
        assert probabilities(found) == pytest.approx(probabilities(expected), abs=0.05)
        # Sums that differ in the last bit may be rounded apart.
        assert probabilities(found) == pytest.approx(probabilities(alone), abs=0.01)


def test_an_encoder_of_transformers_takes_int8_when_asked_and_not_by_itself(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "encoder", "mpnet")
    mtbert.save(tiny_model(folder, TWO), tmp_path)
    exact = mtbert.load(tmp_path, dtype="float32")
    monkeypatch.setenv("MTBERT_ARITHMETIC", "int8")
    assert kinds_of(mtbert.load(tmp_path))[cpu.Int8Linear] == 0
    model = mtbert.load(tmp_path, dtype="int8")
    assert kinds_of(model)[cpu.Int8Linear] > 0
    results = [mtbert.predict(one, TEXTS[:3]) for one in (model, exact)]
    for found, expected in zip(*results, strict=True):
        assert probabilities(found) == pytest.approx(probabilities(expected), abs=0.05)


def test_a_model_is_packed_to_predict_and_not_to_be_trained(saved, monkeypatch, own_choice):
    """Here, and on a CPU without bfloat16 and VNNI, where "auto" is float32."""
    if not cpu.can_pack(torch.empty(0)):
        pytest.skip("needs an x86 CPU on which oneDNN computes")
    exact = mtbert.load(saved, trainable=True)
    assert kinds_of(exact.encoder)[nn.Linear] == 8
    assert all(parameter.requires_grad for parameter in exact.parameters())
    models = [mtbert.load(saved, dtype="float32")]
    capabilities(monkeypatch, architecture=cpu.cpu_features()["architecture"])
    models.append(mtbert.load(saved))
    for model in models:
        kinds = kinds_of(model)
        assert kinds[cpu.PackedLinear] == 8
        assert kinds[nn.GELU] == 0
        assert cpu.speed_up_prediction(model, "float32") == "float32"  # once more does no harm
        assert kinds_of(model) == kinds
        results = [mtbert.predict(one, TEXTS) for one in (model, exact)]
        for found, expected in zip(*results, strict=True):
            assert probabilities(found) == pytest.approx(probabilities(expected), abs=1e-5)
    capabilities(monkeypatch, architecture="aarch64")
    assert kinds_of(mtbert.load(saved).encoder)[nn.Linear] == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.bfloat16, "int8"])
@with_int8
def test_a_model_for_prediction_has_the_same_parameters_and_is_not_saved(saved, dtype, tmp_path):
    exact = mtbert.load(saved, trainable=True)
    model = mtbert.load(saved, dtype=dtype)
    assert len(list(exact.parameters())) == len(list(model.parameters()))
    assert num_weights(exact) == num_weights(model)
    assert exact.state_dict().keys() == model.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    if dtype == "float32" and not cpu.can_pack(torch.empty(0)):
        return
    for write in (mtbert.save, mtbert.to_transformers):
        with pytest.raises(InputError, match="trainable"):
            write(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_of_all_lengths_in_bfloat16_are_predicted_as_in_float32(tiny):
    """From 96 tokens on attention is another."""
    exact = tiny_model(tiny, TWO)
    model = copy.deepcopy(exact)
    cpu.speed_up_prediction(model, torch.bfloat16)
    assert kinds_of(model)[cpu.FastAttention] == 2
    generator = torch.Generator().manual_seed(0)
    T = model.encoder.config.max_length
    for length in (3, T):
        ids = torch.randint(5, 100, (2, length), generator=generator)
        results = [one.encoder(ids, torch.ones_like(ids)).float() for one in (model, exact)]
        assert (results[0] - results[1]).norm() <= 0.05 * results[1].norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@with_int8
def test_a_model_for_prediction_is_copied_and_takes_no_gradient(saved, dtype):
    model = mtbert.load(saved, dtype=dtype)
    expected = mtbert.predict(model, TEXTS)
    assert mtbert.predict(copy.deepcopy(model), TEXTS) == expected
    assert mtbert.predict(pickle.loads(pickle.dumps(model)), TEXTS) == expected
    batch = batch_of(model, make_rows({}))
    batch["labels"] = None
    model(**batch)[0]["mood"].sum().backward()
    taken = {name for name, p in model.named_parameters() if p.grad is not None}
    assert taken == {"heads.head_mood.weight", "heads.head_mood.bias"}


@with_int8
def test_speeding_up_once_more_leaves_a_model_in_int8_as_it_is(saved):
    model = mtbert.load(saved, dtype="int8")
    expected = mtbert.predict(model, TEXTS)
    kinds = kinds_of(model)
    assert cpu.speed_up_prediction(model, "int8") == "int8"
    assert mtbert.predict(model, TEXTS) == expected
    assert kinds_of(model) == kinds


@with_int8
def test_a_run_is_tested_in_the_arithmetic_that_predicts(tiny, tmp_path, script):
    lines = ["text,liked"]
    for i in range(40):
        mood, liked = ("good", "yes") if i % 2 else ("bad", "no")
        lines.append(f"film {i} is {mood},{liked}")
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(lines))
    run = tmp_path / "run"
    command = ("--encoder", tiny, "--data", rows, "--test", rows, "--epochs", 1, "--out", run)
    assert script("train.py", *command)[0] == 0
    tested = []
    for line in (run / "test_predictions.jsonl").read_text().splitlines():
        tested.append(json.loads(line)["predictions"])
    texts = [line.partition(",")[0] for line in lines[1:]]
    fast = mtbert.predict(mtbert.load(run), texts)
    exact = mtbert.predict(mtbert.load(run, dtype="float32"), texts)
    assert tested == json.loads(json.dumps(fast))
    assert tested != json.loads(json.dumps(exact))
    assert json.loads((run / "metrics.json").read_text())["dtype"] == "int8"
