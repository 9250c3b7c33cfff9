"""Beside other versions: one line where they are too old, and a way back from each name of theirs.

tests/versions.sh runs the whole in environments that have these versions.
"""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, tiny_checkpoint

import mtbert
import predict
import train
from support import cpu, huggingface, versions
from support.errors import InputError

SPECIAL = {  # tokens of ModernBERT, whose default vocabulary is another
    "pad_token_id": 0,
    "cls_token_id": 101,
    "sep_token_id": 102,
    "bos_token_id": 101,
    "eos_token_id": 102,
}

# --------------------------------------------------------------------------------------------------
# Too old


def test_the_oldest_versions_are_those_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    oldest = {}
    for line in lines:
        found = re.match(r"([\w-]+)>=(\d+)\.(\d+)", line)
        if found:
            oldest[found[1]] = (int(found[2]), int(found[3]))
    for package, version in versions.OLDEST.items():
        assert oldest[package] == version


@pytest.mark.parametrize("name", ["train.py", "predict.py"])
@pytest.mark.parametrize(
    ("package", "version", "needed"),
    [
        ("torch", "2.4.1+cu121", "2.6"),
        ("transformers", "4.40.0", "4.56"),
        ("scikit-learn", "1.3.2", "1.4"),
        ("numpy", "1.9", "1.26"),
    ],
)
def test_a_package_that_is_too_old_is_one_line_before_anything_is_read(
    name, package, version, needed, script, monkeypatch
):
    known = importlib.metadata.version

    def version_of(asked):
        return version if asked == package else known(asked)

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    status, out, err = script(name, "--no-such-flag")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{name}: error: {package} {version} is too old; {needed} or newer is ")


@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "2.14.0.dev20260101", "3.0", "mine"])
def test_other_versions_are_new_enough(version, monkeypatch):
    def version_of(asked):
        if asked != "torch":
            raise importlib.metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    assert versions.are_new_enough("train.py")


@pytest.mark.parametrize("name", ["train.py", "predict.py"])
def test_a_python_that_is_too_old_is_one_line_and_imports_nothing(name):
    code = "import runpy, sys; sys.version_info = (3, 10); sys.modules['torch'] = None; "
    code += f"sys.modules['numpy'] = None; runpy.run_path({name!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    line = f"{name}: error: Python 3.10 is too old; 3.11 or newer is needed\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


# --------------------------------------------------------------------------------------------------
# Each name that is private or recent, taken away


def train_predict_and_save(encoder, folder):
    """-> the losses of all steps, and the numbers of a prediction."""
    folder.mkdir()
    lines = ["text,mood,stars"]
    for i in range(24):
        lines.append(f"film {i} is {['good', 'bad'][i % 2]},{'yn'[i % 2]},{i / 4}")
    (folder / "rows.csv").write_text("\n".join(lines))
    flags = ["--data", folder / "rows.csv", "--encoder", encoder, "--epochs", 2]
    flags += ["--batch-size", 8, "--max-grad-norm", 0.1, "--dropout", 0, "--dtype", "float32"]
    train.main([*map(str, flags), "--out", str(folder / "run")])
    predict.main(["--model", str(folder / "run"), "great movie"])
    model = mtbert.load(folder / "run", trainable=True)
    mtbert.to_transformers(model, folder / "transformers")
    mtbert.load_encoder(folder / "transformers")
    losses = []
    for line in (folder / "run" / "log.jsonl").read_text().splitlines():
        losses += json.loads(line).get("loss", {}).values()
    [prediction] = mtbert.predict(mtbert.load(folder / "run", dtype="float32"), ["great movie"])
    return losses, [prediction["mood"]["probabilities"]["y"], prediction["stars"]["value"]]


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    return train_predict_and_save(tiny, tmp_path_factory.mktemp("expected") / "all")


def check(results, expected):
    for found, numbers in zip(results, expected, strict=True):
        assert found == pytest.approx(numbers, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("module", "name"), [(torch.cpu, "get_capabilities"), (torch.nn.utils, "get_total_norm")]
)
def test_without_a_function_of_torch_all_is_computed_the_same(
    module, name, expected, tiny, tmp_path, monkeypatch
):
    monkeypatch.delattr(module, name, raising=False)
    check(train_predict_and_save(tiny, tmp_path / "without"), expected)


