#!/bin/bash
# Does the flow move the language model's crystals towards their CHGNet-relaxed state? From a model
# fine-tuned on ../shared/data/mp_20_sample (prompts.formula_style atoms) to match rates and RMSD:
#   benchmarks/flow_on_sample.sh MODEL OUT SHARDS       SHARDS of 160 draws of training pairs each
# Pairs are drawn for formulas of the training split and of the validation split (early stopping);
# refined are drafts for the formulas of the test split, which neither model saw. Goes on where it
# was stopped. The numbers come from relaxed_gain.py.
set -euo pipefail
model=$1 out=$2 shards=$3
configs=(--config config.yaml --config workflow/config/demo.yaml --config benchmarks/flow_on_sample.yaml)
flowllm() { python -m flowllm "$@" "${configs[@]}"; }
draw_pairs() {  # split, first draw, draws
    [ -e "$out/pairs/$1-$2.parquet" ] || flowllm sample_pairs --model "$model" \
        --crystals "$out/crystals/$1.parquet" --split "$1" --start "$2" --count "$3" \
        --out "$out/pairs/$1-$2.parquet"
}

[ -e "$out/crystals" ] || {
    flowllm download --out "$out/raw/manifest.json"
    flowllm prepare --manifest "$out/raw/manifest.json" --out "$out/crystals"
}
base=$out/base.parquet
[ -e "$base" ] || flowllm sample_csp --model "$model" --crystals "$out/crystals/test.parquet" \
    --row test --start 0 --count 132 --out "$base"
draw_pairs val 0 96
pairs=()
for ((shard = 0; shard < shards; shard++)); do
    draw_pairs train $((160 * shard)) 160
    pairs+=(--pairs "$out/pairs/train-$((160 * shard)).parquet")
done
[ -e "$out/flow" ] || time flowllm train_rfm "${pairs[@]}" --val-pairs "$out/pairs/val-0.parquet" \
    --row llm --out "$out/flow"
for setting in drafts refined; do
    generated=$out/generated-$setting.parquet relaxed=$out/relaxed-$setting.parquet
    [ -e "$generated" ] || flowllm refine --base "$base" --model "$out/flow" --row $setting \
        --out "$generated"
    [ -e "$relaxed" ] || flowllm prerelax --generated "$generated" --out "$relaxed"
done
python benchmarks/relaxed_gain.py "$out" drafts refined
