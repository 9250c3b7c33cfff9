"""What README.md and docs/ say agrees with the files: the loop, links, flags, lengths and words.

This file never knows how good the sentences are.
"""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [ROOT / "train.py", ROOT / "predict.py", ROOT / "support/files.py"]
SCRIPTS += sorted((ROOT / "benchmarks").glob("*.py"))
OF_TORCHRUN = {"--nproc_per_node", "--max-restarts", "--nnodes", "--rdzv-endpoint"}
GONE = {
    *("--conflict-every", "--freeze-embeddings", "--passes"),
    *("--long", "--clip", "--accumulate"),
}
# The field's words for these are CPU and multi-label.
WORDS = ("processor", "several labels a text")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def flags_of(path):
    """The flags that a script defines, by its calls of argparse's add_argument."""
    calls = re.findall(r'(?:flag|add_argument)\(\s*"(--[a-z][a-z-]*)"', path.read_text("utf-8"))
    return set(calls)


def anchors_of(path):
    """The anchors that GitHub gives to the headings of a document."""
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        anchors.add(words.replace(" ", "-"))
    return anchors


def test_the_readme_quotes_the_training_loop_as_it_stands_in_the_file():
    lines = (ROOT / "mtbert.py").read_text("utf-8").splitlines()
    loop = []
    for line in lines:
        if line.strip().startswith("for epoch in range(run.epoch"):
            loop = [line]
        elif loop:
            loop.append(line)
        if loop and line.strip() == "run.end_epoch()":
            break
    loop = textwrap.dedent("\n".join(loop))
    quotes = re.findall(r"```python\n(.*?)\n```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert quotes == [loop]


@pytest.mark.parametrize(
    ("name", "most"), [("README.md", 150), ("docs/results.md", 250), ("docs/speed.md", 100)]
)
def test_documents_are_short_enough_to_be_read(name, most):
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= most


@each_document
def test_every_link_within_the_repository_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path
        if name:
            file = path.parent / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), target


def test_every_picture_in_docs_is_shown_by_a_document():
    shown = set()
    for path in DOCUMENTS:
        for target in re.findall(r"!\[.*?\]\(([^)]+)\)", path.read_text("utf-8")):
            shown.add((path.parent / target).resolve())
    assert set((ROOT / "docs").glob("*.png")) <= shown


@each_document
def test_every_flag_is_one_of_the_scripts_and_none_is_gone(path):
    known = set(OF_TORCHRUN)
    for script in SCRIPTS:
        known |= flags_of(script)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", path.read_text("utf-8")))
    assert named <= known
    assert not named & GONE


def test_every_flag_of_training_has_its_default_and_reason_in_the_table():
    text = (ROOT / "docs/runs.md").read_text("utf-8")
    table = text.partition("\n## Defaults\n")[2]
    in_table = set()
    for line in table.splitlines():
        if line.startswith("| `--"):
            in_table |= set(re.findall(r"--[a-z-]+", line.split("|")[1]))
    flags = flags_of(ROOT / "train.py") | flags_of(ROOT / "support/files.py")
    assert len(flags) > 30
    assert in_table == flags


@each_document
def test_documents_use_the_words_of_the_field(path):
    text = path.read_text("utf-8").lower()
    for word in WORDS:
        assert word not in text
