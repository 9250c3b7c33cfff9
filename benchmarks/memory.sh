#!/usr/bin/env bash
# Peak memory: benchmarks/memory.sh DATA (as for results.sh): training on SST, and predicting 20,000 and 200,000 lines.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
peak() { # what, command
    what=$1; shift
    python - "$what" "$@" <<'PYTHON'
import resource, subprocess, sys, time
start = time.time()
subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(f"{sys.argv[1]}: {time.time() - start:.0f} s, peak {peak:.0f} MiB", flush=True)
PYTHON
}

peak "training on SST, one epoch" python train.py --variant single --epochs 1 --tasks sentiment --out "$folder/run" \
    --data "$data/sst/train.jsonl" --val "$data/sst/dev.jsonl" --test "$data/sst/test.jsonl"
python - "$data/trec/train.jsonl" "$folder" <<'PYTHON'
import itertools, json, sys
questions = [json.loads(line)["text"] for line in open(sys.argv[1])]
for count in (20_000, 200_000):
    with open(f"{sys.argv[2]}/{count}.txt", "w") as file:
        file.writelines(text + "\n" for text in itertools.islice(itertools.cycle(questions), count))
PYTHON
for count in 20000 200000; do
    peak "predicting $count lines" python predict.py --model "$folder/run" --input "$folder/$count.txt" --output "$folder/out.jsonl"
done
