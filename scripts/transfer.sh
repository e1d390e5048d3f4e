#!/usr/bin/env bash
# The whole transfer experiment with SmolLM2-135M-Instruct: companion, experts, tuned models, arms table.
#   scripts/transfer.sh GGUF DATA OUT [override of proxytune run ...]
# GGUF: the model's file. DATA: gsm8k, mmlu and cnn_dailymail as JSON lines. OUT: a new folder (about 1 GB).
# Some four hours on two cores; given again, it goes on where it stopped (the companion is made in one go).
set -euo pipefail
if [ $# -lt 3 ]; then sed -n '2,5s/^# //p' "$0" >&2; exit 2; fi
gguf=$1 data=$2 out=$3
shift 3

if [ ! -e "$out/companion/companion.json" ]; then
  python "$(dirname "$0")/make_companion.py" base="$gguf" data="$data" output="$out/companion"
fi
# MMLU: its test file is sorted by subject and only the first items are asked; tuning is on dev and validation together.
python - "$data" "$out/data" <<'EOF'
import random, sys
from pathlib import Path
data, out = map(Path, sys.argv[1:])
read = lambda name: list((data / name).open(encoding="utf-8"))
test = read("mmlu/test.jsonl")
random.Random(0).shuffle(test)
files = {"mmlu/test.jsonl": test, "mmlu/validation.jsonl": read("mmlu/dev.jsonl") + read("mmlu/validation.jsonl")}
for name, lines in {**files, **{name: read(name) for name in ("gsm8k/train.jsonl", "gsm8k/test.jsonl")}}.items():
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("".join(lines), encoding="utf-8")
EOF
data=$out/data
models=(models=smollm2_transfer models.base.path="$gguf" models.antiexpert.path="$out/companion")
train() {
  proxytune train "${models[@]}" task="$1" task.data_dir="$data" training=laptop training.max_steps="$2" which=all output="$out/trained"
}
train gsm8k 100 # 3,200 of 7,473 examples
train mmlu 50   # 1,600 of 1,816
adapters=()
for task in gsm8k mmlu; do
  adapters+=(models.experts.$task.adapter="$out/trained/experts/$task" models.tuned.$task.adapter="$out/trained/tuned/$task")
done
proxytune run experiment=smollm2_transfer "${models[@]:1}" "${adapters[@]}" task.data_dir="$data" output="$out/run" "$@"
