#!/usr/bin/env bash
# What is to be known of one GPU, in ten minutes: benchmarks/gpu.sh DATA OUT [DEVICE], where DATA holds the folder sst as
# for results.sh. DEVICE is cuda, or cpu for a dry run with few rows. The steps: card; speed.py with the default encoder
# (speed) and with BERT-base's shape (base); train.py in float32 on the processor and on the device (parity), twice the
# same (equal), under torchrun with one process (torchrun), with NCCL and DistributedDataParallel in a group of one (nccl);
# beside these the tests; speed.py with torch.compile (compile). What a step prints is in OUT/NAME.txt. One that fails does
# not stop the others, and the exit status is then 1.
set -uo pipefail
[ $# -ge 2 ] || { echo "usage: benchmarks/gpu.sh DATA OUT [DEVICE]" >&2; exit 2; }
mkdir -p "$2" || exit 2
data=$(realpath "$1") out=$(realpath "$2") device=${3:-cuda}
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
case $device in
cuda) rows=(--train-rows 4096 --predict-rows 8192 --rounds 4) base=(--train-rows 2048 --predict-rows 4096 --rounds 3)
    compiled=(--train-rows 2048 --predict-rows 8192) tests=(test_mtbert.py tests) sample=sample_data.json ;;
cpu) rows=(--train-rows 32 --predict-rows 16 --rounds 2) base=(--train-rows 8 --predict-rows 4 --rounds 1)
    compiled=(--train-rows 32 --predict-rows 32 --encoder "$out/tiny") tests=(tests/test_metrics.py) sample=$out/sample.json ;;
*) echo "DEVICE is cuda or cpu" >&2; exit 2 ;;
esac
sst=(--data "$data/sst/train.jsonl" --val "$data/sst/dev.jsonl" --test "$data/sst/test.jsonl" --device "$device")
budget=590 failed=() report=""

step() { # name, most seconds, command
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    ((limit = limit < budget - SECONDS ? limit : budget - SECONDS))
    if ((limit < 1)); then
        echo "no time was left" > "$out/$name.txt"; status=124
    else
        timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || status=$?
    fi
    [ $status = 0 ] || failed+=("$name")
    report+=$(printf '%-10s %4d s  %s' "$name" $((SECONDS - start)) "$([ $status = 0 ] && echo done || echo "FAILED, exit status $status: $(tail -n 1 "$out/$name.txt")")")$'\n'
    echo "$name: $((SECONDS - start)) s, exit status $status"
}

fit() { # name, flags of train.py: two epochs
    local name=$1; shift
    step "$name" 100 python train.py --data "$sample" --epochs 2 --out "$out/runs/$name" --overwrite "$@"
}

cat > "$out/card.py" <<'PYTHON'
import sys
import torch
import transformers
print("torch", torch.__version__, "| CUDA", torch.version.cuda, "| transformers", transformers.__version__)
if sys.argv[1] == "cuda":
    print(torch.cuda.get_device_name(), "| compute capability", torch.cuda.get_device_capability(), "| NCCL", torch.cuda.nccl.version())
PYTHON
cat > "$out/compare.py" <<'PYTHON'
"""How two runs differ. Exit status 1: of parity where the first losses differ, else where the metrics do, if `again`'s do not."""
import json
import sys
from pathlib import Path
from safetensors.torch import load_file
folder, one, other = Path(sys.argv[1]), *sys.argv[2:]

def numbers(value):
    return [n for part in value.values() for n in numbers(part)] if isinstance(value, dict) else [value] if isinstance(value, float) else []

def losses(name):
    lines = map(json.loads, (folder / name / "log.jsonl").read_text().splitlines())
    return [sum(line["loss"].values()) for line in lines if "loss" in line]

def difference(one, other):
    a, b = (numbers(json.loads((folder / name / "metrics.json").read_text())["validation"]) for name in (one, other))
    return max(abs(x - y) for x, y in zip(a, b, strict=True))