HALF = torch.empty(0, dtype=torch.bfloat16)
OPERATORS = [  # and how to ask whether it can be used
    (torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: cpu.can_pack(HALF)),
    (torch.ops.mkldnn, "_reorder_linear_weight", lambda: cpu.can_pack(HALF.float())),
    (torch.ops.mkldnn, "_linear_pointwise", lambda: cpu.can_pack(HALF.float())),
    (torch.ops.onednn, "qlinear_prepack", cpu.has_int8),
    (torch.ops.onednn, "qlinear_pointwise", cpu.has_int8),
]


@pytest.mark.parametrize(
    ("operators", "name", "can_use"), OPERATORS, ids=[name for _, name, _ in OPERATORS]
)
def test_without_an_operator_of_onednn_all_is_computed_the_same(
    operators, name, can_use, expected, tiny, tmp_path, monkeypatch
):
    def missing(*arguments):
        raise AttributeError(name)

    features = cpu.cpu_features() | {"avx512_vnni": True, "architecture": "x86_64"}
    monkeypatch.setattr(cpu, "cpu_features", lambda: features)
    monkeypatch.setattr(operators, name, missing, raising=False)
    assert not can_use()
    check(train_predict_and_save(tiny, tmp_path / "without"), expected)


def test_where_a_step_does_not_scale_gradients_they_are_clipped_before(
    expected, tiny, tmp_path, monkeypatch
):
    assert cpu.steps_scale_gradients()
    step = torch.optim.AdamW.step

    def step_without_scale(self, closure=None):
        self.grad_scale = None
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_without_scale)
    assert not cpu.steps_scale_gradients()
    check(train_predict_and_save(tiny, tmp_path / "without"), expected)


def test_without_initialization_a_module_of_transformers_is_the_same(tmp_path, monkeypatch):
    encoder = tiny_checkpoint(tmp_path / "modernbert", "modernbert", local_attention=8, **SPECIAL)
    expected = train_predict_and_save(encoder, tmp_path / "with")
    find_spec = importlib.util.find_spec

    def without(name, package=None):
        if name == "transformers.initialization":
            return None
        return find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    module = huggingface.make_module(mtbert.load_encoder(encoder).config.transformers)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(buffer.isfinite().all() for buffer in module.buffers())
    check(train_predict_and_save(encoder, tmp_path / "without"), expected)


def test_a_tokenizer_without_the_fast_method_encodes_the_same(tiny):
    class Slow:
        def __init__(self, tokenizer):
            self.encode_batch = tokenizer.encode_batch

    tokenizer = huggingface.read_tokenizer(tiny)
    texts = ["great movie", ("a pair", "of texts")]
    found = huggingface.encode_batch(Slow(tokenizer), texts)
    expected = huggingface.encode_batch(tokenizer, texts)
    for one, other in zip(found, expected, strict=True):
        assert (one.ids, one.type_ids) == (other.ids, other.type_ids)


@pytest.mark.parametrize("of_version_5", [True, False])
def test_a_tensor_of_another_shape_is_refused_however_transformers_reports_it(
    of_version_5, tiny, monkeypatch
):
    name = "encoder.layer.0.output.dense.weight"
    read = transformers.AutoModel.from_pretrained

    def report(*arguments, **named):
        module, found = read(*arguments, **named)
        entry = (name, (32, 48), (32, 47)) if of_version_5 else name
        return module, found | {"mismatched_keys": {entry}}

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", report)
    with pytest.raises(InputError, match=f"tensors missing or not fitting: {name}"):
        mtbert.load_encoder(tiny)


# --------------------------------------------------------------------------------------------------
# Packages that do not fit together


class Broken:
    """transformers beside a torchvision that was made for another torch."""

    __version__ = "4.57.0"
    __spec__ = None

    def __getattr__(self, name):
        try:
            raise RuntimeError("while it was imported\noperator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError(f"Could not import module {name!r}") from error


def test_where_transformers_cannot_import_its_models_the_cause_is_named(
    tiny, script, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "transformers", Broken())
    monkeypatch.chdir(tmp_path)
    status, _, err = script("train.py", "--encoder", tiny)
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot import its models: operator torchvision::nms does not exist (" in err
    assert "a new virtual environment" in err
    assert not list(Path(tmp_path).iterdir())
