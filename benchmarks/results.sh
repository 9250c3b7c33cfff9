#!/usr/bin/env bash
# The README's figures: benchmarks/results.sh DATA, where DATA/sst and DATA/trec hold train, dev and test .jsonl files
# with the keys text and sentiment (3 classes), and text and coarse (6 classes; no dev).
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 out=${2:-runs/results}

run() { # name, number of seeds, flags of train.py
    name=$1 seeds=$2; shift 2
    for ((seed = 0; seed < seeds; seed++)); do
        [ -e "$out/$name-$seed/metrics.json" ] || python train.py "$@" --seed $seed --out "$out/$name-$seed" --overwrite > "$out/$name-$seed.txt"
    done
    echo "== $name: $*"
    python benchmarks/runs.py "$out/$name"-[0-9]
}

mkdir -p "$out"
run sample-shared 5 --variant shared
echo "== TF-IDF and logistic regression"
python benchmarks/tfidf.py

sst=(--data "$data/sst/train.jsonl" --val "$data/sst/dev.jsonl" --test "$data/sst/test.jsonl" --tasks sentiment)
trec=(--data "$data/trec/train.jsonl" --test "$data/trec/test.jsonl" --tasks coarse)
both=(--data "$data/sst/train.jsonl" "$data/trec/train.jsonl" --val "$data/sst/dev.jsonl"
      --test "$data/sst/test.jsonl" "$data/trec/test.jsonl" --tasks sentiment coarse)
run sst+trec-shared 3 "${both[@]}" --variant shared --epochs 3
run sst-single 3 "${sst[@]}" --variant single --epochs 3
run trec-single 3 "${trec[@]}" --variant single --epochs 3