a, b = (load_file(folder / name / "model.safetensors") for name in (one, other))
weights, (x, y) = max((a[name] - b[name]).abs().max().item() for name in a), (losses(one), losses(other))
print(f"{one} and {other}, largest differences: validation metrics {difference(one, other):.2g}, weights {weights:.2g}, "
      f"loss of the first step {abs(x[0] - y[0]) / x[0]:.2g} of it, of the last {abs(x[-1] - y[-1]) / x[-1]:.2g}")
if other == "device32":
    sys.exit(abs(x[0] - y[0]) > 1e-4 * x[0])
sys.exit(difference(one, other) > 0 and difference("one", "again") == 0)
PYTHON
cat > "$out/group.py" <<'PYTHON'
"""train.py in a group of one process: torchrun with one process makes none, and NCCL would not be used."""
import sys
import torch
sys.path.insert(0, ".")
import runs
import train
if torch.cuda.is_available():
    torch.cuda.set_device(0)
torch.distributed.init_process_group("nccl" if "cuda" in sys.argv else "gloo")
runs.in_parallel = lambda model, unused: torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
runs.run_script(train.main)
PYTHON
if [ "$device" = cpu ]; then
    python - "$out" <<'PYTHON'
import json, sys
import transformers
import mtbert
content = json.load(open("sample_data.json"))
content = {name: rows[:32] if isinstance(rows, list) else rows for name, rows in content.items()}
json.dump(content, open(f"{sys.argv[1]}/sample.json", "w"))
tiny = transformers.BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
transformers.BertModel(tiny).save_pretrained(f"{sys.argv[1]}/tiny")
transformers.AutoTokenizer.from_pretrained(mtbert.find_encoder(mtbert.DEFAULT_ENCODER)[0]).save_pretrained(f"{sys.argv[1]}/tiny")
PYTHON
fi

[ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
step card 60 python "$out/card.py" "$device"
step speed 170 python benchmarks/speed.py "${sst[@]}" "${rows[@]}" --parts train predict --out "$out/speed"
step base 170 python benchmarks/speed.py "${sst[@]}" "${base[@]}" --parts train predict --shape base --out "$out/base"
# What follows is not timed, and so the tests may run beside it: all of them, to see every failure
(timeout 200 python -m pytest -q --tb=short "${tests[@]}" > "$out/tests.txt" 2>&1; echo $? > "$out/tests.status") &
group=(python -m torch.distributed.run --standalone --nproc_per_node=1) # torchrun
fit cpu32 --device cpu --dtype float32 --dropout 0 # without dropout, whose numbers are the device's
fit device32 --device "$device" --dtype float32 --dropout 0
step parity 60 python "$out/compare.py" "$out/runs" cpu32 device32
fit one --device "$device"
fit again --device "$device"
step equal 60 python "$out/compare.py" "$out/runs" one again
step torchrun 100 "${group[@]}" train.py --data "$sample" --epochs 2 --out "$out/runs/torchrun" --overwrite --device "$device"
step torchrun-equal 60 python "$out/compare.py" "$out/runs" one torchrun
step nccl 100 "${group[@]}" "$out/group.py" --data "$sample" --epochs 2 --out "$out/runs/nccl" --overwrite --device "$device"
step nccl-equal 60 python "$out/compare.py" "$out/runs" one nccl
wait
[ "$(cat "$out/tests.status")" = 0 ] || failed+=(tests)
step compile 300 python benchmarks/speed.py "${sst[@]}" "${compiled[@]}" --parts compile --out "$out/compile"

echo
cat "$out/card.txt"
for name in speed base; do
    echo && echo "== $name" && grep "^matrix products" "$out/$name.txt"
    sed -n '/^train, rows a second/,$p' "$out/$name.txt"
done
echo && sed -n '/^compile,/,$p' "$out/compile.txt" | grep -v warning
echo && cat "$out/parity.txt" "$out"/*equal.txt
echo && echo "tests: $(tail -n 1 "$out/tests.txt")" && grep "^FAILED\|^ERROR" "$out/tests.txt"
echo && echo -n "$report"
echo "${#failed[@]} steps failed${failed[*]:+: ${failed[*]}}; $SECONDS s in all"
((${#failed[@]} == 0))
