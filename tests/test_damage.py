"""Run folders that are damaged, or made by somebody who means harm: they are refused in one line.

And whatever texts are predicted together, none changes what is predicted for another.
"""

import hashlib
import json
import math
import shutil
import time
from random import Random

import pytest
import torch
from conftest import STARS, TAGS, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mtbert
from mtbert import Classification
from support import runs
from support.errors import InputError

TEXTS = ["great movie", "the plot is thin"]


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """The folder of a model of a class, a number and any number of labels."""
    folder = tmp_path_factory.mktemp("saved")
    liked = Classification("liked", ["no", "yes"], [20, 20], {"no": "no", "yes": "yes"})
    mtbert.save(tiny_model(tiny, [liked, STARS, TAGS]), folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of that folder."""
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def is_refused(folder):
    """Whether loading raises an InputError of one line that names the folder, within seconds."""
    start = time.perf_counter()
    try:
        mtbert.load(folder)
    except InputError as error:
        message = str(error)
        is_one_line = message.startswith(f"{folder} cannot be loaded: ") and "\n" not in message
        return is_one_line and time.perf_counter() - start < 2
    except Exception:
        return False
    return False


# --------------------------------------------------------------------------------------------------
# Damage


def damage(content, random, how):
    """Turn a bit around, or cut the end off, or append something."""
    content = bytearray(content)
    if how == "bit":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif how == "end":
        del content[random.randrange(len(content)) :]
    else:
        content += random.choice([b"good", b"[CLS]", b"weights"])
    return bytes(content)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_model_is_refused_or_predicts_as_before(name, copy):
    expected = mtbert.predict(mtbert.load(copy), TEXTS)
    random = Random(0)
    path = copy / name
    content = path.read_bytes()
    refused = 0
    for how in ["bit"] * 16 + ["end"] * 5 + ["more"] * 4:
        path.write_bytes(damage(content, random, how))
        try:
            assert mtbert.predict(mtbert.load(copy), TEXTS) == expected
        except InputError as error:
            assert str(error).startswith(f"{copy} cannot be loaded: ") and "\n" not in str(error)
            refused += 1
    assert refused >= 20
    path.unlink()
    with pytest.raises(InputError):
        mtbert.load(copy)


# --------------------------------------------------------------------------------------------------
# Harm: files that contradict themselves or each other, or ask for too much; the SHA-256 is right

ENCODERS = [
    *[{"hidden_size": value} for value in (10**9, 10**30, 0, -1, 8.0, "32", None, True, [32])],
    *[{"num_hidden_layers": value} for value in (10**9, 3, 1, 0)],
    *[{"num_attention_heads": value} for value in (5, 0)],
    *[{"vocab_size": value} for value in (10**12, 2**31, 7)],
    *[{"max_position_embeddings": value} for value in (10**12, 2**31, 0)],
    *[{"pad_token_id": value} for value in (-1, 10**9, "0")],
    *[{"position_offset": value} for value in (-1, 10**9, 66, "0", None)],
    *[{"embedding_size": value} for value in (10**9, 16, 0)],
    *[{"layer_norm_eps": value} for value in (math.nan, 0, "x")],
    {"model_type": "gpt2"},
    {"model_type": ["bert"]},
    {"hidden_act": "exec"},
    {"unknown": 1},
]
LIKED = [  # of the task with classes
    *[{"labels": value} for value in ([], ["a"], ["a", "a"], ["a", 1], [True, False])],
    *[{"labels": value} for value in (None, ["a", ["b"]], 10**9, ["no", "yes", "new"])],
    *[{"counts": value} for value in ([1], None, "20", [1.5, 2])],
    *[{"label_names": value} for value in ({}, {"no": 1, "yes": 2}, None)],
    *[{"name": value} for value in (3, "stars", None)],
    *[{"kind": value} for value in ("letter", "regression", None, ["regression"])],
    {"mean": 1.0},
    {"temperature": 1.0},
]
NUMBER = [
    *[{"std": value} for value in (0.0, -1.0, "x", None, math.nan)],
    *[{"mean": value} for value in (math.inf, math.nan, "x")],
]
FITTED = [
    *[{"liked": value} for value in ({"temperature": 0.0}, {"temperature": "1"}, None)],
    {"liked": {"temperature": math.nan}},
    {"liked": {"temperature": 1.0, "threshold": 0.5}},
    *[{"tags": {"temperature": 1.0, "threshold": value}} for value in (0.0, 1.5, None)],
    {"stars": {"temperature": 1.0}},
]
OTHER = [
    *[{"pooling": value} for value in ("max", None, ["mean"])],
    *[{"truncation": value} for value in ("tail", None, ["head"])],
    *[{"max_length": value} for value in (3, 0, -1, "64", None, 64.0)],
    *[{"tasks": value} for value in ([], None, [1])],
    *[{"encoder": value} for value in ({}, None, [], {"transformers": {}})],
    *[{"fitted": value} for value in ({}, None, [])],
]


def hostile_configurations(config):
    """Yield what is changed, and the configuration with it."""
    liked, stars, tags = config["tasks"]
    for change in ENCODERS:
        yield change, config | {"encoder": config["encoder"] | change}
    for change in LIKED:
        yield change, config | {"tasks": [liked | change, stars, tags]}
    for change in NUMBER:
        yield change, config | {"tasks": [liked, stars | change, tags]}
    for change in FITTED:
        yield change, config | {"fitted": config["fitted"] | change}
    for change in OTHER:
        yield change, config | change
    yield "one task", config | {"tasks": [liked]}
    yield "the same task", config | {"tasks": [liked, liked, liked]}
    for name in ("encoder", "tasks", "pooling", "truncation", "max_length", "tokenizer_sha256"):
        yield f"no {name}", {key: value for key, value in config.items() if key != name}


def test_a_hostile_configuration_is_refused_in_milliseconds(copy):
    taken = []
    for change, hostile in hostile_configurations(runs.read_record(copy / "config.json")):
        runs.write_record(copy / "config.json", hostile)
        if not is_refused(copy):
            taken.append(change)
    assert taken == []
    for content in (b"", b"[]", b"null", b"{" * 10**5, b'{"sha256": 1}', b"\xff"):
        for more in (b"", b'"weights_sha256"'):  # by which a run is known
            (copy / "config.json").write_bytes(content + more)
            assert is_refused(copy)


def test_hostile_weights_are_refused(copy):
    """Their SHA-256 is right, but they are not those of the configuration, or not finite."""
    from safetensors.torch import load_file, save_file

    config = runs.read_record(copy / "config.json")
    state = load_file(copy / "model.safetensors")
    name = "heads.head_liked.weight"

    def write(changed):
        save_file(changed, copy / "model.safetensors")
        digest = runs.file_sha256(copy / "model.safetensors")
        runs.write_record(copy / "config.json", config | {"weights_sha256": digest})

    for weight in (state[name][:1].clone(), state[name].double(), torch.zeros(0)):
        write(state | {name: weight})
        assert is_refused(copy)
    write({key: value for key, value in state.items() if key != name})
    assert is_refused(copy)
    write(state | {"more": torch.zeros(1)})
    assert is_refused(copy)
    write(state | {name: torch.full_like(state[name], math.nan)})
    with pytest.raises(InputError, match="the model gives 'liked' no finite value"):
        mtbert.predict(mtbert.load(copy), TEXTS)


def test_a_hostile_tokenizer_is_refused(copy):
    """Its SHA-256 is right, but its tokens are not the encoder's. Too many are truncated."""
    former = json.loads((copy / "tokenizer.json").read_text())
    config = runs.read_record(copy / "config.json")
    texts = ["great " * 100]
    expected = mtbert.predict(mtbert.load(copy), texts)

    def predict(**changes):
        content = json.dumps(former | changes).encode()
        (copy / "tokenizer.json").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        runs.write_record(copy / "config.json", config | {"tokenizer_sha256": digest})
        return mtbert.predict(mtbert.load(copy), texts)

    for number in (31000, 2**31, 2**32 - 1):
        vocabulary = former["model"]["vocab"] | {"great": number}
        with pytest.raises(InputError, match="tokenizer does not fit"):
            predict(model=former["model"] | {"vocab": vocabulary})
    for number in (7, 300):
        typed = json.dumps(former["post_processor"])
        typed = json.loads(typed.replace('"type_id": 0', f'"type_id": {number}'))
        with pytest.raises(InputError, match="tokenizer does not fit"):
            predict(post_processor=typed)
    truncation = former["truncation"]
    for change in (None, truncation | {"stride": 62}, truncation | {"max_length": 10**9}):
        assert predict(truncation=change) == expected
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 7, "pad_type_id": 0, "pad_token": "[PAD]"}
    assert predict(padding=padding) == expected


