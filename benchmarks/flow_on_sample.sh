#!/bin/bash
# Measures whether the flow moves the language model's crystals towards their CHGNet-relaxed states, on
# the real rows of data/mp_20_sample (see workflow/config/mp_20_sample.yaml; cells of at most eight
# atoms), from fine-tuning to the report:
#   bash benchmarks/flow_on_sample.sh
# SmolLM2 writes the drafts for the formulas of the test split, which neither model was trained on, at
# the temperature of the pairs. The script resumes after an interruption; it takes about an hour on two
# cores. docs/results.md has what was measured.
set -euo pipefail
run=runs/flow_on_sample
snakemake --cores 2 --rerun-incomplete \
    --configfile workflow/config/smollm2.yaml workflow/config/mp_20_sample.yaml \
    benchmarks/flow_on_sample.yaml -- all $run/relaxed/{drafts,refined}/shard-00000.parquet
python benchmarks/relaxed_gain.py $run drafts refined
