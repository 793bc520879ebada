#!/bin/bash
# Does the flow move the language model's crystals towards their CHGNet-relaxed state? From a model
# fine-tuned on ../shared/data/mp_20_sample (cells of at most 8 atoms, prompts.formula_style atoms)
# to match rates, RMSD, energies and volumes of the same crystals before and after:
#   benchmarks/flow_on_sample.sh MODEL OUT rattled|drafts
# The flow learns from `rattled` crystals of the training split (rattled_pairs.py, 100 of each), or
# from the model's own `drafts` of them, 160 draws. What is refined are the model's drafts for the
# formulas of the test split, which neither model saw. Goes on where it was stopped.
set -euo pipefail
model=$1 out=$2 kind=$3
configs=(--config config.yaml --config workflow/config/demo.yaml --config benchmarks/flow_on_sample.yaml)
flowllm() { python -m flowllm "$@" "${configs[@]}"; }
pairs=$out/pairs/$kind

[ -e "$out/crystals" ] || {
    flowllm download --out "$out/raw/manifest.json"
    flowllm prepare --manifest "$out/raw/manifest.json" --out "$out/crystals"
}
base=$out/base.parquet
[ -e "$base" ] || flowllm sample_csp --model "$model" --crystals "$out/crystals/test.parquet" \
    --row test --start 0 --count 132 --out "$base"
mkdir -p "$pairs" "$out/$kind"
draw_pairs() {  # split, draws of the model, rattled ones a crystal
    [ -e "$pairs/$1.parquet" ] || case $kind in
        rattled) python benchmarks/rattled_pairs.py "$out/crystals/$1.parquet" --split "$1" \
            --draws "$3" --out "$pairs/$1.parquet" ;;
        drafts) flowllm sample_pairs --model "$model" --crystals "$out/crystals/$1.parquet" \
            --split "$1" --start 0 --count "$2" --out "$pairs/$1.parquet" ;;
    esac
}
draw_pairs train 160 100
draw_pairs val 96 8
[ -e "$out/$kind/flow" ] || time flowllm train_rfm --pairs "$pairs/train.parquet" \
    --val-pairs "$pairs/val.parquet" --row llm --out "$out/$kind/flow"
for setting in drafts refined; do
    generated=$out/$kind/generated-$setting.parquet relaxed=$out/$kind/relaxed-$setting.parquet
    [ -e "$generated" ] || flowllm refine --base "$base" --model "$out/$kind/flow" --row $setting \
        --out "$generated"
    [ -e "$relaxed" ] || flowllm prerelax --generated "$generated" --out "$relaxed"
done
python benchmarks/relaxed_gain.py "$out/$kind" drafts refined
