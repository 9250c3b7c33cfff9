#!/usr/bin/env bash
# What is to be known of one GPU, in ten minutes: benchmarks/gpu.sh DATA OUT [DEVICE [SECONDS]]
#
# DATA holds the folder sst, as for results.sh. DEVICE is cuda, or cpu for a dry run with few rows.
# SECONDS is how many it may take in all; steps for which none are left are not begun.
#
# Timed, one after another: the versions (card); the README's two commands (sample, predict);
# speed.py with the default encoder (speed) and with BERT-base's shape (base).
# Then beside each other: the second command on the CPU (predict-cpu); train.py in float32 on the
# CPU and on the device (parity), twice the same (equal), under torchrun with one process
# (torchrun), with NCCL and DistributedDataParallel in a group of one (nccl); the tests.
# At last, timed: speed.py with torch.compile (compile).
# What a step prints is in OUT/NAME.txt. A step that fails does not stop the others; the exit status
# is then 1.
set -uo pipefail
[ $# -ge 2 ] || { echo "usage: benchmarks/gpu.sh DATA OUT [DEVICE [SECONDS]]" >&2; exit 2; }
mkdir -p "$2" || exit 2
data=$(realpath "$1") out=$(realpath "$2") device=${3:-cuda}
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
case $device in
cuda)
    rows=(--train-rows 4096 --predict-rows 8192 --rounds 4)
    base=(--train-rows 2048 --predict-rows 4096 --rounds 3)
    compiled=(--train-rows 2048 --predict-rows 8192)
    tests=(test_mtbert.py tests) sample=sample_data.json ;;
cpu)
    rows=(--train-rows 32 --predict-rows 16 --rounds 2)
    base=(--train-rows 8 --predict-rows 4 --rounds 1)
    compiled=(--train-rows 32 --predict-rows 32 --encoder "$out/tiny")
    tests=(tests/test_metrics.py) sample=$out/sample.json
    python benchmarks/gpu.py dry "$out" ;;
*) echo "DEVICE is cuda or cpu" >&2; exit 2 ;;
esac
sst=(--data "$data/sst/train.jsonl" --val "$data/sst/dev.jsonl" --test "$data/sst/test.jsonl")
sst+=(--device "$device")
budget=${4:-590}
rm -f "$out/begun.txt" "$out/report.txt"

step() { # name, most seconds, command
    local name=$1 limit=$2 start=$SECONDS status=0 words=done
    shift 2
    echo "$name" >> "$out/begun.txt"
    ((limit = limit < budget - SECONDS ? limit : budget - SECONDS))
    if ((limit < 1)); then
        echo "no time was left" > "$out/$name.txt"; status=124
    else
        timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || status=$?
    fi
    [ $status = 0 ] || words="FAILED, exit status $status: $(tail -n 1 "$out/$name.txt")"
    printf '%-15s %4d s  %s\n' "$name" $((SECONDS - start)) "$words" | tee -a "$out/report.txt"
}

fit() { # name, command that takes flags of train.py: two epochs
    local name=$1
    shift
    step "$name" 200 "$@" --data "$sample" --epochs 2 --out "$out/runs/$name" --overwrite
}

train=(python train.py --device "$device")
group=(python -m torch.distributed.run --standalone --nproc_per_node=1) # torchrun
check=(python benchmarks/gpu.py)
speed=(python benchmarks/speed.py "${sst[@]}")
predict=(python predict.py --model "$out/runs/sample" "great movie")

[ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
step card 60 "${check[@]}" card "$device"
step sample 100 "${train[@]}" --data "$sample" --variant shared --out "$out/runs/sample" --overwrite
step predict 60 "${predict[@]}" --device "$device"
step speed 170 "${speed[@]}" "${rows[@]}" --parts train predict --out "$out/speed"
step base 170 "${speed[@]}" "${base[@]}" --parts train predict --shape base --out "$out/base"

export OMP_NUM_THREADS=2
step predict-cpu 60 "${predict[@]}" --device cpu --dtype float32 &
# Without dropout, whose random numbers are the device's
fit cpu32 python train.py --device cpu --dtype float32 --dropout 0 &
fit device32 "${train[@]}" --dtype float32 --dropout 0 &
fit one "${train[@]}" &
fit again "${train[@]}" &
fit torchrun "${group[@]}" "${train[@]:1}" &
fit nccl "${group[@]}" benchmarks/gpu.py group --device "$device" &
wait
step tests 200 python -m pytest -q -n 8 --tb=short "${tests[@]}" &
step parity 60 "${check[@]}" loss "$out/runs" cpu32 device32 &
step equal 60 "${check[@]}" equal "$out/runs" one again &
step torchrun-equal 60 "${check[@]}" equal "$out/runs" one torchrun &
step nccl-equal 60 "${check[@]}" equal "$out/runs" one nccl &
wait
unset OMP_NUM_THREADS
step compile 300 "${speed[@]}" "${compiled[@]}" --parts compile --out "$out/compile"

echo
cat "$out/card.txt"
for name in speed base; do
    echo && echo "== $name" && grep "^matrix products" "$out/$name.txt"
    sed -n '/^train, rows a second/,$p' "$out/$name.txt"
done
echo && sed -n '/^compile,/,$p' "$out/compile.txt" | grep -v warning
echo && tail -n 12 "$out/sample.txt" && cat "$out"/predict*.txt
echo && cat "$out/parity.txt" "$out"/*equal.txt
echo && echo "tests: $(tail -n 1 "$out/tests.txt")" && grep "^FAILED\|^ERROR" "$out/tests.txt"
echo && cat "$out/report.txt"
steps=$(wc -l < "$out/begun.txt") good=$(grep -c ' s  done$' "$out/report.txt")
echo "$((steps - good)) of $steps steps failed; $SECONDS s in all"
((good == steps))
