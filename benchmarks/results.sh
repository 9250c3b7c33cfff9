#!/usr/bin/env bash
# The accuracies: benchmarks/results.sh DATA OUT [PART ...]
#
# DATA holds the folders sst, trec, rest14 and sick (benchmarks/README.md). Finished runs under OUT
# are kept, and not run again. Environment variables: SEEDS=N and EPOCHS=N in place of what stands
# here, FLAGS="--dropout 0" and the like: flags of train.py for every run.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 out=$2 epochs=${EPOCHS:-3}
shift 2
mkdir -p "$out"

run() { # name, number of seeds, flags of train.py, in which @SEED@ stands for the seed
    local name=$1 seeds=${SEEDS:-$2} folders=() seed
    shift 2
    for ((seed = 0; seed < seeds; seed++)); do
        folder=$out/$name-$seed
        folders+=("$folder")
        [ ! -e "$folder/metrics.json" ] || continue
        python train.py "${@//@SEED@/$seed}" ${FLAGS:-} --seed $seed --out "$folder" --overwrite \
            > "$folder.txt"
    done
    echo "== $name: $*"
    means "${folders[@]}"
}

means() { # folders of runs: mean and standard deviation of their test scores, or validation scores
    python - "$@" <<'PYTHON'
import json
import sys
from pathlib import Path

import numpy as np

runs = [json.loads(Path(folder, "metrics.json").read_text()) for folder in sys.argv[1:]]
split = "test" if runs[0]["test"] else "validation"
for task, first in runs[0][split].items():
    for name in ("accuracy", "macro_f1", "pearson", "spearman", "rmse"):
        if name in first:
            values = [run[split][task][name] for run in runs]
            spread = np.std(values, ddof=min(1, len(values) - 1))
            each = " ".join(f"{value:.4f}" for value in values)
            print(f"{task:14}{name:10}{np.mean(values):.4f} ± {spread:.4f}   {each}")
PYTHON
}

compare() { # name, number of seeds, flags of compare.py
    local name=$1 seeds=${SEEDS:-$2}
    shift 2
    echo "== $name: $*"
    python benchmarks/compare.py --out "$out/$name" --seeds "$seeds" "$@" ${FLAGS:-}
}

few() { # part, which ends with a percentage; epochs; task whose labels are few; flags of compare.py
    compare "$1" 5 --epochs "${EPOCHS:-$2}" --labels "$3=${1##*-}" "${@:4}"
}

without_sentiment() { # SST's `fine` alone, to stand beside the `sentiment` of rest14
    local split
    for split in train dev test; do
        sed -E 's/"sentiment": "[a-z]*", |, "sentiment": "[a-z]*"//' "$data/sst/$split.jsonl" \
            > "$out/fine-$split.jsonl"
    done
}

every() { # N, K, set: each N-th training row of a set, from the K-th
    awk "NR % $1 == $2" "$data/$3/train.jsonl" > "$out/$3-$2.jsonl"
}

sst=(--data "$data/sst/train.jsonl" --val "$data/sst/dev.jsonl" --test "$data/sst/test.jsonl")
sick=(--data "$data/sick/train.jsonl" --val "$data/sick/dev.jsonl" --test "$data/sick/test.jsonl")
rest14=(--data "$data/rest14/train.jsonl" --test "$data/rest14/test.jsonl")
both=(--data "$data"/{sst,trec}/train.jsonl --val "$data/sst/dev.jsonl"
    --test "$data"/{sst,trec}/test.jsonl --tasks sentiment coarse)
films=(--data "$data/rest14/train.jsonl" "$out/fine-train.jsonl" --val "$out/fine-dev.jsonl"
    --test "$data/rest14/test.jsonl" "$out/fine-test.jsonl" --tasks sentiment fine)

