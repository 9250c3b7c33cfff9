#!/usr/bin/env bash
# Run the two commands and test_mtbert.py beside the oldest and the newest versions that
# requirements.txt allows, each in a virtual environment of its own:
#
#   tests/versions.sh [NAME...]     newest oldest transformers-4.57 transformers-5.0
#                                   torch-2.6 python-3.12 python-3.13 python-3.14
#
# The last five are made only where they are named. An environment takes minutes and 2 GB, or 8 GB
# where torch comes with CUDA. With FOLDER=... they are kept there, and used again.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${FOLDER:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"; if [ -z "${FOLDER:-}" ]; then rm -rf "$folder"; fi' EXIT
export HF_HUB_OFFLINE=1

# The rows that are learned: some of the sample
python3 - "$work/rows.json" <<'END'
import json
import sys

with open("sample_data.json", encoding="utf-8") as file:
    sample = json.load(file)
for split in ("train", "validation", "test"):
    sample[split] = sample[split][:40]
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(sample, file)
END

# try NAME PYTHON [REQUIREMENT...]: make the environment, run all in it, print a line of the table
try() {
    local name=$1 interpreter=$2
    local python=$folder/$name/bin/python log=$folder/$name.log result=passed
    shift 2
    if ! "$interpreter" -c "" 2> "$log"; then
        echo "| $name | not run: no $interpreter here |"
        return
    fi
    if [ ! -e "$folder/$name/made" ]; then
        "$interpreter" -m venv "$folder/$name" > "$log" 2>&1 &&
            "$python" -m pip install --quiet -r requirements.txt "$@" >> "$log" 2>&1 &&
            touch "$folder/$name/made"
    fi
    if [ ! -e "$folder/$name/made" ]; then
        result="could not be installed"
    elif ! "$python" train.py --data "$work/rows.json" --epochs 1 --out "$work/$name" \
        > "$log" 2>&1; then
        result="train.py failed"
    elif ! "$python" predict.py --model "$work/$name" "great movie" >> "$log" 2>&1; then
        result="predict.py failed"
    elif ! "$python" -m pytest -q test_mtbert.py tests/test_versions.py >> "$log" 2>&1; then
        result=$(tail -n 1 "$log")
    fi
    echo "| $name | $(describe "$python") | $result |"
}

# What is installed: the versions in the order of the table in docs/runs.md
describe() {
    "$1" - <<'END'
import sys
from importlib.metadata import version

packages = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy", "matplotlib")
print(sys.version.split()[0], *map(version, packages), sep=" | ")
END
}

oldest=("transformers==4.56.*" "tokenizers==0.22.0" "numpy==1.26.*" "scikit-learn==1.4.*"
    "scipy==1.11.*" "matplotlib==3.8.*" "safetensors==0.4.3" "tqdm==4.60.*" "filelock==3.13.*")
names=("$@")
if [ $# -eq 0 ]; then
    names=(newest oldest transformers-4.57 transformers-5.0)
fi
for name in "${names[@]}"; do
    case $name in
        newest) try "$name" python3 ;;
        oldest) try "$name" python3.11 "${oldest[@]}" ;;
        transformers-*) try "$name" python3 "transformers==${name#*-}.*" ;;
        torch-*) try "$name" python3.11 "torch==${name#*-}.*" ;;
        python-*) try "$name" "python${name#*-}" ;;
        *) echo "there is no environment $name" ;;
    esac
done
