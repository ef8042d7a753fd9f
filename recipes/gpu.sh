#!/usr/bin/env bash
# All speed tables, measured on one CUDA GPU in under ten minutes: bash recipes/gpu.sh OUT [MODEL IMAGES [--key value ...]]
#
# To be run in the project's folder, with the package installed (torch 2.11 or newer). OUT is a new folder: a JSON file for
# each measurement, and tables.md, which report.py makes of them. MODEL (folder or Hub id) is timed on the labelled images
# of the Parquet file IMAGES, and a few steps of training run on them; what follows goes to evaluate.py (--match_labels true).
#
# What matters most comes first, each part within its time: what a part has measured by then stays, and what does not fit
# into the ten minutes is left out, and named. PYTHON names another interpreter.
set -euo pipefail

TOTAL=570  # seconds, the tables at the end included
REPORT=30
python=${PYTHON:-python}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}  # one GPU

die() {
    echo "gpu.sh: $*" >&2
    exit 2
}

[[ $# -eq 1 || $# -ge 3 ]] || die "give OUT, or OUT MODEL IMAGES; got $# words: $*"
out=$1 model=${2:-} images=${3:-}
[[ -f recipes/gpu.sh ]] || die "run it in the project's folder: bash recipes/gpu.sh OUT; this is $PWD"
[[ ! -e $out || -z $(ls -A "$out") ]] || die "$out is not empty: give a new folder"
[[ -z $images || -f $images ]] || die "there is no file of images $images"
"$python" -c '
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no CUDA GPU, which all of this is measured on: CPUs have the same commands without it")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
' || die "nothing was measured"
mkdir -p "$out"

# part SECONDS NAME COMMAND ...: run a command for at most so long, and no longer than there is time.
part() {
    local limit=$1 name=$2 left=$((TOTAL - REPORT - SECONDS)) code=0
    shift 2
    ((limit < left)) || limit=$left
    ((limit > 5)) || { echo "gpu.sh: no time is left for $name" >&2; return 0; }
    echo "gpu.sh: $name, up to $limit s" >&2
    timeout --kill-after=5 "$limit" "$@" || code=$?
    case $code in
        0) ;;
        124 | 137) echo "gpu.sh: $name was cut after $limit s; what it had measured stays" >&2 ;;
        *) echo "gpu.sh: $name failed (exit status $code)" >&2; failed+=("$name") ;;
    esac
}

speed() {
    part "$1" "speed $2" "$python" -m hf_dynvit.benchmark --device cuda --sizes "${2%% *}" --dtypes "${2##* }" \
        --gates patch+sublayer block --batch_sizes 1 32 256 --draws 4 --seconds 1 --json "$out/speed_${2// /_}.json"
}

steps() {
    part "$1" "training steps, gates $2" "$python" recipes/step_time.py --device cuda --model "$out/vit_small" --gates "$2" \
        --batch_size 128 --seconds 10 --json "$out/steps_${2//+/_}.json" "${@:3}"
}

failed=()
speed 220 "small bfloat16"
part 60 "a ViT of random weights" "$python" -c '
import sys
from transformers import ViTImageProcessorPil
from hf_dynvit.measure.forwards import random_vit
for part in (random_vit("small"), ViTImageProcessorPil()):
    part.save_pretrained(sys.argv[1])
' "$out/vit_small"
steps 50 block --agents random agentvit-plus
steps 40 patch+sublayer
if [[ -n $model ]]; then
    part 120 "$model" "$python" recipes/evaluate.py --device cuda --model "$model" --data_files "validation=$images" \
        --max_samples 1024 --dtype bfloat16 --batch_sizes 1 32 256 --seconds 2 --json "$out/model.json" "${@:4}"
    # Whether training runs here, and how long it takes; so few steps teach nothing that a table should hold.
    part 60 "a short training" "$python" recipes/train.py --model_name_or_path "$out/vit_small" --new_classifier true \
        --teacher none --gates adavit --budget 0.5 --evaluate_dense false --data_files "train=$images" \
        --validation_fraction 0.5 --max_eval_samples 256 --max_steps 20 --per_device_train_batch_size 64 --bf16 true \
        --dataloader_num_workers 4 --save_strategy no --report_to none --output_dir "$out/training"
fi
for more in "base bfloat16" "small float32" "tiny bfloat16" "base float32" "tiny float32"; do
    speed 200 "$more"
done

shopt -s nullglob
files=("$out"/*.json)
((${#files[@]})) || die "nothing was measured"
"$python" recipes/report.py "${files[@]}" | tee "$out/tables.md"
echo "gpu.sh: $SECONDS s; $out has ${#files[@]} files and tables.md" >&2
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