if [ $# -eq 0 ]; then
    set -- sample rest14 rest14-tune partial fine sick short \
        mixture-{fine-{5,25},category-{5,10,25,100},sick-5,trec}
fi
for part; do
    case $part in
    sample) compare sample 5 ;;
    rest14) compare rest14 5 "${rest14[@]}" --epochs $epochs ;;
    rest14-tune) compare rest14-tune 5 --tune "${rest14[@]}" --epochs $epochs ;;
    partial) compare sst+trec 3 "${both[@]}" --epochs $epochs ;;
    sick) compare sick 3 "${sick[@]}" --epochs $epochs ;;
    fine) run "sst-fine-$epochs-epochs" 3 "${sst[@]}" --tasks fine --variant single \
        --epochs $epochs ;;

    # Few labels of one task, and all of another
    mixture-fine-*) # related: the sentiment of restaurants, and the five classes of films
        without_sentiment
        few $part 2 sentiment "${films[@]}" ;;
    mixture-sick-*) few $part 2 entailment "${sick[@]}" ;; # related: of the same pairs
    mixture-category-*) few $part 3 sentiment "${rest14[@]}" ;; # unrelated
    mixture-trec) compare $part 5 "${both[@]}" --epochs "${EPOCHS:-1}" ;; # a row has one label
    first) # one task after the other: SST's `fine`, then the 104 labels of mixture-fine-5
        rows=$out/mixture-fine-5/data.json
        [ -e "$rows" ] || { echo "run the part mixture-fine-5 first" >&2; exit 2; }
        run first-fine 5 "${sst[@]}" --tasks fine --variant single --epochs 2
        run first-then 5 --data "$rows" --tasks sentiment --variant single \
            --encoder "$out/first-fine-@SEED@" ;;

    short) # one epoch on every sixth row: what pooling, rates, warm-up, heads and batches add
        every 6 1 sst
        sixth=("${sst[@]}" --data "$out/sst-1.jsonl" --tasks sentiment --epochs 1)
        run short-default 5 "${sixth[@]}" --variant single
        sixth+=(--batch-size 32)
        run short-fit 5 "${sixth[@]}" --variant single
        sixth+=(--variant separate-lr --head-init random)
        run short-cls 5 "${sixth[@]}" --pooling cls --lr 5e-5 --head-lr 5e-5 --warmup-ratio 0
        run short-mean 5 "${sixth[@]}" --lr 5e-5 --head-lr 5e-5 --warmup-ratio 0
        run short-rate 5 "${sixth[@]}" --lr 1e-4 --head-lr 1e-4 --warmup-ratio 0
        run short-warmup 5 "${sixth[@]}" --lr 1e-4 --head-lr 1e-4
        run short-separate 5 "${sixth[@]}" --lr 1e-4 --head-lr 5e-3
        echo "== short, Trainer"
        python benchmarks/speed.py --parts learn --seeds "${SEEDS:-5}" --epochs 1 --reach 0 \
            "${sst[@]}" --data "$out/sst-1.jsonl" --out "$out/short-trainer" ;;

    trials-*) # train.py's defaults beside others, on parts of the training rows, without test rows
        every 6 1 sst; every 6 1 trec; every 6 2 trec; every 6 1 sick; every 2 1 rest14
        every 4 0 rest14
        case $part in
        trials-sst+trec) rows=(--data "$out"/{sst,trec}-1.jsonl --tasks sentiment coarse
            --val "$data/sst/dev.jsonl" "$out/trec-2.jsonl") ;;
        trials-sick) rows=(--data "$out/sick-1.jsonl" --val "$data/sick/dev.jsonl") ;;
        trials-rest14) rows=(--data "$out/rest14-1.jsonl" --val "$out/rest14-0.jsonl") ;;
        esac
        rows+=(--epochs $epochs --no-test) part=$part-$epochs-epochs
        run "$part-default" 3 "${rows[@]}"
        run "$part-lr5e-5" 3 "${rows[@]}" --lr 5e-5
        run "$part-lr2e-4" 3 "${rows[@]}" --lr 2e-4
        run "$part-cls" 3 "${rows[@]}" --pooling cls
        run "$part-dropout0" 3 "${rows[@]}" --dropout 0
        run "$part-warmup0" 3 "${rows[@]}" --warmup-ratio 0
        run "$part-separate5e-3" 3 "${rows[@]}" --variant separate-lr --head-lr 5e-3
        run "$part-separate1e-3" 3 "${rows[@]}" --variant separate-lr --head-lr 1e-3 ;;
    *) echo "no part $part" >&2; exit 2 ;;
    esac
done
