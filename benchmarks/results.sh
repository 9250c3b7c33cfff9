#!/usr/bin/env bash
# The README's figures: benchmarks/results.sh DATA OUT [PART ...], where DATA holds the folders sst, trec, rest14 and
# sick of train, dev and test .jsonl files (benchmarks/README.md). Finished runs under OUT are kept and not run again.
# SEEDS=N runs other than these numbers of seeds, EPOCHS=N other than three epochs,
# FLAGS="--dropout 0", say, flags of train.py for every run, PERCENT="N ..." other points of the curves.
# The parts mixture-* are meant to take at most 15 minutes each on two cores; mixture draws the picture of those there are.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 out=$2 epochs=${EPOCHS:-3}
shift 2
mkdir -p "$out"

run() { # name, number of seeds, flags of train.py, in which @SEED@ stands for the seed
    name=$1 seeds=${SEEDS:-$2}; shift 2
    folders=()
    for ((seed = 0; seed < seeds; seed++)); do
        folders+=("$out/$name-$seed")
        [ -e "$out/$name-$seed/metrics.json" ] || python train.py "${@//@SEED@/$seed}" ${FLAGS:-} --seed $seed --out "$out/$name-$seed" --overwrite > "$out/$name-$seed.txt"
    done
    echo "== $name: $*"
    python benchmarks/means.py "${folders[@]}"
}

compare() { # name, flags of compare.py
    name=$1; shift
    echo "== $name: $*"
    python compare.py --out "$out/$name" "$@" ${FLAGS:-}
}

curve() { # folder, epochs, points, flags of curve.py
    echo "== $1, $3 %: ${*:4}"
    python benchmarks/curve.py --seeds "${SEEDS:-5}" --percent ${PERCENT:-$3} "${@:4}" --epochs "${EPOCHS:-$2}" ${FLAGS:-} --out "$out/$1"
}

fine() { # SST without its three classes: its `fine` beside rest14's `sentiment`
    for split in train dev test; do sed 's/"sentiment": "[a-z]*", //' "$data/sst/$split.jsonl" > "$out/fine-$split.jsonl"; done
}

sst=(--data "$data/sst/train.jsonl" --val "$data/sst/dev.jsonl" --test "$data/sst/test.jsonl")
rest14=(--data "$data/rest14/train.jsonl" --test "$data/rest14/test.jsonl")
[ $# -gt 0 ] || set -- sample rest14 rest14-tune partial fine sick short \
    mixture-{fine-{5,25},category-{5,10,25,100},sick-5,trec} mixture
for part; do
    case $part in
    sample) compare sample --seeds "${SEEDS:-5}" ;;
    rest14) compare rest14 --seeds "${SEEDS:-5}" "${rest14[@]}" --epochs $epochs ;;
    rest14-tune) compare rest14-tune --seeds "${SEEDS:-5}" --tune "${rest14[@]}" --epochs $epochs ;;
    partial)
        compare sst+trec --seeds "${SEEDS:-3}" --data "$data"/{sst,trec}/train.jsonl --val "$data/sst/dev.jsonl" \
            --test "$data"/{sst,trec}/test.jsonl --tasks sentiment coarse --epochs $epochs ;;
    fine) run "sst-fine-$epochs-epochs" 3 "${sst[@]}" --tasks fine --variant single --epochs $epochs ;;
    sick)
        compare sick --seeds "${SEEDS:-3}" --data "$data/sick/train.jsonl" --val "$data/sick/dev.jsonl" \
            --test "$data/sick/test.jsonl" --epochs $epochs ;;
    mixture-fine-*) # related: few labels of restaurants' sentiment, all of films' five classes
        fine
        curve $part 2 ${part##*-} --of sentiment --data "$data/rest14/train.jsonl" "$out/fine-train.jsonl" \
            --val "$out/fine-dev.jsonl" --test "$data/rest14/test.jsonl" "$out/fine-test.jsonl" --tasks sentiment fine ;;
    mixture-category-*) curve $part 3 ${part##*-} --of sentiment "${rest14[@]}" ;; # unrelated
    mixture-sick-*) # related: both of the same pairs
        curve $part 2 ${part##*-} --of entailment --data "$data/sick/train.jsonl" --val "$data/sick/dev.jsonl" \
            --test "$data/sick/test.jsonl" ;;
    mixture-trec) # each row is labelled for one of the two
        curve $part 1 100 --of sentiment coarse --data "$data"/{sst,trec}/train.jsonl --val "$data/sst/dev.jsonl" \
            --test "$data"/{sst,trec}/test.jsonl --tasks sentiment coarse ;;
    first) # in place of training both together: SST's `fine` first, then the 104 labels of mixture-fine-5
        [ -e "$out/mixture-fine-5/task-1-5/data.json" ] || { echo "run the part mixture-fine-5 first" >&2; exit 2; }
        run first-fine 5 "${sst[@]}" --tasks fine --variant single --epochs 2
        run first-then 5 --data "$out/mixture-fine-5/task-1-5/data.json" --tasks sentiment --variant single \
            --encoder "$out/first-fine-@SEED@" ;;
    freeze) # with and without the embeddings' gradient
        run freeze-sst 3 "${sst[@]}" --tasks sentiment --variant single --epochs 1 --freeze-embeddings
        run freeze-sst-not 3 "${sst[@]}" --tasks sentiment --variant single --epochs 1
        run freeze-rest14 5 "${rest14[@]}" --epochs $epochs --freeze-embeddings
        run freeze-rest14-not 5 "${rest14[@]}" --epochs $epochs ;;
    mixture) python benchmarks/curve.py --join "$out"/mixture-{fine,category,sick}-* --out "$out/mixture" ;;
    short) # one epoch on every sixth row: what pooling, learning rates and warm-up each add
        awk 'NR % 6 == 1' "$data/sst/train.jsonl" > "$out/sixth.jsonl"
        sixth=("${sst[@]}" --data "$out/sixth.jsonl" --tasks sentiment --epochs 1 --variant separate-lr)
        run short-cls 5 "${sixth[@]}" --pooling cls --lr 5e-5 --head-lr 5e-5 --warmup-ratio 0
        run short-mean 5 "${sixth[@]}" --lr 5e-5 --head-lr 5e-5 --warmup-ratio 0
        run short-rate 5 "${sixth[@]}" --lr 1e-4 --head-lr 1e-4 --warmup-ratio 0
        run short-warmup 5 "${sixth[@]}" --lr 1e-4 --head-lr 1e-4
        run short-separate 5 "${sixth[@]}" --lr 1e-4 --head-lr 5e-3
        echo "== short, Trainer"
        python benchmarks/speed.py --parts learn --seeds "${SEEDS:-5}" --epochs 1 --reach 0 --data "$out/sixth.jsonl" \
            --val "$data/sst/dev.jsonl" --test "$data/sst/test.jsonl" --out "$out/short-trainer" ;;
    trials-*) # how train.py's defaults do on validation rows, beside others; a part of the training rows
        every() { awk "NR % $1 == $2" "$data/$3/train.jsonl" > "$out/$3-$2.jsonl"; }
        every 6 1 sst; every 6 1 trec; every 6 2 trec; every 6 1 sick; every 2 1 rest14; every 4 0 rest14
        case $part in
        trials-sst+trec) rows=(--data "$out"/{sst,trec}-1.jsonl --val "$data/sst/dev.jsonl" "$out/trec-2.jsonl" --tasks sentiment coarse) ;;
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
