"""Checkpoints of transformers, in and out, and the encoders that transformers computes.

All are tiny and random. That encoders which mtbert computes itself equal transformers' is tested in
test_mtbert.py.
"""

import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
import transformers
from conftest import BUNDLED, ROOT, TWO, make_rows, tiny_checkpoint, tiny_model, train_tiny
from safetensors.torch import load_file, save_file

import mtbert
from support import huggingface, runs
from support.errors import InputError
from support.huggingface import TransformersEncoder

# As DeBERTa-v3 has it: relative positions only, no token types
DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 16,
    "type_vocab_size": 0,
}
MODERNBERT = {
    "local_attention": 8,
    "pad_token_id": 0,
    "cls_token_id": 101,
    "sep_token_id": 102,
    "bos_token_id": 101,
    "eos_token_id": 102,
}
OTHERS = {  # what transformers computes
    "modernbert": MODERNBERT,
    "deberta-v2": DEBERTA,
    "mpnet": {},
    "albert": {},
    "roformer": {},
    "bert": {"hidden_act": "silu"},
}
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
def albert(checkpoint):
    """The values of a configuration that transformers computes."""
    return mtbert.load_encoder(checkpoint("albert")).config.transformers


def hidden_states(encoder, ids, mask, types):
    """The last hidden states of the tokens, from our encoder or from transformers' module."""
    if isinstance(encoder, transformers.PreTrainedModel):
        inputs = {"input_ids": ids, "attention_mask": mask}
        if getattr(encoder.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = types
        hidden = encoder(**inputs).last_hidden_state
    else:
        hidden = encoder(ids, mask, types)
    return hidden[mask.bool()]


def random_batch(config):
    """Pairs of many lengths, the longest that the encoder takes; padding behind each."""
    longest = config.max_length
    lengths = torch.tensor([longest, 1, 2, 7, longest // 2])[:, None]
    positions = torch.arange(longest)
    mask = positions < lengths
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator)
    ids = torch.where(mask, ids, config.pad_token_id)
    types = torch.zeros_like(ids)
    if config.type_vocab_size > 1:
        types = ((positions >= lengths // 2) & mask).long()
    return ids, mask.long(), types


def collated(model, *texts):
    """Texts and pairs as the arguments of MTBert.forward."""
    rows = []
    for row, text in zip(make_rows(*[{}] * len(texts)), texts, strict=True):
        rows.append(row._replace(text=text))
    data = mtbert.encode(model.tokenizer, rows)
    batch = mtbert.collate(data, np.arange(len(texts)), model.encoder.config, "cpu")
    return batch | {"labels": None}


def save_state(folder, state):
    """Replace the file: tensors of `state` may still lie in the former one."""
    save_file(state, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")


# --------------------------------------------------------------------------------------------------
# Names


def test_three_tensors_of_transformers_are_stacked_in_one_of_ours():
    names = huggingface.transformers_names
    attention = "encoder.layer.7.attention.self"
    assert names("layers.7.qkv.bias", "bert") == [
        f"{attention}.query.bias",
        f"{attention}.key.bias",
        f"{attention}.value.bias",
    ]
    assert names("layers.7.qkv.bias", "distilbert") == [
        "transformer.layer.7.attention.q_lin.bias",
        "transformer.layer.7.attention.k_lin.bias",
        "transformer.layer.7.attention.v_lin.bias",
    ]
    assert names("embedding_norm.weight", "distilbert") == ["embeddings.LayerNorm.weight"]
    assert names("module.layers.0.mlp.Wo.weight", "modernbert") == ["layers.0.mlp.Wo.weight"]


@pytest.mark.parametrize("model_type", huggingface.NATIVE_TYPES)
def test_a_native_checkpoint_gives_the_encoders_fields_and_parameters(model_type, tmp_path):
    read = huggingface.read_checkpoint(tiny_checkpoint(tmp_path, model_type))
    encoder = mtbert.load_encoder(tmp_path)
    assert read.config == asdict(encoder.config)
    assert read.state.keys() == encoder.state_dict().keys()
    assert not read.wrong
    assert read.source == encoder.source == f"the folder {tmp_path}"
    offsets = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}
    assert read.config["position_offset"] == offsets.get(model_type, 0)


# --------------------------------------------------------------------------------------------------
# Checkpoints that cannot be taken as they are


@pytest.mark.parametrize("masked_lm", [False, True])
@pytest.mark.parametrize(
    ("model_type", "part"),
    [
        ("bert", "encoder.layer.1.output.dense"),
        ("xlm-roberta", "encoder.layer.1.output.dense"),
        ("electra", "encoder.layer.1.output.dense"),
        ("distilbert", "transformer.layer.1.ffn.lin2"),
        ("modernbert", "layers.1.mlp.Wo"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_naming_the_tensor(
    model_type, part, masked_lm, tmp_path
):
    changes = MODERNBERT if model_type == "modernbert" else {}
    tiny_checkpoint(tmp_path, model_type, masked_lm, **changes)
    mtbert.load_encoder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    [name] = [name for name in state if name.endswith(f"{part}.weight")]
    missing = {other: tensor for other, tensor in state.items() if other != name}
    too_many = state | {name.replace("1", "2"): state[name].clone()}
    misshapen = state | {name: state[name][:, :-1].contiguous()}
    for damaged in (missing, too_many, misshapen):
        save_state(tmp_path, damaged)
        expected = re.escape(f"{part}.weight").replace("1", "[12]")
        with pytest.raises(InputError, match=f"missing or not fitting: {expected}$"):
            mtbert.load_encoder(tmp_path)


def test_of_many_tensors_that_do_not_fit_five_are_named(tmp_path):
    tiny_checkpoint(tmp_path, "bert")
    state = load_file(tmp_path / "model.safetensors")
    save_state(tmp_path, {name: state[name] for name in state if "layer.0" not in name})
    with pytest.raises(InputError) as error:
        mtbert.load_encoder(tmp_path)
    named = str(error.value).split("not fitting: ")[1].split(", ")
    assert len(named) == 5 and all(name.startswith("encoder.layer.0.") for name in named)


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_a_checkpoint_in_half_precision_is_read_in_float32(model_type, tmp_path):
    tiny_checkpoint(tmp_path, model_type)
    transformers.AutoModel.from_pretrained(tmp_path).bfloat16().save_pretrained(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "half" / name).write_bytes((BUNDLED / name).read_bytes())
    exact = mtbert.load_encoder(tmp_path).state_dict()
    for name, tensor in mtbert.load_encoder(tmp_path / "half").state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, exact[name].bfloat16().float())


def test_decoders_are_refused(tmp_path):
    tiny_checkpoint(tmp_path, "bert", is_decoder=True)
    with pytest.raises(InputError, match="it is a bert that decodes"):
        mtbert.load_encoder(tmp_path)
    tiny_checkpoint(tmp_path, "gpt2")
    with pytest.raises(InputError, match="a gpt2 is no encoder of texts that was trained on mask"):
        mtbert.load_encoder(tmp_path)


def test_an_encoder_that_computes_with_padding_is_refused(tmp_path):
    reason = "depends on the padding behind it|unexpected keyword argument"  # of transformers 4
    with pytest.raises(InputError, match=reason):
        mtbert.load_encoder(tiny_checkpoint(tmp_path, "fnet"))


def test_other_weights_than_the_published_ones_are_refused(monkeypatch):
    mtbert.load_encoder(huggingface.DEFAULT_ENCODER)
    monkeypatch.setattr(huggingface, "DEFAULT_ENCODER_SHA256", "0" * 64)
    with pytest.raises(InputError, match="these are not the published weights; install it again"):
        mtbert.load_encoder(huggingface.DEFAULT_ENCODER)
    mtbert.load_encoder(BUNDLED)  # by its folder, it is any checkpoint


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(huggingface, "DEFAULT_ENCODER_PACKAGE", "no-such-package")
    with pytest.raises(InputError, match="package no-such-package is missing"):
        mtbert.load_encoder(huggingface.DEFAULT_ENCODER)


def test_a_pickle_is_refused_with_the_lines_that_convert_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_file(tiny_checkpoint(tmp_path, "bert") / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError) as error:
        mtbert.load_encoder(str(tmp_path))
    message, lines = str(error.value).split("convert it: ")
    assert "a pickle (pytorch_model.bin) can run any code" in message and "\n" not in lines
    exec(lines)
    mtbert.load_tokenizer("converted", 64, 30522)
    [name] = huggingface.transformers_names("layers.1.output.weight", "bert")
    weight = mtbert.load_encoder("converted").layers[1].output.weight
    assert torch.equal(weight, state[name])


def test_code_of_a_checkpoint_is_not_run(tmp_path):
    tiny_checkpoint(tmp_path, "bert")
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    for name in ("config.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text()
        classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]}
        (tmp_path / name).write_text(json.dumps(json.loads(text) | {"auto_map": classes}))
    mtbert.load_encoder(tmp_path)
    mtbert.load_tokenizer(tmp_path, 64, 30522)


def test_a_tokenizer_that_is_missing_or_too_large_is_refused(tmp_path):
    tiny_checkpoint(tmp_path, "bert")
    with pytest.raises(InputError, match="it has 30522 tokens, and the encoder 30000"):
        mtbert.load_tokenizer(tmp_path, 64, 30000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="the tokenizer of encoder"):
        mtbert.load_tokenizer(tmp_path, 64, 30522)


def test_a_tokenizer_without_a_fast_version_is_refused_in_one_line(tmp_path):
    tiny_checkpoint(tmp_path, "bert")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(InputError, match="it has no fast version, and mtbert uses no oth") as error:
        mtbert.load_tokenizer(tmp_path, 64, 30522)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------
# Encoders that transformers computes


@pytest.mark.parametrize("model_type", OTHERS)
def test_any_encoder_computes_what_transformers_computes_also_once_saved_and_taken_out(
    model_type, checkpoint, tmp_path
):
    theirs = transformers.AutoModel.from_pretrained(checkpoint(model_type)).eval()
    model = tiny_model(checkpoint(model_type), TWO)
    assert isinstance(model.encoder, TransformersEncoder)
    batch = random_batch(model.encoder.config)
    with torch.no_grad():
        expected = hidden_states(theirs, *batch)
        given = hidden_states(model.encoder, *batch)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)

    mtbert.save(model, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "tokenizer.json", "model.safetensors"}
    loaded = mtbert.load(tmp_path, "cpu", trainable=True)
    predictions = mtbert.predict(model, TEXTS)
    assert mtbert.predict(loaded, TEXTS) == predictions
    half = mtbert.predict(mtbert.load(tmp_path, "cpu", "bfloat16"), TEXTS)
    for one, other in zip(half, predictions, strict=True):
        assert one["mood"]["probability"] == pytest.approx(other["mood"]["probability"], abs=0.1)

    mtbert.to_transformers(loaded, tmp_path / "out")
    back = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        given = hidden_states(back, *batch)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", [*OTHERS, "distilbert"])
def test_any_encoder_learns_in_all_its_parameters_and_resumes_to_the_bit(
    model_type, checkpoint, tmp_path, monkeypatch
):
    folder = checkpoint(model_type)
    flags = ["--variant", "separate-lr", "--layer-decay", "0.5", "--dropout", "0.2"]
    whole = train_tiny(folder, tmp_path / "whole", *flags)
    for name, before in tiny_model(folder, TWO).named_parameters():
        is_fixed = "embed_positions" in name  # RoFormer's positions
        assert before.requires_grad != is_fixed, name
        assert torch.equal(before, whole.weights[name]) == is_fixed, name

    end_epoch = runs.Run.end_epoch

    def end_epoch_and_stop(run):
        end_epoch(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Run, "end_epoch", end_epoch_and_stop)
        train_tiny(folder, tmp_path / "part", *flags)
    resumed = train_tiny(folder, tmp_path / "part", *flags)
    assert resumed.log == whole.log and len(whole.log) == 12
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


@pytest.mark.parametrize("model_type", OTHERS)
def test_dropout_is_that_of_the_flag_and_none_in_evaluation(model_type, checkpoint):
    for rate in (0.0, 0.3):
        encoder = mtbert.load_encoder(checkpoint(model_type), rate)
        for part in encoder.modules():
            if isinstance(part, torch.nn.Dropout):
                assert part.p == rate
        batch = random_batch(encoder.config)
        with torch.no_grad():
            encoder.train()
            first, second = hidden_states(encoder, *batch), hidden_states(encoder, *batch)
            assert torch.equal(first, second) == (rate == 0)
            encoder.eval()
            first, second = hidden_states(encoder, *batch), hidden_states(encoder, *batch)
            assert torch.equal(first, second)


@pytest.mark.parametrize("model_type", ["modernbert", "deberta-v2", "mpnet", "albert"])
def test_layers_learn_slower_from_top_to_bottom_whatever_they_are_called(model_type, checkpoint):
    model = tiny_model(checkpoint(model_type), TWO)
    groups = mtbert.parameter_groups(model, 1.0, 1.0, 0.5, 0.01)
    group_rates = {}
    rate = {}
    for group in groups:
        group_rates[group["name"]] = group["lr"]
        for parameter in group["params"]:
            assert id(parameter) not in rate
            rate[id(parameter)] = group["lr"]
    assert rate.keys() == {id(parameter) for parameter in model.parameters()}

    if model_type == "albert":  # its layers are one
        layer_rates = [1.0]
        assert group_rates == {"embeddings": 0.5, "layer 1": 1.0, "heads": 1.0}
    else:
        layer_rates = [0.5, 1.0]
        assert group_rates == {"embeddings": 0.25, "layer 1": 0.5, "layer 2": 1.0, "heads": 1.0}
    for layer, expected in zip(model.encoder.layers, layer_rates, strict=True):
        assert {rate[id(parameter)] for parameter in layer.parameters()} == {expected}
    if model_type == "modernbert":
        assert rate[id(model.encoder.module.final_norm.weight)] == 1.0
    if model_type == "deberta-v2":
        assert rate[id(model.encoder.module.encoder.rel_embeddings.weight)] == 0.25


def test_a_module_is_made_without_random_numbers_and_its_buffers_are_right(checkpoint):
    encoder = mtbert.load_encoder(checkpoint("modernbert"))
    theirs = transformers.AutoModel.from_pretrained(checkpoint("modernbert"))
    buffers = dict(theirs.named_buffers())
    assert buffers
    state = torch.random.get_rng_state()
    made = TransformersEncoder(encoder.config.transformers)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, buffer in made.module.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    with torch.device("meta"):
        made = TransformersEncoder(encoder.config.transformers)
    for tensor in [*made.parameters(), *made.buffers()]:
        assert tensor.is_meta


def test_prediction_imports_transformers_for_encoders_that_need_it_and_says_so_once(
    checkpoint, tiny, tmp_path
):
    encoders = {"native": tiny, "other": checkpoint("modernbert")}
    for name, encoder in encoders.items():
        (tmp_path / name).mkdir()
        mtbert.save(tiny_model(encoder, TWO), tmp_path / name)
    code = "import sys, predict\n"
    for name in ("native", "other", "other"):
        folder = str(tmp_path / name)
        code += f"predict.main(['--model', {folder!r}, 'great movie', '--json'])\n"
        code += "print('transformers' in sys.modules)\n"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "the encoder is computed by transformers, which is imported now\n" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.splitlines()[1::2] == ["False", "True", "True"]


# --------------------------------------------------------------------------------------------------
# Hostile configurations

HOSTILE = [  # what is changed in what transformers' configuration says
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 9999},
    {"num_hidden_layers": 3},
    {"num_hidden_groups": 10**9},
    {"inner_group_num": 10**6},
    {"hidden_size": 10**30},
    {"hidden_size": 10**9},
    {"vocab_size": 10**12},
    {"max_position_embeddings": 10**12},
    {"model_type": "gpt2"},
    {"model_type": None},
    {"model_type": ["bert"]},
    {"model_type": "detr", "backbone": "someone/model"},
    {"hidden_act": "exec"},
    {"num_attention_heads": 5},
    {"_x": 1},
    {"num_labels": 10**9},
    {"text_config": {"model_type": "bert", "num_hidden_layers": 10**6}},
    {"auto_map": {"AutoModel": "evil.Model"}},
    {"attn_implementation": "someone/kernel"},
    {"dtype": "float16"},
]


def test_a_hostile_configuration_of_transformers_is_refused_at_once(checkpoint, tmp_path):
    mtbert.save(tiny_model(checkpoint("albert"), TWO), tmp_path)
    config = runs.read_record(tmp_path / "config.json")
    mtbert.load(tmp_path)
    values = config["encoder"]["transformers"]
    changes = [{"transformers": values | change} for change in HOSTILE]
    for nothing in (None, [], {}, "bert"):
        changes.append({"transformers": nothing})
    for field in ("max_length", "type_vocab_size", "unknown"):
        changes.append({field: 10**6})
    changes.append({"pad_token_id": -1})
    for change in changes:
        hostile = config | {"encoder": config["encoder"] | change}
        runs.write_record(tmp_path / "config.json", hostile)
        with pytest.raises(InputError, match="cannot be loaded") as error:
            mtbert.load(tmp_path)
            pytest.fail(str(change))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_decoder": True}, "it is a albert that decodes"),
        ({"text_config": {"model_type": "bert"}}, "text_config describes another model"),
        ({"model_type": "gpt2"}, "a gpt2 is no encoder of texts"),
    ],
)
def test_a_configuration_of_something_else_is_refused(change, message, albert):
    TransformersEncoder(albert)
    with pytest.raises(ValueError, match=message):
        TransformersEncoder(albert | change)


def test_what_leads_to_code_or_files_elsewhere_is_left_out(albert):
    hostile = {"auto_map": {"AutoModel": "evil.Model"}, "_name_or_path": "someone/model"}
    hostile |= {"attn_implementation": "someone/kernel", "quantization_config": {}}
    assert TransformersEncoder(albert | hostile).config.transformers == albert


# --------------------------------------------------------------------------------------------------
# Out


@pytest.mark.parametrize("model_type", huggingface.NATIVE_TYPES)
def test_transformers_takes_what_was_written_for_it_and_computes_the_same(model_type, tmp_path):
    model = tiny_model(tiny_checkpoint(tmp_path, model_type), TWO)
    mtbert.to_transformers(model, tmp_path / "out")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.model_type == model_type
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["great movie", "long and thin " * 30, "a film"]
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    batch = collated(model, *texts)
    mask = batch["attention_mask"]
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.equal(mask, inputs["attention_mask"].bool())
    with torch.inference_mode():
        expected = model.encoder(batch["input_ids"], mask, batch["token_type_ids"])[mask]
        given = theirs(**inputs).last_hidden_state[mask]
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)

    again = mtbert.load_encoder(tmp_path / "out")
    assert again.config == model.encoder.config
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_way_out_leads_to_a_new_folder_only_and_from_a_trainable_model_only(tiny, tmp_path):
    mtbert.save(tiny_model(tiny, TWO), tmp_path)
    with pytest.raises(InputError, match="is in use; name another folder"):
        mtbert.to_transformers(mtbert.load(tmp_path, trainable=True), tmp_path)
    with pytest.raises(InputError, match="trainable=True"):
        mtbert.to_transformers(mtbert.load(tmp_path, dtype="bfloat16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["xlm-roberta", "distilbert", "modernbert"])
def test_a_loaded_model_is_exported_for_any_number_of_texts_and_tokens(
    model_type, checkpoint, tmp_path
):
    mtbert.save(tiny_model(checkpoint(model_type), TWO), tmp_path)
    model = mtbert.load(tmp_path, "cpu", trainable=True)
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"labels": None}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        shapes[name] = any_size
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        example = collated(model, "a", "b", "c")
        exported = torch.export.export(model, (), example, dynamic_shapes=shapes).module()
        for texts in (("a", "b", "c"), ("a fine film", "no"), TEXTS[:3]):
            batch = collated(model, *texts)
            expected, _ = model(**batch)
            given, _ = exported(**batch)
            for name in expected:
                torch.testing.assert_close(given[name], expected[name], rtol=0, atol=1e-5)
