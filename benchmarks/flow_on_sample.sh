#!/bin/bash
# Does the flow move the language model's crystals towards their relaxed state? From a fine-tuned
# model and crystals (llm/model and crystals/ of a run) to match rates and RMSD before and after:
#   benchmarks/flow_on_sample.sh MODEL CRYSTALS OUT SHARDS      SHARDS of 96 training pairs each
# Goes on where it was stopped. The numbers come from relaxed_gain.py.
set -euo pipefail
model=$1 crystals=$2 out=$3 shards=$4
configs=(--config config.yaml --config workflow/config/demo.yaml --config benchmarks/flow_on_sample.yaml)
flowllm() { nice -n 10 python -m flowllm "$@" "${configs[@]}"; }

base=$out/base.parquet
val=$out/pairs/val.parquet
[ -e "$val" ] || flowllm sample_pairs --model "$model" --crystals "$crystals/val.parquet" \
    --split val --start 0 --count 48 --out "$val"
[ -e "$base" ] || flowllm sample_base --model "$model" --row tau0.7-p0.9 --start 0 --count 32 --out "$base"
pairs=()
for ((shard = 0; shard < shards; shard++)); do
    pairs+=(--pairs "$out/pairs/train-$shard.parquet")
    [ -e "$out/pairs/train-$shard.parquet" ] || flowllm sample_pairs --model "$model" \
        --crystals "$crystals/train.parquet" --split train --start $((96 * shard)) --count 96 \
        --out "$out/pairs/train-$shard.parquet"
done
[ -e "$out/flow" ] || flowllm train_rfm "${pairs[@]}" --val-pairs "$val" --row llm --out "$out/flow"
for setting in CrystalLLM-tau0.7-p0.9 FlowLLM-tau0.7-p0.9; do
    generated=$out/generated-$setting.parquet relaxed=$out/relaxed-$setting.parquet
    [ -e "$generated" ] || flowllm refine --base "$base" --model "$out/flow" --row $setting --out "$generated"
    [ -e "$relaxed" ] || flowllm prerelax --generated "$generated" --out "$relaxed"
    python benchmarks/relaxed_gain.py "$generated" "$relaxed"
done