# --------------------------------------------------------------------------------------------------
# Texts beside each other


@pytest.fixture(scope="module")
def loaded(saved):
    return mtbert.load(saved, dtype="float32")


WORDS = st.sampled_from(["a", "great", "film", ",", "ünï", "映", "😀", "x9", "\u200b"])
SENTENCES = st.lists(WORDS, min_size=2, max_size=60).map(" ".join)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def check_close(one, other):
    for name in ("liked", "tags"):
        expected = other[name]["probabilities"]
        assert one[name]["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert one["stars"]["value"] == pytest.approx(other["stars"]["value"], abs=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(SENTENCES, max_size=40) | st.lists(SENTENCES | ANY_TEXT, max_size=40),
    order=st.randoms(),
)
def test_company_order_and_padding_change_no_probability(texts, order, loaded):
    """Predictions come in number and order; those of one text differ by 1e-5 at most."""
    try:
        together = mtbert.predict(loaded, texts)
    except InputError as error:
        assert "the text must be" in str(error) or "no token is left" in str(error)
        return
    assert len(together) == len(texts)
    shuffled = order.sample(range(len(texts)), len(texts))
    again = mtbert.predict(loaded, [texts[i] for i in shuffled])
    for i, other in zip(shuffled, again, strict=True):
        check_close(other, together[i])
    for i in shuffled[:8]:
        [alone] = mtbert.predict(loaded, [texts[i]])
        check_close(alone, together[i])
