"""Checkpoints and tokenizers made by somebody who means harm: one line, at once, no memory.

benchmarks/faults.py --configurations tries every field of every type of encoder.
"""

import base64
import json
import struct
import time

import pytest
import torch
from conftest import TWO, tiny_checkpoint, tiny_model
from safetensors.torch import load_file, save_file

import mtbert
from support import bounds, huggingface, runs
from support.bounds import Sizes
from support.errors import InputError, input_errors

ALBERT = Sizes(num_tensors=23, largest=30522, num_elements=500_000)


@pytest.fixture(scope="module")
def albert(tmp_path_factory):
    """The folder of a checkpoint that transformers computes: its layers share their weights."""
    return tiny_checkpoint(tmp_path_factory.mktemp("albert"), "albert")


@pytest.fixture(scope="module")
def albert_run(albert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    mtbert.save(tiny_model(albert, TWO), folder)
    return folder


def copy(source, folder):
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def check_refused(load, folder, match):
    """`load` raises an InputError of one line within seconds."""
    start = time.process_time()
    with pytest.raises(InputError, match=match) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert time.process_time() - start < 2


# --------------------------------------------------------------------------------------------------
# Configurations

MANY = 70_000
HOSTILE = [
    {"num_hidden_layers": 2**31},
    {"num_hidden_groups": 10**5},
    {"hidden_size": 2**62},
    {"num_labels": 2**31},
    {"layer_types": ["full_attention"] * MANY},
    {"more": {"inner": [{"deep": 2**31}]}},
    {"eos_token_id": -(2**62)},
]


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: next(iter(change)))
def test_a_field_beyond_all_tensors_is_refused_by_its_name(change, albert, albert_run, tmp_path):
    name = next(iter(change)).replace("more", "deep")
    content = json.loads((copy(albert, tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    check_refused(mtbert.load_encoder, tmp_path, f"{name} in its configuration (is|has a length)")

    config = runs.read_record(copy(albert_run, tmp_path) / "config.json")
    config["encoder"]["transformers"].update(change)
    runs.write_record(tmp_path / "config.json", config)
    check_refused(mtbert.load, tmp_path, f"{name} in its configuration (is|has a length)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_groups": 30000}, "asks for more weights than the [0-9]+ in its 2. tensors"),
        ({"inner_group_num": 30000}, "asks for more weights"),
        ({"intermediate_size": 60000, "hidden_size": 30000}, "asks for more weights"),
        ({"num_hidden_layers": 30000}, "asks for more than 5000 calls of modules"),
    ],
)
def test_what_is_multiplied_is_bounded_too(change, message, albert, albert_run, tmp_path):
    """No field is beyond the largest tensor, which has 30522 rows."""
    content = json.loads((copy(albert, tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=message):
        mtbert.load_encoder(tmp_path)

    config = runs.read_record(copy(albert_run, tmp_path) / "config.json")
    config["encoder"]["transformers"].update(change)
    config["encoder"].update({name: change[name] for name in change if name in config["encoder"]})
    runs.write_record(tmp_path / "config.json", config)
    with pytest.raises(InputError, match=message):
        mtbert.load(tmp_path)


def test_windows_are_no_longer_than_texts_and_positions_of_a_known_type(tmp_path):
    """Each text would be padded to a window; positions of an unknown type would be left out."""
    changes = [
        ("longformer", {"attention_window": 8}, "attention_window", 30000, "at most 64"),
        ("longformer", {"attention_window": 8}, "attention_window", [8, 66], "at most 64"),
        ("esm", {"pad_token_id": 1}, "position_embedding_type", "/etc/passwd", "known are abs"),
    ]
    for number, (model_type, settings, name, value, message) in enumerate(changes):
        checkpoint = tiny_checkpoint(tmp_path / f"checkpoint-{number}", model_type, **settings)
        run = tmp_path / f"run-{number}"
        run.mkdir()
        mtbert.save(tiny_model(checkpoint, TWO), run)

        content = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(content | {name: value}))
        check_refused(mtbert.load_encoder, checkpoint, message)

        config = runs.read_record(run / "config.json")
        config["encoder"]["transformers"][name] = value
        runs.write_record(run / "config.json", config)
        check_refused(mtbert.load, run, message)


def test_a_long_configuration_is_refused_before_it_is_read(albert, tmp_path):
    content = json.loads((copy(albert, tmp_path) / "config.json").read_text())
    content["layer_types"] = ["sliding_attention"] * 10**6
    (tmp_path / "config.json").write_text(json.dumps(content))
    check_refused(mtbert.load_encoder, tmp_path, "config.json is longer than 8388608 bytes")


def test_native_encoders_are_bounded_as_the_others(tiny, tmp_path):
    content = json.loads((copy(tiny, tmp_path) / "config.json").read_text())
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"):
        for value in (10**5, 2**62):
            (tmp_path / "config.json").write_text(json.dumps(content | {name: value}))
            check_refused(mtbert.load_encoder, tmp_path, f"{name} in its configuration is {value}")


def test_what_real_checkpoints_have_is_let_through():
    """Positions beyond the vocabulary, as of ultrabert, and the base of angles as an integer."""
    values = {"max_position_embeddings": 32768, "rope_theta": 250000, "sparse_pred_index": -100}
    bounds.check_sizes(values | {"attention_window": [512] * 12}, ALBERT)
    bounds.check_sizes({"vocab_size": 250002}, ALBERT._replace(largest=250002))


def test_the_bound_ends_with_its_block():
    with pytest.raises(ValueError, match="more weights"), bounds.bounded(Sizes(0, 1, 0)):
        for _ in range(1000):
            torch.nn.Linear(1, 1, device="meta")
    torch.nn.Linear(2**11, 2**11, device="meta")


# --------------------------------------------------------------------------------------------------
# Files


def write_index(folder, *names):
    index = {"metadata": {}, "weight_map": {f"tensor {i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_index_that_names_other_files_is_refused_and_a_right_one_read(tiny, tmp_path):
    expected = mtbert.load_encoder(tiny).state_dict()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    state = load_file(copy(tiny, folder) / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    for name, message in [
        ("../outside.safetensors", "names '../outside.safetensors', a file outside of the check"),
        (str(tmp_path / "outside.safetensors"), "a file outside of the checkpoint"),
        ("pytorch_model.bin", "'pytorch_model.bin', which is no safetensors file; a pickle can"),
        ("gone.safetensors", "its file gone.safetensors, which its index names, is missing"),
    ]:
        write_index(folder, name)
        check_refused(mtbert.load_encoder, folder, message)
    for content in ("[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'):
        (folder / "model.safetensors.index.json").write_text(content)
        check_refused(mtbert.load_encoder, folder, "its index model.safetensors.index.json")

    names = sorted(state)
    weight_map = {}
    for shard, part in (("1.safetensors", names[:9]), ("2.safetensors", names[9:])):
        save_file({name: state[name] for name in part}, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard))
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    for name, tensor in mtbert.load_encoder(folder).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# --------------------------------------------------------------------------------------------------
# Tokenizers


def charsmap(unit, texts=b"a\0", size=None):
    """A table with 256 equal units, encoded."""
    units = struct.pack("<256I", *[unit] * 256)
    return base64.b64encode(struct.pack("<I", size or len(units)) + units + texts)


def test_a_charsmap_stays_within_its_table():
    assert huggingface.is_charsmap(charsmap(0))
    outside = 1 << 10 | 1 << 9  # the offset of a next unit is 256
    pointing = 1 << 8  # at a leaf whose text begins at 256
    for broken in (
        charsmap(outside),
        charsmap(pointing),
        charsmap(0, b"\xff"),
        charsmap(0, b"", 2),
    ):
        assert not huggingface.is_charsmap(broken)
    for broken in (b"", b"AAAA", b"%%%", b"A", charsmap(0)[:99]):
        assert not huggingface.is_charsmap(broken)


def test_a_broken_charsmap_is_one_line(tiny, albert_run, tmp_path, capfd):
    content = json.loads((copy(tiny, tmp_path) / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "BAAAAGFiY2Q="}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="precompiled_charsmap of its tokenizer"):
        mtbert.load_tokenizer(tmp_path, 64, 30522)

    config = runs.read_record(albert_run / "config.json")
    digest = runs.file_sha256(tmp_path / "tokenizer.json")
    (tmp_path / "model.safetensors").write_bytes((albert_run / "model.safetensors").read_bytes())
    runs.write_record(tmp_path / "config.json", config | {"tokenizer_sha256": digest})
    with pytest.raises(InputError, match="precompiled_charsmap of its tokenizer"):
        mtbert.load(tmp_path)
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_is_a_mistake_of_the_file_and_a_stop_is_none():
    class PanicException(BaseException):
        """As pyo3 has it, which cannot be imported."""

    with pytest.raises(InputError, match=r"^a file: it broke$"), input_errors("a file"):
        raise PanicException("it broke\nwith a stack")
    for stop in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(stop), input_errors("a file"):
            raise stop
